//! One connection's side of the dialogue at the replica face, as a machine: commands in, replies out.
//!
//! ```text
//!                 wrong or no password            REPLCONF, PSYNC, SYNC
//!   start ─▶ ask ─────────────────────▶ -NOAUTH      ┌─────────────────▶ replica (served elsewhere)
//!             │ AUTH, HELLO                          │
//!             ▼                                      │
//!            open ───────────────────────────────────┤
//!             │ MULTI        ▲ EXEC, DISCARD, RESET  │
//!             ▼              │                       │
//!           queueing ────────┘                       └─────────────────▶ closed: QUIT
//! ```
//!
//! It answers as a replica of Redis 7 does where it answers at all. What it cannot do itself it asks of its
//! [`Standing`].

use std::collections::BTreeSet;

use bytes::Bytes;

use super::Refusal;
use super::glob::glob;
use super::hub::Victims;
use crate::net::Address;
use crate::relay::target::Repointed;
use crate::wire::hello::CHANNEL;
use crate::wire::portrait::Portrait;
use crate::wire::reply::{Reply, Resp};
use crate::wire::resp::Args;

/// Commands that wait for EXEC; Sentinel sends five.
const QUEUE_MAX: usize = 64;
/// Patterns of one connection.
const PATTERNS_MAX: usize = 16;
/// Longest name of a connection, in bytes.
const NAME_MAX: usize = 128;

/// What a command can do beyond its connection.
pub trait Standing {
    /// Whether that is the password.
    fn password_is(&self, given: &[u8]) -> bool;
    /// What we are now.
    fn portrait(&self) -> Portrait;
    /// Follows another node.
    ///
    /// # Errors
    /// When that node must not be followed, with the reason.
    fn follow(&self, address: Address) -> Result<Repointed, String>;
    /// Something was refused.
    fn refused(&self, what: Refusal);
    /// Publishes a message on the hello channel; how many heard it.
    fn publish(&self, message: &[u8]) -> usize;
    /// This connection listens to the channel, and to what these patterns match.
    fn listen(&self, resp: Resp, channel: bool, patterns: &[Bytes]);
    /// This connection has a name.
    fn rename(&self, name: &str);
    /// The list of all connections, or of one.
    fn clients(&self, only: Option<u64>) -> String;
    /// Disconnects; how many.
    fn kill(&self, victims: &Victims) -> usize;
}

/// What to do about a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this (nothing when empty) and go on.
    Reply(Bytes),
    /// Send this and close.
    Close(Bytes),
    /// It is a replica; whoever serves replicas reads this command again.
    Replicate,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Manners {
    id: u64,
    protected: bool,
    admitted: bool,
    /// The one that was named last, right or wrong.
    password: Option<Bytes>,
    resp: Resp,
    name: String,
    queue: Option<Queue>,
    channel: bool,
    patterns: BTreeSet<Bytes>,
}

#[derive(Debug, Default)]
struct Queue {
    commands: Vec<Args>,
    /// One of them was refused, so EXEC does nothing.
    spoilt: bool,
}

/// What a command comes to.
enum Outcome {
    /// One reply.
    One(Reply),
    /// Several, as subscriptions are confirmed one by one.
    Many(Vec<Reply>),
    /// A reply, and the end.
    Last(Reply),
}

impl Manners {
    /// A connection that has said nothing. When `protected` it must know the password.
    pub fn new(id: u64, protected: bool) -> Self {
        Self {
            id,
            protected,
            admitted: !protected,
            password: None,
            resp: Resp::Two,
            name: String::new(),
            queue: None,
            channel: false,
            patterns: BTreeSet::new(),
        }
    }

    /// Whether it needs to name no password, or named the right one.
    pub fn is_admitted(&self) -> bool {
        self.admitted
    }

    /// The password that was named last, right or wrong.
    pub fn password(self) -> Option<Bytes> {
        self.password
    }

