//! The replica face: the address the master is told. It answers as a replica that must never be promoted, obeys
//! `REPLICAOF`, and serves replicas of its own. It passes no command on, ever: a Sentinel that sends `SLAVEOF` to
//! what it takes for a replica would otherwise make the master a replica of itself.
//!
//! [`manners`] is one connection's side of the dialogue, without a socket; [`hub`] knows who is connected and carries
//! the hello channel; [`serve`] drives a connection. What it says of itself comes from whoever built it.

pub mod glob;
pub mod hub;
pub mod manners;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::connection::kept_out;
use super::{Caller, Client, Gauge, ServeReplica, TOO_MANY, enter};
use crate::access::Access;
use crate::access::credentials::Credentials;
use crate::access::crowd::Crowd;
use crate::counters::{Counter, CounterSet, Label};
use crate::label;
use crate::live::Live;
use crate::net::{Address, Link, Place};
use crate::relay::target::{Repointed, Source, Target};
use crate::wire::command::error_line;
use crate::wire::hello::Hello;
use crate::wire::portrait::Portrait;
use crate::wire::reply::Resp;
use crate::wire::resp::{FrameLimits, parse_command};
use hub::{Hub, Membership, Victims};
use manners::{Manners, Standing, Step};
use zeroize::Zeroizing;

/// Bounds of the face, and who has the right to it.
#[derive(Clone)]
pub struct Options {
    /// What `AUTH` must say, if anything.
    pub password: Option<Zeroizing<Vec<u8>>>,
    /// Connections at once, those of the front and replicas included.
    pub max_clients: usize,
    /// Bound on a command that has begun to arrive.
    pub handshake_timeout: Duration,
    /// A peer that takes no byte for this long is dropped.
    pub write_timeout: Duration,
}

/// How long a last word may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// What we are at this instant.
pub type Describe = Arc<dyn Fn() -> Portrait + Send + Sync>;
/// Hears what Sentinels tell each other.
pub type Overhear = Arc<dyn Fn(Hello) + Send + Sync>;
/// Why a node must not be followed: it would be we ourselves.
pub type Forbid = Arc<dyn Fn(&Address) -> Option<String> + Send + Sync>;

/// What all connections share.
#[derive(Clone)]
pub struct Face {
    /// Bounds.
    pub options: Live<Options>,
    /// Who may come.
    pub access: Arc<Access>,
    /// How many may knock.
    pub crowd: Arc<Crowd>,
    /// Whom to follow.
    pub target: Arc<Target>,
    /// What we say of ourselves.
    pub describe: Describe,
    /// Who hears the Sentinels' messages.
    pub overhear: Overhear,
    /// Whom not to follow.
    pub forbid: Forbid,
    /// Who serves replicas.
    pub serve_replica: ServeReplica,
    /// Who is connected.
    pub hub: Arc<Hub>,
    /// What happened here.
    pub metrics: Arc<Metrics>,
    /// What happened on the ports together.
    pub front: Arc<super::Metrics>,
}

label! {
    /// What the face would not do.
    pub enum Refusal {
        /// To become a master.
        Promotion = "promotion",
        /// To follow itself, or what is no address.
        Upstream = "upstream",
        /// A command that it does not serve.
        Command = "command",
        /// A wrong or missing password.
        Auth = "auth",
        /// To wait for a subscriber that does not read.
        SlowSubscriber = "slow_subscriber",
        /// Bytes that are no command.
        Protocol = "protocol",
    }
}

/// Counters of the face.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Connections open, replicas not included.
    pub open: AtomicUsize,
    /// Messages published.
    pub published: Counter,
    /// What was refused.
    pub refused: CounterSet<Refusal>,
}

