//! What a peer says to us as to a master, and what we answer.
//!
//! Words compare without regard to case, everywhere, as in Redis. The reading is as tolerant as a real
//! master's and no more (replication.c `replconfCommand`, `syncCommand`): an unknown capability is fine, an unknown
//! option is an error that leaves the options before it applied.
//!
//! Every word a replica may say stands here beside its answer; the table of both is half of the file.

use bytes::Bytes;

use crate::repl::{Offset, Position, ReplId};

use super::resp::Args;
use super::text;

/// Longest error line we send, in bytes with its dash and its CRLF. A replica reads a line into 256 bytes
/// and takes what is longer for two replies (redis syncio.c, `syncReadLine`).
const ERROR_LINE_MAX: usize = 254;
/// Longest host name or address of a replica (redis config.c, `NET_HOST_STR_LEN`).
const HOST_MAX: usize = 255;
/// Longest version and longest psyncd id.
const NAME_MAX: usize = 64;

const NOT_AN_INTEGER: &str = "-ERR value is not an integer or out of range";

/// One command of a peer that may be a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerCommand {
    /// `PING`.
    Ping,
    /// `AUTH`, its words left to whoever knows the passwords.
    Auth,
    /// `INFO`, of whatever section.
    Info,
    /// `REPLCONF`: its options, to be applied from left to right. [`replconf_reply`] has the answer.
    Replconf(Vec<ReplconfOption>),
    /// `PSYNC`.
    Psync(PsyncAsk),
    /// `SYNC`, the request of replicas that never heard of PSYNC or gave it up.
    Sync,
    /// Any other command, by its name in upper case; an empty name for a command without words.
    Other(String),
    /// A command with wrong arguments: the exact error line to answer, without line end.
    Invalid(String),
}

/// One option of `REPLCONF`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplconfOption {
    /// The port the replica wants to be known by; 0 when it has none.
    ListeningPort(u16),
    /// The address the replica wants to be known by: 1 to 255 printable ASCII characters without blanks,
    /// commas, quotes and backslashes, so it can be echoed into an INFO line.
    IpAddress(String),
    /// The replica takes a payload that ends with a mark.
    CapaEof,
    /// The replica learns a new id from `+CONTINUE`.
    CapaPsync2,
    /// Another capability, in lower case; we need none and all are accepted.
    CapaOther(String),
    /// The replica's own version (Valkey 8.0 and later): digits and dots, 64 bytes at most.
    Version(String),
    /// The connection wants a payload and no stream behind it.
    RdbOnly,
    /// The connection is an ordinary replica after all.
    NotRdbOnly,
    /// The replica has applied the stream up to here. Never answered. What cannot be read counts as the
    /// beginning of the stream, which changes nothing of what is known of the replica.
    Ack(Offset),
    /// The replica has the stream up to here in its append-only file. Comes only behind [`Self::Ack`].
    Fack(Offset),
    /// A master's question that only a replica answers. Never answered by us as a master.
    GetAck,
    /// Another psyncd: `psyncd-id <id>,<hops>`, ours alone, for finding loops.
    PsyncdId {
        /// Letters, digits, `-`, `_` and `.`; 64 bytes at most.
        id: String,
        /// How many psyncd's stand between the speaker and its master.
        hops: u8,
    },
    /// A psyncd that wants a snapshot its own backlog reaches back to: `psyncd-since <offset>`, ours alone.
    PsyncdSince(Offset),
    /// An option that is accepted and changes nothing, by its name in lower case.
    Ignored(String),
    /// An option we do not know, by its name as given. The last of its list.
    Unknown(String),
    /// A value that cannot be: the exact error line to answer, without line end. The last of its list.
    BadValue(String),
}

/// What a `PSYNC` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PsyncAsk {
    id: Option<ReplId>,
    /// As on the wire: the number of the first byte wanted, from 1.
    next_byte: i64,
    /// Whether it asks for more than a resync.
    pub kind: PsyncKind,
}

