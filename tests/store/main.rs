//! The journal against a disk that loses, tears, fills and fails, and against a model that does not.
//!
//! Begin at [`model`], what every claim is held against, and [`ledger`], what a crash may leave of it; [`basics`]
//! shows the verbs.
//!
//! A failing seed prints itself. `PSYNCD_STORE_SEEDS` sets how many seeds are tried, `PSYNCD_STORE_SEED` names one.

#![allow(clippy::unwrap_used, reason = "a test says what it expects, and fails where it does not come")]

mod basics;
#[allow(dead_code, reason = "the simulation uses more of it")]
#[path = "../sim/chance.rs"]
mod chance;
mod crash;
mod damage;
#[allow(dead_code, reason = "the simulation uses more of it")]
#[path = "../sim/disk.rs"]
mod disk;
mod faults;
mod ledger;
mod measure;
mod model;
mod property;

/// Runs `test` with each seed, and says which one failed.
fn each_seed(count: u64, mut test: impl FnMut(u64)) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (first, count) = match number("PSYNCD_STORE_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("PSYNCD_STORE_SEEDS").unwrap_or(count)),
    };
    for seed in first..first + count {
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(seed))) {
            println!("seed {seed}; replay: PSYNCD_STORE_SEED={seed} cargo test --test store");
            std::panic::resume_unwind(panic);
        }
    }
}

/// One task, and time that passes only when nothing else does.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(work)
}
