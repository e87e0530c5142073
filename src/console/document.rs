//! The documents of a running psyncd, as far as the console shows them. What another version says besides is skipped,
//! and what it does not say is nothing.

use serde::Deserialize;

/// `/api/v1/status`.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Since it started.
    pub uptime_seconds: u64,
    /// Whether it goes away, or was told to say so.
    pub draining: bool,
    /// How things stand, in a sentence.
    pub verdict: Option<Verdict>,
    /// Whom it follows.
    pub upstream: Upstream,
    /// The wipe guard.
    pub guard: Guard,
    /// The stream's names.
    pub history: Option<History>,
    /// What is held of it.
    pub backlog: Option<Backlog>,
    /// Snapshots.
    pub snapshot: Snapshots,
    /// Replicas there may be.
    #[serde(default)]
    pub max_replicas: u64,
    /// Those that are.
    pub replicas: Vec<Replica>,
    /// Clients passed through.
    pub clients: u64,
}

/// How things stand.
#[derive(Debug, Clone, Deserialize)]
pub struct Verdict {
    /// One word.
    pub grade: String,
    /// One sentence.
    pub text: String,
    /// What is wrong.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// Something that is wrong.
#[derive(Debug, Clone, Deserialize)]
pub struct Problem {
    /// What.
    pub text: String,
}

/// The node that is followed.
#[derive(Debug, Clone, Deserialize)]
pub struct Upstream {
    /// Where it is.
    pub address: String,
    /// How the link to it is.
    pub link: String,
    /// What the Sentinels agreed on.
    pub sentinel_epoch: Option<u64>,
    /// For how long it has not been streaming.
    pub down_seconds: Option<f64>,
    /// Since its last byte.
    pub silent_seconds: Option<f64>,
}

impl Upstream {
    /// Whether its stream is being received.
    pub fn is_streaming(&self) -> bool {
        self.link == "streaming"
    }
}

/// The wipe guard.
#[derive(Debug, Clone, Deserialize)]
pub struct Guard {
    /// Whether replicas are kept from a master.
    pub active: bool,
}

/// The stream's names.
#[derive(Debug, Clone, Deserialize)]
pub struct History {
    /// The one it has.
    pub replid: String,
    /// Those it had, newest first.
    #[serde(default)]
    pub ancestors: Vec<Ancestor>,
}

/// A name the stream had.
#[derive(Debug, Clone, Deserialize)]
pub struct Ancestor {
    /// The name.
    pub replid: String,
    /// Up to where it was ours.
    pub boundary: u64,
}

/// What is held of the stream.
#[derive(Debug, Clone, Deserialize)]
pub struct Backlog {
    /// Its first byte.
    pub first_offset: u64,
    /// One past its last.
    pub head_offset: u64,
    /// The newest part.
    pub memory: Memory,
    /// Nearly all of it, where there is a journal.
    pub journal: Option<Journal>,
    /// Age of the first byte.
    pub coverage_seconds: f64,
    /// How fast it grows.
    pub bytes_per_second: f64,
    /// How long a replica may stay away; none is for ever.
    pub runway_seconds: Option<f64>,
}

/// What memory holds.
#[derive(Debug, Clone, Deserialize)]
pub struct Memory {
    /// Its first byte.
    pub first_offset: u64,
    /// How much.
    pub used_bytes: u64,
    /// How much there may be.
    pub limit_bytes: u64,
}

/// What the disk holds.
#[derive(Debug, Clone, Deserialize)]
pub struct Journal {
    /// Its first byte.
    pub first_offset: Option<u64>,
    /// One past its last.
    pub head_offset: Option<u64>,
    /// How much there may be.
    pub limit_bytes: u64,
    /// Whether it is out of order.
    pub degraded: bool,
}

/// Snapshots.
#[derive(Debug, Clone, Deserialize)]
pub struct Snapshots {
    /// The complete one.
    pub ready: Option<Snapshot>,
    /// The one that arrives.
    pub arriving: Option<Snapshot>,
    /// Whether one was asked for.
    pub requested: bool,
}

/// One snapshot.
#[derive(Debug, Clone, Deserialize)]
pub struct Snapshot {
    /// Where the stream goes on from it.
    pub offset: u64,
    /// How much of it there is.
    pub received_bytes: u64,
    /// How much there will be.
    pub length_bytes: Option<u64>,
}

/// One replica.
#[derive(Debug, Clone, Deserialize)]
pub struct Replica {
    /// What it calls itself.
    pub replica: String,
    /// Where it called from.
    pub peer: String,
    /// Its version.
    pub version: Option<String>,
    /// How far it is.
    pub state: String,
    /// What it waits for.
    pub waits_for: Option<String>,
    /// Its place in the line for a snapshot.
    pub queue_position: Option<u64>,
    /// What it acknowledged.
    pub acked_offset: u64,
    /// What it was sent.
    pub sent_offset: u64,
    /// What it has not.
    pub lag_bytes: u64,
    /// The age of that.
    pub lag_seconds: f64,
    /// How much may come until it falls off.
    pub backlog_remaining_bytes: Option<u64>,
    /// Since its last sign of life.
    pub silent_seconds: f64,
    /// Since it asked.
    pub attached_seconds: f64,
    /// Of the stream.
    pub sent_stream_bytes: u64,
    /// Of the snapshot.
    pub sent_snapshot_bytes: u64,
    /// Out of how much.
    pub snapshot_bytes: Option<u64>,
}

impl Replica {
    /// Whether it acknowledges the live stream.
    pub fn is_online(&self) -> bool {
        self.state == "online"
    }

