//! `upstream-links mirrored`: the master counts replicas, not psyncd. So WAIT, min-replicas-to-write, FAILOVER and SHUTDOWN
//! mean what they mean without psyncd.
//!
//! Controls: `…_single_link_…` here; there the master counts one replica where there are two.

use std::time::{Duration, Instant};

use crate::harness::*;

/// A master, psyncd, and replicas behind it.
struct World {
    master: Node,
    psyncd: Psyncd,
    replicas: Vec<Node>,
    /// Data sets the replicas had sent to psyncd when all was set up.
    lent: Vec<i64>,
}

impl World {
    /// With all of them online, and spoken for where links are mirrored.
    #[track_caller]
    fn of(name: &str, links: &str, count: usize) -> World {
        World::with(name, &["--upstream-links", links], count)
    }

    #[track_caller]
    fn with(name: &str, options: &[&str], count: usize) -> World {
        let master = Node::start(server(name));
        fill(&master);
        let psyncd = Psyncd::before_with(&master, options);
        let replicas = Node::start_all(vec![master.server; count]);
        // One after the other, so that the first is the lead.
        for (at, replica) in replicas.iter().enumerate() {
            replica.replicate(psyncd.port);
            psyncd.wait_for_replicas(at + 1);
        }
        let lent = replicas.iter().map(|replica| replica.syncs().full).collect();
        let world = World { master, psyncd, replicas, lent };
        if options.contains(&"mirrored") {
            world.wait_for_mirrors(count);
        }
        world
    }

    #[track_caller]
    fn wait_for_mirrors(&self, count: usize) {
        wait_until(&format!("{count} replicas are spoken for"), || {
            let mirrors = self.psyncd.metrics().one("psyncd_upstream_mirrors", &[]);
            when(mirrors == count as f64, || format!("{mirrors} are"))
        });
    }

    /// The ports of the replicas that the master lists as online, in order.
    fn listed(&self) -> Vec<u16> {
        self.listed_at(self.master.port)
    }

    /// What is listed as online by whoever answers there.
    fn listed_at(&self, port: u16) -> Vec<u16> {
        let info = parse_info(&Conn::to(port).cmd(&["INFO", "replication"]).text());
        let lines = info.iter().filter(|(key, _)| key.strip_prefix("slave").is_some_and(|n| n.parse::<u32>().is_ok()));
        let online = lines.filter(|(_, line)| line.contains("state=online"));
        let port = |line: &str| line.split(',').find_map(|part| part.strip_prefix("port=")?.parse().ok());
        let mut ports: Vec<u16> = online.map(|(_, line)| port(line).unwrap_or(0)).collect();
        ports.sort_unstable();
        ports
    }

    /// The ports of these replicas, in order.
    fn ports(&self, which: impl IntoIterator<Item = usize>) -> Vec<u16> {
        let mut ports: Vec<u16> = which.into_iter().map(|at| self.replicas[at].port).collect();
        ports.sort_unstable();
        ports
    }

    /// What a client behind psyncd gets for WAIT after a write.
    #[track_caller]
    fn wait(&self, count: usize, limit_ms: u32) -> i64 {
        let mut client = self.psyncd.conn();
        client.cmd(&["INCR", "waited-for"]);
        client.cmd(&["WAIT", &count.to_string(), &limit_ms.to_string()]).int()
    }

