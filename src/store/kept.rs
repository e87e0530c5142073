//! Complete snapshots that outlive the process.
//!
//! While it arrives a file is called `snapshot-<serial>.rdb`, and whatever is called so at a start is unfinished. Once it
//! is whole and found good it is synced, given a name that says all there is to know of it, and the directory is synced:
//!
//! ```text
//! snapshot-<replid>-<offset>-<length>-<format>-<serial>.rdb
//! ```
//!
//! with offset and length in decimal bytes and the format as in the file's header. The serial makes the name unique, or
//! a second snapshot of the same position would lose its name to the end of the first. A file found at a start is believed
//! when its length and header are what its name says, and offered only after whoever found it has read it whole: a disk
//! may lose what it said it had.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::disk::Disk;
use super::snapshot::{Keeping, PREFIX, Progress, Rdb, SUFFIX, Shelf};
use crate::repl::{Offset, Position, RdbFormat};

/// Most snapshots of earlier runs that are offered; older ones are removed. More than one is there only after a crash.
pub const FOUND_MAX: usize = 4;
/// Bytes of an RDB's header.
const HEADER_LEN: usize = 9;

/// What the name of a kept snapshot says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label {
    position: Position,
    length: u64,
    format: RdbFormat,
    serial: u64,
}

impl Label {
    /// Reads exactly what `Display` writes.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.split('-');
        let (id, offset) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let (length, format, serial) =
            (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let label = Self { position: Position::new(id, Offset::new(offset)), length, format, serial };
        (parts.next().is_none() && label.to_string() == name).then_some(label)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, length, format, serial } = self;
        write!(f, "{PREFIX}{}-{}-{length}-{format}-{serial:06}{SUFFIX}", position.id, position.offset)
    }
}

/// The snapshot that is to be kept next: only the newest is worth it.
#[derive(Default)]
pub(super) struct Queue {
    /// Held for an instruction.
    next: Mutex<Option<Arc<Rdb>>>,
    added: Notify,
}

/// A snapshot of an earlier run. Dropped, it is removed.
#[derive(Debug)]
pub struct Found {
    rdb: Arc<Rdb>,
    length: u64,
}

impl Found {
    /// Whose data set it is, by its name.
    pub fn position(&self) -> Position {
        self.rdb.position()
    }

    /// Its format, by its name and its header.
    pub fn format(&self) -> RdbFormat {
        self.rdb.format()
    }

    /// Its size in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads at most `max` bytes from `at`, for checking them. Cancel-safe.
    pub async fn read(&self, at: u64, max: usize) -> io::Result<Bytes> {
        self.rdb.read(at, max).await
    }

    /// It was read whole and found good.
    pub fn accept(self) -> Arc<Rdb> {
        self.rdb.turn(Progress::Complete { length: self.length });
        self.rdb
    }
}

impl Shelf {
    /// Makes `dir` ours alone. Complete snapshots in it stay, those of earlier runs and, at the end, our own.
    pub async fn lasting(disk: Arc<dyn Disk>, dir: PathBuf) -> io::Result<Self> {
        Self::new(disk, dir, Keeping::Complete).await
    }

    /// What earlier runs kept, newest first, [`FOUND_MAX`] at most. What is not what its name says is removed.
    pub async fn recover(&self) -> io::Result<Vec<Found>> {
        let mut labels: Vec<Label> =
            self.disk.list(&self.dir).await?.iter().filter_map(|name| Label::parse(name)).collect();
        labels.sort_by_key(|label| std::cmp::Reverse(label.serial));
        if let Some(newest) = labels.first() {
            self.serial.fetch_max(newest.serial.saturating_add(1), Ordering::Relaxed);
        }
        let mut found = Vec::new();
        for label in labels {
            match self.find(label).await {
                Ok(file) if found.len() < FOUND_MAX => found.push(file),
                // Its name goes with it.
                Ok(surplus) => drop(surplus),
                Err(error) => {
                    let file = label.to_string();
                    warn!(event = "kept_snapshot_removed", %error, file, "kept snapshot removed");
                    if let Err(error) = self.disk.remove(&self.dir.join(&file)).await {
                        warn!(event = "file_not_removed", %error, file, "file not removed");
                    }
                }
            }
        }
        Ok(found)
    }

