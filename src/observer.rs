//! What operators see: metrics, status and readiness, gathered from the components when somebody asks.

mod health;
mod shown;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::access::Access;
use crate::admin::{Check, Readiness, Source};
use crate::cli::{REVISION, VERSION};
use crate::config::Shown;
use crate::config::reloads::Reloads;
use crate::counters::{Counter, Label};
use crate::downstream::senders::{Overview, Senders};
use crate::events::Events;
use crate::front::face::hub::Hub;
use crate::live::Live;
use crate::metrics::Exposition;
use crate::net::tls::{self, Tls};
use crate::relay::replicas::{ReplicaState, Waits};
use crate::relay::status::{LineStatus, ReplicaStatus, SnapshotFile, Status};
use crate::relay::target::Target;
use crate::relay::{LinkState, Relay};
use crate::upstream::guard::{Guard, GuardStatus};
use crate::verdict::judge_replica;
use crate::wall;
use crate::wire::info::Role;
use crate::{assist, downstream, front, scribe, sentinel, upstream};

/// The backlog is worth relying on when it reaches back this far.
const COVERAGE: Duration = Duration::from_secs(60);

/// Most clients that are listed one by one.
const CLIENTS_LISTED: usize = 1000;

/// Everything there is to see.
pub struct Observer {
    /// Whom we follow.
    pub target: Arc<Target>,
    /// What is served.
    pub relay: Arc<Relay>,
    /// Toward the master.
    pub upstream: Arc<upstream::Metrics>,
    /// Toward the replicas.
    pub downstream: Arc<downstream::Metrics>,
    /// Turns at sending snapshots.
    pub senders: Arc<Senders>,
    /// Bounds toward the replicas, of which the rate of snapshots is shown.
    pub bounds: Live<downstream::Options>,
    /// Clients.
    pub front: Arc<front::Metrics>,
    /// At planned failovers.
    pub assist: Arc<assist::Metrics>,
    /// At the replica face, where there is one.
    pub face: Option<Arc<front::face::Metrics>>,
    /// Who is connected to it.
    pub hub: Arc<Hub>,
    /// Connections of the admin port that could not be accepted or served.
    pub admin_troubles: Counter,
    /// Toward the Sentinels, where any are asked or heard.
    pub sentinel: Option<Arc<sentinel::Metrics>>,
    /// TLS, where somebody speaks it.
    pub tls: Option<Arc<Tls>>,
    /// Who may have the data.
    pub access: Arc<Access>,
    /// Toward the disk, where there is a journal.
    pub journal: Option<Arc<scribe::Metrics>>,
    /// Who keeps the replicas from a master that lost its data.
    pub guard: Arc<Guard>,
    /// Whether we are going away.
    pub draining: Arc<AtomicBool>,
    /// Since when.
    pub started: Instant,
    /// What happened lately.
    pub events: Events,
    /// What was set, secrets masked.
    pub settings: Live<Arc<[Shown]>>,
    /// The last reload.
    pub reloads: Arc<Reloads>,
}

impl Source for Observer {
    fn metrics(&self) -> String {
        let status = self.relay_status();
        let mut e = Exposition::new();
        let build = [("version", VERSION), ("revision", REVISION)];
        e.gauge("psyncd_build_info", "Constant 1, labelled with the version.").with(&build, 1u64);
        e.gauge(
            "psyncd_config_last_reload_successful",
            "1 while the configuration that was read last, at the start or on SIGHUP, is in force; 0 when it did not hold and the one before it is.",
        )
        .value(u64::from(self.reloads.is_good.load(Ordering::Relaxed)));
        e.gauge(
            "psyncd_config_last_reload_timestamp_seconds",
            "When the configuration was read last, whether it held or not.",
        )
        .value(self.reloads.at_unix_ms.load(Ordering::Relaxed) as f64 / 1e3);
        e.gauge(
            "psyncd_config_last_reload_success_timestamp_seconds",
            "When the configuration that is in force was read, at the start or by a reload.",
        )
        .value(self.reloads.good_at_unix_ms.load(Ordering::Relaxed) as f64 / 1e3);
        self.readiness_metrics(&mut e);
        self.error_metrics(&mut e);
        self.upstream_metrics(&mut e, &status);
        self.guard_metrics(&mut e);
        self.backlog_metrics(&mut e, &status);
        snapshot_metrics(&mut e, &status, &self.upstream);
        self.sender_metrics(&mut e);
        self.replica_metrics(&mut e, &status);
        self.client_metrics(&mut e);
        self.face_metrics(&mut e);
        self.sentinel_metrics(&mut e);
        self.tls_metrics(&mut e);
        e.process();
        e.render()
    }

