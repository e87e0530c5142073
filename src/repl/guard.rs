//! The wipe guard: whether what a master has now may take the place of what it had.
//!
//! The best known way to lose a data set: a master without persistence dies, a supervisor has it back within a second,
//! empty, and every replica obediently throws away the last copy. The guard stands in the way of that, and of nothing
//! else. It acts only on a *reset*: a stream that does not contain the point at which the master's keys were last
//! counted. When the stream contains it, a drop in keys came as commands, which every replica was sent anyway.

use std::fmt;
use std::str::FromStr;

use super::history::{Ancestor, History, Lineage};
use super::position::{Position, ReplId};

/// A master that is held although it may once have been let through has to have this much of its keys back, in percent:
/// a cache that fills itself again under the same process is not the old data.
pub const RECOVERED_PERCENT: u8 = 90;
/// What a key with its value takes in an RDB at least, in bytes: `min_keys` as a size, where keys cannot be counted.
pub const RDB_BYTES_PER_KEY: u64 = 16;

/// What is done about a master that lost its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: it is followed as any other.
    Off,
    /// It is followed, and somebody is told.
    Warn,
    /// It is not followed before somebody says so.
    Hold,
}

impl Mode {
    /// The value of the setting, and the status field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::Warn => "warn",
            Mode::Hold => "hold",
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Mode::Off),
            "warn" => Ok(Mode::Warn),
            "hold" => Ok(Mode::Hold),
            _ => Err("is none of the words".to_owned()),
        }
    }
}

/// What the operator chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// What to do.
    pub mode: Mode,
    /// A master that had no more keys than this is none of our business.
    pub min_keys: u64,
    /// A master that comes back with less than this much of what it had, in percent, has lost its data; one without any
    /// key always has.
    pub min_percent: u8,
}

/// What a master had when we last had its word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Known {
    /// Where its stream was when it was counted. A stream that does not contain this point is another one.
    pub position: Option<Position>,
    /// Its keys, in all databases together, if it let us ask.
    pub keys: Option<u64>,
    /// The size of the last RDB it sent.
    pub rdb_bytes: Option<u64>,
}

/// Which process we talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// Its `run_id`, new with every start.
    pub run: Option<ReplId>,
    /// The id of its stream. A master without a backlog takes another one with its first replica
    /// (redis replication.c, `syncCommand`), so this only counts where there is no `run_id`.
    pub replid: Option<ReplId>,
}

impl Identity {
    /// Whether both are the same process. Of two that say nothing of themselves nobody knows.
    pub fn is(&self, other: &Identity) -> bool {
        match (self.run, other.run) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => self.replid.is_some() && self.replid == other.replid,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.run, self.replid) {
            (Some(run), _) => write!(f, "run_id {run}"),
            (None, Some(replid)) => write!(f, "replid {replid}"),
            (None, None) => f.write_str("unknown"),
        }
    }
}

/// What a master is found to have now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Who it is.
    pub identity: Identity,
    /// Its stream: where it is, and what it says of the id before.
    pub line: Option<(Position, Option<Ancestor>)>,
    /// Its keys.
    pub keys: Option<u64>,
    /// The size of the RDB it just sent; none before it sent one.
    pub rdb_bytes: Option<u64>,
}

/// What somebody said about a master that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// Nothing yet.
    Open,
    /// Follow it, this once.
    Released,
    /// Never follow this one; and say no more about it.
    Rejected,
}

impl Ruling {
    /// Status field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Ruling::Open => "open",
            Ruling::Released => "released",
            Ruling::Rejected => "rejected",
        }
    }
}

/// What was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// What was counted.
    pub unit: Unit,
    /// What there was.
    pub before: u64,
    /// What there is; less.
    pub now: u64,
}

/// What a data set is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Keys, as INFO counts them.
    Keys,
    /// Bytes of RDB, where INFO is denied.
    RdbBytes,
}

impl Unit {
    /// Status field, and the word behind the number.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unit::Keys => "keys",
            Unit::RdbBytes => "rdb_bytes",
        }
    }
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Follow it.
    Pass(Reason),
    /// Follow it, and tell somebody.
    Warn(Loss),
    /// Do not follow it.
    Hold(Loss),
}

