//! Toward the disk: cursor zero, which writes the stream into the journal behind everybody's back.
//!
//! The stream never waits for it, and neither does a replica: a disk that is slow, full or broken costs only what the
//! journal could have told later. What could not be written is tried again for as long as memory still holds it;
//! after that the journal has a gap, and since nothing with a gap may be claimed it begins anew at the present.

mod birth;
pub use birth::open;

use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::counters::{Counter, CounterSet, Histogram, SHORT_SECONDS};
use crate::label;
use crate::live::Live;
use crate::relay::Relay;
use crate::relay::tape::{Entry, Start, Tape};
use crate::repl::policy::Backoff;
use crate::store::disk::Disk;
use crate::store::journal::{Journal, Room};
use crate::wall;

/// Bytes taken from memory for one write.
const PIECE: usize = 1024 * 1024;
/// How long bytes gather in memory before they are written: what a kill costs the journal at most.
const GATHER: Duration = Duration::from_millis(5);
/// Between two syncs under [`Fsync::EverySecond`].
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// When the journal is made durable. Only a crash of the machine can tell the difference: what a process has written
/// survives the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// After every write.
    Always,
    /// Once a second.
    EverySecond,
    /// When the kernel pleases.
    No,
}

impl Fsync {
    /// Redis's words for it.
    pub const WORDS: &[&str] = &["always", "everysec", "no"];
}

impl FromStr for Fsync {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        match word {
            "always" => Ok(Self::Always),
            "everysec" => Ok(Self::EverySecond),
            "no" => Ok(Self::No),
            _ => Err(()),
        }
    }
}

label! {
    /// What was being done when the disk failed.
    pub enum Op {
        /// Records were written.
        Write = "write",
        /// They were made durable.
        Fsync = "fsync",
        /// Segments that a replica was to be given were read.
        Read = "read",
    }
}

/// What happened to the journal.
#[derive(Debug)]
pub struct Metrics {
    /// Errors of the disk.
    pub errors: CounterSet<Op>,
    /// Whether the journal does not follow the stream now.
    pub degraded: AtomicBool,
    /// Times it began anew with a gap behind it.
    pub gaps: Counter,
    /// Bytes dropped for newer ones.
    pub evicted_bytes: Counter,
    /// How long syncs took.
    pub fsync: Histogram,
    /// Everything before this offset survives a crash of the machine.
    pub durable: AtomicU64,
    /// Bytes free on the disk when last looked at.
    pub free_bytes: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            errors: CounterSet::new(),
            degraded: AtomicBool::new(false),
            gaps: Counter::new(),
            evicted_bytes: Counter::new(),
            fsync: Histogram::new(SHORT_SECONDS),
            durable: AtomicU64::new(0),
            free_bytes: AtomicU64::new(0),
        }
    }
}

/// How the journal is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upkeep {
    /// How much of it.
    pub room: Room,
    /// When it is made durable.
    pub fsync: Fsync,
}

/// The journal's writer.
pub struct Scribe {
    relay: Arc<Relay>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    journal: Journal,
    tape: Tape,
    upkeep: Live<Upkeep>,
    metrics: Arc<Metrics>,
    /// What the disk did not take, with its bytes: tried again before anything else.
    pending: Option<(Entry, Vec<Bytes>)>,
    /// Since when something is written that is not durable.
    unsynced: Option<Instant>,
    /// Whether the journal has had a beginning.
    began: bool,
}

/// What the disk would not do.
struct Failure(Op, io::Error);

