//! Another node becomes the master. Replicas that do not have to start over do not.
//!
//! Controls: `without_psyncd_…` here. What Sentinels do is in `sentinel`; what a sidecar in front of every node does, in
//! `sidecars`.

use tempfile::TempDir;

use crate::harness::*;

/// A master and a standby that hangs on it; psyncd follows whoever the road leads to.
struct Estate {
    master: Node,
    standby: Node,
    road: Forwarder,
}

impl Estate {
    fn of(name: &str) -> Estate {
        let master = Node::with(server(name), &["--repl-ping-replica-period", "3600"]);
        let standby = Node::with(server(name), &["--repl-ping-replica-period", "3600"]);
        fill(&master);
        standby.replicate(master.port);
        standby.wait_for_link();
        let road = Forwarder::to(master.port);
        Estate { master, standby, road }
    }

    /// The master dies with `lost` megabytes that its standby never got, and the standby is promoted.
    fn fail_over(&mut self, replicas: &[&Node], lost: usize) {
        self.standby.process().signal("STOP");
        write_megabytes(&self.master, lost);
        let head = self.master.offset();
        wait_until("the replicas have all of it", || {
            let at: Vec<_> = replicas.iter().map(|replica| replica.offset()).collect();
            when(at.iter().all(|&at| at == head), || format!("{at:?} of {head}"))
        });
        self.road.sever();
        self.master.kill();
        self.standby.process().signal("CONT");
        // The kernel still holds what was sent to it; a standby in another building would not have got that.
        wait_until("the standby knows that its master is gone", || {
            let link = self.standby.info()["master_link_status"].clone();
            when(link == "down", || link)
        });
        self.standby.cmd(&["REPLICAOF", "NO", "ONE"]);
        self.road.point_to(self.standby.port);
        self.road.restore();
    }
}

#[track_caller]
fn a_rewind(name: &str) {
    let mut estate = Estate::of(name);
    let dir = TempDir::with_prefix("psyncd-e2e-").unwrap();
    let psyncd = Psyncd::toward(&estate.road.address(), &["--dir", dir.path().to_str().unwrap()]);
    psyncd.wait_for_link();
    let replicas = Node::start_all([estate.master.server; 3]);
    let network = Forwarder::to(psyncd.port);
    replicas[0].replicate(network.port);
    replicas[1..].iter().for_each(|replica| replica.replicate(psyncd.port));
    assert_equal_data(&estate.master, &replicas);
    assert_equal_data(&estate.master, [&estate.standby]);
    // One is away from before the loss; the other two are sent what will be lost.
    network.sever();
    let parted = estate.standby.offset();
    // Far more than sockets hold between the master and a standby that has stopped.
    estate.fail_over(&[&replicas[1], &replicas[2]], 48);
    let before = estate.standby.syncs();
    psyncd.wait_for_link();
    network.restore();
    estate.standby.cmd(&["SET", "after", "the failover"]);
    assert_equal_data(&estate.standby, &replicas);

    assert_eq!(psyncd.metrics().one("psyncd_history_switches_total", &[("outcome", "rewound")]), 1.0);
    let full: Vec<_> = replicas.iter().map(Node::full_resyncs).collect();
    assert_eq!(full, [1, 2, 2], "only those that had what was lost start over");
    let after = estate.standby.syncs();
    assert!(after.full - before.full <= 1, "the new master sent {} data sets", after.full - before.full);

    let kept: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "resp"))
        .collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let lost = psyncd.metrics().one("psyncd_lost_writes_bytes_total", &[]);
    let written = std::fs::read(&kept[0]).unwrap();
    assert_eq!(written.len() as f64, lost.min(64.0 * 1024.0 * 1024.0));
    assert!(lost > 1_000_000.0, "{lost} bytes were lost: the standby had nearly everything, from {parted}");
    assert!(written.starts_with(b"*"), "it begins with a command");
}

#[test]
fn a_master_promoted_from_behind_costs_those_who_were_ahead_and_nobody_else_redis() {
    a_rewind("redis-7.0.15");
}

