//! Fetching snapshots on a connection of their own, one at a time, when somebody needs one.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::conversation::{Conversation, LinkEnd};
use super::handshake::{self, Purpose};
use super::{SnapshotEnd, Upstream, full};
use crate::repl::policy::Backoff;
use crate::wire::dialogue::PsyncReply;

/// Serves every request for a snapshot until `shutdown`. Requests while one is in flight are the same request.
pub async fn run(upstream: Upstream, shutdown: CancellationToken) {
    let mut failures = 0;
    loop {
        let fetched = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            fetched = one(&upstream, failures) => fetched,
        };
        failures = match fetched {
            Ok(()) => 0,
            Err(_) => failures + 1,
        };
    }
}

async fn one(upstream: &Upstream, failures: u32) -> Result<(), LinkEnd> {
    upstream.relay.snapshot_wanted().await;
    let delay = Backoff::FETCH.delay(failures);
    sleep(delay + upstream.entropy.jitter(delay / 5)).await;
    let began = Instant::now();
    let guard = upstream.relay.fetch();
    let fetched = fetch(upstream, began).await;
    drop(guard);
    if let Err(why) = &fetched {
        let next_ms = Backoff::FETCH.delay(failures + 1).as_millis() as u64;
        warn!(master = %upstream.options.address, %why, next_ms, "snapshot not fetched");
    }
    fetched
}

async fn fetch(upstream: &Upstream, began: Instant) -> Result<(), LinkEnd> {
    let result = receive(upstream, began).await;
    upstream.metrics.snapshots.increment(match &result {
        Ok(true) => SnapshotEnd::Ok,
        Ok(false) => SnapshotEnd::Aborted,
        Err(_) => SnapshotEnd::Failed,
    });
    match result {
        Ok(true) => Ok(()),
        Ok(false) => Err(LinkEnd::Snapshot("it does not connect to the stream".into())),
        Err(end) => Err(end),
    }
}

/// Returns whether the snapshot connects to the stream.
async fn receive(upstream: &Upstream, began: Instant) -> Result<bool, LinkEnd> {
    let mut talk = Conversation::open(upstream).await?;
    handshake::greet(upstream, &mut talk, Purpose::Snapshot).await?;
    let position = match handshake::psync(&mut talk, None).await? {
        PsyncReply::FullResync(position) => position,
        PsyncReply::Continue(_) => return Err(LinkEnd::Protocol("+CONTINUE in answer to PSYNC ?".into())),
        other => return Err(handshake::refused(other)),
    };
    let waited_ms = began.elapsed().as_millis() as u64;
    info!(%position, waited_ms, "master began a snapshot for us");
    let received = full::receive(upstream, &mut talk, position).await?;
    let Some(rdb) = received.rdb().cloned() else {
        return Err(LinkEnd::Snapshot("it could not be stored".into()));
    };
    let useful = upstream.relay.snapshot_ready(&rdb);
    if useful {
        received.publish();
        info!(%position, elapsed_ms = began.elapsed().as_millis() as u64, "snapshot ready");
    } else {
        drop(received);
        // Our own link is about to learn what the master already knows.
        sleep(Duration::from_millis(100)).await;
    }
    Ok(useful)
}