    fn verdict(&self) -> String {
        let text = self.judged(&self.relay_status()).text;
        match self.reloads.is_good.load(Ordering::Relaxed) {
            true => text,
            false => format!("{text}; the configuration read last does not hold, an older one is in force"),
        }
    }

    fn status(&self) -> Value {
        let status = self.relay_status();
        let turns = self.senders.overview();
        let judged = self.judged(&status);
        json!({
            "version": VERSION,
            "now_unix_ms": wall::unix_ms(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "draining": self.draining.load(Ordering::Relaxed),
            "verdict": shown::verdict(&judged),
            "upstream": {
                "address": self.target.name(),
                "link": status.link.as_str(),
                "grade": judged.link.as_str(),
                "down_seconds": self.relay.down().map(|down| down.as_secs_f64()),
                "silent_seconds": self.upstream_silence().map(|silent| silent.as_secs_f64()),
                "sentinel_epoch": self.target.epoch(),
            },
            "guard": guard(&self.guard),
            "history": status.line.as_ref().map(history),
            "backlog": status.line.as_ref().map(|line| json!({
                "first_offset": line.window.start.get(),
                "head_offset": line.window.end.get(),
                "used_bytes": line.window.len(),
                "memory": {
                    "first_offset": line.memory.start.get(),
                    "used_bytes": line.memory.len(),
                    "limit_bytes": status.backlog_limit_bytes,
                    "evicted_bytes": status.backlog_evicted_bytes,
                },
                "journal": self.journal.as_ref().map(|journal| json!({
                    "first_offset": line.archived.map(|held| held.start.get()),
                    "head_offset": line.archived.map(|held| held.end.get()),
                    "durable_offset": journal.durable.load(Ordering::Relaxed),
                    "limit_bytes": status.journal_limit_bytes,
                    "evicted_bytes": journal.evicted_bytes.get(),
                    "degraded": journal.degraded.load(Ordering::Relaxed),
                    "gaps": journal.gaps.get(),
                })),
                "coverage_seconds": line.coverage.as_secs_f64(),
                "bytes_per_second": line.rate,
                // JSON knows no infinity: null is for ever.
                "runway_seconds": line.runway_seconds.is_finite().then_some(line.runway_seconds),
            })),
            "snapshot": {
                "ready": status.snapshot.ready.as_ref().map(snapshot),
                "arriving": status.snapshot.arriving.as_ref().map(snapshot),
                "requested": status.snapshot.requested,
            },
            "max_replicas": status.max_replicas,
            "replicas_at_head": at_head(&status),
            // Whichever is promoted, the others continue.
            "all_at_head": at_head(&status) == status.replicas.len(),
            "senders": { "sending": turns.sending, "limit": turns.limit, "waiting": turns.waiting.len() },
            "sender_rate_limit_bytes": self.bounds.get().sender_rate_limit,
            "replicas": status.replicas.iter().map(|row| replica(row, &turns, status.line.as_ref().map_or(0.0, |line| line.rate))).collect::<Vec<_>>(),
            "resyncs": self.resyncs(),
            "clients": self.front.passing.load(Ordering::Relaxed),
        })
    }

    fn events(&self, after: u64) -> Value {
        self.events.after(after)
    }

    fn settings(&self) -> Value {
        self.settings_document()
    }

    fn clients(&self) -> Value {
        let (count, rows) = self.front.roster.list(CLIENTS_LISTED);
        let clients = rows.iter().map(|row| {
            json!({
                "peer": row.peer.to_string(),
                "connected_seconds": row.since.elapsed().as_secs_f64(),
                "to_upstream_bytes": row.to_upstream.load(Ordering::Relaxed),
                "to_client_bytes": row.to_client.load(Ordering::Relaxed),
            })
        });
        json!({ "count": count, "clients": clients.collect::<Vec<_>>() })
    }

    fn offset(&self, ago: Duration) -> Option<u64> {
        self.relay.offset_ago(ago).map(|offset| offset.get())
    }

    fn trouble(&self) {
        self.admin_troubles.increment();
    }

    fn ready(&self, check: Option<&str>) -> Readiness {
        let status = self.relay_status();
        let listener = Check {
            name: "listener",
            obstacle: self.draining.load(Ordering::Relaxed).then(|| "going away".to_owned()),
        };
        let upstream = |obstacle: bool| Check {
            name: "upstream",
            obstacle: obstacle.then(|| format!("{} is {}", self.target.name(), status.link.as_str())),
        };
        let streaming = status.link == LinkState::Streaming;
        let degraded = self.journal.as_ref().is_some_and(|journal| journal.degraded.load(Ordering::Relaxed));
        let checks = match check {
            // A node that was never seen may be waiting for us to be ready.
            None => vec![listener, upstream(status.line.is_some() && status.link == LinkState::Disconnected)],
            Some("listener") => vec![listener],
            Some("upstream") => vec![upstream(!streaming)],
            Some("backlog") => {
                let coverage = status.line.as_ref().map_or(Duration::ZERO, |line| line.coverage);
                let obstacle = (coverage < COVERAGE)
                    .then(|| format!("covers {:.0} of {} seconds", coverage.as_secs_f64(), COVERAGE.as_secs()));
                vec![Check { name: "backlog", obstacle }]
            }
            // Where there is none, none is missing.
            Some("journal") => vec![Check {
                name: "journal",
                obstacle: degraded
                    .then(|| "the disk failed or is too slow: memory is all the backlog there is".to_owned()),
            }],
            Some(_) => vec![],
        };
        Readiness { checks }
    }
}

impl Observer {
    /// The relay now. A link that is about to leave for another node is none to that.
    fn relay_status(&self) -> Status {
        let mut status = self.relay.status();
        if status.link == LinkState::Streaming && !self.target.is_met() {
            status.link = LinkState::Connecting;
        }
        status
    }

