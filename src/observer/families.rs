//! The families of metrics, room by room. Each is gathered when it is asked for.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Observer;
use crate::counters::Label;
use crate::downstream::senders::Overview;
use crate::metrics::Exposition;
use crate::net::tls;
use crate::relay::LinkState;
use crate::relay::replicas::{ReplicaState, Waits};
use crate::relay::status::{ReplicaStatus, Status};
use crate::upstream;
use crate::wire::info::Role;

impl Observer {
    /// All zero where nobody speaks it, so that what alerts on them need not know.
    pub(super) fn tls_metrics(&self, e: &mut Exposition) {
        let none = tls::Metrics::default();
        let metrics = self.tls.as_ref().map_or(&none, |tls| &tls.metrics);
        let mut handshakes = e.counter(
            "psyncd_tls_handshakes_total",
            "TLS handshakes, by who called whom (accepted or dialed) and how they ended.",
        );
        for (side, set) in [("accepted", &metrics.accepted), ("dialed", &metrics.dialed)] {
            handshakes = handshakes.each_by(set, |r| [("side", side), ("result", Label::as_str(&r))]);
        }
        e.counter("psyncd_tls_reloads_total", "Times certificates were read again, by result.")
            .each("result", &metrics.reloads);
        let mut expiries =
            e.gauge("psyncd_tls_certificate_expiry_timestamp_seconds", "When a certificate of psyncd's own expires.");
        for (role, not_after) in self.tls.as_ref().map(|tls| tls.expiries()).unwrap_or_default() {
            expiries = expiries.with(&[("role", role)], not_after as f64);
        }
    }

    pub(super) fn upstream_metrics(&self, e: &mut Exposition, status: &Status) {
        let replid = status.line.as_ref().map_or_else(String::new, |line| line.replid.to_string());
        let address = self.target.name();
        let profile = self.target.profile();
        let (server, version) = match (&profile.valkey_version, &profile.redis_version) {
            (Some(version), _) => ("valkey", Some(version.as_str())),
            (None, Some(version)) => ("redis", Some(version.as_str())),
            (None, None) => ("", None),
        };
        e.gauge(
            "psyncd_upstream_info",
            "Constant 1, labelled with the node that is followed, what it said it is, and the current replication id.",
        )
        .with(
            &[
                ("addr", &address),
                ("role", profile.role.map_or("", Role::as_str)),
                ("server", server),
                ("server_version", version.unwrap_or_default()),
                ("replid", &replid),
            ],
            1u64,
        );
        e.gauge("psyncd_upstream_link_up", "1 while the stream of the upstream is being received.")
            .value(status.link == LinkState::Streaming);
        let mut states =
            e.gauge("psyncd_upstream_link_state", "The state of the link to the upstream: 1 for the one it is in.");
        for state in LinkState::ALL {
            states = states.with(&[("state", state.as_str())], status.link == state);
        }
        let last = self.upstream.last_receive_unix_ms.load(Ordering::Relaxed);
        e.gauge(
            "psyncd_upstream_last_receive_timestamp_seconds",
            "When a byte of the stream last arrived, the master's PINGs included.",
        )
        .value(last as f64 / 1000.0);
        e.counter("psyncd_upstream_connections_total", "Attempts to establish the link, by result.")
            .each("result", &self.upstream.connections);
        e.counter("psyncd_upstream_disconnects_total", "Ends of established links, by reason.")
            .each("reason", &self.upstream.disconnects);
        e.counter("psyncd_upstream_repoints_total", "Times another node was followed, by who had it so.")
            .each("source", &self.target.repoints);
        e.counter("psyncd_upstream_received_bytes_total", "Bytes received from the upstream, by kind.")
            .each("kind", &self.upstream.received);
        e.counter("psyncd_upstream_resyncs_total", "How psyncd's own link got its history.")
            .each_by(&self.upstream.resyncs, |r| [("kind", r.kind()), ("reason", crate::counters::Label::as_str(&r))]);
        e.gauge(
            "psyncd_upstream_mirrors",
            "Replicas that a link to the upstream speaks for (upstream-links mirrored).",
        )
        .value(self.upstream.mirrors.load(Ordering::Relaxed));
        e.counter(
            "psyncd_upstream_mirror_failures_total",
            "Links that spoke for a replica and were lost, and attempts at one that failed.",
        )
        .value(self.upstream.mirror_failures.get());
        e.counter(
            "psyncd_history_switches_total",
            "Times the master's history went on otherwise than ours, by what became of ours.",
        )
        .each("outcome", &self.upstream.switches);
        e.counter(
            "psyncd_lost_writes_bytes_total",
            "Bytes of the stream that a promoted master never had, and that were cut off for it.",
        )
        .value(self.upstream.lost_bytes.get());
        let ends = [("upstream", &self.upstream.snapshots), ("replica", &self.upstream.replica_snapshots)];
        let mut snapshots = e.counter(
            "psyncd_snapshots_total",
            "Snapshots asked for, by who gave them and result; aborted ones were of another history or falsely announced.",
        );
        for (source, set) in ends {
            snapshots =
                snapshots.each_by(set, |r| [("source", source), ("result", crate::counters::Label::as_str(&r))]);
        }
        e.counter("psyncd_snapshot_sources_rejected_total", "Replicas that did not give a snapshot, by reason.")
            .each("reason", &self.upstream.passed_over);
        e.counter(
            "psyncd_master_forks_averted_total",
            "Snapshots that were needed and did not make the master fork, by where they came from.",
        )
        .with(&[("mechanism", "replica_snapshot")], self.upstream.replica_snapshots.get(upstream::SnapshotEnd::Ok))
        .with(&[("mechanism", "recovered_snapshot")], self.upstream.recovered.get());
    }

