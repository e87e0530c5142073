//! psyncd's disk in memory: it can be slow, full, read-only, fail at a chosen call, or die there and lose, tear or
//! partly keep what was not synced.

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
    /// The call, of those that change something, counted from 1 and from now, at which the machine dies: it has an
    /// effect that may survive, and nothing after it has any.
    pub dies_at: Option<u64>,
    /// The longest a call takes, in virtual time.
    pub slowest: Duration,
}

/// What of the unsynced a dying machine leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// All of it: only the process died.
    Process,
    /// Nothing.
    Lost,
    /// The changes made first.
    Prefix,
    /// Any changes, writes sector by sector; where a lost one lay, there are zeros, noise, or an old file's bytes.
    Torn,
}

impl Crash {
    pub const ALL: [Self; 4] = [Self::Process, Self::Lost, Self::Prefix, Self::Torn];
}

const SECTOR: usize = 512;

/// A file's bytes as they are, as a crash would surely leave them, and what lies between the two.
#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { at: usize, data: Bytes },
    Truncate(usize),
}

impl Content {
    fn write(&mut self, at: usize, data: Bytes) {
        put(&mut self.now, at, &data);
        self.unsynced.push(Change::Write { at, data });
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            match change {
                Change::Write { at, data } => put(&mut self.durable, at, &data),
                Change::Truncate(len) => self.durable.resize(len, 0),
            }
        }
    }

    /// The bytes found after a crash. `stale` is what the disk held where no write arrived.
    fn survive(&self, crash: Crash, stale: &[u8], chance: &mut Chance) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let kept = chance.below(self.unsynced.len() as u64 + 1) as usize;
        for (n, change) in self.unsynced.iter().enumerate() {
            match (crash, change) {
                (Crash::Process, _) => return self.now.clone(),
                (Crash::Lost, _) => break,
                (Crash::Prefix, _) if n > kept => break,
                (Crash::Prefix, Change::Write { at, data }) if n == kept => {
                    put(&mut bytes, *at, &data[..chance.below(data.len() as u64 + 1) as usize]);
                }
                (Crash::Prefix, Change::Write { at, data }) => put(&mut bytes, *at, data),
                (Crash::Torn, Change::Write { at, data }) => {
                    if chance.one_in(4) {
                        continue;
                    }
                    // The size may be there before the bytes are.
                    let mut from = *at;
                    while from < at + data.len() {
                        let to = (from / SECTOR * SECTOR + SECTOR).min(at + data.len());
                        if chance.one_in(4) {
                            let old = stale.get(from..to.min(stale.len())).unwrap_or_default();
                            if bytes.len() < to {
                                put(&mut bytes, from, old);
                            }
                        } else {
                            put(&mut bytes, from, &data[from - at..to - at]);
                        }
                        from = to;
                    }
                }
                (Crash::Prefix | Crash::Torn, Change::Truncate(len)) => {
                    if crash == Crash::Prefix || !chance.one_in(2) {
                        bytes.resize(*len, 0);
                    }
                }
            }
        }
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

/// Shared by the file and by what a crash would leave of it.
type Shared = Arc<Mutex<Content>>;

/// A change of a directory that a crash may take back.
struct Rename {
    removed: Option<PathBuf>,
    made: Option<(PathBuf, Shared)>,
}

impl Rename {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Shared>) {
        if let Some(path) = &self.removed {
            names.remove(path);
        }
        if let Some((path, content)) = &self.made {
            names.insert(path.clone(), Arc::clone(content));
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        let made = self.made.as_ref().map(|(path, _)| path);
        self.removed.iter().chain(made).any(|path| path.parent() == Some(dir))
    }
}

