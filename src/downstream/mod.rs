//! Toward the replicas: one session each, from its first REPLCONF to its last byte.
//!
//! ```text
//!   handshake ─▶ admission ─▶ (full) ─▶ stream
//! ```
//!
//! [`handshake`] reads what a replica says of itself and what it asks; [`session`] runs one replica's life;
//! [`admission`] holds it until there is an answer; [`full`] sends a snapshot; [`stream`] feeds it and hears its
//! acknowledgements. A session owns one socket, one cursor and one row.
//!
//! Only for a snapshot does a session ever wait for another one: [`senders`] has a few turns, given out by [`queue`]'s
//! order, [`setbacks`] keeps those away whose full resyncs fail, and [`budget`] is what all senders may use together.
//! Whoever can continue waits for none of this.

pub mod admission;
pub mod budget;
pub mod full;
pub mod handshake;
pub mod peers;
pub mod queue;
pub mod senders;
pub mod session;
pub mod setbacks;
pub mod stream;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use budget::Budget;
use peers::Peers;
use senders::Senders;
use setbacks::Setbacks;

use crate::access::Access;
use crate::counters::{Counter, CounterSet, Histogram, LONG_SECONDS};
use crate::entropy::Entropy;
use crate::label;
use crate::live::Live;
use crate::net::{Link, Sink, Source};
use crate::ration::Ration;
use crate::relay::Relay;
use crate::relay::target::Target;
use crate::repl::{FullReason, PartialReason};

/// Bounds of a session.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bound on the handshake, from the first byte to PSYNC.
    pub handshake_timeout: Duration,
    /// How long a replica is held before it is given a snapshot, or told to come back.
    pub hold_timeout: Duration,
    /// A replica that takes no byte, or says nothing while it streams, for this long is dropped.
    pub repl_timeout: Duration,
    /// What it may say before it asks, in bytes.
    pub max_handshake_bytes: usize,
    /// Our own id, for finding loops.
    pub identity: String,
    /// Snapshots sent at once.
    pub max_senders: usize,
    /// Bytes a second for all of them together; `None` for no limit.
    pub sender_rate_limit: Option<u64>,
}

/// What all sessions share.
#[derive(Clone)]
pub struct Downstream {
    /// Bounds.
    pub options: Live<Options>,
    /// What is served.
    pub relay: Arc<Relay>,
    /// Whose stream it is.
    pub target: Arc<Target>,
    /// Marks and jitter.
    pub entropy: Arc<dyn Entropy>,
    /// Who may have the data.
    pub access: Arc<Access>,
    /// Who is asked what cannot be seen from here.
    pub peers: Arc<dyn Peers>,
    /// Turns at sending a snapshot.
    pub senders: Arc<Senders>,
    /// Whose full resyncs failed.
    pub setbacks: Arc<Setbacks>,
    /// What all senders may use, where that is limited.
    pub budget: Live<Option<Budget>>,
    /// How often the log says that somebody was rejected.
    pub rejected: Arc<Ration>,
    /// What happened.
    pub metrics: Arc<Metrics>,
}

impl Downstream {
    /// Nobody is attached and nothing happened yet.
    pub fn new(
        options: Options,
        relay: Arc<Relay>,
        target: Arc<Target>,
        entropy: Arc<dyn Entropy>,
        access: Arc<Access>,
        peers: Arc<dyn Peers>,
    ) -> Self {
        Self {
            relay,
            target,
            access,
            entropy,
            peers,
            senders: Senders::new(options.max_senders),
            setbacks: Arc::default(),
            budget: Live::new(options.sender_rate_limit.map(Budget::new)),
            options: Live::new(options),
            rejected: Arc::default(),
            metrics: Arc::default(),
        }
    }

    /// Other bounds hold from now on, also for whoever is attached. Whoever is being sent a snapshot goes on with it.
    pub fn set_options(&self, options: Options) {
        self.senders.resize(options.max_senders);
        if options.sender_rate_limit != self.options.get().sender_rate_limit {
            self.budget.set(options.sender_rate_limit.map(Budget::new));
        }
        self.options.set(options);
    }
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// It was never attached.
    Rejected(Rejection),
    /// It was attached and left.
    Departed(Departure),
    /// It left before it asked for anything; ordinary for a probe.
    Unasked,
    /// It is a master that wants the node behind us promoted.
    Summoned,
}

/// A connection that is no replica's: a master in `FAILOVER` asks the node behind us to take its place.
pub struct Summons {
    /// What it called on.
    pub link: Link,
    /// What it said that nobody has answered: its PSYNC.
    pub buffer: BytesMut,
    /// What it said of itself before, command by command, all of them answered.
    pub said: Vec<Bytes>,
}

/// The two directions of a replica's connection and what was read ahead.
pub struct Wire {
    /// What the replica sends.
    pub source: Source,
    /// What it is sent.
    pub sink: Sink,
    /// Received and not yet used.
    pub buffer: BytesMut,
}

