//! Snapshots: RDB files, readable by many while they are still being written by one.
//!
//! A [`Spool`] is the writer's handle; an [`Rdb`] is what readers share. The last [`WITHHELD`] bytes are given
//! to nobody before the writer has said that the whole file is good, because a replica that receives a broken
//! RDB in complete framing exits or wipes itself (redis 2.8 to 8.x, rdb.c `rdbReportReadError`). So an unfinished
//! transfer can only ever end in a closed socket.
//!
//! A file exists for as long as anybody can still read it. In a directory that goes with the process it has no name, so
//! that nothing is left of it however the process ends. In one that outlives the process it is removed with its last
//! reader, and the newest complete ones outlive the process too: see [`super::kept`].

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;

use super::disk::{Disk, DiskFile};
use super::kept::{Label, Queue};
use crate::repl::{Position, RdbFormat};

/// Bytes at the end of a file that are withheld until it is finished: the closing opcode and the checksum.
pub const WITHHELD: u64 = 9;

pub(super) const PREFIX: &str = "snapshot-";
pub(super) const SUFFIX: &str = ".rdb";

/// The directory snapshots are kept in.
pub struct Shelf {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) serial: AtomicU64,
    pub(super) keeping: Keeping,
    /// Set when the process goes: what is kept then stays.
    pub(super) leaving: Arc<AtomicBool>,
    pub(super) finished: Queue,
}

/// What becomes of complete snapshots when the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeping {
    /// They go, and never had a name.
    Nothing,
    /// They stay.
    Complete,
}

impl Shelf {
    /// Makes `dir` ours alone and clears what an earlier run left behind. What this run leaves behind goes as well.
    pub async fn open(disk: Arc<dyn Disk>, dir: PathBuf) -> io::Result<Self> {
        Self::new(disk, dir, Keeping::Nothing).await
    }

    pub(super) async fn new(disk: Arc<dyn Disk>, dir: PathBuf, keeping: Keeping) -> io::Result<Self> {
        disk.private_dir(&dir).await?;
        let (serial, leaving) = (AtomicU64::new(1), Arc::new(AtomicBool::new(false)));
        let shelf = Self { disk, dir, serial, keeping, leaving, finished: Queue::default() };
        shelf.clear().await?;
        Ok(shelf)
    }

    /// Removes from the directory what will not be found again: every snapshot, or every unfinished one where the
    /// complete ones are kept. Whoever is reading one can read on.
    pub async fn clear(&self) -> io::Result<()> {
        for name in self.disk.list(&self.dir).await? {
            let kept = self.keeping == Keeping::Complete && Label::parse(&name).is_some();
            if name.starts_with(PREFIX) && name.ends_with(SUFFIX) && !kept {
                match self.disk.remove(&self.dir.join(name)).await {
                    // Its last reader was quicker.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed?,
                }
            }
        }
        Ok(())
    }

    /// Starts a file. `length` is its size in bytes where that is known beforehand.
    pub async fn spool(&self, position: Position, format: RdbFormat, length: Option<u64>) -> io::Result<Spool> {
        if let Some(needed) = length {
            let free = self.disk.free_bytes(&self.dir).await?;
            if free < needed {
                let why = format!("a snapshot of {needed} bytes does not fit into the {free} that are free");
                return Err(io::Error::new(io::ErrorKind::StorageFull, why));
            }
        }
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{PREFIX}{serial:06}{SUFFIX}"));
        let file = self.disk.create(&path).await?;
        let name = match self.keeping {
            Keeping::Complete => Some(self.name(path, serial)),
            Keeping::Nothing => {
                self.disk.remove(&path).await?;
                None
            }
        };
        let rdb = Rdb::new(position, format, length, file, name);
        Ok(Spool { rdb: Arc::new(rdb) })
    }

    pub(super) fn name(&self, path: PathBuf, serial: u64) -> Name {
        let (disk, leaving) = (Arc::clone(&self.disk), Arc::clone(&self.leaving));
        Name { disk, serial, path: Mutex::new(path), kept: AtomicBool::new(false), leaving }
    }

    /// What they are written with.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Where the files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// The name of a file on disk, removed when dropped, unless it is kept and the process is leaving.
pub(super) struct Name {
    disk: Arc<dyn Disk>,
    pub(super) serial: u64,
    /// Held for a copy.
    path: Mutex<PathBuf>,
    kept: AtomicBool,
    leaving: Arc<AtomicBool>,
}

impl Name {
    pub(super) fn path(&self) -> PathBuf {
        self.path.lock().expect("no one panics holding it").clone()
    }

