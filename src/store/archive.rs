//! What the journal holds, for any number of readers while one writes.
//!
//! The archive claims one contiguous run of the stream. A reader gets bytes whose checksum was checked, and never
//! a byte that was cut away. A segment that cannot be read takes what is before it along: the claim shrinks to what
//! lies behind it, so that there is no hole inside.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};

use super::disk::{Disk, DiskFile};
use super::recover::open_segment;
use super::segment::{Entry, Record, Tag, file_name};
use super::walk::Walk;
use crate::repl::{Offset, Span};

/// The serial of an empty claim that no file stands for.
const NO_FILE: u64 = 0;
/// Segments kept open for readers, beside the one being written.
const OPEN_SEGMENTS: usize = 16;
/// The most bytes asked of the disk at once.
const MAX_BLOCK: usize = 1 << 20;
/// What is read beyond what was asked for: the distance to the next entry of the index.
const BLOCK_SLACK: usize = 64 * 1024;

/// A segment ready to be read: its file, what binds its records to it, and where to find what.
pub(super) struct Opened {
    file: Arc<dyn DiskFile>,
    tag: Tag,
    first: u64,
    entries: Vec<Entry>,
}

impl Opened {
    /// `first` is the place of the first record behind the origin.
    pub(super) fn new(file: Arc<dyn DiskFile>, tag: Tag, first: u64, entries: Vec<Entry>) -> Self {
        Self { file, tag, first, entries }
    }
}

/// A file whose bytes are no longer claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Doomed {
    pub(super) serial: u64,
    pub(super) bytes: u64,
    /// From when on it may go.
    until: Removable,
}

/// When a file may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removable {
    /// As soon as it is not claimed.
    Unclaimed,
    /// Only when what replaces it is durable.
    Replaced,
}

/// One segment of the claim.
pub(super) struct Segment {
    pub(super) serial: u64,
    pub(super) start: Offset,
    /// One past the last byte claimed; the file may hold more that was cut away.
    pub(super) end: Offset,
    /// The file's size.
    pub(super) bytes: u64,
    /// The journal's clock when it was created.
    pub(super) clock_ms: u64,
    /// How to read it while it is being written: its index is in the archive's state.
    pub(super) live: Option<Arc<Opened>>,
}

/// Where a read begins.
struct Spot {
    serial: u64,
    start: Offset,
    file_bytes: u64,
    live: Option<Arc<Opened>>,
    entry: Option<Entry>,
}

#[derive(Default)]
struct State {
    /// Oldest first; each ends where the next starts.
    line: VecDeque<Segment>,
    /// Of the segment being written.
    entries: Vec<Entry>,
    doomed: Vec<Doomed>,
    /// Most recently used last.
    open: VecDeque<(u64, Arc<Opened>)>,
    condemned_bytes: u64,
}

impl State {
    fn window(&self) -> Option<Span> {
        Some(Span { start: self.line.front()?.start, end: self.line.back()?.end })
    }

    /// The segment that holds the byte at `at`.
    fn locate(&self, at: Offset) -> Option<&Segment> {
        let n = self.line.partition_point(|segment| segment.end <= at);
        self.line.get(n).filter(|segment| segment.start <= at)
    }

    fn doom(&mut self, segment: &Segment, until: Removable) {
        if segment.serial == NO_FILE {
            return;
        }
        self.doomed.push(Doomed { serial: segment.serial, bytes: segment.bytes, until });
        self.open.retain(|(serial, _)| *serial != segment.serial);
    }

    /// Gives up the oldest segment.
    fn drop_front(&mut self) -> u64 {
        let Some(segment) = self.line.pop_front() else { return 0 };
        self.doom(&segment, Removable::Unclaimed);
        segment.end.since(segment.start)
    }
}

/// The readers' side of a journal.
pub struct Archive {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    depth: usize,
    /// Held for a few instructions, never across an await.
    state: Mutex<State>,
}

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// They are not, or no longer, in the window: dropped, cut away, or not written yet.
    #[error("not in the journal")]
    Gone,
    /// The segment that holds them is damaged or has vanished. The window now begins behind it.
    #[error("read segment {serial}: {source}")]
    Damaged {
        /// The segment's number.
        serial: u64,
        /// Stream bytes given up.
        lost_bytes: u64,
        /// What was found.
        source: io::Error,
    },
    /// The machine is short of something; it may work later.
    #[error("read journal: {0}")]
    Io(io::Error),
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("window", &self.window()).finish_non_exhaustive()
    }
}

impl Archive {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf, depth: usize) -> Self {
        Self { disk, dir, depth, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics holding it")
    }

    /// What can be read. `None` before the journal's first beginning. It shrinks at the front when segments are
    /// dropped and at the end when the stream is cut back.
    pub fn window(&self) -> Option<Span> {
        self.state().window()
    }

