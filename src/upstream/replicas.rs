//! Snapshots from our own replicas, so that the master need not fork.
//!
//! The replicas that are in sync are asked at the addresses they announced, all at once, how they are; the fittest and
//! least busy one ([`super::candidate`]) is asked for everything, on the same connection. What it sends is handed to those
//! who wait while it arrives, like the upstream's, but no byte before it is known whose data set it is, and the last bytes
//! not before it is known to be whole. Whatever goes wrong is counted and the next one is tried.
//!
//! We speak as an ordinary client until the replica has told us what it is, so that a psyncd in front of it passes us on
//! to the server behind it: a snapshot that psyncd would have to ask us for is never waited for.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::candidate::{self, AHEAD, Burden, Eviction, LAG_PART, Needs, Unfit};
use super::conversation::{Conversation, LinkEnd};
use super::full::{self, BEGIN, Terms};
use super::source::SnapshotSource;
use super::{SnapshotEnd, Upstream, handshake};
use crate::counters::Label;
use crate::net::Address;
use crate::relay::replicas::ReplicaState;
use crate::relay::snapshots::Place;
use crate::repl::reuse::Outlook;
use crate::repl::{Position, ServerVersion};
use crate::wire::dialogue::{self, PsyncReply};
use crate::wire::info::{MasterInfo, Server, parse_info};

/// Most replicas asked at once.
const ASKED_MAX: usize = 8;
/// Most replicas tried for one snapshot: each may cost those who wait a transfer.
const TRIED_MAX: usize = 3;
/// How long one that failed in the middle is left alone while somebody else can be asked: those who wait should not pay
/// for its next failure.
const SHUNNED: Duration = Duration::from_secs(60);
/// How long a replica may take to say how it is.
const ASK: Duration = Duration::from_secs(2);

/// What replicas were last passed over for, and when, so that each reason is said once. Only of those attached now.
#[derive(Debug, Default)]
pub struct Grudges(HashMap<Address, (Unfit, Instant)>);

impl Grudges {
    fn shuns(&self, address: &Address) -> bool {
        self.0
            .get(address)
            .is_some_and(|(why, since)| matches!(why, Unfit::Claim | Unfit::Transfer) && since.elapsed() < SHUNNED)
    }
}

/// A replica that answered.
struct Candidate {
    address: Address,
    talk: Conversation,
    info: MasterInfo,
    eviction: Eviction,
}

/// Has one of our replicas give a snapshot, which `master` is not. Returns whether there is one now.
///
/// # Errors
/// [`LinkEnd::Store`] when no other source would do better.
pub async fn fetch(upstream: &Upstream, master: &Address, grudges: &mut Grudges) -> Result<bool, LinkEnd> {
    let began = Instant::now();
    let mut addresses = addresses(upstream, master);
    grudges.0.retain(|address, _| addresses.contains(address));
    if upstream.options.get().snapshot_source == SnapshotSource::Auto {
        addresses.retain(|address| !grudges.shuns(address));
    }
    for _ in 0..TRIED_MAX {
        let Some((candidate, fleet)) = best(upstream, &addresses, grudges).await else { return Ok(false) };
        let address = candidate.address.clone();
        match receive(upstream, candidate, fleet, began).await {
            Ok(()) => {
                upstream.metrics.replica_snapshots.increment(SnapshotEnd::Ok);
                grudges.0.remove(&address);
                return Ok(true);
            }
            Err(LinkEnd::Store) => {
                upstream.metrics.replica_snapshots.increment(SnapshotEnd::Failed);
                return Err(LinkEnd::Store);
            }
            Err(end) => {
                let (unfit, result) = match &end {
                    LinkEnd::Claim(_) => (Unfit::Claim, SnapshotEnd::Aborted),
                    LinkEnd::Denied(_) => (Unfit::Denied, SnapshotEnd::Failed),
                    _ => (Unfit::Transfer, SnapshotEnd::Failed),
                };
                upstream.metrics.replica_snapshots.increment(result);
                pass_over(upstream, grudges, &address, unfit, &end.to_string());
                addresses.retain(|other| *other != address);
            }
        }
    }
    Ok(false)
}

