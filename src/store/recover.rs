//! What may be claimed after a restart, from what the files say.
//!
//! Of the newest sequence, the newest segment and the line of those before it: each one the segment that the next
//! says it follows, reaching at least to where the next begins. Everything else is left over from before a cut, a
//! new beginning or a removal that was not finished.
//!
//! A segment that another one follows was synced whole before that one was created, so its seal can be believed and
//! its first and last bytes say all. The newest is read through, sealed or not: nobody knows in which order a dying
//! machine wrote its parts.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::archive::Opened;
use super::disk::{Disk, DiskFile};
use super::segment::{
    Entry, HEAD_BYTES, Head, INDEX_SPACING, Index, Origin, Record, TRAILER_BYTES, Tag, Trailer, read_origin_record,
    record_bytes, serial_of,
};
use super::walk::Walk;
use crate::repl::{History, Offset};

/// Bytes of a file read at first: more than an origin with the usual sixteen ancestors takes.
const FRONT_BYTES: usize = 4096;
/// Bytes read at a time when a segment is read through.
const BLOCK_BYTES: usize = 1 << 20;
/// Segments, the newest, whose index is read for arrival times; of older ones only the first and last are known.
const INDEXED_SEGMENTS: usize = 64;
/// The most arrival times given.
pub(super) const MAX_MARKS: usize = 4096;

/// Why a journal cannot be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// What could not be read.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The journal holds the stream of another upstream.
    #[error(
        "{} holds the stream of {found:?} but the configured upstream is {configured:?}: give psyncd another directory; or, if it is the same node under another address, start it once with --adopt-journal yes",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose stream it holds.
        found: String,
        /// Whose stream was asked for.
        configured: String,
    },
    /// A file was written by another version of psyncd.
    #[error(
        "{} has journal format {version}, this psyncd reads format {}: run the psyncd that wrote it, or move the journal files away",
        path.display(),
        super::segment::VERSION
    )]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u16,
    },
}

/// A segment as its first and last bytes describe it.
pub(super) struct Survey {
    pub(super) path: PathBuf,
    pub(super) origin: Origin,
    tag: Tag,
    /// Where the first record behind the origin is.
    first: u64,
    pub(super) bytes: u64,
    pub(super) trailer: Option<Trailer>,
}

/// A segment of the line that may be claimed.
pub(super) struct Found {
    pub(super) origin: Origin,
    /// One past the last byte claimed of it.
    pub(super) end: Offset,
    pub(super) bytes: u64,
}

/// What the directory holds.
pub(super) struct Findings {
    /// Oldest first and without a gap. Empty: nothing may be claimed.
    pub(super) line: Vec<Found>,
    /// Of the newest segment.
    pub(super) newest: Option<Newest>,
    /// Serials and sizes of files that belong to no line any more.
    pub(super) leftovers: Vec<(u64, u64)>,
    /// The highest serial seen.
    pub(super) serial: u64,
    /// That of the newest segment.
    pub(super) sequence: u64,
    pub(super) marks: Vec<(Offset, u64)>,
}

/// The state at the end of the newest segment.
pub(super) struct Newest {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) history: History,
    pub(super) boundary: Offset,
    pub(super) unix_ms: u64,
    pub(super) clock_ms: u64,
    /// What to write, and where, to seal it; bytes behind that place are torn.
    pub(super) unsealed: Option<(u64, Tag, Index)>,
    pub(super) torn_bytes: u64,
}

