//! The asker's part, as a machine: what came of the last step in, the next step out.
//!
//! ```text
//!            FENCED n        node at n         GO          passed        node a master        DEMOTED
//!   Fencing ─────────▶ Catching ─────▶ Confirming ─▶ Passing ───▶ Watching ─────────▶ Demoting ─────▶ ok
//!                          ▲              │ FENCED m
//!                          └──────────────┘
//! ```
//!
//! Anything else ends it, and whoever was asked for a fence is told so unless the old master follows already. The
//! driver carries out each step and tells what came of it; [`Step::Over`] is the last.

use super::Assisted;
use crate::repl::Offset;
use crate::wire::assist::{Answer, Ask};
use crate::wire::info::Role;

/// One promotion.
#[derive(Debug, Clone)]
pub struct Promotion {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fencing,
    Catching { at: Offset },
    Confirming { at: Offset },
    Passing,
    Watching,
    Demoting,
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The fencer answered.
    Told(Answer),
    /// The node is this now, and has applied the stream so far.
    Node {
        /// Whether it is a master.
        role: Role,
        /// Up to where it has its master's stream.
        applied: Offset,
    },
    /// The command was let pass.
    Passed,
    /// Whoever held it has not waited.
    NotPassed,
    /// The time for it is over.
    Late,
    /// The fencer would not, or nobody could be talked to.
    Failed,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Say this to the fencer and hear its answer.
    Tell(Ask),
    /// Ask the node, in a moment.
    AskNode,
    /// Let the command pass.
    LetPass,
    /// Let the command pass if it is still held, and tell the fencer if it has to know.
    Over(Assisted, Fencer),
}

/// Whether the fencer has to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fencer {
    /// It knows, or is gone.
    Knows,
    /// To be released.
    Waits,
}

impl Promotion {
    /// Begins with `fence` said.
    pub fn begin(fence: Ask) -> (Self, Step) {
        (Self { state: State::Fencing }, Step::Tell(fence))
    }

    /// Whether the command was let pass, so that nobody waits any more.
    pub fn has_passed(&self) -> bool {
        matches!(self.state, State::Watching | State::Demoting)
    }

    /// Takes what came of the last step.
    pub fn on(&mut self, event: Event) -> Step {
        let (state, step) = match (self.state, event) {
            (State::Fencing | State::Confirming { .. }, Event::Told(Answer::Fenced(at))) => {
                (State::Catching { at }, Step::AskNode)
            }
            (State::Catching { at }, Event::Node { role: Role::Replica, applied }) if applied < at => {
                (self.state, Step::AskNode)
            }
            // Beyond the fence it was sent what came just before it: the fencer will say where it is then.
            (State::Catching { .. }, Event::Node { role: Role::Replica, applied }) => {
                (State::Confirming { at: applied }, Step::Tell(Ask::Ready(applied)))
            }
            (State::Confirming { .. }, Event::Told(Answer::Go)) => (State::Passing, Step::LetPass),
            (State::Passing, Event::Passed) => (State::Watching, Step::AskNode),
            (State::Watching, Event::Node { role: Role::Replica, .. }) => (State::Watching, Step::AskNode),
            (State::Watching, Event::Node { role: Role::Master, .. }) => (State::Demoting, Step::Tell(Ask::Demote)),
            (State::Demoting, Event::Told(Answer::Demoted)) => (self.state, Step::Over(Assisted::Ok, Fencer::Knows)),
            (_, Event::Late | Event::NotPassed) => (self.state, Step::Over(Assisted::Timeout, Fencer::Waits)),
            // Somebody else promoted it meanwhile.
            (State::Catching { .. }, Event::Node { role: Role::Master, .. }) => {
                (self.state, Step::Over(Assisted::Skipped, Fencer::Waits))
            }
            (_, Event::Failed | Event::Told(_) | Event::Node { .. } | Event::Passed) => {
                (self.state, Step::Over(Assisted::Refused, Fencer::Waits))
            }
        };
        self.state = state;
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repl::ReplId;

    const fn at(offset: u64) -> Offset {
        Offset::new(offset)
    }

    fn replica(applied: u64) -> Event {
        Event::Node { role: Role::Replica, applied: at(applied) }
    }

    const MASTER: Event = Event::Node { role: Role::Master, applied: Offset::ZERO };

    fn begin() -> Promotion {
        let replid = ReplId::from_ascii(&[b'a'; 40]).unwrap();
        Promotion::begin(Ask::Fence { replid, host: None, port: 1 }).0
    }

    /// The last step after these events.
    fn after(events: &[Event]) -> Step {
        let mut promotion = begin();
        let mut step = Step::AskNode;
        for event in events {
            step = promotion.on(*event);
        }
        step
    }

    #[test]
    fn a_promotion_passes_when_the_node_has_all_and_the_fence_stands() {
        use Event::{Passed, Told};
        let fenced = |n| Told(Answer::Fenced(at(n)));
        let mut story = vec![fenced(50)];
        let mut promotion = begin();
        let mut expect = |event, step| assert_eq!(promotion.on(event), step, "{event:?}");
        expect(story.remove(0), Step::AskNode);
        expect(replica(30), Step::AskNode);
        expect(replica(50), Step::Tell(Ask::Ready(at(50))));
        // The master's PING came between.
        expect(fenced(64), Step::AskNode);
        expect(replica(64), Step::Tell(Ask::Ready(at(64))));
        expect(Told(Answer::Go), Step::LetPass);
        expect(Passed, Step::AskNode);
        expect(replica(64), Step::AskNode);
        expect(MASTER, Step::Tell(Ask::Demote));
        expect(Told(Answer::Demoted), Step::Over(Assisted::Ok, Fencer::Knows));
    }

    #[test]
    fn in_every_state_what_does_not_belong_there_ends_it_and_time_ends_all() {
        use Event::{Failed, Late, NotPassed, Passed, Told};
        let fenced = Told(Answer::Fenced(at(50)));
        let go = Told(Answer::Go);
        let paths: [&[Event]; 6] = [
            &[],
            &[fenced],
            &[fenced, replica(50)],
            &[fenced, replica(50), go],
            &[fenced, replica(50), go, Passed],
            &[fenced, replica(50), go, Passed, MASTER],
        ];
        let events =
            [fenced, go, Told(Answer::Demoted), replica(49), replica(50), MASTER, Passed, NotPassed, Late, Failed];
        // o on, w in time no more, s skipped, r refused, k ok; by state and event.
        let table = ["orrrrrrwwr", "rrroosrwwr", "oorrrrrwwr", "rrrrrrowwr", "rrrooorwwr", "rrkrrrrwwr"];
        for (path, row) in paths.iter().zip(table) {
            for (event, cell) in events.iter().zip(row.chars()) {
                let mut story = path.to_vec();
                story.push(*event);
                let seen = match after(&story) {
                    Step::Over(Assisted::Ok, Fencer::Knows) => 'k',
                    Step::Over(Assisted::Timeout, Fencer::Waits) => 'w',
                    Step::Over(Assisted::Skipped, Fencer::Waits) => 's',
                    Step::Over(Assisted::Refused, Fencer::Waits) => 'r',
                    Step::Over(..) => '?',
                    _ => 'o',
                };
                assert_eq!(seen, cell, "{story:?}");
            }
        }
    }
}
