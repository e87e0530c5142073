//! A client's bytes to the upstream and back, untouched, each direction at its own pace.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::leg::Leg;
use super::{Direction, Front, Gauge, Metrics};
use crate::net::{Link, Sink, Source};

/// Bytes held per direction.
const BUFFER: usize = 16 * 1024;

/// Copies until the upstream closes, or both sides have. A client that closes its sending side still gets what the
/// upstream has to say; an upstream that closes has said all.
///
/// Each direction is a task of its own, so that a byte that goes one way does not have the other way looked at, nor
/// the token: that was a quarter of what passing a command on takes outside the kernel.
pub async fn copy(front: &Front, client: Link, said: BytesMut, leg: Leg, shutdown: &CancellationToken) {
    let _passing = Gauge::one_more(&front.metrics.passing);
    let Link { source: from_client, sink: to_client, .. } = client;
    let Leg { link: Link { source: from_upstream, sink: to_upstream, .. }, buffer: unread } = leg;
    // Dropping the set ends what is left of it.
    let mut pumps = JoinSet::new();
    pumps.spawn(pump(Arc::clone(&front.metrics), Direction::ToUpstream, from_client, to_upstream, said));
    pumps.spawn(pump(Arc::clone(&front.metrics), Direction::ToClient, from_upstream, to_client, unread));
    loop {
        let ended = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            ended = pumps.join_next() => ended,
        };
        match ended {
            Some(Ok(Direction::ToUpstream)) => {}
            Some(Ok(Direction::ToClient) | Err(_)) | None => return,
        }
    }
}

/// Copies one direction to its end, closes it, and says which it was.
async fn pump(
    metrics: Arc<Metrics>,
    direction: Direction,
    mut source: Source,
    mut sink: Sink,
    mut buffer: BytesMut,
) -> Direction {
    loop {
        if !buffer.is_empty() {
            if sink.write_all(&buffer).await.is_err() {
                return direction;
            }
            metrics.bytes.add(direction, buffer.len() as u64);
            buffer.clear();
        }
        if buffer.capacity() < BUFFER {
            buffer.reserve(BUFFER);
        }
        match source.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    let _ = sink.shutdown().await;
    direction
}
