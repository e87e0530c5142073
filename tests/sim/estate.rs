//! A world of several servers that become each other's masters, with Sentinels, and psyncd where it belongs: beside
//! each of them, or as the one relay of a pool elsewhere. What [`crate::world`] is to a single master.
//!
//! The laws, at every byte and at every step:
//! - no server and no replica holds a byte that is not on the line of the history it claims ([`crate::truth`]);
//! - nobody starts over who asked for what his psyncd holds and the node behind it would have continued;
//! - a relay follows none but masters that most Sentinels agreed on, under numbers that never fall;
//! - after the calm one master is left, and everybody has what it has.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use psyncd::net::Address;
use psyncd::relay::LinkState;
use psyncd::repl::Position;
use tokio::time::{Instant, sleep, sleep_until};

use crate::chance::Chance;
use crate::council::{self, Council, FaceAt, sentinel_name};
use crate::disk::{Crash, SimDisk};
use crate::log::{Event, Log};
use crate::master;
use crate::master::short;
use crate::network::{SimNetwork, Weather, Wires};
use crate::node::{Around, Kept, Node};
use crate::product::{self, Psyncd};
use crate::replica::{self, Replica};
use crate::truth::Truth;
use crate::world::{PANICS, PROXY, PROXY_PORT, Seams, Subject, Watchdog, replica_name, watch_panics};

pub const NODES: usize = 3;
const FACE_PORT: u16 = 6390;
/// How long something must have been as it is before somebody is blamed for not knowing.
const SETTLED: Duration = Duration::from_secs(4);

/// Where psyncd is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Nowhere: the control.
    Plain,
    /// In front of every node.
    Sidecars,
    /// A relay that asks the Sentinels.
    Asking,
    /// A relay that is told by them, at its replica face.
    Told,
}

impl Shape {
    pub const ALL: [Shape; 4] = [Shape::Plain, Shape::Sidecars, Shape::Asking, Shape::Told];

    pub fn as_str(self) -> &'static str {
        match self {
            Shape::Plain => "plain",
            Shape::Sidecars => "sidecars",
            Shape::Asking => "asking",
            Shape::Told => "told",
        }
    }

    fn is_relay(self) -> bool {
        matches!(self, Shape::Asking | Shape::Told)
    }

    /// Hosts with a psyncd.
    pub fn psyncds(self) -> Vec<String> {
        match self {
            Shape::Plain => Vec::new(),
            Shape::Sidecars => (0..NODES).map(sidecar_name).collect(),
            Shape::Asking | Shape::Told => vec![PROXY.to_owned()],
        }
    }
}

pub fn node_name(n: usize) -> String {
    format!("n{n}")
}

pub fn sidecar_name(n: usize) -> String {
    format!("p{n}")
}

/// Something that happens to the estate at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blow {
    /// Sentinels fail over. The master goes on until it is told, or its writers were stopped before.
    Planned { lagging: bool, stopped: bool },
    /// The master dies and comes back after a while; this long after its death another is promoted.
    Dies { lagging: bool, after: Duration, away: Duration, kept: Kept },
    /// A replica's link stands still for a while.
    Lags(usize, Duration),
    /// Hosts are cut off from all others for a while.
    Island(Vec<String>, Duration),
    /// The master is cut off from everybody but its psyncd, and another is promoted after the first of these times.
    LosesMaster(Duration, Duration),
    /// A Sentinel is cut off from the others, and fails over all by itself.
    Rogue(usize, Duration),
    /// A node restarts where it is; nobody fails over.
    Restarts(usize, Duration, Kept),
    /// Links between two hosts are cut.
    Cut(String, String),
    /// A psyncd is killed and started again.
    Kills(String, Crash),
}

/// Everything that decides how an estate fares.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub shape: Shape,
    pub master: master::Setup,
    pub psyncd: product::Setup,
    /// Between two RDBs of a node's.
    pub snapshot_interval: Duration,
    /// Behind the relay.
    pub pool: usize,
    pub weather: Weather,
    pub blows: Vec<(Duration, Blow)>,
    pub calm_at: Duration,
    pub settle_within: Duration,
    /// For the control of the checks: the relay believes this Sentinel alone.
    pub believes_only: Option<usize>,
}

/// How an estate fared.
pub struct Outcome {
    pub events: Vec<Event>,
    pub violations: Vec<String>,
    /// Per node, then per replica of the pool.
    pub counts: Vec<replica::Counts>,
}

