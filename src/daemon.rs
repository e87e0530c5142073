//! The life of the process: the only place that builds, spawns and supervises.
//!
//! Order of life: directory, relay, listeners, then the tasks. Order of death: no new connections and no link (with
//! a last acknowledgement), sessions drain to the head, everybody is closed, the admin port last.

pub(crate) mod announce;
mod assist;
mod describe;
mod faces;
mod memory;
mod reload;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::access::credentials::{Credentials as Named, same};
use crate::access::crowd::Crowd;
use crate::access::memory::Memory as Passwords;
use crate::access::oracle::{Oracle, Probe};
use crate::access::{self, Access};
use crate::admin;
use crate::cli::Exit;
use crate::config::{self, Config, Loaded, Socket};
use crate::downstream::peers::{Answered, Peers, Trust};
use crate::downstream::session::Before;
use crate::downstream::{self, Downstream, Summons, session};
use crate::entropy::{Entropy, SystemEntropy};
use crate::events::Events;
use crate::front::{self, Caller, Front, ServeReplica, face};
use crate::live::Live;
use crate::net::tls::{Tls, TlsNetwork, watch};
use crate::net::{Address, Admit, ControlSocket, Listener, Network, TokioNetwork};
use crate::notify::Notifier;
use crate::observer::Observer;
use crate::operator::Operator;
use crate::relay::replicas::ReplicaState;
use crate::relay::status::Status;
use crate::relay::target::{Repointed, Target};
use crate::relay::{self, Relay};
use crate::repl::ServerVersion;
use crate::store::disk::{DirLock, Disk, RealDisk};
use crate::store::journal::{self, OpenError};
use crate::store::kept;
use crate::store::snapshot::Shelf;
use crate::store::state::{Found, Remembered, StateFile};
use crate::upstream::cast::{Cast, Links};
use crate::upstream::guard::{Guard, GuardStatus};
use crate::upstream::inquiry::{Credentials, Inquiry};
use crate::upstream::link::MasterLink;
use crate::upstream::{self, Upstream, census, fetch, mirror, recovered};
use crate::wire::info::MasterInfo;
use crate::{scribe, sentinel};
use faces::Whereabouts;
use memory::Memory;
use reload::Changeable;

/// How long replicas may take for the bytes we still have when we go.
const DRAIN: Duration = Duration::from_secs(2);
/// How long tasks may take to end when they are told to.
const GRACE: Duration = Duration::from_secs(2);
/// How long a replica may take to say how important it is. Nobody waits for it.
const PRIORITY_PATIENCE: Duration = Duration::from_secs(1);

/// How long the upstream may take to judge a replica, which waits for that itself.
const ORACLE_PATIENCE: Duration = Duration::from_secs(3);

/// Why the daemon ended other than cleanly.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// What happened.
    pub error: anyhow::Error,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { exit: Exit::for_error(&error), error }
    }
}

/// The world as the daemon sees it; a simulation brings its own.
#[derive(Clone)]
pub struct Seams {
    /// How to dial and listen.
    pub network: Arc<dyn Network>,
    /// Where to keep files.
    pub disk: Arc<dyn Disk>,
    /// Where chance comes from.
    pub entropy: Arc<dyn Entropy>,
    /// What happened lately, for operators to see. Whoever sends the log somewhere feeds it.
    pub events: Events,
}

impl Seams {
    /// The real world.
    pub fn real(config: &Config, events: Events) -> Self {
        let network = TokioNetwork { keepalive: config.tcp_keepalive, backlog: config.tcp_backlog };
        Self { network: Arc::new(network), disk: Arc::new(RealDisk), entropy: Arc::new(SystemEntropy), events }
    }
}

/// A running psyncd.
pub struct Daemon {
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Where it listens for those who speak TLS.
    pub listen_tls: Vec<SocketAddr>,
    /// Where it answers operators.
    pub admin: Option<SocketAddr>,
    /// Where it is told what to do.
    pub socket: Option<PathBuf>,
    /// Where its replica face listens.
    pub face: Vec<SocketAddr>,
    relay: Arc<Relay>,
    operator: Arc<Operator>,
    shelf: Arc<Shelf>,
    tasks: TaskTracker,
    /// The journal's writer, which outlives all who have something for it.
    keeper: Option<JoinHandle<()>>,
    admin_tasks: TaskTracker,
    stop: Stop,
    draining: Arc<AtomicBool>,
    changeable: Changeable,
    /// What can be seen of it.
    source: Arc<dyn admin::Source>,
    _lock: Option<DirLock>,
    _temporary: Option<tempfile::TempDir>,
}

