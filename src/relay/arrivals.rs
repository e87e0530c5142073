//! When which byte arrived: what turns a lag in bytes into a lag in seconds of data.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::repl::Offset;

/// Marks closer than this are not worth their memory.
const STEP: Duration = Duration::from_millis(100);
/// Bytes after which a mark is set even within [`STEP`].
const STRIDE: u64 = 64 * 1024;
/// Marks kept. Beyond, the older half is thinned: 16 bytes each, 1 MiB in all.
const MARKS: usize = 65_536;

/// An index of arrival times over the backlog. An answer is at most [`STEP`] (for old data: a few times that)
/// too large and never too small.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// `(o, t)`: the byte behind `o` arrived at `t`. Both never decrease.
    marks: VecDeque<(Offset, Instant)>,
}

impl Arrivals {
    /// Bytes from `start` on arrived at `now`.
    pub fn record(&mut self, start: Offset, now: Instant) {
        if let Some(&(offset, at)) = self.marks.back()
            && now.duration_since(at) < STEP
            && start.since(offset) < STRIDE
        {
            return;
        }
        if self.marks.len() >= MARKS {
            self.thin();
        }
        self.marks.push_back((start, now));
    }

    /// How long ago the first byte behind `point` arrived: zero when `point` is `head`, since then it has not.
    /// For a point older than the index this is the age of its oldest mark, a lower bound.
    pub fn age(&self, point: Offset, head: Offset, now: Instant) -> Duration {
        if point >= head {
            return Duration::ZERO;
        }
        let after = self.marks.partition_point(|&(offset, _)| offset <= point);
        match self.marks.get(after.saturating_sub(1)) {
            Some(&(_, at)) => now.duration_since(at),
            None => Duration::ZERO,
        }
    }

    /// Forgets what is needed only for bytes before `start`.
    pub fn forget_before(&mut self, start: Offset) {
        while self.marks.len() > 1 && self.marks[1].0 <= start {
            self.marks.pop_front();
        }
    }

    /// Forgets what is known of bytes behind `at`.
    pub fn truncate(&mut self, at: Offset) {
        while self.marks.back().is_some_and(|&(offset, _)| offset >= at) {
            self.marks.pop_back();
        }
    }

    /// Drops every second mark of the older half.
    fn thin(&mut self) {
        let half = self.marks.len() / 2;
        let mut at = 0;
        self.marks.retain(|_| {
            at += 1;
            at > half || at % 2 == 1
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_age_of_a_byte_is_the_time_since_it_arrived() {
        let begin = Instant::now();
        let mut arrivals = Arrivals::default();
        for second in 0..10u64 {
            arrivals.record(Offset::new(second * 100), begin + Duration::from_secs(second));
        }
        let now = begin + Duration::from_secs(10);
        let head = Offset::new(1000);
        let age = |o| arrivals.age(Offset::new(o), head, now).as_secs();
        assert_eq!((age(0), age(99), age(100), age(950), age(1000)), (10, 10, 9, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_index_is_bounded_and_never_says_too_little() {
        let begin = Instant::now();
        let mut arrivals = Arrivals::default();
        let total = 3 * MARKS as u64;
        for n in 0..total {
            arrivals.record(Offset::new(n), begin + STEP * n as u32);
        }
        assert!(arrivals.marks.len() <= MARKS);
        let now = begin + STEP * total as u32;
        for n in [0, 5, 1000, total / 2, total - 2] {
            let age = arrivals.age(Offset::new(n), Offset::new(total), now);
            assert!(age >= STEP * (total - n) as u32, "{n}");
        }
        arrivals.forget_before(Offset::new(total - 3));
        assert!(arrivals.marks.len() <= 4);
    }
}
