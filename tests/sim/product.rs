//! psyncd itself as a subject: started through its own seams, judged by its own status.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use psyncd::config::{Config, Flags, Surroundings};
use psyncd::daemon::{self, Daemon};
use psyncd::entropy::Entropy;
use psyncd::events::Events;
use psyncd::net::Address;
use psyncd::relay::LinkState;
use psyncd::relay::replicas::ReplicaState;
use psyncd::repl::{Offset, Position};

use crate::chance::Chance;
use crate::disk::SimDisk;
use crate::world::{PROXY, PROXY_PORT, Plan, Seams, Subject};

/// What the journal may be behind.
const JOURNAL_LAG: u64 = 50_000;
/// What is kept of what a promoted master never had: bytes of a file, and files.
const LOST: (usize, usize) = (30_000, 16);

/// What of psyncd's own configuration a world chooses.
#[derive(Debug, Clone)]
pub struct Setup {
    pub backlog_bytes: u64,
    pub hold: Duration,
    pub history_depth: u64,
    /// Bytes of the journal, and of one of its segments; none keeps none.
    pub journal: Option<(u64, u64)>,
    pub max_senders: usize,
    /// Bytes a second; 0: none.
    pub rate_limit: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            backlog_bytes: 1 << 20,
            hold: Duration::from_secs(60),
            history_depth: 16,
            journal: None,
            max_senders: 4,
            rate_limit: 0,
        }
    }
}

struct SimEntropy(Mutex<Chance>);

impl Entropy for SimEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().expect("no holder panics").fill(bytes);
    }
}

/// The product in one world.
pub struct Psyncd {
    name: String,
    /// Settings of this one besides what a world chooses for all.
    more: Vec<(&'static str, String)>,
    setup: Setup,
    auth: Option<(Option<String>, String)>,
    /// The most its directory may hold.
    disk_bytes: u64,
    most_sending: Cell<usize>,
    daemon: Rc<RefCell<Option<Daemon>>>,
}

impl Psyncd {
    pub fn new(plan: &Plan) -> Rc<Self> {
        // One complete, one arriving, and those that slow replicas still read.
        let files = plan.replicas.len() as u64 + 2;
        // What is dropped is dropped by segments, a new one before the old; and while it is needed half as much again.
        let journal = plan.psyncd.journal.map_or(0, |(limit, segment)| limit + limit / 2 + 3 * segment + (64 << 10));
        Rc::new(Self {
            name: PROXY.to_owned(),
            more: Vec::new(),
            setup: plan.psyncd.clone(),
            auth: plan.master.auth.clone(),
            disk_bytes: files * (plan.master.filler_bytes as u64 + 1000) + journal,
            most_sending: Cell::new(0),
            daemon: Rc::default(),
        })
    }

