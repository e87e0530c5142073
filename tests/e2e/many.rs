//! Many replicas for the price of one.
//!
//! Control: `without_psyncd_ten_replicas_cost_the_master_an_rdb_each`, `without_psyncd_a_late_joiner_costs_the_master_a_fork`.

use crate::harness::*;

#[track_caller]
fn ten_replicas_cost_one_rdb(name: &str, diskless: &str) {
    let master = Node::with(server(name), &["--repl-diskless-sync", diskless]);
    fill(&master);
    let replicas = Node::start_all([master.server; 10]);
    let before = master.syncs();
    let load = Load::on(&master);

    // They do not wait for psyncd to be ready, and psyncd has no snapshot yet.
    let psyncd = Psyncd::toward(&master.address(), &[]);
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    replicas.iter().for_each(Node::wait_for_link);
    psyncd.wait_for_replicas(10);
    let joined = master.syncs();
    assert!(joined.full - before.full <= 1, "sync_full rose by {}", joined.full - before.full);
    assert!(joined.forks - before.forks <= 1, "{} forks", joined.forks - before.forks);

    let late = Node::start(master.server);
    let averted = || psyncd.metrics().one("psyncd_full_resyncs_averted_total", &[("mechanism", "shared_snapshot")]);
    let before = averted();
    late.replicate(psyncd.port);
    late.wait_for_link();
    assert_eq!(averted(), before + 1.0);
    load.stop();
    assert_equal_data(&master, replicas.iter().chain([&late]));
    assert_eq!(master.syncs().full, joined.full, "the late joiner cost the master an RDB");
    assert_eq!(master.syncs().forks, joined.forks, "the late joiner cost the master a fork");
    assert_eq!(psyncd.resyncs().full, 11);
    assert_eq!(master.info()["connected_slaves"], "1", "the master sees psyncd alone");
}

#[test]
fn ten_redis_replicas_at_once_cost_the_master_one_rdb_diskless() {
    ten_replicas_cost_one_rdb("redis-7.0.15", "yes");
}

#[test]
fn ten_redis_replicas_at_once_cost_the_master_one_rdb_from_disk() {
    ten_replicas_cost_one_rdb("redis-6.2.14", "no");
}

#[test]
fn ten_valkey_replicas_at_once_cost_the_master_one_rdb_diskless() {
    ten_replicas_cost_one_rdb("valkey-9.1.2", "yes");
}

#[test]
fn ten_valkey_replicas_at_once_cost_the_master_one_rdb_from_disk() {
    ten_replicas_cost_one_rdb("valkey-8.1.1", "no");
}

#[test]
fn ten_strangers_at_once_cost_a_master_with_a_backlog_one_rdb() {
    let master = Node::start(server("redis-7.2.4"));
    fill(&master);
    let direct = Node::start(master.server);
    direct.replicate(master.port);
    direct.wait_for_link();
    // psyncd attaches without an RDB, so it has no snapshot when the strangers come.
    let psyncd = Psyncd::before(&master);
    let before = master.syncs();
    let replicas = Node::start_all([master.server; 10]);
    let load = Load::on(&master);
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    replicas.iter().for_each(Node::wait_for_link);
    load.stop();
    assert_equal_data(&master, replicas.iter().chain([&direct]));
    assert!(master.syncs().full - before.full <= 1);
    assert!(master.syncs().forks - before.forks <= 1);
}

#[test]
fn fifty_connections_asking_for_everything_get_one_and_the_same_snapshot() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let before = master.syncs();
    let psyncd = Psyncd::before(&master);
    let mut raws: Vec<_> = (0..50).map(|_| psyncd.conn()).collect();
    for raw in &mut raws {
        raw.send("PSYNC ? -1\r\n").unwrap();
    }
    let mut seen = Vec::new();
    for raw in &mut raws {
        seen.push((raw.line_after_newlines().unwrap(), raw.payload().unwrap()));
    }
    assert!(seen[0].0.starts_with("+FULLRESYNC "), "{}", seen[0].0);
    assert!(seen.iter().all(|one| *one == seen[0]), "two replicas got different snapshots");
    assert_eq!(master.syncs().full - before.full, 1);
}
