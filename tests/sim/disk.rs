//! psyncd's disk in memory: it can be slow, full, read-only, or fail at a chosen call.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use psyncd::store::disk::{DirLock, Disk, DiskFile, DiskFuture};

use crate::chance::Chance;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub struct DiskFaults {
    /// Bytes the disk holds; none: endless. Names removed while a file is open free nothing until it closes.
    pub capacity_bytes: Option<u64>,
    pub read_only: bool,
    /// Calls, counted from now, that fail with an I/O error.
    pub failing: BTreeSet<u64>,
    /// The longest a call takes, in virtual time.
    pub slowest: Duration,
}

struct State {
    dirs: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Arc<SimFile>>,
    locked: BTreeSet<PathBuf>,
    used: u64,
    most: u64,
    calls: u64,
    faults: DiskFaults,
    chance: Chance,
}

/// A disk shared by all who hold a clone. The lock is held for one call.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    pub fn new(chance: Chance) -> Self {
        Self(Arc::new(Mutex::new(State {
            dirs: BTreeSet::new(),
            files: BTreeMap::new(),
            locked: BTreeSet::new(),
            used: 0,
            most: 0,
            calls: 0,
            faults: DiskFaults::default(),
            chance,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }

    /// From now on these faults and no others.
    pub fn suffer(&self, faults: DiskFaults) {
        let mut state = self.state();
        state.calls = 0;
        state.faults = faults;
    }

    /// Bytes held now and the most ever held.
    pub fn usage(&self) -> (u64, u64) {
        let state = self.state();
        (state.used, state.most)
    }

    /// Takes its time, then says whether this call fails.
    async fn begin(&self, writes: bool) -> io::Result<()> {
        let pause = {
            let mut state = self.state();
            let slowest = state.faults.slowest.as_millis() as u64;
            if slowest == 0 { Duration::ZERO } else { state.chance.millis(0, slowest) }
        };
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let mut state = self.state();
        state.calls += 1;
        if state.faults.failing.contains(&state.calls) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if writes && state.faults.read_only {
            return Err(io::Error::from_raw_os_error(EROFS));
        }
        Ok(())
    }
}

impl Disk for SimDisk {
    fn private_dir<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, ()> {
        Box::pin(async move {
            let exists = self.state().dirs.contains(path);
            self.begin(!exists).await?;
            self.state().dirs.extend(path.ancestors().map(Path::to_owned));
            Ok(())
        })
    }

    fn create<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Arc<dyn DiskFile>> {
        Box::pin(async move {
            self.begin(true).await?;
            let file = Arc::new(SimFile { disk: self.clone(), bytes: Mutex::new(Vec::new()) });
            let mut state = self.state();
            if path.parent().is_some_and(|dir| !state.dirs.contains(dir)) {
                return Err(io::ErrorKind::NotFound.into());
            }
            if state.files.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.files.insert(path.to_owned(), Arc::clone(&file));
            Ok(file as Arc<dyn DiskFile>)
        })
    }

    fn open<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Arc<dyn DiskFile>> {
        Box::pin(async move {
            self.begin(false).await?;
            let file = self.state().files.get(path).cloned();
            file.map(|file| file as Arc<dyn DiskFile>).ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    fn open_writable<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Arc<dyn DiskFile>> {
        Box::pin(async move {
            self.begin(true).await?;
            let file = self.state().files.get(path).cloned();
            file.map(|file| file as Arc<dyn DiskFile>).ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> DiskFuture<'a, ()> {
        Box::pin(async move {
            self.begin(true).await?;
            // Dropped outside of the lock, as in `remove`.
            let replaced = {
                let mut state = self.state();
                let file = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
                state.files.insert(to.to_owned(), file)
            };
            drop(replaced);
            Ok(())
        })
    }

    fn sync_dir<'a>(&'a self, _dir: &'a Path) -> DiskFuture<'a, ()> {
        Box::pin(self.begin(true))
    }

    fn free_bytes<'a>(&'a self, _dir: &'a Path) -> DiskFuture<'a, u64> {
        Box::pin(async move {
            self.begin(false).await?;
            let state = self.state();
            Ok(state.faults.capacity_bytes.map_or(1 << 40, |capacity| capacity.saturating_sub(state.used)))
        })
    }

    fn list<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Vec<String>> {
        Box::pin(async move {
            self.begin(false).await?;
            let state = self.state();
            let inside = state.files.keys().filter(|file| file.parent() == Some(path));
            Ok(inside.filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned())).collect())
        })
    }

    fn remove<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, ()> {
        Box::pin(async move {
            self.begin(true).await?;
            // Dropped outside of the lock: the last holder gives the space back.
            let removed = self.state().files.remove(path);
            removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    fn lock<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, DirLock> {
        Box::pin(async move {
            self.begin(true).await?;
            if !self.state().locked.insert(dir.to_owned()) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(Box::new(Lock { disk: self.clone(), dir: dir.to_owned() }) as DirLock)
        })
    }

    fn discard(&self, path: &Path) {
        let removed = self.state().files.remove(path);
        drop(removed);
    }
}

struct Lock {
    disk: SimDisk,
    dir: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.disk.state().locked.remove(&self.dir);
    }
}

struct SimFile {
    disk: SimDisk,
    bytes: Mutex<Vec<u8>>,
}

impl SimFile {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().expect("no holder panics")
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let len = self.bytes().len() as u64;
        self.disk.state().used -= len;
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, at: u64, data: Bytes) -> DiskFuture<'_, ()> {
        Box::pin(async move {
            self.disk.begin(true).await?;
            let mut state = self.disk.state();
            let mut bytes = self.bytes();
            let end = at as usize + data.len();
            let mut fits = end;
            if let Some(capacity) = state.faults.capacity_bytes {
                let room = capacity.saturating_sub(state.used);
                fits = fits.min(bytes.len() + room as usize);
            }
            // A full disk takes what fits before it says so.
            if fits > bytes.len() {
                state.used += (fits - bytes.len()) as u64;
                state.most = state.most.max(state.used);
                bytes.resize(fits, 0);
            }
            let taken = fits.min(end).saturating_sub(at as usize).min(data.len());
            if taken > 0 {
                bytes[at as usize..at as usize + taken].copy_from_slice(&data[..taken]);
            }
            if taken < data.len() { Err(io::Error::from_raw_os_error(ENOSPC)) } else { Ok(()) }
        })
    }

    fn size(&self) -> DiskFuture<'_, u64> {
        Box::pin(async move {
            self.disk.begin(false).await?;
            Ok(self.bytes().len() as u64)
        })
    }

    fn sync(&self) -> DiskFuture<'_, ()> {
        Box::pin(self.disk.begin(true))
    }

    fn truncate(&self, len: u64) -> DiskFuture<'_, ()> {
        Box::pin(async move {
            self.disk.begin(true).await?;
            let mut state = self.disk.state();
            let mut bytes = self.bytes();
            state.used = state.used - bytes.len() as u64 + len;
            state.most = state.most.max(state.used);
            bytes.resize(len as usize, 0);
            Ok(())
        })
    }

    fn read_at(&self, at: u64, max: usize) -> DiskFuture<'_, Bytes> {
        Box::pin(async move {
            self.disk.begin(false).await?;
            let bytes = self.bytes();
            let from = (at as usize).min(bytes.len());
            let to = from.saturating_add(max).min(bytes.len());
            Ok(Bytes::copy_from_slice(&bytes[from..to]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_disk_takes_what_fits_and_gives_space_back_with_the_last_holder() {
        let disk = SimDisk::new(Chance::new(1));
        let dir = Path::new("/d");
        disk.private_dir(dir).await.unwrap();
        disk.suffer(DiskFaults { capacity_bytes: Some(10), ..Default::default() });
        let file = disk.create(&dir.join("f")).await.unwrap();
        file.write_at(0, Bytes::from_static(b"01234567")).await.unwrap();
        let full = file.write_at(8, Bytes::from_static(b"89abc")).await.unwrap_err();
        assert_eq!(full.raw_os_error(), Some(ENOSPC));
        assert_eq!(&file.read_at(6, 100).await.unwrap()[..], b"6789");
        disk.remove(&dir.join("f")).await.unwrap();
        assert_eq!(disk.usage(), (10, 10));
        drop(file);
        assert_eq!(disk.usage(), (0, 10));
        disk.suffer(DiskFaults { read_only: true, failing: [2].into(), ..Default::default() });
        assert_eq!(disk.create(&dir.join("g")).await.err().unwrap().raw_os_error(), Some(EROFS));
        assert_eq!(disk.list(dir).await.unwrap_err().raw_os_error(), Some(EIO));
    }
}
