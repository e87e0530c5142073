//! Estates from seeds, and the smallest ones that show what psyncd promises at a failover.

use std::time::{Duration, Instant};

use crate::chance::Chance;
use crate::council::{self, sentinel_name};
use crate::disk::Crash;
use crate::estate::{Blow, NODES, Outcome, Plan, Shape, node_name, run};
use crate::log::Log;
use crate::master;
use crate::network::Weather;
use crate::node::Kept;
use crate::product;
use crate::world::{PROXY, replica_name};
use crate::{VirtualTime, number_from};

/// Seeds tried by default: fifty with psyncd, and some of the models by themselves.
fn default_seeds(shape: Shape) -> u64 {
    match shape {
        Shape::Plain => 10,
        Shape::Sidecars => 20,
        Shape::Asking | Shape::Told => 15,
    }
}

/// The estate of a seed. Every seed meets each shape with the same blows.
fn plan(shape: Shape, seed: u64) -> Plan {
    let mut chance = Chance::new(seed).fork("failovers");
    let calm_at = chance.millis(25_000, 45_000);
    let mut blows = Vec::new();
    let mut at = chance.millis(6_000, 10_000);
    let mut rogue = false;
    while at < calm_at {
        invent(shape, &mut chance, at, &mut rogue, &mut blows);
        at += chance.millis(2_000, 14_000);
    }
    blows.sort_by_key(|(at, _)| *at);
    let journal = [None, Some((256 << 10, 64 << 10)), Some((4 << 20, 1 << 20))];
    Plan {
        seed,
        shape,
        master: master::Setup {
            diskless: chance.one_in(2),
            diskless_delay: chance.millis(0, 1000),
            backlog_bytes: *chance.pick(&[30_000, 1 << 20]),
            filler_bytes: *chance.pick(&[10, 3_000, 40_000]),
            write_every: chance.millis(50, 400),
            large_bytes: 2_000,
            ..Default::default()
        },
        psyncd: product::Setup {
            backlog_bytes: *chance.pick(&[100_000, 1 << 20]),
            journal: *chance.pick(&journal),
            ..Default::default()
        },
        snapshot_interval: *chance.pick(&[Duration::from_secs(1), Duration::from_secs(10)]),
        pool: 2,
        weather: Weather { window_bytes: *chance.pick(&[5_000, 64_000]), ..Default::default() },
        blows,
        calm_at,
        settle_within: Duration::from_secs(150),
        believes_only: None,
    }
}

fn invent(shape: Shape, chance: &mut Chance, at: Duration, rogue: &mut bool, blows: &mut Vec<(Duration, Blow)>) {
    let n = chance.below(NODES as u64) as usize;
    let (lagging, stopped) = (chance.one_in(2), chance.one_in(2));
    let time = chance.millis(1_000, 15_000);
    let (shortly, soon) = (chance.millis(0, 2_500), chance.millis(500, 6_000));
    let kept = *chance.pick(&Kept::ALL);
    let crash = *chance.pick(&Crash::ALL);
    let (a, b) = pair(shape, chance, n);
    let psyncds = shape.psyncds();
    let victim = psyncds.get(n % psyncds.len().max(1)).cloned();
    let dies = |lagging| Blow::Dies { lagging, after: soon, away: time, kept };
    match chance.below(13) {
        0 => blows.push((at, Blow::Planned { lagging, stopped })),
        1 => blows.push((at, dies(lagging))),
        // One falls behind, and is promoted.
        2..=3 => {
            blows.push((at, Blow::Lags(n, time)));
            let blow = if chance.one_in(2) { dies(true) } else { Blow::Planned { lagging: true, stopped } };
            blows.push((at + shortly, blow));
        }
        // Two failovers, the second perhaps before everybody has heard of the first.
        4..=5 => {
            blows.push((at, Blow::Planned { lagging, stopped }));
            blows.push((at + soon, if lagging { dies(false) } else { Blow::Planned { lagging: true, stopped } }));
        }
        6 => blows.push((at, Blow::LosesMaster(soon, soon + time))),
        7 => {
            let mut hosts = vec![node_name(n), sentinel_name(n)];
            hosts.extend(victim);
            blows.push((at, Blow::Island(vec![chance.pick(&hosts).clone()], time)));
        }
        // While a Sentinel acts alone psyncd has to be able to ask the others; see `sentinel::tracker`, rule 3.
        8 if !*rogue && shape != Shape::Told => {
            *rogue = true;
            blows.push((at, Blow::Rogue(n % council::COUNT, time)));
        }
        8..=9 => blows.push((at, Blow::Restarts(n, shortly, kept))),
        10 => blows.push((at, Blow::Cut(a, b))),
        _ => {
            // Killed in the middle of one.
            blows.push((at, Blow::Planned { lagging, stopped }));
            blows.extend(victim.map(|victim| (at + shortly, Blow::Kills(victim, crash))));
        }
    }
}

