//! As `sidecars`, and parts of it cannot reach each other for a while: what stands in front of the master, a Sentinel, the
//! new master, the psyncd of a replica.
//!
//! A site is cut off by a door that is shut, which ends all links and takes no new ones; a process by stopping it, which
//! ends none. Controls: `without_psyncd_…`; that survivors of a dead master begin anew shows in `sidecars`.

use std::time::{Duration, Instant};

use crate::harness::*;

/// More than any of the servers keeps for replicas that are away.
const MISSED_MEGABYTES: usize = 16;

/// The master is out of everybody's reach for a moment, too short for Sentinels, while it takes writes; `meanwhile` its
/// psyncd may be killed. Returns the full resyncs of the two replicas.
fn full_resyncs_after_a_moment_apart(estate: &mut Estate, meanwhile: impl FnOnce(&mut Estate)) -> usize {
    for sentinel in &estate.sentinels {
        // A moment is shorter than this on any machine.
        sentinel.cmd(&["SENTINEL", "SET", "mymaster", "down-after-milliseconds", "30000"]);
    }
    let before = estate.past();
    let began = Instant::now();
    estate.shut(0);
    write_megabytes(&estate.sites[0].node, MISSED_MEGABYTES);
    meanwhile(estate);
    estate.open(0);
    estate.wait_until_following(0, &[1, 2]);
    let back = began.elapsed();
    estate.assert_equal(0);
    for sentinel in &estate.sentinels {
        assert!(!sentinel.log().contains("+switch-master"), "it was too slow for this test: {back:?}");
    }
    let after = estate.past();
    let full = [1, 2].map(|place| after[place].full - before[place].full);
    println!("MEASURED master cut off for a moment | full resyncs {full:?} | back after {back:?}");
    full.iter().sum()
}