    async fn find(&self, label: Label) -> io::Result<Found> {
        let path = self.dir.join(label.to_string());
        let file = self.disk.open(&path).await?;
        let invalid = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        if file.size().await? != label.length {
            return invalid("its length is not what its name says");
        }
        if *file.read_at(0, HEADER_LEN).await? != *label.format.to_string().as_bytes() {
            return invalid("its header is not what its name says");
        }
        let name = self.name(path.clone(), label.serial);
        name.keep(path);
        let rdb = Rdb::new(label.position, label.format, Some(label.length), file, Some(name));
        Ok(Found { rdb: Arc::new(rdb), length: label.length })
    }

    /// Has a complete snapshot kept for the next start, soon; one that was to be kept and is not yet is forgotten for it.
    pub fn keep(&self, rdb: &Arc<Rdb>) {
        if self.keeping == Keeping::Complete {
            *self.finished.next.lock().expect("no one panics holding it") = Some(Arc::clone(rdb));
            self.finished.added.notify_one();
        }
    }

    /// The process is about to end: what is kept stays when its readers go. [`clear`](Self::clear) removes the rest.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }
}

/// Keeps what [`Shelf::keep`] is given, until `shutdown`: syncing takes as long as the disk likes, so nobody waits for it.
pub async fn run(shelf: Arc<Shelf>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = shelf.finished.added.notified() => {}
        }
        let next = shelf.finished.next.lock().expect("no one panics holding it").take();
        let Some(rdb) = next else { continue };
        match keep(&shelf, &rdb).await {
            Ok(file) => {
                info!(event = "snapshot_kept", position = %rdb.position(), file, "snapshot kept for the next start")
            }
            Err(error) => {
                warn!(event = "snapshot_not_kept", %error, position = %rdb.position(), "snapshot will not survive a restart")
            }
        }
    }
}