/// Why a master may be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The guard is off.
    Off,
    /// Nothing is known of what there was.
    FirstContact,
    /// Somebody released this very process.
    Released,
    /// Its stream goes on from where it was counted.
    Sequel,
    /// What it had was too little to be guarded.
    Small,
    /// It still has enough.
    Enough,
    /// What it has cannot be measured (yet).
    Unmeasured,
}

/// Decides. `held` is the process that is being held, with what was said about it.
pub fn judge(rules: &Rules, known: Option<&Known>, held: Option<(&Identity, Ruling)>, seen: &Seen) -> Decision {
    if rules.mode == Mode::Off {
        return Decision::Pass(Reason::Off);
    }
    let Some(known) = known else { return Decision::Pass(Reason::FirstContact) };
    let held = held.filter(|(identity, _)| identity.is(&seen.identity));
    if matches!(held, Some((_, Ruling::Released))) {
        return Decision::Pass(Reason::Released);
    }
    if is_sequel(known, seen) {
        return Decision::Pass(Reason::Sequel);
    }
    let (unit, before, now, least) = match (known.keys, seen.keys, known.rdb_bytes, seen.rdb_bytes) {
        (Some(before), Some(now), _, _) => (Unit::Keys, before, now, rules.min_keys),
        (_, _, Some(before), Some(now)) => {
            (Unit::RdbBytes, before, now, rules.min_keys.saturating_mul(RDB_BYTES_PER_KEY))
        }
        _ => return Decision::Pass(Reason::Unmeasured),
    };
    if before <= least {
        return Decision::Pass(Reason::Small);
    }
    let percent = if held.is_some() { rules.min_percent.max(RECOVERED_PERCENT) } else { rules.min_percent };
    if now > 0 && u128::from(now) * 100 >= u128::from(before) * u128::from(percent) {
        return Decision::Pass(Reason::Enough);
    }
    let loss = Loss { unit, before, now };
    match rules.mode {
        Mode::Hold => Decision::Hold(loss),
        Mode::Off | Mode::Warn => Decision::Warn(loss),
    }
}

