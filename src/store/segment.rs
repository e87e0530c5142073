//! The format of a journal's files, and its codec.
//!
//! A journal is a directory of files `journal-<serial>.seg`, the serial in sixteen hexadecimal digits. Serials only
//! increase; a file is created once, written from its beginning to its end once, and never appended to by a later
//! process. All numbers are little endian. Times are milliseconds; an *offset* counts the stream bytes before a
//! point; a *place* counts the file's bytes before one.
//!
//! ```text
//! file    = head origin record* [index trailer]
//! head    = "PSYNCJ" version:u16                                  ; 1
//! record  = kind:u8 reserved:[u8;3] length:u32 crc:u32 payload    ; length of the payload
//! origin  = record, kind 1: sequence:u64 serial:u64 follows:u64 start:u64 boundary:u64
//!           unix_ms:u64 clock_ms:u64 history upstream:text
//! data    = record, kind 2: unix_ms:u64 boundary:u64 byte*        ; 1 to 1 MiB of them
//! history = record, kind 3: names
//! index   = record, kind 4: end:u64 boundary:u64 unix_ms:u64 clock_ms:u64 names count:u32
//!           (offset:u64 place:u64 unix_ms:u64)*
//! trailer = index:u64 end:u64 unix_ms:u64 crc:u32 "jend"          ; index: the place of the index
//! names   = id:[u8;40] count:u16 (id:[u8;40] boundary:u64)*       ; current, then ancestors, newest first
//! text    = length:u16 byte*
//! ```
//!
//! **Checksums.** `crc` is the CRC-32C of a *tag* (u32), the record's place (u64), the first eight bytes of the
//! record and its payload. The origin's tag is the CRC-32C of the head; everybody else's is the origin's `crc`. So
//! a record is good only in its own file and in its own place: what a file system that lost its footing shows of an
//! older file is not taken for a record. The trailer's covers its tag, its place and its first 24 bytes.
//!
//! **The stream.** The first byte of the first data record is at the origin's `start`; the offset of every other
//! one follows. `boundary` is the last command boundary known when the record was written, which may lie ahead of
//! the data where the stream's commands are not looked at. A history record says what the stream is called from
//! there on, and up to where earlier ids are true: all of it again, so that the last one read is the whole truth.
//!
//! **The line of files.** `sequence` numbers the unbroken streams; only the newest counts. `follows` is the serial
//! of the file whose bytes come before `start`, or 0 for none. It may hold more than that: whatever lies at or
//! behind `start` in it was cut away, because a promoted master's branch began there. A file is created only after
//! the one it follows has been synced whole, so only the newest can be torn; and it is synced with its origin, name
//! and all, before anything else is written to it or removed for it.
//!
//! **The end.** A file is sealed with an index when it is full: an entry for the first record and then for every
//! record that begins 64 KiB or more behind the last entry. A file without a trailer, and the newest in any case, is
//! read record by record, and ends before the first that is not whole and good.
//!
//! `clock_ms` is a clock that runs only while psyncd does and never jumps: retention by time goes by it, while
//! `unix_ms` is for people.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};

use crate::repl::{History, Offset, ReplId};

/// The version of the format written, and the only one read.
pub const VERSION: u16 = 1;
/// Bytes in front of the first record.
pub const HEAD_BYTES: usize = 8;
/// Bytes of a record in front of its payload.
pub const HEADER_BYTES: usize = 12;
/// The most stream bytes in one data record.
pub const MAX_DATA: usize = 1 << 20;
/// The longest payload of any record.
pub const MAX_PAYLOAD: usize = 2 << 20;
/// Bytes of a trailer.
pub const TRAILER_BYTES: usize = 32;
/// Stream bytes between two entries of an index, at least.
pub const INDEX_SPACING: u64 = 64 * 1024;
/// The largest segment that may be configured: its index must fit into a record.
pub const MAX_SEGMENT_BYTES: u64 = 1 << 30;
/// The longest name of an upstream, in bytes.
pub const MAX_UPSTREAM: usize = 1024;
/// The most ancestors written. More than any server has failovers.
pub const MAX_ANCESTORS: usize = 4096;

const MAGIC: [u8; 6] = *b"PSYNCJ";
const TRAILER_MAGIC: [u8; 4] = *b"jend";
const ORIGIN: u8 = 1;
const DATA: u8 = 2;
const HISTORY: u8 = 3;
const INDEX: u8 = 4;
const DATA_PREFIX: usize = 16;
const PREFIX: &str = "journal-";
const SUFFIX: &str = ".seg";

