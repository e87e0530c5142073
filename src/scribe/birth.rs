//! What a new process makes of the journal of the one before.

use std::io;
use std::sync::Arc;

use tracing::{info, warn};

use super::{Metrics, Scribe, Upkeep};
use crate::live::Live;
use crate::relay::Relay;
use crate::repl::Offset;
use crate::store::archive::Archive;
use crate::store::disk::Disk;
use crate::store::journal::{self, Journal, OpenError, Recovered};
use crate::wire::scan::Scanner;

/// Bytes read at once to find the place in the last command.
const PIECE: usize = 1024 * 1024;

/// Opens the journal and has the relay remember what it holds. The scanner stands at the head of that, for the link to
/// go on with; there is none where nothing is remembered.
///
/// An error leaves every file as it was.
pub async fn open(
    disk: Arc<dyn Disk>,
    options: journal::Options,
    upkeep: Live<Upkeep>,
    relay: Arc<Relay>,
    metrics: Arc<Metrics>,
) -> Result<(Scribe, Option<Scanner>), OpenError> {
    let dir = options.dir.clone();
    let (journal, recovered) = Journal::open(Arc::clone(&disk), options).await?;
    let archive = journal.archive();
    let (recovered, scanner) = match recovered {
        None => (None, None),
        Some(recovered) => match scanner_at_head(&archive, &recovered).await {
            Ok(scanner) => {
                let Recovered { window, history, torn_bytes, .. } = &recovered;
                info!(event = "journal_recovered", replid = %history.current(), first = %window.start, head = %window.end, torn_bytes, "the journal was read");
                (Some(recovered), Some(scanner))
            }
            Err(why) => {
                warn!(event = "journal_unusable", %why, "the journal cannot be gone on with; psyncd begins anew");
                (None, None)
            }
        },
    };
    let began = recovered.is_some();
    let tape = relay.remember(archive, recovered);
    let scribe = Scribe { relay, disk, dir, journal, tape, upkeep, metrics, pending: None, unsynced: None, began };
    Ok((scribe, scanner))
}

/// Looks again at what came behind the last boundary: the stream may have ended anywhere.
async fn scanner_at_head(archive: &Archive, recovered: &Recovered) -> io::Result<Scanner> {
    let Recovered { window, boundary, .. } = recovered;
    if *boundary >= window.end {
        return Ok(Scanner::before_boundary(window.end, *boundary));
    }
    if *boundary < window.start {
        return Err(io::Error::other("the transaction it ends in began before all that is held"));
    }
    let mut scanner = Scanner::new(*boundary);
    while scanner.head() < window.end {
        let left = usize::try_from(window.end.since(scanner.head())).unwrap_or(PIECE);
        let bytes = archive.read(scanner.head(), left.min(PIECE)).await.map_err(io::Error::other)?;
        let before: Offset = scanner.head();
        if let Some(error) = scanner.scan(&bytes).error {
            return Err(io::Error::other(format!("{error} at offset {}", scanner.head())));
        }
        if scanner.head() == before {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
    }
    // Whoever asked for an acknowledgement then asks again.
    let _ = scanner.take_getacks();
    Ok(scanner)
}
