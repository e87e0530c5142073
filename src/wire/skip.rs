//! Passing over replies without reading them: where does the next one begin?
//!
//! A reply is one item; an array, a set or a map is followed by its items, and an attribute by its own and by the
//! reply it belongs to. The order in which items nest does not matter for where they end, so a count replaces a stack:
//!
//! ```text
//!            ┌───────────── line CR LF, no length ◀─────────────┐
//!            ▼                                                  │
//!  ───────▶ Item ── + - : _ # , ( ──────────────────────────▶ Line
//!            ▲ ▲─── * ~ > % | ── count CR LF ◀── Number ◀───────┤
//!            │ └─── $ = ! ────── length CR LF ◀── Number ◀──────┘
//!            └────────────── Body (skipped unseen) ◀──┘
//! ```
//!
//! RESP3's push frames (`>`) answer nobody: they are passed over and not counted.

use super::scan::short_header;

/// Most digits of a length or a count.
const DIGITS_MAX: u8 = 18;

/// A place in a stream of replies.
#[derive(Debug, Clone)]
pub struct Skipper {
    state: State,
    /// Items of the current frame that have not begun; 0 also between frames.
    wanted: u64,
    frame: Frame,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Where an item begins.
    Item,
    /// In an item that is a line, up to its LF.
    Line,
    /// In the number of a header.
    Number { kind: u8, value: u64, digits: u8, minus: bool },
    /// Behind the CR of a header.
    NumberLf { kind: u8, value: u64, minus: bool },
    /// In a string; its line end is counted.
    Body { left: u64 },
}

/// Whether somebody asked for the current frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    Reply,
    Push,
}

/// How far a skip went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skipped {
    /// Bytes passed.
    pub bytes: usize,
    /// Replies that ended in them.
    pub replies: u64,
}

/// These bytes are no replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("byte 0x{0:02x} cannot stand in a reply")]
pub struct NotAReply(pub u8);

impl Default for Skipper {
    fn default() -> Self {
        Self { state: State::Item, wanted: 0, frame: Frame::Reply }
    }
}

impl Skipper {
    /// Passes at most `replies` replies, and push frames. It stops at the end of `data`, or where a further reply
    /// begins: with 0 it passes push frames only.
    ///
    /// # Errors
    /// At the first byte that can be no reply's. The place is lost then.
    pub fn skip(&mut self, data: &[u8], replies: u64) -> Result<Skipped, NotAReply> {
        let mut at = 0;
        let mut passed = 0;
        while let Some(&byte) = data.get(at) {
            match self.state {
                State::Item => {
                    if self.wanted == 0 {
                        self.frame = if byte == b'>' { Frame::Push } else { Frame::Reply };
                        if self.frame == Frame::Reply && passed == replies {
                            break;
                        }
                        self.wanted = 1;
                    }
                    at = self.strings(data, at);
                    if self.wanted > 0 && at < data.len() {
                        self.wanted -= 1;
                        at = self.item(data, at)?;
                    }
                }
                State::Line => at = self.line(data, at),
                State::Body { left } => at = self.body(data, at, left),
                State::Number { .. } | State::NumberLf { .. } => {
                    self.step(byte)?;
                    at += 1;
                }
            }
            if self.state == State::Item && self.wanted == 0 {
                passed += u64::from(self.frame == Frame::Reply);
            }
        }
        Ok(Skipped { bytes: at, replies: passed })
    }

    /// Takes whole strings as long as there are any and they are wanted: what most replies are made of.
    #[inline]
    fn strings(&mut self, data: &[u8], mut at: usize) -> usize {
        // Kept out of the struct: in a long array this loop is where the time goes.
        let mut wanted = self.wanted;
        while wanted > 0
            && let Some((len, next)) = short_header(data, at, b'$')
            && next + len as usize + 2 <= data.len()
        {
            at = next + len as usize + 2;
            wanted -= 1;
        }
        self.wanted = wanted;
        at
    }

    /// Takes as much as there is of the item that begins at `at`.
    #[inline]
    fn item(&mut self, data: &[u8], at: usize) -> Result<usize, NotAReply> {
        let kind = data[at];
        match kind {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => Ok(self.line(data, at + 1)),
            b'$' | b'*' | b'=' | b'!' | b'~' | b'>' | b'%' | b'|' => match short_header(data, at, kind) {
                Some((value, next)) => {
                    self.counted(kind, u64::from(value));
                    match self.state {
                        State::Body { left } => Ok(self.body(data, next, left)),
                        _ => Ok(next),
                    }
                }
                None => {
                    self.state = State::Number { kind, value: 0, digits: 0, minus: false };
                    Ok(at + 1)
                }
            },
            other => Err(NotAReply(other)),
        }
    }

    #[inline]
    fn line(&mut self, data: &[u8], at: usize) -> usize {
        match data[at..].iter().position(|&byte| byte == b'\n') {
            Some(lf) => {
                self.state = State::Item;
                at + lf + 1
            }
            None => {
                self.state = State::Line;
                data.len()
            }
        }
    }

    #[inline]
    fn body(&mut self, data: &[u8], at: usize, left: u64) -> usize {
        let take = usize::try_from(left).map_or(data.len() - at, |left| left.min(data.len() - at));
        let left = left - take as u64;
        self.state = if left == 0 { State::Item } else { State::Body { left } };
        at + take
    }

    /// The header of an item is complete.
    #[inline]
    fn counted(&mut self, kind: u8, value: u64) {
        self.state = State::Item;
        match kind {
            b'$' | b'=' | b'!' => self.state = State::Body { left: value + 2 },
            b'%' => self.wanted = self.wanted.saturating_add(value * 2),
            b'|' => self.wanted = self.wanted.saturating_add(value * 2 + 1),
            _ => self.wanted = self.wanted.saturating_add(value),
        }
    }

