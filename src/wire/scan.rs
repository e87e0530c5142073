//! Observer of the live stream: where commands and transactions end, and where the master asked for an ACK.
//!
//! The stream is nothing but commands as arrays of bulks (replication.c `replicationFeedSlaves`), with stray empty
//! lines and empty arrays tolerated between them. The scanner holds no bytes but the front of a name, skips values
//! without looking at them, and can stop and go on at any byte. It judges each byte once:
//!
//! ```text
//!            ┌────────── LF, CR LF, *0, *-1 ──────────┐
//!            v                                        │
//!  ──────> Start ── "*" ──> Header ── count CR LF ────┤
//!            ^                                        v
//!            │                                    BulkStart <──────────────┐
//!            │                                        │ "$"                │
//!            │                                        v                    │
//!            │                      Header ── length CR LF ──> Body ── CR LF
//!            └───────────────── no more bulks ───────────────────────── ┘
//! ```
//!
//! There are two implementations of this one diagram. `step` goes byte by byte and is the definition; `run`
//! takes whole short headers and words that lie inside one slice and leaves everything else to `step`. The
//! properties below hold them against each other and against a parser that is not incremental.
//!
//! One machine, one file: the fast path and the step by step must agree byte for byte, and more than a third is their tests.

use crate::repl::Offset;

/// Most words of one command (redis networking.c limits clients to as many, and masters write no more).
const MAX_ARGS: u64 = 1 << 20;
/// Longest word in bytes. `proto-max-bulk-len` is 512 MiB by default but may be raised on the master.
const MAX_BULK: u64 = 8 << 30;
/// Longest name we tell from others: `REPLCONF`.
const NAME_MAX: usize = 8;

/// Follows a stream from a boundary on. A copy is a bookmark: since a stream resumed under the same id goes
/// on at the very next byte, the scanner stays valid across reconnects, even in the middle of a command.
///
/// ```
/// use psyncd::{repl::Offset, wire::scan::Scanner};
/// let mut scanner = Scanner::new(Offset::new(100));
/// assert_eq!(scanner.scan(b"*1\r\n$4\r\nPING\r\n*1\r\n$5\r\nMUL").accepted, 25);
/// assert_eq!((scanner.head(), scanner.boundary()), (Offset::new(125), Offset::new(114)));
/// ```
#[derive(Debug, Clone)]
pub struct Scanner {
    state: State,
    head: Offset,
    boundary: Offset,
    /// Bytes to pass unseen before the first boundary.
    blind: u64,
    command: Command,
    transaction: Transaction,
    getacks: Option<GetAcks>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between commands.
    Start,
    /// Behind the CR of an empty line.
    StartLf,
    /// In the number behind `*` or `$`.
    Header { of: Kind, number: Number },
    /// Behind the CR of a header.
    HeaderLf { of: Kind, value: u64 },
    /// Before the `$` of a bulk.
    BulkStart,
    /// In a bulk's bytes.
    Body { left: u64 },
    /// Before the CR behind a bulk's bytes.
    BodyCr,
    /// Before the LF behind a bulk's bytes.
    BodyLf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Count,
    Length,
}

impl Kind {
    const fn max(self) -> u64 {
        match self {
            Kind::Count => MAX_ARGS,
            Kind::Length => MAX_BULK,
        }
    }
}

/// A number without leading zeros, as far as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    None,
    /// A minus: only `*-1` may follow.
    Minus,
    MinusOne,
    Zero,
    Some(u64),
}

/// The command being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Command {
    start: Offset,
    /// Words declared and not yet complete.
    left: u32,
    /// Words declared.
    count: u32,
    verb: Verb,
    /// The front of a word that may be a name we know.
    name: [u8; NAME_MAX],
    name_len: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Other,
    Multi,
    /// `EXEC` or `DISCARD`.
    Close,
    Replconf,
    GetAck,
}