/// Whether the stream that is seen contains the point at which the master was counted: the same id that has come
/// further, or one that parted from it later (a promotion, or a restart from a file, by the second id).
fn is_sequel(known: &Known, seen: &Seen) -> bool {
    let (Some(counted), Some((now, previous))) = (known.position, seen.line) else { return false };
    let mut history = History::new(now.id, 1);
    if let Some(previous) = previous {
        history.learn(previous.id, previous.boundary);
    }
    match history.locate(&counted) {
        Lineage::Current => counted.offset <= now.offset,
        Lineage::Ancestor { .. } => true,
        Lineage::Diverged { .. } | Lineage::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repl::Offset;
    use proptest::prelude::*;

    const RULES: Rules = Rules { mode: Mode::Hold, min_keys: 1000, min_percent: 10 };

    fn id(n: u8) -> ReplId {
        ReplId::from_ascii(format!("{n:040x}").as_bytes()).unwrap()
    }

    fn at(n: u8, offset: u64) -> Position {
        Position::new(id(n), Offset::new(offset))
    }

    fn had(keys: u64) -> Known {
        Known { position: Some(at(1, 500)), keys: Some(keys), rdb_bytes: None }
    }

    /// The process `run` with the stream of id `run`, and nothing before it.
    fn has(run: u8, keys: u64) -> Seen {
        Seen {
            identity: Identity { run: Some(id(run)), replid: Some(id(run)) },
            line: Some((at(run, 0), None)),
            keys: Some(keys),
            rdb_bytes: None,
        }
    }

    fn pass(reason: Reason) -> Decision {
        Decision::Pass(reason)
    }

    fn hold(before: u64, now: u64) -> Decision {
        Decision::Hold(Loss { unit: Unit::Keys, before, now })
    }

    #[test]
    fn a_master_that_comes_back_with_too_little_is_held() {
        for (before, now, decision) in [
            (5000, 0, hold(5000, 0)),
            (5000, 499, hold(5000, 499)),
            (5000, 500, pass(Reason::Enough)),
            (5000, 6000, pass(Reason::Enough)),
            (1001, 0, hold(1001, 0)),
            (1000, 0, pass(Reason::Small)),
            (0, 0, pass(Reason::Small)),
            (u64::MAX, u64::MAX / 11, hold(u64::MAX, u64::MAX / 11)),
        ] {
            assert_eq!(judge(&RULES, Some(&had(before)), None, &has(2, now)), decision, "{before} then {now}");
        }
        let none = Rules { min_percent: 0, ..RULES };
        assert_eq!(judge(&none, Some(&had(5000)), None, &has(2, 1)), pass(Reason::Enough));
        assert_eq!(judge(&none, Some(&had(5000)), None, &has(2, 0)), hold(5000, 0), "nothing is too little always");
    }

    #[test]
    fn what_was_never_known_is_not_missed() {
        assert_eq!(judge(&RULES, None, None, &has(2, 0)), pass(Reason::FirstContact));
        let unasked = Known { keys: None, ..had(0) };
        assert_eq!(judge(&RULES, Some(&unasked), None, &has(2, 0)), pass(Reason::Unmeasured));
        let silent = Seen { keys: None, ..has(2, 0) };
        assert_eq!(judge(&RULES, Some(&had(5000)), None, &silent), pass(Reason::Unmeasured));
    }

    #[test]
    fn a_stream_that_contains_the_point_of_the_count_explains_its_keys() {
        let line = |now, previous| Seen { line: Some((now, previous)), ..has(2, 0) };
        let parted = |boundary| Some(Ancestor { id: id(1), boundary: Offset::new(boundary) });
        for (seen, decision) in [
            // The same stream, further on: somebody flushed.
            (line(at(1, 500), None), pass(Reason::Sequel)),
            // The same id at an earlier point: a file of long ago.
            (line(at(1, 499), None), hold(5000, 0)),
            // Promoted or restarted with everything.
            (line(at(2, 500), parted(500)), pass(Reason::Sequel)),
            // Restarted from a file that was written before the keys were.
            (line(at(2, 499), parted(499)), hold(5000, 0)),
            // Another one.
            (line(at(2, 900), Some(Ancestor { id: id(3), boundary: Offset::new(900) })), hold(5000, 0)),
        ] {
            assert_eq!(judge(&RULES, Some(&had(5000)), None, &seen), decision, "{seen:?}");
        }
    }

    #[test]
    fn a_ruling_is_for_one_process() {
        let known = had(5000);
        let judge = |ruling, seen: &Seen| judge(&RULES, Some(&known), Some((&has(2, 0).identity, ruling)), seen);
        assert_eq!(judge(Ruling::Released, &has(2, 0)), pass(Reason::Released));
        assert_eq!(judge(Ruling::Released, &has(3, 0)), hold(5000, 0), "it was restarted since");
        assert_eq!(judge(Ruling::Rejected, &has(2, 0)), hold(5000, 0));
        assert_eq!(judge(Ruling::Rejected, &has(3, 5000)), pass(Reason::Enough), "the next one has the data");
        // Its first replica made it take another id.
        let renamed = Identity { run: Some(id(2)), replid: Some(id(9)) };
        assert_eq!(judge(Ruling::Released, &Seen { identity: renamed, ..has(2, 0) }), pass(Reason::Released));
    }

    #[test]
    fn a_cache_that_fills_itself_again_is_not_the_old_data() {
        let known = had(5000);
        let held = has(2, 0).identity;
        let judge = |keys| judge(&RULES, Some(&known), Some((&held, Ruling::Open)), &has(2, keys));
        assert_eq!(judge(500), hold(5000, 500));
        assert_eq!(judge(4499), hold(5000, 4499));
        assert_eq!(judge(4500), pass(Reason::Enough));
    }

    #[test]
    fn where_keys_cannot_be_counted_rdbs_are_compared() {
        let known = Known { position: Some(at(1, 500)), keys: None, rdb_bytes: Some(1_000_000) };
        let seen = |bytes| Seen { keys: None, rdb_bytes: Some(bytes), ..has(2, 0) };
        let lost = |now| Decision::Hold(Loss { unit: Unit::RdbBytes, before: 1_000_000, now });
        assert_eq!(judge(&RULES, Some(&known), None, &seen(175)), lost(175));
        assert_eq!(judge(&RULES, Some(&known), None, &seen(100_000)), pass(Reason::Enough));
        let small = Known { rdb_bytes: Some(16_000), ..known };
        assert_eq!(judge(&RULES, Some(&small), None, &seen(175)), pass(Reason::Small));
        let counted = Known { keys: Some(5000), ..known };
        let both = Seen { keys: Some(5000), ..seen(175) };
        assert_eq!(judge(&RULES, Some(&counted), None, &both), pass(Reason::Enough), "keys say more than bytes");
    }

    #[test]
    fn two_that_say_nothing_of_themselves_are_not_the_same() {
        assert!(!Identity::default().is(&Identity::default()));
        let by_stream = Identity { run: None, replid: Some(id(1)) };
        assert!(by_stream.is(&by_stream) && by_stream.is(&Identity { run: Some(id(7)), ..by_stream }));
    }

    fn some_known() -> impl Strategy<Value = Option<Known>> {
        let position = prop::option::of((0u8..4, 0u64..4).prop_map(|(n, offset)| at(n, offset)));
        let size = || prop::option::of(prop_oneof![0u64..30, 900u64..20_000]);
        prop::option::of((position, size(), size()).prop_map(|(position, keys, rdb_bytes)| Known {
            position,
            keys,
            rdb_bytes,
        }))
    }

    fn some_seen() -> impl Strategy<Value = Seen> {
        let some_id = || prop::option::of((0u8..4).prop_map(id));
        let previous = prop::option::of(
            (0u8..4, 0u64..4).prop_map(|(n, boundary)| Ancestor { id: id(n), boundary: Offset::new(boundary) }),
        );
        let line = prop::option::of(((0u8..4, 0u64..4).prop_map(|(n, offset)| at(n, offset)), previous));
        let size = || prop::option::of(prop_oneof![0u64..30, 900u64..20_000]);
        (some_id(), some_id(), line, size(), size()).prop_map(|(run, replid, line, keys, rdb_bytes)| Seen {
            identity: Identity { run, replid },
            line,
            keys,
            rdb_bytes,
        })
    }

    proptest! {
        #[test]
        fn the_modes_differ_only_in_what_is_done(
            known in some_known(), seen in some_seen(), other in some_seen(), percent in 0u8..=100, ruling in 0usize..4,
        ) {
            let ruling = [None, Some(Ruling::Open), Some(Ruling::Released), Some(Ruling::Rejected)][ruling];
            let held = ruling.map(|ruling| (&other.identity, ruling));
            let by = |mode| judge(&Rules { mode, min_keys: 1000, min_percent: percent }, known.as_ref(), held, &seen);
            prop_assert_eq!(by(Mode::Off), pass(Reason::Off));
            match (by(Mode::Warn), by(Mode::Hold)) {
                (Decision::Warn(a), Decision::Hold(b)) => {
                    prop_assert_eq!(a, b);
                    prop_assert!(b.now < b.before && b.before > 1000, "{:?}", b);
                    prop_assert!(ruling != Some(Ruling::Released) || !seen.identity.is(&other.identity));
                }
                (a, b) => prop_assert!(a == b && matches!(a, Decision::Pass(_)), "{:?} {:?}", a, b),
            }
        }

        #[test]
        fn more_keys_never_make_it_worse(
            known in some_known(), seen in some_seen(), more in 0u64..5000, percent in 0u8..=100,
        ) {
            let rules = Rules { min_percent: percent, ..RULES };
            let richer = Seen { keys: seen.keys.map(|keys| keys + more), ..seen };
            if matches!(judge(&rules, known.as_ref(), None, &seen), Decision::Pass(_)) {
                let decision = judge(&rules, known.as_ref(), None, &richer);
                prop_assert!(matches!(decision, Decision::Pass(_)), "{:?}", decision);
            }
        }
    }
}