/// The name of the file with this serial.
pub fn file_name(serial: u64) -> String {
    format!("{PREFIX}{serial:016x}{SUFFIX}")
}

/// The serial in a file's name; `None` for a file that is not a segment.
pub fn serial_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let serial = u64::from_str_radix(digits, 16).ok()?;
    (file_name(serial) == name && serial > 0).then_some(serial)
}

/// What a file's first [`HEAD_BYTES`] bytes say it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A segment we can read.
    Ours,
    /// A segment of another version of the format.
    Version(u16),
    /// Cut short or zeros: what a crash leaves of a file that was just being created.
    Unwritten,
    /// No segment at all.
    Alien,
}

impl Head {
    /// Judges a file by its first bytes; fewer than [`HEAD_BYTES`] means that it has no more.
    pub fn of(bytes: &[u8]) -> Self {
        let Some(head) = bytes.get(..HEAD_BYTES) else { return Self::Unwritten };
        match head.strip_prefix(&MAGIC) {
            Some(version) => match u16::from_le_bytes([version[0], version[1]]) {
                VERSION => Self::Ours,
                other => Self::Version(other),
            },
            None if head.iter().all(|&b| b == 0) => Self::Unwritten,
            None => Self::Alien,
        }
    }
}

/// The first record of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Which unbroken stream the segment belongs to.
    pub sequence: u64,
    /// The segment's own number.
    pub serial: u64,
    /// The segment that holds what comes before `start`; 0 for none.
    pub follows: u64,
    /// The offset of the segment's first byte.
    pub start: Offset,
    /// The last command boundary known.
    pub boundary: Offset,
    /// What the stream is called at `start`.
    pub history: History,
    /// Whose stream this is, as configured: at most [`MAX_UPSTREAM`] bytes.
    pub upstream: String,
    /// When it was written, by the wall clock.
    pub unix_ms: u64,
    /// When it was written, by the journal's own clock.
    pub clock_ms: u64,
}

/// The last record of a sealed segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// One past the segment's last byte.
    pub end: Offset,
    /// The last command boundary known.
    pub boundary: Offset,
    /// The arrival of the last record.
    pub unix_ms: u64,
    /// When the segment was sealed, by the journal's own clock.
    pub clock_ms: u64,
    /// What the stream is called at `end`.
    pub history: History,
    /// Where to find what, by increasing offset and place. The first is the first record's.
    pub entries: Vec<Entry>,
}

/// Where a data record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The offset of its first stream byte.
    pub offset: Offset,
    /// The place of the record in its file.
    pub place: u64,
    /// When its bytes arrived, by the wall clock.
    pub unix_ms: u64,
}

/// The last bytes of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// The place of the index.
    pub index: u64,
    /// One past the segment's last byte.
    pub end: Offset,
    /// The arrival of the last record.
    pub unix_ms: u64,
}

/// A record, read and found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The beginning of a segment.
    Origin(Origin),
    /// Bytes of the stream.
    Data {
        /// When they arrived, by the wall clock.
        unix_ms: u64,
        /// The last command boundary known.
        boundary: Offset,
        /// At least one.
        bytes: Bytes,
    },
    /// What the stream is called from here on.
    History(History),
    /// The end of a segment.
    Index(Index),
}

/// The length of the record whose first bytes are `header`, this header included. `None` when no record begins
/// like that.
pub fn record_bytes(header: &[u8]) -> Option<usize> {
    let header = header.get(..HEADER_BYTES)?;
    let known = (ORIGIN..=INDEX).contains(&header[0]) && header[1..4] == [0; 3];
    let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
    (known && length <= MAX_PAYLOAD).then_some(HEADER_BYTES + length)
}

/// What binds a segment's records to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(u32);

impl Tag {
    /// The tag of every origin.
    fn head() -> Self {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(&head());
        Self(digest.finalize() as u32)
    }

    /// Reads one whole record that stands at `place`. `None` when it is not good. `depth` is how many ancestors
    /// are wanted.
    pub fn read(self, place: u64, record: &Bytes, depth: usize) -> Option<Record> {
        if record_bytes(record)? != record.len() {
            return None;
        }
        if self.checksum(place, &record[..8], &[&record[HEADER_BYTES..]]).to_le_bytes() != record[8..HEADER_BYTES] {
            return None;
        }
        let mut payload = record.slice(HEADER_BYTES..);
        let read = match record[0] {
            ORIGIN => Record::Origin(read_origin(&mut payload, depth)?),
            DATA => {
                let unix_ms = payload.try_get_u64_le().ok()?;
                let boundary = read_offset(&mut payload)?;
                let bytes = std::mem::take(&mut payload);
                if bytes.is_empty() || bytes.len() > MAX_DATA {
                    return None;
                }
                Record::Data { unix_ms, boundary, bytes }
            }
            HISTORY => Record::History(read_history(&mut payload, depth)?),
            _ => Record::Index(read_index(&mut payload, depth)?),
        };
        payload.is_empty().then_some(read)
    }

