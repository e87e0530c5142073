//! Which node is the master, as far as Sentinels can be believed. A machine without a clock, a socket or a log.
//!
//! Each Sentinel has one opinion: an address, with the number of the configuration it belongs to, the *epoch*, which
//! rises with every failover.
//!
//! ```text
//!                 most share it, its epoch is not lower
//!   opinions ───────────────────────────────────────────▶ check ──▶ follow
//!                 fewer, or lower: ignored                 │ ROLE says it is no master
//!                                                          ▼
//!                                                        again in a second, if they still say so
//! ```
//!
//! The rules:
//!
//! 1. The epoch that was agreed on never falls.
//! 2. A node that is not followed already is followed only after it was asked and said that it is a master.
//! 3. While the stream of the present master is received, it takes most of *all* Sentinels that are known to leave it:
//!    one that is cut off from the others, or was forced to fail over alone, is not heard. While it is not received,
//!    most of those that can be reached are enough, which may be one.
//! 4. Under the epoch that was agreed on, a master that is there is never left. So whoever orders otherwise
//!    (`REPLICAOF`) has his way until a new failover, or until the link to what he named is lost, or does not come.
//! 5. What was said before an order counts for nothing after it: the order may be the first to tell of a failover, and
//!    what it names may be lost before anybody else does.
//! 6. Moves that follow each other are further and further apart.
//!
//! Sentinels that are only heard, at the replica face, are not known from the start. The epoch they agree on at first,
//! while the link is up, is where they begin to count from.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Ignored;
use super::check::Verdict;
use crate::net::Address;

/// An opinion that was not repeated for this long is not held any more: Sentinels are asked every ten seconds at least,
/// and say hello every two.
const FRESH: Duration = Duration::from_secs(30);
/// A Sentinel that was heard at the replica face counts as there for this long.
const KNOWN: Duration = Duration::from_secs(300);
/// How long Sentinels are listened to before what is heard counts: each says hello within two seconds.
const SETTLE: Duration = Duration::from_secs(3);
/// How long a node that somebody ordered to be followed may take to be there.
const PATIENCE: Duration = Duration::from_secs(30);
/// Until a node that said it is no master is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// Until the second of two moves; doubled with each that follows.
const GAP: Duration = Duration::from_secs(1);
/// The most it is doubled to, and how long nothing must happen until it is forgotten.
const GAP_MAX: Duration = Duration::from_secs(60);
/// Sentinels that are listened to at the replica face.
const HEARD_MAX: usize = 64;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// The Sentinel of that place in the settings was asked and said this.
    Said {
        /// Its place.
        voice: usize,
        /// Where it takes the master to be.
        address: Address,
        /// Since which configuration.
        epoch: u64,
    },
    /// It could not be asked, or does not know.
    Silent(usize),
    /// A Sentinel said this at the replica face.
    Heard {
        /// Its id.
        run_id: String,
        /// Where it takes the master to be.
        address: Address,
        /// Since which configuration.
        epoch: u64,
    },
    /// Somebody had another node followed.
    Commanded(Address),
    /// The stream is received.
    LinkUp,
    /// It is not.
    LinkDown,
    /// The node that was to be checked has been.
    Checked {
        /// The node.
        address: Address,
        /// What it is.
        verdict: Verdict,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    Nothing,
    /// Nothing, though it was said that the master is elsewhere.
    Ignore {
        /// Where it was said to be.
        address: Address,
        /// Since when.
        epoch: u64,
        /// Why that is ignored.
        why: Ignored,
    },
    /// The node that is followed is the master of this configuration, or counts as that.
    Agree {
        /// Its number.
        epoch: u64,
    },
    /// Ask this node whether it is a master, and say so with [`Fact::Checked`].
    Check(Address),
    /// Follow this node.
    Follow {
        /// The node.
        address: Address,
        /// The number of the configuration that makes it the master.
        epoch: u64,
    },
}

