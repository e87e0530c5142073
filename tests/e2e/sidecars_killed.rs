//! As `sidecars`, and psyncds are killed (`kill -9`) in the middle of it.

use std::time::{Duration, Instant};

use crate::harness::*;

/// See `sidecars`.
const ASSIST: &str = "assist-failover = \"yes\"\nassist-secret = \"only the tests know it\"\n";

/// Waits until the Sentinel that leads the failover has said so much.
#[track_caller]
fn wait_for_stage(estate: &Estate, stage: &str) {
    wait_until(&format!("a Sentinel says {stage}"), || {
        when(estate.sentinels.iter().any(|sentinel| sentinel.log().contains(stage)), String::new)
    });
}

/// The order may die with the psyncd it went through: Sentinel sends it once, looks at no answer, and gives up after its
/// failover-timeout (sentinel.c, `sentinelFailoverWaitPromotion`). Then nothing has changed, and whoever wanted the failover orders
/// it again.
#[track_caller]
fn order_again_if_given_up(estate: &Estate) {
    if estate.wait_for_switch_or_abort() {
        estate.sentinels[0].fail_over();
    }
}

/// `SENTINEL FAILOVER` under writes; these psyncds are killed once the new master has been chosen. Nobody reloads but who
/// diverged, from one fork; and whatever was stopped goes on.
fn killed_in_a_failover_on_purpose(name: &str, extra: &str, killed: &[usize]) {
    let mut estate = Estate::with_psyncd(server(name), extra);
    let writer = Writer::on(&estate.ports());
    writer.go_on_for(300);
    let before = estate.past();
    estate.sentinels[0].fail_over();
    let began = Instant::now();
    wait_for_stage(&estate, "+selected-slave");
    for place in killed {
        estate.sites[*place].crash_sidecar();
    }
    order_again_if_given_up(&estate);
    let new = estate.wait_for_switch();
    let others: Vec<usize> = (0..3).filter(|place| *place != new).collect();
    estate.wait_until_following(new, &others);
    let back = began.elapsed();
    writer.go_on_for(300);
    let written = writer.stop();
    estate.assert_equal(new);
    estate.assert_nobody_else_is_known();
    estate.report(&format!("failover on purpose, psyncds {killed:?} killed in it"), &before, &written, new, back);
    let after = estate.past();
    assert_eq!(after[new].full, before[new].full, "the new master began anew");
    assert!(after[new].syncs.forks - before[new].syncs.forks <= 1, "{after:?}");
    assert!(written.longest_pause() < Duration::from_secs(5), "{:?}", written.longest_pause());
}

#[test]
#[ignore = "waits for Sentinels"]
fn killed_in_a_failover_of_redis_7_0_on_purpose_they_make_the_new_master_fork_at_most_once() {
    killed_in_a_failover_on_purpose("redis-7.0.15", "", &[0, 1, 2]);
}

#[test]
#[ignore = "waits for Sentinels"]
fn killed_in_a_failover_of_valkey_8_1_on_purpose_they_make_the_new_master_fork_at_most_once() {
    killed_in_a_failover_on_purpose("valkey-8.1.1", "", &[0, 1, 2]);
}

#[test]
#[ignore = "waits for Sentinels"]
fn killed_in_an_assisted_failover_of_redis_7_0_the_one_who_asks_leaves_nobody_stopped() {
    killed_in_a_failover_on_purpose("redis-7.0.15", ASSIST, &[1]);
}

#[test]
#[ignore = "waits for Sentinels"]
fn killed_in_an_assisted_failover_of_redis_7_0_the_one_who_is_asked_leaves_nobody_stopped() {
    killed_in_a_failover_on_purpose("redis-7.0.15", ASSIST, &[0]);
}

#[test]
#[ignore = "waits for Sentinels"]
fn killed_in_an_assisted_failover_of_valkey_8_1_the_one_who_asks_leaves_nobody_stopped() {
    killed_in_a_failover_on_purpose("valkey-8.1.1", ASSIST, &[1]);
}

#[test]
#[ignore = "waits for Sentinels"]
fn killed_in_an_assisted_failover_of_valkey_8_1_the_one_who_is_asked_leaves_nobody_stopped() {
    killed_in_a_failover_on_purpose("valkey-8.1.1", ASSIST, &[0]);
}

/// The master is restarted with its data, and psyncd is killed while it is away.
fn killed_while_the_master_restarts(name: &str) {
    let mut estate = Estate::with_psyncd(server(name), "");
    let writer = Writer::on(&estate.ports()[..1]);
    let before = estate.past();
    let began = Instant::now();
    let _ = estate.sites[0].node.ask(&["SHUTDOWN", "SAVE"]);
    estate.sites[0].node.process().wait_for_end(SOON);
    estate.sites[0].crash_sidecar();
    estate.sites[0].node.restart();
    estate.sites[0].sidecar.as_ref().unwrap().wait_for_link();
    estate.wait_until_following(0, &[1, 2]);
    let back = began.elapsed();
    writer.go_on_for(200);
    let written = writer.stop();
    estate.assert_equal(0);
    estate.assert_nobody_else_is_known();
    estate.report("master restarted with its data, psyncd killed", &before, &written, 0, back);
    let after = estate.past();
    assert!([1, 2].iter().all(|place| after[*place].full == before[*place].full), "{after:?}");
    assert_eq!(after[0].syncs.full, 0);
    assert_eq!(written.lost_on(&estate.sites[0].node), 0);
}

#[test]
#[ignore = "waits for Sentinels"]
fn killed_while_a_redis_7_0_master_restarts_with_its_data_it_costs_nobody_anything() {
    killed_while_the_master_restarts("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn killed_while_a_valkey_8_1_master_restarts_with_its_data_it_costs_nobody_anything() {
    killed_while_the_master_restarts("valkey-8.1.1");
}

/// Each psyncd is killed as soon as it was put in front of its node.
fn killed_when_put_in_front(name: &str) {
    let mut estate = Estate::plain(server(name));
    let writer = Writer::on(&estate.ports());
    let before = estate.past();
    let began = Instant::now();
    for place in [1, 2, 0] {
        estate.sites[place].insert_psyncd();
        estate.sites[place].crash_sidecar();
        writer.go_on_for(200);
    }
    estate.wait_until_following(0, &[1, 2]);
    estate.sites[0].sidecar.as_ref().unwrap().wait_for_replicas(2);
    estate.sentinels.iter().for_each(|sentinel| sentinel.wait_for_company(2, 2));
    let back = began.elapsed();
    let written = writer.stop();
    estate.assert_equal(0);
    estate.assert_nobody_else_is_known();
    estate.report("psyncd put in and killed", &before, &written, 0, back);
    let after = estate.past();
    for place in 0..3 {
        assert_eq!(after[place].full, before[place].full, "node {place} began anew");
        assert_eq!(after[place].syncs.full, before[place].syncs.full, "node {place} sent its data set to somebody");
    }
    assert_eq!(written.lost_on(&estate.sites[0].node), 0);
}

#[test]
#[ignore = "waits for Sentinels"]
fn killed_when_it_was_put_before_redis_7_0_it_costs_nobody_anything() {
    killed_when_put_in_front("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn killed_when_it_was_put_before_valkey_8_1_it_costs_nobody_anything() {
    killed_when_put_in_front("valkey-8.1.1");
}
