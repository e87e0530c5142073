//! What the replica face says of us, gathered when somebody asks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::cli::VERSION;
use crate::front::scene::listed;
use crate::net::Address;
use crate::relay::target::Target;
use crate::relay::{LinkState, Relay};
use crate::wall;
use crate::wire::portrait::{Link, Portrait};
use crate::{front, upstream};

/// Where it is gathered from.
pub(super) struct Sitter {
    pub(super) relay: Arc<Relay>,
    pub(super) target: Arc<Target>,
    pub(super) upstream: Arc<upstream::Metrics>,
    pub(super) front: Arc<front::Metrics>,
    /// See [`Portrait::run_id`].
    pub(super) run_id: String,
    /// Our own, for finding loops.
    pub(super) identity: String,
    /// The face's.
    pub(super) port: u16,
    pub(super) started: Instant,
}

impl Sitter {
    /// How we look now.
    pub(super) fn portrait(&self) -> Portrait {
        let (master_host, master_port) = match self.target.address() {
            Some(Address::Tcp { host, port }) => (host, port),
            Some(Address::Unix(path)) => (path.display().to_string(), 0),
            None => (String::new(), 0),
        };
        let profile = self.target.profile();
        let mut chain = profile.chain;
        chain.push(self.identity.clone());
        let received = self.upstream.last_receive_unix_ms.load(Ordering::Relaxed);
        let silent = Duration::from_millis(wall::unix_ms().saturating_sub(received));
        let link = match self.relay.link() {
            LinkState::Disconnected | LinkState::Held => Link::Down(self.relay.down()),
            LinkState::Connecting => Link::Connecting,
            LinkState::Handshake => Link::Handshake,
            LinkState::Syncing => Link::Syncing,
            LinkState::Streaming if self.target.is_met() => Link::Up,
            // It is about to leave another node. A Sentinel that read `up` would take us for done.
            LinkState::Streaming => Link::Connecting,
        };
        Portrait {
            run_id: self.run_id.clone(),
            redis_version: profile.redis_version.unwrap_or_else(|| "0.0.0".to_owned()),
            valkey_version: profile.valkey_version,
            psyncd_version: VERSION,
            port: self.port,
            uptime: self.started.elapsed(),
            connected_clients: self.front.open.load(Ordering::Relaxed),
            master_host,
            master_port,
            link,
            last_io: (received > 0).then_some(silent),
            line: self.relay.replication(),
            chain,
            replicas: self.relay.status().replicas.iter().map(listed).collect(),
        }
    }
}