fn a_moment_apart_costs_nothing(name: &str) {
    let mut estate = Estate::with_doors(server(name), true, "");
    let before = estate.past();
    assert_eq!(full_resyncs_after_a_moment_apart(&mut estate, |_| {}), 0);
    assert_eq!(full_resyncs_after_a_moment_apart(&mut estate, |estate| estate.sites[0].crash_sidecar()), 0);
    assert_eq!(estate.past()[0].syncs.forks, before[0].syncs.forks);
    estate.assert_nobody_else_is_known();
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_redis_7_0_master_that_is_out_of_reach_for_a_moment_is_followed_on() {
    a_moment_apart_costs_nothing("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_valkey_8_1_master_that_is_out_of_reach_for_a_moment_is_followed_on() {
    a_moment_apart_costs_nothing("valkey-8.1.1");
}

#[test]
#[ignore = "waits for Sentinels"]
fn without_psyncd_a_moment_out_of_reach_makes_both_replicas_begin_anew() {
    let mut estate = Estate::with_doors(server("redis-7.0.15"), false, "");
    assert_eq!(full_resyncs_after_a_moment_apart(&mut estate, |_| {}), 2);
}

/// Whether a node asked the promoted one, at its last try under the old name, for what that one never had. That can come
/// about late: Sentinels say hello to whoever still is a master when they find it again, and a hello is a write.
fn diverged(estate: &Estate, place: usize, promoted: usize) -> usize {
    let info = estate.sites[promoted].node.info();
    let (old, parted) =
        (&info["master_replid2"], info["second_repl_offset"].parse::<i64>().expect("an offset is a number"));
    let log = estate.sites[place].node.log();
    let asked = log.rsplit(&format!("(request {old}:")).next().filter(|rest| rest.len() < log.len());
    let asked = asked.and_then(|rest| rest.split(')').next()?.parse::<i64>().ok());
    usize::from(asked.unwrap_or_else(|| panic!("node {place} never asked for {old}")) > parted)
}

/// The psyncd of the master is cut off for good, as far as Sentinels can tell; and comes back.
fn the_master_is_cut_off(name: &str) {
    let estate = Estate::with_doors(server(name), true, "");
    let writer = Writer::on(&estate.ports());
    let before = estate.past();
    estate.shut(0);
    let began = Instant::now();
    assert_eq!(estate.wait_for_switch(), 1);
    estate.wait_until_following(1, &[2]);
    writer.go_on_for(300);
    estate.open(0);
    estate.wait_until_following(1, &[0, 2]);
    let back = began.elapsed();
    let written = writer.stop();
    estate.assert_equal(1);
    estate.assert_nobody_else_is_known();
    estate.report("master cut off", &before, &written, 1, back);
    let after = estate.past();
    let full = [0, 2].map(|place| after[place].full - before[place].full);
    assert_eq!(full, [0, 2].map(|place| diverged(&estate, place, 1)), "who diverged, and nobody else");
    assert!(after[1].syncs.forks - before[1].syncs.forks <= 1);
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_redis_7_0_master_that_is_cut_off_follows_its_successor_and_only_who_diverged_reloads() {
    the_master_is_cut_off("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_valkey_8_1_master_that_is_cut_off_follows_its_successor_and_only_who_diverged_reloads() {
    the_master_is_cut_off("valkey-8.1.1");
}

/// A Sentinel misses a failover and still has the old master in mind when it comes back.
fn a_sentinel_misses_a_failover(name: &str) {
    let mut estate = Estate::with_psyncd(server(name), "");
    let writer = Writer::on(&estate.ports());
    let before = estate.past();
    estate.sentinels[2].signal("STOP");
    estate.sites[0].node.kill();
    let died = Instant::now();
    assert_eq!(estate.wait_for_switch_from(0, &estate.sentinels[..2]), 1);
    estate.wait_until_following(1, &[2]);
    let back = died.elapsed();
    estate.sites[0].node.restart();
    estate.sentinels[2].signal("CONT");
    assert_eq!(estate.wait_for_switch(), 1);
    estate.wait_until_following(1, &[0, 2]);
    writer.go_on_for(300);
    let written = writer.stop();
    estate.assert_equal(1);
    estate.report("a Sentinel was cut off from the failover", &before, &written, 1, back);
    let after = estate.past();
    assert_eq!([after[1].full, after[2].full], [before[1].full, before[2].full]);
    assert!(estate.sentinels.iter().all(|sentinel| sentinel.log().matches("+switch-master").count() == 1));
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_sentinel_that_missed_a_failover_of_redis_7_0_moves_nobody_when_it_is_back() {
    a_sentinel_misses_a_failover("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_sentinel_that_missed_a_failover_of_valkey_8_1_moves_nobody_when_it_is_back() {
    a_sentinel_misses_a_failover("valkey-8.1.1");
}

/// The master dies, and the promoted one is cut off as soon as it has been written to.
fn the_new_master_is_cut_off(name: &str) {
    let mut estate = Estate::with_doors(server(name), true, "");
    for sentinel in &estate.sentinels {
        // They wait twice as long between two failovers.
        sentinel.cmd(&["SENTINEL", "SET", "mymaster", "failover-timeout", "4000"]);
    }
    let writer = Writer::on(&estate.ports());
    let before = estate.past();
    estate.sites[0].node.kill();
    let began = Instant::now();
    assert_eq!(estate.wait_for_switch(), 1);
    estate.wait_until_following(1, &[2]);
    writer.go_on_for(300);
    estate.shut(1);
    assert_eq!(estate.wait_for_switch_from(1, &estate.sentinels), 2);
    writer.go_on_for(300);
    estate.open(1);
    estate.wait_until_following(2, &[1]);
    let back = began.elapsed();
    estate.sites[0].node.restart();
    estate.wait_until_following(2, &[0, 1]);
    let written = writer.stop();
    estate.assert_equal(2);
    estate.assert_nobody_else_is_known();
    estate.report("the new master cut off", &before, &written, 2, back);
    let after = estate.past();
    assert_eq!(after[2].full, before[2].full, "it was continued through both");
    assert_eq!(after[1].full - before[1].full, diverged(&estate, 1, 2), "it diverged, or continued");
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_new_redis_7_0_master_that_is_cut_off_is_succeeded_and_only_who_diverged_reloads() {
    the_new_master_is_cut_off("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_new_valkey_8_1_master_that_is_cut_off_is_succeeded_and_only_who_diverged_reloads() {
    the_new_master_is_cut_off("valkey-8.1.1");
}

/// The psyncd of a replica says nothing for longer than Sentinels wait.
fn a_psyncd_is_silent(name: &str) {
    let mut estate = Estate::with_psyncd(server(name), "");
    let writer = Writer::on(&estate.ports()[..1]);
    let before = estate.past();
    let psyncd = estate.sites[2].sidecar.as_mut().unwrap();
    psyncd.process().signal("STOP");
    let logs = |estate: &Estate| estate.sentinels.iter().map(|one| one.log()).collect::<Vec<_>>();
    wait_until("the Sentinels miss it", || {
        when(logs(&estate).iter().all(|log| log.contains("+sdown slave")), String::new)
    });
    writer.go_on_for(300);
    estate.sites[2].sidecar.as_mut().unwrap().process().signal("CONT");
    wait_until("and have it back", || when(logs(&estate).iter().all(|log| log.contains("-sdown slave")), String::new));
    // It was held up in the middle of the stream.
    estate.sites[2].sidecar.as_ref().unwrap().wait_for_link();
    let written = writer.stop();
    estate.assert_equal(0);
    estate.report("the psyncd of a replica silent", &before, &written, 0, Duration::ZERO);
    let after = estate.past();
    assert!((0..3).all(|place| after[place].full == before[place].full), "{after:?}");
    assert_eq!(after[0].syncs.forks, before[0].syncs.forks);
    assert!(logs(&estate).iter().all(|log| !log.contains("+switch-master")));
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_redis_7_0_replica_whose_psyncd_is_silent_is_down_for_sentinels_and_goes_on() {
    a_psyncd_is_silent("redis-7.0.15");
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_valkey_8_1_replica_whose_psyncd_is_silent_is_down_for_sentinels_and_goes_on() {
    a_psyncd_is_silent("valkey-8.1.1");
}

/// Valkey's Sentinel has the master hand over by itself, to one whom the master knows.
fn coordinated(links: &str) -> (Estate, Vec<Past>, Writer) {
    let estate = Estate::with_psyncd(server("valkey-9.1.2"), &format!("upstream-links = \"{links}\"\n"));
    for site in &estate.sites {
        // In ten seconds each master says something by itself, and is then ahead of whom it handed over to.
        site.node.cmd(&["CONFIG", "SET", "repl-ping-replica-period", "3600"]);
    }
    for sentinel in &estate.sentinels {
        sentinel.cmd(&["SENTINEL", "SET", "mymaster", "failover-timeout", "6000"]);
    }
    let writer = Writer::on(&estate.ports());
    writer.go_on_for(300);
    let before = estate.past();
    assert_eq!(estate.sentinels[0].fail_over_coordinated(), Value::Simple("OK".into()));
    (estate, before, writer)
}

#[test]
#[ignore = "waits for Sentinels"]
fn a_coordinated_failover_of_valkey_9_1_over_mirrored_links_reloads_nobody_and_loses_nothing() {
    let began = Instant::now();
    let (estate, before, writer) = coordinated("mirrored");
    assert_eq!(estate.wait_for_switch(), 1);
    estate.wait_until_following(1, &[0, 2]);
    let back = began.elapsed();
    writer.go_on_for(300);
    let written = writer.stop();
    estate.assert_equal(1);
    estate.assert_nobody_else_is_known();
    estate.report("coordinated, mirrored", &before, &written, 1, back);
    let after = estate.past();
    assert!((0..3).all(|place| after[place].full == before[place].full), "{after:?}");
    assert_eq!(written.lost_on(&estate.sites[1].node), 0);
}

/// The master refuses, since it knows no such replica. The `CLIENT PAUSE` that Sentinel sent with the order stays until
/// its failover-timeout is over.
#[test]
#[ignore = "waits for Sentinels"]
fn a_coordinated_failover_of_valkey_9_1_over_a_single_link_stops_writes_for_its_timeout_and_is_given_up() {
    let (estate, before, writer) = coordinated("single");
    wait_until("the Sentinel gives up", || {
        let log = estate.sentinels[0].log();
        when(log.contains("-failover-abort"), || tail(&log, 5))
    });
    writer.go_on_for(300);
    let written = writer.stop();
    estate.assert_equal(0);
    assert!(estate.sentinels.iter().all(|sentinel| sentinel.master() == estate.sites[0].port));
    estate.report("coordinated, single", &before, &written, 0, Duration::ZERO);
    let after = estate.past();
    assert!((0..3).all(|place| after[place].full == before[place].full), "{after:?}");
    assert_eq!(written.lost_on(&estate.sites[0].node), 0);
    assert!(written.longest_pause() < Duration::from_secs(9), "{:?}", written.longest_pause());
}
