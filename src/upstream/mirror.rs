//! Links that speak for one replica each: they announce its address and forward its acknowledgements, and what they
//! receive is dropped.
//!
//! A mirror never says anything its replica did not just say. So the master knows not only how far a replica is but also
//! how long it has been silent, and judges it as if it were its own. It never costs the master a data set: it asks for
//! the stream where it ends, after reading in INFO that the master has that, and hangs up on every other answer than
//! `+CONTINUE`.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::cast::{self, Lead, Links, Part};
use super::conversation::{Conversation, LinkEnd};
use super::handshake::{self, Greeting, Purpose};
use super::{Kind, Upstream};
use crate::net::{Address, Sink, Source};
use crate::relay::replicas::Row;
use crate::repl::policy::Backoff;
use crate::repl::{Position, ReplId};
use crate::wire::dialogue::{self, PsyncReply};
use crate::wire::info::MasterInfo;

/// Bytes dropped at once.
const PIECE: usize = 64 * 1024;
/// Who the link speaks for changes no more often than this: a replica that only reconnects is back by then.
const SETTLE: Duration = Duration::from_millis(500);
/// A link is opened for a replica only when it has spoken within this: a master takes a new link for a sign of life.
const FRESH: Duration = Duration::from_secs(3);

/// Keeps a mirror for every replica that should have one, until `shutdown`.
pub async fn run(upstream: Upstream, shutdown: CancellationToken) {
    let mut roster = upstream.relay.replicas().roster();
    let mut lead = upstream.cast.lead();
    let mut links = JoinSet::new();
    let mut running: BTreeMap<u64, (Address, AbortHandle)> = BTreeMap::new();
    loop {
        roster.mark_unchanged();
        let leading = lead.borrow_and_update().clone();
        let candidates = cast::candidates(upstream.relay.replicas());
        let wanted = cast::mirrored(
            leading.as_ref().map(|lead| lead.id),
            &candidates.iter().map(|row| row.id()).collect::<Vec<_>>(),
        );
        running.retain(|id, (master, link)| {
            let keep = wanted.contains(id) && leading.as_ref().is_some_and(|lead| lead.master == *master);
            if !keep {
                link.abort();
            }
            keep
        });
        if let Some(Lead { master, .. }) = leading {
            for row in candidates.into_iter().filter(|row| wanted.contains(&row.id())) {
                let begin = || (master.clone(), links.spawn(keep(upstream.clone(), master.clone(), Arc::clone(&row))));
                running.entry(row.id()).or_insert_with(begin);
            }
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = roster.changed() => {}
            _ = lead.changed() => {}
            // Only those that were told to end do.
            Some(_) = links.join_next() => {}
        }
    }
}

/// Counts one that is spoken for, until it is dropped.
pub fn count(upstream: &Upstream) -> impl Drop + use<> {
    struct Counted(Upstream);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.metrics.mirrors.fetch_sub(1, Ordering::Relaxed);
        }
    }
    upstream.metrics.mirrors.fetch_add(1, Ordering::Relaxed);
    Counted(upstream.clone())
}

/// Speaks for a replica until dropped.
async fn keep(upstream: Upstream, master: Address, row: Arc<Row>) {
    let replica = row.introduction();
    let mut failures = 0;
    loop {
        let end = mirror(&upstream, &master, &row, &mut failures).await;
        upstream.metrics.mirror_failures.increment();
        failures += 1;
        let delay = Backoff::MIRROR.delay(failures);
        let retry_ms = delay.as_millis() as u64;
        match failures {
            1 => warn!(event = "replica_not_mirrored", %replica, why = %end, retry_ms, "replica not mirrored"),
            _ => debug!(%replica, why = %end, attempts = failures, retry_ms, "replica not mirrored"),
        }
        sleep(delay + upstream.entropy.jitter(delay / 5)).await;
    }
}

/// One life of a mirror.
async fn mirror(upstream: &Upstream, master: &Address, row: &Row, failures: &mut u32) -> LinkEnd {
    awake(row).await;
    let (mut talk, id) = match join(upstream, master, row).await {
        Ok(joined) => joined,
        Err(end) => return end,
    };
    let _counted = count(upstream);
    *failures = 0;
    debug!(replica = %row.introduction(), replid = %id, "replica mirrored");
    let Conversation { source, sink, .. } = &mut talk;
    tokio::select! {
        biased;
        end = drop_all(upstream, source) => end,
        end = echo(upstream, sink, row) => end,
    }
}

async fn join(upstream: &Upstream, master: &Address, row: &Row) -> Result<(Conversation, ReplId), LinkEnd> {
    let (mut talk, info) = introduce(upstream, master, Purpose::Mirror(row.introduction())).await?;
    let id = ask(upstream, &mut talk, &info).await?;
    Ok((talk, id))
}

/// Waits until the replica shows that it is awake.
async fn awake(row: &Row) {
    while !is_awake(row) {
        row.spoke().await;
    }
}

fn is_awake(row: &Row) -> bool {
    row.heard().elapsed() <= FRESH
}

/// A connection on which everything but PSYNC was said.
async fn introduce(
    upstream: &Upstream,
    master: &Address,
    purpose: Purpose<'_>,
) -> Result<(Conversation, MasterInfo), LinkEnd> {
    let mut talk = Conversation::open(upstream, master).await?;
    let Greeting { info, .. } = handshake::greet(upstream, &mut talk, purpose).await?;
    let info = info.ok_or_else(|| LinkEnd::Denied("without INFO it could cost a full sync".into()))?;
    Ok((talk, info))
}