fn pair(shape: Shape, chance: &mut Chance, n: usize) -> (String, String) {
    let other = node_name((n + 1) % NODES);
    match shape {
        Shape::Plain => (node_name(n), other),
        Shape::Sidecars => (crate::estate::sidecar_name(n), if chance.one_in(2) { other } else { node_name(n) }),
        Shape::Asking | Shape::Told => {
            (PROXY.to_owned(), if chance.one_in(2) { node_name(n) } else { replica_name(n % 2) })
        }
    }
}

/// Tries many seeds; the first that breaks a law is told with all that is needed to replay it.
fn explore(shape: Shape) {
    let (first, count) = match number_from("PSYNCD_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number_from("PSYNCD_SIM_SEEDS").unwrap_or_else(|| default_seeds(shape))),
    };
    let began = Instant::now();
    let (mut fulls, mut partials, mut diverged, mut overtaken) = (0, 0, 0, 0);
    for seed in first..first + count {
        let plan = plan(shape, seed);
        let outcome = run(plan.clone(), Log::default());
        fulls += outcome.needed();
        for counts in &outcome.counts {
            (partials, diverged) = (partials + counts.partials, diverged + counts.diverged);
            overtaken += counts.overtaken;
        }
        if let Some(violation) = outcome.violations.first() {
            let from = outcome.events.len().saturating_sub(80);
            for event in &outcome.events[from..] {
                println!("{event}");
            }
            let name = shape.as_str();
            panic!(
                "{violation}\nseed {seed} of {name}: {plan:#?}\nreplay: PSYNCD_SIM_SEED={seed} PSYNCD_SIM_KIND={name} cargo test --test sim -- failover::replay --nocapture"
            );
        }
    }
    println!(
        "{}: {count} seeds in {:?}; {partials} partial resyncs, {fulls} full ones: {diverged} diverged, {overtaken} overtaken",
        shape.as_str(),
        began.elapsed()
    );
}

/// Does nothing unless a seed is named; then prints everything that happens.
#[test]
fn replay() {
    let Some(seed) = number_from("PSYNCD_SIM_SEED") else { return };
    let name = std::env::var("PSYNCD_SIM_KIND").unwrap_or_default();
    let Some(shape) = Shape::ALL.into_iter().find(|shape| shape.as_str() == name) else { return };
    let log = Log::default();
    log.echo();
    let said = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false).with_timer(VirtualTime);
    let _said = tracing::subscriber::set_default(said.finish());
    let plan = plan(shape, seed);
    let outcome = run(plan.clone(), log);
    println!("{plan:#?}\n{outcome:?}");
    assert!(outcome.violations.is_empty(), "{:?}", outcome.violations);
}

#[test]
fn servers_that_fail_over_by_themselves_break_no_law_of_the_models() {
    explore(Shape::Plain);
}

#[test]
fn servers_with_psyncd_beside_each_break_no_law_when_they_fail_over() {
    explore(Shape::Sidecars);
}

#[test]
fn a_relay_that_asks_sentinels_breaks_no_law_when_they_fail_over() {
    explore(Shape::Asking);
}

#[test]
fn a_relay_that_is_told_by_sentinels_breaks_no_law_when_they_fail_over() {
    explore(Shape::Told);
}