/// The stages of an end.
#[derive(Debug, Clone, Default)]
struct Stop {
    /// No new connection, no link.
    feeding: CancellationToken,
    /// No session, no client.
    serving: CancellationToken,
    /// No journal.
    keeping: CancellationToken,
    /// No admin.
    watching: CancellationToken,
}

/// Runs in the real world until a signal ends it. A second signal skips the waiting. SIGHUP has it load its configuration
/// `again`.
pub async fn run(
    config: Config,
    events: Events,
    again: impl Fn() -> Result<Loaded, config::Error>,
) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(anyhow::Error::from)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(anyhow::Error::from)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(anyhow::Error::from)?;
    let seams = Seams::real(&config, events);
    let notifier = Arc::new(Notifier::of_process());
    let daemon = start(config, seams).await?;
    // Listening, not streaming: a manager would kill a psyncd whose master is down for taking long to start, and one that
    // orders the master after psyncd would wait for ever. /readyz sees it the same way; whether it streams is in the status.
    notifier.ready().await;
    let pulse = tokio::spawn(pulse(Arc::clone(&notifier), Arc::clone(&daemon.source)));
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => {
                info!("ending on SIGTERM");
                break;
            }
            _ = interrupt.recv() => {
                info!("ending on SIGINT");
                break;
            }
            _ = hangup.recv() => {
                notifier.reloading().await;
                daemon.reload(again());
                notifier.ready().await;
            }
        }
    }
    notifier.stopping().await;
    tokio::select! {
        biased;
        () = daemon.shutdown() => {}
        _ = terminate.recv() => warn!("ended at once on a second signal"),
        _ = interrupt.recv() => warn!("ended at once on a second signal"),
    }
    // Until here, because an end takes longer than an impatient watchdog waits.
    pulse.abort();
    info!("psyncd stopped");
    Ok(())
}

/// Tells the service manager how things stand. Where no worker runs or the relay is stuck nothing is told, which is what a
/// watchdog wants to know; that is why this is a task of its own, and why it looks before it speaks.
async fn pulse(notifier: Arc<Notifier>, source: Arc<dyn admin::Source>) {
    if !notifier.is_heard() {
        return;
    }
    let mut ticks = interval(notifier.pulse());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        notifier.alive(&source.verdict()).await;
    }
}

