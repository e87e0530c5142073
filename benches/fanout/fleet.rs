//! The synthetic replicas: many in one thread. They greet, take the snapshot, drain the stream, acknowledge each
//! second, and know of every byte whether it is right.
//!
//! One thread's loop over all; [`replica`] is one of them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::net::{RecvFlags, recv};

use super::master::Shared as MasterShared;
use super::poll::{Poll, Ready, Want};
use super::stream::Checker;
use super::talk;

mod replica;
use replica::{Heard, Hearing, Look, Pace, Replica, Step};

const BUFFER: usize = 256 * 1024;
const ACK_INTERVAL: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(20);
const TICK: Duration = Duration::from_millis(2);
/// Of so many reads one is looked at when not every byte is.
const LOOK: u32 = 8;
const NEVER: u64 = u64::MAX;

/// How closely bytes are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Every byte against the generator.
    Every,
    /// One whole command of one read in eight. The other reads tell the kernel to throw the bytes away: what the
    /// replicas cost is not the device's, but they share its cores.
    Spot,
}

/// Whether the snapshot has to be the master's, byte by byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// It has.
    Verbatim,
    /// The device writes its own.
    Own,
}

/// What the replicas are to do.
#[derive(Clone)]
pub struct Orders {
    /// Where they go.
    pub address: SocketAddr,
    /// How many they are.
    pub count: usize,
    /// How long after the one before each arrives.
    pub stagger: Duration,
    /// How many of them, from the first on, are slow.
    pub slow: usize,
    /// How slow, in bytes each second.
    pub slow_rate: f64,
    /// How closely bytes are looked at.
    pub check: Check,
    /// What to expect of the snapshot.
    pub snapshot: Snapshot,
}

/// Where a replica is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Not connected.
    Down,
    /// In the dialogue.
    Greeting,
    /// In the snapshot.
    Loading,
    /// In the stream.
    Online,
}

/// One replica as seen from outside.
pub struct Row {
    stage: AtomicU8,
    /// Stream bytes before what comes next.
    pub at: AtomicU64,
    /// Full syncs completed.
    pub fulls: AtomicU32,
    /// Times it was allowed to continue.
    pub partials: AtomicU32,
    /// Connections lost while in the stream or the snapshot.
    pub lost: AtomicU32,
    /// When the last snapshot was whole, in nanoseconds after it was asked for.
    pub loaded_ns: AtomicU64,
}

impl Row {
    /// Where it is.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Down,
            1 => Stage::Greeting,
            2 => Stage::Loading,
            _ => Stage::Online,
        }
    }
}

/// What is known of all.
pub struct View {
    /// One for each replica.
    pub rows: Vec<Row>,
    /// Stream bytes received by all.
    pub delivered: AtomicU64,
    /// Snapshot bytes received by all.
    pub snapshot_bytes: AtomicU64,
    /// The first thing that was wrong.
    pub wrong: Mutex<Option<String>>,
    /// Whether delays are being recorded.
    pub timing: AtomicBool,
    delays_ns: Mutex<Vec<u64>>,
    /// How long the return took; `NEVER` until all are back.
    back_ns: AtomicU64,
}

enum Order {
    Cut,
    Return,
}

