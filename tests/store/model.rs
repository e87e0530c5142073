//! What a journal was told, byte for byte, and what it may therefore claim.

use std::path::PathBuf;

use bytes::Bytes;
use psyncd::repl::{History, Offset, ReplId};
use psyncd::store::archive::Archive;
use psyncd::store::journal::{Journal, Options, Recovered, Room};

pub const DIR: &str = "/journal";
pub const UPSTREAM: &str = "master:6379";
pub const DEPTH: usize = 16;

pub fn options(segment_bytes: u64) -> Options {
    Options {
        dir: PathBuf::from(DIR),
        room: Room { limit_bytes: u64::MAX, hard_limit_bytes: u64::MAX, keep: None },
        segment_bytes,
        upstream: UPSTREAM.to_owned(),
        adopt: false,
        history_depth: DEPTH,
    }
}

pub fn id(n: u64) -> ReplId {
    ReplId::from_ascii(format!("{n:040x}").as_bytes()).unwrap()
}

/// One unbroken stream as it is at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    pub history: History,
    /// The offset of the first byte.
    pub start: Offset,
    pub bytes: Vec<u8>,
    pub boundary: Offset,
}

impl Stream {
    pub fn new(start: Offset, name: u64) -> Self {
        Self { history: History::new(id(name), DEPTH), start, bytes: Vec::new(), boundary: start }
    }

    pub fn end(&self) -> Offset {
        self.start.forward(self.bytes.len() as u64)
    }

    /// The bytes from `from` up to `to`.
    pub fn slice(&self, from: Offset, to: Offset) -> &[u8] {
        &self.bytes[from.since(self.start) as usize..to.since(self.start) as usize]
    }

    /// Bytes that differ from place to place and from name to name, so that none can stand in for another.
    pub fn make(&self, length: usize) -> Bytes {
        let salt = u64::from_str_radix(&self.history.current().as_str()[24..], 16).unwrap();
        let first = self.end().get();
        (first..first + length as u64)
            .map(|n| ((n ^ salt.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect::<Vec<u8>>()
            .into()
    }

    pub fn push(&mut self, bytes: &[u8], boundary: Offset) {
        self.bytes.extend_from_slice(bytes);
        self.boundary = boundary;
    }

    pub fn turn(&mut self, name: u64) {
        self.history.branch(self.end(), id(name));
    }

    pub fn cut(&mut self, at: Offset, name: u64) {
        self.bytes.truncate(at.since(self.start) as usize);
        self.history.branch(at, id(name));
        self.boundary = at;
    }
}

/// Everything the archive claims, read `max` bytes at a time.
pub async fn read_all(archive: &Archive, max: usize) -> Vec<u8> {
    let Some(window) = archive.window() else { return Vec::new() };
    let mut at = window.start;
    let mut all = Vec::new();
    while at < window.end {
        let bytes = archive.read(at, max).await.unwrap_or_else(|error| panic!("read at {at} of {window:?}: {error}"));
        assert!(!bytes.is_empty() && bytes.len() <= max, "{} bytes at {at} of {window:?}", bytes.len());
        at = at.forward(bytes.len() as u64);
        all.extend_from_slice(&bytes);
    }
    assert!(archive.read(window.end, max).await.unwrap().is_empty());
    all
}

/// What is claimed must be the model's bytes, to its end.
pub async fn check(journal: &Journal, stream: &Stream, max: usize) {
    let archive = journal.archive();
    let window = archive.window().expect("something was begun");
    assert_eq!(window.end, stream.end());
    assert!(window.start >= stream.start);
    assert!(read_all(&archive, max).await == stream.slice(window.start, window.end), "wrong bytes in {window:?}");
}

/// What was found must be what the model says, to its end.
pub fn check_recovered(recovered: &Recovered, stream: &Stream) {
    assert_eq!(recovered.window.end, stream.end());
    assert_eq!(recovered.history, stream.history);
    assert_eq!(recovered.boundary, stream.boundary);
    assert!(recovered.marks.windows(2).all(|pair| pair[0].0 < pair[1].0), "{:?}", recovered.marks);
    assert!(recovered.marks.iter().all(|mark| recovered.window.serves(mark.0)), "{recovered:?}");
}