/// See the head of this file.
#[derive(Debug)]
pub struct Tracker {
    asked: Vec<Voice>,
    heard: BTreeMap<String, Opinion>,
    /// When the first was heard, or the last order came: what is older does not count.
    listening: Option<Instant>,
    followed: Option<Address>,
    epoch: Option<u64>,
    link: Link,
    /// Somebody ordered another node to be followed, and the link to it may come until then.
    ordered: Option<Instant>,
    check: Check,
    /// The last move, and how far from it the next must be.
    moved: Option<(Instant, Duration)>,
    /// When to look again though nothing happens.
    look: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    Down,
}

/// One of the Sentinels that are asked.
#[derive(Debug, Clone)]
enum Voice {
    /// It has not answered yet, or not since the last order, and may.
    Pending,
    Silent,
    Said(Opinion),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Opinion {
    address: Address,
    epoch: u64,
    at: Instant,
}

/// The one node that is, or was, in question.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Check {
    Idle,
    Running(Address),
    /// It was no master, and is asked again at that time.
    Failed(Address, Instant),
}

impl Tracker {
    /// `asked` Sentinels are asked; `followed` is followed and `epoch` was agreed on before.
    pub fn new(asked: usize, followed: Option<Address>, epoch: Option<u64>) -> Self {
        Self {
            asked: vec![Voice::Pending; asked],
            heard: BTreeMap::new(),
            listening: None,
            followed,
            epoch,
            link: Link::Down,
            ordered: None,
            check: Check::Idle,
            moved: None,
            look: None,
        }
    }

    /// Takes a fact.
    pub fn note(&mut self, fact: Fact, now: Instant) -> Wish {
        match fact {
            Fact::Said { voice, address, epoch } => {
                if let Some(voice) = self.asked.get_mut(voice) {
                    *voice = Voice::Said(Opinion { address, epoch, at: now });
                }
            }
            Fact::Silent(voice) => {
                if let Some(voice) = self.asked.get_mut(voice) {
                    *voice = Voice::Silent;
                }
            }
            Fact::Heard { run_id, address, epoch } => {
                self.heard.retain(|_, opinion| now.duration_since(opinion.at) < KNOWN);
                self.listening.get_or_insert(now);
                if self.heard.len() < HEARD_MAX || self.heard.contains_key(&run_id) {
                    self.heard.insert(run_id, Opinion { address, epoch, at: now });
                }
            }
            Fact::Commanded(address) => {
                self.followed = Some(address);
                self.ordered = Some(now + PATIENCE);
                self.listening = self.listening.map(|_| now);
                for voice in self.asked.iter_mut().filter(|voice| matches!(voice, Voice::Said(_))) {
                    *voice = Voice::Pending;
                }
            }
            Fact::LinkUp => {
                self.link = Link::Up;
                self.ordered = None;
            }
            Fact::LinkDown => self.link = Link::Down,
            Fact::Checked { address, verdict } => {
                if self.check != Check::Running(address.clone()) {
                    return Wish::Nothing;
                }
                match verdict {
                    Verdict::Master => {
                        self.check = Check::Idle;
                        return self.follow(&address, now);
                    }
                    Verdict::NotMaster | Verdict::Unreachable => {
                        self.check = Check::Failed(address, now + RETRY);
                    }
                }
            }
        }
        self.look(now)
    }

    /// Judges what there is.
    pub fn look(&mut self, now: Instant) -> Wish {
        self.look = None;
        let address = match self.judge(now) {
            Judgement::None => return Wish::Nothing,
            Judgement::Ignored { address, epoch, why } => return Wish::Ignore { address, epoch, why },
            Judgement::Same { epoch } => {
                self.epoch = Some(epoch);
                return Wish::Agree { epoch };
            }
            Judgement::Other { address, .. } => address,
        };
        let earliest = match (&self.check, self.moved) {
            (Check::Running(running), _) if *running == address => return Wish::Nothing,
            (Check::Failed(failed, until), _) if *failed == address => *until,
            (_, Some((last, gap))) => last + gap,
            (_, None) => now,
        };
        if earliest > now {
            self.look = Some(earliest);
            return Wish::Nothing;
        }
        self.check = Check::Running(address.clone());
        Wish::Check(address)
    }

