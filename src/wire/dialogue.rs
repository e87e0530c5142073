//! What we say to a master as its replica, and what we hear.
//!
//! Commands go out as arrays of bulks, which every server reads. Every reply must be read before PSYNC is
//! sent: a master refuses a PSYNC that stands behind an unsent reply (replication.c `syncCommand`). Our own reading of
//! the reply to PSYNC is stricter than Redis's: what Redis tolerates by guessing is
//! [`PsyncReply::Malformed`] here, because a guess about a history is a lie to every replica behind us.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use memchr::memmem;
use zeroize::Zeroizing;

use crate::repl::{Ack, Offset, Position, ReplId};

use super::resp::encode_command;
use super::text;

/// Whether a piece of the stream may ask for an ACK. It may be a value that says so, and where a piece begins or ends
/// within the word it is not found: good enough to be quick, while what is owed is for [`super::scan`] to tell.
pub fn may_ask(piece: &[u8]) -> bool {
    memmem::find(piece, b"GETACK").is_some()
}

/// The longest reply line of the handshake, in bytes without its end, for [`super::resp::parse_line`].
pub const REPLY_LINE_MAX: usize = 1023;

/// `PING`.
pub fn ping() -> Bytes {
    encode_command(&["PING"])
}

/// What we name to a server that asks who we are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// The default user where only a password is given; servers have users from 6.0 on.
    pub user: Option<String>,
    /// None: nothing is named.
    pub password: Option<Zeroizing<Vec<u8>>>,
}