    pub(super) fn backlog_metrics(&self, e: &mut Exposition, status: &Status) {
        let (memory, disk) = ([("tier", "memory")], [("tier", "disk")]);
        let line = status.line.as_ref();
        e.gauge("psyncd_backlog_limit_bytes", "Bytes of the stream that may be held, by where.")
            .with(&memory, status.backlog_limit_bytes)
            .with(&disk, status.journal_limit_bytes);
        let used = |span: Option<crate::repl::Span>| span.map_or(0, |span| span.len());
        e.gauge("psyncd_backlog_used_bytes", "Bytes of the stream that are held, by where; the newest are in both.")
            .with(&memory, used(line.map(|line| line.memory)))
            .with(&disk, used(line.and_then(|line| line.archived)));
        e.gauge("psyncd_backlog_first_offset_bytes", "The oldest offset a replica can continue from.")
            .value(line.map_or(0, |line| line.window.start.get()));
        e.gauge(
            "psyncd_backlog_coverage_seconds",
            "Age of the oldest byte held: how long a replica may have been away.",
        )
        .value(line.map_or(Duration::ZERO, |line| line.coverage));
        e.gauge(
            "psyncd_backlog_runway_seconds",
            "How long a replica may be away from now on, at the rate of the last five minutes.",
        )
        .value(line.map_or(0.0, |line| line.runway_seconds));
        let (evicted, offset) = match &self.journal {
            Some(journal) => (journal.evicted_bytes.get(), journal.durable.load(Ordering::Relaxed)),
            None => (0, 0),
        };
        e.counter("psyncd_backlog_evicted_bytes_total", "Bytes dropped for newer ones, by where from.")
            .with(&memory, status.backlog_evicted_bytes)
            .with(&disk, evicted);
        e.gauge("psyncd_replication_offset_bytes", "How far the stream has come, and how far it is durable here.")
            .with(&[("point", "received")], line.map_or(0, |line| line.window.end.get()))
            .with(&[("point", "durable")], offset);
        let Some(journal) = &self.journal else { return };
        e.counter("psyncd_journal_errors_total", "Failures of the disk the journal is on, by what was tried.")
            .each("op", &journal.errors);
        e.counter(
            "psyncd_journal_gaps_total",
            "Times the disk was too slow for the stream and the journal began anew.",
        )
        .value(journal.gaps.get());
        e.gauge("psyncd_journal_degraded", "1 while the journal does not follow the stream: memory is all there is.")
            .value(journal.degraded.load(Ordering::Relaxed));
        e.gauge("psyncd_journal_free_bytes", "Bytes free on the disk the journal is on.")
            .value(journal.free_bytes.load(Ordering::Relaxed));
        e.histogram("psyncd_journal_fsync_duration_seconds", "How long making the journal durable took.")
            .distribution(&[], &journal.fsync);
    }