    /// Takes one command.
    pub fn command(&mut self, args: &Args, standing: &dyn Standing) -> Step {
        let Some(first) = args.first() else { return Step::Reply(Bytes::new()) };
        let verb = first.to_ascii_uppercase();
        if !self.admitted && !matches!(verb.as_slice(), b"AUTH" | b"HELLO" | b"QUIT" | b"RESET") {
            standing.refused(Refusal::Auth);
            return self.reply(&Reply::Error("NOAUTH Authentication required.".into()));
        }
        if matches!(verb.as_slice(), b"REPLCONF" | b"PSYNC" | b"SYNC") && self.queue.is_none() {
            return Step::Replicate;
        }
        let silent = matches!(verb.as_slice(), b"EXEC" | b"DISCARD" | b"MULTI" | b"RESET" | b"QUIT");
        if self.queue.is_some() && !silent {
            let reply = self.enqueue(&verb, args);
            return self.reply(&reply);
        }
        match self.perform(&verb, args, standing) {
            Outcome::One(reply) => self.reply(&reply),
            Outcome::Many(replies) => Step::Reply(Bytes::from(
                replies.iter().map(|reply| reply.encode(self.resp)).collect::<Vec<_>>().concat(),
            )),
            Outcome::Last(reply) => Step::Close(reply.encode(self.resp)),
        }
    }

    fn reply(&self, reply: &Reply) -> Step {
        Step::Reply(reply.encode(self.resp))
    }

    /// What is not served is refused by EXEC, and not before: it must not keep the rest of a Sentinel's order, which may
    /// hold a verb that came after us, from being carried out.
    fn enqueue(&mut self, verb: &[u8], args: &Args) -> Reply {
        let refusal = match verb {
            b"SUBSCRIBE" | b"PSUBSCRIBE" | b"UNSUBSCRIBE" | b"PUNSUBSCRIBE" | b"HELLO" => {
                Some(Reply::Error("ERR Command not allowed inside a transaction".into()))
            }
            _ => None,
        };
        let queue = self.queue.get_or_insert_default();
        match refusal {
            None if queue.commands.len() < QUEUE_MAX => {
                queue.commands.push(args.clone());
                Reply::Simple("QUEUED")
            }
            None => {
                queue.spoilt = true;
                Reply::Error(format!("ERR psyncd queues {QUEUE_MAX} commands and no more"))
            }
            Some(reply) => {
                queue.spoilt = true;
                reply
            }
        }
    }