/// Builds everything and lets it run.
pub async fn start(config: Config, seams: Seams) -> Result<Daemon, Failure> {
    let tls = match &config.tls.options {
        Some(options) => Some(open_tls(options.clone()).await?),
        None => None,
    };
    let secured = |admit: Option<Admit>| {
        let (tls, inner) = (tls.clone()?, Arc::clone(&seams.network));
        Some(Arc::new(TlsNetwork { inner, tls, admit }) as Arc<dyn Network>)
    };
    let crowd = Crowd::new(config.max_unauthenticated, config.max_connection_rate);
    let front_metrics: Arc<front::Metrics> = Arc::default();
    // A handshake is paid for before anybody has said who he is.
    let door = secured(Some(front::admit(Arc::clone(&crowd), Arc::clone(&front_metrics))));
    let secured = secured(None);
    let dialing = |in_tls: bool| match &secured {
        Some(secured) if in_tls => Arc::clone(secured),
        Some(_) | None => Arc::clone(&seams.network),
    };
    let (toward_upstream, toward_peers) = (dialing(config.tls.upstream), dialing(config.tls.peers));
    let temporary = match &config.dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("psyncd-").tempdir().context("create a temporary directory")?),
    };
    let dir = match (&config.dir, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => unreachable!("one of the two is there"),
    };
    announce::check(&config).await.map_err(|why| Failure { exit: Exit::Config, error: anyhow!(why) })?;
    let lasting = temporary.is_none();
    let (shelf, found, lock) = open_dir(&seams, dir.clone(), lasting).await?;
    let (state, remembered) = match lasting {
        true => remembered(&seams, dir, &config).await,
        false => (None, Remembered::default()),
    };
    let shelf = Arc::new(shelf);
    let relay = Relay::new(relay::Options {
        backlog_bytes: config.repl_backlog_bytes,
        journal_bytes: config.journal.map_or(0, |journal| journal.limit_bytes),
        journal_lag_bytes: config.journal.map_or(0, |journal| journal.max_lag_bytes),
        history_depth: config.history_depth,
        max_replicas: config.max_replicas,
    });
    let identity = String::from_utf8_lossy(&seams.entropy.hex40()).into_owned();
    let known = remembered.master;
    let memory = Memory::new(&config, remembered, &identity);
    let target = Arc::clone(&memory.target);
    let journal_metrics: Arc<scribe::Metrics> = Arc::default();
    let (scribe, scanner) = match &config.journal {
        None => (None, None),
        Some(journal) => {
            let journal = &config::Journal { adopt: journal.adopt || memory.caught_up, ..*journal };
            let options = journal_options(&config, journal, shelf.dir().to_owned());
            let opened = scribe::open(
                Arc::clone(&seams.disk),
                options,
                journal.fsync,
                Arc::clone(&relay),
                Arc::clone(&journal_metrics),
            );
            let (scribe, scanner) = opened.await.map_err(|error| Failure {
                exit: match error {
                    OpenError::Io { .. } => Exit::CannotCreate,
                    OpenError::Foreign { .. } | OpenError::UnknownVersion { .. } => Exit::Config,
                },
                error: anyhow!(error).context("cannot use the journal"),
            })?;
            (Some(scribe), scanner)
        }
    };

    let mut listeners = Vec::new();
    let mut port = config.port;
    for address in config.bind.iter().filter(|_| !config.tls.only) {
        let listener = listen(&*seams.network, SocketAddr::new(*address, port)).await?;
        // With port 0 the first address chooses for all.
        port = listener.local().port();
        listeners.push(listener);
    }
    let mut tls_listeners = Vec::new();
    if let (Some(port), Some(door)) = (config.tls.port, &door) {
        for address in &config.bind {
            tls_listeners.push(listen(&**door, SocketAddr::new(*address, port)).await?);
        }
    }
    let admin_network = match &secured {
        Some(secured) if config.tls.admin => secured,
        _ => &seams.network,
    };
    if let (true, Some(listener)) = (config.tls.only, tls_listeners.first()) {
        port = listener.local().port();
    }
    let face_network = match &door {
        Some(door) if config.tls.only => door,
        _ => &seams.network,
    };
    let mut face_listeners = Vec::new();
    for address in config.face() {
        face_listeners.push(listen(&**face_network, address).await?);
    }
    let admin_listener = match config.admin_bind {
        Some(address) => Some(listen(&**admin_network, address).await?),
        None => None,
    };

    let socket = control_socket(&config.socket).await?;
    let guard = Arc::new(Guard::new(config.guard, known, socket.as_ref().map(|socket| socket.path().to_owned())));
    let upstream = Upstream {
        target: Arc::clone(&target),
        options: Arc::new(upstream_options(&config, identity.clone())),
        relay: Arc::clone(&relay),
        network: Arc::clone(&toward_upstream),
        peers: Arc::clone(&toward_peers),
        shelf: Arc::clone(&shelf),
        guard: Arc::clone(&guard),
        entropy: Arc::clone(&seams.entropy),
        cast: Arc::new(Cast::default()),
        metrics: Arc::default(),
        forks: Arc::default(),
        node: Arc::default(),
    };
    let access = access(&config, &seams, &toward_upstream, &target, Arc::clone(&upstream.node));
    let downstream = Downstream::new(
        downstream::Options {
            handshake_timeout: config.handshake_timeout,
            max_handshake_bytes: config.max_handshake_bytes,
            hold_timeout: config.hold_timeout,
            repl_timeout: config.repl_timeout,
            identity: identity.clone(),
            max_senders: config.max_senders,
            sender_rate_limit: config.sender_rate_limit,
        },
        Arc::clone(&relay),
        Arc::clone(&target),
        Arc::clone(&seams.entropy),
        Arc::clone(&access),
        Arc::new(ReplicaInquiry(Inquiry { network: toward_peers, login: upstream.options.login.clone() })),
    );
    let stop = Stop::default();
    let assist = assist::Assist::new(&config, &seams, &upstream, port);
    let front = Front {
        options: Arc::new(front::Options {
            announce_host: upstream.options.announce_host.clone(),
            announce_port: upstream.options.announce_port,
            max_clients: config.max_clients,
            max_handshake_bytes: config.max_handshake_bytes,
            handshake_timeout: config.handshake_timeout,
            connect_timeout: config.connect_timeout,
        }),
        network: toward_upstream,
        relay: Arc::clone(&relay),
        target: Arc::clone(&target),
        access: Arc::clone(&access),
        crowd,
        serve_psyncd: assist.serve_psyncd(&stop.serving),
        hold_promotion: assist.hold_promotion(),
        serve_replica: serve_replica(downstream.clone(), stop.serving.clone()),
        metrics: front_metrics,
    };
    let draining = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|l| l.local()).collect();
    let face_addresses: Vec<SocketAddr> = face_listeners.iter().map(|l| l.local()).collect();
    let operator = Arc::new(Operator {
        guard: Arc::clone(&guard),
        relay: Arc::clone(&relay),
        target: Arc::clone(&target),
        own: listeners.iter().chain(&tls_listeners).chain(&face_listeners).map(|l| l.local()).collect(),
        sentinel_master: config.sentinels.as_ref().map(|sentinels| sentinels.master.clone()),
        draining: Arc::clone(&draining),
        ending: stop.feeding.clone(),
        remembers: lasting,
    });
    let here = Whereabouts {
        front: listeners.iter().chain(&tls_listeners).map(|l| l.local()).collect(),
        face: face_addresses.clone(),
        run_id: memory.run_id.clone(),
        identity,
        started,
    };
    let (face, hellos) = faces::face(&config, &front, &upstream, here);
    let scout = faces::scout(&config, &upstream, dialing(config.tls.sentinels));
    let changeable = Changeable::new(
        &config,
        upstream.options.login.clone(),
        scout.options.login.clone(),
        face.options.password.clone(),
        Arc::clone(&front.access),
    );
    let scouting = config.sentinels.is_some() || !face_addresses.is_empty();
    let observer = Observer {
        target: Arc::clone(&target),
        relay: Arc::clone(&relay),
        upstream: Arc::clone(&upstream.metrics),
        downstream: Arc::clone(&downstream.metrics),
        senders: Arc::clone(&downstream.senders),
        sender_rate_limit: config.sender_rate_limit,
        front: Arc::clone(&front.metrics),
        assist: assist.metrics,
        tls: tls.clone(),
        access,
        journal: config.journal.is_some().then_some(journal_metrics),
        guard,
        face: (!face_addresses.is_empty()).then(|| Arc::clone(&face.metrics)),
        sentinel: scouting.then(|| Arc::clone(&scout.metrics)),
        draining: Arc::clone(&draining),
        started,
        events: seams.events.clone(),
        settings: changeable.settings.clone(),
        reloads: Arc::clone(&changeable.reloads),
    };

    let (tasks, admin_tasks) = (TaskTracker::new(), TaskTracker::new());
    let tls_addresses: Vec<SocketAddr> = tls_listeners.iter().map(|l| l.local()).collect();
    let admin_address = admin_listener.as_ref().map(|l| l.local());
    tasks.spawn(MasterLink::new(upstream.clone(), scanner).run(stop.feeding.clone()));
    tasks.spawn(census::run(upstream.clone(), state.clone(), config.guard_interval, stop.feeding.clone()));
    if let Some(asker) = assist.asker {
        tasks.spawn(asker.run(stop.serving.clone()));
    }
    if upstream.options.links == Links::Mirrored {
        tasks.spawn(mirror::run(upstream.clone(), stop.feeding.clone()));
    }
    let keeper = scribe.map(|scribe| tokio::spawn(scribe.run(stop.keeping.clone())));
    tasks.spawn(offer(upstream.clone(), found, stop.feeding.clone()));
    tasks.spawn(fetch::run(upstream, stop.feeding.clone()));
    tasks.spawn(kept::run(Arc::clone(&shelf), stop.feeding.clone()));
    if let Some(tls) = tls {
        let look = Arc::clone(&changeable.certificates);
        tasks.spawn(watch::run(tls, look, watch::LOOK_EVERY, stop.feeding.clone()));
    }
    for listener in listeners.into_iter().chain(tls_listeners) {
        let accepting =
            front::accept(front.clone(), listener, tasks.clone(), stop.feeding.clone(), stop.serving.clone());
        tasks.spawn(accepting);
    }
    tasks.spawn(memory.keep(state, !face_addresses.is_empty(), stop.serving.clone()));
    if scouting {
        tasks.spawn(sentinel::run(scout, hellos, stop.feeding.clone()));
    }
    for listener in face_listeners {
        let serve = face::serving(face.clone(), stop.serving.clone());
        tasks.spawn(front::accept_each(listener, tasks.clone(), stop.feeding.clone(), serve));
    }
    let observer: Arc<dyn admin::Source> = Arc::new(observer);
    if let Some(listener) = admin_listener {
        let trusted = config.admin_token.as_ref().map(|token| {
            let control: Arc<dyn admin::control::Control> = Arc::clone(&operator) as _;
            admin::Trusted { token: token.reveal().to_vec().into(), control }
        });
        let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let hosts = admin::hosts::Hosts::new(config.admin_hosts.clone(), &own);
        let door = admin::Door::Public(listener, config.allow_admin.clone(), hosts, trusted);
        admin_tasks.spawn(admin::serve(door, Arc::clone(&observer), stop.watching.clone()));
    }
    let socket_path = socket.as_ref().map(|socket| socket.path().to_owned());
    if let Some(socket) = socket {
        let control: Arc<dyn admin::control::Control> = Arc::clone(&operator) as _;
        admin_tasks.spawn(admin::serve(
            admin::Door::Private(socket, control),
            Arc::clone(&observer),
            stop.watching.clone(),
        ));
    }
    let listed = |addresses: &[SocketAddr]| match addresses {
        [] => "none".to_owned(),
        _ => addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(","),
    };
    let (listen, listen_tls, face) = (listed(&addresses), listed(&tls_addresses), listed(&face_addresses));
    let admin = admin_address.map_or_else(|| "none".to_owned(), |address| address.to_string());
    info!(
        upstream = target.name(),
        listen,
        listen_tls,
        face,
        admin,
        backlog_bytes = config.repl_backlog_bytes,
        "psyncd started"
    );
    Ok(Daemon {
        listen: addresses,
        listen_tls: tls_addresses,
        admin: admin_address,
        socket: socket_path,
        face: face_addresses,
        relay,
        operator,
        shelf,
        tasks,
        keeper,
        admin_tasks,
        stop,
        draining,
        changeable,
        source: observer,
        _lock: lock,
        _temporary: temporary,
    })
}

