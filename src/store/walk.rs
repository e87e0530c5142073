//! Reading a segment record by record, a block of the file at a time.

use std::io;

use bytes::{Bytes, BytesMut};

use super::disk::DiskFile;
use super::segment::{HEADER_BYTES, Record, Tag, record_bytes};

/// A reader's place in a segment. Yields whole, good records in order, each with its place, and ends before the
/// first that is not.
pub(super) struct Walk<'a> {
    file: &'a dyn DiskFile,
    tag: Tag,
    depth: usize,
    /// The place of the next record.
    place: u64,
    /// No byte of the file from here on is looked at.
    end: u64,
    /// What was read last, from `place` on.
    block: Bytes,
    block_bytes: usize,
}

impl<'a> Walk<'a> {
    /// Starts with the record at `place`, ends at `end`, and reads `block_bytes` at a time.
    pub(super) fn new(
        file: &'a dyn DiskFile,
        tag: Tag,
        depth: usize,
        place: u64,
        end: u64,
        block_bytes: usize,
    ) -> Self {
        Self { file, tag, depth, place, end, block: Bytes::new(), block_bytes }
    }

    /// The place of the next record, or where the walk ended: behind the last good one.
    pub(super) fn place(&self) -> u64 {
        self.place
    }

    /// The next record and its place. `None`: there is no further good one.
    pub(super) async fn next(&mut self) -> io::Result<Option<(u64, Record)>> {
        if !self.fill(HEADER_BYTES).await? {
            return Ok(None);
        }
        let Some(length) = record_bytes(&self.block) else { return Ok(None) };
        if !self.fill(length).await? {
            return Ok(None);
        }
        let place = self.place;
        let Some(record) = self.tag.read(place, &self.block.slice(..length), self.depth) else { return Ok(None) };
        self.block = self.block.slice(length..);
        self.place += length as u64;
        Ok(Some((place, record)))
    }

    /// Whether the next record has been read from the disk already.
    pub(super) fn has_whole_record(&self) -> bool {
        record_bytes(&self.block).is_some_and(|length| self.block.len() >= length)
    }

    /// Whether the block has at least `bytes`, after reading on if need be.
    async fn fill(&mut self, bytes: usize) -> io::Result<bool> {
        if self.block.len() >= bytes {
            return Ok(true);
        }
        let from = self.place + self.block.len() as u64;
        let left = usize::try_from(self.end.saturating_sub(from)).unwrap_or(usize::MAX);
        let missing = bytes - self.block.len();
        if left < missing {
            return Ok(false);
        }
        let more = self.file.read_at(from, missing.max(self.block_bytes).min(left)).await?;
        self.block = if self.block.is_empty() {
            more
        } else {
            let mut joined = BytesMut::with_capacity(self.block.len() + more.len());
            joined.extend_from_slice(&self.block);
            joined.extend_from_slice(&more);
            joined.freeze()
        };
        Ok(self.block.len() >= bytes)
    }
}