    fn perform(&mut self, verb: &[u8], args: &Args, standing: &dyn Standing) -> Outcome {
        let rest = &args[1..];
        let listening = self.channel || !self.patterns.is_empty();
        if listening
            && self.resp == Resp::Two
            && !matches!(
                verb,
                b"SUBSCRIBE" | b"PSUBSCRIBE" | b"UNSUBSCRIBE" | b"PUNSUBSCRIBE" | b"PING" | b"QUIT" | b"RESET"
            )
        {
            return Outcome::One(Reply::Error(format!(
                "ERR Can't execute '{}': only (P)SUBSCRIBE / (P)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context",
                verb.to_ascii_lowercase().escape_ascii()
            )));
        }
        Outcome::One(match (verb, rest) {
            (b"QUIT", _) => return Outcome::Last(Reply::OK),
            (b"RESET", []) => {
                *self = Self::new(self.id, self.protected);
                standing.listen(self.resp, false, &[]);
                Reply::Simple("RESET")
            }
            (b"PING", []) if listening && self.resp == Resp::Two => {
                Reply::Array(vec![Reply::bulk("pong"), Reply::bulk("")])
            }
            (b"PING", [text]) if listening && self.resp == Resp::Two => {
                Reply::Array(vec![Reply::bulk("pong"), Reply::Bulk(text.clone())])
            }
            (b"PING", []) => Reply::Simple("PONG"),
            (b"PING", [text]) | (b"ECHO", [text]) => Reply::Bulk(text.clone()),
            (b"AUTH", [password]) => self.auth(b"default", password, standing),
            (b"AUTH", [user, password]) => self.auth(user, password, standing),
            (b"HELLO", options) => self.hello(options, standing),
            (b"SELECT", [db]) => match db.as_ref() {
                b"0" => Reply::OK,
                _ => Reply::Error("ERR DB index is out of range".into()),
            },
            (b"INFO", sections) => Reply::Text(standing.portrait().info(sections)),
            (b"ROLE", []) => standing.portrait().role(),
            (b"REPLICAOF" | b"SLAVEOF", [host, port]) => follow(host, port, standing),
            (b"MULTI", []) if self.queue.is_some() => Reply::Error("ERR MULTI calls can not be nested".into()),
            (b"MULTI", []) => {
                self.queue = Some(Queue::default());
                Reply::OK
            }
            (b"DISCARD", []) => match self.queue.take() {
                Some(_) => Reply::OK,
                None => Reply::Error("ERR DISCARD without MULTI".into()),
            },
            (b"EXEC", []) => match self.queue.take() {
                None => Reply::Error("ERR EXEC without MULTI".into()),
                Some(Queue { spoilt: true, .. }) => {
                    Reply::Error("EXECABORT Transaction discarded because of previous errors.".into())
                }
                Some(Queue { commands, .. }) => {
                    let mut replies = Vec::with_capacity(commands.len());
                    for args in commands {
                        let verb = args[0].to_ascii_uppercase();
                        match self.perform(&verb, &args, standing) {
                            Outcome::One(reply) | Outcome::Last(reply) => replies.push(reply),
                            Outcome::Many(more) => replies.extend(more),
                        }
                    }
                    Reply::Array(replies)
                }
            },
            (b"FAILOVER", [word]) if word.eq_ignore_ascii_case(b"abort") => {
                Reply::Error("ERR No failover in progress.".into())
            }
            (b"WATCH", [_, ..]) | (b"UNWATCH", []) => Reply::OK,
            (b"CONFIG", [word, rest @ ..]) => config(word, rest, standing),
            (b"CLIENT", [word, rest @ ..]) => self.client(word, rest, standing),
            (b"COMMAND", words) => match words.first().map(|word| word.to_ascii_uppercase()).as_deref() {
                Some(b"COUNT") => Reply::Int(KNOWN.len() as i64),
                Some(b"DOCS") => Reply::Map(vec![]),
                _ => Reply::Array(vec![]),
            },
            (b"PUBLISH", [channel, message]) => {
                if channel.as_ref() == CHANNEL.as_bytes() {
                    Reply::Int(standing.publish(message) as i64)
                } else {
                    standing.refused(Refusal::Command);
                    Reply::Error(format!("ERR psyncd is a relay and carries no channel but {CHANNEL}"))
                }
            }
            (b"SUBSCRIBE", [_, ..]) | (b"UNSUBSCRIBE", _) => return self.channels(verb, rest, standing),
            (b"PSUBSCRIBE", [_, ..]) | (b"PUNSUBSCRIBE", _) => return self.match_channels(verb, rest, standing),
            (verb, _) if KNOWN.contains(&verb) => Reply::Error(format!(
                "ERR wrong number of arguments for '{}' command",
                verb.to_ascii_lowercase().escape_ascii()
            )),
            (verb, _) => {
                standing.refused(Refusal::Command);
                unserved(verb, standing)
            }
        })
    }

    /// Any user will do: the face knows one secret and no users.
    fn auth(&mut self, _user: &[u8], password: &Bytes, standing: &dyn Standing) -> Reply {
        self.password = Some(password.clone());
        if standing.password_is(password) {
            self.admitted = true;
            Reply::OK
        } else {
            standing.refused(Refusal::Auth);
            Reply::Error("WRONGPASS invalid username-password pair or user is disabled.".into())
        }
    }

    fn hello(&mut self, options: &[Bytes], standing: &dyn Standing) -> Reply {
        let (resp, mut options) = match options.split_first() {
            None => (self.resp, options),
            Some((version, rest)) => match version.as_ref() {
                b"2" => (Resp::Two, rest),
                b"3" => (Resp::Three, rest),
                _ => return Reply::Error("NOPROTO unsupported protocol version".into()),
            },
        };
        let mut name = None;
        while let Some((word, rest)) = options.split_first() {
            options = match (word.to_ascii_uppercase().as_slice(), rest) {
                (b"AUTH", [user, password, rest @ ..]) => {
                    let reply = self.auth(user, password, standing);
                    if reply != Reply::OK {
                        return reply;
                    }
                    rest
                }
                (b"SETNAME", [given, rest @ ..]) => match plain_name(given) {
                    Some(given) => {
                        name = Some(given);
                        rest
                    }
                    None => return bad_name(),
                },
                _ => return Reply::Error("ERR Syntax error in HELLO option".into()),
            };
        }
        if !self.admitted {
            standing.refused(Refusal::Auth);
            return Reply::Error(
                "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH \
                 <user> <pass> option can be used to authenticate the client and select the RESP protocol version at \
                 the same time"
                    .into(),
            );
        }
        self.resp = resp;
        self.relisten(standing);
        if let Some(name) = name {
            self.rename(name, standing);
        }
        let portrait = standing.portrait();
        let pair = |key: &str, value: Reply| (Reply::bulk(key), value);
        Reply::Map(vec![
            pair("server", Reply::bulk("redis")),
            pair("version", Reply::bulk(portrait.redis_version)),
            pair("proto", Reply::Int(if resp == Resp::Three { 3 } else { 2 })),
            pair("id", Reply::Int(i64::try_from(self.id).unwrap_or(i64::MAX))),
            pair("mode", Reply::bulk("standalone")),
            pair("role", Reply::bulk("replica")),
            pair("modules", Reply::Array(vec![])),
        ])
    }