impl Daemon {
    /// The relay now.
    pub fn status(&self) -> Status {
        self.relay.status()
    }

    /// Whom it follows, and the number of the configuration the Sentinels agreed on.
    pub fn followed(&self) -> (Option<Address>, Option<u64>) {
        (self.operator.target.address(), self.operator.target.epoch())
    }

    /// What operators can have done.
    pub fn operator(&self) -> &Operator {
        &self.operator
    }

    /// The wipe guard now.
    pub fn guard(&self) -> GuardStatus {
        self.operator.guard.status()
    }

    /// Follows another node from now on. What is held stays.
    ///
    /// # Errors
    /// When that would be we ourselves.
    pub fn repoint(&self, address: Address) -> Result<Repointed, String> {
        self.operator.repoint(address)
    }

    /// Takes over what can be changed while it runs, and has the certificates read again. What is open stays open. A
    /// configuration that does not hold changes nothing.
    pub fn reload(&self, loaded: Result<Loaded, config::Error>) {
        self.changeable.reload(loaded, |address| self.operator.repoint(address).map(drop));
    }

    /// Ends everything, in order. Dropping the future leaves the rest undone.
    pub async fn shutdown(self) {
        self.draining.store(true, Ordering::Relaxed);
        self.shelf.leave();
        self.stop.feeding.cancel();
        if timeout(DRAIN, self.drained()).await.is_err() {
            warn!("replicas did not take all we have in time");
        }
        self.stop.serving.cancel();
        self.tasks.close();
        if timeout(GRACE, self.tasks.wait()).await.is_err() {
            warn!("tasks did not end in time");
        }
        self.stop.keeping.cancel();
        if let Some(keeper) = self.keeper
            && timeout(GRACE, keeper).await.is_err()
        {
            warn!("the journal was not closed in time");
        }
        if let Err(error) = self.shelf.clear().await {
            warn!(%error, dir = %self.shelf.dir().display(), "snapshots not removed");
        }
        self.stop.watching.cancel();
        self.admin_tasks.close();
        let _ = timeout(GRACE, self.admin_tasks.wait()).await;
    }