    /// All zero where nobody speaks it, so that what alerts on them need not know.
    fn tls_metrics(&self, e: &mut Exposition) {
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

    fn upstream_metrics(&self, e: &mut Exposition, status: &Status) {
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

    fn backlog_metrics(&self, e: &mut Exposition, status: &Status) {
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

    fn guard_metrics(&self, e: &mut Exposition) {
        let status = self.guard.status();
        e.gauge("psyncd_wipe_guard_active", "1 while the replicas are kept from a master that lost its data.")
            .value(status.is_active());
        e.gauge("psyncd_wipe_guard_known_keys", "Keys the master had when they were last counted.")
            .value(status.known.and_then(|known| known.keys).unwrap_or(0));
        e.counter("psyncd_wipe_guard_outcomes_total", "What became of masters that lost their data.")
            .each("outcome", &self.guard.outcomes);
    }

    fn replica_metrics(&self, e: &mut Exposition, status: &Status) {
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

    fn sender_metrics(&self, e: &mut Exposition) {
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

    fn face_metrics(&self, e: &mut Exposition) {
        let Some(face) = &self.face else { return };
        e.gauge("psyncd_face_connections", "Connections open on the replica face, replicas not included.")
            .value(face.open.load(Ordering::Relaxed));
        e.counter("psyncd_face_published_total", "Messages published at the replica face, by Sentinels.")
            .value(face.published.get());
        e.counter("psyncd_face_refused_total", "What the replica face would not do.").each("what", &face.refused);
    }

    fn sentinel_metrics(&self, e: &mut Exposition) {
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

    fn client_metrics(&self, e: &mut Exposition) {
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

fn snapshot_metrics(e: &mut Exposition, status: &Status, upstream: &upstream::Metrics) {
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
fn at_head(status: &Status) -> usize {
    let Some(line) = &status.line else { return 0 };
    status.replicas.iter().filter(|r| r.state == ReplicaState::Online && r.acked == line.window.end).count()
}

/// One row per announced address, the first that came; two replicas that announce the same one share a series.
fn unique(replicas: &[ReplicaStatus]) -> Vec<&ReplicaStatus> {
    let mut names = BTreeSet::new();
    replicas.iter().filter(|replica| names.insert(replica.name.as_str())).collect()
}

fn history(line: &LineStatus) -> Value {
    json!({
        "replid": line.replid.as_str(),
        "ancestors": line.ancestors.iter().map(|a| json!({ "replid": a.id.as_str(), "boundary": a.boundary.get() })).collect::<Vec<_>>(),
    })
}

fn guard(guard: &Guard) -> Value {
    let status = guard.status();
    let GuardStatus { rules, known, held } = status;
    json!({
        "mode": rules.mode.as_str(),
        "active": status.is_active(),
        "known": known.map(|known| json!({
            "keys": known.keys,
            "rdb_bytes": known.rdb_bytes,
            "replid": known.position.map(|position| position.id.to_string()),
            "offset": known.position.map(|position| position.offset.get()),
        })),
        "held": held.map(|held| json!({
            "unit": held.loss.unit.as_str(),
            "before": held.loss.before,
            "now": held.loss.now,
            "master": held.identity.to_string(),
            "since_unix_ms": held.since_unix_ms,
            "held_seconds": held.age.as_secs(),
            "ruling": held.ruling.as_str(),
            "release": guard.command("release"),
            "reject": guard.command("reject"),
        })),
    })
}

fn snapshot(file: &SnapshotFile) -> Value {
    json!({
        "replid": file.position.id.as_str(),
        "offset": file.position.offset.get(),
        "format": file.format.to_string(),
        "received_bytes": file.received,
        "length_bytes": file.length,
    })
}

fn replica(replica: &ReplicaStatus, turns: &Overview, rate: f64) -> Value {
    let verdict = judge_replica(replica, rate);
    let ahead = turns.waiting.iter().position(|row| *row == replica.id);
    json!({
        "replica": replica.name,
        "peer": replica.peer,
        "version": replica.version,
        "state": replica.state.as_str(),
        "grade": verdict.grade.as_str(),
        "says": verdict.text,
        "falls_off_in_seconds": verdict.falls_off_in.map(|left| left.as_secs_f64()),
        "waits_for": replica.waits.map(|what| what.as_str()),
        "queue_position": ahead.map(|ahead| ahead + 1),
        "priority": replica.priority,
        "sent_offset": replica.sent.get(),
        "acked_offset": replica.acked.get(),
        "lag_bytes": replica.lag_bytes,
        "lag_seconds": replica.lag.as_secs_f64(),
        "backlog_remaining_bytes": replica.remaining_bytes,
        "silent_seconds": replica.silent.as_secs_f64(),
        "attached_seconds": replica.attached.as_secs_f64(),
        "sent_stream_bytes": replica.stream_bytes,
        "sent_snapshot_bytes": replica.snapshot_bytes,
        "snapshot_bytes": replica.snapshot_length,
    })
}
