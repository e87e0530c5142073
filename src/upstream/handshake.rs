//! What is said before PSYNC, in the order in which a real replica says it (redis replication.c,
//! `syncWithMaster`), plus one question of ours: INFO, which tells where a link can begin without a snapshot.
//!
//! Every reply is read before the next command goes out: a master rejects a PSYNC behind a pending reply.

use tracing::{debug, warn};

use super::conversation::{Conversation, KEEPALIVES_MAX, LinkEnd};
use super::{Options, Upstream};
use crate::relay::replicas::Introduction;
use crate::repl::policy::MAX_HOPS;
use crate::repl::{Position, ServerVersion};
use crate::wire::dialogue::{self, PingReply, PsyncReply};
use crate::wire::info::{MasterInfo, Server, parse_info};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// The live stream.
    Stream,
    /// The live stream, as this replica.
    Mirror(&'a Introduction),
    /// One snapshot and nothing else.
    Snapshot,
}

/// Who answered.
#[derive(Debug)]
pub struct Greeting {
    /// Whether it is a server, or another psyncd.
    pub peer: Peer,
    /// What it says of itself, if it lets us ask.
    pub info: Option<MasterInfo>,
    /// The lowest version among our replicas as it was when the upstream was told, or would have been.
    pub fleet: Option<ServerVersion>,
}

/// What the upstream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A real server.
    Server,
    /// Another psyncd, which may or may not lead to a server.
    Psyncd,
}

/// Introduces us.
pub async fn greet(upstream: &Upstream, talk: &mut Conversation, purpose: Purpose<'_>) -> Result<Greeting, LinkEnd> {
    let options = upstream.options.get();
    let peer = find_loop(talk, &options).await?;
    match dialogue::parse_ping_reply(&talk.ask(dialogue::ping()).await?) {
        PingReply::Pong | PingReply::AuthNeeded => {}
        PingReply::Refused(why) | PingReply::Psyncd(why) => return Err(LinkEnd::NotNow(why)),
    }
    authenticate(talk, &options).await?;
    let info = info(talk, &["server", "replication", "keyspace"]).await?;
    if info.is_none() {
        warn!(event = "info_denied", "master denied INFO, so psyncd cannot attach without a full sync; grant +info");
    }
    if (peer, &info) == (Peer::Psyncd, &None) {
        return Err(LinkEnd::NotNow("the psyncd there has no history yet".into()));
    }
    if let Some(above) = info.as_ref().map(|info| &info.chain) {
        check_chain(above, &options.identity)?;
    }
    match purpose {
        // Also for a snapshot: a master lists that connection, too, and what a Sentinel once saw there without a port
        // stays in its list for ever as a replica that is down.
        Purpose::Stream | Purpose::Snapshot => {
            if let Some(port) = options.announce_port {
                optional(talk, dialogue::replconf_listening_port(port)).await?;
            }
            if let Some(host) = &options.announce_host {
                optional(talk, dialogue::replconf_ip_address(host)).await?;
            }
        }
        Purpose::Mirror(replica) => {
            required(talk, dialogue::replconf_listening_port(replica.port)).await?;
            required(talk, dialogue::replconf_ip_address(&replica.host)).await?;
        }
    }
    optional(talk, dialogue::replconf_capa()).await?;
    let fleet = upstream.relay.replicas().lowest_version();
    if let Some(version) = version_to_announce(info.as_ref(), fleet) {
        optional(talk, dialogue::replconf_version(&version.to_string())).await?;
    }
    if purpose == Purpose::Snapshot {
        optional(talk, dialogue::replconf_rdb_only()).await?;
        if let (Peer::Psyncd, Some((_, window))) = (peer, upstream.relay.held()) {
            // It may have a snapshot from before our backlog began.
            optional(talk, dialogue::replconf_psyncd_since(window.start)).await?;
        }
    }
    Ok(Greeting { peer, info, fleet })
}

/// Only asks a server where its stream is and how many keys it has.
pub async fn inquire(upstream: &Upstream, talk: &mut Conversation) -> Result<MasterInfo, LinkEnd> {
    authenticate(talk, &upstream.options.get()).await?;
    info(talk, &["replication", "keyspace"]).await?.ok_or_else(|| LinkEnd::Denied("INFO".into()))
}

