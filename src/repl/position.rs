//! Where a byte stands in a replication stream, and in whose.

use std::fmt;
use std::str::FromStr;

/// A replication id: forty hexadecimal characters, compared without regard to case at the wire and
/// kept in lower case, because a replica compares the id of a `+CONTINUE` case-sensitively
/// (redis replication.c, `slaveTryPartialResynchronization`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplId([u8; ReplId::LEN]);

impl ReplId {
    /// Characters of an id.
    pub const LEN: usize = 40;

    /// Reads exactly forty hexadecimal characters of either case.
    ///
    /// ```
    /// use psyncd::repl::ReplId;
    /// let id = ReplId::from_ascii(&[b'A'; 40]).unwrap();
    /// assert_eq!(id.as_str(), "a".repeat(40));
    /// assert!(ReplId::from_ascii(b"?").is_none());
    /// ```
    pub fn from_ascii(text: &[u8]) -> Option<Self> {
        let mut id: [u8; Self::LEN] = text.try_into().ok()?;
        if !id.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        id.make_ascii_lowercase();
        Some(Self(id))
    }

    /// The id in lower case.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("only hexadecimal digits are ever stored")
    }

    /// The first eight characters, enough to tell ids apart in a log line.
    pub fn short(&self) -> &str {
        &self.as_str()[..8]
    }
}

impl FromStr for ReplId {
    type Err = InvalidReplId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_ascii(text.as_bytes()).ok_or(InvalidReplId)
    }
}

/// The text is not forty hexadecimal characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a replication id is forty hexadecimal characters")]
pub struct InvalidReplId;

impl fmt::Display for ReplId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ReplId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplId({})", self.short())
    }
}

/// How many stream bytes came before a point. Ordered only within one lineage.
///
/// The protocol's "next byte wanted" is this plus one and exists only inside [`crate::wire`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(u64);

impl Offset {
    /// The beginning of a stream.
    pub const ZERO: Offset = Offset(0);

    /// The point behind `bytes` stream bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of stream bytes before this point.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The point `bytes` further on. A stream of 2^64 bytes does not exist, so this saturates.
    #[must_use]
    pub const fn forward(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// The point `bytes` earlier, or the beginning of the stream.
    #[must_use]
    pub const fn back(self, bytes: u64) -> Self {
        Self(self.0.saturating_sub(bytes))
    }

    /// Bytes from `earlier` to here; 0 when `earlier` is not earlier.
    pub const fn since(self, earlier: Offset) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}

/// A contiguous run of stream bytes: from `start` (inclusive) to `end` (exclusive).
///
/// A reader may stand at any point from `start` to `end`, both inclusive: at `end` it has everything
/// and waits for the next byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first byte held.
    pub start: Offset,
    /// One past the last byte held.
    pub end: Offset,
}

impl Span {
    /// The empty run at `at`.
    pub const fn empty(at: Offset) -> Self {
        Self { start: at, end: at }
    }

    /// Whether a reader standing at `point` can be served from here on.
    pub fn serves(&self, point: Offset) -> bool {
        self.start <= point && point <= self.end
    }

    /// Bytes held.
    pub const fn len(&self) -> u64 {
        self.end.since(self.start)
    }

    /// Whether no byte is held.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An offset together with the id that gives it meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// Whose stream.
    pub id: ReplId,
    /// Where in it.
    pub offset: Offset,
}

impl Position {
    /// The point `offset` in the stream of `id`.
    pub const fn new(id: ReplId, offset: Offset) -> Self {
        Self { id, offset }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.id, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_case_blind_inward_and_lower_case_outward() {
        let upper = ReplId::from_ascii(b"ABCDEF0123456789ABCDEF0123456789ABCDEF01").unwrap();
        let lower: ReplId = "abcdef0123456789abcdef0123456789abcdef01".parse().unwrap();
        assert_eq!(upper, lower);
        assert_eq!(upper.to_string(), "abcdef0123456789abcdef0123456789abcdef01");
    }

    #[test]
    fn anything_but_forty_hexadecimal_characters_is_no_id() {
        for bad in ["", "?", "abc", &"g".repeat(40), &"a".repeat(39), &"a".repeat(41)] {
            assert!(bad.parse::<ReplId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_span_serves_its_end_but_not_beyond() {
        let span = Span { start: Offset::new(5), end: Offset::new(9) };
        let served: Vec<u64> = (0..12).filter(|&o| span.serves(Offset::new(o))).collect();
        assert_eq!(served, [5, 6, 7, 8, 9]);
        assert_eq!(span.len(), 4);
        assert!(Span::empty(Offset::new(5)).serves(Offset::new(5)));
    }
}