impl Verb {
    /// What the first word of a command of `count` words means to us. Transactions are made of words that
    /// stand alone; with company they are an error to every server and change nothing.
    fn of(name: &[u8], count: u32) -> Verb {
        match name.len() {
            4 if count == 1 && name.eq_ignore_ascii_case(b"EXEC") => Verb::Close,
            5 if count == 1 && name.eq_ignore_ascii_case(b"MULTI") => Verb::Multi,
            7 if count == 1 && name.eq_ignore_ascii_case(b"DISCARD") => Verb::Close,
            8 if count > 1 && name.eq_ignore_ascii_case(b"REPLCONF") => Verb::Replconf,
            _ => Verb::Other,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    Closed,
    Open,
}

/// How far a scan went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes that continue the stream well; all of them unless there is an error.
    pub accepted: usize,
    /// Why the byte behind them cannot continue it. The scanner stands before that byte.
    pub error: Option<ScanError>,
}

/// Why a byte cannot continue a stream. Whatever it is, the link is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// It cannot begin a command.
    #[error("byte 0x{0:02x} cannot begin a command")]
    NotACommand(u8),
    /// It cannot stand in a number of words.
    #[error("byte 0x{0:02x} cannot stand in a number of words")]
    InvalidCount(u8),
    /// It cannot begin a word.
    #[error("byte 0x{0:02x} cannot begin a word")]
    ExpectedBulk(u8),
    /// It cannot stand in a length.
    #[error("byte 0x{0:02x} cannot stand in a length")]
    InvalidLength(u8),
    /// It stands where the line end behind a word must be.
    #[error("byte 0x{0:02x} stands where a word must end")]
    UnterminatedBulk(u8),
    /// It makes a command of more than 1,048,576 words.
    #[error("a command has too many words")]
    TooManyArguments,
    /// It makes a word of more than 8 GiB.
    #[error("a word is too long")]
    BulkTooLong,
}

/// Requests for an ACK that were seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GetAcks {
    /// How many.
    pub count: u32,
    /// The point before the latest, which is what a replica of 4.0 or later acknowledges: it answers before it counts
    /// the request (replication.c `replconfCommand`, `replicationSendAck`).
    pub target: Offset,
}

impl Scanner {
    /// A scanner at a boundary: the stream goes on with the beginning of a command, outside transactions.
    pub fn new(at: Offset) -> Self {
        Self {
            state: State::Start,
            head: at,
            boundary: at,
            blind: 0,
            command: Command { start: at, left: 0, count: 0, verb: Verb::Other, name: [0; NAME_MAX], name_len: 0 },
            transaction: Transaction::Closed,
            getacks: None,
        }
    }

    /// A scanner that may stand in the middle of a command, and knows only that `boundary`, which is not before
    /// `at`, is one. What comes before it is passed unseen.
    pub fn before_boundary(at: Offset, boundary: Offset) -> Self {
        Self { head: at, blind: boundary.since(at), ..Self::new(boundary) }
    }

    /// Whether it has not come to a boundary yet: [`Self::boundary`] then lies ahead of [`Self::head`].
    pub fn is_blind(&self) -> bool {
        self.blind > 0
    }

    /// The point behind the last byte accepted.
    pub fn head(&self) -> Offset {
        self.head
    }

    /// The end of the last complete command outside MULTI..EXEC. Empty lines behind it do not move it:
    /// a server that is promoted has forgotten them (4.0 and later; replication.c `replicationCacheMasterClient`).
    pub fn boundary(&self) -> Offset {
        self.boundary
    }

    /// The requests for an ACK seen since the last call.
    pub fn take_getacks(&mut self) -> Option<GetAcks> {
        self.getacks.take()
    }

    /// Looks at the next bytes of the stream. After an error the scanner stands before the bad byte, so
    /// that [`Self::head`] is where the good part of the stream ends.
    pub fn scan(&mut self, data: &[u8]) -> Scanned {
        let mut at = self.pass(data.len());
        while at < data.len() {
            at += self.run(&data[at..]);
            let Some(&byte) = data.get(at) else { break };
            match self.state {
                State::Body { left } => at += self.skip(left, &data[at..]),
                _ => match self.step(byte) {
                    Ok(()) => at += 1,
                    Err(error) => return Scanned { accepted: at, error: Some(error) },
                },
            }
        }
        Scanned { accepted: at, error: None }
    }

