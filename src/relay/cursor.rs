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
        let window = line.backlog.window();
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
        state
            .line
            .as_ref()
            .is_some_and(|line| line.generation == cursor.generation && cursor.at < line.backlog.window().start)
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
        let window = line.backlog.window();
        if cursor.at < window.start {
            return Next::Ended(CursorEnd::Overrun);
        }
        if cursor.at >= window.end {
            return Next::CaughtUp;
        }
        let taken = line.backlog.read(cursor.at, most, slices, out);
        cursor.at = cursor.at.forward(taken as u64);
        Next::Bytes(taken)
    }
}
