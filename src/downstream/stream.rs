//! The live stream to one replica: bytes down, acknowledgements up, on one task.
//!
//! What goes down is exactly what the master sent, from the cursor on. Nothing is ever injected: one stray byte
//! would shift the replica's offset for ever.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::handshake::Request;
use super::{Departure, Downstream, Kind, Wire};
use crate::net::{Sink, Source};
use crate::relay::cursor::{Cursor, CursorEnd, Next};
use crate::relay::replicas::{ReplicaState, RowGuard};
use crate::repl::{Ack, Offset};
use crate::wire::command::{PeerCommand, ReplconfOption};
use crate::wire::resp::{FrameLimits, parse_command};

/// Most bytes taken from the backlog for one write.
const BATCH: usize = 256 * 1024;
/// How often a writer that waits for its replica looks whether that is still worth while.
const STALL_CHECK: Duration = Duration::from_millis(250);
/// Most pieces in one write.
const SLICES: usize = 64;
/// Replicas are asked to come back over this long, so that they do not all come at once.
const SWITCH_JITTER: Duration = Duration::from_millis(200);

/// Feeds a replica from `cursor` on until one side ends it.
pub async fn feed(
    downstream: &Downstream,
    wire: &mut Wire,
    cursor: Cursor,
    row: &RowGuard,
    request: Request,
) -> Departure {
    let Wire { source, sink, buffer } = wire;
    row.note_heard(Instant::now());
    tokio::select! {
        biased;
        end = hear(downstream, source, buffer, row, request) => end,
        end = send(downstream, sink, cursor, row) => end,
    }
}

/// Waits for the first acknowledgement, which tells that a payload with a mark was taken whole.
pub async fn first_ack(downstream: &Downstream, wire: &mut Wire, row: &RowGuard) -> Result<(), Departure> {
    row.note_heard(Instant::now());
    loop {
        if let Some(ack) = next_ack(&mut wire.buffer)? {
            acknowledge(downstream, row, ack);
            return Ok(());
        }
        more(downstream, &mut wire.source, &mut wire.buffer, row, Request::Psync(None)).await?;
    }
}

async fn send(downstream: &Downstream, sink: &mut Sink, mut cursor: Cursor, row: &RowGuard) -> Departure {
    let relay = &downstream.relay;
    let mut batch: VecDeque<Bytes> = VecDeque::with_capacity(SLICES);
    loop {
        let grown = relay.grown();
        tokio::pin!(grown);
        loop {
            grown.as_mut().enable();
            let next = match relay.read(&mut cursor, BATCH, SLICES, &mut batch) {
                Next::Deep => relay.read_deep(&mut cursor, BATCH, &mut batch).await,
                next => next,
            };
            match next {
                Next::Bytes(_) => break,
                Next::Deep => {}
                Next::CaughtUp => {
                    grown.as_mut().await;
                    grown.set(relay.grown());
                }
                Next::Ended(end) => return ended(downstream, end).await,
            }
        }
        let bytes: u64 = batch.iter().map(|piece| piece.len() as u64).sum();
        if let Err(end) = write_batch(downstream, sink, &cursor, &mut batch).await {
            return end;
        }
        row.note_sent(cursor.at(), bytes);
        downstream.metrics.sent.add(Kind::Stream, bytes);
        // Whoever is behind lets the others have the same bytes first, while they are still in the cache.
        yield_now().await;
    }
}

/// Why a replica whose cursor ended has to leave, after the wait that keeps all from coming back at once.
pub async fn ended(downstream: &Downstream, end: CursorEnd) -> Departure {
    match end {
        CursorEnd::Overrun => Departure::Lagging,
        CursorEnd::Reset | CursorEnd::Branched => {
            sleep(downstream.entropy.jitter(SWITCH_JITTER)).await;
            Departure::HistorySwitch
        }
    }
}

/// Writes all of `batch`. A replica that takes no byte for repl-timeout, or for so long that what it needs next is
/// overwritten, ends the session.
async fn write_batch(
    downstream: &Downstream,
    sink: &mut Sink,
    cursor: &Cursor,
    batch: &mut VecDeque<Bytes>,
) -> Result<(), Departure> {
    let mut progress = Instant::now();
    while !batch.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        for (slice, piece) in slices.iter_mut().zip(batch.iter()) {
            *slice = IoSlice::new(piece);
            used += 1;
        }
        match timeout(STALL_CHECK, sink.write_vectored(&slices[..used])).await {
            Ok(Ok(0)) | Ok(Err(_)) => return Err(Departure::Eof),
            Ok(Ok(written)) => {
                consume(batch, written);
                progress = Instant::now();
            }
            Err(_) if downstream.relay.overrun(cursor) => return Err(Departure::Lagging),
            Err(_) if progress.elapsed() >= downstream.options.get().repl_timeout => return Err(Departure::Timeout),
            Err(_) => {}
        }
    }
    Ok(())
}

