//! Waiting for a condition instead of sleeping for luck.

use std::time::{Duration, Instant};

/// How long a condition may take that is bound to come: long enough for two loaded cores, short enough to be a failure.
pub const SOON: Duration = Duration::from_secs(30);

/// Asks until the answer is `Ok` and returns it. After [`SOON`] it panics, saying what was awaited and what was seen last.
#[track_caller]
pub fn wait_until<T>(what: &str, ask: impl FnMut() -> Result<T, String>) -> T {
    wait_at_most(SOON, what, ask)
}

/// [`wait_until`] with a deadline of its own.
#[track_caller]
pub fn wait_at_most<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        match ask() {
            Ok(seen) => return seen,
            Err(seen) if start.elapsed() >= limit => panic!("waited {limit:?} for: {what}\nlast seen: {seen}"),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Asks for as long as `time` and panics at the first `Err`: for things that must *not* happen.
#[track_caller]
pub fn holds_for(time: Duration, what: &str, mut ask: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    while start.elapsed() < time {
        if let Err(seen) = ask() {
            panic!("for {time:?} it had to hold that {what}\nafter {:?}: {seen}", start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `Ok` when the condition is true, else what was seen.
pub fn when(condition: bool, seen: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(seen()) }
}
