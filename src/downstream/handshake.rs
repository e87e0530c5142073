//! What a replica says before it asks, as a machine: commands in, replies and at last a request out.
//!
//! ```text
//!   PING ─▶ +PONG          REPLCONF ─▶ +OK | -ERR       anything else ─▶ -ERR
//!   PSYNC | SYNC ─▶ Request
//! ```
//!
//! The reply discipline is that of PROTOCOL 1.1 to 1.4: one line per command, in order, and the pairs of a REPLCONF
//! in front of an unknown one stay applied.

use bytes::Bytes;

use super::peers::Trust;
use crate::relay::cursor::Follow;
use crate::relay::judge::PayloadAbility;
use crate::relay::replicas::Introduction;
use crate::repl::policy::MAX_HOPS;
use crate::repl::{Offset, Position, ServerVersion};
use crate::wire::command::{self, PeerCommand, PsyncKind, ReplconfOption, replconf_reply};
use crate::wire::resp::Args;

/// What is known of a replica so far.
#[derive(Debug, Clone)]
pub struct Handshake {
    identity: String,
    said: Said,
}

/// What a replica said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The address and port it wants to be known by, and its version.
    pub introduction: Introduction,
    /// Whether it announced any capability: replicas before 2.8.22 do not, and take an empty line for an answer.
    pub capabilities: Capabilities,
    /// How it can receive a payload.
    pub payload: PayloadAbility,
    /// Whether it can be told a new id.
    pub follow: Follow,
    /// Whether it wants a snapshot and no stream (`rdb-only`, redis-cli --rdb).
    pub wants: Wants,
    /// Its own id, if it is a psyncd (`psyncd-id`).
    pub psyncd: Option<String>,
    /// Whether it showed that it knows our password.
    pub trust: Trust,
    /// The oldest snapshot of use to it (`psyncd-since`): its own backlog begins there.
    pub since: Offset,
}

/// Whether a replica knows of capabilities at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capabilities {
    /// It announced none.
    None,
    /// It announced some.
    Some,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// A snapshot if need be, and the stream.
    Stream,
    /// A snapshot.
    SnapshotOnly,
}

/// How it asks, which decides how it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// `PSYNC` from this position, or for everything.
    Psync(Option<Position>),
    /// `SYNC`: no line before the payload, and no acknowledgement is owed.
    Sync,
}

/// What to do about a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this (nothing when empty) and go on.
    Reply(Bytes),
    /// Send +OK and go on; it named this password, which [`Handshake::trust`] may be worth.
    Password(Bytes),
    /// Send what INFO says of our replication, and go on: a psyncd behind us asks.
    Info,
    /// The replica is we ourselves: send this, and close after a delay, because replicas come back at once.
    RefuseLoop(Bytes),
    /// It is no replica but a master that wants another one in its place, which we cannot be: we hold no data set.
    Promote,
    /// The handshake is over.
    Asked(Request),
}

impl Said {
    /// What it will be known by when it comes back on another connection: the address it announced, or its id if it
    /// is a psyncd, which need not announce any. `None` for whoever says neither, like `redis-cli --rdb`.
    pub fn lasting_name(&self) -> Option<String> {
        match &self.psyncd {
            Some(id) => Some(id.clone()),
            None => (self.introduction.port > 0).then(|| self.introduction.to_string()),
        }
    }
}

impl Handshake {
    /// Nothing is known of a replica that called from `host`, except its address.
    pub fn new(identity: String, host: String) -> Self {
        let introduction = Introduction { host, port: 0, version: None };
        let said = Said {
            introduction,
            capabilities: Capabilities::None,
            payload: PayloadAbility::Length,
            follow: Follow::Bytes,
            wants: Wants::Stream,
            psyncd: None,
            trust: Trust::None,
            since: Offset::ZERO,
        };
        Self { identity, said }
    }

    /// What the replica has said so far.
    pub fn said(&self) -> &Said {
        &self.said
    }

    /// What a password it named was worth.
    pub fn trust(&mut self, trust: Trust) {
        self.said.trust = trust;
    }