/// Asks for the stream from `position`, or for a full sync. Empty lines are the master's way of saying that it
/// is still working.
pub async fn psync(
    upstream: &Upstream,
    talk: &mut Conversation,
    position: Option<&Position>,
) -> Result<PsyncReply, LinkEnd> {
    talk.be_patient(upstream.options.get().repl_timeout);
    talk.say(dialogue::psync(position)).await?;
    for _ in 0..KEEPALIVES_MAX {
        let reply = dialogue::parse_psync_reply(&talk.line().await?);
        if reply != PsyncReply::Wait {
            return Ok(reply);
        }
    }
    Err(LinkEnd::Protocol("nothing but empty lines in answer to PSYNC".into()))
}

/// Turns an answer that is neither a stream nor a payload into the end of the link.
pub fn refused(reply: PsyncReply) -> LinkEnd {
    match reply {
        PsyncReply::NotNow(why) => LinkEnd::NotNow(why),
        PsyncReply::Denied(why) => LinkEnd::Denied(why),
        PsyncReply::UnknownCommand(why) => LinkEnd::Protocol(format!("it does not know PSYNC (before 2.8?): {why}")),
        PsyncReply::Error(why) | PsyncReply::Malformed(why) => LinkEnd::Protocol(why),
        PsyncReply::Continue(_) | PsyncReply::FullResync(_) | PsyncReply::Wait => {
            LinkEnd::Protocol("an answer to another question".into())
        }
    }
}

/// Says who we are before anything else: a psyncd that finds its own name here, or too long a chain, says so, and
/// a loop ends before it opened a second connection. Real servers do not know the option and that is fine.
async fn find_loop(talk: &mut Conversation, options: &Options) -> Result<Peer, LinkEnd> {
    let reply = talk.ask(dialogue::replconf_psyncd_id(&options.identity, 1)).await?;
    match dialogue::refusal(&reply) {
        Some(why) if why.starts_with("ERR psyncd") => Err(LinkEnd::Loop(why)),
        Some(_) => Ok(Peer::Server),
        None => Ok(Peer::Psyncd),
    }
}

async fn authenticate(talk: &mut Conversation, options: &Options) -> Result<(), LinkEnd> {
    let Some(auth) = options.login.get().auth() else { return Ok(()) };
    let reply = talk.ask(auth).await?;
    dialogue::refusal(&reply).map_or(Ok(()), |why| Err(LinkEnd::Denied(why)))
}

/// A node that we were told to follow may follow us, at any distance. Two that turn to each other at the same moment
/// are not found here; no byte comes to either, and after repl-timeout this is asked again.
fn check_chain(above: &[String], identity: &str) -> Result<(), LinkEnd> {
    if above.iter().any(|id| id == identity) {
        return Err(LinkEnd::Loop("the psyncd there gets its stream from us".into()));
    }
    if above.len() >= usize::from(MAX_HOPS) {
        return Err(LinkEnd::Loop(format!("more than {MAX_HOPS} psyncd's one behind the other")));
    }
    Ok(())
}

/// Sends an option the master may refuse: then it is older than the option.
pub async fn optional(talk: &mut Conversation, command: bytes::Bytes) -> Result<(), LinkEnd> {
    if let Some(why) = dialogue::refusal(&talk.ask(command).await?) {
        debug!(%why, "master refused an option");
    }
    Ok(())
}

/// Sends an option without which the connection would be listed as somebody it is not.
async fn required(talk: &mut Conversation, command: bytes::Bytes) -> Result<(), LinkEnd> {
    match dialogue::refusal(&talk.ask(command).await?) {
        None => Ok(()),
        Some(why) => Err(LinkEnd::Denied(why)),
    }
}

/// `None` when it is denied.
async fn info(talk: &mut Conversation, sections: &[&str]) -> Result<Option<MasterInfo>, LinkEnd> {
    let mut text = Vec::new();
    for section in sections {
        let reply = talk.ask_whole(dialogue::info(section)).await?;
        if reply.first() == Some(&b'-') {
            let why = String::from_utf8_lossy(&reply).trim_end().to_owned();
            debug!(%why, section, "INFO was denied");
            return Ok(None);
        }
        text.extend_from_slice(&reply);
    }
    Ok(Some(parse_info(&text)))
}

/// Valkey chooses the format of a snapshot by the version it is told, so it is told the lowest among the replicas.
/// Without one that is certain nothing is said: Valkey 9.1 then writes what everybody since 7.2 can load.
fn version_to_announce(info: Option<&MasterInfo>, lowest: Option<ServerVersion>) -> Option<ServerVersion> {
    match info?.server.as_ref()? {
        Server::Valkey => lowest,
        Server::Redis | Server::Other(_) => None,
    }
}
