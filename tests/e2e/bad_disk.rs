//! The disk the journal is on fills, fails or loses files. Nobody but the journal notices.

use std::path::Path;

use tempfile::TempDir;

use crate::harness::*;

fn journal_is(psyncd: &Psyncd, degraded: bool) {
    wait_until(&format!("the journal is degraded: {degraded}"), || {
        let now = psyncd.metrics().one("psyncd_journal_degraded", &[]);
        when((now == 1.0) == degraded, || now.to_string())
    });
}

fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = files.filter(|path| path.extension().is_some_and(|ending| ending == "seg")).collect();
    found.sort();
    found
}

#[test]
fn a_disk_that_fills_costs_nobody_anything_and_the_journal_goes_on_when_there_is_room() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let dir = TempDir::with_prefix("psyncd-e2e-").unwrap();
    let dir = dir.path();
    // A file that may not grow fails as a full disk does (EFBIG for ENOSPC), and needs no privilege to arrange.
    let narrow = "trap '' XFSZ; ulimit -S -f 2048;";
    let options = ["--dir", dir.to_str().unwrap(), "--segment-size", "16mb"];
    let mut psyncd = Psyncd::narrowed(narrow, &master.address(), &options);
    psyncd.wait_for_link();
    let replicas = Node::start_all([master.server; 2]);
    let network = Forwarder::to(psyncd.port);
    replicas[0].replicate(network.port);
    replicas[1].replicate(psyncd.port);
    assert_equal_data(&master, &replicas);
    let before = master.syncs();
    write_megabytes(&master, 4);
    journal_is(&psyncd, true);
    assert!(psyncd.metrics().one("psyncd_journal_errors_total", &[("op", "write")]) >= 1.0);
    network.cut();
    write_megabytes(&master, 4);
    assert_equal_data(&master, &replicas);

    let pid = psyncd.process().pid().to_string();
    let widened = std::process::Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited"]).status().unwrap();
    assert!(widened.success());
    journal_is(&psyncd, false);
    wait_until("the journal holds everything again", || {
        let status = psyncd.status();
        let journal = &status["backlog"]["journal"];
        when(journal["head_offset"] == status["backlog"]["head_offset"], || journal.to_string())
    });
    assert_eq!(psyncd.metrics().one("psyncd_journal_gaps_total", &[]), 0.0, "memory held what the disk did not take");
    assert_equal_data(&master, &replicas);
    assert_eq!(master.syncs().full, before.full);
    assert!(!psyncd.log().contains("panicked"));
}

#[test]
fn a_segment_deleted_underfoot_costs_only_whoever_needed_it() {
    let master = Node::start(server("valkey-8.1.1"));
    fill(&master);
    let dir = TempDir::with_prefix("psyncd-e2e-").unwrap();
    let dir = dir.path();
    let small = [
        "--dir",
        dir.to_str().unwrap(),
        "--segment-size",
        "1mb",
        "--repl-backlog-size",
        "256kb",
        "--journal-max-lag",
        "64mb",
    ];
    let psyncd = Psyncd::before_with(&master, &small);
    let replicas = Node::start_all([master.server; 3]);
    let networks = [Forwarder::to(psyncd.port), Forwarder::to(psyncd.port)];
    replicas[0].replicate(networks[0].port);
    replicas[1].replicate(networks[1].port);
    replicas[2].replicate(psyncd.port);
    assert_equal_data(&master, &replicas);
    networks[0].sever();
    write_megabytes(&master, 8);
    assert_equal_data(&master, &replicas[1..]);
    networks[1].sever();
    write_megabytes(&master, 8);
    assert_equal_data(&master, &replicas[2..]);
    wait_until("all of it is in the journal", || {
        let status = psyncd.status();
        let journal = &status["backlog"]["journal"];
        when(journal["head_offset"] == status["backlog"]["head_offset"], || journal.to_string())
    });
    // Between where the first and where the second of them stand.
    let third = &segments(dir)[4];
    std::fs::remove_file(third).unwrap();

    networks[1].restore();
    assert_equal_data(&master, &replicas[1..]);
    assert_eq!(replicas[1].full_resyncs(), 1, "what it needs is there");
    networks[0].restore();
    assert_equal_data(&master, &replicas);
    assert_eq!(replicas[0].full_resyncs(), 2, "what it needs is gone");
    assert_eq!((replicas[1].full_resyncs(), replicas[2].full_resyncs()), (1, 1));
    write_megabytes(&master, 2);
    assert_equal_data(&master, &replicas);
}

#[test]
fn a_snapshot_deleted_while_it_is_sent_arrives_whole() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let noise: Vec<u8> = (0..12_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    master.cmd(&[&b"SET"[..], b"noise", &noise]);
    let dir = TempDir::with_prefix("psyncd-e2e-").unwrap();
    let dir = dir.path();
    let options = ["--dir", dir.to_str().unwrap(), "--sender-rate-limit", "4mb"];
    let psyncd = Psyncd::before_with(&master, &options);
    let replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    let snapshots = || {
        let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|ending| ending == "rdb")).collect::<Vec<_>>()
    };
    wait_until("some of it was sent, and all of it is there", || {
        let status = psyncd.status();
        let sent = status["replicas"][0]["sent_snapshot_bytes"].as_u64().unwrap_or(0);
        let ready = !status["snapshot"]["ready"].is_null();
        when(ready && (1_000_000..9_000_000).contains(&sent), || status["snapshot"].to_string())
    });
    let files = snapshots();
    assert_eq!(files.len(), 1, "{files:?}");
    std::fs::remove_file(&files[0]).unwrap();
    assert_equal_data(&master, [&replica]);
    assert_eq!(replica.full_resyncs(), 1);
}
