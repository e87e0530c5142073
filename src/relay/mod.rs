//! The heart, in memory: one stream with a memory, written by one, read by many.
//!
//! Only the link appends ([`Relay::append`]); everybody else holds a [`Cursor`]. The relay never touches a socket
//! or a file; what it decides it leaves to [`crate::repl::decide`], over a view taken under one short lock.
//!
//! ```text
//!   link ──append──▶ ┌ history ┐        ┌──read──▶ session (cursor)
//!   link ──branch──▶ │ backlog │ ◀──────┼──read──▶ session (cursor)
//!   link ──adopt───▶ └ snapshot┘        └──judge─▶ a replica that asks
//! ```
//!
//! Begin at [`Relay`]; [`backlog`] holds the bytes, [`replicas`] the readers, [`arrivals`] the times.

pub mod arrivals;
pub mod backlog;
pub mod replicas;
pub mod status;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::repl::decide::{self, Arriving, Ready, Upstream, View, connects};
use crate::repl::{
    Ancestor, Ask, FullReason, History, HoldReason, Lineage, Offset, PartialReason, Position, RdbFormat, ReplId,
    ServerVersion, Span, Verdict,
};
use crate::store::snapshot::{Progress, Rdb};
use crate::wire::info::Replication;

use arrivals::Arrivals;
use backlog::Backlog;
use replicas::Replicas;

/// Bounds of the relay.
#[derive(Debug, Clone)]
pub struct Options {
    /// Stream bytes kept in memory.
    pub backlog_bytes: u64,
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
    /// Receiving a snapshot.
    Syncing,
    /// Receiving the stream.
    Streaming,
}

impl LinkState {
    /// All states, in order.
    pub const ALL: [LinkState; 5] = [
        LinkState::Disconnected,
        LinkState::Connecting,
        LinkState::Handshake,
        LinkState::Syncing,
        LinkState::Streaming,
    ];

    /// Status field and metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            LinkState::Disconnected => "disconnected",
            LinkState::Connecting => "connecting",
            LinkState::Handshake => "handshake",
            LinkState::Syncing => "syncing",
            LinkState::Streaming => "streaming",
        }
    }
}

/// Whether the link has ever been in dialogue with the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// It has: there is a real node, and it is not ourselves.
    Yes,
    /// It has not, and the last attempt failed.
    NotYet,
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
    options: Options,
    evicted_bytes: AtomicU64,
}

#[derive(Debug)]
struct State {
    line: Option<Line>,
    link: LinkState,
    /// Whether the link has ever been in dialogue with the upstream: a real node, and not ourselves.
    met: bool,
    snapshot: SnapshotSlot,
}

/// One unbroken stream.
#[derive(Debug)]
struct Line {
    history: History,
    backlog: Backlog,
    arrivals: Arrivals,
    /// The end of the last complete command outside a transaction, as far as the link knows; behind the head only
    /// until a stream that began in mid command has come so far.
    boundary: Offset,
    /// Counts the streams we have held: bytes of different ones do not connect.
    generation: u64,
    /// Counts the branches of this stream.
    branches: u64,
}

#[derive(Debug, Default)]
struct SnapshotSlot {
    ready: Option<Arc<Rdb>>,
    arriving: Option<Arc<Rdb>>,
    wanted: bool,
    fetch: Fetch,
    /// What the last fetch over this link brought, and for which lowest version among the replicas.
    fetched: Option<(Option<ServerVersion>, RdbFormat)>,
}

