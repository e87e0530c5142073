//! A whole directory, as a start finds it: segments of a journal, and what is remembered beside them.
//!
//! ```text
//! input = file*
//! file  = kind:u8 serial:u8 length:u16 byte*      ; little endian; the last may be cut short
//! kind  = 0: the segment of this serial, as it is
//!         1: the same, with every checksum put right
//!         2: the same, and with this serial in its origin
//!         3: psyncd.state
//!         else: a file whose name is none of ours
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use psyncd::repl::Offset;
use psyncd::store::archive::ReadError;
use psyncd::store::disk::Disk;
use psyncd::store::inspect::{self, Depth};
use psyncd::store::journal::{Journal, OpenError, Options, Recovered, Room};
use psyncd::store::segment;
use psyncd::store::state::StateFile;

use crate::crc32c;
use crate::disk::{Memory, at_once};

const DIR: &str = "/j";
const HISTORY_DEPTH: usize = 16;
/// Where the serial stands in the origin's payload.
const SERIAL_AT: usize = segment::HEAD_BYTES + segment::HEADER_BYTES + 8;

/// What a start finds.
struct Found {
    disk: Memory,
    /// Whether no checksum was put right: then whatever passes was written like that.
    is_as_it_was: bool,
}

/// A directory is opened, read to its end, looked at from outside, written to, and opened again.
pub fn journal(data: &[u8]) {
    let found = unpack(data);
    let as_found = found.disk.contents();
    drop(at_once(StateFile::of(Arc::new(found.disk.clone()), DIR.into()).load()));
    for depth in [Depth::Ends, Depth::Records] {
        let report =
            at_once(inspect::inspect(&found.disk, Path::new(DIR), depth, |_, _| {})).expect("memory can be read");
        let mut serials: Vec<u64> = report.segments.iter().map(|segment| segment.serial).collect();
        serials.dedup();
        assert!(serials.is_sorted() && serials.len() == report.segments.len(), "by number, each once");
    }
    let Some((mut journal, recovered)) = open(&found.disk) else {
        assert_eq!(found.disk.contents(), as_found, "what is refused is left as it is");
        return;
    };
    let Some(recovered) = recovered else {
        assert_eq!(journal.end(), None);
        return;
    };
    assert!(recovered.window.start <= recovered.window.end);
    // Opened once more it says the same: what was mended or removed meanwhile did not count.
    let (_, again) = open(&found.disk).expect("it was no foreign one before");
    let again = again.expect("it held something before");
    assert_eq!((&again.history, again.window), (&recovered.history, recovered.window));
    assert_eq!((again.boundary, again.torn_bytes), (recovered.boundary, 0));

    let runs: Vec<Run> =
        as_found.iter().filter(|(path, _)| is_segment(path)).flat_map(|(_, file)| runs(file)).collect();
    let read = read_all(&journal, &recovered, |at, piece| {
        let is_written = runs.iter().any(|run| run.has(at, piece, found.is_as_it_was));
        assert!(is_written, "{} bytes at {at} that no good record has", piece.len());
    });
    // It goes on where it ends.
    let end = journal.end().expect("it was recovered");
    if end.get() < 1 << 62 {
        let more = Bytes::from_static(b"*1\r\n$4\r\nPING\r\n");
        let grown = end.forward(more.len() as u64);
        at_once(journal.append(std::slice::from_ref(&more), grown, 1)).expect("memory takes it");
        assert_eq!(at_once(journal.sync()).expect("memory is durable"), grown);
        let there = at_once(journal.archive().read(end, 1 << 20)).expect("it was just written");
        assert_eq!(there, more);
        // A seal that lies is not looked at in the newest segment, and believed once that is not the newest any more.
        if read.is_whole && found.is_as_it_was {
            let (_, later) = open(&found.disk).expect("it is ours");
            let later = later.expect("there is something").window;
            assert_eq!((later.start, later.end), (recovered.window.start, grown));
        }
    }
    at_once(journal.trim(None));
}

fn options() -> Options {
    Options {
        dir: DIR.into(),
        room: Room { limit_bytes: 4 << 10, hard_limit_bytes: 8 << 10, keep: None },
        segment_bytes: 1 << 10,
        upstream: "127.0.0.1:6379".to_owned(),
        adopt: true,
        history_depth: HISTORY_DEPTH,
    }
}

