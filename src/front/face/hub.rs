//! Who is connected to the replica face, and the one channel that Sentinels meet on.
//!
//! Every message goes to every subscriber, the one who published it included: a Sentinel that hears nothing, not even
//! itself, for three of its periods connects anew. A subscriber that does not read is dropped; nobody waits for it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::glob::glob;
use crate::wire::hello::CHANNEL;
use crate::wire::reply::{Reply, Resp};
use crate::wire::watch::is_a_sentinels;

/// Messages that wait for one subscriber: a minute of eight Sentinels.
const QUEUE: usize = 256;

/// What a connection is, as `CLIENT KILL TYPE` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It asks and is answered.
    Normal,
    /// It listens.
    Pubsub,
}

/// Whom to disconnect; all that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Victims {
    /// Only of this kind.
    pub kind: Option<Kind>,
    /// Only this one.
    pub id: Option<u64>,
    /// Only from this address.
    pub peer: Option<String>,
    /// All but this one.
    pub except: Option<u64>,
}

impl Victims {
    /// The filters of `CLIENT KILL`: `None` for bad syntax, `Some(None)` for kinds nobody here is of.
    pub fn parse(filters: &[Bytes], own: u64) -> Option<Option<Victims>> {
        // As in Redis, the one who asks lives on unless it says otherwise.
        let mut victims = Victims { except: Some(own), ..Victims::default() };
        let mut nobody = false;
        let (pairs, []) = filters.as_chunks::<2>() else { return None };
        for [key, value] in pairs {
            match (key.to_ascii_uppercase().as_slice(), value.to_ascii_lowercase().as_slice()) {
                (b"TYPE", b"normal") => victims.kind = Some(Kind::Normal),
                (b"TYPE", b"pubsub") => victims.kind = Some(Kind::Pubsub),
                (b"TYPE", b"replica" | b"slave" | b"master" | b"primary") => nobody = true,
                (b"ID", id) => victims.id = Some(str::from_utf8(id).ok()?.parse().ok()?),
                (b"ADDR", address) => victims.peer = Some(String::from_utf8_lossy(address).into_owned()),
                (b"SKIPME", b"yes") => victims.except = Some(own),
                (b"SKIPME", b"no") => victims.except = None,
                _ => return None,
            }
        }
        (!pairs.is_empty()).then_some((!nobody).then_some(victims))
    }
}

/// Everybody.
#[derive(Debug, Default)]
pub struct Hub {
    /// Held for a few instructions, never across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    members: BTreeMap<u64, Member>,
}

#[derive(Debug)]
struct Member {
    peer: String,
    name: String,
    since: Instant,
    resp: Resp,
    channel: bool,
    patterns: Vec<Bytes>,
    outbox: mpsc::Sender<Bytes>,
    killed: CancellationToken,
}

impl Member {
    fn kind(&self) -> Kind {
        if self.channel || !self.patterns.is_empty() { Kind::Pubsub } else { Kind::Normal }
    }
}

/// One connection's row; dropping it removes it.
#[derive(Debug)]
pub struct Membership {
    hub: Arc<Hub>,
    id: u64,
    peer: String,
    inbox: mpsc::Receiver<Bytes>,
    killed: CancellationToken,
}

impl Hub {
    /// Adds a connection from `peer`.
    pub fn join(self: &Arc<Self>, peer: String) -> Membership {
        let (outbox, inbox) = mpsc::channel(QUEUE);
        let killed = CancellationToken::new();
        let member = Member {
            peer: peer.clone(),
            name: String::new(),
            since: Instant::now(),
            resp: Resp::Two,
            channel: false,
            patterns: Vec::new(),
            outbox,
            killed: killed.clone(),
        };
        let mut state = self.state();
        state.last += 1;
        let id = state.last;
        state.members.insert(id, member);
        drop(state);
        Membership { hub: Arc::clone(self), id, peer, inbox, killed }
    }

    /// How many name themselves as Sentinels do on the connection they ask on.
    pub fn sentinels(&self) -> usize {
        self.state().members.values().filter(|member| is_a_sentinels(member.name.as_bytes())).count()
    }

    /// Hands `message` to all who listen: how many deliveries there were, as Redis counts them, and how many
    /// subscribers were dropped because they do not read.
    pub fn publish(&self, message: &[u8]) -> (usize, usize) {
        let (mut reached, mut dropped) = (0, 0);
        let words = |words: &[&[u8]]| Reply::Push(words.iter().map(Reply::bulk).collect());
        for member in self.state().members.values() {
            let plain = member.channel.then(|| words(&[b"message", CHANNEL.as_bytes(), message]));
            let matched =
                member.patterns.iter().map(|pattern| words(&[b"pmessage", pattern, CHANNEL.as_bytes(), message]));
            for push in plain.into_iter().chain(matched) {
                match member.outbox.try_send(push.encode(member.resp)) {
                    Ok(()) => reached += 1,
                    Err(_) if member.killed.is_cancelled() => {}
                    Err(_) => {
                        member.killed.cancel();
                        dropped += 1;
                    }
                }
            }
        }
        (reached, dropped)
    }

