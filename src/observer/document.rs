//! Parts of the status document.

use serde_json::{Value, json};

use crate::counters::Label;
use crate::downstream::senders::Overview;
use crate::relay::status::{LineStatus, ReplicaStatus, SnapshotFile};
use crate::upstream::guard::{Guard, GuardStatus};
use crate::verdict::judge_replica;

pub(super) fn history(line: &LineStatus) -> Value {
    json!({
        "replid": line.replid.as_str(),
        "ancestors": line.ancestors.iter().map(|a| json!({ "replid": a.id.as_str(), "boundary": a.boundary.get() })).collect::<Vec<_>>(),
    })
}

pub(super) fn guard(guard: &Guard) -> Value {
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

pub(super) fn snapshot(file: &SnapshotFile) -> Value {
    json!({
        "replid": file.position.id.as_str(),
        "offset": file.position.offset.get(),
        "format": file.format.to_string(),
        "received_bytes": file.received,
        "length_bytes": file.length,
    })
}

pub(super) fn replica(replica: &ReplicaStatus, turns: &Overview, rate: f64) -> Value {
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
