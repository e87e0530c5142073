//! The master is away, comes back, or comes back as another; psyncd itself is away and comes back.

use std::time::Duration;

use crate::harness::*;

#[track_caller]
fn the_masters_restart_costs_no_full_resync(name: &str) {
    // Not even a PING may follow the RDB, or psyncd would be ahead of what the master comes back with.
    let mut master = Node::with(server(name), &["--repl-ping-replica-period", "3600"]);
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let replicas = Node::start_all([master.server; 2]);
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    assert_equal_data(&master, &replicas);
    let id = master.replid();
    master.cmd(&["SAVE"]);
    master.kill();
    psyncd.wait_for_lost_link();
    master.restart();
    psyncd.wait_for_link();
    assert_ne!(master.replid(), id);

    master.cmd(&["SET", "after", "the restart"]);
    assert_equal_data(&master, &replicas);
    assert_eq!(master.syncs().full, 0, "the restarted master sent no RDB");
    for replica in &replicas {
        assert_eq!(replica.full_resyncs(), 1);
        assert_eq!(replica.replid(), master.replid(), "the replica learnt the new name of its history");
    }
}

#[test]
fn a_redis_master_killed_and_back_with_its_data_costs_no_full_resync() {
    the_masters_restart_costs_no_full_resync("redis-7.0.15");
}

#[test]
fn a_valkey_master_killed_and_back_with_its_data_costs_no_full_resync() {
    the_masters_restart_costs_no_full_resync("valkey-9.1.2");
}

#[test]
fn a_master_that_comes_back_with_other_data_is_followed_for_one_rdb() {
    let mut master = Node::start(server("redis-6.2.14"));
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let replicas = Node::start_all([master.server; 3]);
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    assert_equal_data(&master, &replicas);
    master.kill();
    psyncd.wait_for_lost_link();
    master.restart();
    master.cmd(&["SET", "all", "new"]);
    psyncd.wait_for_link();
    wait_until("the replicas have the new data", || {
        let sizes: Vec<_> = replicas.iter().map(|replica| replica.cmd(&["DBSIZE"]).int()).collect();
        when(sizes == [1, 1, 1], || format!("{sizes:?} keys"))
    });
    assert_equal_data(&master, &replicas);
    assert!(master.syncs().full <= 1, "{:?}", master.syncs());
}

