//! The live stream: read, look, append; and acknowledge.
//!
//! Reading never waits for a replica or a disk. Bytes go into the relay in the buffers they were read into. Whose word
//! is acknowledged is a matter of the link's [`Part`].

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::cast::Part;
use super::conversation::{Conversation, LinkEnd, read_on};
use super::gather::{self, Gather};
use super::{Kind, Upstream, mirror};
use crate::net::{Sink, Source};
use crate::repl::{Ack, Offset};
use crate::wall;
use crate::wire::dialogue;
use crate::wire::scan::Scanner;

/// Most bytes taken from the socket before the replicas are told: about what is best for fan-out.
const ROUND: usize = 256 * 1024;
/// A buffer with less room than this left is given up for a fresh one.
const LEAST_ROOM: usize = 16 * 1024;
/// Between acknowledgements, as in Redis (`replicationCron`).
const ACK_INTERVAL: Duration = Duration::from_secs(1);
/// Between the first two of a link, and doubling. A master that sent a payload with a mark sends nothing behind it until
/// it hears an acknowledgement, and does not hear one that comes before it has noticed that its child is done.
const FIRST_ACK_INTERVAL: Duration = Duration::from_millis(50);
/// How long a last acknowledgement may take when we leave.
const FAREWELL: Duration = Duration::from_millis(200);

/// What the reading half tells the acknowledging half.
#[derive(Default)]
struct Pulse {
    /// GETACKs to answer.
    owed: AtomicU32,
    /// What the latest of them wants to hear, until it was told. Held for an instruction.
    target: Mutex<Option<Offset>>,
    asked: Notify,
}

impl Pulse {
    fn ask(&self, count: u32, target: Offset) {
        self.owed.fetch_add(count, Ordering::Relaxed);
        *self.target.lock().expect("no one panics holding it") = Some(target);
        self.asked.notify_one();
    }

    fn target(&self) -> Option<Offset> {
        *self.target.lock().expect("no one panics holding it")
    }

    /// Whoever asked for no more than `offset` is answered.
    fn told(&self, offset: Offset) {
        let mut target = self.target.lock().expect("no one panics holding it");
        if target.is_some_and(|target| offset >= target) {
            *target = None;
        }
    }
}

/// Follows the stream until the link ends. Where it is dropped every byte taken is in the relay, and what is in `talk`
/// besides comes behind them; but an acknowledgement may have been sent in part, so nothing more may be said on it.
pub async fn follow(
    upstream: &Upstream,
    talk: &mut Conversation,
    scanner: &mut Scanner,
    part: &Part,
    shutdown: &CancellationToken,
) -> LinkEnd {
    let Conversation { source, sink, buffer, .. } = talk;
    let pulse = Pulse::default();
    let acknowledging = async {
        match part {
            Part::Itself => acknowledge(upstream, sink, &pulse).await,
            Part::Replica(row) => mirror::echo(upstream, sink, row).await,
        }
    };
    let end = tokio::select! {
        biased;
        () = shutdown.cancelled() => LinkEnd::Shutdown,
        end = read(upstream, source, buffer, scanner, &pulse) => end,
        end = acknowledging => end,
    };
    if let (LinkEnd::Shutdown, Part::Itself) = (&end, part) {
        // Best effort: a master that is shutting down as well waits for this.
        let _ = timeout(FAREWELL, sink.write_all(&dialogue::ack(acknowledged(upstream)))).await;
    }
    end
}

