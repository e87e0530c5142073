//! One replica's life: handshake, answer, snapshot if need be, stream, end.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::admission::{self, Admission, Due};
use super::full::{self, Framing};
use super::handshake::{Handshake, Request, Said, Step, Wants};
use super::peers::Trust;
use super::{Departure, Downstream, Rejection, SessionEnd, Summons, Wire, stream};
use crate::access::Entry;
use crate::access::credentials::Credentials;
use crate::counters::Label;
use crate::net::{Link, PeerAddress, Place};
use crate::relay::cursor::Follow;
use crate::relay::replicas::{ReplicaState, RowGuard};
use crate::repl::Ack;
use crate::wire::command;
use crate::wire::resp::{FrameLimits, parse_command};

/// Delay before a refusal: replicas of 6.2 to 8.x come back thousands of times a second after a quick one.
const REFUSAL_DELAY: std::time::Duration = std::time::Duration::from_secs(1);
/// Most bytes of introductions remembered; a server's are a few hundred.
const SAID_MAX: usize = 16 * 1024;

/// What a connection was before it became a replica's.
pub struct Before {
    /// What it has said and nobody has answered.
    pub buffer: BytesMut,
    /// Bytes that were answered.
    pub heard: usize,
    /// What it named and nobody refused.
    pub credentials: Option<Credentials>,
    /// Whether replicas may come from there.
    pub entry: Entry,
    /// Its place among those nobody knows yet what to make of; none once it was let in.
    pub place: Option<Place>,
}

/// Serves one replica. A connection that is no replica's is given back.
pub async fn run(downstream: &Downstream, link: Link, before: Before, shutdown: &CancellationToken) -> Option<Summons> {
    let Link { source, sink, peer, local, security, .. } = link;
    let mut said = Vec::new();
    let Before { buffer, heard, credentials, entry, mut place } = before;
    let mut wire = Wire { source, sink, buffer };
    let mut name = peer.to_string();
    let mut machine =
        Handshake::new(downstream.options.get().identity.clone(), peer.host()).with_credentials(credentials);
    if let Some(named) = machine.credentials() {
        let trust = downstream.peers.shares(named.password());
        machine.trust(trust);
    }
    let knock = Knock { machine, heard, entry, place: &mut place };
    let end = live(downstream, &mut wire, &peer, knock, &mut name, &mut said, shutdown).await;
    match end {
        SessionEnd::Rejected(why) => {
            downstream.metrics.rejections.increment(why);
            // Strangers choose how often this happens.
            if let Some(unsaid) = downstream.rejected.take(Instant::now()) {
                warn!(event = "replica_rejected", replica = %name, %peer, why = why.as_str(), unsaid, "replica rejected");
            }
        }
        SessionEnd::Departed(why) => {
            downstream.metrics.departures.increment(why);
            info!(event = "replica_left", replica = %name, %peer, why = why.as_str(), "replica left");
        }
        SessionEnd::Unasked => debug!(%peer, "connection closed before it asked for replication"),
        SessionEnd::Summoned => {
            let Wire { source, sink, buffer } = wire;
            return Some(Summons { link: Link { source, sink, peer, local, security, place: None }, buffer, said });
        }
    }
    None
}

/// One that was not let in yet.
struct Knock<'a> {
    machine: Handshake,
    heard: usize,
    entry: Entry,
    place: &'a mut Option<Place>,
}

async fn live(
    downstream: &Downstream,
    wire: &mut Wire,
    peer: &PeerAddress,
    knock: Knock<'_>,
    name: &mut String,
    introduced: &mut Vec<Bytes>,
    shutdown: &CancellationToken,
) -> SessionEnd {
    let limit = downstream.options.get().handshake_timeout;
    let asked = tokio::select! {
        biased;
        () = shutdown.cancelled() => return SessionEnd::Unasked,
        asked = timeout(limit, shake_hands(downstream, wire, knock, introduced)) => asked,
    };
    if !matches!(asked, Ok(Err(SessionEnd::Summoned))) {
        *introduced = Vec::new();
    }
    let (said, request) = match asked {
        Ok(Ok(asked)) => asked,
        Ok(Err(end)) => return end,
        Err(_) => return SessionEnd::Rejected(Rejection::Timeout),
    };
    *name = said.introduction.to_string();
    let Some(row) = downstream.relay.replicas().attach(said.introduction.clone(), peer.to_string()) else {
        refuse(wire, command::error_line("ERR psyncd serves as many replicas as max-replicas allows")).await;
        return SessionEnd::Rejected(Rejection::Limit);
    };
    if said.trust == Trust::Shares {
        row.vouch();
    }
    let served = serve(downstream, wire, &said, request, &row);
    tokio::select! {
        biased;
        () = shutdown.cancelled() => SessionEnd::Departed(Departure::Shutdown),
        end = served => end,
    }
}

