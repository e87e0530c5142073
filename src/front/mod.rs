//! The port: accepts connections and finds out, from their first words, which are replicas and which are clients.
//!
//! [`classify`] judges the words; [`connection`] runs one connection; [`leg`] is its way to the upstream;
//! [`passthrough`] copies a client's bytes, among which [`inspect`] finds the replies to INFO and ROLE, and [`scene`]
//! puts the replicas behind us into them. [`face`] is the other port, which stands for a replica and passes nothing on.
//! A replica is handed over to whoever the daemon named: nothing here
//! knows how replicas are served.

pub mod classify;
pub mod connection;
pub mod face;
pub mod inspect;
pub mod leg;
pub mod passthrough;
pub mod roster;
pub mod scene;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::access::credentials::Credentials;
use crate::access::crowd::{Crowd, TooMany};
use crate::access::{Access, Entry};
use crate::counters::{CounterSet, Histogram, SHORT_SECONDS};
use crate::label;
use crate::live::Live;
use crate::net::{Admit, Link, Listener, Network, PeerAddress, Place};
use crate::relay::Relay;
use crate::relay::target::Target;
use inspect::{GivenUp, Rewrite};

/// Bounds of the front.
#[derive(Debug, Clone)]
pub struct Options {
    /// The host the link announces upstream, if it does.
    pub announce_host: Option<String>,
    /// The port it announces, if it does.
    pub announce_port: Option<u16>,
    /// Connections at once, of clients and replicas together.
    pub max_clients: usize,
    /// What a connection may say until it is known whether it is a client or a replica, in bytes.
    pub max_handshake_bytes: usize,
    /// Bound on the time from the first byte of a connection until that is known, and on silence before it.
    pub handshake_timeout: Duration,
    /// Bound on dialing the upstream for a client.
    pub connect_timeout: Duration,
}

/// Takes over the connection of a replica. It is given back when it is none: a master in `FAILOVER` that calls on the
/// node behind us to take its place.
pub type ServeReplica = Arc<dyn Fn(Caller) -> Pin<Box<dyn Future<Output = Option<Caller>> + Send>> + Send + Sync>;

/// Holds a command that tells the upstream to become a master: resolves when it may pass, within a bound of its own.
pub type HoldPromotion = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A connection that turned out to be a replica's, or another psyncd's.
pub struct Caller {
    /// What it called on.
    pub link: Link,
    /// What it has said that nobody has answered.
    pub buffer: BytesMut,
    /// What it has said of itself that the node would have to hear if it were passed on after all: whole commands, of
    /// which we have answered every one.
    pub said: Vec<Bytes>,
    /// What it named and the upstream did not refuse.
    pub credentials: Option<Credentials>,
    /// How much it has said that was answered, in bytes.
    pub heard: usize,
    /// Whether replicas may come from there.
    pub entry: Entry,
    /// Its place among those nobody knows yet what to make of; none once it was let in.
    pub place: Option<Place>,
}

/// What all connections share.
#[derive(Clone)]
pub struct Front {
    /// Bounds.
    pub options: Live<Options>,
    /// How to dial.
    pub network: Arc<dyn Network>,
    /// Where clients are passed to.
    pub target: Arc<Target>,
    /// Whether we have anything to serve.
    pub relay: Arc<Relay>,
    /// Who may come.
    pub access: Arc<Access>,
    /// How many may knock.
    pub crowd: Arc<Crowd>,
    /// Who serves replicas.
    pub serve_replica: ServeReplica,
    /// Who talks to another psyncd, if anybody does.
    pub serve_psyncd: Option<ServeReplica>,
    /// Who holds promotions, if anybody does.
    pub hold_promotion: Option<HoldPromotion>,
    /// What happened.
    pub metrics: Arc<Metrics>,
}