fn consume(batch: &mut VecDeque<Bytes>, mut written: usize) {
    while let Some(piece) = batch.front_mut() {
        if written < piece.len() {
            piece.advance(written);
            return;
        }
        written -= piece.len();
        batch.pop_front();
    }
}

async fn hear(
    downstream: &Downstream,
    source: &mut Source,
    buffer: &mut BytesMut,
    row: &RowGuard,
    request: Request,
) -> Departure {
    loop {
        loop {
            match next_ack(buffer) {
                Ok(Some(ack)) => acknowledge(downstream, row, ack),
                Ok(None) => break,
                Err(end) => return end,
            }
        }
        if let Err(end) = more(downstream, source, buffer, row, request).await {
            return end;
        }
    }
}

/// Any byte is a sign of life. A replica that came with SYNC owes none.
async fn more(
    downstream: &Downstream,
    source: &mut Source,
    buffer: &mut BytesMut,
    row: &RowGuard,
    request: Request,
) -> Result<(), Departure> {
    let read = source.read_buf(buffer);
    let read = match request {
        Request::Psync(_) => {
            timeout(downstream.options.get().repl_timeout, read).await.map_err(|_| Departure::Timeout)?
        }
        Request::Sync => read.await,
    };
    match read {
        Ok(0) | Err(_) => Err(Departure::Eof),
        Ok(_) => {
            row.note_heard(Instant::now());
            Ok(())
        }
    }
}

/// The next acknowledgement in `buffer`. Empty lines are skipped; a second PSYNC or SYNC and options are ignored,
/// as masters do; anything else would have to be answered, which an established link never is.
fn next_ack(buffer: &mut BytesMut) -> Result<Option<Ack>, Departure> {
    loop {
        let Some((args, used)) = parse_command(buffer, &FrameLimits::HANDSHAKE).map_err(|_| Departure::Protocol)?
        else {
            return Ok(None);
        };
        let command = PeerCommand::parse(&args);
        drop(args);
        buffer.advance(used);
        match command {
            PeerCommand::Replconf(options) => {
                let find = |wanted: fn(&ReplconfOption) -> Option<Offset>| options.iter().find_map(wanted);
                let acked = find(|option| match option {
                    ReplconfOption::Ack(offset) => Some(*offset),
                    _ => None,
                });
                let durable = find(|option| match option {
                    ReplconfOption::Fack(offset) => Some(*offset),
                    _ => None,
                });
                if let Some(offset) = acked {
                    return Ok(Some(Ack { offset, durable }));
                }
            }
            PeerCommand::Psync(_) | PeerCommand::Sync => {}
            PeerCommand::Other(name) if name.is_empty() => {}
            PeerCommand::Ping
            | PeerCommand::Auth
            | PeerCommand::Info
            | PeerCommand::Other(_)
            | PeerCommand::Invalid(_) => {
                return Err(Departure::Protocol);
            }
        }
    }
}

/// Believes an acknowledgement of what we hold; one of more than that can only be a lie or a confusion.
fn acknowledge(downstream: &Downstream, row: &RowGuard, ack: Ack) {
    let head = downstream.relay.head();
    if ack.offset > head {
        downstream.metrics.acks_beyond_head.increment();
        debug!(replica = %row.introduction(), offset = %ack.offset, %head, "acknowledgement beyond the head ignored");
        return;
    }
    // Whoever continues is online before it speaks.
    if row.state() != ReplicaState::Online {
        downstream.metrics.full.observe(row.since().elapsed());
    }
    row.acknowledge(ack);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_found_between_newlines_and_options_and_nothing_else_is_tolerated() {
        let mut buffer = BytesMut::from(
            &b"\n*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$2\r\n42\r\nREPLCONF capa eof\r\n\r\nREPLCONF ACK 43 FACK 9\r\nREPLC"[..],
        );
        let ack = |offset, durable: Option<u64>| Ack { offset: Offset::new(offset), durable: durable.map(Offset::new) };
        assert_eq!(next_ack(&mut buffer).unwrap(), Some(ack(42, None)));
        assert_eq!(next_ack(&mut buffer).unwrap(), Some(ack(43, Some(9))));
        assert_eq!(next_ack(&mut buffer).unwrap(), None);
        assert_eq!(&buffer[..], b"REPLC");
        for bad in ["GET a\r\n", "PING\r\n", "*1\r\n$-5\r\n"] {
            assert_eq!(next_ack(&mut BytesMut::from(bad)), Err(Departure::Protocol), "{bad}");
        }
    }

    #[test]
    fn a_partial_write_leaves_the_rest_in_order() {
        let mut batch: VecDeque<Bytes> = ["abc", "def", "g"].map(|s| Bytes::from_static(s.as_bytes())).into();
        consume(&mut batch, 4);
        let rest: Vec<u8> = batch.iter().flatten().copied().collect();
        assert_eq!(rest, b"efg");
        consume(&mut batch, 3);
        assert!(batch.is_empty());
    }
}
