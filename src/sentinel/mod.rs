//! Who is master: what Sentinels say of it, and when that is reason enough to follow another node.
//!
//! [`tracker`] decides and is pure; [`watch`] asks one Sentinel and hears it; [`check`] asks a node whether it is a
//! master; [`run`] brings them together. Nothing here follows anybody: it changes the
//! [`Target`], and the link does the rest.

pub mod check;
mod talk;
pub mod tracker;
pub mod watch;

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::counters::{CounterSet, Label};
use crate::label;
use crate::live::Live;
use crate::net::{Address, Network};
use crate::relay::target::{Repointed, Source, Target};
use crate::relay::{LinkState, Relay};
use crate::wire::dialogue::Login;
use crate::wire::hello::Hello;
use check::Verdict;
use tracker::{Fact, Tracker, Wish};

/// Hello messages that wait to be judged; more are dropped, since the next come in two seconds.
pub const HELLOS: usize = 64;

/// Whom to ask, and how.
#[derive(Clone)]
pub struct Options {
    /// The Sentinels; none when they are only heard at the replica face.
    pub sentinels: Vec<Address>,
    /// The name of the master; none takes the first that is heard.
    pub master: Option<String>,
    /// What the Sentinels are named.
    pub login: Live<Login>,
    /// What the master is named.
    pub master_login: Live<Login>,
    /// Bound on dialing and on each reply.
    pub timeout: Live<Duration>,
}

/// Everything it takes.
#[derive(Clone)]
pub struct Scout {
    /// Whom to ask.
    pub options: Arc<Options>,
    /// How to dial nodes.
    pub network: Arc<dyn Network>,
    /// How to dial Sentinels.
    pub sentinels: Arc<dyn Network>,
    /// Whether the link is up.
    pub relay: Arc<Relay>,
    /// What is decided here.
    pub target: Arc<Target>,
    /// What happened.
    pub metrics: Arc<Metrics>,
}

/// Counters.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Sentinels that answered when they were last asked.
    pub reachable: AtomicUsize,
    /// Nodes that were asked whether they are masters.
    pub checks: CounterSet<Verdict>,
    /// Opinions that were not followed.
    pub ignored: CounterSet<Ignored>,
}

label! {
    /// Why a Sentinels' opinion was not followed.
    pub enum Ignored {
        /// It is older than what was agreed on.
        OldEpoch = "old_epoch",
        /// It is about another master.
        OtherMaster = "other_master",
        /// Too few share it.
        Minority = "minority",
    }
}

/// Tracks the master until `shutdown`. `hellos` brings what Sentinels say at the replica face.
pub async fn run(scout: Scout, mut hellos: mpsc::Receiver<Hello>, shutdown: CancellationToken) {
    let (telling, mut told) = mpsc::channel(HELLOS);
    let nudge = Arc::new(Notify::new());
    // Dropping the set ends the watchers.
    let mut watchers = JoinSet::new();
    for (voice, address) in scout.options.sentinels.iter().enumerate() {
        watchers.spawn(watch::run(scout.clone(), voice, address.clone(), telling.clone(), Arc::clone(&nudge)));
    }
    let (relay, target) = (Arc::clone(&scout.relay), Arc::clone(&scout.target));
    let followed = scout.target.address();
    let tracker = Tracker::new(scout.options.sentinels.len(), followed.clone(), scout.target.epoch());
    let mut desk = Desk { scout, nudge, tracker, followed, link: None, master: None, check: None, reported: None };
    loop {
        desk.look_at_link();
        let look = desk.tracker.next_look();
        let turned = relay.turned();
        tokio::pin!(turned);
        turned.as_mut().enable();
        // It may have turned since it was looked at.
        if desk.look_at_link() {
            continue;
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = turned => {}
            address = target.changed(desk.followed.as_ref()) => desk.commanded(address),
            (address, verdict) = checked(&mut desk.check) => desk.checked(address, verdict),
            Some(fact) = told.recv() => desk.note(fact, Source::SwitchMaster),
            Some(hello) = hellos.recv() => desk.hear(hello),
            () = at(look) => desk.look(),
        }
    }
}

type Checking = Pin<Box<dyn Future<Output = (Address, Verdict)> + Send>>;

