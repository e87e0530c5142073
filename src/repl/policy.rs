//! Small rules with numbers in them: where to resume, when to try again.

use std::time::Duration;

use super::history::Ancestor;
use super::position::{Offset, Position, ReplId};

/// Most psyncd's one behind the other.
pub const MAX_HOPS: u8 = 8;

/// What we hold of the stream when we ask an upstream to go on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The current id.
    pub id: ReplId,
    /// The first byte held.
    pub start: Offset,
    /// Everything before this was received.
    pub received: Offset,
    /// The end of the last complete command outside a transaction, at most `received`; `None` for a stream that was
    /// attached to in the middle of one and has not come to its end.
    pub boundary: Option<Offset>,
}

/// What the upstream said of itself (INFO) before we ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Its current id.
    pub id: ReplId,
    /// Its previous id.
    pub previous: Option<Ancestor>,
}

/// Where to ask an upstream to resume.
///
/// - On the same id: exactly behind what was received, mid-command or not. Masters accept any byte.
/// - Where our id is its previous one: behind what was received, or at the point where its history parted
///   from ours when that is lower (a rewind: the bytes beyond were never the new master's).
/// - Otherwise at the last boundary: a promoted server's `second_repl_offset` is a boundary plus one, so asking
///   in the middle of a command could exceed it by a few bytes and cost a full sync. Nothing lower is guessed, and
///   where no boundary is known, nothing but what was received.
pub fn resume_point(held: &Held, claim: Option<&Claim>) -> Position {
    let offset = match claim {
        Some(claim) if claim.id == held.id => held.received,
        Some(Claim { previous: Some(previous), .. }) if previous.id == held.id && previous.boundary >= held.start => {
            held.received.min(previous.boundary)
        }
        _ => held.boundary.unwrap_or(held.received),
    };
    Position::new(held.id, offset)
}

/// The delay before the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Before the first repeated attempt.
    pub first: Duration,
    /// Never more than this.
    pub most: Duration,
}

impl Backoff {
    /// Toward the upstream: quick at first, since a promoted node is back within milliseconds, then once a
    /// second like a real replica.
    pub const LINK: Backoff = Backoff { first: Duration::from_millis(50), most: Duration::from_secs(1) };
    /// Before a replica whose full resyncs fail is sent another snapshot.
    pub const RESYNC: Backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_secs(60) };
    /// Between failed snapshot fetches, each of which may have made the master fork.
    pub const FETCH: Backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_secs(30) };
    /// Between attempts to speak for a replica on a link of its own: that is wanted, and nobody's data waits for it.
    pub const MIRROR: Backoff = Backoff { first: Duration::from_millis(500), most: Duration::from_secs(60) };

    /// Between attempts to write what the disk did not take.
    pub const DISK: Backoff = Backoff { first: Duration::from_millis(200), most: Duration::from_secs(10) };

    /// Before attempt number `failures + 1`: nothing before the first, then doubling up to the most.
    pub fn delay(&self, failures: u32) -> Duration {
        match failures {
            0 => Duration::ZERO,
            n => self.first.saturating_mul(1u32.checked_shl(n - 1).unwrap_or(u32::MAX)).min(self.most),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ReplId {
        ReplId::from_ascii(format!("{n:040x}").as_bytes()).unwrap()
    }

    const fn o(n: u64) -> Offset {
        Offset::new(n)
    }

    #[test]
    fn we_resume_behind_what_was_received_on_the_same_id_and_at_a_boundary_otherwise() {
        let held = Held { id: id(1), start: o(10), received: o(105), boundary: Some(o(100)) };
        let same = Claim { id: id(1), previous: None };
        let promoted = |boundary| Claim { id: id(2), previous: Some(Ancestor { id: id(1), boundary: o(boundary) }) };
        let stranger = Claim { id: id(3), previous: None };
        let at = |claim: Option<&Claim>| resume_point(&held, claim).offset;
        assert_eq!(at(Some(&same)), o(105));
        assert_eq!(at(Some(&promoted(500))), o(105), "it had more than we have");
        assert_eq!(at(Some(&promoted(100))), o(100), "it had only the whole commands");
        assert_eq!(at(Some(&promoted(60))), o(60), "it had less: rewind");
        assert_eq!(at(Some(&promoted(9))), o(100), "less than we still hold: nothing to rewind to");
        assert_eq!(at(Some(&stranger)), o(100));
        assert_eq!(at(None), o(100));
        let blind = Held { boundary: None, ..held };
        assert_eq!(resume_point(&blind, Some(&stranger)).offset, o(105));
        assert_eq!(resume_point(&blind, Some(&promoted(60))).offset, o(60));
    }

    #[test]
    fn delays_double_up_to_the_most() {
        let delays: Vec<_> = (0..8).map(|n| Backoff::LINK.delay(n).as_millis()).collect();
        assert_eq!(delays, [0, 50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(Backoff::FETCH.delay(u32::MAX), Duration::from_secs(30));
    }
}
