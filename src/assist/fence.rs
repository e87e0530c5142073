//! The fencer's part, as a machine: what came of the last step in, the next step out.
//!
//! ```text
//!           paused        node at n        dammed at n       head at n          READY n         DEMOTE        done
//!   Pausing ─────▶ Reading ──────▶ Damming ──────▶ Filling ─────────▶ Standing ───────▶ Leaving ────▶ Demoting ───▶ over
//!                                     ▲                                  │ READY, and there is more
//!                                     └──────────────────────────────────┘
//! ```
//!
//! Anything else undoes it: writes are taken and the stream is sent again. Only a master is fenced, and it is demoted
//! only when whoever asked has said that all of it has arrived and was told to go on.

use crate::net::PeerAddress;
use crate::relay::LinkState;
use crate::relay::replicas::{Introduction, ReplicaState};
use crate::repl::{Offset, ReplId};
use crate::wire::assist::{Answer, Ask};
use crate::wire::info::Role;

/// How often the point is moved because something was written after all: the master's PING, once in ten seconds.
const MOVES: u32 = 2;

/// One fence.
#[derive(Debug, Clone)]
pub struct Fence {
    state: State,
    moves: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pausing,
    Reading,
    Damming,
    Filling { at: Offset },
    Standing { at: Offset },
    Leaving,
    Demoting,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The node takes no writes.
    Paused,
    /// The node is this, and has produced the stream so far.
    Node {
        /// Whether it is a master.
        role: Role,
        /// Up to where.
        offset: Offset,
    },
    /// Nobody is sent anything beyond.
    Dammed(Offset),
    /// Everything up to there has arrived here.
    Filled,
    /// The asker said this; the stream has come as far as `head`.
    Asked {
        /// What.
        ask: Ask,
        /// How far.
        head: Offset,
    },
    /// The node follows the new master and takes commands again.
    Demoted,
    /// The time for it is over.
    Late,
    /// The node would not, or somebody is gone.
    Failed,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Have the node take no writes.
    Pause,
    /// Ask the node where it is.
    AskNode,
    /// Hold the replicas there, or at the head if that is further.
    Dam(Offset),
    /// Wait until the stream has come so far.
    Fill,
    /// Say this to the asker and hear what it says next.
    Answer(Answer),
    /// Have the node follow the new master, and take commands again.
    Demote,
    /// Say that it is done, and hold the replicas until the new master's stream comes.
    Finish,
    /// Have the node take writes again and let the replicas go.
    Undo,
}

impl Fence {
    /// Begins.
    pub fn begin() -> (Self, Step) {
        (Self { state: State::Pausing, moves: 0 }, Step::Pause)
    }

    /// Takes what came of the last step.
    pub fn on(&mut self, event: Event) -> Step {
        let (state, step) = match (self.state, event) {
            (State::Pausing, Event::Paused) => (State::Reading, Step::AskNode),
            (State::Reading, Event::Node { role: Role::Master, offset }) => (State::Damming, Step::Dam(offset)),
            (State::Damming, Event::Dammed(at)) => (State::Filling { at }, Step::Fill),
            (State::Filling { at }, Event::Filled) => (State::Standing { at }, Step::Answer(Answer::Fenced(at))),
            (State::Standing { at }, Event::Asked { ask: Ask::Ready(arrived), head }) => {
                if arrived == at && head == at {
                    (State::Leaving, Step::Answer(Answer::Go))
                } else if self.moves < MOVES {
                    self.moves += 1;
                    (State::Damming, Step::Dam(head))
                } else {
                    (self.state, Step::Undo)
                }
            }
            (State::Leaving, Event::Asked { ask: Ask::Demote, .. }) => (State::Demoting, Step::Demote),
            (State::Demoting, Event::Demoted) => (self.state, Step::Finish),
            (_, _) => (self.state, Step::Undo),
        };
        self.state = state;
        step
    }
}

/// What a fence is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The history the replica knows.
    pub replid: ReplId,
    /// The address it announces; `None` for the asker's own.
    pub host: Option<&'a str>,
    /// The port it announces.
    pub port: u16,
    /// Where the asker calls from.
    pub caller: &'a PeerAddress,
}

/// What we are when we are asked.
#[derive(Debug)]
pub struct Ground {
    /// The state of our link.
    pub link: LinkState,
    /// The history we serve.
    pub replid: Option<ReplId>,
    /// Who is attached.
    pub replicas: Vec<(Introduction, ReplicaState)>,
}

