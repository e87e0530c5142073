//! The life of the process: the only place that builds, spawns and supervises.
//!
//! Order of life: directory, relay, listeners, then the tasks. Order of death: no new connections and no link (with
//! a last acknowledgement), sessions drain to the head, everybody is closed, the admin port last.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::cli::Exit;
use crate::config::Config;
use crate::downstream::{self, Downstream, session};
use crate::entropy::{Entropy, SystemEntropy};
use crate::front::{self, Front, ServeReplica};
use crate::net::{Listener, Network, TokioNetwork};
use crate::observer::Observer;
use crate::relay::replicas::ReplicaState;
use crate::relay::status::Status;
use crate::relay::{self, Relay};
use crate::store::disk::{DirLock, Disk, RealDisk};
use crate::store::snapshot::Shelf;
use crate::upstream::link::MasterLink;
use crate::upstream::{self, Upstream, fetch};
use crate::{admin, net};

/// How long replicas may take for the bytes we still have when we go.
const DRAIN: Duration = Duration::from_secs(2);
/// How long tasks may take to end when they are told to.
const GRACE: Duration = Duration::from_secs(2);
/// Replicas that have to hold a byte before it is acknowledged upstream.
const ACK_QUORUM: usize = 1;

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
}

impl Seams {
    /// The real world.
    pub fn real(config: &Config) -> Self {
        let network = TokioNetwork { keepalive: config.tcp_keepalive, backlog: config.tcp_backlog };
        Self { network: Arc::new(network), disk: Arc::new(RealDisk), entropy: Arc::new(SystemEntropy) }
    }
}

/// A running psyncd.
pub struct Daemon {
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Where it answers operators.
    pub admin: Option<SocketAddr>,
    relay: Arc<Relay>,
    shelf: Arc<Shelf>,
    tasks: TaskTracker,
    admin_tasks: TaskTracker,
    stop: Stop,
    draining: Arc<AtomicBool>,
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
    /// No admin.
    watching: CancellationToken,
}

/// Runs in the real world until a signal ends it. A second signal skips the waiting.
pub async fn run(config: Config) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(anyhow::Error::from)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(anyhow::Error::from)?;
    let seams = Seams::real(&config);
    let daemon = start(config, seams).await?;
    tokio::select! {
        biased;
        _ = terminate.recv() => info!("ending on SIGTERM"),
        _ = interrupt.recv() => info!("ending on SIGINT"),
    }
    tokio::select! {
        biased;
        () = daemon.shutdown() => {}
        _ = terminate.recv() => warn!("ended at once on a second signal"),
        _ = interrupt.recv() => warn!("ended at once on a second signal"),
    }
    info!("psyncd stopped");
    Ok(())
}

