//! The data itself: what is large, what must be acknowledged, and how far behind whoever is.

use std::time::{Duration, Instant};

use crate::harness::*;

#[test]
fn a_value_of_a_hundred_megabytes_arrives_whole() {
    let master = Node::start(server("redis-7.2.4"));
    let psyncd = Psyncd::before(&master);
    let replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    replica.wait_for_link();
    master.cmd(&[&b"SET"[..], b"large", &vec![b'l'; 100_000_000]]);
    master.cmd(&["APPEND", "large", "!"]);
    assert_equal_data(&master, [&replica]);
    assert_eq!(replica.cmd(&["STRLEN", "large"]).int(), 100_000_001);
    assert_eq!(psyncd.resyncs(), Resyncs { partial: 0, full: 1 });
}

#[test]
fn a_value_larger_than_the_whole_backlog_arrives_whole() {
    let master = Node::start(server("valkey-8.1.1"));
    let options = ["--repl-backlog-size", "4mb", "--snapshot-min-interval", "0"];
    let mut psyncd = Psyncd::before_with(&master, &options);
    let replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    replica.wait_for_link();
    let before = psyncd.process().resident_bytes();
    master.cmd(&[&b"SET"[..], b"large", &vec![b'l'; 100_000_000]]);
    // It may need a new snapshot, for the value alone is larger than what psyncd may remember.
    assert_equal_data(&master, [&replica]);
    let grown = psyncd.process().resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "psyncd holds {} MB more than before, with a backlog of 4", grown >> 20);
}

#[test]
fn wait_through_psyncd_counts_what_a_replica_behind_it_has() {
    let master = Node::start(server("redis-7.0.15"));
    let psyncd = Psyncd::before(&master);
    let mut replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    replica.wait_for_link();
    psyncd.wait_for_replicas(1);

    let mut client = psyncd.conn();
    let mut waits = Vec::new();
    for round in 0..20 {
        client.cmd(&["SET", "waited", &round.to_string()]);
        let start = Instant::now();
        assert_eq!(client.cmd(&["WAIT", "1", "5000"]).int(), 1);
        waits.push(start.elapsed());
    }
    waits.sort();
    assert!(waits[10] < Duration::from_millis(500), "the acknowledgement came with the second, not at once: {waits:?}");

    replica.process().signal("STOP");
    client.cmd(&["SET", "waited", "not yet"]);
    assert_eq!(client.cmd(&["WAIT", "1", "700"]).int(), 0, "a stopped replica has not got it");
    replica.process().signal("CONT");
    assert_eq!(client.cmd(&["WAIT", "1", "10000"]).int(), 1);
}

#[test]
fn the_lag_of_a_stopped_replica_shows_in_bytes_and_in_seconds_of_data() {
    let master = Node::start(server("redis-7.2.4"));
    let psyncd = Psyncd::before(&master);
    let mut replicas = Node::start_all([master.server; 2]);
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    replicas.iter().for_each(Node::wait_for_link);
    psyncd.wait_for_replicas(2);
    let names: Vec<_> = replicas.iter().map(Node::address).collect();
    let lag = |of: usize, unit: &str| {
        let name = format!("psyncd_replica_lag_{unit}");
        psyncd.metrics().one(&name, &[("replica", &names[of])])
    };

    replicas[0].process().signal("STOP");
    write_megabytes(&master, 1);
    wait_until("the running replica has caught up and the stopped one lags", || {
        let seen = [lag(0, "bytes"), lag(0, "seconds"), lag(1, "bytes"), lag(1, "seconds")];
        when(seen[0] > 1_000_000.0 && seen[1] > 1.0 && seen[2] < 1_000.0 && seen[3] < 1.5, || format!("{seen:?}"))
    });
    replicas[0].process().signal("CONT");
    wait_until("the lag is gone", || {
        let seen = [lag(0, "bytes"), lag(0, "seconds")];
        when(seen[0] < 1_000.0 && seen[1] < 1.5, || format!("{seen:?}"))
    });
    assert_equal_data(&master, &replicas);

    let head = master.offset();
    let (code, now) = psyncd.get("/offset?ago=0");
    assert!(code == 200 && now.trim().parse::<i64>().unwrap() >= head, "{now}");
    let (code, before) = psyncd.get("/offset?ago=1.5");
    assert!(code == 200 && before.trim().parse::<i64>().unwrap() <= head, "{before}");
    assert_eq!((psyncd.get("/offset?ago=86400").0, psyncd.get("/offset").0), (404, 400));
    let status = psyncd.status();
    assert!(status.to_string().contains(&names[0]), "/status does not list the replica: {status}");
    assert_eq!(psyncd.get("/healthz").0, 200);
    assert_eq!(psyncd.get("/readyz").0, 200);
}