/// Why a `PSYNC` was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PsyncKind {
    /// To replicate.
    Plain,
    /// By a master in `FAILOVER`, to make the asked one a master (6.2 and later).
    Failover,
}

impl PsyncAsk {
    /// A request from `position`, or for a full resync.
    pub fn new(position: Option<Position>, kind: PsyncKind) -> Self {
        let next_byte = position.map_or(-1, |p| i64::try_from(p.offset.forward(1).get()).unwrap_or(i64::MAX));
        Self { id: position.map(|p| p.id), next_byte, kind }
    }

    /// What the peer has. `None` for `?`, for an id that is none, and for a byte before the first: such a
    /// peer must start over, and must never be told to continue: it has no cached master and would crash (replication.c
    /// `replicationResurrectCachedMaster`; seen on 3.2 to 8.2 and Valkey 8.1 to 9.1).
    pub fn position(&self) -> Option<Position> {
        let have = u64::try_from(self.next_byte.checked_sub(1)?).ok()?;
        Some(Position::new(self.id?, Offset::new(have)))
    }

    /// The id asked for, even if no position came with it; `None` for `?` and for what is no id.
    pub fn id(&self) -> Option<ReplId> {
        self.id
    }
}

impl PeerCommand {
    /// Reads a command.
    pub fn parse(args: &Args) -> PeerCommand {
        let Some((name, args)) = args.split_first() else { return PeerCommand::Other(String::new()) };
        match name.to_ascii_uppercase().as_slice() {
            b"PING" => PeerCommand::Ping,
            b"AUTH" => PeerCommand::Auth,
            b"INFO" => PeerCommand::Info,
            b"REPLCONF" => parse_replconf(args),
            b"PSYNC" => parse_psync(args),
            b"SYNC" if args.is_empty() => PeerCommand::Sync,
            b"SYNC" => PeerCommand::Invalid("-ERR wrong number of arguments for 'sync' command".into()),
            other => PeerCommand::Other(text::excerpt(other)),
        }
    }
}

fn parse_psync(args: &[Bytes]) -> PeerCommand {
    let [id, next_byte, rest @ ..] = args else {
        return PeerCommand::Invalid("-ERR wrong number of arguments for 'psync' command".into());
    };
    let Some(next_byte) = text::integer(next_byte) else { return PeerCommand::Invalid(NOT_AN_INTEGER.into()) };
    // Any other fourth word is ignored (redis 6.2 replication.c, `syncCommand`).
    let kind = match rest.first() {
        Some(word) if word.eq_ignore_ascii_case(b"failover") => PsyncKind::Failover,
        Some(_) | None => PsyncKind::Plain,
    };
    PeerCommand::Psync(PsyncAsk { id: ReplId::from_ascii(id), next_byte, kind })
}

fn parse_replconf(args: &[Bytes]) -> PeerCommand {
    let (pairs, []) = args.as_chunks::<2>() else { return PeerCommand::Invalid("-ERR syntax error".into()) };
    let mut options = Vec::with_capacity(pairs.len());
    for (at, [name, value]) in pairs.iter().enumerate() {
        let option = parse_option(name, value);
        let is_last = option.ends_list();
        let is_ack = matches!(option, ReplconfOption::Ack(_));
        options.push(option);
        // Nothing behind an ACK is looked at but a FACK (redis 7.2 replication.c, `replconfCommand`).
        if is_ack
            && let Some([name, value]) = pairs.get(at + 1)
            && name.eq_ignore_ascii_case(b"fack")
            && let Some(offset) = text::natural(value)
        {
            options.push(ReplconfOption::Fack(Offset::new(offset)));
        }
        if is_last {
            break;
        }
    }
    PeerCommand::Replconf(options)
}

