//! Model Sentinels: three of them, each with its own idea of who is master, under a number that rises.
//!
//! They do what real ones do to those who follow a master: tell the number and the address to whoever asks, say hello at
//! a replica face, have survivors follow the new master within seconds and an old master after eight. How they notice
//! that a master is gone, and how they vote, is the script's matter.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use psyncd::net::{Address, Link};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::chance::Chance;
use crate::log::Log;
use crate::network::{SimNetwork, Wires};
use crate::node::Node;
use crate::resp::{Commands, Item, array, is, words};

pub const PORT: u16 = 26379;
pub const COUNT: usize = 3;
/// The name of the master they watch.
pub const MASTER_NAME: &str = "mymaster";
/// How long somebody who is no replica may say that he is a master (`+convert-to-slave`).
const CONVERT: Duration = Duration::from_secs(8);
/// How long the master may say that it is a replica before another is made one.
const DEPOSED: Duration = Duration::from_secs(10);
/// How long a replica may follow somebody else (`+fix-slave-config`).
const FIX: Duration = Duration::from_secs(4);

pub fn sentinel_name(k: usize) -> String {
    format!("s{k}")
}

/// Who is master, since which configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    pub master: usize,
    pub epoch: u64,
}

/// A replica face they know of, and how to see whom it follows.
pub struct FaceAt {
    pub host: String,
    pub port: u16,
    pub followed: Box<dyn Fn() -> Option<Address>>,
}

/// All of them.
pub struct Council {
    pub nodes: Vec<Rc<Node>>,
    /// Where each node is known to be, which may be its psyncd.
    pub known_as: Vec<Address>,
    views: RefCell<[View; COUNT]>,
    /// What most of them ever held at a time.
    held: RefCell<BTreeSet<(usize, u64)>>,
    last_epoch: Cell<u64>,
    /// Since when each sees each node where it does not belong.
    astray: RefCell<[Vec<Option<Duration>>; COUNT]>,
    changed: Notify,
    face: Option<FaceAt>,
    chance: RefCell<Chance>,
    wires: Wires,
    log: Log,
}

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

impl Council {
    pub fn new(
        nodes: Vec<Rc<Node>>,
        known_as: Vec<Address>,
        face: Option<FaceAt>,
        chance: Chance,
        wires: Wires,
        log: Log,
    ) -> Rc<Self> {
        let view = View { master: 0, epoch: 1 };
        let astray = std::array::from_fn(|_| vec![None; nodes.len()]);
        Rc::new(Self {
            nodes,
            known_as,
            views: RefCell::new([view; COUNT]),
            held: RefCell::new(BTreeSet::from([(0, 1)])),
            last_epoch: Cell::new(1),
            astray: RefCell::new(astray),
            changed: Notify::new(),
            face,
            chance: RefCell::new(chance),
            wires,
            log,
        })
    }

    pub fn view(&self, k: usize) -> View {
        self.views.borrow()[k]
    }

    /// The newest configuration under which most of them ever took `master` for the master.
    pub fn elected(&self, master: usize) -> Option<u64> {
        self.held.borrow().iter().filter(|(held, _)| *held == master).map(|(_, epoch)| *epoch).max()
    }

    pub fn agrees(&self) -> Option<usize> {
        let views = self.views.borrow();
        views.iter().all(|view| *view == views[0]).then_some(views[0].master)
    }

    /// Those of them that `k` can talk to, itself included.
    pub fn company(&self, k: usize) -> usize {
        (0..COUNT).filter(|j| *j == k || self.wires.joined(&sentinel_name(k), &sentinel_name(*j))).count()
    }

    fn reaches(&self, k: usize, node: usize) -> bool {
        let node = &self.nodes[node];
        node.is_up() && self.wires.joined(&sentinel_name(k), &node.name)
    }

    fn set(&self, k: usize, view: View) {
        let before = std::mem::replace(&mut self.views.borrow_mut()[k], view);
        if before == view {
            return;
        }
        self.log.note(&sentinel_name(k), format!("{} is master in {}", self.nodes[view.master].name, view.epoch));
        self.astray.borrow_mut()[k].fill(None);
        let holders = self.views.borrow().iter().filter(|held| **held == view).count();
        if holders * 2 > COUNT {
            self.held.borrow_mut().insert((view.master, view.epoch));
        }
        self.changed.notify_waiters();
    }

