//! The relay's laws, one by one.

use std::collections::VecDeque;

use super::cursor::{CursorEnd, Next};
use super::judge::{Abilities, Judgement, PayloadAbility};
use super::*;
use crate::repl::{Ask, FullReason, HoldReason, ServerVersion};
use crate::repl::{Patience, RdbFormat};
use crate::store::disk::RealDisk;
use crate::store::snapshot::Shelf;

fn id(n: u8) -> ReplId {
    ReplId::from_ascii(format!("{n:040x}").as_bytes()).unwrap()
}

fn at(n: u8, offset: u64) -> Position {
    Position::new(id(n), Offset::new(offset))
}

fn relay(backlog_bytes: u64) -> Arc<Relay> {
    Relay::new(Options { backlog_bytes, journal_bytes: 0, journal_lag_bytes: 0, history_depth: 16, max_replicas: 8 })
}

fn streaming(backlog_bytes: u64) -> Arc<Relay> {
    let relay = relay(backlog_bytes);
    relay.adopt(at(1, 100), Offset::new(100), None, None);
    relay.enter(LinkState::Streaming);
    relay
}

fn bytes(n: usize) -> Bytes {
    Bytes::from(vec![b'x'; n])
}

fn append(relay: &Relay, n: usize) {
    relay.append(bytes(n), Offset::ZERO);
}

fn modern() -> Abilities {
    Abilities { payload: PayloadAbility::LengthOrMark, follow: Follow::Id, version: None, since: Offset::ZERO }
}

fn ask(position: Option<Position>) -> Ask {
    Ask { position, patience: Patience::Left }
}

fn read(relay: &Relay, cursor: &mut Cursor) -> Next {
    relay.read(cursor, usize::MAX, usize::MAX, &mut VecDeque::new())
}

#[test]
fn a_cursor_that_was_overwritten_ends_and_another_one_goes_on() {
    let relay = streaming(4096);
    let mut slow = relay.cursor(&at(1, 100), Follow::Id).unwrap();
    let mut fast = relay.cursor(&at(1, 100), Follow::Id).unwrap();
    for _ in 0..8 {
        append(&relay, 1024);
        assert_eq!(read(&relay, &mut fast), Next::Bytes(1024));
    }
    assert_eq!(read(&relay, &mut fast), Next::CaughtUp);
    assert_eq!(read(&relay, &mut slow), Next::Ended(CursorEnd::Overrun));
    assert_eq!(read(&relay, &mut slow), Next::Ended(CursorEnd::Overrun), "for good");
}

#[test]
fn a_new_id_ends_those_who_must_learn_it_and_not_the_others() {
    let relay = streaming(4096);
    append(&relay, 10);
    let mut modern = relay.cursor(&at(1, 105), Follow::Id).unwrap();
    let mut old = relay.cursor(&at(1, 105), Follow::Bytes).unwrap();
    relay.branch(Offset::new(110), id(2));
    append(&relay, 7);
    assert_eq!(read(&relay, &mut modern), Next::Ended(CursorEnd::Branched));
    assert_eq!(read(&relay, &mut old), Next::Bytes(12));
    // Who comes back at the branch continues; who claims more of the old id does not.
    let judged = relay.judge(&ask(Some(at(1, 110))), &self::modern());
    assert!(matches!(judged, Judgement::Continue { id, .. } if id == self::id(2)), "{judged:?}");
    let judged = relay.judge(&ask(Some(at(1, 111))), &self::modern());
    assert!(matches!(judged, Judgement::Fetching(FullReason::Diverged)), "{judged:?}");
}

#[test]
fn a_replica_that_was_further_than_we_were_when_the_name_changed_is_waited_for_and_continues() {
    let relay = streaming(4096);
    relay.branch(Offset::new(120), id(2));
    append(&relay, 10);
    let judged = relay.judge(&ask(Some(at(1, 115))), &modern());
    assert!(matches!(judged, Judgement::Hold(HoldReason::Ahead)), "{judged:?}");
    append(&relay, 10);
    for (offset, name) in [(115, 1), (120, 1), (120, 2)] {
        let judged = relay.judge(&ask(Some(at(name, offset))), &modern());
        assert!(matches!(judged, Judgement::Continue { id, .. } if id == self::id(2)), "{judged:?}");
    }
    append(&relay, 10);
    let judged = relay.judge(&ask(Some(at(1, 121))), &modern());
    assert!(matches!(judged, Judgement::Fetching(FullReason::Diverged)), "{judged:?}");
}

