//! Frames: whole commands and replies at the front of a buffer, with limits, and their encoding.
//!
//! The parsers keep no state. Given the front of a connection's bytes they say "more is needed", an
//! error, or what they read and how many bytes it took; more bytes never change an answer once given.
//! A command comes in one of two forms on the same port (networking.c `processInputBuffer`): an array of bulks, or a
//! line of words as replicas up to 4.0 send it.
//!
//! Commands, reply lines and whole replies share their limits and their errors, so they stand together.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::text;

/// The words of one command; empty for an empty line or an empty array, which everyone skips.
pub type Args = Vec<Bytes>;

/// The longest header line (`*3`, `$1024`) in bytes, without its line end.
const HEADER_MAX: usize = 32;
/// The longest header line that can still belong to a first word: a count of a million needs eight bytes.
const FIRST_HEADER_MAX: usize = 12;
/// The longest first word; the longest command names of servers and modules have 27 bytes.
const WORD_MAX: usize = 40;
/// Blank bytes tolerated before a first word.
const BLANK_MAX: usize = 64;

/// How large one command may be. All limits are in bytes (or words) and inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Words of one command.
    pub max_args: usize,
    /// Bytes of one word sent as a bulk.
    pub max_bulk: usize,
    /// Bytes of a line of words, without its line feed.
    pub max_inline: usize,
    /// Bytes of the whole command, headers and line ends included.
    pub max_frame: usize,
}

impl FrameLimits {
    /// What a replica's handshake needs: the longest ones seen have eleven words; a token used as
    /// password may have a few thousand bytes.
    pub const HANDSHAKE: FrameLimits =
        FrameLimits { max_args: 64, max_bulk: 4 << 10, max_inline: 8 << 10, max_frame: 16 << 10 };
}

/// Why bytes are no frame. The text is what Redis answers behind `-ERR ` (networking.c,
/// `processMultibulkBuffer` and `processInlineBuffer`), where Redis has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The number behind `*` is not one.
    #[error("Protocol error: invalid multibulk length")]
    InvalidMultibulkLength,
    /// More words than the limit; Redis has no text of its own for it.
    #[error("Protocol error: invalid multibulk length")]
    TooManyArguments,
    /// The line behind `*` does not end.
    #[error("Protocol error: too big mbulk count string")]
    TooBigMultibulkCount,
    /// The number behind `$` is not one, or negative.
    #[error("Protocol error: invalid bulk length")]
    InvalidBulkLength,
    /// A word longer than the limit; Redis has no text of its own for it.
    #[error("Protocol error: invalid bulk length")]
    BulkTooLong,
    /// The line behind `$` does not end.
    #[error("Protocol error: too big bulk count string")]
    TooBigBulkCount,
    /// Something else where a word must begin.
    #[error("Protocol error: expected '$', got '{}'", .0.escape_ascii())]
    ExpectedBulk(u8),
    /// A word is not followed by CRLF. Redis does not look.
    #[error("Protocol error: expected CRLF behind a bulk")]
    UnterminatedBulk,
    /// A line of words longer than the limit.
    #[error("Protocol error: too big inline request")]
    TooBigInline,
    /// A quote that is not closed, or not followed by a blank.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// The whole frame is longer than the limit.
    #[error("Protocol error: too big request")]
    TooBigFrame,
    /// A reply that begins with no known type.
    #[error("Protocol error, got '{}' as reply type byte", .0.escape_ascii())]
    UnknownType(u8),
}

/// A header line's number.
enum Header {
    More,
    Invalid,
    TooLong,
    Value { number: i64, next: usize },
}

/// Reads the number and the CRLF at `at`; `max` bytes at most before the CR.
fn header(buf: &[u8], at: usize, max: usize) -> Header {
    let rest = buf.get(at..).unwrap_or_default();
    let window = &rest[..rest.len().min(max + 1)];
    let Some(cr) = window.iter().position(|&byte| byte == b'\r') else {
        return if window.len() > max { Header::TooLong } else { Header::More };
    };
    match rest.get(cr + 1) {
        None => Header::More,
        Some(b'\n') => match text::integer(&rest[..cr]) {
            Some(number) => Header::Value { number, next: at + cr + 2 },
            None => Header::Invalid,
        },
        Some(_) => Header::Invalid,
    }
}

