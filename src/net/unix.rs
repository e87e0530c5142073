//! The control socket: a unix socket only its owner can open.
//!
//! It is bound under another name in a directory nobody else can enter, given its mode there, and then renamed to its
//! path, so that there is no moment at which others could connect.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::{Link, PeerAddress, Security};

/// Longest path the kernel takes for a unix socket, in bytes (`sun_path` less its end).
pub const LIMIT_PATH_BYTES: usize = 107;
/// How long whoever has the path may take to show that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// The name it is bound under first.
const FIRST_NAME: &str = "s";
/// What that adds to the path of the directory: `/.psyncd-` and six characters, `/` and the name.
const DETOUR_BYTES: usize = 17;

/// A listening control socket. Its drop removes the file, unless another process has put its own there.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file.
    file: (u64, u64),
}

impl ControlSocket {
    /// Listens at `path` with mode 0600. Its directory is made (0700) when it does not exist.
    ///
    /// Errors: [`AddrInUse`](io::ErrorKind::AddrInUse) when a living process answers there; a socket of a dead one is
    /// replaced. [`InvalidInput`](io::ErrorKind::InvalidInput) when the path is too long, is a symbolic link or no
    /// socket, or when others may write in its directory: they could put a socket of their own there.
    pub async fn bind(path: &Path) -> io::Result<Self> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if path.as_os_str().len() > LIMIT_PATH_BYTES || parent.as_os_str().len() + DETOUR_BYTES > LIMIT_PATH_BYTES {
            return Err(invalid("the path is too long for a unix socket"));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        if fs::metadata(parent)?.mode() & 0o022 != 0 {
            return Err(invalid("others may write in its directory"));
        }
        Self::free(path).await?;
        let detour = tempfile::Builder::new().prefix(".psyncd-").tempdir_in(parent)?;
        let first = detour.path().join(FIRST_NAME);
        let listener = UnixListener::bind(&first)?;
        fs::set_permissions(&first, Permissions::from_mode(0o600))?;
        let made = fs::symlink_metadata(&first)?;
        fs::rename(&first, path)?;
        Ok(Self { listener, path: path.to_owned(), file: (made.dev(), made.ino()) })
    }

    /// Makes sure that nobody lives at `path`.
    async fn free(path: &Path) -> io::Result<()> {
        let kind = match fs::symlink_metadata(path) {
            Ok(there) => there.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if !kind.is_socket() {
            return Err(invalid("something is there that is no socket"));
        }
        match timeout(SIGN_OF_LIFE, UnixStream::connect(path)).await {
            // One that is too busy to answer is alive as well.
            Ok(Ok(_)) | Err(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there")),
            Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"))
            }
            Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                Ok(())
            }
            Ok(Err(error)) => Err(error),
        }
    }

    /// The next caller. Cancel-safe.
    pub async fn accept(&mut self) -> io::Result<Link> {
        let (stream, _) = self.listener.accept().await?;
        let (source, sink) = stream.into_split();
        Ok(Link {
            source: Box::new(source),
            sink: Box::new(sink),
            peer: PeerAddress::Unix,
            local: PeerAddress::Unix,
            security: Security::Plain,
            place: None,
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|there| (there.dev(), there.ino()) == self.file);
        if ours {
            // A socket left behind is replaced by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[tokio::test]
    async fn only_its_owner_can_open_it_and_it_goes_with_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new").join("psyncd.sock");
        let mut socket = ControlSocket::bind(&path).await.unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "the detour is gone");
        let caller = UnixStream::connect(&path).await.unwrap();
        assert_eq!(socket.accept().await.unwrap().peer, PeerAddress::Unix);
        drop((caller, socket));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_living_process_keeps_its_socket_and_a_dead_one_loses_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("psyncd.sock");
        let first = ControlSocket::bind(&path).await.unwrap();
        let refused = ControlSocket::bind(&path).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse, "{refused}");
        UnixStream::connect(&path).await.expect("the first still listens");
        drop(first);

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a process that is killed leaves it behind");
        let second = ControlSocket::bind(&path).await.unwrap();
        UnixStream::connect(&path).await.unwrap();
        // Another one took the path over; the second must not remove what is not its own.
        fs::remove_file(&path).unwrap();
        let _third = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(second);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_path_that_is_not_safe_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "mine").unwrap();
        symlink(at("elsewhere.sock"), at("link")).unwrap();
        fs::create_dir(at("open")).unwrap();
        fs::set_permissions(at("open"), Permissions::from_mode(0o777)).unwrap();
        for (path, why) in [
            (at("file"), "no socket"),
            (at("link"), "no socket"),
            (at("open").join("s.sock"), "others may write"),
            (at(&"x".repeat(LIMIT_PATH_BYTES)), "too long"),
        ] {
            let refused = ControlSocket::bind(&path).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
            assert!(refused.to_string().contains(why), "{}: {refused}", path.display());
        }
        assert_eq!(fs::read_to_string(at("file")).unwrap(), "mine");
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink() && !at("elsewhere.sock").exists());
    }
}