impl Scribe {
    /// Writes until `shutdown`, and then what there is left.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut failures = 0;
        loop {
            // Never dropped half-way: only waiting is.
            let last = shutdown.is_cancelled();
            let pause = match self.write(last).await {
                Ok(()) => {
                    if failures > 0 {
                        info!(event = "journal_mended", "the journal follows the stream again");
                        self.metrics.degraded.store(false, Ordering::Relaxed);
                    }
                    failures = 0;
                    None
                }
                Err(Failure(op, error)) => {
                    failures += 1;
                    self.metrics.errors.increment(op);
                    if !self.metrics.degraded.swap(true, Ordering::Relaxed) {
                        let dir = self.dir.display();
                        warn!(event = "journal_degraded", %op, %error, %dir, "the disk failed; until it is mended replicas can be away only for as long as memory reaches back");
                    }
                    Some(Backoff::DISK.delay(failures))
                }
            };
            if last {
                return;
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = self.idle(pause) => {}
            }
        }
    }

    /// Waits until there may be something to do. Cancel-safe.
    async fn idle(&self, pause: Option<Duration>) {
        if let Some(pause) = pause {
            return sleep(pause).await;
        }
        sleep(GATHER).await;
        let due = match (self.upkeep.get().fsync, self.unsynced) {
            (Fsync::EverySecond, Some(since)) => (since + SYNC_INTERVAL).saturating_duration_since(Instant::now()),
            _ => SYNC_INTERVAL,
        };
        let _ = timeout(due, self.relay.tape_moves(&self.tape)).await;
    }

    /// Writes everything there is.
    async fn write(&mut self, last: bool) -> Result<(), Failure> {
        loop {
            if self.lost() {
                // Nobody knows what the disk holds; everything that memory does is written again.
                self.pending = None;
                self.tape = Tape::default();
            }
            let (entry, bytes) = match self.pending.take() {
                Some(pending) => pending,
                None => {
                    let mut bytes = Vec::new();
                    (self.relay.tape(&mut self.tape, PIECE, &mut bytes), bytes)
                }
            };
            if entry == Entry::CaughtUp {
                break;
            }
            if let Err(error) = self.put(&entry, &bytes).await {
                self.pending = Some((entry, bytes));
                return Err(Failure(Op::Write, error));
            }
            self.began = true;
            self.unsynced.get_or_insert_with(Instant::now);
            self.publish();
            self.trim().await;
            if self.upkeep.get().fsync == Fsync::Always || self.due() {
                self.sync().await?;
            }
        }
        if last || self.due() {
            self.sync().await?;
        }
        Ok(())
    }

    /// Whether a sync failed, after which only a new beginning helps.
    fn lost(&self) -> bool {
        self.began && self.journal.end().is_none()
    }

    async fn put(&mut self, entry: &Entry, bytes: &[Bytes]) -> io::Result<()> {
        let now = wall::unix_ms();
        match entry {
            Entry::CaughtUp => Ok(()),
            Entry::Bytes { at, boundary } => {
                // Of what is tried again a part may have been taken.
                let taken = self.journal.end().map_or(0, |end| end.since(*at));
                self.journal.append(&behind(bytes, taken), *boundary, now).await
            }
            Entry::Turn(history) => self.journal.turn(history).await,
            Entry::Cut(Start { at, history, boundary }) => match self.journal.archive().window() {
                Some(held) if held.start <= *at => self.journal.cut(*at, history, *boundary, now).await,
                // It began only behind that.
                _ => self.journal.begin(*at, history, *boundary, now).await,
            },
            Entry::Begin(Start { at, history, boundary }) => self.journal.begin(*at, history, *boundary, now).await,
            Entry::Behind(Start { at, history, boundary }) => {
                self.journal.begin(*at, history, *boundary, now).await?;
                self.metrics.gaps.increment();
                warn!(event = "journal_gap", offset = %at, "the disk was too slow for the stream; the journal begins anew here");
                Ok(())
            }
        }
    }

    fn publish(&self) {
        self.relay.archived(&self.tape, self.journal.archive().window());
    }

    async fn trim(&mut self) {
        self.journal.set_room(self.upkeep.get().room);
        let dropped = self.journal.trim(self.relay.floor()).await;
        if dropped > 0 {
            self.metrics.evicted_bytes.add(dropped);
            self.publish();
        }
    }

    fn due(&self) -> bool {
        self.upkeep.get().fsync == Fsync::EverySecond
            && self.unsynced.is_some_and(|since| since.elapsed() >= SYNC_INTERVAL)
    }

    async fn sync(&mut self) -> Result<(), Failure> {
        if self.unsynced.is_none() {
            return Ok(());
        }
        let began = Instant::now();
        let durable = self.journal.sync().await.map_err(|e| Failure(Op::Fsync, e))?;
        self.unsynced = None;
        self.metrics.fsync.observe(began.elapsed());
        self.metrics.durable.store(durable.get(), Ordering::Relaxed);
        if let Ok(free) = self.disk.free_bytes(&self.dir).await {
            self.metrics.free_bytes.store(free, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What of `bytes` comes behind the first `taken`.
fn behind(bytes: &[Bytes], mut taken: u64) -> Vec<Bytes> {
    let mut rest = Vec::with_capacity(bytes.len());
    for piece in bytes {
        let skip = taken.min(piece.len() as u64);
        taken -= skip;
        rest.push(piece.slice(skip as usize..));
    }
    rest
}
