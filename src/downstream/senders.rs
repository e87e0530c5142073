//! The turns at sending a snapshot, shared by all sessions: [`Queue`] with somebody to wait in it.
//!
//! A session holds a [`Place`] from when it needs a snapshot until the last byte of one was handed to its socket; the
//! place goes with it, wherever it ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use super::queue::{Queue, Rank, Spot, Stage};

/// All turns. There are never more places than attached replicas.
#[derive(Debug)]
pub struct Senders {
    /// Held for one verb of [`Queue`], never across an await.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    /// By arrival: how to wake whoever holds the place.
    turns: BTreeMap<u64, Arc<Notify>>,
}

/// Who sends and who waits at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// Snapshots being sent.
    pub sending: usize,
    /// How many may be sent at once.
    pub limit: usize,
    /// Rows of those who wait for their turn or for a snapshot, the next first.
    pub waiting: Vec<u64>,
}

impl Senders {
    /// `limit` turns, all free; at least one.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { queue: Queue::new(limit.max(1)), turns: BTreeMap::new() }) })
    }

    /// `limit` turns from now on; at least one. More are given out at once; of fewer nobody is taken away.
    pub fn resize(&self, limit: usize) {
        self.change(|state| state.queue.resize(limit.max(1)));
    }

    /// Takes a place for the replica of row `arrival`, which must have none. Its priority number, if that is known,
    /// and then its arrival decide when its turn comes.
    pub fn join(self: &Arc<Self>, arrival: u64, priority: Option<u32>) -> Place {
        let spot = Spot { rank: Rank::of(priority), arrival };
        let turn = Arc::new(Notify::new());
        let mut state = self.state();
        state.queue.join(spot);
        state.turns.insert(arrival, Arc::clone(&turn));
        drop(state);
        Place { senders: Arc::clone(self), spot, turn }
    }

    /// Who sends and who waits now.
    pub fn overview(&self) -> Overview {
        let state = self.state();
        Overview {
            sending: state.queue.sending(),
            limit: state.queue.limit(),
            waiting: state.queue.waiting().collect(),
        }
    }

    /// Whether more have a place than can be sent to at once.
    pub fn contended(&self) -> bool {
        self.state().queue.contended()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        while let Some(spot) = state.queue.grant() {
            if let Some(turn) = state.turns.get(&spot.arrival) {
                turn.notify_one();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics holding it")
    }
}

/// A place in the line, and then a turn. Dropped, it is free for the next at once.
#[derive(Debug)]
pub struct Place {
    senders: Arc<Senders>,
    spot: Spot,
    turn: Arc<Notify>,
}

impl Place {
    /// There is a snapshot to be sent. Returns whether this place has its turn.
    pub fn ready(&self) -> Turn {
        self.senders.change(|state| state.queue.ready(self.spot));
        match self.senders.state().queue.stage(self.spot) {
            Some(Stage::Sending) => Turn::Had,
            _ => Turn::Awaited,
        }
    }

    /// There is nothing to be sent yet. A turn that came goes to the next.
    pub fn unready(&self) {
        self.senders.change(|state| state.queue.unready(self.spot));
    }

    /// The replica's priority number became known.
    pub fn rank(&mut self, priority: Option<u32>) {
        let rank = Rank::of(priority);
        let mut moved = self.spot;
        self.senders.change(|state| moved = state.queue.rerank(self.spot, rank));
        self.spot = moved;
    }

    /// Waits until this place may have been given its turn: then take the verdict again. Cancel-safe.
    pub async fn turn(&self) {
        self.turn.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.senders.change(|state| {
            state.queue.leave(self.spot);
            state.turns.remove(&self.spot.arrival);
        });
    }
}

/// Whether a place has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It may send.
    Had,
    /// It has to wait.
    Awaited,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn a_place_that_goes_gives_its_turn_to_the_next_who_is_woken() {
        let senders = Senders::new(2);
        let mut places: Vec<_> = (0..4).map(|n| senders.join(n, None)).collect();
        let had: Vec<_> = places.iter().map(Place::ready).collect();
        assert_eq!(had, [Turn::Had, Turn::Had, Turn::Awaited, Turn::Awaited]);
        assert_eq!(senders.overview(), Overview { sending: 2, limit: 2, waiting: vec![2, 3] });
        // One that waits goes: nobody gets a turn for it.
        drop(places.remove(2));
        assert_eq!(senders.overview().waiting, [3]);
        let last = places.remove(2);
        assert!(timeout(Duration::from_secs(9), last.turn()).await.is_err(), "woken without a turn");
        // One that sends goes while nobody looks: the turn is not lost.
        drop(places.remove(0));
        timeout(Duration::from_secs(9), last.turn()).await.expect("its turn");
        assert_eq!(last.ready(), Turn::Had);
        drop((last, places));
        assert_eq!(senders.overview(), Overview { sending: 0, limit: 2, waiting: vec![] });
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_given_up_loses_no_turn() {
        let senders = Senders::new(1);
        let (sending, waiting) = (senders.join(1, None), senders.join(2, None));
        assert_eq!((sending.ready(), waiting.ready()), (Turn::Had, Turn::Awaited));
        for _ in 0..3 {
            assert!(timeout(Duration::from_secs(1), waiting.turn()).await.is_err());
        }
        drop(sending);
        timeout(Duration::from_secs(1), waiting.turn()).await.expect("its turn");
    }
}
