//! Whether a replica may give the snapshot for all the others, judged by what it says of itself. Pure.
//!
//! An RDB of a replica can be followed by the master's stream because a replica applies whole commands in the master's
//! order, forks between them, and its offset is the master's at the end of one (4.0 and later; networking.c
//! `processInputBuffer`, later `commandProcessed`). That holds only for a faithful copy: one that
//! follows, that takes no writes of its own and evicts nothing by itself, and of a release that knows every command the
//! master sends. What cannot be seen from outside is a replica that was writable for a while, was written to, and
//! is read-only again.

use std::time::Duration;

use crate::label;
use crate::relay::snapshots::Place;
use crate::repl::{Position, RdbFormat, ServerVersion};
use crate::wire::info::{LinkStatus, MasterInfo, Role, Server};

/// The oldest release that is asked. Replicas before 5.0 evict by themselves (`replica-ignore-maxmemory` is as old as
/// 5.0), and those before 4.0.4 leave scripts out of their RDB that the stream may go on to call.
const OLDEST: (u32, u32) = (5, 0);
/// How far behind the head a replica may be, as one part of this many of what the backlog can hold: the rest is for what
/// arrives while its snapshot is taken, sent and loaded.
pub const LAG_PART: u64 = 4;
/// How long our own head may take to come to where a replica is that hears the master more directly.
pub const AHEAD: Duration = Duration::from_secs(1);

label! {
    /// Why a replica did not give a snapshot.
    pub enum Unfit {
        /// It cannot be reached at the address it announced.
        Unreachable = "unreachable",
        /// It does not let us ask.
        Denied = "denied",
        /// It is no replica: another server has its address, or it was promoted.
        NotReplica = "not_replica",
        /// It is the node we follow, or a psyncd, which has no data set and would have to ask us for one.
        Upstream = "upstream",
        /// It is not connected to its master, or is receiving a data set itself.
        LinkDown = "link_down",
        /// It loads its data.
        Loading = "loading",
        /// It may have been written to.
        Writable = "writable",
        /// It may have evicted keys by itself.
        Evicting = "evicting",
        /// It is of another make or release than the upstream.
        Version = "version",
        /// It would write a format that none of those who wait can load.
        Format = "format",
        /// Its stream is not ours.
        History = "history",
        /// It is too far behind, or where we have not come.
        Behind = "behind",
        /// It said of its snapshot what is not so.
        Claim = "claim",
        /// The transfer or the check of its snapshot failed.
        Transfer = "transfer",
    }
}

/// What a replica is held against.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    /// What the node we follow said of itself.
    pub node: &'a MasterInfo,
    /// The versions of those who wait.
    pub waiting: &'a [Option<ServerVersion>],
    /// The lowest version among all our replicas, if all say theirs: what a candidate is told.
    pub fleet: Option<ServerVersion>,
    /// How far behind the head a snapshot may begin.
    pub lag_max_bytes: u64,
}

/// How much a replica has to do; the smallest is asked first. Compared field by field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Burden {
    /// Whether it is saving: it would have to end that first.
    pub saving: bool,
    /// Replicas it feeds itself.
    pub replicas: u64,
    /// Commands a second.
    pub ops_per_second: u64,
    /// Clients.
    pub clients: u64,
    /// Bytes behind the head.
    pub lag_bytes: u64,
}

/// Who decides which keys a replica evicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// Only its master: it has no limit, or ignores it (`replica-ignore-maxmemory`).
    Masters,
    /// Maybe itself.
    Own,
}

