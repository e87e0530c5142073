//! The heart, in memory: one stream with a memory, written by one, read by many.
//!
//! Only the link appends ([`Relay::append`]); everybody else holds a [`Cursor`]. The relay never touches a socket,
//! and a file only to read from the journal; what it decides it leaves to [`crate::repl::decide`], over a view taken under one short lock.
//!
//! ```text
//!   link ──append──▶ ┌ history ┐        ┌──read──▶ session (cursor)
//!   link ──branch──▶ │ backlog │ ◀──────┼──read──▶ session (cursor)
//!   link ──adopt───▶ └ snapshot┘        ├──judge─▶ a replica that asks
//!                                       └──tape──▶ the journal's writer
//! ```
//!
//! What has left the backlog may still be in the journal: one address space, of which memory is the newest part.
//!
//! Begin at [`Relay`]; [`backlog`] holds the bytes, [`cursor`] and [`tape`] read them, [`replicas`] are the readers,
//! [`arrivals`] the times, [`target`] is the node whose stream it is.

pub mod arrivals;
pub mod backlog;
pub mod cursor;
pub mod dam;
pub mod judge;
pub mod replicas;
pub mod snapshots;
pub mod status;
pub mod tape;
pub mod target;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::repl::decide::connects;
use crate::repl::{Ancestor, History, Offset, Position, ReplId, Span};
use crate::store::archive::Archive;
use crate::store::journal::Recovered;
use crate::store::snapshot::Rdb;
use crate::wall;
use crate::wire::info::Replication;

use arrivals::Arrivals;
use backlog::{Backlog, Kept};
use cursor::{Cursor, Follow};
use replicas::Replicas;
use snapshots::SnapshotSlot;
use tape::Tape;

/// Bounds of the relay.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Stream bytes kept in memory.
    pub backlog_bytes: u64,
    /// Bytes the journal may hold; 0 without one.
    pub journal_bytes: u64,
    /// Bytes the journal may be behind before memory drops what it has not taken yet.
    pub journal_lag_bytes: u64,
    /// Earlier ids remembered.
    pub history_depth: usize,
    /// Replicas attached at once.
    pub max_replicas: usize,
}

/// The state of the link to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// No connection, waiting to try again.
    Disconnected,
    /// Dialing.
    Connecting,
    /// Connected, in the dialogue before PSYNC is answered.
    Handshake,
    /// The upstream answers, but lost its data; it is asked again from time to time whether it has it back.
    Held,
    /// Receiving a snapshot.
    Syncing,
    /// Receiving the stream.
    Streaming,
}

impl LinkState {
    /// All states, in order.
    pub const ALL: [LinkState; 6] = [
        LinkState::Disconnected,
        LinkState::Connecting,
        LinkState::Handshake,
        LinkState::Held,
        LinkState::Syncing,
        LinkState::Streaming,
    ];

    /// Status field and metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            LinkState::Disconnected => "disconnected",
            LinkState::Connecting => "connecting",
            LinkState::Handshake => "handshake",
            LinkState::Held => "held",
            LinkState::Syncing => "syncing",
            LinkState::Streaming => "streaming",
        }
    }
}

/// The stream and all that is known about it.
#[derive(Debug)]
pub struct Relay {
    /// Held for the length of one verb of this type, never across an await and never during I/O.
    state: Mutex<State>,
    /// Bytes were appended, or cursors have to look for another reason.
    grown: Notify,
    /// Something changed that may change an answer: link, history, snapshot.
    turned: Notify,
    /// A snapshot was asked for.
    wanted: Notify,
    replicas: Arc<Replicas>,
    evicted_bytes: AtomicU64,
    /// Where what has left the backlog can be read; never set without a journal.
    archive: OnceLock<Arc<Archive>>,
}

#[derive(Debug)]
struct State {
    line: Option<Line>,
    link: LinkState,
    /// When it last stopped streaming.
    streamed: Option<Instant>,
    /// Bytes the upstream's own backlog holds, if it said so: what it could have answered itself.
    ring: Option<u64>,
    /// Nothing from here on is sent to anybody; set and lifted by [`dam::Dam`].
    dam: Option<Offset>,
    snapshot: SnapshotSlot,
    options: Options,
}

/// One unbroken stream.
#[derive(Debug)]
struct Line {
    history: History,
    backlog: Backlog,
    /// What the journal holds of this stream.
    archived: Option<Span>,
    arrivals: Arrivals,
    /// The end of the last complete command outside a transaction, as far as the link knows; behind the head only
    /// until a stream that began in mid command has come so far.
    boundary: Offset,
    /// Counts the streams we have held: bytes of different ones do not connect.
    stream: u64,
    /// Counts the streams, and the times one was cut back: cursors do not survive either.
    generation: u64,
    /// Counts the branches of this stream.
    branches: u64,
    /// The lowest point the stream was cut back to since the journal's writer looked.
    cut: Option<Offset>,
    /// What comes before this was received by an earlier process.
    born: Option<Offset>,
    /// What comes before this was taken by the journal's writer.
    taken: Offset,
}