/// Reads the directory. Changes nothing. A journal that follows another upstream than `upstream` is refused, unless
/// there is none given.
pub(super) async fn survey(
    disk: &dyn Disk,
    dir: &Path,
    upstream: Option<&str>,
    depth: usize,
) -> Result<Findings, OpenError> {
    let in_dir = |source| OpenError::Io { path: dir.to_owned(), source };
    let mut surveys: BTreeMap<u64, Survey> = BTreeMap::new();
    let mut leftovers = Vec::new();
    let mut highest = 0;
    for name in disk.list(dir).await.map_err(in_dir)? {
        let Some(serial) = serial_of(&name) else { continue };
        highest = highest.max(serial);
        let path = dir.join(&name);
        match look(disk, &path, serial, depth).await {
            Ok(Look::Segment(survey)) => {
                surveys.insert(serial, *survey);
            }
            Ok(Look::Version(version)) => return Err(OpenError::UnknownVersion { path, version }),
            Ok(Look::Broken { bytes }) => leftovers.push((serial, bytes)),
            Ok(Look::Alien) => {
                tracing::warn!(event = "journal_file_foreign", path = %path.display(), "file is no journal segment, left alone")
            }
            Err(error) if is_the_files_fault(&error) => {
                tracing::warn!(event = "journal_segment_unreadable", path = %path.display(), %error, "journal segment cannot be read, left alone");
            }
            Err(source) => return Err(OpenError::Io { path, source }),
        }
    }
    let mut findings = Findings {
        line: Vec::new(),
        newest: None,
        leftovers,
        serial: highest,
        // Not the highest there is: what goes on behind the newest has to be of its sequence, or it would be lost.
        sequence: surveys.last_key_value().map_or(0, |(_, newest)| newest.origin.sequence),
        marks: Vec::new(),
    };
    let mut marks = Marks::default();
    if let Some((_, newest)) = surveys.pop_last() {
        // Older ones may bear the name of before it was taken over.
        if let Some(upstream) = upstream.filter(|upstream| newest.origin.upstream != *upstream) {
            let (found, configured) = (newest.origin.upstream, upstream.to_owned());
            return Err(OpenError::Foreign { path: dir.to_owned(), found, configured });
        }
        let path = newest.path.clone();
        let reading = |source| OpenError::Io { path: path.clone(), source };
        let file = disk.open(&path).await.map_err(reading)?;
        // Its seal may have reached the disk before the bytes in front of it, so it is taken for nothing.
        let read = read_through(&*file, &newest, depth).await.map_err(reading)?;
        let mut follows = newest.origin.follows;
        marks.add(read.index.end, &newest.origin, &read.index.entries, read.index.unix_ms);
        let found = Found { end: read.index.end, bytes: newest.bytes, origin: newest.origin };
        findings.line.push(found);
        findings.newest = Some(Newest {
            file,
            history: read.index.history.clone(),
            boundary: read.index.boundary,
            unix_ms: read.index.unix_ms,
            clock_ms: read.index.clock_ms,
            torn_bytes: if read.sealed { 0 } else { newest.bytes - read.place },
            unsealed: (!read.sealed).then_some((read.place, newest.tag, read.index)),
        });
        while let Some(survey) = surveys.remove(&follows) {
            let serial = survey.origin.serial;
            let bytes = survey.bytes;
            match join(disk, survey, &findings.line, depth, &mut marks).await? {
                Some(found) => {
                    follows = found.origin.follows;
                    findings.line.push(found);
                }
                None => {
                    tracing::warn!(
                        event = "journal_segment_damaged",
                        serial,
                        "journal segment is damaged, nothing before it is claimed"
                    );
                    findings.leftovers.push((serial, bytes));
                    break;
                }
            }
        }
    }
    findings.line.reverse();
    findings.leftovers.extend(surveys.values().map(|s| (s.origin.serial, s.bytes)));
    findings.marks = marks.finish();
    Ok(findings)
}

/// Whether an error says something of one file rather than of the machine or of our rights.
pub(super) fn is_the_files_fault(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    const ELOOP: i32 = 40;
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof)
        || matches!(error.raw_os_error(), Some(EIO | ELOOP))
}

pub(super) enum Look {
    Segment(Box<Survey>),
    Version(u16),
    /// Ours, but without a good origin.
    Broken {
        bytes: u64,
    },
    Alien,
}

pub(super) async fn look(disk: &dyn Disk, path: &Path, serial: u64, depth: usize) -> io::Result<Look> {
    let file = disk.open(path).await?;
    let bytes = file.size().await?;
    let mut front = file.read_at(0, FRONT_BYTES).await?;
    match Head::of(&front) {
        Head::Ours => {}
        Head::Unwritten => return Ok(Look::Broken { bytes }),
        Head::Version(version) => return Ok(Look::Version(version)),
        Head::Alien => return Ok(Look::Alien),
    }
    let Some(length) = record_bytes(&front[HEAD_BYTES..]) else { return Ok(Look::Broken { bytes }) };
    let first = HEAD_BYTES + length;
    if front.len() < first {
        front = file.read_at(0, first).await?;
    }
    if front.len() < first {
        return Ok(Look::Broken { bytes });
    }
    let Some((origin, tag)) = read_origin_record(&front.slice(HEAD_BYTES..first), depth) else {
        return Ok(Look::Broken { bytes });
    };
    if origin.serial != serial || origin.follows >= serial {
        return Ok(Look::Broken { bytes });
    }
    let trailer = match bytes.checked_sub(TRAILER_BYTES as u64) {
        Some(place) => tag.trailer(place, &file.read_at(place, TRAILER_BYTES).await?),
        None => None,
    };
    let trailer = trailer.filter(|t| t.index >= first as u64 && t.end >= origin.start);
    Ok(Look::Segment(Box::new(Survey { path: path.to_owned(), origin, tag, first: first as u64, bytes, trailer })))
}

/// Opens a segment for reading: its own index, or one made by reading it through.
pub(super) async fn open_segment(disk: &dyn Disk, path: &Path, serial: u64, depth: usize) -> io::Result<Opened> {
    let Look::Segment(survey) = look(disk, path, serial, depth).await? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not the segment that was written"));
    };
    let file = disk.open(path).await?;
    let entries = read_end(&*file, &survey, depth).await?.entries;
    Ok(Opened::new(file, survey.tag, survey.first, entries))
}

pub(super) async fn read_index(file: &dyn DiskFile, survey: &Survey, depth: usize) -> io::Result<Option<Index>> {
    let Some(trailer) = survey.trailer else { return Ok(None) };
    let length = (survey.bytes - TRAILER_BYTES as u64).saturating_sub(trailer.index);
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(super::segment::MAX_PAYLOAD * 2);
    let record = match file.read_at(trailer.index, length).await {
        Err(error) if is_the_files_fault(&error) => return Ok(None),
        read => read?,
    };
    Ok(match survey.tag.read(trailer.index, &record, depth) {
        Some(Record::Index(index)) if index.end == trailer.end => Some(index),
        Some(_) | None => None,
    })
}

