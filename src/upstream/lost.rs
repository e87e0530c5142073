//! What a promoted master never had, kept for the operator.
//!
//! When the master's history parted from ours below our head, what we hold beyond that point was acknowledged by the
//! old master and is nobody's now. It is written to a file in the stream's own format before it is forgotten: a person
//! may want to look at it, or to feed parts of it to the new master.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use tracing::{info, warn};

use super::Upstream;
use crate::relay::cursor::{Follow, Next};
use crate::repl::{Offset, Position};
use crate::store::disk::Disk;
use crate::wall;

/// Files kept; of more the oldest go.
const FILES: usize = 16;
/// How long the stream of the new master waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes read and written at once.
const PIECE: usize = 1024 * 1024;
const PREFIX: &str = "lost-";
const SUFFIX: &str = ".resp";

/// Writes the stream from `parted` to `head` to a file, or as much of it as the limit allows. What cannot be written
/// in time is said and forgotten: the link does not wait for a disk that fails.
pub async fn keep(upstream: &Upstream, parted: Position, head: Offset) {
    let bytes = head.since(parted.offset);
    upstream.metrics.lost_bytes.add(bytes);
    let limit = upstream.options.get().keep_lost_bytes;
    let dir = upstream.shelf.dir();
    if limit == 0 {
        return;
    }
    let written = timeout(PATIENCE, write(upstream, dir, parted, head, limit)).await;
    match written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok((path, kept)) => {
            info!(event = "lost_writes_kept", path = %path.display(), kept_bytes = kept, lost_bytes = bytes, from = %parted.offset, to = %head, "what the new master never had was kept");
        }
        Err(error) => {
            warn!(event = "lost_writes_not_kept", %error, dir = %dir.display(), lost_bytes = bytes, "what the new master never had could not be kept");
        }
    }
}

async fn write(
    upstream: &Upstream,
    dir: &Path,
    parted: Position,
    head: Offset,
    limit: u64,
) -> io::Result<(PathBuf, u64)> {
    let disk = upstream.shelf.disk();
    make_room(&**disk, dir).await?;
    let name = format!("{PREFIX}{:013}-{}-{}-{head}{SUFFIX}", wall::unix_ms(), parted.id, parted.offset);
    let path = dir.join(name);
    let file = disk.create(&path).await?;
    let relay = &upstream.relay;
    let gone = |why: &str| io::Error::other(why.to_owned());
    let mut cursor = relay.cursor(&parted, Follow::Bytes).map_err(|_| gone("it is not held any more"))?;
    let mut kept = 0;
    let mut batch: VecDeque<Bytes> = VecDeque::new();
    while kept < limit {
        let most = PIECE.min(usize::try_from(limit - kept).unwrap_or(PIECE));
        let next = match relay.read(&mut cursor, most, usize::MAX, &mut batch) {
            Next::Deep => relay.read_deep(&mut cursor, most, &mut batch).await,
            next => next,
        };
        match next {
            Next::Bytes(_) => {
                for piece in batch.drain(..) {
                    let length = piece.len() as u64;
                    file.write_at(kept, piece).await?;
                    kept += length;
                }
            }
            Next::CaughtUp => break,
            Next::Deep | Next::Ended(_) => return Err(gone("it left the backlog while it was read")),
        }
    }
    file.sync().await?;
    disk.sync_dir(dir).await?;
    Ok((path, kept))
}

/// Removes the oldest files where there are as many as there may be. Their names begin with their time.
async fn make_room(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let names = disk.list(dir).await?;
    let kept: Vec<_> = names.iter().filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)).collect();
    for name in kept.iter().take((kept.len() + 1).saturating_sub(FILES)) {
        disk.remove(&dir.join(name)).await?;
    }
    Ok(())
}
