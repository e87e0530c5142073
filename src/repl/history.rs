//! Which ids name the stream we hold, and up to where.

use std::collections::VecDeque;

use super::position::{Offset, Position, ReplId};

/// An id the stream carried before, and the last point up to which that id's stream and ours are the
/// same bytes. Redis keeps one (`replid2`, `second_repl_offset`); we keep as many as configured, so that
/// a replica that slept through several failovers still continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    /// The earlier id.
    pub id: ReplId,
    /// `(id, o)` is on our line exactly when `o <= boundary`. This is `second_repl_offset - 1`.
    pub boundary: Offset,
}

/// The current id and its ancestors, newest first, with non-increasing boundaries.
///
/// ```
/// use psyncd::repl::{History, Lineage, Offset, Position, ReplId};
/// let old: ReplId = "a".repeat(40).parse().unwrap();
/// let new: ReplId = "b".repeat(40).parse().unwrap();
/// let mut history = History::new(old, 16);
/// history.branch(Offset::new(100), new);
/// assert_eq!(history.locate(&Position::new(old, Offset::new(100))), Lineage::Ancestor { depth: 0 });
/// assert_eq!(history.locate(&Position::new(old, Offset::new(101))), Lineage::Diverged { boundary: Offset::new(100) });
/// assert_eq!(history.locate(&Position::new(new, Offset::new(101))), Lineage::Current);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    current: ReplId,
    ancestors: VecDeque<Ancestor>,
    depth: usize,
}

/// How a position relates to a [`History`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lineage {
    /// Of the current id.
    Current,
    /// Of an earlier id, at a point where that id's stream was still ours.
    Ancestor {
        /// 0 for the newest earlier id, the only one a server remembers.
        depth: usize,
    },
    /// Of an earlier id, behind the point where the streams parted: whoever stands there has bytes that
    /// are not ours.
    Diverged {
        /// The last common point.
        boundary: Offset,
    },
    /// Of an id that was never ours.
    Unknown,
}

impl History {
    /// Ancestors remembered by default.
    pub const DEFAULT_DEPTH: usize = 16;

    /// A history without ancestors that will remember at most `depth` of them.
    pub fn new(current: ReplId, depth: usize) -> Self {
        Self { current, ancestors: VecDeque::new(), depth }
    }

    /// The id new bytes belong to.
    pub fn current(&self) -> ReplId {
        self.current
    }

    /// Earlier ids, newest first.
    pub fn ancestors(&self) -> impl ExactSizeIterator<Item = &Ancestor> {
        self.ancestors.iter()
    }

    /// From `at` on the stream continues under `id`. The current id becomes the newest ancestor, and no
    /// ancestor keeps a claim beyond `at`, since the bytes behind it are not theirs. A branch to the id
    /// that is current already changes nothing.
    pub fn branch(&mut self, at: Offset, id: ReplId) {
        if id == self.current {
            return;
        }
        for ancestor in &mut self.ancestors {
            ancestor.boundary = ancestor.boundary.min(at);
        }
        self.ancestors.push_front(Ancestor { id: self.current, boundary: at });
        self.current = id;
        // An id that becomes current again is current without a boundary, not an ancestor as well.
        self.ancestors.retain(|a| a.id != id);
        self.ancestors.truncate(self.depth);
    }

    /// Learns, from a master that says so, that `id` was ours up to `boundary`. Known ids keep what is
    /// known of them: we saw it ourselves.
    pub fn learn(&mut self, id: ReplId, boundary: Offset) {
        if id == self.current || self.ancestors.iter().any(|a| a.id == id) {
            return;
        }
        let at = self.ancestors.iter().position(|a| a.boundary < boundary).unwrap_or(self.ancestors.len());
        self.ancestors.insert(at, Ancestor { id, boundary });
        self.ancestors.truncate(self.depth);
    }

    /// Where `position` stands relative to our line. Says nothing about whether the bytes are still held.
    pub fn locate(&self, position: &Position) -> Lineage {
        if position.id == self.current {
            return Lineage::Current;
        }
        match self.ancestors.iter().enumerate().find(|(_, a)| a.id == position.id) {
            Some((depth, a)) if position.offset <= a.boundary => Lineage::Ancestor { depth },
            Some((_, a)) => Lineage::Diverged { boundary: a.boundary },
            None => Lineage::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> ReplId {
        ReplId::from_ascii(format!("{n:040x}").as_bytes()).unwrap()
    }

    #[test]
    fn a_branch_below_an_older_boundary_lowers_it() {
        let mut history = History::new(id(1), 16);
        history.branch(Offset::new(100), id(2));
        history.branch(Offset::new(60), id(3));
        assert_eq!(
            history.locate(&Position::new(id(1), Offset::new(61))),
            Lineage::Diverged { boundary: Offset::new(60) }
        );
        assert_eq!(history.locate(&Position::new(id(1), Offset::new(60))), Lineage::Ancestor { depth: 1 });
    }

    #[test]
    fn an_id_that_comes_back_is_current_and_no_ancestor() {
        let mut history = History::new(id(1), 16);
        history.branch(Offset::new(10), id(2));
        history.branch(Offset::new(20), id(1));
        assert_eq!(history.locate(&Position::new(id(1), Offset::new(15))), Lineage::Current);
        assert_eq!(history.ancestors().len(), 1);
    }

    #[test]
    fn what_a_master_says_of_its_second_id_is_learned_once() {
        let mut history = History::new(id(1), 16);
        history.learn(id(2), Offset::new(50));
        history.learn(id(2), Offset::new(99));
        assert_eq!(
            history.locate(&Position::new(id(2), Offset::new(51))),
            Lineage::Diverged { boundary: Offset::new(50) }
        );
    }

    /// Real bytes for every id of a random sequence of branches: the model a history is held against.
    #[derive(Debug, Clone)]
    enum Step {
        Append(u8),
        Branch(u8),
    }

    proptest! {
        #[test]
        fn whatever_is_located_on_our_line_is_a_true_prefix(
            steps in prop::collection::vec(
                prop_oneof![(1u8..6).prop_map(Step::Append), any::<u8>().prop_map(Step::Branch)], 1..40),
            depth in 1usize..6,
        ) {
            // Every byte is distinct, so equal prefixes mean the same stream.
            let mut streams: Vec<Vec<u32>> = vec![vec![]];
            let mut next = 0u32;
            let mut history = History::new(id(0), depth);
            for step in steps {
                match step {
                    Step::Append(n) => for _ in 0..n {
                        streams.last_mut().unwrap().push(next);
                        next += 1;
                    },
                    Step::Branch(x) => {
                        let ours = streams.last().unwrap();
                        let at = x as usize % (ours.len() + 1);
                        let common = ours[..at].to_vec();
                        streams.push(common);
                        history.branch(Offset::new(at as u64), id(streams.len() as u8 - 1));
                    }
                }
            }
            let ours = streams.last().unwrap();
            for (n, stream) in streams.iter().enumerate() {
                for o in 0..=stream.len() {
                    let same = ours.len() >= o && ours[..o] == stream[..o];
                    let said = history.locate(&Position::new(id(n as u8), Offset::new(o as u64)));
                    match said {
                        Lineage::Ancestor { .. } => prop_assert!(same, "{n} {o}"),
                        Lineage::Diverged { .. } => prop_assert!(!same, "{n} {o}"),
                        Lineage::Current => prop_assert_eq!(n, streams.len() - 1),
                        Lineage::Unknown => prop_assert!(history.ancestors().len() == depth),
                    }
                }
            }
            prop_assert!(history.ancestors().len() <= depth);
        }
    }
}