    /// Passes at most `len` bytes unseen, up to the first boundary.
    fn pass(&mut self, len: usize) -> usize {
        let passed = usize::try_from(self.blind).map_or(len, |blind| blind.min(len));
        self.blind -= passed as u64;
        self.head = self.head.forward(passed as u64);
        passed
    }

    /// Takes whole headers and whole words with their line ends, as long as there are any at the front of
    /// `data`. Returns the bytes taken; what is left is for [`Self::step`] and [`Self::skip`].
    fn run(&mut self, data: &[u8]) -> usize {
        let base = self.head;
        let mut at = 0;
        loop {
            match self.state {
                State::BulkStart => {}
                State::Start => {
                    let Some((count, next)) = short_header(data, at, b'*') else { break };
                    self.begin(base.forward(at as u64), count);
                    self.state = State::BulkStart;
                    at = next;
                }
                _ => break,
            }
            // Kept out of the struct: this loop is where the time goes.
            let Command { mut left, count, .. } = self.command;
            while left > 0
                && let Some((word, next)) = whole_word(data, at)
            {
                if count - left < 2 {
                    self.word(count - left, word);
                }
                left -= 1;
                at = next;
            }
            self.command.left = left;
            if left > 0 {
                break;
            }
            self.end_command(base.forward(at as u64));
        }
        self.head = base.forward(at as u64);
        at
    }

    /// Takes what there is of a bulk's bytes.
    fn skip(&mut self, left: u64, data: &[u8]) -> usize {
        let take = usize::try_from(left).map_or(data.len(), |left| left.min(data.len()));
        let command = &mut self.command;
        let room = NAME_MAX - command.name_len.min(NAME_MAX);
        let named = take.min(room);
        command.name[NAME_MAX - room..][..named].copy_from_slice(&data[..named]);
        command.name_len = command.name_len.saturating_add(take);
        self.head = self.head.forward(take as u64);
        let left = left - take as u64;
        self.state = if left == 0 { State::BodyCr } else { State::Body { left } };
        take
    }

    /// Takes one byte, in any state but [`State::Body`].
    fn step(&mut self, byte: u8) -> Result<(), ScanError> {
        let behind = self.head.forward(1);
        self.state = match self.state {
            State::Start => match byte {
                b'*' => {
                    self.begin(self.head, 0);
                    State::Header { of: Kind::Count, number: Number::None }
                }
                b'\r' => State::StartLf,
                b'\n' => State::Start,
                other => return Err(ScanError::NotACommand(other)),
            },
            State::StartLf => match byte {
                b'\n' => State::Start,
                other => return Err(ScanError::NotACommand(other)),
            },
            State::Header { of, number } => self.step_header(of, number, byte)?,
            State::HeaderLf { of, value } => match (byte, of) {
                (b'\n', Kind::Count) if value == 0 => State::Start,
                (b'\n', Kind::Count) => {
                    self.begin(self.command.start, value as u32);
                    State::BulkStart
                }
                (b'\n', Kind::Length) if value == 0 => State::BodyCr,
                (b'\n', Kind::Length) => State::Body { left: value },
                (other, Kind::Count) => return Err(ScanError::InvalidCount(other)),
                (other, Kind::Length) => return Err(ScanError::InvalidLength(other)),
            },
            State::BulkStart => match byte {
                b'$' => {
                    self.command.name_len = 0;
                    State::Header { of: Kind::Length, number: Number::None }
                }
                other => return Err(ScanError::ExpectedBulk(other)),
            },
            State::BodyCr if byte == b'\r' => State::BodyLf,
            State::BodyLf if byte == b'\n' => {
                let Command { name, name_len, left, count, .. } = self.command;
                // A longer word was kept only in front, and no name we know is as long.
                self.word(count - left, name.get(..name_len).unwrap_or_default());
                self.command.left = left - 1;
                if left == 1 {
                    self.end_command(behind);
                    State::Start
                } else {
                    State::BulkStart
                }
            }
            State::BodyCr | State::BodyLf | State::Body { .. } => return Err(ScanError::UnterminatedBulk(byte)),
        };
        self.head = behind;
        Ok(())
    }

