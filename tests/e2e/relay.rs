//! psyncd as a relay: a pool of replicas behind its replica face, real Sentinels in front of it, and failovers.
//!
//! The pool must not be seen by Sentinel, must go on across a failover without a full resync, and nobody must be able
//! to make psyncd a master, or the master a replica of itself.

use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::servers::Server;
use crate::harness::*;

/// Longest a failover takes here: three seconds until the master is called down, and the election.
const FAILOVER: Duration = Duration::from_secs(60);

/// A master with two replicas of its own that may be promoted. Nothing but Sentinels writes when a test does not.
struct Production {
    nodes: Vec<Node>,
}

impl Production {
    #[track_caller]
    fn start(name: &str) -> Production {
        let nodes: Vec<_> = (0..3).map(|_| Node::with(server(name), &["--repl-ping-replica-period", "3600"])).collect();
        fill(&nodes[0]);
        for replica in &nodes[1..] {
            replica.replicate(nodes[0].port);
        }
        assert_equal_data(&nodes[0], &nodes[1..]);
        Production { nodes }
    }

    fn master(&self) -> &Node {
        &self.nodes[0]
    }

    /// Kills the master when everybody has everything, and waits for the one that Sentinel promotes.
    #[track_caller]
    fn fail_over(&mut self, sentinels: &[Sentinel]) -> usize {
        let old = self.nodes[0].port;
        self.nodes[0].kill();
        wait_at_most(FAILOVER, "the Sentinels agree on another master", || {
            let now = agreed_master(sentinels);
            when(now.is_some_and(|port| port != old), || {
                let logs: Vec<_> = sentinels.iter().map(Sentinel::log).collect();
                format!("{now:?}; log:\n{}", logs[0])
            })
        });
        let port = agreed_master(sentinels).expect("they just agreed");
        self.nodes.iter().position(|node| node.port == port).expect("it is one of ours")
    }
}

/// psyncd from `deploy/relay/psyncd.toml`, and its files.
#[track_caller]
fn deployed_relay(master: &Node) -> (Psyncd, TempDir) {
    let dir = TempDir::with_prefix("psyncd-e2e-").expect("a temporary directory can be made");
    let text = deployed(
        "relay/psyncd.toml",
        &[
            ("10.0.0.11:6379\"\n\n# The replica face", &format!("{}\"\n\n# The replica face", master.address())),
            ("0.0.0.0", "127.0.0.1"),
            ("replica-port = 6390", &format!("replica-port = {}", free_port())),
            ("announce-ip = \"10.1.0.5\"", "announce-ip = \"127.0.0.1\""),
            ("\nport = 6380", &format!("\nport = {}", free_port())),
            ("127.0.0.1:9379", "127.0.0.1:0"),
            ("/var/lib/psyncd", dir.path().join("psyncd").to_str().expect("a temporary path is text")),
        ],
    );
    let path = dir.path().join("psyncd.toml");
    std::fs::write(&path, text).expect("the file can be written");
    (Psyncd::configured(&path), dir)
}

/// Nodes from `deploy/relay/redis.conf`.
#[track_caller]
fn deployed_pool(server: &'static Server, face: u16) -> Vec<Node> {
    let node = |()| {
        let port = free_port();
        let replicaof = format!("replicaof 127.0.0.1 {face}");
        let conf = deployed(
            "relay/redis.conf",
            &[("port 6379", &format!("port {port}")), ("replicaof 10.1.0.5 6390", &replicaof)],
        );
        Node::configured(server, port, &conf, &[])
    };
    [(); 2].map(node).into()
}

#[track_caller]
fn wait_for_upstream(psyncd: &Psyncd, port: u16) {
    wait_at_most(FAILOVER, "psyncd streams from the new master", || {
        let (status, up) = (psyncd.status(), psyncd.metrics().one("psyncd_upstream_link_up", &[]));
        let address = status["upstream"]["address"].as_str().unwrap_or_default().to_owned();
        when(address == format!("127.0.0.1:{port}") && up == 1.0, || {
            format!("{address}, link {up}; log ends\n{}", tail(&psyncd.log(), 20))
        })
    });
}

