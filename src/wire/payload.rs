//! The frame an RDB comes in.
//!
//! ```text
//! ( LF | CR LF )*                              keepalives, about one per second, until the header
//! "$" length CR LF  length bytes               the stream follows at once, no line end between
//! "$EOF:" mark[40] ... CR LF  bytes  mark[40]  nothing may follow before our first ACK
//! "-" error CR LF                              the master gave up
//! ```
//!
//! (redis replication.c, `readSyncBulkPayload`.) What is in the frame is for [`super::rdb`] to judge.

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;

use super::resp::parse_line;
use super::text;

/// Bytes of the mark that ends a payload of unknown length.
pub const MARK_LEN: usize = 40;
/// Longest payload header in bytes, without its line end.
const HEADER_MAX: usize = 1022;

/// Takes a payload out of its frame, from input cut anywhere.
///
/// Call [`PayloadReceiver::push`] with the same buffer until it says `None`, then read more into the
/// buffer. Events come in the order `KeepAlive*`, `Header`, `Data*`, `End`. After `End` nothing more is
/// taken: what is left in the buffer is the stream.
///
/// ```
/// use bytes::BytesMut;
/// use psyncd::wire::payload::{PayloadEvent, PayloadLength, PayloadReceiver};
/// let mut input = BytesMut::from("\n$3\r\nabc*1\r\n");
/// let mut receiver = PayloadReceiver::new();
/// let mut events = Vec::new();
/// while let Some(event) = receiver.push(&mut input).unwrap() {
///     events.push(event);
/// }
/// assert_eq!(events, [
///     PayloadEvent::KeepAlive,
///     PayloadEvent::Header(PayloadLength::Known(3)),
///     PayloadEvent::Data("abc".into()),
///     PayloadEvent::End,
/// ]);
/// assert_eq!(input, "*1\r\n");
/// ```
#[derive(Debug, Clone)]
pub struct PayloadReceiver {
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Header,
    Known { left: u64 },
    UntilMark(Box<Finder<'static>>),
    Finished,
}

/// What came out of the frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PayloadEvent {
    /// An empty line: the master is still preparing the payload. Any number may come.
    KeepAlive,
    /// The payload begins.
    Header(PayloadLength),
    /// The next bytes of the payload; never empty, shared with the input. What may still be the mark is
    /// held back, 39 bytes at most.
    Data(Bytes),
    /// The payload is complete as far as its frame goes.
    End,
}

/// How a payload ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadLength {
    /// After so many bytes.
    Known(u64),
    /// With the mark. The first forty bytes equal to it end the payload; should a data set contain its own
    /// mark, [`RdbCheck`](super::rdb::RdbCheck) refuses the stump.
    UntilMark,
}

/// Why no payload will come on this link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// The master said an error instead of the header; the text is without its dash.
    #[error("the master gave up: {0}")]
    Refused(String),
    /// Something else instead of the header.
    #[error("no payload header: {0}")]
    BadHeader(String),
    /// A payload of no bytes, which no server writes and real replicas hang on.
    #[error("the payload is empty")]
    Empty,
}

impl Default for PayloadReceiver {
    fn default() -> Self {
        Self::new()
    }
}

impl PayloadReceiver {
    /// A receiver that waits for the header.
    pub fn new() -> Self {
        Self { state: State::Header }
    }

    /// The next event at the front of `input`, whose bytes are taken out of it. `None`: more is needed, or
    /// everything was said.
    ///
    /// # Errors
    /// When no payload will come. The receiver is then of no use.
    pub fn push(&mut self, input: &mut BytesMut) -> Result<Option<PayloadEvent>, PayloadError> {
        match &mut self.state {
            State::Header => self.push_header(input),
            State::Known { left: 0 } => {
                self.state = State::Finished;
                Ok(Some(PayloadEvent::End))
            }
            State::Known { left } => {
                let take = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= take as u64;
                Ok(data(input, take))
            }
            State::UntilMark(finder) => match finder.find(input) {
                Some(0) => {
                    let _mark = input.split_to(MARK_LEN);
                    self.state = State::Finished;
                    Ok(Some(PayloadEvent::End))
                }
                Some(at) => Ok(data(input, at)),
                None => {
                    let held = mark_begun(input, finder.needle());
                    Ok(data(input, input.len() - held))
                }
            },
            State::Finished => Ok(None),
        }
    }