#[test]
fn the_same_seed_gives_the_same_estate() {
    for shape in Shape::ALL {
        let [first, second] = [(); 2].map(|()| run(plan(shape, 1), Log::default()).events);
        let differs = first.iter().zip(&second).find(|(a, b)| a != b);
        assert!(differs.is_none() && first.len() == second.len(), "{differs:?}");
    }
}

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// An estate in which nothing happens but these blows.
fn quiet(shape: Shape, blows: Vec<(Duration, Blow)>) -> Plan {
    Plan {
        seed: 5,
        shape,
        master: master::Setup { diskless_delay: Duration::from_millis(200), large_bytes: 2_000, ..Default::default() },
        psyncd: product::Setup::default(),
        snapshot_interval: at(1),
        pool: 2,
        weather: Weather::default(),
        blows,
        calm_at: at(60),
        settle_within: at(100),
        believes_only: None,
    }
}

#[track_caller]
fn kept(plan: Plan) -> Outcome {
    let outcome = run(plan, Log::default());
    if !outcome.violations.is_empty() {
        for event in &outcome.events {
            println!("{event}");
        }
    }
    assert_eq!(outcome.violations, Vec::<String>::new());
    outcome
}

fn fulls(outcome: &Outcome) -> Vec<u64> {
    outcome.counts.iter().map(|counts| counts.fulls).collect()
}

/// The master dies while the one that will be promoted has missed the last seconds.
fn promotes_the_one_behind() -> Vec<(Duration, Blow)> {
    let dies = Blow::Dies { lagging: true, after: at(5), away: at(60), kept: Kept::Nothing };
    vec![(at(20), Blow::Lags(2, at(3))), (at(22), dies)]
}

#[test]
fn a_peer_that_lagged_is_brought_level_before_it_is_promoted() {
    let plain = kept(quiet(Shape::Plain, promotes_the_one_behind()));
    assert_eq!(plain.counts[1].diverged + plain.counts[2].diverged, 1, "the control is to show the harm: {plain:?}");
    let outcome = kept(quiet(Shape::Sidecars, promotes_the_one_behind()));
    assert_eq!(fulls(&outcome), [1, 1, 1], "only the one that lost its data starts over: {outcome:?}");
}

#[test]
fn two_failovers_cost_a_replica_that_was_away_nothing() {
    let stopped = |lagging| Blow::Planned { lagging, stopped: true };
    let blows =
        vec![(at(15), Blow::Island(vec![replica_name(0)], at(35))), (at(20), stopped(false)), (at(34), stopped(false))];
    for shape in [Shape::Asking, Shape::Told] {
        let outcome = kept(quiet(shape, blows.clone()));
        assert_eq!(fulls(&outcome)[NODES..], [1, 1], "{outcome:?}");
    }
}

#[test]
fn a_relay_cuts_back_and_only_who_was_sent_what_was_lost_starts_over() {
    // r0 has not been sent what the promoted node never had; r1 has.
    let mut blows = vec![(at(19), Blow::Island(vec![replica_name(0)], at(25)))];
    blows.extend(promotes_the_one_behind());
    let outcome = kept(quiet(Shape::Asking, blows));
    assert_eq!(fulls(&outcome)[NODES..], [1, 2], "{outcome:?}");
    assert_eq!(outcome.counts[NODES + 1].diverged, 1);
}

#[test]
fn a_kill_in_the_middle_of_a_failover_costs_nothing() {
    for crash in Crash::ALL {
        let mut plan = quiet(Shape::Sidecars, vec![(at(20), Blow::Planned { lagging: false, stopped: true })]);
        for psyncd in Shape::Sidecars.psyncds() {
            plan.blows.push((Duration::from_millis(20_300), Blow::Kills(psyncd, crash)));
        }
        plan.psyncd.journal = Some((4 << 20, 1 << 20));
        let outcome = kept(plan);
        let overtaken: u64 = outcome.counts.iter().map(|counts| counts.overtaken).sum();
        assert_eq!(overtaken, 0, "{crash:?}: {outcome:?}");
    }
}

#[test]
fn a_relay_that_believed_a_lone_sentinel_would_be_caught() {
    let lone = |believes_only| {
        let mut plan = quiet(Shape::Asking, vec![(at(20), Blow::Rogue(1, at(20)))]);
        plan.believes_only = believes_only;
        run(plan, Log::default()).violations
    };
    assert_eq!(lone(None), Vec::<String>::new());
    let said = lone(Some(1)).first().cloned().unwrap_or_default();
    assert!(said.contains("which nobody elected"), "{said:?}");
}
