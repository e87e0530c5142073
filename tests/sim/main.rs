//! The whole system in virtual time: a model master, what stands in front of it, model replicas, a network
//! that breaks everything into pieces, a disk that fails, faults from a seed, and the laws checked at every
//! byte.
//!
//! Reading order: [`world`] (what a run is), [`master`] and [`replica`] (the models), [`truth`] (what every
//! byte is compared with), [`network`] and [`disk`] (the seams), [`scenario`] (worlds from seeds).
//!
//! The same with several servers, Sentinels and failovers: [`failover`] (estates from seeds), [`estate`] (what a run of
//! one is), [`council`] (the Sentinels), [`node`] (a server that is now master, now replica).
//!
//! A failing seed prints the command that replays it. `PSYNCD_SIM_SEEDS` sets how many seeds a run tries; at night
//! `PSYNCD_SIM_SEEDS=1000 cargo test --test sim -- break_no_law --nocapture`.

mod chance;
mod client;
mod council;
mod disk;
mod estate;
mod failover;
mod log;
mod master;
mod network;
mod node;
mod pipe;
mod product;
mod promises;
mod rdb;
mod replica;
mod resp;
mod scenario;
mod storm;
mod stream;
mod teeth;
mod truth;
mod world;

use std::rc::Rc;

use log::Log;
use scenario::Kind;
use world::{Outcome, Plan, Subject};

/// Seeds tried by default: a few seconds on one core.
fn default_seeds(kind: Kind) -> u64 {
    match kind {
        // The models against each other: they change less often than psyncd.
        Kind::Direct | Kind::Piped => 10,
        Kind::Proxied => 25,
    }
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number")))
}

fn subject(kind: Kind, plan: &Plan) -> Option<Rc<dyn Subject>> {
    match kind {
        Kind::Direct => None,
        Kind::Piped => Some(Rc::new(pipe::Pipe)),
        Kind::Proxied => Some(product::Psyncd::new(plan)),
    }
}

fn run(kind: Kind, seed: u64, log: Log) -> (Plan, Outcome) {
    let plan = scenario::plan(kind, seed);
    let outcome = world::run(plan.clone(), subject(kind, &plan), log);
    (plan, outcome)
}

/// Tries many seeds; the first that breaks a law is told with all that is needed to replay it.
fn explore(kind: Kind) {
    let (first, count) = match number_from("PSYNCD_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number_from("PSYNCD_SIM_SEEDS").unwrap_or_else(|| default_seeds(kind))),
    };
    for seed in first..first + count {
        let (plan, outcome) = run(kind, seed, Log::default());
        if let Some(violation) = outcome.violations.first() {
            let from = outcome.events.len().saturating_sub(60);
            for event in &outcome.events[from..] {
                println!("{event}");
            }
            let name = kind.as_str();
            panic!(
                "{violation}\nseed {seed} of {name}: {plan:#?}\nreplay: PSYNCD_SIM_SEED={seed} PSYNCD_SIM_KIND={name} cargo test --test sim -- replay --nocapture"
            );
        }
    }
}

struct VirtualTime;

impl tracing_subscriber::fmt::time::FormatTime for VirtualTime {
    fn format_time(&self, out: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(out, "{:>10.3}", turmoil::sim_elapsed().unwrap_or_default().as_secs_f64())
    }
}

/// Does nothing unless a seed is named; then prints everything that happens.
#[test]
fn replay() {
    let Some(seed) = number_from("PSYNCD_SIM_SEED") else { return };
    let name = std::env::var("PSYNCD_SIM_KIND").unwrap_or_else(|_| Kind::ALL[0].as_str().to_owned());
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == name).expect("PSYNCD_SIM_KIND is a known kind");
    let log = Log::default();
    log.echo();
    let said = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false).with_timer(VirtualTime);
    let _said = tracing::subscriber::set_default(said.finish());
    let (plan, outcome) = run(kind, seed, log);
    println!("{plan:#?}");
    println!("{:?}\n{:?}", outcome.master, outcome.replicas);
    assert!(outcome.violations.is_empty(), "{:?}", outcome.violations);
}

#[test]
fn replicas_of_the_model_master_itself_break_no_law() {
    explore(Kind::Direct);
}

#[test]
fn replicas_behind_a_plain_pipe_break_no_law() {
    explore(Kind::Piped);
}

#[test]
fn replicas_behind_psyncd_break_no_law() {
    explore(Kind::Proxied);
}

#[test]
fn the_same_seed_gives_the_same_log() {
    for kind in Kind::ALL {
        for seed in 0..2 {
            let (_, first) = run(kind, seed, Log::default());
            let (_, second) = run(kind, seed, Log::default());
            let differs = first.events.iter().zip(&second.events).find(|(a, b)| a != b);
            assert!(differs.is_none(), "seed {seed}: {differs:?}");
            assert_eq!(first.events.len(), second.events.len(), "seed {seed}");
        }
    }
}