#[test]
fn while_the_master_is_away_clients_are_refused_and_replicas_go_on() {
    let mut master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let network = Forwarder::to(psyncd.port);
    let replica = Node::start(master.server);
    replica.replicate(network.port);
    assert_equal_data(&master, [&replica]);
    let digest = master.digest();
    master.cmd(&["SAVE"]);
    master.kill();
    psyncd.wait_for_lost_link();

    let mut client = psyncd.conn();
    let refusal = client.ask(&["PING"]).unwrap();
    let Value::Error(why) = &refusal else { panic!("PING was answered {refusal:?}") };
    assert!(why.starts_with("ERR operation not permitted"), "{why}");
    let mut client = psyncd.conn();
    client.send(encode(&["GET", "counter"])).unwrap();
    let answer = client.until_closed(SOON).expect("a client is not left hanging");
    assert!(answer.is_empty() || answer.starts_with(b"-"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(psyncd.get("/healthz").0, 200, "psyncd itself is well");
    assert_ne!(psyncd.get("/readyz").0, 200, "but clients are not served");

    network.cut();
    wait_until("the replica reconnects to psyncd and continues", || {
        let now = psyncd.resyncs();
        when(now.partial == 1, || format!("{now:?}"))
    });
    replica.wait_for_link();
    assert_eq!(replica.digest(), digest);

    master.restart();
    psyncd.wait_for_link();
    assert_eq!(psyncd.conn().cmd(&["PING"]), Value::Simple("PONG".into()));
    master.cmd(&["SET", "all", "well"]);
    assert_equal_data(&master, [&replica]);
}

#[test]
fn after_the_masters_death_every_replica_gets_all_that_psyncd_has() {
    let mut master = Node::with(server("redis-7.2.4"), &["--repl-ping-replica-period", "3600"]);
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let mut replicas = Node::start_all([master.server; 3]);
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    assert_equal_data(&master, &replicas);
    // Two of them are far behind at the moment of death, more than sockets can hold.
    replicas[..2].iter_mut().for_each(|replica| replica.process().signal("STOP"));
    write_megabytes(&master, 24);
    let (head, digest) = (master.offset(), master.digest());
    wait_until("psyncd has it all", || {
        let at = psyncd.metrics().one("psyncd_replication_offset_bytes", &[("point", "received")]);
        when(at == head as f64, || format!("{at} of {head}"))
    });
    master.kill();
    psyncd.wait_for_lost_link();
    replicas[..2].iter_mut().for_each(|replica| replica.process().signal("CONT"));
    for replica in &replicas {
        wait_until("the replica has it all", || {
            when(replica.offset() == head, || format!("{} of {head}", replica.offset()))
        });
        assert_eq!(replica.digest(), digest);
        assert_eq!(replica.full_resyncs(), 1);
    }
}

#[test]
fn a_replica_that_comes_before_the_master_keeps_its_data_until_there_is_something_better() {
    let port = free_port();
    let psyncd = Psyncd::toward(&format!("127.0.0.1:{port}"), &[]);
    let replicas = Node::start_all(["redis-5.0.6", "redis-6.2.14", "redis-8.6.2", "valkey-9.1.2"].map(server));
    for replica in &replicas {
        replica.cmd(&["SET", "mine", "kept"]);
        replica.replicate(psyncd.port);
    }
    holds_for(Duration::from_secs(3), "the replicas keep their data", || {
        let sizes: Vec<_> = replicas.iter().map(|replica| replica.cmd(&["DBSIZE"]).int()).collect();
        when(sizes == [1; 4], || format!("{sizes:?} keys"))
    });
    let lines = psyncd.log().lines().count();
    assert!(lines < 200, "{lines} lines of log: the replicas storm, or psyncd does\n{}", &psyncd.log()[..3_000]);

    let master = Node::on_port(server("redis-6.0.9"), port);
    fill(&master);
    psyncd.wait_for_link();
    assert_equal_data(&master, &replicas);
    assert!(master.syncs().full <= 1);
}

#[test]
fn a_restart_of_psyncd_costs_replicas_that_miss_nothing_no_full_resync() {
    let master = Node::with(server("redis-7.0.15"), &["--repl-ping-replica-period", "3600"]);
    fill(&master);
    let mut psyncd = Psyncd::before(&master);
    let network = Forwarder::to(psyncd.port);
    let replicas = Node::start_all(["redis-7.0.15", "redis-7.4.1", "valkey-8.1.1"].map(server));
    replicas.iter().for_each(|replica| replica.replicate(network.port));
    assert_equal_data(&master, &replicas);
    let before = master.syncs();

    network.sever();
    psyncd.process().signal("TERM");
    assert_eq!(psyncd.process().wait_for_end(SOON).code(), Some(0));
    let again = Psyncd::before(&master);
    network.point_to(again.port);
    network.restore();
    assert_equal_data(&master, &replicas);
    assert_eq!(master.syncs().full, before.full);
    assert_eq!(again.resyncs(), Resyncs { partial: 3, full: 0 });
}

#[test]
fn a_master_that_hangs_is_noticed_and_the_replicas_stay() {
    let mut master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    assert_equal_data(&master, [&replica]);
    master.process().signal("STOP");
    holds_for(Duration::from_secs(3), "the replica's link stays up", || {
        let link = replica.info()["master_link_status"].clone();
        when(link == "up", || link)
    });
    master.process().signal("CONT");
    master.cmd(&["SET", "awake", "again"]);
    assert_equal_data(&master, [&replica]);
    assert_eq!(psyncd.resyncs(), Resyncs { partial: 0, full: 1 });
}