/// Runs one connection to its end.
pub async fn serve(face: &Face, mut link: Link, shutdown: &CancellationToken) {
    let everybody = Gauge::one_more(&face.front.open);
    if face.front.open.load(Ordering::Relaxed) > face.options.get().max_clients {
        face.front.clients.increment(Client::Limit);
        let _ = link.sink.write_all(&error_line("ERR max number of clients reached")).await;
        return;
    }
    let Some(place) = link.place.take().or_else(|| enter(&face.crowd, &face.front, &link.peer)) else {
        let _ = timeout(GOODBYE, link.sink.write_all(&error_line(TOO_MANY))).await;
        return;
    };
    let entries = tokio::select! {
        biased;
        () = shutdown.cancelled() => return,
        entries = face.access.entries(&link.peer, &link.security) => entries,
    };
    // Whoever may come in neither way may not ask us to follow another master either.
    if let Some(why) = entries.closed() {
        face.front.clients.increment(kept_out(why));
        let _ = link.sink.write_all(&why.line()).await;
        return;
    }
    let open = Gauge::one_more(&face.metrics.open);
    let mut membership = face.hub.join(link.peer.to_string());
    let mut talk = Talk {
        face,
        link,
        buffer: BytesMut::new(),
        manners: Manners::new(membership.id(), face.options.get().password.is_some()),
        place: Some(place),
        began: Instant::now(),
    };
    let killed = membership.killed();
    let outcome = tokio::select! {
        biased;
        () = shutdown.cancelled() => return,
        () = killed.cancelled() => return,
        outcome = talk.run(&mut membership) => outcome,
    };
    let Talk { link, buffer, manners, place, .. } = talk;
    let password = manners.password();
    drop((membership, open));
    match outcome {
        Outcome::Replica => {
            // The face has judged by its own password; whether it may replicate is judged as on the other port.
            let credentials = password.map(|password| Credentials::own(None, &password));
            let said = Vec::new();
            let caller = Caller { link, buffer, said, credentials, heard: 0, entry: entries.replica, place };
            // A master in FAILOVER has to be told at once: it holds its writes until it hears.
            if let Some(Caller { mut link, .. }) = (face.serve_replica)(caller).await {
                face.metrics.refused.increment(Refusal::Promotion);
                warn!(event = "failover_refused", master = %link.peer, "failover refused: psyncd has no data to serve");
                let _ = link.sink.write_all(&error_line("ERR psyncd is a relay and cannot be promoted")).await;
                let _ = link.sink.shutdown().await;
            }
        }
        Outcome::Closed => {}
    }
    drop(everybody);
}

/// How a connection went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It asked for replication, and what it said is still in the buffer.
    Replica,
    Closed,
}

struct Talk<'a> {
    face: &'a Face,
    link: Link,
    buffer: BytesMut,
    manners: Manners,
    /// Its place among those nobody knows yet; none once it has said a command that only those may who know the
    /// password.
    place: Option<Place>,
    began: Instant,
}

impl Talk<'_> {
    async fn run(&mut self, membership: &mut Membership) -> Outcome {
        loop {
            match self.answer(membership).await {
                Some(outcome) => return outcome,
                None => {
                    if self.wait(membership).await.is_none() {
                        return Outcome::Closed;
                    }
                }
            }
        }
    }

    /// Answers every command that is there.
    async fn answer(&mut self, membership: &Membership) -> Option<Outcome> {
        loop {
            let (args, used) = match parse_command(&self.buffer, &FrameLimits::HANDSHAKE) {
                Ok(Some(command)) => command,
                Ok(None) => return None,
                Err(error) => {
                    self.face.metrics.refused.increment(Refusal::Protocol);
                    let _ = self.write(error_line(&format!("ERR {error}"))).await;
                    return Some(Outcome::Closed);
                }
            };
            let standing = Seat { face: self.face, membership };
            let step = self.manners.command(&args, &standing);
            drop(args);
            if self.manners.is_admitted() && step != Step::Replicate {
                self.place = None;
            }
            match step {
                // The session reads it again.
                Step::Replicate => return Some(Outcome::Replica),
                Step::Reply(reply) => {
                    let _ = self.buffer.split_to(used);
                    self.write(reply).await.ok()?;
                }
                Step::Close(reply) => {
                    let _ = self.write(reply).await;
                    return Some(Outcome::Closed);
                }
            }
        }
    }

    /// Waits for more to answer, and meanwhile hands out what was published. `None` when the peer is gone.
    async fn wait(&mut self, membership: &mut Membership) -> Option<()> {
        let patience = self.face.options.get().handshake_timeout;
        let limit = match (&self.place, self.buffer.is_empty()) {
            // Whoever is nobody yet gets no more time by saying something.
            (Some(_), _) => patience.saturating_sub(self.began.elapsed()),
            (None, false) => patience,
            (None, true) => Duration::MAX,
        };
        let message = tokio::select! {
            biased;
            message = membership.message() => message,
            read = timeout(limit, self.link.source.read_buf(&mut self.buffer)) => {
                return match read {
                    Ok(Ok(0)) | Ok(Err(_)) | Err(_) => None,
                    Ok(Ok(_)) => Some(()),
                };
            }
        };
        self.write(message).await.ok()
    }

    async fn write(&mut self, bytes: Bytes) -> std::io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        match timeout(self.face.options.get().write_timeout, self.link.sink.write_all(&bytes)).await {
            Ok(written) => written,
            Err(late) => Err(late.into()),
        }
    }
}