    fn step_header(&self, of: Kind, number: Number, byte: u8) -> Result<State, ScanError> {
        let invalid = match of {
            Kind::Count => ScanError::InvalidCount(byte),
            Kind::Length => ScanError::InvalidLength(byte),
        };
        let number = match (number, byte) {
            (Number::None, b'0') => Number::Zero,
            (Number::None, b'-') if of == Kind::Count => Number::Minus,
            (Number::Minus, b'1') => Number::MinusOne,
            (Number::None, b'1'..=b'9') => Number::Some(u64::from(byte - b'0')),
            (Number::Some(value), b'0'..=b'9') => {
                // No overflow: the value before was within the limit.
                let value = value * 10 + u64::from(byte - b'0');
                match of {
                    _ if value <= of.max() => Number::Some(value),
                    Kind::Count => return Err(ScanError::TooManyArguments),
                    Kind::Length => return Err(ScanError::BulkTooLong),
                }
            }
            (Number::Zero | Number::MinusOne, b'\r') => return Ok(State::HeaderLf { of, value: 0 }),
            (Number::Some(value), b'\r') => return Ok(State::HeaderLf { of, value }),
            _ => return Err(invalid),
        };
        Ok(State::Header { of, number })
    }

    /// A command of `count` words begins.
    fn begin(&mut self, start: Offset, count: u32) {
        self.command.start = start;
        self.command.left = count;
        self.command.count = count;
        self.command.verb = Verb::Other;
    }

    /// The word `index` of a command is complete; `word` is empty for words longer than any name.
    #[inline]
    fn word(&mut self, index: u32, word: &[u8]) {
        let command = &mut self.command;
        match index {
            0 => command.verb = Verb::of(word, command.count),
            1 if command.verb == Verb::Replconf && word.eq_ignore_ascii_case(b"GETACK") => command.verb = Verb::GetAck,
            _ => {}
        }
    }

    /// The last word of a command is complete, with its line end, at `behind`.
    #[inline]
    fn end_command(&mut self, behind: Offset) {
        self.state = State::Start;
        match self.command.verb {
            Verb::Other | Verb::Replconf => {}
            Verb::Multi => self.transaction = Transaction::Open,
            Verb::Close => self.transaction = Transaction::Closed,
            Verb::GetAck => {
                let count = self.getacks.map_or(0, |seen| seen.count).saturating_add(1);
                self.getacks = Some(GetAcks { count, target: self.command.start });
            }
        }
        if self.transaction == Transaction::Closed {
            self.boundary = behind;
        }
    }
}

/// The word, with its header and line end, that lies whole at `at` in `data`, and what is behind it.
#[inline]
pub(super) fn whole_word(data: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let (len, start) = short_header(data, at, b'$')?;
    let end = start + len as usize;
    match data.get(start..end + 2)? {
        [word @ .., b'\r', b'\n'] => Some((word, end + 2)),
        _ => None,
    }
}

