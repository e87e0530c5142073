//! The stream as it has to be written down: bytes and changes of history, each in its place.
//!
//! The journal's writer reads with a [`Tape`] as replicas do with a cursor. What it is given can be cut anywhere and is
//! still true: bytes behind a branch never come before the word that they belong to another id.

use bytes::Bytes;

use super::replicas::Waits;
use super::{Line, Relay};
use crate::repl::{History, Offset, Span};

/// The writer's place in the stream. There is one, held by the journal's writer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tape {
    at: Offset,
    stream: u64,
    generation: u64,
    branches: u64,
}

/// What has to be written next.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing: the writer is at the head, or there is no stream.
    CaughtUp,
    /// Bytes.
    Bytes {
        /// The first of them.
        at: Offset,
        /// The last point between commands known with the last of them.
        boundary: Offset,
    },
    /// What was written is from now on called otherwise; the names hold for all of it.
    Turn(History),
    /// What was written beyond this point is not part of the stream any more.
    Cut(Start),
    /// What was written before does not connect: begin anew.
    Begin(Start),
    /// The writer was slower than the backlog is long; it goes on at the head and what it wrote is worth nothing soon.
    Behind(Start),
}

/// Where a stretch of the journal begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Its first byte.
    pub at: Offset,
    /// What the stream is called.
    pub history: History,
    /// The last point between commands that is known, which may lie ahead.
    pub boundary: Offset,
}

impl Tape {
    pub(super) fn at_head(line: &Line) -> Self {
        let Line { stream, generation, branches, .. } = *line;
        Self { at: line.backlog.window().end, stream, generation, branches }
    }

    fn is_at_head(&self, line: &Line) -> bool {
        *self == Self::at_head(line)
    }
}

impl Relay {
    /// What has to be written next; bytes are appended to `out`, `most` and up to one chunk more.
    pub fn tape(&self, tape: &mut Tape, most: usize, out: &mut Vec<Bytes>) -> Entry {
        let mut state = self.state();
        let Some(line) = state.line.as_mut() else { return Entry::CaughtUp };
        let memory = line.backlog.window();
        let cut = line.cut.take();
        let start = |at: Offset, boundary: Offset| Start { at, history: line.history.clone(), boundary };
        if tape.stream != line.stream {
            *tape = Tape { at: memory.start, ..Tape::at_head(line) };
            // A chunk may begin behind the first boundary; before it there is none to be named.
            return Entry::Begin(start(memory.start, line.backlog.first_boundary().unwrap_or(line.boundary)));
        }
        if tape.generation != line.generation {
            tape.generation = line.generation;
            if let Some(cut) = cut
                && cut < tape.at
            {
                tape.at = cut;
                line.taken = cut;
                tape.branches = line.branches;
                return Entry::Cut(start(cut, cut));
            }
        }
        if tape.branches != line.branches {
            tape.branches = line.branches;
            return Entry::Turn(line.history.clone());
        }
        if tape.at < memory.start {
            tape.at = memory.end;
            line.taken = memory.end;
            return Entry::Behind(start(memory.end, line.boundary));
        }
        match line.backlog.read_whole(tape.at, most, out) {
            Some(boundary) => {
                let at = tape.at;
                line.taken = at;
                tape.at = at.forward(out.iter().map(|piece| piece.len() as u64).sum());
                Entry::Bytes { at, boundary }
            }
            None => {
                line.taken = tape.at;
                Entry::CaughtUp
            }
        }
    }

    /// Waits until there is something to write. Cancel-safe.
    pub async fn tape_moves(&self, tape: &Tape) {
        loop {
            let grown = self.grown();
            tokio::pin!(grown);
            grown.as_mut().enable();
            if self.state().line.as_ref().is_some_and(|line| !tape.is_at_head(line)) {
                return;
            }
            grown.await;
        }
    }

    /// The journal holds `span` of the stream the tape was given; readers may be sent there.
    pub fn archived(&self, tape: &Tape, span: Option<Span>) {
        let mut state = self.state();
        let Some(line) = state.line.as_mut().filter(|line| line.stream == tape.stream) else { return };
        line.archived = span;
        if let Some(cut) = line.cut {
            // The writer does not know of it yet.
            line.forget_of_archive(cut);
        }
        line.arrivals.forget_before(line.window().start);
        state.drop_snapshot_that_does_not_connect();
    }

