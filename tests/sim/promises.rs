//! What psyncd promises, each in the smallest world that shows it, with the master's forks and the replicas'
//! resyncs counted.

use std::time::Duration;

use crate::disk::Crash;
use crate::log::Log;
use crate::master;
use crate::network::Weather;
use crate::product::Psyncd;
use crate::replica;
use crate::world::{Fault, MASTER, Outcome, PROXY, Plan, replica_name, run};

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A warm master behind psyncd, `count` replicas from the first second on, and nothing else.
fn quiet(count: usize) -> Plan {
    Plan {
        seed: 7,
        master: master::Setup { warm: true, ..Default::default() },
        psyncd: Default::default(),
        replicas: vec![replica::Setup::default(); count],
        weather: Weather::default(),
        faults: Vec::new(),
        arrivals: vec![at(1); count],
        calm_at: at(60),
        clients: 1,
        settle_within: at(100),
    }
}

#[track_caller]
fn kept(plan: Plan) -> Outcome {
    let psyncd = Psyncd::new(&plan);
    let outcome = run(plan, Some(psyncd), Log::default());
    if !outcome.violations.is_empty() {
        for event in &outcome.events {
            println!("{event}");
        }
    }
    assert_eq!(outcome.violations, Vec::<String>::new());
    outcome
}

#[track_caller]
fn resyncs(outcome: &Outcome, fulls: u64, partials: u64) {
    for counts in &outcome.replicas {
        assert_eq!((counts.fulls, counts.partials), (fulls, partials), "{:?}", outcome.replicas);
    }
}

#[test]
fn a_warm_master_gives_no_snapshot_to_psyncd_alone() {
    let outcome = kept(quiet(0));
    assert_eq!((outcome.master.forks, outcome.master.continues), (0, 1));
}

#[test]
fn one_fork_serves_a_storm_of_replicas() {
    let outcome = kept(quiet(5));
    assert_eq!(outcome.master.forks, 1);
    resyncs(&outcome, 1, 0);
}

#[test]
fn a_late_joiner_costs_the_master_nothing() {
    let mut plan = quiet(3);
    plan.arrivals[2] = at(40);
    let outcome = kept(plan);
    assert_eq!(outcome.master.forks, 1);
    resyncs(&outcome, 1, 0);
}

#[test]
fn a_lost_link_to_the_master_is_not_seen_by_replicas() {
    let mut plan = quiet(3);
    plan.faults = [20, 25, 30].map(|s| (at(s), Fault::KillLinks)).to_vec();
    let outcome = kept(plan);
    assert_eq!((outcome.master.forks, outcome.master.continues), (1, 4));
    resyncs(&outcome, 1, 0);
}

#[test]
fn replicas_that_lose_their_link_go_on_without_the_master() {
    let mut plan = quiet(3);
    let cut = |n| Fault::Cut(PROXY.to_owned(), replica_name(n), None);
    plan.faults = vec![
        (at(20), cut(0)),
        (at(21), cut(1)),
        (at(22), cut(2)),
        (at(23), cut(0)),
        (at(24), cut(1)),
        (at(25), cut(2)),
    ];
    let outcome = kept(plan);
    assert_eq!((outcome.master.forks, outcome.master.continues), (1, 1));
    resyncs(&outcome, 1, 2);
}

#[test]
fn a_half_open_link_is_noticed_and_costs_no_full_resync() {
    let mut plan = quiet(2);
    plan.faults = vec![
        (at(20), Fault::Silence(MASTER.to_owned(), PROXY.to_owned())),
        (at(21), Fault::Silence(PROXY.to_owned(), replica_name(0))),
    ];
    let outcome = kept(plan);
    assert_eq!(outcome.master.forks, 1);
    assert!(outcome.replicas.iter().all(|counts| counts.fulls == 1), "{:?}", outcome.replicas);
}

#[test]
fn a_failover_that_loses_nothing_costs_no_full_resync() {
    let mut plan = quiet(3);
    plan.faults = vec![(at(20), Fault::FailOver(at(2), 0))];
    let outcome = kept(plan);
    assert_eq!(outcome.master.forks, 1);
    resyncs(&outcome, 1, 1);
}

#[test]
fn a_failover_that_loses_bytes_is_served_from_the_snapshot_at_hand() {
    let mut plan = quiet(3);
    plan.faults = vec![(at(20), Fault::FailOver(at(2), 500))];
    let outcome = kept(plan);
    assert_eq!(outcome.master.forks, 1);
    resyncs(&outcome, 2, 0);
}

#[test]
fn a_late_joiner_after_a_failover_gets_the_old_snapshot_under_the_new_id() {
    let mut plan = quiet(2);
    plan.faults = vec![(at(20), Fault::FailOver(at(2), 0))];
    plan.arrivals[1] = at(40);
    let outcome = kept(plan);
    assert_eq!(outcome.master.forks, 1);
}

#[test]
fn replicas_move_from_the_master_to_psyncd_and_back_by_partial_resyncs_only() {
    let mut plan = quiet(2);
    plan.faults = vec![(at(20), Fault::MoveAway(0, at(10))), (at(25), Fault::MoveAway(1, at(10)))];
    let outcome = kept(plan);
    assert_eq!(outcome.master.forks, 1);
    resyncs(&outcome, 1, 2);
}

