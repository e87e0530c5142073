//! What a replica says before it asks, as a machine: commands in, replies and at last a request out.
//!
//! ```text
//!   PING ─▶ +PONG          REPLCONF ─▶ +OK | -ERR       anything else ─▶ -ERR
//!   PSYNC | SYNC ─▶ Request
//! ```
//!
//! Nothing but a PING, an AUTH and a psyncd's name is answered to whoever was not let in: everything else first makes
//! the caller ask, once, and is refused with what he heard if that is no. So no order of words gets an id, an offset
//! or a byte out of it.
//!
//! ```text
//!             judge               granted
//!   unknown ─────────▶ Step::Judge ─────▶ let in
//!      ▲                   │ refused
//!      └──── AUTH ─────────▼
//!                       kept out
//! ```
//!
//! The reply discipline is that of a master (replication.c `replconfCommand`): one line per command, in order, and the
//! pairs of a REPLCONF in front of an unknown one stay applied.

use bytes::Bytes;

use super::peers::Trust;
use crate::access::Verdict;
use crate::access::credentials::Credentials;
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
    standing: Standing,
    credentials: Option<Credentials>,
}

/// Whether it may have what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// Nobody was asked yet.
    Unknown,
    /// It may.
    LetIn,
    /// It may not; this is the answer.
    KeptOut(Bytes),
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
    /// Have these judged, tell [`Handshake::named`] what came of it, and send the answer.
    Auth(Credentials),
    /// Nobody knows yet whether it may. Have [`Handshake::credentials`] judged, tell [`Handshake::judged`], and give
    /// the same command again.
    Judge,
    /// Send what INFO says of our replication, and go on: a psyncd behind us asks.
    Info,
    /// It may not have what it asks for: send this, and close after a delay, because replicas come back at once.
    RefuseStranger(Bytes),
    /// The same, because the replica is we ourselves.
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
        Self { identity, said, standing: Standing::Unknown, credentials: None }
    }

    /// It named these before, and they were not refused.
    pub fn with_credentials(mut self, credentials: Option<Credentials>) -> Self {
        self.credentials = credentials;
        self
    }

    /// What it named last that was not refused.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// What came of judging what it named before, or nothing.
    pub fn judged(&mut self, verdict: Verdict) {
        self.standing = match verdict {
            Verdict::Granted => Standing::LetIn,
            Verdict::Failed(line) | Verdict::Refused(line) => Standing::KeptOut(line),
        };
    }

    /// What came of judging these, which it named just now; returns the answer to its AUTH. A wrong AUTH takes nothing
    /// away from whoever was let in, as in Redis.
    pub fn named(&mut self, credentials: Credentials, verdict: Verdict) -> Bytes {
        match verdict {
            Verdict::Failed(line) => line,
            verdict @ (Verdict::Granted | Verdict::Refused(_)) => {
                self.credentials = Some(credentials);
                self.judged(verdict);
                command::ok()
            }
        }
    }

    /// Whether it was let in.
    pub fn is_let_in(&self) -> bool {
        self.standing == Standing::LetIn
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
        let command = PeerCommand::parse(args);
        match command {
            PeerCommand::Ping => return Step::Reply(command::pong()),
            PeerCommand::Auth => {
                return match Credentials::of_auth(args) {
                    Some(named) => Step::Auth(named),
                    None => Step::Reply(command::error_line("ERR wrong number of arguments for 'auth' command")),
                };
            }
            PeerCommand::Replconf(ref options) if only_introduces_psyncd(options) => return self.replconf(options),
            PeerCommand::Other(name) if name.is_empty() => return Step::Reply(Bytes::new()),
            _ => {}
        }
        match (&self.standing, command) {
            (Standing::Unknown, _) => Step::Judge,
            // After an error to PSYNC a replica says SYNC on the same connection and takes what follows for a payload
            // (replication.c `slaveTryPartialResynchronization`), so these end it.
            (Standing::KeptOut(line), PeerCommand::Psync(_) | PeerCommand::Sync) => Step::RefuseStranger(line.clone()),
            (Standing::KeptOut(line), _) => Step::Reply(line.clone()),
            (Standing::LetIn, command) => self.obey(command),
        }
    }

    fn obey(&mut self, command: PeerCommand) -> Step {
        match command {
            PeerCommand::Info => Step::Info,
            PeerCommand::Replconf(options) => self.replconf(&options),
            PeerCommand::Psync(ask) if ask.kind == PsyncKind::Failover => Step::Promote,
            PeerCommand::Psync(ask) => Step::Asked(Request::Psync(ask.position())),
            PeerCommand::Sync => Step::Asked(Request::Sync),
            PeerCommand::Invalid(line) => Step::Reply(command::error_line(&line)),
            PeerCommand::Ping => Step::Reply(command::pong()),
            PeerCommand::Auth => Step::Reply(command::ok()),
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

/// Whether a REPLCONF is a psyncd's first word, by which it finds out that it called itself before it says more.
fn only_introduces_psyncd(options: &[ReplconfOption]) -> bool {
    !options.is_empty() && options.iter().all(|option| matches!(option, ReplconfOption::PsyncdId { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::resp::{FrameLimits, parse_command};

    const US: &str = "our-own-id";

    /// Runs inline commands, one a line, and returns the replies and the request.
    fn run(lines: &str) -> (Handshake, String, Option<Request>) {
        run_as(Verdict::Granted, lines)
    }

    fn failed() -> Verdict {
        Verdict::Failed(Bytes::from_static(b"-WRONGPASS\r\n"))
    }

    /// The same for one that is judged so as long as it names nothing.
    fn run_as(nameless: Verdict, lines: &str) -> (Handshake, String, Option<Request>) {
        let mut machine = Handshake::new(US.into(), "10.0.0.9".into());
        let mut replies = String::new();
        for line in lines.lines() {
            let text = format!("{line}\r\n");
            let (args, _) = parse_command(text.as_bytes(), &FrameLimits::HANDSHAKE).unwrap().unwrap();
            let mut step = machine.command(&args);
            if step == Step::Judge {
                machine.judged(nameless.clone());
                step = machine.command(&args);
            }
            match step {
                Step::Reply(bytes) => replies.push_str(str::from_utf8(&bytes).unwrap()),
                Step::RefuseStranger(bytes) | Step::RefuseLoop(bytes) => {
                    replies.push_str("closing: ");
                    replies.push_str(str::from_utf8(&bytes).unwrap());
                }
                Step::Auth(named) => {
                    let verdict = if named.password() == b"right" { Verdict::Granted } else { failed() };
                    replies.push_str(str::from_utf8(&machine.named(named, verdict)).unwrap());
                }
                Step::Judge => panic!("judged twice"),
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

    fn kept_out() -> Verdict {
        Verdict::Refused(Bytes::from_static(b"-NOAUTH\r\n"))
    }

    #[test]
    fn a_stranger_hears_nothing_but_no_in_any_order_of_words() {
        let words = "REPLCONF\nREPLCONF capa eof\nINFO replication\nPSYNC ? x\nREPLCONF psyncd-since 1\nGET a\n\
                     REPLCONF psyncd-id other,1 psyncd-since 1\nREPLCONF ack 1\nAUTH wrong\nREPLCONF getack *";
        let (machine, replies, request) = run_as(kept_out(), words);
        let expected = words.lines().map(|word| match word {
            "AUTH wrong" => "-WRONGPASS\r\n",
            _ => "-NOAUTH\r\n",
        });
        assert_eq!((replies, request), (expected.collect::<String>(), None));
        assert_eq!(machine.said(), Handshake::new(US.into(), "10.0.0.9".into()).said(), "nor does it change anything");
        for last in ["SYNC", "PSYNC ? -1", "PSYNC 0123456789abcdef0123456789abcdef01234567 5 FAILOVER"] {
            let (_, replies, request) = run_as(kept_out(), last);
            assert_eq!((replies.as_str(), request), ("closing: -NOAUTH\r\n", None), "{last}");
        }
    }

    #[test]
    fn the_right_password_opens_and_a_wrong_one_after_it_does_not_close() {
        let (_, replies, request) =
            run_as(kept_out(), "REPLCONF capa eof\nAUTH right\nREPLCONF capa eof\nAUTH wrong\nSYNC");
        assert_eq!(replies, "-NOAUTH\r\n+OK\r\n+OK\r\n-WRONGPASS\r\n");
        assert_eq!(request, Some(Request::Sync));
    }

    #[test]
    fn a_psyncd_learns_that_it_called_itself_before_it_is_judged() {
        let (_, replies, _) = run_as(kept_out(), &format!("REPLCONF psyncd-id {US},1"));
        assert!(replies.starts_with("closing: -ERR psyncd loop"), "{replies}");
        let (_, replies, _) = run_as(kept_out(), "REPLCONF psyncd-id other,1\nPING\nINFO");
        assert_eq!(replies, "+OK\r\n+PONG\r\n-NOAUTH\r\n");
    }
}
