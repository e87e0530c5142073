//! The journal: the stream on disk, far beyond what fits in memory. Its files are specified in [`super::segment`].
//!
//! One task owns the [`Journal`] and writes, off the stream's path; sessions share its [`Archive`] and read. What
//! it promises:
//!
//! - Bytes and changes of history are records of one journal in stream order. Whatever instant a crash comes, what
//!   is found afterwards is a true prefix of what was written, and it contains all that [`Journal::sync`] reported.
//! - Never a hole inside what is claimed, never a byte that was cut away.
//! - A record that may have been written in part is never written behind: after an error the stream goes on in a
//!   new segment, or, when what the disk holds is no longer known, in a new sequence.
//!
//! ```text
//!            begin                    append, turn, cut, sync: ok
//!   Empty ----------> Writing <--------------------------------------+
//!     ^                 |  |                                         |
//!   open             error |                                         |
//!     |                 |  +--> Torn: `end` stands, calls may be -----+
//!   Recovered           |             repeated from there
//!   (as Writing)        +-----> Lost (a sync failed): only begin helps
//! ```

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::archive::{Archive, Opened, Removable, Segment};
use super::disk::{Disk, DiskFile};
pub use super::recover::OpenError;
use super::recover::{Findings, Newest, survey};
use super::segment::{
    Entry, INDEX_SPACING, Index, MAX_DATA, MAX_SEGMENT_BYTES, MAX_UPSTREAM, Origin, Tag, file_name, write_origin,
};
use crate::repl::{History, Offset, Span};

/// What a journal is made with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the files are. Made ours alone.
    pub dir: PathBuf,
    /// What it may hold.
    pub room: Room,
    /// A segment of this size is followed by the next. At most [`MAX_SEGMENT_BYTES`]; one record may go beyond.
    pub segment_bytes: u64,
    /// Whose stream this is: a journal of another one is refused. At most [`MAX_UPSTREAM`] bytes.
    pub upstream: String,
    /// Whether one that follows another upstream is taken over all the same.
    pub adopt: bool,
    /// Ancestors to remember.
    pub history_depth: usize,
}

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes the files may take, apart from what a pin keeps. Whole segments are dropped, so a journal of fewer
    /// than a few segments has a window of very variable length.
    pub limit_bytes: u64,
    /// Bytes the files may take even where a pin would keep more.
    pub hard_limit_bytes: u64,
    /// How long a segment is kept after it was full, in time psyncd was running. `None`: as long as there is room.
    pub keep: Option<Duration>,
}

/// What a journal held when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// What the stream is called at its end.
    pub history: History,
    /// The bytes there are.
    pub window: Span,
    /// The last command boundary known; it may lie behind the end, where the stream's commands were not looked at.
    pub boundary: Offset,
    /// When bytes arrived: by increasing offset, the arrival, by the wall clock in milliseconds, of the byte at or
    /// in front of it. Sparse and bounded in number.
    pub marks: Vec<(Offset, u64)>,
    /// Bytes at the end of the newest file that were no whole record.
    pub torn_bytes: u64,
}

/// The writer of a journal. At most one process has one for a directory: see [`Disk::lock`].
pub struct Journal {
    disk: Arc<dyn Disk>,
    options: Options,
    archive: Arc<Archive>,
    stream: Option<Stream>,
    writer: Option<Writer>,
    /// A segment that may not be durable, bytes or name, and must be before another follows it.
    unsynced: Option<Arc<dyn DiskFile>>,
    sequence: u64,
    /// The highest serial used.
    serial: u64,
    clock: Clock,
    /// The stream has another beginning, end or name than what is written says.
    unwritten: bool,
    /// A sync failed, so nobody knows what the disk holds.
    lost: bool,
}

/// The stream at its end.
#[derive(Clone)]
struct Stream {
    history: Arc<History>,
    boundary: Offset,
    end: Offset,
    unix_ms: u64,
}

