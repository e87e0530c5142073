//! TLS on every leg, with real servers that speak it: certificates are asked for and shown in both directions.
//!
//! The nodes keep a plain port for the tests' own questions; psyncd, replicas, Sentinel and clients know only the other.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::*;

/// Who signs, and what everybody is started with.
pub struct World {
    authority: Authority,
    pub node: Issued,
    psyncd: Issued,
}

impl World {
    pub fn new() -> World {
        let authority = Authority::new();
        let node = authority.issue("node", &["redis-0.redis", "127.0.0.1"]);
        let psyncd = authority.issue("psyncd", &["psyncd-0.psyncd", "127.0.0.1"]);
        World { authority, node, psyncd }
    }

    /// A server that speaks TLS on a second port, which is given too, and to its master.
    #[track_caller]
    pub fn start(&self, name: &str, shown: &Issued) -> (Node, u16) {
        let port = free_port();
        let (ca, text) = (self.authority.ca(), port.to_string());
        let node = Node::with(
            server(name),
            &[
                ["--tls-port", &text],
                ["--tls-cert-file", &shown.cert],
                ["--tls-key-file", &shown.key],
                ["--tls-ca-cert-file", &ca],
                ["--tls-replication", "yes"],
            ]
            .concat(),
        );
        (node, port)
    }

    /// psyncd's options for TLS on both sides, and the port it then listens on.
    fn options(&self, more: &[&str]) -> (Vec<String>, u16) {
        let port = free_port();
        let (ca, text) = (self.authority.ca(), port.to_string());
        let ours = [
            ["--tls-port", &text],
            ["--tls-cert-file", &self.psyncd.cert],
            ["--tls-key-file", &self.psyncd.key],
            ["--tls-ca-cert-file", &ca],
            ["--upstream-tls", "yes"],
        ];
        let ours = ours.into_iter().filter(|[name, _]| !more.contains(name)).flatten();
        (ours.chain(more.iter().copied()).map(|word| (*word).to_owned()).collect(), port)
    }

    /// A psyncd that knows only the TLS port of its upstream, and streams.
    #[track_caller]
    pub fn before(&self, upstream: u16, more: &[&str]) -> (Psyncd, u16) {
        let (options, port) = self.options(more);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let psyncd = Psyncd::toward(&format!("127.0.0.1:{upstream}"), &options);
        psyncd.wait_for_link();
        (psyncd, port)
    }

    /// What psyncd says when it is started so and does not come to stream.
    #[track_caller]
    fn complaint(&self, upstream: u16, expected: &str, more: &[&str]) {
        let (options, _) = self.options(more);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let psyncd = Psyncd::toward(&format!("127.0.0.1:{upstream}"), &options);
        wait_until(&format!("psyncd says {expected:?}"), || {
            let log = psyncd.log();
            when(log.lines().any(|line| line.contains("link not established") && line.contains(expected)), || {
                log.clone()
            })
        });
        assert!(psyncd.metrics().one("psyncd_upstream_connections_total", &[("result", "tls")]) >= 1.0);
        assert!(!psyncd.log().contains("PRIVATE KEY"));
    }

    /// redis-cli over TLS, with a certificate of our authority.
    fn cli(&self, port: u16, args: &[&str], input: &[u8]) -> String {
        let ca = self.authority.ca();
        let mut cli = Command::new(server("redis-7.0.15").tool("redis-cli"))
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "--tls", "--cacert", &ca])
            .args(["--cert", &self.node.cert, "--key", &self.node.key])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        use std::io::Write;
        cli.stdin.take().unwrap().write_all(input).unwrap();
        String::from_utf8(cli.wait_with_output().unwrap().stdout).unwrap()
    }
}