async fn keep(shelf: &Shelf, rdb: &Rdb) -> io::Result<String> {
    let Progress::Complete { length } = rdb.progress() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not complete"));
    };
    let Some(name) = &rdb.name else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no name"));
    };
    let label = Label { position: rdb.position(), length, format: rdb.format(), serial: name.serial };
    rdb.file.sync().await?;
    let path = shelf.dir.join(label.to_string());
    shelf.disk.rename(&name.path(), &path).await?;
    name.keep(path);
    shelf.disk.sync_dir(&shelf.dir).await?;
    Ok(label.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repl::ReplId;
    use crate::store::disk::RealDisk;
    use std::path::Path;

    fn at(offset: u64) -> Position {
        Position::new(ReplId::from_ascii(&[b'a'; 40]).unwrap(), Offset::new(offset))
    }

    async fn shelf(dir: &Path) -> Arc<Shelf> {
        Arc::new(Shelf::lasting(Arc::new(RealDisk), dir.to_owned()).await.unwrap())
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    async fn complete(shelf: &Shelf, offset: u64, content: &'static [u8]) -> Arc<Rdb> {
        let mut spool = shelf.spool(at(offset), RdbFormat::Redis(11), None).await.unwrap();
        spool.write(Bytes::from_static(content)).await.unwrap();
        spool.finish()
    }

    async fn kept(shelf: &Shelf, offset: u64, content: &'static [u8]) -> Arc<Rdb> {
        let rdb = complete(shelf, offset, content).await;
        keep(shelf, &rdb).await.unwrap();
        rdb
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), waiting).await.expect(what);
    }

    #[test]
    fn a_name_reads_back_as_it_is_written_and_no_other_is_one_of_ours() {
        let label = Label { position: at(77), length: 5, format: RdbFormat::Valkey(80), serial: 3 };
        assert_eq!(Label::parse(&label.to_string()), Some(label));
        let name = label.to_string();
        for bad in [
            "snapshot-000003.rdb".to_owned(),
            name.replace("-77-", "-077-"),
            name.replace("-5-", "--5-"),
            name.replace(".rdb", "-1.rdb"),
            name.replace("aaaa", "AAAA"),
            name.replace("VALKEY080", "VALKEY80"),
        ] {
            assert_eq!(Label::parse(&bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_complete_snapshot_is_found_again_and_an_unfinished_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let first = shelf(dir.path()).await;
        let rdb = kept(&first, 7, b"REDIS0011 contents").await;
        let _unfinished = first.spool(at(9), RdbFormat::Redis(11), None).await.unwrap();
        let _unkept = complete(&first, 8, b"REDIS0011").await;
        assert_eq!(names(dir.path()).len(), 3);
        first.leave();
        drop(rdb);

        let second = shelf(dir.path()).await;
        let mut found = second.recover().await.unwrap();
        assert_eq!(found.len(), 1);
        let file = found.remove(0);
        assert_eq!((file.position(), file.format(), file.length()), (at(7), RdbFormat::Redis(11), 18));
        assert_eq!(&file.read(10, 100).await.unwrap()[..], b"contents");
        let rdb = file.accept();
        assert_eq!(rdb.progress(), Progress::Complete { length: 18 });
        let next = kept(&second, 7, b"REDIS0011 contents").await;
        assert_eq!(names(dir.path()).len(), 2, "the same position twice has two names");
        drop(rdb);
        until("a superseded file goes with its last reader", || names(dir.path()).len() == 1).await;
        assert_eq!(second.recover().await.unwrap().len(), 1);
        drop(next);
    }

    #[tokio::test]
    async fn what_is_not_what_its_name_says_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let first = shelf(dir.path()).await;
        first.leaving.store(true, Ordering::Relaxed);
        for offset in 0..7 {
            kept(&first, offset, b"REDIS0011 contents").await;
        }
        let all = names(dir.path());
        let file = |n: usize| dir.path().join(&all[n]);
        std::fs::write(file(6), b"REDIS0011 content").unwrap();
        std::fs::write(file(5), b"REDIS0012 contents").unwrap();
        std::fs::remove_file(file(4)).unwrap();
        std::os::unix::fs::symlink(file(3), file(4)).unwrap();
        std::fs::write(dir.path().join("other.rdb"), b"not ours").unwrap();
        let second = shelf(dir.path()).await;
        let found = second.recover().await.unwrap();
        let offsets: Vec<u64> = found.iter().map(|f| f.position().offset.get()).collect();
        assert_eq!(offsets, [3, 2, 1, 0], "newest first");
        assert_eq!(names(dir.path()).len(), 5);
    }

    #[tokio::test]
    async fn a_passing_directory_keeps_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let passing = Arc::new(Shelf::open(Arc::new(RealDisk), dir.path().to_owned()).await.unwrap());
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(run(Arc::clone(&passing), stop.clone()));
        let rdb = complete(&passing, 7, b"REDIS0011").await;
        passing.keep(&rdb);
        passing.leave();
        passing.clear().await.unwrap();
        stop.cancel();
        keeper.await.unwrap();
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[tokio::test]
    async fn the_keeper_keeps_what_it_is_given_and_lives_through_what_it_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(dir.path()).await;
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(run(Arc::clone(&shelf), stop.clone()));
        let gone = complete(&shelf, 7, b"REDIS0011").await;
        std::fs::remove_file(dir.path().join("snapshot-000001.rdb")).unwrap();
        shelf.keep(&gone);
        let rdb = complete(&shelf, 8, b"REDIS0011").await;
        shelf.keep(&rdb);
        let kept = || names(dir.path()).iter().any(|name| Label::parse(name).is_some_and(|l| l.position == at(8)));
        until("the second is kept", kept).await;
        stop.cancel();
        keeper.await.unwrap();
    }
}
