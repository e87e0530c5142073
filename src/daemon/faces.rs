//! Builds what stands for a replica, and what looks for the master.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::describe::Sitter;
use super::{announce, options};
use crate::config::Config;
use crate::front::Front;
use crate::front::face::Face;
use crate::front::face::hub::Hub;
use crate::live::Live;
use crate::net::{Address, Network};
use crate::sentinel::{self, Scout};
use crate::upstream::Upstream;
use crate::wire::hello::Hello;

/// Who we are, and where.
pub(super) struct Whereabouts {
    /// Where the front listens.
    pub(super) front: Vec<SocketAddr>,
    /// Where the replica face listens.
    pub(super) face: Vec<SocketAddr>,
    /// See [`crate::wire::portrait::Portrait::run_id`].
    pub(super) run_id: String,
    /// Our own id, for finding loops.
    pub(super) identity: String,
    /// Since when.
    pub(super) started: Instant,
}

/// The replica face, and what it overhears.
pub(super) fn face(
    config: &Config,
    front: &Front,
    upstream: &Upstream,
    here: Whereabouts,
) -> (Face, mpsc::Receiver<Hello>) {
    let (overhearing, hellos) = mpsc::channel(sentinel::HELLOS);
    let Whereabouts { front: ports, face: faces, run_id, identity, started } = here;
    let announced = match (&config.announce_ip, config.announced_port()) {
        (Some(host), Some(port)) => Some(Address::Tcp { host: host.clone(), port }),
        _ => None,
    };
    let own = [ports.as_slice(), &faces].concat();
    let sitter = Sitter {
        relay: Arc::clone(&upstream.relay),
        target: Arc::clone(&upstream.target),
        upstream: Arc::clone(&upstream.metrics),
        front: Arc::clone(&front.metrics),
        run_id,
        identity,
        port: faces.first().map_or(0, SocketAddr::port),
        started,
    };
    let face = Face {
        options: Live::new(options::face(config)),
        access: Arc::clone(&front.access),
        crowd: Arc::clone(&front.crowd),
        target: Arc::clone(&upstream.target),
        describe: Arc::new(move || sitter.portrait()),
        // Nobody waits for the tracker: the next hello comes in two seconds.
        overhear: Arc::new(move |hello| drop(overhearing.try_send(hello))),
        forbid: Arc::new(move |address| announce::forbidden(&own, announced.as_ref(), address)),
        serve_replica: Arc::clone(&front.serve_replica),
        hub: Arc::<Hub>::default(),
        metrics: Arc::default(),
        front: Arc::clone(&front.metrics),
    };
    (face, hellos)
}

/// What looks for the master.
pub(super) fn scout(config: &Config, upstream: &Upstream, network: Arc<dyn Network>) -> Scout {
    let sentinels = config.sentinels.as_ref();
    let ways = sentinel::Options {
        sentinels: sentinels.map_or_else(Vec::new, |sentinels| sentinels.addresses.clone()),
        master: sentinels.map(|sentinels| sentinels.master.clone()),
        login: Live::new(config.sentinel_login()),
        master_login: upstream.options.get().login.clone(),
        timeout: Live::new(config.connect_timeout),
    };
    Scout {
        options: Arc::new(ways),
        network: Arc::clone(&upstream.network),
        sentinels: network,
        relay: Arc::clone(&upstream.relay),
        target: Arc::clone(&upstream.target),
        metrics: Arc::default(),
    }
}