#[track_caller]
fn full_and_partial_resyncs_over_tls_in_both_directions(name: &str) {
    let world = World::new();
    let (master, upstream) = world.start(name, &world.node);
    fill(&master);
    let (psyncd, port) = world.before(upstream, &[]);
    let load = Load::on(&master);
    let (replica, _) = world.start(name, &world.node);
    replica.replicate(port);
    replica.wait_for_link();
    load.go_on_for(50);
    // Both links end in the middle of commands, and go on there.
    master.cut_replicas();
    replica.cmd(&["CLIENT", "KILL", "TYPE", "master"]);
    load.go_on_for(100);
    psyncd.wait_for_link();
    replica.wait_for_link();
    load.stop();
    assert_equal_data(&master, [&replica]);
    assert_eq!(replica.full_resyncs(), 1);
    assert!(replica.partial_resyncs() >= 1, "{}", replica.log());
    assert_eq!(master.syncs().full, 1);
    let metrics = psyncd.metrics();
    for side in ["accepted", "dialed"] {
        let good = metrics.one("psyncd_tls_handshakes_total", &[("side", side), ("result", "ok")]);
        assert!(good >= 2.0, "{side}: {good}");
    }
    assert!(metrics.one("psyncd_tls_certificate_expiry_timestamp_seconds", &[("role", "server")]) > 4e9);
}

#[test]
fn redis_7_0_resyncs_fully_and_partially_over_tls() {
    full_and_partial_resyncs_over_tls_in_both_directions("redis-7.0.15");
}

#[test]
fn redis_7_4_resyncs_fully_and_partially_over_tls() {
    full_and_partial_resyncs_over_tls_in_both_directions("redis-7.4.1");
}

#[test]
fn redis_8_0_resyncs_fully_and_partially_over_tls() {
    full_and_partial_resyncs_over_tls_in_both_directions("redis-8.0.2");
}

#[test]
fn valkey_8_1_resyncs_fully_and_partially_over_tls() {
    full_and_partial_resyncs_over_tls_in_both_directions("valkey-8.1.1");
}

#[test]
fn clients_reach_the_master_through_both_doors_and_get_large_replies_whole() {
    let world = World::new();
    let (master, upstream) = world.start("redis-7.0.15", &world.node);
    let (psyncd, port) = world.before(upstream, &[]);
    let large: String = (0..4_000_000).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
    assert_eq!(world.cli(port, &["-x", "SET", "large"], large.as_bytes()).trim(), "OK");
    assert_eq!(master.cmd(&["STRLEN", "large"]).int(), 4_000_000);
    assert_eq!(world.cli(port, &["GET", "large"], b"").trim(), large);
    assert_eq!(psyncd.conn().cmd(&["GET", "large"]).text(), large, "the plain port passes to the same master");
    assert!(world.cli(port, &["INFO", "replication"], b"").contains("role:master"));
}

