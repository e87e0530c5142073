//! Answering a replica: the decision of [`crate::repl::decide`] with what is needed to act on it.

use std::sync::Arc;

use super::cursor::{Cursor, Follow};
use super::snapshots::Fetch;
use super::{Line, LinkState, Relay, State};
use crate::repl::decide::{self, Arriving, Ready, Upstream, View};
use crate::repl::{
    Ask, FullReason, HoldReason, Lineage, Offset, PartialReason, Position, ReplId, ServerVersion, Verdict,
};
use crate::store::snapshot::{Progress, Rdb};

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
        /// What a server in our place would not have known.
        beyond: Beyond,
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

/// What a server in our place would not have known, so that the replica would have been resynced in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// Nothing.
    Nothing,
    /// An id before its previous one.
    PreviousId,
    /// Bytes that its backlog has dropped.
    Ring,
    /// Bytes received by a process that is dead.
    Life,
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
    /// Answers a replica. The cursor of a `Continue` is taken under the same lock as the decision.
    pub fn judge(&self, ask: &Ask, abilities: &Abilities) -> Judgement {
        let mut state = self.state();
        let State { line, link, snapshot, ring, .. } = &mut *state;
        let suits = |rdb: &Rdb| rdb.format().suits(abilities.version) && rdb.position().offset >= abilities.since;
        let ready = match (&snapshot.ready, snapshot.fetched) {
            (Some(rdb), _) if suits(rdb) && snapshot.is_stale(rdb, line.as_ref()) => Ready::Stale(rdb.position()),
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
            line: line.as_ref().map(|line| (&line.history, line.window())),
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
                let behind = line.window().end.since(from);
                let beyond = match why {
                    _ if ring.is_some_and(|ring| behind > ring) => Beyond::Ring,
                    PartialReason::Ancestor => Beyond::PreviousId,
                    _ if line.born.is_some_and(|born| from <= born) => Beyond::Life,
                    PartialReason::Replid | PartialReason::SecondReplid => Beyond::Nothing,
                };
                Judgement::Continue { cursor: line.cursor(from, abilities.follow), id, why, beyond }
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
}

/// What the position of a snapshot is called today.
fn called(line: Option<&Line>, position: Position) -> Position {
    match line.map(|line| (line.history.current(), line.history.locate(&position))) {
        Some((current, Lineage::Ancestor { .. })) => Position::new(current, position.offset),
        _ => position,
    }
}
