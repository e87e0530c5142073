//! The one decision psyncd stands for: what a replica that asks to be fed is answered.
//!
//! Every `Continue` is a claim that the bytes from that point on are the true sequel of what the replica
//! holds; every `Full` is a claim that the stream can be served from the snapshot's position to the head.
//! On a doubt the answer is never `Continue`.

use super::history::{History, Lineage};
use super::position::{Offset, Position, ReplId, Span};

/// All that the decision depends on, taken at one instant.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The stream we hold, once there is one.
    pub line: Option<(&'a History, Span)>,
    /// The complete snapshot, as this replica sees it.
    pub ready: Ready,
    /// The snapshot being received.
    pub arriving: Arriving,
    /// Whether the upstream feeds us now.
    pub upstream: Upstream,
}

/// The complete snapshot, as one replica sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// There is none, or it is of a format the replica cannot load; another one may do.
    No,
    /// The replica can load it.
    At(Position),
    /// The replica can load it, but with the tail behind it a fresh one would cost less; and one may be asked for now.
    Stale(Position),
    /// One was fetched for this very replica, and the replica cannot load what the upstream writes.
    Unfit,
}

/// A snapshot on its way, as one replica sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arriving {
    /// None.
    No,
    /// One this replica can be given while it arrives.
    Joinable,
    /// One this replica has to wait for: its length is not known yet and the replica needs one.
    Later,
}

/// The state of our own link, as far as it changes an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upstream {
    /// The stream flows: what we do not know is not the master's, and a snapshot can be had.
    Streaming,
    /// It does not: the master may know more than we do.
    Away,
}

/// What a replica asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Where it stands; `None` for `PSYNC ? -1` and for SYNC.
    pub position: Option<Position>,
    /// Whether it has been held for as long as it may be.
    pub patience: Patience,
}

/// Whether an answer may still be put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It may.
    Left,
    /// It may not: hold-timeout is over.
    Spent,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Serve the bytes from `from`; the stream is now called `id`.
    Continue {
        /// Where the replica stands.
        from: Offset,
        /// The current id.
        id: ReplId,
        /// How we know its bytes are ours.
        why: PartialReason,
    },
    /// Send the complete snapshot, then the stream from its position.
    Ready(FullReason),
    /// Send the snapshot while it arrives, then the stream from its position.
    Join(FullReason),
    /// Have a snapshot fetched, then decide again.
    Fetch(FullReason),
    /// Wait for the link, the head or the snapshot, then decide again.
    Hold(HoldReason),
    /// Held long enough, and there is still nothing true to say: come back later.
    NotNow(HoldReason),
}

/// Why a partial resync was possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartialReason {
    /// The replica names the current id.
    Replid,
    /// It names the id before that, at a point that is on our line.
    SecondReplid,
    /// It names an even earlier id, which no server would remember, at a point that is on our line.
    Ancestor,
}

/// Why a full resync was necessary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullReason {
    /// The replica asked for one.
    Requested,
    /// It names an id that was never ours.
    UnknownReplid,
    /// What it needs next has left the window.
    OffsetEvicted,
    /// It stayed ahead of us for longer than we hold a replica.
    OffsetAhead,
    /// It has bytes of an ancestor that are not on our line.
    Diverged,
}

/// What a held replica waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldReason {
    /// Any history at all: the first contact with the upstream is not made yet.
    NoHistory,
    /// The head to reach where the replica already is.
    Ahead,
    /// The link: the id the replica names may be what the upstream is about to tell us.
    UnknownReplid,
    /// The link: a snapshot is needed and cannot be fetched.
    NoSnapshot,
    /// The arriving snapshot to be complete.
    SnapshotArriving,
    /// An upstream that writes what the replica can load: a newer snapshot would make it throw its data away.
    FormatUnfit,
}

impl PartialReason {
    /// Log field and metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            PartialReason::Replid => "replid",
            PartialReason::SecondReplid => "second_replid",
            PartialReason::Ancestor => "ancestor",
        }
    }
}

impl FullReason {
    /// Log field and metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            FullReason::Requested => "requested",
            FullReason::UnknownReplid => "unknown_replid",
            FullReason::OffsetEvicted => "offset_evicted",
            FullReason::OffsetAhead => "offset_ahead",
            FullReason::Diverged => "diverged",
        }
    }
}