    pub(super) fn guard_metrics(&self, e: &mut Exposition) {
        let status = self.guard.status();
        e.gauge("psyncd_wipe_guard_active", "1 while the replicas are kept from a master that lost its data.")
            .value(status.is_active());
        e.gauge("psyncd_wipe_guard_known_keys", "Keys the master had when they were last counted.")
            .value(status.known.and_then(|known| known.keys).unwrap_or(0));
        e.counter("psyncd_wipe_guard_outcomes_total", "What became of masters that lost their data.")
            .each("outcome", &self.guard.outcomes);
    }

    pub(super) fn replica_metrics(&self, e: &mut Exposition, status: &Status) {
        let mut counts = e.gauge("psyncd_replicas", "Attached replicas, by state.");
        for state in ReplicaState::ALL {
            let count = status.replicas.iter().filter(|r| r.state == state).count();
            counts = counts.with(&[("state", state.as_str())], count);
        }
        e.gauge("psyncd_replicas_at_head", "Replicas that have acknowledged everything there is.")
            .value(at_head(status));
        let named = unique(&status.replicas);
        let mut per = |name: &'static str, help: &'static str, value: &dyn Fn(&ReplicaStatus) -> Option<f64>| {
            let mut family = e.gauge(name, help);
            for replica in &named {
                if let Some(value) = value(replica) {
                    family = family.with(&[("replica", &replica.name)], value);
                }
            }
        };
        per("psyncd_replica_online", "1 while the replica acknowledges the live stream.", &|r| {
            Some(f64::from(u8::from(r.state == ReplicaState::Online)))
        });
        per(
            "psyncd_replica_lag_bytes",
            "Bytes between the head and the replica's last acknowledgement, which comes once a second.",
            &|r| Some(r.lag_bytes as f64),
        );
        per(
            "psyncd_replica_lag_seconds",
            "Age of the oldest byte the replica has not acknowledged: seconds of data, 0 when it has everything.",
            &|r| Some(r.lag.as_secs_f64()),
        );
        per(
            "psyncd_replica_acked_offset_bytes",
            "The replica's last acknowledgement.",
            &|r| Some(r.acked.get() as f64),
        );
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        per(
            "psyncd_replica_last_ack_timestamp_seconds",
            "When the replica last gave a sign of life: an acknowledgement or an empty line.",
            &|r| Some(now.saturating_sub(r.silent).as_secs_f64()),
        );
        per(
            "psyncd_replica_backlog_remaining_bytes",
            "Bytes that can still arrive before the replica falls off the backlog.",
            &|r| r.remaining_bytes.map(|bytes| bytes as f64),
        );
        let mut sent =
            e.counter("psyncd_replica_sent_bytes_total", "Bytes sent to the replica since it attached, by kind.");
        for replica in &named {
            sent = sent
                .with(&[("replica", &replica.name), ("kind", "stream")], replica.stream_bytes)
                .with(&[("replica", &replica.name), ("kind", "snapshot")], replica.snapshot_bytes);
        }
        let d = &self.downstream;
        e.counter("psyncd_downstream_sent_bytes_total", "Bytes sent to all replicas, by kind.").each("kind", &d.sent);
        e.counter("psyncd_resyncs_total", "Resyncs of replicas, by kind and reason.")
            .each_by(&d.resyncs, |a| [("kind", a.kind()), ("reason", crate::counters::Label::as_str(&a))]);
        e.histogram(
            "psyncd_resync_duration_seconds",
            "From a replica's request until it is online: told to continue, or the snapshot it was sent loaded.",
        )
        .distribution(&[("kind", "partial")], &d.partial)
        .distribution(&[("kind", "full")], &d.full);
        e.counter(
            "psyncd_full_resyncs_averted_total",
            "Resyncs that cost no data set, or none of the master's, where a plain server in this place would have sent one, by what made the difference.",
        )
        .each("mechanism", &d.averted);
        e.counter("psyncd_replica_disconnects_total", "Ends of attached replicas' connections, by reason.")
            .each("reason", &d.departures);
        e.counter("psyncd_replica_rejects_total", "Replicas turned away before they were served, by reason.")
            .each("reason", &d.rejections);
        e.counter(
            "psyncd_replica_acks_beyond_head_total",
            "Acknowledgements of bytes that do not exist, which were not believed.",
        )
        .value(d.acks_beyond_head.get());
    }