/// The segment being written.
struct Writer {
    file: Arc<dyn DiskFile>,
    serial: u64,
    tag: Tag,
    place: u64,
    /// What a seal would say: behind the last record, and no later than the stream, which may have been cut back.
    written: Stream,
    last_entry: Option<Offset>,
    /// A write began and has not succeeded.
    torn: bool,
}

/// Runs while the journal is open, and starts where it stopped.
struct Clock {
    base_ms: u64,
    since: Instant,
}

impl Clock {
    fn now_ms(&self) -> u64 {
        self.base_ms.saturating_add(u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

impl Journal {
    /// Opens the journal in `options.dir`, which the caller has locked, and says what it held. Seals what a crash
    /// left unsealed and removes what belongs to nothing; a journal it refuses is left as it is. Takes reading the
    /// first and last kilobytes of every segment, and the newest one whole if it was not sealed.
    pub async fn open(disk: Arc<dyn Disk>, options: Options) -> Result<(Self, Option<Recovered>), OpenError> {
        let dir = options.dir.clone();
        let in_dir = |source| OpenError::Io { path: dir.clone(), source };
        if options.upstream.len() > MAX_UPSTREAM {
            return Err(in_dir(io::Error::new(io::ErrorKind::InvalidInput, "the upstream's name is too long")));
        }
        disk.private_dir(&dir).await.map_err(in_dir)?;
        if let Some(parent) = dir.parent() {
            // Where we may not, whoever made the directory has seen to it.
            drop(disk.sync_dir(parent).await);
        }
        let whose = (!options.adopt).then_some(options.upstream.as_str());
        let findings = survey(&*disk, &dir, whose, options.history_depth).await?;
        let archive = Arc::new(Archive::new(Arc::clone(&disk), dir.clone(), options.history_depth));
        let mut journal = Self {
            disk,
            options,
            archive,
            stream: None,
            writer: None,
            unsynced: None,
            sequence: findings.sequence,
            serial: findings.serial,
            clock: Clock { base_ms: 0, since: Instant::now() },
            unwritten: false,
            lost: false,
        };
        let recovered = journal.adopt(findings).await;
        Ok((journal, recovered))
    }

    /// Takes over what was found.
    async fn adopt(&mut self, findings: Findings) -> Option<Recovered> {
        for found in &findings.line {
            self.archive.push(Segment {
                serial: found.origin.serial,
                start: found.origin.start,
                end: found.end,
                bytes: found.bytes,
                clock_ms: found.origin.clock_ms,
                live: None,
            });
        }
        findings.leftovers.iter().for_each(|&(serial, bytes)| self.archive.doom(serial, bytes));
        let settled = match &findings.newest {
            Some(newest) => {
                self.clock.base_ms = newest.clock_ms;
                self.settle(newest).await
            }
            None => Ok(()),
        };
        match settled {
            // Leftovers may go only when what counts instead of them is sure to be there after the next crash.
            Ok(()) => self.remove_doomed(Removable::Replaced).await,
            Err(error) => tracing::warn!(event = "journal_not_sealed", %error, "journal left as it was found"),
        }
        let newest = findings.newest?;
        let window = self.archive.window()?;
        // A journal that was taken over says so with its next sync.
        self.unwritten = findings.line.last().is_some_and(|found| found.origin.upstream != self.options.upstream);
        self.stream = Some(Stream {
            history: Arc::new(newest.history.clone()),
            boundary: newest.boundary,
            end: window.end,
            unix_ms: newest.unix_ms,
        });
        let (history, boundary, torn_bytes) = (newest.history, newest.boundary, newest.torn_bytes);
        Some(Recovered { history, window, boundary, marks: findings.marks, torn_bytes })
    }

    /// Makes what was found durable, and seals it so that it need not be read through again.
    async fn settle(&mut self, newest: &Newest) -> io::Result<()> {
        self.unsynced = Some(Arc::clone(&newest.file));
        if let Some((place, tag, index)) = &newest.unsealed {
            let serial = self.archive.last_serial();
            let path = self.options.dir.join(file_name(serial));
            let file = self.disk.open_writable(&path).await?;
            file.truncate(*place).await?;
            let sealed = tag.seal(*place, index);
            let bytes = place + sealed.len() as u64;
            file.write_at(*place, sealed).await?;
            self.archive.finished(serial, bytes);
        }
        newest.file.sync().await.inspect_err(|_| self.lost = true)?;
        self.disk.sync_dir(&self.options.dir).await?;
        self.unsynced = None;
        Ok(())
    }

    /// What readers share.
    pub fn archive(&self) -> Arc<Archive> {
        Arc::clone(&self.archive)
    }

    /// Where the next byte goes. `None` where only [`begin`](Self::begin) helps: at first, and when what the disk
    /// holds is no longer known.
    pub fn end(&self) -> Option<Offset> {
        self.stream.as_ref().filter(|_| !self.lost).map(|stream| stream.end)
    }

    /// Begins a new sequence at `start`: what was before is claimed no more from this call on, and removed once the
    /// beginning is durable. `unix_ms` is now, by the wall clock. Helps after every error; after an error of its
    /// own it may be called again.
    pub async fn begin(&mut self, start: Offset, history: &History, boundary: Offset, unix_ms: u64) -> io::Result<()> {
        self.archive.clear();
        self.sequence += 1;
        self.writer = None;
        self.unsynced = None;
        self.lost = false;
        self.unwritten = true;
        self.stream = Some(Stream { history: Arc::new(history.clone()), boundary, end: start, unix_ms });
        self.ready().await?;
        self.sync().await?;
        Ok(())
    }

    /// Adds the next bytes of the stream, which arrived at `unix_ms`, and the last command boundary known with
    /// them. They can be read when this returns, and are durable after the next [`sync`](Self::sync). After an
    /// error, or when dropped, [`end`](Self::end) says how much was taken. A full segment is sealed and synced
    /// first, which takes as long as the disk likes.
    pub async fn append(&mut self, bytes: &[Bytes], boundary: Offset, unix_ms: u64) -> io::Result<()> {
        let mut pieces =
            bytes.iter().filter(|piece| !piece.is_empty()).cloned().collect::<Vec<_>>().into_iter().peekable();
        while pieces.peek().is_some() {
            let (mut batch, mut length) = (Vec::new(), 0);
            while let Some(piece) = pieces.peek_mut() {
                let room = MAX_DATA - length;
                if piece.len() > room {
                    batch.extend((room > 0).then(|| piece.split_to(room)));
                    break;
                }
                length += piece.len();
                batch.extend(pieces.next());
            }
            // What is a boundary behind a part of the bytes is known only with the rest of them.
            let known = if pieces.peek().is_none() { Some(boundary) } else { None };
            self.append_record(&batch, known, unix_ms).await?;
        }
        Ok(())
    }

    async fn append_record(&mut self, pieces: &[Bytes], boundary: Option<Offset>, unix_ms: u64) -> io::Result<()> {
        self.ready().await?;
        let (Some(stream), Some(writer)) = (&mut self.stream, &mut self.writer) else { return Err(nothing_begun()) };
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        let boundary = boundary.unwrap_or(stream.boundary);
        let (place, start) = (writer.place, stream.end);
        writer.write(writer.tag.data(place, unix_ms, boundary, pieces)).await?;
        let due = writer.last_entry.is_none_or(|entry| start.since(entry) >= INDEX_SPACING);
        let entry = due.then_some(Entry { offset: start, place, unix_ms });
        writer.last_entry = entry.map(|entry| entry.offset).or(writer.last_entry);
        (stream.end, stream.boundary, stream.unix_ms) = (start.forward(length), boundary, unix_ms);
        writer.written = stream.clone();
        self.archive.grown(writer.serial, entry, length, writer.place);
        Ok(())
    }

    /// From here on the stream is called otherwise: `history` replaces what was known.
    pub async fn turn(&mut self, history: &History) -> io::Result<()> {
        if self.end().is_none() {
            return Err(nothing_begun());
        }
        if !self.unwritten && self.stream.as_ref().is_some_and(|stream| *stream.history == *history) {
            return Ok(());
        }
        let ready = self.ready().await;
        let Some(stream) = &mut self.stream else { return Err(nothing_begun()) };
        // Known before it is written: if that fails, the next segment begins with it.
        stream.history = Arc::new(history.clone());
        self.unwritten = true;
        ready?;
        let Some(writer) = &mut self.writer else { return Err(nothing_begun()) };
        writer.write(writer.tag.history(writer.place, history)).await?;
        writer.written.history = Arc::clone(&stream.history);
        self.archive.grown(writer.serial, None, 0, writer.place);
        self.unwritten = false;
        Ok(())
    }

    /// Cuts the stream back to `at`, from where it goes on under `history`. What lies at or behind `at` is claimed
    /// no more from this call on. `at` must not be behind the end. After an error the cut stands, and the next call
    /// writes it.
    pub async fn cut(&mut self, at: Offset, history: &History, boundary: Offset, unix_ms: u64) -> io::Result<()> {
        let Some(stream) = self.stream.as_mut().filter(|stream| at <= stream.end) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "cut behind the end"));
        };
        *stream = Stream { history: Arc::new(history.clone()), boundary, end: at, unix_ms };
        self.unwritten = true;
        self.archive.cut(at);
        self.retire().await;
        self.ready().await?;
        self.sync().await?;
        Ok(())
    }

