//! The commands as an operator types them: what they say of real servers, what they change there, and how they exit.

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use serde_json::Value as Json;
use tempfile::TempDir;

use crate::harness::*;

const FAMILIES: [&str; 2] = ["redis-7.0.15", "valkey-8.1.1"];

/// A psyncd with a directory in front of a master, with two replicas in sync.
struct Site {
    dir: TempDir,
    psyncd: Psyncd,
    master: Node,
    replicas: Vec<Node>,
}

/// What a command did.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn contains(&self, parts: &[&str]) -> &Said {
        for part in parts {
            assert!(self.out.contains(part) || self.err.contains(part), "{part:?} is missing in {self:#?}");
        }
        self
    }

    #[track_caller]
    fn exits(&self, code: i32) -> &Said {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    #[track_caller]
    fn json(&self) -> Json {
        serde_json::from_str(&self.out).unwrap_or_else(|why| panic!("{why}: {self:#?}"))
    }
}

#[track_caller]
fn run(args: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_psyncd")).args(args).stdin(Stdio::null()).output();
    let Output { status, stdout, stderr } = output.expect("psyncd can be run");
    let text = |bytes| String::from_utf8(bytes).expect("psyncd writes UTF-8");
    Said { code: status.code().expect("it exits by itself"), out: text(stdout), err: text(stderr) }
}

impl Site {
    #[track_caller]
    fn start(name: &str, options: &[&str]) -> Site {
        let master = Node::start(server(name));
        fill(&master);
        let dir = TempDir::with_prefix("psyncd-e2e-").expect("a temporary directory can be made");
        let path = dir.path().to_str().expect("temporary paths are UTF-8").to_owned();
        let psyncd = Psyncd::before_with(&master, &[&["--dir", &path], options].concat());
        let replicas = Node::start_all([master.server; 2]);
        replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
        psyncd.wait_for_replicas(2);
        Site { dir, psyncd, master, replicas }
    }

    fn dir(&self) -> &str {
        self.dir.path().to_str().expect("temporary paths are UTF-8")
    }

    /// One of psyncd's commands, over its socket.
    #[track_caller]
    fn run(&self, args: &[&str]) -> Said {
        run(&[args, &["--dir", self.dir()]].concat())
    }
}

#[test]
fn looks_say_what_is_there() {
    for name in FAMILIES {
        let site = Site::start(name, &[]);
        let mut client = site.psyncd.conn();
        client.cmd(&["SET", "from", "a client"]);
        let names: Vec<_> = site.replicas.iter().map(Node::address).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();

        let admin = format!("http://127.0.0.1:{}", site.psyncd.admin);
        for said in [site.run(&["status"]), run(&["status", "--admin", &admin])] {
            said.exits(0)
                .contains(&[&site.master.address(), "streaming", "2 replicas", "online", "GiB"])
                .contains(&names);
            assert!(said.out.lines().all(|line| line.chars().count() <= 100), "{said:#?}");
        }
        let document = site.run(&["status", "--json"]).exits(0).json();
        assert_eq!(document["replicas"].as_array().map(Vec::len), Some(2));
        assert_eq!(document["upstream"]["link"], "streaming");

        site.run(&["replicas"]).exits(0).contains(&names).contains(&["online", "acked offset"]);
        let peer = client.stream().local_addr().expect("it is connected").to_string();
        site.run(&["clients"]).exits(0).contains(&[&peer]);
        let clients = site.run(&["clients", "--json"]).exits(0).json();
        assert_eq!((&clients["count"], &clients["clients"][0]["peer"]), (&1.into(), &peer.as_str().into()));
        assert!(clients["clients"][0]["to_upstream_bytes"].as_u64() > Some(20), "{clients}");
        drop(client);
        wait_until("the client is listed no more", || {
            let count = site.run(&["clients", "--json"]).json()["count"].clone();
            when(count == 0, || format!("{count} are"))
        });
        site.run(&["history"]).exits(0).contains(&[&site.master.replid(), "(now)"]);
        site.run(&["events"]).exits(0).contains(&["psyncd started", "info"]);
        let events = site.run(&["events", "--json"]).exits(0).json();
        assert!(events["events"].as_array().is_some_and(|events| events.len() > 3), "{events}");
    }
}

