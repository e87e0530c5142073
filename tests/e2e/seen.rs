//! What the metrics say is what real servers went through.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::*;

/// How long a replica is stalled.
const STALLED: Duration = Duration::from_secs(6);
/// A replica that is well acknowledges once a second, so that much of its lag is older than the stall; the rest is for
/// two busy cores.
const TOLERANCE: Duration = Duration::from_millis(2_000);

/// The seconds since its last word that INFO gives for a replica, of which redis_exporter makes its lag.
#[track_caller]
fn age_of_the_last_ack(psyncd: &Psyncd, port: u16) -> u64 {
    let info = psyncd.conn().cmd(&["INFO", "replication"]).text();
    let line = info.lines().find(|line| line.contains(&format!(",port={port},")));
    let lag = line.and_then(|line| line.rsplit_once("lag=")).and_then(|(_, lag)| lag.split(',').next()?.parse().ok());
    lag.unwrap_or_else(|| panic!("no replica at {port} in {info}"))
}

#[track_caller]
fn the_lag_in_seconds_is_the_age_of_the_data(name: &str) {
    let server = server(name);
    let master = Node::start(server);
    let psyncd = Psyncd::before(&master);
    let link = Forwarder::to(psyncd.port);
    let (healthy, deaf, mut stopped) = (Node::start(server), Node::start(server), Node::start(server));
    healthy.replicate(psyncd.port);
    deaf.replicate(link.port);
    stopped.replicate(psyncd.port);
    psyncd.wait_for_replicas(3);
    let lag = |of: &Node| psyncd.metrics().one("psyncd_replica_lag_seconds", &[("replica", &of.address())]);
    let load = Load::on(&master);
    wait_until("all follow the writes", || {
        let lags = [&healthy, &deaf, &stopped].map(lag);
        when(lags.iter().all(|lag| *lag < TOLERANCE.as_secs_f64()), || format!("{lags:?}"))
    });

    // One hears nothing any more and goes on acknowledging what it has; the other does nothing at all.
    let began = Instant::now();
    link.hold();
    stopped.process().signal("STOP");
    std::thread::sleep(STALLED);
    for stalled in [&deaf, &stopped] {
        let before = began.elapsed();
        let seconds = lag(stalled);
        let after = began.elapsed();
        // Never less than the stall: an answer that is too small would let a replica fall off unseen.
        let least = before.saturating_sub(Duration::from_millis(250)).as_secs_f64();
        let most = (after + TOLERANCE).as_secs_f64();
        assert!((least..most).contains(&seconds), "{} lags {seconds} s after {before:?}", stalled.address());
    }
    // By the age of its last word the deaf one is as fresh as the healthy one.
    let ages = [&healthy, &deaf].map(|node| age_of_the_last_ack(&psyncd, node.port));
    assert!(ages.iter().all(|age| *age <= 2), "{ages:?}");
    let fresh = lag(&healthy);
    assert!(fresh < TOLERANCE.as_secs_f64(), "{fresh}");

    // It goes on: what it did not have is delivered, and the lag is gone with it.
    link.let_go();
    stopped.process().signal("CONT");
    wait_until("both have caught up", || {
        let lags = [&deaf, &stopped].map(lag);
        when(lags.iter().all(|lag| *lag < TOLERANCE.as_secs_f64()), || format!("{lags:?}"))
    });
    // While nothing is written nobody lags, however long ago it last was.
    load.stop();
    wait_until("nobody lags", || {
        let lags = [&healthy, &deaf, &stopped].map(lag);
        when(lags == [0.0; 3], || format!("{lags:?}"))
    });
    assert_equal_data(&master, [&healthy, &deaf, &stopped]);
    assert_eq!(psyncd.resyncs(), Resyncs { partial: 0, full: 3 });
}

#[test]
fn the_lag_of_a_stalled_replica_of_redis_is_the_time_since_it_stalled() {
    the_lag_in_seconds_is_the_age_of_the_data("redis-7.0.15");
}

#[test]
fn the_lag_of_a_stalled_replica_of_valkey_is_the_time_since_it_stalled() {
    the_lag_in_seconds_is_the_age_of_the_data("valkey-9.0.0");
}

#[test]
fn what_resyncs_and_snapshots_took_is_counted_and_a_disk_less_psyncd_is_ready_for_all_but_the_past() {
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let master = Node::with(server("redis-7.0.15"), &["--repl-diskless-sync-delay", "1"]);
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let replicas = Node::start_all([master.server; 2]);
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    psyncd.wait_for_replicas(2);
    let counted = |name: &str, label| psyncd.metrics().one(name, &[label]);
    assert_eq!(counted("psyncd_resync_duration_seconds_count", ("kind", "full")), 2.0);
    assert_eq!(counted("psyncd_resync_duration_seconds_count", ("kind", "partial")), 0.0);
    replicas[0].cmd(&["CLIENT", "KILL", "TYPE", "master"]);
    wait_until("it is back", || {
        let count = counted("psyncd_resync_duration_seconds_count", ("kind", "partial"));
        when(count == 1.0, || count.to_string())
    });
    assert_eq!(counted("psyncd_resync_duration_seconds_count", ("kind", "full")), 2.0, "it was online all the time");

    // The master waits a second for others before it forks.
    let waited = counted("psyncd_snapshot_duration_seconds_sum", ("phase", "wait"));
    let snapshots = counted("psyncd_snapshot_duration_seconds_count", ("phase", "wait"));
    assert!(snapshots >= 1.0 && waited >= 0.9, "{snapshots} snapshots, {waited} s");
    assert_eq!(counted("psyncd_snapshot_duration_seconds_count", ("phase", "transfer")), snapshots);
    let metrics = psyncd.metrics();
    let (taken, now) = (metrics.one("psyncd_snapshot_timestamp_seconds", &[]), began + 60.0);
    assert!((began..now).contains(&taken), "{taken}, and it began at {began}");

    for (check, ready) in [("listener", 1.0), ("upstream", 1.0), ("backlog", 0.0), ("journal", 1.0)] {
        assert_eq!(metrics.one("psyncd_ready", &[("check", check)]), ready, "{check}");
        let status = psyncd.get(&format!("/readyz?check={check}")).0;
        assert_eq!(status == 200, ready == 1.0, "{check}: {status}");
    }
    let told = [("server", "redis"), ("server_version", "7.0.15"), ("role", "master")];
    assert_eq!(metrics.one("psyncd_upstream_info", &told), 1.0);
    assert_eq!(metrics.sum("psyncd_errors_total", &[]), 0.0);

    drop(master);
    psyncd.wait_for_lost_link();
    let errors = counted("psyncd_errors_total", ("component", "upstream"));
    assert!(errors >= 1.0, "{errors}");
}

#[test]
fn the_parts_of_the_status_are_what_the_whole_says() {
    let master = Node::start(server("valkey-9.0.0"));
    let psyncd = Psyncd::before(&master);
    let replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    psyncd.wait_for_replicas(1);
    let part = |path: &str| -> serde_json::Value {
        let (status, body) = psyncd.get(path);
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    };
    let replicas = part("/api/v1/replicas");
    assert_eq!(replicas["replicas"][0]["replica"], replica.address());
    assert_eq!(replicas["max_replicas"], psyncd.status()["max_replicas"]);
    let history = part("/api/v1/history");
    assert_eq!(history["history"]["replid"], master.replid());
    assert!(history["backlog"]["head_offset"].as_i64().is_some_and(|head| head <= master.offset()), "{history}");
}
