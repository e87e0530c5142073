//! Whether all is well, in numbers: the checks of `/readyz`, and what went wrong so far, by room.

use super::Observer;
use crate::admin::Source;
use crate::downstream::Departure;
use crate::front::Client;
use crate::label;
use crate::metrics::Exposition;
use crate::upstream::{Connected, Disconnect, SnapshotEnd};

/// The checks `/readyz` knows by name.
const CHECKS: [&str; 4] = ["listener", "upstream", "backlog", "journal"];

label! {
    /// Where something went wrong.
    enum Component {
        /// The link to the master.
        Upstream = "upstream",
        /// Links of replicas.
        Replica = "replica",
        /// Clients that are passed through.
        Client = "client",
        /// The journal.
        Journal = "journal",
        /// Snapshots being received.
        Snapshot = "snapshot",
        /// The admin port.
        Admin = "admin",
    }
}

impl Observer {
    pub(super) fn readiness_metrics(&self, e: &mut Exposition) {
        let mut ready = e.gauge(
            "psyncd_ready",
            "1 while the check holds that /readyz?check=NAME asks for; journal holds without one.",
        );
        for check in CHECKS {
            ready = ready.with(&[("check", check)], self.ready(Some(check)).is_ready());
        }
    }

    pub(super) fn error_metrics(&self, e: &mut Exposition) {
        e.counter(
            "psyncd_errors_total",
            "What went wrong, by where: links lost or not established, replicas dropped, clients that found no master, failures of the disk and of snapshots, admin connections. The reasons are in families of their own.",
        )
        .per("component", |component| self.errors(component));
        let mut sentinels = e.gauge(
            "psyncd_sentinels_connected",
            "Sentinels that ask over a connection of their own, known by its name, by the port they ask at.",
        );
        sentinels = sentinels.with(&[("at", "main")], self.front.roster.sentinels());
        sentinels.with(&[("at", "face")], self.hub.sentinels());
    }

    /// Sums of what is counted elsewhere, so that nobody has to count twice. What is ordinary is left out: a link that
    /// left for another node, a replica that closed its connection.
    fn errors(&self, component: Component) -> u64 {
        let (up, down) = (&self.upstream, &self.downstream);
        match component {
            Component::Upstream => {
                // Never a difference of two counters: read one after the other they might seem to fall.
                let failed = up.connections.iter().filter(|(how, _)| *how != Connected::Ok).map(|(_, count)| count);
                let lost = up.disconnects.iter().filter(|(why, _)| *why != Disconnect::Repointed);
                failed.chain(lost.map(|(_, count)| count)).sum()
            }
            Component::Replica => [Departure::Timeout, Departure::Lagging, Departure::Error, Departure::Protocol]
                .map(|why| down.departures.get(why))
                .iter()
                .sum(),
            Component::Client => self.front.clients.get(Client::UpstreamError),
            Component::Journal => self.journal.as_ref().map_or(0, |journal| journal.errors.sum()),
            Component::Snapshot => {
                up.snapshots.get(SnapshotEnd::Failed) + up.replica_snapshots.get(SnapshotEnd::Failed)
            }
            Component::Admin => self.admin_troubles.get(),
        }
    }
}