/// Whether a replica that says `info` of itself, and whose offset has that `place`, may give the snapshot.
///
/// What it does not say counts against it: whoever is passed over costs the master a fork, whoever is wrongly trusted
/// costs all of those who wait their data.
pub fn judge(info: &MasterInfo, eviction: Eviction, place: Place, needs: &Needs<'_>) -> Result<Burden, Unfit> {
    let node = needs.node;
    if (info.run_id.is_some() && info.run_id == node.run_id) || !info.chain.is_empty() {
        return Err(Unfit::Upstream);
    }
    if info.role != Some(Role::Replica) {
        return Err(Unfit::NotReplica);
    }
    if info.loading != Some(false) {
        return Err(Unfit::Loading);
    }
    if info.link != Some(LinkStatus::Up) || info.syncing != Some(false) {
        return Err(Unfit::LinkDown);
    }
    if info.read_only != Some(true) {
        return Err(Unfit::Writable);
    }
    if eviction == Eviction::Own {
        return Err(Unfit::Evicting);
    }
    let release = |info: &MasterInfo| ServerVersion::parse(info.version.as_deref()?).map(|v| (v.major, v.minor));
    // A newer one may write what only it can load, an older one may not know what it was told to do.
    let (Some(server), Some(version)) = (&info.server, release(info)) else { return Err(Unfit::Version) };
    if node.server.as_ref() != Some(server) || release(node) != Some(version) || !info.version_at_least(OLDEST) {
        return Err(Unfit::Version);
    }
    let format = format_of(server, version, needs.fleet);
    if !suits_somebody(format, needs.waiting) {
        return Err(Unfit::Format);
    }
    let lag_bytes = match place {
        Place::Held { lag_bytes } if lag_bytes <= needs.lag_max_bytes => lag_bytes,
        Place::Ahead => 0,
        Place::Held { .. } | Place::Lost => return Err(Unfit::Behind),
        Place::Foreign => return Err(Unfit::History),
    };
    Ok(Burden {
        saving: info.saving == Some(true),
        replicas: info.connected_replicas.unwrap_or(0),
        ops_per_second: info.ops_per_second.unwrap_or(0),
        clients: info.clients.unwrap_or(0),
        lag_bytes,
    })
}

/// Where a replica says it is.
pub fn position(info: &MasterInfo) -> Option<Position> {
    Some(Position::new(info.replid?, info.offset?))
}

/// The format it will write for us, as far as that decides who can load it; the file itself is asked again.
fn format_of(server: &Server, version: (u32, u32), told: Option<ServerVersion>) -> RdbFormat {
    match server {
        Server::Valkey if version < (9, 0) => RdbFormat::Redis(11),
        // 9.0 writes its own in any case, later ones for those who say they can load it.
        Server::Valkey if version < (9, 1) || told.is_some_and(|told| told.major >= 9) => RdbFormat::Valkey(80),
        Server::Valkey => RdbFormat::Redis(11),
        Server::Redis | Server::Other(_) if version >= (7, 4) => RdbFormat::Redis(12),
        Server::Redis | Server::Other(_) => RdbFormat::Redis(11),
    }
}

/// Whether one of those who wait can load `format`, or nobody waits any more. Each is only ever given what he can load.
pub fn suits_somebody(format: RdbFormat, waiting: &[Option<ServerVersion>]) -> bool {
    waiting.is_empty() || waiting.iter().any(|version| format.suits(*version))
}

