//! Toward the master: one link that feeds the relay, and a side link that fetches snapshots.
//!
//! [`link`] lives as long as the process and is always in one of the states of
//! [`LinkState`](crate::relay::LinkState); each attempt is a [`conversation`], a [`handshake`], maybe a
//! [`full`] sync, and then the [`stream`]. [`fetch`] uses the same parts on connections of its own, so that a
//! snapshot never disturbs the stream; it asks our own [`replicas`] first, and [`recovered`] has what survived a restart.
//! [`guard`] stands between a master that lost its data and the link, and [`census`] keeps it informed.
//!
//! Where [`Links::Mirrored`](cast::Links) is asked for, the master hears every replica in a link of its own: [`cast`]
//! says which link speaks for whom, [`mirror`] has those that only speak.
//!
//! [`inquiry`] asks any server for its INFO. Nothing else here knows a replica but [`replicas`]; what is wanted of us
//! comes through the relay.

pub mod candidate;
pub mod cast;
pub mod census;
pub mod conversation;
pub mod fetch;
pub mod full;
pub mod gather;
pub mod guard;
pub mod handshake;
pub mod inquiry;
pub mod link;
mod lost;
pub mod mirror;
pub mod recovered;
pub mod replicas;
pub mod source;
pub mod stream;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::counters::{Counter, CounterSet, Histogram, LONG_SECONDS};
use crate::entropy::Entropy;
use crate::label;
use crate::live::Live;
use crate::net::{Network, PeerAddress};
use crate::relay::Relay;
use crate::relay::target::Target;
use crate::repl::AckPolicy;
use crate::store::snapshot::Shelf;
use crate::wire::dialogue::Login;
use crate::wire::info::MasterInfo;
use candidate::Unfit;
use cast::{Cast, Links};
use guard::Guard;
use source::{Forks, SnapshotSource};

/// How to follow.
#[derive(Clone)]
pub struct Options {
    /// What the master is named.
    pub login: Live<Login>,
    /// Address to be listed under by the master. None: the one we call from.
    pub announce_host: Option<String>,
    /// Port to be listed under. None: no port, and nobody who reads the master's INFO will call us.
    pub announce_port: Option<u16>,
    /// Bound on dialing.
    pub connect_timeout: Duration,
    /// Bound on each reply of the handshake, before PSYNC.
    pub handshake_timeout: Duration,
    /// Silence after which the link is given up.
    pub repl_timeout: Duration,
    /// Bytes kept of what a promoted master never had; 0 keeps nothing.
    pub keep_lost_bytes: u64,
    /// Whose word stands behind our acknowledgements.
    pub ack_policy: AckPolicy,
    /// Whether nothing is acknowledged while no replica is online.
    pub silent_when_empty: bool,
    /// The least time between two rounds of the stream while many replicas follow; zero for none.
    pub gather_time: Duration,
    /// Who may be asked for snapshots.
    pub snapshot_source: SnapshotSource,
    /// Between two forks the upstream is made to do for us.
    pub snapshot_min_interval: Duration,
    /// Between two counts of the master's keys.
    pub guard_interval: Duration,
    /// How many links there are.
    pub links: Links,
    /// Who we are, for finding loops.
    pub identity: String,
}

impl Options {
    /// Whether the node at `peer`, which we call from `local`, would list us under its own address: Sentinel would then
    /// make it a replica of itself. The start refuses what can be known by then; this is for nodes that we are told to
    /// follow later. Another name of the same host is not seen here.
    fn is_announced_as(&self, peer: &PeerAddress, local: &PeerAddress) -> bool {
        let (PeerAddress::Tcp(peer), Some(port)) = (peer, self.announce_port) else { return false };
        let host = match &self.announce_host {
            Some(host) => host.parse().ok(),
            None => match local {
                PeerAddress::Tcp(local) => Some(local.ip()),
                PeerAddress::Unix => None,
            },
        };
        port == peer.port() && host.is_some_and(|host: IpAddr| host.to_canonical() == peer.ip().to_canonical())
    }
}