label! {
    /// How a client's connection began.
    pub enum Client {
        /// It was passed to the upstream.
        Ok = "ok",
        /// There were as many connections as there may be.
        Limit = "limit",
        /// The upstream could not be reached.
        UpstreamError = "upstream_error",
        /// Its address is not in allow-clients, or in neither list; or it is another psyncd that may not replicate.
        Denied = "denied",
        /// It came from another host while nothing protects the data.
        ProtectedMode = "protected_mode",
        /// Too many connections of its address had not shown what they are.
        Unauthenticated = "unauthenticated",
        /// Its address opened too many connections a second.
        Rate = "rate",
        /// It did not finish its first command in time, or sent no command.
        Protocol = "protocol",
    }
}

label! {
    /// Which way bytes were passed.
    pub enum Direction {
        /// From a client.
        ToUpstream = "to_upstream",
        /// To a client.
        ToClient = "to_client",
    }
}

/// Counters of the front.
#[derive(Debug)]
pub struct Metrics {
    /// Connections open, of clients and of what may still become a replica.
    pub open: AtomicUsize,
    /// Clients being passed through.
    pub passing: AtomicUsize,
    /// Who they are.
    pub roster: roster::Roster,
    /// Clients so far.
    pub clients: CounterSet<Client>,
    /// Bytes passed.
    pub bytes: CounterSet<Direction>,
    /// How long dialing the upstream took.
    pub connect: Histogram,
    /// Replies that passed with our replicas in them.
    pub rewrites: CounterSet<Rewrite>,
    /// Connections whose replies pass unseen, and replies too long to be rewritten.
    pub given_up: CounterSet<GivenUp>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            open: AtomicUsize::new(0),
            passing: AtomicUsize::new(0),
            roster: roster::Roster::default(),
            clients: CounterSet::new(),
            bytes: CounterSet::new(),
            connect: Histogram::new(SHORT_SECONDS),
            rewrites: CounterSet::new(),
            given_up: CounterSet::new(),
        }
    }
}

/// Takes a place for a caller among those nobody knows yet, and counts those that come too many.
pub(super) fn enter(crowd: &Arc<Crowd>, metrics: &Metrics, peer: &PeerAddress) -> Option<Place> {
    match crowd.enter(peer, Instant::now()) {
        Ok(stranger) => Some(Box::new(stranger)),
        Err(why) => {
            metrics.clients.increment(match why {
                TooMany::Strangers => Client::Unauthenticated,
                TooMany::Rate => Client::Rate,
            });
            None
        }
    }
}

/// The same for whoever has to ask before it knows what a connection is for: those who do not even speak TLS yet.
pub fn admit(crowd: Arc<Crowd>, metrics: Arc<Metrics>) -> Admit {
    Arc::new(move |peer| enter(&crowd, &metrics, peer))
}

/// What one who comes too many is told.
pub(super) const TOO_MANY: &str = "ERR max number of clients reached for your address";

/// Counts one more while it lives.
pub(crate) struct Gauge<'a>(&'a AtomicUsize);

impl<'a> Gauge<'a> {
    pub(crate) fn one_more(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Between two tries to accept when the system refuses, for want of file descriptors for instance.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Accepts connections of the front until `closing`. Each runs as a task of `tasks` until it ends, or until `shutdown`.
pub async fn accept(
    front: Front,
    listener: Box<dyn Listener>,
    tasks: TaskTracker,
    closing: CancellationToken,
    shutdown: CancellationToken,
) {
    let serve = move |link| {
        let front = front.clone();
        // A token of its own: looking at a shared one takes a lock that all connections would meet at.
        let shutdown = shutdown.child_token();
        async move { connection::serve(&front, link, &shutdown).await }
    };
    accept_each(listener, tasks, closing, serve).await;
}

/// Accepts connections until `closing` and has each served by a task of `tasks`.
pub async fn accept_each<F>(
    mut listener: Box<dyn Listener>,
    tasks: TaskTracker,
    closing: CancellationToken,
    serve: impl Fn(Link) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(link) => {
                failing = false;
                tasks.spawn(serve(link));
            }
            Err(error) => {
                if !failing {
                    warn!(event = "accept_failed", %error, listen = %listener.local(), "connection not accepted");
                }
                failing = true;
                tokio::select! {
                    biased;
                    () = closing.cancelled() => return,
                    () = tokio::time::sleep(ACCEPT_RETRY) => {}
                }
            }
        }
    }
}