#[track_caller]
fn a_pool_behind_the_face_survives_a_failover(name: &str) {
    let mut production = Production::start(name);
    let (psyncd, _dir) = deployed_relay(production.master());
    let pool = deployed_pool(production.master().server, psyncd.face());
    assert_equal_data(production.master(), &pool);
    let sentinels = Sentinel::three(production.master());
    for sentinel in &sentinels {
        sentinel.wait_for("it found the replicas and the relay", |get| get("num-slaves") == "3");
    }
    // While they are watched everything goes on being written.
    let load = Load::on(production.master());
    let watched = Instant::now();
    load.go_on_for(200);
    load.stop();
    assert_equal_data(production.master(), production.nodes[1..].iter().chain(&pool));

    let promoted = production.fail_over(&sentinels);
    let master = &production.nodes[promoted];
    wait_for_upstream(&psyncd, master.port);
    master.cmd(&["SET", "after", "the failover"]);
    let survivor = &production.nodes[3 - promoted];
    assert_equal_data(master, pool.iter().chain([survivor]));

    for replica in &pool {
        assert_eq!(replica.full_resyncs(), 1, "only when it came:\n{}", replica.log());
        assert_eq!(replica.replid(), master.replid(), "it learnt the new id");
    }
    assert_eq!(psyncd.resyncs().full, 2);
    assert_eq!(master.syncs().full, 0, "nobody needed an RDB of the new master");
    let metrics = psyncd.metrics();
    assert_eq!(metrics.sum("psyncd_upstream_repoints_total", &[]), 1.0, "{}", psyncd.log());
    assert_eq!(metrics.one("psyncd_upstream_disconnects_total", &[("reason", "repointed")]), 0.0, "the link was down");

    // Each of three says hello every two seconds; an error would have each say it ten times a second.
    let published = metrics.one("psyncd_face_published_total", &[]);
    let most = watched.elapsed().as_secs_f64() / 2.0 * 3.0 * 1.5 + 60.0;
    assert!(published > 5.0 && published < most, "{published} messages, not {most}");
    for what in ["promotion", "upstream", "command", "auth", "slow_subscriber", "protocol"] {
        assert_eq!(metrics.one("psyncd_face_refused_total", &[("what", what)]), 0.0, "{what}: {}", psyncd.log());
    }
    for sentinel in &sentinels {
        sentinel.wait_for("it has switched", |get| get("port") == master.port.to_string());
        let mut expected = vec![production.master().port, survivor.port];
        expected.sort();
        // For a moment after the switch it has not asked them yet whether they want to be listed.
        wait_until("the old master and the survivor are listed, neither the relay nor the pool", || {
            let mut listed: Vec<u16> = sentinel.replicas().into_iter().map(|(port, _)| port).collect();
            listed.sort();
            when(listed == expected, || format!("{listed:?} and not {expected:?}"))
        });
        let file = sentinel.file();
        assert!(pool.iter().all(|replica| !file.contains(&format!(" {}\n", replica.port))), "{file}");
    }
}

#[test]
fn a_pool_behind_the_replica_face_continues_across_a_failover_of_redis() {
    a_pool_behind_the_face_survives_a_failover("redis-7.0.15");
}

#[test]
fn a_pool_behind_the_replica_face_continues_across_a_failover_of_valkey() {
    a_pool_behind_the_face_survives_a_failover("valkey-9.0.0");
}