/// Where to ask: replicas that are online and not far behind. One that also waits for a snapshot, by another
/// connection, is not in sync whatever its older row says. Where there is a password only those who named it are asked:
/// anybody can announce any address, and must neither learn it nor give everybody his data.
fn addresses(upstream: &Upstream, master: &Address) -> Vec<Address> {
    let rows = upstream.relay.replicas().rows();
    let head = upstream.relay.head();
    let reach = upstream.relay.held().map_or(0, |(_, window)| window.len().max(1));
    let address = |row: &crate::relay::replicas::Row| {
        let (host, port) = (row.introduction().host.clone(), row.introduction().port);
        (port != 0).then_some(Address::Tcp { host, port })
    };
    let behind: Vec<Address> =
        rows.iter().filter(|row| row.state() != ReplicaState::Online).filter_map(|row| address(row)).collect();
    let mut found = Vec::new();
    let knows = |row: &crate::relay::replicas::Row| {
        upstream.options.get().login.get().password.is_none() || row.is_vouched_for()
    };
    let in_sync =
        |row: &crate::relay::replicas::Row| row.state() == ReplicaState::Online && head.since(row.acked()) <= reach;
    for row in rows.iter().filter(|row| in_sync(row) && knows(row)) {
        match address(row) {
            Some(address) if address == *master || behind.contains(&address) => {}
            Some(address) if !found.contains(&address) && found.len() < ASKED_MAX => found.push(address),
            Some(_) | None => {}
        }
    }
    found
}

/// Asks all and chooses one; also says what it is to be told of our replicas' versions.
async fn best(
    upstream: &Upstream,
    addresses: &[Address],
    grudges: &mut Grudges,
) -> Option<(Candidate, Option<ServerVersion>)> {
    let node = upstream.node()?;
    let (waiting, fleet) = (upstream.relay.replicas().waiting(), upstream.relay.replicas().lowest_version());
    let lag_max_bytes = upstream.relay.backlog_limit() / LAG_PART;
    let needs = Needs { node: &node, waiting: &waiting, fleet, lag_max_bytes };
    let mut asking = JoinSet::new();
    for address in addresses {
        let (upstream, address) = (upstream.clone(), address.clone());
        asking.spawn(async move {
            let asked = timeout(ASK, ask(&upstream, &address)).await.unwrap_or(Err(LinkEnd::Silent(ASK)));
            (address, asked)
        });
    }
    let mut fit: Vec<(Candidate, Burden)> = Vec::new();
    while let Some(answered) = asking.join_next().await {
        let Ok((address, answer)) = answered else { continue };
        let judged = answer.map_err(|end| (unfit(&end), end.to_string())).and_then(|candidate| {
            let place = candidate::position(&candidate.info).map_or(Place::Foreign, |at| upstream.relay.place(&at));
            match candidate::judge(&candidate.info, candidate.eviction, place, &needs) {
                Ok(burden) => Ok((candidate, burden)),
                Err(unfit) => Err((unfit, format!("{place:?}"))),
            }
        });
        match judged {
            Ok(found) => fit.push(found),
            Err((unfit, detail)) => pass_over(upstream, grudges, &address, unfit, &detail),
        }
    }
    let burdens: Vec<Burden> = fit.iter().map(|(_, burden)| *burden).collect();
    let chosen = candidate::least(&burdens)?;
    debug!(asked = addresses.len(), fit = fit.len(), burden = ?burdens[chosen], "chose a replica to give a snapshot");
    Some((fit.swap_remove(chosen).0, fleet))
}

async fn ask(upstream: &Upstream, address: &Address) -> Result<Candidate, LinkEnd> {
    let mut talk = Conversation::open_to_peer(upstream, address).await?;
    let mut said = talk.ask_whole(dialogue::info("default")).await?;
    // The password goes only to whom it takes one.
    if let (Some(b'-'), Some(auth)) = (said.first(), upstream.options.get().login.get().auth()) {
        let reply = talk.ask(auth).await?;
        if let Some(why) = dialogue::refusal(&reply) {
            return Err(LinkEnd::Denied(why));
        }
        said = talk.ask_whole(dialogue::info("default")).await?;
    }
    if said.first() == Some(&b'-') {
        return Err(LinkEnd::Denied(String::from_utf8_lossy(&said).trim_end().to_owned()));
    }
    let info = parse_info(&said);
    let eviction = match info.max_memory {
        Some(0) => Eviction::Masters,
        Some(_) | None => match talk.ask_whole(dialogue::config_ignore_maxmemory()).await? {
            said if said.ends_with(b"\r\nyes\r\n") => Eviction::Masters,
            _ => Eviction::Own,
        },
    };
    Ok(Candidate { address: address.clone(), talk, info, eviction })
}

