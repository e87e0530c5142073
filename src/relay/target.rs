//! Whom we follow: one address, which may change while everything runs.
//!
//! The link dials it, the port passes clients to it, and both leave it the moment it changes. Changing it throws away
//! nothing that is held: what may be kept is found out from the new master, as after any reconnect.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::counters::CounterSet;
use crate::label;
use crate::net::Address;
use crate::wire::info::Role;

label! {
    /// Who had us follow another node.
    pub enum Source {
        /// `REPLICAOF` at the replica face.
        ReplicaOf = "replicaof",
        /// The Sentinels, asked by us.
        SwitchMaster = "switch_master",
        /// Sentinels' hello messages at the replica face.
        Hello = "hello",
        /// The configuration, which was changed since we were last told to follow another node.
        Config = "config",
        /// An operator at the control socket.
        Api = "api",
    }
}

/// What became of an order to follow a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repointed {
    /// Everybody who had to do with the node before leaves it.
    Moved,
    /// It was followed already, and nothing happened.
    Already,
}

/// One node for as long as it is the one that is followed.
#[derive(Debug, Clone)]
pub struct Pointing {
    /// The node.
    pub address: Address,
    generation: u64,
    left: CancellationToken,
}

impl Pointing {
    /// Resolves when another node is followed. Cancel-safe.
    pub async fn left(&self) {
        self.left.cancelled().await;
    }

    /// Cancelled when another node is followed. A token of its own, so that many who look at it do not meet at one
    /// lock.
    pub fn token(&self) -> CancellationToken {
        self.left.child_token()
    }
}

/// The node that is followed, and whether it has been met.
#[derive(Debug)]
pub struct Target {
    /// Held for a few instructions, never across an await.
    state: Mutex<State>,
    /// Wakes whoever waits for a node, for another node, or for having met it.
    turned: Notify,
    /// How often another node was followed.
    pub repoints: CounterSet<Source>,
}

#[derive(Debug)]
struct State {
    pointing: Option<Pointing>,
    generation: u64,
    met: Met,
    profile: Profile,
    epoch: Option<u64>,
}

/// What the node said of itself. Kept until another one, or the same again, says something else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// The ids of the psyncd's between the master and us, from the master down.
    pub chain: Vec<String>,
    /// Whether it is a master.
    pub role: Option<Role>,
    /// The version of Redis it is compatible with.
    pub redis_version: Option<String>,
    /// Its version, where it is a Valkey.
    pub valkey_version: Option<String>,
}

/// Whether the link has ever been in dialogue with the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    /// It is trying for the first time.
    Trying,
    /// The first tries failed.
    NotYet,
    /// It has: there is a real node, and it is not ourselves.
    Yes,
}

/// The node has not been met: what answers there might be ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has not been met yet")]
pub struct NotMet;

impl Target {
    /// Follows `address`, or nobody yet.
    pub fn new(address: Option<Address>) -> Arc<Self> {
        let pointing = address.map(|address| Pointing { address, generation: 0, left: CancellationToken::new() });
        Arc::new(Self {
            state: Mutex::new(State {
                pointing,
                generation: 0,
                met: Met::Trying,
                profile: Profile::default(),
                epoch: None,
            }),
            turned: Notify::new(),
            repoints: CounterSet::new(),
        })
    }

    /// The node that is followed now, once there is one.
    pub fn address(&self) -> Option<Address> {
        self.state().pointing.as_ref().map(|pointing| pointing.address.clone())
    }

    /// The address for people, a word where there is none.
    pub fn name(&self) -> String {
        self.address().map_or_else(|| "unknown".to_owned(), |address| address.to_string())
    }

    /// Follows `address` from now on.
    pub fn repoint(&self, address: Address, source: Source) -> Repointed {
        let mut state = self.state();
        if state.pointing.as_ref().is_some_and(|pointing| same(&pointing.address, &address)) {
            return Repointed::Already;
        }
        state.generation += 1;
        let next = Pointing { address, generation: state.generation, left: CancellationToken::new() };
        let before = state.pointing.replace(next);
        state.met = Met::Trying;
        state.profile.chain.clear();
        drop(state);
        if let Some(before) = before {
            before.left.cancel();
        }
        self.repoints.increment(source);
        self.turned.notify_waiters();
        Repointed::Moved
    }

    /// The node to follow; waits while there is none. Cancel-safe.
    pub async fn pointing(&self) -> Pointing {
        self.when(|state| state.pointing.clone()).await
    }

    /// Waits until the node is another than `known` and returns it. Cancel-safe.
    pub async fn changed(&self, known: Option<&Address>) -> Address {
        let other = |state: &State| state.pointing.as_ref().map(|p| p.address.clone()).filter(|now| Some(now) != known);
        self.when(other).await
    }

    /// The link was in dialogue with it. Of no effect once another node is followed.
    pub fn meet(&self, pointing: &Pointing) {
        self.note(pointing, |state| state.met = Met::Yes);
    }

    /// The link could not get there. What was met once stays met.
    pub fn miss(&self, pointing: &Pointing) {
        self.note(pointing, |state| {
            if state.met == Met::Trying {
                state.met = Met::NotYet;
            }
        });
    }