    /// `leader` fails over: to the best of the replicas it reaches, or to the one that is furthest behind.
    pub async fn fail_over(&self, leader: usize, lagging: bool) {
        let was = self.view(leader).master;
        let candidates = (0..self.nodes.len()).filter(|n| *n != was && self.reaches(leader, *n));
        let mut candidates: Vec<usize> = candidates.filter(|n| !self.nodes[*n].is_master()).collect();
        candidates.sort_by_key(|n| self.nodes[*n].position().offset);
        let chosen = if lagging { candidates.first() } else { candidates.last() };
        let Some(&chosen) = chosen else {
            self.log.note(&sentinel_name(leader), "finds no good replica");
            if self.reaches(leader, was) {
                // Where none is left but masters that nobody elected, people make the elected one what it was.
                self.nodes[was].promote();
            }
            return;
        };
        let epoch = self.last_epoch.get() + 1;
        self.last_epoch.set(epoch);
        self.nodes[chosen].promote();
        // It learns from INFO that this is done.
        let pause = self.chance.borrow_mut().millis(50, 1000);
        sleep(pause).await;
        if self.view(leader).epoch < epoch {
            self.set(leader, View { master: chosen, epoch });
        }
        for n in 0..self.nodes.len() {
            let pause = self.chance.borrow_mut().millis(0, 500);
            sleep(pause).await;
            let node = &self.nodes[n];
            if n != chosen && self.reaches(leader, n) && !node.is_master() && self.view(leader).epoch == epoch {
                node.follow(self.known_as[chosen].clone());
            }
        }
    }

    /// One of them lives on its host.
    pub async fn run(self: Rc<Self>, k: usize) -> turmoil::Result {
        let network = SimNetwork::new(&sentinel_name(k), self.wires.clone());
        let listener = network.bind(PORT).await?;
        tokio::task::spawn_local(Rc::clone(&self).govern(k));
        if self.face.is_some() {
            tokio::task::spawn_local(Rc::clone(&self).greet(k, network.clone()));
            tokio::task::spawn_local(Rc::clone(&self).command(k, network));
        }
        loop {
            let (link, _) = listener.take().await?;
            let council = Rc::clone(&self);
            tokio::task::spawn_local(async move {
                let _ = council.answer(k, link).await;
            });
        }
    }

    async fn govern(self: Rc<Self>, k: usize) {
        let mut deposed_since = None;
        loop {
            let pause = self.chance.borrow_mut().millis(500, 1100);
            sleep(pause).await;
            self.hear_the_others(k);
            // One that is alone gives no orders.
            if self.company(k) * 2 > COUNT {
                self.put_right(k);
            }
            let master = self.view(k).master;
            let deposed = self.leads(k) && self.reaches(k, master) && !self.nodes[master].is_master();
            match (deposed, deposed_since) {
                (true, Some(since)) if now() - since >= DEPOSED => {
                    deposed_since = None;
                    self.fail_over(k, false).await;
                }
                (true, since) => deposed_since = since.or(Some(now())),
                (false, _) => deposed_since = None,
            }
        }
    }

    /// The highest number wins, among those who can talk to each other.
    fn hear_the_others(&self, k: usize) {
        for j in (0..COUNT).filter(|j| *j != k) {
            let theirs = self.view(j);
            if theirs.epoch > self.view(k).epoch && self.wires.joined(&sentinel_name(k), &sentinel_name(j)) {
                self.set(k, theirs);
            }
        }
    }

    /// Whether it is the first of those who are in company.
    fn leads(&self, k: usize) -> bool {
        self.company(k) * 2 > COUNT && (0..k).all(|j| self.company(j) * 2 <= COUNT)
    }

    fn put_right(&self, k: usize) {
        let View { master, .. } = self.view(k);
        let home = &self.known_as[master];
        let sane = self.reaches(k, master) && self.nodes[master].is_master();
        for (n, node) in self.nodes.iter().enumerate() {
            let belongs = n == master || (!node.is_master() && node.replica.followed().as_ref() == Some(home));
            let mut astray = self.astray.borrow_mut();
            let since = &mut astray[k][n];
            if belongs || !sane || !self.reaches(k, n) {
                *since = None;
                continue;
            }
            let since = *since.get_or_insert(now());
            let patience = if node.is_master() { CONVERT } else { FIX };
            if now() - since >= patience {
                astray[k][n] = None;
                drop(astray);
                self.log.note(&sentinel_name(k), format!("has {} follow {home}", node.name));
                node.follow(home.clone());
            }
        }
    }

