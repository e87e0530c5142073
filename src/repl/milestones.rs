//! When a long transfer has something new to say of itself, and what.

use std::time::Duration;

use tokio::time::Instant;

/// Between two lines about one transfer; one that is over sooner has none.
pub const EVERY: Duration = Duration::from_secs(5);

/// One transfer, as its log lines tell it.
#[derive(Debug, Clone, Copy)]
pub struct Milestones {
    said: Instant,
    bytes: u64,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Milestone {
    /// Bytes so far.
    pub bytes: u64,
    /// Of all; none while the length is not known.
    pub percent: Option<u64>,
    /// Bytes a second since the line before.
    pub rate: u64,
    /// Seconds left at that rate; none while the length is not known, or nothing moves.
    pub eta_s: Option<u64>,
}

impl Milestones {
    /// It begins at `now`.
    pub fn new(now: Instant) -> Self {
        Self { said: now, bytes: 0 }
    }

    /// `bytes` of `length` are through at `now`: what is to be said of it, if a line is due.
    pub fn reached(&mut self, bytes: u64, length: Option<u64>, now: Instant) -> Option<Milestone> {
        let elapsed = now.saturating_duration_since(self.said);
        if elapsed < EVERY {
            return None;
        }
        let rate = (bytes.saturating_sub(self.bytes) as f64 / elapsed.as_secs_f64()) as u64;
        *self = Self { said: now, bytes };
        Some(Milestone {
            bytes,
            percent: length.map(|length| bytes.min(length).saturating_mul(100).checked_div(length).unwrap_or(100)),
            rate,
            eta_s: length.and_then(|length| length.saturating_sub(bytes).checked_div(rate)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_every_five_seconds_and_tells_rate_and_time_left() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut known = Milestones::new(began);
        assert_eq!(known.reached(10, Some(1000), at(4)), None);
        let told = known.reached(500, Some(1000), at(5)).unwrap();
        assert_eq!(told, Milestone { bytes: 500, percent: Some(50), rate: 100, eta_s: Some(5) });
        assert_eq!(known.reached(600, Some(1000), at(9)), None, "only four seconds ago");
        let told = known.reached(600, Some(1000), at(15)).unwrap();
        assert_eq!((told.rate, told.eta_s), (10, Some(40)), "the rate is that since the line before");
        let stalled = known.reached(600, Some(1000), at(20)).unwrap();
        assert_eq!((stalled.rate, stalled.eta_s), (0, None));
        let mut unknown = Milestones::new(began);
        let told = unknown.reached(500, None, at(5)).unwrap();
        assert_eq!((told.percent, told.rate, told.eta_s), (None, 100, None));
        assert_eq!(Milestones::new(began).reached(0, Some(0), at(5)).unwrap().percent, Some(100));
    }
}