fn parse_option(name: &[u8], value: &[u8]) -> ReplconfOption {
    use ReplconfOption as Is;
    match name.to_ascii_lowercase().as_slice() {
        b"listening-port" => match text::integer(value).and_then(|port| u16::try_from(port).ok()) {
            Some(port) => Is::ListeningPort(port),
            None => Is::BadValue(NOT_AN_INTEGER.into()),
        },
        b"ip-address" => parse_address(value),
        b"capa" => match value.to_ascii_lowercase().as_slice() {
            b"eof" => Is::CapaEof,
            b"psync2" => Is::CapaPsync2,
            other => Is::CapaOther(text::excerpt(other)),
        },
        b"version" => match name_of(value, |byte| byte.is_ascii_digit() || byte == b'.') {
            Some(version) => Is::Version(version),
            None => Is::BadValue(format!("-ERR Unrecognized version format: {}", text::excerpt(value))),
        },
        b"rdb-only" => match text::integer(value) {
            Some(0) => Is::NotRdbOnly,
            Some(1) => Is::RdbOnly,
            Some(_) => Is::BadValue("-ERR value is out of range, value must between 0 and 1".into()),
            None => Is::BadValue(NOT_AN_INTEGER.into()),
        },
        b"ack" => Is::Ack(Offset::new(text::natural(value).unwrap_or(0))),
        b"getack" => Is::GetAck,
        b"psyncd-id" => match parse_psyncd_id(value) {
            Some((id, hops)) => Is::PsyncdId { id, hops },
            None => Is::BadValue("-ERR psyncd-id wants <id>,<hops>".into()),
        },
        b"psyncd-since" => match text::natural(value) {
            Some(offset) => Is::PsyncdSince(Offset::new(offset)),
            None => Is::BadValue(NOT_AN_INTEGER.into()),
        },
        ignored @ (b"set-cluster-node-id" | b"rdb-no-compress" | b"rdb-no-checksum") => {
            Is::Ignored(text::excerpt(ignored))
        }
        // Also the second-channel options (`rdb-channel` and its like) and `rdb-filter-only`: an error sends
        // a replica back to the one channel we serve.
        _ => Is::Unknown(text::excerpt(name)),
    }
}

fn parse_address(value: &[u8]) -> ReplconfOption {
    if value.len() > HOST_MAX {
        let len = value.len();
        return ReplconfOption::BadValue(format!(
            "-ERR REPLCONF ip-address provided by replica instance is too long: {len} bytes"
        ));
    }
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b',' | b'"' | b'\'' | b'`' | b'\\');
    match str::from_utf8(value) {
        Ok(address) if !value.is_empty() && value.iter().copied().all(plain) => {
            ReplconfOption::IpAddress(address.to_owned())
        }
        Ok(_) | Err(_) => {
            ReplconfOption::BadValue("-ERR REPLCONF ip-address provided by replica instance is no address".into())
        }
    }
}

fn parse_psyncd_id(value: &[u8]) -> Option<(String, u8)> {
    let comma = value.iter().rposition(|&byte| byte == b',')?;
    let id = name_of(&value[..comma], |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))?;
    let hops = text::integer(&value[comma + 1..]).and_then(|hops| u8::try_from(hops).ok())?;
    Some((id, hops))
}

/// `value` as text when it is neither empty nor long and every byte is `allowed`.
fn name_of(value: &[u8], allowed: impl Fn(u8) -> bool) -> Option<String> {
    let fits = (1..=NAME_MAX).contains(&value.len()) && value.iter().copied().all(allowed);
    if fits { str::from_utf8(value).ok().map(str::to_owned) } else { None }
}

impl ReplconfOption {
    /// The error line to answer because of this option, without line end.
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Unknown(name) => Some(format!("-ERR Unrecognized REPLCONF option: {name}")),
            Self::BadValue(line) => Some(line.clone()),
            _ => None,
        }
    }

    /// Whether nothing behind this option is applied.
    fn ends_list(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::BadValue(_) | Self::Ack(_) | Self::GetAck)
    }
}