    /// Says hello at the replica face every two seconds.
    async fn greet(self: Rc<Self>, k: usize, network: SimNetwork) {
        let face = self.face.as_ref().expect("somebody to say hello to");
        let address = Address::Tcp { host: face.host.clone(), port: face.port };
        loop {
            if let Ok(Ok((mut link, _))) = timeout(Duration::from_secs(5), network.open(&address)).await {
                let mut answer = vec![0; 256];
                loop {
                    let hello = self.hello(k);
                    let hello = array(&[b"PUBLISH", b"__sentinel__:hello", hello.as_bytes()]);
                    let said = async {
                        link.sink.write_all(&hello).await?;
                        link.source.read(&mut answer).await
                    };
                    match timeout(Duration::from_secs(6), said).await {
                        Ok(Ok(1..)) => sleep(Duration::from_secs(2)).await,
                        _ => break,
                    }
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    fn hello(&self, k: usize) -> String {
        let View { master, epoch } = self.view(k);
        let name = &self.nodes[master].name;
        let current = self.last_epoch.get();
        format!("10.0.0.{k},{PORT},{k:040x},{current},{MASTER_NAME},{name},{},{epoch}", crate::master::PORT)
    }

    /// The first of those who are in company has the face follow the master.
    async fn command(self: Rc<Self>, k: usize, network: SimNetwork) {
        let face = self.face.as_ref().expect("somebody to command");
        let address = Address::Tcp { host: face.host.clone(), port: face.port };
        loop {
            let pause = self.chance.borrow_mut().millis(800, 2500);
            sleep(pause).await;
            // A real one has heard them for much longer before it sets a replica right.
            self.hear_the_others(k);
            let View { master, epoch } = self.view(k);
            let home = Address::Tcp { host: self.nodes[master].name.clone(), port: crate::master::PORT };
            let held = self.held.borrow().contains(&(master, epoch));
            let astray = (face.followed)().is_some_and(|followed| followed != home);
            if !(self.leads(k) && held && astray && self.nodes[master].is_master()) {
                continue;
            }
            self.log.note(&sentinel_name(k), format!("orders {address} to follow {home}"));
            let order = async {
                let (mut link, _) = network.open(&address).await?;
                for line in [
                    "MULTI".to_owned(),
                    format!("SLAVEOF {} {}", self.nodes[master].name, crate::master::PORT),
                    "CONFIG REWRITE".to_owned(),
                    "CLIENT KILL TYPE normal".to_owned(),
                    "EXEC".to_owned(),
                ] {
                    link.sink.write_all(&words(&line)).await?;
                }
                sleep(Duration::from_millis(300)).await;
                io::Result::Ok(())
            };
            let _ = timeout(Duration::from_secs(5), order).await;
        }
    }

    async fn answer(&self, k: usize, mut link: Link) -> io::Result<()> {
        let mut commands = Commands::default();
        let mut part = vec![0; 4096];
        loop {
            let n = link.source.read(&mut part).await?;
            if n == 0 {
                return Ok(());
            }
            commands.feed(&part[..n]);
            while let Some((item, _)) = commands.next().map_err(io::Error::other)? {
                let Item::Command(args) = item else { continue };
                let View { master, epoch } = self.view(k);
                // psyncd asks the nodes themselves.
                let host = &self.nodes[master].name;
                let port = crate::master::PORT.to_string();
                if is(args.first(), "SUBSCRIBE") {
                    link.sink.write_all(b"*3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n").await?;
                    return self.report(k, link).await;
                }
                let reply = if is(args.get(1), "GET-MASTER-ADDR-BY-NAME") {
                    array(&[host.as_bytes(), port.as_bytes()])
                } else if is(args.get(1), "MASTER") {
                    array(&[b"name", MASTER_NAME.as_bytes(), b"config-epoch", epoch.to_string().as_bytes()])
                } else {
                    b"+OK\r\n".to_vec()
                };
                link.sink.write_all(&reply).await?;
            }
        }
    }

    async fn report(&self, k: usize, mut link: Link) -> io::Result<()> {
        let mut said = self.view(k);
        let mut part = [0; 64];
        loop {
            let changed = self.changed.notified();
            let view = self.view(k);
            if view != said {
                let text = format!(
                    "{MASTER_NAME} {0} 6379 {1} 6379",
                    self.nodes[said.master].name, self.nodes[view.master].name
                );
                said = view;
                link.sink.write_all(&array(&[b"message", b"+switch-master", text.as_bytes()])).await?;
                continue;
            }
            tokio::select! {
                biased;
                () = changed => {}
                read = link.source.read(&mut part) => if read? == 0 { return Ok(()) },
            }
        }
    }
}
