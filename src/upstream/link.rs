//! The one link that feeds the relay: connect, resume, follow, and again, for as long as the process lives.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::cast::Part;
use super::conversation::{Conversation, LinkEnd};
use super::full::{self, Terms};
use super::guard::Admission;
use super::handshake::{self, Greeting, Peer, Purpose};
use super::{Connected, Disconnect, Resync, SnapshotEnd, Switch, Upstream, lost, mirror, stream};
use crate::counters::Label;
use crate::net::tls::mistake::Failed;
use crate::relay::LinkState;
use crate::relay::target::{Pointing, Profile};
use crate::repl::policy::{Backoff, Claim, Held, resume_point};
use crate::repl::{Ancestor, Offset, Position, ReplId};
use crate::wire::dialogue::PsyncReply;
use crate::wire::info::{Attach, MasterInfo, Server};
use crate::wire::scan::Scanner;

/// A link that ended earlier than this after it began to stream, and brought nothing, counts as a failed attempt.
const SETTLED: Duration = Duration::from_secs(1);
/// The wait after a refusal that will not mend itself: wrong credentials lock accounts and fill logs.
const DENIED_DELAY: Duration = Duration::from_secs(10);

/// The link to the upstream. At most one exists, and only it appends to the relay.
pub struct MasterLink {
    upstream: Upstream,
    /// Where the stream stands in terms of commands; survives a link, since the next one goes on at that byte.
    scanner: Option<Scanner>,
    /// When and where it began to stream.
    streamed: Option<(Instant, Offset)>,
}

/// What we ask a master for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// To go on from where we are, knowing what the master says of its stream.
    Resume(Position, Option<Claim>),
    /// To begin where it is.
    Attach(Attach, Option<Ancestor>),
    /// For everything.
    Full,
}

impl MasterLink {
    /// A link that has not been tried yet. `scanner` stands at the head of what the relay remembers of an earlier life.
    pub fn new(upstream: Upstream, scanner: Option<Scanner>) -> Self {
        Self { upstream, scanner, streamed: None }
    }

