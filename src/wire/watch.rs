//! A client's commands, seen in passing: how many there are, and which of them change what their replies look like.
//!
//! Commands are arrays of bulks or lines of words, mixed at will. Nothing is kept but the front of a word and a line
//! that has not ended; values are passed over unseen.
//!
//! ```text
//!            ┌──────── LF, *0, *-1 (no command) ──────┐
//!            ▼                                        │
//!  ──────▶ Start ─── "*" ──▶ Number ── CR LF ─────────┤
//!            ▲ ▲ └─ else ──▶ Line ── LF ─┐            ▼
//!            │ └─────────────────────────┘        BulkStart ◀─────────────┐
//!            │                                        │ "$"               │
//!            │                                      Number ── CR LF ──▶ Body ── CR LF
//!            └──────────── no more bulks ───────────────────────────────┘
//! ```

use super::resp::{is_space, split_words};
use super::scan::{short_header, whole_word};

/// Longest line of words a server reads (redis networking.c, `PROTO_INLINE_MAX_SIZE`).
const LINE_MAX: usize = 64 * 1024;
/// Longest word that is told from others: `PUNSUBSCRIBE`.
const WORD_MAX: usize = 12;
/// Longest word that is kept when it comes in pieces: a Sentinel's name, `sentinel-`, eight digits and `-cmd`.
const KEPT_MAX: usize = 21;
/// Most digits of a length or a count.
const DIGITS_MAX: u8 = 18;

/// A command whose reply is special.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notable {
    /// `INFO`, and whether a section called `psyncd` is asked for.
    Info {
        /// By name.
        psyncd: bool,
    },
    /// `ROLE`.
    Role,
    /// `MULTI`: from here on replies come with [`Notable::Exec`]'s.
    Multi,
    /// `EXEC`.
    Exec,
    /// `DISCARD` or `RESET`: there is no transaction any more.
    Discard,
    /// `WATCH` or `QUIT`: never part of a transaction.
    Apart,
    /// `SLAVEOF NO ONE` or `REPLICAOF NO ONE`: the server is to become a master.
    Promotion,
    /// `CLIENT SETNAME` with the name that a Sentinel gives the connection it asks on (redis sentinel.c,
    /// `sentinelSetClientName`). It has another one for listening.
    Sentinel,
    /// From here on replies no longer come one by one in answer to commands: subscriptions, `MONITOR`, `CLIENT REPLY`,
    /// debuggers.
    Mode,
    /// The same, because the connection becomes a replication link: `PSYNC`, `SYNC`, and the `REPLCONF` before them.
    Replicate,
}

/// How far it was watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// Bytes passed.
    pub bytes: usize,
    /// Commands that ended in them, all of which are answered; the notable one is the last.
    pub commands: u64,
    /// The last of them, if it is notable.
    pub notable: Option<Notable>,
}

/// These bytes are no commands; the server will say so and close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a command")]
pub struct NotACommand;

/// A place in a client's commands.
#[derive(Debug, Clone, Default)]
pub struct Watcher {
    state: State,
    /// Words of the current command that are not complete.
    left: u64,
    verb: Verb,
    /// The front of the current word.
    word: [u8; KEPT_MAX],
    word_len: usize,
    /// A line that has not ended.
    line: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    Line,
    Number {
        of: Of,
        value: u64,
        digits: u8,
        minus: bool,
    },
    NumberLf {
        of: Of,
        value: u64,
        minus: bool,
    },
    BulkStart,
    Body {
        left: u64,
    },
    BodyCr,
    BodyLf,
}

/// What a number is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Words,
    Bytes,
}

/// What is known of the current command by its words so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Verb {
    /// No word yet.
    #[default]
    Unknown,
    Other,
    Is(Notable),
    /// It is a mode if this is the next word.
    If(&'static [u8]),
    /// It is a promotion if these are the next words.
    Follow(&'static [&'static [u8]]),
    /// `CLIENT`, of which the next word decides.
    Client,
    /// `CLIENT SETNAME`: the next word is a name.
    Name,
}

