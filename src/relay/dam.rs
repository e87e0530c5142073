//! A point of the stream that no replica is sent anything beyond, for as long as a planned failover takes.
//!
//! A dam holds what is read and nothing else: the link goes on appending, and what was sent cannot be called back.

use std::sync::Arc;

use super::Relay;
use crate::repl::Offset;

/// Holds the replicas at a point while it lives, or until the stream goes on under another id. At most one exists.
#[derive(Debug)]
pub struct Dam {
    relay: Arc<Relay>,
    at: Offset,
    stream: Stream,
}

/// Which stream it stands in: of another it knows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    generation: u64,
    branches: u64,
}

impl Relay {
    /// Dams the stream at `at`, or at the head if that has come further: what is there may have been sent. `None`
    /// without a stream, or while there is a dam.
    pub fn dam(self: &Arc<Self>, at: Offset) -> Option<Dam> {
        let mut state = self.state();
        let line = state.line.as_ref()?;
        let stream = Stream { generation: line.generation, branches: line.branches };
        let at = at.max(line.window().end);
        if state.dam.is_some() {
            return None;
        }
        state.dam = Some(at);
        drop(state);
        Some(Dam { relay: Arc::clone(self), at, stream })
    }
}

impl Dam {
    /// Where it is.
    pub fn at(&self) -> Offset {
        self.at
    }

    /// Moves it to the head, or leaves it where it is if that has not come so far.
    pub fn raise(&mut self) {
        let mut state = self.relay.state();
        if let Some(line) = state.line.as_ref().filter(|line| self.stands_in(line)) {
            self.at = self.at.max(line.window().end);
            state.dam = Some(self.at);
            drop(state);
            self.relay.grown.notify_waiters();
        }
    }

    /// Waits until the stream has come so far. Cancel-safe.
    pub async fn filled(&self) {
        loop {
            let grown = self.relay.grown();
            tokio::pin!(grown);
            grown.as_mut().enable();
            if self.relay.head() >= self.at {
                return;
            }
            grown.await;
        }
    }

    /// Waits until the stream goes on under another id, or another stream has taken its place: then nothing is held
    /// any more. Cancel-safe.
    pub async fn gone(&self) {
        loop {
            let turned = self.relay.turned();
            tokio::pin!(turned);
            turned.as_mut().enable();
            if !self.relay.state().line.as_ref().is_some_and(|line| self.stands_in(line)) {
                return;
            }
            turned.await;
        }
    }

    fn stands_in(&self, line: &super::Line) -> bool {
        self.stream == Stream { generation: line.generation, branches: line.branches }
    }
}

impl Drop for Dam {
    fn drop(&mut self) {
        let mut state = self.relay.state();
        if state.line.as_ref().is_some_and(|line| self.stands_in(line)) {
            state.dam = None;
        }
        drop(state);
        self.relay.grown.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytes::Bytes;

    use super::*;
    use crate::relay::Options;
    use crate::relay::cursor::{Follow, Next};
    use crate::repl::{Position, ReplId};

    fn id(digit: u8) -> ReplId {
        ReplId::from_ascii(&[digit; 40]).unwrap()
    }

    fn relay() -> Arc<Relay> {
        let options = Options {
            backlog_bytes: 1 << 20,
            journal_bytes: 0,
            journal_lag_bytes: 0,
            history_depth: 4,
            max_replicas: 4,
        };
        let relay = Relay::new(options);
        relay.adopt(Position::new(id(b'a'), Offset::new(100)), Offset::new(100), None, None);
        relay
    }

    fn append(relay: &Relay, bytes: &'static [u8]) {
        let end = relay.head().forward(bytes.len() as u64);
        relay.append(Bytes::from_static(bytes), end);
    }

    #[test]
    fn nothing_beyond_a_dam_is_read_until_it_is_gone() {
        let relay = relay();
        let mut cursor = relay.cursor(&Position::new(id(b'a'), Offset::new(100)), Follow::Id).unwrap();
        let mut out = VecDeque::new();
        let mut read = |most| relay.read(&mut cursor, most, 9, &mut out);
        append(&relay, b"abc");
        let mut dam = relay.dam(Offset::new(105)).unwrap();
        assert!(relay.dam(Offset::new(105)).is_none(), "there is one");
        append(&relay, b"defgh");
        assert_eq!((read(99), read(99)), (Next::Bytes(5), Next::CaughtUp));
        dam.raise();
        assert_eq!(dam.at(), Offset::new(108));
        assert_eq!(read(2), Next::Bytes(2));
        append(&relay, b"ij");
        assert_eq!((read(99), read(99)), (Next::Bytes(1), Next::CaughtUp));
        drop(dam);
        assert_eq!(read(99), Next::Bytes(2));
        assert!(relay.dam(Offset::ZERO).is_some_and(|dam| dam.at() == Offset::new(110)), "never below the head");
    }

    #[tokio::test]
    async fn a_dam_ends_with_the_stream_it_stands_in() {
        let relay = relay();
        append(&relay, b"abc");
        let dam = relay.dam(relay.head()).unwrap();
        append(&relay, b"d");
        dam.filled().await;
        relay.branch(Offset::new(103), id(b'b'));
        dam.gone().await;
        let later = relay.dam(Offset::new(103)).unwrap();
        drop(dam);
        append(&relay, b"xyz");
        let mut cursor = relay.cursor(&Position::new(id(b'b'), Offset::new(103)), Follow::Id).unwrap();
        assert_eq!(relay.read(&mut cursor, 9, 9, &mut VecDeque::new()), Next::CaughtUp, "the later one stands");
        drop(later);
    }
}
