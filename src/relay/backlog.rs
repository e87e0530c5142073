//! The circular backlog: stream bytes in shared immutable chunks, addressed by offset, bounded in bytes.
//!
//! Chunks are what the link read, by reference: no byte is copied on the way in, and none per replica. Only
//! where a slow stream leaves many tiny chunks are these merged, once, into one.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::repl::{Offset, Span};

/// Chunks of one run that are kept as they are; a run of more is merged when it is full.
const FRAGMENTS: usize = 16;
/// The size of a run in bytes, for backlogs large enough.
const RUN: usize = 256 * 1024;

/// A contiguous piece of the stream, `[start, head)`, that drops its oldest chunks when it is full.
#[derive(Debug)]
pub struct Backlog {
    chunks: VecDeque<Chunk>,
    head: Offset,
    limit: u64,
    run_limit: usize,
    /// Chunks and bytes at the end that belong to the run being filled.
    run_chunks: usize,
    run_bytes: usize,
}

/// What may not be dropped for newer bytes, and up to when.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Bytes from here on.
    pub from: Offset,
    /// As long as no more than this many bytes are held in all.
    pub limit: u64,
}

impl Kept {
    /// Nothing.
    pub const NOTHING: Kept = Kept { from: Offset::new(u64::MAX), limit: 0 };
}

/// What an append cost.
#[derive(Debug, Default)]
pub struct Dropped {
    /// Bytes dropped.
    pub bytes: u64,
    /// The last chunk dropped, whose memory may be of use to whoever reads the stream: memory that has been used
    /// before costs no page faults.
    pub last: Option<Bytes>,
}

#[derive(Debug)]
struct Chunk {
    start: Offset,
    bytes: Bytes,
    /// The last point between commands that was known when the chunk came.
    boundary: Offset,
}

impl Backlog {
    /// An empty backlog at `head` that holds at most `limit` bytes. It keeps whole chunks, so it may hold up to
    /// one chunk less than that.
    pub fn new(head: Offset, limit: u64) -> Self {
        Self { chunks: VecDeque::new(), head, limit, run_limit: run_limit(limit), run_chunks: 0, run_bytes: 0 }
    }

    /// Holds at most `limit` bytes from the next append on.
    pub fn resize(&mut self, limit: u64) {
        self.limit = limit;
        self.run_limit = run_limit(limit);
    }

    /// What is held.
    pub fn window(&self) -> Span {
        Span { start: self.chunks.front().map_or(self.head, |c| c.start), end: self.head }
    }

    /// The last point between commands known with the oldest chunk; `None` when nothing is held.
    pub fn first_boundary(&self) -> Option<Offset> {
        self.chunks.front().map(|chunk| chunk.boundary)
    }

    /// Adds the next bytes of the stream, and the last point between commands that is known with them. Drops as many
    /// of the oldest chunks as are in the way, but for what `kept` asks for.
    pub fn append(&mut self, bytes: Bytes, boundary: Offset, kept: Kept) -> Dropped {
        if bytes.is_empty() {
            return Dropped::default();
        }
        self.run_chunks += 1;
        self.run_bytes += bytes.len();
        let start = self.head;
        self.head = self.head.forward(bytes.len() as u64);
        self.chunks.push_back(Chunk { start, bytes, boundary });
        if self.run_bytes >= self.run_limit {
            self.close_run();
        }
        self.trim(kept)
    }

    /// Forgets everything from `at` on. `at` must be held or be the head.
    pub fn truncate(&mut self, at: Offset) {
        while let Some(last) = self.chunks.back_mut() {
            if last.start >= at {
                self.chunks.pop_back();
                continue;
            }
            let keep = at.since(last.start) as usize;
            last.bytes.truncate(keep);
            last.boundary = last.boundary.min(at);
            break;
        }
        self.head = self.head.min(at);
        self.run_chunks = 0;
        self.run_bytes = 0;
    }

    /// Appends to `out` at most `most` bytes from `from` on, in at most `slices` pieces; returns their number.
    /// `from` must be served by the window.
    pub fn read(&self, from: Offset, most: usize, slices: usize, out: &mut VecDeque<Bytes>) -> usize {
        let first = self.chunks.partition_point(|c| c.start.forward(c.bytes.len() as u64) <= from);
        let mut taken = 0;
        for chunk in self.chunks.range(first..).take(slices) {
            let skip = from.since(chunk.start) as usize;
            let room = most - taken;
            let piece = chunk.bytes.slice(skip..chunk.bytes.len().min(skip.saturating_add(room)));
            taken += piece.len();
            out.push_back(piece);
            if taken == most {
                break;
            }
        }
        taken
    }

    /// Appends to `out` whole chunks from `from` on, the first of them maybe only its rest, until they are `most` bytes
    /// or more; returns the last boundary known with the last of them, `None` at the head. `from` must be served by
    /// the window.
    pub fn read_whole(&self, from: Offset, most: usize, out: &mut Vec<Bytes>) -> Option<Offset> {
        let first = self.chunks.partition_point(|c| c.start.forward(c.bytes.len() as u64) <= from);
        let mut taken = 0;
        let mut boundary = None;
        for chunk in self.chunks.range(first..) {
            if taken >= most {
                break;
            }
            let piece = chunk.bytes.slice(from.since(chunk.start) as usize..);
            taken += piece.len();
            out.push(piece);
            boundary = Some(chunk.boundary);
        }
        boundary
    }