fn open(disk: &Memory) -> Option<(Journal, Option<Recovered>)> {
    match at_once(Journal::open(Arc::new(disk.clone()) as Arc<dyn Disk>, options())) {
        Ok(opened) => Some(opened),
        Err(OpenError::UnknownVersion { .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

fn unpack(mut data: &[u8]) -> Found {
    let disk = Memory::default();
    let mut is_as_it_was = true;
    while let [kind, serial, low, high, rest @ ..] = data {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (bytes, more) = rest.split_at(length);
        let (dir, serial) = (Path::new(DIR), u64::from(*serial).max(1));
        let name: PathBuf = match kind {
            0..=2 => dir.join(segment::file_name(serial)),
            3 => dir.join("psyncd.state"),
            _ => dir.join(format!("journal-{serial}.seg.part")),
        };
        match kind {
            1 | 2 => {
                is_as_it_was = false;
                let mut bytes = bytes.to_vec();
                if *kind == 2
                    && let Some(place) = bytes.get_mut(SERIAL_AT..SERIAL_AT + 8)
                {
                    place.copy_from_slice(&serial.to_le_bytes());
                }
                put_right(&mut bytes);
                disk.put(&name, &bytes);
            }
            _ => disk.put(&name, bytes),
        }
        data = more;
    }
    Found { disk, is_as_it_was }
}

fn is_segment(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| segment::serial_of(name).is_some())
}

/// The checksum a record at `place` has to have, by the format's specification and not by psyncd's code.
fn checksum(tag: u32, place: usize, record: &[u8]) -> u32 {
    crc32c(&[&tag.to_le_bytes(), &(place as u64).to_le_bytes(), &record[..8], &record[segment::HEADER_BYTES..]])
}

/// The places of what may be records, one behind the other.
fn records(file: &[u8]) -> Vec<(usize, usize)> {
    let (mut place, mut all) = (segment::HEAD_BYTES, Vec::new());
    while let Some(length) = file.get(place..).and_then(segment::record_bytes) {
        if place + length > file.len() {
            break;
        }
        all.push((place, length));
        place += length;
    }
    all
}

fn put_right(file: &mut [u8]) {
    let Some(head) = file.get(..segment::HEAD_BYTES) else { return };
    let mut tag = crc32c(&[head]);
    let all = records(file);
    for (number, (place, length)) in all.iter().copied().enumerate() {
        let crc = checksum(tag, place, &file[place..place + length]);
        file[place + 8..place + segment::HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        if number == 0 {
            tag = crc;
        }
    }
    // The trailer, where there is room for one behind the last.
    let place = all.last().map_or(segment::HEAD_BYTES, |(place, length)| place + length);
    if file.len() == place + segment::TRAILER_BYTES {
        let crc = crc32c(&[&tag.to_le_bytes(), &(place as u64).to_le_bytes(), &file[place..place + 24]]);
        file[place + 24..place + 28].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Stream bytes of good records without a gap.
struct Run {
    start: u64,
    bytes: Vec<u8>,
}

impl Run {
    /// Whether these are at `at`; where an index may lie about that, whether they are there at all.
    fn has(&self, at: Offset, piece: &[u8], truthful: bool) -> bool {
        let there = at.get().checked_sub(self.start).and_then(|from| {
            let from = usize::try_from(from).ok()?;
            self.bytes.get(from..from.checked_add(piece.len())?)
        });
        there == Some(piece) || (!truthful && self.bytes.windows(piece.len().max(1)).any(|part| part == piece))
    }
}

fn runs(file: &[u8]) -> Vec<Run> {
    let Some(head) = file.get(..segment::HEAD_BYTES) else { return Vec::new() };
    let (mut tag, mut all) = (crc32c(&[head]), Vec::new());
    let mut run = Run { start: 0, bytes: Vec::new() };
    for (number, (place, length)) in records(file).into_iter().enumerate() {
        let record = &file[place..place + length];
        let crc = checksum(tag, place, record);
        let is_good = record[8..segment::HEADER_BYTES] == crc.to_le_bytes();
        let payload = &record[segment::HEADER_BYTES..];
        match (number, is_good, record[0]) {
            (0, false, _) => return Vec::new(),
            (0, true, _) => {
                tag = crc;
                run.start =
                    payload.get(24..32).map_or(0, |start| u64::from_le_bytes(start.try_into().expect("eight bytes")));
            }
            (_, true, 2) => run.bytes.extend_from_slice(payload.get(16..).unwrap_or_default()),
            (_, true, _) => {}
            (_, false, _) => {
                // Where what comes next belongs is known only to an index.
                let next = Run { start: u64::MAX, bytes: Vec::new() };
                all.push(std::mem::replace(&mut run, next));
            }
        }
    }
    all.push(run);
    all
}

struct Read {
    /// Whether all of the window could be read.
    is_whole: bool,
}

fn read_all(journal: &Journal, recovered: &Recovered, mut judge: impl FnMut(Offset, &[u8])) -> Read {
    /// Of a window that only says it is large.
    const READS: usize = 1000;
    let archive = journal.archive();
    let (mut at, mut is_whole) = (recovered.window.start, true);
    for _ in 0..READS {
        match at_once(archive.read(at, 700)) {
            Ok(piece) if piece.is_empty() => {
                assert_eq!(archive.window().map(|window| window.end), Some(at), "only at the end there is nothing");
                return Read { is_whole };
            }
            Ok(piece) => {
                judge(at, &piece);
                at = at.forward(piece.len() as u64);
            }
            Err(ReadError::Damaged { lost_bytes, .. }) => {
                is_whole = false;
                let window = archive.window().expect("it never claims less than nothing");
                assert!(window.start > at || lost_bytes == 0, "what is damaged is claimed no more");
                at = window.start;
            }
            Err(ReadError::Gone) => panic!("{at} is in the window, and nobody drops anything"),
            Err(ReadError::Io(error)) => panic!("memory does not fail: {error}"),
        }
    }
    Read { is_whole: false }
}
