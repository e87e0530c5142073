//! How many bytes of snapshots may be sent in a second, by all senders together. The live stream has no budget: it is
//! never made to wait.
//!
//! A token bucket as a clock: the instant at which the next byte may go. Each piece moves it on by the time the piece
//! is worth, so that pieces go out in the order in which they were asked for, which is fair while they are small.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What may be caught up on at once after a pause: timers and sockets are late now and then.
const BURST: Duration = Duration::from_millis(100);
/// A piece is worth this much time, within the bounds below, so that senders take turns often.
const PIECE: Duration = Duration::from_millis(20);
/// The smallest piece in bytes: below, its overhead would matter more than its fairness.
const PIECE_MIN: u64 = 4 * 1024;

/// A budget. At most its rate times `t`, and what one burst and one piece hold, is sent in any time `t`.
#[derive(Debug)]
pub struct Budget {
    bytes_per_second: u64,
    /// When the next byte may go. Held for a few instructions, never across an await.
    next: Mutex<Instant>,
}

impl Budget {
    /// `bytes_per_second` from now on; at least 1.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), next: Mutex::new(Instant::now()) }
    }

    /// Waits for the turn of at most `most` bytes, and of fewer where that would be unfair. Cancel-safe: what was
    /// not used is given back.
    pub async fn share(&self, most: u64) -> Share<'_> {
        let piece = u64::try_from(PIECE.as_millis()).unwrap_or(u64::MAX).saturating_mul(self.bytes_per_second) / 1000;
        let bytes = most.min(piece.max(PIECE_MIN));
        let now = Instant::now();
        let turn = {
            let mut next = self.next();
            let turn = now.checked_sub(BURST).map_or(*next, |earliest| earliest.max(*next));
            *next = turn + self.time(bytes);
            turn
        };
        let share = Share { budget: self, bytes };
        if turn > now {
            sleep_until(turn).await;
        }
        share
    }

    fn time(&self, bytes: u64) -> Duration {
        Duration::from_nanos(
            u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second)).unwrap_or(u64::MAX),
        )
    }

    fn next(&self) -> MutexGuard<'_, Instant> {
        self.next.lock().expect("no one panics holding it")
    }
}

/// What may be sent now. What is not spent is given back when it drops.
#[derive(Debug)]
pub struct Share<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Share<'_> {
    /// Bytes that may be sent.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// `bytes` of it were sent.
    pub fn spend(mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let back = self.budget.time(self.bytes);
            let mut next = self.budget.next();
            *next = next.checked_sub(back).unwrap_or(*next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::time::{sleep, timeout};

    #[tokio::test(start_paused = true)]
    async fn senders_share_the_rate_evenly_and_never_exceed_it() {
        const RATE: u64 = 1_000_000;
        let budget = Arc::new(Budget::new(RATE));
        let sent: Vec<_> = (0..4).map(|_| Arc::new(AtomicU64::new(0))).collect();
        for sent in &sent {
            let (budget, sent) = (Arc::clone(&budget), Arc::clone(sent));
            tokio::spawn(async move {
                loop {
                    let share = budget.share(1 << 20).await;
                    let bytes = share.bytes();
                    sent.fetch_add(bytes, Ordering::Relaxed);
                    share.spend(bytes);
                }
            });
        }
        let total = || sent.iter().map(|sent| sent.load(Ordering::Relaxed)).sum::<u64>();
        let begin = Instant::now();
        for _ in 0..50 {
            sleep(Duration::from_millis(200)).await;
            let due = RATE * begin.elapsed().as_millis() as u64 / 1000;
            assert!(total() <= due + RATE / 5, "{} sent, {due} due", total());
            assert!(total() + RATE / 5 >= due, "{} sent, {due} due", total());
        }
        for sent in &sent {
            let sent = sent.load(Ordering::Relaxed);
            assert!(sent.abs_diff(total() / 4) <= 2 * RATE / 50, "{sent} of {}", total());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_spent_is_given_back_also_by_those_who_give_up() {
        let budget = Budget::new(100_000);
        let first = budget.share(10_000).await;
        assert_eq!(first.bytes(), PIECE_MIN, "small pieces, so that others come in between");
        first.spend(1000);
        drop(budget.share(100_000).await);
        for _ in 0..100 {
            let _ = timeout(Duration::from_millis(1), budget.share(100_000)).await;
        }
        let begin = Instant::now();
        budget.share(1000).await.spend(1000);
        assert!(begin.elapsed() < Duration::from_millis(20), "a thousand bytes are worth 10 ms: {:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_pause_only_a_burst_may_be_caught_up_on() {
        let budget = Budget::new(1_000_000);
        sleep(Duration::from_secs(3600)).await;
        let begin = Instant::now();
        let mut sent = 0;
        while begin.elapsed() < Duration::from_millis(500) {
            let share = budget.share(1 << 20).await;
            sent += share.bytes();
            let bytes = share.bytes();
            share.spend(bytes);
        }
        assert!((500_000..=640_000).contains(&sent), "{sent}");
    }
}