    pub(super) fn sender_metrics(&self, e: &mut Exposition) {
        let Overview { sending, limit, .. } = self.senders.overview();
        e.gauge("psyncd_snapshot_senders", "Replicas that are being sent a snapshot.").value(sending);
        e.gauge("psyncd_snapshot_senders_limit", "How many may be sent one at once.").value(limit);
        e.gauge(
            "psyncd_snapshot_send_limit_bytes",
            "Bytes a second that all snapshots being sent may use together, 0 for no limit.",
        )
        .value(self.bounds.get().sender_rate_limit.unwrap_or(0));
        e.counter("psyncd_snapshot_served_total", "Snapshots sent to replicas, whole.")
            .value(self.downstream.snapshots.get());
        e.counter("psyncd_snapshot_backoffs_total", "Replicas held back because their last full resyncs failed.")
            .value(self.downstream.backoffs.get());
    }

    pub(super) fn face_metrics(&self, e: &mut Exposition) {
        let Some(face) = &self.face else { return };
        e.gauge("psyncd_face_connections", "Connections open on the replica face, replicas not included.")
            .value(face.open.load(Ordering::Relaxed));
        e.counter("psyncd_face_published_total", "Messages published at the replica face, by Sentinels.")
            .value(face.published.get());
        e.counter("psyncd_face_refused_total", "What the replica face would not do.").each("what", &face.refused);
    }

    pub(super) fn sentinel_metrics(&self, e: &mut Exposition) {
        let Some(sentinel) = &self.sentinel else { return };
        e.gauge(
            "psyncd_sentinels_reachable",
            "Sentinels that answered when they were last asked, or were heard lately.",
        )
        .value(sentinel.reachable.load(Ordering::Relaxed));
        e.gauge("psyncd_sentinel_epoch", "The configuration the Sentinels agreed on; it never falls. 0 before any.")
            .value(self.target.epoch().unwrap_or(0));
        e.counter("psyncd_sentinel_checks_total", "Nodes that were asked whether they are masters, by answer.")
            .each("verdict", &sentinel.checks);
        e.counter("psyncd_sentinel_ignored_total", "What Sentinels said and psyncd did not follow, by reason.")
            .each("reason", &sentinel.ignored);
    }