impl Outcome {
    /// Full resyncs beyond those with which everybody began.
    pub fn needed(&self) -> u64 {
        let fulls: u64 = self.counts.iter().map(|counts| counts.fulls).sum();
        fulls.saturating_sub(self.counts.len() as u64 - 1)
    }
}

struct Sidecar {
    host: String,
    psyncd: Rc<Psyncd>,
    disk: RefCell<SimDisk>,
    kills: Cell<u64>,
    crash: Cell<Crash>,
    /// When it was started last, and where it last was seen to follow whom.
    since: Cell<Duration>,
    followed: RefCell<(Option<Address>, Option<u64>)>,
    newest: Cell<u64>,
}

/// An estate being run.
pub struct Estate {
    plan: Plan,
    log: Log,
    truth: Truth,
    wires: Wires,
    nodes: Vec<Rc<Node>>,
    pool: Vec<Rc<Replica>>,
    psyncds: Vec<Rc<Sidecar>>,
    council: Rc<Council>,
    hosts: Vec<String>,
    /// Nobody writes any more.
    settling: Cell<bool>,
    finished: Cell<bool>,
}

fn address(host: &str, port: u16) -> Address {
    Address::Tcp { host: host.to_owned(), port }
}

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

impl Estate {
    fn new(plan: Plan, log: Log) -> Rc<Self> {
        let chance = Chance::new(plan.seed).fork("estate");
        let truth = Truth::default();
        let wires = Wires::new(chance.fork("network"), plan.weather, log.clone());
        let psyncds: Vec<_> = plan.shape.psyncds().iter().map(|host| sidecar(host, &plan, &chance)).collect();
        let seen: Rc<RefCell<Vec<Rc<Node>>>> = Rc::default();
        let oracle = oracle(Rc::clone(&seen), psyncds.clone(), wires.clone());
        let around =
            Around { chance: chance.clone(), log: log.clone(), truth: truth.clone(), wires: wires.clone(), oracle };
        let nodes: Vec<_> = (0..NODES)
            .map(|n| {
                let setup = master::Setup { warm: n == 0, ..plan.master.clone() };
                Node::new(&node_name(n), setup, replica::Setup::default(), &around)
            })
            .collect();
        seen.replace(nodes.clone());
        let known_as: Vec<_> = (0..NODES)
            .map(|n| match plan.shape {
                Shape::Sidecars => address(&sidecar_name(n), PROXY_PORT),
                Shape::Plain | Shape::Asking | Shape::Told => address(&node_name(n), master::PORT),
            })
            .collect();
        let face = (plan.shape == Shape::Told).then(|| {
            let psyncd = Rc::clone(&psyncds[0].psyncd);
            let followed = Box::new(move || psyncd.followed().and_then(|(address, _)| address));
            FaceAt { host: PROXY.to_owned(), port: FACE_PORT, followed }
        });
        let council = Council::new(nodes.clone(), known_as, face, chance.fork("council"), wires.clone(), log.clone());
        let pool = (0..if plan.shape.is_relay() { plan.pool } else { 0 }).map(|n| {
            let name = replica_name(n);
            let network = SimNetwork::new(&name, wires.clone());
            let setup = replica::Setup::default();
            Replica::new(&name, setup, &chance, log.clone(), truth.clone(), network, Rc::clone(&around.oracle))
        });
        let pool: Vec<_> = pool.collect();
        let mut hosts: Vec<String> = (0..NODES).map(node_name).collect();
        hosts.extend(plan.shape.psyncds());
        hosts.extend((0..council::COUNT).map(sentinel_name));
        hosts.extend(pool.iter().map(|replica| replica.name.clone()));
        let (settling, finished) = (Cell::new(false), Cell::new(false));
        Rc::new(Self { plan, log, truth, wires, nodes, pool, psyncds, council, hosts, settling, finished })
    }

    fn seams(&self, at: &Sidecar) -> Seams {
        let upstream = match self.plan.shape {
            Shape::Sidecars => at.host.replace('p', "n"),
            _ => node_name(0),
        };
        Seams {
            network: Arc::new(SimNetwork::new(&at.host, self.wires.clone())),
            disk: Arc::new(at.disk.borrow().clone()),
            upstream: address(&upstream, master::PORT),
            chance: Chance::new(self.plan.seed).fork(&at.host),
            log: self.log.clone(),
        }
    }