struct State {
    dirs: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Arc<SimFile>>,
    durable: BTreeMap<PathBuf, Shared>,
    renames: Vec<Rename>,
    changes: u64,
    dead: bool,
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
            durable: BTreeMap::new(),
            renames: Vec::new(),
            changes: 0,
            dead: false,
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
        state.changes = 0;
        state.faults = faults;
    }

    /// Bytes held now and the most ever held.
    pub fn usage(&self) -> (u64, u64) {
        let state = self.state();
        (state.used, state.most)
    }

    /// Calls that changed something, or tried, since [`suffer`](Self::suffer).
    pub fn changes(&self) -> u64 {
        self.state().changes
    }

    /// The disk as the next boot finds it. Whoever holds this one goes on with a ghost.
    pub fn crash(&self, crash: Crash, mut chance: Chance) -> Self {
        let after = Self::new(chance.fork("disk"));
        let state = self.state();
        let mut names = state.durable.clone();
        let kept = chance.below(state.renames.len() as u64 + 1) as usize;
        for (n, rename) in state.renames.iter().enumerate() {
            let survives = match crash {
                Crash::Process => true,
                Crash::Lost => false,
                Crash::Prefix => n < kept,
                Crash::Torn => chance.one_in(2),
            };
            if survives {
                rename.apply(&mut names);
            }
        }
        let mut noise = vec![0; 1 << 12];
        chance.fill(&mut noise);
        let mut stale = Vec::new();
        after.state().dirs = state.dirs.clone();
        for (path, content) in names {
            let content = content.lock().expect("no holder panics");
            let old: &[u8] = match chance.below(3) {
                0 => &[],
                1 => &noise,
                _ => &stale,
            };
            let bytes = content.survive(crash, old, &mut chance);
            after.plant(&path, bytes);
            stale.clone_from(&content.now);
        }
        after
    }

    /// What has a name, and how many bytes each has.
    pub fn holdings(&self) -> Vec<(PathBuf, usize)> {
        let state = self.state();
        state.files.iter().map(|(path, file)| (path.clone(), file.content().now.len())).collect()
    }

    /// A file's bytes.
    pub fn peek(&self, path: &Path) -> Option<Vec<u8>> {
        let file = self.state().files.get(path).cloned();
        file.map(|file| file.content().now.clone())
    }

    /// Puts a file there, durably.
    pub fn plant(&self, path: &Path, bytes: Vec<u8>) {
        let content = Arc::new(Mutex::new(Content { now: bytes.clone(), durable: bytes, unsynced: Vec::new() }));
        let file = Arc::new(SimFile { disk: self.clone(), content: Arc::clone(&content) });
        let mut state = self.state();
        state.dirs.extend(path.ancestors().skip(1).map(Path::to_owned));
        state.used += file.content().now.len() as u64;
        state.most = state.most.max(state.used);
        state.durable.insert(path.to_owned(), content);
        let replaced = state.files.insert(path.to_owned(), file);
        drop(state);
        drop(replaced);
    }

    /// Whether the machine has died.
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// A call that came too late or in the middle of which the machine died has no answer.
    fn alive(&self) -> io::Result<()> {
        if self.is_dead() { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
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
        self.alive()?;
        let mut state = self.state();
        state.calls += 1;
        if writes {
            state.changes += 1;
            state.dead = state.faults.dies_at == Some(state.changes);
        }
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
            let content = Shared::default();
            let file = Arc::new(SimFile { disk: self.clone(), content: Arc::clone(&content) });
            let mut state = self.state();
            if path.parent().is_some_and(|dir| !state.dirs.contains(dir)) {
                return Err(io::ErrorKind::NotFound.into());
            }
            if state.files.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.files.insert(path.to_owned(), Arc::clone(&file));
            state.renames.push(Rename { removed: None, made: Some((path.to_owned(), content)) });
            drop(state);
            self.alive()?;
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
                let made = Some((to.to_owned(), Arc::clone(&file.content)));
                state.renames.push(Rename { removed: Some(from.to_owned()), made });
                state.files.insert(to.to_owned(), file)
            };
            drop(replaced);
            self.alive()
        })
    }

    fn sync_dir<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, ()> {
        Box::pin(async move {
            self.begin(true).await?;
            self.alive()?;
            let mut state = self.state();
            let (synced, left) = std::mem::take(&mut state.renames).into_iter().partition(|r| r.is_in(dir));
            state.renames = left;
            let synced: Vec<Rename> = synced;
            synced.iter().for_each(|rename| rename.apply(&mut state.durable));
            Ok(())
        })
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
            removed.map(drop).ok_or(io::ErrorKind::NotFound)?;
            self.state().renames.push(Rename { removed: Some(path.to_owned()), made: None });
            self.alive()
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
        let removed = {
            let mut state = self.state();
            if state.dead {
                return;
            }
            let removed = state.files.remove(path);
            state.renames.extend(removed.iter().map(|_| Rename { removed: Some(path.to_owned()), made: None }));
            removed
        };
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
    content: Shared,
}