fn unfit(end: &LinkEnd) -> Unfit {
    match end {
        LinkEnd::Denied(_) => Unfit::Denied,
        _ => Unfit::Unreachable,
    }
}

fn pass_over(upstream: &Upstream, grudges: &mut Grudges, address: &Address, unfit: Unfit, detail: &str) {
    upstream.metrics.passed_over.increment(unfit);
    let before = grudges.0.insert(address.clone(), (unfit, Instant::now()));
    if before.is_none_or(|(why, _)| why != unfit) {
        warn!(event = "snapshot_source_unfit", replica = %address, why = unfit.as_str(), detail, "replica gives no snapshot");
    } else {
        debug!(replica = %address, why = unfit.as_str(), detail, "replica gives no snapshot");
    }
}

/// From the request to a snapshot that all may have.
async fn receive(
    upstream: &Upstream,
    candidate: Candidate,
    fleet: Option<ServerVersion>,
    began: Instant,
) -> Result<(), LinkEnd> {
    let Candidate { address, mut talk, info, .. } = candidate;
    handshake::optional(&mut talk, dialogue::replconf_capa()).await?;
    if let (Some(Server::Valkey), Some(version)) = (&info.server, fleet) {
        handshake::optional(&mut talk, dialogue::replconf_version(&version.to_string())).await?;
    }
    handshake::optional(&mut talk, dialogue::replconf_rdb_only()).await?;
    let asked = timeout(BEGIN, handshake::psync(upstream, &mut talk, None)).await;
    let position = match asked.unwrap_or(Err(LinkEnd::Silent(BEGIN)))? {
        PsyncReply::FullResync(position) => position,
        PsyncReply::Continue(_) => return Err(LinkEnd::Protocol("+CONTINUE in answer to PSYNC ?".into())),
        other => return Err(handshake::refused(other)),
    };
    let wait = began.elapsed();
    on_our_line(upstream, &position).await?;
    info!(event = "snapshot_begun", replica = %address, %position, waited_ms = wait.as_millis() as u64, "replica began a snapshot for us");
    let terms = Terms::Replica { waiting: upstream.relay.replicas().waiting() };
    let received = full::receive(upstream, &mut talk, position, &terms, began).await?;
    let Some(rdb) = received.rdb().cloned() else { return Err(LinkEnd::Store) };
    if !upstream.relay.snapshot_taken(&rdb) {
        return Err(LinkEnd::Snapshot(format!("{position} left our window meanwhile")));
    }
    upstream.relay.learn(outlook(received.bytes(), received.took, wait));
    received.publish(&upstream.shelf);
    info!(event = "snapshot_ready", replica = %address, %position, elapsed_ms = began.elapsed().as_millis() as u64, "snapshot ready, and the master did not fork");
    Ok(())
}

/// What a snapshot that arrived teaches about the next one.
pub(super) fn outlook(bytes: u64, took: Duration, wait: Duration) -> Outlook {
    // Too quick to measure says nothing.
    let rate = u64::try_from(u128::from(bytes) * 1000 / took.as_millis().max(1)).ok();
    Outlook { bytes: Some(bytes), rate: rate.filter(|_| took >= Duration::from_millis(100)), wait: Some(wait) }
}

/// Whether `position` is on our line and in the window. A replica that hears the master more directly than we do may be
/// ahead by a moment; one that says so for longer is wrong, and nobody may be sent to where no stream leads.
async fn on_our_line(upstream: &Upstream, position: &Position) -> Result<(), LinkEnd> {
    let arrived = async {
        loop {
            let grown = upstream.relay.grown();
            tokio::pin!(grown);
            grown.as_mut().enable();
            let place = upstream.relay.place(position);
            if place != Place::Ahead {
                return place;
            }
            grown.await;
        }
    };
    match timeout(AHEAD, arrived).await {
        Ok(Place::Held { .. }) => Ok(()),
        Ok(place) => Err(LinkEnd::Claim(format!("it announced {position}, which is {place:?} to us"))),
        Err(_) => Err(LinkEnd::Claim(format!("it announced {position}, where we have not come"))),
    }
}