    /// The file is found again at the next start, under this name.
    pub(super) fn keep(&self, path: PathBuf) {
        *self.path.lock().expect("no one panics holding it") = path;
        self.kept.store(true, Ordering::Relaxed);
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if !(self.kept.load(Ordering::Relaxed) && self.leaving.load(Ordering::Relaxed)) {
            self.disk.discard(&self.path());
        }
    }
}

/// How much of an RDB there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Still being written.
    Arriving {
        /// Bytes written so far.
        received: u64,
    },
    /// Complete and checked.
    Complete {
        /// Its size in bytes.
        length: u64,
    },
    /// Given up: it will never be complete.
    Failed,
}

impl Progress {
    /// Bytes there are.
    pub fn received(self) -> u64 {
        match self {
            Progress::Arriving { received } => received,
            Progress::Complete { length } => length,
            Progress::Failed => 0,
        }
    }
}

/// What a reader may have next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readable {
    /// Everything up to this many bytes from the beginning.
    UpTo(u64),
    /// The reader has the whole file.
    End,
    /// The file will never be complete.
    Failed,
}

/// One RDB file, complete or growing. `position`, `format` and `length` never change.
pub struct Rdb {
    position: Position,
    format: RdbFormat,
    length: Option<u64>,
    pub(super) file: Arc<dyn DiskFile>,
    /// Where it can be found; `None` where nothing is kept.
    pub(super) name: Option<Name>,
    /// Held for a few instructions, never across an await.
    progress: Mutex<Progress>,
    grown: Notify,
}

impl Rdb {
    pub(super) fn new(
        position: Position,
        format: RdbFormat,
        length: Option<u64>,
        file: Arc<dyn DiskFile>,
        name: Option<Name>,
    ) -> Self {
        let progress = Mutex::new(Progress::Arriving { received: 0 });
        Self { position, format, length, file, name, progress, grown: Notify::new() }
    }

    /// The point of the stream whose data set this is.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The format its header declares.
    pub fn format(&self) -> RdbFormat {
        self.format
    }

    /// Its size in bytes, once known: announced beforehand, or because it is complete.
    pub fn length(&self) -> Option<u64> {
        match self.progress() {
            Progress::Complete { length } => Some(length),
            Progress::Arriving { .. } | Progress::Failed => self.length,
        }
    }

    /// How much of it there is.
    pub fn progress(&self) -> Progress {
        *self.progress.lock().expect("no one panics holding it")
    }

    /// Waits until there is more than the first `have` bytes to read, or an end. Cancel-safe.
    pub async fn readable(&self, have: u64) -> Readable {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            match self.progress() {
                Progress::Failed => return Readable::Failed,
                Progress::Complete { length } if have >= length => return Readable::End,
                Progress::Complete { length } => return Readable::UpTo(length),
                Progress::Arriving { received } if received.saturating_sub(WITHHELD) > have => {
                    return Readable::UpTo(received - WITHHELD);
                }
                Progress::Arriving { .. } => grown.await,
            }
        }
    }

    /// Reads at most `max` bytes from `at`. Ask only for what is [`readable`](Self::readable). Cancel-safe.
    pub async fn read(&self, at: u64, max: usize) -> io::Result<Bytes> {
        self.file.read_at(at, max).await
    }

    /// The file itself, for sending it as it is. It only ever grows, and is never written twice in one place.
    pub fn file(&self) -> Option<&Arc<File>> {
        self.file.file()
    }

    pub(super) fn turn(&self, progress: Progress) {
        *self.progress.lock().expect("no one panics holding it") = progress;
        self.grown.notify_waiters();
    }
}

impl std::fmt::Debug for Rdb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rdb")
            .field("position", &self.position)
            .field("format", &self.format)
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}

/// Writes one RDB. Dropped unfinished, it tells every reader that the file failed.
#[derive(Debug)]
pub struct Spool {
    rdb: Arc<Rdb>,
}

impl Spool {
    /// What readers share.
    pub fn rdb(&self) -> &Arc<Rdb> {
        &self.rdb
    }

    /// Adds `data` at the end. After an error the spool is good for nothing but to be dropped.
    pub async fn write(&mut self, data: Bytes) -> io::Result<()> {
        let received = self.received();
        let added = data.len() as u64;
        self.rdb.file.write_at(received, data).await?;
        self.rdb.turn(Progress::Arriving { received: received + added });
        Ok(())
    }

    /// Declares the file complete and good, which hands out the bytes withheld.
    pub fn finish(self) -> Arc<Rdb> {
        self.rdb.turn(Progress::Complete { length: self.received() });
        Arc::clone(&self.rdb)
    }

