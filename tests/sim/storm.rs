//! Storms: more replicas than turns, and those among them that hang, flap, or go away.

use std::rc::Rc;
use std::time::Duration;

use crate::disk::Crash;
use crate::log::Log;
use crate::master;
use crate::network::Weather;
use crate::product::{self, Psyncd};
use crate::replica::{self, Habit};
use crate::world::{Fault, Outcome, PROXY, Plan, replica_name, run};

/// When everybody comes.
const BEGIN: Duration = Duration::from_secs(10);

fn after(seconds: u64) -> Duration {
    BEGIN + Duration::from_secs(seconds)
}

/// Replicas behind a link so thin that a snapshot takes a second or two.
fn storm(count: usize, max_senders: usize) -> Plan {
    Plan {
        seed: 11,
        master: master::Setup {
            warm: true,
            filler_bytes: 60_000,
            large_bytes: 2000,
            write_every: Duration::from_secs(1),
            diskless_delay: Duration::from_secs(1),
            ..Default::default()
        },
        psyncd: product::Setup { max_senders, ..Default::default() },
        replicas: vec![replica::Setup::default(); count],
        weather: Weather { window_bytes: 2000, ..Default::default() },
        faults: Vec::new(),
        arrivals: vec![BEGIN; count],
        calm_at: after(40),
        clients: 0,
        settle_within: Duration::from_secs(200),
    }
}

#[track_caller]
fn weathered(plan: Plan) -> (Outcome, Rc<Psyncd>) {
    let psyncd = Psyncd::new(&plan);
    let outcome = run(plan, Some(Rc::clone(&psyncd) as Rc<dyn crate::world::Subject>), Log::default());
    if !outcome.violations.is_empty() {
        for event in &outcome.events {
            println!("{event}");
        }
    }
    assert_eq!(outcome.violations, Vec::<String>::new());
    (outcome, psyncd)
}

/// When each replica that ever did so did `what` first, in the order of time.
fn firsts(outcome: &Outcome, what: &str) -> Vec<(String, Duration)> {
    let mut seen: Vec<(String, Duration)> = Vec::new();
    for event in outcome.events.iter().filter(|event| event.what.starts_with(what)) {
        if !seen.iter().any(|(actor, _)| *actor == event.actor) {
            seen.push((event.actor.clone(), event.at));
        }
    }
    seen
}

const LOADED: &str = "loaded";
const SENT: &str = "is being sent a payload";

#[test]
fn fifty_replicas_at_once_cost_one_snapshot_which_at_most_four_are_sent_at_a_time() {
    let (outcome, psyncd) = weathered(storm(50, 4));
    assert_eq!(outcome.master.forks, 1);
    assert!(outcome.replicas.iter().all(|r| (r.fulls, r.links) == (1, 1)), "{:?}", outcome.replicas);
    assert_eq!(psyncd.most_sending(), 4);
    let last = firsts(&outcome, LOADED).last().map(|(_, at)| *at);
    assert!(last.is_some_and(|last| last < after(40)), "the last had it at {last:?}");
}

#[test]
fn who_leaves_the_queue_or_dies_in_the_middle_costs_the_others_nothing() {
    let mut plan = storm(12, 2);
    // Most of them still wait; two are in the middle of their snapshot.
    for n in 0..12 {
        plan.faults.push((after(4), Fault::Cut(PROXY.to_owned(), replica_name(n), (n % 3 == 0).then_some(5000))));
    }
    plan.faults.retain(|(_, fault)| !matches!(fault, Fault::Cut(_, name, _) if *name == replica_name(7)));
    let (outcome, psyncd) = weathered(plan);
    assert_eq!((outcome.master.forks, psyncd.most_sending()), (1, 2));
    assert_eq!((outcome.replicas[7].fulls, outcome.replicas[7].links), (1, 1), "{:?}", outcome.replicas[7]);
    assert!(outcome.replicas.iter().all(|r| r.fulls == 1), "{:?}", outcome.replicas);
}

#[test]
fn a_psyncd_killed_in_the_middle_of_a_storm_serves_it_again() {
    let mut plan = storm(12, 2);
    plan.faults = vec![(after(5), Fault::KillSubject(Crash::Process))];
    let (outcome, psyncd) = weathered(plan);
    assert_eq!(psyncd.most_sending(), 2);
    assert!(outcome.replicas.iter().all(|r| r.fulls == 1), "{:?}", outcome.replicas);
}