    /// A data record for `place`, of at most [`MAX_DATA`] bytes in `pieces`.
    pub fn data(self, place: u64, unix_ms: u64, boundary: Offset, pieces: &[Bytes]) -> Bytes {
        let length: usize = pieces.iter().map(Bytes::len).sum();
        debug_assert!((1..=MAX_DATA).contains(&length));
        let mut out = begin_record(DATA, DATA_PREFIX + length);
        out.put_u64_le(unix_ms);
        out.put_u64_le(boundary.get());
        for piece in pieces {
            out.extend_from_slice(piece);
        }
        self.finish_record(place, out)
    }

    /// A history record for `place`.
    pub fn history(self, place: u64, history: &History) -> Bytes {
        let mut out = begin_record(HISTORY, 0);
        put_history(&mut out, history);
        self.finish_record(place, out)
    }

    /// An index for `place` and the trailer behind it.
    pub fn seal(self, place: u64, index: &Index) -> Bytes {
        let mut out = begin_record(INDEX, 256 + index.entries.len() * 24);
        out.put_u64_le(index.end.get());
        out.put_u64_le(index.boundary.get());
        out.put_u64_le(index.unix_ms);
        out.put_u64_le(index.clock_ms);
        put_history(&mut out, &index.history);
        out.put_u32_le(index.entries.len() as u32);
        for entry in &index.entries {
            out.put_u64_le(entry.offset.get());
            out.put_u64_le(entry.place);
            out.put_u64_le(entry.unix_ms);
        }
        let record = self.finish_record(place, out);
        let mut out = BytesMut::with_capacity(record.len() + TRAILER_BYTES);
        out.extend_from_slice(&record);
        out.put_u64_le(place);
        out.put_u64_le(index.end.get());
        out.put_u64_le(index.unix_ms);
        let crc = self.checksum(place + record.len() as u64, &out[record.len()..], &[]);
        out.put_u32_le(crc);
        out.put_slice(&TRAILER_MAGIC);
        out.freeze()
    }

    /// Reads the trailer that stands at `place`. `None` when there is none.
    pub fn trailer(self, place: u64, bytes: &[u8]) -> Option<Trailer> {
        let bytes: &[u8; TRAILER_BYTES] = bytes.try_into().ok()?;
        let (mut fields, seal) = bytes.split_at(24);
        if seal[4..] != TRAILER_MAGIC || seal[..4] != self.checksum(place, fields, &[]).to_le_bytes() {
            return None;
        }
        let index = fields.get_u64_le();
        (index < place).then(|| Trailer { index, end: Offset::new(fields.get_u64_le()), unix_ms: fields.get_u64_le() })
    }

    fn checksum(self, place: u64, front: &[u8], pieces: &[&[u8]]) -> u32 {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(&self.0.to_le_bytes());
        digest.update(&place.to_le_bytes());
        digest.update(front);
        for piece in pieces {
            digest.update(piece);
        }
        digest.finalize() as u32
    }

    fn finish_record(self, place: u64, mut record: BytesMut) -> Bytes {
        let length = (record.len() - HEADER_BYTES) as u32;
        debug_assert!(length as usize <= MAX_PAYLOAD);
        record[4..8].copy_from_slice(&length.to_le_bytes());
        let crc = self.checksum(place, &record[..8], &[&record[HEADER_BYTES..]]);
        record[8..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        record.freeze()
    }
}

/// The beginning of a segment, head included, and the tag of the records behind it.
pub fn write_origin(origin: &Origin) -> (Bytes, Tag) {
    let mut out = begin_record(ORIGIN, 256);
    for number in [origin.sequence, origin.serial, origin.follows, origin.start.get(), origin.boundary.get()] {
        out.put_u64_le(number);
    }
    out.put_u64_le(origin.unix_ms);
    out.put_u64_le(origin.clock_ms);
    put_history(&mut out, &origin.history);
    debug_assert!(origin.upstream.len() <= MAX_UPSTREAM);
    out.put_u16_le(origin.upstream.len() as u16);
    out.put_slice(origin.upstream.as_bytes());
    let record = Tag::head().finish_record(HEAD_BYTES as u64, out);
    let tag = tag_of(&record);
    ([&head()[..], &record[..]].concat().into(), tag)
}

/// Reads the origin's whole record and gives the tag of the records behind it. `None` when it is not good.
pub fn read_origin_record(record: &Bytes, depth: usize) -> Option<(Origin, Tag)> {
    match Tag::head().read(HEAD_BYTES as u64, record, depth)? {
        Record::Origin(origin) => Some((origin, tag_of(record))),
        Record::Data { .. } | Record::History(_) | Record::Index(_) => None,
    }
}

fn head() -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..6].copy_from_slice(&MAGIC);
    head[6..].copy_from_slice(&VERSION.to_le_bytes());
    head
}