    fn client(&mut self, word: &Bytes, rest: &[Bytes], standing: &dyn Standing) -> Reply {
        match (word.to_ascii_uppercase().as_slice(), rest) {
            (b"SETNAME", [name]) => match plain_name(name) {
                Some(name) => {
                    self.rename(name, standing);
                    Reply::OK
                }
                None => bad_name(),
            },
            (b"GETNAME", []) if self.name.is_empty() => Reply::Null,
            (b"GETNAME", []) => Reply::bulk(&self.name),
            (b"SETINFO", [_, _]) | (b"NO-EVICT" | b"NO-TOUCH", [_]) => Reply::OK,
            (b"ID", []) => Reply::Int(i64::try_from(self.id).unwrap_or(i64::MAX)),
            (b"INFO", []) => Reply::Text(standing.clients(Some(self.id))),
            (b"LIST", _) => Reply::Text(standing.clients(None)),
            (b"KILL", [peer]) => {
                let peer = Some(String::from_utf8_lossy(peer).into_owned());
                match standing.kill(&Victims { peer, ..Victims::default() }) {
                    0 => Reply::Error("ERR No such client".into()),
                    _ => Reply::OK,
                }
            }
            (b"KILL", filters) => match Victims::parse(filters, self.id) {
                // Replicas and masters are none of the connections that are killed here.
                Some(Some(victims)) => Reply::Int(standing.kill(&victims) as i64),
                Some(None) => Reply::Int(0),
                None => Reply::Error("ERR syntax error".into()),
            },
            (word, _) => {
                standing.refused(Refusal::Command);
                unserved(&[b"CLIENT ", word].concat(), standing)
            }
        }
    }

    fn rename(&mut self, name: String, standing: &dyn Standing) {
        standing.rename(&name);
        self.name = name;
    }

    fn channels(&mut self, verb: &[u8], names: &[Bytes], standing: &dyn Standing) -> Outcome {
        let subscribe = verb == b"SUBSCRIBE";
        let names = match names {
            [] if self.channel => vec![Bytes::from_static(CHANNEL.as_bytes())],
            [] => return Outcome::One(confirmation("unsubscribe", Reply::Null, self.subscriptions())),
            names => names.to_vec(),
        };
        let mut replies = Vec::new();
        for name in names {
            if name.as_ref() == CHANNEL.as_bytes() {
                self.channel = subscribe;
            } else if subscribe {
                standing.refused(Refusal::Command);
                replies.push(Reply::Error(format!("ERR psyncd is a relay and carries no channel but {CHANNEL}")));
                continue;
            }
            let kind = if subscribe { "subscribe" } else { "unsubscribe" };
            replies.push(confirmation(kind, Reply::Bulk(name), self.subscriptions()));
        }
        self.relisten(standing);
        Outcome::Many(replies)
    }

    fn match_channels(&mut self, verb: &[u8], patterns: &[Bytes], standing: &dyn Standing) -> Outcome {
        let subscribe = verb == b"PSUBSCRIBE";
        let patterns = match patterns {
            [] if self.patterns.is_empty() => {
                return Outcome::One(confirmation("punsubscribe", Reply::Null, self.subscriptions()));
            }
            [] => self.patterns.iter().cloned().collect(),
            patterns => patterns.to_vec(),
        };
        let mut replies = Vec::new();
        for pattern in patterns {
            if subscribe && self.patterns.len() >= PATTERNS_MAX {
                replies.push(Reply::Error(format!("ERR psyncd takes {PATTERNS_MAX} patterns and no more")));
                continue;
            }
            let kind = if subscribe {
                self.patterns.insert(pattern.clone());
                "psubscribe"
            } else {
                self.patterns.remove(&pattern);
                "punsubscribe"
            };
            replies.push(confirmation(kind, Reply::Bulk(pattern), self.subscriptions()));
        }
        self.relisten(standing);
        Outcome::Many(replies)
    }

