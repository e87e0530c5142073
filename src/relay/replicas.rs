//! Who is attached: one row per replica, removed when its guard drops.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::counters::Label;
use crate::label;
use crate::repl::{Ack, AckPolicy, Offset, ServerVersion};

/// Stands for "never said" among the offsets a replica has in its append-only file.
const NO_FILE: u64 = u64::MAX;

/// Where a replica is on its way to the live stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ReplicaState {
    /// It asked and is held, or waits for a snapshot.
    Waiting = 0,
    /// It receives a snapshot.
    Snapshot = 1,
    /// It has been sent the snapshot, or continues, and has not acknowledged anything yet.
    Catchup = 2,
    /// It acknowledges the live stream.
    Online = 3,
}

impl ReplicaState {
    /// All states, in order.
    pub const ALL: [ReplicaState; 4] =
        [ReplicaState::Waiting, ReplicaState::Snapshot, ReplicaState::Catchup, ReplicaState::Online];

    /// Status field and metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            ReplicaState::Waiting => "waiting",
            ReplicaState::Snapshot => "snapshot",
            ReplicaState::Catchup => "catchup",
            ReplicaState::Online => "online",
        }
    }
}

label! {
    /// What a replica in state `waiting` waits for.
    pub enum Waits {
        /// A true answer: for the link, or for the head to come as far.
        Answer = "answer",
        /// A snapshot.
        Snapshot = "snapshot",
        /// Its turn to be sent the one there is.
        Turn = "turn",
        /// Time to pass: its last full resyncs failed.
        Backoff = "backoff",
    }
}

/// What a replica said of itself before it asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Introduction {
    /// The address it announced (`ip-address`), else where it called from.
    pub host: String,
    /// The port it announced (`listening-port`), else 0.
    pub port: u16,
    /// The version it announced: Valkey 8.0 and later do.
    pub version: Option<ServerVersion>,
}

impl fmt::Display for Introduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// One attached replica. Written by its session, read by the link and by whoever asks for the status.
#[derive(Debug)]
pub struct Row {
    id: u64,
    introduction: Introduction,
    peer: String,
    since: Instant,
    state: AtomicU8,
    waits: AtomicU8,
    sent: AtomicU64,
    acked: AtomicU64,
    /// What it has in its append-only file; [`NO_FILE`] when it never said.
    durable: AtomicU64,
    /// Milliseconds after `since` of the last sign of life.
    heard: AtomicU64,
    stream_bytes: AtomicU64,
    snapshot_bytes: AtomicU64,
    /// 0 while not known.
    snapshot_length: AtomicU64,
    /// The number it reports; negative while not known.
    priority: AtomicI64,
    /// Whether it named the password of the upstream itself.
    vouched: AtomicBool,
    spoke: Notify,
}

impl Row {
    /// Its number: unique, and greater than that of whoever attached before.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What the replica said of itself.
    pub fn introduction(&self) -> &Introduction {
        &self.introduction
    }

    /// Where it called from.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// When it asked.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Where it is on its way.
    pub fn state(&self) -> ReplicaState {
        ReplicaState::ALL[usize::from(self.state.load(Ordering::Relaxed))]
    }

