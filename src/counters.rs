//! What components count with: plain atomics, indexed by enums so that every label value exists from the start. A
//! counter that appears with its first event hides that event from `increase()`.
//!
//! Knows nothing of Prometheus, so that components below can use it.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A closed set of words that are metric labels and log fields alike. [`label!`](crate::label) writes it.
pub trait Label: Copy + 'static {
    /// Every value, once.
    const ALL: &'static [Self];

    /// The word.
    fn as_str(&self) -> &'static str;

    /// Its place in [`Label::ALL`].
    fn index(&self) -> usize;
}

/// Defines an enum whose values are words, with [`Label`] and `Display` for it.
///
/// ```
/// psyncd::label! {
///     /// How it went.
///     pub enum Outcome {
///         /// Well.
///         Ok = "ok",
///         /// The peer said no.
///         Refused = "refused",
///     }
/// }
/// use psyncd::counters::Label;
/// assert_eq!((Outcome::Refused.as_str(), Outcome::ALL.len()), ("refused", 2));
/// ```
#[macro_export]
macro_rules! label {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$doc:meta])* $value:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $name { $($(#[$doc])* $value),+ }

        impl $crate::counters::Label for $name {
            const ALL: &'static [Self] = &[$(Self::$value),+];

            fn as_str(&self) -> &'static str {
                match self { $(Self::$value => $word),+ }
            }

            fn index(&self) -> usize {
                *self as usize
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str($crate::counters::Label::as_str(self))
            }
        }
    };
}

/// A number that only rises. It orders nothing: whoever reads it learns a recent value, not what led to it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One counter for each value of `L`.
#[derive(Debug)]
pub struct CounterSet<L> {
    cells: Box<[Counter]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label> CounterSet<L> {
    /// All zero.
    pub fn new() -> Self {
        Self { cells: L::ALL.iter().map(|_| Counter::new()).collect(), label: PhantomData }
    }

    /// Adds one.
    pub fn increment(&self, label: L) {
        self.add(label, 1);
    }

    /// Adds `n`.
    pub fn add(&self, label: L, n: u64) {
        self.cells[label.index()].add(n);
    }

    /// How many so far.
    pub fn get(&self, label: L) -> u64 {
        self.cells[label.index()].get()
    }

    /// How many of all kinds together.
    pub fn sum(&self) -> u64 {
        self.cells.iter().map(Counter::get).sum()
    }

    /// Every value with its count, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (L, u64)> + '_ {
        L::ALL.iter().map(|label| (*label, self.get(*label)))
    }
}

impl<L: Label> Default for CounterSet<L> {
    fn default() -> Self {
        Self::new()
    }
}

/// Upper bounds, in seconds, for what takes from milliseconds to an hour.
pub const LONG_SECONDS: &[f64] = &[0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

/// Upper bounds, in seconds, for what should take less than a moment.
pub const SHORT_SECONDS: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

/// How often a duration fell into each of a few ranges.
#[derive(Debug)]
pub struct Histogram {
    /// Ascending, inclusive, in seconds.
    bounds: &'static [f64],
    /// One for each bound, and one for what lies above all.
    cells: Box<[Counter]>,
    sum_nanos: Counter,
}

/// A [`Histogram`] at one moment. Its count and its ranges agree; its sum may be some observations ahead or behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Each bound in seconds with how many observations do not exceed it.
    pub cumulative: Vec<(f64, u64)>,
    /// All observations.
    pub count: u64,
    /// Their sum.
    pub sum: Duration,
}

impl Histogram {
    /// Empty. `bounds` are in seconds and ascend.
    pub fn new(bounds: &'static [f64]) -> Self {
        debug_assert!(bounds.is_sorted(), "bounds ascend");
        let cells = (0..=bounds.len()).map(|_| Counter::new()).collect();
        Self { bounds, cells, sum_nanos: Counter::new() }
    }

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.cells[self.bounds.partition_point(|bound| *bound < seconds)].increment();
        self.sum_nanos.add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// What was counted so far.
    pub fn read(&self) -> Reading {
        let mut count = 0;
        let mut cumulative = Vec::with_capacity(self.bounds.len());
        for (bound, cell) in self.bounds.iter().zip(&self.cells) {
            count += cell.get();
            cumulative.push((*bound, count));
        }
        count += self.cells.last().map_or(0, Counter::get);
        Reading { cumulative, count, sum: Duration::from_nanos(self.sum_nanos.get()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::label! {
        enum Three {
            A = "a",
            B = "b",
            C = "c",
        }
    }

    #[test]
    fn every_label_is_there_before_it_is_counted() {
        let set = CounterSet::<Three>::new();
        set.increment(Three::B);
        set.add(Three::C, 4);
        let all: Vec<_> = set.iter().map(|(label, count)| (label.as_str(), count)).collect();
        assert_eq!(all, [("a", 0), ("b", 1), ("c", 4)]);
        assert_eq!((set.sum(), set.get(Three::A)), (5, 0));
    }

    #[test]
    fn a_label_stands_where_its_index_says() {
        for (place, label) in Three::ALL.iter().enumerate() {
            assert_eq!((label.index(), label.to_string()), (place, label.as_str().to_owned()));
        }
    }

    #[test]
    fn a_bound_belongs_to_its_range() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for seconds in [0, 1, 2, 3] {
            histogram.observe(Duration::from_secs(seconds));
        }
        let read = histogram.read();
        assert_eq!((read.cumulative, read.count), (vec![(1.0, 2), (2.0, 3)], 4));
        assert_eq!(read.sum, Duration::from_secs(6));
    }
}
