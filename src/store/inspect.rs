//! Looking at a journal from outside: which segments there are, and whether every byte in them is what was written. Reads
//! only, takes no lock, and may be done while a psyncd writes: what it removes meanwhile is not missed, and what it is just
//! writing is not taken for damage.

use std::io;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::recover::{self, Look, Survey, Through};
use super::segment::{MAX_ANCESTORS, serial_of};
use crate::repl::{Offset, ReplId};

/// How closely segments are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Their first and last bytes; the newest is read through, since nothing else says where it ends.
    Ends,
    /// Every record.
    Records,
}

/// One segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its file.
    pub path: PathBuf,
    /// Its number.
    pub serial: u64,
    /// The unbroken stream it belongs to.
    pub sequence: u64,
    /// The one that holds what comes before it; 0 for none.
    pub follows: u64,
    /// Its first stream byte.
    pub start: Offset,
    /// One past its last.
    pub end: Offset,
    /// What the stream was called at its end.
    pub replid: ReplId,
    /// Bytes of its file.
    pub bytes: u64,
    /// When it was begun, by the wall clock.
    pub unix_ms: u64,
    /// Whose stream it is, as configured.
    pub upstream: String,
    /// Whether it is finished.
    pub sealed: bool,
    /// Bytes behind its last whole record, which are being written or were torn by a crash.
    pub loose_bytes: u64,
    /// Whether it is part of what a psyncd would offer after a restart.
    pub claimed: bool,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub what: String,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// By number.
    pub segments: Vec<Segment>,
    /// What is wrong, by number.
    pub damage: Vec<Damage>,
}

impl Report {
    /// What a psyncd would offer after a restart, if anything.
    pub fn claimed(&self) -> Option<(Offset, Offset)> {
        let mut claimed = self.segments.iter().filter(|segment| segment.claimed);
        let first = claimed.next()?;
        Some((first.start, claimed.next_back().unwrap_or(first).end))
    }
}

/// Looks at the journal in `dir`; `progress` is told the bytes read so far and of how many, now and then.
///
/// # Errors
/// When the directory or the disk cannot be read. What is wrong with a file is in the report.
pub async fn inspect(
    disk: &dyn Disk,
    dir: &Path,
    depth: Depth,
    mut progress: impl FnMut(u64, u64),
) -> io::Result<Report> {
    let mut names: Vec<(u64, PathBuf)> =
        disk.list(dir).await?.into_iter().filter_map(|name| Some((serial_of(&name)?, dir.join(name)))).collect();
    names.sort();
    let newest = names.last().map_or(0, |(serial, _)| *serial);
    let mut report = Report::default();
    let mut surveys = Vec::new();
    for (serial, path) in names {
        let mut damaged = |what: &str| report.damage.push(Damage { path: path.clone(), what: what.to_owned() });
        match recover::look(disk, &path, serial, MAX_ANCESTORS).await {
            Ok(Look::Segment(survey)) => surveys.push(*survey),
            Ok(Look::Version(version)) => damaged(&format!("has format {version}, which this psyncd does not read")),
            // A file that is just being created looks like that.
            Ok(Look::Broken { .. }) if serial == newest => {}
            Ok(Look::Broken { .. }) => damaged("its beginning is not what was written"),
            Ok(Look::Alien) => damaged("is no journal segment"),
            // It was removed since, which is what happens to the oldest.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if recover::is_the_files_fault(&error) => damaged(&format!("cannot be read: {error}")),
            Err(error) => return Err(error),
        }
    }
    let whole: u64 = surveys.iter().map(|survey| survey.bytes).sum();
    let mut read_bytes = 0;
    for survey in surveys {
        let is_newest = survey.origin.serial == newest;
        match read(disk, &survey, depth, is_newest).await {
            Ok(read) => {
                let damage = judge(&survey, &read);
                report.damage.extend(damage.map(|what| Damage { path: survey.path.clone(), what }));
                report.segments.push(segment(&survey, &read));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        read_bytes += survey.bytes;
        progress(read_bytes, whole);
    }
    claim(&mut report);
    report.damage.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(report)
}

/// A segment as it was read: its end, and how far its records are good.
struct Read {
    through: Through,
    /// Whether every record was looked at.
    every: bool,
}

async fn read(disk: &dyn Disk, survey: &Survey, depth: Depth, newest: bool) -> io::Result<Read> {
    let file = disk.open(&survey.path).await?;
    if depth == Depth::Ends
        && !newest
        && let Some(index) = recover::read_index(&*file, survey, MAX_ANCESTORS).await?
    {
        let place = survey.trailer.map_or(survey.bytes, |trailer| trailer.index);
        return Ok(Read { through: Through { index, place, sealed: true }, every: false });
    }
    Ok(Read { through: recover::read_through(&*file, survey, MAX_ANCESTORS).await?, every: true })
}

/// What is wrong with a segment by itself, if anything.
fn judge(survey: &Survey, read: &Read) -> Option<String> {
    let Through { index, place, sealed } = &read.through;
    match survey.trailer {
        Some(trailer) if read.every && !sealed => Some(format!(
            "the record at byte {place} is not what was written: offsets {} to {} are lost",
            index.end.get(),
            trailer.end.get()
        )),
        Some(trailer) if read.every && trailer.end != index.end => {
            Some(format!("its records end at offset {}, its seal says {}", index.end.get(), trailer.end.get()))
        }
        Some(_) | None => None,
    }
}

fn segment(survey: &Survey, read: &Read) -> Segment {
    let Through { index, place, sealed } = &read.through;
    let origin = &survey.origin;
    Segment {
        path: survey.path.clone(),
        serial: origin.serial,
        sequence: origin.sequence,
        follows: origin.follows,
        start: origin.start,
        end: index.end,
        replid: index.history.current(),
        bytes: survey.bytes,
        unix_ms: origin.unix_ms,
        upstream: origin.upstream.clone(),
        sealed: *sealed,
        loose_bytes: if *sealed { 0 } else { survey.bytes.saturating_sub(*place) },
        claimed: false,
    }
}

/// Marks the line of the newest segment: each one that the next says it follows, and that reaches to where that begins. One
/// that is followed was finished and synced before, so if it is not whole now it is damaged.
fn claim(report: &mut Report) {
    let Some(mut at) = report.segments.len().checked_sub(1) else { return };
    report.segments[at].claimed = true;
    loop {
        let next = report.segments[at].clone();
        let Some(before) = report.segments[..at].iter().rposition(|segment| segment.serial == next.follows) else {
            let older = report.segments[..at].iter().any(|segment| segment.sequence == next.sequence);
            // The oldest go first, so where it was removed none is left before it.
            if older && next.follows != 0 {
                let what = format!("it follows segment {}, which is not there or damaged", next.follows);
                report.damage.push(Damage { path: next.path, what });
            }
            return;
        };
        let segment = &mut report.segments[before];
        let what = match segment.sealed {
            _ if segment.sequence != next.sequence => return,
            true if segment.end >= next.start => None,
            true => {
                Some(format!("it ends at offset {}, and the next begins at {}", segment.end.get(), next.start.get()))
            }
            false => Some(format!(
                "it is not whole although another follows it; it is good up to offset {}",
                segment.end.get()
            )),
        };
        if let Some(what) = what {
            if report.damage.iter().all(|damage| damage.path != segment.path) {
                report.damage.push(Damage { path: segment.path.clone(), what });
            }
            return;
        }
        segment.claimed = true;
        at = before;
    }
}
