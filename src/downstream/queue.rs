//! Whose turn it is to be sent a snapshot: a pure queue with a fixed number of senders.
//!
//! ```text
//!   join ─▶ Hopeful ⇄ Ready ──grant──▶ Sending ──leave──▶ (gone)
//!              └─────────grant───────▶ Sending ──unready─▶ Declined ──ready──▶ Ready
//! ```
//!
//! While a snapshot is still to come, those who need it stand in line already: when the first of them finds it, the
//! turns go out in the order of the line and not in the order in which they happened to wake. Whoever is given a turn
//! too early hands it on, once.

use std::collections::BTreeMap;

/// What a server's `slave_priority` is when nobody set it, and what is assumed where it is not known.
const ORDINARY: u32 = 100;

/// The order among those who wait: failover candidates with a low priority number first, whoever can never be promoted
/// (number 0) last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u32);

impl Rank {
    /// The rank of a replica with this priority number, if that is known.
    pub fn of(priority: Option<u32>) -> Self {
        match priority {
            None => Rank(ORDINARY),
            Some(0) => Rank(u32::MAX),
            Some(number) => Rank(number.min(u32::MAX - 1)),
        }
    }
}

/// A place in the line: by rank, then first come. `arrival` is unique and grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    /// How important it is.
    pub rank: Rank,
    /// The number of the replica's row.
    pub arrival: u64,
}

/// How far a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its snapshot is still to come.
    Hopeful,
    /// It could be sent one now.
    Ready,
    /// It had its turn before there was a snapshot for it, and is passed over until it is ready.
    Declined,
    /// It has its turn.
    Sending,
}

/// The line. At most `limit` are sending; while anybody is ready and a turn is free, [`Queue::grant`] has one to give.
#[derive(Debug)]
pub struct Queue {
    limit: usize,
    sending: usize,
    places: BTreeMap<Spot, Stage>,
}

impl Queue {
    /// An empty line in front of `limit` senders.
    pub fn new(limit: usize) -> Self {
        Self { limit, sending: 0, places: BTreeMap::new() }
    }