impl Verb {
    /// By the first word.
    #[inline]
    fn first(word: &[u8]) -> Verb {
        if !(4..=WORD_MAX).contains(&word.len()) {
            return Verb::Other;
        }
        let mut upper = [0; WORD_MAX];
        let upper = &mut upper[..word.len()];
        upper.copy_from_slice(word);
        upper.make_ascii_uppercase();
        match &*upper {
            b"INFO" => Verb::Is(Notable::Info { psyncd: false }),
            b"ROLE" => Verb::Is(Notable::Role),
            b"MULTI" => Verb::Is(Notable::Multi),
            b"EXEC" => Verb::Is(Notable::Exec),
            b"DISCARD" | b"RESET" => Verb::Is(Notable::Discard),
            b"WATCH" | b"QUIT" => Verb::Is(Notable::Apart),
            b"SUBSCRIBE" | b"PSUBSCRIBE" | b"SSUBSCRIBE" | b"UNSUBSCRIBE" | b"PUNSUBSCRIBE" | b"SUNSUBSCRIBE"
            | b"MONITOR" => Verb::Is(Notable::Mode),
            b"SYNC" | b"PSYNC" | b"REPLCONF" => Verb::Is(Notable::Replicate),
            b"SLAVEOF" | b"REPLICAOF" => Verb::Follow(&[b"NO", b"ONE"]),
            b"CLIENT" => Verb::Client,
            // Slot migration turns the connection into a replication link (redis 8.4, valkey 9).
            b"CLUSTER" => Verb::If(b"SYNCSLOTS"),
            b"SCRIPT" => Verb::If(b"DEBUG"),
            // `DEBUG PROTOCOL PUSH` is answered by a push frame.
            b"DEBUG" => Verb::If(b"PROTOCOL"),
            _ => Verb::Other,
        }
    }

    /// By a further word.
    fn further(self, word: &[u8]) -> Verb {
        match self {
            Verb::If(name) if word.eq_ignore_ascii_case(name) => Verb::Is(Notable::Mode),
            Verb::If(_) => Verb::Other,
            Verb::Follow([name]) if word.eq_ignore_ascii_case(name) => Verb::Is(Notable::Promotion),
            Verb::Follow([name, rest @ ..]) if word.eq_ignore_ascii_case(name) => Verb::Follow(rest),
            Verb::Follow(_) => Verb::Other,
            Verb::Client if word.eq_ignore_ascii_case(b"REPLY") => Verb::Is(Notable::Mode),
            Verb::Client if word.eq_ignore_ascii_case(b"SETNAME") => Verb::Name,
            Verb::Client => Verb::Other,
            Verb::Name if is_a_sentinels(word) => Verb::Is(Notable::Sentinel),
            Verb::Name => Verb::Other,
            Verb::Is(Notable::Info { .. }) if word.eq_ignore_ascii_case(b"psyncd") => {
                Verb::Is(Notable::Info { psyncd: true })
            }
            same => same,
        }
    }

    fn with(self, word: &[u8]) -> Verb {
        if self == Verb::Unknown { Verb::first(word) } else { self.further(word) }
    }
}

/// Whether a Sentinel calls the connection so on which it asks.
pub fn is_a_sentinels(name: &[u8]) -> bool {
    name.strip_prefix(b"sentinel-")
        .and_then(|rest| rest.strip_suffix(b"-cmd"))
        .is_some_and(|id| id.len() == 8 && id.iter().all(u8::is_ascii_hexdigit))
}

/// What a step brought.
enum Stepped {
    On,
    /// A command is complete.
    Command,
}