impl Login {
    /// `AUTH`, if there is anything to name.
    pub fn auth(&self) -> Option<Bytes> {
        let password: &[u8] = self.password.as_ref()?;
        Some(match &self.user {
            Some(user) => encode_command(&[b"AUTH", user.as_bytes(), password]),
            None => encode_command(&[b"AUTH", password]),
        })
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// `INFO` of one section.
pub fn info(section: &str) -> Bytes {
    encode_command(&["INFO", section])
}

/// Whether a replica leaves evictions to its master (5.0 and later).
pub fn config_ignore_maxmemory() -> Bytes {
    encode_command(&["CONFIG", "GET", "replica-ignore-maxmemory"])
}

/// `CONFIG GET` of one setting.
pub fn config_get(name: &str) -> Bytes {
    encode_command(&["CONFIG", "GET", name])
}

/// The value in the reply to [`config_get`]: a list of the name and the value. `None` for an error or an empty list.
pub fn config_value(reply: &[u8]) -> Option<String> {
    let mut lines = reply.strip_prefix(b"*2\r\n$")?.split(|&byte| byte == b'\n').skip(3);
    let value = lines.next()?.strip_suffix(b"\r")?;
    Some(text::excerpt(value))
}

/// `CONFIG REWRITE`.
pub fn config_rewrite() -> Bytes {
    encode_command(&["CONFIG", "REWRITE"])
}

/// `CLIENT PAUSE` of writes (6.2 and later), which ends by itself after `time`.
pub fn pause_writes(time: Duration) -> Bytes {
    encode_command(&["CLIENT", "PAUSE", &time.as_millis().to_string(), "WRITE"])
}

/// `CLIENT UNPAUSE`.
pub fn unpause() -> Bytes {
    encode_command(&["CLIENT", "UNPAUSE"])
}

/// `REPLICAOF host port`.
pub fn replicaof(host: &str, port: u16) -> Bytes {
    encode_command(&["REPLICAOF", host, &port.to_string()])
}

/// The port the master shall list us with.
pub fn replconf_listening_port(port: u16) -> Bytes {
    encode_command(&["REPLCONF", "listening-port", &port.to_string()])
}

/// The address the master shall list us with (3.2.2 and later).
pub fn replconf_ip_address(address: &str) -> Bytes {
    encode_command(&["REPLCONF", "ip-address", address])
}

/// What we can do: take a payload that ends with a mark, and learn a new id. No second channel.
pub fn replconf_capa() -> Bytes {
    encode_command(&["REPLCONF", "capa", "eof", "capa", "psync2"])
}

/// The version we pretend to have, by which Valkey 9.1 and later choose the payload's format; others answer
/// an error that means nothing.
pub fn replconf_version(version: &str) -> Bytes {
    encode_command(&["REPLCONF", "version", version])
}

/// The connection wants a payload and no stream (6.2 and later).
pub fn replconf_rdb_only() -> Bytes {
    encode_command(&["REPLCONF", "rdb-only", "1"])
}

/// Who we are, for another psyncd to find loops; every real server answers an error that means nothing.
pub fn replconf_psyncd_id(id: &str, hops: u8) -> Bytes {
    encode_command(&["REPLCONF", "psyncd-id", &format!("{id},{hops}")])
}

/// `PSYNC` from behind what we have, or `PSYNC ? -1` for a full resync.
pub fn psync(position: Option<&Position>) -> Bytes {
    match position {
        Some(have) => encode_command(&["PSYNC", have.id.as_str(), &have.offset.forward(1).to_string()]),
        None => encode_command(&["PSYNC", "?", "-1"]),
    }
}

/// A snapshot older than `since` is of no use to us. Only another psyncd knows the option.
pub fn replconf_psyncd_since(since: Offset) -> Bytes {
    encode_command(&["REPLCONF", "psyncd-since", &since.to_string()])
}

/// We have the stream up to there. Never answered. The only thing besides nothing that may be said on a
/// live link: a reply to anything else would go into the stream, or end the link (networking.c
/// `_addReplyToBufferOrList`, 7.0).
pub fn ack(ack: Ack) -> Bytes {
    let offset = ack.offset.to_string();
    match ack.durable {
        None => encode_command(&["REPLCONF", "ACK", &offset]),
        Some(durable) => encode_command(&["REPLCONF", "ACK", &offset, "FACK", &durable.to_string()]),
    }
}

/// A master's reply to `PSYNC`. Texts come without their dash, printable and short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PsyncReply {
    /// The stream goes on from where we asked, under this id, or under the one we asked with.
    Continue(Option<ReplId>),
    /// A payload that stands for the stream up to here follows.
    FullResync(Position),
    /// An empty line: the master is working on it.
    Wait,
    /// The master cannot at the moment; ask again in a while, nothing is lost.
    NotNow(String),
    /// The master does not let us.
    Denied(String),
    /// The peer does not know `PSYNC`.
    UnknownCommand(String),
    /// Any other error.
    Error(String),
    /// No reply to `PSYNC` that we can trust.
    Malformed(String),
}

/// Reads the reply to `PSYNC`, given without its line end.
pub fn parse_psync_reply(line: &[u8]) -> PsyncReply {
    let malformed = || PsyncReply::Malformed(text::excerpt(line));
    match line {
        [] => PsyncReply::Wait,
        [b'-', error @ ..] => parse_psync_error(error),
        b"+CONTINUE" => PsyncReply::Continue(None),
        _ => {
            if let Some(id) = line.strip_prefix(b"+CONTINUE ") {
                return ReplId::from_ascii(id).map_or_else(malformed, |id| PsyncReply::Continue(Some(id)));
            }
            line.strip_prefix(b"+FULLRESYNC ")
                .and_then(|rest| rest.split_at_checked(ReplId::LEN))
                .and_then(|(id, rest)| {
                    let offset = text::natural(rest.strip_prefix(b" ")?)?;
                    Some(PsyncReply::FullResync(Position::new(ReplId::from_ascii(id)?, Offset::new(offset))))
                })
                .unwrap_or_else(malformed)
        }
    }
}

fn parse_psync_error(error: &[u8]) -> PsyncReply {
    let reason = text::excerpt(error);
    match first_word(error) {
        b"NOMASTERLINK" | b"LOADING" | b"MASTERDOWN" | b"BUSY" | b"MISCONF" | b"TRYAGAIN" => PsyncReply::NotNow(reason),
        b"NOAUTH" | b"NOPERM" | b"WRONGPASS" | b"DENIED" => PsyncReply::Denied(reason),
        // What NOMASTERLINK was called up to 3.2.
        b"ERR" if error.starts_with(b"ERR Can't SYNC") => PsyncReply::NotNow(reason),
        b"ERR" if error.starts_with(b"ERR max number of clients") => PsyncReply::NotNow(reason),
        b"ERR" if error.starts_with(b"ERR operation not permitted") => PsyncReply::Denied(reason),
        b"ERR" if error.starts_with(b"ERR unknown command") => PsyncReply::UnknownCommand(reason),
        _ => PsyncReply::Error(reason),
    }
}

/// A master's reply to the `PING` that opens a handshake. Texts come without their dash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PingReply {
    /// Go on.
    Pong,
    /// Go on; the master wants a password first, or does not let this user `PING`.
    AuthNeeded,
    /// The master cannot or will not at the moment: loading, busy, not writable, full.
    Refused(String),
    /// Another psyncd that has nothing to serve yet, or has found a loop.
    Psyncd(String),
}