/// Who will be the new master, as the old one is to call it: an address that a replica of ours announced, and no other.
/// An error says why there can be no fence.
pub fn successor(claim: &Claim<'_>, ground: Ground) -> Result<Introduction, &'static str> {
    if ground.link != LinkState::Streaming {
        return Err("ERR psyncd is not linked to its upstream");
    }
    if ground.replid != Some(claim.replid) {
        return Err("ERR psyncd serves another history");
    }
    let host = claim.host.map_or_else(|| claim.caller.host(), str::to_owned);
    let is_it = |(introduction, state): &(Introduction, ReplicaState)| {
        let fed = matches!(state, ReplicaState::Online | ReplicaState::Catchup);
        fed && introduction.port == claim.port && introduction.host.eq_ignore_ascii_case(&host)
    };
    let found = ground.replicas.into_iter().find(is_it).map(|(introduction, _)| introduction);
    found.ok_or("ERR psyncd feeds no replica of that address")
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(offset: u64) -> Offset {
        Offset::new(offset)
    }

    fn ready(arrived: u64, head: u64) -> Event {
        Event::Asked { ask: Ask::Ready(at(arrived)), head: at(head) }
    }

    fn demote() -> Event {
        Event::Asked { ask: Ask::Demote, head: at(50) }
    }

    fn node(role: Role) -> Event {
        Event::Node { role, offset: at(50) }
    }

    /// The steps after these events.
    fn story(events: &[Event]) -> Vec<Step> {
        let mut fence = Fence::begin().0;
        events.iter().map(|event| fence.on(event.clone())).collect()
    }

    #[test]
    fn a_fence_is_moved_for_what_was_written_after_all_and_not_for_ever() {
        let mut events = vec![Event::Paused, node(Role::Master), Event::Dammed(at(50)), Event::Filled];
        let mut steps = vec![Step::AskNode, Step::Dam(at(50)), Step::Fill, Step::Answer(Answer::Fenced(at(50)))];
        events.extend([ready(50, 64), Event::Dammed(at(64)), Event::Filled, ready(64, 64), demote(), Event::Demoted]);
        steps.extend([Step::Dam(at(64)), Step::Fill, Step::Answer(Answer::Fenced(at(64)))]);
        steps.extend([Step::Answer(Answer::Go), Step::Demote, Step::Finish]);
        assert_eq!(story(&events), steps);
        events.truncate(7);
        events.extend([ready(64, 70), Event::Dammed(at(70)), Event::Filled, ready(70, 80)]);
        assert_eq!(story(&events).last(), Some(&Step::Undo));
    }

    #[test]
    fn in_every_state_what_does_not_belong_there_undoes_it() {
        let way = [Event::Paused, node(Role::Master), Event::Dammed(at(50)), Event::Filled, ready(50, 50), demote()];
        let events = [
            Event::Paused,
            node(Role::Master),
            node(Role::Replica),
            Event::Dammed(at(50)),
            Event::Filled,
            ready(50, 50),
            ready(49, 50),
            demote(),
            Event::Asked { ask: Ask::Release, head: at(50) },
            Event::Demoted,
            Event::Late,
            Event::Failed,
        ];
        // o on, u undone; by state and event.
        let table = [
            "ouuuuuuuuuuu",
            "uouuuuuuuuuu",
            "uuuouuuuuuuu",
            "uuuuouuuuuuu",
            "uuuuuoouuuuu",
            "uuuuuuuouuuu",
            "uuuuuuuuuouu",
        ];
        for (length, row) in table.iter().enumerate() {
            for (event, cell) in events.iter().zip(row.chars()) {
                let mut told = way[..length].to_vec();
                told.push(event.clone());
                let seen = if story(&told).last() == Some(&Step::Undo) { 'u' } else { 'o' };
                assert_eq!(seen, cell, "{told:?}");
            }
        }
    }

    #[test]
    fn only_a_replica_that_is_fed_here_can_be_the_successor() {
        let replid = ReplId::from_ascii(&[b'a'; 40]).unwrap();
        let named = |host: &str, port| Introduction { host: host.into(), port, version: None };
        let caller = PeerAddress::Tcp("10.0.0.2:50000".parse().unwrap());
        let ground = |link, state| Ground {
            link,
            replid: Some(replid),
            replicas: vec![(named("10.0.0.3", 6379), ReplicaState::Online), (named("10.0.0.2", 6379), state)],
        };
        let claim = Claim { replid, host: None, port: 6379, caller: &caller };
        let judge = |claim: Claim<'_>, ground| successor(&claim, ground).map(|found| found.host);
        let good = || ground(LinkState::Streaming, ReplicaState::Online);
        assert_eq!(judge(claim, good()).as_deref(), Ok("10.0.0.2"));
        assert_eq!(judge(Claim { host: Some("10.0.0.3"), ..claim }, good()).as_deref(), Ok("10.0.0.3"));
        assert!(judge(Claim { host: Some("10.0.0.9"), ..claim }, good()).is_err());
        assert!(judge(Claim { port: 1, ..claim }, good()).is_err());
        assert!(judge(Claim { replid: ReplId::from_ascii(&[b'b'; 40]).unwrap(), ..claim }, good()).is_err());
        assert!(judge(claim, ground(LinkState::Disconnected, ReplicaState::Online)).is_err());
        assert!(judge(claim, ground(LinkState::Streaming, ReplicaState::Snapshot)).is_err());
    }
}
