use super::*;
use crate::counters::Label;
use crate::relay::status::{LineStatus, SnapshotStatus};
use crate::repl::{Offset, ReplId, Span};

const MB: u64 = 1 << 20;

fn replica(name: &str, lag_seconds: f64, remaining: u64) -> ReplicaStatus {
    ReplicaStatus {
        id: 0,
        name: name.to_owned(),
        host: name.to_owned(),
        port: 6379,
        peer: "p".to_owned(),
        version: None,
        state: ReplicaState::Online,
        waits: None,
        priority: None,
        sent: Offset::ZERO,
        acked: Offset::ZERO,
        lag_bytes: 0,
        lag: Duration::from_secs_f64(lag_seconds),
        remaining_bytes: Some(remaining),
        silent: Duration::from_millis(500),
        attached: Duration::from_secs(60),
        stream_bytes: 0,
        snapshot_bytes: 0,
        snapshot_length: None,
    }
}

/// Streams a megabyte a second into 7800 of them.
fn status(replicas: Vec<ReplicaStatus>) -> Status {
    let window = Span { start: Offset::ZERO, end: Offset::new(MB) };
    Status {
        link: LinkState::Streaming,
        line: Some(LineStatus {
            replid: ReplId::from_ascii(&[b'a'; 40]).unwrap(),
            ancestors: Vec::new(),
            window,
            memory: window,
            archived: None,
            coverage: Duration::from_secs(60),
            rate: MB as f64,
            runway_seconds: 7800.0,
        }),
        backlog_limit_bytes: 7800 * MB,
        journal_limit_bytes: 0,
        backlog_evicted_bytes: 0,
        snapshot: SnapshotStatus { ready: None, ready_age: None, arriving: None, requested: false },
        replicas,
        max_replicas: 64,
    }
}

fn scene(status: &Status) -> Scene<'_> {
    let silent = Some(Duration::from_millis(100));
    Scene { upstream: "10.0.0.1:6379", status, down: None, silent, draining: false, held: false, degraded: false }
}

#[test]
fn when_all_is_well_one_line_says_so_in_numbers() {
    let status =
        status(vec![replica("a", 0.0, 7000 * MB), replica("b", 0.24, 7000 * MB), replica("c", 0.1, 7000 * MB)]);
    let verdict = judge(&scene(&status));
    assert_eq!(
        verdict,
        Verdict {
            grade: Grade::Ok,
            text: "Streaming from 10.0.0.1:6379, 3 replicas online, worst lag 0.2 s, survives an outage of 2 h 10 m"
                .into(),
            problems: vec![],
            link: Grade::Ok,
        }
    );
}

#[test]
fn a_lost_upstream_is_a_warning_for_a_moment_and_then_bad() {
    let mut status = status(vec![replica("a", 0.0, 7000 * MB)]);
    for (link, seconds, grade) in [
        (LinkState::Disconnected, 1, Grade::Warn),
        (LinkState::Connecting, 4, Grade::Warn),
        (LinkState::Handshake, 5, Grade::Bad),
        (LinkState::Disconnected, 700, Grade::Bad),
    ] {
        status.link = link;
        let verdict = judge(&Scene { down: Some(Duration::from_secs(seconds)), ..scene(&status) });
        assert_eq!((verdict.grade, verdict.link), (grade, grade));
        assert!(verdict.text.starts_with("Lost the upstream 10.0.0.1:6379 "), "{}", verdict.text);
        assert!(verdict.text.contains("1 replica online") && !verdict.text.contains("streaming"), "{}", verdict.text);
    }
}

