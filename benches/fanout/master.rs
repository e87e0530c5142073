//! The synthetic master: one thread that greets, sends snapshots and streams to any number of links.
//!
//! Its stream is made when it is written, so it is never the bottleneck. How far links may go is one number, the
//! limit, and a [`Pace`] says how that number grows. [`link`] is one link.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::poll::{Poll, Ready, Want};
use super::rdb::Rdb;
use super::stream::Layout;

mod link;
use link::{Link, Stage, Written};

/// The id of the only stream there is.
pub const REPLID: &str = "b5e9c2d1a07f4386b5e9c2d1a07f4386b5e9c2d1";
const MARK: &str = "e0f1d2c3b4a5968778695a4b3c2d1e0fe0f1d2c3";
/// Commands before the first one sent: an offset of 0 hides mistakes.
const PAST_SLOTS: u64 = 4096;
/// Most bytes of a snapshot made at once.
const PIECE: usize = 256 * 1024;
/// Most bytes written to one link before the others have a turn.
const TURN: usize = 1 << 20;
/// Send times remembered, for links that resume in the middle of a command.
const TIMES: usize = 1 << 16;
const LISTENER: u64 = u64::MAX;

/// How the stream grows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Not at all.
    Hold,
    /// So many commands each second.
    Rate(f64),
    /// As fast as it is taken, but never more than so many bytes ahead of the slowest replica that counts: a
    /// device that does not hold back its master (psyncd, a chained server) would otherwise have to drop replicas.
    Full(u64),
}

/// How a snapshot is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// `$length`.
    Length,
    /// `$EOF`, to those that can.
    Mark,
}

/// What others may know and say while the master runs.
pub struct Shared {
    /// The form of the stream.
    pub layout: Layout,
    /// The snapshot.
    pub rdb: Rdb,
    pace: Mutex<Pace>,
    stop: AtomicBool,
    /// The stream stands still and the head tells where.
    held: AtomicBool,
    /// The end of the stream as far as it was produced.
    pub head: AtomicU64,
    /// Where the slowest replica that counts stands; set by the fleet.
    pub floor: AtomicU64,
    /// Links that stream now.
    pub streaming: AtomicU64,
    /// Snapshots begun.
    pub rdbs: AtomicU64,
    /// Snapshot bytes sent.
    pub rdb_bytes: AtomicU64,
    /// Acknowledgements heard.
    pub acks: AtomicU64,
    /// The highest of them.
    pub acked: AtomicU64,
    times: Vec<AtomicU64>,
}

/// A running master. Dropping it ends it.
pub struct Master {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its face to others.
    pub shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Master {
    /// Listens on a free port of the loopback.
    pub fn start(layout: Layout, rdb: Rdb, framing: Framing) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let head = PAST_SLOTS * layout.slot_bytes();
        let shared = Arc::new(Shared {
            layout,
            rdb,
            pace: Mutex::new(Pace::Hold),
            stop: AtomicBool::new(false),
            held: AtomicBool::new(false),
            head: AtomicU64::new(head),
            floor: AtomicU64::new(head),
            streaming: AtomicU64::new(0),
            rdbs: AtomicU64::new(0),
            rdb_bytes: AtomicU64::new(0),
            acks: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            times: (0..TIMES).map(|_| AtomicU64::new(0)).collect(),
        });
        let mut core = Core {
            shared: Arc::clone(&shared),
            framing,
            listener,
            poll: Poll::new()?,
            links: HashMap::new(),
            next: 0,
            limit: head,
            paced: Pace::Hold,
            since: Instant::now(),
            base: head,
        };
        core.poll.add(&core.listener, LISTENER, Want::Read)?;
        let thread = std::thread::Builder::new().name("master".into()).spawn(move || {
            if let Err(error) = core.run() {
                eprintln!("the synthetic master failed: {error}");
            }
        })?;
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// From now on the stream grows like this.
    pub fn pace(&self, pace: Pace) {
        *self.shared.pace.lock().expect("no one panics holding it") = pace;
    }

    /// Stops the stream at the end of a command; returns where that is, as soon as it is certain.
    pub fn halt(&self) -> u64 {
        self.pace(Pace::Hold);
        self.shared.held.store(false, Ordering::SeqCst);
        while !self.shared.held.load(Ordering::SeqCst)
            && self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
        {
            std::thread::sleep(LONGEST_SLEEP);
        }
        self.shared.head.load(Ordering::SeqCst)
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic was already printed.
            let _ = thread.join();
        }
    }
}

