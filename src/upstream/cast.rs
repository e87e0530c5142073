//! Which link to the master speaks for whom, where every replica is to have one.
//!
//! A master counts links. So that it counts replicas, there are exactly as many links as replicas that are online and
//! have an address: the link that feeds the relay speaks for one of them, the *lead*, and each other one has a mirror.
//! One link more, and `WAIT` and `min-replicas-to-write` would count a replica that does not exist.
//!
//! ```text
//!   online: none       link: Itself       mirrors: none
//!   online: a          link: a            mirrors: none
//!   online: a, b, c    link: a            mirrors: b, c
//!   a leaves           link: a, silent    mirrors: b, c     until the link was taken over
//!   taken over         link: b            mirrors: c
//! ```

use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::net::Address;
use crate::relay::replicas::{ReplicaState, Replicas, Row};

/// How many links there are to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// One: to the master we are one replica.
    Single,
    /// As many as replicas that are online.
    Mirrored,
}

impl Links {
    /// The words for these.
    pub const WORDS: &'static [&'static str] = &["single", "mirrored"];
}

impl FromStr for Links {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "single" => Ok(Links::Single),
            "mirrored" => Ok(Links::Mirrored),
            _ => Err(()),
        }
    }
}

/// For whom the link speaks that feeds the relay.
#[derive(Debug, Clone)]
pub enum Part {
    /// Psyncd: it acknowledges by the policy.
    Itself,
    /// This replica: it says what that says, when that says it.
    Replica(Arc<Row>),
}

impl Part {
    /// The number of the replica.
    pub fn id(&self) -> Option<u64> {
        match self {
            Part::Itself => None,
            Part::Replica(row) => Some(row.id()),
        }
    }
}

/// The replica the link speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lead {
    /// Its number.
    pub id: u64,
    /// Where the link goes to, and so do the mirrors.
    pub master: Address,
}

/// Who is the lead. Written by the link, read by the mirrors: they exist only beside one.
#[derive(Debug, Default)]
pub struct Cast {
    lead: watch::Sender<Option<Lead>>,
}

impl Cast {
    /// The link to that master is about to speak for this one.
    pub fn appoint(&self, part: &Part, master: &Address) {
        self.lead.send_replace(part.id().map(|id| Lead { id, master: master.clone() }));
    }

    /// The link is down, or speaks for psyncd.
    pub fn leave(&self) {
        self.lead.send_if_modified(|lead| lead.take().is_some());
    }

    /// The lead, from now on.
    pub fn lead(&self) -> watch::Receiver<Option<Lead>> {
        self.lead.subscribe()
    }
}

/// The replicas that can be spoken for: online, with an address that others can call.
pub fn candidates(replicas: &Replicas) -> Vec<Arc<Row>> {
    let mut rows = replicas.rows();
    rows.retain(|row| row.state() == ReplicaState::Online && row.introduction().port != 0);
    rows
}

/// Who the lead should be, of these, oldest first: who it is, or else whoever has been there longest.
pub fn lead(current: Option<u64>, candidates: &[u64]) -> Option<u64> {
    current.filter(|id| candidates.contains(id)).or_else(|| candidates.first().copied())
}

/// Who should have a mirror. None without a lead: the link then stands for all of them.
pub fn mirrored(lead: Option<u64>, candidates: &[u64]) -> Vec<u64> {
    match lead {
        None => Vec::new(),
        Some(lead) => candidates.iter().copied().filter(|id| *id != lead).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_lead_stays_while_it_is_there_and_the_oldest_follows_it() {
        assert_eq!(lead(None, &[]), None);
        assert_eq!(lead(None, &[3, 5]), Some(3));
        assert_eq!(lead(Some(5), &[3, 5]), Some(5));
        assert_eq!(lead(Some(4), &[3, 5]), Some(3));
        assert_eq!(lead(Some(4), &[]), None);
    }

    #[test]
    fn without_a_lead_nobody_has_a_mirror_and_the_lead_never_has_one() {
        assert!(mirrored(None, &[1, 2]).is_empty());
        assert_eq!(mirrored(Some(2), &[1, 2, 3]), [1, 3]);
        assert_eq!(mirrored(Some(9), &[1, 2]), [1, 2], "it left; the others are spoken for meanwhile");
    }

    proptest! {
        #[test]
        fn once_settled_there_are_as_many_links_as_replicas_and_at_least_one(
            steps in prop::collection::vec((any::<bool>(), 0u64..8), 0..40),
        ) {
            let (mut online, mut current) = (Vec::new(), None);
            for (comes, id) in steps {
                online.retain(|other| *other != id);
                if comes {
                    online.push(id);
                }
                // Before the link was taken over nobody is counted twice.
                prop_assert!(mirrored(current, &online).len() <= online.len());
                current = lead(current, &online);
                prop_assert_eq!(1 + mirrored(current, &online).len(), online.len().max(1));
            }
        }
    }
}