/// Reads the reply to `PING`, given without its line end, as redis replication.c, `syncWithMaster` does:
/// any status is a pong, a missing password is no obstacle yet, every other error ends the attempt.
pub fn parse_ping_reply(line: &[u8]) -> PingReply {
    let error = match line {
        [b'+', ..] => return PingReply::Pong,
        [b'-', error @ ..] => error,
        other => return PingReply::Refused(text::excerpt(other)),
    };
    match first_word(error) {
        b"NOAUTH" | b"NOPERM" => PingReply::AuthNeeded,
        b"ERR" if error.starts_with(b"ERR operation not permitted") => PingReply::AuthNeeded,
        b"ERR" if error.starts_with(b"ERR psyncd") => PingReply::Psyncd(text::excerpt(error)),
        _ => PingReply::Refused(text::excerpt(error)),
    }
}

/// Why a master refused `AUTH` or a `REPLCONF`, or `None` when it answered a status. A refused `REPLCONF`
/// means only that the server is older than the option.
pub fn refusal(line: &[u8]) -> Option<String> {
    match line {
        [b'+', ..] => None,
        [b'-', error @ ..] => Some(text::excerpt(error)),
        other => Some(text::excerpt(other)),
    }
}

fn first_word(error: &[u8]) -> &[u8] {
    error.split(|&byte| byte == b' ').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "8de1787ba490483314a4d30f1c628bc5025eb761";

    fn id() -> ReplId {
        ID.parse().unwrap()
    }

    #[test]
    fn a_setting_s_value_is_read_and_nothing_else_is() {
        let value = |reply: &str| config_value(reply.as_bytes());
        assert_eq!(value("*2\r\n$19\r\nreplica-announce-ip\r\n$9\r\n10.0.0.11\r\n").as_deref(), Some("10.0.0.11"));
        assert_eq!(value("*2\r\n$19\r\nreplica-announce-ip\r\n$0\r\n\r\n").as_deref(), Some(""));
        assert_eq!(value("*0\r\n"), None);
        assert_eq!(value("-NOPERM this user has no permissions\r\n"), None);
    }

    #[test]
    fn what_we_say_is_byte_for_byte_what_a_replica_says() {
        assert_eq!(ping(), "*1\r\n$4\r\nPING\r\n");
        let auth = |user: Option<&str>, password: Option<&[u8]>| {
            Login { user: user.map(str::to_owned), password: password.map(|word| word.to_vec().into()) }.auth()
        };
        assert_eq!(auth(None, Some(b"p w")).unwrap(), "*2\r\n$4\r\nAUTH\r\n$3\r\np w\r\n");
        assert_eq!(auth(Some("u"), Some(b"p")).unwrap(), "*3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$1\r\np\r\n");
        assert_eq!(auth(Some("u"), None), None);
        assert_eq!(info("replication"), "*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n");
        assert_eq!(replconf_listening_port(6380), "*3\r\n$8\r\nREPLCONF\r\n$14\r\nlistening-port\r\n$4\r\n6380\r\n");
        assert_eq!(
            replconf_capa(),
            "*5\r\n$8\r\nREPLCONF\r\n$4\r\ncapa\r\n$3\r\neof\r\n$4\r\ncapa\r\n$6\r\npsync2\r\n"
        );
        assert_eq!(replconf_rdb_only(), "*3\r\n$8\r\nREPLCONF\r\n$8\r\nrdb-only\r\n$1\r\n1\r\n");
        assert_eq!(replconf_version("8.0.1"), "*3\r\n$8\r\nREPLCONF\r\n$7\r\nversion\r\n$5\r\n8.0.1\r\n");
        assert_eq!(replconf_ip_address("a"), "*3\r\n$8\r\nREPLCONF\r\n$10\r\nip-address\r\n$1\r\na\r\n");
        assert_eq!(replconf_psyncd_id("x", 2), "*3\r\n$8\r\nREPLCONF\r\n$9\r\npsyncd-id\r\n$3\r\nx,2\r\n");
        assert_eq!(psync(None), "*3\r\n$5\r\nPSYNC\r\n$1\r\n?\r\n$2\r\n-1\r\n");
        let there = Ack { offset: Offset::new(42), durable: None };
        assert_eq!(ack(there), "*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$2\r\n42\r\n");
    }

    #[test]
    fn we_ask_for_the_byte_behind_what_we_have() {
        let have = Position::new(id(), Offset::new(99));
        assert_eq!(psync(Some(&have)), format!("*3\r\n$5\r\nPSYNC\r\n$40\r\n{ID}\r\n$3\r\n100\r\n"));
    }

    #[test]
    fn well_formed_replies_to_psync_are_understood() {
        let upper = ID.to_uppercase();
        for (line, reply) in [
            (String::new(), PsyncReply::Wait),
            ("+CONTINUE".into(), PsyncReply::Continue(None)),
            (format!("+CONTINUE {ID}"), PsyncReply::Continue(Some(id()))),
            (format!("+CONTINUE {upper}"), PsyncReply::Continue(Some(id()))),
            (format!("+FULLRESYNC {ID} 0"), PsyncReply::FullResync(Position::new(id(), Offset::ZERO))),
            (format!("+FULLRESYNC {ID} 1234"), PsyncReply::FullResync(Position::new(id(), Offset::new(1234)))),
        ] {
            assert_eq!(parse_psync_reply(line.as_bytes()), reply, "{line}");
        }
    }

    #[test]
    fn what_redis_would_guess_about_is_malformed() {
        for line in [
            "+continue".to_owned(),
            "+CONTINUE ".into(),
            format!("+CONTINUE {ID} "),
            format!("+CONTINUE {}", &ID[1..]),
            format!("+CONTINUE {ID}0"),
            "+FULLRESYNC".into(),
            "+FULLRESYNC  0".into(),
            format!("+FULLRESYNC {ID}"),
            format!("+FULLRESYNC {ID} "),
            format!("+FULLRESYNC {ID}  5"),
            format!("+FULLRESYNC {ID} -1"),
            format!("+FULLRESYNC {ID} 5 "),
            format!("+FULLRESYNC {ID} 05"),
            format!("+FULLRESYNC {} 5", &ID[1..]),
            "+RDBCHANNELSYNC 12".into(),
            "+DUALCHANNELSYNC".into(),
            "+OK".into(),
            "$189".into(),
            "*1".into(),
        ] {
            let reply = parse_psync_reply(line.as_bytes());
            assert!(matches!(reply, PsyncReply::Malformed(_)), "{line:?} {reply:?}");
        }
    }

    #[test]
    fn refusals_of_psync_are_told_apart() {
        for line in [
            "-NOMASTERLINK Can't SYNC while not connected with my master",
            "-ERR Can't SYNC while not connected with my master",
            "-LOADING Redis is loading the dataset in memory",
            "-MASTERDOWN Link with MASTER is down",
            "-BUSY Redis is busy running a script",
            "-ERR max number of clients reached",
        ] {
            assert_eq!(parse_psync_reply(line.as_bytes()), PsyncReply::NotNow(line[1..].into()));
        }
        for line in [
            "-NOAUTH Authentication required.",
            "-NOPERM this user has no permissions to run the 'psync' command",
            "-WRONGPASS invalid username-password pair or user is disabled.",
            "-DENIED Redis is running in protected mode",
            "-ERR operation not permitted",
        ] {
            assert_eq!(parse_psync_reply(line.as_bytes()), PsyncReply::Denied(line[1..].into()));
        }
        assert!(matches!(parse_psync_reply(b"-ERR unknown command 'PSYNC'"), PsyncReply::UnknownCommand(_)));
        assert!(matches!(parse_psync_reply(b"-ERR value is not an integer or out of range"), PsyncReply::Error(_)));
        assert!(matches!(parse_psync_reply(b"-LOADINGX"), PsyncReply::Error(_)));
        assert!(matches!(parse_psync_reply(b"-"), PsyncReply::Error(_)));
    }

    #[test]
    fn a_ping_goes_on_unless_the_master_cannot() {
        for line in ["+PONG", "+OK", "+"] {
            assert_eq!(parse_ping_reply(line.as_bytes()), PingReply::Pong);
        }
        for line in ["-NOAUTH Authentication required.", "-NOPERM no", "-ERR operation not permitted"] {
            assert_eq!(parse_ping_reply(line.as_bytes()), PingReply::AuthNeeded);
        }
        for line in
            ["-LOADING x", "-MISCONF x", "-BUSY x", "-MASTERDOWN x", "-DENIED x", "-ERR max number of clients reached"]
        {
            assert_eq!(parse_ping_reply(line.as_bytes()), PingReply::Refused(line[1..].into()));
        }
        assert_eq!(
            parse_ping_reply(b"-ERR psyncd has no data yet"),
            PingReply::Psyncd("ERR psyncd has no data yet".into())
        );
        for odd in ["", "$4", "HTTP/1.1 400 Bad Request"] {
            assert!(matches!(parse_ping_reply(odd.as_bytes()), PingReply::Refused(_)), "{odd:?}");
        }
    }

    #[test]
    fn a_status_is_no_refusal() {
        assert_eq!(refusal(b"+OK"), None);
        assert_eq!(refusal(b"-WRONGPASS no").as_deref(), Some("WRONGPASS no"));
        assert_eq!(refusal(b"").as_deref(), Some(""));
    }

    proptest! {
        #[test]
        fn any_line_gets_some_reading(line in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            "[+-](CONTINUE|FULLRESYNC|ERR|NOAUTH)[ 0-9a-f]{0,60}".prop_map(String::into_bytes),
        ]) {
            let _ = (parse_psync_reply(&line), parse_ping_reply(&line), refusal(&line));
        }
    }
}
