//! Real Sentinels and what they come to believe.
//!
//! A Sentinel learns of replicas only from the lines of the master's INFO, never forgets one, and tells each of them
//! whom to follow. So one wrong line is a harm that stays; the control shows it.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::servers::Server;
use crate::harness::*;

/// A Sentinel that watches one port, under the name `m`.
struct Sentinel {
    _process: Process,
    conf: std::path::PathBuf,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Sentinel {
    fn watching(server: &Server, master: u16) -> Sentinel {
        let dir = tempfile::tempdir().unwrap();
        let (conf, port) = (dir.path().join("sentinel.conf"), free_port());
        let settings = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor m 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds m 2000\nsentinel failover-timeout m 6000\n",
            dir.path().display()
        );
        std::fs::write(&conf, settings).unwrap();
        let process = Process::start(server.binary(), |command| {
            command.arg(&conf).arg("--sentinel");
        });
        let sentinel = Sentinel { _process: process, conf, port, _dir: dir };
        wait_until("the Sentinel answers", || {
            let mut conn = Conn::open(sentinel.port).map_err(|why| why.to_string())?;
            conn.ask(&["PING"]).map(drop).map_err(|why| why.to_string())
        });
        sentinel
    }

    /// The fields of every replica it knows.
    fn replicas(&self) -> Vec<std::collections::BTreeMap<String, String>> {
        let listed = Conn::to(self.port).cmd(&["SENTINEL", "SLAVES", "m"]).array();
        let fields = |replica: Value| {
            let words: Vec<String> = replica.array().iter().map(Value::text).collect();
            words.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
        };
        listed.into_iter().map(fields).collect()
    }

    fn names(&self) -> BTreeSet<String> {
        self.replicas().iter().map(|replica| replica["name"].clone()).collect()
    }

    /// The replicas it will know after a restart, as `host port`.
    fn remembered(&self) -> BTreeSet<String> {
        let conf = std::fs::read_to_string(&self.conf).unwrap();
        let lines = conf.lines().filter_map(|line| {
            line.strip_prefix("sentinel known-replica m ").or(line.strip_prefix("sentinel known-slave m "))
        });
        lines.map(str::to_owned).collect()
    }
}

#[track_caller]
fn a_sentinel_learns_of_the_replicas_and_of_nobody_else(name: &str) {
    let server = server(name);
    let master = Node::start(server);
    let psyncd = Psyncd::before(&master);
    let replicas = Node::start_all([server; 2]);
    for replica in &replicas {
        replica.cmd(&["CONFIG", "SET", "slave-announce-ip", "127.0.0.1"]);
        replica.replicate(psyncd.port);
        replica.wait_for_link();
    }
    psyncd.wait_for_replicas(2);
    let sentinel = Sentinel::watching(server, psyncd.port);
    let expected: BTreeSet<String> = replicas.iter().map(Node::address).collect();
    wait_until("the Sentinel knows the replicas and finds them well", || {
        let known = sentinel.replicas();
        let well = known.iter().all(|replica| replica["flags"] == "slave" && replica["master-link-status"] == "ok");
        when(sentinel.names() == expected && well, || format!("{known:?}"))
    });
    // It asks on one of its two connections.
    assert_eq!(psyncd.metrics().one("psyncd_sentinels_connected", &[("at", "main")]), 1.0);
    // A replica joins; the Sentinel hears of it with the next INFO, and never of anybody else.
    let third = Node::start(server);
    third.replicate(psyncd.port);
    third.wait_for_link();
    let expected: BTreeSet<String> = replicas.iter().chain([&third]).map(Node::address).collect();
    wait_until("the Sentinel knows the third", || {
        when(sentinel.names() == expected, || format!("{:?}", sentinel.names()))
    });
    holds_for(Duration::from_secs(3), "nobody else is known", || {
        when(sentinel.names() == expected, || format!("{:?}", sentinel.names()))
    });
    let remembered: BTreeSet<String> = expected.iter().map(|address| address.replace(':', " ")).collect();
    assert_eq!(sentinel.remembered(), remembered);
    assert_eq!(master.info()["role"], "master", "nobody told the master to follow anybody");
}

#[test]
fn a_sentinel_of_redis_6_2_learns_of_the_replicas_and_of_nobody_else() {
    a_sentinel_learns_of_the_replicas_and_of_nobody_else("redis-6.2.14");
}

#[test]
fn a_sentinel_of_redis_7_0_learns_of_the_replicas_and_of_nobody_else() {
    a_sentinel_learns_of_the_replicas_and_of_nobody_else("redis-7.0.15");
}

#[test]
fn a_sentinel_of_valkey_9_1_learns_of_the_replicas_and_of_nobody_else() {
    a_sentinel_learns_of_the_replicas_and_of_nobody_else("valkey-9.1.2");
}

#[test]
fn control_a_sentinel_that_sees_the_raw_node_knows_a_ghost_and_none_of_the_replicas() {
    let server = server("redis-7.0.15");
    let master = Node::start(server);
    let psyncd = Psyncd::before(&master);
    let replica = Node::start(server);
    replica.replicate(psyncd.port);
    replica.wait_for_link();
    psyncd.wait_for_replicas(1);
    let sentinel = Sentinel::watching(server, master.port);
    wait_until("the Sentinel knows psyncd as a replica, down for ever", || {
        let known = sentinel.replicas();
        let ghost = known.len() == 1 && known[0]["name"] == "127.0.0.1:0" && known[0]["flags"].contains("s_down");
        when(ghost, || format!("{known:?}"))
    });
    assert!(!sentinel.names().contains(&replica.address()));
    assert_eq!(sentinel.remembered(), BTreeSet::from(["127.0.0.1 0".to_owned()]));
}
