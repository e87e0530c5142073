//! Reading the stream: a cursor yields it in order, once, or ends for good.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Relay;
use crate::repl::{Lineage, Offset, Position};

/// A reader's place in the stream. Yields the stream in order, once, or ends for good.
#[derive(Debug)]
pub struct Cursor {
    pub(super) at: Offset,
    pub(super) generation: u64,
    pub(super) branches: u64,
    pub(super) follow: Follow,
}

impl Cursor {
    /// Everything before this was taken.
    pub fn at(&self) -> Offset {
        self.at
    }
}

/// What a reader does when the stream goes on under another id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// It has to be told, by ending: a psync2 replica learns the id when it comes back.
    Id,
    /// It reads on: it knows no ids but the first.
    Bytes,
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This many bytes.
    Bytes(usize),
    /// Nothing yet: what comes next has left memory and must be read from the journal ([`Relay::read_deep`]).
    Deep,
    /// Nothing: the reader is at the head.
    CaughtUp,
    /// Nothing, and there never will be.
    Ended(CursorEnd),
}

/// Why a cursor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CursorEnd {
    /// It was too slow: what it needs next has left the backlog.
    Overrun,
    /// The stream was replaced by one that does not connect, or cut back.
    Reset,
    /// The stream goes on under another id.
    Branched,
}

impl Relay {
    /// A cursor at `position`, which a replica was told that its snapshot is at, if the stream still goes on from
    /// there under that name.
    pub fn cursor(&self, position: &Position, follow: Follow) -> Result<Cursor, CursorEnd> {
        let state = self.state();
        let line = state.line.as_ref().ok_or(CursorEnd::Reset)?;
        let window = line.window();
        match line.history.locate(position) {
            Lineage::Diverged { .. } | Lineage::Unknown => Err(CursorEnd::Reset),
            Lineage::Current | Lineage::Ancestor { .. } if position.offset < window.start => Err(CursorEnd::Overrun),
            // It has the data set and comes back for the bytes, to learn what they are called now.
            Lineage::Ancestor { .. } if follow == Follow::Id => Err(CursorEnd::Branched),
            Lineage::Current | Lineage::Ancestor { .. } => Ok(line.cursor(position.offset, follow)),
        }
    }

    /// Whether a cursor has been overwritten. Its next read will say so; a reader that is not reading asks.
    pub fn overrun(&self, cursor: &Cursor) -> bool {
        let state = self.state();
        state.line.as_ref().is_some_and(|line| line.generation == cursor.generation && cursor.at < line.window().start)
    }

    /// Takes at most `most` bytes in at most `slices` pieces from the cursor's place and moves it on.
    pub fn read(&self, cursor: &mut Cursor, most: usize, slices: usize, out: &mut VecDeque<Bytes>) -> Next {
        let state = self.state();
        let Some(line) = state.line.as_ref().filter(|line| line.generation == cursor.generation) else {
            return Next::Ended(CursorEnd::Reset);
        };
        if cursor.follow == Follow::Id && line.branches != cursor.branches {
            return Next::Ended(CursorEnd::Branched);
        }
        if state.dam.is_some_and(|dam| cursor.at >= dam) {
            return Next::CaughtUp;
        }
        let window = line.backlog.window();
        if cursor.at < window.start {
            return if cursor.at < line.window().start { Next::Ended(CursorEnd::Overrun) } else { Next::Deep };
        }
        let end = state.dam.map_or(window.end, |dam| dam.min(window.end));
        if cursor.at >= end {
            return Next::CaughtUp;
        }
        let most = most.min(usize::try_from(end.since(cursor.at)).unwrap_or(most));
        let taken = line.backlog.read(cursor.at, most, slices, out);
        cursor.at = cursor.at.forward(taken as u64);
        Next::Bytes(taken)
    }
    /// Takes at most `most` bytes from the journal and moves the cursor on. Whoever reads this far back waits for the
    /// disk, and nobody else does. Cancel-safe: a cursor whose read was dropped has not moved.
    pub async fn read_deep(&self, cursor: &mut Cursor, most: usize, out: &mut VecDeque<Bytes>) -> Next {
        let Some(archive) = self.archive.get() else { return Next::Ended(CursorEnd::Overrun) };
        let most = {
            let state = self.state();
            let archived = state.line.as_ref().and_then(|line| line.archived).map_or(Offset::ZERO, |held| held.end);
            let end = state.dam.map_or(archived, |dam| dam.min(archived));
            most.min(usize::try_from(end.since(cursor.at)).unwrap_or(most))
        };
        let read = archive.read(cursor.at, most).await;
        let mut state = self.state();
        let Some(line) = state.line.as_mut().filter(|line| line.generation == cursor.generation) else {
            return Next::Ended(CursorEnd::Reset);
        };
        match read {
            // What was cut back, or taken over by another stream, meanwhile would have changed the generation.
            Ok(bytes) if !bytes.is_empty() => {
                cursor.at = cursor.at.forward(bytes.len() as u64);
                let taken = bytes.len();
                out.push_back(bytes);
                Next::Bytes(taken)
            }
            // It was dropped for newer bytes, or cannot be read any more: nothing before what can be is claimed again.
            Ok(_) | Err(_) => {
                line.keep_of_archive(archive.window());
                drop(state);
                self.grown.notify_waiters();
                Next::Ended(CursorEnd::Overrun)
            }
        }
    }
}