impl Relay {
    /// A relay that holds nothing yet.
    pub fn new(options: Options) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                line: None,
                link: LinkState::Connecting,
                streamed: None,
                ring: None,
                dam: None,
                snapshot: SnapshotSlot::default(),
                options,
            }),
            grown: Notify::new(),
            turned: Notify::new(),
            wanted: Notify::new(),
            replicas: Replicas::new(options.max_replicas),
            evicted_bytes: AtomicU64::new(0),
            archive: OnceLock::new(),
        })
    }

    /// There is a journal, and this is what it remembers of an earlier life. The tape goes on behind that.
    ///
    /// # Panics
    /// When called twice, or after a stream was adopted: it is part of the relay's birth.
    pub fn remember(&self, archive: Arc<Archive>, recovered: Option<Recovered>) -> Tape {
        self.archive.set(archive).expect("there is one journal");
        let Some(Recovered { history, window, boundary, marks, .. }) = recovered else { return Tape::default() };
        let mut state = self.state();
        assert!(state.line.is_none(), "the journal is read before the upstream");
        let backlog = Backlog::new(window.end, state.options.backlog_bytes);
        let arrivals = Arrivals::remembered(&marks, wall::unix_ms(), Instant::now());
        let line = Line {
            history,
            backlog,
            archived: Some(window),
            arrivals,
            boundary,
            stream: 1,
            generation: 1,
            branches: 0,
            cut: None,
            born: Some(window.end),
            taken: window.end,
        };
        let tape = Tape::at_head(&line);
        state.line = Some(line);
        tape
    }

    /// Who is attached.
    pub fn replicas(&self) -> &Arc<Replicas> {
        &self.replicas
    }

    /// The link got into another state.
    pub fn enter(&self, link: LinkState) {
        let mut state = self.state();
        if state.link != link {
            if state.link == LinkState::Streaming {
                state.streamed = Some(Instant::now());
            }
            state.link = link;
            if link == LinkState::Streaming {
                // It may be another server now, or another release of it.
                state.snapshot.fetched = None;
            }
            drop(state);
            self.turned.notify_waiters();
        }
    }

    /// The state of the link.
    pub fn link(&self) -> LinkState {
        self.state().link
    }

    /// How long it has not streamed; none while it does, and before it ever did.
    pub fn down(&self) -> Option<Duration> {
        let state = self.state();
        state.streamed.filter(|_| state.link != LinkState::Streaming).map(|end| end.elapsed())
    }

    /// The upstream's own backlog holds this many bytes.
    pub fn compare_with(&self, ring: Option<u64>) {
        self.state().ring = ring;
    }

    /// What is held, for asking an upstream to go on with it: the current id and the window.
    pub fn held(&self) -> Option<(ReplId, Span)> {
        self.state().line.as_ref().map(|line| (line.history.current(), line.window()))
    }

    /// What a psyncd behind us needs to know.
    pub fn replication(&self) -> Option<Replication> {
        let state = self.state();
        // Before its first boundary has come we could not say where a command begins.
        let line = state.line.as_ref().filter(|line| line.boundary <= line.window().end)?;
        Some(Replication {
            id: line.history.current(),
            previous: line.history.ancestors().next().copied(),
            window: line.window(),
            boundary: line.boundary,
            limit: state.options.backlog_bytes.max(state.options.journal_bytes),
        })
    }

    /// Bytes the backlog can hold.
    pub fn backlog_limit(&self) -> u64 {
        self.state().options.backlog_bytes
    }

    /// Other limits hold from now on. A backlog that is to be larger grows as bytes come; one that is to be smaller drops what is
    /// too much when the next bytes come. Replicas that are one too many stay. `history_depth` stays what it was.
    pub fn resize(&self, options: Options) {
        let mut state = self.state();
        if let Some(line) = &mut state.line {
            line.backlog.resize(options.backlog_bytes);
        }
        state.options = Options { history_depth: state.options.history_depth, ..options };
        drop(state);
        self.replicas.resize(options.max_replicas);
    }

    /// From here on the stream is the one at `position`. What was held before does not connect: every cursor
    /// ends. `previous` is what the master says of its second id. A `snapshot` of this very position comes with a
    /// full sync; a warm attach has none.
    /// `boundary` is the first point known to lie between commands, at or behind `position`.
    pub fn adopt(&self, position: Position, boundary: Offset, previous: Option<Ancestor>, snapshot: Option<Arc<Rdb>>) {
        let mut state = self.state();
        let (stream, generation) = state.line.as_ref().map_or((1, 1), |line| (line.stream + 1, line.generation + 1));
        let mut history = History::new(position.id, state.options.history_depth);
        if let Some(previous) = previous {
            history.learn(previous.id, previous.boundary);
        }
        let backlog = Backlog::new(position.offset, state.options.backlog_bytes);
        state.dam = None;
        state.line = Some(Line {
            history,
            backlog,
            archived: None,
            arrivals: Arrivals::default(),
            boundary,
            stream,
            generation,
            branches: 0,
            cut: None,
            born: None,
            taken: position.offset,
        });
        if let Some(rdb) = &snapshot {
            state.snapshot.arrived(rdb);
            // Whoever asked for one has it here.
            state.snapshot.wanted = false;
        }
        state.snapshot.ready = snapshot;
        drop(state);
        self.grown.notify_waiters();
        self.turned.notify_waiters();
    }

    /// The next bytes of the stream, and the last boundary in what there is then. Returns a chunk that was dropped for
    /// them, if there is one, for its memory.
    ///
    /// # Panics
    /// When there is no stream to append to: the link adopts one first.
    pub fn append(&self, bytes: Bytes, boundary: Offset) -> Option<Bytes> {
        let now = Instant::now();
        let mut state = self.state();
        let lag_limit = state.options.journal_lag_bytes;
        let line = state.line.as_mut().expect("the link adopts a stream before it appends to it");
        let head = line.backlog.window().end;
        let kept = match self.archive.get() {
            Some(_) => Kept { from: line.taken, limit: lag_limit },
            None => Kept::NOTHING,
        };
        let dropped = line.backlog.append(bytes, boundary, kept);
        line.boundary = boundary;
        line.arrivals.record(head, now);
        if dropped.bytes > 0 {
            self.evicted_bytes.fetch_add(dropped.bytes, Ordering::Relaxed);
            line.arrivals.forget_before(line.window().start);
            state.drop_snapshot_that_does_not_connect();
        }
        drop(state);
        self.grown.notify_waiters();
        dropped.last
    }

    /// At `at` the stream goes on under `id`. What we hold beyond `at` is not part of it and is forgotten; whoever was
    /// sent some of that starts over. `at` may lie ahead of the head: what comes until then belongs to both ids.
    pub fn branch(&self, at: Offset, id: ReplId) {
        let mut state = self.state();
        let Some(line) = state.line.as_mut() else { return };
        let (generation, branches) = (line.generation, line.branches);
        if at < line.backlog.window().end {
            line.forget_of_archive(at);
            line.backlog.truncate(at);
            line.arrivals.truncate(at);
            line.boundary = line.boundary.min(at);
            line.generation += 1;
            line.cut = Some(line.cut.map_or(at, |cut| cut.min(at)));
        }
        if id != line.history.current() {
            line.history.branch(at, id);
            line.branches += 1;
        }
        if (generation, branches) != (line.generation, line.branches) {
            state.dam = None;
        }
        state.drop_snapshot_that_does_not_connect();
        drop(state);
        self.grown.notify_waiters();
        self.turned.notify_waiters();
    }

    /// How far the stream had come `ago`; `None` where that is not known any more.
    pub fn offset_ago(&self, ago: Duration) -> Option<Offset> {
        let state = self.state();
        let line = state.line.as_ref()?;
        line.arrivals.offset_at(Instant::now().checked_sub(ago)?, line.backlog.window().end)
    }

    /// How far the stream has come; zero before there is one.
    pub fn head(&self) -> Offset {
        self.state().line.as_ref().map_or(Offset::ZERO, |line| line.backlog.window().end)
    }

    /// Resolves when there may be more to read. Enable it before reading, or a byte may be missed.
    pub fn grown(&self) -> Notified<'_> {
        self.grown.notified()
    }

    /// Resolves when something changed that may change an answer. Enable it before asking.
    pub fn turned(&self) -> Notified<'_> {
        self.turned.notified()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics holding it")
    }
}