#[test]
fn waitaof_through_psyncd_counts_a_replica_that_has_it_in_its_file() {
    let master = Node::start(server("redis-7.2.4"));
    let psyncd = Psyncd::before(&master);
    let replica = Node::with(master.server, &["--appendonly", "yes", "--appendfsync", "always"]);
    replica.replicate(psyncd.port);
    replica.wait_for_link();
    psyncd.wait_for_replicas(1);
    let mut client = psyncd.conn();
    let mut waited = |key: &str| {
        client.cmd(&["SET", key, "value"]);
        client.cmd(&["WAITAOF", "0", "1", "10000"]).array().into_iter().map(|count| count.int()).collect::<Vec<_>>()
    };
    assert_eq!(waited("first"), [0, 1]);
    replica.cmd(&["CONFIG", "SET", "appendonly", "no"]);
    // Its last word about its file is of before.
    client.cmd(&["SET", "second", "value"]);
    let counts = client.cmd(&["WAITAOF", "0", "1", "500"]).array();
    assert_eq!(counts[1], Value::Int(0), "a replica without a file has nothing in one");
}

#[test]
fn what_the_master_hears_acknowledged_is_what_the_policy_says() {
    for (policy, with_one_stopped) in [("received", 1), ("quorum:1", 1), ("quorum:2", 0), ("all", 0)] {
        let master = Node::start(server("redis-7.0.15"));
        let psyncd = Psyncd::before_with(&master, &["--ack-policy", policy]);
        let mut replicas = Node::start_all([master.server; 2]);
        replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
        psyncd.wait_for_replicas(2);
        let mut client = psyncd.conn();
        client.cmd(&["SET", "waited", "for"]);
        assert_eq!(client.cmd(&["WAIT", "1", "10000"]).int(), 1, "{policy}");
        replicas[0].process().signal("STOP");
        client.cmd(&["SET", "waited", "again"]);
        assert_eq!(client.cmd(&["WAIT", "1", "1000"]).int(), with_one_stopped, "{policy} with one of two stopped");
        replicas[0].process().signal("CONT");
        assert_eq!(client.cmd(&["WAIT", "1", "10000"]).int(), 1, "{policy}");
    }
}

#[test]
fn with_ack_when_empty_off_min_replicas_is_not_satisfied_by_psyncd_alone() {
    let options = ["--min-replicas-to-write", "1", "--min-replicas-max-lag", "2"];
    let master = Node::with(server("redis-7.0.15"), &options);
    let psyncd = Psyncd::before_with(&master, &["--ack-when-empty", "no"]);
    let refused =
        |node: &Node| matches!(node.ask(&["SET", "a", "b"]), Ok(Value::Error(why)) if why.starts_with("NOREPLICAS"));
    wait_until("writes are refused with nobody behind psyncd", || when(refused(&master), || "not refused".to_owned()));
    let replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    wait_until("writes go on with a replica behind it", || when(!refused(&master), || "refused".to_owned()));
    assert_equal_data(&master, [&replica]);
}
