//! A disk in memory, on which everything is done at once: what reads a directory is run without a runtime.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use psyncd::store::disk::{DirLock, Disk, DiskFile, DiskFuture};

/// Runs what never waits.
pub(crate) fn at_once<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("nothing here waits"),
    }
}

/// The files of one directory.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<BTreeMap<PathBuf, Arc<File>>>>);

#[derive(Default)]
struct File(Mutex<Vec<u8>>);

fn done<'a, T: Send + 'a>(result: io::Result<T>) -> DiskFuture<'a, T> {
    Box::pin(std::future::ready(result))
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Memory {
    fn files(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<File>>> {
        self.0.lock().expect("no one panics holding it")
    }

    /// Puts a file there.
    pub(crate) fn put(&self, path: &Path, bytes: &[u8]) {
        self.files().insert(path.to_owned(), Arc::new(File(Mutex::new(bytes.to_vec()))));
    }

    /// What every file holds.
    pub(crate) fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        self.files().iter().map(|(path, file)| (path.clone(), file.bytes().clone())).collect()
    }

    fn find(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.files().get(path).cloned().map(|file| file as Arc<dyn DiskFile>).ok_or_else(missing)
    }
}

impl File {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().expect("no one panics holding it")
    }
}

impl Disk for Memory {
    fn private_dir<'a>(&'a self, _: &'a Path) -> DiskFuture<'a, ()> {
        done(Ok(()))
    }

    fn create<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Arc<dyn DiskFile>> {
        if self.files().contains_key(path) {
            return done(Err(io::ErrorKind::AlreadyExists.into()));
        }
        self.put(path, b"");
        done(self.find(path))
    }

    fn open<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Arc<dyn DiskFile>> {
        done(self.find(path))
    }

    fn open_writable<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, Arc<dyn DiskFile>> {
        done(self.find(path))
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> DiskFuture<'a, ()> {
        let mut files = self.files();
        let moved = files.remove(from).map(|file| files.insert(to.to_owned(), file));
        done(moved.map(drop).ok_or_else(missing))
    }

    fn sync_dir<'a>(&'a self, _: &'a Path) -> DiskFuture<'a, ()> {
        done(Ok(()))
    }

    fn free_bytes<'a>(&'a self, _: &'a Path) -> DiskFuture<'a, u64> {
        done(Ok(u64::MAX))
    }

    fn list<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, Vec<String>> {
        let files = self.files();
        let inside = files.keys().filter_map(|path| path.strip_prefix(dir).ok()?.to_str());
        done(Ok(inside.map(str::to_owned).collect()))
    }

    fn remove<'a>(&'a self, path: &'a Path) -> DiskFuture<'a, ()> {
        done(self.files().remove(path).map(drop).ok_or_else(missing))
    }

    fn lock<'a>(&'a self, _: &'a Path) -> DiskFuture<'a, DirLock> {
        done(Ok(Box::new(())))
    }

    fn discard(&self, path: &Path) {
        self.files().remove(path);
    }
}

impl DiskFile for File {
    fn write_at(&self, at: u64, data: Bytes) -> DiskFuture<'_, ()> {
        let (mut bytes, at) = (self.bytes(), at as usize);
        let end = at + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[at..end].copy_from_slice(&data);
        done(Ok(()))
    }

    fn read_at(&self, at: u64, max: usize) -> DiskFuture<'_, Bytes> {
        let bytes = self.bytes();
        let at = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        done(Ok(Bytes::copy_from_slice(&bytes[at..at.saturating_add(max).min(bytes.len())])))
    }

    fn size(&self) -> DiskFuture<'_, u64> {
        done(Ok(self.bytes().len() as u64))
    }

    fn sync(&self) -> DiskFuture<'_, ()> {
        done(Ok(()))
    }

    fn truncate(&self, len: u64) -> DiskFuture<'_, ()> {
        self.bytes().resize(len as usize, 0);
        done(Ok(()))
    }
}