#[test]
fn a_master_promoted_from_behind_costs_those_who_were_ahead_and_nobody_else_valkey() {
    a_rewind("valkey-8.1.1");
}

#[test]
fn without_psyncd_a_master_promoted_from_behind_sends_everybody_who_was_ahead_its_data_set() {
    let mut estate = Estate::of("redis-7.0.15");
    let replicas = Node::start_all([estate.master.server; 2]);
    replicas.iter().for_each(|replica| replica.replicate(estate.road.port));
    assert_equal_data(&estate.master, &replicas);
    assert_equal_data(&estate.master, [&estate.standby]);
    estate.fail_over(&replicas.iter().collect::<Vec<_>>(), 48);
    let before = estate.standby.syncs();
    replicas.iter().for_each(Node::wait_for_link);
    assert_equal_data(&estate.standby, &replicas);
    assert_eq!(estate.standby.syncs().full - before.full, 2);
}

/// What becomes of psyncd between the failovers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Relay {
    Lives,
    /// By `kill -9`, and is started again.
    Dies,
}

/// The replica is away while the stream changes its name so often.
fn names_changed_meanwhile(name: &str, times: usize, relay: Relay) -> (Psyncd, Vec<Node>, Node) {
    let nodes = Node::start_all([server(name); 2]);
    for node in &nodes {
        node.cmd(&["CONFIG", "SET", "repl-ping-replica-period", "3600"]);
    }
    fill(&nodes[0]);
    nodes[1].replicate(nodes[0].port);
    nodes[1].wait_for_link();
    let road = Forwarder::to(nodes[0].port);
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port().to_string());
    let options = ["--dir", dir.path().to_str().unwrap(), "--port", &port];
    let mut psyncd = Psyncd::toward(&road.address(), &options);
    psyncd.wait_for_link();
    let replica = Node::start(nodes[0].server);
    let network = Forwarder::to(psyncd.port);
    replica.replicate(network.port);
    assert_equal_data(&nodes[0], [&replica]);
    network.sever();
    for time in 0..times {
        let (old, new) = (&nodes[time % 2], &nodes[(time + 1) % 2]);
        old.cmd(&["SET", "time", &time.to_string()]);
        let head = old.offset();
        wait_until("the other node has everything", || {
            when(new.offset() == head, || format!("{} of {head}", new.offset()))
        });
        wait_until("and so has psyncd", || {
            let at = psyncd.metrics().one("psyncd_replication_offset_bytes", &[("point", "received")]);
            when(at == head as f64, || format!("{at} of {head}"))
        });
        new.cmd(&["REPLICAOF", "NO", "ONE"]);
        road.point_to(new.port);
        let id = new.replid();
        wait_until("psyncd follows under the new name", || {
            let status = psyncd.status();
            when(status["history"]["replid"] == id.as_str(), || status["history"].to_string())
        });
        psyncd.wait_for_link();
        old.replicate(new.port);
        old.wait_for_link();
        if relay == Relay::Dies {
            psyncd.process().kill();
            psyncd = Psyncd::toward(&road.address(), &options);
            psyncd.wait_for_link();
        }
    }
    network.restore();
    replica.wait_for_link();
    psyncd.wait_for_replicas(1);
    let master = times % 2;
    nodes[master].cmd(&["SET", "back", "again"]);
    assert_equal_data(&nodes[master], [&replica]);
    (psyncd, nodes, replica)
}

#[test]
fn a_replica_that_slept_through_three_failovers_continues() {
    let (psyncd, nodes, replica) = names_changed_meanwhile("redis-7.0.15", 3, Relay::Lives);
    assert_eq!(replica.full_resyncs(), 1);
    assert_eq!(psyncd.metrics().one("psyncd_resyncs_total", &[("reason", "ancestor")]), 1.0);
    assert_eq!(psyncd.metrics().one("psyncd_full_resyncs_averted_total", &[("mechanism", "deep_history")]), 1.0);
    assert_eq!(psyncd.metrics().one("psyncd_history_switches_total", &[("outcome", "continued")]), 3.0);
    let full: i64 = nodes.iter().map(|node| node.syncs().full).sum();
    assert_eq!(full, 2, "one for the second node and one for psyncd, both at the beginning");
}

