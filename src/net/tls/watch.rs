//! New certificates in the old places, as cert-manager, Kubernetes and people put them there.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Tls;

/// How often the files are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What tells one content of a file from another without reading it: where links lead, device and inode, size, and
/// when it was written. Kubernetes swaps a link in the middle of the path, which changes the inode alone.
pub(super) type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// Reloads when `asked`, and when the files have changed, until `shutdown`.
///
/// A certificate and its key are two files: when they are replaced one after the other and looked at in between, that
/// attempt fails, the old ones are used on, and the next look finds them changed again.
pub async fn run(tls: Arc<Tls>, asked: Arc<Notify>, every: Duration, shutdown: CancellationToken) {
    let mut seen = tls.opened.clone();
    loop {
        let told = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = asked.notified() => true,
            () = sleep(every) => false,
        };
        // Before they are read: what changes while they are is noticed the next time.
        let now = stamps(tls.paths()).await;
        if told || now != seen {
            seen = now;
            reload(&tls).await;
        }
    }
}

async fn reload(tls: &Arc<Tls>) {
    let reloading = Arc::clone(tls);
    let Ok(done) = spawn_blocking(move || reloading.reload()).await else { return };
    match done {
        Ok(()) => {
            info!(event = "tls_certificates_reloaded", "tls certificates reloaded");
            for doubt in tls.doubts() {
                warn!(event = "tls_certificate_questioned", doubt, "tls certificate questioned");
            }
        }
        Err(why) => {
            warn!(event = "tls_certificates_not_reloaded", %why, "tls certificates not reloaded; the old ones are used on")
        }
    }
}

async fn stamps(paths: Vec<PathBuf>) -> Vec<Stamp> {
    let look = move || paths.iter().map(|path| stamp(path)).collect();
    spawn_blocking(look).await.unwrap_or_default()
}

pub(super) fn stamp(path: &std::path::Path) -> Stamp {
    let is = std::fs::metadata(path).ok()?;
    Some((is.dev(), is.ino(), is.size(), is.mtime(), is.mtime_nsec()))
}