    fn subscriptions(&self) -> usize {
        usize::from(self.channel) + self.patterns.len()
    }

    fn relisten(&self, standing: &dyn Standing) {
        let patterns: Vec<Bytes> = self.patterns.iter().cloned().collect();
        standing.listen(self.resp, self.channel, &patterns);
    }
}

/// Every command that is answered with more than a refusal.
const KNOWN: [&[u8]; 24] = [
    b"PING",
    b"ECHO",
    b"AUTH",
    b"HELLO",
    b"SELECT",
    b"INFO",
    b"ROLE",
    b"REPLICAOF",
    b"SLAVEOF",
    b"MULTI",
    b"EXEC",
    b"DISCARD",
    b"WATCH",
    b"UNWATCH",
    b"CONFIG",
    b"CLIENT",
    b"COMMAND",
    b"PUBLISH",
    b"SUBSCRIBE",
    b"UNSUBSCRIBE",
    b"PSUBSCRIBE",
    b"PUNSUBSCRIBE",
    b"QUIT",
    b"RESET",
];

fn unserved(verb: &[u8], standing: &dyn Standing) -> Reply {
    let Portrait { master_host, master_port, .. } = standing.portrait();
    let verb = &verb[..verb.len().min(32)];
    Reply::Error(format!(
        "ERR psyncd is a relay and holds no data: '{}' is not served here; ask the master, {master_host}:{master_port}",
        verb.escape_ascii()
    ))
}

fn follow(host: &[u8], port: &[u8], standing: &dyn Standing) -> Reply {
    if host.eq_ignore_ascii_case(b"no") && port.eq_ignore_ascii_case(b"one") {
        standing.refused(Refusal::Promotion);
        return Reply::Error("ERR psyncd is a relay and cannot be promoted: it holds no data".into());
    }
    let texts = str::from_utf8(host).ok().zip(str::from_utf8(port).ok());
    let Some(address) = texts.and_then(|(host, port)| Address::tcp(host, port)) else {
        standing.refused(Refusal::Upstream);
        return Reply::Error("ERR Invalid master address or port".into());
    };
    match standing.follow(address) {
        Ok(Repointed::Moved) => Reply::OK,
        Ok(Repointed::Already) => Reply::Simple("OK Already connected to specified master"),
        Err(why) => Reply::Error(format!("ERR {why}")),
    }
}

fn config(word: &[u8], rest: &[Bytes], standing: &dyn Standing) -> Reply {
    match (word.to_ascii_uppercase().as_slice(), rest) {
        // What is followed is kept as soon as it changes.
        (b"REWRITE", []) => Reply::OK,
        (b"GET", [_, ..]) => {
            let portrait = standing.portrait();
            let port = portrait.port.to_string();
            let master = format!("{} {}", portrait.master_host, portrait.master_port);
            let values = [
                ("port", port.as_str()),
                ("replicaof", &master),
                ("slaveof", &master),
                ("replica-priority", "0"),
                ("slave-priority", "0"),
                ("replica-announced", "no"),
                ("replica-read-only", "yes"),
                ("slave-read-only", "yes"),
                ("save", ""),
                ("appendonly", "no"),
                ("databases", "16"),
            ];
            let wanted = |name: &str| rest.iter().any(|pattern| glob(&pattern.to_ascii_lowercase(), name.as_bytes()));
            let found = values.iter().filter(|(name, _)| wanted(name));
            Reply::Map(found.map(|(name, value)| (Reply::bulk(name), Reply::bulk(value))).collect())
        }
        (word, _) => {
            standing.refused(Refusal::Command);
            unserved(&[b"CONFIG ", word].concat(), standing)
        }
    }
}

fn confirmation(kind: &str, name: Reply, count: usize) -> Reply {
    Reply::Push(vec![Reply::bulk(kind), name, Reply::Int(count as i64)])
}

fn plain_name(name: &[u8]) -> Option<String> {
    let plain = name.len() <= NAME_MAX && name.iter().all(u8::is_ascii_graphic);
    if plain { str::from_utf8(name).ok().map(str::to_owned) } else { None }
}

fn bad_name() -> Reply {
    Reply::Error("ERR Client names cannot contain spaces, newlines or special characters.".into())
}

#[cfg(test)]
mod tests;
