//! What INFO and ROLE say where psyncd stands in front of a server: the replicas behind it, and a section of its own.

use std::sync::Arc;

use bytes::Bytes;
use tracing::debug;

use super::inspect::{Asked, GivenUp, Rewrite, Rewriter};
use super::{Front, Metrics, Options};
use crate::live::Live;
use crate::net::PeerAddress;
use crate::relay::replicas::ReplicaState;
use crate::relay::status::{ReplicaStatus, Status};
use crate::relay::{LinkState, Relay};
use crate::wire::listing::{Attached, Face, Listed, ListedState, Listing, UNIX_HOST};

/// What one client is told.
pub struct Scene {
    options: Live<Options>,
    relay: Arc<Relay>,
    metrics: Arc<Metrics>,
    /// Who asks.
    client: PeerAddress,
    /// Where its way to the upstream begins, which is where our link's does.
    local: PeerAddress,
}

impl Scene {
    /// For a client whose way to the upstream begins at `local`.
    pub fn new(front: &Front, client: PeerAddress, local: PeerAddress) -> Self {
        let Front { options, relay, metrics, .. } = front;
        Self { options: options.clone(), relay: Arc::clone(relay), metrics: Arc::clone(metrics), client, local }
    }

    fn listing(&self) -> Listing {
        let status = self.relay.status();
        Listing {
            faces: self.faces(),
            link: match status.link {
                LinkState::Syncing | LinkState::Streaming => Attached::Yes,
                LinkState::Disconnected | LinkState::Connecting | LinkState::Handshake | LinkState::Held => {
                    Attached::No
                }
            },
            section: section(&status),
            replicas: status.replicas.iter().map(listed).collect(),
        }
    }

    /// How the upstream knows us: the link by what it announces, and connections that announce nothing.
    fn faces(&self) -> Vec<Face> {
        let here = match &self.local {
            PeerAddress::Tcp(_) => self.local.host(),
            PeerAddress::Unix => UNIX_HOST.to_owned(),
        };
        let options = self.options.get();
        let Options { announce_host, announce_port, .. } = &*options;
        let announced = announce_host.clone().unwrap_or_else(|| here.clone());
        let mut faces = vec![Face { host: announced, port: announce_port.unwrap_or(0) }];
        let bare = Face { host: here, port: 0 };
        if faces[0] != bare {
            faces.push(bare);
        }
        faces
    }
}

impl Rewriter for Scene {
    fn rewrite(&self, asked: Asked, reply: &[u8]) -> Option<Bytes> {
        let (rewritten, command) = match asked {
            Asked::Info { psyncd } => (self.listing().rewrite_info(reply, psyncd), Rewrite::Info),
            Asked::Role => (self.listing().rewrite_role(reply), Rewrite::Role),
        };
        if rewritten.is_some() {
            self.metrics.rewrites.increment(command);
        }
        rewritten
    }

    fn gave_up(&self, why: GivenUp) {
        self.metrics.given_up.increment(why);
        debug!(peer = %self.client, %why, "replies to a client are no longer looked at");
    }
}

/// How a server would list it.
pub fn listed(replica: &ReplicaStatus) -> Listed {
    Listed {
        face: Face { host: replica.host.clone(), port: replica.port },
        state: match replica.state {
            ReplicaState::Waiting => ListedState::WaitBgsave,
            ReplicaState::Snapshot => ListedState::SendBulk,
            // Servers call it online before it has acknowledged anything, too.
            ReplicaState::Catchup | ReplicaState::Online => ListedState::Online,
        },
        offset: replica.acked,
        lag_seconds: replica.silent.as_secs(),
    }
}

/// The lines of the section Psyncd.
fn section(status: &Status) -> String {
    let (replid, offset, first, coverage) = match &status.line {
        Some(line) => {
            (line.replid.to_string(), line.window.end.get(), line.window.start.get(), line.coverage.as_secs())
        }
        None => (String::new(), 0, 0, 0),
    };
    let online = status.replicas.iter().filter(|replica| replica.state == ReplicaState::Online).count();
    format!(
        "psyncd_version:{}\r\npsyncd_upstream_link:{}\r\npsyncd_replid:{replid}\r\npsyncd_offset:{offset}\r\n\
         psyncd_first_offset:{first}\r\npsyncd_coverage_seconds:{coverage}\r\npsyncd_replicas:{}\r\n\
         psyncd_replicas_online:{online}\r\n",
        env!("CARGO_PKG_VERSION"),
        status.link.as_str(),
        status.replicas.len(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repl::Offset;
    use std::time::Duration;

    #[test]
    fn a_replica_is_listed_as_a_server_would() {
        let mut replica = ReplicaStatus {
            id: 0,
            waits: None,
            priority: None,
            snapshot_length: None,
            name: "replica-1:7001".into(),
            host: "replica-1".into(),
            port: 7001,
            peer: "127.0.0.1:5".into(),
            version: None,
            state: ReplicaState::Waiting,
            sent: Offset::new(9),
            acked: Offset::new(7),
            lag_bytes: 2,
            lag: Duration::ZERO,
            remaining_bytes: None,
            silent: Duration::from_millis(2900),
            attached: Duration::ZERO,
            stream_bytes: 0,
            snapshot_bytes: 0,
        };
        let states = ReplicaState::ALL.map(|state| {
            replica.state = state;
            listed(&replica).state
        });
        assert_eq!(states, [ListedState::WaitBgsave, ListedState::SendBulk, ListedState::Online, ListedState::Online]);
        let listed = listed(&replica);
        assert_eq!((listed.face, listed.lag_seconds), (Face { host: "replica-1".into(), port: 7001 }, 2));
        assert_eq!(listed.offset, Offset::new(7));
    }
}