impl Watcher {
    /// Watches up to the next notable command, or all of `data`.
    ///
    /// # Errors
    /// Where no server would go on either. The place is lost then.
    pub fn watch(&mut self, data: &[u8]) -> Result<Watched, NotACommand> {
        let (mut at, mut commands) = (0, 0);
        while let Some(&byte) = data.get(at) {
            let (next, stepped) = match self.state {
                State::Start if byte == b'*' => self.array(data, at),
                State::Start | State::Line => self.line(data, at)?,
                State::BulkStart => self.bulks(data, at)?,
                State::Body { left } => (self.body(data, at, left), Stepped::On),
                _ => (at + 1, self.step(byte)?),
            };
            at = next;
            if let Stepped::Command = stepped {
                commands += 1;
                if let Verb::Is(notable) = self.verb {
                    return Ok(Watched { bytes: at, commands, notable: Some(notable) });
                }
            }
        }
        Ok(Watched { bytes: at, commands, notable: None })
    }

    /// The header of a command.
    #[inline]
    fn array(&mut self, data: &[u8], at: usize) -> (usize, Stepped) {
        self.verb = Verb::Unknown;
        match short_header(data, at, b'*') {
            Some((count, next)) => {
                self.left = u64::from(count);
                self.state = State::BulkStart;
                (next, Stepped::On)
            }
            None => {
                self.state = State::Number { of: Of::Words, value: 0, digits: 0, minus: false };
                (at + 1, Stepped::On)
            }
        }
    }

    /// Whole words, as long as there are any; then the header of one that is not whole.
    #[inline]
    fn bulks(&mut self, data: &[u8], mut at: usize) -> Result<(usize, Stepped), NotACommand> {
        while let Some((word, next)) = whole_word(data, at) {
            if !matches!(self.verb, Verb::Other) {
                self.verb = self.verb.with(word);
            }
            at = next;
            self.left -= 1;
            if self.left == 0 {
                self.state = State::Start;
                return Ok((at, Stepped::Command));
            }
        }
        match data.get(at) {
            Some(b'$') => {
                self.word_len = 0;
                self.state = State::Number { of: Of::Bytes, value: 0, digits: 0, minus: false };
                Ok((at + 1, Stepped::On))
            }
            Some(_) => Err(NotACommand),
            None => Ok((at, Stepped::On)),
        }
    }

    fn body(&mut self, data: &[u8], at: usize, left: u64) -> usize {
        let take = usize::try_from(left).map_or(data.len() - at, |left| left.min(data.len() - at));
        let named = take.min(KEPT_MAX.saturating_sub(self.word_len));
        if named > 0 {
            self.word[self.word_len..][..named].copy_from_slice(&data[at..at + named]);
        }
        self.word_len = self.word_len.saturating_add(take);
        let left = left - take as u64;
        self.state = if left == 0 { State::BodyCr } else { State::Body { left } };
        at + take
    }

    /// A line of words, or what there is of it.
    fn line(&mut self, data: &[u8], at: usize) -> Result<(usize, Stepped), NotACommand> {
        let lf = memchr::memchr(b'\n', &data[at..]);
        let end = lf.map_or(data.len(), |lf| at + lf);
        if self.line.len() + end - at > LINE_MAX {
            return Err(NotACommand);
        }
        if lf.is_none() {
            self.line.extend_from_slice(&data[at..]);
            self.state = State::Line;
            return Ok((end, Stepped::On));
        }
        self.state = State::Start;
        let words = if self.line.is_empty() {
            self.words(&data[at..end])?
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(&data[at..end]);
            self.words(&line)?
        };
        Ok((end + 1, if words == 0 { Stepped::On } else { Stepped::Command }))
    }

    /// Judges a whole line; returns how many words it has.
    fn words(&mut self, line: &[u8]) -> Result<usize, NotACommand> {
        self.verb = Verb::Unknown;
        let mut count = 0;
        let mut judge = |word: &[u8]| {
            self.verb = self.verb.with(word);
            count += 1;
        };
        if line.iter().any(|byte| matches!(byte, b'"' | b'\'' | 0)) {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            split_words(line).ok_or(NotACommand)?.iter().for_each(|word| judge(word));
        } else {
            line.split(|&byte| is_space(byte)).filter(|word| !word.is_empty()).for_each(judge);
        }
        Ok(count)
    }

