//! A connection on which commands are asked and replies read, each within a time.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::net::{Address, Link, Network};
use crate::wire::dialogue::Login;
use crate::wire::reply::Reply;

/// Longest reply we read: an INFO section, or the state of a master with many replicas.
const REPLY_MAX: usize = 1 << 20;

/// One connection.
pub(super) struct Talk {
    link: Link,
    buffer: BytesMut,
    limit: Duration,
}

impl Talk {
    /// Dials and authenticates. Dialing and each reply may take `limit`.
    pub(super) async fn open(
        network: &dyn Network,
        address: &Address,
        login: &Login,
        limit: Duration,
    ) -> io::Result<Self> {
        let link = timeout(limit, network.dial(address)).await??;
        let mut talk = Self { link, buffer: BytesMut::new(), limit };
        if let Some(auth) = login.auth()
            && let Reply::Error(why) = talk.ask(auth).await?
        {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(talk)
    }

    /// Sends a command and reads its reply.
    pub(super) async fn ask(&mut self, command: Bytes) -> io::Result<Reply> {
        let limit = self.limit;
        timeout(limit, self.link.sink.write_all(&command)).await??;
        timeout(limit, self.hear()).await?
    }

    /// Reads what comes, however long that takes. Cancel-safe.
    pub(super) async fn hear(&mut self) -> io::Result<Reply> {
        loop {
            match Reply::parse(&self.buffer, REPLY_MAX) {
                Ok(Some((reply, used))) => {
                    let _ = self.buffer.split_to(used);
                    return Ok(reply);
                }
                Ok(None) => {
                    if self.link.source.read_buf(&mut self.buffer).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
    }
}