    /// Every replica that streams has been sent everything.
    async fn drained(&self) {
        loop {
            let head = self.relay.head();
            let behind = self.relay.replicas().rows().iter().any(|row| match row.state() {
                ReplicaState::Online | ReplicaState::Catchup => row.sent() < head,
                ReplicaState::Waiting | ReplicaState::Snapshot => false,
            });
            if !behind {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Offers what an earlier run kept, once the stream is there.
async fn offer(upstream: Upstream, found: Vec<kept::Found>, shutdown: CancellationToken) {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = recovered::offer(&upstream, found) => {}
    }
}

/// Opens a directory; `lasting` if it outlives the process, with the snapshots that do.
async fn open_dir(
    seams: &Seams,
    dir: PathBuf,
    lasting: bool,
) -> Result<(Shelf, Vec<kept::Found>, Option<DirLock>), Failure> {
    let cannot = |error: std::io::Error| Failure {
        exit: Exit::CannotCreate,
        error: anyhow!(error).context(format!("cannot use the directory {}", dir.display())),
    };
    seams.disk.private_dir(&dir).await.map_err(cannot)?;
    let lock = seams.disk.lock(&dir).await.map_err(cannot)?;
    if !lasting {
        let shelf = Shelf::open(Arc::clone(&seams.disk), dir.clone()).await.map_err(cannot)?;
        return Ok((shelf, Vec::new(), Some(lock)));
    }
    let shelf = Shelf::lasting(Arc::clone(&seams.disk), dir.clone()).await.map_err(cannot)?;
    let found = shelf.recover().await.map_err(cannot)?;
    Ok((shelf, found, Some(lock)))
}

fn journal_options(config: &Config, journal: &config::Journal, dir: PathBuf) -> journal::Options {
    journal::Options {
        dir,
        limit_bytes: journal.limit_bytes,
        hard_limit_bytes: journal.hard_limit_bytes,
        segment_bytes: journal.segment_bytes,
        keep: journal.keep,
        upstream: memory::configured(config),
        adopt: journal.adopt,
        history_depth: config.history_depth,
    }
}

/// A socket that somebody chose has to be there; without the one nobody chose everything but control works.
async fn control_socket(socket: &Socket) -> Result<Option<ControlSocket>, Failure> {
    match socket {
        Socket::None => Ok(None),
        Socket::At(path) => match ControlSocket::bind(path).await {
            Ok(bound) => Ok(Some(bound)),
            Err(error) => Err(anyhow!(error).context(format!("cannot listen on the socket {}", path.display())).into()),
        },
        Socket::InDir(path) => match ControlSocket::bind(path).await {
            Ok(bound) => Ok(Some(bound)),
            Err(error) => {
                warn!(%error, path = %path.display(), "no control socket");
                Ok(None)
            }
        },
    }
}

/// What an earlier run knew of the master, and the file to keep it in, unless that is not ours.
async fn remembered(seams: &Seams, dir: PathBuf, config: &Config) -> (Option<Arc<StateFile>>, Remembered) {
    let file = Arc::new(StateFile::of(Arc::clone(&seams.disk), dir));
    match file.load().await {
        Found::Nothing => (Some(file), Remembered::default()),
        Found::Remembered(state) => {
            // Replicas have that data wherever its master is now, so the guard goes by it all the same.
            let now = config.upstream.as_ref().map_or_else(|| "unknown".to_owned(), Address::to_string);
            if !state.upstream.is_empty() && state.upstream != now {
                info!(was = %state.upstream, %now, "upstream was another one before the restart");
            }
            (Some(file), state)
        }
        Found::Foreign(why) => {
            let path = file.path();
            warn!(path = %path.display(), why, "state ignored and left as it is; nothing is remembered until it is moved away");
            (None, Remembered::default())
        }
    }
}

async fn listen(network: &dyn Network, address: SocketAddr) -> anyhow::Result<Box<dyn Listener>> {
    network.listen(address).await.with_context(|| format!("cannot listen on {address}"))
}

fn upstream_options(config: &Config, identity: String) -> upstream::Options {
    upstream::Options {
        login: Live::new(config.login()),
        announce_host: config.announce_ip.clone(),
        announce_port: config.announced_port(),
        connect_timeout: config.connect_timeout,
        handshake_timeout: config.handshake_timeout.min(config.repl_timeout),
        repl_timeout: config.repl_timeout,
        keep_lost_bytes: if config.dir.is_some() { config.keep_lost_bytes } else { 0 },
        ack_policy: config.ack_policy,
        silent_when_empty: !config.ack_when_empty,
        gather_time: config.gather_time,
        snapshot_source: config.snapshot_source,
        snapshot_min_interval: config.snapshot_min_interval,
        links: config.upstream_links,
        identity,
    }
}

/// Lends the sessions somebody who asks replicas.
struct ReplicaInquiry(Inquiry);

impl Peers for ReplicaInquiry {
    fn shares(&self, password: &[u8]) -> Trust {
        match &self.0.login.get().password {
            Some(ours) if same(ours, password) => Trust::Shares,
            Some(_) | None => Trust::None,
        }
    }

    fn priority(&self, address: Address, trust: Trust) -> Answered<Option<u32>> {
        let inquiry = self.0.clone();
        let credentials = match trust {
            Trust::Shares => Credentials::Named,
            Trust::None => Credentials::Withheld,
        };
        Box::pin(async move {
            match inquiry.info(&address, "replication", credentials, PRIORITY_PATIENCE).await {
                Ok(info) => info.priority,
                Err(why) => {
                    debug!(replica = %address, %why, "replica did not tell its priority");
                    None
                }
            }
        })
    }
}

/// Who may come and who judges, as configured.
fn access_options(config: &Config) -> access::Options {
    let own = config.masterauth.as_ref();
    access::Options {
        replica_auth: config.replica_auth,
        requirepass: config.requirepass.as_ref().map(|secret| Named::own(None, secret.reveal())),
        users: config.users.clone(),
        own: own.map(|secret| Named::own(config.masteruser.as_deref(), secret.reveal())),
        protected_mode: config.protected_mode,
        allow_replicas: config.allow_replicas.clone(),
        allow_clients: config.allow_clients.clone(),
        names: config.tls.allowed_replicas.clone(),
    }
}

/// Who may have the data.
fn access(
    config: &Config,
    seams: &Seams,
    dialing: &Arc<dyn Network>,
    target: &Arc<Target>,
    node: Arc<Mutex<Option<MasterInfo>>>,
) -> Arc<Access> {
    let understands = move || {
        let node = node.lock().expect("no one panics holding it");
        let version = node.as_ref().and_then(|node| ServerVersion::parse(node.redis_version.as_deref()?));
        // Also for a psyncd, which passes HELLO on, and judges before it looks at what is asked.
        version.map_or(Probe::Unknown, Probe::of)
    };
    let oracle = Oracle {
        target: Arc::clone(target),
        network: Arc::clone(dialing),
        probe: Arc::new(understands),
        connect_timeout: config.connect_timeout,
        // A replica waits five seconds for the answer to its AUTH.
        reply_timeout: config.handshake_timeout.min(ORACLE_PATIENCE),
    };
    let mut salt = [0; 16];
    seams.entropy.fill(&mut salt);
    Access::new(access_options(config), oracle, Passwords::new(salt, config.auth_cache_ttl))
}

fn serve_replica(downstream: Downstream, shutdown: CancellationToken) -> ServeReplica {
    Arc::new(move |caller| {
        let downstream = downstream.clone();
        let shutdown = shutdown.child_token();
        Box::pin(async move {
            let Caller { link, buffer, said, credentials, heard, entry, place } = caller;
            let before = Before { buffer, heard, credentials, entry, place };
            let ended = session::run(&downstream, link, before, &shutdown).await;
            ended.map(|Summons { link, buffer, said: more }| {
                let said = said.into_iter().chain(more).collect();
                Caller { link, buffer, said, credentials: None, heard, entry, place: None }
            })
        })
    })
}

/// Reads the certificates and says what is questionable about them.
async fn open_tls(options: crate::net::tls::Options) -> Result<Arc<Tls>, Failure> {
    let opened = tokio::task::spawn_blocking(move || Tls::open(options)).await.map_err(anyhow::Error::from)?;
    let tls =
        opened.map_err(|error| Failure { exit: Exit::Config, error: anyhow!(error).context("cannot use TLS") })?;
    for doubt in tls.doubts() {
        warn!(doubt, "tls certificate questioned");
    }
    Ok(Arc::new(tls))
}