impl State {
    fn drop_snapshot_that_does_not_connect(&mut self) {
        if let (Some(line), Some(rdb)) = (&self.line, &self.snapshot.ready)
            && !connects(&rdb.position(), &line.history, line.window())
        {
            self.snapshot.ready = None;
        }
    }
}

impl Line {
    /// Everything that is held, in memory and in the journal, as one.
    fn window(&self) -> Span {
        let memory = self.backlog.window();
        match self.archived {
            Some(archived) if archived.start < memory.start && memory.start <= archived.end => {
                Span { start: archived.start, end: memory.end }
            }
            _ => memory,
        }
    }

    /// What the journal holds from `at` on is not of this stream.
    fn forget_of_archive(&mut self, at: Offset) {
        self.keep_of_archive(Some(Span { start: Offset::ZERO, end: at }));
    }

    /// Of what the journal holds, at most `span` can be read.
    fn keep_of_archive(&mut self, span: Option<Span>) {
        self.archived = match (self.archived, span) {
            (Some(held), Some(span)) => {
                let both = Span { start: held.start.max(span.start), end: held.end.min(span.end) };
                (both.start <= both.end).then_some(both)
            }
            _ => None,
        };
    }

    pub(super) fn cursor(&self, at: Offset, follow: Follow) -> Cursor {
        Cursor { at, generation: self.generation, branches: self.branches, follow }
    }

    fn age(&self, point: Offset, now: Instant) -> Duration {
        self.arrivals.age(point, self.backlog.window().end, now)
    }
}