/// What both links share.
#[derive(Clone)]
pub struct Upstream {
    /// Whom to follow.
    pub target: Arc<Target>,
    /// How.
    pub options: Live<Options>,
    /// What is fed.
    pub relay: Arc<Relay>,
    /// How to dial whom we follow.
    pub network: Arc<dyn Network>,
    /// How to dial replicas and other psyncds, at the addresses they announced.
    pub peers: Arc<dyn Network>,
    /// Where snapshots are spooled.
    pub shelf: Arc<Shelf>,
    /// Who keeps us from following a master that lost its data.
    pub guard: Arc<Guard>,
    /// Jitter.
    pub entropy: Arc<dyn Entropy>,
    /// Whom the link speaks for.
    pub cast: Arc<Cast>,
    /// What happened.
    pub metrics: Arc<Metrics>,
    /// When the upstream forked for us.
    pub forks: Arc<Forks>,
    /// What the node said of itself when the link last got to it; none before, and of a psyncd. Held for a copy.
    pub node: Arc<Mutex<Option<MasterInfo>>>,
}

impl Upstream {
    fn node(&self) -> Option<MasterInfo> {
        self.node.lock().expect("no one panics holding it").clone()
    }

    fn meet(&self, info: Option<MasterInfo>) {
        self.forks.meet(info.as_ref().and_then(|info| info.run_id.as_deref()));
        *self.node.lock().expect("no one panics holding it") = info;
    }
}

label! {
    /// How an attempt to connect ended.
    pub enum Connected {
        /// The dialogue began.
        Ok = "ok",
        /// Nobody listens, or no route.
        Refused = "refused",
        /// No answer in time.
        Timeout = "timeout",
        /// The credentials or their permissions do not suffice.
        Auth = "auth",
        /// TLS came to nothing.
        Tls = "tls",
    }
}

label! {
    /// Why a link that was established ended.
    pub enum Disconnect {
        /// The master closed it.
        Eof = "eof",
        /// Nothing came for repl-timeout.
        Timeout = "timeout",
        /// The network failed.
        Error = "error",
        /// The master said what it may not say.
        Protocol = "protocol",
        /// Another node is followed.
        Repointed = "repointed",
    }
}

label! {
    /// What was received.
    pub enum Kind {
        /// Bytes of the live stream.
        Stream = "stream",
        /// Bytes of snapshots.
        Snapshot = "snapshot",
        /// Bytes of the live stream that came again, on the links that only speak for a replica.
        Mirror = "mirror",
    }
}

label! {
    /// How our own link got its history.
    pub enum Resync {
        /// First contact at a position the master's backlog holds, without a snapshot.
        WarmAttach = "warm_attach",
        /// Continued under the same id.
        SameId = "same_id",
        /// Continued under a new id.
        NewId = "second_id",
        /// Continued under a new id from below what we held.
        Rewind = "rewind",
        /// First contact, where the master had nothing to continue.
        First = "first_contact",
        /// The master could not or would not continue what we hold.
        HistoryLost = "history_lost",
    }
}

impl Resync {
    /// Whether it moved a data set: the value of the label beside this one.
    pub const fn kind(self) -> &'static str {
        match self {
            Resync::WarmAttach | Resync::SameId | Resync::NewId | Resync::Rewind => "partial",
            Resync::First | Resync::HistoryLost => "full",
        }
    }
}

label! {
    /// What became of our history when the master's went on otherwise.
    pub enum Switch {
        /// It went on at our head, under a new id.
        Continued = "continued",
        /// It had parted from ours below our head, and we cut back.
        Rewound = "rewound",
        /// It does not connect; everything begins anew.
        Reset = "reset",
    }
}