/// Reads commands until one of them asks for replication. What introduces the replica is put down in `said`.
async fn shake_hands(
    downstream: &Downstream,
    wire: &mut Wire,
    knock: Knock<'_>,
    said: &mut Vec<Bytes>,
) -> Result<(Said, Request), SessionEnd> {
    let Knock { mut machine, mut heard, entry, place: taken } = knock;
    let kept_out = match entry {
        Entry::Open => None,
        Entry::Denied => Some(Rejection::Denied),
        Entry::Protected => Some(Rejection::ProtectedMode),
        Entry::Nameless => Some(Rejection::Certificate),
    };
    if let Some(why) = kept_out {
        refuse(wire, entry.line()).await;
        return Err(SessionEnd::Rejected(why));
    }
    loop {
        let (args, used) = match parse_command(&wire.buffer, &FrameLimits::HANDSHAKE) {
            Ok(Some(command)) => command,
            Ok(None) => match wire.source.read_buf(&mut wire.buffer).await {
                Ok(0) | Err(_) => return Err(SessionEnd::Unasked),
                Ok(_) => continue,
            },
            Err(error) => {
                refuse(wire, command::error_line(&format!("ERR {error}"))).await;
                return Err(SessionEnd::Rejected(Rejection::Protocol));
            }
        };
        heard += used;
        if heard > downstream.options.get().max_handshake_bytes {
            refuse(wire, command::error_line("ERR psyncd: more was said than max-handshake-bytes allows")).await;
            return Err(SessionEnd::Rejected(Rejection::Protocol));
        }
        let mut step = machine.command(&args);
        if step == Step::Judge {
            let verdict = downstream.access.judge(machine.credentials()).await;
            machine.judged(verdict);
            step = machine.command(&args);
        }
        let introduces = args.first().is_some_and(|word| word.eq_ignore_ascii_case(b"REPLCONF"));
        drop(args);
        let mut command = wire.buffer.split_to(used);
        let room = SAID_MAX.saturating_sub(said.iter().map(Bytes::len).sum());
        if (introduces || matches!(step, Step::Auth(_))) && command.len() <= room {
            said.push(Bytes::copy_from_slice(&command));
        }
        match step {
            Step::Reply(reply) if reply.is_empty() => {}
            Step::Reply(reply) => wire.sink.write_all(&reply).await.map_err(|_| SessionEnd::Unasked)?,
            Step::Auth(named) => {
                let verdict = downstream.access.judge(Some(&named)).await;
                machine.trust(downstream.peers.shares(named.password()));
                let reply = machine.named(named, verdict);
                wire.sink.write_all(&reply).await.map_err(|_| SessionEnd::Unasked)?;
            }
            // Its machine knows the verdict.
            Step::Judge => return Err(SessionEnd::Rejected(Rejection::Auth)),
            Step::Info => {
                let reply = match downstream.relay.replication() {
                    Some(replication) => {
                        let mut chain = downstream.target.profile().chain;
                        chain.push(downstream.options.get().identity.clone());
                        replication.reply(&chain)
                    }
                    None => command::error_line("ERR psyncd has no history yet"),
                };
                wire.sink.write_all(&reply).await.map_err(|_| SessionEnd::Unasked)?;
            }
            Step::RefuseStranger(reply) => {
                refuse(wire, reply).await;
                return Err(SessionEnd::Rejected(Rejection::Auth));
            }
            Step::RefuseLoop(reply) => {
                refuse(wire, reply).await;
                return Err(SessionEnd::Rejected(Rejection::Loop));
            }
            Step::Asked(request) if machine.is_let_in() => return Ok((machine.said().clone(), request)),
            Step::Asked(_) => return Err(SessionEnd::Rejected(Rejection::Auth)),
            Step::Promote => {
                // Its PSYNC is for the node to hear.
                command.unsplit(wire.buffer.split());
                wire.buffer = command;
                return Err(SessionEnd::Summoned);
            }
        }
        if machine.is_let_in() {
            taken.take();
        }
    }
}

