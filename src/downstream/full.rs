//! Sending a snapshot, complete or still arriving.
//!
//! One sender has at most one piece on its way, so that senders and the streams of others take turns; where there is a
//! budget, each piece waits for its share of it.
//!
//! With its length where that is known; else with a mark behind it, and then nothing may follow before the
//! replica's first acknowledgement. A snapshot that turns out bad, or that the backlog no longer connects to, ends
//! in a closed socket before the transfer is complete, which costs the replica nothing it had.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::info;

use super::budget::Share;
use super::handshake::Request;
use super::{Departure, Downstream, Kind, Wire};
use crate::relay::replicas::RowGuard;
use crate::repl::Position;
use crate::repl::milestones::{Milestone, Milestones};
use crate::store::snapshot::{Rdb, Readable};
use crate::wire::command;

/// Most bytes taken from the spool at once.
const PIECE: usize = 1024 * 1024;

/// Bytes a second below which a replica that others wait for is dropped.
const CRAWL: u64 = 4 * 1024;

/// How the payload was delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// `$length`: the stream may follow at once.
    Length,
    /// `$EOF`: nothing may follow before the first acknowledgement.
    Mark,
}

/// Sends the header lines and the whole of `rdb`, which the replica is told to be at `position`.
pub async fn send(
    downstream: &Downstream,
    wire: &mut Wire,
    rdb: &Rdb,
    position: Position,
    request: Request,
    row: &RowGuard,
) -> Result<Framing, Departure> {
    if let Request::Psync(_) = request {
        put(downstream, wire, &command::full_resync(position)).await?;
    }
    // Newlines are legal until the header, and the first bytes may take a while.
    let first = first_bytes(downstream, wire, rdb).await?;
    let mark = downstream.entropy.hex40();
    let framing = match rdb.length() {
        Some(length) => {
            put(downstream, wire, &command::payload_header_len(length)).await?;
            Framing::Length
        }
        None => {
            put(downstream, wire, &command::payload_header_eof(&mark)).await?;
            Framing::Mark
        }
    };
    let mut sent = 0;
    let mut pace = Pace::default();
    let mut milestones = Milestones::new(Instant::now());
    let mut readable = first;
    loop {
        match readable {
            Readable::UpTo(end) => {
                while sent < end {
                    if downstream.relay.lost(&rdb.position()) {
                        return Err(Departure::Lagging);
                    }
                    if pace.crawls(downstream) {
                        return Err(Departure::Timeout);
                    }
                    let piece = send_share(downstream, wire, rdb, sent, end - sent, &mut pace).await?;
                    sent += piece;
                    if let Some(length) = rdb.length() {
                        row.note_snapshot_length(length);
                    }
                    row.note_snapshot(piece);
                    row.note_heard(Instant::now());
                    downstream.metrics.sent.add(Kind::Snapshot, piece);
                    if let Some(Milestone { bytes, percent, rate, eta_s }) =
                        milestones.reached(sent, rdb.length(), Instant::now())
                    {
                        let replica = row.introduction();
                        info!(event = "snapshot_send_progress", %replica, bytes, percent, rate, eta_s, "snapshot is being sent");
                    }
                }
            }
            Readable::End => break,
            Readable::Failed => return Err(Departure::Error),
        }
        readable = rdb.readable(sent).await;
    }
    if framing == Framing::Mark {
        put(downstream, wire, &mark).await?;
    }
    Ok(framing)
}

/// Waits for the first readable byte, keeping the replica patient meanwhile.
async fn first_bytes(downstream: &Downstream, wire: &mut Wire, rdb: &Rdb) -> Result<Readable, Departure> {
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.reset();
    loop {
        tokio::select! {
            biased;
            readable = rdb.readable(0) => return Ok(readable),
            _ = tick.tick() => put(downstream, wire, &command::keepalive()).await?,
        }
    }
}

/// How fast a replica takes what it is sent, not counting what it has to wait for us.
#[derive(Default)]
struct Pace {
    busy: Duration,
    bytes: u64,
}

impl Pace {
    /// Whether it was too slow for a whole repl-timeout while others wait for a turn: a byte a minute would keep it for
    /// ever.
    fn crawls(&mut self, downstream: &Downstream) -> bool {
        if self.busy < downstream.options.get().repl_timeout {
            return false;
        }
        let least = CRAWL.saturating_mul(self.busy.as_secs());
        let Pace { bytes, .. } = std::mem::take(self);
        bytes < least && !downstream.senders.overview().waiting.is_empty()
    }
}

/// Sends at most `left` bytes from `at` when there is budget for them; returns how many, never 0.
async fn send_share(
    downstream: &Downstream,
    wire: &mut Wire,
    rdb: &Rdb,
    at: u64,
    left: u64,
    pace: &mut Pace,
) -> Result<u64, Departure> {
    let most = left.min(PIECE as u64);
    let budget = downstream.budget.get();
    let share = match &*budget {
        Some(budget) => Some(budget.share(most).await),
        None => None,
    };
    let began = Instant::now();
    let sent = send_piece(downstream, wire, rdb, at, share.as_ref().map_or(most, Share::bytes)).await?;
    pace.busy += began.elapsed();
    pace.bytes += sent;
    if let Some(share) = share {
        share.spend(sent);
    }
    Ok(sent)
}

/// Sends at most `left` bytes from `at`, by the kernel alone where it can; returns how many, never 0.
async fn send_piece(downstream: &Downstream, wire: &mut Wire, rdb: &Rdb, at: u64, left: u64) -> Result<u64, Departure> {
    let most = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
    if let Some(file) = rdb.file()
        && let Some(sending) = wire.sink.send_file(file, at, most)
    {
        return match timeout(downstream.options.get().repl_timeout, sending).await {
            // The file is shorter than what was written to it.
            Ok(Ok(0)) => Err(Departure::Error),
            Ok(Ok(sent)) => Ok(sent as u64),
            Ok(Err(_)) => Err(Departure::Eof),
            Err(_) => Err(Departure::Timeout),
        };
    }
    let piece = rdb.read(at, most).await.map_err(|_| Departure::Error)?;
    if piece.is_empty() {
        return Err(Departure::Error);
    }
    let mut rest = &piece[..];
    while !rest.is_empty() {
        match timeout(downstream.options.get().repl_timeout, wire.sink.write(rest)).await {
            Ok(Ok(0)) | Ok(Err(_)) => return Err(Departure::Eof),
            Ok(Ok(written)) => rest = &rest[written..],
            Err(_) => return Err(Departure::Timeout),
        }
    }
    Ok(piece.len() as u64)
}

async fn put(downstream: &Downstream, wire: &mut Wire, bytes: &[u8]) -> Result<(), Departure> {
    match timeout(downstream.options.get().repl_timeout, wire.sink.write_all(bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Departure::Eof),
        Err(_) => Err(Departure::Timeout),
    }
}
