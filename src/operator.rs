//! What operators can have done, over the control socket: each verb, where it is obeyed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::admin::control::{Control, ControlFuture, Despite, Outcome, Reply, Verb};
use crate::config;
use crate::config::reloads::Changed;
use crate::daemon::announce;
use crate::net::Address;
use crate::relay::Relay;
use crate::relay::target::{Repointed, Source, Target};
use crate::upstream::guard::{Guard, HeldStatus, NothingHeld};

/// Everything that can be told to do something.
pub struct Operator {
    /// Who keeps the replicas from a master that lost its data.
    pub guard: Arc<Guard>,
    /// Who has the snapshots.
    pub relay: Arc<Relay>,
    /// Whom we follow.
    pub target: Arc<Target>,
    /// Where we listen, which must not be followed.
    pub own: Vec<SocketAddr>,
    /// What Sentinels call the master, where they are asked for it.
    pub sentinel_master: Option<String>,
    /// Whether psyncd says that it goes away.
    pub draining: Arc<AtomicBool>,
    /// Cancelled when it really does.
    pub ending: CancellationToken,
    /// Whether what is told is remembered across a restart.
    pub remembers: bool,
    /// Who reads the configuration again, which takes the whole process.
    pub reload: mpsc::Sender<ReloadOrder>,
}

/// Where to say what became of a reload.
pub type ReloadOrder = oneshot::Sender<Result<Changed, config::Error>>;

impl Control for Operator {
    fn obey(&self, verb: Verb) -> ControlFuture<'_> {
        Box::pin(async move {
            match verb {
                Verb::GuardRelease => ruled(self.guard.release(), "released, the replicas will follow it"),
                Verb::GuardReject => ruled(self.guard.reject(), "rejected, the replicas stay on their data"),
                Verb::Drain => self.drain(),
                Verb::Undrain => self.undrain(),
                Verb::Reload => self.reloaded().await,
                Verb::Repoint { to, despite } => self.ordered_to(to, despite),
                Verb::SnapshotRefresh => {
                    self.relay.order_snapshot();
                    done(
                        "a fresh snapshot is asked for, of a replica if one will do; snapshot-min-interval may put it off",
                    )
                }
                Verb::SnapshotDrop => match self.relay.drop_snapshot() {
                    Some(dropped) => {
                        info!(event = "snapshot_dropped", position = %dropped.position, bytes = dropped.received, "snapshot dropped by the operator");
                        done(&format!(
                            "the snapshot of offset {} ({} bytes) is dropped; who is being sent it gets it whole, the next \
                             one who needs one costs another",
                            dropped.position.offset.get(),
                            dropped.received
                        ))
                    }
                    None => nothing("there is no complete snapshot to drop"),
                },
            }
        })
    }
}

impl Operator {
    /// Follows another node from now on. What is held stays.
    ///
    /// # Errors
    /// When that would be we ourselves.
    pub fn repoint(&self, address: Address) -> Result<Repointed, String> {
        match announce::forbidden(&self.own, None, &address) {
            Some(why) => Err(why),
            None => Ok(self.target.repoint(address, Source::Api)),
        }
    }

    fn ordered_to(&self, to: Address, despite: Despite) -> Reply {
        // Those at the replica face are heard rather than asked; an epoch is what they left behind.
        let sentinels = match &self.sentinel_master {
            Some(name) => Some(format!("Sentinels are asked who is the master {name}")),
            None => self.target.epoch().map(|epoch| format!("Sentinels say who the master is (epoch {epoch})")),
        };
        if let (Some(sentinels), Despite::Nobody) = (&sentinels, despite) {
            return nothing(&format!(
                "{sentinels}, and would undo this: use SENTINEL FAILOVER there, or --force to follow {to} until they are heard again"
            ));
        }
        let before = self.target.name();
        match self.repoint(to) {
            Err(why) => nothing(&why),
            Ok(Repointed::Already) => done(&format!("{before} is followed already")),
            Ok(Repointed::Moved) => {
                let now = self.target.name();
                info!(event = "repointed", %before, %now, "repointed by the operator");
                let until = if self.remembers {
                    "until the setting upstream is changed"
                } else {
                    "until psyncd is restarted (without --dir nothing is remembered)"
                };
                done(&format!(
                    "{now} is followed instead of {before}, {until}; `psyncd status` says whether it is reached"
                ))
            }
        }
    }

    async fn reloaded(&self) -> Reply {
        let (order, done_with) = oneshot::channel();
        if self.reload.send(order).await.is_err() {
            return nothing("psyncd is ending");
        }
        match done_with.await {
            Ok(Ok(changed)) => reloaded(&changed),
            Ok(Err(why)) => nothing(&format!("the old configuration stays in force: {why}")),
            Err(_) => nothing("psyncd is ending"),
        }
    }

    fn drain(&self) -> Reply {
        if self.draining.swap(true, Ordering::Relaxed) {
            return done("psyncd is draining already");
        }
        info!(event = "draining", "draining by the operator's order");
        done("psyncd says that it is not ready (/readyz); who is connected stays, and replicas are served on")
    }

