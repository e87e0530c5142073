//! The few file-system verbs we use, as a trait, so that the simulation can lose, tear and fill a disk.
//!
//! Every verb is async because a real disk is slow: the real one runs it on tokio's blocking threads, so
//! that no disk ever holds up the stream. Paths are absolute or relative to the process, as given.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::fs::OFlags;

/// A boxed future of the traits in this module.
pub type DiskFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Files in directories.
pub trait Disk: Send + Sync {
    /// Makes `path` (and its parents) a directory only we can enter (0700), or makes an existing one so.
    fn private_dir<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, ()>;

    /// Creates a file only we can read (0600). Fails when `path` exists, a symbolic link included.
    fn create<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Arc<dyn DiskFile>>;

    /// Opens an existing file for reading. Fails when `path` is a symbolic link.
    fn open<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Arc<dyn DiskFile>>;

    /// Opens an existing file for reading and writing, to mend what a crash left. Fails when `path` is a symbolic
    /// link.
    fn open_writable<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Arc<dyn DiskFile>>;

    /// Gives the file `from` the name `to`, in place of whatever had it. Survives a crash of the machine only
    /// after [`sync_dir`](Self::sync_dir); until then either name may be found.
    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> DiskFuture<'a, ()>;

    /// Makes the names in a directory survive a crash of the machine: files created, renamed and removed.
    fn sync_dir<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, ()>;

    /// Bytes that may still be written to the file system `dir` is on.
    fn free_bytes<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, u64>;

    /// The names in a directory, sorted.
    fn list<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Vec<String>>;

    /// Removes a file. Whoever has it open can still read it.
    fn remove<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, ()>;

    /// Takes the directory for this process alone, until the guard drops. Fails with
    /// [`io::ErrorKind::WouldBlock`] when another process has it.
    fn lock<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, DirLock>;

    /// Removes a file that nobody needs any more, soon and without an answer: for destructors. What cannot be
    /// removed stays behind and is cleared at the next start.
    fn discard(&self, path: &Path);
}

/// Keeps a directory locked while it lives.
pub type DirLock = Box<dyn Send + Sync>;

/// The name of the file whose lock stands for the directory's; it holds the pid of whoever has it.
const LOCK_FILE: &str = "psyncd.lock";

/// One open file, shared by a writer and any number of readers.
pub trait DiskFile: Send + Sync {
    /// Writes all of `data` at `at` bytes from the beginning. Dropping the future does not undo the write.
    fn write_at(&self, at: u64, data: Bytes) -> DiskFuture<'_, ()>;

    /// Reads at most `max` bytes from `at`; fewer, or none, only at the end of the file. Cancel-safe.
    fn read_at(&self, at: u64, max: usize) -> DiskFuture<'_, Bytes>;

    /// The file's size in bytes.
    fn size(&self) -> DiskFuture<'_, u64>;

    /// Makes the bytes written so far survive a crash of the machine; its name does only after
    /// [`Disk::sync_dir`]. After an error nothing written since the last success may be counted on, whatever a
    /// later call says: the kernel forgets what it failed to write.
    fn sync(&self) -> DiskFuture<'_, ()>;

    /// Cuts the file to `len` bytes, or fills it up to there with zeros.
    fn truncate(&self, len: u64) -> DiskFuture<'_, ()>;

    /// The file itself, for whoever can send it as it is. `None` when there is no real one.
    fn file(&self) -> Option<&Arc<File>> {
        None
    }
}

/// The machine's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Only a runtime that is shutting down drops blocking work.
        Err(gone) => Err(io::Error::other(gone)),
    }
}

impl Disk for RealDisk {
    fn private_dir<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, ()> {
        let path = path.to_owned();
        Box::pin(blocking(move || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
        }))
    }

    fn create<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Arc<dyn DiskFile>> {
        let path: PathBuf = path.to_owned();
        Box::pin(blocking(move || {
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
            Ok(Arc::new(RealFile(Arc::new(file))) as Arc<dyn DiskFile>)
        }))
    }

    fn open<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Arc<dyn DiskFile>> {
        let path = path.to_owned();
        Box::pin(blocking(move || open_with(OpenOptions::new().read(true), &path)))
    }

    fn open_writable<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Arc<dyn DiskFile>> {
        let path = path.to_owned();
        Box::pin(blocking(move || open_with(OpenOptions::new().read(true).write(true), &path)))
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> DiskFuture<'a, ()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        Box::pin(blocking(move || fs::rename(from, to)))
    }

    fn sync_dir<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, ()> {
        let dir = dir.to_owned();
        Box::pin(blocking(move || File::open(dir)?.sync_all()))
    }

    fn free_bytes<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, u64> {
        let dir = dir.to_owned();
        Box::pin(blocking(move || {
            let system = rustix::fs::statvfs(&dir)?;
            Ok(system.f_bavail.saturating_mul(system.f_frsize))
        }))
    }

    fn list<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Vec<String>> {
        let path = path.to_owned();
        Box::pin(blocking(move || {
            let mut names = Vec::new();
            for entry in fs::read_dir(path)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        }))
    }

    fn remove<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, ()> {
        let path = path.to_owned();
        Box::pin(blocking(move || fs::remove_file(path)))
    }

    fn lock<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, DirLock> {
        let path = dir.join(LOCK_FILE);
        Box::pin(blocking(move || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            // What a link in its place leads to must not be emptied.
            let file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&path)?;
            match file.try_lock() {
                Ok(()) => {
                    file.set_len(0)?;
                    file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)?;
                    Ok(Box::new(file) as DirLock)
                }
                Err(TryLockError::WouldBlock) => {
                    let holder = fs::read_to_string(&path).unwrap_or_default();
                    let why = format!("process {} has it", holder.trim());
                    Err(io::Error::new(io::ErrorKind::WouldBlock, why))
                }
                Err(TryLockError::Error(error)) => Err(error),
            }
        }))
    }

    fn discard(&self, path: &Path) {
        let path = path.to_owned();
        // Freeing the blocks of a large file takes milliseconds that no task of the runtime has.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || fs::remove_file(path))),
            Err(_) => drop(fs::remove_file(path)),
        }
    }
}

fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
    // Non-blocking, or a pipe left in a file's place would hold the opener for ever; regular files do not care.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = options.custom_flags(flags.cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(Arc::new(RealFile(Arc::new(file))))
}

struct RealFile(Arc<File>);

impl Drop for RealFile {
    /// Closing a large file that has no name any more frees its blocks: milliseconds that no task of the runtime has.
    fn drop(&mut self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let file = Arc::clone(&self.0);
            runtime.spawn_blocking(move || drop(file));
        }
    }
}

impl DiskFile for RealFile {
    fn file(&self) -> Option<&Arc<File>> {
        Some(&self.0)
    }

    fn write_at(&self, at: u64, data: Bytes) -> DiskFuture<'_, ()> {
        let file = Arc::clone(&self.0);
        Box::pin(blocking(move || file.write_all_at(&data, at)))
    }

    fn size(&self) -> DiskFuture<'_, u64> {
        let file = Arc::clone(&self.0);
        Box::pin(blocking(move || Ok(file.metadata()?.len())))
    }

    fn sync(&self) -> DiskFuture<'_, ()> {
        let file = Arc::clone(&self.0);
        Box::pin(blocking(move || file.sync_data()))
    }

    fn truncate(&self, len: u64) -> DiskFuture<'_, ()> {
        let file = Arc::clone(&self.0);
        Box::pin(blocking(move || file.set_len(len)))
    }

    fn read_at(&self, at: u64, max: usize) -> DiskFuture<'_, Bytes> {
        let file = Arc::clone(&self.0);
        Box::pin(blocking(move || {
            let mut buffer = BytesMut::zeroed(max);
            let mut filled = 0;
            while filled < max {
                match file.read_at(&mut buffer[filled..], at + filled as u64) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            buffer.truncate(filled);
            Ok(buffer.freeze())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RealDisk.lock(dir.path()).await.unwrap();
        let Err(refused) = RealDisk.lock(dir.path()).await else { panic!("two owners") };
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
        drop(lock);
        RealDisk.lock(dir.path()).await.unwrap();
    }

    #[tokio::test]
    async fn a_link_in_the_place_of_the_lock_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        fs::write(&other, "not ours").unwrap();
        std::os::unix::fs::symlink(&other, dir.path().join(LOCK_FILE)).unwrap();
        assert!(RealDisk.lock(dir.path()).await.is_err());
        assert_eq!(fs::read_to_string(&other).unwrap(), "not ours");
    }

    #[tokio::test]
    async fn a_file_is_private_and_reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub");
        RealDisk.private_dir(&path).await.unwrap();
        let file = RealDisk.create(&path.join("f")).await.unwrap();
        file.write_at(0, Bytes::from_static(b"hello ")).await.unwrap();
        file.write_at(6, Bytes::from_static(b"world")).await.unwrap();
        assert_eq!(&file.read_at(4, 100).await.unwrap()[..], b"o world");
        assert!(file.read_at(11, 10).await.unwrap().is_empty());
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("f"))), (0o700, 0o600));
        assert_eq!(RealDisk.list(&path).await.unwrap(), ["f"]);
        assert!(RealDisk.create(&path.join("f")).await.is_err(), "an existing file is never taken over");
        RealDisk.remove(&path.join("f")).await.unwrap();
        assert_eq!(&file.read_at(0, 5).await.unwrap()[..], b"hello", "an open file outlives its name");
    }

    #[tokio::test]
    async fn an_existing_file_is_opened_renamed_and_cut_but_never_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let file = RealDisk.create(&at("f")).await.unwrap();
        file.write_at(0, Bytes::from_static(b"hello world")).await.unwrap();
        file.sync().await.unwrap();
        RealDisk.rename(&at("f"), &at("g")).await.unwrap();
        RealDisk.sync_dir(dir.path()).await.unwrap();
        let reader = RealDisk.open(&at("g")).await.unwrap();
        assert!(reader.write_at(0, Bytes::from_static(b"x")).await.is_err(), "opened for reading");
        let mender = RealDisk.open_writable(&at("g")).await.unwrap();
        mender.truncate(5).await.unwrap();
        assert_eq!(reader.size().await.unwrap(), 5);
        assert_eq!(&reader.read_at(0, 100).await.unwrap()[..], b"hello");
        std::os::unix::fs::symlink(at("g"), at("link")).unwrap();
        assert!(RealDisk.open(&at("link")).await.is_err());
        assert!(RealDisk.open_writable(&at("link")).await.is_err());
        assert!(RealDisk.open(dir.path()).await.is_err(), "a directory is no file");
        assert!(RealDisk.free_bytes(dir.path()).await.unwrap() > 0);
    }
}