#[test]
fn a_rewind_forgets_the_bytes_beyond_the_branch_and_ends_whoever_may_have_had_them() {
    let relay = streaming(4096);
    append(&relay, 50);
    let mut cursor = relay.cursor(&at(1, 150), Follow::Bytes).unwrap();
    relay.branch(Offset::new(120), id(2));
    assert_eq!(relay.held().unwrap().1, Span { start: Offset::new(100), end: Offset::new(120) });
    append(&relay, 50);
    assert_eq!(read(&relay, &mut cursor), Next::Ended(CursorEnd::Reset));
    assert!(matches!(relay.judge(&ask(Some(at(1, 120))), &modern()), Judgement::Continue { .. }));
    assert!(matches!(relay.judge(&ask(Some(at(1, 150))), &modern()), Judgement::Fetching(FullReason::Diverged)));
}

#[test]
fn a_replaced_stream_ends_every_cursor_even_under_the_same_id() {
    let relay = streaming(4096);
    append(&relay, 50);
    let mut cursor = relay.cursor(&at(1, 150), Follow::Bytes).unwrap();
    relay.adopt(at(1, 500), Offset::new(500), None, None);
    assert_eq!(read(&relay, &mut cursor), Next::Ended(CursorEnd::Reset));
    let judged = relay.judge(&ask(Some(at(1, 150))), &modern());
    assert!(
        matches!(judged, Judgement::Fetching(FullReason::OffsetEvicted)),
        "across the gap nobody continues: {judged:?}"
    );
}

#[tokio::test]
async fn fifty_strangers_ask_for_one_fetch() {
    let relay = streaming(4096);
    for _ in 0..50 {
        assert!(matches!(relay.judge(&ask(None), &modern()), Judgement::Fetching(FullReason::Requested)));
    }
    relay.snapshot_wanted().await;
    let fetch = relay.fetch();
    for _ in 0..50 {
        assert!(matches!(relay.judge(&ask(None), &modern()), Judgement::Fetching(_)));
    }
    drop(fetch);
    let again = tokio::time::timeout(Duration::from_millis(20), relay.snapshot_wanted()).await;
    assert!(again.is_err(), "those who asked during the fetch wait for it and ask again themselves");
}

async fn snapshot(position: Position, format: RdbFormat) -> (tempfile::TempDir, Arc<Rdb>) {
    let dir = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(Arc::new(RealDisk), dir.path().join("s")).await.unwrap();
    let spool = shelf.spool(position, format, None).await.unwrap();
    (dir, spool.finish())
}

#[tokio::test]
async fn a_snapshot_serves_late_joiners_until_the_backlog_no_longer_reaches_it() {
    let relay = streaming(4096);
    let (_dir, rdb) = snapshot(at(1, 100), RdbFormat::Redis(11)).await;
    let fetch = relay.fetch();
    relay.snapshot_arriving(&rdb);
    assert!(relay.snapshot_ready(&rdb, None));
    drop(fetch);
    append(&relay, 4096);
    assert!(matches!(relay.judge(&ask(None), &modern()), Judgement::Full { .. }));
    append(&relay, 1);
    assert!(matches!(relay.judge(&ask(None), &modern()), Judgement::Fetching(_)));
    assert!(relay.status().snapshot.ready.is_none());
}

#[tokio::test]
async fn what_follows_a_snapshot_is_kept_for_those_who_are_sent_it_and_those_who_wait_their_turn() {
    use replicas::{ReplicaState, Waits};
    let relay = streaming(4096);
    let (_dir, rdb) = snapshot(at(1, 100), RdbFormat::Redis(11)).await;
    assert!(relay.snapshot_ready(&rdb, None));
    append(&relay, 50);
    assert_eq!(relay.floor(), None, "a late joiner that may come is not waited for");
    let row = relay.replicas().attach(replicas::Introduction::default(), String::new()).unwrap();
    row.wait_for(Waits::Backoff);
    assert_eq!(relay.floor(), None, "nor one that fails again and again");
    row.wait_for(Waits::Turn);
    assert_eq!(relay.floor(), Some(Offset::new(100)));
    row.note_sent(Offset::new(100), 0);
    row.enter(ReplicaState::Snapshot);
    assert_eq!(relay.floor(), Some(Offset::new(100)));
    drop(row);
    assert_eq!(relay.floor(), None);
}