    /// Takes one command.
    pub fn command(&mut self, args: &Args) -> Step {
        match PeerCommand::parse(args) {
            PeerCommand::Ping => Step::Reply(command::pong()),
            // Who may replicate is not asked yet; see the README's limits.
            PeerCommand::Auth => Step::Password(args.last().cloned().unwrap_or_default()),
            PeerCommand::Info => Step::Info,
            PeerCommand::Replconf(options) => self.replconf(&options),
            PeerCommand::Psync(ask) if ask.kind == PsyncKind::Failover => Step::Promote,
            PeerCommand::Psync(ask) => Step::Asked(Request::Psync(ask.position())),
            PeerCommand::Sync => Step::Asked(Request::Sync),
            PeerCommand::Invalid(line) => Step::Reply(command::error_line(&line)),
            PeerCommand::Other(name) if name.is_empty() => Step::Reply(Bytes::new()),
            PeerCommand::Other(name) => Step::Reply(command::error_line(&format!(
                "ERR psyncd serves replication on this connection, not '{name}'; open another one"
            ))),
        }
    }

    fn replconf(&mut self, options: &[ReplconfOption]) -> Step {
        for option in options {
            match option {
                ReplconfOption::ListeningPort(port) => self.said.introduction.port = *port,
                ReplconfOption::IpAddress(host) => self.said.introduction.host.clone_from(host),
                ReplconfOption::CapaEof => {
                    self.said.capabilities = Capabilities::Some;
                    self.said.payload = PayloadAbility::LengthOrMark;
                }
                ReplconfOption::CapaPsync2 => {
                    self.said.capabilities = Capabilities::Some;
                    self.said.follow = Follow::Id;
                }
                ReplconfOption::CapaOther(_) => self.said.capabilities = Capabilities::Some,
                ReplconfOption::Version(text) => self.said.introduction.version = ServerVersion::parse(text),
                ReplconfOption::RdbOnly => self.said.wants = Wants::SnapshotOnly,
                ReplconfOption::NotRdbOnly => self.said.wants = Wants::Stream,
                ReplconfOption::PsyncdSince(since) => self.said.since = *since,
                ReplconfOption::PsyncdId { id, .. } if *id == self.identity => {
                    return Step::RefuseLoop(command::error_line(
                        "ERR psyncd loop: this psyncd is its own upstream; point --upstream at the real master",
                    ));
                }
                ReplconfOption::PsyncdId { hops, .. } if *hops > MAX_HOPS => {
                    return Step::RefuseLoop(command::error_line(&format!(
                        "ERR psyncd loop: more than {MAX_HOPS} psyncd one behind the other"
                    )));
                }
                ReplconfOption::PsyncdId { id, .. } => self.said.psyncd = Some(id.clone()),
                ReplconfOption::Ack(_)
                | ReplconfOption::Fack(_)
                | ReplconfOption::GetAck
                | ReplconfOption::Ignored(_)
                | ReplconfOption::Unknown(_)
                | ReplconfOption::BadValue(_) => {}
            }
        }
        Step::Reply(replconf_reply(options).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::resp::{FrameLimits, parse_command};

    const US: &str = "our-own-id";

    /// Runs inline commands, one a line, and returns the replies and the request.
    fn run(lines: &str) -> (Handshake, String, Option<Request>) {
        let mut machine = Handshake::new(US.into(), "10.0.0.9".into());
        let mut replies = String::new();
        for line in lines.lines() {
            let text = format!("{line}\r\n");
            let (args, _) = parse_command(text.as_bytes(), &FrameLimits::HANDSHAKE).unwrap().unwrap();
            match machine.command(&args) {
                Step::Reply(bytes) => replies.push_str(str::from_utf8(&bytes).unwrap()),
                Step::RefuseLoop(bytes) => {
                    replies.push_str("closing: ");
                    replies.push_str(str::from_utf8(&bytes).unwrap());
                }
                Step::Password(_) => replies.push_str("+OK\r\n"),
                Step::Promote => replies.push_str("(promote)"),
                Step::Info => replies.push_str("(info)\r\n"),
                Step::Asked(request) => return (machine, replies, Some(request)),
            }
        }
        (machine, replies, None)
    }

    #[test]
    fn every_generation_s_handshake_ends_in_its_request() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        let (old, replies, request) = run("PING\nREPLCONF listening-port 7001\nPSYNC ? -1");
        assert_eq!((replies.as_str(), request), ("+PONG\r\n+OK\r\n", Some(Request::Psync(None))));
        assert_eq!(old.said().capabilities, Capabilities::None);
        assert_eq!(old.said().introduction.to_string(), "10.0.0.9:7001");

        let (new, replies, request) = run(&format!(
            "PING\nREPLCONF listening-port 7001\nREPLCONF ip-address replica-1\nREPLCONF capa eof capa psync2 capa dual-channel\nREPLCONF version 9.0.1\nPSYNC {id} 43"
        ));
        assert_eq!(replies, "+PONG\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n");
        assert_eq!(request, Some(Request::Psync(Some(Position::new(id.parse().unwrap(), Offset::new(42))))));
        let said = new.said();
        assert_eq!(said.introduction.to_string(), "replica-1:7001");
        assert_eq!(said.introduction.version, ServerVersion::parse("9.0.1"));
        assert_eq!((said.payload, said.follow), (PayloadAbility::LengthOrMark, Follow::Id));

        let (psyncd, replies, _) = run("REPLCONF rdb-only 1 psyncd-since 77");
        assert_eq!((psyncd.said().since, replies.as_str()), (Offset::new(77), "+OK\r\n"));
        assert_eq!(psyncd.said().lasting_name(), None);
        let (psyncd, ..) = run("REPLCONF psyncd-id other,1\nREPLCONF listening-port 7001");
        assert_eq!(psyncd.said().lasting_name().as_deref(), Some("other"));
        assert_eq!(new.said().lasting_name().as_deref(), Some("replica-1:7001"));

        let (cli, _, request) = run("REPLCONF rdb-only 1\nREPLCONF capa eof\nSYNC");
        assert_eq!((cli.said().wants, request), (Wants::SnapshotOnly, Some(Request::Sync)));
    }

    #[test]
    fn pairs_before_an_unknown_one_stay_applied() {
        let (machine, replies, _) = run("REPLCONF capa eof bogus x");
        assert_eq!(replies, "-ERR Unrecognized REPLCONF option: bogus\r\n");
        assert_eq!(machine.said().payload, PayloadAbility::LengthOrMark);
    }

    #[test]
    fn malformed_words_get_redis_s_errors_and_the_connection_goes_on() {
        let (_, replies, request) = run(
            "REPLCONF\nREPLCONF listening-port\nREPLCONF listening-port abc\nPSYNC x y\nGET a\nREPLCONF ack 5\nPING",
        );
        assert_eq!(
            replies,
            "+OK\r\n-ERR syntax error\r\n-ERR value is not an integer or out of range\r\n\
             -ERR value is not an integer or out of range\r\n\
             -ERR psyncd serves replication on this connection, not 'GET'; open another one\r\n+PONG\r\n"
        );
        assert_eq!(request, None);
    }

    #[test]
    fn we_never_become_our_own_replica_and_are_never_promoted() {
        let (_, replies, _) = run(&format!("REPLCONF psyncd-id {US},1"));
        assert!(replies.starts_with("closing: -ERR psyncd loop"), "{replies}");
        let (_, replies, _) = run("REPLCONF psyncd-id other,9");
        assert!(replies.starts_with("closing: -ERR psyncd loop"), "{replies}");
        let (_, replies, _) = run("REPLCONF psyncd-id other,8");
        assert_eq!(replies, "+OK\r\n");
        let (_, replies, _) = run("PSYNC 0123456789abcdef0123456789abcdef01234567 5 FAILOVER");
        assert_eq!(replies, "(promote)");
    }
}