    /// Keeps the link up until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut failures = 0;
        loop {
            self.streamed = None;
            let pointing = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                pointing = self.upstream.target.pointing() => pointing,
            };
            let end = tokio::select! {
                biased;
                () = pointing.left() => {
                    // A snapshot that was arriving on it will never be complete.
                    self.upstream.relay.snapshot_failed();
                    LinkEnd::Repointed
                }
                end = self.attempt(&pointing, &shutdown) => end,
            };
            self.upstream.relay.enter(match end {
                LinkEnd::Held(_) => LinkState::Held,
                _ => LinkState::Disconnected,
            });
            self.upstream.target.miss(&pointing);
            self.upstream.cast.leave();
            self.count(&end);
            let settled = self
                .streamed
                .is_some_and(|(since, from)| since.elapsed() >= SETTLED || self.upstream.relay.head() > from);
            let delay = match &end {
                LinkEnd::Shutdown => return,
                LinkEnd::Repointed => Duration::ZERO,
                LinkEnd::Denied(_) | LinkEnd::Loop(_) => DENIED_DELAY,
                LinkEnd::Held(delay) => *delay,
                _ if settled => Duration::ZERO,
                _ => Backoff::LINK.delay(failures + 1),
            };
            let delay = delay + self.upstream.entropy.jitter(delay / 5);
            self.report(&pointing, &end, failures, delay);
            failures = if settled || matches!(end, LinkEnd::Repointed) { 0 } else { failures + 1 };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                // Whatever was wrong with the node before, this is another one.
                () = pointing.left() => failures = 0,
                () = self.upstream.guard.ruled() => {}
                () = sleep(delay) => {}
            }
        }
    }

    /// One life of the link.
    async fn attempt(&mut self, pointing: &Pointing, shutdown: &CancellationToken) -> LinkEnd {
        let established = tokio::select! {
            biased;
            () = shutdown.cancelled() => Err(LinkEnd::Shutdown),
            established = self.establish(pointing) => established,
        };
        let mut talk = match established {
            Ok(talk) => talk,
            Err(end) => return end,
        };
        self.streamed = Some((Instant::now(), self.upstream.relay.head()));
        self.upstream.relay.enter(LinkState::Streaming);
        let scanner = self.scanner.as_mut().expect("an established link has a scanner");
        let mut part = Part::Itself;
        loop {
            let _counted = matches!(part, Part::Replica(_)).then(|| mirror::count(&self.upstream));
            let relief = tokio::select! {
                biased;
                relief = mirror::relief(&self.upstream, &pointing.address, &part) => relief,
                end = stream::follow(&self.upstream, &mut talk, scanner, &part, shutdown) => return end,
            };
            // The connection it takes over from stays open until then: a server of 7.0 and later keeps what it has not
            // sent there, so that nothing can leave its backlog in between.
            (part, talk) = tokio::select! {
                biased;
                () = shutdown.cancelled() => return LinkEnd::Shutdown,
                taken = mirror::take_over(&self.upstream, &pointing.address, relief) => match taken {
                    Ok(taken) => taken,
                    Err(end) => return end,
                }
            };
        }
    }

    /// From nothing to the first byte of the stream.
    async fn establish(&mut self, pointing: &Pointing) -> Result<Conversation, LinkEnd> {
        let relay = Arc::clone(&self.upstream.relay);
        let target = Arc::clone(&self.upstream.target);
        target.retry(pointing);
        // While a master is held, asking it again is no news.
        let held = self.upstream.guard.status().is_active();
        if !held {
            relay.enter(LinkState::Connecting);
        }
        let mut talk = Conversation::open(&self.upstream, &pointing.address).await?;
        if !held {
            relay.enter(LinkState::Handshake);
        }
        let Greeting { peer, info, .. } = handshake::greet(&self.upstream, &mut talk, Purpose::Stream).await?;
        if peer == Peer::Server {
            target.meet(pointing);
        }
        if let Some(info) = &info {
            target.learn(pointing, profile(info));
        }
        if peer == Peer::Server {
            relay.compare_with(info.as_ref().and_then(|info| info.backlog_size));
        }
        let admission = self.upstream.guard.examine(&pointing.address, info.as_ref())?;
        let plan = self.plan(info.as_ref());
        self.upstream.meet(info.clone().filter(|_| peer == Peer::Server));
        debug!(?plan, "asking the master");
        let position = match &plan {
            Plan::Resume(position, _) | Plan::Attach(Attach { from: position, .. }, _) => Some(position),
            Plan::Full => None,
        };
        let asked = Instant::now();
        match handshake::psync(&self.upstream, &mut talk, position).await? {
            PsyncReply::Continue(id) => {
                let at = self.continued(pointing, &plan, id).await?;
                self.upstream.guard.followed(info.as_ref(), at, None);
            }
            PsyncReply::FullResync(position) => {
                self.full_sync(pointing, &mut talk, (position, asked), admission, info.as_ref()).await?
            }
            other => return Err(handshake::refused(other)),
        }
        // Only now is it certain that a chain of psyncd's does not lead back to us.
        target.meet(pointing);
        self.upstream.metrics.connections.increment(Connected::Ok);
        Ok(talk)
    }

    fn plan(&self, info: Option<&MasterInfo>) -> Plan {
        let previous = info.and_then(|i| i.replid2).map(|(id, boundary)| Ancestor { id, boundary });
        if let (Some((id, window)), Some(scanner)) = (self.upstream.relay.held(), &self.scanner) {
            // Before 4.0 the id of a stream is the id of the process.
            let run_id = || info.and_then(|i| i.run_id.as_ref()?.parse().ok());
            let claim = info.and_then(|i| i.replid).or_else(run_id).map(|id| Claim { id, previous });
            let boundary = (!scanner.is_blind()).then(|| scanner.boundary());
            let held = Held { id, start: window.start, received: window.end, boundary };
            let asked = resume_point(&held, claim.as_ref());
            // What comes next has left its backlog. What it still holds costs it no fork.
            let overrun = |info: &&MasterInfo| {
                info.replid == Some(asked.id) && info.backlog.is_some_and(|held| asked.offset < held.start)
            };
            return match info.filter(overrun).and_then(MasterInfo::warm_attach) {
                Some(attach) => Plan::Attach(attach, previous),
                None => Plan::Resume(asked, claim),
            };
        }
        match info.and_then(MasterInfo::warm_attach) {
            Some(attach) => Plan::Attach(attach, previous),
            None => Plan::Full,
        }
    }

    /// The master continues what we asked for. Returns where.
    async fn continued(&mut self, pointing: &Pointing, plan: &Plan, id: Option<ReplId>) -> Result<Position, LinkEnd> {
        let relay = Arc::clone(&self.upstream.relay);
        let metrics = &self.upstream.metrics;
        let (asked, how) = match *plan {
            Plan::Full => return Err(LinkEnd::Protocol("+CONTINUE in answer to PSYNC ?".into())),
            Plan::Attach(Attach { from: asked, boundary }, previous) => {
                let id = id.unwrap_or(asked.id);
                let parted = Ancestor { id: asked.id, boundary: asked.offset };
                let previous = if id == asked.id { previous } else { Some(parted) };
                if relay.held().is_some() {
                    metrics.switches.increment(Switch::Reset);
                }
                relay.adopt(Position::new(id, asked.offset), boundary, previous, None);
                self.scanner = Some(Scanner::before_boundary(asked.offset, boundary));
                (asked, Resync::WarmAttach)
            }
            Plan::Resume(asked, claim) => {
                let id = id.unwrap_or(asked.id);
                let head = relay.head();
                if asked.offset != head {
                    lost::keep(&self.upstream, asked, head).await;
                }
                relay.branch(parting(asked, id, claim.as_ref()), id);
                if asked.offset != head {
                    // Both points we ever ask at below the head are boundaries.
                    self.scanner = Some(Scanner::new(asked.offset));
                    warn!(event = "history_cut_back", from = %head, to = %asked.offset, lost_bytes = head.since(asked.offset), "cut back to where the master's history parted from ours");
                }
                let how = match (id == asked.id, asked.offset == head) {
                    (true, true) => Resync::SameId,
                    (false, true) => Resync::NewId,
                    (_, false) => Resync::Rewind,
                };
                match how {
                    Resync::Rewind => metrics.switches.increment(Switch::Rewound),
                    Resync::NewId => metrics.switches.increment(Switch::Continued),
                    _ => {}
                }
                (asked, how)
            }
        };
        self.upstream.metrics.resyncs.increment(how);
        let replid = id.unwrap_or(asked.id);
        info!(event = "link_partial_resync", master = %pointing.address, %replid, offset = %asked.offset, how = how.as_str(), "link established by partial resync");
        Ok(Position::new(replid, asked.offset))
    }

    /// The master sends everything. What we have is served to our replicas until the new data set is here and
    /// verified; then it is void.
    async fn full_sync(
        &mut self,
        pointing: &Pointing,
        talk: &mut Conversation,
        (position, asked): (Position, Instant),
        admission: Admission,
        info: Option<&MasterInfo>,
    ) -> Result<(), LinkEnd> {
        let relay = &self.upstream.relay;
        let how = if relay.held().is_some() { Resync::HistoryLost } else { Resync::First };
        warn!(event = "link_full_resync_begun", master = %pointing.address, replid = %position.id, offset = %position.offset, why = how.as_str(), "master answered with a full sync");
        let now = Instant::now();
        self.upstream.forks.note(now);
        relay.be_content_until(now + self.upstream.options.get().snapshot_min_interval);
        relay.enter(LinkState::Syncing);
        let terms = match admission {
            Admission::Weighed if self.upstream.guard.is_wary() => Terms::Weighed,
            Admission::Free | Admission::Weighed => Terms::Upstream,
        };
        let received = match full::receive(&self.upstream, talk, position, &terms, asked).await {
            Ok(received) => received,
            Err(end) => {
                self.upstream.metrics.snapshots.increment(SnapshotEnd::Failed);
                return Err(end);
            }
        };
        let (guard, bytes) = (&self.upstream.guard, received.bytes());
        if admission == Admission::Weighed
            && let Err(held) = guard.weigh(&pointing.address, info, position, bytes)
        {
            self.upstream.metrics.snapshots.increment(SnapshotEnd::Aborted);
            return Err(held);
        }
        if how == Resync::HistoryLost {
            self.upstream.metrics.switches.increment(Switch::Reset);
        }
        relay.adopt(position, position.offset, None, received.rdb().cloned());
        received.publish(&self.upstream.shelf);
        guard.followed(info, position, Some(bytes));
        self.scanner = Some(Scanner::new(position.offset));
        self.upstream.metrics.snapshots.increment(SnapshotEnd::Ok);
        self.upstream.metrics.resyncs.increment(how);
        info!(event = "link_full_resync", master = %pointing.address, replid = %position.id, offset = %position.offset, "link established by full sync");
        Ok(())
    }

    fn count(&self, end: &LinkEnd) {
        let metrics = &self.upstream.metrics;
        match (&self.streamed, end) {
            // Whom the guard holds was reached.
            (_, LinkEnd::Shutdown) | (None, LinkEnd::Held(_) | LinkEnd::Repointed) => {}
            (None, LinkEnd::ConnectTimeout(_) | LinkEnd::Silent(_)) => {
                metrics.connections.increment(Connected::Timeout)
            }
            (None, LinkEnd::Denied(_)) => metrics.connections.increment(Connected::Auth),
            (None, LinkEnd::Unreachable(error) | LinkEnd::Io(error)) if Failed::is_behind(error) => {
                metrics.connections.increment(Connected::Tls)
            }
            (None, _) => metrics.connections.increment(Connected::Refused),
            (Some(_), LinkEnd::Eof) => metrics.disconnects.increment(Disconnect::Eof),
            (Some(_), LinkEnd::Silent(_)) => metrics.disconnects.increment(Disconnect::Timeout),
            (Some(_), LinkEnd::Repointed) => metrics.disconnects.increment(Disconnect::Repointed),
            (Some(_), LinkEnd::Protocol(_)) => metrics.disconnects.increment(Disconnect::Protocol),
            (Some(_), _) => metrics.disconnects.increment(Disconnect::Error),
        }
    }

    /// Says why, once per cause and then once per minute or so: an upstream that is away for an hour is one event.
    fn report(&self, pointing: &Pointing, end: &LinkEnd, failures: u32, delay: Duration) {
        let master = &pointing.address;
        let retry_ms = delay.as_millis() as u64;
        if matches!(end, LinkEnd::Held(_)) {
            debug!(%master, retry_ms, "master is held");
        } else if matches!(end, LinkEnd::Repointed) {
            info!(event = "upstream_left", %master, next = self.upstream.target.name(), offset = %self.upstream.relay.head(), "upstream left for another");
        } else if self.streamed.is_some() {
            warn!(event = "link_lost", %master, why = %end, offset = %self.upstream.relay.head(), retry_ms, "link lost");
        } else if failures < 3 || failures.is_multiple_of(60) {
            warn!(event = "link_not_established", %master, why = %end, attempts = failures + 1, retry_ms, "link not established");
        } else {
            debug!(%master, why = %end, attempts = failures + 1, retry_ms, "link not established");
        }
    }
}