    fn close_run(&mut self) {
        if self.run_chunks > FRAGMENTS {
            let first = self.chunks.len() - self.run_chunks;
            let start = self.chunks[first].start;
            let mut boundary = self.chunks[first].boundary;
            let mut merged = BytesMut::with_capacity(self.run_bytes);
            for chunk in self.chunks.drain(first..) {
                merged.extend_from_slice(&chunk.bytes);
                boundary = chunk.boundary;
            }
            self.chunks.push_back(Chunk { start, bytes: merged.freeze(), boundary });
        }
        self.run_chunks = 0;
        self.run_bytes = 0;
    }

    fn trim(&mut self, kept: Kept) -> Dropped {
        let mut dropped = Dropped::default();
        let mut used = self.window().len();
        while used > self.limit {
            let needed = self.chunks.front().is_some_and(|c| c.start.forward(c.bytes.len() as u64) > kept.from);
            if needed && used <= kept.limit {
                break;
            }
            let oldest = self.chunks.pop_front().expect("more than the limit is held");
            used -= oldest.bytes.len() as u64;
            dropped.bytes += oldest.bytes.len() as u64;
            dropped.last = Some(oldest.bytes);
        }
        // A run can lose chunks only when it is all there is.
        if self.run_chunks > self.chunks.len() {
            self.run_chunks = self.chunks.len();
            self.run_bytes = used as usize;
        }
        dropped
    }
}

fn run_limit(limit: u64) -> usize {
    usize::try_from(limit / 16).unwrap_or(RUN).clamp(1024, RUN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(backlog: &Backlog, from: Offset, most: usize) -> Vec<u8> {
        let mut out = VecDeque::new();
        let n = backlog.read(from, most, usize::MAX, &mut out);
        let bytes: Vec<u8> = out.into_iter().flatten().collect();
        assert_eq!(bytes.len(), n);
        bytes
    }

    #[test]
    fn tiny_chunks_are_merged_and_read_the_same() {
        let mut backlog = Backlog::new(Offset::ZERO, 1 << 20);
        let stream: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        for piece in stream.chunks(7) {
            backlog.append(Bytes::copy_from_slice(piece), Offset::ZERO, Kept::NOTHING);
        }
        assert!(backlog.chunks.len() < 65536 / 7 + 10, "{}", backlog.chunks.len());
        assert_eq!(read_all(&backlog, Offset::new(12_345), usize::MAX), &stream[12_345..]);
    }

    #[test]
    fn what_somebody_keeps_is_dropped_only_beyond_another_limit() {
        let mut backlog = Backlog::new(Offset::ZERO, 4096);
        let kept = |from| Kept { from: Offset::new(from), limit: 10_000 };
        let mut add = |from| {
            backlog.append(vec![0; 1000].into(), Offset::ZERO, kept(from));
            (backlog.window().start.get(), backlog.window().end.get())
        };
        for n in 1..=10 {
            assert_eq!(add(500), (0, n * 1000), "the first chunk is not read to its end");
        }
        assert_eq!(add(500), (1000, 11_000), "one limit is the last");
        assert_eq!(add(9_000), (8000, 12_000), "what was read is dropped as ever");
        assert_eq!(add(9_000), (9000, 13_000));
        assert_eq!(add(9_000), (9000, 14_000));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Append(usize),
        Truncate(usize),
        Resize(u64),
    }

    proptest! {
        // Each case reads everything back after every step.
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn whatever_the_window_serves_reads_back_as_it_was_written(
            limit in 1024u64..40_000,
            steps in prop::collection::vec(prop_oneof![
                8 => (0usize..3000).prop_map(Step::Append),
                1 => (0usize..3000).prop_map(Step::Truncate),
                1 => (1024u64..40_000).prop_map(Step::Resize)], 1..120),
            most in 1usize..5000,
        ) {
            let origin = Offset::new(1_000);
            let mut backlog = Backlog::new(origin, limit);
            let (mut wanted, mut limit) = (limit, limit);
            let mut stream: Vec<u8> = Vec::new();
            let mut value = 0u8;
            for step in steps {
                match step {
                    Step::Append(n) => {
                        let piece: Vec<u8> = (0..n).map(|_| { value = value.wrapping_mul(31).wrapping_add(7); value }).collect();
                        stream.extend_from_slice(&piece);
                        limit = if n > 0 { wanted } else { limit };
                        backlog.append(piece.into(), Offset::new(stream.len() as u64), Kept::NOTHING);
                    }
                    Step::Resize(to) => {
                        // A smaller limit holds from the next append on, which may be of nothing yet.
                        backlog.resize(to);
                        wanted = to;
                        limit = to.max(backlog.window().len());
                    }
                    Step::Truncate(n) => {
                        let window = backlog.window();
                        let at = window.end.back(n as u64).max(window.start);
                        stream.truncate(at.since(origin) as usize);
                        backlog.truncate(at);
                    }
                }
                let window = backlog.window();
                prop_assert_eq!(window.end, origin.forward(stream.len() as u64));
                prop_assert!(window.len() <= limit);
                prop_assert_eq!(read_all(&backlog, window.start, usize::MAX), &stream[window.start.since(origin) as usize..]);
                let middle = window.start.forward(window.len() / 2);
                let at = middle.since(origin) as usize;
                prop_assert_eq!(read_all(&backlog, middle, most), &stream[at..stream.len().min(at + most)]);
            }
        }
    }
}
