//! A planned failover that nobody begins anew for: two psyncd's, one in front of the old master and one in front of the
//! new, agree on the point at which the one ends and the other begins.
//!
//! Left alone, the old master takes writes for seconds after its replica was promoted, and feeds them to the others:
//! all of it is lost, and everybody starts over. So the command that promotes is held on its way to the node, for at
//! most [`HOLD`]:
//!
//! ```text
//!   Sentinel           psyncd-B, node B                      psyncd-A, node A
//!   SLAVEOF NO ONE ──▶ holds it ───────── FENCE ───────────▶ CLIENT PAUSE WRITE; sends what there is, and no more
//!                      node B has it all ◀── FENCED at n ───
//!                      ─────────────────── READY n ────────▶ nothing was written since
//!                      lets it pass ◀────── GO ─────────────
//!                      node B is a master ── DEMOTE ───────▶ REPLICAOF B; CLIENT UNPAUSE
//! ```
//!
//! Whatever does not come about in time, the command passes: nobody is worse off than without us. The fence falls by
//! itself when the asker is silent or gone, and the pause ends by itself when the fencer is.
//!
//! [`promotion`] and [`fence`] decide, [`asker`] and [`fencer`] do; the words are [`crate::wire::assist`]'s.

pub mod asker;
pub mod fence;
pub mod fencer;
pub mod promotion;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::counters::CounterSet;
use crate::entropy::Entropy;
use crate::label;
use crate::live::Live;
use crate::net::Network;
use crate::relay::target::Target;
use crate::upstream::conversation::{Conversation, LinkEnd};
use crate::wire::dialogue::{self, Login};
use crate::wire::info::{MasterInfo, parse_info};

/// Longest that a promotion is held.
pub const HOLD: Duration = Duration::from_secs(1);
/// Longest that a node may take to become a master once it was told, before the old one takes writes again.
pub const FOLLOW_UP: Duration = Duration::from_secs(1);
/// How long the old master refuses writes if nobody tells it otherwise: both of the above, and some.
const PAUSE: Duration = Duration::from_millis(2500);
/// Bound on dialing. Whoever is not there is not waited for.
const CONNECT: Duration = Duration::from_millis(250);

label! {
    /// How a promotion went that was held.
    pub enum Assisted {
        /// The old master follows the new one, and both have all that was written.
        Ok = "ok",
        /// It took too long; the command passed alone.
        Timeout = "timeout",
        /// There was nothing to do: the node follows nobody, its master is not reached, or another promotion is held.
        Skipped = "skipped",
        /// The master's psyncd would not, or is none.
        Refused = "refused",
    }
}

label! {
    /// What became of a fence that another psyncd asked for.
    pub enum Fenced {
        /// Our node follows the new master.
        Demoted = "demoted",
        /// It fell, and our node takes writes again.
        Undone = "undone",
        /// It was not built.
        Refused = "refused",
    }
}

/// What happened.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Promotions of our own node.
    pub assists: CounterSet<Assisted>,
    /// Fences in front of it.
    pub fences: CounterSet<Fenced>,
}

/// How to talk to our own node.
#[derive(Clone)]
pub struct Node {
    /// How to dial it.
    pub network: Arc<dyn Network>,
    /// How to dial the psyncd of the node it follows.
    pub peers: Arc<dyn Network>,
    /// Where it is.
    pub target: Arc<Target>,
    /// What it is named.
    pub login: Live<Login>,
    /// Nonces.
    pub entropy: Arc<dyn Entropy>,
}

impl Node {
    /// A connection to it, which may be silent for `patience`. Cancel-safe: dropping it closes the connection.
    async fn call(&self, patience: Duration) -> Result<Conversation, LinkEnd> {
        let Some(address) = self.target.address() else {
            return Err(LinkEnd::NotNow("no master is known yet".into()));
        };
        let link = timeout(CONNECT, self.network.dial(&address))
            .await
            .map_err(|_| LinkEnd::ConnectTimeout(CONNECT))?
            .map_err(LinkEnd::Unreachable)?;
        let mut talk = Conversation::over(link, patience);
        if let Some(auth) = self.login.get().auth() {
            order(&mut talk, auth).await?;
        }
        Ok(talk)
    }
}

/// What a node says of its replication.
async fn replication(talk: &mut Conversation) -> Result<MasterInfo, LinkEnd> {
    let reply = talk.ask_whole(dialogue::info("replication")).await?;
    match reply.first() {
        Some(b'-') => Err(LinkEnd::Denied(String::from_utf8_lossy(&reply[1..]).trim_end().to_owned())),
        _ => Ok(parse_info(&reply)),
    }
}

/// A command that is answered with a line, which must not be an error.
async fn order(talk: &mut Conversation, command: bytes::Bytes) -> Result<(), LinkEnd> {
    match dialogue::refusal(&talk.ask(command).await?) {
        None => Ok(()),
        Some(why) => Err(LinkEnd::Denied(why)),
    }
}
