//! What operators see: metrics, status and readiness, gathered from the components when somebody asks.

mod document;
mod families;
mod health;
mod shown;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::access::Access;
use crate::admin::{Check, Readiness, Source};
use crate::cli::{REVISION, VERSION};
use crate::config::Shown;
use crate::config::reloads::Reloads;
use crate::counters::{Counter, Label};
use crate::downstream::senders::Senders;
use crate::events::Events;
use crate::front::face::hub::Hub;
use crate::live::Live;
use crate::metrics::Exposition;
use crate::net::tls::Tls;
use crate::relay::status::Status;
use crate::relay::target::Target;
use crate::relay::{LinkState, Relay};
use crate::upstream::guard::Guard;
use crate::wall;
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
        families::snapshot_metrics(&mut e, &status, &self.upstream);
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
            "guard": document::guard(&self.guard),
            "history": status.line.as_ref().map(document::history),
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
                "ready": status.snapshot.ready.as_ref().map(document::snapshot),
                "arriving": status.snapshot.arriving.as_ref().map(document::snapshot),
                "requested": status.snapshot.requested,
            },
            "max_replicas": status.max_replicas,
            "replicas_at_head": families::at_head(&status),
            // Whichever is promoted, the others continue.
            "all_at_head": families::at_head(&status) == status.replicas.len(),
            "senders": { "sending": turns.sending, "limit": turns.limit, "waiting": turns.waiting.len() },
            "sender_rate_limit_bytes": self.bounds.get().sender_rate_limit,
            "replicas": status.replicas.iter().map(|row| document::replica(row, &turns, status.line.as_ref().map_or(0.0, |line| line.rate))).collect::<Vec<_>>(),
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
}
