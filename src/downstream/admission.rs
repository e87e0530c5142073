//! Holding a replica until there is a true answer for it.
//!
//! A replica that has asked is kept with empty lines, one a second, which every version since 2.8.22 takes for
//! patience (replication.c `slaveTryPartialResynchronization`, an empty reply); older ones announce no capability and
//! take one for an answer, so they wait in silence.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::info;

use super::handshake::{Capabilities, Request, Said, Wants};
use super::senders::Place;
use super::waiting::Waiting;
use super::{Averted, Departure, Downstream, Rejection, SessionEnd, Wire};
use crate::relay::cursor::Cursor;
use crate::relay::judge::{Abilities, Beyond, Judgement};
use crate::relay::replicas::RowGuard;
use crate::repl::{Ask, FullReason, HoldReason, PartialReason, Patience, Position, ReplId};
use crate::store::snapshot::Rdb;
use crate::wire::command::{self, PeerCommand};
use crate::wire::resp::{FrameLimits, parse_command};

/// Between two empty lines.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// What may arrive from a replica that waits for its answer.
const WAITING_INPUT_MAX: usize = 4096;

/// The answer.
pub enum Admission {
    /// Continue with this cursor.
    Continue {
        /// Where it stands.
        cursor: Cursor,
        /// The current id.
        id: ReplId,
        /// How we know.
        why: PartialReason,
    },
    /// Send this snapshot first.
    Full(Due),
}

/// A snapshot to be sent now.
pub struct Due {
    /// What to send.
    pub rdb: Arc<Rdb>,
    /// What to call its position.
    pub position: Position,
    /// Why there was no other way.
    pub why: FullReason,
    /// The turn, to be kept until the last byte is sent.
    pub place: Place,
}

