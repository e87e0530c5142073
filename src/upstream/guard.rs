//! The wipe guard at work: what the master last had, which master is held, and what somebody said about it. The
//! judgement itself is [`crate::repl::guard`]'s.
//!
//! ```text
//!            examine: Pass                       followed
//!   [free] ─────────────────▶ link goes on ───────────────▶ [free], and what it has is the new measure
//!     │ examine, weigh: Hold                                   ▲
//!     ▼                          release, or the data is back  │
//!   [held] ── asked again every [`RETRY`] ─────────────────────┘
//!     └─ reject: the same, without reminders, until another process answers
//! ```
//!
//! It is asked before PSYNC, so that a master that is held does not even fork. Only where a master denies INFO its RDB
//! has to be received before it can be judged.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::conversation::LinkEnd;
use crate::counters::CounterSet;
use crate::label;
use crate::live::Live;
use crate::repl::guard::{Decision, Identity, Known, Loss, Mode, Reason, Rules, Ruling, Seen, judge};
use crate::repl::{Ancestor, Position, ReplId};
use crate::wire::info::{LinkStatus, MasterInfo};

/// Between questions to a master that is held, each an INFO on a connection of its own.
pub const RETRY: Duration = Duration::from_secs(2);
/// The same where INFO is denied, so that each question makes the master fork.
pub const RETRY_BLIND: Duration = Duration::from_secs(300);
/// Between reminders in the log.
pub const REMIND: Duration = Duration::from_secs(600);

label! {
    /// What became of a master that lost its data.
    pub enum Outcome {
        /// It was held.
        Held = "held",
        /// Somebody had it followed.
        Released = "released",
        /// Somebody had it held for good.
        Rejected = "rejected",
        /// It, or another one, came back with the data.
        Resumed = "resumed",
        /// It was followed, because the guard only warns.
        Warned = "warned",
    }
}

/// What a master may do before it has been weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Anything.
    Free,
    /// Send its RDB, which nobody is given before [`Guard::weigh`] has seen its size.
    Weighed,
}

/// There is no master to rule on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NothingHeld;

/// The guard at one instant.
#[derive(Debug, Clone, Copy)]
pub struct GuardStatus {
    /// What it is set to.
    pub rules: Rules,
    /// What the master last had.
    pub known: Option<Known>,
    /// The master that is held, or was released and is not followed yet.
    pub held: Option<HeldStatus>,
}

/// A master that is held.
#[derive(Debug, Clone, Copy)]
pub struct HeldStatus {
    /// Which process.
    pub identity: Identity,
    /// What it lost, as it was last asked.
    pub loss: Loss,
    /// What somebody said about it.
    pub ruling: Ruling,
    /// Since when, as wall-clock time in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// For how long.
    pub age: Duration,
}

impl GuardStatus {
    /// Whether the replicas are being kept from a master.
    pub fn is_active(&self) -> bool {
        self.held.is_some_and(|held| held.ruling != Ruling::Released)
    }
}

/// The guard. Shared by the link, the side link, the census and whoever rules.
#[derive(Debug)]
pub struct Guard {
    rules: Live<Rules>,
    /// Where rulings are taken, to be named in the log.
    socket: Option<PathBuf>,
    /// Held for one verb of this type, never across an await.
    state: Mutex<State>,
    ruled: Notify,
    learned: Notify,
    /// What happened so far.
    pub outcomes: CounterSet<Outcome>,
}

#[derive(Debug, Default)]
struct State {
    known: Option<Known>,
    held: Option<Holding>,
    /// The last one that was warned about.
    warned: Option<Identity>,
}

#[derive(Debug)]
struct Holding {
    identity: Identity,
    loss: Loss,
    ruling: Ruling,
    since: Instant,
    since_unix_ms: u64,
    /// When the log last said so.
    said: Instant,
}

impl Guard {
    /// A guard that remembers `known` of the master, and names `socket` as the place for rulings.
    pub fn new(rules: Rules, known: Option<Known>, socket: Option<PathBuf>) -> Self {
        let state = State { known, ..State::default() };
        Self {
            rules: Live::new(rules),
            socket,
            state: Mutex::new(state),
            ruled: Notify::new(),
            learned: Notify::new(),
            outcomes: CounterSet::new(),
        }
    }