/// Reads one command at the front of `buf`: its words and the bytes it took. `None`: more is needed.
/// An empty line or array has no words and is to be skipped. Limits are checked on what a command
/// declares, so nothing is allocated for a command that breaks one.
///
/// ```
/// use psyncd::wire::resp::{FrameLimits, parse_command};
/// let (args, used) = parse_command(b"*1\r\n$4\r\nPING\r\n*1", &FrameLimits::HANDSHAKE).unwrap().unwrap();
/// assert_eq!((args, used), (vec!["PING".into()], 14));
/// ```
///
/// # Errors
/// When the bytes can be no command, whatever follows them. The connection is then of no use.
pub fn parse_command(buf: &[u8], limits: &FrameLimits) -> Result<Option<(Args, usize)>, FrameError> {
    match buf.first() {
        None => Ok(None),
        Some(b'*') => parse_array(buf, limits),
        Some(_) => parse_inline(buf, limits),
    }
}

fn parse_array(buf: &[u8], limits: &FrameLimits) -> Result<Option<(Args, usize)>, FrameError> {
    let (count, mut at) = match header(buf, 1, HEADER_MAX) {
        Header::More => return Ok(None),
        Header::Invalid => return Err(FrameError::InvalidMultibulkLength),
        Header::TooLong => return Err(FrameError::TooBigMultibulkCount),
        Header::Value { number, next } => (usize::try_from(number).unwrap_or(0), next),
    };
    if count > limits.max_args {
        return Err(FrameError::TooManyArguments);
    }
    let mut words: Vec<Range<usize>> = Vec::new();
    while words.len() < count {
        match buf.get(at) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(&other) => return Err(FrameError::ExpectedBulk(other)),
        }
        let (len, start) = match header(buf, at + 1, HEADER_MAX) {
            Header::More => return Ok(None),
            Header::Invalid => return Err(FrameError::InvalidBulkLength),
            Header::TooLong => return Err(FrameError::TooBigBulkCount),
            Header::Value { number, next } => {
                (usize::try_from(number).map_err(|_| FrameError::InvalidBulkLength)?, next)
            }
        };
        if len > limits.max_bulk {
            return Err(FrameError::BulkTooLong);
        }
        let end = start + len;
        if end + 2 > limits.max_frame {
            return Err(FrameError::TooBigFrame);
        }
        match buf.get(end..end + 2) {
            None => return Ok(None),
            Some(b"\r\n") => {}
            Some(_) => return Err(FrameError::UnterminatedBulk),
        }
        words.push(start..end);
        at = end + 2;
    }
    let frame = Bytes::copy_from_slice(&buf[..at]);
    Ok(Some((words.into_iter().map(|word| frame.slice(word)).collect(), at)))
}

fn parse_inline(buf: &[u8], limits: &FrameLimits) -> Result<Option<(Args, usize)>, FrameError> {
    let max = limits.max_inline.min(limits.max_frame.saturating_sub(1));
    let window = &buf[..buf.len().min(max + 1)];
    let Some(lf) = window.iter().position(|&byte| byte == b'\n') else {
        return if window.len() > max { Err(FrameError::TooBigInline) } else { Ok(None) };
    };
    let line = &buf[..lf];
    let args = split_words(line.strip_suffix(b"\r").unwrap_or(line)).ok_or(FrameError::UnbalancedQuotes)?;
    if args.len() > limits.max_args {
        return Err(FrameError::TooManyArguments);
    }
    Ok(Some((args, lf + 1)))
}

