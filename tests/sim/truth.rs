//! What every master ever said: for each id the exact bytes at each offset.
//!
//! A line either begins from nothing (a data set nobody shares) or branches off another line. A point of
//! one line lies on another when both ancestries, walked down to that point, end on the same line.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use psyncd::repl::{Offset, Position, ReplId};

struct Line {
    parent: Option<Position>,
    start: u64,
    bytes: Vec<u8>,
    /// Ends of commands outside of transactions, ascending, `start` included.
    boundaries: Vec<u64>,
}

/// The append-only record, shared by all. The lock is held for one call.
#[derive(Clone, Default)]
pub struct Truth(Arc<Mutex<BTreeMap<ReplId, Line>>>);

impl Truth {
    fn lines(&self) -> MutexGuard<'_, BTreeMap<ReplId, Line>> {
        self.0.lock().expect("no holder panics")
    }

    /// A new line that shares nothing with any other.
    pub fn begin(&self, id: ReplId, at: Offset) {
        self.insert(id, None, at.get());
    }

    /// A new line that shares everything up to `from` with another.
    pub fn branch(&self, id: ReplId, from: Position) {
        self.insert(id, Some(from), from.offset.get());
    }

    fn insert(&self, id: ReplId, parent: Option<Position>, start: u64) {
        let line = Line { parent, start, bytes: Vec::new(), boundaries: vec![start] };
        assert!(self.lines().insert(id, line).is_none(), "the model reused an id");
    }

    /// Appends whole commands.
    pub fn append(&self, id: ReplId, bytes: &[u8]) {
        let mut lines = self.lines();
        let line = lines.get_mut(&id).expect("a master writes only to a line it began");
        line.bytes.extend_from_slice(bytes);
        line.boundaries.push(line.start + line.bytes.len() as u64);
    }

    /// The end of a line.
    pub fn head(&self, id: ReplId) -> Offset {
        let lines = self.lines();
        let line = &lines[&id];
        Offset::new(line.start + line.bytes.len() as u64)
    }

    /// The newest boundary of `id` at or below `at`, on its own part of the line.
    pub fn boundary_below(&self, id: ReplId, at: Offset) -> Offset {
        let lines = self.lines();
        let line = &lines[&id];
        let n = line.boundaries.partition_point(|&b| b <= at.get());
        Offset::new(line.boundaries[n.saturating_sub(1)])
    }

    /// At most `max` bytes of the line of `id` behind `from`; empty at the head and where nobody knows.
    pub fn read(&self, id: ReplId, from: Offset, max: usize) -> Vec<u8> {
        let lines = self.lines();
        let mut out = Vec::new();
        let mut at = from.get();
        while out.len() < max {
            let Some((bytes, end)) = owner(&lines, id, at) else { break };
            let skip = at - bytes.0;
            let upto = (end - bytes.0).min(skip + (max - out.len()) as u64);
            if upto <= skip {
                break;
            }
            out.extend_from_slice(&bytes.1[skip as usize..upto as usize]);
            at = bytes.0 + upto;
        }
        out
    }

    /// Whether the data set at `position` is a prefix of the line of `id`.
    pub fn on_line(&self, position: &Position, id: ReplId) -> bool {
        let lines = self.lines();
        let at = position.offset.get();
        let home = home(&lines, position.id, at);
        home.is_some() && home == self::home(&lines, id, at)
    }

    /// Says what differs when `bytes` are not those of the line of `id` behind `at`.
    pub fn check(&self, id: ReplId, at: Offset, bytes: &[u8]) -> Result<(), String> {
        let true_bytes = self.read(id, at, bytes.len());
        if true_bytes == bytes {
            return Ok(());
        }
        let same = true_bytes.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        let show = |b: &[u8]| String::from_utf8_lossy(&b[same.min(b.len())..b.len().min(same + 40)]).into_owned();
        Err(format!(
            "stream of {} differs at {}: got {:?}, truth {:?}",
            id.short(),
            at.get() + same as u64,
            show(bytes),
            show(&true_bytes)
        ))
    }
}

/// The line on whose own part `at` of the line of `id` lies; a branch point belongs to the parent.
fn home(lines: &BTreeMap<ReplId, Line>, mut id: ReplId, at: u64) -> Option<ReplId> {
    loop {
        let line = lines.get(&id)?;
        match &line.parent {
            Some(parent) if at <= parent.offset.get() => id = parent.id,
            _ => return (line.start <= at && at <= line.start + line.bytes.len() as u64).then_some(id),
        }
    }
}

/// The part of the ancestry of `id` that owns the byte at `at`: its start and bytes, and where it ends.
fn owner(lines: &BTreeMap<ReplId, Line>, id: ReplId, at: u64) -> Option<((u64, &[u8]), u64)> {
    let mut walk = id;
    let mut limit = u64::MAX;
    loop {
        let line = lines.get(&walk)?;
        if at >= line.start {
            let end = (line.start + line.bytes.len() as u64).min(limit);
            return Some(((line.start, &line.bytes), end));
        }
        let parent = line.parent.as_ref()?;
        limit = limit.min(parent.offset.get());
        walk = parent.id;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;

    #[test]
    fn a_branch_reads_through_its_parents_and_no_further_than_the_branch() {
        let truth = Truth::default();
        let mut chance = Chance::new(1);
        let (a, b, c) = (chance.replid(), chance.replid(), chance.replid());
        truth.begin(a, Offset::new(10));
        truth.append(a, b"aaaa");
        truth.branch(b, Position::new(a, Offset::new(12)));
        truth.append(b, b"bbbb");
        truth.branch(c, Position::new(b, Offset::new(15)));
        truth.append(c, b"c");
        assert_eq!(truth.read(c, Offset::new(10), 100), b"aabbbc");
        assert_eq!(truth.read(c, Offset::new(11), 2), b"ab");
        assert!(truth.read(c, Offset::new(9), 5).is_empty());
        let on = |id, at, line| truth.on_line(&Position::new(id, Offset::new(at)), line);
        assert!(on(a, 12, c) && !on(a, 13, c));
        assert!(on(b, 15, c) && !on(b, 16, c));
        assert!(on(c, 12, a) && !on(c, 13, a), "before its branch a position is the parent's as well");
        assert!(!on(a, 15, a), "nobody is ahead of the head");
        assert_eq!(truth.boundary_below(b, Offset::new(15)), Offset::new(12));
        assert!(truth.check(c, Offset::new(10), b"aabb").is_ok());
        assert!(truth.check(c, Offset::new(10), b"aaaa").unwrap_err().contains("at 12"));
    }
}