    /// Whether the master takes writes, as far as min-replicas-to-write goes.
    fn takes_writes(&self) -> Result<(), String> {
        match self.master.ask(&["INCR", "taken"]) {
            Ok(Value::Int(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }

    /// No data set was asked for but those psyncd handed on.
    #[track_caller]
    fn assert_no_full_sync_but_snapshots(&self) {
        let snapshots =
            self.psyncd.metrics().one("psyncd_snapshots_total", &[("source", "upstream"), ("result", "ok")]);
        assert_eq!(self.master.syncs().full as f64, snapshots);
    }
}

#[track_caller]
fn every_replica_counts_for_itself(name: &str) {
    let mut world = World::of(name, "mirrored", 2);
    assert_eq!(world.listed(), world.ports([0, 1]), "the master lists the replicas and nobody else");
    assert_eq!(world.listed_at(world.psyncd.port), world.ports([0, 1]), "and so does psyncd, once each");
    assert_eq!(world.wait(2, 5000), 2);
    assert_eq!(world.wait(3, 300), 2, "there is no third one");

    world.master.cmd(&["CONFIG", "SET", "min-replicas-max-lag", "2"]);
    world.master.cmd(&["CONFIG", "SET", "min-replicas-to-write", "2"]);
    wait_until("writes are taken", || world.takes_writes());
    for stopped in [0, 1] {
        world.replicas[stopped].process().signal("STOP");
        wait_until("writes are refused with one of two silent", || match world.takes_writes() {
            Err(why) if why.contains("NOREPLICAS") => Ok(()),
            other => Err(format!("{other:?}")),
        });
        world.replicas[stopped].process().signal("CONT");
        wait_until("writes are taken again", || world.takes_writes());
    }
    world.master.cmd(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    world.replicas[0].process().signal("STOP");
    assert_eq!(world.wait(2, 300), 1);
    world.replicas[0].process().signal("CONT");
    assert_eq!(world.wait(2, 5000), 2);

    // One more comes, and the one leaves for whom the link spoke that feeds the others.
    let third = Node::start(world.master.server);
    third.replicate(world.psyncd.port);
    world.replicas.push(third);
    world.wait_for_mirrors(3);
    assert_eq!(world.wait(3, 5000), 3);
    world.replicas[0].kill();
    wait_until("the master lists the two that are left", || {
        let listed = world.listed();
        when(listed == world.ports([1, 2]), || format!("{listed:?}"))
    });
    world.wait_for_mirrors(2);
    assert_eq!(world.wait(2, 5000), 2);
    assert_eq!(world.wait(3, 300), 2);
    assert_equal_data(&world.master, &world.replicas[1..]);
    assert_eq!(world.psyncd.resyncs(), Resyncs { partial: 0, full: 3 }, "nobody was disturbed");
    world.assert_no_full_sync_but_snapshots();
    // Nobody is left: psyncd is itself again.
    world.replicas[1..].iter_mut().for_each(Node::kill);
    wait_until("the master lists psyncd", || {
        let listed = world.listed();
        when(listed == [0], || format!("{listed:?}"))
    });
    world.assert_no_full_sync_but_snapshots();
}

#[test]
fn mirrored_every_replica_counts_for_itself_redis() {
    every_replica_counts_for_itself("redis-7.0.15");
}

#[test]
fn mirrored_every_replica_counts_for_itself_valkey() {
    every_replica_counts_for_itself("valkey-8.1.1");
}

#[test]
fn over_a_single_link_two_replicas_count_as_one() {
    let world = World::of("redis-7.0.15", "single", 2);
    assert_eq!(world.listed(), [0]);
    assert_eq!(world.wait(1, 5000), 1);
    assert_eq!(world.wait(2, 500), 1);
    world.master.cmd(&["CONFIG", "SET", "min-replicas-to-write", "2"]);
    let refused = world.takes_writes();
    assert!(refused.as_ref().is_err_and(|why| why.contains("NOREPLICAS")), "{refused:?}");
    let target = world.replicas[0].port.to_string();
    let refused = world.psyncd.conn().ask(&["FAILOVER", "TO", "127.0.0.1", &target]).unwrap();
    assert!(matches!(&refused, Value::Error(why) if why.contains("is not a replica")), "{refused:?}");
}

#[test]
fn mirrored_links_come_back_by_partial_resyncs_under_writes() {
    let world = World::of("redis-7.0.15", "mirrored", 3);
    let before = world.master.syncs();
    let load = Load::through(world.psyncd.port, world.master.server);
    for _ in 0..3 {
        load.go_on_for(10);
        assert!(world.psyncd.conn().cmd(&["CLIENT", "KILL", "TYPE", "replica"]).int() >= 1);
        world.psyncd.wait_for_link();
        world.wait_for_mirrors(3);
    }
    load.stop();
    assert_eq!(world.wait(3, 5000), 3);
    assert_eq!(world.listed(), world.ports([0, 1, 2]));
    assert_equal_data(&world.master, &world.replicas);
    assert_eq!(world.psyncd.resyncs(), Resyncs { partial: 0, full: 3 }, "no replica noticed");
    let after = world.master.syncs();
    assert_eq!((after.full, after.forks), (before.full, before.forks));
}

/// Everybody follows `new`, which was a replica behind psyncd, and nobody started over.
#[track_caller]
fn assert_failed_over(world: &World, new: usize) {
    let promoted = &world.replicas[new];
    wait_until("the replica is the master", || {
        let role = promoted.info()["role"].clone();
        when(role == "master", || role)
    });
    world.master.wait_for_link();
    promoted.cmd(&["SET", "after", "the failover"]);
    world.psyncd.wait_for_link();
    let others: Vec<_> = world.replicas.iter().enumerate().filter(|(at, _)| *at != new).map(|(_, node)| node).collect();
    assert_equal_data(promoted, others.iter().copied().chain([&world.master]));
    assert!(others.iter().all(|node| node.full_resyncs() == 1), "only the first sync of each was a full one");
    assert_eq!(world.master.full_resyncs(), 0);
    assert_eq!(promoted.syncs().full, world.lent[new]);
    assert_eq!(world.psyncd.resyncs().full, world.replicas.len() as i64);
    world.assert_no_full_sync_but_snapshots();
    // psyncd stays with its node, and its node lists who is still behind it.
    world.wait_for_mirrors(others.len());
    assert_eq!(world.listed(), world.ports((0..world.replicas.len()).filter(|at| *at != new)));
}

#[track_caller]
fn a_failover_to(name: &str, target: usize) {
    let world = World::of(name, "mirrored", 3);
    let port = world.replicas[target].port.to_string();
    world.psyncd.conn().cmd(&["FAILOVER", "TO", "127.0.0.1", &port, "TIMEOUT", "20000"]);
    assert_failed_over(&world, target);
}

#[test]
fn mirrored_a_failover_to_the_lead_resyncs_nobody_redis() {
    a_failover_to("redis-7.0.15", 0);
}

#[test]
fn mirrored_a_failover_to_another_replica_resyncs_nobody_redis() {
    a_failover_to("redis-7.0.15", 2);
}

/// Valkey's Sentinel uses this very form for a coordinated failover.
#[test]
fn mirrored_a_failover_to_a_replica_resyncs_nobody_valkey() {
    a_failover_to("valkey-9.1.2", 1);
}

#[test]
fn mirrored_a_failover_to_whomever_chooses_a_replica() {
    let world = World::of("redis-7.0.15", "mirrored", 2);
    world.psyncd.conn().cmd(&["FAILOVER", "TIMEOUT", "20000"]);
    let new = wait_until("a replica is the master", || {
        let role = |node: &Node| node.info()["role"].clone();
        world.replicas.iter().position(|node| role(node) == "master").ok_or_else(|| "none is".to_owned())
    });
    assert_failed_over(&world, new);
}

#[test]
fn over_a_single_link_with_a_replica_face_a_failover_is_refused_and_writes_go_on() {
    let face = free_port().to_string();
    let world = World::with("redis-7.0.15", &["--replica-port", &face], 2);
    let id = world.master.replid();
    let began = Instant::now();
    world.psyncd.conn().cmd(&["FAILOVER"]);
    wait_until("the failover has ended", || {
        let info = world.master.info();
        when(info["master_failover_state"] == "no-failover" && info["master_replid"] != id, || format!("{info:?}"))
    });
    eprintln!("single, with a replica face: FAILOVER refused after {:?}", began.elapsed());
    assert_eq!(world.master.info()["role"], "master");
    world.psyncd.wait_for_link();
    assert_eq!(world.wait(1, 5000), 1);
    assert_equal_data(&world.master, &world.replicas);
    assert_eq!(world.psyncd.resyncs().full, 2, "its history goes on under a new name");
    world.assert_no_full_sync_but_snapshots();
}

#[test]
fn over_a_single_link_without_a_replica_face_a_failover_hangs_until_it_is_aborted() {
    let world = World::of("redis-7.0.15", "single", 1);
    let mut client = world.psyncd.conn();
    client.cmd(&["FAILOVER"]);
    let state = || world.master.info()["master_failover_state"].clone();
    wait_until("it tries to hand over to port 0", || when(state() == "failover-in-progress", state));
    holds_for(Duration::from_secs(2), "it goes on trying", || when(state() == "failover-in-progress", state));
    client.cmd(&["FAILOVER", "ABORT"]);
    wait_until("writes go on", || world.takes_writes());
    world.psyncd.wait_for_link();
    assert_equal_data(&world.master, &world.replicas);
    assert_eq!(world.psyncd.resyncs().full, 1);
}

#[test]
fn a_paused_master_keeps_its_links_and_replicas() {
    for links in ["single", "mirrored"] {
        let world = World::of("redis-7.0.15", links, 2);
        let mut client = world.psyncd.conn();
        client.cmd(&["CLIENT", "PAUSE", "1500", "WRITE"]);
        let began = Instant::now();
        client.cmd(&["SET", "held", "back"]);
        assert!(began.elapsed() >= Duration::from_millis(1000), "the write waited for the pause");
        assert_eq!(client.cmd(&["WAIT", "1", "5000"]).int().min(1), 1);
        assert_equal_data(&world.master, &world.replicas);
        assert_eq!(world.psyncd.resyncs(), Resyncs { partial: 0, full: 2 }, "{links}");
        assert_eq!(world.psyncd.metrics().sum("psyncd_upstream_disconnects_total", &[]), 0.0, "{links}");
    }
}

/// How long the master takes to go, having been told so through psyncd.
fn shutdown_takes(world: &mut World) -> Duration {
    let began = Instant::now();
    world.psyncd.conn().send(encode(&["SHUTDOWN", "NOSAVE"])).unwrap();
    world.master.process().wait_for_end(SOON);
    began.elapsed()
}

#[test]
fn a_master_that_shuts_down_waits_for_nobody_who_has_everything() {
    for links in ["single", "mirrored"] {
        let mut world = World::of("redis-7.0.15", links, 2);
        // A write just before: the replicas have not acknowledged it yet.
        write_megabytes(&world.master, 4);
        let head = world.master.offset();
        let took = shutdown_takes(&mut world);
        eprintln!("{links}: SHUTDOWN took {took:?}");
        assert!(took < Duration::from_secs(5), "{links}: {took:?}, and the servers' own limit is 10 s");
        for replica in &world.replicas {
            wait_until("the replica has what the master acknowledged", || {
                let at = replica.offset();
                when(at >= head, || format!("{at} of {head}"))
            });
        }
        assert!(world.replicas.iter().all(|replica| replica.full_resyncs() == 1));
    }
}

#[test]
fn mirrored_a_master_that_shuts_down_waits_for_a_replica_that_is_behind() {
    for (links, waits) in [("single", false), ("mirrored", true)] {
        let mut world = World::of("redis-7.0.15", links, 2);
        world.master.cmd(&["CONFIG", "SET", "shutdown-timeout", "4"]);
        world.replicas[1].process().signal("STOP");
        world.master.cmd(&["SET", "not", "there yet"]);
        let took = shutdown_takes(&mut world);
        eprintln!("{links}: SHUTDOWN with one of two stopped took {took:?}");
        assert_eq!(took > Duration::from_secs(3), waits, "{links}: {took:?}");
    }
}