/// The running replicas. Dropping them ends them.
pub struct Fleet {
    /// What is known of them.
    pub view: Arc<View>,
    slow: usize,
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Fleet {
    /// Sends them on their way.
    pub fn start(orders: Orders, master: Arc<MasterShared>) -> io::Result<Self> {
        let rows = (0..orders.count)
            .map(|_| Row {
                stage: AtomicU8::new(0),
                at: AtomicU64::new(0),
                fulls: AtomicU32::new(0),
                partials: AtomicU32::new(0),
                lost: AtomicU32::new(0),
                loaded_ns: AtomicU64::new(0),
            })
            .collect();
        let view = Arc::new(View {
            rows,
            delivered: AtomicU64::new(0),
            snapshot_bytes: AtomicU64::new(0),
            wrong: Mutex::new(None),
            timing: AtomicBool::new(false),
            delays_ns: Mutex::new(Vec::new()),
            back_ns: AtomicU64::new(NEVER),
        });
        let (sender, receiver) = mpsc::channel();
        let slow = orders.slow;
        let mut core = Core::new(orders, master, Arc::clone(&view))?;
        let thread = std::thread::Builder::new().name("fleet".into()).spawn(move || {
            if let Err(error) = core.run(&receiver) {
                core.complain(format!("the synthetic replicas failed: {error}"));
            }
        })?;
        Ok(Self { view, slow, orders: sender, thread: Some(thread) })
    }

    /// Closes all connections at once, from this side.
    pub fn cut(&self) {
        // A thread that has ended has left its reason.
        let _ = self.orders.send(Order::Cut);
    }

    /// Lets all come back at once.
    pub fn come_back(&self) {
        self.view.back_ns.store(NEVER, Ordering::Relaxed);
        let _ = self.orders.send(Order::Return);
    }

    /// How long it took until all were back and had what the stream had when they set out.
    pub fn back(&self) -> Option<Duration> {
        Some(self.view.back_ns.load(Ordering::Relaxed)).filter(|&ns| ns != NEVER).map(Duration::from_nanos)
    }

    /// Those that have to keep up.
    pub fn fast(&self) -> &[Row] {
        &self.view.rows[self.slow..]
    }

    /// The delays recorded so far.
    pub fn take_delays(&self) -> Vec<u64> {
        std::mem::take(&mut self.view.delays_ns.lock().expect("no one panics holding it"))
    }

    /// Fails if anything was wrong so far.
    pub fn verdict(&self) -> Result<()> {
        if let Some(wrong) = &*self.view.wrong.lock().expect("no one panics holding it") {
            bail!("{wrong}");
        }
        let lost: Vec<usize> = (0..self.view.rows.len())
            .skip(self.slow)
            .filter(|&i| self.view.rows[i].lost.load(Ordering::Relaxed) > 0)
            .collect();
        if let Some(first) = lost.first() {
            bail!(
                "the device dropped {} of {} replicas, the first is replica {first}",
                lost.len(),
                self.view.rows.len()
            );
        }
        Ok(())
    }

    /// Waits until `true_of` every replica that has to keep up.
    pub fn wait(&self, what: &str, patience: Duration, true_of: impl Fn(&Row) -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            self.verdict()?;
            let missing = self.fast().iter().filter(|row| !true_of(row)).count();
            if missing == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                let first = self.fast().iter().position(|row| !true_of(row)).unwrap_or(0);
                let row = &self.fast()[first];
                bail!(
                    "{missing} of {} replicas were not {what} within {patience:?}; replica {} is {:?} at {}",
                    self.view.rows.len(),
                    first + self.slow,
                    row.stage(),
                    row.at.load(Ordering::Relaxed)
                );
            }
            std::thread::sleep(TICK);
        }
    }

    /// Waits until all are in the stream.
    pub fn wait_online(&self, patience: Duration) -> Result<()> {
        self.wait("online", patience, |row| row.stage() == Stage::Online)
    }

    /// Waits until all have the stream up to exactly `end`.
    pub fn wait_at(&self, end: u64, patience: Duration) -> Result<()> {
        self.wait("at the end of the stream", patience, |row| row.at.load(Ordering::Relaxed) >= end)
            .with_context(|| format!("the stream ended at {end}"))?;
        if let Some(row) = self.fast().iter().find(|row| row.at.load(Ordering::Relaxed) > end) {
            bail!("a replica received more than was sent: {} instead of {end}", row.at.load(Ordering::Relaxed));
        }
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let (gone, _) = mpsc::channel();
        // The thread ends when nobody can give it orders any more.
        self.orders = gone;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Core {
    orders: Orders,
    master: Arc<MasterShared>,
    view: Arc<View>,
    poll: Poll,
    replicas: Vec<Replica>,
    buffer: Vec<u8>,
    delays: Vec<u64>,
    /// Since when they come back, and what there was to be had then.
    returning: Option<(Instant, u64)>,
    next_ack: Instant,
}
impl Core {
    fn new(orders: Orders, master: Arc<MasterShared>, view: Arc<View>) -> io::Result<Self> {
        let now = Instant::now();
        let replicas = (0..orders.count)
            .map(|index| Replica {
                socket: None,
                dial_at: Some(now + orders.stagger * index as u32),
                asked: now,
                heard: Vec::new(),
                step: Step::Greeting(0),
                id: None,
                at: 0,
                checker: Checker::new(),
                reads: 0,
                pace: if index < orders.slow { Pace::Slow } else { Pace::Eager },
                allowance: 0.0,
            })
            .collect();
        Ok(Self {
            orders,
            master,
            view,
            poll: Poll::new()?,
            replicas,
            buffer: vec![0; BUFFER],
            delays: Vec::new(),
            returning: None,
            next_ack: now + ACK_INTERVAL,
        })
    }

    fn complain(&self, wrong: String) {
        self.view.wrong.lock().expect("no one panics holding it").get_or_insert(wrong);
    }

    fn run(&mut self, orders: &Receiver<Order>) -> io::Result<()> {
        let mut ready: Vec<Ready> = Vec::new();
        let mut last_tick = Instant::now();
        loop {
            match orders.try_recv() {
                Ok(Order::Cut) => self.cut(),
                Ok(Order::Return) => self.come_back(),
                Err(mpsc::TryRecvError::Empty) => {}
                Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
            }
            self.poll.wait(TICK, &mut ready)?;
            for event in &ready {
                self.read(event.token as usize, BUFFER);
            }
            self.publish();
            let now = Instant::now();
            if now.duration_since(last_tick) >= TICK {
                self.tick(now, now.duration_since(last_tick))?;
                last_tick = now;
            }
        }
    }

    /// Tells everybody where we are.
    fn publish(&mut self) {
        if !self.delays.is_empty() {
            self.view.delays_ns.lock().expect("no one panics holding it").append(&mut self.delays);
        }
        let eager = || self.replicas.iter().filter(|replica| replica.pace == Pace::Eager);
        let floor = eager().map(|replica| if replica.online() { replica.at } else { 0 }).min();
        if let Some(floor) = floor {
            self.master.floor.fetch_max(floor, Ordering::Relaxed);
        }
        if let (Some((since, missed)), Some(floor)) = (self.returning, floor)
            && floor >= missed
        {
            self.view.back_ns.store(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
            self.returning = None;
        }
    }

    fn tick(&mut self, now: Instant, elapsed: Duration) -> io::Result<()> {
        for index in 0..self.replicas.len() {
            let replica = &mut self.replicas[index];
            if replica.socket.is_none() && replica.dial_at.is_some_and(|at| at <= now) {
                replica.dial(&self.orders, &self.poll, index)?;
                self.view.rows[index].stage.store(1, Ordering::Relaxed);
            }
            if self.replicas[index].pace == Pace::Slow && self.replicas[index].online() {
                let replica = &mut self.replicas[index];
                let most = self.orders.slow_rate / 10.0;
                replica.allowance = (replica.allowance + self.orders.slow_rate * elapsed.as_secs_f64()).min(most);
                if replica.allowance >= 1024.0 {
                    self.read(index, replica_allowance(&self.replicas[index]));
                }
            }
        }
        if now >= self.next_ack {
            self.next_ack = now + ACK_INTERVAL;
            for replica in &self.replicas {
                if let (true, Some(socket)) = (replica.online(), &replica.socket) {
                    // A failure shows when the socket is read.
                    let _ = (&mut &*socket).write(&talk::ack(replica.at));
                }
            }
        }
        Ok(())
    }

    fn cut(&mut self) {
        for (index, replica) in self.replicas.iter_mut().enumerate() {
            replica.socket = None;
            replica.dial_at = None;
            self.view.rows[index].stage.store(0, Ordering::Relaxed);
        }
    }

    fn come_back(&mut self) {
        let now = Instant::now();
        self.returning = Some((now, self.master.head.load(Ordering::Relaxed)));
        for replica in &mut self.replicas {
            replica.dial_at = Some(now);
        }
    }

    /// Reads once from replica `index`, at most `most` bytes.
    fn read(&mut self, index: usize, most: usize) {
        let replica = &mut self.replicas[index];
        let look = replica.looks(self.orders.check, self.view.timing.load(Ordering::Relaxed));
        let Some(socket) = &replica.socket else { return };
        let row = &self.view.rows[index];
        let buffer = &mut self.buffer[..most.min(BUFFER)];
        let read = match look {
            Look::Closely => (&mut &*socket).read(buffer),
            // tcp(7): with MSG_TRUNC the bytes are discarded, not copied.
            Look::Away => recv(socket, buffer, RecvFlags::TRUNC).map(|(_, n)| n).map_err(io::Error::from),
        };
        let n = match read {
            Ok(n) if n > 0 => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => {
                if let Step::Counted { .. } | Step::Marked { .. } | Step::Stream = replica.step {
                    row.lost.fetch_add(1, Ordering::Relaxed);
                }
                replica.lose();
                row.stage.store(0, Ordering::Relaxed);
                return;
            }
        };
        replica.allowance -= n as f64;
        let mut hearing = Hearing {
            orders: &self.orders,
            master: &self.master,
            view: &self.view,
            row,
            delays: self.view.timing.load(Ordering::Relaxed).then_some(&mut self.delays),
        };
        let heard = match look {
            Look::Closely => replica.take(&self.buffer[..n], &mut hearing),
            Look::Away => {
                replica.advance(n, &hearing);
                Ok(Heard::Fine)
            }
        };
        row.at.store(replica.at, Ordering::Relaxed);
        row.stage.store(replica.stage() as u8, Ordering::Relaxed);
        match heard {
            Ok(Heard::Fine) => {
                if let (Pace::Slow, true, Some(socket)) = (replica.pace, replica.online(), &replica.socket) {
                    // It is read by the clock from here on.
                    let _ = self.poll.change(socket, index as u64, Want::Nothing);
                }
            }
            Ok(Heard::NotNow) => replica.lose(),
            Err(wrong) => {
                let text =
                    format!("replica {index} received a wrong byte at offset {} in {}", wrong.offset, wrong.what);
                replica.lose();
                replica.dial_at = None;
                self.complain(text);
            }
        }
    }
}

fn replica_allowance(replica: &Replica) -> usize {
    replica.allowance as usize
}
