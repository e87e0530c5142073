//! What psyncd finds and keeps in its directory: the lock, snapshots, the journal, what it remembers, and its control socket.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::anyhow;
use tracing::{info, warn};

use super::{Failure, Seams, memory};
use crate::cli::Exit;
use crate::config::{Config, Journal, Socket};
use crate::live::Live;
use crate::net::{Address, ControlSocket};
use crate::relay::Relay;
use crate::scribe::{self, Scribe, Upkeep};
use crate::store::disk::{DirLock, Disk};
use crate::store::journal::{self, OpenError};
use crate::store::kept;
use crate::store::snapshot::Shelf;
use crate::store::state::{Found, Remembered, StateFile};
use crate::wire::scan::Scanner;

/// Opens a directory; `lasting` if it outlives the process, with the snapshots that do. One that does not has just been made
/// for this process, and needs no lock.
pub(super) async fn open_dir(
    seams: &Seams,
    dir: PathBuf,
    lasting: bool,
) -> Result<(Shelf, Vec<kept::Found>, Option<DirLock>), Failure> {
    let cannot = |error: std::io::Error| Failure {
        exit: Exit::CannotCreate,
        error: anyhow!(error).context(format!("cannot use the directory {}", dir.display())),
    };
    seams.disk.private_dir(&dir).await.map_err(cannot)?;
    if !lasting {
        let shelf = Shelf::open(Arc::clone(&seams.disk), dir.clone()).await.map_err(cannot)?;
        return Ok((shelf, Vec::new(), None));
    }
    let lock = seams.disk.lock(&dir).await.map_err(cannot)?;
    let shelf = Shelf::lasting(Arc::clone(&seams.disk), dir.clone()).await.map_err(cannot)?;
    let found = shelf.recover().await.map_err(cannot)?;
    Ok((shelf, found, Some(lock)))
}

/// Opens the journal and has the relay remember what it holds; `adopt` has one of another upstream taken over.
pub(super) async fn journal(
    config: &Config,
    journal: &Journal,
    upkeep: Live<Upkeep>,
    adopt: bool,
    (disk, dir): (Arc<dyn Disk>, PathBuf),
    relay: Arc<Relay>,
    metrics: Arc<scribe::Metrics>,
) -> Result<(Scribe, Option<Scanner>), Failure> {
    let options = journal::Options {
        dir,
        room: upkeep.get().room,
        segment_bytes: journal.segment_bytes,
        upstream: memory::configured(config),
        adopt,
        history_depth: config.history_depth,
    };
    scribe::open(disk, options, upkeep, relay, metrics).await.map_err(|error| Failure {
        exit: match error {
            OpenError::Io { .. } => Exit::CannotCreate,
            OpenError::Foreign { .. } | OpenError::UnknownVersion { .. } => Exit::Config,
        },
        error: anyhow!(error).context("cannot use the journal"),
    })
}

/// A socket that somebody chose has to be there; without the one nobody chose everything but control works.
pub(super) async fn control_socket(socket: &Socket) -> Result<Option<ControlSocket>, Failure> {
    match socket {
        Socket::None => Ok(None),
        Socket::At(path) => match ControlSocket::bind(path).await {
            Ok(bound) => Ok(Some(bound)),
            Err(error) => Err(anyhow!(error).context(format!("cannot listen on the socket {}", path.display())).into()),
        },
        Socket::InDir(path) => match ControlSocket::bind(path).await {
            Ok(bound) => Ok(Some(bound)),
            Err(error) => {
                warn!(event = "control_socket_missing", %error, path = %path.display(), "no control socket");
                Ok(None)
            }
        },
    }
}

/// What an earlier run knew of the master, and the file to keep it in, unless that is not ours.
pub(super) async fn remembered(seams: &Seams, dir: PathBuf, config: &Config) -> (Option<Arc<StateFile>>, Remembered) {
    let file = Arc::new(StateFile::of(Arc::clone(&seams.disk), dir));
    match file.load().await {
        Found::Nothing => (Some(file), Remembered::default()),
        Found::Remembered(state) => {
            // Replicas have that data wherever its master is now, so the guard goes by it all the same.
            let now = config.upstream.as_ref().map_or_else(|| "unknown".to_owned(), Address::to_string);
            if !state.upstream.is_empty() && state.upstream != now {
                info!(event = "upstream_was_another", was = %state.upstream, %now, "upstream was another one before the restart");
            }
            (Some(file), state)
        }
        Found::Foreign(why) => {
            let path = file.path();
            warn!(event = "state_ignored", path = %path.display(), why, "state ignored and left as it is; nothing is remembered until it is moved away");
            (None, Remembered::default())
        }
    }
}