/// The number of a header `lead number CR LF` of at most five digits at `at`, and what is behind it. `None`
/// for everything else, be it wrong, longer, an empty array, or in the last bytes of `data`.
///
/// One digit, two and three are cases of their own because the processor then guesses the length of a header
/// instead of waiting for it; reading the digits as one 64-bit number without branches was half as fast.
#[inline]
pub(super) fn short_header(data: &[u8], at: usize, lead: u8) -> Option<(u32, usize)> {
    let header: &[u8; 8] = data.get(at..)?.first_chunk()?;
    if header[0] != lead {
        return None;
    }
    let digit = |at: usize| u32::from(header[at].wrapping_sub(b'0'));
    match header {
        [_, _, b'\r', b'\n', ..] => {
            let value = digit(1);
            (value <= 9 && (value > 0 || lead == b'$')).then_some((value, at + 4))
        }
        [_, _, _, b'\r', b'\n', ..] => {
            let (tens, ones) = (digit(1), digit(2));
            ((1..=9).contains(&tens) && ones <= 9).then_some((tens * 10 + ones, at + 5))
        }
        [_, _, _, _, b'\r', b'\n', ..] => {
            let (hundreds, tens, ones) = (digit(1), digit(2), digit(3));
            ((1..=9).contains(&hundreds) && tens <= 9 && ones <= 9)
                .then_some((hundreds * 100 + tens * 10 + ones, at + 6))
        }
        [_, digits @ .., b'\r', b'\n'] => long_number(digits).map(|value| (value, at + 8)),
        [_, digits @ .., b'\r', b'\n', _] => long_number(digits).map(|value| (value, at + 7)),
        _ => None,
    }
}

