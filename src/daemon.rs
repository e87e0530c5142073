//! The life of the process: the only place that builds, spawns and supervises.
//!
//! Order of life: directory, relay, listeners, then the tasks. Order of death: no new connections and no link (with
//! a last acknowledgement), sessions drain to the head, everybody is closed, the admin port last.

pub(crate) mod announce;
mod assist;
mod build;
mod describe;
mod faces;
mod files;
mod lend;
mod memory;
mod options;
mod ports;
mod reload;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin;
use crate::cli::Exit;
use crate::config::reloads::Changed;
use crate::config::{self, Config, Loaded};
use crate::entropy::{Entropy, SystemEntropy};
use crate::events::Events;
use crate::net::{Address, Network, TokioNetwork};
use crate::notify::Notifier;
use crate::operator::{Operator, ReloadOrder};
use crate::relay::Relay;
use crate::relay::replicas::ReplicaState;
use crate::relay::status::Status;
use crate::relay::target::Repointed;
use crate::store::disk::{DirLock, Disk, RealDisk};
use crate::store::snapshot::Shelf;
use crate::upstream::guard::GuardStatus;
pub use build::start;
use reload::Changeable;

/// How long tasks may take to end when they are told to.
const GRACE: Duration = Duration::from_secs(2);
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
    /// Reloads that operators want.
    ordered: mpsc::Receiver<ReloadOrder>,
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
/// `again`, SIGUSR1 has it log its status document.
pub async fn run(
    config: Config,
    events: Events,
    again: impl Fn() -> Result<Loaded, config::Error>,
) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(anyhow::Error::from)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(anyhow::Error::from)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(anyhow::Error::from)?;
    let mut describe = signal(SignalKind::user_defined1()).map_err(anyhow::Error::from)?;
    let seams = Seams::real(&config, events);
    let notifier = Arc::new(Notifier::of_process());
    let mut daemon = start(config, seams).await?;
    // Listening, not streaming: a manager would kill a psyncd whose master is down for taking long to start, and one that
    // orders the master after psyncd would wait for ever. /readyz sees it the same way; whether it streams is in the status.
    notifier.ready().await;
    let pulse = tokio::spawn(pulse(Arc::clone(&notifier), Arc::clone(&daemon.source)));
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => {
                info!(event = "ending", "ending on SIGTERM");
                break;
            }
            _ = interrupt.recv() => {
                info!(event = "ending", "ending on SIGINT");
                break;
            }
            _ = hangup.recv() => {
                // What became of it is in the log, as nobody waits for it.
                let _ = reload(&daemon, &notifier, &again).await;
            }
            _ = describe.recv() => info!(event = "state", status = %daemon.source.status(), "status asked for by SIGUSR1"),
            Some(order) = daemon.ordered.recv() => {
                // Whoever ordered it may have gone.
                let _ = order.send(reload(&daemon, &notifier, &again).await);
            }
        }
    }
    notifier.stopping().await;
    tokio::select! {
        biased;
        () = daemon.shutdown() => {}
        _ = terminate.recv() => warn!(event = "ended_at_once", "ended at once on a second signal"),
        _ = interrupt.recv() => warn!(event = "ended_at_once", "ended at once on a second signal"),
    }
    // Until here, because an end takes longer than an impatient watchdog waits.
    pulse.abort();
    info!(event = "stopped", "psyncd stopped");
    Ok(())
}

async fn reload(
    daemon: &Daemon,
    notifier: &Notifier,
    again: &impl Fn() -> Result<Loaded, config::Error>,
) -> Result<Changed, config::Error> {
    notifier.reloading().await;
    let done = daemon.reload(again());
    notifier.ready().await;
    done
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
    /// configuration that does not hold changes nothing, and why is the error.
    pub fn reload(&self, loaded: Result<Loaded, config::Error>) -> Result<Changed, config::Error> {
        self.changeable.reload(loaded, |address| self.operator.repoint(address).map(drop))
    }

    /// Ends everything, in order. Dropping the future leaves the rest undone.
    pub async fn shutdown(self) {
        self.draining.store(true, Ordering::Relaxed);
        self.shelf.leave();
        self.stop.feeding.cancel();
        if timeout(self.changeable.drain_timeout(), self.drained()).await.is_err() {
            warn!(event = "drain_timeout", "replicas did not take all we have within drain-timeout");
        }
        self.stop.serving.cancel();
        self.tasks.close();
        if timeout(GRACE, self.tasks.wait()).await.is_err() {
            warn!(event = "tasks_left", "tasks did not end in time");
        }
        self.stop.keeping.cancel();
        if let Some(keeper) = self.keeper
            && timeout(GRACE, keeper).await.is_err()
        {
            warn!(event = "journal_not_closed", "the journal was not closed in time");
        }
        if let Err(error) = self.shelf.clear().await {
            warn!(event = "snapshots_not_removed", %error, dir = %self.shelf.dir().display(), "snapshots not removed");
        }
        self.stop.watching.cancel();
        self.admin_tasks.close();
        let _ = timeout(GRACE, self.admin_tasks.wait()).await;
    }

    /// Every replica that streams has been sent everything, and those that acknowledge have: what is still on its way when
    /// a socket is closed over an unread acknowledgement is lost.
    async fn drained(&self) {
        loop {
            let head = self.relay.head();
            let behind = self.relay.replicas().rows().iter().any(|row| match row.state() {
                ReplicaState::Online => row.acked() < head,
                ReplicaState::Catchup => row.sent() < head,
                ReplicaState::Waiting | ReplicaState::Snapshot => false,
            });
            if !behind {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}