#[test]
fn events_are_followed_as_they_happen() {
    let site = Site::start(FAMILIES[0], &[]);
    let mut following = Command::new(env!("CARGO_BIN_EXE_psyncd"))
        .args(["events", "-f", "--dir", site.dir()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("psyncd can be run");
    let mut out = following.stdout.take().expect("it is a pipe");
    let (lines, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = [0; 4096];
        while let Ok(count @ 1..) = out.read(&mut text) {
            if lines.send(String::from_utf8_lossy(&text[..count]).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut so_far = String::new();
    let mut wait_for = |what: &str| {
        wait_until(&format!("events -f prints {what:?}"), || {
            so_far.extend(heard.try_iter());
            when(so_far.contains(what), || so_far.clone())
        });
    };
    wait_for("psyncd started");
    site.run(&["drain"]).exits(0);
    wait_for("draining by the operator");
    following.kill().expect("it runs");
    following.wait().expect("it ends");
}

#[test]
fn a_monitor_is_told_in_one_line_and_an_exit_code() {
    let mut site = Site::start(FAMILIES[1], &[]);
    let one_line = |said: &Said, word: &str| {
        assert!(said.out.starts_with(&format!("PSYNCD {word} - ")) && said.out.lines().count() == 1, "{said:#?}");
    };
    let fine = site.run(&["check", "--max-lag", "10", "--min-replicas", "2"]);
    one_line(fine.exits(0).contains(&["| lag=", "replicas=2;;2:;0;64"]), "OK");
    one_line(site.run(&["check", "--min-replicas", "3"]).exits(2), "CRITICAL");

    site.replicas[0].process().signal("STOP");
    wait_until("a replica that stands still is noticed", || {
        site.master.cmd(&["SET", "still", "moving"]);
        let said = site.run(&["check", "--warn-lag", "1", "--max-lag", "1h"]);
        when(said.code == 1 && said.out.contains("lags"), || format!("{said:?}"))
    });
    site.replicas[0].process().signal("CONT");

    site.master.kill();
    site.psyncd.wait_for_lost_link();
    one_line(site.run(&["check"]).exits(2).contains(&[&site.master.address()]), "CRITICAL");
    site.run(&["check", "--max-link-down", "1h"]).exits(0);
    site.psyncd.process().kill();
    one_line(site.run(&["check"]).exits(2), "CRITICAL");
    run(&["check", "--min-replicas", "many"]).exits(3);
    run(&["check"]).exits(3);
}

#[test]
fn draining_is_seen_by_a_balancer_and_can_be_undone() {
    let site = Site::start(FAMILIES[0], &[]);
    let mut client = site.psyncd.conn();
    client.cmd(&["GET", "nothing"]);
    assert_eq!(site.psyncd.get("/readyz").0, 200);
    site.run(&["drain", "--wait", "500ms"]).exits(1).contains(&["1 clients are left"]);
    assert_eq!(site.psyncd.get("/readyz").0, 503);
    site.run(&["status"]).contains(&["draining"]);
    drop(client);
    site.run(&["drain", "--wait", "30s"]).exits(0).contains(&["nobody needs it"]);
    assert_equal_data(&site.master, &site.replicas);
    site.run(&["undrain"]).exits(0);
    assert_eq!(site.psyncd.get("/readyz").0, 200);
}

#[test]
fn repointing_moves_everybody_to_the_other_node_without_a_full_resync() {
    let site = Site::start(FAMILIES[0], &[]);
    let heir = Node::start(site.master.server);
    heir.replicate(site.master.port);
    heir.wait_for_link();
    let fulls: Vec<_> = site.replicas.iter().map(Node::full_resyncs).collect();
    heir.cmd(&["REPLICAOF", "NO", "ONE"]);
    site.run(&["repoint", &heir.address()]).exits(0).contains(&[&heir.address(), &site.master.address()]);
    wait_until("psyncd follows the heir", || {
        let document = site.run(&["status", "--json"]).json();
        let now = &document["upstream"];
        when(now["link"] == "streaming" && document["history"]["replid"] == heir.replid().as_str(), || now.to_string())
    });
    heir.cmd(&["SET", "written", "by the heir"]);
    assert_equal_data(&heir, &site.replicas);
    assert_eq!(site.replicas.iter().map(Node::full_resyncs).collect::<Vec<_>>(), fulls);
    site.run(&["repoint", &heir.address()]).exits(0).contains(&["already"]);
    let itself = site.psyncd.address();
    site.run(&["repoint", &itself]).exits(1).contains(&["follow itself"]);
    // Over TCP nothing is changed.
    let (status, said) = post(site.psyncd.admin, &format!("/-/repoint?to={}", site.master.address()));
    assert!(status == 403 && said.contains("psyncd repoint"), "{status} {said}");
    site.run(&["history"]).exits(0).contains(&[&heir.replid(), &site.master.replid()]);
}

/// Refused while Sentinels say who is master, and obeyed with `--force`.
#[track_caller]
fn an_order_against_the_sentinels_takes_force(
    sentinel: &Sentinel,
    psyncd: &Psyncd,
    dir: &str,
    now: &Node,
    other: &Node,
) {
    let told = || psyncd.status()["upstream"]["address"].clone();
    let count = || psyncd.metrics().one("psyncd_upstream_repoints_total", &[("source", "api")]);
    let told_before = told();
    let to = other.address();
    run(&["repoint", &to, "--dir", dir]).exits(1).contains(&["Sentinels", "SENTINEL FAILOVER", "--force"]);
    assert_eq!((told(), count()), (told_before, 0.0), "nothing happened");
    let asked = sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", sentinel::NAME]).unwrap().array();
    assert_eq!(asked[1].text(), now.port.to_string(), "nor to the Sentinel");

    run(&["repoint", &to, "--force", "--dir", dir]).exits(0).contains(&[&to]);
    assert_eq!(count(), 1.0);
    // A replica of the master has the same history, so that it costs nothing to follow it for a while.
    wait_until("psyncd got to the other node", || {
        let got = psyncd.metrics().one("psyncd_upstream_connections_total", &[("result", "ok")]);
        when(got >= 2.0, || format!("{got}, {}", psyncd.log()))
    });
    assert_eq!(psyncd.metrics().sum("psyncd_upstream_resyncs_total", &[("kind", "full")]), 0.0, "{}", psyncd.log());
}

#[test]
fn repointing_is_refused_while_sentinels_that_are_asked_say_who_is_master_and_obeyed_with_force() {
    let nodes = Node::start_all([server(FAMILIES[0]); 2]);
    fill(&nodes[0]);
    nodes[1].replicate(nodes[0].port);
    nodes[1].wait_for_link();
    let sentinel = Sentinel::watching(nodes[0].server, nodes[0].port, 1);
    let dir = TempDir::with_prefix("psyncd-e2e-").expect("a temporary directory can be made");
    let path = dir.path().to_str().expect("temporary paths are UTF-8");
    let (asked, name) = (sentinel.address(), sentinel::NAME);
    let options = ["--sentinels", &asked, "--sentinel-master", name, "--replica-port", "0", "--dir", path];
    let psyncd = Psyncd::looking(&options);
    psyncd.wait_for_link();
    an_order_against_the_sentinels_takes_force(&sentinel, &psyncd, path, &nodes[0], &nodes[1]);
}

#[test]
fn repointing_is_refused_while_sentinels_that_are_heard_say_who_is_master_and_obeyed_with_force() {
    let nodes = Node::start_all([server(FAMILIES[1]); 2]);
    fill(&nodes[0]);
    nodes[1].replicate(nodes[0].port);
    nodes[1].wait_for_link();
    let dir = TempDir::with_prefix("psyncd-e2e-").expect("a temporary directory can be made");
    let path = dir.path().to_str().expect("temporary paths are UTF-8");
    let face = free_port().to_string();
    let psyncd = Psyncd::before_with(&nodes[0], &["--replica-port", &face, "--dir", path]);
    let sentinel = Sentinel::watching(nodes[0].server, nodes[0].port, 1);
    wait_at_most(std::time::Duration::from_secs(60), "the Sentinel told psyncd at its face who is master", || {
        let connected = psyncd.metrics().one("psyncd_sentinels_connected", &[("at", "face")]);
        let epoch = psyncd.status()["upstream"]["sentinel_epoch"].clone();
        when(epoch.is_number() && connected == 1.0, || format!("epoch {epoch}, {connected} Sentinels"))
    });
    an_order_against_the_sentinels_takes_force(&sentinel, &psyncd, path, &nodes[0], &nodes[1]);
}

#[test]
fn a_snapshot_is_renewed_and_dropped_on_demand() {
    let site = Site::start(FAMILIES[1], &["--snapshot-min-interval", "0s"]);
    let offset = || site.run(&["status", "--json"]).json()["snapshot"]["ready"]["offset"].clone();
    let before = offset();
    write_megabytes(&site.master, 1);
    site.run(&["snapshot", "refresh"]).exits(0);
    wait_until("the snapshot is a later one", || {
        let now = offset();
        when(now.as_u64() > before.as_u64(), || format!("{now} after {before}"))
    });
    site.run(&["snapshot", "drop"]).exits(0).contains(&["dropped"]);
    assert!(offset().is_null());
    site.run(&["snapshot", "drop"]).exits(1);
    let late = Node::start(site.master.server);
    late.replicate(site.psyncd.port);
    late.wait_for_link();
    assert_equal_data(&site.master, [&late]);
}

#[test]
fn a_journal_is_read_while_psyncd_writes_it_and_damage_is_named() {
    let mut site = Site::start(FAMILIES[0], &["--segment-size", "1mb", "--backlog-disk-size", "64mb"]);
    write_megabytes(&site.master, 5);
    assert_equal_data(&site.master, &site.replicas);
    site.run(&["journal", "verify"]).exits(0).contains(&["being written", "whole", "no damage found"]);
    let listed = site.run(&["journal", "ls", "--json"]).exits(0).json();
    let segments = listed["segments"].as_array().expect("a list").clone();
    assert!(segments.len() >= 4, "{listed}");
    assert!(segments.iter().all(|segment| segment["claimed"] == true), "{listed}");
    site.psyncd.process().kill();
    let head = site.run(&["journal", "ls", "--json"]).exits(0).json()["claimed"]["end_offset"].clone();
    assert!(head.as_i64() <= Some(site.master.offset()), "{head}");
    let victim = segments[1]["file"].as_str().expect("a path");
    let mut bytes = std::fs::read(victim).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(victim, bytes).expect("it can be written");
    let said = site.run(&["journal", "verify"]);
    said.exits(1).contains(&[victim, "not what was written"]);
    assert_eq!(said.err.lines().count(), 1, "{said:#?}");
    run(&["journal", "ls", "--dir", "/nonexistent"]).exits(1).contains(&["/nonexistent"]);
}

/// The findings of `psyncd doctor`, and its exit code.
#[track_caller]
fn doctor(master: &Node, options: &[&str]) -> (i32, Vec<Json>, Json) {
    let said = run(&[&["doctor", "--json", "--sample", "1s", "--upstream", &master.address()], options].concat());
    let document = said.json();
    (said.code, document["findings"].as_array().expect("a list").clone(), document)
}

#[track_caller]
fn finding<'f>(findings: &'f [Json], check: &str, severity: &str) -> &'f str {
    let found = findings.iter().find(|finding| finding["check"] == check && finding["severity"] == severity);
    found
        .and_then(|finding| finding["mend"].as_str())
        .unwrap_or_else(|| panic!("no {severity} of {check}: {findings:#?}"))
}

#[test]
fn the_doctor_finds_what_is_wrong_with_a_master_and_what_mends_it_does() {
    for name in FAMILIES {
        let options = ["--repl-backlog-size", "16kb", "--min-replicas-to-write", "0", "--repl-backlog-ttl", "0"];
        let master = Node::with(server(name), &options);
        fill(&master);
        // A backlog begins with the first replica.
        let replica = Node::start(master.server);
        replica.replicate(master.port);
        replica.wait_for_link();
        master.cmd(&["CONFIG", "SET", "min-replicas-to-write", "2"]);
        master.cmd(&["ACL", "SETUSER", "psyncd", "on", ">secret", "~*", "+ping", "+info", "+replconf", "+config|get"]);
        let dir = TempDir::with_prefix("psyncd-e2e-").unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let as_user = ["--masteruser", "psyncd", "--masterauth-file", secret.to_str().unwrap()];

        let (code, findings, document) = doctor(&master, &as_user);
        assert_eq!((code, &document["ok"]), (1, &false.into()));
        let grant = finding(&findings, "permissions", "problem").to_owned();
        assert_eq!(grant, "ACL SETUSER psyncd +psync");
        assert!(finding(&findings, "min-replicas", "problem").contains("mirrored"));
        // With too few replicas nothing is written, and nothing can be measured.
        master.cmd(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
        let load = Load::on(&master);
        let (_, findings, document) = doctor(&master, &as_user);
        let mend = finding(&findings, "backlog", "warning").to_owned();
        assert!(document["sizing"]["bytes_per_second"].as_f64() > Some(100.0), "{document}");

        // What it says mends it.
        master.cmd(&grant.split(' ').collect::<Vec<_>>());
        let (set, _) = mend.split_once(',').expect("two steps");
        master.cmd(&set.split(' ').collect::<Vec<_>>());
        let (code, findings, _) = doctor(&master, &[&as_user[..], &["--maxclients", "100"]].concat());
        assert_eq!(code, 0, "{findings:#?}");
        assert!(findings.iter().all(|finding| finding["check"] != "backlog" || finding["severity"] != "warning"));
        load.stop();

        let refused = ["--masteruser", "nobody", "--masterauth-file", secret.to_str().unwrap()];
        master.cmd(&["CONFIG", "SET", "requirepass", "another"]);
        let (code, findings, _) = doctor(&master, &refused);
        assert!(code == 1 && findings[0]["check"] == "upstream", "{findings:#?}");
    }
}

#[test]
fn the_doctor_leaves_no_trace_and_says_when_nobody_answers() {
    let master = Node::start(server(FAMILIES[0]));
    let before = master.info();
    run(&["doctor", "--sample", "100ms", "--upstream", &master.address()]).contains(&["Redis 7.0.15", "problems: 0"]);
    let after = master.info();
    for field in ["master_repl_offset", "connected_slaves", "sync_full", "master_replid"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    let nobody = format!("127.0.0.1:{}", free_port());
    run(&["doctor", "--upstream", &nobody]).exits(1).contains(&["cannot connect"]);
}

#[test]
fn top_draws_on_a_terminal_only_and_gives_it_back() {
    let site = Site::start(FAMILIES[1], &[]);
    site.run(&["top"]).exits(1).contains(&["status --watch"]);
    // script(1) lends it a terminal; the shell in it says afterwards how it found that.
    let inner = format!(
        "stty rows 24 cols 80; {} top --interval 200ms --dir {}; echo exit=$?; stty -a",
        env!("CARGO_BIN_EXE_psyncd"),
        site.dir()
    );
    let mut script = Command::new("script")
        .args(["-qfec", &inner, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script(1) is installed");
    let mut keys = script.stdin.take().expect("it is a pipe");
    let mut out = script.stdout.take().expect("it is a pipe");
    let (send, heard) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut text = [0; 4096];
        while let Ok(count @ 1..) = out.read(&mut text) {
            let _ = send.send(String::from_utf8_lossy(&text[..count]).into_owned());
        }
    });
    let mut drawn = String::new();
    let first = site.replicas[0].address();
    wait_until("top draws the replicas more than once", || {
        drawn.extend(heard.try_iter());
        when(drawn.matches(&first).count() > 1, || drawn.clone())
    });
    keys.write_all(b"q").expect("it reads keys");
    wait_until("top ends", || {
        drawn.extend(heard.try_iter());
        when(drawn.contains("exit=") && drawn.contains("icanon"), || drawn.clone())
    });
    drop(keys);
    script.wait().expect("it ends");
    reader.join().expect("it ends");
    drawn.extend(heard.try_iter());
    assert!(drawn.contains("exit=0"), "{drawn}");
    assert!(drawn.contains("\u{1b}[?1049h") && drawn.contains("\u{1b}[?25h\u{1b}[?1049l"), "the screen is given back");
    let modes = drawn.rsplit("exit=0").next().unwrap_or_default();
    assert!(modes.contains(" icanon") && modes.contains(" echo ") && !modes.contains("-icanon"), "{modes}");
    let frame = drawn.split("\u{1b}[H").nth(1).expect("a frame");
    let visible = frame.split("\u{1b}[J").next().unwrap_or_default().replace("\u{1b}[K", "");
    assert!(visible.lines().all(|line| line.trim_end().chars().count() <= 80), "{visible}");
}

#[test]
fn from_elsewhere_commands_go_over_tls_and_show_a_token() {
    let authority = Authority::new();
    let (shown, operator) = (authority.issue("psyncd", &["127.0.0.1"]), authority.issue("operator", &[]));
    let (ca, token) = (authority.ca(), authority.write("token", "0123456789abcdef-token\n"));
    let master = Node::start(server("redis-7.0.15"));
    let tls = ["--tls-cert-file", &shown.cert, "--tls-key-file", &shown.key, "--tls-ca-cert-file", &ca];
    let psyncd =
        Psyncd::toward(&master.address(), &[&["--admin-tls", "yes", "--admin-token-file", &token], &tls[..]].concat());
    let url = format!("https://127.0.0.1:{}", psyncd.admin);
    let cert = ["--tls-client-cert-file", &operator.cert, "--tls-client-key-file", &operator.key];
    let ask = |words: &[&str], shown: &[&str]| run(&[words, &["--admin", &url], shown].concat());
    let known = [&["--tls-ca-cert-file", &ca], &cert[..]].concat();
    wait_until("it streams", || {
        let said = ask(&["check"], &known);
        when(said.code == 0 && said.out.contains("streaming from"), || format!("{said:?}"))
    });
    ask(&["status"], &known).exits(0).contains(&["streaming"]);
    ask(&["events", "--json"], &known).exits(0);
    ask(&["guard", "status"], &known).exits(0).contains(&["holds nothing"]);

    // What changes something.
    let with_token = [&known[..], &["--admin-token-file", &token]].concat();
    ask(&["drain"], &known).exits(1).contains(&["show the token"]);
    let wrong = authority.write("wrong", "0123456789abcdef-wrong");
    ask(&["drain"], &[&known[..], &["--admin-token-file", &wrong]].concat()).exits(1).contains(&["show the token"]);
    assert!(!psyncd.log().contains("drain"), "{}", psyncd.log());
    ask(&["drain", "--wait", "10s"], &with_token).exits(0).contains(&["nobody needs it any more"]);
    ask(&["undrain"], &with_token).exits(0);
    ask(&["snapshot", "drop"], &with_token);
    ask(&["repoint", "127.0.0.1:1", "--force"], &with_token).exits(0);
    ask(&["status"], &known).exits(0).contains(&["127.0.0.1:1"]);

    // The same from a file, and from the environment of a file.
    let conf = authority.write(
        "psyncd.toml",
        &format!(
            "tls-ca-cert-file = {ca:?}\ntls-client-cert-file = {:?}\ntls-client-key-file = {:?}\nadmin-token-file = {token:?}\n",
            operator.cert, operator.key
        ),
    );
    ask(&["drain"], &["--config", &conf]).exits(0);

    // What is wrong is said.
    ask(&["status"], &[]).exits(78).contains(&["give tls-ca-cert-file, or tls-verify none"]);
    ask(&["status"], &[&["--tls-verify", "none"], &cert[..]].concat()).exits(0);
    ask(&["status"], &["--tls-ca-cert-file", &ca]).exits(1).contains(&["certificate"]);
    let foreign = Authority::new();
    ask(&["status"], &[&["--tls-ca-cert-file", &foreign.ca()], &cert[..]].concat())
        .exits(1)
        .contains(&["not signed by an authority"]);
    let plain = format!("http://127.0.0.1:{}", psyncd.admin);
    assert_eq!(run(&["status", "--admin", &plain]).code, 1);
    assert!(!psyncd.log().contains("0123456789abcdef"));
}

#[test]
fn one_who_asks_the_wrong_place_is_told_so() {
    let dir = TempDir::with_prefix("psyncd-e2e-").unwrap();
    for command in ["status", "replicas", "clients", "history", "events", "drain", "undrain"] {
        run(&[command, "--dir", dir.path().to_str().unwrap()])
            .exits(1)
            .contains(&["no socket at", "is psyncd running"]);
    }
    run(&["status", "--admin", "https://127.0.0.1:1"]).exits(78).contains(&["give tls-ca-cert-file"]);
    let nobody = format!("http://127.0.0.1:{}", free_port());
    run(&["status", "--admin", &nobody]).exits(1).contains(&["nobody answers"]);
}
