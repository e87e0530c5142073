//! Where psyncd stands: behind another psyncd, at a unix socket, or by mistake in front of itself.

use std::time::Duration;

use crate::harness::*;

#[track_caller]
fn a_chain_serves(name: &str) {
    let master = Node::start(server(name));
    fill(&master);
    let first = Psyncd::before(&master);
    // The second one's stream begins after the first one's snapshot.
    master.cmd(&["SET", "between", "the two"]);
    let network = Forwarder::to(first.port);
    let second = Psyncd::toward(&network.address(), &[]);
    second.wait_for_link();
    let replicas = Node::start_all([master.server; 2]);
    replicas[0].replicate(second.port);
    replicas[0].wait_for_link();
    let before = master.syncs();
    assert!(before.full <= 1, "{before:?}");

    let load = Load::on(&master);
    master.cut_replicas();
    for _ in 0..3 {
        load.go_on_for(10);
        network.cut();
        second.wait_for_link();
    }
    replicas[1].replicate(second.port);
    replicas[1].wait_for_link();
    load.stop();
    assert_equal_data(&master, &replicas);
    assert_eq!(master.syncs().full, before.full);
    assert_eq!(replicas[0].full_resyncs(), 1);
    assert_eq!(second.resyncs().full, 2);
}

#[test]
fn a_replica_behind_two_psyncds_equals_a_redis_master() {
    a_chain_serves("redis-7.2.4");
}

#[test]
fn a_replica_behind_two_psyncds_equals_a_valkey_master() {
    a_chain_serves("valkey-9.1.2");
}

#[test]
fn a_replica_moves_along_a_chain_by_partial_resyncs_only() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let first = Psyncd::before(&master);
    let replica = Node::start(master.server);
    replica.replicate(first.port);
    replica.wait_for_link();
    let second = Psyncd::toward(&first.address(), &[]);
    second.wait_for_link();
    let load = Load::on(&master);
    for port in [second.port, first.port, second.port, master.port] {
        load.go_on_for(10);
        replica.replicate(port);
        replica.wait_for_link();
    }
    load.stop();
    assert_equal_data(&master, [&replica]);
    assert_eq!((replica.full_resyncs(), replica.partial_resyncs()), (1, 4));
}

#[test]
fn a_replica_of_a_replica_behind_psyncd_gets_the_same_stream() {
    let master = Node::start(server("redis-7.4.1"));
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let replicas = Node::start_all([master.server; 2]);
    replicas[0].replicate(psyncd.port);
    replicas[0].wait_for_link();
    replicas[1].replicate(replicas[0].port);
    replicas[1].wait_for_link();
    let load = Load::on(&master);
    load.go_on_for(40);
    load.stop();
    assert_equal_data(&master, &replicas);
    // Every one of them knows the history by the same name, and so can take any other's place.
    assert_eq!(replicas[1].replid(), master.replid());
    replicas[1].replicate(psyncd.port);
    assert_equal_data(&master, &replicas);
    assert_eq!(psyncd.resyncs(), Resyncs { partial: 1, full: 1 });
}

#[test]
fn a_master_at_a_unix_socket_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("master.sock");
    let master = Node::with(server("redis-7.0.15"), &["--unixsocket", socket.to_str().unwrap()]);
    fill(&master);
    let psyncd = Psyncd::toward(&format!("unix:{}", socket.display()), &[]);
    psyncd.wait_for_link();
    let replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    assert_equal_data(&master, [&replica]);
    assert_eq!(psyncd.conn().cmd(&["GET", "counter"]), master.cmd(&["GET", "counter"]));
}

#[test]
fn psyncd_in_front_of_itself_is_refused_and_does_not_spin() {
    let port = free_port();
    let mut psyncd = Psyncd::spawn(&format!("127.0.0.1:{port}"), &["--port", &port.to_string()]);
    let limit = Duration::from_secs(4);
    let start = std::time::Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = psyncd.ended() {
            // To refuse at the start is as good.
            assert_eq!(status.code(), Some(78), "{}", psyncd.said());
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let lines = psyncd.said().lines().count();
    assert!(lines < 100, "{lines} lines of log within {limit:?}:\n{}", &psyncd.said()[..2_000]);
    let mut client = Conn::to(port);
    client.send("PING\r\n").unwrap();
    let answer = client.line().unwrap_or_default();
    assert!(!answer.starts_with("+PONG"), "it took itself for a master");
    let files = std::fs::read_dir(format!("/proc/{}/fd", psyncd.pid())).unwrap().count();
    assert!(files < 100, "{files} open files");
    psyncd.signal("TERM");
    assert_eq!(psyncd.wait_for_end(SOON).code(), Some(0), "{}", psyncd.said());
}