label! {
    /// How a snapshot ended.
    pub enum SnapshotEnd {
        /// Complete and checked.
        Ok = "ok",
        /// The transfer, the check or the disk failed.
        Failed = "failed",
        /// Of a history that is not ours, or not what was announced.
        Aborted = "aborted",
    }
}

/// Counters of everything toward the master.
#[derive(Debug)]
pub struct Metrics {
    /// Attempts to connect.
    pub connections: CounterSet<Connected>,
    /// Ends of links.
    pub disconnects: CounterSet<Disconnect>,
    /// Bytes received.
    pub received: CounterSet<Kind>,
    /// Our own syncs.
    pub resyncs: CounterSet<Resync>,
    /// Changes of history.
    pub switches: CounterSet<Switch>,
    /// Bytes that were cut off because a promoted master never had them.
    pub lost_bytes: Counter,
    /// Snapshots of the upstream.
    pub snapshots: CounterSet<SnapshotEnd>,
    /// Snapshots of our own replicas.
    pub replica_snapshots: CounterSet<SnapshotEnd>,
    /// Replicas that gave none.
    pub passed_over: CounterSet<Unfit>,
    /// Snapshots of earlier runs that were of use.
    pub recovered: Counter,
    /// Replicas that a link speaks for.
    pub mirrors: AtomicUsize,
    /// Attempts to speak for a replica that failed, and such links that were lost.
    pub mirror_failures: Counter,
    /// Wall-clock time of the last byte of the stream, in milliseconds since 1970; 0 before the first.
    pub last_receive_unix_ms: AtomicU64,
    /// From the request for a snapshot to its first byte: the fork, and what the source waits for before it.
    pub snapshot_wait: Histogram,
    /// From its first byte to its last.
    pub snapshot_transfer: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            connections: CounterSet::new(),
            disconnects: CounterSet::new(),
            received: CounterSet::new(),
            resyncs: CounterSet::new(),
            switches: CounterSet::new(),
            lost_bytes: Counter::new(),
            snapshots: CounterSet::new(),
            replica_snapshots: CounterSet::new(),
            passed_over: CounterSet::new(),
            recovered: Counter::new(),
            mirrors: AtomicUsize::new(0),
            mirror_failures: Counter::new(),
            last_receive_unix_ms: AtomicU64::new(0),
            snapshot_wait: Histogram::new(LONG_SECONDS),
            snapshot_transfer: Histogram::new(LONG_SECONDS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_announced_as_the_master_it_follows() {
        let options = |host: Option<&str>, port| Options {
            login: Live::default(),
            announce_host: host.map(str::to_owned),
            announce_port: port,
            connect_timeout: Duration::ZERO,
            handshake_timeout: Duration::ZERO,
            repl_timeout: Duration::ZERO,
            keep_lost_bytes: 0,
            ack_policy: AckPolicy::Received,
            silent_when_empty: false,
            gather_time: Duration::ZERO,
            snapshot_source: SnapshotSource::Auto,
            snapshot_min_interval: Duration::ZERO,
            guard_interval: Duration::ZERO,
            links: Links::Single,
            identity: String::new(),
        };
        let at = |text: &str| PeerAddress::Tcp(text.parse().unwrap());
        let asked = |host, port, local: &str| options(host, port).is_announced_as(&at("10.0.0.1:6379"), &at(local));
        assert!(asked(None, Some(6379), "10.0.0.1:5000"), "called from the master's own host");
        assert!(asked(Some("10.0.0.1"), Some(6379), "10.0.0.2:5000"));
        assert!(asked(Some("::ffff:10.0.0.1"), Some(6379), "10.0.0.2:5000"));
        assert!(!asked(None, Some(6379), "10.0.0.2:5000"));
        assert!(!asked(Some("10.0.0.1"), Some(6390), "10.0.0.1:5000"));
        assert!(!asked(Some("10.0.0.1"), None, "10.0.0.1:5000"));
    }
}