    /// Bytes the files take on disk, those that wait to be removed included.
    pub fn used_bytes(&self) -> u64 {
        let state = self.state();
        let doomed: u64 = state.doomed.iter().map(|d| d.bytes).sum();
        doomed + state.line.iter().map(|s| s.bytes).sum::<u64>()
    }

    /// Segments claimed.
    pub fn segments(&self) -> usize {
        self.state().line.len()
    }

    /// Stream bytes given up because a segment could not be read, since the start.
    pub fn condemned_bytes(&self) -> u64 {
        self.state().condemned_bytes
    }

    /// Reads at most `max` bytes of the stream from `at`: at least one where the window holds the byte at `at` and
    /// `max` is not 0, and none at its end. It may bring fewer than there are; ask again behind them. Checked
    /// against the checksums. Asking for less than a record costs reading and checking it whole, and a record has up
    /// to 1 MiB. Cancel-safe.
    pub async fn read(&self, at: Offset, max: usize) -> Result<Bytes, ReadError> {
        let spot = {
            let state = self.state();
            let Some(segment) = state.locate(at) else {
                return match state.window() {
                    Some(window) if window.end == at => Ok(Bytes::new()),
                    Some(_) | None => Err(ReadError::Gone),
                };
            };
            let live = segment.live.clone();
            let entry = if live.is_some() { entry_before(&state.entries, at) } else { None };
            Spot { serial: segment.serial, start: segment.start, file_bytes: segment.bytes, live, entry }
        };
        let bytes = match self.read_in(&spot, at, max).await {
            Ok(bytes) => bytes,
            Err(error) => return Err(self.failed(spot.serial, error)),
        };
        // It may have been cut back or dropped while the disk was reading.
        let state = self.state();
        match state.locate(at) {
            Some(segment) if segment.serial == spot.serial => {
                let claimed = usize::try_from(segment.end.since(at)).unwrap_or(usize::MAX);
                Ok(bytes.slice(..bytes.len().min(claimed)))
            }
            Some(_) | None => Err(ReadError::Gone),
        }
    }

    async fn read_in(&self, spot: &Spot, at: Offset, max: usize) -> io::Result<Bytes> {
        let opened = match &spot.live {
            Some(live) => Arc::clone(live),
            None => self.open(spot.serial).await?,
        };
        let entry = spot.entry.or_else(|| entry_before(&opened.entries, at));
        let (mut offset, place) = entry.map_or((spot.start, opened.first), |entry| (entry.offset, entry.place));
        let block = max.saturating_add(BLOCK_SLACK).min(MAX_BLOCK);
        let mut walk = Walk::new(&*opened.file, opened.tag, self.depth, place, spot.file_bytes, block);
        let mut pieces: Vec<Bytes> = Vec::new();
        let mut taken = 0;
        // Once there is something, what is at hand is enough: no second trip to the disk.
        while taken < max && (taken == 0 || walk.has_whole_record()) {
            match walk.next().await? {
                Some((_, Record::Data { bytes, .. })) => {
                    let skip = usize::try_from(at.since(offset)).unwrap_or(usize::MAX).min(bytes.len());
                    offset = offset.forward(bytes.len() as u64);
                    let piece = bytes.slice(skip..bytes.len().min(skip.saturating_add(max - taken)));
                    taken += piece.len();
                    pieces.extend(Some(piece).filter(|piece| !piece.is_empty()));
                }
                Some((_, Record::History(_))) => {}
                Some((_, Record::Index(_) | Record::Origin(_))) | None => break,
            }
        }
        match pieces.len() {
            0 if max > 0 => Err(io::Error::new(io::ErrorKind::InvalidData, "a record is damaged or missing")),
            1 => Ok(pieces.swap_remove(0)),
            _ => {
                let mut joined = BytesMut::with_capacity(taken);
                pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
                Ok(joined.freeze())
            }
        }
    }

    async fn open(&self, serial: u64) -> io::Result<Arc<Opened>> {
        {
            let mut state = self.state();
            if let Some(n) = state.open.iter().position(|(open, _)| *open == serial) {
                let hit = state.open.remove(n).expect("it was just found");
                let opened = Arc::clone(&hit.1);
                state.open.push_back(hit);
                return Ok(opened);
            }
        }
        let opened = open_segment(&*self.disk, &self.dir.join(file_name(serial)), serial, self.depth).await?;
        let opened = Arc::new(opened);
        let mut state = self.state();
        if state.line.iter().any(|segment| segment.serial == serial) {
            if state.open.len() >= OPEN_SEGMENTS {
                state.open.pop_front();
            }
            state.open.push_back((serial, Arc::clone(&opened)));
        }
        Ok(opened)
    }