/// The one with the least to do, the first among equals.
pub fn least(burdens: &[Burden]) -> Option<usize> {
    (0..burdens.len()).min_by_key(|&at| burdens[at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Label;
    use crate::repl::Offset;
    use proptest::prelude::*;

    const HELD: Place = Place::Held { lag_bytes: 10 };

    fn node(version: &str) -> MasterInfo {
        MasterInfo {
            role: Some(Role::Master),
            run_id: Some("the node".into()),
            server: Some(Server::Redis),
            version: Some(version.into()),
            redis_version: Some(version.into()),
            ..MasterInfo::default()
        }
    }

    fn fit(version: &str) -> MasterInfo {
        MasterInfo {
            role: Some(Role::Replica),
            run_id: Some("another".into()),
            loading: Some(false),
            link: Some(LinkStatus::Up),
            syncing: Some(false),
            read_only: Some(true),
            offset: Some(Offset::new(5)),
            ..node(version)
        }
    }

    fn judged(change: impl FnOnce(&mut MasterInfo), place: Place) -> Result<Burden, Unfit> {
        let mut info = fit("7.2.4");
        change(&mut info);
        let needs = Needs { node: &node("7.2.4"), waiting: &[None], fleet: None, lag_max_bytes: 100 };
        judge(&info, Eviction::Masters, place, &needs)
    }

    #[test]
    fn every_condition_alone_makes_a_replica_unfit() {
        assert!(judged(|_| {}, HELD).is_ok());
        assert!(judged(|_| {}, Place::Ahead).is_ok());
        type Change = fn(&mut MasterInfo);
        let table: [(Change, Place, Unfit); 16] = [
            (|i| i.run_id = Some("the node".into()), HELD, Unfit::Upstream),
            (|i| i.chain = vec!["a psyncd".into()], HELD, Unfit::Upstream),
            (|i| i.role = Some(Role::Master), HELD, Unfit::NotReplica),
            (|i| i.role = None, HELD, Unfit::NotReplica),
            (|i| i.loading = Some(true), HELD, Unfit::Loading),
            (|i| i.link = Some(LinkStatus::Down), HELD, Unfit::LinkDown),
            (|i| i.syncing = Some(true), HELD, Unfit::LinkDown),
            (|i| i.read_only = Some(false), HELD, Unfit::Writable),
            (|i| i.read_only = None, HELD, Unfit::Writable),
            (|i| i.version = Some("7.4.0".into()), HELD, Unfit::Version),
            (|i| i.version = Some("7.0.9".into()), HELD, Unfit::Version),
            (|i| i.server = Some(Server::Valkey), HELD, Unfit::Version),
            (|i| i.version = None, HELD, Unfit::Version),
            (|_| {}, Place::Held { lag_bytes: 101 }, Unfit::Behind),
            (|_| {}, Place::Lost, Unfit::Behind),
            (|_| {}, Place::Foreign, Unfit::History),
        ];
        for (change, place, why) in table {
            assert_eq!(judged(change, place), Err(why));
        }
        let needs = Needs { node: &node("7.2.4"), waiting: &[None], fleet: None, lag_max_bytes: 100 };
        assert_eq!(judge(&fit("7.2.4"), Eviction::Own, HELD, &needs), Err(Unfit::Evicting));
        assert!(judged(|i| i.version = Some("7.2.99".into()), HELD).is_ok(), "a patch changes no format");
        assert_eq!(Unfit::ALL.len(), 14);
    }

    #[test]
    fn an_old_release_is_never_asked() {
        let (info, node) = (fit("4.0.14"), node("4.0.14"));
        let needs = Needs { node: &node, waiting: &[None], fleet: None, lag_max_bytes: 100 };
        assert_eq!(judge(&info, Eviction::Masters, HELD, &needs), Err(Unfit::Version));
    }

    #[test]
    fn a_format_nobody_who_waits_can_load_is_not_asked_for() {
        let v = ServerVersion::parse;
        for (version, waiting, fleet, fits) in [
            ("8.1.1", vec![None], None, true),
            ("8.1.1", vec![v("8.0.0")], v("8.0.0"), true),
            ("9.0.0", vec![v("8.1.0")], v("8.1.0"), false),
            ("9.0.0", vec![v("8.1.0"), v("9.0.0")], v("8.1.0"), true),
            ("9.0.0", vec![None], None, false),
            ("9.1.0", vec![None], None, true),
            ("9.1.0", vec![v("9.0.0")], v("9.0.0"), true),
            ("9.1.0", vec![v("8.1.0")], v("8.1.0"), true),
            ("9.0.0", vec![], None, true),
        ] {
            let valkey = |mut info: MasterInfo| {
                info.server = Some(Server::Valkey);
                info.redis_version = Some("7.2.4".into());
                info
            };
            let (info, node) = (valkey(fit(version)), valkey(node(version)));
            let needs = Needs { node: &node, waiting: &waiting, fleet, lag_max_bytes: 100 };
            let expected = if fits { None } else { Some(Unfit::Format) };
            assert_eq!(judge(&info, Eviction::Masters, HELD, &needs).err(), expected, "{version} for {waiting:?}");
        }
    }

    fn burdens() -> impl Strategy<Value = Vec<Burden>> {
        let one = (any::<bool>(), 0u64..3, 0u64..5, 0u64..3, 0u64..3).prop_map(
            |(saving, replicas, ops_per_second, clients, lag_bytes)| Burden {
                saving,
                replicas,
                ops_per_second,
                clients,
                lag_bytes,
            },
        );
        prop::collection::vec(one, 0..8)
    }

    proptest! {
        #[test]
        fn the_least_busy_is_chosen_and_never_one_that_saves_while_another_does_not(burdens in burdens()) {
            let chosen = least(&burdens);
            prop_assert_eq!(chosen.is_none(), burdens.is_empty());
            let Some(chosen) = chosen.map(|at| burdens[at]) else { return Ok(()) };
            prop_assert!(burdens.iter().all(|other| chosen <= *other));
            prop_assert!(!chosen.saving || burdens.iter().all(|other| other.saving));
        }
    }
}