const LONGEST_SLEEP: Duration = Duration::from_millis(2);

struct Core {
    shared: Arc<Shared>,
    framing: Framing,
    listener: TcpListener,
    poll: Poll,
    links: HashMap<u64, Link>,
    next: u64,
    /// How far links may go.
    limit: u64,
    paced: Pace,
    /// When a rate began, and the limit then.
    since: Instant,
    base: u64,
}
impl Core {
    fn run(&mut self) -> io::Result<()> {
        let mut ready: Vec<Ready> = Vec::new();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let sleep = self.advance();
            self.pump();
            self.poll.wait(sleep, &mut ready)?;
            for event in &ready {
                if event.token == LISTENER {
                    self.accept()?;
                    continue;
                }
                let Some(link) = self.links.get_mut(&event.token) else { continue };
                if event.writable && link.blocked {
                    link.blocked = false;
                    self.poll.change(&link.socket, event.token, Want::Read)?;
                }
                if event.readable && link.hear(&self.shared, self.framing).is_err() {
                    self.remove(event.token);
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, token: u64) {
        if let Some(Link { stage: Stage::Streaming { .. }, .. }) = self.links.remove(&token) {
            self.shared.streaming.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    socket.set_nonblocking(true)?;
                    socket.set_nodelay(true)?;
                    self.poll.add(&socket, self.next, Want::Read)?;
                    self.links.insert(self.next, Link::new(socket));
                    self.next += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Moves the limit; returns how long nothing new can happen.
    fn advance(&mut self) -> Duration {
        let shared = &self.shared;
        let slot_bytes = shared.layout.slot_bytes();
        let pace = *shared.pace.lock().expect("no one panics holding it");
        let furthest =
            self.links.values().filter_map(Link::at).max().unwrap_or(0).max(shared.head.load(Ordering::Relaxed));
        if pace != self.paced {
            self.since = Instant::now();
            if let Pace::Full(_) = self.paced {
                self.limit = furthest.next_multiple_of(slot_bytes);
            }
            self.base = self.limit;
            self.paced = pace;
        }
        let sleep = match pace {
            Pace::Hold => LONGEST_SLEEP,
            Pace::Rate(rate) => {
                let elapsed = self.since.elapsed().as_secs_f64();
                let due = (elapsed * rate).floor();
                self.limit = self.base + due as u64 * slot_bytes;
                // At high rates a batch of commands each half millisecond.
                let next = ((due + 1.0) / rate - elapsed).max(if rate > 20_000.0 { 5e-4 } else { 1e-6 });
                Duration::from_secs_f64(next).min(LONGEST_SLEEP)
            }
            Pace::Full(window) => {
                let reach = (shared.floor.load(Ordering::Relaxed) + window) / slot_bytes * slot_bytes;
                self.limit = self.limit.max(reach);
                Duration::from_millis(1)
            }
        };
        let head = match pace {
            Pace::Hold | Pace::Rate(_) => self.limit,
            Pace::Full(_) => furthest,
        };
        shared.head.store(head, Ordering::SeqCst);
        if pace == Pace::Hold {
            shared.held.store(true, Ordering::SeqCst);
        }
        let busy = self.links.values().any(|link| !link.blocked && link.has_work(self.limit));
        if busy { Duration::ZERO } else { sleep }
    }

    fn pump(&mut self) {
        let mut gone = Vec::new();
        for (token, link) in &mut self.links {
            if link.blocked || !link.has_work(self.limit) {
                continue;
            }
            match link.write(&self.shared, self.framing, self.limit) {
                Ok(Written::Room) => {}
                Ok(Written::Blocked) => {
                    link.blocked = true;
                    if self.poll.change(&link.socket, *token, Want::Both).is_err() {
                        gone.push(*token);
                    }
                }
                Err(_) => gone.push(*token),
            }
        }
        for token in gone {
            self.remove(token);
        }
    }
}