    /// Disconnects `victims`; how many there were.
    pub fn kill(&self, victims: &Victims) -> usize {
        let Victims { kind, id, peer, except } = victims;
        let state = self.state();
        let meant = state.members.iter().filter(|(member_id, member)| {
            kind.is_none_or(|kind| kind == member.kind())
                && id.is_none_or(|id| id == **member_id)
                && peer.as_ref().is_none_or(|peer| *peer == member.peer)
                && *except != Some(**member_id)
        });
        meant.map(|(_, member)| member.killed.cancel()).count()
    }

    /// What `CLIENT LIST` says of all, or `CLIENT INFO` of one.
    pub fn list(&self, only: Option<u64>) -> String {
        let mut text = String::new();
        for (id, member) in self.state().members.iter().filter(|(id, _)| only.is_none_or(|only| only == **id)) {
            let (flags, subscribed) = match member.kind() {
                Kind::Normal => ("N", 0),
                Kind::Pubsub => ("P", u8::from(member.channel)),
            };
            let resp = match member.resp {
                Resp::Two => 2,
                Resp::Three => 3,
            };
            let _ = writeln!(
                text,
                "id={id} addr={} name={} age={} flags={flags} db=0 sub={subscribed} psub={} resp={resp}",
                member.peer,
                member.name,
                member.since.elapsed().as_secs(),
                member.patterns.len(),
            );
        }
        text
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics holding it")
    }
}

impl Membership {
    /// Its number: from 1, never used twice.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where it called from.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Cancelled when somebody had it disconnected.
    pub fn killed(&self) -> CancellationToken {
        self.killed.clone()
    }

    /// The next message for it, as bytes of its protocol. Cancel-safe.
    pub async fn message(&mut self) -> Bytes {
        match self.inbox.recv().await {
            Some(message) => message,
            // Not while its row is there, which holds the other end.
            None => std::future::pending().await,
        }
    }

    /// From now on it speaks `resp` and listens to the channel itself or not, and to what these patterns match.
    pub fn listen(&self, resp: Resp, channel: bool, patterns: &[Bytes]) {
        if let Some(member) = self.hub.state().members.get_mut(&self.id) {
            member.resp = resp;
            member.channel = channel;
            member.patterns = patterns.iter().filter(|pattern| glob(pattern, CHANNEL.as_bytes())).cloned().collect();
        }
    }

    /// Its name from now on.
    pub fn rename(&self, name: &str) {
        if let Some(member) = self.hub.state().members.get_mut(&self.id) {
            name.clone_into(&mut member.name);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.hub.state().members.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_who_listens_hears_everything() {
        let hub = Arc::<Hub>::default();
        let (mut a, mut b, c) = (hub.join("a:1".into()), hub.join("b:1".into()), hub.join("c:1".into()));
        a.listen(Resp::Two, true, &[]);
        b.listen(Resp::Three, false, &[Bytes::from_static(b"__sent*"), Bytes::from_static(b"other")]);
        assert_eq!(hub.publish(b"hi"), (2, 0));
        assert_eq!(a.message().await, "*3\r\n$7\r\nmessage\r\n$18\r\n__sentinel__:hello\r\n$2\r\nhi\r\n");
        assert_eq!(
            b.message().await,
            ">4\r\n$8\r\npmessage\r\n$7\r\n__sent*\r\n$18\r\n__sentinel__:hello\r\n$2\r\nhi\r\n"
        );
        drop(c);
        assert_eq!(hub.list(None).lines().count(), 2);
    }

    #[tokio::test]
    async fn who_does_not_read_is_dropped_and_nobody_waits_for_it() {
        let hub = Arc::<Hub>::default();
        let (deaf, mut other) = (hub.join("a:1".into()), hub.join("b:1".into()));
        deaf.listen(Resp::Two, true, &[]);
        other.listen(Resp::Two, true, &[]);
        for _ in 0..QUEUE {
            assert_eq!(hub.publish(b"hi"), (2, 0));
            other.message().await;
        }
        assert_eq!(hub.publish(b"hi"), (1, 1));
        assert_eq!(hub.publish(b"hi"), (1, 0), "it is dropped once");
        assert!(deaf.killed().is_cancelled() && !other.killed().is_cancelled());
    }

    #[tokio::test]
    async fn a_kill_means_all_that_is_said_of_its_victims() {
        let hub = Arc::<Hub>::default();
        let (a, b) = (hub.join("a:1".into()), hub.join("b:1".into()));
        b.listen(Resp::Two, true, &[]);
        let normal = Victims { kind: Some(Kind::Normal), except: Some(a.id()), ..Victims::default() };
        assert_eq!(hub.kill(&normal), 0, "not the one who asks");
        assert_eq!(hub.kill(&Victims { kind: Some(Kind::Pubsub), ..Victims::default() }), 1);
        assert!(b.killed().is_cancelled() && !a.killed().is_cancelled());
        assert_eq!(hub.kill(&Victims { peer: Some("a:1".into()), ..Victims::default() }), 1);
    }
}
