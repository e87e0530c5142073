//! A whole server: a model master and a model replica that share what they have, and become each other.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use psyncd::net::Address;
use psyncd::repl::{Offset, Position};
use tokio::time::sleep;

use crate::chance::Chance;
use crate::log::Log;
use crate::master::{self, Master};
use crate::network::SimNetwork;
use crate::network::Wires;
use crate::replica::{self, Oracle, Replica, Taken};
use crate::truth::Truth;

/// What a server finds on its disk when it starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It was shut down in order.
    Everything,
    /// The file it wrote some time ago.
    OldFile,
    Nothing,
}

impl Kept {
    pub const ALL: [Kept; 3] = [Kept::Everything, Kept::OldFile, Kept::Nothing];
}

/// What belongs to the whole world.
pub struct Around {
    pub chance: Chance,
    pub log: Log,
    pub truth: Truth,
    pub wires: Wires,
    pub oracle: Oracle,
}

/// One server.
pub struct Node {
    pub name: String,
    pub master: Rc<Master>,
    pub replica: Rc<Replica>,
    log: Log,
    /// What its last file has in it.
    saved: Cell<Option<Position>>,
    /// Since when it is what it is.
    turned: Cell<Duration>,
}

impl Node {
    pub fn new(name: &str, setup: master::Setup, follower: replica::Setup, around: &Around) -> Rc<Self> {
        let network = SimNetwork::new(name, around.wires.clone());
        let Around { chance, log, truth, oracle, .. } = around;
        let chance = chance.fork(name);
        let (log, truth) = (log.clone(), truth.clone());
        let master = Master::new(name, setup, &chance, log.clone(), truth.clone(), network.clone());
        let replica = Replica::new(name, follower, &chance, log.clone(), truth, network, Rc::clone(oracle));
        let (saved, turned) = (Cell::new(None), Cell::new(Duration::ZERO));
        let node = Rc::new(Self { name: name.to_owned(), master, replica, log, saved, turned });
        let part = Rc::downgrade(&node);
        node.replica.tell(Rc::new(move |taken| {
            if let Some(node) = Weak::upgrade(&part) {
                node.take(taken);
            }
        }));
        node
    }

    fn take(&self, taken: Taken) {
        // What the last link still brought to one that is a master by now counts for nothing.
        if self.is_master() {
            return;
        }
        match taken {
            Taken::WentOn(at) => {
                if at.id != self.master.position().id {
                    self.turn();
                }
                self.master.went_on(at);
            }
            Taken::Loaded(at) => {
                self.turn();
                self.master.loaded(at);
            }
            Taken::Applied(has) => self.master.applied(has),
            Taken::Unlinked => self.master.unlinked(),
        }
    }

    fn turn(&self) {
        self.turned.set(turmoil::sim_elapsed().unwrap_or_default());
    }

    /// Since when it is what it is: in its role, under its id.
    pub fn turned(&self) -> Duration {
        self.turned.get()
    }

    pub fn position(&self) -> Position {
        self.master.position()
    }

    pub fn is_master(&self) -> bool {
        self.master.is_master()
    }

    pub fn is_up(&self) -> bool {
        self.master.is_up()
    }

    /// REPLICAOF.
    pub fn follow(&self, address: Address) {
        if self.is_master() {
            let has = self.position();
            self.master.demote();
            self.turn();
            self.replica.adopt(Some(has), Some(address));
        } else {
            self.replica.follow(Some(address));
        }
    }

    /// A replica that has never had anything.
    pub fn begin(&self, address: Address) {
        let own = Position::new(self.position().id, Offset::ZERO);
        self.master.reborn(own);
        self.replica.adopt(None, Some(address));
    }

    /// REPLICAOF NO ONE.
    pub fn promote(&self) {
        if self.is_master() {
            return;
        }
        self.log.note(&self.name, "is promoted");
        self.turn();
        self.master.promote();
        self.replica.adopt(None, None);
    }

    /// It is away for a while and comes back in the role it had.
    pub async fn restart(&self, away: Duration, kept: Kept) {
        if !self.is_up() {
            return;
        }
        self.log.note(&self.name, format!("goes away, keeping {kept:?}"));
        let (was_master, followed, had) = (self.is_master(), self.replica.followed(), self.position());
        self.master.set_up(false);
        self.replica.follow(None);
        sleep(away).await;
        self.turn();
        // A file of another line is of no use to anybody.
        let file = self.saved.get().filter(|saved| saved.id == had.id);
        let found = match kept {
            Kept::Everything => Some(had),
            Kept::OldFile => file,
            Kept::Nothing => None,
        };
        match (was_master, found) {
            (true, Some(at)) => self.master.restart_from_file(had.offset.since(at.offset)),
            (true, None) => self.master.lose_everything(),
            (false, Some(at)) => {
                self.master.reborn(at);
                self.replica.adopt(Some(at), followed);
            }
            (false, None) => {
                self.master.reborn(Position::new(had.id, Offset::ZERO));
                self.replica.adopt(None, followed);
            }
        }
        self.master.set_up(true);
    }

    /// Lives on its host.
    pub async fn run(self: Rc<Self>) -> turmoil::Result {
        tokio::task::spawn_local(Rc::clone(&self.replica).run());
        let saving = Rc::clone(&self);
        tokio::task::spawn_local(async move {
            loop {
                sleep(Duration::from_secs(7)).await;
                saving.saved.set(Some(saving.position()));
            }
        });
        Rc::clone(&self.master).run().await
    }
}
