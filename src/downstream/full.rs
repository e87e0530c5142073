//! Sending a snapshot, complete or still arriving.
//!
//! With its length where that is known; else with a mark behind it, and then nothing may follow before the
//! replica's first acknowledgement. A snapshot that turns out bad, or that the backlog no longer connects to, ends
//! in a closed socket before the transfer is complete, which costs the replica nothing it had.

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::handshake::Request;
use super::{Departure, Downstream, Kind, Wire};
use crate::relay::replicas::RowGuard;
use crate::repl::Position;
use crate::store::snapshot::{Rdb, Readable};
use crate::wire::command;

/// Most bytes taken from the spool at once.
const PIECE: usize = 1024 * 1024;

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
    let mut readable = first;
    loop {
        match readable {
            Readable::UpTo(end) => {
                while sent < end {
                    if downstream.relay.lost(&rdb.position()) {
                        return Err(Departure::Lagging);
                    }
                    let piece = send_piece(downstream, wire, rdb, sent, end - sent).await?;
                    sent += piece;
                    row.note_snapshot(piece);
                    row.note_heard(Instant::now());
                    downstream.metrics.sent.add(Kind::Snapshot, piece);
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
    let mut tick = interval(std::time::Duration::from_secs(1));
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

/// Sends at most `left` bytes from `at`, by the kernel alone where it can; returns how many, never 0.
async fn send_piece(downstream: &Downstream, wire: &mut Wire, rdb: &Rdb, at: u64, left: u64) -> Result<u64, Departure> {
    let most = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
    if let Some(file) = rdb.file()
        && let Some(sending) = wire.sink.send_file(file, at, most)
    {
        return match timeout(downstream.options.repl_timeout, sending).await {
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
    put(downstream, wire, &piece).await?;
    Ok(piece.len() as u64)
}

async fn put(downstream: &Downstream, wire: &mut Wire, bytes: &[u8]) -> Result<(), Departure> {
    match timeout(downstream.options.repl_timeout, wire.sink.write_all(bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Departure::Eof),
        Err(_) => Err(Departure::Timeout),
    }
}
