//! What the status page shows beyond the bare state: the verdict, what was served and averted so far, and the settings.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Observer;
use crate::counters::{CounterSet, Label};
use crate::relay::status::Status;
use crate::upstream::SnapshotEnd;
use crate::verdict::{Scene, Verdict, judge};
use crate::wall;

impl Observer {
    /// How things stand.
    pub(super) fn judged(&self, status: &Status) -> Verdict {
        judge(&Scene {
            upstream: &self.target.name(),
            status,
            down: self.relay.down(),
            silent: self.upstream_silence(),
            draining: self.draining.load(Ordering::Relaxed),
            held: self.guard.status().is_active(),
            degraded: self.journal.as_ref().is_some_and(|journal| journal.degraded.load(Ordering::Relaxed)),
        })
    }

    /// Since a byte came from the upstream.
    pub(super) fn upstream_silence(&self) -> Option<Duration> {
        let last = self.upstream.last_receive_unix_ms.load(Ordering::Relaxed);
        (last > 0).then(|| Duration::from_millis(wall::unix_ms().saturating_sub(last)))
    }

    /// What replicas were answered, and what it did not cost.
    pub(super) fn resyncs(&self) -> Value {
        let d = &self.downstream;
        let mut by_kind = Map::new();
        for (answer, count) in d.resyncs.iter() {
            let sum = by_kind.get(answer.kind()).and_then(Value::as_u64).unwrap_or(0);
            by_kind.insert(answer.kind().to_owned(), (sum + count).into());
        }
        json!({
            "served": by_kind,
            "averted": counts(&d.averted),
            "master_forks_averted": {
                "replica_snapshot": self.upstream.replica_snapshots.get(SnapshotEnd::Ok),
                "recovered_snapshot": self.upstream.recovered.get(),
            },
            "lost_writes_bytes": self.upstream.lost_bytes.get(),
        })
    }

    /// Every setting, secrets masked.
    pub(super) fn settings_document(&self) -> Value {
        let settings = self.settings.get();
        let listed = settings.iter().map(|s| json!({ "name": s.name, "value": s.value, "origin": s.origin }));
        json!({ "settings": listed.collect::<Vec<_>>() })
    }
}

/// The verdict as a document.
pub(super) fn verdict(verdict: &Verdict) -> Value {
    let problems = verdict.problems.iter().map(|p| json!({ "grade": p.grade.as_str(), "text": p.text }));
    json!({ "grade": verdict.grade.as_str(), "text": verdict.text, "problems": problems.collect::<Vec<_>>() })
}

fn counts<L: Label>(set: &CounterSet<L>) -> Map<String, Value> {
    set.iter().map(|(label, count)| (label.as_str().to_owned(), count.into())).collect()
}
