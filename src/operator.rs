//! What operators can have done, over the control socket: each verb, where it is obeyed.

use std::sync::Arc;

use crate::admin::control::{Control, ControlFuture, Outcome, Reply, Verb};
use crate::upstream::guard::{Guard, HeldStatus, NothingHeld};

/// Everything that can be told to do something.
pub struct Operator {
    /// Who keeps the replicas from a master that lost its data.
    pub guard: Arc<Guard>,
}

impl Control for Operator {
    fn obey(&self, verb: Verb) -> ControlFuture<'_> {
        Box::pin(async move {
            match verb {
                Verb::GuardRelease => ruled(self.guard.release(), "released, the replicas will follow it"),
                Verb::GuardReject => ruled(self.guard.reject(), "rejected, the replicas stay on their data"),
            }
        })
    }
}

fn ruled(ruled: Result<HeldStatus, NothingHeld>, done: &str) -> Reply {
    match ruled {
        Ok(HeldStatus { identity, loss, .. }) => {
            let (unit, before, now) = (loss.unit.as_str(), loss.before, loss.now);
            let text = format!("the master ({identity}; {now} {unit}, before {before}) is {done}");
            Reply { outcome: Outcome::Done, text }
        }
        Err(NothingHeld) => {
            Reply { outcome: Outcome::Nothing, text: "the wipe guard holds no master: nothing to rule on".to_owned() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repl::guard::{Mode, Rules};

    #[tokio::test]
    async fn nothing_is_ruled_on_in_advance() {
        let rules = Rules { mode: Mode::Hold, min_keys: 0, min_percent: 10 };
        let operator = Operator { guard: Arc::new(Guard::new(rules, None, None)) };
        for verb in Verb::ALL {
            assert_eq!(operator.obey(verb).await.outcome, Outcome::Nothing);
        }
        assert_eq!(operator.guard.outcomes.sum(), 0);
    }
}