    fn undrain(&self) -> Reply {
        if self.ending.is_cancelled() {
            return nothing("psyncd is ending");
        }
        if !self.draining.swap(false, Ordering::Relaxed) {
            return done("psyncd was not draining");
        }
        info!(event = "draining_ended", "draining ended by the operator's order");
        done("psyncd is open for newcomers again")
    }
}

fn done(text: &str) -> Reply {
    Reply { outcome: Outcome::Done, text: text.to_owned() }
}

fn reloaded(changed: &Changed) -> Reply {
    let mut text = match &changed.applied[..] {
        [] => "the configuration was read again; nothing in force has changed".to_owned(),
        applied => format!("in force now: {}", applied.join(", ")),
    };
    if !changed.waiting.is_empty() {
        text.push_str(&format!("; needs a restart: {}", changed.waiting.join(", ")));
    }
    done(&text)
}

fn nothing(text: &str) -> Reply {
    Reply { outcome: Outcome::Nothing, text: text.to_owned() }
}

fn ruled(ruled: Result<HeldStatus, NothingHeld>, done: &str) -> Reply {
    match ruled {
        Ok(HeldStatus { identity, loss, .. }) => {
            let (unit, before, now) = (loss.unit.as_str(), loss.before, loss.now);
            let text = format!("the master ({identity}; {now} {unit}, before {before}) is {done}");
            Reply { outcome: Outcome::Done, text }
        }
        Err(NothingHeld) => nothing("the wipe guard holds no master: nothing to rule on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Options;
    use crate::repl::guard::{Mode, Rules};

    fn operator() -> Operator {
        let rules = Rules { mode: Mode::Hold, min_keys: 0, min_percent: 10 };
        Operator {
            guard: Arc::new(Guard::new(rules, None, None)),
            relay: Relay::new(Options {
                backlog_bytes: 1 << 20,
                journal_bytes: 0,
                journal_lag_bytes: 0,
                history_depth: 16,
                max_replicas: 4,
            }),
            target: Target::new(Some("a:1".parse().unwrap())),
            own: vec!["127.0.0.1:7000".parse().unwrap()],
            sentinel_master: None,
            draining: Arc::default(),
            ending: CancellationToken::new(),
            remembers: true,
            reload: mpsc::channel(1).0,
        }
    }

    fn to(address: &str, despite: Despite) -> Verb {
        Verb::Repoint { to: address.parse().unwrap(), despite }
    }

    #[tokio::test]
    async fn nothing_is_ruled_on_in_advance() {
        let operator = operator();
        for verb in [Verb::GuardRelease, Verb::GuardReject] {
            assert_eq!(operator.obey(verb).await.outcome, Outcome::Nothing);
        }
        assert_eq!(operator.guard.outcomes.sum(), 0);
    }

    #[tokio::test]
    async fn what_is_drained_can_be_opened_again_until_it_ends() {
        let operator = operator();
        assert_eq!(operator.obey(Verb::Drain).await.outcome, Outcome::Done);
        assert!(operator.draining.load(Ordering::Relaxed));
        assert_eq!(operator.obey(Verb::Undrain).await.outcome, Outcome::Done);
        assert!(!operator.draining.load(Ordering::Relaxed));
        operator.draining.store(true, Ordering::Relaxed);
        operator.ending.cancel();
        assert_eq!(operator.obey(Verb::Undrain).await.outcome, Outcome::Nothing);
        assert!(operator.draining.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn psyncd_is_not_pointed_at_itself() {
        let operator = operator();
        let refused = operator.obey(to("127.0.0.1:7000", Despite::Sentinels)).await;
        assert!(refused.outcome == Outcome::Nothing && refused.text.contains("follow itself"), "{refused:?}");
        assert_eq!(operator.target.name(), "a:1");
        assert_eq!(operator.obey(to("b:2", Despite::Nobody)).await.outcome, Outcome::Done);
        assert_eq!((operator.target.name().as_str(), operator.target.repoints.get(Source::Api)), ("b:2", 1));
    }

    #[tokio::test]
    async fn where_sentinels_rule_repointing_takes_force() {
        for heard in [true, false] {
            let mut operator = operator();
            if heard {
                operator.target.agree(7);
            } else {
                operator.sentinel_master = Some("mymaster".to_owned());
            }
            let refused = operator.obey(to("b:2", Despite::Nobody)).await;
            assert!(refused.outcome == Outcome::Nothing && refused.text.contains("--force"), "{refused:?}");
            assert_eq!(operator.target.name(), "a:1");
            assert_eq!(operator.obey(to("b:2", Despite::Sentinels)).await.outcome, Outcome::Done);
            assert_eq!(operator.target.name(), "b:2");
        }
    }

    #[tokio::test]
    async fn a_snapshot_that_is_not_there_is_not_dropped() {
        assert_eq!(operator().obey(Verb::SnapshotDrop).await.outcome, Outcome::Nothing);
    }
}