#[test]
fn a_pool_of_a_relay_that_asks_sentinels_continues_across_a_failover() {
    let mut production = Production::start("redis-7.0.15");
    let sentinels = Sentinel::three(production.master());
    let list = sentinels.iter().map(Sentinel::address).collect::<Vec<_>>().join(",");
    let psyncd = Psyncd::looking(&["--sentinels", &list, "--sentinel-master", sentinel::NAME, "--replica-port", "0"]);
    wait_for_upstream(&psyncd, production.master().port);
    let pool = Node::start_all([production.master().server; 2]);
    pool.iter().for_each(|replica| replica.replicate(psyncd.port));
    assert_equal_data(production.master(), production.nodes[1..].iter().chain(&pool));
    for sentinel in &sentinels {
        sentinel.wait_for("it found the replicas", |get| get("num-slaves").parse::<u32>().unwrap_or(0) >= 2);
    }

    let promoted = production.fail_over(&sentinels);
    let master = &production.nodes[promoted];
    wait_for_upstream(&psyncd, master.port);
    master.cmd(&["SET", "after", "the failover"]);
    assert_equal_data(master, &pool);
    for replica in &pool {
        assert_eq!(replica.full_resyncs(), 1);
    }
    assert_eq!(psyncd.resyncs().full, 2);
    assert_eq!(psyncd.metrics().one("psyncd_upstream_repoints_total", &[("source", "switch_master")]), 2.0);
    // Clients of the port reach the new master as well.
    assert_eq!(psyncd.conn().cmd(&["GET", "after"]), Value::Bulk(b"the failover".to_vec()));
    for sentinel in &sentinels {
        let listed = sentinel.replicas();
        assert!(pool.iter().all(|replica| listed.iter().all(|(port, _)| *port != replica.port)), "{listed:?}");
    }
    // What replica-port = 0 costs, and why it must be asked for: a replica without a port that nobody can call.
    wait_until("a ghost is in the Sentinels' list", || {
        let listed = sentinels[0].replicas();
        when(listed.iter().any(|(port, _)| *port == 0), || format!("{listed:?}"))
    });
}

#[test]
fn a_relay_killed_in_the_middle_of_a_failover_costs_its_pool_nothing() {
    let mut production = Production::start("redis-7.0.15");
    let (dir, face) = (tempfile::tempdir().unwrap(), free_port().to_string());
    let options = ["--replica-port", &face, "--dir", dir.path().to_str().unwrap()];
    let mut psyncd = Psyncd::before_with(production.master(), &options);
    let pool = Node::start_all([production.master().server; 2]);
    pool.iter().for_each(|replica| replica.replicate(face.parse().unwrap()));
    let sentinels = Sentinel::three(production.master());
    for sentinel in &sentinels {
        sentinel.wait_for("it found the replicas and the relay", |get| get("num-slaves") == "3");
    }
    assert_equal_data(production.master(), production.nodes[1..].iter().chain(&pool));

    let upstream = production.master().address();
    production.nodes[0].kill();
    psyncd.process().kill();
    let again = Psyncd::toward(&upstream, &options);
    let promoted = production.fail_over(&sentinels);
    let master = &production.nodes[promoted];
    wait_for_upstream(&again, master.port);
    master.cmd(&["SET", "after", "the failover"]);
    assert_equal_data(master, &pool);
    for replica in &pool {
        assert_eq!(replica.full_resyncs(), 1, "{}", replica.log());
    }
    assert_eq!(again.resyncs().full, 0);
    // To Sentinel it was the same node all the time.
    assert!(sentinels.iter().all(|sentinel| !sentinel.log().contains("+reboot")), "{}", sentinels[0].log());
}

#[test]
fn without_psyncd_a_relay_killed_in_the_middle_of_a_failover_costs_its_pool_everything() {
    let mut production = Production::start("redis-7.0.15");
    let mut relay = Node::with(production.master().server, &["--replica-priority", "0"]);
    relay.replicate(production.master().port);
    relay.wait_for_link();
    let pool = Node::start_all([production.master().server; 2]);
    pool.iter().for_each(|replica| replica.replicate(relay.port));
    let sentinels = Sentinel::three(production.master());
    for sentinel in &sentinels {
        sentinel.wait_for("it found the replicas and the relay", |get| get("num-slaves") == "3");
    }
    assert_equal_data(production.master(), production.nodes[1..].iter().chain(&pool));

    let upstream = production.master().port;
    production.nodes[0].kill();
    relay.restart();
    relay.replicate(upstream);
    let promoted = production.fail_over(&sentinels);
    let master = &production.nodes[promoted];
    wait_at_most(FAILOVER, "the relay follows the new master", || {
        let info = relay.info();
        let there = info.get("master_port") == Some(&master.port.to_string());
        when(there && info["master_link_status"] == "up", || format!("{info:?}"))
    });
    assert_equal_data(master, &pool);
    wait_until("each of the pool has said that it began anew", || {
        let full: Vec<_> = pool.iter().map(Node::full_resyncs).collect();
        when(full.iter().all(|full| *full >= 2), || format!("{full:?} full resyncs; log\n{}", pool[0].log()))
    });
}