label! {
    /// How a replica was answered.
    pub enum Answer {
        /// Continued under the current id.
        Replid = "replid",
        /// Continued from the id before.
        SecondReplid = "second_replid",
        /// Continued from an even earlier id.
        Ancestor = "ancestor",
        /// It asked for everything.
        Requested = "requested",
        /// Its id was never ours.
        UnknownReplid = "unknown_replid",
        /// What it needs has left the backlog.
        OffsetEvicted = "offset_evicted",
        /// It stayed ahead of us.
        OffsetAhead = "offset_ahead",
        /// It has bytes that are not ours.
        Diverged = "diverged",
    }
}

impl Answer {
    /// Whether it moves a data set: the value of the label beside this one.
    pub const fn kind(self) -> &'static str {
        match self {
            Answer::Replid | Answer::SecondReplid | Answer::Ancestor => "partial",
            Answer::Requested
            | Answer::UnknownReplid
            | Answer::OffsetEvicted
            | Answer::OffsetAhead
            | Answer::Diverged => "full",
        }
    }
}

impl From<PartialReason> for Answer {
    fn from(why: PartialReason) -> Self {
        match why {
            PartialReason::Replid => Answer::Replid,
            PartialReason::SecondReplid => Answer::SecondReplid,
            PartialReason::Ancestor => Answer::Ancestor,
        }
    }
}

impl From<FullReason> for Answer {
    fn from(why: FullReason) -> Self {
        match why {
            FullReason::Requested => Answer::Requested,
            FullReason::UnknownReplid => Answer::UnknownReplid,
            FullReason::OffsetEvicted => Answer::OffsetEvicted,
            FullReason::OffsetAhead => Answer::OffsetAhead,
            FullReason::Diverged => Answer::Diverged,
        }
    }
}

label! {
    /// Why an attached replica left.
    pub enum Departure {
        /// It closed the connection.
        Eof = "eof",
        /// It took or said nothing for too long.
        Timeout = "timeout",
        /// It was slower than the backlog is long.
        Lagging = "lagging",
        /// It was asked to come back, to learn a new id or because the stream was replaced.
        HistorySwitch = "history_switch",
        /// We are going away.
        Shutdown = "shutdown",
        /// The network failed, or the snapshot did.
        Error = "error",
        /// It said what a replica may not say.
        Protocol = "protocol",
        /// It had all it wanted: a snapshot and no stream.
        Done = "done",
    }
}

label! {
    /// Why a replica was turned away before it was attached.
    pub enum Rejection {
        /// Replication is not for it: it would close a loop.
        Loop = "loop",
        /// As many replicas as there may be are attached.
        Limit = "limit",
        /// It did not finish its handshake in time.
        Timeout = "timeout",
        /// It said what nobody says.
        Protocol = "protocol",
        /// It may not replicate, or what it named is wrong.
        Auth = "auth",
        /// Its address is not in allow-replicas.
        Denied = "denied",
        /// It came from another host while nothing protects the data.
        ProtectedMode = "protected_mode",
        /// Its certificate has none of the names in tls-allow-replicas, or it showed none.
        Certificate = "certificate",
        /// There was nothing to serve it with.
        NoHistory = "no_history",
    }
}

label! {
    /// What was sent.
    pub enum Kind {
        /// Bytes of the live stream.
        Stream = "stream",
        /// Bytes of snapshots.
        Snapshot = "snapshot",
    }
}

label! {
    /// How a resync ended that averted a full one.
    pub enum Averted {
        /// A replica that needed a snapshot was given one we already had or were receiving.
        SharedSnapshot = "shared_snapshot",
        /// A replica continued from bytes that the upstream's own backlog has dropped.
        LongBacklog = "long_backlog",
        /// A replica continued from bytes that an earlier process had received.
        Restart = "restart",
        /// A replica continued from an id that a server no longer remembers.
        DeepHistory = "deep_history",
    }
}

/// Counters of everything toward the replicas.
#[derive(Debug)]
pub struct Metrics {
    /// Answers given.
    pub resyncs: CounterSet<Answer>,
    /// Ends of sessions.
    pub departures: CounterSet<Departure>,
    /// Replicas turned away.
    pub rejections: CounterSet<Rejection>,
    /// Bytes sent.
    pub sent: CounterSet<Kind>,
    /// Full resyncs that did not happen, or did not reach the master.
    pub averted: CounterSet<Averted>,
    /// Snapshots sent whole.
    pub snapshots: Counter,
    /// Replicas held back because their last full resyncs failed.
    pub backoffs: Counter,
    /// Acknowledgements beyond what we hold, which were not believed.
    pub acks_beyond_head: Counter,
    /// From the request to the answer that continues.
    pub partial: Histogram,
    /// From the request to the first acknowledgement behind a snapshot.
    pub full: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            resyncs: CounterSet::new(),
            departures: CounterSet::new(),
            rejections: CounterSet::new(),
            sent: CounterSet::new(),
            averted: CounterSet::new(),
            snapshots: Counter::new(),
            backoffs: Counter::new(),
            acks_beyond_head: Counter::new(),
            partial: Histogram::new(LONG_SECONDS),
            full: Histogram::new(LONG_SECONDS),
        }
    }
}
