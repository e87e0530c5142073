//! One replica's way to its turn: held back after failures, then in line, and asked how important it is.

use std::future::pending;

use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::Downstream;
use super::handshake::Said;
use super::peers::Answered;
use super::senders::{Place, Turn};
use crate::net::Address;
use crate::relay::replicas::{RowGuard, Waits};

/// Where a replica that is not answered yet waits. It has a place in line from when it is known that it needs a
/// snapshot, unless it is being held back.
pub(super) struct Waiting<'a> {
    downstream: &'a Downstream,
    said: &'a Said,
    row: &'a RowGuard,
    name: Option<String>,
    place: Option<Place>,
    held_until: Option<Instant>,
    asked: Asked,
    /// Whether each was logged.
    told_turn: bool,
    told_backoff: bool,
}

/// How far the question for its priority is. It is put once, and nobody waits for the answer.
enum Asked {
    NotYet,
    Asking(Answered<Option<u32>>),
    Answered,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(downstream: &'a Downstream, said: &'a Said, row: &'a RowGuard) -> Self {
        let name = said.lasting_name();
        Self {
            downstream,
            said,
            row,
            name,
            place: None,
            held_until: None,
            asked: Asked::NotYet,
            told_turn: false,
            told_backoff: false,
        }
    }

    /// It waits for a true answer and needs no turn.
    pub(super) fn for_answer(&mut self) {
        self.row.wait_for(Waits::Answer);
        self.place = None;
        self.held_until = None;
    }

    /// It needs a snapshot, and none is there.
    pub(super) fn for_snapshot(&mut self) {
        self.row.wait_for(Waits::Snapshot);
        self.held_until = None;
        self.place().unready();
        self.ask();
    }

    /// There is a snapshot for it: returns its place if it has its turn.
    pub(super) fn take_turn(&mut self, now: Instant) -> Option<Place> {
        let setbacks = &self.downstream.setbacks;
        if let Some(setback) = self.name.as_deref().and_then(|name| setbacks.holding(name, now)) {
            self.row.wait_for(Waits::Backoff);
            self.place = None;
            self.held_until = Some(setback.until());
            if !self.told_backoff {
                self.told_backoff = true;
                self.downstream.metrics.backoffs.increment();
                let wait_ms = setback.until().duration_since(now).as_millis() as u64;
                info!(event = "replica_held_back", replica = %self.row.introduction(), failures = setback.failures, wait_ms, "replica held back after failed full resyncs");
            }
            return None;
        }
        self.held_until = None;
        if self.place().ready() == Turn::Had {
            return self.place.take();
        }
        self.row.wait_for(Waits::Turn);
        if !self.told_turn {
            self.told_turn = true;
            info!(event = "replica_waits_turn", replica = %self.row.introduction(), "replica waits for its turn to be sent a snapshot");
        }
        self.ask();
        None
    }

    /// Resolves when the verdict should be taken again: its turn may have come, or it was held back long enough. Hears
    /// the answer about its priority meanwhile. Cancel-safe.
    pub(super) async fn over(&mut self) {
        let Self { row, place, held_until, asked, .. } = self;
        loop {
            tokio::select! {
                biased;
                () = turn(place.as_ref()) => return,
                () = passed(*held_until) => return,
                priority = answer(asked) => {
                    *asked = Asked::Answered;
                    if let Some(priority) = priority {
                        row.note_priority(priority);
                        if let Some(place) = place {
                            place.rank(Some(priority));
                        }
                    }
                }
            }
        }
    }

    fn place(&mut self) -> &mut Place {
        let (senders, row) = (&self.downstream.senders, self.row);
        self.place.get_or_insert_with(|| senders.join(row.id(), row.priority()))
    }

    /// Asks for its priority, once, if there are others it may have to stand before or behind.
    fn ask(&mut self) {
        if matches!(self.asked, Asked::NotYet) && self.downstream.senders.contended() {
            self.asked = match self.row.introduction().to_string().parse::<Address>() {
                Ok(address) => Asked::Asking(self.downstream.peers.priority(address, self.said.trust)),
                // It announced no port, or a name that nobody could dial.
                Err(_) => Asked::Answered,
            };
        }
    }
}

async fn turn(place: Option<&Place>) {
    match place {
        Some(place) => place.turn().await,
        None => pending().await,
    }
}

async fn passed(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => pending().await,
    }
}

async fn answer(asked: &mut Asked) -> Option<u32> {
    match asked {
        Asked::Asking(answer) => answer.await,
        Asked::NotYet | Asked::Answered => pending().await,
    }
}
