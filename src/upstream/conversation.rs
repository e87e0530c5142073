//! A connection on which we speak first: one command, one reply, each under a deadline.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::{Options, Upstream};
use crate::net::{Link, Sink, Source};
use crate::wire::dialogue::REPLY_LINE_MAX;
use crate::wire::resp;

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
    #[error("closed by the upstream")]
    Eof,
    /// The peer said nothing for too long.
    #[error("silent for {0:?}")]
    Silent(Duration),
    /// The network failed.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
    /// The upstream cannot serve us now.
    #[error("upstream cannot serve now: {0}")]
    NotNow(String),
    /// The upstream does not let us: wrong credentials or missing permissions (`+psync +replconf +ping`).
    #[error("upstream refused us: {0}")]
    Denied(String),
    /// The upstream is ourselves, or leads back to us.
    #[error("replication loop: {0}")]
    Loop(String),
    /// The upstream said what it may not say.
    #[error("protocol violation by the upstream: {0}")]
    Protocol(String),
    /// The snapshot sent is not usable.
    #[error("unusable snapshot: {0}")]
    Snapshot(String),
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
    /// Dials.
    pub async fn open(upstream: &Upstream) -> Result<Self, LinkEnd> {
        let Options { address, connect_timeout, repl_timeout, .. } = &*upstream.options;
        let Link { source, sink, .. } = timeout(*connect_timeout, upstream.network.dial(address))
            .await
            .map_err(|_| LinkEnd::ConnectTimeout(*connect_timeout))?
            .map_err(LinkEnd::Unreachable)?;
        Ok(Self { source, sink, buffer: BytesMut::new(), patience: *repl_timeout })
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
            self.more().await?;
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
                    self.more().await?;
                }
                Err(e) => return Err(LinkEnd::Protocol(e.to_string())),
            }
        }
    }

    /// Waits for more input, at most as long as the upstream may be silent. Cancel-safe.
    pub async fn more(&mut self) -> Result<usize, LinkEnd> {
        self.buffer.reserve(16 * 1024);
        match timeout(self.patience, self.source.read_buf(&mut self.buffer)).await {
            Ok(Ok(0)) => Err(LinkEnd::Eof),
            Ok(Ok(n)) => Ok(n),
            Ok(Err(e)) => Err(LinkEnd::Io(e)),
            Err(_) => Err(LinkEnd::Silent(self.patience)),
        }
    }
}
