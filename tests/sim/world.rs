//! One world: a master, perhaps something in front of it, replicas, a script of faults, a quiet time, and
//! the last check that everybody has the same.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Once, mpsc};
use std::time::{Duration, SystemTime};

use psyncd::net::{Address, Network};
use psyncd::repl::Position;
use psyncd::store::disk::Disk;
use tokio::time::{Instant, sleep, sleep_until};

use crate::chance::Chance;
use crate::client::Client;
use crate::disk::{Crash, DiskFaults, SimDisk};
use crate::log::{Event, Log};
use crate::master::{self, Master, Mood, Slip, short};
use crate::network::{SimNetwork, Weather, Wires};
use crate::product;
use crate::replica::{self, Replica};
use crate::truth::Truth;

pub const MASTER: &str = "master";
pub const PROXY: &str = "psyncd";
/// Where the subject listens for replicas.
pub const PROXY_PORT: u16 = 6380;

/// Something that happens to the world at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Every link between two hosts is cut, at once or some bytes later.
    Cut(String, String, Option<u64>),
    /// Every link between two hosts falls silent.
    Silence(String, String),
    /// Nobody can dial the host for a while.
    Refuse(String, Duration),
    /// The master closes its links.
    KillLinks,
    /// The master is away for a while and comes back as it was.
    Down(Duration),
    /// The master comes back without data.
    LoseEverything(Duration),
    /// The master comes back with its data, from a backup of another time.
    RestoreFromBackup(Duration),
    /// The master comes back from a file that lacks the last bytes.
    RestartFromFile(Duration, u64),
    /// A node that lacks the last bytes takes over.
    FailOver(Duration, u64),
    /// The master refuses for a while.
    Moody(Mood, Duration),
    /// The master's next answer to PSYNC or SYNC is a wrong one.
    Slip(Slip),
    /// A replica's process dies and comes back without data.
    RestartReplica(usize),
    /// A replica is pointed at the master itself, and after a while back.
    MoveAway(usize, Duration),
    /// The disk misbehaves for a while.
    Disk { full_at: Option<u64>, read_only: bool, failing: Vec<u64>, for_: Duration },
    /// The subject is killed and started again; of what it had not synced this much survives.
    KillSubject(Crash),
    /// Somebody has the subject follow the master its wipe guard holds.
    Release,
}

/// Everything that decides how a world goes.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub master: master::Setup,
    pub psyncd: product::Setup,
    pub replicas: Vec<replica::Setup>,
    pub weather: Weather,
    pub faults: Vec<(Duration, Fault)>,
    /// When replicas are first told to follow.
    pub arrivals: Vec<Duration>,
    /// From here on nothing goes wrong.
    pub calm_at: Duration,
    /// Ordinary clients at the same address.
    pub clients: usize,
    /// Everybody must have everything this much later.
    pub settle_within: Duration,
}

/// What a subject gets from the world.
#[derive(Clone)]
pub struct Seams {
    pub network: Arc<dyn Network>,
    pub disk: Arc<dyn Disk>,
    pub upstream: Address,
    pub chance: Chance,
    pub log: Log,
}

/// Whatever stands between the master and the replicas.
pub trait Subject {
    /// Lives until dropped. Called again after a kill.
    fn run(&self, seams: Seams) -> Pin<Box<dyn Future<Output = turmoil::Result>>>;

    /// Whether `position` is in its lineage and in its window now; none when it cannot tell.
    fn serves(&self, position: &Position) -> Option<bool>;

    /// What its own limits say is wrong now.
    fn overdrawn(&self, _disk: &SimDisk) -> Option<String> {
        None
    }

    /// Follow the master that is held by a wipe guard; one is.
    fn release(&self) {}

    /// Whether it promises one snapshot at a time however many replicas there are.
    fn fetches_once(&self) -> bool {
        true
    }
}

/// How a world went.
pub struct Outcome {
    pub events: Vec<Event>,
    pub violations: Vec<String>,
    pub master: master::Counts,
    pub replicas: Vec<replica::Counts>,
}

/// A world being run; the script acts on it.
pub struct World {
    pub plan: Plan,
    pub log: Log,
    pub truth: Truth,
    pub wires: Wires,
    pub disk: RefCell<SimDisk>,
    pub master: Rc<Master>,
    pub replicas: Vec<Rc<Replica>>,
    pub clients: Vec<Rc<Client>>,
    subject: Option<Rc<dyn Subject>>,
    kills: Cell<u64>,
    crash: Cell<Crash>,
    finished: Cell<bool>,
}

thread_local! {
    pub static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A panic in a spawned task would otherwise only be printed.
pub fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            usual(info);
        }));
    });
    PANICS.with_borrow_mut(Vec::clear);
}

pub fn replica_name(n: usize) -> String {
    format!("r{n}")
}

fn address(host: &str, port: u16) -> Address {
    Address::Tcp { host: host.to_owned(), port }
}

fn front(proxied: bool) -> Address {
    if proxied { address(PROXY, PROXY_PORT) } else { address(MASTER, master::PORT) }
}

