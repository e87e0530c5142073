//! Every state a journal went through, and which of them a crash may bring back.
//!
//! A state is entered before it is written: from then on it may be found. What was synced may no longer be lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use psyncd::repl::Offset;
use psyncd::store::disk::Disk;
use psyncd::store::journal::{Journal, Options, Recovered};

use crate::chance::Chance;
use crate::disk::SimDisk;
use crate::model::{Stream, check, read_all};

/// Something to do, with numbers to be made sense of where the journal then is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Append { length: usize, boundary: u64 },
    Turn,
    Cut { back: u64 },
    Begin { start: u64 },
    Sync,
    Trim { floor: Option<u64> },
    Read { max: usize },
}

impl Op {
    pub fn draw(chance: &mut Chance) -> Self {
        match chance.below(100) {
            0..65 => {
                let longest = *chance.pick(&[10, 300, 1500, 4000]);
                Self::Append { length: chance.between(0, longest) as usize, boundary: chance.below(4) }
            }
            65..72 => Self::Turn,
            72..77 => Self::Cut { back: chance.below(6000) },
            77..80 => Self::Begin { start: chance.below(10_000) },
            80..90 => Self::Sync,
            90..95 => Self::Trim { floor: chance.one_in(2).then(|| chance.below(6000)) },
            _ => Self::Read { max: chance.between(1, 5000) as usize },
        }
    }
}

/// The numbered sequence a stream belongs to, and the stream; `None` before the first.
type Known = Option<(u64, Stream)>;

/// The states of one journal.
#[derive(Debug)]
pub struct Ledger {
    states: Vec<Known>,
    /// Of the states, the oldest that may be found.
    floor: usize,
    /// Where the window of a sequence may begin, because what was before was dropped on purpose.
    dropped: BTreeMap<u64, Offset>,
    names: u64,
}

impl Ledger {
    pub fn new() -> Self {
        Self { states: vec![None], floor: 0, dropped: BTreeMap::new(), names: 0 }
    }

    fn name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    pub fn now(&self) -> Option<&Stream> {
        self.states.last()?.as_ref().map(|known| &known.1)
    }

    fn enter(&mut self, next: Stream) {
        let sequence = self.states.last().and_then(Option::as_ref).map_or(0, |known| known.0);
        self.states.push(Some((sequence, next)));
    }

    fn synced(&mut self) {
        self.floor = self.states.len() - 1;
    }

    /// Does `op` and enters what it may bring. An error is passed on; the ledger then knows what the journal knows.
    pub async fn apply(&mut self, journal: &mut Journal, op: Op) -> std::io::Result<()> {
        let Some(now) = self.now().cloned().filter(|_| journal.end().is_some()) else {
            let start = if let Op::Begin { start } = op { start } else { 500 };
            return self.begin(journal, start).await;
        };
        match op {
            Op::Append { length, boundary } => {
                let bytes = now.make(length);
                let mut next = now.clone();
                // At the end, before it, ahead of it, or as it was.
                let end = next.end().forward(length as u64);
                let boundary =
                    [end, end.back(length as u64 / 2), end.forward(100), now.boundary][boundary as usize % 4];
                if length == 0 {
                    return journal.append(&[], boundary, 0).await;
                }
                next.push(&bytes, boundary);
                self.enter(next.clone());
                let middle = length / 3;
                let pieces = [bytes.slice(..middle), bytes.slice(middle..)];
                let done = journal.append(&pieces, boundary, next.end().get()).await;
                if done.is_err() && journal.end() != Some(next.end()) {
                    self.enter(now);
                }
                done
            }
            Op::Turn => {
                let mut next = now;
                next.turn(self.name());
                self.enter(next.clone());
                journal.turn(&next.history).await
            }
            Op::Cut { back } => {
                let mut next = now;
                let at = next.end().back(back).max(next.start);
                next.cut(at, self.name());
                self.enter(next.clone());
                journal.cut(at, &next.history, at, 3).await?;
                self.synced();
                Ok(())
            }
            Op::Begin { start } => self.begin(journal, start).await,
            Op::Sync => {
                assert_eq!(journal.sync().await?, now.end());
                self.synced();
                Ok(())
            }
            Op::Trim { floor } => {
                let floor = floor.map(|back| now.end().back(back));
                let window = journal.archive().window();
                journal.trim(floor).await;
                if journal.archive().window() != window {
                    self.note_dropped(journal);
                }
                Ok(())
            }
            Op::Read { max } => {
                check(journal, &now, max).await;
                Ok(())
            }
        }
    }

    /// What the journal does not claim now may be missing from now on.
    pub fn note_dropped(&mut self, journal: &Journal) {
        let Some(Some((sequence, _))) = self.states.last() else { return };
        let Some(window) = journal.archive().window() else { return };
        let dropped = self.dropped.entry(*sequence).or_default();
        *dropped = (*dropped).max(window.start);
    }

    async fn begin(&mut self, journal: &mut Journal, start: u64) -> std::io::Result<()> {
        let next = Stream::new(Offset::new(start), self.name());
        let sequence = self.name();
        self.dropped.insert(sequence, next.start);
        self.states.push(Some((sequence, next.clone())));
        journal.begin(next.start, &next.history, next.boundary, 2).await?;
        self.synced();
        Ok(())
    }

    /// Opens the journal on `disk` and holds what it claims against what may be found. From then on that is what
    /// the journal is. `None` when the machine died meanwhile.
    pub async fn reopen(&mut self, disk: &Arc<SimDisk>, options: Options) -> Option<Journal> {
        let opened = Journal::open(Arc::clone(disk) as Arc<dyn Disk>, options).await;
        if disk.is_dead() {
            return None;
        }
        let (journal, recovered) = opened.unwrap();
        let bytes = match recovered {
            Some(_) => read_all(&journal.archive(), 5000).await,
            None => Vec::new(),
        };
        let found = self.judge(recovered.as_ref(), &bytes);
        self.states = vec![self.states[found].clone()];
        self.floor = 0;
        Some(journal)
    }

    /// From now on any state may be found: it is not a crash that comes next.
    pub fn expect_anything(&mut self) {
        self.floor = 1;
    }

    /// Which state was found.
    pub fn judge(&self, recovered: Option<&Recovered>, bytes: &[u8]) -> usize {
        let is = |known: &Known| match (known, recovered) {
            (None, None) => true,
            (Some((sequence, stream)), Some(found)) => {
                let window = found.window;
                stream.history == found.history
                    && stream.end() == window.end
                    && stream.boundary == found.boundary
                    && stream.start <= window.start
                    && window.start <= self.dropped[sequence].min(window.end)
                    && stream.slice(window.start, window.end) == bytes
            }
            (None, Some(_)) | (Some(_), None) => false,
        };
        let found = (self.floor..self.states.len()).rev().find(|&n| is(&self.states[n]));
        let Some(found) = found else {
            let before = (0..self.floor).rev().find(|&n| is(&self.states[n]));
            let states: Vec<_> = self.states[self.floor..]
                .iter()
                .map(|known| {
                    known
                        .as_ref()
                        .map(|(n, s)| (*n, s.start, s.end(), s.boundary, s.history.current().as_str()[36..].to_owned()))
                })
                .collect();
            panic!(
                "found {recovered:?}, which is {}\npossible: {states:?}\ndropped: {:?}",
                before.map_or("nothing that was written".to_owned(), |n| format!(
                    "state {n}, older than the synced {}",
                    self.floor
                )),
                self.dropped,
            );
        };
        found
    }
}