/// C's `isspace`.
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// Splits a line into words by Redis's rules (sds.c, `sdssplitargs`): double quotes with escapes, single
/// quotes with `\'` only, a closing quote must be followed by a blank, a zero byte ends the line.
/// `None`: unbalanced quotes.
pub(super) fn split_words(line: &[u8]) -> Option<Args> {
    let line = line.split(|&byte| byte == 0).next().unwrap_or_default();
    let mut args = Args::new();
    let mut rest = line;
    loop {
        while let [first, tail @ ..] = rest
            && is_space(*first)
        {
            rest = tail;
        }
        if rest.is_empty() {
            return Some(args);
        }
        let mut word = BytesMut::new();
        rest = take_word(rest, &mut word)?;
        args.push(word.freeze());
    }
}

/// Moves one word from the front of `rest` into `word`; what is left, or `None` for unbalanced quotes.
fn take_word<'a>(mut rest: &'a [u8], word: &mut BytesMut) -> Option<&'a [u8]> {
    loop {
        match rest {
            [b'"', tail @ ..] => return take_double_quoted(tail, word),
            [b'\'', tail @ ..] => return take_single_quoted(tail, word),
            [] | [b' ' | b'\n' | b'\r' | b'\t', ..] => return Some(rest),
            [byte, tail @ ..] => {
                word.put_u8(*byte);
                rest = tail;
            }
        }
    }
}

fn take_double_quoted<'a>(mut rest: &'a [u8], word: &mut BytesMut) -> Option<&'a [u8]> {
    loop {
        match rest {
            [b'\\', b'x', high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                word.put_u8(hex_digit(*high) << 4 | hex_digit(*low));
                rest = tail;
            }
            [b'\\', escaped, tail @ ..] => {
                word.put_u8(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                rest = tail;
            }
            [b'"', tail @ ..] => return closed(tail),
            [byte, tail @ ..] => {
                word.put_u8(*byte);
                rest = tail;
            }
            [] => return None,
        }
    }
}

fn take_single_quoted<'a>(mut rest: &'a [u8], word: &mut BytesMut) -> Option<&'a [u8]> {
    loop {
        match rest {
            [b'\\', b'\'', tail @ ..] => {
                word.put_u8(b'\'');
                rest = tail;
            }
            [b'\'', tail @ ..] => return closed(tail),
            [byte, tail @ ..] => {
                word.put_u8(*byte);
                rest = tail;
            }
            [] => return None,
        }
    }
}

/// A closing quote ends the word, so a blank or the end must follow.
fn closed(rest: &[u8]) -> Option<&[u8]> {
    rest.first().is_none_or(|&byte| is_space(byte)).then_some(rest)
}

/// The value of an ASCII hexadecimal digit.
fn hex_digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// The first word of a command that may still be arriving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstWord {
    /// Not enough bytes to tell.
    NeedMore,
    /// The word, in upper case: printable ASCII, at most 40 bytes.
    Word(Vec<u8>),
    /// These bytes begin no command that anyone sends: another protocol, a quoted or endless word.
    NotACommand,
}

/// Reads the first word as soon as it is there, before the other words have arrived: enough to tell what
/// a connection is for. Leading empty lines are skipped. Decides within 170 bytes whatever they are.
pub fn first_word(buf: &[u8]) -> FirstWord {
    let mut at = 0;
    // Behind a blank a star is a character of a word and no header.
    let mut indented = false;
    loop {
        match buf.get(at) {
            None => return FirstWord::NeedMore,
            Some(b' ' | b'\t') => indented = true,
            Some(b'\n') => indented = false,
            Some(b'\r') => match buf.get(at + 1) {
                None => return FirstWord::NeedMore,
                Some(b'\n') => {}
                Some(_) => return FirstWord::NotACommand,
            },
            Some(b'*') if !indented => return first_bulk(&buf[at..]),
            Some(_) => return first_inline(&buf[at..]),
        }
        at += 1;
        if at > BLANK_MAX {
            return FirstWord::NotACommand;
        }
    }
}