#[test]
fn with_tls_only_nothing_is_heard_in_clear_not_even_the_admin_port() {
    let world = World::new();
    let (_master, upstream) = world.start("redis-7.0.15", &world.node);
    let (options, port) = world.options(&["--tls-only", "yes", "--admin-tls", "yes"]);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let psyncd = Psyncd::toward(&format!("127.0.0.1:{upstream}"), &options);
    assert_eq!(psyncd.port, 0);
    wait_until("a client is served over TLS", || {
        let said = world.cli(port, &["PING"], b"");
        when(said.trim() == "PONG", || said.clone())
    });
    for port in [port, psyncd.admin] {
        let mut plain = Conn::to(port);
        plain.send("GET /status HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        let mut heard = Vec::new();
        // It may be reset as well as closed.
        let _ = std::io::Read::read_to_end(&mut plain.stream(), &mut heard);
        assert!(!heard.starts_with(b"HTTP") && !heard.contains(&b'\n'), "{heard:?}");
    }
}

/// Which of the two sides speak TLS.
#[derive(Clone, Copy)]
enum Spoken {
    Everywhere,
    OnlyByReplicas,
    OnlyByTheMaster,
}

impl Spoken {
    /// A replica, and where it finds psyncd.
    fn replica(self, world: &World, psyncd: &Psyncd, port: u16) -> (Node, u16) {
        match self {
            Spoken::Everywhere | Spoken::OnlyByReplicas => (world.start("redis-7.0.15", &world.node).0, port),
            Spoken::OnlyByTheMaster => (Node::start(server("redis-7.0.15")), psyncd.port),
        }
    }
}

#[track_caller]
fn a_replica_gives_a_snapshot(spoken: Spoken, options: &[&str], given_expected: f64) {
    let world = World::new();
    let (master, upstream) = world.start("redis-7.0.15", &world.node);
    fill(&master);
    let upstream = if matches!(spoken, Spoken::OnlyByReplicas) { master.port } else { upstream };
    let small = ["--repl-backlog-size", "4mb", "--snapshot-min-interval", "0"];
    let (psyncd, port) = world.before(upstream, &[&small[..], options].concat());
    let (first, at) = spoken.replica(&world, &psyncd, port);
    first.replicate(at);
    first.wait_for_link();
    psyncd.wait_for_replicas(1);
    // Until the first snapshot has fallen out of the backlog, and never so fast that the replica does.
    for _ in 0..8 {
        write_megabytes(&master, 1);
        assert_equal_data(&master, [&first]);
    }
    wait_until("the old snapshot is of no use and the replica has acknowledged", || {
        let lag: f64 = psyncd.metrics().sum("psyncd_replica_lag_bytes", &[]);
        when(psyncd.status()["snapshot"]["ready"].is_null() && lag < 100_000.0, || lag.to_string())
    });
    let (late, at) = spoken.replica(&world, &psyncd, port);
    late.replicate(at);
    late.wait_for_link();
    assert_equal_data(&master, [&first, &late]);
    let given = psyncd.metrics().one("psyncd_snapshots_total", &[("source", "replica"), ("result", "ok")]);
    assert_eq!((given, master.syncs().full), (given_expected, 2 - given_expected as i64), "{}", psyncd.log());
}

#[test]
fn a_snapshot_comes_from_a_replica_over_tls() {
    a_replica_gives_a_snapshot(Spoken::Everywhere, &[], 1.0);
}

#[test]
fn a_snapshot_comes_over_tls_where_the_master_is_spoken_to_plainly() {
    a_replica_gives_a_snapshot(Spoken::OnlyByReplicas, &["--upstream-tls", "no", "--peer-tls", "yes"], 1.0);
}

#[test]
fn a_snapshot_comes_plainly_where_the_master_is_spoken_to_over_tls() {
    a_replica_gives_a_snapshot(Spoken::OnlyByTheMaster, &["--peer-tls", "no"], 1.0);
}

#[test]
fn without_the_setting_replicas_are_spoken_to_as_the_master_and_in_vain() {
    a_replica_gives_a_snapshot(Spoken::OnlyByReplicas, &["--upstream-tls", "no"], 0.0);
    a_replica_gives_a_snapshot(Spoken::OnlyByTheMaster, &[], 0.0);
}

#[test]
fn certificates_change_while_every_link_stays() {
    let world = World::new();
    let (master, upstream) = world.start("redis-7.0.15", &world.node);
    let (mut psyncd, port) = world.before(upstream, &["--tls-allow-replicas", "node,renewed"]);
    let (replica, _) = world.start("redis-7.0.15", &world.node);
    replica.replicate(port);
    replica.wait_for_link();
    psyncd.wait_for_replicas(1);
    let expiry = |psyncd: &Psyncd| {
        psyncd.metrics().one("psyncd_tls_certificate_expiry_timestamp_seconds", &[("role", "server")])
    };
    let before = expiry(&psyncd);
    // A key that does not fit yet: the old pair is used on.
    let renewed = world.authority.issue_until("renewed", &["127.0.0.1"], 2110);
    let reloads = |psyncd: &Psyncd, result| psyncd.metrics().one("psyncd_tls_reloads_total", &[("result", result)]);
    std::fs::copy(&renewed.key, &world.psyncd.key).unwrap();
    psyncd.process().signal("HUP");
    wait_until("the broken pair is refused", || when(reloads(&psyncd, "failed") >= 1.0, || psyncd.log()));
    wait_until("the log says why", || {
        when(psyncd.log().contains("is not the key of the certificate"), || psyncd.log())
    });
    assert_eq!(world.cli(port, &["PING"], b"").trim(), "PONG");
    assert_eq!(expiry(&psyncd), before);
    std::fs::copy(&renewed.cert, &world.psyncd.cert).unwrap();
    psyncd.process().signal("HUP");
    wait_until("the new pair is taken", || when(reloads(&psyncd, "ok") >= 1.0, || psyncd.log()));
    assert!(expiry(&psyncd) < before);
    assert_eq!(world.cli(port, &["SET", "after", "1"], b"").trim(), "OK");
    assert_equal_data(&master, [&replica]);
    assert_eq!((replica.full_resyncs(), replica.partial_resyncs()), (1, 0), "{}", replica.log());
    assert_eq!(psyncd.metrics().sum("psyncd_upstream_disconnects_total", &[]), 0.0);
    assert!(!psyncd.log().contains("PRIVATE KEY"));
}

#[test]
fn only_a_replica_with_an_allowed_name_gets_the_data() {
    let world = World::new();
    let (master, upstream) = world.start("redis-7.0.15", &world.node);
    fill(&master);
    let (psyncd, port) = world.before(upstream, &["--tls-allow-replicas", "Redis-0.redis"]);
    let stranger = world.authority.issue("stranger", &["127.0.0.1"]);
    let (allowed, _) = world.start("redis-7.0.15", &world.node);
    let (other, _) = world.start("redis-7.0.15", &stranger);
    let plain = Node::start(server("redis-7.0.15"));
    allowed.replicate(port);
    other.replicate(port);
    plain.replicate(psyncd.port);
    allowed.wait_for_link();
    assert_equal_data(&master, [&allowed]);
    let refused = || psyncd.log().matches("why=certificate").count();
    wait_until("the others are refused more than once", || when(refused() >= 4, || psyncd.log()));
    for node in [&other, &plain] {
        assert_eq!(node.cmd(&["DBSIZE"]).int(), 0);
        assert_eq!(node.full_resyncs(), 0);
    }
    // Clients are not meant.
    assert_eq!(psyncd.conn().cmd(&["PING"]).text(), "PONG");
}

#[test]
fn each_mistake_with_a_certificate_is_explained_in_one_line() {
    let world = World::new();
    let authority = &world.authority;
    let foreign = Authority::new();
    let elsewhere = authority.issue("elsewhere", &["redis-9"]);
    let (node, at) = world.start("redis-7.0.15", &elsewhere);
    world.complaint(at, "tls-verify ca", &[]);
    world.before(at, &["--tls-verify", "ca"]);
    world.before(at, &["--tls-server-name", "redis-9"]);
    world.complaint(at, "not signed by an authority", &["--tls-ca-cert-file", &foreign.ca(), "--tls-verify", "ca"]);
    world.complaint(node.port, "plain port", &["--connect-timeout", "1s"]);
    let unknown = foreign.issue("unknown", &["127.0.0.1"]);
    let ours = ["--tls-client-cert-file", &unknown.cert, "--tls-client-key-file", &unknown.key, "--tls-verify", "ca"];
    world.complaint(at, "does not know the authority", &ours);
    let shown = [
        (authority.issue_valid("expired", &["127.0.0.1"], Validity::Past), "has expired"),
        (authority.v1("v1"), "X.509 v1"),
        (authority.issue("nameless", &[]), "no subject alternative name"),
        (authority.issue_valid("early", &["127.0.0.1"], Validity::Future), "not valid yet"),
    ];
    for (bad, expected) in &shown {
        let (_node, at) = world.start("redis-7.0.15", bad);
        world.complaint(at, expected, &[]);
    }
    // And without a check all the same, whatever it is worth.
    let (_node, at) = world.start("redis-7.0.15", &shown[1].0);
    world.before(at, &["--tls-verify", "none"]);
}

#[test]
fn a_peer_that_fails_the_handshake_harms_nobody() {
    let world = World::new();
    let (master, upstream) = world.start("redis-7.0.15", &world.node);
    let (psyncd, port) = world.before(upstream, &["--handshake-timeout", "1s"]);
    let (replica, _) = world.start("redis-7.0.15", &world.node);
    // Two hundred who say nothing, before and while a replica comes.
    let dumb: Vec<_> = (0..200).map(|_| Conn::to(port)).collect();
    replica.replicate(port);
    replica.wait_for_link();
    let (stranger, _) = World::new().start("redis-7.0.15", &Authority::new().v1("v1"));
    drop(stranger);
    let timeouts =
        || psyncd.metrics().one("psyncd_tls_handshakes_total", &[("side", "accepted"), ("result", "timeout")]);
    wait_until("those who say nothing are dropped", || when(timeouts() >= 200.0, || timeouts().to_string()));
    drop(dumb);
    master.cmd(&["SET", "a", "b"]);
    assert_equal_data(&master, [&replica]);
    assert!(psyncd.log().matches("tls handshake failed").count() <= 2, "{}", psyncd.log());
}

#[test]
fn a_sentinel_that_speaks_only_tls_is_asked_though_the_master_does_not() {
    let world = World::new();
    let master = Node::start(server("redis-7.0.15"));
    let dir = tempfile::tempdir().unwrap();
    let (conf, port) = (dir.path().join("sentinel.conf"), free_port());
    let settings = format!(
        "port 0\ntls-port {port}\nbind 127.0.0.1\ndir {}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\n\
         sentinel monitor m 127.0.0.1 {} 1\n",
        dir.path().display(),
        world.node.cert,
        world.node.key,
        world.authority.ca(),
        master.port,
    );
    std::fs::write(&conf, settings).unwrap();
    let _sentinel = Process::start(server("redis-7.0.15").binary(), |command| {
        command.arg(&conf).arg("--sentinel");
    });
    let asked = |tls| {
        let sentinel = format!("127.0.0.1:{port}");
        let looked = ["--sentinels", &sentinel, "--sentinel-master", "m", "--replica-port", "0", "--sentinel-tls", tls];
        let (options, _) = world.options(&[&looked[..], &["--upstream-tls", "no"]].concat());
        Psyncd::looking(&options.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (finds, control) = (asked("yes"), asked("upstream"));
    finds.wait_for_link();
    assert_eq!(finds.metrics().one("psyncd_sentinels_reachable", &[]), 1.0);
    assert_eq!(control.metrics().one("psyncd_sentinels_reachable", &[]), 0.0);
}

#[test]
fn a_sentinel_over_tls_learns_of_the_replicas() {
    let world = World::new();
    let (_master, upstream) = world.start("redis-7.0.15", &world.node);
    let (psyncd, port) = world.before(upstream, &[]);
    let (replica, at) = world.start("redis-7.0.15", &world.node);
    replica.cmd(&["CONFIG", "SET", "replica-announce-ip", "127.0.0.1"]);
    replica.replicate(port);
    replica.wait_for_link();
    psyncd.wait_for_replicas(1);
    let dir = tempfile::tempdir().unwrap();
    let (conf, plain) = (dir.path().join("sentinel.conf"), free_port());
    let settings = format!(
        "port {plain}\nbind 127.0.0.1\ndir {}\ntls-replication yes\ntls-cert-file {}\ntls-key-file {}\n\
         tls-ca-cert-file {}\nsentinel monitor m 127.0.0.1 {port} 1\nsentinel down-after-milliseconds m 2000\n",
        dir.path().display(),
        world.node.cert,
        world.node.key,
        world.authority.ca(),
    );
    std::fs::write(&conf, settings).unwrap();
    let sentinel = Process::start(server("redis-7.0.15").binary(), |command| {
        command.arg(&conf).arg("--sentinel");
    });
    wait_at_most(Duration::from_secs(30), "the Sentinel knows the replica, and finds both well", || {
        let mut conn = Conn::open(plain).map_err(|why| why.to_string())?;
        let words = |value: Value| -> Vec<String> { value.array().iter().map(Value::text).collect() };
        let master = words(conn.ask(&["SENTINEL", "MASTER", "m"]).map_err(|why| why.to_string())?);
        let replicas = conn.ask(&["SENTINEL", "SLAVES", "m"]).map_err(|why| why.to_string())?.array();
        let replicas: Vec<Vec<String>> = replicas.into_iter().map(words).collect();
        let flags = |words: &[String]| words.chunks(2).find(|pair| pair[0] == "flags").map(|pair| pair[1].clone());
        let name = format!("127.0.0.1:{at}");
        let known =
            replicas.len() == 1 && replicas[0].contains(&name) && flags(&replicas[0]).as_deref() == Some("slave");
        let well = flags(&master).as_deref() == Some("master");
        when(known && well, || format!("{master:?} {replicas:?} {}", sentinel.said()))
    });
}