/// Digits without a leading zero as a number.
fn long_number(digits: &[u8]) -> Option<u32> {
    if digits.first() == Some(&b'0') {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u32::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::chop;
    use crate::wire::resp::{FrameLimits, encode_command, parse_command};
    use proptest::prelude::*;

    const GETACK: &[u8] = b"*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n";

    fn scanned(data: &[u8]) -> Scanner {
        let mut scanner = Scanner::new(Offset::ZERO);
        assert_eq!(scanner.scan(data), Scanned { accepted: data.len(), error: None });
        scanner
    }

    fn error(data: &[u8]) -> (usize, ScanError) {
        let whole = Scanner::new(Offset::ZERO).scan(data);
        let mut stepped = Scanner::new(Offset::ZERO);
        let single: Vec<Scanned> = data.chunks(1).map(|byte| stepped.scan(byte)).collect();
        let first = single.iter().find_map(|scanned| scanned.error);
        assert_eq!(whole.error, first);
        (whole.accepted, whole.error.unwrap())
    }

    /// What redis 7.0.15 sent its replica between the payload and a cut of the link, a GETACK last but two.
    const CAPTURED: &[u8] = b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n\
        *2\r\n$6\r\nSELECT\r\n$1\r\n9\r\n*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n\
        *1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$2\r\nt1\r\n$1\r\n1\r\n*3\r\n$3\r\nSET\r\n$2\r\nt2\r\n$1\r\n2\r\n\
        *1\r\n$4\r\nEXEC\r\n*3\r\n$9\r\nPEXPIREAT\r\n$1\r\na\r\n$13\r\n1795350286959\r\n*1\r\n$5\r\nMULTI\r\n\
        *3\r\n$3\r\nset\r\n$1\r\ns\r\n$1\r\n1\r\n*2\r\n$4\r\nincr\r\n$1\r\ns\r\n*1\r\n$4\r\nEXEC\r\n\
        *3\r\n$7\r\nPUBLISH\r\n$2\r\nch\r\n$2\r\nhi\r\n*3\r\n$3\r\nSET\r\n$1\r\nw\r\n$1\r\n1\r\n\
        *3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n*1\r\n$4\r\nping\r\n*1\r\n$4\r\nping\r\n";

    #[test]
    fn what_comes_before_the_first_boundary_is_passed_unseen() {
        let stream = b"ORLD\r\n*1\r\n$4\r\nPING\r\n";
        for cut in 0..=stream.len() {
            let mut scanner = Scanner::before_boundary(Offset::new(10), Offset::new(16));
            assert!(scanner.is_blind());
            assert_eq!(scanner.scan(&stream[..cut]).accepted, cut);
            assert_eq!(scanner.head(), Offset::new(10 + cut as u64));
            assert_eq!(scanner.scan(&stream[cut..]).error, None);
            assert_eq!((scanner.is_blind(), scanner.boundary()), (false, Offset::new(30)));
        }
    }

    #[test]
    fn a_captured_stream_is_counted_as_its_replica_counted_it() {
        // The replica answered the GETACK with 385, said 436 behind the first ping, and asked for 451 after
        // the cut.
        let mut scanner = scanned(CAPTURED);
        assert_eq!(scanner.take_getacks(), Some(GetAcks { count: 1, target: Offset::new(385) }));
        assert_eq!(scanned(&CAPTURED[..436]).boundary(), Offset::new(436));
        assert_eq!((scanner.head(), scanner.boundary()), (Offset::new(450), Offset::new(450)));
    }

    #[test]
    fn a_captured_stream_is_the_same_cut_at_any_two_points() {
        for first in 0..=CAPTURED.len() {
            for second in (first..=CAPTURED.len()).step_by(7) {
                let mut scanner = Scanner::new(Offset::ZERO);
                for piece in [&CAPTURED[..first], &CAPTURED[first..second], &CAPTURED[second..]] {
                    assert_eq!(scanner.scan(piece).error, None);
                }
                assert_eq!(account(&mut scanner), Account { boundary: 450, getacks: Some((1, 385)) });
            }
        }
    }

    #[test]
    fn every_command_ends_at_a_boundary() {
        let stream = b"*1\r\n$4\r\nPING\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n";
        let mut scanner = Scanner::new(Offset::ZERO);
        let mut boundaries = vec![];
        for byte in stream.chunks(1) {
            scanner.scan(byte);
            boundaries.push(scanner.boundary().get());
        }
        boundaries.dedup();
        assert_eq!(boundaries, [0, 14, 37]);
        assert_eq!(scanned(stream).boundary(), scanner.boundary());
    }

    #[test]
    fn a_transaction_has_no_boundary_inside() {
        let stream = b"*1\r\n$5\r\nmulti\r\n*1\r\n$4\r\nPING\r\n";
        assert_eq!(scanned(stream).boundary(), Offset::ZERO);
        for close in ["*1\r\n$4\r\nexec\r\n", "*1\r\n$7\r\nDISCARD\r\n"] {
            let whole = [stream.as_slice(), close.as_bytes()].concat();
            assert_eq!(scanned(&whole).boundary().get(), whole.len() as u64);
        }
        let odd = b"*2\r\n$5\r\nMULTI\r\n$1\r\nx\r\n";
        assert_eq!(scanned(odd).boundary().get(), odd.len() as u64);
    }

    #[test]
    fn getacks_are_counted_and_the_latest_is_the_target() {
        assert_eq!(GETACK.len(), 37);
        let stream = [GETACK, b"*1\r\n$4\r\nping\r\n", &GETACK.to_ascii_lowercase()].concat();
        let mut scanner = scanned(&stream);
        assert_eq!(scanner.take_getacks(), Some(GetAcks { count: 2, target: Offset::new(37 + 14) }));
        assert_eq!(scanner.take_getacks(), None);
        assert_eq!(scanner.boundary().get(), stream.len() as u64);
    }

    #[test]
    fn the_words_of_a_getack_as_a_value_are_no_getack() {
        for stream in [
            &b"*3\r\n$3\r\nSET\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n"[..],
            b"*2\r\n$37\r\n*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n\r\n$1\r\nx\r\n",
            b"*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$6\r\nGETACK\r\n",
        ] {
            assert_eq!(scanned(stream).take_getacks(), None);
        }
    }

    #[test]
    fn empty_lines_count_but_are_no_boundary() {
        let scanner = scanned(b"*1\r\n$4\r\nPING\r\n\n\r\n*0\r\n*-1\r\n");
        assert_eq!((scanner.head().get(), scanner.boundary().get()), (26, 14));
        let scanner = scanned(b"\n*1\r\n$4\r\nPING\r\n");
        assert_eq!(scanner.boundary().get(), 15);
    }

    #[test]
    fn a_scanner_stands_before_the_byte_it_cannot_take() {
        for (stream, accepted, expected) in [
            (&b"VALKEY"[..], 0, ScanError::NotACommand(b'V')),
            (b"\0", 0, ScanError::NotACommand(0)),
            (b"*1\r\n$4\r\nPING\r\n+OK\r\n", 14, ScanError::NotACommand(b'+')),
            (b"\r*", 1, ScanError::NotACommand(b'*')),
            (b"*x", 1, ScanError::InvalidCount(b'x')),
            (b"*\r", 1, ScanError::InvalidCount(b'\r')),
            (b"*-2", 2, ScanError::InvalidCount(b'2')),
            (b"*01", 2, ScanError::InvalidCount(b'1')),
            (b"*1\n", 2, ScanError::InvalidCount(b'\n')),
            (b"*1\rx", 3, ScanError::InvalidCount(b'x')),
            (b"*1048577\r\n", 7, ScanError::TooManyArguments),
            (b"*1\r\nPING", 4, ScanError::ExpectedBulk(b'P')),
            (b"*1\r\n$-1\r\n", 5, ScanError::InvalidLength(b'-')),
            (b"*1\r\n$8589934593\r\n", 14, ScanError::BulkTooLong),
            (b"*1\r\n$99999999999999999999\r\n", 14, ScanError::BulkTooLong),
            (b"*1\r\n$1\r\nab", 9, ScanError::UnterminatedBulk(b'b')),
            (b"*1\r\n$1\r\na\rb", 10, ScanError::UnterminatedBulk(b'b')),
            (b"*1\r\n$0\r\nx", 8, ScanError::UnterminatedBulk(b'x')),
        ] {
            assert_eq!(error(stream), (accepted, expected), "{}", stream.escape_ascii());
        }
    }

    #[test]
    fn a_short_header_is_read_at_once() {
        for number in 0..=99_999u32 {
            let header = format!("??${number}\r\nxxxxx");
            let behind = header.len() - 5;
            assert_eq!(short_header(header.as_bytes(), 2, b'$'), Some((number, behind)));
        }
        assert_eq!(short_header(b"*0\r\nxxxx", 0, b'*'), None);
        for zero in ["$01\r\nxxx", "$012\r\nxx", "$0123\r\nx", "$01234\r\n"] {
            assert_eq!(short_header(zero.as_bytes(), 0, b'$'), None, "{zero:?}");
        }
    }

    #[test]
    fn the_largest_lengths_are_accepted_without_their_bytes() {
        let scanner = scanned(b"*1048576\r\n$8589934592\r\nabc");
        assert_eq!(scanner.head().get(), 26);
        assert_eq!(scanner.boundary(), Offset::ZERO);
    }

    #[test]
    fn a_copy_goes_on_where_the_original_stood() {
        let stream = [GETACK, b"*1\r\n$4\r\nPING\r\n"].concat();
        for cut in 0..stream.len() {
            let mut first = Scanner::new(Offset::new(5));
            first.scan(&stream[..cut]);
            let mut second = first.clone();
            second.scan(&stream[cut..]);
            first.scan(&stream[cut..]);
            assert_eq!(second.boundary().get(), 5 + stream.len() as u64);
            assert_eq!(second.take_getacks(), first.take_getacks());
        }
    }

    /// What there is to say of a stream, computed in the simplest way there is: command by command from the
    /// whole of it.
    #[derive(Debug, PartialEq, Eq)]
    struct Account {
        boundary: u64,
        getacks: Option<(u32, u64)>,
    }

    fn account_by_hand(stream: &[u8]) -> Account {
        const LIMITS: FrameLimits =
            FrameLimits { max_args: 1 << 20, max_bulk: 1 << 33, max_inline: 0, max_frame: usize::MAX };
        let mut account = Account { boundary: 0, getacks: None };
        let (mut at, mut open) = (0, false);
        while at < stream.len() {
            if stream[at] != b'*' {
                at += 1;
                continue;
            }
            let Ok(Some((args, used))) = parse_command(&stream[at..], &LIMITS) else { break };
            let words: Vec<String> = args.iter().map(|arg| String::from_utf8_lossy(arg).to_ascii_uppercase()).collect();
            match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["MULTI"] => open = true,
                ["EXEC" | "DISCARD"] => open = false,
                ["REPLCONF", "GETACK", ..] => {
                    let count = account.getacks.map_or(0, |(count, _)| count) + 1;
                    account.getacks = Some((count, at as u64));
                }
                _ => {}
            }
            at += used;
            if !open && !args.is_empty() {
                account.boundary = at as u64;
            }
        }
        account
    }

    fn account(scanner: &mut Scanner) -> Account {
        Account {
            boundary: scanner.boundary().get(),
            getacks: scanner.take_getacks().map(|seen| (seen.count, seen.target.get())),
        }
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            "(?i)(multi|exec|discard|replconf|getack|set|ping|\\*)",
            "[a-z\r\n$*]{0,20}",
            "[a-z]{90,130}",
            prop_oneof![995usize..1005, 9995usize..10005, 99_995usize..100_005].prop_map(|len| "x".repeat(len)),
        ];
        let command = prop_oneof![
            8 => prop::collection::vec(word, 1..5).prop_map(|words| encode_command(&words).to_vec()),
            2 => Just(GETACK.to_vec()),
            2 => "(?i)(multi|exec|discard)".prop_map(|word| encode_command(&[word]).to_vec()),
            1 => prop_oneof![Just("\n"), Just("\r\n"), Just("*0\r\n"), Just("*-1\r\n")].prop_map(|s| s.as_bytes().to_vec()),
        ];
        prop::collection::vec(command, 0..12).prop_map(|commands| commands.concat())
    }

    proptest! {
        #[test]
        fn a_true_stream_is_accounted_as_by_hand(stream in stream(), end: prop::sample::Index) {
            let part = &stream[..end.index(stream.len() + 1)];
            prop_assert_eq!(account(&mut scanned(part)), account_by_hand(part));
        }

        #[test]
        fn a_header_read_at_once_is_one(header in "[*$][0-9]{0,2}[0-9\r\n/:-]{0,3}(\r\n)?xxxxxxxx") {
            let line = header.split("\r\n").next().unwrap();
            if let Some((number, behind)) = short_header(header.as_bytes(), 0, header.as_bytes()[0]) {
                prop_assert_eq!(crate::wire::text::natural(&line.as_bytes()[1..]), Some(u64::from(number)));
                prop_assert_eq!(behind, line.len() + 2);
            }
        }

        #[test]
        fn a_scan_is_the_same_however_it_is_cut(
            mut input in prop_oneof![
                3 => stream(),
                1 => prop::collection::vec(any::<u8>(), 0..60),
                2 => "(\\*|\\$|\r\n|-1|[0-9]|a){0,40}".prop_map(String::into_bytes),
            ],
            damage in prop::option::of(any::<(prop::sample::Index, u8)>()),
            cuts in chop::cuts(),
        ) {
            if let (Some((at, byte)), false) = (damage, input.is_empty()) {
                let at = at.index(input.len());
                input[at] = byte;
            }
            let mut whole = Scanner::new(Offset::ZERO);
            let said = whole.scan(&input);
            prop_assert_eq!(whole.head().get(), said.accepted as u64);
            prop_assert_eq!(said.error.is_none(), said.accepted == input.len());
            for pieces in [chop::pieces(&input, &cuts), input.chunks(1).collect()] {
                let mut cut = Scanner::new(Offset::ZERO);
                let error = pieces.iter().find_map(|piece| cut.scan(piece).error);
                prop_assert_eq!(error, said.error);
                prop_assert_eq!((cut.head(), cut.boundary()), (whole.head(), whole.boundary()));
                prop_assert_eq!(cut.getacks, whole.getacks);
            }
        }
    }
}