    /// When [`Tracker::look`] should be called if nothing happens before.
    pub fn next_look(&self) -> Option<Instant> {
        self.look
    }

    /// Sentinels that answered when they were last asked, or were heard lately.
    pub fn reachable(&self) -> usize {
        self.asked.iter().filter(|voice| matches!(voice, Voice::Said(_))).count() + self.heard.len()
    }

    /// The node said that it is a master. What the Sentinels say may have changed meanwhile.
    fn follow(&mut self, checked: &Address, now: Instant) -> Wish {
        match self.judge(now) {
            Judgement::Other { address, epoch } if address == *checked => {
                let gap = match self.moved {
                    Some((last, gap)) if now.duration_since(last) < GAP_MAX + gap => (gap * 2).min(GAP_MAX),
                    Some(_) | None => GAP,
                };
                self.moved = Some((now, gap));
                self.followed = Some(address.clone());
                self.epoch = Some(epoch);
                // Its link is not there yet.
                (self.link, self.ordered) = (Link::Down, None);
                Wish::Follow { address, epoch }
            }
            Judgement::None | Judgement::Ignored { .. } | Judgement::Same { .. } | Judgement::Other { .. } => {
                self.look(now)
            }
        }
    }

    /// What the Sentinels make of it now.
    fn judge(&mut self, now: Instant) -> Judgement {
        let link = match self.ordered {
            Some(until) if until > now => {
                self.look = Some(until);
                Link::Up
            }
            Some(_) | None => self.link,
        };
        let fresh = |opinion: &&Opinion| now.duration_since(opinion.at) < FRESH;
        let (opinions, electorate): (Vec<&Opinion>, usize) = if self.asked.is_empty() {
            let Some(since) = self.listening else { return Judgement::None };
            if now.duration_since(since) < SETTLE {
                self.look = Some(since + SETTLE);
                return Judgement::None;
            }
            let opinions: Vec<_> = self.heard.values().filter(fresh).filter(|opinion| opinion.at >= since).collect();
            let electorate = match link {
                Link::Up => self.heard.values().filter(|o| now.duration_since(o.at) < KNOWN).count(),
                Link::Down => opinions.len(),
            };
            (opinions, electorate)
        } else {
            let opinions = self.asked.iter().filter_map(|voice| match voice {
                Voice::Said(opinion) => Some(opinion).filter(fresh),
                Voice::Pending | Voice::Silent => None,
            });
            let opinions: Vec<_> = opinions.collect();
            let pending = self.asked.iter().filter(|voice| matches!(voice, Voice::Pending)).count();
            let electorate = match link {
                Link::Up => self.asked.len(),
                Link::Down => opinions.len() + pending,
            };
            (opinions, electorate)
        };
        let votes = |of: &Opinion| opinions.iter().filter(|o| o.address == of.address && o.epoch == of.epoch).count();
        let Some(winner) = opinions.iter().find(|opinion| votes(opinion) * 2 > electorate) else {
            let higher = |o: &&&Opinion| Some(o.epoch) > self.epoch && Some(&o.address) != self.followed.as_ref();
            return match opinions.iter().filter(higher).max_by_key(|opinion| opinion.epoch) {
                // Worth a word only where it would have been followed.
                Some(lone) if link == Link::Up => {
                    Judgement::Ignored { address: lone.address.clone(), epoch: lone.epoch, why: Ignored::Minority }
                }
                _ => Judgement::None,
            };
        };
        let (address, epoch) = (winner.address.clone(), winner.epoch);
        let is_followed = self.followed.as_ref() == Some(&address);
        match self.epoch {
            Some(agreed) if epoch < agreed => Judgement::Ignored { address, epoch, why: Ignored::OldEpoch },
            Some(agreed) if is_followed && epoch > agreed => Judgement::Same { epoch },
            Some(agreed) if epoch == agreed && (is_followed || link == Link::Up) => Judgement::None,
            None if is_followed || (self.asked.is_empty() && link == Link::Up) => Judgement::Same { epoch },
            Some(_) | None => Judgement::Other { address, epoch },
        }
    }
}

