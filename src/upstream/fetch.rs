//! Fetching snapshots on connections of their own, one at a time, when somebody needs one: from one of our own
//! replicas, which costs the master nothing, else from the upstream, but not too often.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::conversation::{Conversation, LinkEnd};
use super::full::{self, Terms};
use super::guard::RETRY;
use super::handshake::{self, Greeting, Purpose};
use super::replicas::{self, Grudges};
use super::source::SnapshotSource;
use super::{SnapshotEnd, Upstream};
use crate::net::Address;
use crate::relay::LinkState;
use crate::repl::policy::Backoff;
use crate::wire::dialogue::PsyncReply;

/// How long the first request waits for others: what is fetched must be of a format that all of them can load, and
/// the upstream writes what the oldest of them needs. Redis itself waits five seconds.
const GATHER: Duration = Duration::from_millis(100);
/// How often replicas are asked again while the upstream may not be.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Serves every request for a snapshot until `shutdown`. Requests while one is in flight are the same request.
pub async fn run(upstream: Upstream, shutdown: CancellationToken) {
    let mut failures = 0;
    let mut grudges = Grudges::default();
    loop {
        let fetched = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            fetched = one(&upstream, failures, &mut grudges) => fetched,
        };
        failures = match fetched {
            Ok(()) => 0,
            Err(_) => failures + 1,
        };
    }
}

async fn one(upstream: &Upstream, failures: u32, grudges: &mut Grudges) -> Result<(), LinkEnd> {
    upstream.relay.snapshot_wanted().await;
    let delay = Backoff::FETCH.delay(failures).max(GATHER);
    sleep(delay + upstream.entropy.jitter(delay / 5)).await;
    // Meanwhile the link may have been lost, or have brought one itself.
    upstream.relay.snapshot_wanted().await;
    let pointing = upstream.target.pointing().await;
    let guard = upstream.relay.fetch();
    let fetched = tokio::select! {
        biased;
        () = upstream.relay.superseded() => Err(LinkEnd::Snapshot("the link itself receives one now".into())),
        () = pointing.left() => Err(LinkEnd::Repointed),
        fetched = fetch(upstream, &pointing.address, grudges) => fetched,
    };
    // Whoever could do with an old snapshot gets that now: a source that fails is not asked again for each of them.
    upstream
        .relay
        .be_content_until(Instant::now() + upstream.options.get().snapshot_min_interval.max(Backoff::FETCH.most));
    drop(guard);
    if let Err(why) = &fetched {
        let next_ms = Backoff::FETCH.delay(failures + 1).as_millis() as u64;
        warn!(event = "snapshot_not_fetched", master = %pointing.address, %why, next_ms, "snapshot not fetched");
    }
    fetched
}

/// Cheapest first. The interval holds only the upstream back: the replicas are asked at once, and again while it lasts,
/// and whoever waits is kept on empty lines. When nobody waits any more, nobody has to fork.
async fn fetch(upstream: &Upstream, address: &Address, grudges: &mut Grudges) -> Result<(), LinkEnd> {
    let mut told = false;
    loop {
        let relay = &upstream.relay;
        let nobody_waits = relay.replicas().waiting().is_empty() && !relay.is_snapshot_ordered();
        if nobody_waits || relay.link() != LinkState::Streaming {
            return Ok(());
        }
        let source = upstream.options.get().snapshot_source;
        if source != SnapshotSource::Upstream && replicas::fetch(upstream, address, grudges).await? {
            return Ok(());
        }
        if source == SnapshotSource::Replicas {
            return Err(LinkEnd::NoSource);
        }
        let wait = upstream.forks.wait(Instant::now(), upstream.options.get().snapshot_min_interval);
        if wait.is_zero() {
            break;
        }
        if !told {
            told = true;
            info!(
                event = "snapshot_put_off",
                wait_ms = wait.as_millis() as u64,
                "upstream forked not long ago: snapshot put off"
            );
        }
        sleep(wait.min(ASK_AGAIN)).await;
    }
    from_upstream(upstream, address).await
}

async fn from_upstream(upstream: &Upstream, address: &Address) -> Result<(), LinkEnd> {
    let result = receive(upstream, address, Instant::now()).await;
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
async fn receive(upstream: &Upstream, address: &Address, began: Instant) -> Result<bool, LinkEnd> {
    let mut talk = Conversation::open(upstream, address).await?;
    let Greeting { fleet, info, .. } = handshake::greet(upstream, &mut talk, Purpose::Snapshot).await?;
    if !upstream.guard.allows_fetch(info.as_ref()) {
        return Err(LinkEnd::Held(RETRY));
    }
    let position = match handshake::psync(upstream, &mut talk, None).await? {
        PsyncReply::FullResync(position) => position,
        PsyncReply::Continue(_) => return Err(LinkEnd::Protocol("+CONTINUE in answer to PSYNC ?".into())),
        other => return Err(handshake::refused(other)),
    };
    upstream.forks.note(Instant::now());
    let ours = upstream.relay.held().map(|(id, _)| id);
    if info.is_none() && ours != Some(position.id) && upstream.guard.is_wary() {
        return Err(LinkEnd::Held(RETRY));
    }
    let wait = began.elapsed();
    info!(event = "snapshot_begun", %position, waited_ms = wait.as_millis() as u64, "master began a snapshot for us");
    let received = full::receive(upstream, &mut talk, position, &Terms::Upstream, began).await?;
    let Some(rdb) = received.rdb().cloned() else { return Err(LinkEnd::Store) };
    let useful = upstream.relay.snapshot_ready(&rdb, fleet);
    if useful {
        upstream.guard.sent(received.bytes());
        if let (Some(info), Some(ours)) = (&info, ours) {
            upstream.guard.counted(info, ours);
        }
        upstream.relay.learn(replicas::outlook(received.bytes(), received.took, wait));
        received.publish(&upstream.shelf);
        info!(event = "snapshot_ready", %position, elapsed_ms = began.elapsed().as_millis() as u64, "snapshot ready");
    } else {
        drop(received);
        // Our own link is about to learn what the master already knows.
        sleep(Duration::from_millis(100)).await;
    }
    Ok(useful)
}