impl HoldReason {
    /// Log field.
    pub const fn as_str(self) -> &'static str {
        match self {
            HoldReason::NoHistory => "no_history",
            HoldReason::Ahead => "offset_ahead",
            HoldReason::UnknownReplid => "unknown_replid",
            HoldReason::NoSnapshot => "no_snapshot",
            HoldReason::SnapshotArriving => "snapshot_arriving",
            HoldReason::FormatUnfit => "format_unfit",
        }
    }
}

/// Decides. `PSYNC ? -1` is never continued: real servers crash on it (PROTOCOL: redis 3.2 to valkey 9.1).
///
/// The rule for `Continue` is that of redis 4.0+ replication.c, `masterTryPartialResynchronization`: the id
/// is the current one, or an earlier one at or before the point where the histories parted, and the next
/// byte wanted is in the window or is the very next one to come.
pub fn decide(view: &View<'_>, ask: &Ask) -> Verdict {
    let Some((history, window)) = view.line else {
        // Whoever wants everything anyway need not wait for the first snapshot to be complete.
        return match (ask.position, view.arriving) {
            (None, Arriving::Joinable) => Verdict::Join(FullReason::Requested),
            _ => wait(ask, HoldReason::NoHistory),
        };
    };
    let Some(position) = ask.position else {
        return full(view, ask, history, window, FullReason::Requested);
    };
    let why = match history.locate(&position) {
        Lineage::Current => PartialReason::Replid,
        Lineage::Ancestor { depth: 0 } => PartialReason::SecondReplid,
        Lineage::Ancestor { .. } => PartialReason::Ancestor,
        Lineage::Diverged { .. } => return full(view, ask, history, window, FullReason::Diverged),
        // What the upstream is about to tell us may contain this id. A replica that never had a byte of any
        // stream, as every fresh server that is made a replica, has nothing to lose.
        Lineage::Unknown if view.upstream == Upstream::Away && position.offset > Offset::ZERO => {
            return wait(ask, HoldReason::UnknownReplid);
        }
        Lineage::Unknown => return full(view, ask, history, window, FullReason::UnknownReplid),
    };
    if window.serves(position.offset) {
        return Verdict::Continue { from: position.offset, id: history.current(), why };
    }
    if position.offset < window.start {
        return full(view, ask, history, window, FullReason::OffsetEvicted);
    }
    if view.upstream == Upstream::Away || ask.patience == Patience::Left {
        return wait(ask, HoldReason::Ahead);
    }
    full(view, ask, history, window, FullReason::OffsetAhead)
}

/// Where the snapshot for an unavoidable full resync comes from, cheapest first.
fn full(view: &View<'_>, ask: &Ask, history: &History, window: Span, why: FullReason) -> Verdict {
    if (view.arriving, view.upstream) == (Arriving::Joinable, Upstream::Away) {
        // The upstream is replacing our stream; what is ready belongs to one that is about to end.
        return Verdict::Join(why);
    }
    match view.ready {
        Ready::At(snapshot) if connects(&snapshot, history, window) => return Verdict::Ready(why),
        // Old is better than nothing, and than waiting for a link.
        Ready::Stale(snapshot)
            if connects(&snapshot, history, window)
                && (view.upstream == Upstream::Away || view.arriving == Arriving::Later) =>
        {
            return Verdict::Ready(why);
        }
        Ready::Unfit => return wait(ask, HoldReason::FormatUnfit),
        Ready::At(_) | Ready::Stale(_) | Ready::No => {}
    }
    match (view.arriving, view.upstream) {
        (Arriving::Joinable, _) => Verdict::Join(why),
        // It arrives or fails within the link's own bounds.
        (Arriving::Later, _) => Verdict::Hold(HoldReason::SnapshotArriving),
        (Arriving::No, Upstream::Streaming) => Verdict::Fetch(why),
        (Arriving::No, Upstream::Away) => wait(ask, HoldReason::NoSnapshot),
    }
}

/// Whether the stream can be served from a snapshot's position on. It may lie ahead of the head: a snapshot
/// comes on a link of its own and may overtake the stream by a moment.
pub fn connects(snapshot: &Position, history: &History, window: Span) -> bool {
    match history.locate(snapshot) {
        Lineage::Current | Lineage::Ancestor { .. } => snapshot.offset >= window.start,
        Lineage::Diverged { .. } | Lineage::Unknown => false,
    }
}