fn sleeps_through_two_failovers_and_two_deaths(name: &str) {
    let (psyncd, nodes, replica) = names_changed_meanwhile(name, 2, Relay::Dies);
    assert_eq!(replica.full_resyncs(), 1);
    assert_eq!(psyncd.metrics().one("psyncd_resyncs_total", &[("reason", "ancestor")]), 1.0);
    let full: i64 = nodes.iter().map(|node| node.syncs().full).sum();
    assert_eq!(full, 2, "one for the second node and one for psyncd, both at the beginning");
}

#[test]
fn a_redis_7_0_replica_that_slept_through_two_failovers_and_two_deaths_of_psyncd_continues() {
    sleeps_through_two_failovers_and_two_deaths("redis-7.0.15");
}

#[test]
fn a_valkey_8_1_replica_that_slept_through_two_failovers_and_two_deaths_of_psyncd_continues() {
    sleeps_through_two_failovers_and_two_deaths("valkey-8.1.1");
}

#[test]
fn without_psyncd_a_replica_that_slept_through_two_failovers_starts_over() {
    let nodes = Node::start_all([server("redis-7.0.15"); 2]);
    fill(&nodes[0]);
    nodes[1].replicate(nodes[0].port);
    nodes[1].wait_for_link();
    let replica = Node::start(nodes[0].server);
    let network = Forwarder::to(nodes[0].port);
    replica.replicate(network.port);
    assert_equal_data(&nodes[0], [&replica, &nodes[1]]);
    network.sever();
    for time in 0..2 {
        let (old, new) = (&nodes[time % 2], &nodes[(time + 1) % 2]);
        old.cmd(&["SET", "time", &time.to_string()]);
        let head = old.offset();
        wait_until("the other node has everything", || {
            when(new.offset() == head, || format!("{} of {head}", new.offset()))
        });
        new.cmd(&["REPLICAOF", "NO", "ONE"]);
        old.replicate(new.port);
        old.wait_for_link();
    }
    network.restore();
    wait_until("the replica starts over", || {
        let full = replica.full_resyncs();
        when(full == 2, || format!("{full} full resyncs"))
    });
}

#[test]
fn with_its_master_dead_psyncd_says_when_all_replicas_are_equal() {
    let mut master = Node::with(server("redis-7.2.4"), &["--repl-ping-replica-period", "3600"]);
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let mut replicas = Node::start_all([master.server; 3]);
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    assert_equal_data(&master, &replicas);
    psyncd.wait_for_replicas(3);
    replicas[0].process().signal("STOP");
    write_megabytes(&master, 2);
    let head = master.offset();
    wait_until("psyncd has it all", || {
        let at = psyncd.metrics().one("psyncd_replication_offset_bytes", &[("point", "received")]);
        when(at == head as f64, || format!("{at} of {head}"))
    });
    master.kill();
    psyncd.wait_for_lost_link();
    let at_head = || psyncd.metrics().one("psyncd_replicas_at_head", &[]);
    wait_until("two have everything", || when(at_head() == 2.0, || at_head().to_string()));
    assert_eq!(psyncd.status()["all_at_head"], false);
    replicas[0].process().signal("CONT");
    wait_until("all have everything", || when(at_head() == 3.0, || at_head().to_string()));
    assert_eq!(psyncd.status()["all_at_head"], true);
    // So whichever is promoted, the others continue.
    replicas[2].cmd(&["REPLICAOF", "NO", "ONE"]);
    let before = replicas[2].syncs();
    replicas[..2].iter().for_each(|replica| replica.replicate(replicas[2].port));
    assert_equal_data(&replicas[2], &replicas[..2]);
    assert_eq!(replicas[2].syncs().full, before.full);
}