async fn read(
    upstream: &Upstream,
    source: &mut Source,
    buffer: &mut BytesMut,
    scanner: &mut Scanner,
    pulse: &Pulse,
) -> LinkEnd {
    let patience = upstream.options.get().repl_timeout;
    let mut gather = gather(upstream.options.get().gather_time);
    // Memory the backlog has done with.
    let mut spare: Option<BytesMut> = None;
    loop {
        // What a full sync left in the buffer is stream already.
        if buffer.is_empty() {
            if buffer.capacity() < LEAST_ROOM {
                if let Some(used) = spare.take() {
                    *buffer = used;
                    buffer.clear();
                }
                buffer.reserve(ROUND);
            }
            match timeout(patience, source.read_buf(buffer)).await {
                Ok(Ok(0)) => return LinkEnd::Eof,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return LinkEnd::Io(error),
                Err(_) => return LinkEnd::Silent(patience),
            }
            read_on(source, buffer, ROUND).await;
            if let Some(gather) = gather.as_mut().filter(|_| upstream.relay.replicas().count() >= gather::MANY) {
                gather.complete(source, buffer, ROUND).await;
            }
        }
        match take(upstream, buffer.split().freeze(), scanner, pulse) {
            // A chunk that nobody else holds any more is the last of its buffer.
            Ok(dropped) => spare = dropped.and_then(|chunk| chunk.try_into_mut().ok()).or(spare),
            Err(end) => return end,
        }
    }
}

/// None when `time` is zero, or the system has no timer for us: what is saved by gathering is not worth a link.
fn gather(time: Duration) -> Option<Gather> {
    if time.is_zero() {
        return None;
    }
    Gather::apart(time).inspect_err(|error| warn!(event = "gather_time_not_kept", %error, "gather-time not kept")).ok()
}

/// Appends what is well-formed, and returns a chunk dropped for it; the rest of a malformed chunk is not stream and never reaches anybody.
fn take(upstream: &Upstream, chunk: Bytes, scanner: &mut Scanner, pulse: &Pulse) -> Result<Option<Bytes>, LinkEnd> {
    let scanned = scanner.scan(&chunk);
    let good = chunk.slice(..scanned.accepted);
    upstream.metrics.received.add(Kind::Stream, good.len() as u64);
    upstream.metrics.last_receive_unix_ms.store(wall::unix_ms(), Ordering::Relaxed);
    let dropped = upstream.relay.append(good, scanner.boundary());
    if let Some(asked) = scanner.take_getacks() {
        pulse.ask(asked.count, asked.target);
    }
    match scanned.error {
        Some(error) => Err(LinkEnd::Protocol(format!("{error} at offset {}", scanner.head()))),
        None => Ok(dropped),
    }
}

/// Acknowledges every second, to every GETACK at once, and again the moment the policy reaches what a GETACK
/// asked for.
async fn acknowledge(upstream: &Upstream, sink: &mut Sink, pulse: &Pulse) -> LinkEnd {
    let mut pause = Duration::ZERO;
    let mut due = Instant::now();
    loop {
        let waiting = pulse.target().is_some();
        let times = tokio::select! {
            biased;
            () = pulse.asked.notified() => pulse.owed.swap(0, Ordering::Relaxed).max(1),
            () = upstream.relay.replicas().acked(), if waiting => {
                match pulse.target() {
                    Some(target) if acknowledged(upstream).offset >= target => 1,
                    _ => continue,
                }
            }
            () = sleep_until(due) => {
                pause = (pause * 2).clamp(FIRST_ACK_INTERVAL, ACK_INTERVAL);
                due = Instant::now() + pause;
                1
            }
        };
        let said = acknowledged(upstream);
        pulse.told(said.offset);
        if upstream.options.get().silent_when_empty && upstream.relay.replicas().online().is_empty() {
            continue;
        }
        let ack = dialogue::ack(said);
        for _ in 0..times {
            match timeout(upstream.options.get().repl_timeout, sink.write_all(&ack)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return LinkEnd::Io(error),
                Err(_) => return LinkEnd::Silent(upstream.options.get().repl_timeout),
            }
        }
    }
}

fn acknowledged(upstream: &Upstream) -> Ack {
    upstream.relay.replicas().acknowledged(upstream.relay.head(), upstream.options.get().ack_policy)
}
