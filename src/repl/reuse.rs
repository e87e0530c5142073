//! Whether a snapshot we have is worth sending, or a fresh one worth its cost.
//!
//! Whoever is sent an old snapshot also has to apply all of the stream since then. There is no age at which that
//! becomes wrong; it becomes wrong when a fresh one is *both* sooner there and less to move:
//!
//! ```text
//!              time until the replica is there        bytes that move
//!   reuse      S / rate  +  tail / APPLY_RATE         S + tail
//!   refresh    wait + F / rate                        2 F   (to us, and on to the replica)
//! ```
//!
//! where S is the snapshot we have and F the fresh one, as large as S where nothing better is known. So a tail shorter
//! than the data set never costs anybody a fork, and neither does one that is applied sooner than a fork takes.

use std::time::Duration;

/// Bytes a second at which a snapshot moves, while it was not measured: a gigabit link.
pub const RATE: u64 = 100 << 20;
/// Bytes a second of stream that a replica applies: small commands on one slow core. A guess on the low side makes
/// long tails look worse than they are, and the comparison of bytes then still stands in front of the fork.
pub const APPLY_RATE: u64 = 32 << 20;
/// Between the request for a snapshot and its first byte, while it was not measured: a fork, and the seconds a master
/// waits for more replicas (`repl-diskless-sync-delay`).
pub const WAIT: Duration = Duration::from_secs(5);

/// A snapshot that could be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cached {
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes of the stream from its position to the head.
    pub tail_bytes: u64,
}

/// What is known of fresh snapshots from the last one that arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Its size in bytes.
    pub bytes: Option<u64>,
    /// Bytes a second at which it arrived.
    pub rate: Option<u64>,
    /// From the request to its first byte.
    pub wait: Option<Duration>,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Send what there is.
    Reuse,
    /// Have a fresh one made.
    Refresh,
}

/// Decides by estimated time and bytes. Says nothing of whether a fresh one can be had.
pub fn choose(cached: &Cached, outlook: &Outlook) -> Choice {
    let fresh = outlook.bytes.unwrap_or(cached.bytes);
    let rate = outlook.rate.unwrap_or(RATE).max(1);
    let millis = |bytes: u64, rate: u64| u128::from(bytes) * 1000 / u128::from(rate);
    let reuse_ms = millis(cached.bytes, rate) + millis(cached.tail_bytes, APPLY_RATE);
    let refresh_ms = outlook.wait.unwrap_or(WAIT).as_millis() + millis(fresh, rate);
    let reuse_bytes = u128::from(cached.bytes) + u128::from(cached.tail_bytes);
    let refresh_bytes = 2 * u128::from(fresh);
    match refresh_ms < reuse_ms && refresh_bytes < reuse_bytes {
        true => Choice::Refresh,
        false => Choice::Reuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MB: u64 = 1 << 20;
    const GB: u64 = 1 << 30;

    #[test]
    fn a_tail_is_replaced_only_where_that_is_sooner_and_less() {
        let measured = |bytes, wait_s| Outlook {
            bytes: Some(bytes),
            rate: Some(200 * MB),
            wait: Some(Duration::from_secs(wait_s)),
        };
        for (bytes, tail_bytes, outlook, choice) in [
            (20 * GB, 4 * GB, Outlook::default(), Choice::Reuse),
            (20 * GB, 19 * GB, Outlook::default(), Choice::Reuse),
            (20 * GB, 21 * GB, Outlook::default(), Choice::Refresh),
            (10 * MB, 100 * MB, Outlook::default(), Choice::Reuse),
            (10 * MB, 200 * MB, Outlook::default(), Choice::Refresh),
            (0, 0, Outlook::default(), Choice::Reuse),
            // A master whose fork takes a minute.
            (GB, 3 * GB / 2, measured(GB, 60), Choice::Reuse),
            (GB, 3 * GB, measured(GB, 60), Choice::Refresh),
            // A data set that grew since, and one that shrank.
            (GB, 3 * GB, measured(8 * GB, 1), Choice::Reuse),
            (8 * GB, GB, measured(GB, 1), Choice::Refresh),
        ] {
            assert_eq!(choose(&Cached { bytes, tail_bytes }, &outlook), choice, "{bytes} + {tail_bytes}, {outlook:?}");
        }
    }

    proptest! {
        #[test]
        fn a_tail_no_longer_than_the_data_set_is_never_replaced_by_an_equal_one(
            bytes: u64, share in 0.0f64..=1.0, rate: Option<u64>, wait_ms: Option<u32>,
        ) {
            let tail_bytes = (bytes as f64 * share) as u64;
            prop_assume!(tail_bytes <= bytes);
            let wait = wait_ms.map(|ms| Duration::from_millis(ms.into()));
            let outlook = Outlook { bytes: None, rate, wait };
            prop_assert_eq!(choose(&Cached { bytes, tail_bytes }, &outlook), Choice::Reuse);
        }

        #[test]
        fn a_longer_tail_never_speaks_for_reuse(
            bytes in 0u64..1 << 40, tail in 0u64..1 << 42, more in 0u64..1 << 42, fresh: Option<u32>, rate: Option<u32>,
        ) {
            let outlook = Outlook { bytes: fresh.map(u64::from), rate: rate.map(u64::from), wait: None };
            let at = |tail_bytes| choose(&Cached { bytes, tail_bytes }, &outlook);
            prop_assert!(at(tail) == Choice::Reuse || at(tail + more) == Choice::Refresh);
        }

        #[test]
        fn there_is_a_tail_for_which_a_fresh_one_is_better(bytes in 0u64..1 << 40) {
            let cached = Cached { bytes, tail_bytes: bytes * 200 + (1 << 40) };
            prop_assert_eq!(choose(&cached, &Outlook::default()), Choice::Refresh);
        }
    }
}
