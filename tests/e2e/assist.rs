//! A promotion is held for a moment, or passes when it cannot be assisted. What real Sentinels make of it is in
//! `sidecars`, and so is the control.

use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::*;
use crate::tls::World;

/// A master and a replica with a psyncd in front of each.
struct Pair {
    nodes: Vec<Node>,
    psyncds: Vec<Psyncd>,
    /// Where the nodes find each other's psyncd.
    ports: Vec<u16>,
    _secrets: (TempDir, Option<World>),
}

impl Pair {
    /// With these secrets, of which an empty one stands for assist-failover no.
    #[track_caller]
    fn with(name: &str, secrets: [&str; 2]) -> Pair {
        let dir = TempDir::with_prefix("psyncd-e2e-").unwrap();
        let (mut nodes, mut psyncds) = (Vec::new(), Vec::<Psyncd>::new());
        for (place, secret) in secrets.iter().enumerate() {
            let port = free_port().to_string();
            let announced = ["--replica-announce-port", &port, "--repl-ping-replica-period", "3600"];
            let node = Node::with(server(name), &announced);
            match psyncds.first() {
                Some(first) => node.replicate(first.port),
                None => fill(&node),
            }
            let file = dir.path().join(place.to_string());
            std::fs::write(&file, secret).unwrap();
            let mut options = vec!["--port", &port];
            if !secret.is_empty() {
                options.extend(["--assist-failover", "yes", "--assist-secret-file", file.to_str().unwrap()]);
            }
            psyncds.push(Psyncd::before_with(&node, &options));
            nodes.push(node);
        }
        nodes[1].wait_for_link();
        psyncds[0].wait_for_replicas(1);
        let ports = psyncds.iter().map(|psyncd| psyncd.port).collect();
        Pair { nodes, psyncds, ports, _secrets: (dir, None) }
    }

    /// Where nodes and psyncds talk to each other in TLS alone, with certificates asked for on either side.
    #[track_caller]
    fn over_tls(name: &str) -> Pair {
        let (dir, world) = (TempDir::with_prefix("psyncd-e2e-").unwrap(), World::new());
        let file = dir.path().join("secret");
        std::fs::write(&file, "the secret").unwrap();
        let (mut nodes, mut psyncds, mut ports) = (Vec::new(), Vec::new(), Vec::<u16>::new());
        for _ in 0..2 {
            let (node, upstream) = world.start(name, &world.node);
            node.cmd(&["CONFIG", "SET", "repl-ping-replica-period", "3600"]);
            let port = free_port();
            node.cmd(&["CONFIG", "SET", "replica-announce-port", &port.to_string()]);
            match ports.first() {
                Some(first) => node.replicate(*first),
                None => fill(&node),
            }
            let assisting = ["--assist-failover", "yes", "--assist-secret-file", file.to_str().unwrap()];
            let (psyncd, _) = world.before(upstream, &[&["--tls-port", &port.to_string()], &assisting[..]].concat());
            nodes.push(node);
            psyncds.push(psyncd);
            ports.push(port);
        }
        nodes[1].wait_for_link();
        psyncds[0].wait_for_replicas(1);
        Pair { nodes, psyncds, ports, _secrets: (dir, Some(world)) }
    }

    /// Promotes the replica as Sentinel does, and says how long that took.
    #[track_caller]
    fn promote(&self) -> Duration {
        let mut conn = self.psyncds[1].conn();
        let began = Instant::now();
        let commands: Vec<u8> =
            [&["MULTI"][..], &["SLAVEOF", "NO", "ONE"], &["EXEC"]].iter().flat_map(|command| encode(command)).collect();
        conn.send(commands).unwrap();
        let replies: Vec<_> = (0..3).map(|_| conn.reply().unwrap()).collect();
        assert_eq!(replies[2], Value::Array(vec![Value::Simple("OK".into())]), "{replies:?}");
        began.elapsed()
    }

    #[track_caller]
    fn wait_for_assists(&self, result: &str) {
        wait_until("the promotion is counted", || {
            let counted = self.psyncds[1].metrics().one("psyncd_failover_assists_total", &[("result", result)]);
            when(counted == 1.0, || format!("{counted} {result}"))
        });
        assert_eq!(self.psyncds[1].metrics().sum("psyncd_failover_assists_total", &[]), 1.0);
    }
}

#[track_caller]
fn a_promotion_loses_nothing(name: &str, pair: &Pair) {
    let writer = Writer::on(&[pair.psyncds[0].port, pair.psyncds[1].port]);
    let took = pair.promote();
    pair.wait_for_assists("ok");
    pair.nodes[0].wait_for_link();
    writer.go_on_for(200);
    let written = writer.stop();
    assert_equal_data(&pair.nodes[1], [&pair.nodes[0]]);
    assert_eq!(written.lost_on(&pair.nodes[1]), 0);
    assert_eq!((pair.nodes[0].full_resyncs(), pair.nodes[1].full_resyncs()), (0, 1));
    println!(
        "MEASURED {name} | promotion took {} ms | longest pause {} ms",
        took.as_millis(),
        written.longest_pause().as_millis()
    );
    assert!(took < Duration::from_secs(1), "{took:?}");
    // It is a replica of the new master's psyncd, by the address that was announced to it.
    assert_eq!(pair.nodes[0].info()["master_port"], pair.ports[1].to_string());
}

