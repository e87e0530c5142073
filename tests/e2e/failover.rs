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

/// The replica is away while the stream changes its name so often.
fn names_changed_meanwhile(times: usize) -> (Psyncd, Vec<Node>, Node) {
    let nodes = Node::start_all([server("redis-7.0.15"); 2]);
    for node in &nodes {
        node.cmd(&["CONFIG", "SET", "repl-ping-replica-period", "3600"]);
    }
    fill(&nodes[0]);
    nodes[1].replicate(nodes[0].port);
    nodes[1].wait_for_link();
    let road = Forwarder::to(nodes[0].port);
    let psyncd = Psyncd::toward(&road.address(), &[]);
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
    let (psyncd, nodes, replica) = names_changed_meanwhile(3);
    assert_eq!(replica.full_resyncs(), 1);
    assert_eq!(psyncd.metrics().one("psyncd_resyncs_total", &[("reason", "ancestor")]), 1.0);
    assert_eq!(psyncd.metrics().one("psyncd_full_resyncs_averted_total", &[("mechanism", "deep_history")]), 1.0);
    assert_eq!(psyncd.metrics().one("psyncd_history_switches_total", &[("outcome", "continued")]), 3.0);
    let full: i64 = nodes.iter().map(|node| node.syncs().full).sum();
    assert_eq!(full, 2, "one for the second node and one for psyncd, both at the beginning");
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