struct Desk {
    scout: Scout,
    nudge: Arc<Notify>,
    tracker: Tracker,
    followed: Option<Address>,
    link: Option<LinkState>,
    /// The first name that was heard, where none is set.
    master: Option<String>,
    check: Option<Checking>,
    /// The opinion that was last complained of.
    reported: Option<(Address, u64)>,
}

impl Desk {
    /// Returns whether the link got into another state.
    fn look_at_link(&mut self) -> bool {
        let link = self.scout.relay.link();
        let turned = self.link != Some(link);
        if turned {
            let was_up = self.link == Some(LinkState::Streaming);
            self.link = Some(link);
            let fact = if link == LinkState::Streaming { Fact::LinkUp } else { Fact::LinkDown };
            self.note(fact, Source::SwitchMaster);
            if was_up {
                // On every loss of the link it is asked again who is master.
                self.nudge.notify_waiters();
            }
        }
        turned
    }

    fn commanded(&mut self, address: Address) {
        self.followed = Some(address.clone());
        self.note(Fact::Commanded(address), Source::SwitchMaster);
        // What they said before does not count any more.
        self.nudge.notify_waiters();
    }

    fn hear(&mut self, hello: Hello) {
        let name = self.scout.options.master.as_ref().or(self.master.as_ref());
        if name.is_some_and(|name| *name != hello.master) {
            self.scout.metrics.ignored.increment(Ignored::OtherMaster);
            return;
        }
        let Some(address) = Address::tcp(&hello.host, &hello.port.to_string()) else { return };
        if !self.scout.options.sentinels.is_empty() {
            // The same Sentinels are asked, and must not be counted twice.
            if self.scout.target.epoch().is_none_or(|epoch| hello.epoch > epoch) {
                self.nudge.notify_waiters();
            }
            return;
        }
        self.master = Some(hello.master);
        self.note(Fact::Heard { run_id: hello.run_id, address, epoch: hello.epoch }, Source::Hello);
    }

    fn checked(&mut self, address: Address, verdict: Verdict) {
        self.check = None;
        self.scout.metrics.checks.increment(verdict);
        let source = if self.scout.options.sentinels.is_empty() { Source::Hello } else { Source::SwitchMaster };
        if verdict != Verdict::Master {
            warn!(event = "node_no_master", %address, why = verdict.as_str(), "node is no master, whatever the Sentinels say");
        }
        self.note(Fact::Checked { address, verdict }, source);
    }

    fn look(&mut self) {
        let source = if self.scout.options.sentinels.is_empty() { Source::Hello } else { Source::SwitchMaster };
        let wish = self.tracker.look(Instant::now());
        self.act(wish, source);
    }

    fn note(&mut self, fact: Fact, source: Source) {
        let wish = self.tracker.note(fact, Instant::now());
        self.scout.metrics.reachable.store(self.tracker.reachable(), Ordering::Relaxed);
        self.act(wish, source);
    }

    fn act(&mut self, wish: Wish, source: Source) {
        match wish {
            Wish::Nothing => {}
            Wish::Ignore { address, epoch, why } => {
                self.scout.metrics.ignored.increment(why);
                if self.reported.as_ref() != Some(&(address.clone(), epoch)) {
                    warn!(event = "sentinel_not_followed", %address, epoch, why = why.as_str(), agreed = self.scout.target.epoch(), "opinion of a Sentinel not followed");
                    self.reported = Some((address, epoch));
                }
            }
            Wish::Agree { epoch } => self.scout.target.agree(epoch),
            Wish::Check(address) => {
                let (scout, asked) = (self.scout.clone(), address.clone());
                self.check = Some(Box::pin(async move {
                    let verdict = check::is_master(&scout, &asked).await;
                    (asked, verdict)
                }));
            }
            Wish::Follow { address, epoch } => {
                let before = self.scout.target.name();
                self.followed = Some(address.clone());
                self.scout.target.agree(epoch);
                if self.scout.target.repoint(address.clone(), source) == Repointed::Moved {
                    info!(event = "upstream_changed", upstream = %address, %before, epoch, source = source.as_str(), "upstream changed");
                }
            }
        }
    }
}

async fn checked(check: &mut Option<Checking>) -> (Address, Verdict) {
    match check {
        Some(check) => check.await,
        None => pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}