    /// There are `limit` senders from now on. Whoever has a turn keeps it.
    pub fn resize(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// How many may be sending at once.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// A new place, hopeful.
    pub fn join(&mut self, spot: Spot) {
        self.places.insert(spot, Stage::Hopeful);
    }

    /// There is a snapshot for it now. A turn it has, it keeps.
    pub fn ready(&mut self, spot: Spot) {
        if let Some(stage) = self.places.get_mut(&spot)
            && *stage != Stage::Sending
        {
            *stage = Stage::Ready;
        }
    }

    /// There is no snapshot for it now. A turn it has goes to the next.
    pub fn unready(&mut self, spot: Spot) {
        let Some(stage) = self.places.get_mut(&spot) else { return };
        match stage {
            Stage::Sending => {
                *stage = Stage::Declined;
                self.sending -= 1;
            }
            Stage::Ready => *stage = Stage::Hopeful,
            Stage::Hopeful | Stage::Declined => {}
        }
    }

    /// It goes, and its turn, if it had one, is free.
    pub fn leave(&mut self, spot: Spot) {
        if self.places.remove(&spot) == Some(Stage::Sending) {
            self.sending -= 1;
        }
    }

    /// Its rank became known: returns where it stands now.
    pub fn rerank(&mut self, spot: Spot, rank: Rank) -> Spot {
        let moved = Spot { rank, ..spot };
        if let Some(stage) = self.places.remove(&spot) {
            self.places.insert(moved, stage);
        }
        moved
    }

    /// Gives the next turn, if one is free and anybody is ready. Call it after every change until it has none.
    pub fn grant(&mut self) -> Option<Spot> {
        if self.sending >= self.limit || !self.places.values().any(|stage| *stage == Stage::Ready) {
            return None;
        }
        let (spot, stage) = self.places.iter_mut().find(|(_, stage)| matches!(stage, Stage::Ready | Stage::Hopeful))?;
        *stage = Stage::Sending;
        self.sending += 1;
        Some(*spot)
    }

    /// How far that place is.
    pub fn stage(&self, spot: Spot) -> Option<Stage> {
        self.places.get(&spot).copied()
    }

    /// Places that have their turn.
    pub fn sending(&self) -> usize {
        self.sending
    }

    /// Whether more have a place than can be sent to at once, so that the order matters.
    pub fn contended(&self) -> bool {
        self.places.len() > self.limit
    }

    /// Those who wait, the next first, by their arrival.
    pub fn waiting(&self) -> impl Iterator<Item = u64> + '_ {
        self.places.iter().filter(|(_, stage)| **stage != Stage::Sending).map(|(spot, _)| spot.arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spot(priority: u32, arrival: u64) -> Spot {
        Spot { rank: Rank::of(Some(priority)), arrival }
    }

    fn turns(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.grant()).map(|spot| spot.arrival).collect()
    }

    #[test]
    fn candidates_come_first_and_whoever_can_never_be_promoted_last() {
        let mut queue = Queue::new(1);
        let places = [spot(0, 1), spot(100, 2), spot(10, 3), Spot { rank: Rank::of(None), arrival: 4 }];
        for place in places {
            queue.join(place);
        }
        assert_eq!(turns(&mut queue), [0; 0], "nobody is ready");
        queue.ready(places[0]);
        let mut order = Vec::new();
        while let Some(next) = queue.grant() {
            order.push(next.arrival);
            queue.leave(next);
        }
        assert_eq!(order, [3, 2, 4, 1], "the order of the line, whoever found the snapshot");
    }

    #[test]
    fn a_turn_that_comes_too_early_is_handed_on_once() {
        let mut queue = Queue::new(1);
        let (first, second) = (spot(100, 1), spot(100, 2));
        queue.join(first);
        queue.join(second);
        queue.ready(second);
        assert_eq!(turns(&mut queue), [1]);
        queue.unready(first);
        assert_eq!(turns(&mut queue), [2]);
        queue.leave(second);
        assert_eq!(turns(&mut queue), [0; 0], "it declined and is not ready yet");
        queue.ready(first);
        assert_eq!(turns(&mut queue), [1]);
    }

    #[test]
    fn a_rank_that_becomes_known_moves_a_place_and_keeps_its_turn() {
        let mut queue = Queue::new(1);
        let (a, b, c) = (spot(100, 1), spot(100, 2), spot(100, 3));
        for place in [a, b, c] {
            queue.join(place);
            queue.ready(place);
        }
        assert_eq!(turns(&mut queue), [1]);
        let a = queue.rerank(a, Rank::of(Some(0)));
        queue.rerank(c, Rank::of(Some(1)));
        assert_eq!((queue.stage(a), queue.waiting().collect::<Vec<_>>()), (Some(Stage::Sending), vec![3, 2]));
        queue.leave(a);
        assert_eq!(turns(&mut queue), [3]);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Join(u32),
        Ready(usize),
        Unready(usize),
        Leave(usize),
        Rerank(usize, u32),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => (0u32..4).prop_map(Event::Join),
            4 => any::<usize>().prop_map(Event::Ready),
            1 => any::<usize>().prop_map(Event::Unready),
            3 => any::<usize>().prop_map(Event::Leave),
            1 => (any::<usize>(), 0u32..4).prop_map(|(n, p)| Event::Rerank(n, p)),
        ]
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_send_and_no_turn_is_idle_while_anybody_is_ready(
            limit in 1usize..4,
            events in prop::collection::vec(event(), 1..200),
        ) {
            let mut queue = Queue::new(limit);
            let mut places: Vec<Spot> = Vec::new();
            let mut arrivals = 0;
            for event in events {
                let at = |n: usize| n.checked_rem(places.len());
                match event {
                    Event::Join(priority) => {
                        arrivals += 1;
                        places.push(spot(priority, arrivals));
                        queue.join(spot(priority, arrivals));
                    }
                    Event::Ready(n) => if let Some(n) = at(n) { queue.ready(places[n]) },
                    Event::Unready(n) => if let Some(n) = at(n) { queue.unready(places[n]) },
                    Event::Leave(n) => if let Some(n) = at(n) { queue.leave(places.swap_remove(n)) },
                    Event::Rerank(n, priority) => if let Some(n) = at(n) {
                        places[n] = queue.rerank(places[n], Rank::of(Some(priority)));
                    },
                }
                while let Some(granted) = queue.grant() {
                    for place in &places {
                        let eligible = matches!(queue.stage(*place), Some(Stage::Ready | Stage::Hopeful));
                        prop_assert!(!eligible || *place > granted, "{place:?} was passed over for {granted:?}");
                    }
                }
                let count = |stage| places.iter().filter(|p| queue.stage(**p) == Some(stage)).count();
                prop_assert_eq!(queue.sending(), count(Stage::Sending));
                prop_assert!(queue.sending() <= limit);
                prop_assert!(count(Stage::Ready) == 0 || queue.sending() == limit);
                prop_assert_eq!(queue.waiting().count() + queue.sending(), places.len());
                prop_assert_eq!(queue.contended(), places.len() > limit);
            }
            for place in places.drain(..) {
                queue.leave(place);
            }
            prop_assert_eq!((queue.sending(), queue.waiting().count()), (0, 0), "everybody can leave at any time");
        }
    }
}
