//! The harms that psyncd is there to prevent, suffered by plain servers. Each has its counterpart in another file.
//!
//! These tests guard the others: were one of them to fail, the scenario that claims to prevent that harm would prove
//! nothing. psyncd itself does not run here.

use std::time::Duration;

use crate::harness::*;

#[test]
fn without_psyncd_ten_replicas_cost_the_master_an_rdb_each() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let replicas = Node::start_all([master.server; 10]);
    let before = master.syncs();
    for replica in &replicas {
        replica.replicate(master.port);
        replica.wait_for_link();
    }
    let after = master.syncs();
    assert_eq!(after.full - before.full, 10);
    assert_eq!(after.forks - before.forks, 10, "joining one by one, each replica costs a fork");
    assert_equal_data(&master, &replicas);
}

#[test]
fn without_psyncd_a_late_joiner_costs_the_master_a_fork() {
    let master = Node::start(server("valkey-8.1.1"));
    fill(&master);
    let replicas = Node::start_all([master.server; 2]);
    replicas[0].replicate(master.port);
    replicas[0].wait_for_link();
    let before = master.syncs();
    replicas[1].replicate(master.port);
    replicas[1].wait_for_link();
    let after = master.syncs();
    assert_eq!((after.full - before.full, after.forks - before.forks), (1, 1));
}

#[test]
fn without_psyncd_a_small_backlog_makes_an_absence_a_full_resync() {
    let master = Node::with(server("redis-7.2.4"), &["--repl-backlog-size", "16kb"]);
    fill(&master);
    let replica = Node::start(master.server);
    let network = Forwarder::to(master.port);
    replica.replicate(network.port);
    replica.wait_for_link();
    let before = master.syncs();

    network.sever();
    write_megabytes(&master, 4);
    network.restore();

    wait_until("the replica comes back", || {
        let full = master.syncs().full;
        when(full > before.full, || format!("sync_full {full}"))
    });
    replica.wait_for_link();
    assert_eq!(master.syncs().full - before.full, 1);
    assert_eq!(replica.full_resyncs(), 2);
}

#[test]
fn without_psyncd_a_replica_that_gets_a_broken_rdb_exits() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let mut rdb = rdb_of(&master);
    let last = rdb.len() - 1;
    rdb[last] ^= 0xff;
    let fake = FakeMaster::start(move |conn, _| {
        conn.send(format!("+FULLRESYNC {} 0\r\n${}\r\n", REPLID, rdb.len()))?;
        conn.send(&rdb)?;
        linger(conn, SOON);
        Ok(())
    });
    let mut replica = Node::start(server("redis-7.0.15"));
    replica.cmd(&["SET", "mine", "kept"]);
    replica.replicate(fake.port);
    let end = replica.process().wait_for_end(SOON);
    assert_eq!(end.code(), Some(1), "its log: {}", replica.log());
}

#[test]
fn without_psyncd_a_replica_that_does_not_read_is_cut_off_by_the_master_at_its_buffer_limit() {
    let limit = ["--client-output-buffer-limit", "replica 2mb 2mb 0", "--repl-backlog-size", "1mb"];
    let master = Node::with(server("redis-7.0.15"), &limit);
    let mut sleeper = master.conn();
    sleeper.send("PSYNC ? -1\r\n").unwrap();
    sleeper.line_after_newlines().unwrap();
    sleeper.payload().unwrap();
    write_megabytes(&master, 64);
    wait_until("the master gives the sleeper up", || {
        let replicas = master.info()["connected_slaves"].clone();
        when(replicas == "0", || format!("{replicas} connected"))
    });
    sleeper.until_closed(Duration::from_secs(20)).expect("the link was closed");
}

/// The digests of different versions agree on the harness's data, and the logs say what the scenarios look for. Were it
/// otherwise, the matrix would blame psyncd for it.
#[track_caller]
fn direct_replicas_of_every_version_equal(names: &[&str]) {
    for name in names {
        let master = Node::start(server(name));
        fill(&master);
        let mut followers = all(Tier::Core);
        followers.retain(|server| server.loads(master.server.rdb_for_psyncd()));
        let replicas = Node::start_all(followers);
        replicas.iter().for_each(|replica| replica.replicate(master.port));
        replicas.iter().for_each(Node::wait_for_link);
        let load = Load::on(&master);
        assert!(master.cut_replicas() >= replicas.len() as i64);
        load.go_on_for(30);
        load.stop();
        assert_equal_data(&master, &replicas);
        for replica in &replicas {
            let who = format!("{} of {name}", replica.server.name);
            assert_eq!((replica.full_resyncs(), replica.partial_resyncs()), (1, 1), "{who} by its own log");
        }
    }
}

#[test]
fn without_psyncd_replicas_of_every_version_equal_an_old_redis() {
    direct_replicas_of_every_version_equal(&["redis-5.0.6", "redis-6.2.14", "redis-7.0.15"]);
}

#[test]
fn without_psyncd_replicas_of_every_version_equal_a_new_redis_and_valkey() {
    direct_replicas_of_every_version_equal(&[
        "redis-7.2.4",
        "redis-8.6.2",
        "valkey-8.1.1",
        "valkey-9.0.0",
        "valkey-9.1.2",
    ]);
}