/// Asks for the stream from the head on. Any other answer than that it goes on there, under the same id, is an error.
async fn ask(upstream: &Upstream, talk: &mut Conversation, info: &MasterInfo) -> Result<ReplId, LinkEnd> {
    let Some((id, window)) = upstream.relay.held() else {
        return Err(LinkEnd::NotNow("there is no stream yet".into()));
    };
    let position = Position::new(id, window.end);
    if info.replid != Some(id) || info.backlog.is_none_or(|held| position.offset < held.start) {
        return Err(LinkEnd::NotNow("it would not go on with our stream".into()));
    }
    let limit = upstream.options.get().handshake_timeout;
    let asked = timeout(limit, handshake::psync(upstream, talk, Some(&position)));
    match asked.await.map_err(|_| LinkEnd::Silent(limit))?? {
        PsyncReply::Continue(None) => Ok(id),
        PsyncReply::Continue(Some(same)) if same == id => Ok(id),
        PsyncReply::Continue(Some(_)) => Err(LinkEnd::NotNow("its history has just changed".into())),
        PsyncReply::FullResync(_) => Err(LinkEnd::NotNow("it answered with a full sync".into())),
        other => Err(handshake::refused(other)),
    }
}

async fn drop_all(upstream: &Upstream, source: &mut Source) -> LinkEnd {
    let patience = upstream.options.get().repl_timeout;
    let mut piece = vec![0; PIECE];
    loop {
        match timeout(patience, source.read(&mut piece)).await {
            Ok(Ok(0)) => return LinkEnd::Eof,
            Ok(Ok(count)) => upstream.metrics.received.add(Kind::Mirror, count as u64),
            Ok(Err(error)) => return LinkEnd::Io(error),
            Err(_) => return LinkEnd::Silent(patience),
        }
    }
}

/// Forwards what the replica acknowledges, when it does: once a second, and to every GETACK, which reaches it in the
/// stream.
pub async fn echo(upstream: &Upstream, sink: &mut Sink, row: &Row) -> LinkEnd {
    let patience = upstream.options.get().repl_timeout;
    loop {
        row.spoke().await;
        match timeout(patience, sink.write_all(&dialogue::ack(row.word()))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return LinkEnd::Io(error),
            Err(_) => return LinkEnd::Silent(patience),
        }
    }
}

/// Who takes over the link that feeds the relay, with a connection ready for it.
pub struct Relief {
    part: Part,
    talk: Conversation,
    info: MasterInfo,
}

/// Waits until the link should speak for another than `part`, and prepares it. Cancel-safe.
pub async fn relief(upstream: &Upstream, master: &Address, part: &Part) -> Relief {
    if upstream.options.get().links == Links::Single {
        return pending().await;
    }
    let mut roster = upstream.relay.replicas().roster();
    let mut failures = 0;
    loop {
        roster.mark_unchanged();
        if wanted(upstream, part).is_none() {
            // That one wakes up again is not told.
            let _ = timeout(FRESH, roster.changed()).await;
            continue;
        }
        sleep(SETTLE).await;
        let Some(next) = wanted(upstream, part) else { continue };
        let purpose = match &next {
            Part::Itself => Purpose::Stream,
            Part::Replica(row) => Purpose::Mirror(row.introduction()),
        };
        match introduce(upstream, master, purpose).await {
            Ok((talk, info)) => return Relief { part: next, talk, info },
            Err(end) => {
                upstream.metrics.mirror_failures.increment();
                failures += 1;
                let delay = Backoff::MIRROR.delay(failures);
                let retry_ms = delay.as_millis() as u64;
                match failures {
                    1 => warn!(event = "link_not_taken_over", why = %end, retry_ms, "link not taken over"),
                    _ => debug!(why = %end, attempts = failures, retry_ms, "link not taken over"),
                }
                sleep(delay).await;
            }
        }
    }
}

/// Who should speak in the place of `part`, if anybody.
fn wanted(upstream: &Upstream, part: &Part) -> Option<Part> {
    let candidates = cast::candidates(upstream.relay.replicas());
    let eligible = |row: &&Arc<Row>| is_awake(row) || Some(row.id()) == part.id();
    let ids: Vec<u64> = candidates.iter().filter(eligible).map(|row| row.id()).collect();
    let lead = cast::lead(part.id(), &ids);
    match candidates.iter().find(|row| Some(row.id()) == lead) {
        _ if lead == part.id() => None,
        Some(row) => Some(Part::Replica(Arc::clone(row))),
        None if candidates.is_empty() => Some(Part::Itself),
        // There are some, and they may wake up.
        None => None,
    }
}

/// Goes on with the stream where it was left, on the other connection. The caller has stopped reading the one before.
pub async fn take_over(upstream: &Upstream, master: &Address, relief: Relief) -> Result<(Part, Conversation), LinkEnd> {
    let Relief { part, mut talk, info } = relief;
    // Its mirror ends first: nobody is counted twice.
    upstream.cast.appoint(&part, master);
    let id = ask(upstream, &mut talk, &info).await?;
    match &part {
        Part::Itself => info!(event = "link_speaks_for_psyncd", replid = %id, "link speaks for psyncd"),
        Part::Replica(row) => {
            info!(event = "link_speaks_for_replica", replica = %row.introduction(), replid = %id, "link speaks for a replica")
        }
    }
    Ok((part, talk))
}
