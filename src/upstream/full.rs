//! Receiving a snapshot: payload into spool, checked on the way.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::candidate::suits_somebody;
use super::conversation::{Conversation, KEEPALIVES_MAX, LinkEnd};
use super::{Kind, Upstream};
use crate::repl::milestones::{Milestone, Milestones};
use crate::repl::{Position, ServerVersion};
use crate::store::snapshot::{Rdb, Shelf, Spool};
use crate::wire::payload::{PayloadEvent, PayloadLength, PayloadReceiver};
use crate::wire::rdb::RdbCheck;
use crate::wire::rdb_head::read_head;

/// Most bytes read, and written to the spool, at once.
const PIECE: usize = 1024 * 1024;

/// How long a replica may take until it sends the first byte of a snapshot: it may have to end another save before.
pub const BEGIN: Duration = Duration::from_secs(30);
/// Bytes a second below which a replica is given up, once it has been sending for [`BEGIN`]: there are others, and
/// somebody is waiting.
const LEAST_RATE: u64 = 1 << 20;

/// What a payload has to be before anybody is given a byte of it.
#[derive(Debug, Clone)]
pub enum Terms {
    /// An RDB, which replicas join as soon as its header is found good. The upstream is who says what our stream is.
    Upstream,
    /// An RDB that nobody joins before it was received and judged.
    Weighed,
    /// An RDB that says of itself what was announced, of a format that one of those who wait can load, in good time.
    Replica {
        /// The versions of those who wait.
        waiting: Vec<Option<ServerVersion>>,
    },
}

/// A payload that arrived whole and was found good.
pub struct Received {
    /// Where it was spooled; `None` when the disk could not take it. [`Received::publish`] hands it out.
    spool: Option<Spool>,
    /// Its size.
    bytes: u64,
    /// From its first byte to its last.
    pub took: Duration,
}

impl Received {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file, not yet declared complete.
    pub fn rdb(&self) -> Option<&Arc<Rdb>> {
        self.spool.as_ref().map(Spool::rdb)
    }

    /// Gives readers the last bytes, and has the file kept. Only once the relay can serve what follows them.
    pub fn publish(self, shelf: &Shelf) {
        if let Some(spool) = self.spool {
            shelf.keep(&spool.finish());
        }
    }
}

/// Receives the payload that follows `+FULLRESYNC`.
///
/// A disk that fails does not end the transfer: the payload is then read to its end, since the stream comes
/// behind it. Any error leaves readers of the spool with a failed file. What remains in the conversation's buffer
/// afterwards is stream. `wanted` is when it was asked for.
pub async fn receive(
    upstream: &Upstream,
    talk: &mut Conversation,
    position: Position,
    terms: &Terms,
    wanted: Instant,
) -> Result<Received, LinkEnd> {
    let (check, asked) = (RdbCheck::new(), Instant::now());
    let reception = Reception { upstream, position, terms, wanted, asked, check, length: None, store: Store::NotBegun };
    let end = reception.run(talk).await;
    if end.is_err() {
        upstream.relay.snapshot_failed();
    }
    end
}

struct Reception<'a> {
    upstream: &'a Upstream,
    position: Position,
    terms: &'a Terms,
    wanted: Instant,
    /// When its first byte was due at the earliest.
    asked: Instant,
    check: RdbCheck,
    length: Option<u64>,
    store: Store,
}

enum Store {
    /// Bytes are kept until enough is known of them: a few, or a disk's worth of trouble would begin earlier.
    NotBegun,
    Spooling(Spool),
    Failed,
}

