//! The status page as people see it: in a real browser, in front of real replicas, and of a psyncd that says the worst
//! things a peer could make it say. The pictures are in `target/screenshots`.

mod hostile;

use std::time::Duration;

use crate::harness::*;

fn page_of(psyncd: &Psyncd) -> String {
    format!("http://127.0.0.1:{}/", psyncd.admin)
}

const GRADE: &str = "document.getElementById('verdict').dataset.grade";
/// The line, with plain spaces where some must not break.
const LINE: &str = "document.getElementById('verdict-line').textContent.replaceAll('\\u00a0', ' ')";
const HEAD: &str =
    "[...document.querySelectorAll('#ruler text')].map(t => t.textContent).find(t => t.startsWith('head'))";

#[track_caller]
fn wait_for_verdict(browser: &mut Browser, grade: &str, words: &str) {
    browser.wait_for(
        &format!("the verdict is {grade} and says {words:?}"),
        &format!("{GRADE} === {grade:?} && ({LINE}).includes({words:?})"),
    );
}

/// Not a word on the console, by the browser or by the page.
#[track_caller]
fn assert_no_complaints(browser: &Browser) {
    assert!(browser.complaints.is_empty(), "the console: {:#?}", browser.complaints);
}

#[test]
fn the_page_shows_what_runs_and_follows_it_through_a_stalled_replica_and_a_lost_upstream() {
    let dir = tempfile::tempdir().unwrap();
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let way = Forwarder::to(master.port);
    let options = ["--dir", dir.path().to_str().unwrap(), "--repl-backlog-size", "4mb", "--backlog-disk-size", "4gb"];
    let psyncd = Psyncd::toward(&way.address(), &[&options[..], &["--segment-size", "1mb"]].concat());
    psyncd.wait_for_link();
    let mut replicas = Node::start_all(["redis-7.0.15", "valkey-8.1.1", "redis-8.0.2"].map(server));
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    assert_equal_data(&master, &replicas);
    psyncd.wait_for_replicas(3);
    write_megabytes(&master, 12);
    let load = Load::on(&master);
    assert!(psyncd.log().contains("psyncd started"));

    // What is there.
    let mut browser = Browser::open(&page_of(&psyncd), WIDE_LIGHT);
    wait_for_verdict(&mut browser, "ok", "3 replicas online");
    let line = browser.text(LINE);
    for part in [&format!("Streaming from {}", way.address()), "worst lag ", "survives an outage of "] {
        assert!(line.contains(part), "{part:?} is missing in {line:?}");
    }
    let table = browser.read("#replicas tbody");
    for replica in &replicas {
        assert!(table.contains(&replica.address()), "{} is missing in {table}", replica.address());
    }
    assert_eq!(browser.eval("document.querySelectorAll('#replicas tbody tr').length"), 3);
    let status = psyncd.status();
    let shown = browser.text("document.querySelector('#topology svg').getAttribute('aria-label')");
    for replica in status["replicas"].as_array().unwrap() {
        assert!(shown.contains(replica["replica"].as_str().unwrap()), "{shown}");
    }
    for tier in ["memory", "disk", "room", "tick"] {
        assert_ne!(browser.eval(&format!("document.querySelectorAll('#ruler .{tier}').length")), 0, "{tier}");
    }
    browser.wait_for(
        "it has the log's first words",
        "document.querySelector('#events').textContent.includes('psyncd started')",
    );
    assert!(browser.read("#averted").contains("Shared snapshot"));
    // Two of the three were given the snapshot that was made for the first, whoever that was.
    let averted = status["resyncs"]["averted"]["shared_snapshot"].as_u64().unwrap();
    assert!(averted >= 1 && browser.read("#averted").contains(&averted.to_string()), "{averted}");
    browser.wait_for("it has the settings", "document.querySelectorAll('#config tbody tr').length > 30");
    assert!(browser.read("#config").contains("4mb") && browser.read("#config").contains("flag --repl-backlog-size"));

    // It lives.
    let before = browser.text(HEAD);
    load.go_on_for(50);
    browser.wait_for("the head moves", &format!("({HEAD}) !== {before:?}"));
    browser.wait_for("the rate is drawn", "document.querySelector('#tiles path') !== null");
    browser.picture("wide-light");
    browser.look(View { scheme: "dark", ..WIDE_LIGHT });
    browser.picture("wide-dark");

    // A replica stops taking anything.
    let stalled = replicas[1].address();
    replicas[1].process().signal("STOP");
    wait_for_verdict(&mut browser, "warn", &format!("Replica {stalled} "));
    assert!(browser.text("document.querySelector('#replicas tbody tr.warn').textContent").contains(&stalled));
    assert!(browser.read("#spoken").contains(&stalled), "and is spoken");
    let tick = "document.querySelectorAll('#ruler g.warn .tick').length";
    browser.wait_for("its tick parts from the others", &format!("{tick} === 1"));
    browser.look(WIDE_LIGHT);
    browser.picture("replica-behind-light");
    browser.look(NARROW_DARK);
    browser.picture("narrow-dark");
    assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth"), true, "nothing is cut off");

    load.stop();
    replicas[1].process().signal("CONT");
    wait_for_verdict(&mut browser, "ok", "3 replicas online");
    assert_eq!(replicas[1].full_resyncs(), 1, "it went on where it was");

    // The upstream goes, and comes back.
    way.sever();
    wait_for_verdict(&mut browser, "bad", &format!("Lost the upstream {}", way.address()));
    assert!(browser.text(LINE).contains("3 replicas online"), "they stay");
    assert!(browser.read("#events").contains("link lost"), "{}", browser.read("#events"));
    browser.look(WIDE_LIGHT);
    browser.picture("upstream-lost-light");
    browser.look(NARROW_DARK);
    browser.picture("upstream-lost-narrow-dark");
    way.restore();
    wait_for_verdict(&mut browser, "ok", &format!("Streaming from {}", way.address()));
    assert_equal_data(&master, &replicas);
    assert_no_complaints(&browser);
}