pub(super) struct Through {
    pub(super) index: Index,
    /// Where the last good record in front of an index ends.
    pub(super) place: u64,
    pub(super) sealed: bool,
}

/// The state at the end of a segment: from its index, or by reading it through.
async fn read_end(file: &dyn DiskFile, survey: &Survey, depth: usize) -> io::Result<Index> {
    match read_index(file, survey, depth).await? {
        Some(index) => Ok(index),
        None => Ok(read_through(file, survey, depth).await?.index),
    }
}

/// Reads a segment record by record, up to the first that is not whole and good.
pub(super) async fn read_through(file: &dyn DiskFile, survey: &Survey, depth: usize) -> io::Result<Through> {
    let origin = &survey.origin;
    let mut index = Index {
        end: origin.start,
        boundary: origin.boundary,
        unix_ms: origin.unix_ms,
        clock_ms: origin.clock_ms,
        history: origin.history.clone(),
        entries: Vec::new(),
    };
    let mut walk = Walk::new(file, survey.tag, depth, survey.first, survey.bytes, BLOCK_BYTES);
    let (mut ended, mut sealed) = (survey.first, false);
    loop {
        let (place, record) = match walk.next().await {
            Ok(Some(next)) => next,
            Ok(None) => break,
            // What cannot be read is no better than what is not there.
            Err(error) if is_the_files_fault(&error) => break,
            Err(error) => return Err(error),
        };
        match record {
            Record::Data { unix_ms, boundary, bytes } => {
                index.note(place, unix_ms);
                index.end = index.end.forward(bytes.len() as u64);
                (index.boundary, index.unix_ms) = (boundary, unix_ms);
            }
            Record::History(history) => index.history = history,
            Record::Index(seal) => {
                index.clock_ms = seal.clock_ms;
                sealed = survey.trailer.is_some_and(|trailer| trailer.index == place);
                break;
            }
            // Nobody writes a second one.
            Record::Origin(_) => break,
        }
        ended = walk.place();
    }
    Ok(Through { index, place: ended, sealed })
}

impl Index {
    /// Adds an entry for the data record at `place`, which begins at `end`, where one is due.
    pub(super) fn note(&mut self, place: u64, unix_ms: u64) {
        if self.entries.last().is_none_or(|last| self.end.since(last.offset) >= INDEX_SPACING) {
            self.entries.push(Entry { offset: self.end, place, unix_ms });
        }
    }
}

/// The segment before the last one of `line`, which is still newest first, if it reaches that far.
async fn join(
    disk: &dyn Disk,
    survey: Survey,
    line: &[Found],
    depth: usize,
    marks: &mut Marks,
) -> Result<Option<Found>, OpenError> {
    let Some(Origin { sequence, start: next, .. }) = line.last().map(|found| &found.origin) else { return Ok(None) };
    if survey.origin.sequence != *sequence || survey.origin.start > *next {
        return Ok(None);
    }
    let next = *next;
    let end = match survey.trailer {
        Some(trailer) if line.len() >= INDEXED_SEGMENTS => {
            marks.add(next, &survey.origin, &[], trailer.unix_ms);
            trailer.end
        }
        Some(_) | None => {
            let reading = |source| OpenError::Io { path: survey.path.clone(), source };
            let file = disk.open(&survey.path).await.map_err(reading)?;
            let read = read_end(&*file, &survey, depth).await.map_err(reading)?;
            marks.add(next, &survey.origin, &read.entries, read.unix_ms);
            read.end
        }
    };
    Ok((end >= next).then_some(Found { end: next, bytes: survey.bytes, origin: survey.origin }))
}

/// Arrival times, gathered newest segment first.
#[derive(Default)]
struct Marks {
    backwards: Vec<(Offset, u64)>,
}

impl Marks {
    /// Of a segment that is claimed up to `end`, whose last record arrived at `unix_ms`.
    fn add(&mut self, end: Offset, origin: &Origin, entries: &[Entry], unix_ms: u64) {
        if end > origin.start {
            self.backwards.push((end, unix_ms));
        }
        self.backwards.extend(entries.iter().rev().filter(|e| e.offset < end).map(|e| (e.offset, e.unix_ms)));
        if entries.is_empty() {
            self.backwards.push((origin.start, origin.unix_ms));
        }
    }

    /// By increasing offset, thinned evenly; the first and the last are kept.
    fn finish(mut self) -> Vec<(Offset, u64)> {
        self.backwards.reverse();
        self.backwards.dedup_by_key(|mark| mark.0);
        let count = self.backwards.len();
        if count <= MAX_MARKS {
            return self.backwards;
        }
        (0..MAX_MARKS).map(|n| self.backwards[n * (count - 1) / (MAX_MARKS - 1)]).collect()
    }
}