    pub(super) fn client_metrics(&self, e: &mut Exposition) {
        let f = &self.front;
        e.gauge("psyncd_client_connections", "Clients being passed through.").value(f.passing.load(Ordering::Relaxed));
        e.gauge("psyncd_connections", "Connections open on the main port, replicas included.")
            .value(f.open.load(Ordering::Relaxed));
        e.counter(
            "psyncd_replica_judgements_total",
            "Times it was judged whether somebody may replicate, by how it ended.",
        )
        .each("verdict", &self.access.judged);
        e.counter("psyncd_client_connections_total", "Clients' connections, by result.").each("result", &f.clients);
        e.counter("psyncd_client_bytes_total", "Bytes passed through for clients, by direction.")
            .each("direction", &f.bytes);
        e.counter("psyncd_rewrites_total", "Replies passed on with the replicas behind psyncd in them, by command.")
            .each("command", &f.rewrites);
        e.counter(
            "psyncd_rewrite_given_up_total",
            "Clients whose replies pass unseen from some point on, by reason; too_long is a single reply that did.",
        )
        .each("reason", &f.given_up);
        e.counter(
            "psyncd_failover_assists_total",
            "Promotions of the upstream that were held for a moment, by result.",
        )
        .each("result", &self.assist.assists);
        e.counter(
            "psyncd_failover_fences_total",
            "Times that another psyncd asked to stop the upstream's writes for a promotion, by result.",
        )
        .each("result", &self.assist.fences);
        e.histogram("psyncd_client_connect_duration_seconds", "How long dialing the upstream for a client took.")
            .distribution(&[], &f.connect);
    }
}

pub(super) fn snapshot_metrics(e: &mut Exposition, status: &Status, upstream: &upstream::Metrics) {
    let snapshot = &status.snapshot;
    let current = match (&snapshot.arriving, snapshot.requested, &snapshot.ready) {
        (Some(_), _, _) => "receiving",
        (None, true, _) => "requested",
        (None, false, Some(_)) => "ready",
        (None, false, None) => "none",
    };
    let mut states = e.gauge("psyncd_snapshot_state", "What there is of a snapshot: 1 for the state it is in.");
    for state in ["none", "requested", "receiving", "ready"] {
        states = states.with(&[("state", state)], state == current);
    }
    let shown = snapshot.arriving.as_ref().or(snapshot.ready.as_ref());
    e.gauge("psyncd_snapshot_received_bytes", "Bytes received of the snapshot that arrives, or of the one there is.")
        .value(shown.map_or(0, |file| file.received));
    e.gauge("psyncd_snapshot_size_bytes", "Its size, 0 while that is not known.")
        .value(shown.and_then(|file| file.length).unwrap_or(0));
    let taken = e.gauge(
        "psyncd_snapshot_timestamp_seconds",
        "When the data set of the complete snapshot was the master's: now, while nothing was written since. None without one.",
    );
    if let Some(age) = snapshot.ready_age {
        taken.value(SystemTime::now() - age);
    }
    e.histogram(
        "psyncd_snapshot_duration_seconds",
        "How long snapshots took to arrive: until the first byte (wait: the fork, and what comes before it), from then on (transfer).",
    )
    .distribution(&[("phase", "wait")], &upstream.snapshot_wait)
    .distribution(&[("phase", "transfer")], &upstream.snapshot_transfer);
    let mut waiters = e.gauge("psyncd_snapshot_waiters", "Replicas that wait to be answered, by what they wait for.");
    for what in Waits::ALL {
        let count = status.replicas.iter().filter(|r| r.waits == Some(*what)).count();
        waiters = waiters.with(&[("for", what.as_str())], count);
    }
}

/// Replicas that have everything there is.
pub(super) fn at_head(status: &Status) -> usize {
    let Some(line) = &status.line else { return 0 };
    status.replicas.iter().filter(|r| r.state == ReplicaState::Online && r.acked == line.window.end).count()
}

/// One row per announced address, the first that came; two replicas that announce the same one share a series.
fn unique(replicas: &[ReplicaStatus]) -> Vec<&ReplicaStatus> {
    let mut names = BTreeSet::new();
    replicas.iter().filter(|replica| names.insert(replica.name.as_str())).collect()
}