fn first_bulk(buf: &[u8]) -> FirstWord {
    let at = match header(buf, 1, FIRST_HEADER_MAX) {
        Header::More => return FirstWord::NeedMore,
        Header::Value { number: 1.., next } => next,
        Header::Value { .. } | Header::Invalid | Header::TooLong => return FirstWord::NotACommand,
    };
    match buf.get(at) {
        None => return FirstWord::NeedMore,
        Some(b'$') => {}
        Some(_) => return FirstWord::NotACommand,
    }
    let (len, start) = match header(buf, at + 1, FIRST_HEADER_MAX) {
        Header::More => return FirstWord::NeedMore,
        Header::Value { number, next } => (usize::try_from(number).unwrap_or(0), next),
        Header::Invalid | Header::TooLong => return FirstWord::NotACommand,
    };
    if !(1..=WORD_MAX).contains(&len) {
        return FirstWord::NotACommand;
    }
    match buf.get(start..start + len) {
        None => FirstWord::NeedMore,
        Some(word) if word.iter().all(u8::is_ascii_graphic) => FirstWord::Word(word.to_ascii_uppercase()),
        Some(_) => FirstWord::NotACommand,
    }
}

fn first_inline(buf: &[u8]) -> FirstWord {
    for (len, &byte) in buf.iter().enumerate() {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return FirstWord::Word(buf[..len].to_ascii_uppercase()),
            b'"' | b'\'' => return FirstWord::NotACommand,
            _ if len < WORD_MAX && byte.is_ascii_graphic() => {}
            _ => return FirstWord::NotACommand,
        }
    }
    FirstWord::NeedMore
}

/// A reply line is longer than its reader allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a reply line is longer than {max} bytes")]
pub struct LineTooLong {
    /// The limit, in bytes without the line end.
    pub max: usize,
}

/// Reads one line at the front of `buf`, ended by LF or CRLF: the line without its end, and the bytes it
/// took with it. `None`: more is needed. An empty line is a keepalive in the replication dialogue.
///
/// # Errors
/// When the line, without its end, is longer than `max` bytes.
pub fn parse_line(buf: &[u8], max: usize) -> Result<Option<(&[u8], usize)>, LineTooLong> {
    let window = &buf[..buf.len().min(max + 2)];
    let lf = window.iter().position(|&byte| byte == b'\n');
    let line = lf.map_or(window, |lf| &window[..lf]);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() > max {
        return Err(LineTooLong { max });
    }
    Ok(lf.map(|lf| (line, lf + 1)))
}

/// The length in bytes of the one reply at the front of `buf`, of any RESP2 or RESP3 type, attributes in
/// front of it included. `None`: more is needed. Streamed (`$?`) aggregates, which no server sends, are
/// not known. Each call begins anew, so large arrays are better not asked for byte by byte.
///
/// # Errors
/// When the bytes can be no reply, or the reply is longer than `max` bytes.
pub fn reply_len(buf: &[u8], max: usize) -> Result<Option<usize>, FrameError> {
    let mut at = 0usize;
    // The order of nested items does not matter for their length, so a count replaces a stack.
    let mut wanted = 1usize;
    while wanted > 0 {
        // No item is shorter than a type byte and a line end.
        if wanted.saturating_mul(3).saturating_add(at) > max {
            return Err(FrameError::TooBigFrame);
        }
        let Some(&kind) = buf.get(at) else { return Ok(None) };
        wanted -= 1;
        match kind {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => {
                let window = &buf[at..buf.len().min(max)];
                match window.iter().position(|&byte| byte == b'\n') {
                    Some(lf) => at += lf + 1,
                    None if buf.len() >= max => return Err(FrameError::TooBigFrame),
                    None => return Ok(None),
                }
            }
            b'$' | b'!' | b'=' | b'*' | b'~' | b'>' | b'%' | b'|' => {
                let (number, next) = match header(buf, at + 1, HEADER_MAX) {
                    Header::More => return Ok(None),
                    Header::Invalid => return Err(invalid_length(kind)),
                    Header::TooLong => return Err(too_long_length(kind)),
                    Header::Value { number, next } => (number, next),
                };
                at = next;
                let declared = match usize::try_from(number) {
                    Ok(declared) => declared,
                    // The null bulk and the null array of RESP2 end with their header.
                    Err(_) if number == -1 && matches!(kind, b'$' | b'*') => continue,
                    Err(_) => return Err(invalid_length(kind)),
                };
                match kind {
                    b'$' | b'!' | b'=' => {
                        at = at.saturating_add(declared).saturating_add(2);
                        if at > max {
                            return Err(FrameError::TooBigFrame);
                        }
                        match buf.get(at - 2..at) {
                            None => return Ok(None),
                            Some(b"\r\n") => {}
                            Some(_) => return Err(FrameError::UnterminatedBulk),
                        }
                    }
                    b'%' => wanted = wanted.saturating_add(declared.saturating_mul(2)),
                    // An attribute stands in front of the reply it belongs to.
                    b'|' => wanted = wanted.saturating_add(declared.saturating_mul(2)).saturating_add(1),
                    _ => wanted = wanted.saturating_add(declared),
                }
            }
            other => return Err(FrameError::UnknownType(other)),
        }
    }
    if at > max { Err(FrameError::TooBigFrame) } else { Ok(Some(at)) }
}