    /// Judges a master that has said what it has, before it is asked for anything. `Err` when it is held.
    pub fn examine(&self, master: &dyn std::fmt::Display, info: Option<&MasterInfo>) -> Result<Admission, LinkEnd> {
        let seen = seen(info);
        let mut state = self.state();
        match self.judge(&state, &seen) {
            Decision::Hold(_) if follows_nobody(info) => {
                Err(LinkEnd::NotNow("it is a replica without a link to its master".into()))
            }
            Decision::Hold(loss) => Err(self.hold(&mut state, master, seen.identity, loss)),
            Decision::Warn(loss) => {
                self.warn(&mut state, master, seen.identity, loss);
                Ok(Admission::Free)
            }
            Decision::Pass(Reason::Unmeasured) => match (&state.known, &state.held) {
                (Some(Known { rdb_bytes: Some(_), .. }), _) => Ok(Admission::Weighed),
                // What it was held for cannot have got better by its saying less.
                (_, Some(held)) if held.ruling != Ruling::Released => Err(LinkEnd::Held(RETRY)),
                _ => Ok(Admission::Free),
            },
            Decision::Pass(Reason::Enough | Reason::Sequel | Reason::Small) => {
                self.let_go(&mut state, master);
                Ok(Admission::Free)
            }
            Decision::Pass(Reason::Off | Reason::FirstContact | Reason::Released) => Ok(Admission::Free),
        }
    }

    /// Judges a master that could not say what it has by the RDB it sent for `position`. `Err` when it is held.
    pub fn weigh(
        &self,
        master: &dyn std::fmt::Display,
        info: Option<&MasterInfo>,
        position: Position,
        rdb_bytes: u64,
    ) -> Result<(), LinkEnd> {
        let said = seen(info);
        let identity = Identity { replid: Some(position.id), ..said.identity };
        let previous = said.line.and_then(|(_, previous)| previous);
        let seen = Seen { identity, line: Some((position, previous)), keys: None, rdb_bytes: Some(rdb_bytes) };
        let mut state = self.state();
        match self.judge(&state, &seen) {
            Decision::Hold(loss) => {
                self.hold(&mut state, master, identity, loss);
                Err(LinkEnd::Held(RETRY_BLIND))
            }
            Decision::Warn(loss) => {
                self.warn(&mut state, master, identity, loss);
                Ok(())
            }
            Decision::Pass(_) => Ok(()),
        }
    }

    /// Whether a snapshot from this master may be asked for on the side. Nothing is held or said on account of it: the
    /// link itself is about to meet the same master.
    pub fn allows_fetch(&self, info: Option<&MasterInfo>) -> bool {
        !matches!(self.judge(&self.state(), &seen(info)), Decision::Hold(_))
    }

    /// Whether a data set of another history of which nothing else is known must not be given to anybody unweighed.
    pub fn is_wary(&self) -> bool {
        self.rules().mode == Mode::Hold && self.state().known.is_some()
    }

    /// The link follows this master now, which is at `position`. From here on it is measured by what it has.
    /// `sent` is the size of its RDB if it sent one.
    pub fn followed(&self, info: Option<&MasterInfo>, position: Position, sent: Option<u64>) {
        if self.rules().mode == Mode::Off {
            return;
        }
        let said = seen(info);
        let mut state = self.state();
        let before = state.known.unwrap_or_default();
        state.held = None;
        state.warned = None;
        state.known = Some(match (sent, said.keys) {
            (Some(_), keys) => Known { position: Some(position), keys, rdb_bytes: sent },
            (None, Some(_)) => {
                // What was counted belongs to the point where it was counted.
                let counted = said.line.map_or(position, |(at, _)| at);
                Known { position: Some(counted), keys: said.keys, ..before }
            }
            // It goes on from what was counted when it still could be.
            (None, None) if before.keys.is_some() => before,
            (None, None) => Known { position: Some(position), ..before },
        });
        drop(state);
        self.learned.notify_one();
    }