    /// What a failed read means: nothing if the segment has gone on purpose, otherwise that it is damaged.
    fn failed(&self, serial: u64, source: io::Error) -> ReadError {
        const ENOMEM: i32 = 12;
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        let passing = matches!(source.raw_os_error(), Some(ENOMEM | ENFILE | EMFILE));
        let mut state = self.state();
        let Some(n) = state.line.iter().position(|segment| segment.serial == serial) else {
            return ReadError::Gone;
        };
        if passing {
            return ReadError::Io(source);
        }
        let end = state.line[n].end;
        let mut lost_bytes = 0;
        for _ in 0..=n {
            lost_bytes += state.drop_front();
        }
        state.condemned_bytes += lost_bytes;
        if state.line.is_empty() {
            // The writer sees that its segment is gone and goes on in a new one.
            state.entries.clear();
            state.line.push_back(Segment {
                serial: NO_FILE,
                start: end,
                end,
                bytes: 0,
                clock_ms: u64::MAX,
                live: None,
            });
        }
        ReadError::Damaged { serial, lost_bytes, source }
    }
}

/// The last entry at or before `at`.
fn entry_before(entries: &[Entry], at: Offset) -> Option<Entry> {
    entries[..entries.partition_point(|entry| entry.offset <= at)].last().copied()
}

/// The writer's verbs.
impl Archive {
    /// Claims nothing any more.
    pub(super) fn clear(&self) {
        let mut state = self.state();
        while let Some(segment) = state.line.pop_front() {
            state.doom(&segment, Removable::Replaced);
        }
        state.entries.clear();
    }

    /// Claims nothing at or behind `at` any more.
    pub(super) fn cut(&self, at: Offset) {
        let mut state = self.state();
        while let Some(last) = state.line.back_mut() {
            if last.start < at {
                last.end = last.end.min(at);
                break;
            }
            let segment = state.line.pop_back().expect("there is a last one");
            state.doom(&segment, Removable::Replaced);
            state.entries.clear();
        }
    }

    /// The next segment of the line, being written or found at the start.
    pub(super) fn push(&self, segment: Segment) {
        let mut state = self.state();
        if state.line.back().is_some_and(|last| last.serial == NO_FILE) {
            state.line.pop_back();
        }
        state.entries.clear();
        state.line.push_back(segment);
    }

    /// A record of `length` stream bytes was added to the segment `serial`, the last, which now has `bytes`.
    pub(super) fn grown(&self, serial: u64, entry: Option<Entry>, length: u64, bytes: u64) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(last) = state.line.back_mut() else { return };
        last.end = last.end.forward(length);
        if last.serial == serial {
            state.entries.extend(entry);
            last.bytes = bytes;
        } else {
            // A reader gave the segment up meanwhile: the claim stays empty, and begins behind the record.
            last.start = last.end;
        }
    }

    /// The last segment, which now has `bytes`, is written no more.
    pub(super) fn finished(&self, serial: u64, bytes: u64) {
        let mut state = self.state();
        state.entries.clear();
        if let Some(segment) = state.line.iter_mut().rev().find(|segment| segment.serial == serial) {
            segment.bytes = bytes;
            segment.live = None;
        }
    }

    /// The index of the segment being written.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.state().entries.clone()
    }

    /// The serial of the last segment claimed; 0 for none.
    pub(super) fn last_serial(&self) -> u64 {
        self.state().line.back().map_or(0, |segment| segment.serial)
    }

    /// Gives up the oldest segments as long as `wanted` says so of the oldest one, the clock of the next, and the
    /// bytes of all. The last one stays. Returns stream bytes given up.
    pub(super) fn trim(&self, wanted: impl Fn(&Segment, u64, u64) -> bool) -> u64 {
        let mut state = self.state();
        let mut used: u64 = state.line.iter().map(|segment| segment.bytes).sum();
        let mut dropped = 0;
        while let (Some(oldest), Some(next)) = (state.line.front(), state.line.get(1)) {
            if !wanted(oldest, next.clock_ms, used) {
                break;
            }
            used -= oldest.bytes;
            dropped += state.drop_front();
        }
        dropped
    }

    /// Files that may be removed.
    pub(super) fn doomed(&self, which: Removable) -> Vec<Doomed> {
        let may_go = |doomed: &&Doomed| match which {
            Removable::Unclaimed => doomed.until == Removable::Unclaimed,
            Removable::Replaced => true,
        };
        self.state().doomed.iter().filter(may_go).copied().collect()
    }

    /// A file that belongs to no line, or to one that another replaced.
    pub(super) fn doom(&self, serial: u64, bytes: u64) {
        self.state().doomed.push(Doomed { serial, bytes, until: Removable::Replaced });
    }

    /// A doomed file has been removed.
    pub(super) fn removed(&self, serial: u64) {
        self.state().doomed.retain(|d| d.serial != serial);
    }
}