    /// Makes everything written durable. Returns the end of what is: every byte of the window before it survives
    /// a crash of the machine.
    pub async fn sync(&mut self) -> io::Result<Offset> {
        let end = self.end().ok_or_else(nothing_begun)?;
        if self.unwritten {
            self.ready().await?;
        }
        self.sync_files().await.inspect_err(|_| self.lost = true)?;
        self.remove_doomed(Removable::Replaced).await;
        Ok(end)
    }

    async fn sync_files(&mut self) -> io::Result<()> {
        if let Some(file) = &self.unsynced {
            file.sync().await?;
            self.disk.sync_dir(&self.options.dir).await?;
            self.unsynced = None;
        }
        if let Some(writer) = &self.writer {
            writer.file.sync().await?;
        }
        Ok(())
    }

    /// Other limits hold from the next [`Journal::trim`] on.
    pub fn set_room(&mut self, room: Room) {
        self.options.room = room;
    }

    /// Drops whole old segments beyond what bytes and time allow, except those with bytes at or behind `floor`;
    /// these only beyond the hard limit. Never drops the newest. Removes files that wait for it. Returns the stream
    /// bytes dropped.
    pub async fn trim(&mut self, floor: Option<Offset>) -> u64 {
        let Room { limit_bytes: limit, hard_limit_bytes: hard, keep } = self.options.room;
        let keep_ms = keep.map(|keep| u64::try_from(keep.as_millis()).unwrap_or(u64::MAX));
        let now_ms = self.clock.now_ms();
        let dropped = self.archive.trim(|oldest, ended_ms, used| {
            let old = keep_ms.is_some_and(|keep| ended_ms.saturating_add(keep) < now_ms);
            let pinned = floor.is_some_and(|floor| oldest.end > floor);
            used > hard || ((used > limit || old) && !pinned)
        });
        self.remove_doomed(Removable::Unclaimed).await;
        dropped
    }