impl SimFile {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("no holder panics")
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let len = self.content().now.len() as u64;
        self.disk.state().used -= len;
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, at: u64, data: Bytes) -> DiskFuture<'_, ()> {
        Box::pin(async move {
            self.disk.begin(true).await?;
            let taken = {
                let mut state = self.disk.state();
                let mut content = self.content();
                let len = content.now.len();
                let end = at as usize + data.len();
                let mut fits = end;
                if let Some(capacity) = state.faults.capacity_bytes {
                    let room = capacity.saturating_sub(state.used);
                    fits = fits.min(len + room as usize);
                }
                // A full disk takes what fits before it says so.
                state.used += fits.saturating_sub(len) as u64;
                state.most = state.most.max(state.used);
                let taken = fits.saturating_sub(at as usize).min(data.len());
                if taken > 0 {
                    content.write(at as usize, data.slice(..taken));
                } else if fits > len {
                    content.now.resize(fits, 0);
                    content.unsynced.push(Change::Truncate(fits));
                }
                taken
            };
            self.disk.alive()?;
            if taken < data.len() { Err(io::Error::from_raw_os_error(ENOSPC)) } else { Ok(()) }
        })
    }

    fn size(&self) -> DiskFuture<'_, u64> {
        Box::pin(async move {
            self.disk.begin(false).await?;
            Ok(self.content().now.len() as u64)
        })
    }

    fn sync(&self) -> DiskFuture<'_, ()> {
        Box::pin(async move {
            self.disk.begin(true).await?;
            self.disk.alive()?;
            self.content().sync();
            Ok(())
        })
    }

    fn truncate(&self, len: u64) -> DiskFuture<'_, ()> {
        Box::pin(async move {
            self.disk.begin(true).await?;
            {
                let mut state = self.disk.state();
                let mut content = self.content();
                state.used = state.used - content.now.len() as u64 + len;
                state.most = state.most.max(state.used);
                content.now.resize(len as usize, 0);
                content.unsynced.push(Change::Truncate(len as usize));
            }
            self.disk.alive()
        })
    }

    fn read_at(&self, at: u64, max: usize) -> DiskFuture<'_, Bytes> {
        Box::pin(async move {
            self.disk.begin(false).await?;
            let content = self.content();
            let from = (at as usize).min(content.now.len());
            let to = from.saturating_add(max).min(content.now.len());
            Ok(Bytes::copy_from_slice(&content.now[from..to]))
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

    #[tokio::test]
    async fn a_crash_keeps_what_was_synced_and_may_take_back_the_rest() {
        for crash in Crash::ALL {
            let disk = SimDisk::new(Chance::new(1));
            let at = |name: &str| Path::new("/d").join(name);
            disk.private_dir(Path::new("/d")).await.unwrap();
            let file = disk.create(&at("kept")).await.unwrap();
            file.write_at(0, Bytes::from_static(b"synced")).await.unwrap();
            file.sync().await.unwrap();
            disk.sync_dir(Path::new("/d")).await.unwrap();
            file.write_at(6, Bytes::from_static(b" or not")).await.unwrap();
            disk.create(&at("new")).await.unwrap();
            disk.suffer(DiskFaults { dies_at: Some(1), ..Default::default() });
            assert!(disk.rename(&at("kept"), &at("other")).await.is_err(), "nobody hears of it");
            assert!(file.read_at(0, 1).await.is_err());
            assert_eq!(disk.changes(), 1);
            let after = disk.crash(crash, Chance::new(7));
            let names = after.list(Path::new("/d")).await.unwrap();
            match crash {
                Crash::Process => assert_eq!(names, ["new", "other"]),
                Crash::Lost => assert_eq!(names, ["kept"]),
                Crash::Prefix | Crash::Torn => {}
            }
            let bytes = after.peek(&at("kept")).or(after.peek(&at("other"))).unwrap();
            assert!(bytes.starts_with(b"synced"), "{bytes:?}");
        }
    }
}