fn invalid_length(kind: u8) -> FrameError {
    match kind {
        b'$' | b'!' | b'=' => FrameError::InvalidBulkLength,
        _ => FrameError::InvalidMultibulkLength,
    }
}

fn too_long_length(kind: u8) -> FrameError {
    match kind {
        b'$' | b'!' | b'=' => FrameError::TooBigBulkCount,
        _ => FrameError::TooBigMultibulkCount,
    }
}

/// A command as an array of bulks, the form every server since 1.2 reads.
pub fn encode_command<A: AsRef<[u8]>>(args: &[A]) -> Bytes {
    let payload: usize = args.iter().map(|arg| arg.as_ref().len() + 16).sum();
    let mut out = BytesMut::with_capacity(payload + 16);
    out.put_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        let arg = arg.as_ref();
        out.put_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.put_slice(arg);
        out.put_slice(b"\r\n");
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: FrameLimits = FrameLimits::HANDSHAKE;

    fn words(input: &[u8]) -> Vec<String> {
        let (args, used) = parse_command(input, &LIMITS).unwrap().unwrap();
        assert_eq!(used, input.len());
        args.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect()
    }

    fn error(input: &[u8]) -> FrameError {
        parse_command(input, &LIMITS).unwrap_err()
    }

    #[test]
    fn the_handshake_of_an_old_and_of_a_new_replica_reads_the_same() {
        assert_eq!(words(b"REPLCONF capa eof capa psync2\r\n"), ["REPLCONF", "capa", "eof", "capa", "psync2"]);
        assert_eq!(
            words(b"*5\r\n$8\r\nREPLCONF\r\n$4\r\ncapa\r\n$3\r\neof\r\n$4\r\ncapa\r\n$6\r\npsync2\r\n"),
            ["REPLCONF", "capa", "eof", "capa", "psync2"]
        );
        assert_eq!(words(b"PSYNC ? -1\r\n"), ["PSYNC", "?", "-1"]);
    }

    #[test]
    fn an_empty_line_or_array_is_a_command_without_words() {
        for empty in ["\n", "\r\n", "  \r\n", "*0\r\n", "*-1\r\n"] {
            assert!(words(empty.as_bytes()).is_empty(), "{empty:?}");
        }
    }

    #[test]
    fn quotes_are_read_as_redis_reads_them() {
        assert_eq!(words(b"AUTH \"se cret\\x21\\n\"\r\n"), ["AUTH", "se cret!\n"]);
        assert_eq!(words(b"AUTH 'a\\'b\\n' c\r\n"), ["AUTH", "a'b\\n", "c"]);
        assert_eq!(words(b"AUTH \"\"\n"), ["AUTH", ""]);
        assert_eq!(words(b"AUTH foo\"bar\"\n"), ["AUTH", "foobar"]);
        assert_eq!(words(b"AUTH \"\\xzz\\\"\"\n"), ["AUTH", "xzz\""]);
        assert_eq!(words(b"PING a\0b c\n"), ["PING", "a"]);
        for bad in ["AUTH \"abc\r\n", "AUTH 'abc\r\n", "AUTH \"a\"b\r\n", "AUTH 'a'b\r\n", "AUTH \"a\\\"\r\n"] {
            assert_eq!(error(bad.as_bytes()), FrameError::UnbalancedQuotes, "{bad:?}");
        }
    }

    #[test]
    fn broken_frames_get_the_words_redis_has_for_them() {
        for (bytes, text) in [
            ("*x\r\n", "Protocol error: invalid multibulk length"),
            ("*65\r\n", "Protocol error: invalid multibulk length"),
            ("*1\r\n$x\r\n", "Protocol error: invalid bulk length"),
            ("*1\r\n$-1\r\n", "Protocol error: invalid bulk length"),
            ("*1\r\n$4097\r\n", "Protocol error: invalid bulk length"),
            ("*1\r\nx", "Protocol error: expected '$', got 'x'"),
            ("*1\r\n\r", "Protocol error: expected '$', got '\\r'"),
            ("*111111111111111111111111111111111", "Protocol error: too big mbulk count string"),
        ] {
            assert_eq!(error(bytes.as_bytes()).to_string(), text, "{bytes:?}");
        }
        assert_eq!(error(&vec![b'x'; LIMITS.max_inline + 1]), FrameError::TooBigInline);
        assert_eq!(error(b"*1\r\n$1\r\nabc"), FrameError::UnterminatedBulk);
    }

    #[test]
    fn a_declared_length_is_judged_before_its_bytes_arrive() {
        assert_eq!(error(b"*2\r\n$4\r\nAUTH\r\n$1000000000\r\n"), FrameError::BulkTooLong);
        let many = ["x".repeat(4000), "x".repeat(4000), "x".repeat(4000), "x".repeat(4000)];
        let five = encode_command(&[many[0].as_str(), &many[1], &many[2], &many[3], &many[0]]);
        assert_eq!(error(&five), FrameError::TooBigFrame);
    }

    #[test]
    fn a_first_word_is_known_before_its_command_is_complete() {
        for (bytes, word) in [
            ("PING\r", "PING"),
            ("\n\r\n psync ?", "PSYNC"),
            ("*3\r\n$3\r\nset", "SET"),
            ("\r\n*2\r\n$8\r\nREPLCONF\r\n$1000000", "REPLCONF"),
            ("SYNC\n", "SYNC"),
        ] {
            assert_eq!(first_word(bytes.as_bytes()), FirstWord::Word(word.into()), "{bytes:?}");
        }
        for more in ["", "\r", "\n", "PIN", "*", "*3\r", "*3\r\n", "*3\r\n$3", "*3\r\n$3\r\nse"] {
            assert_eq!(first_word(more.as_bytes()), FirstWord::NeedMore, "{more:?}");
        }
        let endless = "x".repeat(41);
        for other in
            ["\x16\x03\x01", "\rx", "*0\r\n", "*1\r\n+", "*1\r\n$0\r\n", "*1\r\n$41\r\n", "\"PING\"", &endless, "\0"]
        {
            assert_eq!(first_word(other.as_bytes()), FirstWord::NotACommand, "{other:?}");
        }
        assert_eq!(first_word(&[b'\n'; 65]), FirstWord::NotACommand);
    }

    #[test]
    fn a_line_ends_with_or_without_a_carriage_return() {
        assert_eq!(parse_line(b"+PONG\r\n+OK", 255), Ok(Some((&b"+PONG"[..], 7))));
        assert_eq!(parse_line(b"+PONG\n", 255), Ok(Some((&b"+PONG"[..], 6))));
        assert_eq!(parse_line(b"\n", 255), Ok(Some((&b""[..], 1))));
        assert_eq!(parse_line(b"+PONG\r", 5), Ok(None));
        assert_eq!(parse_line(b"+PONG!", 5), Err(LineTooLong { max: 5 }));
    }

    #[test]
    fn a_reply_of_any_type_has_a_length() {
        for reply in [
            "+PONG\r\n",
            "-NOAUTH Authentication required.\r\n",
            ":1\r\n",
            "$4\r\na\r\nb\r\n",
            "$-1\r\n",
            "*-1\r\n",
            "*2\r\n*1\r\n$1\r\na\r\n:2\r\n",
            "_\r\n",
            "#t\r\n",
            ",3.14\r\n",
            "(12345678901234567890\r\n",
            "!5\r\nERR x\r\n",
            "=8\r\ntxt:abcd\r\n",
            "%1\r\n+a\r\n*0\r\n",
            "~1\r\n_\r\n",
            ">2\r\n+message\r\n+x\r\n",
            "|1\r\n+ttl\r\n:3\r\n+OK\r\n",
        ] {
            let mut input = reply.as_bytes().to_vec();
            input.extend_from_slice(b"+next\r\n");
            assert_eq!(reply_len(&input, 1024), Ok(Some(reply.len())), "{reply:?}");
            for cut in 0..reply.len() {
                assert_eq!(reply_len(&input[..cut], 1024), Ok(None), "{reply:?} cut at {cut}");
            }
        }
        assert_eq!(reply_len(b"PONG", 64), Err(FrameError::UnknownType(b'P')));
        assert_eq!(reply_len(b"$100\r\n", 64), Err(FrameError::TooBigFrame));
        assert_eq!(reply_len(b"*1000000\r\n", 64), Err(FrameError::TooBigFrame));
        assert_eq!(reply_len(b"%9223372036854775807\r\n", 1 << 40), Err(FrameError::TooBigFrame));
        assert_eq!(reply_len(b"$9223372036854775807\r\n", usize::MAX), Ok(None));
    }

    /// Bytes that often are commands or nearly so.
    fn soup() -> impl Strategy<Value = Vec<u8>> {
        let token = prop_oneof![
            Just("*1\r\n".to_owned()),
            Just("*2\r\n".to_owned()),
            Just("$4\r\nPING\r\n".to_owned()),
            Just("$1\r\n".to_owned()),
            Just("\r\n".to_owned()),
            Just("\n".to_owned()),
            Just("PSYNC ? -1".to_owned()),
            Just("\"a\\x41\"".to_owned()),
            Just("'".to_owned()),
            Just(" ".to_owned()),
            Just("+OK\r\n".to_owned()),
            "[*$0-9a-z+:\\r\\n\"' -]{0,6}",
        ];
        prop_oneof![
            prop::collection::vec(token, 0..8).prop_map(|tokens| tokens.concat().into_bytes()),
            prop::collection::vec(any::<u8>(), 0..80),
        ]
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_an_answer(input in soup(), cut: prop::sample::Index) {
            const SMALL: FrameLimits = FrameLimits { max_args: 3, max_bulk: 6, max_inline: 20, max_frame: 30 };
            let cut = cut.index(input.len() + 1);
            for limits in [LIMITS, SMALL] {
                match parse_command(&input[..cut], &limits) {
                    Ok(None) => {}
                    early => prop_assert_eq!(early, parse_command(&input, &limits)),
                }
            }
            match first_word(&input[..cut]) {
                FirstWord::NeedMore => {}
                early => prop_assert_eq!(early, first_word(&input)),
            }
            for max in [3, 9, 300] {
                match parse_line(&input[..cut], max) {
                    Ok(None) => {}
                    early => prop_assert_eq!(early, parse_line(&input, max)),
                }
                match reply_len(&input[..cut], max) {
                    Ok(None) => {}
                    early => prop_assert_eq!(early, reply_len(&input, max)),
                }
            }
        }

        #[test]
        fn a_first_word_is_decided_within_a_bounded_number_of_bytes(input in prop::collection::vec(any::<u8>(), 170..200)) {
            prop_assert_ne!(first_word(&input), FirstWord::NeedMore);
        }

        #[test]
        fn what_is_encoded_is_read_back(args in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..20)) {
            let encoded = encode_command(&args);
            let (read, used) = parse_command(&encoded, &LIMITS).unwrap().unwrap();
            prop_assert_eq!(used, encoded.len());
            prop_assert_eq!(read, args.into_iter().map(Bytes::from).collect::<Vec<_>>());
            prop_assert_eq!(reply_len(&encoded, 1 << 20), Ok(Some(encoded.len())));
        }
    }
}