/// What a master answers to a `REPLCONF` with these options: nothing to an ACK or a GETACK, else one line.
pub fn replconf_reply(options: &[ReplconfOption]) -> Option<Bytes> {
    let silent = |option: &ReplconfOption| {
        matches!(option, ReplconfOption::Ack(_) | ReplconfOption::Fack(_) | ReplconfOption::GetAck)
    };
    if options.iter().any(silent) {
        return None;
    }
    Some(match options.last().and_then(ReplconfOption::error) {
        Some(line) => error_line(&line),
        None => ok(),
    })
}

/// `+OK`.
pub fn ok() -> Bytes {
    Bytes::from_static(b"+OK\r\n")
}

/// `+PONG`.
pub fn pong() -> Bytes {
    Bytes::from_static(b"+PONG\r\n")
}

/// The empty line that keeps a waiting replica patient. Legal only between its PSYNC and our payload
/// header: before it is taken for a reply, behind it for data.
pub fn keepalive() -> Bytes {
    Bytes::from_static(b"\n")
}

/// An error line, with or without its leading dash in `text`. Control characters become blanks and the
/// whole is cut below 255 bytes, whatever `text` quotes of a peer.
pub fn error_line(text: &str) -> Bytes {
    let text = text.strip_prefix('-').unwrap_or(text);
    let mut line = String::with_capacity(ERROR_LINE_MAX);
    line.push('-');
    for letter in text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }) {
        if line.len() + letter.len_utf8() + 2 > ERROR_LINE_MAX {
            break;
        }
        line.push(letter);
    }
    line.push_str("\r\n");
    Bytes::from(line)
}

/// `+CONTINUE`, with the id for replicas that said `capa psync2` and without it for all others.
pub fn continue_reply(id: Option<ReplId>) -> Bytes {
    match id {
        Some(id) => Bytes::from(format!("+CONTINUE {id}\r\n")),
        None => Bytes::from_static(b"+CONTINUE\r\n"),
    }
}

/// `+FULLRESYNC`: a payload that stands for the stream up to `position` follows.
pub fn full_resync(position: Position) -> Bytes {
    Bytes::from(format!("+FULLRESYNC {} {}\r\n", position.id, position.offset))
}

/// The header of a payload of `len` bytes. Nothing stands between the payload and the stream.
pub fn payload_header_len(len: u64) -> Bytes {
    Bytes::from(format!("${len}\r\n"))
}

