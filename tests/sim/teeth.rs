//! Does a checker that never complains check anything? Each lie of a master is told once, and must be caught.

use std::time::Duration;

use crate::log::Log;
use crate::master::{self, Slip};
use crate::network::Weather;
use crate::pipe;
use crate::replica::{self, Habit};
use crate::world::{Fault, MASTER, Plan, replica_name, run};

/// A quiet world of one or more replicas, in which the master makes one mistake.
fn quiet(slip: Slip, master: master::Setup, count: usize) -> Plan {
    let at = Duration::from_secs(20);
    Plan {
        seed: 1,
        master,
        psyncd: Default::default(),
        replicas: vec![replica::Setup::default(); count],
        weather: Weather::default(),
        faults: vec![(at, Fault::Slip(slip)), (at, Fault::Cut(MASTER.into(), replica_name(0), None))],
        arrivals: vec![Duration::from_millis(100); count],
        calm_at: Duration::from_secs(60),
        clients: 0,
        settle_within: Duration::from_secs(60),
    }
}

#[track_caller]
fn caught(plan: Plan, words: &str) {
    let outcome = run(plan, None, Log::default());
    let said = outcome.violations.first().map(String::as_str).unwrap_or("nothing");
    assert!(said.contains(words), "expected a complaint about {words:?}, the checks said: {said}");
}

/// Slips that show only when a payload is sent: the replica has lost everything first.
fn full(slip: Slip, diskless: bool) -> Plan {
    let mut plan = quiet(slip, master::Setup { diskless, ..Default::default() }, 1);
    plan.faults[1].1 = Fault::RestartReplica(0);
    plan
}

#[test]
fn a_wrong_byte_in_the_stream_is_caught() {
    caught(quiet(Slip::WrongByte, master::Setup::default(), 1), "differs at");
}

#[test]
fn a_repeated_byte_in_the_stream_is_caught() {
    caught(quiet(Slip::TwiceByte, master::Setup::default(), 1), "differs at");
}

#[test]
fn a_newline_in_the_live_stream_is_caught() {
    caught(quiet(Slip::InjectedNewline, master::Setup::default(), 1), "differs at");
}

#[test]
fn a_full_resync_without_need_is_caught() {
    caught(quiet(Slip::NeedlessFull, master::Setup::default(), 1), "needless full resync");
}

#[test]
fn a_continue_that_is_no_sequel_is_caught() {
    let mut plan = quiet(Slip::ContinueAnything, master::Setup::default(), 1);
    plan.faults[1].1 = Fault::LoseEverything(Duration::from_secs(1));
    caught(plan, "is no sequel of");
}

#[test]
fn a_continue_for_a_stranger_is_caught() {
    caught(full(Slip::ContinueAnything, true), "+CONTINUE for `PSYNC ? -1`");
}

#[test]
fn a_broken_payload_in_whole_framing_is_caught() {
    for diskless in [true, false] {
        for slip in [Slip::WrongCrc, Slip::WrongMagic, Slip::ShortPayload] {
            caught(full(slip, diskless), "loads a broken RDB");
        }
    }
}

#[test]
fn a_snapshot_at_another_offset_than_announced_is_caught() {
    caught(full(Slip::WrongOffset, true), "got a snapshot of");
}

#[test]
fn bytes_behind_the_mark_are_caught() {
    let outcome = run(full(Slip::GluedBehindMark, true), None, Log::default());
    let said = outcome.violations.first().cloned().unwrap_or_default();
    assert!(said.contains("behind the mark") || said.contains("between the mark"), "{said:?}");
}

#[test]
fn malformed_replies_are_caught() {
    for slip in [Slip::ShortId, Slip::LowerCase] {
        caught(full(slip, true), "malformed reply");
    }
    caught(full(Slip::EmptyPayload, true), "loads a broken RDB");
    caught(full(Slip::BadHeader, true), "a payload's header was");
}

fn with_habit(habit: Habit) -> Plan {
    let mut plan = quiet(Slip::ManyNewlines, master::Setup::default(), 2);
    plan.faults.clear();
    plan.replicas[1].habit = Some(habit);
    plan
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_is_caught() {
    caught(with_habit(Habit::AcksAhead), "acknowledged");
}

#[test]
fn a_psync_behind_unread_replies_is_caught() {
    caught(with_habit(Habit::Hasty), "before every reply was read");
}

#[test]
fn a_command_on_the_live_link_is_caught() {
    caught(with_habit(Habit::Talkative), "a follower said");
}

#[test]
fn a_replica_that_never_gets_there_is_caught() {
    caught(with_habit(Habit::Deaf), "but r1 has");
}

#[test]
fn a_client_that_is_answered_wrongly_is_caught() {
    // Clients speak to whatever answers at the address: here a pipe to a replica's port, where nobody is.
    let mut plan = quiet(Slip::ManyNewlines, master::Setup::default(), 1);
    plan.faults.clear();
    plan.clients = 1;
    let outcome = run(plan, Some(std::rc::Rc::new(pipe::Garbling)), Log::default());
    assert!(outcome.violations.first().is_some_and(|v| v.starts_with("c0: ")), "{:?}", outcome.violations);
}

#[test]
fn several_snapshots_at_once_are_caught_where_one_is_promised() {
    struct Greedy;
    impl crate::world::Subject for Greedy {
        fn run(
            &self,
            seams: crate::world::Seams,
        ) -> std::pin::Pin<Box<dyn std::future::Future<Output = turmoil::Result>>> {
            crate::pipe::Pipe.run(seams)
        }
        fn serves(&self, _: &psyncd::repl::Position) -> Option<bool> {
            None
        }
    }
    let mut plan = quiet(Slip::ManyNewlines, master::Setup::default(), 3);
    plan.faults.clear();
    let outcome = run(plan, Some(std::rc::Rc::new(Greedy)), Log::default());
    assert!(outcome.violations.first().is_some_and(|v| v.contains("fetched at once")), "{:?}", outcome.violations);
}

#[test]
fn in_fair_weather_one_fork_serves_a_storm_and_links_cost_nothing() {
    let mut plan = quiet(Slip::ManyNewlines, master::Setup::default(), 5);
    plan.faults.clear();
    for second in [10, 20, 30] {
        plan.faults.push((Duration::from_secs(second), Fault::KillLinks));
    }
    let outcome = run(plan, None, Log::default());
    assert_eq!(outcome.violations, Vec::<String>::new());
    assert_eq!(outcome.master.forks, 1);
    for counts in outcome.replicas {
        assert_eq!((counts.fulls, counts.partials), (1, 3));
    }
}