/// The checksum in a record's header.
fn tag_of(record: &[u8]) -> Tag {
    Tag(u32::from_le_bytes([record[8], record[9], record[10], record[11]]))
}

fn begin_record(kind: u8, payload: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEADER_BYTES + payload);
    out.put_u8(kind);
    out.put_bytes(0, HEADER_BYTES - 1);
    out
}

fn put_history(out: &mut BytesMut, history: &History) {
    out.put_slice(history.current().as_str().as_bytes());
    let count = history.ancestors().len().min(MAX_ANCESTORS);
    out.put_u16_le(count as u16);
    for ancestor in history.ancestors().take(count) {
        out.put_slice(ancestor.id.as_str().as_bytes());
        out.put_u64_le(ancestor.boundary.get());
    }
}

fn read_offset(payload: &mut Bytes) -> Option<Offset> {
    Some(Offset::new(payload.try_get_u64_le().ok()?))
}

fn read_id(payload: &mut Bytes) -> Option<ReplId> {
    let mut text = [0; 40];
    payload.try_copy_to_slice(&mut text).ok()?;
    ReplId::from_ascii(&text)
}

fn read_history(payload: &mut Bytes, depth: usize) -> Option<History> {
    let mut history = History::new(read_id(payload)?, depth);
    for _ in 0..payload.try_get_u16_le().ok()? {
        // Newest first and with non-increasing boundaries, so each goes behind those before it.
        let id = read_id(payload)?;
        history.learn(id, read_offset(payload)?);
    }
    Some(history)
}

fn read_origin(payload: &mut Bytes, depth: usize) -> Option<Origin> {
    let sequence = payload.try_get_u64_le().ok()?;
    let serial = payload.try_get_u64_le().ok()?;
    let follows = payload.try_get_u64_le().ok()?;
    let start = read_offset(payload)?;
    let boundary = read_offset(payload)?;
    let unix_ms = payload.try_get_u64_le().ok()?;
    let clock_ms = payload.try_get_u64_le().ok()?;
    let history = read_history(payload, depth)?;
    let length = usize::from(payload.try_get_u16_le().ok()?);
    if length > MAX_UPSTREAM || payload.len() < length {
        return None;
    }
    let upstream = String::from_utf8(payload.split_to(length).to_vec()).ok()?;
    Some(Origin { sequence, serial, follows, start, boundary, history, upstream, unix_ms, clock_ms })
}