/// The header of a payload that ends with `mark`. Nothing may follow the mark before the first ACK.
pub fn payload_header_eof(mark: &[u8; 40]) -> Bytes {
    Bytes::from([b"$EOF:".as_slice(), mark, b"\r\n"].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::resp::{FrameLimits, encode_command, parse_command};
    use proptest::prelude::*;

    const ID: &str = "8de1787ba490483314a4d30f1c628bc5025eb761";

    fn said(line: &str) -> PeerCommand {
        let input = format!("{line}\r\n");
        PeerCommand::parse(&parse_command(input.as_bytes(), &FrameLimits::HANDSHAKE).unwrap().unwrap().0)
    }

    fn options(line: &str) -> Vec<ReplconfOption> {
        match said(line) {
            PeerCommand::Replconf(options) => options,
            other => panic!("{other:?}"),
        }
    }

    fn reply(line: &str) -> Option<String> {
        replconf_reply(&options(line)).map(|line| String::from_utf8(line.to_vec()).unwrap())
    }

    fn ask(line: &str) -> PsyncAsk {
        match said(line) {
            PeerCommand::Psync(ask) => ask,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_handshakes_of_all_generations_are_understood() {
        assert_eq!(said("PING"), PeerCommand::Ping);
        assert_eq!(said("ping"), PeerCommand::Ping);
        assert_eq!(said("AUTH user secret"), PeerCommand::Auth);
        assert_eq!(said("SYNC"), PeerCommand::Sync);
        assert_eq!(options("REPLCONF listening-port 6380"), [ReplconfOption::ListeningPort(6380)]);
        assert_eq!(
            options("REPLCONF capa eof capa psync2 capa rdb-channel-repl"),
            [ReplconfOption::CapaEof, ReplconfOption::CapaPsync2, ReplconfOption::CapaOther("rdb-channel-repl".into())]
        );
        assert_eq!(options("REPLCONF version 9.0.4"), [ReplconfOption::Version("9.0.4".into())]);
        assert_eq!(
            options("REPLCONF rdb-no-compress 1 rdb-no-checksum 1"),
            [ReplconfOption::Ignored("rdb-no-compress".into()), ReplconfOption::Ignored("rdb-no-checksum".into())]
        );
        assert_eq!(said("GeT x"), PeerCommand::Other("GET".into()));
        assert_eq!(PeerCommand::parse(&Args::new()), PeerCommand::Other(String::new()));
    }

    #[test]
    fn replconf_without_options_is_fine_and_an_unpaired_option_is_not() {
        assert_eq!(reply("REPLCONF").as_deref(), Some("+OK\r\n"));
        assert_eq!(said("REPLCONF listening-port"), PeerCommand::Invalid("-ERR syntax error".into()));
    }

    #[test]
    fn options_before_an_unknown_one_stay_applied() {
        assert_eq!(
            options("REPLCONF capa eof bogus x capa psync2"),
            [ReplconfOption::CapaEof, ReplconfOption::Unknown("bogus".into())]
        );
        assert_eq!(reply("REPLCONF capa eof bogus x").as_deref(), Some("-ERR Unrecognized REPLCONF option: bogus\r\n"));
        assert_eq!(reply("REPLCONF capa whatever").as_deref(), Some("+OK\r\n"));
    }

    #[test]
    fn the_second_channel_is_not_offered() {
        for option in ["rdb-channel", "main-ch-client-id", "set-rdb-client-id", "rdb-filter-only"] {
            assert_eq!(options(&format!("REPLCONF {option} 1")), [ReplconfOption::Unknown(option.into())]);
        }
    }

    #[test]
    fn a_port_must_be_one() {
        for bad in ["abc", "65536", "-1", "+5", ""] {
            let line = format!("REPLCONF listening-port \"{bad}\"");
            assert_eq!(reply(&line).as_deref(), Some("-ERR value is not an integer or out of range\r\n"), "{bad:?}");
        }
        assert_eq!(options("REPLCONF listening-port 0"), [ReplconfOption::ListeningPort(0)]);
    }

    #[test]
    fn an_address_that_could_break_an_info_line_is_refused() {
        for good in ["10.0.0.1", "fe80::1%eth0", "redis-0.redis.svc", &"h".repeat(255)] {
            assert_eq!(options(&format!("REPLCONF ip-address {good}")), [ReplconfOption::IpAddress(good.to_owned())]);
        }
        for bad in ["", "a b", "a,port=1", "a\\r\\nrole:master", "a\\x00", "a\\\"", "\\xff\\xfe", &"h".repeat(256)] {
            let options = options(&format!("REPLCONF ip-address \"{bad}\""));
            assert!(matches!(options[..], [ReplconfOption::BadValue(_)]), "{bad:?} {options:?}");
        }
    }

    #[test]
    fn an_ack_is_never_answered_and_ends_its_command() {
        assert_eq!(options("REPLCONF ACK 42"), [ReplconfOption::Ack(Offset::new(42))]);
        assert_eq!(
            options("REPLCONF ack 42 fack 7"),
            [ReplconfOption::Ack(Offset::new(42)), ReplconfOption::Fack(Offset::new(7))]
        );
        assert_eq!(options("REPLCONF ACK 42 bogus x"), [ReplconfOption::Ack(Offset::new(42))]);
        for silent in
            ["REPLCONF ACK 0", "REPLCONF ACK x", "REPLCONF ACK -5", "REPLCONF ACK 1 FACK x", "REPLCONF GETACK *"]
        {
            assert_eq!(reply(silent), None, "{silent}");
        }
        assert_eq!(options("REPLCONF ACK -5"), [ReplconfOption::Ack(Offset::ZERO)]);
        assert_eq!(options("REPLCONF FACK 5"), [ReplconfOption::Unknown("FACK".into())]);
    }

    #[test]
    fn another_psyncd_says_who_it_is_and_how_far_up() {
        assert_eq!(options("REPLCONF psyncd-id a1-b2,3"), [ReplconfOption::PsyncdId { id: "a1-b2".into(), hops: 3 }]);
        for bad in ["abc", ",1", "abc,256", "abc,-1", "a b,1", "abc,"] {
            let options = options(&format!("REPLCONF psyncd-id \"{bad}\""));
            assert!(matches!(options[..], [ReplconfOption::BadValue(_)]), "{bad:?}");
        }
    }

    #[test]
    fn rdb_only_is_on_or_off() {
        assert_eq!(options("REPLCONF rdb-only 1"), [ReplconfOption::RdbOnly]);
        assert_eq!(options("REPLCONF rdb-only 0"), [ReplconfOption::NotRdbOnly]);
        assert!(matches!(options("REPLCONF rdb-only 2")[..], [ReplconfOption::BadValue(_)]));
    }

    #[test]
    fn the_byte_wanted_is_one_more_than_the_bytes_had() {
        let have = ask(&format!("PSYNC {ID} 101")).position().unwrap();
        assert_eq!(have, Position::new(ID.parse().unwrap(), Offset::new(100)));
        assert_eq!(ask(&format!("PSYNC {} 1", ID.to_uppercase())).position().unwrap().offset, Offset::ZERO);
    }

    #[test]
    fn a_request_without_a_place_in_a_stream_has_no_position() {
        assert_eq!(ask("PSYNC ? -1").position(), None);
        assert_eq!(ask("PSYNC ? 5").position(), None);
        assert_eq!(ask("PSYNC abc 5").position(), None);
        for never in ["0", "-1", "-9223372036854775808"] {
            let ask = ask(&format!("PSYNC {ID} {never}"));
            assert_eq!(ask.position(), None, "{never}");
            assert_eq!(ask.id(), Some(ID.parse().unwrap()));
        }
    }

    #[test]
    fn an_offset_that_is_no_number_is_an_error_and_nothing_else() {
        assert_eq!(said(&format!("PSYNC {ID} abc")), PeerCommand::Invalid(NOT_AN_INTEGER.into()));
        assert_eq!(said("PSYNC ?"), PeerCommand::Invalid("-ERR wrong number of arguments for 'psync' command".into()));
    }

    #[test]
    fn a_failover_is_told_from_a_resync() {
        assert_eq!(ask(&format!("PSYNC {ID} 5 FAILOVER")).kind, PsyncKind::Failover);
        assert_eq!(ask(&format!("PSYNC {ID} 5 failover")).kind, PsyncKind::Failover);
        assert_eq!(ask(&format!("PSYNC {ID} 5 whatever")).kind, PsyncKind::Plain);
        assert_eq!(ask(&format!("PSYNC {ID} 5")).kind, PsyncKind::Plain);
    }

    /// Everything a peer says in `input`, empty lines left out.
    fn dialogue(mut input: &[u8]) -> Vec<PeerCommand> {
        let mut commands = vec![];
        while let Some((args, used)) = parse_command(input, &FrameLimits::HANDSHAKE).unwrap() {
            if !args.is_empty() {
                commands.push(PeerCommand::parse(&args));
            }
            input = &input[used..];
        }
        assert!(input.is_empty());
        commands
    }

    #[test]
    fn a_captured_valkey_9_1_is_understood_from_its_ping_to_its_ack() {
        use ReplconfOption as Is;
        let said = b"*1\r\n$4\r\nPING\r\n*3\r\n$8\r\nREPLCONF\r\n$14\r\nlistening-port\r\n$5\r\n15012\r\n\
            *5\r\n$8\r\nREPLCONF\r\n$4\r\ncapa\r\n$3\r\neof\r\n$4\r\ncapa\r\n$6\r\npsync2\r\n\
            *3\r\n$8\r\nREPLCONF\r\n$7\r\nversion\r\n$5\r\n9.1.2\r\n\
            *3\r\n$5\r\nPSYNC\r\n$40\r\n94365443bfd2d15dbbf32a6075d4907c3c0f48f9\r\n$3\r\n465\r\n\
            \n*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$3\r\n498\r\n";
        let position = Position::new("94365443bfd2d15dbbf32a6075d4907c3c0f48f9".parse().unwrap(), Offset::new(464));
        assert_eq!(
            dialogue(said),
            [
                PeerCommand::Ping,
                PeerCommand::Replconf(vec![Is::ListeningPort(15012)]),
                PeerCommand::Replconf(vec![Is::CapaEof, Is::CapaPsync2]),
                PeerCommand::Replconf(vec![Is::Version("9.1.2".into())]),
                PeerCommand::Psync(PsyncAsk::new(Some(position), PsyncKind::Plain)),
                PeerCommand::Replconf(vec![Is::Ack(Offset::new(498))]),
            ]
        );
    }

    #[test]
    fn a_captured_redis_3_2_is_understood_word_by_word() {
        let said = b"PING\r\nAUTH secret\r\nREPLCONF listening-port 28269\r\nREPLCONF ip-address 10.1.2.3\r\n\
            REPLCONF capa eof\r\nPSYNC ? -1\r\nSYNC\r\n";
        assert_eq!(
            dialogue(said),
            [
                PeerCommand::Ping,
                PeerCommand::Auth,
                PeerCommand::Replconf(vec![ReplconfOption::ListeningPort(28269)]),
                PeerCommand::Replconf(vec![ReplconfOption::IpAddress("10.1.2.3".into())]),
                PeerCommand::Replconf(vec![ReplconfOption::CapaEof]),
                PeerCommand::Psync(PsyncAsk::new(None, PsyncKind::Plain)),
                PeerCommand::Sync,
            ]
        );
    }

    #[test]
    fn one_psyncd_understands_another() {
        use crate::wire::dialogue::{self, PingReply, PsyncReply, parse_ping_reply, parse_psync_reply};
        use ReplconfOption as Is;
        let said = [
            dialogue::ping(),
            dialogue::Login { user: Some("user".into()), password: Some(b"with space".to_vec().into()) }
                .auth()
                .unwrap(),
            dialogue::replconf_listening_port(7001),
            dialogue::replconf_ip_address("psyncd.local"),
            dialogue::replconf_capa(),
            dialogue::replconf_version("8.1.0"),
            dialogue::replconf_rdb_only(),
            dialogue::replconf_psyncd_id("a1", 2),
            dialogue::ack(crate::repl::Ack { offset: Offset::new(5), durable: None }),
        ];
        assert_eq!(
            dialogue(&said.concat()),
            [
                PeerCommand::Ping,
                PeerCommand::Auth,
                PeerCommand::Replconf(vec![Is::ListeningPort(7001)]),
                PeerCommand::Replconf(vec![Is::IpAddress("psyncd.local".into())]),
                PeerCommand::Replconf(vec![Is::CapaEof, Is::CapaPsync2]),
                PeerCommand::Replconf(vec![Is::Version("8.1.0".into())]),
                PeerCommand::Replconf(vec![Is::RdbOnly]),
                PeerCommand::Replconf(vec![Is::PsyncdId { id: "a1".into(), hops: 2 }]),
                PeerCommand::Replconf(vec![Is::Ack(Offset::new(5))]),
            ]
        );
        let line = |reply: Bytes| reply.strip_suffix(b"\r\n").unwrap().to_vec();
        let position = Position::new(ID.parse().unwrap(), Offset::new(7));
        assert_eq!(parse_psync_reply(&line(full_resync(position))), PsyncReply::FullResync(position));
        assert_eq!(parse_psync_reply(&line(continue_reply(None))), PsyncReply::Continue(None));
        assert_eq!(
            parse_psync_reply(&line(continue_reply(Some(position.id)))),
            PsyncReply::Continue(Some(position.id))
        );
        assert_eq!(parse_ping_reply(&line(pong())), PingReply::Pong);
        assert!(matches!(parse_ping_reply(&line(error_line("ERR psyncd has no data"))), PingReply::Psyncd(_)));
    }

    #[test]
    fn replies_are_byte_for_byte_those_of_a_master() {
        let id: ReplId = ID.to_uppercase().parse().unwrap();
        assert_eq!(continue_reply(None), "+CONTINUE\r\n");
        assert_eq!(continue_reply(Some(id)), format!("+CONTINUE {ID}\r\n"));
        assert_eq!(full_resync(Position::new(id, Offset::new(7))), format!("+FULLRESYNC {ID} 7\r\n"));
        assert_eq!(payload_header_len(189), "$189\r\n");
        assert_eq!(payload_header_eof(&[b'm'; 40]), format!("$EOF:{}\r\n", "m".repeat(40)));
        assert_eq!(error_line("-NOMASTERLINK no\r\nlink"), "-NOMASTERLINK no  link\r\n");
        assert_eq!(error_line("LOADING not yet"), "-LOADING not yet\r\n");
    }

    proptest! {
        #[test]
        fn an_error_line_is_one_short_line(text in any::<String>(), times in 1usize..400) {
            let line = error_line(&text.repeat(times));
            prop_assert!(line.len() < 255);
            prop_assert!(line.starts_with(b"-") && line.ends_with(b"\r\n"));
            let body = &line[..line.len() - 2];
            prop_assert!(!body.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
            prop_assert!(str::from_utf8(body).is_ok());
        }

        #[test]
        fn any_words_are_read_as_some_command(args in prop::collection::vec(
            prop_oneof!["(?i)(replconf|psync|capa|ack|getack|ip-address|version|psyncd-id|-?[0-9]{1,20})"
                .prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..40)], 0..8)) {
            let args: Args = args.into_iter().map(Bytes::from).collect();
            match PeerCommand::parse(&args) {
                PeerCommand::Replconf(options) => {
                    let ends = options.iter().rposition(|option| !option.ends_list()).map_or(0, |at| at + 1);
                    prop_assert!(options.len() - ends <= 1 || matches!(options.last(), Some(ReplconfOption::Fack(_))));
                    let _ = replconf_reply(&options);
                }
                PeerCommand::Psync(ask) => { let _ = ask.position(); }
                _ => {}
            }
        }

        #[test]
        fn a_position_survives_being_asked_for(hex in "[0-9a-f]{40}", offset in 0..i64::MAX as u64) {
            let position = Position::new(hex.parse().unwrap(), Offset::new(offset));
            let asked = PsyncAsk::new(Some(position), PsyncKind::Plain);
            prop_assert_eq!(asked.position(), Some(position));
            let sent = crate::wire::dialogue::psync(Some(&position));
            let (args, _) = parse_command(&sent, &FrameLimits::HANDSHAKE).unwrap().unwrap();
            prop_assert_eq!(PeerCommand::parse(&args), PeerCommand::Psync(asked));
        }
    }

    #[test]
    fn a_command_as_an_array_reads_like_the_same_words_in_a_line() {
        let array = encode_command(&["REPLCONF", "listening-port", "6380"]);
        let (args, _) = parse_command(&array, &FrameLimits::HANDSHAKE).unwrap().unwrap();
        assert_eq!(PeerCommand::parse(&args), said("REPLCONF listening-port 6380"));
    }
}