fn profile(info: &MasterInfo) -> Profile {
    Profile {
        chain: info.chain.clone(),
        role: info.role,
        redis_version: info.redis_version.clone(),
        valkey_version: info.version.clone().filter(|_| info.server == Some(Server::Valkey)),
    }
}

/// Where the stream that was continued at `asked` under `id` stopped being called as we called it: there, or further on
/// where the master says so. Replicas that are ahead of us up to that point have not diverged.
fn parting(asked: Position, id: ReplId, claim: Option<&Claim>) -> Offset {
    match claim {
        Some(Claim { id: current, previous: Some(previous) }) if *current == id && previous.id == asked.id => {
            previous.boundary.max(asked.offset)
        }
        _ => asked.offset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_parts_where_the_master_says_or_where_we_asked_if_it_says_nothing_of_ours() {
        let id = |n: u8| ReplId::from_ascii(format!("{n:040x}").as_bytes()).unwrap();
        let asked = Position::new(id(1), Offset::new(50));
        let claim = |now, before, boundary| Claim {
            id: id(now),
            previous: Some(Ancestor { id: id(before), boundary: Offset::new(boundary) }),
        };
        let parted = |now, claim: Option<Claim>| parting(asked, id(now), claim.as_ref()).get();
        assert_eq!(parted(2, Some(claim(2, 1, 80))), 80, "we are behind where it was promoted");
        assert_eq!(parted(2, Some(claim(2, 1, 50))), 50);
        assert_eq!(parted(2, Some(claim(2, 9, 80))), 50, "it was another stream's name");
        assert_eq!(parted(3, Some(claim(2, 1, 80))), 50, "it has changed its name again meanwhile");
        assert_eq!(parted(2, None), 50);
    }
}