/// Builds everything and lets it run.
pub async fn start(config: Config, seams: Seams) -> Result<Daemon, Failure> {
    let temporary = match &config.dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("psyncd-").tempdir().context("create a temporary directory")?),
    };
    let dir = match (&config.dir, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => unreachable!("one of the two is there"),
    };
    let (shelf, lock) = open_dir(&seams, dir).await?;
    let shelf = Arc::new(shelf);
    let relay = Relay::new(relay::Options {
        backlog_bytes: config.repl_backlog_bytes,
        history_depth: config.history_depth,
        max_replicas: config.max_replicas,
    });
    let identity = String::from_utf8_lossy(&seams.entropy.hex40()).into_owned();

    let mut listeners = Vec::new();
    let mut port = config.port;
    for address in &config.bind {
        let listener = listen(&*seams.network, SocketAddr::new(*address, port)).await?;
        // With port 0 the first address chooses for all.
        port = listener.local().port();
        listeners.push(listener);
    }
    let admin_listener = match config.admin_bind {
        Some(address) => Some(listen(&*seams.network, address).await?),
        None => None,
    };

    let upstream = Upstream {
        options: Arc::new(upstream_options(&config, identity.clone())),
        relay: Arc::clone(&relay),
        network: Arc::clone(&seams.network),
        shelf: Arc::clone(&shelf),
        entropy: Arc::clone(&seams.entropy),
        metrics: Arc::default(),
    };
    let downstream = Downstream {
        options: Arc::new(downstream::Options {
            handshake_timeout: config.handshake_timeout,
            hold_timeout: config.hold_timeout,
            repl_timeout: config.repl_timeout,
            identity,
        }),
        relay: Arc::clone(&relay),
        entropy: Arc::clone(&seams.entropy),
        metrics: Arc::default(),
    };
    let stop = Stop::default();
    let front = Front {
        options: Arc::new(front::Options {
            upstream: config.upstream.clone(),
            announce_host: upstream.options.announce_host.clone(),
            announce_port: upstream.options.announce_port,
            max_clients: config.max_clients,
            handshake_timeout: config.handshake_timeout,
            connect_timeout: config.connect_timeout,
        }),
        network: Arc::clone(&seams.network),
        relay: Arc::clone(&relay),
        serve_replica: serve_replica(downstream.clone(), stop.serving.clone()),
        metrics: Arc::default(),
    };
    let draining = Arc::new(AtomicBool::new(false));
    let observer = Observer {
        upstream_address: config.upstream.clone(),
        relay: Arc::clone(&relay),
        upstream: Arc::clone(&upstream.metrics),
        downstream: Arc::clone(&downstream.metrics),
        front: Arc::clone(&front.metrics),
        draining: Arc::clone(&draining),
        started: Instant::now(),
    };

    let (tasks, admin_tasks) = (TaskTracker::new(), TaskTracker::new());
    let addresses: Vec<SocketAddr> = listeners.iter().map(|l| l.local()).collect();
    let admin_address = admin_listener.as_ref().map(|l| l.local());
    tasks.spawn(MasterLink::new(upstream.clone()).run(stop.feeding.clone()));
    tasks.spawn(fetch::run(upstream, stop.feeding.clone()));
    for listener in listeners {
        let accepting =
            front::accept(front.clone(), listener, tasks.clone(), stop.feeding.clone(), stop.serving.clone());
        tasks.spawn(accepting);
    }
    if let Some(listener) = admin_listener {
        admin_tasks.spawn(admin::serve(listener, Arc::new(observer), stop.watching.clone()));
    }
    let listen = addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",");
    let admin = admin_address.map_or_else(|| "none".to_owned(), |address| address.to_string());
    info!(upstream = %config.upstream, listen, admin, backlog_bytes = config.repl_backlog_bytes, "psyncd started");
    Ok(Daemon {
        listen: addresses,
        admin: admin_address,
        relay,
        shelf,
        tasks,
        admin_tasks,
        stop,
        draining,
        _lock: lock,
        _temporary: temporary,
    })
}

impl Daemon {
    /// The relay now.
    pub fn status(&self) -> Status {
        self.relay.status()
    }

    /// Ends everything, in order. Dropping the future leaves the rest undone.
    pub async fn shutdown(self) {
        self.draining.store(true, Ordering::Relaxed);
        self.stop.feeding.cancel();
        if timeout(DRAIN, self.drained()).await.is_err() {
            warn!("replicas did not take all we have in time");
        }
        self.stop.serving.cancel();
        self.tasks.close();
        if timeout(GRACE, self.tasks.wait()).await.is_err() {
            warn!("tasks did not end in time");
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

async fn open_dir(seams: &Seams, dir: PathBuf) -> Result<(Shelf, Option<DirLock>), Failure> {
    let cannot = |error: std::io::Error| Failure {
        exit: Exit::CannotCreate,
        error: anyhow!(error).context(format!("cannot use the directory {}", dir.display())),
    };
    seams.disk.private_dir(&dir).await.map_err(cannot)?;
    let lock = seams.disk.lock(&dir).await.map_err(cannot)?;
    let shelf = Shelf::open(Arc::clone(&seams.disk), dir.clone()).await.map_err(cannot)?;
    Ok((shelf, Some(lock)))
}

async fn listen(network: &dyn Network, address: SocketAddr) -> anyhow::Result<Box<dyn Listener>> {
    network.listen(address).await.with_context(|| format!("cannot listen on {address}"))
}

fn upstream_options(config: &Config, identity: String) -> upstream::Options {
    upstream::Options {
        address: config.upstream.clone(),
        user: config.masteruser.clone(),
        password: config.masterauth.as_ref().map(|secret| secret.reveal().to_vec()),
        announce_host: config.announce_ip.clone(),
        announce_port: config.announce_port,
        connect_timeout: config.connect_timeout,
        handshake_timeout: config.handshake_timeout.min(config.repl_timeout),
        repl_timeout: config.repl_timeout,
        ack_quorum: ACK_QUORUM,
        identity,
    }
}

fn serve_replica(downstream: Downstream, shutdown: CancellationToken) -> ServeReplica {
    Arc::new(move |link: net::Link, buffer| {
        let downstream = downstream.clone();
        let shutdown = shutdown.child_token();
        Box::pin(async move { session::run(&downstream, link, buffer, &shutdown).await })
    })
}