    async fn script(self: Rc<Self>) -> turmoil::Result {
        let begin = Instant::now();
        sleep(Duration::from_secs(1)).await;
        for node in &self.nodes[1..] {
            node.begin(self.council.known_as[0].clone());
        }
        for replica in &self.pool {
            replica.follow(Some(address(PROXY, PROXY_PORT)));
        }
        for (at, blow) in &self.plan.blows {
            sleep_until(begin + *at).await;
            self.log.note("script", format!("{blow:?}"));
            tokio::task::spawn_local(Rc::clone(&self).strike(blow.clone()));
        }
        sleep_until(begin + self.plan.calm_at).await;
        self.log.note("script", "calm");
        for (a, b) in self.wires.parted() {
            self.wires.rejoin(&a, &b);
        }
        self.wires.calm();
        self.settle().await;
        self.finished.set(true);
        Ok(())
    }

    /// The only master there is, once everybody agrees on it.
    fn only_master(&self) -> Option<usize> {
        let agreed = self.council.agrees()?;
        let fits = |(n, node): (usize, &Rc<Node>)| node.is_up() && node.is_master() == (n == agreed);
        self.nodes.iter().enumerate().all(fits).then_some(agreed)
    }

    async fn settle(&self) {
        let deadline = Instant::now() + self.plan.settle_within;
        let mut writes = true;
        let mut quiet_since = None;
        loop {
            let why = match self.only_master() {
                None => "no one master is left".to_owned(),
                Some(master) => {
                    let since = *quiet_since.get_or_insert(Instant::now());
                    if writes && since.elapsed() > Duration::from_secs(4) {
                        writes = false;
                        self.settling.set(true);
                        self.nodes.iter().for_each(|node| node.master.set_writing(false));
                    }
                    let head = self.nodes[master].position();
                    let is_there = |p: Option<Position>| {
                        p.is_some_and(|p| p.offset == head.offset && self.truth.on_line(&p, head.id))
                    };
                    let nodes = self.nodes.iter().filter(|node| !node.is_master()).map(|node| &node.replica);
                    let behind: Vec<String> = nodes
                        .chain(&self.pool)
                        .filter(|replica| !is_there(replica.position()))
                        .map(|r| format!("{} has {}", r.name, r.position().as_ref().map_or("nothing".into(), short)))
                        .collect();
                    if behind.is_empty() && !writes {
                        self.log.note("script", format!("everybody has {}", short(&head)));
                        return;
                    }
                    format!("master has {}, but {}", short(&head), behind.join(", "))
                }
            };
            if Instant::now() > deadline {
                self.log.violation("script", why);
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// The first Sentinel that is not alone.
    fn leader(&self) -> Option<usize> {
        (0..council::COUNT).find(|k| self.council.company(*k) * 2 > council::COUNT)
    }

    async fn fail_over(&self, lagging: bool) {
        if let Some(leader) = self.leader() {
            self.council.fail_over(leader, lagging).await;
        }
    }

    fn master(&self) -> usize {
        self.leader().map_or(0, |k| self.council.view(k).master)
    }

    async fn island(&self, inside: &[String], time: Duration) {
        let outside = self.hosts.iter().filter(|host| !inside.contains(host));
        let pairs: Vec<_> = outside.flat_map(|a| inside.iter().map(move |b| (a, b))).collect();
        let new: Vec<_> = pairs.into_iter().filter(|(a, b)| self.wires.joined(a, b)).collect();
        new.iter().for_each(|(a, b)| self.wires.part(a, b));
        sleep(time).await;
        new.iter().for_each(|(a, b)| self.wires.rejoin(a, b));
    }

    async fn strike(self: Rc<Self>, blow: Blow) {
        match blow {
            Blow::Planned { lagging, stopped } => {
                let master = Rc::clone(&self.nodes[self.master()].master);
                if stopped {
                    master.set_writing(false);
                    sleep(Duration::from_millis(500)).await;
                }
                self.fail_over(lagging).await;
                sleep(Duration::from_secs(if stopped { 12 } else { 0 })).await;
                master.set_writing(!self.settling.get());
            }
            Blow::Dies { lagging, after, away, kept } => {
                let dead = self.master();
                let restarts = self.nodes[dead].restart(after + away, kept);
                let promotes = async {
                    sleep(after).await;
                    self.fail_over(lagging).await;
                };
                tokio::join!(restarts, promotes);
            }
            Blow::Lags(n, time) => {
                let Some(Address::Tcp { host, .. }) = self.nodes[n].replica.followed() else { return };
                let (a, b) = (self.nodes[n].name.clone(), host);
                if self.wires.joined(&a, &b) {
                    self.wires.part(&a, &b);
                    sleep(time).await;
                    self.wires.rejoin(&a, &b);
                }
            }
            Blow::Island(hosts, time) => self.island(&hosts, time).await,
            Blow::LosesMaster(after, time) => {
                let master = self.master();
                let mut inside = vec![node_name(master)];
                if self.plan.shape == Shape::Sidecars {
                    inside.push(sidecar_name(master));
                }
                let promotes = async {
                    sleep(after).await;
                    self.fail_over(false).await;
                };
                tokio::join!(self.island(&inside, time), promotes);
            }
            Blow::Rogue(k, time) => {
                let others: Vec<_> = (0..council::COUNT).filter(|j| *j != k).map(sentinel_name).collect();
                let name = sentinel_name(k);
                others.iter().for_each(|other| self.wires.part(&name, other));
                self.council.fail_over(k, false).await;
                sleep(time).await;
                others.iter().for_each(|other| self.wires.rejoin(&name, other));
            }
            Blow::Restarts(n, away, kept) => self.nodes[n].restart(away, kept).await,
            Blow::Cut(a, b) => {
                self.wires.cut(&a, &b, None);
            }
            Blow::Kills(host, crash) => {
                let Some(victim) = self.psyncds.iter().find(|psyncd| psyncd.host == host) else { return };
                victim.crash.set(crash);
                victim.kills.set(victim.kills.get() + 1);
            }
        }
    }

    /// A relay follows whom most Sentinels agreed on, and never under an older number.
    fn watch_relay(&self, relay: &Sidecar, time: Duration) {
        let Some((address, epoch)) = relay.psyncd.followed() else { return };
        let (before, agreed) = relay.followed.replace((address.clone(), epoch));
        if before == address && agreed == epoch {
            return;
        }
        let said = epoch.map_or("none".to_owned(), |epoch| epoch.to_string());
        let name = address.as_ref().map_or("nobody".to_owned(), Address::to_string);
        self.log.note(&relay.host, format!("follows {name}, agreed on {said}, at {time:?}"));
        if epoch < agreed && relay.since.get() < time {
            self.log.violation(&relay.host, format!("went back from epoch {agreed:?} to {epoch:?}"));
        }
        let Some(Address::Tcp { host, .. }) = address else { return };
        let Some(n) = self.nodes.iter().position(|node| node.name == host) else {
            self.log.violation(&relay.host, format!("follows {host}, which is no node"));
            return;
        };
        match self.council.elected(n) {
            None => self.log.violation(&relay.host, format!("follows {host}, which nobody elected")),
            Some(epoch) if epoch < relay.newest.get() => {
                self.log
                    .violation(&relay.host, format!("follows {host} of epoch {epoch} after {}", relay.newest.get()));
            }
            Some(epoch) => relay.newest.set(epoch),
        }
    }
}

fn sidecar(host: &str, plan: &Plan, chance: &Chance) -> Rc<Sidecar> {
    let mut more = vec![
        ("snapshot-min-interval", format!("{}ms", plan.snapshot_interval.as_millis())),
        ("connect-timeout", "2s".to_owned()),
    ];
    let sentinels =
        |which: &[usize]| which.iter().map(|k| format!("{}:{}", sentinel_name(*k), council::PORT)).collect();
    match plan.shape {
        Shape::Plain | Shape::Sidecars => {}
        Shape::Asking => {
            let addresses: Vec<String> = match plan.believes_only {
                Some(k) => sentinels(&[k]),
                None => sentinels(&[0, 1, 2]),
            };
            more.push(("sentinels", addresses.join(",")));
            more.push(("sentinel-master", council::MASTER_NAME.to_owned()));
            more.push(("replica-port", "0".to_owned()));
        }
        Shape::Told => more.push(("replica-port", FACE_PORT.to_string())),
    }
    // Room is not what is tried here.
    let psyncd = Psyncd::named(host, plan.psyncd.clone(), 1 << 30, more);
    Rc::new(Sidecar {
        host: host.to_owned(),
        psyncd,
        disk: RefCell::new(SimDisk::new(chance.fork(host).fork("disk"))),
        kills: Cell::new(0),
        crash: Cell::new(Crash::Process),
        since: Cell::new(Duration::ZERO),
        followed: RefCell::default(),
        newest: Cell::new(0),
    })
}

/// Whether whoever is asked has to continue a position: what a node can do, what a psyncd claims, and what a psyncd has
/// and the node behind it, unchanged for a while, would know for its own.
fn oracle(nodes: Rc<RefCell<Vec<Rc<Node>>>>, psyncds: Vec<Rc<Sidecar>>, wires: Wires) -> replica::Oracle {
    Rc::new(move |asked, position| {
        let Address::Tcp { host, .. } = asked else { return None };
        let nodes = nodes.borrow();
        if let Some(node) = nodes.iter().find(|node| node.name == *host) {
            return Some(node.master.serves(position));
        }
        let at = psyncds.iter().find(|psyncd| psyncd.host == *host)?;
        let claims = at.psyncd.serves(position)?;
        if claims {
            return Some(true);
        }
        let (link, first) = at.psyncd.window()?;
        let behind = match at.psyncd.followed()?.0? {
            Address::Tcp { host, .. } => nodes.iter().find(|node| node.name == host)?.clone(),
            Address::Unix(_) => return None,
        };
        let settled = [behind.turned(), at.since.get()].iter().all(|since| now() - *since > SETTLED);
        let knows = settled && link == LinkState::Streaming && wires.joined(&at.host, &behind.name);
        Some(knows && first <= position.offset && behind.master.serves(position))
    })
}

/// Runs an estate to its end or to the first broken law.
pub fn run(plan: Plan, log: Log) -> Outcome {
    watch_panics();
    let _watchdog = Watchdog::set(format!("seed {} {:?}", plan.seed, plan.shape));
    psyncd::wall::show_instead(crate::world::simulated_unix_ms);
    let mut sim = turmoil::Builder::new()
        .rng_seed(plan.seed)
        .epoch(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000))
        .simulation_duration(Duration::from_secs(100_000))
        .tick_duration(Duration::from_millis(10))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(30))
        .tcp_capacity(1 << 20)
        .build();
    let limit = plan.calm_at + plan.settle_within + Duration::from_secs(60);
    let estate = Estate::new(plan, log.clone());
    for node in &estate.nodes {
        let node = Rc::clone(node);
        sim.host(node.name.clone(), move || Rc::clone(&node).run());
    }
    for psyncd in &estate.psyncds {
        let (estate, psyncd) = (Rc::clone(&estate), Rc::clone(psyncd));
        sim.host(psyncd.host.clone(), move || {
            psyncd.since.set(now());
            psyncd.psyncd.run(estate.seams(&psyncd))
        });
    }
    for k in 0..council::COUNT {
        let council = Rc::clone(&estate.council);
        sim.host(sentinel_name(k), move || Rc::clone(&council).run(k));
    }
    for replica in &estate.pool {
        let replica = Rc::clone(replica);
        sim.host(replica.name.clone(), move || Rc::clone(&replica).run());
    }
    sim.client("script", Rc::clone(&estate).script());
    let mut killed = vec![0; estate.psyncds.len()];
    loop {
        let stepped = sim.step();
        if let Err(e) = &stepped {
            log.violation("world", format!("a host failed: {e}"));
        }
        for panic in PANICS.with_borrow_mut(std::mem::take) {
            log.violation("world", format!("panicked: {panic}"));
        }
        for (killed, at) in killed.iter_mut().zip(&estate.psyncds) {
            if estate.plan.shape.is_relay() {
                estate.watch_relay(at, sim.elapsed());
            }
            if let Some(what) = at.psyncd.overdrawn(&at.disk.borrow()) {
                log.violation(&at.host, what);
            }
            if at.kills.get() > *killed {
                *killed = at.kills.get();
                sim.crash(at.host.clone());
                let chance = Chance::new(estate.plan.seed).fork("crash");
                let survivor = at.disk.borrow().crash(at.crash.get(), chance);
                at.disk.replace(survivor);
                sim.bounce(at.host.clone());
            }
        }
        if sim.elapsed() > limit && !estate.finished.get() {
            log.violation("world", "did not come to its end");
        }
        if estate.finished.get() || !log.violations().is_empty() {
            break;
        }
    }
    let replicas = estate.nodes.iter().map(|node| &node.replica).chain(&estate.pool);
    let outcome = Outcome {
        events: log.events(),
        violations: log.violations(),
        counts: replicas.map(|replica| replica.counts()).collect(),
    };
    drop(sim);
    outcome
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcome")
            .field("violations", &self.violations)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}