#[test]
fn a_master_that_lost_everything_gives_one_snapshot_for_all() {
    let mut plan = quiet(4);
    plan.faults = vec![(at(20), Fault::LoseEverything(at(2)))];
    let outcome = kept(plan);
    assert_eq!(outcome.master.forks, 2);
    resyncs(&outcome, 2, 0);
}

/// A world whose master has enough keys to be guarded.
fn guarded(count: usize) -> Plan {
    let mut plan = quiet(count);
    plan.master.keys = 5000;
    plan.calm_at = at(120);
    plan
}

/// When replicas got a new data set.
fn loads(outcome: &Outcome) -> Vec<Duration> {
    let loaded = outcome.events.iter().filter(|event| event.what.starts_with("loaded "));
    loaded.map(|event| event.at).collect()
}

#[test]
fn a_wiped_master_takes_no_replica_with_it_before_it_is_released() {
    let mut plan = guarded(4);
    // Those that come and go meanwhile keep their data as well.
    plan.faults = vec![
        (at(40), Fault::LoseEverything(at(2))),
        (at(50), Fault::Cut(PROXY.into(), replica_name(1), None)),
        (at(90), Fault::Release),
    ];
    let outcome = kept(plan);
    let loads = loads(&outcome);
    assert!(loads.iter().all(|time| *time < at(40) || *time > at(90)), "{loads:?}");
    assert_eq!(loads.len(), 8, "once at the beginning, once after the release");
    assert_eq!(outcome.master.forks, 2, "one snapshot for all of them");
}

#[test]
fn a_wiped_master_is_known_for_one_by_a_psyncd_that_was_killed_in_between() {
    for kill in [at(39), Duration::from_millis(40_500), at(60)] {
        let mut plan = guarded(3);
        plan.faults = vec![
            (at(40), Fault::LoseEverything(at(2))),
            (kill, Fault::KillSubject(Crash::Process)),
            (at(90), Fault::Release),
        ];
        plan.faults.sort_by_key(|(time, _)| *time);
        let outcome = kept(plan);
        let loads = loads(&outcome);
        assert!(loads.iter().all(|time| *time < at(40) || *time > at(90)), "killed at {kill:?}: {loads:?}");
        assert_eq!(outcome.master.forks, 2);
    }
}

#[test]
fn the_guard_lets_go_by_itself_when_the_data_is_back() {
    let mut plan = guarded(3);
    plan.faults = vec![(at(40), Fault::LoseEverything(at(2))), (at(80), Fault::RestoreFromBackup(at(3)))];
    let outcome = kept(plan);
    let loads = loads(&outcome);
    assert!(loads.iter().all(|time| *time < at(40) || *time > at(83)), "{loads:?}");
    assert_eq!(outcome.master.forks, 2);
}

#[test]
fn a_master_that_denies_info_is_judged_by_its_snapshot_before_anybody_has_it() {
    let mut plan = guarded(3);
    plan.master.info_denied = true;
    plan.master.filler_bytes = 60_000;
    plan.faults = vec![(at(40), Fault::LoseEverything(at(2))), (at(90), Fault::Release)];
    let outcome = kept(plan);
    let loads = loads(&outcome);
    assert!(loads.iter().all(|time| *time < at(40) || *time > at(90)), "{loads:?}");
    assert_eq!(outcome.master.forks, 3, "one to see it, one to follow it");
}

#[test]
fn the_guard_does_not_stand_in_the_way_of_what_the_history_explains() {
    for fault in [Fault::FailOver(at(2), 0), Fault::FailOver(at(2), 3000), Fault::RestartFromFile(at(2), 100)] {
        let mut plan = guarded(2);
        plan.faults = vec![(at(40), fault)];
        kept(plan);
    }
}

#[test]
fn a_slow_replica_slows_nobody() {
    let mut plan = quiet(3);
    plan.master.write_every = Duration::from_millis(20);
    plan.replicas[1].pace = Duration::from_millis(100);
    plan.weather.window_bytes = 5000;
    plan.psyncd.backlog_bytes = 64 << 10;
    plan.master.large_bytes = 2000;
    let outcome = kept(plan);
    assert!(outcome.replicas[1].fulls > 1, "it was to be overtaken: {:?}", outcome.replicas);
    for n in [0, 2] {
        assert_eq!((outcome.replicas[n].fulls, outcome.replicas[n].links), (1, 1), "{:?}", outcome.replicas);
    }
}

#[test]
fn a_snapshot_is_not_fetched_while_the_link_itself_receives_one() {
    // The master is replaced while a fetch is in flight. Whether the fetch or the link notices first is chance.
    for seed in 0..12 {
        let mut plan = quiet(2);
        plan.seed = seed;
        plan.master.diskless = false;
        plan.master.filler_bytes = 150_000;
        plan.arrivals = vec![at(10); 2];
        plan.faults = vec![(at(11), Fault::LoseEverything(Duration::from_millis(300)))];
        plan.calm_at = at(20);
        kept(plan);
    }
}