impl World {
    fn new(plan: Plan, subject: Option<Rc<dyn Subject>>, log: Log) -> Rc<Self> {
        let chance = Chance::new(plan.seed);
        let truth = Truth::default();
        let wires = Wires::new(chance.fork("network"), plan.weather, log.clone());
        let network = |host: &str| SimNetwork::new(host, wires.clone());
        let master = Master::new(MASTER, plan.master.clone(), &chance, log.clone(), truth.clone(), network(MASTER));
        master.proxied.set(subject.as_ref().is_some_and(|s| s.fetches_once()));
        let oracle: replica::Oracle = {
            let (master, subject) = (Rc::clone(&master), subject.clone());
            Rc::new(move |asked, position| match (asked, &subject) {
                (Address::Tcp { host, .. }, _) if host == MASTER => Some(master.serves(position)),
                (_, Some(subject)) => subject.serves(position),
                _ => None,
            })
        };
        let replicas = plan.replicas.iter().enumerate().map(|(n, setup)| {
            let name = replica_name(n);
            let network = network(&name);
            Replica::new(&name, setup.clone(), &chance, log.clone(), truth.clone(), network, Rc::clone(&oracle))
        });
        let replicas = replicas.collect();
        let disk = RefCell::new(SimDisk::new(chance.fork("disk")));
        let (kills, crash, finished) = (Cell::new(0), Cell::new(Crash::Process), Cell::new(false));
        let front = front(subject.is_some());
        let clients = (0..plan.clients).map(|n| {
            let name = format!("c{n}");
            let network = network(&name);
            Client::new(&name, plan.master.auth.clone(), &chance, log.clone(), network, front.clone())
        });
        let clients = clients.collect();
        Rc::new(Self { plan, log, truth, wires, disk, master, replicas, clients, subject, kills, crash, finished })
    }

    /// Where replicas belong.
    pub fn front(&self) -> Address {
        front(self.subject.is_some())
    }

    fn seams(&self) -> Seams {
        Seams {
            network: Arc::new(SimNetwork::new(PROXY, self.wires.clone())),
            disk: Arc::new(self.disk.borrow().clone()),
            upstream: address(MASTER, master::PORT),
            chance: Chance::new(self.plan.seed).fork("subject"),
            log: self.log.clone(),
        }
    }

    async fn script(self: Rc<Self>) -> turmoil::Result {
        let begin = Instant::now();
        for (n, at) in self.plan.arrivals.iter().enumerate() {
            let (world, at) = (Rc::clone(&self), *at);
            tokio::task::spawn_local(async move {
                sleep_until(begin + at).await;
                world.replicas[n].follow(Some(world.front()));
            });
        }
        for (at, fault) in &self.plan.faults {
            sleep_until(begin + *at).await;
            self.log.note("script", format!("{fault:?}"));
            tokio::task::spawn_local(Rc::clone(&self).apply(fault.clone()));
        }
        sleep_until(begin + self.plan.calm_at).await;
        self.log.note("script", "calm");
        self.wires.calm();
        self.replicas.iter().for_each(|replica| replica.hurry());
        self.master.forget_slips();
        self.master.set_mood(Mood::Serving);
        self.disk.borrow().suffer(DiskFaults::default());
        sleep(Duration::from_secs(5)).await;
        self.master.set_writing(false);
        self.settle().await;
        self.serve_clients().await;
        self.finished.set(true);
        Ok(())
    }

