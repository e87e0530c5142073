//! A client's bytes to the upstream and back, untouched, each direction at its own pace.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::leg::Leg;
use super::{Direction, Front, Gauge};
use crate::net::{Link, Sink, Source};

/// Bytes held per direction.
const BUFFER: usize = 16 * 1024;

/// Copies until the upstream closes, or both sides have. A client that closes its sending side still gets what the
/// upstream has to say; an upstream that closes has said all.
pub async fn copy(front: &Front, client: Link, said: BytesMut, leg: Leg, shutdown: &CancellationToken) {
    let _passing = Gauge::one_more(&front.metrics.passing);
    let Link { source: from_client, sink: to_client, .. } = client;
    let Leg { link: Link { source: from_upstream, sink: to_upstream, .. }, buffer: unread } = leg;
    let up = pump(front, Direction::ToUpstream, from_client, to_upstream, said);
    let down = pump(front, Direction::ToClient, from_upstream, to_client, unread);
    tokio::pin!(up, down);
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = &mut down => {}
        () = &mut up => {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = &mut down => {}
            }
        }
    }
}

/// Copies one direction to its end, then closes it.
async fn pump(front: &Front, direction: Direction, mut source: Source, mut sink: Sink, mut buffer: BytesMut) {
    loop {
        if !buffer.is_empty() {
            if sink.write_all(&buffer).await.is_err() {
                return;
            }
            front.metrics.bytes.add(direction, buffer.len() as u64);
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
}