    /// Whether it is being sent a snapshot.
    pub fn is_loading(&self) -> bool {
        self.state == "snapshot"
    }

    /// How long until it falls off at that rate, where that can happen.
    pub fn falls_off_in(&self, bytes_per_second: f64) -> Option<f64> {
        let left = self.backlog_remaining_bytes?;
        (bytes_per_second >= 1.0).then(|| left as f64 / bytes_per_second)
    }
}

/// `/api/v1/clients`.
#[derive(Debug, Clone, Deserialize)]
pub struct Clients {
    /// How many there are.
    pub count: u64,
    /// Those that came first.
    pub clients: Vec<Client>,
}

/// One client.
#[derive(Debug, Clone, Deserialize)]
pub struct Client {
    /// Where it called from.
    pub peer: String,
    /// Since when.
    pub connected_seconds: f64,
    /// Bytes it sent.
    pub to_upstream_bytes: u64,
    /// Bytes it got.
    pub to_client_bytes: u64,
}

/// `/api/v1/events`.
#[derive(Debug, Clone, Deserialize)]
pub struct Events {
    /// The number of the last one there ever was.
    pub last_seq: u64,
    /// Those that are kept, oldest first.
    pub events: Vec<Event>,
}

/// One thing that happened.
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    /// Its number.
    pub seq: u64,
    /// When.
    pub unix_ms: u64,
    /// How bad.
    pub level: String,
    /// What.
    pub message: String,
    /// The facts.
    #[serde(default)]
    pub fields: serde_json::Map<String, serde_json::Value>,
}

#[cfg(test)]
pub(super) fn example() -> Status {
    let replica = |port: u16, state: &str, acked: u64| {
        serde_json::json!({
            "replica": format!("10.0.0.2:{port}"), "peer": "10.0.0.2:55555", "version": "7.0.15", "state": state,
            "waits_for": null, "queue_position": null, "acked_offset": acked, "sent_offset": acked,
            "lag_bytes": 10_000 - acked, "lag_seconds": 0.2, "backlog_remaining_bytes": 20_000,
            "silent_seconds": 0.3, "attached_seconds": 65.0, "sent_stream_bytes": 5000, "sent_snapshot_bytes": 250,
            "snapshot_bytes": 1000,
        })
    };
    serde_json::from_value(serde_json::json!({
        "version": "0.1.0", "uptime_seconds": 3700, "draining": false, "more": ["of", "another", "version"],
        "upstream": { "address": "10.0.0.1:6379", "link": "streaming", "sentinel_epoch": null },
        "guard": { "active": false },
        "history": { "replid": "a".repeat(40), "ancestors": [{ "replid": "b".repeat(40), "boundary": 4000 }] },
        "backlog": {
            "first_offset": 0, "head_offset": 10_000,
            "memory": { "first_offset": 5000, "used_bytes": 5000, "limit_bytes": 5000 },
            "journal": { "first_offset": 0, "head_offset": 10_000, "limit_bytes": 100_000, "degraded": false },
            "coverage_seconds": 100.0, "bytes_per_second": 100.0, "runway_seconds": 1000.0,
        },
        "snapshot": {
            "ready": { "offset": 2000, "received_bytes": 1000, "length_bytes": 1000 }, "arriving": null,
            "requested": false,
        },
        "max_replicas": 64,
        "replicas": [replica(1, "online", 10_000), replica(2, "online", 2500), replica(3, "snapshot", 0)],
        "clients": 7,
    }))
    .expect("is a status document")
}