/// Waits for the answer to `request`: for a true one at most for hold-timeout, for a snapshot and a turn to be sent it
/// as long as that takes. A replica that falls back to SYNC while it waits changes its request.
pub async fn admit(
    downstream: &Downstream,
    wire: &mut Wire,
    said: &Said,
    request: &mut Request,
    row: &RowGuard,
) -> Result<Admission, SessionEnd> {
    let relay = &downstream.relay;
    let abilities =
        Abilities { payload: said.payload, follow: said.follow, version: said.introduction.version, since: said.since };
    let mut patience = Patience::Left;
    let hold_timeout = downstream.options.get().hold_timeout;
    // Moved on while something is under way that has bounds of its own; patience that is spent never comes back.
    let mut give_up = row.since() + hold_timeout;
    let mut tick = interval(KEEPALIVE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.reset();
    let mut told = Told::default();
    let mut waiting = Waiting::new(downstream, said, row);
    loop {
        let turned = relay.turned();
        tokio::pin!(turned);
        turned.as_mut().enable();
        let position = match *request {
            // Whoever wants no stream cannot use one.
            Request::Psync(position) if said.wants == Wants::Stream => position,
            Request::Psync(_) | Request::Sync => None,
        };
        let now = Instant::now();
        if now >= row.since() + hold_timeout {
            patience = Patience::Spent;
        }
        let mut held = None;
        match relay.judge(&Ask { position, patience }, &abilities) {
            Judgement::Continue { cursor, id, why, beyond } => {
                match beyond {
                    Beyond::Nothing => {}
                    Beyond::PreviousId => downstream.metrics.averted.increment(Averted::DeepHistory),
                    Beyond::Ring => downstream.metrics.averted.increment(Averted::LongBacklog),
                    Beyond::Life => downstream.metrics.averted.increment(Averted::Restart),
                }
                return Ok(Admission::Continue { cursor, id, why });
            }
            Judgement::Full { rdb, position, why } => {
                give_up = now + hold_timeout;
                if let Some(place) = waiting.take_turn(now) {
                    if !told.fetching {
                        downstream.metrics.averted.increment(Averted::SharedSnapshot);
                    }
                    return Ok(Admission::Full(Due { rdb, position, why, place }));
                }
            }
            Judgement::Fetching(why) => {
                told.fetching(row, why);
                waiting.for_snapshot();
                if relay.fetching() {
                    // A fork of the master may take minutes; the fetch has its own bounds.
                    give_up = now + hold_timeout;
                } else if now >= give_up {
                    return Err(not_now(wire, HoldReason::NoSnapshot).await);
                }
            }
            Judgement::NotNow(why) if now >= give_up => return Err(not_now(wire, why).await),
            Judgement::Hold(why) | Judgement::NotNow(why) => {
                told.held(row, why);
                match (why, position) {
                    (HoldReason::NoSnapshot | HoldReason::SnapshotArriving, _) | (HoldReason::NoHistory, None) => {
                        waiting.for_snapshot();
                    }
                    (
                        HoldReason::NoHistory | HoldReason::Ahead | HoldReason::UnknownReplid | HoldReason::FormatUnfit,
                        _,
                    ) => waiting.for_answer(),
                }
                held = Some(why);
            }
        }
        tokio::select! {
            biased;
            () = &mut turned => {}
            heard = listen(wire, request) => heard?,
            () = reached(relay, position.map(|p| p.offset)), if held == Some(HoldReason::Ahead) => {}
            () = waiting.over() => {}
            _ = tick.tick() => {
                row.note_heard(Instant::now());
                if said.capabilities == Capabilities::Some {
                    let line = command::keepalive();
                    match timeout(downstream.options.get().repl_timeout, wire.sink.write_all(&line)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return Err(SessionEnd::Departed(Departure::Eof)),
                        // Whoever does not even take empty lines must not be given a turn.
                        Err(_) => return Err(SessionEnd::Departed(Departure::Timeout)),
                    }
                }
            }
        }
    }
}

/// What was logged of a wait; each thing once.
#[derive(Default)]
struct Told {
    fetching: bool,
    held: Option<HoldReason>,
}

impl Told {
    fn fetching(&mut self, row: &RowGuard, why: FullReason) {
        if !self.fetching {
            self.fetching = true;
            info!(event = "replica_waits_snapshot", replica = %row.introduction(), reason = why.as_str(), "replica waits for a snapshot");
        }
    }

    fn held(&mut self, row: &RowGuard, why: HoldReason) {
        if self.held != Some(why) {
            self.held = Some(why);
            info!(event = "replica_held", replica = %row.introduction(), why = why.as_str(), "replica held");
        }
    }
}

/// Resolves when the head has come as far as `offset`.
async fn reached(relay: &crate::relay::Relay, offset: Option<crate::repl::Offset>) {
    let Some(offset) = offset else { return std::future::pending().await };
    loop {
        let grown = relay.grown();
        tokio::pin!(grown);
        grown.as_mut().enable();
        if relay.head() >= offset {
            return;
        }
        grown.await;
    }
}

/// Hears that a waiting replica is gone, or that it gave up on PSYNC: the oldest take anything they do not expect
/// for "I do not know PSYNC" and say SYNC on the same connection. Cancel-safe.
async fn listen(wire: &mut Wire, request: &mut Request) -> Result<(), SessionEnd> {
    loop {
        match parse_command(&wire.buffer, &FrameLimits::HANDSHAKE) {
            Ok(Some((args, used))) => {
                let command = PeerCommand::parse(&args);
                drop(args);
                let _ = wire.buffer.split_to(used);
                if command == PeerCommand::Sync {
                    *request = Request::Sync;
                    return Ok(());
                }
                // A second PSYNC, an early ACK: no answer is owed and none is given.
            }
            Ok(None) if wire.buffer.len() < WAITING_INPUT_MAX => match wire.source.read_buf(&mut wire.buffer).await {
                Ok(0) | Err(_) => return Err(SessionEnd::Departed(Departure::Eof)),
                Ok(_) => {}
            },
            Ok(None) | Err(_) => return Err(SessionEnd::Departed(Departure::Protocol)),
        }
    }
}

/// The one refusal after which every replica since 4.0 keeps what it has and comes back in a second.
async fn not_now(wire: &mut Wire, why: HoldReason) -> SessionEnd {
    let text = match why {
        HoldReason::NoHistory => "NOMASTERLINK psyncd has not reached its upstream yet",
        HoldReason::Ahead => "NOMASTERLINK psyncd is behind this replica",
        HoldReason::UnknownReplid => "NOMASTERLINK psyncd does not know this id while its upstream is away",
        HoldReason::NoSnapshot => "NOMASTERLINK psyncd has no snapshot and cannot fetch one now",
        HoldReason::SnapshotArriving => "NOMASTERLINK the snapshot is still arriving",
        HoldReason::FormatUnfit => "NOMASTERLINK the upstream writes an RDB version this replica cannot load",
    };
    let _ = wire.sink.write_all(&command::error_line(text)).await;
    let _ = wire.sink.shutdown().await;
    SessionEnd::Rejected(Rejection::NoHistory)
}