#[tokio::test]
async fn a_small_snapshot_with_a_long_tail_is_fetched_anew_but_not_again_and_again() {
    let relay = streaming(1 << 40);
    let (_dir, rdb) = snapshot(at(1, 100), RdbFormat::Redis(11)).await;
    assert!(relay.snapshot_ready(&rdb, None));
    let tail = bytes(64 << 20);
    for _ in 0..2 {
        relay.append(tail.clone(), Offset::ZERO);
    }
    assert!(matches!(relay.judge(&ask(None), &modern()), Judgement::Full { .. }), "applied sooner than a fork takes");
    for _ in 0..2 {
        relay.append(tail.clone(), Offset::ZERO);
    }
    relay.be_content_until(Instant::now() + Duration::from_secs(60));
    assert!(matches!(relay.judge(&ask(None), &modern()), Judgement::Full { .. }), "the master has just forked");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    assert!(matches!(relay.judge(&ask(None), &modern()), Judgement::Fetching(_)));
    relay.enter(LinkState::Disconnected);
    assert!(matches!(relay.judge(&ask(None), &modern()), Judgement::Full { .. }), "nobody to ask");
}

#[test]
fn a_position_has_its_place() {
    let relay = streaming(4096);
    append(&relay, 50);
    relay.branch(Offset::new(120), id(2));
    append(&relay, 50);
    use snapshots::Place;
    for (position, place) in [
        (at(2, 160), Place::Held { lag_bytes: 10 }),
        (at(1, 120), Place::Held { lag_bytes: 50 }),
        (at(1, 121), Place::Foreign),
        (at(2, 99), Place::Lost),
        (at(2, 171), Place::Ahead),
        (at(3, 150), Place::Foreign),
    ] {
        assert_eq!(relay.place(&position), place, "{position:?}");
    }
    assert_eq!(self::relay(4096).place(&at(1, 0)), Place::Foreign);
}

#[tokio::test]
async fn a_snapshot_of_another_history_is_of_no_use() {
    let relay = streaming(4096);
    let (_dir, rdb) = snapshot(at(2, 100), RdbFormat::Redis(11)).await;
    assert!(!relay.snapshot_ready(&rdb, None));
    assert!(matches!(relay.judge(&ask(None), &modern()), Judgement::Fetching(_)));
}

#[tokio::test]
async fn a_replica_that_cannot_load_what_the_upstream_writes_waits_instead_of_being_wiped() {
    let relay = streaming(4096);
    let valkey = Abilities { version: ServerVersion::parse("9.0.0"), ..modern() };
    let introduction = |version| replicas::Introduction { version, ..Default::default() };
    let nine = relay.replicas().attach(introduction(valkey.version), String::new()).unwrap();
    let (_dir, rdb) = snapshot(at(1, 100), RdbFormat::Valkey(80)).await;
    assert!(relay.snapshot_ready(&rdb, valkey.version));
    assert!(matches!(relay.judge(&ask(None), &valkey), Judgement::Full { .. }));
    let _other = relay.replicas().attach(introduction(None), String::new()).unwrap();
    let judged = relay.judge(&ask(None), &modern());
    assert!(
        matches!(judged, Judgement::Fetching(_)),
        "asked for this fleet the upstream may write another: {judged:?}"
    );
    assert!(relay.snapshot_ready(&rdb, None));
    drop(nine);
    let judged = relay.judge(&ask(None), &modern());
    assert!(matches!(judged, Judgement::Hold(HoldReason::FormatUnfit)), "{judged:?}");
    relay.enter(LinkState::Disconnected);
    relay.enter(LinkState::Streaming);
    let judged = relay.judge(&ask(None), &modern());
    assert!(matches!(judged, Judgement::Fetching(_)), "another server may do better: {judged:?}");
}