    /// Removes files that nobody claims; what cannot be removed is tried again at the next occasion.
    async fn remove_doomed(&self, which: Removable) {
        for doomed in self.archive.doomed(which) {
            let path = self.options.dir.join(file_name(doomed.serial));
            match self.disk.remove(&path).await {
                Ok(()) => tracing::debug!(serial = doomed.serial, "journal segment removed"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::debug!(serial = doomed.serial, %error, "journal segment not removed");
                    continue;
                }
            }
            self.archive.removed(doomed.serial);
        }
    }

    /// Sees to it that there is a segment with room to write to.
    async fn ready(&mut self) -> io::Result<()> {
        if self.end().is_none() {
            return Err(nothing_begun());
        }
        let full = self.options.segment_bytes.min(MAX_SEGMENT_BYTES);
        let last_serial = self.archive.last_serial();
        if let Some(writer) = &self.writer {
            let room = writer.place < full || writer.last_entry.is_none();
            if room && !writer.torn && !self.unwritten && writer.serial == last_serial {
                return Ok(());
            }
            self.retire().await;
        }
        self.open_segment().await
    }

    /// Ends the segment being written, sealed if it is whole. The next one waits until it is durable.
    async fn retire(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        if writer.serial == self.archive.last_serial() {
            if !writer.torn {
                let index = Index {
                    end: writer.written.end,
                    boundary: writer.written.boundary,
                    unix_ms: writer.written.unix_ms,
                    clock_ms: self.clock.now_ms(),
                    history: History::clone(&writer.written.history),
                    entries: self.archive.entries(),
                };
                // Without it the segment has to be read through, which is slower and as good.
                drop(writer.write(writer.tag.seal(writer.place, &index)).await);
            }
            if writer.torn {
                // Of a full disk every byte counts; what remains is known to be torn.
                drop(writer.file.truncate(writer.place).await);
            }
            self.archive.finished(writer.serial, writer.place);
            self.unsynced = Some(Arc::clone(&writer.file));
        }
        self.writer = None;
    }

