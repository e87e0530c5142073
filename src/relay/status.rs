//! What the relay looks like at one instant, as plain data for whoever shows it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::replicas::{ReplicaState, Waits};
use super::snapshots::Fetch;
use super::{LinkState, Relay};
use crate::repl::{Ancestor, Offset, Position, RdbFormat, ReplId, Span};
use crate::store::snapshot::{Progress, Rdb};

/// What the rate of the stream is taken over.
const RATE_SPAN: Duration = Duration::from_secs(300);

/// The relay at one instant.
#[derive(Debug, Clone)]
pub struct Status {
    /// The link to the upstream.
    pub link: LinkState,
    /// The stream, once there is one.
    pub line: Option<LineStatus>,
    /// Bytes the backlog may hold.
    pub backlog_limit_bytes: u64,
    /// Bytes the journal may hold; 0 without one.
    pub journal_limit_bytes: u64,
    /// Bytes it has dropped so far.
    pub backlog_evicted_bytes: u64,
    /// Snapshots.
    pub snapshot: SnapshotStatus,
    /// Attached replicas, oldest first.
    pub replicas: Vec<ReplicaStatus>,
    /// Replicas there may be.
    pub max_replicas: usize,
}

/// The stream at one instant.
#[derive(Debug, Clone)]
pub struct LineStatus {
    /// The current id.
    pub replid: ReplId,
    /// Earlier ids, newest first.
    pub ancestors: Vec<Ancestor>,
    /// What is held, in memory and in the journal.
    pub window: Span,
    /// What memory holds of it: the newest part.
    pub memory: Span,
    /// What the journal holds of it: nearly everything, but for the last moment.
    pub archived: Option<Span>,
    /// Age of the oldest byte held: how long a replica may have been away.
    pub coverage: Duration,
    /// Bytes a second the stream grew by in the last five minutes.
    pub rate: f64,
    /// How long a replica may be away from now on, in seconds, if the stream goes on at that rate; infinite when it
    /// does not grow.
    pub runway_seconds: f64,
}

/// Snapshots at one instant.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotStatus {
    /// The complete one.
    pub ready: Option<SnapshotFile>,
    /// How long its data set has not been the master's any more; zero while nothing was written since.
    pub ready_age: Option<Duration>,
    /// The one being received.
    pub arriving: Option<SnapshotFile>,
    /// Whether one has been asked for and has not begun to arrive.
    pub requested: bool,
}

/// One snapshot.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotFile {
    /// Whose data set it is.
    pub position: Position,
    /// Its format.
    pub format: RdbFormat,
    /// Bytes received.
    pub received: u64,
    /// Its size in bytes, once known.
    pub length: Option<u64>,
}

impl SnapshotFile {
    pub(super) fn of(rdb: &Arc<Rdb>) -> Self {
        Self {
            position: rdb.position(),
            format: rdb.format(),
            received: rdb.progress().received(),
            length: rdb.length(),
        }
    }
}

/// One replica at one instant.
#[derive(Debug, Clone)]
pub struct ReplicaStatus {
    /// Its number among all that ever attached.
    pub id: u64,
    /// The address it announced, `host:port`.
    pub name: String,
    /// The host part of it.
    pub host: String,
    /// The port part of it, 0 when it announced none.
    pub port: u16,
    /// Where it called from.
    pub peer: String,
    /// The version it announced.
    pub version: Option<String>,
    /// How far it is.
    pub state: ReplicaState,
    /// What it waits for, while that is its state.
    pub waits: Option<Waits>,
    /// The priority number it reports, where it had to be asked.
    pub priority: Option<u32>,
    /// What was handed to its socket.
    pub sent: Offset,
    /// What it acknowledged.
    pub acked: Offset,
    /// Bytes between the head and its acknowledgement; all of the window before the first one.
    pub lag_bytes: u64,
    /// Age of the oldest byte it has not acknowledged.
    pub lag: Duration,
    /// Bytes that can still be appended before what it needs next is dropped; `None` before it streams.
    pub remaining_bytes: Option<u64>,
    /// Since its last sign of life.
    pub silent: Duration,
    /// Since it asked.
    pub attached: Duration,
    /// Stream bytes handed to its socket.
    pub stream_bytes: u64,
    /// Snapshot bytes handed to its socket.
    pub snapshot_bytes: u64,
    /// Out of how many, once known.
    pub snapshot_length: Option<u64>,
}

impl Relay {
    /// The relay now.
    pub fn status(&self) -> Status {
        let now = Instant::now();
        let rows = self.replicas.rows();
        let state = self.state();
        let window = state.line.as_ref().map_or(Span::empty(Offset::ZERO), |line| line.window());
        let limit = state.options.backlog_bytes.max(state.options.journal_bytes);
        let replicas = rows
            .iter()
            .map(|row| {
                let (kind, acked, sent) = (row.state(), row.acked(), row.sent());
                // Before its first acknowledgement a replica has what it was sent, at best.
                let has = if kind == ReplicaState::Online { acked } else { sent.max(window.start) };
                let streams = matches!(kind, ReplicaState::Online | ReplicaState::Catchup);
                ReplicaStatus {
                    id: row.id(),
                    name: row.introduction().to_string(),
                    host: row.introduction().host.clone(),
                    port: row.introduction().port,
                    peer: row.peer().to_owned(),
                    version: row.introduction().version.map(|v| v.to_string()),
                    state: kind,
                    waits: (kind == ReplicaState::Waiting).then(|| row.waits()),
                    priority: row.priority(),
                    sent,
                    acked,
                    lag_bytes: window.end.since(has),
                    lag: state.line.as_ref().map_or(Duration::ZERO, |line| line.age(has, now)),
                    remaining_bytes: streams.then(|| limit.saturating_sub(window.end.since(has))),
                    silent: now.duration_since(row.heard()),
                    attached: now.duration_since(row.since()),
                    stream_bytes: row.stream_bytes(),
                    snapshot_bytes: row.snapshot_bytes(),
                    snapshot_length: row.snapshot_length(),
                }
            })
            .collect();
        let file = SnapshotFile::of;
        Status {
            link: state.link,
            line: state.line.as_ref().map(|line| LineStatus {
                replid: line.history.current(),
                ancestors: line.history.ancestors().copied().collect(),
                window,
                memory: line.backlog.window(),
                archived: line.archived,
                coverage: line.age(window.start, now),
                rate: line.arrivals.rate(RATE_SPAN, window.end, now),
                runway_seconds: limit as f64 / line.arrivals.rate(RATE_SPAN, window.end, now),
            }),
            backlog_limit_bytes: state.options.backlog_bytes,
            journal_limit_bytes: state.options.journal_bytes,
            backlog_evicted_bytes: self.evicted_bytes.load(Ordering::Relaxed),
            snapshot: SnapshotStatus {
                ready: state.snapshot.ready.as_ref().map(file),
                ready_age: (state.snapshot.ready.as_ref().zip(state.line.as_ref()))
                    .map(|(rdb, line)| line.age(rdb.position().offset, now)),
                arriving: state.snapshot.arriving.as_ref().filter(|rdb| rdb.progress() != Progress::Failed).map(file),
                requested: state.snapshot.wanted
                    || (state.snapshot.fetch != Fetch::Idle && state.snapshot.arriving.is_none()),
            },
            replicas,
            max_replicas: self.replicas.limit(),
        }
    }
}