#[test]
fn a_replica_about_to_fall_off_is_the_first_thing_said() {
    let master = Node::start(server("redis-7.0.15"));
    let psyncd = Psyncd::before_with(&master, &["--repl-backlog-size", "8mb"]);
    let mut replicas = Node::start_all(["redis-7.0.15", "valkey-8.1.1"].map(server));
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    psyncd.wait_for_replicas(2);
    assert_equal_data(&master, &replicas);
    let mut browser = Browser::open(&page_of(&psyncd), WIDE_LIGHT);
    replicas[1].process().signal("STOP");
    write_megabytes(&master, 6);
    let stalled = replicas[1].address();
    wait_for_verdict(&mut browser, "bad", &format!("Replica {stalled} falls off in "));
    assert!(browser.text("document.querySelector('#replicas tbody tr.bad').textContent").contains(&stalled));
    assert_eq!(browser.eval("document.querySelectorAll('#ruler g.bad .tick').length"), 1);
    browser.picture("about-to-fall-off-light");
    browser.look(NARROW_DARK);
    browser.picture("about-to-fall-off-narrow-dark");
    replicas[1].process().signal("CONT");
    browser.wait_for("the danger is over", &format!("{GRADE} !== 'bad'"));
    assert_equal_data(&master, &replicas);
    assert_eq!(replicas[1].full_resyncs(), 1, "it went on where it was");
    assert_no_complaints(&browser);
}

#[test]
fn a_snapshot_on_its_way_is_shown_with_its_rate_and_the_time_left() {
    // What is repeated would be compressed to nothing.
    let master = Node::with(server("redis-7.0.15"), &["--rdbcompression", "no"]);
    master.cmd(&["DEBUG", "POPULATE", "2000", "key", "20000"]);
    let psyncd = Psyncd::before_with(&master, &["--sender-rate-limit", "2mb"]);
    let mut browser = Browser::open(&page_of(&psyncd), WIDE_LIGHT);
    wait_for_verdict(&mut browser, "ok", "no replica is attached");
    let replica = Node::start(server("redis-7.0.15"));
    replica.replicate(psyncd.port);
    browser.wait_for(
        "rate and time left are there",
        "/ %, .+ of .+\\/s, .+ left/.test(document.getElementById('snapshot').textContent)",
    );
    assert_eq!(browser.text(GRADE), "busy");
    assert!(browser.read("#snapshot").contains(&format!("Sending to {}", replica.address())));
    let bar = browser.eval("(p => p.value / p.max)(document.querySelector('#snapshot progress'))").as_f64().unwrap();
    assert!(bar > 0.0 && bar < 1.0, "{bar}");
    browser.picture("snapshot-light");
    assert_no_complaints(&browser);
}

#[test]
fn a_psyncd_that_is_gone_is_told_from_one_that_is_well() {
    let master = Node::start(server("redis-7.0.15"));
    let mut psyncd = Psyncd::before(&master);
    let mut browser = Browser::open(&page_of(&psyncd), WIDE_LIGHT);
    wait_for_verdict(&mut browser, "ok", "no replica is attached");
    psyncd.process().signal("KILL");
    wait_for_verdict(&mut browser, "bad", "psyncd does not answer since");
    assert_eq!(browser.read("#pulse"), "no answer");
    psyncd.process().wait_for_end(Duration::from_secs(30));
}