#[test]
fn orders_at_the_face_are_obeyed_and_nothing_that_was_held_is_lost() {
    let nodes: Vec<_> =
        (0..2).map(|_| Node::with(server("redis-7.2.4"), &["--repl-ping-replica-period", "3600"])).collect();
    fill(&nodes[0]);
    nodes[1].replicate(nodes[0].port);
    assert_equal_data(&nodes[0], &nodes[1..]);
    let face = free_port();
    let psyncd = Psyncd::before_with(&nodes[0], &["--replica-port", &face.to_string()]);
    let replica = Node::start(nodes[0].server);
    replica.replicate(face);
    assert_equal_data(&nodes[0], [&replica]);
    let mut client = psyncd.conn();
    client.cmd(&["SET", "a", "b"]);
    assert_equal_data(&nodes[0], [&replica, &nodes[1]]);

    let mut face = Conn::to(face);
    let refusal = face.ask(&["REPLICAOF", "NO", "ONE"]).unwrap();
    assert!(matches!(&refusal, Value::Error(why) if why.contains("cannot be promoted")), "{refusal:?}");
    assert!(matches!(face.ask(&["SET", "a", "b"]).unwrap(), Value::Error(why) if why.contains("psyncd is a relay")));
    let began = Instant::now();
    let mut master = Conn::to(psyncd.face());
    let refusal = master.ask(&["PSYNC", &nodes[0].replid(), "1", "FAILOVER"]).unwrap();
    assert!(matches!(&refusal, Value::Error(why) if why.contains("cannot be promoted")), "{refusal:?}");
    assert!(began.elapsed() < Duration::from_secs(1), "a master holds its writes until it hears");
    let itself = face.ask(&["REPLICAOF", "127.0.0.1", &psyncd.face().to_string()]).unwrap();
    assert!(matches!(&itself, Value::Error(why) if why.contains("follow itself")), "{itself:?}");

    // A chain of two, and back: the stream is the same one.
    for target in [&nodes[1], &nodes[0], &nodes[1]] {
        assert_eq!(face.cmd(&["REPLICAOF", "127.0.0.1", &target.port.to_string()]), Value::Simple("OK".into()));
        wait_for_upstream(&psyncd, target.port);
        let info = face.cmd(&["INFO", "replication"]).text();
        assert!(info.contains(&format!("master_port:{}\r\n", target.port)), "{info}");
        assert!(info.contains("master_link_status:up") && info.contains("slave_priority:0"), "{info}");
        let role = face.cmd(&["ROLE"]).array();
        assert_eq!(
            (role[0].text(), role[2].int(), role[3].text()),
            ("slave".into(), i64::from(target.port), "connected".into())
        );
    }
    assert!(client.ask(&["GET", "a"]).is_err(), "a client of the node before is closed");
    assert_eq!(psyncd.metrics().one("psyncd_upstream_disconnects_total", &[("reason", "repointed")]), 3.0);
    nodes[0].cmd(&["SET", "after", "all"]);
    assert_equal_data(&nodes[0], [&replica, &nodes[1]]);
    assert_eq!(replica.full_resyncs(), 1);
    assert_eq!(psyncd.resyncs().full, 1);
    assert_eq!(psyncd.metrics().sum("psyncd_upstream_resyncs_total", &[("kind", "full")]), 0.0);
}

#[test]
fn a_failover_that_chooses_psyncd_is_refused_and_the_master_goes_on() {
    let master = Node::with(server("redis-7.0.15"), &["--repl-ping-replica-period", "3600"]);
    fill(&master);
    let psyncd = Psyncd::before_with(&master, &["--replica-port", &free_port().to_string()]);
    let replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    assert_equal_data(&master, [&replica]);
    let id = master.replid();
    master.cmd(&["FAILOVER"]);
    wait_until("the master gave it up", || {
        let info = master.info();
        let over = info["master_failover_state"] == "no-failover" && info["role"] == "master";
        when(over && info["master_replid"] != id, || format!("{info:?}"))
    });
    master.cmd(&["SET", "after", "all"]);
    assert_equal_data(&master, [&replica]);
    assert_eq!((replica.full_resyncs(), master.syncs().full), (1, 1));
    let refused = psyncd.metrics().one("psyncd_face_refused_total", &[("what", "promotion")]);
    assert!(refused >= 1.0, "{}", psyncd.log());
}