/// What most Sentinels say, compared with what is followed.
enum Judgement {
    None,
    Ignored {
        address: Address,
        epoch: u64,
        why: Ignored,
    },
    /// It is as it is, under a newer number.
    Same {
        epoch: u64,
    },
    Other {
        address: Address,
        epoch: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(n: u16) -> Address {
        Address::Tcp { host: "node".into(), port: n + 1 }
    }

    fn said(voice: usize, n: u16, epoch: u64) -> Fact {
        Fact::Said { voice, address: node(n), epoch }
    }

    fn heard(who: &str, n: u16, epoch: u64) -> Fact {
        Fact::Heard { run_id: who.into(), address: node(n), epoch }
    }

    fn checked(n: u16, verdict: Verdict) -> Fact {
        Fact::Checked { address: node(n), verdict }
    }

    /// A tracker, and a clock that is moved by hand.
    struct World {
        tracker: Tracker,
        now: Instant,
    }

    impl World {
        fn new(asked: usize, followed: Option<u16>, epoch: Option<u64>) -> Self {
            Self { tracker: Tracker::new(asked, followed.map(node), epoch), now: Instant::now() }
        }

        fn note(&mut self, fact: Fact) -> Wish {
            self.tracker.note(fact, self.now)
        }

        fn wait(&mut self, time: Duration) -> Wish {
            self.now += time;
            self.tracker.look(self.now)
        }
    }

    #[test]
    fn what_was_said_before_an_order_does_not_undo_it_when_the_node_it_names_is_lost() {
        for asked in [0, 3] {
            let mut world = World::new(asked, Some(1), None);
            let say = |world: &mut World, n, epoch| {
                for (voice, who) in ["a", "b", "c"].into_iter().enumerate() {
                    let wish = world.note(if asked == 0 { heard(who, n, epoch) } else { said(voice, n, epoch) });
                    assert!(!matches!(wish, Wish::Check(_)), "{wish:?}");
                }
            };
            world.note(Fact::LinkUp);
            say(&mut world, 1, 1);
            assert!(matches!(world.wait(SETTLE), Wish::Agree { epoch: 1 } | Wish::Nothing));
            // A Sentinel was quicker with its order than all of them with their words; and then that master dies, too.
            assert_eq!(world.note(Fact::Commanded(node(2))), Wish::Nothing);
            world.note(Fact::LinkUp);
            assert_eq!(world.note(Fact::LinkDown), Wish::Nothing, "the old master may be back, and empty");
            assert_eq!(world.wait(Duration::from_secs(1)), Wish::Nothing);
            if asked == 0 {
                say(&mut world, 3, 3);
                assert_eq!(world.wait(SETTLE), Wish::Check(node(3)));
            } else {
                world.note(said(0, 3, 3));
                assert_eq!(world.note(said(1, 3, 3)), Wish::Check(node(3)));
            }
        }
    }

    #[test]
    fn at_the_start_most_of_those_who_may_answer_must_agree() {
        let mut world = World::new(3, None, None);
        assert_eq!(world.note(said(0, 1, 4)), Wish::Nothing, "two more may answer");
        assert_eq!(world.note(said(1, 1, 4)), Wish::Check(node(1)));
        assert_eq!(world.note(checked(1, Verdict::Master)), Wish::Follow { address: node(1), epoch: 4 });

        let mut lonely = World::new(3, None, None);
        lonely.note(said(0, 1, 4));
        assert_eq!(lonely.note(Fact::Silent(1)), Wish::Nothing);
        assert_eq!(lonely.note(Fact::Silent(2)), Wish::Check(node(1)), "it is the only one there is");
    }

    #[test]
    fn a_failover_is_followed_when_most_know_of_it_and_the_node_says_so() {
        let mut world = World::new(3, Some(1), Some(4));
        world.note(Fact::LinkUp);
        (0..3).for_each(|voice| assert_eq!(world.note(said(voice, 1, 4)), Wish::Nothing));
        assert_eq!(world.note(said(0, 2, 5)), Wish::Nothing, "the others do not know yet");
        assert_eq!(world.note(said(1, 2, 5)), Wish::Check(node(2)));
        assert_eq!(world.note(said(2, 2, 5)), Wish::Nothing, "it is being asked already");
        assert_eq!(world.note(checked(2, Verdict::NotMaster)), Wish::Nothing);
        assert_eq!(world.wait(RETRY), Wish::Check(node(2)));
        assert_eq!(world.note(checked(2, Verdict::Master)), Wish::Follow { address: node(2), epoch: 5 });
    }

    #[test]
    fn a_sentinel_alone_takes_nobody_from_a_master_that_is_there() {
        let mut world = World::new(3, Some(1), Some(4));
        world.note(Fact::LinkUp);
        world.note(Fact::Silent(1));
        world.note(Fact::Silent(2));
        assert!(matches!(world.note(said(0, 2, 9)), Wish::Ignore { why: Ignored::Minority, .. }));
        assert_eq!(world.note(Fact::LinkDown), Wish::Check(node(2)), "now it is better than nothing");
        assert_eq!(world.note(checked(2, Verdict::Unreachable)), Wish::Nothing);
    }

    #[test]
    fn what_is_older_than_what_was_agreed_on_is_ignored_by_whomever_it_is_said() {
        let mut world = World::new(3, Some(2), Some(5));
        for voice in 0..3 {
            world.note(said(voice, 1, 4));
        }
        assert!(matches!(world.wait(GAP), Wish::Ignore { why: Ignored::OldEpoch, epoch: 4, .. }));
    }

    #[test]
    fn an_order_is_obeyed_until_the_link_is_lost() {
        let mut world = World::new(1, Some(1), Some(4));
        world.note(said(0, 1, 4));
        world.note(Fact::LinkUp);
        assert_eq!(world.note(Fact::Commanded(node(7))), Wish::Nothing);
        assert_eq!(world.note(Fact::LinkDown), Wish::Nothing, "the link to the old one");
        world.note(Fact::LinkUp);
        assert_eq!(world.note(said(0, 1, 4)), Wish::Nothing);
        assert_eq!(world.note(Fact::LinkDown), Wish::Check(node(1)));
    }

    #[test]
    fn an_order_to_follow_what_is_not_there_holds_for_half_a_minute() {
        let mut world = World::new(1, Some(1), Some(4));
        world.note(said(0, 1, 4));
        world.note(Fact::Commanded(node(7)));
        world.note(Fact::LinkDown);
        assert_eq!(world.tracker.next_look(), Some(world.now + PATIENCE));
        world.now += PATIENCE;
        assert_eq!(world.note(said(0, 1, 4)), Wish::Check(node(1)));
    }

    #[test]
    fn what_is_heard_counts_once_all_could_speak() {
        let mut world = World::new(0, Some(1), None);
        world.note(Fact::LinkUp);
        for who in ["a", "b", "c"] {
            assert_eq!(world.note(heard(who, 1, 4)), Wish::Nothing);
        }
        assert_eq!(world.wait(SETTLE), Wish::Agree { epoch: 4 });
        assert_eq!(world.note(heard("a", 2, 5)), Wish::Nothing);
        assert_eq!(world.note(heard("b", 2, 5)), Wish::Check(node(2)));
        assert_eq!(world.note(checked(2, Verdict::Master)), Wish::Follow { address: node(2), epoch: 5 });
    }

    #[test]
    fn the_first_that_is_heard_of_a_master_that_is_there_moves_nobody() {
        // A sidecar follows its own node, by an address no Sentinel knows.
        let mut world = World::new(0, Some(1), None);
        world.note(Fact::LinkUp);
        world.note(heard("a", 2, 4));
        assert_eq!(world.wait(SETTLE), Wish::Agree { epoch: 4 });
        assert_eq!(world.note(heard("a", 2, 4)), Wish::Nothing);
    }

    #[test]
    fn moves_that_follow_each_other_are_further_and_further_apart() {
        let mut world = World::new(1, Some(0), Some(0));
        let mut waits = Vec::new();
        for epoch in 1..9 {
            let n = (epoch % 2) as u16;
            let asked = world.now;
            let mut wish = world.note(said(0, n, epoch));
            while wish == Wish::Nothing {
                world.now = world.tracker.next_look().unwrap();
                wish = world.note(said(0, n, epoch));
            }
            assert_eq!(wish, Wish::Check(node(n)), "epoch {epoch}");
            waits.push((world.now - asked).as_secs());
            assert!(matches!(world.note(checked(n, Verdict::Master)), Wish::Follow { .. }));
        }
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60]);
    }

    fn facts() -> impl Strategy<Value = Vec<(u64, Fact)>> {
        let verdict = prop::sample::select(vec![Verdict::Master, Verdict::NotMaster, Verdict::Unreachable]);
        let fact = prop_oneof![
            6 => (0..4usize, 0..4u16, 0..6u64).prop_map(|(voice, n, epoch)| said(voice, n, epoch)),
            6 => ("[a-d]", 0..4u16, 0..6u64).prop_map(|(who, n, epoch)| heard(&who, n, epoch)),
            1 => (0..4usize).prop_map(Fact::Silent),
            1 => (0..4u16).prop_map(|n| Fact::Commanded(node(n))),
            2 => prop::sample::select(vec![Fact::LinkUp, Fact::LinkDown]),
            4 => (0..4u16, verdict).prop_map(|(n, verdict)| checked(n, verdict)),
        ];
        prop::collection::vec((0..4000u64, fact), 0..200)
    }

    proptest! {
        #[test]
        fn no_hint_moves_an_epoch_back_or_anybody_to_what_is_not_known_for_a_master(
            asked in 0..4usize, facts in facts(), epoch in prop::option::of(0..3u64),
        ) {
            let mut world = World::new(asked, Some(0), epoch);
            let (mut agreed, mut checking, mut link) = (epoch, None, Link::Down);
            let mut last_move: Option<Instant> = None;
            let mut ordered: Option<Instant> = None;
            for (millis, fact) in facts {
                world.now += Duration::from_millis(millis);
                let is_master = match &fact {
                    Fact::Checked { address, verdict: Verdict::Master } => Some(address.clone()),
                    _ => None,
                };
                match &fact {
                    Fact::LinkUp => (link, ordered) = (Link::Up, None),
                    Fact::LinkDown => link = Link::Down,
                    Fact::Commanded(_) => ordered = Some(world.now + PATIENCE),
                    _ => {}
                }
                match world.note(fact) {
                    Wish::Follow { address, epoch } => {
                        prop_assert!(Some(epoch) >= agreed, "epoch {epoch} after {agreed:?}");
                        prop_assert_eq!(is_master, Some(address.clone()), "just checked");
                        prop_assert_eq!(checking.take(), Some(address.clone()), "because it was asked for");
                        let bound = link == Link::Up || ordered.is_some_and(|until| until > world.now);
                        prop_assert!(!bound || Some(epoch) > agreed, "left under the same epoch");
                        let voices = if asked > 0 { asked } else { 4 };
                        let backers = |o: &&Opinion| o.address == address && o.epoch == epoch;
                        let count = world.tracker.asked.iter().filter_map(|v| match v {
                            Voice::Said(o) => Some(o),
                            _ => None,
                        }).chain(world.tracker.heard.values().filter(|_| asked == 0)).filter(backers).count();
                        prop_assert!(count > 0 && count <= voices);
                        if bound && asked > 0 {
                            prop_assert!(count * 2 > asked, "{count} of {asked} took us from a master that was there");
                        }
                        if let Some(last) = last_move {
                            prop_assert!(world.now - last >= GAP, "damped");
                        }
                        last_move = Some(world.now);
                        (link, ordered) = (Link::Down, None);
                        agreed = Some(epoch);
                    }
                    Wish::Agree { epoch } => {
                        prop_assert!(Some(epoch) >= agreed);
                        agreed = Some(epoch);
                    }
                    Wish::Check(address) => checking = Some(address),
                    Wish::Nothing | Wish::Ignore { .. } => {}
                }
                prop_assert_eq!(world.tracker.epoch, agreed);
                prop_assert_eq!(world.tracker.ordered, ordered);
            }
        }
    }
}
