//! A client's bytes to the upstream and back, each direction at its own pace. Untouched, but for the replies to INFO
//! and ROLE.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::inspect::{self, Answering, Asking};
use super::leg::Leg;
use super::roster::Row;
use super::scene::Scene;
use super::{Direction, Front, Gauge, HoldPromotion, Metrics};
use crate::access::Entry;
use crate::net::{Link, Sink, Source};
use crate::wire::watch::{Notable, Watched, Watcher};

/// Bytes held per direction.
const BUFFER: usize = 16 * 1024;

/// Copies until the upstream closes, or both sides have. A client that closes its sending side still gets what the
/// upstream has to say; an upstream that closes has said all.
///
/// Each direction is a task of its own, so that a byte that goes one way does not have the other way looked at, nor
/// the token: that was a quarter of what passing a command on takes outside the kernel.
///
/// A client that may not be a `replica` is cut off where it would become one.
pub async fn copy(front: &Front, client: Link, said: BytesMut, leg: Leg, replica: Entry, shutdown: &CancellationToken) {
    let _passing = Gauge::one_more(&front.metrics.passing);
    let Link { source: from_client, sink: to_client, peer, .. } = client;
    let Leg { link: Link { source: from_upstream, sink: to_upstream, local, .. }, buffer: unread, .. } = leg;
    let (asking, answering) = inspect::halves();
    let barrier = match replica {
        Entry::Open => None,
        Entry::Denied | Entry::Protected | Entry::Nameless => Some(Watcher::default()),
    };
    let entered = front.metrics.roster.enter(peer.clone());
    let row = &entered.row;
    let commands = Commands { asking, barrier, hold: front.hold_promotion.clone(), row: Arc::clone(row) };
    let replies = Replies { answering, scene: Scene::new(front, peer, local) };
    // Dropping the set ends what is left of it.
    let mut pumps = JoinSet::new();
    pumps.spawn(pump(Arc::clone(&front.metrics), Arc::clone(row), commands, from_client, to_upstream, said));
    pumps.spawn(pump(Arc::clone(&front.metrics), Arc::clone(row), replies, from_upstream, to_client, unread));
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

/// What stands at one direction and sees all that passes.
trait Gate {
    const DIRECTION: Direction;

    /// Takes what came and leaves what goes; nothing more passes after the end.
    fn pass(&mut self, buffer: &mut BytesMut) -> Passage;

    /// What was kept back, when no more comes.
    fn finish(&mut self) -> BytesMut;
}

/// Whether more may pass.
enum Passage {
    On,
    /// Once this was awaited.
    After(Pin<Box<dyn Future<Output = ()> + Send>>),
    End,
}

/// Commands: one may have to wait, and the one a replica begins with may not pass.
struct Commands {
    asking: Asking,
    barrier: Option<Watcher>,
    hold: Option<HoldPromotion>,
    row: Arc<Row>,
}

impl Commands {
    /// What cannot be read is stopped as well: it might be anything to the upstream.
    fn hides_a_replica(&mut self, mut data: &[u8]) -> bool {
        let Some(watcher) = &mut self.barrier else { return false };
        while !data.is_empty() {
            match watcher.watch(data) {
                Ok(Watched { notable: Some(Notable::Replicate), .. }) | Err(_) => return true,
                Ok(Watched { bytes, .. }) => data = &data[bytes..],
            }
        }
        false
    }
}

impl Gate for Commands {
    const DIRECTION: Direction = Direction::ToUpstream;

    fn pass(&mut self, buffer: &mut BytesMut) -> Passage {
        if self.hides_a_replica(buffer) {
            buffer.clear();
            return Passage::End;
        }
        self.asking.see(buffer);
        if self.asking.is_a_sentinel() {
            self.row.is_sentinel.store(true, Ordering::Relaxed);
        }
        // Whatever came of it before, it is not complete without what has just come.
        match &self.hold {
            Some(hold) if self.asking.take_promotion() => Passage::After(hold()),
            Some(_) | None => Passage::On,
        }
    }

    fn finish(&mut self) -> BytesMut {
        BytesMut::new()
    }
}

/// Replies, and what some of them are changed to.
struct Replies {
    answering: Answering,
    scene: Scene,
}

impl Gate for Replies {
    const DIRECTION: Direction = Direction::ToClient;

    fn pass(&mut self, buffer: &mut BytesMut) -> Passage {
        self.answering.pass(buffer, &self.scene);
        Passage::On
    }

    fn finish(&mut self) -> BytesMut {
        self.answering.finish()
    }
}

/// Copies one direction to its end, closes it, and says which it was.
async fn pump<G: Gate>(
    metrics: Arc<Metrics>,
    row: Arc<Row>,
    mut gate: G,
    mut source: Source,
    mut sink: Sink,
    mut buffer: BytesMut,
) -> Direction {
    let direction = G::DIRECTION;
    let passed = match direction {
        Direction::ToUpstream => &row.to_upstream,
        Direction::ToClient => &row.to_client,
    };
    loop {
        match gate.pass(&mut buffer) {
            Passage::On => {}
            Passage::After(leave) => leave.await,
            Passage::End => break,
        }
        if !buffer.is_empty() {
            if sink.write_all(&buffer).await.is_err() {
                return direction;
            }
            metrics.bytes.add(direction, buffer.len() as u64);
            passed.fetch_add(buffer.len() as u64, Ordering::Relaxed);
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
    // Half a reply that was waited for.
    let _ = sink.write_all(&gate.finish()).await;
    let _ = sink.shutdown().await;
    direction
}
