//! Receiving a snapshot: payload into spool, checked on the way.

use std::sync::Arc;

use tracing::{info, warn};

use super::conversation::{Conversation, KEEPALIVES_MAX, LinkEnd};
use super::{Kind, Upstream};
use crate::repl::Position;
use crate::store::snapshot::{Rdb, Spool};
use crate::wire::payload::{PayloadEvent, PayloadLength, PayloadReceiver};
use crate::wire::rdb::RdbCheck;

/// Most bytes read, and written to the spool, at once.
const PIECE: usize = 1024 * 1024;

/// A payload that arrived whole and was found good.
pub struct Received {
    /// Where it was spooled; `None` when the disk could not take it. [`Received::publish`] hands it out.
    spool: Option<Spool>,
    /// Its size.
    bytes: u64,
}

/// When replicas may join a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joining {
    /// As soon as its header is found good.
    WhileItArrives,
    /// Not before it was received and judged.
    Never,
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

    /// Gives readers the last bytes. Only once the relay can serve what follows them.
    pub fn publish(self) {
        if let Some(spool) = self.spool {
            spool.finish();
        }
    }
}

/// Receives the payload that follows `+FULLRESYNC`.
///
/// A disk that fails does not end the transfer: the payload is then read to its end, since the stream comes
/// behind it. Any error leaves readers of the spool with a failed file. What remains in the conversation's buffer
/// afterwards is stream.
pub async fn receive(
    upstream: &Upstream,
    talk: &mut Conversation,
    position: Position,
    joining: Joining,
) -> Result<Received, LinkEnd> {
    let (check, store) = (RdbCheck::new(), Store::NotBegun);
    let end = Reception { upstream, position, joining, check, length: None, store }.run(talk).await;
    if end.is_err() {
        upstream.relay.snapshot_failed();
    }
    end
}

struct Reception<'a> {
    upstream: &'a Upstream,
    position: Position,
    joining: Joining,
    check: RdbCheck,
    length: Option<u64>,
    store: Store,
}

enum Store {
    /// Bytes kept until the header is complete: nine at most, or a disk's worth of trouble would begin earlier.
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
                }
                Some(PayloadEvent::Header(length)) => {
                    self.length = match length {
                        PayloadLength::Known(bytes) => Some(bytes),
                        PayloadLength::UntilMark => None,
                    };
                    info!(position = %self.position, bytes = self.length, "snapshot began to arrive");
                }
                Some(PayloadEvent::Data(data)) => {
                    self.upstream.metrics.received.add(Kind::Snapshot, data.len() as u64);
                    self.check.push(&data).map_err(|e| LinkEnd::Snapshot(e.to_string()))?;
                    match (&mut self.store, self.check.format()) {
                        (Store::NotBegun, None) => head.extend_from_slice(&data),
                        (Store::NotBegun, Some(_)) => {
                            head.extend_from_slice(&data);
                            self.begin().await;
                            self.spool(head.split().freeze()).await;
                        }
                        (Store::Spooling(_), _) => self.spool(data).await,
                        (Store::Failed, _) => {}
                    }
                }
                Some(PayloadEvent::End) => break,
            }
        }
        let summary = self.check.finish().map_err(|e| LinkEnd::Snapshot(e.to_string()))?;
        info!(position = %self.position, format = %summary.format, bytes = summary.len, checksum = ?summary.checksum, "snapshot received");
        Ok(Received {
            bytes: summary.len,
            spool: match self.store {
                Store::Spooling(spool) => Some(spool),
                Store::NotBegun | Store::Failed => None,
            },
        })
    }

    async fn begin(&mut self) {
        let format = self.check.format().expect("the header was just found good");
        match self.upstream.shelf.spool(self.position, format, self.length).await {
            Ok(spool) => {
                if self.joining == Joining::WhileItArrives {
                    self.upstream.relay.snapshot_arriving(spool.rdb());
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
        warn!(%error, %dir, "snapshot could not be stored; no replica can be given one until the disk is mended");
        self.upstream.relay.snapshot_failed();
        self.store = Store::Failed;
    }
}
