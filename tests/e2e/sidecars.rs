//! A psyncd in front of every node and real Sentinels that know nothing of it: `deploy/sentinel`, as it is.
//!
//! Each scenario waits for Sentinels most of the time, so they are not part of the ordinary run:
//! `cargo test --test e2e -- --ignored sidecars --test-threads 6` runs them, `sidecars_apart` and `sidecars_killed` within a
//! minute and a half. What each of them measured stands in lines that begin with MEASURED (`--nocapture`). Controls:
//! `without_psyncd_…`.

use std::time::{Duration, Instant};

use crate::harness::*;

/// What is written to the master while the preferred replica does not read: more than sockets hold, so that it is
/// behind when the master dies.
const BEHIND_MEGABYTES: usize = 32;

/// What turns planned failovers into assisted ones.
const ASSIST: &str = "assist-failover = \"yes\"\nassist-secret = \"only the tests know it\"\n";

/// The master is killed under writes, while the replica that will be promoted is behind for a moment. Returns when.
fn kill_the_master_ahead_of_the_preferred(estate: &mut Estate, writer: &Writer) -> Instant {
    estate.sites[1].node.process().signal("STOP");
    write_megabytes(&estate.sites[0].node, BEHIND_MEGABYTES);
    writer.go_on_for(100);
    let head = estate.sites[0].node.offset();
    wait_until("the other replica has all that", || {
        let at = estate.sites[2].node.offset();
        when(at >= head, || format!("{at} of {head}"))
    });
    estate.sites[0].node.kill();
    estate.sites[1].node.process().signal("CONT");
    Instant::now()
}

fn survives_the_master_s_death(name: &str) {
    let mut estate = Estate::with_psyncd(server(name), "");
    let writer = Writer::on(&estate.ports());
    let before = estate.past();
    let died = kill_the_master_ahead_of_the_preferred(&mut estate, &writer);
    assert_eq!(estate.wait_for_switch(), 1);
    estate.wait_until_following(1, &[2]);
    let back = died.elapsed();
    writer.go_on_for(500);
    let after = estate.past();
    assert_eq!(after[1].syncs.full, before[1].syncs.full, "the promoted node sent its data set to somebody");
    assert_eq!(after[1].syncs.forks, before[1].syncs.forks);
    for place in [1, 2] {
        assert_eq!(after[place].full, before[place].full, "node {place} began anew");
        assert_eq!(after[place].served.full, before[place].served.full, "the psyncd of {place} sent a data set");
    }
    // The dead one comes back with nothing, and the Sentinels make it a replica: the one data set that has to be sent.
    estate.sites[0].node.restart();
    estate.wait_until_following(1, &[0]);
    let written = writer.stop();
    estate.assert_equal(1);
    estate.assert_nobody_else_is_known();
    estate.report("master killed, psyncd", &before, &written, 1, back);
    assert!(estate.past()[1].syncs.forks - before[1].syncs.forks <= 1);
    // One was under way when the master died.
    let lost = written.lost_on(&estate.sites[1].node);
    assert!(lost <= 1, "{lost} acknowledged writes were lost");
}