impl Reception<'_> {
    async fn run(mut self, talk: &mut Conversation) -> Result<Received, LinkEnd> {
        let mut payload = PayloadReceiver::new();
        // The header may come in pieces; nothing is stored before it is known to be one.
        let mut head = bytes::BytesMut::new();
        let mut keepalives = 0;
        let (mut began, mut received) = (Instant::now(), 0);
        let mut milestones = Milestones::new(began);
        loop {
            match payload.push(&mut talk.buffer).map_err(|e| LinkEnd::Snapshot(e.to_string()))? {
                None => {
                    talk.more(PIECE).await?;
                }
                Some(PayloadEvent::KeepAlive) => {
                    keepalives += 1;
                    if keepalives > KEEPALIVES_MAX {
                        return Err(LinkEnd::Protocol("nothing but empty lines in front of a snapshot".into()));
                    }
                    if matches!(self.terms, Terms::Replica { .. }) && self.asked.elapsed() > BEGIN {
                        return Err(LinkEnd::Silent(BEGIN));
                    }
                }
                Some(PayloadEvent::Header(length)) => {
                    self.length = match length {
                        PayloadLength::Known(bytes) => Some(bytes),
                        PayloadLength::UntilMark => None,
                    };
                    began = Instant::now();
                    self.upstream.metrics.snapshot_wait.observe(began - self.wanted);
                    milestones = Milestones::new(began);
                    info!(event = "snapshot_arriving", position = %self.position, bytes = self.length, "snapshot began to arrive");
                }
                Some(PayloadEvent::Data(data)) => {
                    self.upstream.metrics.received.add(Kind::Snapshot, data.len() as u64);
                    self.check.push(&data).map_err(|e| LinkEnd::Snapshot(e.to_string()))?;
                    received += data.len() as u64;
                    self.hurry(received, began.elapsed())?;
                    if let Some(Milestone { bytes, percent, rate, eta_s }) =
                        milestones.reached(received, self.length, Instant::now())
                    {
                        info!(event = "snapshot_progress", position = %self.position, bytes, percent, rate, eta_s, "snapshot is arriving");
                    }
                    match &self.store {
                        Store::NotBegun => {
                            head.extend_from_slice(&data);
                            if self.is_acceptable(&head)? {
                                self.begin().await;
                                self.spool(head.split().freeze()).await;
                            }
                        }
                        Store::Spooling(_) => self.spool(data).await,
                        Store::Failed => {}
                    }
                    // Behind the upstream's payload comes the stream; behind a replica's comes nothing we want.
                    if matches!((&self.store, self.terms), (Store::Failed, Terms::Replica { .. })) {
                        return Err(LinkEnd::Store);
                    }
                }
                Some(PayloadEvent::End) => break,
            }
        }
        self.upstream.metrics.snapshot_transfer.observe(began.elapsed());
        let summary = self.check.finish().map_err(|e| LinkEnd::Snapshot(e.to_string()))?;
        info!(event = "snapshot_received", position = %self.position, format = %summary.format, bytes = summary.len, checksum = ?summary.checksum, "snapshot received");
        Ok(Received {
            bytes: summary.len,
            spool: match self.store {
                Store::Spooling(spool) => Some(spool),
                Store::NotBegun | Store::Failed => None,
            },
            took: began.elapsed(),
        })
    }

    /// Whether what came so far shows that it is what it has to be; `false` while it is too little to tell.
    fn is_acceptable(&self, head: &[u8]) -> Result<bool, LinkEnd> {
        let Some(format) = self.check.format() else { return Ok(false) };
        let Terms::Replica { waiting } = self.terms else { return Ok(true) };
        if !suits_somebody(format, waiting) {
            return Err(LinkEnd::Claim(format!("nobody who waits can load {format}")));
        }
        let Some(said) = read_head(head) else { return Ok(false) };
        match said.position {
            // Its stream cannot insert the SELECT that a file without a database would need: repl-stream-db is all a
            // loader goes by (rdb.c `rdbPopulateSaveInfo`).
            Some(position) if position == self.position && said.db.is_some() => Ok(true),
            Some(position) if position == self.position => Err(LinkEnd::Claim("its RDB names no database".into())),
            Some(position) => Err(LinkEnd::Claim(format!("announced {} and its RDB says {position}", self.position))),
            None => Err(LinkEnd::Claim("its RDB does not say whose it is".into())),
        }
    }

    /// Gives up a replica that is too slow.
    fn hurry(&self, received: u64, elapsed: Duration) -> Result<(), LinkEnd> {
        let slow = elapsed > BEGIN && u128::from(received) < u128::from(LEAST_RATE) * elapsed.as_secs() as u128;
        match self.terms {
            Terms::Replica { .. } if slow => {
                Err(LinkEnd::Snapshot(format!("only {received} bytes in {} seconds", elapsed.as_secs())))
            }
            Terms::Replica { .. } | Terms::Upstream | Terms::Weighed => Ok(()),
        }
    }

    async fn begin(&mut self) {
        let format = self.check.format().expect("the header was just found good");
        match self.upstream.shelf.spool(self.position, format, self.length).await {
            Ok(spool) => {
                match self.terms {
                    Terms::Upstream | Terms::Replica { .. } => self.upstream.relay.snapshot_arriving(spool.rdb()),
                    Terms::Weighed => {}
                }
                self.store = Store::Spooling(spool);
            }
            Err(error) => self.give_up(&error),
        }
    }

    async fn spool(&mut self, data: bytes::Bytes) {
        if let Store::Spooling(spool) = &mut self.store
            && let Err(error) = spool.write(data).await
        {
            self.give_up(&error);
        }
    }

    fn give_up(&mut self, error: &std::io::Error) {
        let dir = self.upstream.shelf.dir().display();
        warn!(event = "snapshot_not_stored", %error, %dir, "snapshot could not be stored; no replica can be given one until the disk is mended");
        self.upstream.relay.snapshot_failed();
        self.store = Store::Failed;
    }
}