#[test]
fn replicas_that_hang_in_their_snapshot_lose_their_turns_and_the_others_go_on() {
    let mut plan = storm(8, 2);
    plan.calm_at = after(120);
    for hung in &mut plan.replicas[..2] {
        hung.habit = Some(Habit::Hangs);
    }
    for arrival in &mut plan.arrivals[2..] {
        *arrival = after(3);
    }
    let (outcome, psyncd) = weathered(plan);
    assert_eq!(psyncd.most_sending(), 2);
    let loaded: Vec<_> = firsts(&outcome, LOADED).into_iter().filter(|(who, _)| who != "r0" && who != "r1").collect();
    assert_eq!(loaded.len(), 6);
    // Both turns were taken, and came free when nothing had been taken for a repl-timeout.
    assert!(loaded[0].1 > after(55), "{loaded:?}");
    assert!(loaded[5].1 < after(75), "{loaded:?}");
    assert!(outcome.replicas[2..].iter().all(|r| (r.fulls, r.links) == (1, 1)), "{:?}", outcome.replicas);
}

#[test]
fn a_replica_that_flaps_every_second_is_sent_ever_less_and_takes_nobody_s_turn() {
    let mut plan = storm(7, 1);
    plan.calm_at = after(65);
    // It never gets to the end of it.
    plan.master.filler_bytes = 150_000;
    plan.arrivals[0] = BEGIN - Duration::from_secs(3);
    plan.faults = (0..60).map(|second| (after(second), Fault::RestartReplica(0))).collect();
    // The others come one after the other, while it flaps.
    for n in 1..7 {
        plan.arrivals[n] = after(8 * n as u64);
    }
    let (outcome, psyncd) = weathered(plan.clone());
    assert_eq!((outcome.master.forks, psyncd.most_sending()), (1, 1));
    let begun = outcome.events.iter().filter(|e| e.actor == "r0" && e.what == SENT && e.at < after(60)).count();
    assert!((2..=8).contains(&begun), "{begun} snapshots were begun for it in a minute");
    for (who, loaded) in firsts(&outcome, LOADED).iter().filter(|(who, _)| who != "r0") {
        let n: usize = who[1..].parse().unwrap();
        let took = *loaded - plan.arrivals[n];
        assert!(took < Duration::from_secs(8), "{who} took {took:?}");
    }
    assert!(outcome.replicas[1..].iter().all(|r| (r.fulls, r.links) == (1, 1)), "{:?}", outcome.replicas);
}

#[test]
fn failover_candidates_are_sent_the_first_snapshot_first_and_the_never_promoted_last() {
    let mut plan = storm(9, 1);
    for (n, priority) in [(2, 0), (5, 10), (6, 50), (7, 10)] {
        plan.replicas[n].priority = Some(priority);
    }
    let (outcome, _) = weathered(plan);
    let order: Vec<_> = firsts(&outcome, SENT).into_iter().map(|(who, _)| who).collect();
    assert_eq!((order[2].as_str(), order[8].as_str()), ("r6", "r2"), "{order:?}");
    let mut first = [order[0].as_str(), order[1].as_str()];
    first.sort();
    assert_eq!(first, ["r5", "r7"], "{order:?}");
}

#[test]
fn a_replica_that_can_continue_waits_for_nobody() {
    let mut plan = storm(12, 1);
    plan.arrivals[0] = Duration::from_secs(1);
    let lost = after(4);
    plan.faults = vec![(lost, Fault::Cut(PROXY.to_owned(), replica_name(0), None))];
    let (outcome, _) = weathered(plan);
    let back = outcome.events.iter().find(|e| e.actor == "r0" && e.what.starts_with("goes on from")).map(|e| e.at);
    let back = back.expect("it continued");
    assert!(back < lost + Duration::from_secs(2), "{back:?}");
    assert!(firsts(&outcome, LOADED).last().is_some_and(|(_, at)| *at > back), "the queue was not over");
}

#[test]
fn snapshots_keep_to_their_budget_and_the_stream_does_not_wait_for_them() {
    let mut plan = storm(10, 4);
    plan.weather.window_bytes = 64 << 10;
    plan.psyncd.rate_limit = 64 << 10;
    plan.arrivals[0] = Duration::from_secs(1);
    plan.master.write_every = Duration::from_millis(50);
    let (outcome, psyncd) = weathered(plan);
    assert_eq!(psyncd.most_sending(), 4);
    let loaded: Vec<_> = firsts(&outcome, LOADED).into_iter().skip(1).map(|(_, at)| at).collect();
    let size = outcome.events.iter().find_map(|e| e.what.split(['(', ' ']).rev().nth(1)?.parse::<u64>().ok());
    let least = 9.0 * size.expect("a size was logged") as f64 / f64::from(64 << 10);
    let took = (loaded[8] - BEGIN).as_secs_f64();
    assert!(took > least - 0.3, "nine snapshots in {took} s; the budget is {least}");
    assert!(took < least + 8.0, "nine snapshots in {took} s; the budget is {least}");
    assert_eq!(outcome.replicas[0].links, 1);
}
