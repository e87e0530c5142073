//! Counting: closed sets of labels, each with its own atomic counter, so that every value a label can take is
//! there from the start and no text of a peer ever becomes one.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

/// A closed set of label values.
pub trait Label: Copy + Sized + 'static {
    /// All of them, in order.
    const ALL: &'static [Self];

    /// Its place in [`ALL`](Self::ALL).
    fn index(self) -> usize;

    /// The values of the labels it stands for, outermost first: usually one.
    fn values(self) -> &'static [&'static str];

    /// The innermost value: the word for logs.
    fn as_str(self) -> &'static str {
        self.values().last().copied().unwrap_or_default()
    }
}

/// Declares an enum that is a [`Label`]: each variant with the value, or the values, of its labels.
macro_rules! label {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$vdoc:meta])* $variant:ident => $($value:literal),+;)* }) => { compile_error!("separate with commas") };
    ($(#[$doc:meta])* pub enum $name:ident { $($body:tt)* }) => {
        $crate::count::label!(@split [$(#[$doc])*] $name [] $($body)*);
    };
    (@split [$($doc:tt)*] $name:ident [$($done:tt)*]) => {
        $crate::count::label!(@emit [$($doc)*] $name $($done)*);
    };
    (@split [$($doc:tt)*] $name:ident [$($done:tt)*] $(#[$vdoc:meta])* $variant:ident => $a:literal, $b:literal, $($rest:tt)*) => {
        $crate::count::label!(@split [$($doc)*] $name [$($done)* {[$(#[$vdoc])*] $variant [$a, $b]}] $($rest)*);
    };
    (@split [$($doc:tt)*] $name:ident [$($done:tt)*] $(#[$vdoc:meta])* $variant:ident => $a:literal, $($rest:tt)*) => {
        $crate::count::label!(@split [$($doc)*] $name [$($done)* {[$(#[$vdoc])*] $variant [$a]}] $($rest)*);
    };
    (@emit [$($doc:tt)*] $name:ident $({[$($vdoc:tt)*] $variant:ident [$($value:literal),+]})*) => {
        $($doc)*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($($vdoc)* $variant,)* }

        impl $crate::count::Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            fn index(self) -> usize {
                self as usize
            }

            fn values(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($value),+],)* }
            }
        }
    };
}
pub(crate) use label;

/// One counter per value of a label.
#[derive(Debug)]
pub struct CounterSet<L> {
    counters: Box<[AtomicU64]>,
    label: PhantomData<L>,
}

impl<L: Label> Default for CounterSet<L> {
    fn default() -> Self {
        Self { counters: L::ALL.iter().map(|_| AtomicU64::new(0)).collect(), label: PhantomData }
    }
}

impl<L: Label> CounterSet<L> {
    /// One more.
    pub fn count(&self, label: L) {
        self.add(label, 1);
    }

    /// `more` more.
    pub fn add(&self, label: L, more: u64) {
        self.counters[label.index()].fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self, label: L) -> u64 {
        self.counters[label.index()].load(Ordering::Relaxed)
    }

    /// All values with their counts, zeros included.
    pub fn all(&self) -> impl Iterator<Item = (L, u64)> + '_ {
        L::ALL.iter().map(|&label| (label, self.get(label)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    label! {
        /// Fruit.
        pub enum Fruit {
            /// Red.
            Apple => "apple",
            /// Two words.
            Pear => "green", "pear",
        }
    }

    #[test]
    fn every_value_is_there_from_the_start() {
        let counters = CounterSet::<Fruit>::default();
        counters.count(Fruit::Pear);
        counters.add(Fruit::Pear, 2);
        let all: Vec<_> = counters.all().collect();
        assert_eq!(all, [(Fruit::Apple, 0), (Fruit::Pear, 3)]);
        assert_eq!(Fruit::Pear.values(), ["green", "pear"]);
        assert_eq!((Fruit::Apple.as_str(), Fruit::Pear.as_str()), ("apple", "pear"));
    }
}
