//! What is acknowledged upstream on behalf of the replicas.

use std::str::FromStr;

use super::position::Offset;

/// Whose acknowledgements stand behind ours. WAIT, `min-replicas`, FAILOVER and SHUTDOWN on the master see one replica
/// where there are many: this says what its word is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckPolicy {
    /// Nobody's: what was received is acknowledged.
    Received,
    /// That of so many online replicas; of all where fewer are online; nobody's where none is. At least 1.
    Quorum(usize),
    /// That of every online replica; nobody's where none is.
    All,
}

/// An acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// What is there, or has been applied.
    pub offset: Offset,
    /// What is in append-only files as well (`FACK`, redis 7.2+), where anybody says that.
    pub durable: Option<Offset>,
}

impl AckPolicy {
    /// What to acknowledge, of what was `received` and of what each online replica acknowledged.
    ///
    /// Never more than was received: a master stores a larger value unchecked and every later test for equality
    /// fails (FAILOVER, SHUTDOWN). Nor is more said to be durable than is there.
    pub fn judge(self, received: Offset, online: &[Ack]) -> Ack {
        let mut offsets: Vec<Offset> = online.iter().map(|ack| ack.offset).collect();
        let offset = match self {
            AckPolicy::Received => received,
            AckPolicy::Quorum(quorum) => best(&mut offsets, quorum).unwrap_or(received),
            AckPolicy::All => best(&mut offsets, usize::MAX).unwrap_or(received),
        };
        let offset = offset.min(received);
        let mut durable: Vec<Offset> = online.iter().filter_map(|ack| ack.durable).collect();
        let wanted = match self {
            AckPolicy::Received => 1,
            AckPolicy::Quorum(quorum) => quorum.min(online.len()),
            AckPolicy::All => online.len(),
        };
        // A replica without such a file has nothing in one.
        let durable = if durable.len() < wanted { None } else { best(&mut durable, wanted) };
        Ack { offset, durable: durable.map(|durable| durable.min(offset)) }
    }
}

/// What `quorum` of these have, or all where they are fewer.
fn best(offsets: &mut [Offset], quorum: usize) -> Option<Offset> {
    let nth = quorum.min(offsets.len()).checked_sub(1)?;
    let (_, found, _) = offsets.select_nth_unstable_by(nth, |a, b| b.cmp(a));
    Some(*found)
}

impl FromStr for AckPolicy {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "received" => Ok(Self::Received),
            "all" => Ok(Self::All),
            _ => match text.strip_prefix("quorum:").map(str::parse) {
                Some(Ok(quorum)) if quorum > 0 => Ok(Self::Quorum(quorum)),
                _ => Err(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn o(n: u64) -> Offset {
        Offset::new(n)
    }

    fn ack(offset: u64, durable: Option<u64>) -> Ack {
        Ack { offset: o(offset), durable: durable.map(o) }
    }

    #[test]
    fn the_word_of_the_replicas_is_passed_on_as_the_policy_says() {
        let online = [ack(50, Some(40)), ack(70, None), ack(60, Some(65))];
        let said = |policy: &str, online: &[Ack]| {
            let Ack { offset, durable } = policy.parse::<AckPolicy>().unwrap().judge(o(100), online);
            (offset.get(), durable.map(Offset::get))
        };
        assert_eq!(said("received", &online), (100, Some(65)));
        assert_eq!(said("quorum:1", &online), (70, Some(65)));
        assert_eq!(said("quorum:2", &online), (60, Some(40)));
        assert_eq!(said("quorum:3", &online), (50, None), "one of the three has no file");
        assert_eq!(said("quorum:9", &online), (50, None), "as many as there are");
        assert_eq!(said("all", &online), (50, None));
        for policy in ["received", "quorum:2", "all"] {
            assert_eq!(said(policy, &[]), (100, None), "{policy} with nobody there");
        }
        for bad in ["", "quorum", "quorum:0", "quorum:-1", "quorum:x", "any"] {
            assert_eq!(bad.parse::<AckPolicy>(), Err(()), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn an_ack_is_never_above_what_was_received_nor_above_what_the_policy_asks_for(
            received in 0u64..100,
            online in prop::collection::vec((0u64..120, prop::option::of(0u64..120)), 0..6),
            quorum in 1usize..4,
        ) {
            let online: Vec<Ack> = online.iter().map(|&(offset, durable)| ack(offset, durable)).collect();
            let have = |at: Offset| online.iter().filter(|ack| ack.offset >= at).count();
            for (policy, wanted) in [(AckPolicy::Quorum(quorum), quorum.min(online.len())), (AckPolicy::All, online.len())] {
                let said = policy.judge(o(received), &online);
                prop_assert!(said.offset <= o(received));
                prop_assert!(have(said.offset) >= wanted);
                // And it is the best such value.
                prop_assert!(said.offset == o(received) || have(said.offset.forward(1)) < wanted.max(1));
                if let Some(durable) = said.durable {
                    prop_assert!(durable <= said.offset);
                    prop_assert!(online.iter().filter(|ack| ack.durable >= Some(durable)).count() >= wanted);
                }
            }
        }
    }
}
