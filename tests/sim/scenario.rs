//! Worlds from seeds.

use std::time::Duration;

use crate::chance::Chance;
use crate::disk::Crash;
use crate::master::{self, Mood, Slip};
use crate::network::Weather;
use crate::product;
use crate::replica;
use crate::world::{Fault, MASTER, PROXY, Plan, replica_name};

/// What stands between master and replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: the models are tried against each other.
    Direct,
    /// Something that copies bytes.
    Piped,
    /// psyncd.
    Proxied,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Direct, Kind::Piped, Kind::Proxied];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Direct => "direct",
            Kind::Piped => "piped",
            Kind::Proxied => "proxied",
        }
    }
}

fn seconds(chance: &mut Chance, low: u64, high: u64) -> Duration {
    chance.millis(low * 1000, high * 1000)
}

/// The world of a seed.
pub fn plan(kind: Kind, seed: u64) -> Plan {
    let mut chance = Chance::new(seed).fork("plan");
    let mut master = master_of(&mut chance);
    let count = chance.between(1, 5) as usize;
    let mut replicas: Vec<_> = (0..count).map(|_| replica_of(&mut chance, &master)).collect();
    let mut arrivals: Vec<_> = (0..count).map(|_| chance.millis(0, 3000)).collect();
    if count > 1 && chance.one_in(2) {
        arrivals[count - 1] = seconds(&mut chance, 10, 40);
    }
    let calm_at = seconds(&mut chance, 20, 60);
    let mut faults: Vec<_> = (0..chance.between(0, 10))
        .map(|_| {
            let at = chance.millis(500, calm_at.as_millis() as u64);
            (at, fault_of(kind, &mut chance, count))
        })
        .collect();
    faults.sort_by_key(|(at, _)| *at);
    let weather = Weather {
        window_bytes: *chance.pick(&[300, 5_000, 64_000, 1 << 20]),
        cut_one_in: *chance.pick(&[0, 0, 3, 8]),
        silent_one_in: *chance.pick(&[0, 0, 0, 15]),
        rechunk: true,
    };
    if weather.window_bytes < 1000 {
        // A link of 10 kB/s must not be asked for more than it can carry.
        master.filler_bytes = master.filler_bytes.min(3000);
        master.large_bytes = 2000;
        master.write_every = master.write_every.max(Duration::from_millis(300));
        for replica in &mut replicas {
            replica.pace = Duration::ZERO;
        }
    }
    let clients = chance.below(3) as usize;
    let psyncd = product::Setup {
        backlog_bytes: *chance.pick(&[16 << 10, 100_000, 1 << 20]),
        hold: *chance.pick(&[Duration::from_secs(60), Duration::from_secs(5)]),
        history_depth: *chance.pick(&[16, 1]),
        journal: *chance.pick(&[None, Some((256 << 10, 64 << 10)), Some((4 << 20, 1 << 20))]),
        max_senders: *chance.pick(&[4, 1]),
        rate_limit: *chance.pick(&[0, 64 << 10]),
    };
    Plan {
        seed,
        master,
        psyncd,
        replicas,
        weather,
        faults,
        arrivals,
        calm_at,
        clients,
        settle_within: Duration::from_secs(200),
    }
}

fn master_of(chance: &mut Chance) -> master::Setup {
    let age = *chance.pick(&[master::Age::V28, master::Age::V5, master::Age::V62, master::Age::V7, master::Age::V7]);
    master::Setup {
        age,
        diskless: age > master::Age::V28 && chance.one_in(2),
        diskless_delay: chance.millis(0, 5000),
        backlog_bytes: *chance.pick(&[3_000, 30_000, 1 << 20]),
        output_limit_bytes: *chance.pick(&[200_000, 4 << 20]),
        filler_bytes: *chance.pick(&[10, 3_000, 60_000, 150_000]),
        checksum: !chance.one_in(4),
        auth: auth_of(age, chance),
        info_denied: chance.one_in(8),
        // Nothing for the wipe guard to miss: here a master that lost everything is followed.
        keys: 0,
        write_every: chance.millis(50, 1000),
        large_one_in: chance.between(80, 300),
        large_bytes: *chance.pick(&[2_000, 60_000]),
        ping_every: Duration::from_secs(10),
        warm: chance.one_in(2),
    }
}

fn auth_of(age: master::Age, chance: &mut Chance) -> Option<(Option<String>, String)> {
    let user = (age >= master::Age::V62 && chance.one_in(2)).then(|| "replicator".to_owned());
    chance.one_in(4).then(|| (user, "sesame-1234".to_owned()))
}

fn replica_of(chance: &mut Chance, master: &master::Setup) -> replica::Setup {
    // An old master's id never says that it changed, and an old replica never learns that it did.
    let age = if master.age == master::Age::V28 {
        replica::Age::V28
    } else {
        *chance.pick(&[replica::Age::V5, replica::Age::V62, replica::Age::V7])
    };
    replica::Setup {
        age,
        eof: !chance.one_in(4),
        asks_own_id: age > replica::Age::V28 && chance.one_in(2),
        load: chance.millis(0, 1500),
        pace: if chance.one_in(6) { chance.millis(1, 30) } else { Duration::ZERO },
        auth: master.auth.clone(),
        ip_address: chance.one_in(4).then(|| "10.1.2.3".to_owned()),
        habit: None,
        priority: None,
    }
}

fn fault_of(kind: Kind, chance: &mut Chance, count: usize) -> Fault {
    let n = chance.below(count as u64) as usize;
    let (a, b) = match kind {
        Kind::Direct => (MASTER.to_owned(), replica_name(n)),
        Kind::Piped | Kind::Proxied if chance.one_in(3) => (MASTER.to_owned(), PROXY.to_owned()),
        Kind::Piped | Kind::Proxied => (PROXY.to_owned(), replica_name(n)),
    };
    match chance.below(if kind == Kind::Direct { 17 } else { 20 }) {
        0..=2 => Fault::Cut(a, b, None),
        3..=4 => {
            let scale = chance.between(0, 18);
            Fault::Cut(a, b, Some(chance.below(1 << scale)))
        }
        5 => Fault::Silence(a, b),
        6 => Fault::Refuse(a, seconds(chance, 1, 15)),
        7..=8 => Fault::KillLinks,
        9 => Fault::Down(seconds(chance, 0, 20)),
        10 => Fault::LoseEverything(seconds(chance, 0, 5)),
        11 => Fault::RestartFromFile(seconds(chance, 0, 5), chance.below(3000)),
        12..=13 => Fault::FailOver(seconds(chance, 0, 5), *chance.pick(&[0, 0, 100, 3000])),
        14 => Fault::Moody(*chance.pick(&[Mood::Loading, Mood::NoMasterLink]), seconds(chance, 1, 10)),
        15 => Fault::RestartReplica(n),
        16 if kind == Kind::Proxied => Fault::Slip(*chance.pick(&Slip::SURVIVABLE)),
        16 => Fault::Slip(*chance.pick(&Slip::HARMLESS)),
        17 => Fault::MoveAway(n, seconds(chance, 1, 20)),
        18 => Fault::KillSubject(*chance.pick(&Crash::ALL)),
        _ => Fault::Disk {
            full_at: chance.one_in(2).then(|| chance.below(100_000)),
            read_only: chance.one_in(4),
            failing: vec![chance.between(1, 5), chance.between(5, 50)],
            for_: seconds(chance, 1, 20),
        },
    }
}