    async fn open_segment(&mut self) -> io::Result<()> {
        // What it follows must be there whenever it is.
        if self.unsynced.is_some() {
            self.sync_files().await.inspect_err(|_| self.lost = true)?;
        }
        let Some(stream) = &self.stream else { return Err(nothing_begun()) };
        self.serial += 1;
        let origin = Origin {
            sequence: self.sequence,
            serial: self.serial,
            follows: self.archive.last_serial(),
            start: stream.end,
            boundary: stream.boundary,
            history: History::clone(&stream.history),
            upstream: self.options.upstream.clone(),
            unix_ms: stream.unix_ms,
            clock_ms: self.clock.now_ms(),
        };
        let (bytes, tag) = write_origin(&origin);
        let path = self.options.dir.join(file_name(self.serial));
        let file = self.disk.create(&path).await?;
        let first = bytes.len() as u64;
        // Durable before it holds a byte: then older ones may go at any time, and something is always found.
        let made = async {
            file.write_at(0, bytes).await?;
            file.sync().await?;
            self.disk.sync_dir(&self.options.dir).await
        };
        if let Err(error) = made.await {
            if self.disk.remove(&path).await.is_err() {
                self.archive.doom(self.serial, first);
            }
            return Err(error);
        }
        let live = Arc::new(Opened::new(Arc::clone(&file), tag, first, Vec::new()));
        self.archive.push(Segment {
            serial: self.serial,
            start: stream.end,
            end: stream.end,
            bytes: first,
            clock_ms: origin.clock_ms,
            live: Some(live),
        });
        let (serial, written) = (self.serial, stream.clone());
        self.writer = Some(Writer { file, serial, tag, place: first, written, last_entry: None, torn: false });
        self.unwritten = false;
        Ok(())
    }
}

impl Writer {
    /// Writes behind what is there. Until that has succeeded the segment is torn.
    async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        self.torn = true;
        let length = bytes.len() as u64;
        self.file.write_at(self.place, bytes).await?;
        self.place += length;
        self.torn = false;
        Ok(())
    }
}

fn nothing_begun() -> io::Error {
    io::Error::other("the journal has no beginning, or lost what it had")
}
