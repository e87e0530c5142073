//! The snapshot there is, the one that is coming, and the one fetch that may be in flight.

use std::sync::Arc;

use super::{LinkState, Relay};
use crate::repl::decide::connects;
use crate::repl::{Position, RdbFormat, ServerVersion};
use crate::store::snapshot::Rdb;

#[derive(Debug, Default)]
pub(super) struct SnapshotSlot {
    pub(super) ready: Option<Arc<Rdb>>,
    pub(super) arriving: Option<Arc<Rdb>>,
    pub(super) wanted: bool,
    pub(super) fetch: Fetch,
    /// What the last fetch over this link brought, and for which lowest version among the replicas.
    pub(super) fetched: Option<(Option<ServerVersion>, RdbFormat)>,
}

impl SnapshotSlot {
    /// `rdb` is not arriving any more; another one that may be, on the other link, is not touched.
    pub(super) fn arrived(&mut self, rdb: &Arc<Rdb>) {
        if self.arriving.as_ref().is_some_and(|arriving| Arc::ptr_eq(arriving, rdb)) {
            self.arriving = None;
        }
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
        let useful = state.line.as_ref().is_some_and(|line| connects(&rdb.position(), &line.history, line.window()));
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
        self.relay.state().snapshot.fetch = Fetch::Idle;
        self.relay.turned.notify_waiters();
    }
}
