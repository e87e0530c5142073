//! Snapshots of earlier runs: read whole before anybody is offered one, since a disk may have lost what it said it had.

use std::io;
use std::sync::Arc;

use tracing::{info, warn};

use super::Upstream;
use crate::store::kept::Found;
use crate::store::snapshot::Rdb;
use crate::wire::rdb::{Checksum, RdbCheck};

/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// Reads a snapshot whole and checks it, checksum included. One that is not good is removed.
pub async fn verify(found: Found) -> io::Result<Arc<Rdb>> {
    let mut check = RdbCheck::new();
    let mut at = 0;
    while at < found.length() {
        let piece = found.read(at, PIECE).await?;
        if piece.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += piece.len() as u64;
        check.push(&piece).map_err(io::Error::other)?;
    }
    let summary = check.finish().map_err(io::Error::other)?;
    if summary.checksum == Checksum::Absent {
        // On its way here TCP vouched for it; nothing vouches for what a crash left of it.
        return Err(io::Error::other("it has no checksum (rdbchecksum no)"));
    }
    Ok(found.accept())
}

/// Offers the newest that is good and connects to the stream, once there is one; the others are removed.
pub async fn offer(upstream: &Upstream, found: Vec<Found>) {
    for file in found {
        let (position, bytes) = (file.position(), file.length());
        let rdb = match verify(file).await {
            Ok(rdb) => rdb,
            Err(error) => {
                warn!(event = "kept_snapshot_broken", %error, %position, bytes, "kept snapshot is broken and was removed");
                continue;
            }
        };
        if upstream.relay.snapshot_recovered(&rdb).await {
            upstream.metrics.recovered.increment();
            info!(event = "kept_snapshot_ready", %position, bytes, "snapshot of an earlier run is ready");
            return;
        }
        info!(event = "kept_snapshot_useless", %position, bytes, "snapshot of an earlier run is of no use any more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repl::{Offset, Position, RdbFormat, ReplId};
    use crate::store::disk::RealDisk;
    use crate::store::kept;
    use crate::store::snapshot::{Progress, Shelf};
    use bytes::Bytes;
    use tokio_util::sync::CancellationToken;

    /// What redis 7.2.0 writes for no keys, whole.
    const EMPTY_RDB: &[u8] =
        b"REDIS0011\xfa\x09redis-ver\x057.2.0\xfa\x0aredis-bits\xc0\x40\xfa\x05ctime\xc2\x6d\x08\xbc\x65\
        \xfa\x08used-mem\xc2\xb0\xc4\x10\x00\xfa\x08aof-base\xc0\x00\xff\xf0\x6e\x3b\xfe\xc0\xff\x5a\xa2";

    async fn found_after_a_restart(content: Vec<u8>) -> (tempfile::TempDir, Found) {
        let dir = tempfile::tempdir().unwrap();
        let open = || async { Arc::new(Shelf::lasting(Arc::new(RealDisk), dir.path().to_owned()).await.unwrap()) };
        let first = open().await;
        let keeper = tokio::spawn(kept::run(Arc::clone(&first), CancellationToken::new()));
        let position = Position::new(ReplId::from_ascii(&[b'a'; 40]).unwrap(), Offset::new(7));
        let mut spool = first.spool(position, RdbFormat::Redis(11), None).await.unwrap();
        spool.write(Bytes::from(content)).await.unwrap();
        let rdb = spool.finish();
        first.keep(&rdb);
        let named = |dir: &std::path::Path| {
            std::fs::read_dir(dir).unwrap().any(|e| e.unwrap().file_name().len() > "snapshot-000001.rdb".len())
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), async {
            while !named(dir.path()) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        keeper.abort();
        first.leave();
        drop(rdb);
        let mut found = open().await.recover().await.unwrap();
        (dir, found.remove(0))
    }

    #[tokio::test]
    async fn a_snapshot_that_survived_whole_is_offered() {
        let (_dir, found) = found_after_a_restart(EMPTY_RDB.to_vec()).await;
        let rdb = verify(found).await.unwrap();
        assert_eq!(rdb.progress(), Progress::Complete { length: 88 });
    }

    #[tokio::test]
    async fn a_snapshot_without_a_checksum_is_not_believed_after_a_restart() {
        let mut unchecked = EMPTY_RDB.to_vec();
        let len = unchecked.len();
        unchecked[len - 8..].fill(0);
        let (_dir, found) = found_after_a_restart(unchecked).await;
        assert!(verify(found).await.is_err());
    }

    #[tokio::test]
    async fn one_flipped_bit_is_enough_not_to_offer_it() {
        for at in [40, 79, 87] {
            let mut broken = EMPTY_RDB.to_vec();
            broken[at] ^= 0x10;
            let (dir, found) = found_after_a_restart(broken).await;
            assert!(verify(found).await.is_err(), "byte {at}");
            tokio::time::timeout(std::time::Duration::from_secs(10), async {
                while std::fs::read_dir(dir.path()).unwrap().count() > 0 {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("and it is removed");
        }
    }
}
