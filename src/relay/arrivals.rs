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

/// An index of arrival times over the backlog. An answer is at most 100 ms (for old data: a few times that)
/// too large and never too small.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// `(o, t)`: the byte behind `o` arrived at `t`. Both never decrease.
    marks: VecDeque<(Offset, Instant)>,
}

impl Arrivals {
    /// The index as an earlier life of the process wrote it down, by the wall clock in milliseconds since 1970. What a
    /// clock that jumped makes of it is shown, and decides nothing.
    pub fn remembered(marks: &[(Offset, u64)], wall_now_ms: u64, now: Instant) -> Self {
        let mut index = Self::default();
        let mut last: Option<Instant> = None;
        for &(offset, unix_ms) in marks {
            let ago = Duration::from_millis(wall_now_ms.saturating_sub(unix_ms));
            let at = now.checked_sub(ago).unwrap_or(now);
            let at = last.map_or(at, |last| at.max(last));
            last = Some(at);
            index.record(offset, at);
        }
        index
    }

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

    /// How far the stream had come at `at`: the other way to read the index. `None` for a time before the index, which
    /// is not known; the head for now and later.
    pub fn offset_at(&self, at: Instant, head: Offset) -> Option<Offset> {
        let after = self.marks.partition_point(|&(_, arrived)| arrived <= at);
        if after == 0 {
            return None;
        }
        // The mark before says only that its bytes had begun to come; the next one, where they ended at the latest.
        Some(self.marks.get(after).map_or(head, |&(offset, _)| offset))
    }

    /// Bytes a second over the last `span`, or since the index begins where that is later.
    pub fn rate(&self, span: Duration, head: Offset, now: Instant) -> f64 {
        let Some(&(first, began)) = self.marks.front() else { return 0.0 };
        let (from, since) = match now.checked_sub(span) {
            Some(at) if at > began => (self.offset_at(at, head).unwrap_or(first), at),
            _ => (first, began),
        };
        let seconds = now.duration_since(since).as_secs_f64().max(1.0);
        head.since(from) as f64 / seconds
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
    async fn the_index_reads_both_ways_and_survives_a_clock_that_jumped() {
        let now = Instant::now() + Duration::from_secs(100);
        let mut arrivals = Arrivals::default();
        for second in 0..10u64 {
            arrivals.record(Offset::new(second * 100), now - Duration::from_secs(10 - second));
        }
        let head = Offset::new(1000);
        let at = |ago| arrivals.offset_at(now - Duration::from_millis(ago), head).map(Offset::get);
        assert_eq!((at(10_001), at(10_000), at(2_500), at(0)), (None, Some(100), Some(800), Some(1000)));
        assert_eq!(arrivals.rate(Duration::from_secs(5), head, now), (1000.0 - 600.0) / 5.0);
        assert_eq!(arrivals.rate(Duration::from_secs(500), head, now), 100.0);
        // The wall clock was put back by an hour between two marks.
        let marks = [(0, 7_200_000), (100_000, 3_600_000), (200_000, 3_601_000)].map(|(o, t)| (Offset::new(o), t));
        let remembered = Arrivals::remembered(&marks, 3_602_000, now);
        let ages = [0, 100_000, 200_000].map(|o| remembered.age(Offset::new(o), Offset::new(300_000), now).as_secs());
        assert!(ages.is_sorted_by(|a, b| a >= b), "older bytes are never younger: {ages:?}");
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