    /// What must not be dropped if it can be helped: the oldest byte that a replica which is being given a snapshot, or
    /// waits its turn for one, will need behind it.
    pub fn floor(&self) -> Option<Offset> {
        let loading = self.replicas().floor();
        let queued = self.replicas().any_waits_for(Waits::Turn);
        let state = self.state();
        let ready = state.snapshot.ready.as_ref().filter(|_| queued);
        let snapshots = state.snapshot.arriving.iter().chain(ready).map(|rdb| rdb.position().offset);
        snapshots.chain(loading).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::{Options, Relay};
    use crate::repl::{Lineage, Position, ReplId};
    use proptest::prelude::*;

    fn id(n: usize) -> ReplId {
        ReplId::from_ascii(format!("{n:040x}").as_bytes()).unwrap()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Append(usize),
        /// Under a new id, this much below the head.
        Branch(usize),
        Adopt,
        /// The writer takes this many entries.
        Write(usize),
    }

    /// What a journal that takes the entries as they come would hold.
    struct Written {
        start: u64,
        history: History,
        bytes: Vec<u8>,
    }

    proptest! {
        #[test]
        fn whatever_was_written_so_far_is_true(
            steps in prop::collection::vec(prop_oneof![
                6 => (1usize..900).prop_map(Step::Append),
                2 => (0usize..1500).prop_map(Step::Branch),
                1 => Just(Step::Adopt),
                6 => (1usize..4).prop_map(Step::Write)], 1..80),
        ) {
            let relay = Relay::new(Options { backlog_bytes: 4096, journal_bytes: 0, journal_lag_bytes: 0, history_depth: 16, max_replicas: 1 });
            // The bytes of every id from offset 0 on; every adopted stream begins with bytes of its own.
            let mut streams: Vec<Vec<u8>> = Vec::new();
            let mut value = 0u8;
            let mut next = || { value = value.wrapping_mul(5).wrapping_add(31); value };
            let mut tape = Tape::default();
            let mut written: Option<Written> = None;
            let mut finished = steps.clone();
            finished.push(Step::Write(usize::MAX));
            for step in finished {
                match step {
                    Step::Adopt => {
                        streams.push((0..100).map(|_| next()).collect());
                        let at = Offset::new(100);
                        relay.adopt(Position::new(id(streams.len() - 1), at), at, None, None);
                    }
                    Step::Append(n) => {
                        let Some(ours) = streams.last_mut() else { continue };
                        let piece: Vec<u8> = (0..n).map(|_| next()).collect();
                        ours.extend_from_slice(&piece);
                        relay.append(piece.into(), Offset::new(ours.len() as u64));
                    }
                    Step::Branch(back) => {
                        let Some((_, window)) = relay.held() else { continue };
                        let at = window.end.back(back as u64).max(window.start);
                        let common = streams.last().unwrap()[..at.get() as usize].to_vec();
                        streams.push(common);
                        relay.branch(at, id(streams.len() - 1));
                    }
                    Step::Write(times) => for _ in 0..times {
                        let mut bytes = Vec::new();
                        let entry = relay.tape(&mut tape, 512, &mut bytes);
                        match entry {
                            Entry::CaughtUp => break,
                            Entry::Bytes { .. } => {
                                let taken: Vec<u8> = bytes.concat();
                                prop_assert!(!taken.is_empty());
                                written.as_mut().unwrap().bytes.extend_from_slice(&taken);
                            }
                            Entry::Turn(history) => written.as_mut().unwrap().history = history,
                            Entry::Cut(Start { at, history, .. }) => {
                                let written = written.as_mut().unwrap();
                                prop_assert!(at.get() < written.start + written.bytes.len() as u64);
                                if at.get() < written.start {
                                    written.start = at.get();
                                }
                                written.bytes.truncate((at.get() - written.start) as usize);
                                written.history = history;
                            }
                            Entry::Begin(Start { at, history, .. }) | Entry::Behind(Start { at, history, .. }) => {
                                written = Some(Written { start: at.get(), history, bytes: Vec::new() });
                            }
                        }
                        let Written { start, history, bytes } = written.as_ref().unwrap();
                        let end = start + bytes.len() as u64;
                        for (n, stream) in streams.iter().enumerate() {
                            for o in [*start, (*start + end) / 2, end] {
                                let position = Position::new(id(n), Offset::new(o));
                                if matches!(history.locate(&position), Lineage::Current | Lineage::Ancestor { .. }) {
                                    // The id's own stream may be shorter: then it parted before, and is no claim.
                                    let claimed = &bytes[..(o - start) as usize];
                                    let truth = stream.get(*start as usize..o as usize);
                                    prop_assert_eq!(Some(claimed), truth, "{} {}", n, o);
                                }
                            }
                        }
                    },
                }
            }
            if let (Some((_, window)), Some(written)) = (relay.held(), &written) {
                prop_assert_eq!(written.start + written.bytes.len() as u64, window.end.get());
            }
        }
    }
}