    /// The link tries again.
    pub fn retry(&self, pointing: &Pointing) {
        self.note(pointing, |state| {
            if state.met == Met::NotYet {
                state.met = Met::Trying;
            }
        });
    }

    /// Whether the link was in dialogue with the node that is followed now. What it streams is another node's until then.
    pub fn is_met(&self) -> bool {
        self.state().met == Met::Yes
    }

    /// The node, once it has been met; waits while the link is trying. Cancel-safe.
    ///
    /// # Errors
    /// When the last try failed.
    pub async fn met(&self) -> Result<Pointing, NotMet> {
        self.when(|state| match state.met {
            Met::Trying => None,
            Met::NotYet => Some(Err(NotMet)),
            Met::Yes => state.pointing.clone().map(Ok),
        })
        .await
    }

    /// It said this of itself.
    pub fn learn(&self, pointing: &Pointing, profile: Profile) {
        self.note(pointing, |state| state.profile = profile);
    }

    /// What is known of it.
    pub fn profile(&self) -> Profile {
        self.state().profile.clone()
    }

    /// The number of the configuration the Sentinels agreed on. It never falls.
    pub fn epoch(&self) -> Option<u64> {
        self.state().epoch
    }

    /// They agree on this one.
    pub fn agree(&self, epoch: u64) {
        let mut state = self.state();
        state.epoch = state.epoch.max(Some(epoch));
        drop(state);
        self.turned.notify_waiters();
    }

    /// Waits until there is a node other than `known` or an epoch other than `epoch`, and returns both. Cancel-safe.
    pub async fn news(&self, known: Option<&Address>, epoch: Option<u64>) -> (Address, Option<u64>) {
        self.when(|state| {
            let now = &state.pointing.as_ref()?.address;
            (Some(now) != known || state.epoch != epoch).then(|| (now.clone(), state.epoch))
        })
        .await
    }

    fn note(&self, pointing: &Pointing, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        if state.generation == pointing.generation {
            change(&mut state);
            drop(state);
            self.turned.notify_waiters();
        }
    }

    async fn when<T>(&self, ask: impl Fn(&State) -> Option<T>) -> T {
        loop {
            let turned = self.turned.notified();
            tokio::pin!(turned);
            turned.as_mut().enable();
            if let Some(answer) = ask(&self.state()) {
                return answer;
            }
            turned.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics holding it")
    }
}

/// Whether two addresses are the same to a server, which compares the text and not the case (redis replication.c,
/// `replicaofCommand`).
fn same(a: &Address, b: &Address) -> bool {
    match (a, b) {
        (Address::Tcp { host: a, port: x }, Address::Tcp { host: b, port: y }) => x == y && a.eq_ignore_ascii_case(b),
        (Address::Unix(a), Address::Unix(b)) => a == b,
        (Address::Tcp { .. }, Address::Unix(_)) | (Address::Unix(_), Address::Tcp { .. }) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Address {
        Address::Tcp { host: "node".into(), port }
    }

    #[tokio::test]
    async fn whoever_has_to_do_with_a_node_leaves_it_when_it_changes() {
        let target = Target::new(Some(at(1)));
        let first = target.pointing().await;
        let client = first.token();
        assert_eq!(target.repoint(at(1), Source::ReplicaOf), Repointed::Already);
        assert!(!client.is_cancelled());
        assert_eq!(target.repoint(at(2), Source::ReplicaOf), Repointed::Moved);
        first.left().await;
        assert!(client.is_cancelled());
        assert_eq!(target.pointing().await.address, at(2));
        assert_eq!((target.repoints.get(Source::ReplicaOf), target.repoints.sum()), (1, 1));
    }

    #[tokio::test]
    async fn a_node_is_passed_to_only_once_it_has_been_met() {
        let target = Target::new(Some(at(1)));
        let first = target.pointing().await;
        target.miss(&first);
        assert_eq!(target.met().await.unwrap_err(), NotMet);
        target.meet(&first);
        target.miss(&first);
        assert_eq!(target.met().await.unwrap().address, at(1));
        assert!(target.is_met());
        target.repoint(at(2), Source::Api);
        assert!(!target.is_met());
        // What was known of the node before says nothing of this one.
        target.meet(&first);
        let second = target.pointing().await;
        target.miss(&second);
        assert_eq!(target.met().await.unwrap_err(), NotMet);
    }

    #[tokio::test]
    async fn without_a_node_everybody_waits_for_one() {
        let target = Target::new(None);
        let (pointing, ()) = tokio::join!(target.pointing(), async {
            tokio::task::yield_now().await;
            target.repoint(at(7), Source::SwitchMaster);
        });
        assert_eq!(pointing.address, at(7));
        assert_eq!(target.changed(None).await, at(7));
    }

    #[test]
    fn names_differ_in_more_than_case() {
        let target = Target::new(Some(Address::Tcp { host: "Node".into(), port: 1 }));
        assert_eq!(target.repoint(at(1), Source::Hello), Repointed::Already);
    }
}