impl SnapshotSlot {
    /// `rdb` is not arriving any more; another one that may be, on the other link, is not touched.
    fn arrived(&mut self, rdb: &Arc<Rdb>) {
        if self.arriving.as_ref().is_some_and(|arriving| Arc::ptr_eq(arriving, rdb)) {
            self.arriving = None;
        }
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Fetch {
    #[default]
    Idle,
    Running,
}

/// A reader's place in the stream. Yields the stream in order, once, or ends for good.
#[derive(Debug)]
pub struct Cursor {
    at: Offset,
    generation: u64,
    branches: u64,
    follow: Follow,
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

/// The answer to a replica, with what is needed to act on it.
#[derive(Debug)]
pub enum Judgement {
    /// Continue with this cursor; the stream is called `id`.
    Continue {
        /// Stands where the replica stands.
        cursor: Cursor,
        /// The current id.
        id: ReplId,
        /// How we know.
        why: PartialReason,
    },
    /// Send this snapshot, complete or arriving, then the stream from its position.
    Full {
        /// What to send.
        rdb: Arc<Rdb>,
        /// What to call its position: after a branch the bytes before it belong to the new id as well, and those
        /// behind it to nobody else.
        position: Position,
        /// Why there was no other way.
        why: FullReason,
    },
    /// A snapshot was asked for: wait for a turn and ask again.
    Fetching(FullReason),
    /// Wait for a turn and ask again.
    Hold(HoldReason),
    /// Held long enough.
    NotNow(HoldReason),
}

/// What a replica can do, as far as it changes its answer.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// Whether it can receive a payload of unknown length (`capa eof`).
    pub payload: PayloadAbility,
    /// Whether it has to be told new ids (`capa psync2`).
    pub follow: Follow,
    /// The version it announced.
    pub version: Option<ServerVersion>,
    /// The oldest position of use to it: a psyncd's own backlog begins there.
    pub since: Offset,
}

/// How a replica can receive a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadAbility {
    /// Only with its length said beforehand.
    Length,
    /// With its length, or with a mark behind it (`capa eof`).
    LengthOrMark,
}

impl Relay {
    /// A relay that holds nothing yet.
    pub fn new(options: Options) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                line: None,
                link: LinkState::Connecting,
                met: false,
                snapshot: SnapshotSlot::default(),
            }),
            grown: Notify::new(),
            turned: Notify::new(),
            wanted: Notify::new(),
            replicas: Replicas::new(options.max_replicas),
            options,
            evicted_bytes: AtomicU64::new(0),
        })
    }

    /// Who is attached.
    pub fn replicas(&self) -> &Arc<Replicas> {
        &self.replicas
    }

    // ---- the link's verbs ----

    /// The link got into another state.
    pub fn enter(&self, link: LinkState) {
        let mut state = self.state();
        if state.link != link {
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

    /// The upstream exists and is no loop.
    pub fn meet(&self) {
        let mut state = self.state();
        if !state.met {
            state.met = true;
            drop(state);
            self.turned.notify_waiters();
        }
    }

    /// Waits until the upstream has been met once, or an attempt to meet it has failed. Cancel-safe.
    pub async fn met(&self) -> Met {
        loop {
            let turned = self.turned();
            tokio::pin!(turned);
            turned.as_mut().enable();
            {
                let state = self.state();
                if state.met {
                    return Met::Yes;
                }
                if state.link == LinkState::Disconnected {
                    return Met::NotYet;
                }
            }
            turned.await;
        }
    }

    /// What is held, for asking an upstream to go on with it: the current id and the window.
    pub fn held(&self) -> Option<(ReplId, Span)> {
        self.state().line.as_ref().map(|line| (line.history.current(), line.backlog.window()))
    }

    /// What a psyncd behind us needs to know.
    pub fn replication(&self) -> Option<Replication> {
        let state = self.state();
        // Before its first boundary has come we could not say where a command begins.
        let line = state.line.as_ref().filter(|line| line.boundary <= line.backlog.window().end)?;
        Some(Replication {
            id: line.history.current(),
            previous: line.history.ancestors().next().copied(),
            window: line.backlog.window(),
            boundary: line.boundary,
            limit: self.options.backlog_bytes,
        })
    }

    /// From here on the stream is the one at `position`. What was held before does not connect: every cursor
    /// ends. `previous` is what the master says of its second id. A `snapshot` of this very position comes with a
    /// full sync; a warm attach has none.
    /// `boundary` is the first point known to lie between commands, at or behind `position`.
    pub fn adopt(&self, position: Position, boundary: Offset, previous: Option<Ancestor>, snapshot: Option<Arc<Rdb>>) {
        let mut state = self.state();
        let generation = state.line.as_ref().map_or(1, |line| line.generation + 1);
        let mut history = History::new(position.id, self.options.history_depth);
        if let Some(previous) = previous {
            history.learn(previous.id, previous.boundary);
        }
        let backlog = Backlog::new(position.offset, self.options.backlog_bytes);
        state.line = Some(Line { history, backlog, arrivals: Arrivals::default(), boundary, generation, branches: 0 });
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

    /// The next bytes of the stream, and the last boundary in what there is then.
    ///
    /// # Panics
    /// When there is no stream to append to: the link adopts one first.
    pub fn append(&self, bytes: Bytes, boundary: Offset) {
        let now = Instant::now();
        let mut state = self.state();
        let State { line, snapshot, .. } = &mut *state;
        let line = line.as_mut().expect("the link adopts a stream before it appends to it");
        let head = line.backlog.window().end;
        let evicted = line.backlog.append(bytes);
        line.boundary = boundary;
        line.arrivals.record(head, now);
        if evicted > 0 {
            let window = line.backlog.window();
            line.arrivals.forget_before(window.start);
            self.evicted_bytes.fetch_add(evicted, Ordering::Relaxed);
            if snapshot.ready.as_ref().is_some_and(|rdb| !connects(&rdb.position(), &line.history, window)) {
                snapshot.ready = None;
            }
        }
        drop(state);
        self.grown.notify_waiters();
    }

    /// At `at`, which is the head or lies below it, the stream goes on under `id`. What we hold beyond `at` is not
    /// part of it and is forgotten; whoever was sent some of that starts over.
    pub fn branch(&self, at: Offset, id: ReplId) {
        let mut state = self.state();
        let State { line, snapshot, .. } = &mut *state;
        let Some(line) = line.as_mut() else { return };
        if at < line.backlog.window().end {
            line.backlog.truncate(at);
            line.arrivals.truncate(at);
            line.boundary = line.boundary.min(at);
            line.generation += 1;
        }
        if id != line.history.current() {
            line.history.branch(at, id);
            line.branches += 1;
        }
        let window = line.backlog.window();
        if snapshot.ready.as_ref().is_some_and(|rdb| !connects(&rdb.position(), &line.history, window)) {
            snapshot.ready = None;
        }
        drop(state);
        self.grown.notify_waiters();
        self.turned.notify_waiters();
    }

    // ---- snapshots ----

    /// Waits until somebody needs a snapshot and a link streams that it could connect to. For one waiter: the
    /// fetcher. Cancel-safe.
    pub async fn snapshot_wanted(&self) {
        loop {
            let turned = self.turned();
            tokio::pin!(turned);
            turned.as_mut().enable();
            {
                let state = self.state();
                if state.snapshot.wanted && state.link == LinkState::Streaming {
                    return;
                }
            }
            tokio::select! {
                biased;
                () = &mut turned => {}
                () = self.wanted.notified() => {}
            }
        }
    }

    /// Waits until the link itself receives a snapshot, which makes one that is being fetched superfluous.
    /// Cancel-safe.
    pub async fn superseded(&self) {
        loop {
            let turned = self.turned();
            tokio::pin!(turned);
            turned.as_mut().enable();
            if self.link() == LinkState::Syncing {
                return;
            }
            turned.await;
        }
    }

    /// A fetch begins. The guard's drop ends it, with or without a snapshot.
    pub fn fetch(&self) -> FetchGuard<'_> {
        let mut state = self.state();
        state.snapshot.fetch = Fetch::Running;
        state.snapshot.wanted = false;
        FetchGuard { relay: self }
    }

    /// A snapshot began to arrive and may be joined.
    pub fn snapshot_arriving(&self, rdb: &Arc<Rdb>) {
        self.state().snapshot.arriving = Some(Arc::clone(rdb));
        self.turned.notify_waiters();
    }

    /// The snapshot that was fetched is good. Returns whether it connects to the stream; if not it is of no use.
    /// `fleet` is the lowest version among the replicas at the time it was asked for.
    pub fn snapshot_ready(&self, rdb: &Arc<Rdb>, fleet: Option<ServerVersion>) -> bool {
        let mut state = self.state();
        state.snapshot.arrived(rdb);
        let useful =
            state.line.as_ref().is_some_and(|line| connects(&rdb.position(), &line.history, line.backlog.window()));
        if useful {
            state.snapshot.ready = Some(Arc::clone(rdb));
            state.snapshot.fetched = Some((fleet, rdb.format()));
        }
        drop(state);
        self.turned.notify_waiters();
        useful
    }

    /// A snapshot that was arriving will never be complete, which its file says itself.
    pub fn snapshot_failed(&self) {
        self.turned.notify_waiters();
    }

    /// Whether a snapshot is being fetched right now.
    pub fn fetching(&self) -> bool {
        self.state().snapshot.fetch != Fetch::Idle
    }

    // ---- the sessions' verbs ----

    /// Answers a replica. The cursor of a `Continue` is taken under the same lock as the decision.
    pub fn judge(&self, ask: &Ask, abilities: &Abilities) -> Judgement {
        let mut state = self.state();
        let State { line, link, snapshot, .. } = &mut *state;
        let suits = |rdb: &Rdb| rdb.format().suits(abilities.version) && rdb.position().offset >= abilities.since;
        let ready = match (&snapshot.ready, snapshot.fetched) {
            (Some(rdb), _) if suits(rdb) => Ready::At(rdb.position()),
            // Asked again for the same replicas, the upstream would write the same again.
            (_, Some((fleet, format)))
                if fleet == self.replicas.lowest_version() && !format.suits(abilities.version) =>
            {
                Ready::Unfit
            }
            _ => Ready::No,
        };
        let arriving = match &snapshot.arriving {
            Some(rdb) if suits(rdb) && rdb.progress() != Progress::Failed => match (rdb.length(), abilities.payload) {
                (Some(_), _) | (None, PayloadAbility::LengthOrMark) => Arriving::Joinable,
                (None, PayloadAbility::Length) => Arriving::Later,
            },
            _ => Arriving::No,
        };
        let view = View {
            line: line.as_ref().map(|line| (&line.history, line.backlog.window())),
            ready,
            arriving,
            upstream: match link {
                LinkState::Streaming => Upstream::Streaming,
                _ => Upstream::Away,
            },
        };
        match decide::decide(&view, ask) {
            Verdict::Continue { from, id, why } => {
                let line = line.as_ref().expect("nothing is continued without a line");
                Judgement::Continue { cursor: line.cursor(from, abilities.follow), id, why }
            }
            Verdict::Ready(why) => {
                let rdb = snapshot.ready.clone().expect("it was in the view");
                Judgement::Full { position: called(line.as_ref(), rdb.position()), rdb, why }
            }
            Verdict::Join(why) => {
                let rdb = snapshot.arriving.clone().expect("it was in the view");
                Judgement::Full { position: called(line.as_ref(), rdb.position()), rdb, why }
            }
            Verdict::Fetch(why) => {
                if snapshot.fetch == Fetch::Idle {
                    snapshot.wanted = true;
                    drop(state);
                    self.wanted.notify_one();
                }
                Judgement::Fetching(why)
            }
            Verdict::Hold(why) => Judgement::Hold(why),
            Verdict::NotNow(why) => Judgement::NotNow(why),
        }
    }

    /// A cursor at `position`, which a replica was told that its snapshot is at, if the stream still goes on from
    /// there under that name.
    pub fn cursor(&self, position: &Position, follow: Follow) -> Result<Cursor, CursorEnd> {
        let state = self.state();
        let line = state.line.as_ref().ok_or(CursorEnd::Reset)?;
        let window = line.backlog.window();
        match line.history.locate(position) {
            Lineage::Diverged { .. } | Lineage::Unknown => Err(CursorEnd::Reset),
            Lineage::Current | Lineage::Ancestor if position.offset < window.start => Err(CursorEnd::Overrun),
            // It has the data set and comes back for the bytes, to learn what they are called now.
            Lineage::Ancestor if follow == Follow::Id => Err(CursorEnd::Branched),
            Lineage::Current | Lineage::Ancestor => Ok(line.cursor(position.offset, follow)),
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

    /// Whether the window still holds everything from `position` on, or the stream it belongs to is yet to come.
    /// What is being sent a snapshot of a position that is lost is sent it in vain.
    pub fn lost(&self, position: &Position) -> bool {
        let state = self.state();
        state
            .line
            .as_ref()
            .is_some_and(|line| line.history.current() == position.id && position.offset < line.backlog.window().start)
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

/// What the position of a snapshot is called today.
fn called(line: Option<&Line>, position: Position) -> Position {
    match line.map(|line| (line.history.current(), line.history.locate(&position))) {
        Some((current, Lineage::Ancestor)) => Position::new(current, position.offset),
        _ => position,
    }
}

impl Line {
    fn cursor(&self, at: Offset, follow: Follow) -> Cursor {
        Cursor { at, generation: self.generation, branches: self.branches, follow }
    }

    fn age(&self, point: Offset, now: Instant) -> Duration {
        self.arrivals.age(point, self.backlog.window().end, now)
    }
}

/// A fetch in flight: at most one exists.
#[derive(Debug)]
pub struct FetchGuard<'a> {
    relay: &'a Relay,
}

impl Drop for FetchGuard<'_> {
    fn drop(&mut self) {
        self.relay.state().snapshot.fetch = Fetch::Idle;
        self.relay.turned.notify_waiters();
    }
}