    /// One of several.
    pub fn named(name: &str, setup: Setup, disk_bytes: u64, more: Vec<(&'static str, String)>) -> Rc<Self> {
        let most_sending = Cell::new(0);
        Rc::new(Self {
            name: name.to_owned(),
            more,
            setup,
            auth: None,
            disk_bytes,
            most_sending,
            daemon: Rc::default(),
        })
    }

    /// Whom it follows, and under which configuration; none while it does not run.
    pub fn followed(&self) -> Option<(Option<Address>, Option<u64>)> {
        self.daemon.borrow().as_ref().map(Daemon::followed)
    }

    /// Whether it receives the stream, and where what it remembers begins.
    pub fn window(&self) -> Option<(LinkState, Offset)> {
        let status = self.daemon.borrow().as_ref()?.status();
        Some((status.link, status.line?.window.start))
    }

    /// The most replicas that were sent a snapshot at once.
    pub fn most_sending(&self) -> usize {
        self.most_sending.get()
    }

    fn config(&self, upstream: String) -> Config {
        let values = vec![
            ("upstream", upstream),
            ("port", PROXY_PORT.to_string()),
            ("admin-bind", "none".to_owned()),
            ("dir", "/psyncd".to_owned()),
            // Hosts of the simulation are never loopback, and its masters mostly without a password.
            ("protected-mode", "no".to_owned()),
            // The world's disk has no sockets.
            ("socket", "none".to_owned()),
            ("repl-backlog-size", self.setup.backlog_bytes.to_string()),
            ("hold-timeout", format!("{}ms", self.setup.hold.as_millis())),
            ("history-depth", self.setup.history_depth.to_string()),
            ("backlog-disk-size", self.setup.journal.map_or(0, |(limit, _)| limit).to_string()),
            ("journal-max-lag", JOURNAL_LAG.to_string()),
            ("keep-lost-writes", LOST.0.to_string()),
            ("segment-size", self.setup.journal.map_or(64 << 10, |(_, segment)| segment).to_string()),
            ("max-senders", self.setup.max_senders.to_string()),
            ("sender-rate-limit", self.setup.rate_limit.to_string()),
        ];
        let values = values.into_iter().chain(self.more.clone()).collect();
        let mut env = Vec::new();
        if let Some((user, password)) = &self.auth {
            env.push(("PSYNCD_MASTERAUTH".to_owned(), password.into()));
            env.extend(user.iter().map(|user| ("PSYNCD_MASTERUSER".to_owned(), user.into())));
        }
        let around = Surroundings { env, read_file: &|_| Err(io::ErrorKind::NotFound.into()) };
        match Config::load(&Flags { file: None, values }, &around) {
            Ok(loaded) => loaded.config,
            Err(e) => panic!("the simulation's configuration: {e}"),
        }
    }
}

/// Forgets the daemon when its process dies.
struct Seat(Rc<RefCell<Option<Daemon>>>);

impl Drop for Seat {
    fn drop(&mut self) {
        let died = self.0.borrow_mut().take();
        drop(died);
    }
}

impl Subject for Psyncd {
    fn run(&self, seams: Seams) -> Pin<Box<dyn Future<Output = turmoil::Result>>> {
        let seat = Seat(Rc::clone(&self.daemon));
        let name = self.name.clone();
        let config = self.config(seams.upstream.to_string());
        let entropy = Arc::new(SimEntropy(Mutex::new(seams.chance)));
        let doors = daemon::Seams { network: seams.network, disk: seams.disk, entropy, events: Events::default() };
        Box::pin(async move {
            let daemon = loop {
                match daemon::start(config.clone(), doors.clone()).await {
                    Ok(daemon) => break daemon,
                    // Whoever runs it starts it again.
                    Err(failure) => seams.log.note(&name, format!("did not start: {:#}", failure.error)),
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            };
            seams.log.note(&name, "started");
            seat.0.replace(Some(daemon));
            pending().await
        })
    }

    fn serves(&self, position: &Position) -> Option<bool> {
        let daemon = self.daemon.borrow();
        let line = daemon.as_ref()?.status().line?;
        let ours = line.replid == position.id
            || line.ancestors.iter().any(|a| a.id == position.id && position.offset <= a.boundary);
        Some(ours && line.window.serves(position.offset))
    }

    fn release(&self) {
        let daemon = self.daemon.borrow();
        let daemon = daemon.as_ref().expect("psyncd runs when it is told something");
        daemon.operator().guard.release().expect("a master is held");
    }

    fn overdrawn(&self, disk: &SimDisk) -> Option<String> {
        let (used, _) = disk.usage();
        let files = disk.holdings();
        let lost: Vec<usize> = files
            .iter()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == "resp"))
            .map(|(_, bytes)| *bytes)
            .collect();
        if lost.len() > LOST.1 || lost.iter().any(|bytes| *bytes > LOST.0) {
            return Some(format!("keeps more of what was lost than it may: {files:?}"));
        }
        if used - lost.iter().sum::<usize>() as u64 > self.disk_bytes {
            return Some(format!(
                "holds {used} bytes on disk and may hold {} beside what was lost: {files:?}",
                self.disk_bytes
            ));
        }
        let daemon = self.daemon.borrow();
        let status = daemon.as_ref()?.status();
        let sending = status.replicas.iter().filter(|r| r.state == ReplicaState::Snapshot).count();
        self.most_sending.set(self.most_sending.get().max(sending));
        if sending > self.setup.max_senders {
            return Some(format!("sends {sending} snapshots at once and may send {}", self.setup.max_senders));
        }
        let held = status.line?.memory.len();
        let limit = status.backlog_limit_bytes.max(self.setup.journal.map_or(0, |_| JOURNAL_LAG));
        (held > limit).then(|| format!("holds {held} bytes of {limit}"))
    }
}