#[track_caller]
fn a_promotion_in_clear_loses_nothing(name: &str) {
    a_promotion_loses_nothing(name, &Pair::with(name, ["the secret", "the secret\n"]));
}

#[test]
fn an_assisted_promotion_of_redis_7_0_loses_nothing() {
    a_promotion_in_clear_loses_nothing("redis-7.0.15");
}

#[test]
fn an_assisted_promotion_of_redis_6_2_loses_nothing() {
    a_promotion_in_clear_loses_nothing("redis-6.2.14");
}

#[test]
fn an_assisted_promotion_of_valkey_9_1_loses_nothing() {
    a_promotion_in_clear_loses_nothing("valkey-9.1.2");
}

#[test]
fn an_assisted_promotion_over_tls_loses_nothing() {
    let pair = Pair::over_tls("redis-7.0.15");
    a_promotion_loses_nothing("redis-7.0.15 over TLS", &pair);
    // The promoted node's psyncd reached the old master's by its TLS port: the plain one was told to nobody.
    assert!(
        pair.psyncds[0].metrics().one("psyncd_tls_handshakes_total", &[("side", "accepted"), ("result", "ok")]) >= 2.0
    );
}

#[track_caller]
fn a_promotion_passes_alone(secrets: [&str; 2]) {
    let pair = Pair::with("redis-7.0.15", secrets);
    let took = pair.promote();
    pair.wait_for_assists("refused");
    assert!(took < Duration::from_millis(900), "{took:?}");
    assert_eq!(pair.nodes[0].info()["role"], "master", "nobody demoted it");
    assert_eq!(pair.psyncds[0].conn().cmd(&["SET", "still", "written"]), Value::Simple("OK".into()));
    assert_eq!(pair.psyncds[0].metrics().one("psyncd_failover_fences_total", &[("result", "demoted")]), 0.0);
}

#[test]
fn a_fence_is_refused_to_who_does_not_know_the_secret() {
    a_promotion_passes_alone(["the secret", "another"]);
}

#[test]
fn a_promotion_is_not_held_where_the_other_side_does_not_assist() {
    a_promotion_passes_alone(["", "the secret"]);
}

#[test]
fn a_promotion_is_held_for_a_second_at_most() {
    let mut pair = Pair::with("redis-7.0.15", ["the secret"; 2]);
    pair.psyncds[0].process().signal("STOP");
    let took = pair.promote();
    pair.psyncds[0].process().signal("CONT");
    pair.wait_for_assists("timeout");
    assert!((Duration::from_millis(900)..Duration::from_secs(3)).contains(&took), "{took:?}");
    assert_eq!(pair.nodes[0].info()["role"], "master");
}

#[test]
fn a_fence_falls_when_the_promotion_does_not_come_about() {
    let pair = Pair::with("redis-7.0.15", ["the secret"; 2]);
    let writer = Writer::on(&[pair.psyncds[0].port]);
    let mut conn = pair.psyncds[1].conn();
    conn.cmd(&["MULTI"]);
    // It is held, fenced, and passes; but nobody says EXEC.
    assert_eq!(conn.cmd(&["SLAVEOF", "NO", "ONE"]), Value::Simple("QUEUED".into()));
    pair.wait_for_assists("timeout");
    assert_eq!(pair.psyncds[0].metrics().one("psyncd_failover_fences_total", &[("result", "undone")]), 1.0);
    conn.cmd(&["DISCARD"]);
    writer.go_on_for(200);
    let written = writer.stop();
    println!("MEASURED fence that fell | longest pause {} ms", written.longest_pause().as_millis());
    assert!(written.longest_pause() > Duration::from_millis(500), "there was a fence");
    assert_equal_data(&pair.nodes[0], [&pair.nodes[1]]);
    assert_eq!(pair.nodes[1].full_resyncs(), 1);
}

#[test]
fn a_stranger_who_asks_for_a_fence_gets_none_and_is_counted() {
    let pair = Pair::with("redis-7.0.15", ["the secret"; 2]);
    let mut conn = pair.psyncds[0].conn();
    let nonce = "0".repeat(40);
    assert!(conn.cmd(&["PSYNCD", "ASSIST", "1", &nonce]).text().starts_with("PSYNCD 1 "));
    let (id, seal) = (pair.nodes[0].replid(), "0".repeat(64));
    let port = pair.psyncds[1].port.to_string();
    let answer = conn.ask(&["PSYNCD", "FENCE", &id, "127.0.0.1", &port, &seal]).unwrap();
    assert!(matches!(&answer, Value::Error(why) if why.contains("assist-secret")), "{answer:?}");
    wait_until("it is counted", || {
        let counted = pair.psyncds[0].metrics().one("psyncd_failover_fences_total", &[("result", "refused")]);
        when(counted == 1.0, || counted.to_string())
    });
    assert_eq!(pair.psyncds[0].conn().cmd(&["SET", "still", "written"]), Value::Simple("OK".into()));
}
