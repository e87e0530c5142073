//! Who may be asked for snapshots, and how often the upstream is.

use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// The `snapshot-source` setting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SnapshotSource {
    /// Our own replicas first, then the upstream.
    #[default]
    Auto,
    /// Only our own replicas.
    Replicas,
    /// Only the upstream.
    Upstream,
}

impl FromStr for SnapshotSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(SnapshotSource::Auto),
            "replicas" => Ok(SnapshotSource::Replicas),
            "upstream" => Ok(SnapshotSource::Upstream),
            _ => Err("is no source of snapshots".to_owned()),
        }
    }
}

/// When the upstream was last made to fork for us, by either link.
///
/// A fork begins with `+FULLRESYNC`, so an attempt that never got so far is none. Another node, or the same one started
/// anew, has not forked for us at all.
#[derive(Debug, Default)]
pub struct Forks {
    /// Held for a few instructions.
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    node: Option<String>,
    at: Option<Instant>,
}

impl Forks {
    /// The link leads to the node that calls its process `run_id`; `None` when it does not say.
    pub fn meet(&self, run_id: Option<&str>) {
        let mut last = self.last();
        if last.node.as_deref() != run_id {
            *last = Last { node: run_id.map(str::to_owned), at: None };
        }
    }

    /// It forks.
    pub fn note(&self, now: Instant) {
        self.last().at = Some(now);
    }

    /// How long to wait until it may be made to fork again.
    pub fn wait(&self, now: Instant, interval: Duration) -> Duration {
        self.last().at.map_or(Duration::ZERO, |at| interval.saturating_sub(now.saturating_duration_since(at)))
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Last> {
        self.last.lock().expect("no one panics holding it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fork_waits_for_nothing_and_the_next_one_for_the_interval() {
        let (forks, begin) = (Forks::default(), Instant::now());
        let interval = Duration::from_secs(60);
        let wait = |seconds| forks.wait(begin + Duration::from_secs(seconds), interval).as_secs();
        forks.meet(Some("a"));
        assert_eq!(wait(0), 0);
        forks.note(begin);
        assert_eq!((wait(0), wait(59), wait(60), wait(600)), (60, 1, 0, 0));
        forks.meet(Some("a"));
        assert_eq!(wait(1), 59, "a link that was lost and came back changes nothing");
        forks.meet(Some("b"));
        assert_eq!(wait(1), 0, "another node has not forked");
        assert_eq!(forks.wait(begin, Duration::ZERO), Duration::ZERO);
    }
}