/// Says no, slowly, and hangs up.
async fn refuse(wire: &mut Wire, reply: Bytes) {
    // Whoever it is comes back only after the connection is closed, so it is the close that waits.
    if wire.sink.write_all(&reply).await.is_ok() {
        sleep(REFUSAL_DELAY).await;
    }
}

/// From the request to the end.
async fn serve(downstream: &Downstream, wire: &mut Wire, said: &Said, request: Request, row: &RowGuard) -> SessionEnd {
    let mut request = request;
    let admitted = match admission::admit(downstream, wire, said, &mut request, row).await {
        Ok(admitted) => admitted,
        Err(end) => return end,
    };
    let replica = row.introduction();
    match admitted {
        Admission::Continue { cursor, id, why } => {
            downstream.metrics.resyncs.increment(why.into());
            info!(event = "replica_resync", %replica, kind = "partial", reason = why.as_str(), replid = %id, offset = %cursor.at(), "replica resync");
            let reply = command::continue_reply((said.follow == Follow::Id).then_some(id));
            if wire.sink.write_all(&reply).await.is_err() {
                return SessionEnd::Departed(Departure::Error);
            }
            // It just told us what it has.
            row.acknowledge(Ack { offset: cursor.at(), durable: None });
            downstream.metrics.partial.observe(row.since().elapsed());
            row.note_sent(cursor.at(), 0);
            SessionEnd::Departed(stream::feed(downstream, wire, cursor, row, request).await)
        }
        Admission::Full(due) => {
            downstream.metrics.resyncs.increment(due.why.into());
            info!(event = "replica_resync", %replica, kind = "full", reason = due.why.as_str(), replid = %due.position.id, offset = %due.position.offset, bytes = due.rdb.length(), "replica resync");
            let end = resync(downstream, wire, said, request, row, due).await;
            settle(downstream, said, request, row, end);
            SessionEnd::Departed(end)
        }
    }
}

/// Sends a snapshot and what comes behind it.
async fn resync(
    downstream: &Downstream,
    wire: &mut Wire,
    said: &Said,
    request: Request,
    row: &RowGuard,
    due: Due,
) -> Departure {
    let Due { rdb, position, place, .. } = due;
    // From now on what follows the snapshot is kept for it.
    row.note_sent(position.offset, 0);
    row.enter(ReplicaState::Snapshot);
    let sent = full::send(downstream, wire, &rdb, position, request, row).await;
    drop(rdb);
    // Whoever counts those that are sent a snapshot never sees more than there are turns.
    row.enter(if sent.is_ok() { ReplicaState::Catchup } else { ReplicaState::Waiting });
    // The turn ends with the last byte, not with the acknowledgement: a replica that loads uses nothing of ours, may
    // take minutes, and the oldest never acknowledge.
    drop(place);
    let framing = match sent {
        Ok(framing) => framing,
        Err(why) => return why,
    };
    downstream.metrics.snapshots.increment();
    if said.wants == Wants::SnapshotOnly {
        let _ = wire.sink.shutdown().await;
        return Departure::Done;
    }
    if framing == Framing::Mark
        && let Err(why) = stream::first_ack(downstream, wire, row).await
    {
        return why;
    }
    let cursor = match downstream.relay.cursor(&position, said.follow) {
        Ok(cursor) => cursor,
        Err(end) => return stream::ended(downstream, end).await,
    };
    row.note_sent(cursor.at(), 0);
    stream::feed(downstream, wire, cursor, row, request).await
}

/// Remembers how a full resync went: it is a success once the replica acknowledges, which it does when it has loaded
/// what it was sent.
fn settle(downstream: &Downstream, said: &Said, request: Request, row: &RowGuard, end: Departure) {
    let Some(replica) = said.lasting_name() else { return };
    match (row.state(), request, end) {
        (ReplicaState::Online, _, _) | (_, _, Departure::Done) => downstream.setbacks.succeeded(&replica),
        // After SYNC nothing is ever acknowledged.
        (ReplicaState::Catchup, Request::Sync, _) => downstream.setbacks.succeeded(&replica),
        (_, _, Departure::Eof | Departure::Timeout | Departure::Lagging | Departure::Protocol) => {
            downstream.setbacks.failed(&replica, Instant::now());
        }
        // Not its fault.
        (_, _, Departure::HistorySwitch | Departure::Shutdown | Departure::Error) => {}
    }
}