    fn step(&mut self, byte: u8) -> Result<(), NotAReply> {
        self.state = match (self.state, byte) {
            (State::Number { kind, digits: 0, minus: false, .. }, b'-') => {
                State::Number { kind, value: 0, digits: 0, minus: true }
            }
            (State::Number { kind, value, digits, minus }, b'0'..=b'9') if digits < DIGITS_MAX => {
                State::Number { kind, value: value * 10 + u64::from(byte - b'0'), digits: digits + 1, minus }
            }
            (State::Number { kind, value, digits: 1.., minus }, b'\r') => State::NumberLf { kind, value, minus },
            // The null string and the null array of RESP2 end with their header.
            (State::NumberLf { kind: b'$' | b'*', value: 1, minus: true }, b'\n') => State::Item,
            (State::NumberLf { kind, value, minus: false }, b'\n') => {
                self.counted(kind, value);
                return Ok(());
            }
            _ => return Err(NotAReply(byte)),
        };
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::chop;
    use crate::wire::resp::reply_len;
    use proptest::prelude::*;

    #[test]
    fn it_stops_where_the_next_reply_begins() {
        let data = b"+OK\r\n>2\r\n+invalidate\r\n_\r\n$3\r\nabc\r\n>0\r\n:1\r\n";
        let mut skipper = Skipper::default();
        assert_eq!(skipper.skip(data, 1), Ok(Skipped { bytes: 25, replies: 1 }), "the push behind it goes with it");
        assert_eq!(skipper.skip(&data[25..], 0), Ok(Skipped { bytes: 0, replies: 0 }));
        assert_eq!(skipper.skip(&data[25..], 1), Ok(Skipped { bytes: 13, replies: 1 }));
        assert_eq!(skipper.skip(&data[38..], 9), Ok(Skipped { bytes: 4, replies: 1 }));
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for bad in ["x", "$?\r\n", "*-2\r\n", "$-\r\n", "$\r\n", "*1\n", "%-1\r\n", "$1234567890123456789\r\n", "\r\n"]
        {
            assert!(Skipper::default().skip(bad.as_bytes(), 9).is_err(), "{bad:?}");
        }
    }

    /// Replies of every type, nested.
    pub(crate) fn reply() -> impl Strategy<Value = Vec<u8>> {
        let text = |front: &'static str| move |s: String| format!("{front}{s}\r\n").into_bytes();
        let leaf = prop_oneof![
            "[ -~]{0,12}".prop_map(text("+")),
            "[ -~]{0,12}".prop_map(text("-")),
            any::<i64>().prop_map(|n| format!(":{n}\r\n").into_bytes()),
            Just(b"_\r\n".to_vec()),
            Just(b"#t\r\n".to_vec()),
            Just(b"$-1\r\n".to_vec()),
            Just(b"*-1\r\n".to_vec()),
            (prop_oneof![Just('$'), Just('='), Just('!')], prop::collection::vec(any::<u8>(), 0..20))
                .prop_map(|(kind, body)| [format!("{kind}{}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat()),
            (0usize..200_000).prop_map(|len| [format!("${len}\r\n").as_bytes(), &vec![b'\n'; len], b"\r\n"].concat()),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            prop_oneof![
                (prop_oneof![Just('*'), Just('~')], prop::collection::vec(inner.clone(), 0..5)).prop_map(
                    |(kind, items)| [format!("{kind}{}\r\n", items.len()).into_bytes(), items.concat()].concat()
                ),
                (prop_oneof![Just('%'), Just('|')], prop::collection::vec((inner.clone(), inner.clone()), 0..3), inner)
                    .prop_map(|(kind, pairs, behind)| {
                        let mut whole = format!("{kind}{}\r\n", pairs.len()).into_bytes();
                        whole.extend(pairs.into_iter().flat_map(|(key, value)| [key, value].concat()));
                        if kind == '|' {
                            whole.extend(behind);
                        }
                        whole
                    }),
            ]
        })
    }

    fn push() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(reply(), 0..3)
            .prop_map(|items| [format!(">{}\r\n", items.len()).into_bytes(), items.concat()].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn replies_are_counted_however_they_arrive(
            frames in prop::collection::vec(prop_oneof![4 => reply().prop_map(|r| (1u64, r)), 1 => push().prop_map(|r| (0, r))], 0..8),
            cuts in chop::cuts(),
            ask in 1u64..5,
        ) {
            let mut ends = vec![];
            let mut all = Vec::new();
            for (counts, bytes) in &frames {
                prop_assert_eq!(reply_len(bytes, usize::MAX), Ok(Some(bytes.len())));
                all.extend_from_slice(bytes);
                if *counts == 1 { ends.push(all.len()); }
            }
            let mut skipper = Skipper::default();
            let (mut at, mut count) = (0, 0);
            for piece in chop::pieces(&all, &cuts) {
                let mut piece = piece;
                while !piece.is_empty() {
                    let skipped = skipper.skip(piece, ask).unwrap();
                    prop_assert!(skipped.replies <= ask);
                    prop_assert!(skipped.bytes > 0);
                    piece = &piece[skipped.bytes..];
                    at += skipped.bytes;
                    count += skipped.replies;
                    prop_assert_eq!(count as usize, ends.iter().filter(|end| **end <= at).count());
                }
            }
            prop_assert_eq!((at, count as usize), (all.len(), ends.len()));
        }

        #[test]
        fn nothing_makes_it_panic(input in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Skipper::default().skip(&input, 1000);
        }
    }
}
