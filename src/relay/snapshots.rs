//! The snapshot there is, the one that is coming, and the one fetch that may be in flight.

use std::sync::Arc;

use tokio::time::Instant;

use super::status::SnapshotFile;
use super::{Line, LinkState, Relay};
use crate::repl::decide::connects;
use crate::repl::reuse::{self, Cached, Choice, Outlook};
use crate::repl::{Lineage, Position, RdbFormat, ServerVersion};
use crate::store::snapshot::Rdb;

#[derive(Debug, Default)]
pub(super) struct SnapshotSlot {
    pub(super) ready: Option<Arc<Rdb>>,
    pub(super) arriving: Option<Arc<Rdb>>,
    pub(super) wanted: bool,
    /// Whether an operator wants one, whoever waits.
    ordered: bool,
    pub(super) fetch: Fetch,
    /// What the last fetch over this link brought, and for which lowest version among the replicas.
    pub(super) fetched: Option<(Option<ServerVersion>, RdbFormat)>,
    /// What the last fetch taught about the next one.
    outlook: Outlook,
    /// Until then what there is is good enough, however old.
    content_until: Option<Instant>,
}

/// Where a position lies on the stream we hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On our line, `lag_bytes` before the head, and everything behind it is held.
    Held {
        /// Bytes from there to the head.
        lag_bytes: u64,
    },
    /// On our line, and what follows it is held no more.
    Lost,
    /// Of the current id, and the head has not come so far.
    Ahead,
    /// Not on our line, or there is none.
    Foreign,
}

impl SnapshotSlot {
    /// `rdb` is not arriving any more; another one that may be, on the other link, is not touched.
    pub(super) fn arrived(&mut self, rdb: &Arc<Rdb>) {
        if self.arriving.as_ref().is_some_and(|arriving| Arc::ptr_eq(arriving, rdb)) {
            self.arriving = None;
        }
    }

    /// Whether a fresh snapshot would cost less than `rdb` and its tail, and may be asked for now.
    pub(super) fn is_stale(&self, rdb: &Rdb, line: Option<&Line>) -> bool {
        let (Some(line), Some(bytes)) = (line, rdb.length()) else { return false };
        let cached = Cached { bytes, tail_bytes: line.backlog.window().end.since(rdb.position().offset) };
        self.content_until.is_none_or(|until| Instant::now() >= until)
            && reuse::choose(&cached, &self.outlook) == Choice::Refresh
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetch {
    #[default]
    Idle,
    Running,
}

impl Relay {
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

    /// Has a snapshot fetched although nobody waits for one. One that is being fetched is that one.
    pub fn order_snapshot(&self) {
        let mut state = self.state();
        state.snapshot.ordered = true;
        state.snapshot.wanted |= state.snapshot.fetch == Fetch::Idle;
        drop(state);
        self.wanted.notify_one();
    }

    /// Whether one is fetched for nobody who waits.
    pub fn is_snapshot_ordered(&self) -> bool {
        self.state().snapshot.ordered
    }

    /// Forgets the complete snapshot, if there is one. Who is being sent it keeps it.
    pub fn drop_snapshot(&self) -> Option<SnapshotFile> {
        let dropped = self.state().snapshot.ready.take();
        dropped.as_ref().map(SnapshotFile::of)
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
        self.take(rdb, Some((fleet, rdb.format())))
    }

    /// A snapshot that did not come from the upstream is good: it says nothing of what the upstream would write. Returns
    /// whether it connects to the stream; if not it is of no use.
    pub fn snapshot_taken(&self, rdb: &Arc<Rdb>) -> bool {
        self.take(rdb, None)
    }

    fn take(&self, rdb: &Arc<Rdb>, fetched: Option<(Option<ServerVersion>, RdbFormat)>) -> bool {
        let mut state = self.state();
        state.snapshot.arrived(rdb);
        let useful = state.line.as_ref().is_some_and(|line| connects(&rdb.position(), &line.history, line.window()));
        if useful {
            state.snapshot.ready = Some(Arc::clone(rdb));
            state.snapshot.fetched = fetched.or(state.snapshot.fetched);
        }
        drop(state);
        self.turned.notify_waiters();
        useful
    }

    /// Waits for a stream, then offers it a snapshot of an earlier run that was found good. Returns whether it is used:
    /// it connects, and there is none by now. Cancel-safe.
    pub async fn snapshot_recovered(&self, rdb: &Arc<Rdb>) -> bool {
        loop {
            let turned = self.turned();
            tokio::pin!(turned);
            turned.as_mut().enable();
            let (line, ready) = {
                let state = self.state();
                (state.line.is_some(), state.snapshot.ready.is_some())
            };
            if line {
                return !ready && self.snapshot_taken(rdb);
            }
            turned.await;
        }
    }

    /// Where `position` lies.
    pub fn place(&self, position: &Position) -> Place {
        let state = self.state();
        let Some(line) = &state.line else { return Place::Foreign };
        let window = line.window();
        match line.history.locate(position) {
            Lineage::Diverged { .. } | Lineage::Unknown => Place::Foreign,
            Lineage::Current | Lineage::Ancestor { .. } if position.offset < window.start => Place::Lost,
            Lineage::Current | Lineage::Ancestor { .. } if position.offset > window.end => Place::Ahead,
            Lineage::Current | Lineage::Ancestor { .. } => Place::Held { lag_bytes: window.end.since(position.offset) },
        }
    }

    /// Until then what there is is sent, however old: a fetch has just succeeded or failed, or the upstream has forked.
    pub fn be_content_until(&self, until: Instant) {
        let mut state = self.state();
        let until = state.snapshot.content_until.map_or(until, |before| before.max(until));
        state.snapshot.content_until = Some(until);
    }

    /// What a fetch that succeeded teaches about the next one.
    pub fn learn(&self, outlook: Outlook) {
        self.state().snapshot.outlook = outlook;
    }

    /// A snapshot that was arriving will never be complete, which its file says itself.
    pub fn snapshot_failed(&self) {
        self.turned.notify_waiters();
    }

    /// Whether a snapshot is being fetched right now.
    pub fn fetching(&self) -> bool {
        self.state().snapshot.fetch != Fetch::Idle
    }

    /// Whether the window still holds everything from `position` on, or the stream it belongs to is yet to come.
    /// What is being sent a snapshot of a position that is lost is sent it in vain.
    pub fn lost(&self, position: &Position) -> bool {
        let state = self.state();
        state
            .line
            .as_ref()
            .is_some_and(|line| line.history.current() == position.id && position.offset < line.window().start)
    }
}

/// A fetch in flight: at most one exists.
#[derive(Debug)]
pub struct FetchGuard<'a> {
    relay: &'a Relay,
}

impl Drop for FetchGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.relay.state();
        (state.snapshot.fetch, state.snapshot.ordered) = (Fetch::Idle, false);
        drop(state);
        self.relay.turned.notify_waiters();
    }
}
