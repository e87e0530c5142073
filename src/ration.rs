//! How often something is said that strangers can bring about as often as they like: a log that they fill hides what matters.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Lines in each window.
const LINES: u32 = 10;
/// The window.
const WINDOW: Duration = Duration::from_secs(10);

/// At most ten lines in ten seconds; the next one says how many were left out.
#[derive(Debug)]
pub struct Ration {
    /// Held for a few instructions.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    said: u32,
    unsaid: u64,
}

impl Default for Ration {
    fn default() -> Self {
        Self { state: Mutex::new(State { since: Instant::now(), said: 0, unsaid: 0 }) }
    }
}

impl Ration {
    /// Whether another line may be said at `now`, and how many were not since the last.
    pub fn take(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().expect("no one panics holding it");
        if now.saturating_duration_since(state.since) >= WINDOW {
            *state = State { since: now, said: 0, unsaid: state.unsaid };
        }
        if state.said >= LINES {
            state.unsaid += 1;
            return None;
        }
        state.said += 1;
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_told_by_ten_lines_and_a_number() {
        let (ration, now) = (Ration::default(), Instant::now());
        let said = (0..1000).filter(|_| ration.take(now).is_some()).count();
        assert_eq!(said, 10);
        assert_eq!(ration.take(now + WINDOW), Some(990), "those left out are counted");
        assert_eq!(ration.take(now + WINDOW), Some(0));
    }
}