    fn push_header(&mut self, input: &mut BytesMut) -> Result<Option<PayloadEvent>, PayloadError> {
        match input.first() {
            None => return Ok(None),
            Some(b'\r' | b'\n' | b'-' | b'$') => {}
            Some(&other) => return Err(PayloadError::BadHeader(text::excerpt(&[other]))),
        }
        let front = |input: &[u8]| text::excerpt(&input[..input.len().min(80)]);
        let (line, used) = match parse_line(input, HEADER_MAX) {
            Ok(None) => return Ok(None),
            Ok(Some(found)) => found,
            Err(_) => return Err(PayloadError::BadHeader(front(input))),
        };
        let (state, event) = match line {
            [] => (State::Header, PayloadEvent::KeepAlive),
            [b'-', error @ ..] => return Err(PayloadError::Refused(text::excerpt(error))),
            [b'$', b'E', b'O', b'F', b':', mark @ ..] if mark.len() >= MARK_LEN => {
                // What follows the forty bytes is ignored, as Redis does.
                let finder = Finder::new(&mark[..MARK_LEN]).into_owned();
                (State::UntilMark(Box::new(finder)), PayloadEvent::Header(PayloadLength::UntilMark))
            }
            _ => match line.strip_prefix(b"$").and_then(text::natural) {
                None => return Err(PayloadError::BadHeader(front(line))),
                Some(0) => return Err(PayloadError::Empty),
                Some(len) => (State::Known { left: len }, PayloadEvent::Header(PayloadLength::Known(len))),
            },
        };
        self.state = state;
        let _line = input.split_to(used);
        Ok(Some(event))
    }
}

/// `take` bytes off the front, unless that is none.
fn data(input: &mut BytesMut, take: usize) -> Option<PayloadEvent> {
    (take > 0).then(|| PayloadEvent::Data(input.split_to(take).freeze()))
}