#[test]
fn every_state_of_the_link_has_its_words() {
    let mut status = status(vec![]);
    for (link, held, grade, word) in [
        (LinkState::Streaming, false, Grade::Ok, "Streaming from"),
        (LinkState::Streaming, true, Grade::Bad, "wipe guard holds"),
        (LinkState::Held, false, Grade::Bad, "wipe guard holds"),
        (LinkState::Syncing, false, Grade::Warn, "Receiving the data set"),
        (LinkState::Disconnected, false, Grade::Bad, "Never reached"),
        (LinkState::Connecting, false, Grade::Bad, "Never reached"),
        (LinkState::Handshake, false, Grade::Bad, "Never reached"),
    ] {
        status.link = link;
        let verdict = judge(&Scene { held, ..scene(&status) });
        assert_eq!(verdict.grade, grade, "{link:?}");
        assert!(verdict.text.contains(word), "{link:?}: {}", verdict.text);
    }
    status.link = LinkState::Streaming;
    let silent = judge(&Scene { silent: Some(Duration::from_secs(45)), ..scene(&status) });
    assert!(silent.grade == Grade::Warn && silent.text.contains("has sent nothing for 45 s"), "{}", silent.text);
}

#[test]
fn a_replica_is_in_danger_only_when_it_lags_and_its_bytes_run_out() {
    let rate = MB as f64;
    for (lag, remaining, silent, grade, word) in [
        (0.1, 30 * MB, 0, Grade::Ok, "up to date"),
        (9.9, 30 * MB, 0, Grade::Ok, "up to date"),
        (11.0, 30 * MB, 0, Grade::Bad, "falls off in 30 s"),
        (11.0, 600 * MB, 0, Grade::Warn, "is 11 s behind"),
        (30.0, 600 * MB, 25, Grade::Warn, "silent for 25 s, 30 s behind"),
        (0.0, 600 * MB, 25, Grade::Warn, "has been silent for 25 s"),
        (90.0, 0, 0, Grade::Bad, "has fallen off"),
    ] {
        let mut one = replica("a", lag, remaining);
        one.silent = Duration::from_secs(silent);
        let verdict = judge_replica(&one, rate);
        assert_eq!(verdict.grade, grade, "{lag} {remaining}: {}", verdict.text);
        assert!(verdict.text.contains(word), "{lag} {remaining}: {}", verdict.text);
    }
    assert_eq!(judge_replica(&replica("a", 20.0, 5 * MB), 0.0).falls_off_in, None, "nothing is being written");
}

#[test]
fn a_replica_on_its_way_is_no_problem() {
    for state in [ReplicaState::Waiting, ReplicaState::Snapshot, ReplicaState::Catchup] {
        for waits in Waits::ALL {
            let mut one = replica("a", 500.0, 0);
            (one.state, one.waits, one.remaining_bytes) = (state, Some(*waits), None);
            let held_back = state == ReplicaState::Waiting && *waits == Waits::Backoff;
            let verdict = judge_replica(&one, 1.0);
            assert_eq!(verdict.grade, if held_back { Grade::Warn } else { Grade::Busy }, "{state:?} {waits:?}");
            let whole = judge(&scene(&status(vec![one])));
            assert_eq!(whole.grade, verdict.grade);
            assert!(whole.text.contains("0 of 1 replicas online"), "{}", whole.text);
        }
    }
}

#[test]
fn the_worst_comes_first_and_the_others_are_counted() {
    let mut status = status(vec![replica("slow", 12.0, 7000 * MB), replica("lost", 12.0, 5 * MB)]);
    if let Some(line) = &mut status.line {
        line.runway_seconds = 60.0;
    }
    let verdict = judge(&Scene { degraded: true, draining: true, ..scene(&status) });
    assert_eq!(verdict.grade, Grade::Bad);
    assert!(verdict.text.starts_with("Replica lost falls off in 5.0 s, and 4 more; streaming"), "{}", verdict.text);
    let grades: Vec<_> = verdict.problems.iter().map(|problem| problem.grade).collect();
    assert_eq!(grades, [Grade::Bad, Grade::Warn, Grade::Warn, Grade::Warn, Grade::Warn]);
}

#[test]
fn times_have_two_units_at_most() {
    for (seconds, text) in [
        (0.0, "0.0 s"),
        (0.25, "0.2 s"),
        (9.99, "9.9 s"),
        (59.9, "59 s"),
        (61.0, "1 m 1 s"),
        (7800.0, "2 h 10 m"),
        (90_000.0, "1 d 1 h"),
    ] {
        assert_eq!(span(Duration::from_secs_f64(seconds)), text);
    }
    assert_eq!(Grade::ALL.iter().max(), Some(&Grade::Bad));
}