    fn received(&self) -> u64 {
        self.rdb.progress().received()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Progress::Arriving { .. } = self.rdb.progress() {
            self.rdb.turn(Progress::Failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repl::{Offset, ReplId};
    use crate::store::disk::RealDisk;

    async fn shelf() -> (tempfile::TempDir, Shelf) {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(Arc::new(RealDisk), dir.path().join("s")).await.unwrap();
        (dir, shelf)
    }

    fn position() -> Position {
        Position::new(ReplId::from_ascii(&[b'a'; 40]).unwrap(), Offset::new(7))
    }

    #[tokio::test]
    async fn the_last_bytes_are_withheld_until_the_file_is_finished() {
        let (_dir, shelf) = shelf().await;
        let mut spool = shelf.spool(position(), RdbFormat::Redis(11), None).await.unwrap();
        let rdb = Arc::clone(spool.rdb());
        spool.write(Bytes::from_static(b"0123456789abcdef")).await.unwrap();
        assert_eq!(rdb.readable(0).await, Readable::UpTo(7));
        let waiting = tokio::spawn({
            let rdb = Arc::clone(&rdb);
            async move { rdb.readable(7).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        spool.finish();
        assert_eq!(waiting.await.unwrap(), Readable::UpTo(16));
        assert_eq!(rdb.readable(16).await, Readable::End);
        assert_eq!(&rdb.read(5, 100).await.unwrap()[..], b"56789abcdef");
        assert_eq!(rdb.length(), Some(16));
    }

    #[tokio::test]
    async fn readers_of_an_abandoned_file_learn_that_it_failed() {
        let (_dir, shelf) = shelf().await;
        let mut spool = shelf.spool(position(), RdbFormat::Redis(11), Some(100)).await.unwrap();
        let rdb = Arc::clone(spool.rdb());
        spool.write(Bytes::from_static(b"0123456789abcdef")).await.unwrap();
        drop(spool);
        assert_eq!(rdb.readable(0).await, Readable::Failed);
    }

    #[tokio::test]
    async fn a_file_deleted_while_it_is_sent_is_sent_to_its_end() {
        let (dir, shelf) = shelf().await;
        let mut spool = shelf.spool(position(), RdbFormat::Redis(11), None).await.unwrap();
        spool.write(Bytes::from_static(b"0123456789")).await.unwrap();
        let reader = Arc::clone(spool.rdb());
        assert_eq!(&reader.read(0, 1).await.unwrap()[..], b"0");
        std::fs::remove_dir_all(dir.path().join("s")).unwrap();
        spool.write(Bytes::from_static(b"abcdefghij")).await.unwrap();
        drop(spool.finish());
        assert_eq!(reader.readable(1).await, Readable::UpTo(20));
        assert_eq!(&reader.read(1, 100).await.unwrap()[..], b"123456789abcdefghij");
    }

    #[tokio::test]
    async fn a_snapshot_larger_than_the_space_left_is_refused_before_its_first_byte() {
        let (_dir, shelf) = shelf().await;
        let refused = shelf.spool(position(), RdbFormat::Redis(11), Some(u64::MAX)).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    }

    #[tokio::test]
    async fn a_file_lives_as_long_as_its_readers_and_leftovers_are_cleared_at_start() {
        let (dir, shelf) = shelf().await;
        let names = || std::fs::read_dir(dir.path().join("s")).unwrap().count();
        drop(shelf);
        let shelf = Shelf::lasting(Arc::new(RealDisk), dir.path().join("s")).await.unwrap();
        let rdb = shelf.spool(position(), RdbFormat::Redis(11), None).await.unwrap().finish();
        assert_eq!(names(), 1);
        drop(rdb);
        tokio::time::timeout(std::time::Duration::from_secs(10), async {
            while names() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the file goes with its last reader");
        std::fs::write(dir.path().join("s/snapshot-000009.rdb"), b"left over").unwrap();
        std::fs::write(dir.path().join("s/other.rdb"), b"not ours").unwrap();
        Shelf::open(Arc::new(RealDisk), dir.path().join("s")).await.unwrap();
        assert_eq!(names(), 1);
    }

    #[tokio::test]
    async fn where_nothing_is_kept_a_killed_process_leaves_nothing_behind() {
        let (dir, shelf) = shelf().await;
        let mut spool = shelf.spool(position(), RdbFormat::Redis(11), None).await.unwrap();
        spool.write(Bytes::from_static(b"0123456789")).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("s")).unwrap().count(), 0);
        assert_eq!(&spool.finish().read(0, 100).await.unwrap()[..], b"0123456789");
    }
}