/// How many bytes at the end of `input` may be the beginning of `mark`.
fn mark_begun(input: &[u8], mark: &[u8]) -> usize {
    let longest = input.len().min(mark.len() - 1);
    (1..=longest).rev().find(|&held| input.ends_with(&mark[..held])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::chop;
    use proptest::prelude::*;

    const MARK: &[u8; MARK_LEN] = b"0123456789abcdefghijklmnopqrstuvwxyzABCD";

    /// Everything a receiver says to `pieces`: events with neighbouring data joined, and what it left.
    fn receive(pieces: &[&[u8]]) -> (Vec<PayloadEvent>, Option<PayloadError>, Vec<u8>) {
        let (mut input, mut receiver) = (BytesMut::new(), PayloadReceiver::new());
        let mut events: Vec<PayloadEvent> = Vec::new();
        let mut error = None;
        for piece in pieces {
            input.extend_from_slice(piece);
            while error.is_none() {
                match receiver.push(&mut input) {
                    Ok(None) => break,
                    Ok(Some(PayloadEvent::Data(more))) => {
                        assert!(!more.is_empty());
                        match events.last_mut() {
                            Some(PayloadEvent::Data(data)) => *data = [&data[..], &more].concat().into(),
                            _ => events.push(PayloadEvent::Data(more)),
                        }
                    }
                    Ok(Some(event)) => events.push(event),
                    Err(failed) => error = Some(failed),
                }
            }
        }
        (events, error, input.to_vec())
    }

    fn refused(input: &[u8]) -> PayloadError {
        receive(&[input]).1.unwrap()
    }

    #[test]
    fn the_stream_may_follow_a_payload_of_known_length_at_once() {
        let (events, error, left) = receive(&[b"\n\r\n\n$5\r\nREDIS*1\r\n"]);
        assert_eq!(
            events,
            [
                PayloadEvent::KeepAlive,
                PayloadEvent::KeepAlive,
                PayloadEvent::KeepAlive,
                PayloadEvent::Header(PayloadLength::Known(5)),
                PayloadEvent::Data("REDIS".into()),
                PayloadEvent::End
            ]
        );
        assert_eq!((error, left), (None, b"*1\r\n".to_vec()));
    }

    #[test]
    fn any_number_of_keepalives_is_tolerated() {
        let input = [&[b'\n'; 300][..], b"$1\r\nx"].concat();
        assert_eq!(receive(&[&input]).0.len(), 303);
    }

    #[test]
    fn the_mark_is_found_even_if_the_payload_ends_with_its_beginning() {
        let body = [b"abc0123456789abcdef".as_slice(), &MARK[..39]].concat();
        let input = [b"$EOF:".as_slice(), MARK, b"\r\n", &body, MARK, b"*1"].concat();
        let expected =
            vec![PayloadEvent::Header(PayloadLength::UntilMark), PayloadEvent::Data(body.into()), PayloadEvent::End];
        assert_eq!(receive(&[&input]), (expected.clone(), None, b"*1".to_vec()));
        let single: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(receive(&single), (expected, None, b"*1".to_vec()));
    }

    #[test]
    fn only_what_may_be_the_mark_is_held_back() {
        let (mut input, mut receiver) = (BytesMut::new(), PayloadReceiver::new());
        input.extend_from_slice(&[b"$EOF:".as_slice(), MARK, b"\r\npayload012"].concat());
        receiver.push(&mut input).unwrap();
        assert_eq!(receiver.push(&mut input), Ok(Some(PayloadEvent::Data("payload".into()))));
        assert_eq!(receiver.push(&mut input), Ok(None));
        input.extend_from_slice(b"x");
        assert_eq!(receiver.push(&mut input), Ok(Some(PayloadEvent::Data("012x".into()))));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        assert_eq!(refused(b"\n-ERR fork failed\r\n"), PayloadError::Refused("ERR fork failed".into()));
        assert_eq!(refused(b"$0\r\n"), PayloadError::Empty);
        for bad in
            ["$-1\r\n", "$\r\n", "$12x\r\n", "$EOF:tooshort\r\n", "$ENDOFF:1 2 3 4\r\n", "+OK\r\n", "*1\r\n", "\rx\n"]
        {
            assert!(matches!(refused(bad.as_bytes()), PayloadError::BadHeader(_)), "{bad:?}");
        }
        assert!(matches!(refused(&[b'$'; 1100]), PayloadError::BadHeader(_)));
    }

    fn transfer() -> impl Strategy<Value = Vec<u8>> {
        let body = prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..50),
                (0..MARK_LEN).prop_map(|end| MARK[..end].to_vec()),
                Just(b"0000".to_vec()),
            ],
            0..6,
        )
        .prop_map(|parts| parts.concat());
        (0..4usize, any::<bool>(), body, prop::collection::vec(any::<u8>(), 0..50)).prop_map(
            |(newlines, marked, body, rest)| {
                let newlines = vec![b'\n'; newlines];
                if marked {
                    [&newlines, b"$EOF:".as_slice(), MARK, b"\r\n", &body, MARK, &rest].concat()
                } else {
                    [&newlines, format!("${}\r\n", body.len()).as_bytes(), &body, &rest].concat()
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_payload_comes_out_the_same_however_it_is_cut(
            input in prop_oneof![4 => transfer(), 1 => prop::collection::vec(any::<u8>(), 0..60),
                1 => "[$\\-\r\n0-9EOF:x]{0,60}".prop_map(String::into_bytes)],
            cuts in chop::cuts(),
        ) {
            let (events, error, left) = receive(&[&input]);
            let (cut_events, cut_error, cut_left) = receive(&chop::pieces(&input, &cuts));
            prop_assert_eq!(events, cut_events);
            prop_assert_eq!(&error, &cut_error);
            prop_assert!(error.is_some() || left == cut_left);
        }
    }
}