/// One connection's place at the face: what its commands can do.
struct Seat<'a> {
    face: &'a Face,
    membership: &'a Membership,
}

impl Standing for Seat<'_> {
    fn password_is(&self, given: &[u8]) -> bool {
        match &self.face.options.get().password {
            None => true,
            Some(password) => equal(password, given),
        }
    }

    fn portrait(&self) -> Portrait {
        (self.face.describe)()
    }

    fn follow(&self, address: Address) -> Result<Repointed, String> {
        if let Some(why) = (self.face.forbid)(&address) {
            warn!(event = "order_refused", upstream = %address, %why, peer = self.membership.peer(), "order to follow refused");
            self.refused(Refusal::Upstream);
            return Err(why);
        }
        let before = self.face.target.name();
        let done = self.face.target.repoint(address.clone(), Source::ReplicaOf);
        match done {
            Repointed::Moved => {
                info!(event = "upstream_changed", upstream = %address, %before, source = Source::ReplicaOf.as_str(), peer = self.membership.peer(), "upstream changed");
            }
            Repointed::Already => debug!(upstream = %address, "told to follow what is followed"),
        }
        Ok(done)
    }

    fn refused(&self, what: Refusal) {
        self.face.metrics.refused.increment(what);
        debug!(peer = self.membership.peer(), what = what.as_str(), "refused");
        if what == Refusal::Promotion {
            warn!(
                event = "promotion_refused",
                peer = self.membership.peer(),
                "promotion refused: psyncd has no data to serve; nobody should have asked, since its priority is 0"
            );
        }
    }

    fn publish(&self, message: &[u8]) -> usize {
        self.face.metrics.published.increment();
        if let Some(hello) = Hello::parse(message) {
            (self.face.overhear)(hello);
        }
        let (reached, dropped) = self.face.hub.publish(message);
        self.face.metrics.refused.add(Refusal::SlowSubscriber, dropped as u64);
        reached
    }

    fn listen(&self, resp: Resp, channel: bool, patterns: &[Bytes]) {
        self.membership.listen(resp, channel, patterns);
    }

    fn rename(&self, name: &str) {
        self.membership.rename(name);
    }

    fn clients(&self, only: Option<u64>) -> String {
        self.face.hub.list(only)
    }

    fn kill(&self, victims: &Victims) -> usize {
        self.face.hub.kill(victims)
    }
}

/// Whether two secrets are equal, in a time that tells nothing but their lengths.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y)) == 0
}

/// What to do with each connection of the face, for [`super::accept_each`].
pub fn serving(
    face: Face,
    shutdown: CancellationToken,
) -> impl Fn(Link) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    move |link| {
        let (face, shutdown) = (face.clone(), shutdown.child_token());
        Box::pin(async move { serve(&face, link, &shutdown).await })
    }
}