    /// The master that is followed, whose stream has the id `following`, was asked again. Another one that answered in
    /// its place is not counted.
    pub fn counted(&self, info: &MasterInfo, following: ReplId) {
        let said = seen(Some(info));
        let (Some(keys), Some((position, _))) = (said.keys, said.line) else { return };
        let mut state = self.state();
        if position.id != following || state.held.is_some() {
            return;
        }
        let rdb_bytes = state.known.and_then(|known| known.rdb_bytes);
        state.known = Some(Known { position: Some(position), keys: Some(keys), rdb_bytes });
        drop(state);
        self.learned.notify_one();
    }

    /// The master that is followed sent an RDB of this size on the side.
    pub fn sent(&self, rdb_bytes: u64) {
        let mut state = self.state();
        if state.held.is_some() {
            return;
        }
        if let Some(known) = &mut state.known {
            known.rdb_bytes = Some(rdb_bytes);
            drop(state);
            self.learned.notify_one();
        }
    }

    /// Follow the master that is held, this once.
    pub fn release(&self) -> Result<HeldStatus, NothingHeld> {
        self.rule(Ruling::Released, Outcome::Released)
    }

    /// Go on holding it, and say no more about it.
    pub fn reject(&self) -> Result<HeldStatus, NothingHeld> {
        self.rule(Ruling::Rejected, Outcome::Rejected)
    }

    /// Resolves when somebody ruled since the last time. For one waiter: the link. Cancel-safe.
    pub async fn ruled(&self) {
        self.ruled.notified().await;
    }

    /// Resolves when what is known of the master changed since the last time. For one waiter: the census. Cancel-safe.
    pub async fn learned(&self) {
        self.learned.notified().await;
    }

    /// What the master last had.
    pub fn known(&self) -> Option<Known> {
        self.state().known
    }

    /// What it is set to.
    pub fn rules(&self) -> Rules {
        *self.rules.get()
    }

    /// Judges by `rules` from now on. A master that is held is asked again and judged by them, too.
    pub fn set_rules(&self, rules: Rules) {
        self.rules.set(rules);
        self.ruled.notify_one();
    }

    /// The guard now.
    pub fn status(&self) -> GuardStatus {
        let state = self.state();
        let held = state.held.as_ref().map(Holding::status);
        GuardStatus { rules: self.rules(), known: state.known, held }
    }

    fn judge(&self, state: &State, seen: &Seen) -> Decision {
        let held = state.held.as_ref().map(|held| (&held.identity, held.ruling));
        judge(&self.rules(), state.known.as_ref(), held, seen)
    }

    /// Holds it, or goes on to, and says so when it is news or long ago.
    fn hold(&self, state: &mut State, master: &dyn std::fmt::Display, identity: Identity, loss: Loss) -> LinkEnd {
        let now = Instant::now();
        match &mut state.held {
            Some(held) if held.identity.is(&identity) => {
                held.loss = loss;
                if held.ruling == Ruling::Rejected || now - held.said < REMIND {
                    return LinkEnd::Held(RETRY);
                }
                held.said = now;
            }
            held => {
                let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let since_unix_ms = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
                let ruling = Ruling::Open;
                *held = Some(Holding { identity, loss, ruling, since: now, since_unix_ms, said: now });
                self.outcomes.increment(Outcome::Held);
            }
        }
        let Loss { unit, before, now } = loss;
        let (release, reject) = (self.command("release"), self.command("reject"));
        error!(event = "wipe_guard_holds", %master, %identity, unit = unit.as_str(), before, now, release, reject, "wipe guard holds the replicas on their data: the master lost its own");
        LinkEnd::Held(RETRY)
    }

    fn warn(&self, state: &mut State, master: &dyn std::fmt::Display, identity: Identity, loss: Loss) {
        if state.warned.is_some_and(|warned| warned.is(&identity)) {
            return;
        }
        state.warned = Some(identity);
        self.outcomes.increment(Outcome::Warned);
        let Loss { unit, before, now } = loss;
        warn!(event = "wipe_guard_warns", %master, %identity, unit = unit.as_str(), before, now, "master lost its data, and the replicas follow it: wipe-guard only warns");
    }