/// `FAILOVER TO` the sidecar of another node: what the old master then says there is for that node.
#[track_caller]
fn a_master_hands_over_to_a_node_behind_psyncd(name: &str, password: Option<&str>) {
    let server = server(name);
    let (old, new, behind_old) = (Node::start(server), Node::start(server), Node::start(server));
    fill(&old);
    let secret = tempfile::NamedTempFile::new().unwrap();
    let mut options = vec![];
    if let Some(password) = password {
        std::fs::write(secret.path(), password).unwrap();
        options.extend(["--masterauth-file", secret.path().to_str().unwrap()]);
        for node in [&old, &new, &behind_old] {
            node.cmd(&["CONFIG", "SET", "masterauth", password]);
            node.cmd(&["CONFIG", "SET", "requirepass", password]);
        }
    }
    let (beside_old, beside_new) = (Psyncd::before_with(&old, &options), Psyncd::before_with(&new, &options));
    new.cmd(&["CONFIG", "SET", "replica-announce-ip", "127.0.0.1"]);
    new.cmd(&["CONFIG", "SET", "replica-announce-port", &beside_new.port.to_string()]);
    new.replicate(old.port);
    new.wait_for_link();
    behind_old.replicate(beside_old.port);
    behind_old.wait_for_link();

    let mut conn = beside_old.conn();
    password.into_iter().for_each(|password| drop(conn.cmd(&["AUTH", password])));
    conn.cmd(&["SET", "before", "the failover"]);
    let port = beside_new.port.to_string();
    wait_until("the old master finds the new one online", || {
        let answer = conn.ask(&["FAILOVER", "TO", "127.0.0.1", &port, "TIMEOUT", "10000"]).unwrap();
        when(answer == Value::Simple("OK".into()), || format!("{answer:?}"))
    });
    wait_until("the node behind psyncd is the master", || {
        let role = new.info()["role"].clone();
        when(role == "master", || format!("it is {role}; the old one's log ends\n{}", old.log()))
    });
    wait_until("the old one follows it through psyncd", || {
        let info = old.info();
        let follows = info["role"] == "slave" && info["master_port"] == port;
        when(follows && info.get("master_link_status").is_some_and(|link| link == "up"), || format!("{info:?}"))
    });
    new.cmd(&["SET", "after", "the failover"]);
    assert_equal_data(&new, [&old, &behind_old]);
    assert_eq!((old.full_resyncs(), behind_old.full_resyncs()), (0, 1), "nobody starts over");
    assert!(beside_new.log().contains("failover passed on to the upstream"), "{}", beside_new.log());
}

#[test]
fn a_redis_master_hands_over_to_a_node_behind_psyncd() {
    a_master_hands_over_to_a_node_behind_psyncd("redis-7.0.15", None);
}

#[test]
fn a_valkey_master_hands_over_to_a_node_behind_psyncd() {
    a_master_hands_over_to_a_node_behind_psyncd("valkey-9.1.2", Some("a password"));
}

#[test]
fn a_handover_to_a_node_that_is_away_is_refused_at_once_and_the_master_stays_one() {
    let server = server("redis-7.0.15");
    let master = Node::start(server);
    let mut away = Node::start(server);
    let beside = Psyncd::before(&away);
    away.kill();
    beside.wait_for_lost_link();
    // Whoever it is that is said to be the target, it has all the master has.
    let mut target = master.conn();
    target.cmd(&["REPLCONF", "listening-port", &beside.port.to_string()]);
    target.send(encode(&["PSYNC", "?", "-1"])).unwrap();
    target.line().unwrap();
    target.payload().unwrap();
    let port = beside.port.to_string();
    wait_until("it is tried and given up", || {
        target.send(encode(&["REPLCONF", "ACK", &master.offset().to_string()])).unwrap();
        let _ = master.ask(&["FAILOVER", "TO", "127.0.0.1", &port, "TIMEOUT", "10000"]).unwrap();
        when(master.log().contains("Failover target rejected psync request"), || master.log())
    });
    wait_until("the master is a master that takes writes", || match master.ask(&["SET", "still", "here"]) {
        Ok(Value::Simple(ok)) if ok == "OK" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(master.info()["role"], "master");
}