    /// Takes one byte of a header or a line end.
    fn step(&mut self, byte: u8) -> Result<Stepped, NotACommand> {
        self.state = match (self.state, byte) {
            (State::Number { of: Of::Words, digits: 0, minus: false, .. }, b'-') => {
                State::Number { of: Of::Words, value: 0, digits: 0, minus: true }
            }
            // No leading zeros, as servers have it.
            (State::Number { value: 0, digits: 1, .. }, b'0'..=b'9') => return Err(NotACommand),
            (State::Number { of, value, digits, minus }, b'0'..=b'9') if digits < DIGITS_MAX => {
                State::Number { of, value: value * 10 + u64::from(byte - b'0'), digits: digits + 1, minus }
            }
            (State::Number { of, value, digits: 1.., minus }, b'\r') => State::NumberLf { of, value, minus },
            (State::NumberLf { of: Of::Words, value, minus }, b'\n') if minus || value == 0 => State::Start,
            (State::NumberLf { of: Of::Words, value, .. }, b'\n') => {
                self.left = value;
                State::BulkStart
            }
            (State::NumberLf { of: Of::Bytes, value: 0, .. }, b'\n') => State::BodyCr,
            (State::NumberLf { of: Of::Bytes, value, .. }, b'\n') => State::Body { left: value },
            (State::BodyCr, b'\r') => State::BodyLf,
            (State::BodyLf, b'\n') => {
                let word = self.word.get(..self.word_len).unwrap_or_default();
                self.verb = self.verb.with(word);
                self.left -= 1;
                if self.left == 0 {
                    self.state = State::Start;
                    return Ok(Stepped::Command);
                }
                State::BulkStart
            }
            _ => return Err(NotACommand),
        };
        Ok(Stepped::On)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::chop;
    use crate::wire::resp::encode_command;
    use proptest::prelude::*;

    /// All notable commands of `data`, by the number of the command, and how many commands there are.
    fn notable(pieces: &[&[u8]]) -> Result<(Vec<(u64, Notable)>, u64), NotACommand> {
        let mut watcher = Watcher::default();
        let (mut found, mut commands) = (vec![], 0);
        for piece in pieces {
            let mut piece = *piece;
            while !piece.is_empty() {
                let watched = watcher.watch(piece)?;
                piece = &piece[watched.bytes..];
                commands += watched.commands;
                found.extend(watched.notable.map(|notable| (commands - 1, notable)));
            }
        }
        Ok((found, commands))
    }

    const INFO: Notable = Notable::Info { psyncd: false };

    #[test]
    fn commands_are_recognised_in_both_forms() {
        for (text, verb) in [
            ("INFO", Some(INFO)),
            ("info Replication server", Some(INFO)),
            ("INFO server PSYNCD", Some(Notable::Info { psyncd: true })),
            ("role", Some(Notable::Role)),
            ("Multi", Some(Notable::Multi)),
            ("exec", Some(Notable::Exec)),
            ("reset", Some(Notable::Discard)),
            ("watch a b", Some(Notable::Apart)),
            ("punsubscribe", Some(Notable::Mode)),
            ("SLAVEOF NO ONE", Some(Notable::Promotion)),
            ("replicaof no one", Some(Notable::Promotion)),
            ("SLAVEOF no 6379", None),
            ("SLAVEOF ONE NO", None),
            ("SLAVEOF", None),
            ("client reply off", Some(Notable::Mode)),
            ("client setname reply", None),
            ("CLIENT SETNAME sentinel-0123abcd-cmd", Some(Notable::Sentinel)),
            ("client setname sentinel-0123abcd-pubsub", None),
            ("client setname sentinel-0123abcd-cmdx", None),
            ("client setname sentinel-mine-cmd", None),
            ("client getname sentinel-0123abcd-cmd", None),
            ("client", None),
            ("script load x", None),
            ("script debug yes", Some(Notable::Mode)),
            ("replconf ack 5", Some(Notable::Replicate)),
            ("get info", None),
            ("information", None),
            ("inf", None),
        ] {
            let words: Vec<&str> = text.split(' ').collect();
            let found: Vec<(u64, Notable)> = verb.map(|verb| (0, verb)).into_iter().collect();
            for bytes in [encode_command(&words).to_vec(), format!("{text}\r\n").into_bytes()] {
                let single: Vec<&[u8]> = bytes.chunks(1).collect();
                assert_eq!(notable(&[&bytes]), Ok((found.clone(), 1)), "{text}");
                assert_eq!(notable(&single), Ok((found.clone(), 1)), "{text} byte by byte");
            }
        }
        assert_eq!(notable(&[b"\"in\\x66o\" 'psyncd'\n"]), Ok((vec![(0, Notable::Info { psyncd: true })], 1)));
    }

    #[test]
    fn what_is_not_answered_is_not_counted() {
        assert_eq!(notable(&[b"\r\n  \r\n*0\r\n*-1\r\n*-7\r\n\nPING\r\n"]), Ok((vec![], 1)));
    }

    #[test]
    fn what_a_server_closes_for_is_an_error() {
        for bad in ["*x\r\n", "*1\r\n+", "*1\r\n$-1\r\n", "*01\r\n", "*1\r\n$1\r\nabc", "GET \"a\r\n", "*\r\n"] {
            assert_eq!(notable(&[bad.as_bytes()]), Err(NotACommand), "{bad:?}");
        }
        assert_eq!(notable(&[&vec![b'x'; LINE_MAX + 1]]), Err(NotACommand));
    }

    fn command() -> impl Strategy<Value = (Vec<u8>, Option<Notable>, u64)> {
        let word =
            prop_oneof![Just("INFO".to_owned()), Just("ROLE".to_owned()), "[a-z]{1,14}", Just("psyncd".to_owned())];
        let words = prop::collection::vec(word, 1..5).prop_map(|mut words| {
            // The first word decides, except for those that need a second.
            if words[0].len() > 4 {
                words[0].insert(0, '_')
            }
            let verb = match words[0].as_str() {
                "INFO" => Some(Notable::Info { psyncd: words[1..].iter().any(|word| word == "psyncd") }),
                "ROLE" => Some(Notable::Role),
                _ => None,
            };
            (words, verb)
        });
        let plain = words.prop_filter("no other verb by chance", |(words, verb)| {
            verb.is_some() || Verb::first(words[0].as_bytes()) == Verb::Other
        });
        prop_oneof![
            plain.clone().prop_map(|(words, verb)| (encode_command(&words).to_vec(), verb, 1)),
            plain.prop_map(|(words, verb)| (format!("{}\n", words.join("  ")).into_bytes(), verb, 1)),
            (0usize..100_000).prop_map(|len| (
                encode_command(&[&b"SET"[..], b"INFO", &vec![b'*'; len]]).to_vec(),
                None,
                1
            )),
            Just((b"*0\r\n\r\n".to_vec(), None, 0)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn commands_are_counted_however_they_arrive(commands in prop::collection::vec(command(), 0..10), cuts in chop::cuts()) {
            let all: Vec<u8> = commands.iter().flat_map(|(bytes, ..)| bytes.clone()).collect();
            let mut number = 0;
            let mut expected = vec![];
            for (_, verb, counts) in &commands {
                expected.extend(verb.map(|verb| (number, verb)));
                number += counts;
            }
            prop_assert_eq!(notable(&chop::pieces(&all, &cuts)), Ok((expected, number)));
        }

        #[test]
        fn nothing_makes_it_panic(input in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Watcher::default().watch(&input);
        }
    }
}
