//! Counting the master's keys while its stream is followed, so that the wipe guard knows what there is to lose, and
//! remembering the count on disk.
//!
//! A replication link carries no questions, so each count is a connection of its own: dial, AUTH, two sections of INFO,
//! close. That is a handful of packets every `guard-interval`; INFO's sections cost a server no more than its number
//! of databases and replicas.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::conversation::{Conversation, LinkEnd};
use super::{Upstream, handshake};
use crate::relay::LinkState;
use crate::repl::guard::{Known, Mode};
use crate::store::state::{Remembered, StateFile};
use crate::wire::info::MasterInfo;

/// Counts every `guard-interval`, and saves what is new to `file`, until `shutdown`.
pub async fn run(upstream: Upstream, file: Option<Arc<StateFile>>, shutdown: CancellationToken) {
    let mut book = Book { file, saved: upstream.guard.known(), complained: false };
    // The link asks by itself when it comes up, so the first count may wait.
    let mut counted = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = upstream.guard.learned() => book.save(&upstream).await,
            () = sleep_until(counted + upstream.options.get().guard_interval) => {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    () = count(&upstream) => {}
                }
                counted = Instant::now();
            }
        }
    }
}

/// Only a master that streams and has told its keys before is asked: one that denies INFO would log each question.
async fn count(upstream: &Upstream) {
    let asks =
        upstream.guard.rules().mode != Mode::Off && upstream.guard.known().is_some_and(|known| known.keys.is_some());
    if !asks || upstream.relay.link() != LinkState::Streaming {
        return;
    }
    match ask(upstream).await {
        Ok(info) => {
            // The link may have been lost meanwhile, and the answer be another master's.
            if let (LinkState::Streaming, Some((id, _))) = (upstream.relay.link(), upstream.relay.held()) {
                upstream.guard.counted(&info, id);
            }
        }
        Err(why) => debug!(master = upstream.target.name(), %why, "master's keys not counted"),
    }
}

async fn ask(upstream: &Upstream) -> Result<MasterInfo, LinkEnd> {
    let pointing = upstream.target.pointing().await;
    let mut talk = Conversation::open(upstream, &pointing.address).await?;
    handshake::inquire(upstream, &mut talk).await
}

/// The count on disk.
struct Book {
    file: Option<Arc<StateFile>>,
    saved: Option<Known>,
    /// Whether the log knows that it cannot be written.
    complained: bool,
}

impl Book {
    async fn save(&mut self, upstream: &Upstream) {
        let (Some(file), Some(known)) = (&self.file, upstream.guard.known()) else { return };
        if self.saved.is_some_and(|saved| is_no_news(&saved, &known)) {
            return;
        }
        let name = upstream.target.name();
        let update = |state: &mut Remembered| (state.upstream, state.master) = (name, Some(known));
        match file.update(update).await {
            Ok(()) => {
                self.saved = Some(known);
                self.complained = false;
            }
            Err(error) if !self.complained => {
                self.complained = true;
                warn!(event = "census_not_saved", %error, path = %file.path().display(), "state not saved; a restart forgets what the master had");
            }
            Err(_) => {}
        }
    }
}

/// The stream goes on all the time, but the same keys at a later point are not worth a write.
fn is_no_news(saved: &Known, known: &Known) -> bool {
    let id = |known: &Known| known.position.map(|position| position.id);
    (id(saved), saved.keys, saved.rdb_bytes) == (id(known), known.keys, known.rdb_bytes)
}