fn wait(ask: &Ask, why: HoldReason) -> Verdict {
    match ask.patience {
        Patience::Left => Verdict::Hold(why),
        Patience::Spent => Verdict::NotNow(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ReplId {
        ReplId::from_ascii(format!("{n:040x}").as_bytes()).unwrap()
    }

    fn at(n: u8, offset: u64) -> Position {
        Position::new(id(n), Offset::new(offset))
    }

    const PATIENT: fn(Option<Position>) -> Ask = |position| Ask { position, patience: Patience::Left };

    /// Redis's own arithmetic, in its own terms: 1-based next byte wanted, `second_repl_offset`,
    /// first byte and length of the backlog (redis 7.0 replication.c, masterTryPartialResynchronization).
    fn redis_accepts(
        id_current: u8,
        second: Option<(u8, i64)>,
        first_byte: i64,
        histlen: i64,
        asked: (u8, i64),
    ) -> bool {
        let named = asked.0 == id_current || second.is_some_and(|(id2, limit)| asked.0 == id2 && asked.1 <= limit);
        named && asked.1 >= first_byte && asked.1 <= first_byte + histlen
    }

    #[test]
    fn in_every_small_world_we_continue_exactly_where_redis_would() {
        let mut continued = 0;
        for start in 0..5u64 {
            for head in start..8 {
                for boundary in 0..=head {
                    let mut history = History::new(id(1), 16);
                    history.branch(Offset::new(boundary), id(2));
                    let window = Span { start: Offset::new(start), end: Offset::new(head) };
                    let view = View {
                        line: Some((&history, window)),
                        ready: Ready::No,
                        arriving: Arriving::No,
                        upstream: Upstream::Streaming,
                    };
                    for asked_id in 1..=3u8 {
                        for asked in 0..11u64 {
                            let verdict = decide(&view, &PATIENT(Some(at(asked_id, asked))));
                            // In redis's terms everything is one higher: the first byte is number 1.
                            let redis = redis_accepts(
                                2,
                                Some((1, boundary as i64 + 1)),
                                start as i64 + 1,
                                (head - start) as i64,
                                (asked_id, asked as i64 + 1),
                            );
                            let ours = matches!(verdict, Verdict::Continue { .. });
                            assert_eq!(
                                ours, redis,
                                "window {start}..{head} boundary {boundary} ask {asked_id}:{asked} got {verdict:?}"
                            );
                            if let Verdict::Continue { from, id: now, .. } = verdict {
                                assert_eq!((from, now), (Offset::new(asked), id(2)));
                                continued += 1;
                            }
                        }
                    }
                }
            }
        }
        assert!(continued > 500, "the world was too small to say anything: {continued}");
    }

    #[test]
    fn a_question_mark_is_never_continued() {
        let history = History::new(id(1), 16);
        for start in 0..4 {
            for head in start..5 {
                for ready in [Ready::No, Ready::Unfit, Ready::At(at(1, 2)), Ready::Stale(at(1, 2)), Ready::At(at(9, 2))]
                {
                    for arriving in [Arriving::No, Arriving::Joinable, Arriving::Later] {
                        for upstream in [Upstream::Streaming, Upstream::Away] {
                            for patience in [Patience::Left, Patience::Spent] {
                                let window = Span { start: Offset::new(start), end: Offset::new(head) };
                                let view = View { line: Some((&history, window)), ready, arriving, upstream };
                                let verdict = decide(&view, &Ask { position: None, patience });
                                assert!(!matches!(verdict, Verdict::Continue { .. }), "{verdict:?}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_replica_ahead_of_us_is_held_not_resynced() {
        let history = History::new(id(1), 16);
        let window = Span { start: Offset::new(10), end: Offset::new(20) };
        let view = View {
            line: Some((&history, window)),
            ready: Ready::At(at(1, 15)),
            arriving: Arriving::No,
            upstream: Upstream::Streaming,
        };
        assert_eq!(decide(&view, &PATIENT(Some(at(1, 21)))), Verdict::Hold(HoldReason::Ahead));
        let spent = Ask { position: Some(at(1, 21)), patience: Patience::Spent };
        assert_eq!(decide(&view, &spent), Verdict::Ready(FullReason::OffsetAhead));
        let away = View { upstream: Upstream::Away, ..view };
        assert_eq!(
            decide(&away, &spent),
            Verdict::NotNow(HoldReason::Ahead),
            "it may be the upstream that is behind us"
        );
    }

    #[test]
    fn a_stale_snapshot_is_replaced_only_while_a_fresh_one_can_be_had() {
        let history = History::new(id(1), 16);
        let window = Span { start: Offset::new(10), end: Offset::new(20) };
        let verdict = |ready, arriving, upstream| {
            let view = View { line: Some((&history, window)), ready, arriving, upstream };
            decide(&view, &PATIENT(None))
        };
        let stale = Ready::Stale(at(1, 15));
        let why = FullReason::Requested;
        assert_eq!(verdict(stale, Arriving::No, Upstream::Streaming), Verdict::Fetch(why));
        assert_eq!(verdict(stale, Arriving::Joinable, Upstream::Streaming), Verdict::Join(why));
        assert_eq!(verdict(stale, Arriving::Later, Upstream::Streaming), Verdict::Ready(why));
        assert_eq!(verdict(stale, Arriving::No, Upstream::Away), Verdict::Ready(why));
        let lost = Ready::Stale(at(1, 9));
        assert_eq!(verdict(lost, Arriving::No, Upstream::Away), Verdict::Hold(HoldReason::NoSnapshot));
    }

    #[test]
    fn an_unknown_id_waits_for_the_link_before_it_costs_a_data_set() {
        let history = History::new(id(1), 16);
        let window = Span { start: Offset::new(10), end: Offset::new(20) };
        let mut view = View {
            line: Some((&history, window)),
            ready: Ready::At(at(1, 15)),
            arriving: Arriving::No,
            upstream: Upstream::Away,
        };
        assert_eq!(decide(&view, &PATIENT(Some(at(7, 12)))), Verdict::Hold(HoldReason::UnknownReplid));
        let spent = Ask { position: Some(at(7, 12)), patience: Patience::Spent };
        assert_eq!(decide(&view, &spent), Verdict::NotNow(HoldReason::UnknownReplid));
        assert_eq!(
            decide(&view, &PATIENT(Some(at(7, 0)))),
            Verdict::Ready(FullReason::UnknownReplid),
            "nothing to lose"
        );
        view.upstream = Upstream::Streaming;
        assert_eq!(decide(&view, &PATIENT(Some(at(7, 12)))), Verdict::Ready(FullReason::UnknownReplid));
    }

    #[test]
    fn a_snapshot_is_used_only_while_the_window_reaches_back_to_it() {
        let mut history = History::new(id(1), 16);
        history.branch(Offset::new(12), id(2));
        let window = Span { start: Offset::new(10), end: Offset::new(20) };
        let cases = [
            (at(2, 10), true),
            (at(2, 9), false),
            (at(2, 20), true),
            // Overtook the stream on its own link.
            (at(2, 25), true),
            (at(1, 12), true),
            (at(1, 13), false),
            (at(3, 15), false),
        ];
        for (snapshot, usable) in cases {
            assert_eq!(connects(&snapshot, &history, window), usable, "{snapshot}");
            let view = View {
                line: Some((&history, window)),
                ready: Ready::At(snapshot),
                arriving: Arriving::No,
                upstream: Upstream::Streaming,
            };
            let want =
                if usable { Verdict::Ready(FullReason::Requested) } else { Verdict::Fetch(FullReason::Requested) };
            assert_eq!(decide(&view, &PATIENT(None)), want, "{snapshot}");
        }
    }

    #[test]
    fn a_snapshot_that_replaces_our_stream_is_joined_rather_than_the_old_one_sent() {
        let history = History::new(id(1), 16);
        let window = Span { start: Offset::new(10), end: Offset::new(20) };
        let view = View {
            line: Some((&history, window)),
            ready: Ready::At(at(1, 15)),
            arriving: Arriving::Joinable,
            upstream: Upstream::Away,
        };
        assert_eq!(decide(&view, &PATIENT(None)), Verdict::Join(FullReason::Requested));
        let first = View { line: None, ..view };
        assert_eq!(decide(&first, &PATIENT(None)), Verdict::Join(FullReason::Requested));
        assert_eq!(decide(&first, &PATIENT(Some(at(1, 12)))), Verdict::Hold(HoldReason::NoHistory));
    }

    #[test]
    fn without_a_history_everybody_waits_and_nobody_is_resynced() {
        let view = View { line: None, ready: Ready::No, arriving: Arriving::No, upstream: Upstream::Away };
        for position in [None, Some(at(1, 5))] {
            assert_eq!(decide(&view, &PATIENT(position)), Verdict::Hold(HoldReason::NoHistory));
            let spent = Ask { position, patience: Patience::Spent };
            assert_eq!(decide(&view, &spent), Verdict::NotNow(HoldReason::NoHistory));
        }
    }
}