#[test]
#[ignore = "waits for Sentinels"]
fn survivors_of_a_redis_7_0_master_continue() {
    survives_the_master_s_death("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn survivors_of_a_valkey_8_1_master_continue() {
    survives_the_master_s_death("valkey-8.1.1");
}

#[test]
#[ignore = "waits for Sentinels"]
fn without_psyncd_a_survivor_that_is_ahead_begins_anew_and_writes_are_lost() {
    let mut estate = Estate::plain(server("redis-7.0.15"));
    let writer = Writer::on(&estate.ports());
    let before = estate.past();
    let died = kill_the_master_ahead_of_the_preferred(&mut estate, &writer);
    assert_eq!(estate.wait_for_switch(), 1);
    estate.wait_until_following(1, &[2]);
    let back = died.elapsed();
    writer.go_on_for(500);
    assert_eq!(estate.past()[2].full - before[2].full, 1);
    estate.sites[0].node.restart();
    estate.wait_until_following(1, &[0]);
    let written = writer.stop();
    estate.assert_equal(1);
    estate.report("master killed, control", &before, &written, 1, back);
    assert!(written.lost_on(&estate.sites[1].node) > 10);
}

/// All psyncds are killed while the Sentinels look for a new master.
#[track_caller]
fn survives_the_death_of_psyncds_too(name: &str) {
    let mut estate = Estate::with_psyncd(server(name), "");
    let writer = Writer::on(&estate.ports());
    let before = estate.past();
    estate.sites[0].node.kill();
    let died = Instant::now();
    estate.sites[0].crash_sidecar();
    assert_eq!(estate.wait_for_switch(), 1);
    estate.sites[1].crash_sidecar();
    estate.sites[2].crash_sidecar();
    estate.wait_until_following(1, &[2]);
    let back = died.elapsed();
    writer.go_on_for(500);
    let after = estate.past();
    assert_eq!((after[1].full, after[2].full), (before[1].full, before[2].full));
    assert_eq!(after[1].syncs.forks, before[1].syncs.forks);
    for place in [1, 2] {
        // They began counting when they were started again.
        assert_eq!(after[place].served.full, 0, "the psyncd of {place} sent a data set");
    }
    estate.sites[0].node.restart();
    estate.wait_until_following(1, &[0]);
    let written = writer.stop();
    estate.assert_equal(1);
    estate.assert_nobody_else_is_known();
    estate.report("master and every psyncd killed", &before, &written, 1, back);
}

#[test]
#[ignore = "waits for Sentinels"]
fn survivors_of_a_redis_7_0_master_continue_though_every_psyncd_was_killed() {
    survives_the_death_of_psyncds_too("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn survivors_of_a_valkey_8_1_master_continue_though_every_psyncd_was_killed() {
    survives_the_death_of_psyncds_too("valkey-8.1.1");
}

/// `SENTINEL FAILOVER` under writes, to the end. Returns what had happened before, what was written, and how long it took.
fn fail_over_on_purpose(estate: &Estate) -> (Vec<Past>, Written, Duration) {
    let writer = Writer::on(&estate.ports());
    writer.go_on_for(500);
    let before = estate.past();
    estate.sentinels[0].fail_over();
    let began = Instant::now();
    assert_eq!(estate.wait_for_switch(), 1);
    estate.wait_until_following(1, &[0, 2]);
    let back = began.elapsed();
    writer.go_on_for(500);
    let written = writer.stop();
    estate.assert_equal(1);
    (before, written, back)
}

fn unassisted_only_who_diverged_reloads(name: &str) {
    let estate = Estate::with_psyncd(server(name), "");
    let (before, written, back) = fail_over_on_purpose(&estate);
    let after = estate.past();
    let grown = |place: usize| after[place].full - before[place].full;
    estate.report("failover on purpose, not assisted", &before, &written, 1, back);
    assert_eq!(grown(1), 0);
    let reloaded = grown(0) + grown(2);
    assert_eq!(after[1].served.full - before[1].served.full, reloaded as i64, "they reload from psyncd's snapshot");
    assert!(after[1].syncs.forks - before[1].syncs.forks <= 1, "{after:?}");
    estate.assert_nobody_else_is_known();
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_failover_of_redis_7_0_on_purpose_makes_the_new_master_fork_at_most_once() {
    unassisted_only_who_diverged_reloads("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_failover_of_valkey_8_1_on_purpose_makes_the_new_master_fork_at_most_once() {
    unassisted_only_who_diverged_reloads("valkey-8.1.1");
}

#[test]
#[ignore = "waits for Sentinels"]
fn without_psyncd_a_failover_on_purpose_loses_writes_and_reloads_everybody() {
    let estate = Estate::plain(server("redis-7.0.15"));
    let (before, written, back) = fail_over_on_purpose(&estate);
    let after = estate.past();
    estate.report("failover on purpose, control", &before, &written, 1, back);
    let full = after[0].full + after[2].full - before[0].full - before[2].full;
    assert!(full >= 1, "{after:?}");
    assert_eq!(after[1].syncs.full - before[1].syncs.full, full as i64);
    assert!(written.lost_on(&estate.sites[1].node) > 0);
}

fn assisted_nobody_reloads_and_nothing_is_lost(name: &str) {
    let estate = Estate::with_psyncd(server(name), ASSIST);
    // The master's own PING, once in ten seconds, would make one run in some hundred another story.
    estate.sites[0].node.cmd(&["CONFIG", "SET", "repl-ping-replica-period", "3600"]);
    let (before, written, back) = fail_over_on_purpose(&estate);
    let after = estate.past();
    estate.report("failover on purpose, assisted", &before, &written, 1, back);
    let metric = |place: usize, name, result| {
        estate.sites[place].sidecar.as_ref().unwrap().metrics().one(name, &[("result", result)])
    };
    assert_eq!(metric(1, "psyncd_failover_assists_total", "ok"), 1.0);
    assert_eq!(metric(0, "psyncd_failover_fences_total", "demoted"), 1.0);
    for place in 0..3 {
        assert_eq!(after[place].full, before[place].full, "node {place} began anew");
        assert_eq!(after[place].served.full, before[place].served.full, "the psyncd of {place} sent a data set");
        assert_eq!(after[place].syncs.forks, before[place].syncs.forks, "node {place} forked");
    }
    assert_eq!(written.lost_on(&estate.sites[1].node), 0);
    // Half a second where the machine has time for it.
    assert!(written.longest_pause() < Duration::from_secs(2), "{:?}", written.longest_pause());
    estate.assert_nobody_else_is_known();
}

#[test]
#[ignore = "waits for Sentinels"]
fn an_assisted_failover_of_redis_7_0_reloads_nobody_and_loses_nothing() {
    assisted_nobody_reloads_and_nothing_is_lost("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn an_assisted_failover_of_valkey_8_1_reloads_nobody_and_loses_nothing() {
    assisted_nobody_reloads_and_nothing_is_lost("valkey-8.1.1");
}

fn a_crash_waits_for_no_fence(name: &str) {
    let mut estate = Estate::with_psyncd(server(name), ASSIST);
    let writer = Writer::on(&estate.ports());
    let before = estate.past();
    // The whole host: nobody answers there.
    estate.sites[0].node.kill();
    estate.sites[0].sidecar = None;
    let died = Instant::now();
    assert_eq!(estate.wait_for_switch(), 1);
    estate.wait_until_following(1, &[2]);
    let back = died.elapsed();
    writer.go_on_for(100);
    let after = estate.past();
    let metrics = estate.sites[1].sidecar.as_ref().unwrap().metrics();
    assert_eq!(metrics.one("psyncd_failover_assists_total", &[("result", "skipped")]), 1.0);
    assert_eq!(metrics.sum("psyncd_failover_assists_total", &[]), 1.0);
    assert_eq!((after[1].full, after[2].full), (before[1].full, before[2].full));
    let written = writer.stop();
    println!(
        "MEASURED crash with assist on: longest pause {} ms, back after {back:?}",
        written.longest_pause().as_millis()
    );
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_failover_after_a_crash_of_redis_7_0_waits_for_no_fence() {
    a_crash_waits_for_no_fence("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_failover_after_a_crash_of_valkey_8_1_waits_for_no_fence() {
    a_crash_waits_for_no_fence("valkey-8.1.1");
}

/// psyncd is put in front of every node of a running estate and taken away again, under writes.
fn comes_and_goes_unnoticed(name: &str) {
    let mut estate = Estate::plain(server(name));
    let writer = Writer::on(&estate.ports());
    let before = estate.past();
    let began = Instant::now();
    // Replicas first.
    for place in [1, 2, 0] {
        estate.sites[place].insert_psyncd();
        writer.go_on_for(200);
    }
    estate.wait_until_following(0, &[1, 2]);
    let psyncd = estate.sites[0].sidecar.as_ref().unwrap();
    psyncd.wait_for_replicas(2);
    assert_eq!(psyncd.resyncs().full, 0);
    for sentinel in &estate.sentinels {
        sentinel.wait_for_company(2, 2);
    }
    for place in [1, 2, 0] {
        estate.sites[place].remove_psyncd();
        writer.go_on_for(200);
    }
    estate.wait_until_following(0, &[1, 2]);
    for sentinel in &estate.sentinels {
        sentinel.wait_for_company(2, 2);
        let log = sentinel.log();
        assert!(!log.contains("+sdown") && !log.contains("+switch-master"), "{log}");
    }
    let back = began.elapsed();
    let written = writer.stop();
    estate.assert_equal(0);
    estate.assert_nobody_else_is_known();
    estate.report("psyncd put in and taken out", &before, &written, 0, back);
    let after = estate.past();
    for place in 0..3 {
        assert_eq!(after[place].full, before[place].full, "node {place} began anew");
        assert_eq!(after[place].syncs.full, before[place].syncs.full, "node {place} sent its data set to somebody");
    }
    assert_eq!(written.lost_on(&estate.sites[0].node), 0);
}

#[test]
#[ignore = "waits for Sentinels"]
fn psyncd_is_put_before_redis_7_0_and_taken_away_and_nobody_notices() {
    comes_and_goes_unnoticed("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn psyncd_is_put_before_valkey_8_1_and_taken_away_and_nobody_notices() {
    comes_and_goes_unnoticed("valkey-8.1.1");
}

/// The master is shut down and started again, with the data set it saved, before the Sentinels take it for dead.
fn restarts_with_its_data(name: &str) {
    let mut estate = Estate::with_psyncd(server(name), "");
    let writer = Writer::on(&estate.ports()[..1]);
    let before = estate.past();
    let began = Instant::now();
    let _ = estate.sites[0].node.ask(&["SHUTDOWN", "SAVE"]);
    estate.sites[0].node.process().wait_for_end(SOON);
    estate.sites[0].node.restart();
    estate.sites[0].sidecar.as_ref().unwrap().wait_for_link();
    estate.wait_until_following(0, &[1, 2]);
    let back = began.elapsed();
    writer.go_on_for(200);
    let written = writer.stop();
    estate.assert_equal(0);
    estate.assert_nobody_else_is_known();
    estate.report("master restarted with its data", &before, &written, 0, back);
    let after = estate.past();
    for place in [1, 2] {
        assert_eq!(after[place].full, before[place].full, "node {place} began anew");
    }
    // It counts from its start.
    assert_eq!(after[0].syncs.full, 0);
    assert_eq!(after[0].served.full, before[0].served.full);
    assert_eq!(written.lost_on(&estate.sites[0].node), 0);
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_redis_7_0_master_that_restarts_with_its_data_is_followed_on() {
    restarts_with_its_data("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_valkey_8_1_master_that_restarts_with_its_data_is_followed_on() {
    restarts_with_its_data("valkey-8.1.1");
}
