//! A connection's way to the upstream: dialed when it is first needed, kept for all that follows.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::Front;
use crate::net::Link;
use crate::relay::target::{NotMet, Pointing};
use crate::wire::resp;

/// Longest reply to a PING, an AUTH or a HELLO, which lists modules.
const REPLY_MAX: usize = 64 << 10;

/// The upstream cannot be reached, or left.
#[derive(Debug, thiserror::Error)]
#[error("upstream unreachable: {0}")]
pub struct Unreachable(String);

/// An open connection to the upstream.
pub struct Leg {
    /// The connection.
    pub link: Link,
    /// Received from the upstream and not yet handed on.
    pub buffer: BytesMut,
    /// Whom it leads to, for as long as that is the node to be passed to.
    pub pointing: Pointing,
}

impl Leg {
    /// Dials. Before the link has met the upstream once nobody is passed on, because what answers there might be
    /// ourselves, and a loop of connections has no end.
    pub async fn open(front: &Front) -> Result<Self, Unreachable> {
        let options = front.options.get();
        let pointing = match timeout(options.connect_timeout, front.target.met()).await {
            Ok(Ok(pointing)) => pointing,
            Ok(Err(not_met)) => return Err(Unreachable(not_met.to_string())),
            Err(_) => return Err(Unreachable(NotMet.to_string())),
        };
        let began = Instant::now();
        match timeout(options.connect_timeout, front.network.dial(&pointing.address)).await {
            Ok(Ok(link)) => {
                front.metrics.connect.observe(began.elapsed());
                Ok(Self { link, buffer: BytesMut::new(), pointing })
            }
            Ok(Err(error)) => {
                debug!(%error, "upstream not reached for a client");
                Err(Unreachable(error.to_string()))
            }
            Err(_) => Err(Unreachable(format!("no connection within {:?}", options.connect_timeout))),
        }
    }

    /// Sends one command and waits for its reply, which is returned as it came.
    pub async fn ask(&mut self, command: &[u8], limit: Duration) -> Result<Bytes, Unreachable> {
        let lost = |error: std::io::Error| Unreachable(error.to_string());
        let asked = async {
            self.link.sink.write_all(command).await.map_err(lost)?;
            loop {
                match resp::reply_len(&self.buffer, REPLY_MAX) {
                    Ok(Some(len)) => return Ok(self.buffer.split_to(len).freeze()),
                    Ok(None) => {
                        if self.link.source.read_buf(&mut self.buffer).await.map_err(lost)? == 0 {
                            return Err(Unreachable("closed by the upstream".into()));
                        }
                    }
                    Err(error) => return Err(Unreachable(error.to_string())),
                }
            }
        };
        match timeout(limit, asked).await {
            Ok(reply) => reply,
            Err(_) => Err(Unreachable(format!("no reply within {limit:?}"))),
        }
    }
}
