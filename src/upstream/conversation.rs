//! A connection on which we speak first: one command, one reply, each under a deadline.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::{Options, Upstream};
use crate::net::{Address, Link, Network, Sink, Source};
use crate::wire::dialogue::REPLY_LINE_MAX;
use crate::wire::resp;

/// Room for the replies of a dialogue.
const LINE_ROOM: usize = 16 * 1024;
/// Empty lines we take for patience, one a second from a real master: a day of them.
pub const KEEPALIVES_MAX: u32 = 86_400;
/// Longest INFO section we read.
const INFO_MAX: usize = 1 << 20;

/// Why a connection to the upstream ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkEnd {
    /// It could not be opened.
    #[error("cannot connect: {0}")]
    Unreachable(io::Error),
    /// It could not be opened in time.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// The peer closed it.
    #[error("closed by the peer")]
    Eof,
    /// The peer said nothing for too long.
    #[error("silent for {0:?}")]
    Silent(Duration),
    /// The network failed.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
    /// The upstream cannot serve us now.
    #[error("cannot serve now: {0}")]
    NotNow(String),
    /// The upstream lost its data and is not followed; ask it again after this time.
    #[error("held by the wipe guard")]
    Held(Duration),
    /// The upstream does not let us: wrong credentials or missing permissions (`+psync +replconf +ping`).
    #[error("refused: {0}")]
    Denied(String),
    /// The upstream is ourselves, or leads back to us.
    #[error("replication loop: {0}")]
    Loop(String),
    /// The upstream said what it may not say.
    #[error("protocol violation by the peer: {0}")]
    Protocol(String),
    /// What the peer says of its snapshot is not so.
    #[error("false claim: {0}")]
    Claim(String),
    /// The snapshot sent is not usable.
    #[error("unusable snapshot: {0}")]
    Snapshot(String),
    /// The disk could not take the snapshot, whoever sent it.
    #[error("the snapshot could not be stored")]
    Store,
    /// No replica can give a snapshot, and nobody else may be asked.
    #[error("no replica can give a snapshot, and snapshot-source is replicas")]
    NoSource,
    /// Another node is followed.
    #[error("another node is followed")]
    Repointed,
    /// We are going away.
    #[error("shutting down")]
    Shutdown,
}

/// One connection to the upstream, before it carries a stream.
pub struct Conversation {
    /// What the upstream sends.
    pub source: Source,
    /// What it is sent.
    pub sink: Sink,
    /// Received and not yet used.
    pub buffer: BytesMut,
    patience: Duration,
}

impl Conversation {
    /// Dials the upstream.
    pub async fn open(upstream: &Upstream, address: &Address) -> Result<Self, LinkEnd> {
        Self::dial(upstream, &*upstream.network, address).await
    }

    /// Dials one of our replicas.
    pub async fn open_to_peer(upstream: &Upstream, address: &Address) -> Result<Self, LinkEnd> {
        Self::dial(upstream, &*upstream.peers, address).await
    }

    async fn dial(upstream: &Upstream, network: &dyn Network, address: &Address) -> Result<Self, LinkEnd> {
        let options = upstream.options.get();
        let Options { connect_timeout, handshake_timeout, .. } = &*options;
        let link = timeout(*connect_timeout, network.dial(address))
            .await
            .map_err(|_| LinkEnd::ConnectTimeout(*connect_timeout))?
            .map_err(LinkEnd::Unreachable)?;
        if options.is_announced_as(&link.peer, &link.local) {
            return Err(LinkEnd::Loop(format!(
                "psyncd would be announced as its own master, {}; give it a replica-port of its own",
                link.peer
            )));
        }
        Ok(Self::over(link, *handshake_timeout))
    }

    /// On a link that was opened already, to a peer that may be silent for `patience`.
    pub fn over(link: Link, patience: Duration) -> Self {
        let Link { source, sink, .. } = link;
        Self { source, sink, buffer: BytesMut::new(), patience }
    }

    /// From now on the upstream may be silent for `patience`.
    pub fn be_patient(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Sends `command`.
    pub async fn say(&mut self, command: Bytes) -> Result<(), LinkEnd> {
        match timeout(self.patience, self.sink.write_all(&command)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(LinkEnd::Silent(self.patience)),
        }
    }

    /// The next reply line, without its end.
    pub async fn line(&mut self) -> Result<Bytes, LinkEnd> {
        loop {
            let parsed = resp::parse_line(&self.buffer, REPLY_LINE_MAX)
                .map(|line| line.map(|(line, used)| (line.len(), used)))
                .map_err(|e| LinkEnd::Protocol(e.to_string()))?;
            if let Some((len, used)) = parsed {
                let mut line = self.buffer.split_to(used);
                line.truncate(len);
                return Ok(line.freeze());
            }
            self.more(LINE_ROOM).await?;
        }
    }

    /// Says `command` and hears the line it is answered with.
    pub async fn ask(&mut self, command: Bytes) -> Result<Bytes, LinkEnd> {
        self.say(command).await?;
        self.line().await
    }

    /// Says `command` and hears the whole reply, of whatever type, as it came.
    pub async fn ask_whole(&mut self, command: Bytes) -> Result<Bytes, LinkEnd> {
        self.say(command).await?;
        loop {
            match resp::reply_len(&self.buffer, INFO_MAX) {
                Ok(Some(len)) => return Ok(self.buffer.split_to(len).freeze()),
                Ok(None) => {
                    self.more(LINE_ROOM).await?;
                }
                Err(e) => return Err(LinkEnd::Protocol(e.to_string())),
            }
        }
    }

    /// Waits for more input, at most as long as the upstream may be silent, and takes at most `room` bytes of it.
    /// Cancel-safe.
    pub async fn more(&mut self, room: usize) -> Result<usize, LinkEnd> {
        self.buffer.reserve(room);
        match timeout(self.patience, self.source.read_buf(&mut self.buffer)).await {
            Ok(Ok(0)) => Err(LinkEnd::Eof),
            Ok(Ok(n)) => {
                read_on(&mut self.source, &mut self.buffer, room).await;
                Ok(n)
            }
            Ok(Err(e)) => Err(LinkEnd::Io(e)),
            Err(_) => Err(LinkEnd::Silent(self.patience)),
        }
    }
}

/// Takes what is there already, without waiting, until `buffer` holds `most` bytes or has no room left. An end or an
/// error is left for the next read to find.
pub async fn read_on(source: &mut Source, buffer: &mut BytesMut, most: usize) {
    while buffer.len() < most && buffer.capacity() > buffer.len() {
        let mut read = pin!(source.read_buf(buffer));
        let more = poll_fn(|cx| match read.as_mut().poll(cx) {
            Poll::Ready(Ok(more)) => Poll::Ready(more),
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(0),
        });
        if more.await == 0 {
            return;
        }
    }
}