#[test]
fn a_relay_told_to_follow_its_own_relay_says_so_and_comes_back() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let faces = [free_port(), free_port(), free_port()];
    let relay = |upstream: u16, face: u16| {
        let psyncd = Psyncd::toward(&format!("127.0.0.1:{upstream}"), &["--replica-port", &face.to_string()]);
        psyncd.wait_for_link();
        psyncd
    };
    let first = relay(master.port, faces[0]);
    let second = relay(faces[0], faces[1]);
    let third = relay(faces[1], faces[2]);
    let replica = Node::start(master.server);
    replica.replicate(faces[2]);
    assert_equal_data(&master, [&replica]);
    let mut face = Conn::to(faces[0]);
    face.cmd(&["REPLICAOF", "127.0.0.1", &faces[2].to_string()]);
    wait_until("it finds that the third leads back to it", || {
        when(first.log().contains("replication loop"), || tail(&first.log(), 5))
    });
    // An order is obeyed at once, whatever was wrong with the one before.
    let began = Instant::now();
    face.cmd(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
    wait_for_upstream(&first, master.port);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    master.cmd(&["SET", "after", "all"]);
    assert_equal_data(&master, [&replica]);
    assert_eq!(replica.full_resyncs(), 1);
    for psyncd in [&first, &second, &third] {
        psyncd.wait_for_link();
    }
}

#[test]
fn what_it_was_told_to_follow_is_followed_after_a_restart_until_the_configuration_says_something_new() {
    let nodes = Node::start_all([server("redis-7.0.15"); 2]);
    fill(&nodes[0]);
    nodes[1].replicate(nodes[0].port);
    assert_equal_data(&nodes[0], &nodes[1..]);
    let (dir, face) = (tempfile::tempdir().unwrap(), free_port());
    let port = face.to_string();
    let options = ["--replica-port", &port, "--dir", dir.path().to_str().unwrap()];
    let run_id = || crate::harness::node::parse_info(&Conn::to(face).cmd(&["INFO"]).text())["run_id"].clone();
    let mut psyncd = Psyncd::before_with(&nodes[0], &options);
    let first = run_id();
    Conn::to(face).cmd(&["REPLICAOF", "127.0.0.1", &nodes[1].port.to_string()]);
    wait_for_upstream(&psyncd, nodes[1].port);
    wait_until("it is written down", || {
        let text = std::fs::read_to_string(dir.path().join("psyncd.state")).unwrap_or_default();
        when(text.contains(&nodes[1].address()), || text)
    });
    psyncd.process().kill();

    let mut again = Psyncd::before_with(&nodes[0], &options);
    wait_for_upstream(&again, nodes[1].port);
    assert_eq!(again.metrics().sum("psyncd_upstream_resyncs_total", &[("kind", "full")]), 0.0);
    assert_eq!(run_id(), first, "to a Sentinel it is the same node");
    again.process().kill();

    // The same node under another name is another configuration; the journal has to be taken over knowingly.
    let other = format!("localhost:{}", nodes[0].port);
    let more = [options.as_slice(), &["--adopt-journal", "yes"]].concat();
    let third = Psyncd::toward(&other, &more);
    third.wait_for_link();
    assert_eq!(third.status()["upstream"]["address"], other.as_str());
    assert_eq!(third.metrics().one("psyncd_upstream_repoints_total", &[("source", "config")]), 1.0);
}

#[test]
fn a_sidecar_stays_with_its_node_whatever_that_is() {
    let nodes: Vec<_> =
        (0..2).map(|_| Node::with(server("redis-7.0.15"), &["--repl-ping-replica-period", "3600"])).collect();
    fill(&nodes[0]);
    let psyncd = Psyncd::before(&nodes[0]);
    let replica = Node::start(nodes[0].server);
    replica.replicate(psyncd.port);
    nodes[1].replicate(nodes[0].port);
    assert_equal_data(&nodes[0], [&replica, &nodes[1]]);
    for _ in 0..2 {
        // Its node becomes a replica of the other, and a master again.
        nodes[1].cmd(&["REPLICAOF", "NO", "ONE"]);
        nodes[0].replicate(nodes[1].port);
        nodes[1].cmd(&["INCR", "as a replica"]);
        assert_equal_data(&nodes[1], [&nodes[0]]);
        psyncd.wait_for_link();
        assert_equal_data(&nodes[1], [&replica]);
        nodes[0].cmd(&["REPLICAOF", "NO", "ONE"]);
        nodes[1].replicate(nodes[0].port);
        nodes[0].cmd(&["INCR", "as a master"]);
        assert_equal_data(&nodes[0], [&replica, &nodes[1]]);
    }
    assert_eq!(replica.full_resyncs(), 1);
    assert_eq!(psyncd.resyncs().full, 1);
    assert_eq!(psyncd.metrics().sum("psyncd_upstream_repoints_total", &[]), 0.0);
}

