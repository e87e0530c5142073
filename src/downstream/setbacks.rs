//! Replicas whose full resyncs fail: each has to wait longer before the next, so that one that flaps cannot keep a turn
//! busy that others need.
//!
//! Known by the address they announce, because every attempt comes on a new connection. Whoever announces none is not
//! known here: it can only be one of many behind one address, and the line has it start at the end each time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::repl::policy::Backoff;

/// Addresses remembered. Beyond, the one whose last failure is the longest ago is forgotten.
const REMEMBERED: usize = 1024;
/// A failure is forgotten this long after the last one; longer than the longest wait.
const MEMORY: Duration = Duration::from_secs(600);

/// Who failed, how often in a row, and when last.
#[derive(Debug, Default)]
pub struct Setbacks {
    /// Held for a few instructions, never across an await.
    table: Mutex<HashMap<String, Setback>>,
}

/// The failures of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setback {
    /// Full resyncs in a row that were begun and not finished; at least 1.
    pub failures: u32,
    last: Instant,
}

impl Setback {
    /// Before this instant no snapshot is sent to it.
    pub fn until(&self) -> Instant {
        self.last + Backoff::RESYNC.delay(self.failures)
    }
}

impl Setbacks {
    /// A full resync of `replica` was begun and failed at `now`.
    pub fn failed(&self, replica: &str, now: Instant) {
        let mut table = self.table();
        table.retain(|_, setback| now.duration_since(setback.last) < MEMORY);
        if let Some(setback) = table.get_mut(replica) {
            *setback = Setback { failures: setback.failures.saturating_add(1), last: now };
            return;
        }
        if table.len() >= REMEMBERED
            && let Some(oldest) = table.iter().min_by_key(|(_, setback)| setback.last).map(|(name, _)| name.clone())
        {
            table.remove(&oldest);
        }
        table.insert(replica.to_owned(), Setback { failures: 1, last: now });
    }

    /// A full resync of `replica` was taken whole: what was before is forgotten.
    pub fn succeeded(&self, replica: &str) {
        self.table().remove(replica);
    }

    /// Why `replica` has to wait at `now`, if it has to.
    pub fn holding(&self, replica: &str, now: Instant) -> Option<Setback> {
        self.table().get(replica).copied().filter(|setback| now < setback.until())
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Setback>> {
        self.table.lock().expect("no one panics holding it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_failure_in_a_row_doubles_the_wait_up_to_a_minute_and_a_success_ends_it() {
        let setbacks = Setbacks::default();
        let mut now = Instant::now();
        assert_eq!(setbacks.holding("a", now), None);
        let mut waits = Vec::new();
        for _ in 0..9 {
            setbacks.failed("a", now);
            let until = setbacks.holding("a", now).unwrap().until();
            waits.push((until - now).as_secs());
            assert!(setbacks.holding("a", until - Duration::from_millis(1)).is_some());
            assert_eq!(setbacks.holding("a", until), None, "the wait is over");
            now = until;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(setbacks.holding("b", now), None, "only it");
        setbacks.failed("a", now);
        setbacks.succeeded("a");
        assert_eq!(setbacks.holding("a", now), None);
        setbacks.failed("a", now);
        assert_eq!(setbacks.holding("a", now).unwrap().failures, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_forgotten_with_time_and_the_table_has_an_end() {
        let setbacks = Setbacks::default();
        let begin = Instant::now();
        setbacks.failed("old", begin);
        setbacks.failed("old", begin);
        setbacks.failed("old", begin + MEMORY);
        assert_eq!(setbacks.holding("old", begin + MEMORY).unwrap().failures, 1, "a new beginning");
        for n in 0..2 * REMEMBERED {
            setbacks.failed(&n.to_string(), begin + MEMORY + Duration::from_millis(1 + n as u64 / 100));
        }
        let now = begin + MEMORY + Duration::from_millis(30);
        assert_eq!(setbacks.table().len(), REMEMBERED);
        assert_eq!(setbacks.holding("old", now), None);
        assert!(setbacks.holding(&(2 * REMEMBERED - 1).to_string(), now).is_some());
    }
}