fn read_index(payload: &mut Bytes, depth: usize) -> Option<Index> {
    let end = read_offset(payload)?;
    let boundary = read_offset(payload)?;
    let unix_ms = payload.try_get_u64_le().ok()?;
    let clock_ms = payload.try_get_u64_le().ok()?;
    let history = read_history(payload, depth)?;
    let count = payload.try_get_u32_le().ok()? as usize;
    if payload.len() != count * 24 {
        return None;
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let offset = read_offset(payload)?;
        entries.push(Entry { offset, place: payload.try_get_u64_le().ok()?, unix_ms: payload.try_get_u64_le().ok()? });
    }
    Some(Index { end, boundary, unix_ms, clock_ms, history, entries })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLACE: u64 = 4711;

    fn history() -> impl Strategy<Value = History> {
        (any::<u64>(), prop::collection::vec((any::<u64>(), any::<u32>()), 0..20)).prop_map(|(current, mut turns)| {
            let id = |n: u64| ReplId::from_ascii(format!("{n:040x}").as_bytes()).unwrap();
            let mut history = History::new(id(current), 16);
            turns.sort_by_key(|turn| turn.1);
            turns.iter().for_each(|turn| history.branch(Offset::new(u64::from(turn.1)), id(turn.0)));
            history
        })
    }

    fn entry() -> impl Strategy<Value = Entry> {
        any::<(u64, u64, u64)>().prop_map(|(offset, place, unix_ms)| Entry {
            offset: Offset::new(offset),
            place,
            unix_ms,
        })
    }

    fn origin(history: History) -> Origin {
        Origin {
            sequence: 3,
            serial: 9,
            follows: 7,
            start: Offset::new(100),
            boundary: Offset::new(99),
            history,
            upstream: "master:6379".to_owned(),
            unix_ms: 5,
            clock_ms: 6,
        }
    }

    fn tag() -> Tag {
        write_origin(&origin(History::new(ReplId::from_ascii(&[b'a'; 40]).unwrap(), 16))).1
    }

    proptest! {
        #[test]
        fn every_record_reads_back_in_its_own_place_and_nowhere_else(
            history in history(),
            entries in prop::collection::vec(entry(), 0..50),
            bytes in prop::collection::vec(any::<u8>(), 1..300),
            numbers in any::<[u32; 4]>(),
        ) {
            let [end, boundary, unix_ms, clock_ms] = numbers.map(u64::from);
            let (end, boundary) = (Offset::new(end), Offset::new(boundary));
            let index = Index { end, boundary, unix_ms, clock_ms, history: history.clone(), entries };
            let sealed = tag().seal(PLACE, &index);
            let (record, trailer) = (sealed.slice(..sealed.len() - TRAILER_BYTES), sealed.slice(sealed.len() - TRAILER_BYTES..));
            let place = PLACE + record.len() as u64;
            prop_assert_eq!(tag().trailer(place, &trailer), Some(Trailer { index: PLACE, end, unix_ms }));
            prop_assert_eq!(tag().trailer(place + 1, &trailer), None);
            let data = Bytes::from(bytes);
            let pieces = [data.slice(..data.len() / 3), data.slice(data.len() / 3..)];
            let (other, _) = write_origin(&origin(history.clone()));
            let other = read_origin_record(&other.slice(HEAD_BYTES..), 16).unwrap();
            prop_assert_eq!(&other.0, &origin(history.clone()));
            for (bytes, said) in [
                (tag().data(PLACE, unix_ms, boundary, &pieces), Record::Data { unix_ms, boundary, bytes: data.clone() }),
                (tag().history(PLACE, &history), Record::History(history.clone())),
                (record, Record::Index(index.clone())),
            ] {
                prop_assert_eq!(record_bytes(&bytes), Some(bytes.len()));
                prop_assert_eq!(tag().read(PLACE, &bytes, 16), Some(said));
                prop_assert_eq!(tag().read(PLACE + 1, &bytes, 16), None);
                prop_assert_eq!(other.1.read(PLACE, &bytes, 16), None, "another segment's");
                prop_assert_eq!(tag().read(PLACE, &bytes.slice(..bytes.len() - 1), 16), None);
            }
        }

        #[test]
        fn arbitrary_bytes_are_no_record_and_do_no_harm(kind in 0u8..6, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut record = begin_record(kind, bytes.len());
            record.extend_from_slice(&bytes);
            // With a good checksum, so that the payload is looked at.
            let record = tag().finish_record(PLACE, record);
            tag().read(PLACE, &record, 16);
            tag().read(PLACE, &Bytes::from(bytes), 16);
        }
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_largest_segment_has_an_index_that_fits_into_a_record() {
        let entries = MAX_SEGMENT_BYTES / INDEX_SPACING + 17;
        let history = MAX_ANCESTORS * 48 + 42;
        assert!(entries as usize * 24 + history + 36 <= MAX_PAYLOAD);
    }

    #[test]
    fn a_files_name_is_its_serial_and_its_head_says_what_it_is() {
        assert_eq!(file_name(0x1f), "journal-000000000000001f.seg");
        assert_eq!(serial_of(&file_name(u64::MAX)), Some(u64::MAX));
        for no in ["journal-1f.seg", "journal-000000000000001F.seg", "journal-0000000000000000.seg", "snapshot-1.rdb"] {
            assert_eq!(serial_of(no), None, "{no}");
        }
        assert_eq!(Head::of(b"PSYNCJ\x01\x00..."), Head::Ours);
        assert_eq!(Head::of(b"PSYNCJ\x02\x01..."), Head::Version(258));
        assert_eq!(Head::of(b"PSYNC"), Head::Unwritten);
        assert_eq!(Head::of(&[0; 100]), Head::Unwritten);
        assert_eq!(Head::of(b"#!/bin/sh"), Head::Alien);
    }
}