#[test]
fn nobody_is_announced_as_the_master_or_under_a_name_that_does_not_resolve() {
    let refused = |options: &[&str], because: &str| {
        let mut psyncd = Psyncd::spawn("127.0.0.1:7001", options);
        assert_eq!(psyncd.wait_for_end(SOON).code(), Some(78), "{options:?}: {}", psyncd.said());
        assert!(psyncd.said().contains(because), "{options:?}: {}", psyncd.said());
    };
    let as_the_master = "is the upstream 127.0.0.1:7001 itself";
    refused(&["--announce-port", "7001"], as_the_master);
    refused(&["--announce-port", "7001", "--announce-ip", "localhost"], as_the_master);
    refused(&["--announce-port", "7001", "--announce-ip", "127.0.0.1"], as_the_master);
    refused(&["--announce-port", "7001", "--announce-ip", "0.0.0.0"], as_the_master);
    refused(&["--port", "7002", "--announce-port", "7002"], "passes commands on");
    refused(&["--port", "7002", "--replica-port", "7002"], "port and replica-port are both 7002");
    refused(&["--replica-port", "7001"], "its own replica-port");
    refused(
        &["--replica-port", "7003", "--announce-ip", "no-such-host.invalid"],
        "no-such-host.invalid does not resolve",
    );
    refused(&["--sentinels", "127.0.0.1:1"], "sentinel-master is not");
    refused(&["--sentinels", "127.0.0.1:1", "--sentinel-master", "m"], "replica-port is not");
}

/// What a relay's link would look like that announced this address.
fn link_announced_as(master: &Node, host: &str, port: u16) -> Conn {
    let mut link = master.conn();
    link.cmd(&["REPLCONF", "listening-port", &port.to_string()]);
    link.cmd(&["REPLCONF", "ip-address", host]);
    link.cmd(&["REPLCONF", "capa", "eof", "capa", "psync2"]);
    link.send(encode(&["PSYNC", "?", "-1"])).unwrap();
    link
}

#[test]
fn without_the_check_a_link_announced_as_the_master_makes_it_follow_itself() {
    let master = Node::start(server("redis-7.0.15"));
    let sentinel = Sentinel::watching(master.server, master.port, 1);
    // Sentinel's first timers run anew with each start; the link is there before the second.
    let _link = link_announced_as(&master, "127.0.0.1", master.port);
    wait_at_most(FAILOVER, "the master is told to follow itself", || {
        let info = master.info();
        let itself = info["role"] == "slave" && info["master_port"] == master.port.to_string();
        when(itself, || format!("{}; log:\n{}", info["role"], sentinel.log()))
    });
}

#[test]
fn without_the_check_a_name_that_does_not_resolve_keeps_sentinel_from_starting_again() {
    let master = Node::start(server("redis-7.0.15"));
    let sentinel = Sentinel::watching(master.server, master.port, 1);
    sentinel.ask(&["SENTINEL", "CONFIG", "SET", "resolve-hostnames", "yes"]).unwrap();
    let _link = link_announced_as(&master, "no-such-host.invalid", 7999);
    wait_at_most(FAILOVER, "Sentinel notes the name", || {
        let file = sentinel.file();
        when(file.contains("known-replica"), || format!("{file}\nlog:\n{}", sentinel.log()))
    });
    let file = sentinel.file();
    let line = file.lines().find(|line| line.contains("known-replica")).unwrap_or_default();
    assert!(line.contains("  7999") || line.contains("\"\" 7999"), "a line without a host: {line:?}");
    let said = sentinel.fails_to_start_again();
    assert!(said.contains("known-replica"), "{said}");
}