    async fn settle(&self) {
        let deadline = Instant::now() + self.plan.settle_within;
        loop {
            let head = self.master.position();
            let behind: Vec<String> = self
                .replicas
                .iter()
                .filter(|r| {
                    let has = r.position();
                    !has.is_some_and(|p| p.offset == head.offset && self.truth.on_line(&p, head.id))
                })
                .map(|r| format!("{} has {}", r.name, r.position().as_ref().map_or("nothing".into(), short)))
                .collect();
            if behind.is_empty() {
                self.log.note("script", format!("everybody has {}", short(&head)));
                break;
            }
            if Instant::now() > deadline {
                self.log.violation("script", format!("master has {}, but {}", short(&head), behind.join(", ")));
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        // WAIT: a GETACK is answered with everything before it.
        let target = self.master.getack();
        let deadline = Instant::now() + Duration::from_secs(4);
        while self.master.acknowledged().is_some_and(|acked| acked < target) {
            if Instant::now() > deadline {
                let acked = self.master.acknowledged();
                self.log.violation("script", format!("GETACK at {target} found only {acked:?}"));
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        if self.master.longest_silence() > Duration::from_secs(3) {
            let silent = self.master.longest_silence();
            self.log.violation("script", format!("a follower did not acknowledge for {silent:?}"));
        }
    }

    /// Every client is answered once more.
    async fn serve_clients(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        for client in &self.clients {
            let before = client.answered();
            while client.answered() == before {
                if Instant::now() > deadline {
                    self.log.violation(&client.name, "is not answered any more");
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
    }

    async fn apply(self: Rc<Self>, fault: Fault) {
        match fault {
            Fault::Cut(a, b, after) => {
                self.wires.cut(&a, &b, after);
            }
            Fault::Silence(a, b) => {
                self.wires.silence(&a, &b);
            }
            Fault::Refuse(host, time) => {
                self.wires.refuse(&host, true);
                sleep(time).await;
                self.wires.refuse(&host, false);
            }
            Fault::KillLinks => self.master.kill_links(),
            Fault::Down(time) => self.away(time, || {}).await,
            Fault::LoseEverything(time) => self.away(time, || self.master.lose_everything()).await,
            Fault::RestoreFromBackup(time) => self.away(time, || self.master.restore_from_backup()).await,
            Fault::RestartFromFile(time, lost) => self.away(time, || self.master.restart_from_file(lost)).await,
            Fault::FailOver(time, lost) => self.away(time, || self.master.fail_over(lost)).await,
            Fault::Moody(mood, time) => {
                self.master.set_mood(mood);
                sleep(time).await;
                self.master.set_mood(Mood::Serving);
            }
            Fault::Slip(slip) => self.master.slip(slip),
            Fault::RestartReplica(n) => self.replicas[n].restart_empty(),
            Fault::MoveAway(n, time) => {
                self.replicas[n].follow(Some(address(MASTER, master::PORT)));
                sleep(time).await;
                self.replicas[n].follow(Some(self.front()));
            }
            Fault::Disk { full_at, read_only, failing, for_ } => {
                let failing = failing.into_iter().collect();
                let faults = DiskFaults { capacity_bytes: full_at, read_only, failing, ..Default::default() };
                self.disk.borrow().suffer(faults);
                sleep(for_).await;
                self.disk.borrow().suffer(DiskFaults::default());
            }
            Fault::Release => self.subject.as_ref().expect("a subject is there to be told").release(),
            Fault::KillSubject(crash) => {
                self.crash.set(crash);
                self.kills.set(self.kills.get() + 1);
            }
        }
    }

    async fn away(&self, time: Duration, meanwhile: impl FnOnce()) {
        self.master.set_up(false);
        meanwhile();
        sleep(time).await;
        self.master.set_up(true);
    }
}

/// Ends the process when a world makes no progress in real time: some task runs without ever waiting.
pub struct Watchdog {
    /// Its end stands the dog down.
    _alive: mpsc::Sender<()>,
}

impl Watchdog {
    const PATIENCE: Duration = Duration::from_secs(120);

    pub fn set(what: String) -> Self {
        let (alive, ended) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(Self::PATIENCE) {
                eprintln!("{what} makes no progress: some task never waits");
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}

/// The clock on the wall of every machine: what it shows must not depend on how busy ours is.
pub fn simulated_unix_ms() -> u64 {
    const BEGIN_MS: u64 = 1_800_000_000_000;
    BEGIN_MS + turmoil::sim_elapsed().map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// Runs a world to its end or to the first broken law.
pub fn run(plan: Plan, subject: Option<Rc<dyn Subject>>, log: Log) -> Outcome {
    watch_panics();
    let _watchdog = Watchdog::set(format!(
        "seed {} {}",
        plan.seed,
        if subject.is_some() { "with a subject" } else { "without a subject" }
    ));
    psyncd::wall::show_instead(simulated_unix_ms);
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
    let world = World::new(plan, subject.clone(), log.clone());
    {
        let master = Rc::clone(&world.master);
        sim.host(MASTER, move || Rc::clone(&master).run());
    }
    if let Some(subject) = &subject {
        let (world, subject) = (Rc::clone(&world), Rc::clone(subject));
        sim.host(PROXY, move || subject.run(world.seams()));
    }
    for replica in &world.replicas {
        let replica = Rc::clone(replica);
        sim.host(replica.name.clone(), move || Rc::clone(&replica).run());
    }
    for client in &world.clients {
        let client = Rc::clone(client);
        sim.host(client.name.clone(), move || Rc::clone(&client).run());
    }
    sim.client("script", Rc::clone(&world).script());
    let mut killed = 0;
    loop {
        let stepped = sim.step();
        if let Err(e) = &stepped {
            log.violation("world", format!("a host failed: {e}"));
        }
        for panic in PANICS.with_borrow_mut(std::mem::take) {
            log.violation("world", format!("panicked: {panic}"));
        }
        if let Some(what) = subject.as_ref().and_then(|s| s.overdrawn(&world.disk.borrow())) {
            log.violation(PROXY, what);
        }
        if sim.elapsed() > limit && !world.finished.get() {
            log.violation("world", "did not come to its end");
        }
        if world.finished.get() || !log.violations().is_empty() {
            break;
        }
        if world.kills.get() > killed {
            killed = world.kills.get();
            sim.crash(PROXY);
            let chance = Chance::new(world.plan.seed).fork("crash");
            let survivor = world.disk.borrow().crash(world.crash.get(), chance);
            world.disk.replace(survivor);
            sim.bounce(PROXY);
        }
    }
    let replicas = world.replicas.iter().map(|r| r.counts()).collect();
    let outcome =
        Outcome { events: log.events(), violations: log.violations(), master: world.master.counts(), replicas };
    drop(sim);
    outcome
}