    /// It got further on its way.
    pub fn enter(&self, state: ReplicaState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// What it waits for, while it is waiting.
    pub fn waits(&self) -> Waits {
        Waits::ALL[usize::from(self.waits.load(Ordering::Relaxed))]
    }

    /// It waits for this now.
    pub fn wait_for(&self, what: Waits) {
        self.waits.store(what as u8, Ordering::Relaxed);
    }

    /// Whether it named the password of the upstream itself: it may be told it, and believed.
    pub fn is_vouched_for(&self) -> bool {
        self.vouched.load(Ordering::Relaxed)
    }

    /// It named the password.
    pub fn vouch(&self) {
        self.vouched.store(true, Ordering::Relaxed);
    }

    /// The priority number it reports, once it was asked.
    pub fn priority(&self) -> Option<u32> {
        u32::try_from(self.priority.load(Ordering::Relaxed)).ok()
    }

    /// It reports this priority number.
    pub fn note_priority(&self, priority: u32) {
        self.priority.store(i64::from(priority), Ordering::Relaxed);
    }

    /// The stream has been handed to its socket up to here.
    pub fn sent(&self) -> Offset {
        Offset::new(self.sent.load(Ordering::Relaxed))
    }

    /// What it acknowledged; zero before its first acknowledgement, as in Redis.
    pub fn acked(&self) -> Offset {
        Offset::new(self.acked.load(Ordering::Relaxed))
    }

    /// What it said is in its append-only file, if it ever did.
    pub fn durable(&self) -> Option<Offset> {
        let durable = self.durable.load(Ordering::Relaxed);
        (durable != NO_FILE).then(|| Offset::new(durable))
    }

    /// The stream was handed to its socket up to `at`; `bytes` more than before.
    pub fn note_sent(&self, at: Offset, bytes: u64) {
        self.sent.store(at.get(), Ordering::Relaxed);
        self.stream_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// `bytes` more of a snapshot were handed to its socket.
    pub fn note_snapshot(&self, bytes: u64) {
        self.snapshot_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The snapshot it is sent has this many bytes.
    pub fn note_snapshot_length(&self, length: u64) {
        self.snapshot_length.store(length, Ordering::Relaxed);
    }

    /// A sign of life.
    pub fn note_heard(&self, now: Instant) {
        let millis = now.duration_since(self.since).as_millis();
        self.heard.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The last sign of life.
    pub fn heard(&self) -> Instant {
        self.since + std::time::Duration::from_millis(self.heard.load(Ordering::Relaxed))
    }

    /// Its last word.
    pub fn word(&self) -> Ack {
        Ack { offset: self.acked(), durable: self.durable() }
    }

    /// Waits until it has acknowledged something, be it what it had before, that nobody waited for yet. For one waiter.
    /// Cancel-safe.
    pub async fn spoke(&self) {
        self.spoke.notified().await;
    }

    /// Stream bytes handed to its socket so far.
    pub fn stream_bytes(&self) -> u64 {
        self.stream_bytes.load(Ordering::Relaxed)
    }

    /// Snapshot bytes handed to its socket so far.
    pub fn snapshot_bytes(&self) -> u64 {
        self.snapshot_bytes.load(Ordering::Relaxed)
    }

    /// The size in bytes of the snapshot it is or was sent, once known.
    pub fn snapshot_length(&self) -> Option<u64> {
        Some(self.snapshot_length.load(Ordering::Relaxed)).filter(|length| *length > 0)
    }
}

/// The attached replicas, in the order in which they came.
#[derive(Debug)]
pub struct Replicas {
    /// Held for a few instructions, never across an await.
    rows: Mutex<Table>,
    limit: AtomicUsize,
    acked: Notify,
    /// Counts the replicas that came online or left.
    roster: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    rows: BTreeMap<u64, Arc<Row>>,
}

/// Removes its row when dropped.
#[derive(Debug)]
pub struct RowGuard {
    replicas: Arc<Replicas>,
    row: Arc<Row>,
}

impl std::ops::Deref for RowGuard {
    type Target = Row;

    fn deref(&self) -> &Row {
        &self.row
    }
}

impl RowGuard {
    /// The replica acknowledged that, and is online. Redis keeps the largest value, and so do we.
    pub fn acknowledge(&self, ack: Ack) {
        self.row.acked.fetch_max(ack.offset.get(), Ordering::Relaxed);
        if let Some(durable) = ack.durable {
            let larger = self.row.durable().map_or(durable, |known| known.max(durable));
            self.row.durable.store(larger.get(), Ordering::Relaxed);
        }
        if self.row.state() != ReplicaState::Online {
            self.row.enter(ReplicaState::Online);
            self.replicas.roster.send_modify(|changes| *changes += 1);
        }
        self.row.spoke.notify_one();
        self.replicas.acked.notify_one();
    }
}

impl Drop for RowGuard {
    fn drop(&mut self) {
        self.replicas.table().rows.remove(&self.row.id);
        // The quorum may have changed.
        self.replicas.acked.notify_one();
        self.replicas.roster.send_modify(|changes| *changes += 1);
    }
}

impl Replicas {
    /// An empty table for at most `limit` replicas.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            rows: Mutex::default(),
            limit: AtomicUsize::new(limit),
            acked: Notify::new(),
            roster: watch::Sender::default(),
        })
    }

    /// Adds a replica, unless there are as many as there may be.
    pub fn attach(self: &Arc<Self>, introduction: Introduction, peer: String) -> Option<RowGuard> {
        let mut table = self.table();
        if table.rows.len() >= self.limit() {
            return None;
        }
        let id = table.next;
        table.next += 1;
        let row = Arc::new(Row {
            id,
            introduction,
            peer,
            since: Instant::now(),
            state: AtomicU8::new(ReplicaState::Waiting as u8),
            waits: AtomicU8::new(Waits::Answer as u8),
            sent: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            durable: AtomicU64::new(NO_FILE),
            heard: AtomicU64::new(0),
            stream_bytes: AtomicU64::new(0),
            snapshot_bytes: AtomicU64::new(0),
            snapshot_length: AtomicU64::new(0),
            priority: AtomicI64::new(-1),
            vouched: AtomicBool::new(false),
            spoke: Notify::new(),
        });
        table.rows.insert(id, Arc::clone(&row));
        drop(table);
        Some(RowGuard { replicas: Arc::clone(self), row })
    }

    /// All rows, oldest first.
    pub fn rows(&self) -> Vec<Arc<Row>> {
        self.table().rows.values().cloned().collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.table().rows.len()
    }

    /// Replicas there may be.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// From now on there may be `limit`. Whoever is one too many stays.
    pub fn resize(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// What to acknowledge upstream.
    pub fn acknowledged(&self, received: Offset, policy: AckPolicy) -> Ack {
        policy.judge(received, &self.online())
    }

    /// The last word of every replica that is online.
    pub fn online(&self) -> Vec<Ack> {
        let online = |row: &&Arc<Row>| row.state() == ReplicaState::Online;
        self.table().rows.values().filter(online).map(|row| row.word()).collect()
    }

    /// The oldest byte that a replica which is being given a snapshot will need behind it.
    pub fn floor(&self) -> Option<Offset> {
        let loading = |row: &&Arc<Row>| matches!(row.state(), ReplicaState::Snapshot | ReplicaState::Catchup);
        self.table().rows.values().filter(loading).map(|row| row.sent()).min()
    }

    /// Whether a replica waits for this.
    pub fn any_waits_for(&self, what: Waits) -> bool {
        self.table().rows.values().any(|row| row.state() == ReplicaState::Waiting && row.waits() == what)
    }

    /// The lowest version among the replicas, when every one of them announced one.
    pub fn lowest_version(&self) -> Option<ServerVersion> {
        let table = self.table();
        let versions: Option<Vec<ServerVersion>> = table.rows.values().map(|r| r.introduction.version).collect();
        versions?.into_iter().min()
    }

    /// The versions of those who wait for a snapshot to be fetched, as far as they said theirs.
    pub fn waiting(&self) -> Vec<Option<ServerVersion>> {
        let table = self.table();
        let waits = |row: &Row| row.state() == ReplicaState::Waiting && row.waits() == Waits::Snapshot;
        let waiting = table.rows.values().filter(|row| waits(row));
        waiting.map(|row| row.introduction.version).collect()
    }

    /// Waits until a replica has acknowledged something, or left. For one waiter: the link.
    pub async fn acked(&self) {
        self.acked.notified().await;
    }

    /// Changes whenever a replica comes online or leaves.
    pub fn roster(&self) -> watch::Receiver<u64> {
        self.roster.subscribe()
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.rows.lock().expect("no one panics holding it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(host: &str) -> Introduction {
        Introduction { host: host.into(), port: 6379, version: None }
    }

    #[test]
    fn a_row_goes_with_its_guard_and_there_are_never_more_than_the_limit() {
        let replicas = Replicas::new(2);
        let a = replicas.attach(named("a"), "p".into()).unwrap();
        let b = replicas.attach(named("b"), "p".into()).unwrap();
        assert!(replicas.attach(named("c"), "p".into()).is_none());
        drop(a);
        assert_eq!(replicas.rows().len(), 1);
        assert_eq!(replicas.rows()[0].introduction(), b.introduction());
        assert!(replicas.attach(named("c"), "p".into()).is_some());
    }

    #[test]
    fn only_online_replicas_count_and_a_smaller_ack_changes_nothing() {
        let replicas = Replicas::new(9);
        let received = Offset::new(100);
        let acknowledged = || replicas.acknowledged(received, AckPolicy::Quorum(1)).offset;
        let ack = |offset| Ack { offset: Offset::new(offset), durable: None };
        assert_eq!(acknowledged(), received);
        let a = replicas.attach(named("a"), "p".into()).unwrap();
        assert_eq!(acknowledged(), received, "not online yet");
        a.acknowledge(ack(50));
        a.acknowledge(ack(40));
        assert_eq!(acknowledged(), Offset::new(50));
        assert_eq!(a.acked(), Offset::new(50));
        drop(a);
        assert_eq!(acknowledged(), received);
    }

    #[test]
    fn the_roster_changes_when_a_replica_comes_online_or_leaves_and_not_when_it_speaks() {
        let replicas = Replicas::new(9);
        let mut roster = replicas.roster();
        let mut changed = || {
            let changed = roster.has_changed().unwrap();
            roster.mark_unchanged();
            changed
        };
        let ack = Ack { offset: Offset::new(1), durable: None };
        let a = replicas.attach(named("a"), "p".into()).unwrap();
        assert!(!changed(), "it is not online yet");
        a.acknowledge(ack);
        assert!(changed());
        a.acknowledge(ack);
        assert!(!changed());
        drop(a);
        assert!(changed());
    }

    #[test]
    fn the_lowest_version_is_known_only_when_all_say_theirs() {
        let replicas = Replicas::new(9);
        assert_eq!(replicas.lowest_version(), None);
        let mut nine = named("a");
        nine.version = ServerVersion::parse("9.0.0");
        let mut eight = named("b");
        eight.version = ServerVersion::parse("8.1.1");
        let _a = replicas.attach(nine, "p".into()).unwrap();
        assert_eq!(replicas.lowest_version(), ServerVersion::parse("9.0.0"));
        let _b = replicas.attach(eight, "p".into()).unwrap();
        assert_eq!(replicas.lowest_version(), ServerVersion::parse("8.1.1"));
        let _c = replicas.attach(named("c"), "p".into()).unwrap();
        assert_eq!(replicas.lowest_version(), None);
    }
}