    fn let_go(&self, state: &mut State, master: &dyn std::fmt::Display) {
        if let Some(held) = state.held.take() {
            self.outcomes.increment(Outcome::Resumed);
            let held_ms = held.since.elapsed().as_millis() as u64;
            info!(event = "wipe_guard_lets_go", %master, held_ms, "wipe guard lets go: the data is back");
        }
    }

    fn rule(&self, ruling: Ruling, outcome: Outcome) -> Result<HeldStatus, NothingHeld> {
        let mut state = self.state();
        let held = state.held.as_mut().ok_or(NothingHeld)?;
        if held.ruling != ruling {
            held.ruling = ruling;
            self.outcomes.increment(outcome);
            info!(event = "wipe_guard_ruled", identity = %held.identity, ruling = ruling.as_str(), "wipe guard was told");
        }
        let status = held.status();
        drop(state);
        self.ruled.notify_one();
        Ok(status)
    }

    /// The exact words for a terminal.
    pub fn command(&self, verb: &str) -> String {
        match &self.socket {
            Some(socket) => format!("psyncd guard {verb} --socket {}", socket.display()),
            None => format!("psyncd guard {verb} (needs the setting socket and a restart)"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics holding it")
    }
}

impl Holding {
    fn status(&self) -> HeldStatus {
        let Holding { identity, loss, ruling, since, since_unix_ms, .. } = *self;
        HeldStatus { identity, loss, ruling, since_unix_ms, age: since.elapsed() }
    }
}

/// What a master says of itself, as far as it is to be judged by it.
fn seen(info: Option<&MasterInfo>) -> Seen {
    let Some(info) = info else { return Seen::default() };
    let run = info.run_id.as_ref().and_then(|run_id| run_id.parse().ok());
    // Before 4.0 the id of a stream is the id of the process.
    let replid = info.replid.or(run);
    let previous = info.replid2.map(|(id, boundary)| Ancestor { id, boundary });
    Seen {
        identity: Identity { run, replid },
        line: replid.zip(info.offset).map(|(id, offset)| (Position::new(id, offset), previous)),
        // A server that loads has what it has loaded so far.
        keys: info.keys.filter(|_| info.loading != Some(true)),
        rdb_bytes: None,
    }
}

/// Whether it is a replica that has lost its master: it would refuse a PSYNC, and maybe waits for its own full sync.
fn follows_nobody(info: Option<&MasterInfo>) -> bool {
    info.is_some_and(|info| info.link == Some(LinkStatus::Down))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repl::Offset;

    const RULES: Rules = Rules { mode: Mode::Hold, min_keys: 1000, min_percent: 10 };

    fn id(n: u8) -> ReplId {
        format!("{n:040x}").parse().unwrap()
    }

    fn process(run: u8, keys: u64) -> MasterInfo {
        MasterInfo {
            replid: Some(id(run)),
            run_id: Some(id(run).to_string()),
            offset: Some(Offset::new(100)),
            keys: Some(keys),
            ..MasterInfo::default()
        }
    }

    fn position(run: u8) -> Position {
        Position::new(id(run), Offset::new(100))
    }

    /// A guard whose link has followed process 1 with 5000 keys.
    fn guard(mode: Mode) -> Guard {
        let guard = Guard::new(Rules { mode, ..RULES }, None, Some("/run/s".into()));
        assert_eq!(guard.examine(&"m", Some(&process(1, 5000))).unwrap(), Admission::Free);
        guard.followed(Some(&process(1, 5000)), position(1), None);
        guard
    }

    fn is_held(guard: &Guard, info: Option<&MasterInfo>) -> bool {
        match guard.examine(&"m", info) {
            Ok(_) => false,
            Err(LinkEnd::Held(_)) => true,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_released_master_is_followed_and_then_is_the_measure() {
        let guard = guard(Mode::Hold);
        assert!(guard.release().is_err(), "nothing is released in advance");
        assert!(is_held(&guard, Some(&process(2, 0))) && is_held(&guard, Some(&process(2, 0))));
        assert_eq!((guard.outcomes.get(Outcome::Held), guard.status().is_active()), (1, true));
        guard.release().unwrap();
        assert!(!guard.status().is_active());
        assert!(!is_held(&guard, Some(&process(2, 0))), "and again, should its sync fail");
        guard.followed(Some(&process(2, 0)), position(2), Some(180));
        assert_eq!(guard.known(), Some(Known { position: Some(position(2)), keys: Some(0), rdb_bytes: Some(180) }));
        assert!(guard.status().held.is_none() && !is_held(&guard, Some(&process(3, 0))), "nothing to lose any more");
        assert!(guard.release().is_err());
    }

    #[test]
    fn a_release_is_not_for_the_next_one() {
        let guard = guard(Mode::Hold);
        assert!(is_held(&guard, Some(&process(2, 0))));
        guard.release().unwrap();
        assert!(is_held(&guard, Some(&process(3, 0))), "it was restarted once more");
        assert_eq!((guard.outcomes.get(Outcome::Held), guard.status().held.unwrap().ruling), (2, Ruling::Open));
    }

    #[test]
    fn a_rejected_master_stays_held_until_one_with_the_data_comes() {
        let guard = guard(Mode::Hold);
        assert!(is_held(&guard, Some(&process(2, 0))));
        guard.reject().unwrap();
        assert!(is_held(&guard, Some(&process(2, 20))) && guard.status().is_active());
        assert_eq!(guard.status().held.unwrap().loss.now, 20);
        assert!(!is_held(&guard, Some(&process(3, 4000))));
        assert_eq!((guard.outcomes.get(Outcome::Resumed), guard.status().is_active()), (1, false));
    }

    #[test]
    fn a_warning_is_given_once_for_each_master() {
        let guard = guard(Mode::Warn);
        for run in [2, 2, 3] {
            assert!(!is_held(&guard, Some(&process(run, 0))));
        }
        assert_eq!((guard.outcomes.get(Outcome::Warned), guard.outcomes.get(Outcome::Held)), (2, 0));
    }

    #[test]
    fn another_process_in_the_masters_place_is_not_counted() {
        let guard = guard(Mode::Hold);
        guard.counted(&process(2, 0), id(1));
        assert_eq!(guard.known().unwrap().keys, Some(5000));
        guard.counted(&process(1, 7000), id(1));
        assert_eq!(guard.known().unwrap().keys, Some(7000));
        assert!(is_held(&guard, Some(&process(2, 0))));
        guard.counted(&process(1, 3), id(1));
        assert_eq!(guard.known().unwrap().keys, Some(7000), "nor anything while one is held");
    }

    #[test]
    fn where_info_is_denied_an_rdb_is_weighed_before_anybody_has_it() {
        let guard = Guard::new(RULES, None, None);
        assert_eq!(guard.examine(&"m", None).unwrap(), Admission::Free, "first contact");
        guard.followed(None, position(1), Some(1_000_000));
        assert_eq!(guard.examine(&"m", None).unwrap(), Admission::Weighed);
        assert!(matches!(guard.weigh(&"m", None, position(2), 180), Err(LinkEnd::Held(RETRY_BLIND))));
        guard.release().unwrap();
        assert_eq!(guard.examine(&"m", None).unwrap(), Admission::Weighed, "who it is shows only afterwards");
        assert!(guard.weigh(&"m", None, position(3), 180).is_err(), "another one");
        guard.release().unwrap();
        guard.weigh(&"m", None, position(3), 180).unwrap();
    }

    #[test]
    fn a_master_that_falls_silent_about_itself_is_not_let_off() {
        let guard = guard(Mode::Hold);
        assert!(is_held(&guard, Some(&process(2, 0))));
        assert!(is_held(&guard, None), "INFO was denied to us meanwhile");
    }

    #[test]
    fn a_replica_that_waits_for_its_own_master_is_not_judged_yet() {
        let guard = guard(Mode::Hold);
        let syncing = MasterInfo { link: Some(LinkStatus::Down), ..process(2, 0) };
        assert!(matches!(guard.examine(&"m", Some(&syncing)), Err(LinkEnd::NotNow(_))));
        assert!(guard.status().held.is_none());
    }
}
