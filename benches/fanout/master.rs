//! The synthetic master: one thread that greets, sends snapshots and streams to any number of links.
//!
//! Its stream is made when it is written, so it is never the bottleneck. How far links may go is one number, the
//! limit, and a [`Pace`] says how that number grows.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::poll::{Poll, Ready, Want};
use super::rdb::Rdb;
use super::stream::{Layout, Writer, clock_ns};
use super::talk;

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

struct Link {
    socket: TcpStream,
    heard: Vec<u8>,
    /// Made and not yet written.
    pending: Vec<u8>,
    written: usize,
    blocked: bool,
    wants: Wants,
    marks: bool,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    Stream,
    SnapshotOnly,
}

enum Stage {
    Talking,
    Snapshot {
        sent: u64,
        then: u64,
    },
    /// Behind a mark nothing may follow before the first acknowledgement.
    Silent {
        then: u64,
    },
    Streaming {
        at: u64,
        writer: Box<Writer>,
    },
    /// All was said; what is pending is written out and that is it.
    Leaving,
    /// The peer has to close: closing first could take bytes in flight with it.
    Left,
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

enum Written {
    Room,
    Blocked,
}

impl Link {
    fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            heard: Vec::new(),
            pending: Vec::new(),
            written: 0,
            blocked: false,
            wants: Wants::Stream,
            marks: false,
            stage: Stage::Talking,
        }
    }

    fn at(&self) -> Option<u64> {
        match self.stage {
            Stage::Streaming { at, .. } => Some(at),
            Stage::Talking | Stage::Snapshot { .. } | Stage::Silent { .. } | Stage::Leaving | Stage::Left => None,
        }
    }

    fn has_work(&self, limit: u64) -> bool {
        match self.stage {
            _ if !self.pending.is_empty() => true,
            Stage::Talking | Stage::Silent { .. } | Stage::Left => false,
            Stage::Snapshot { .. } | Stage::Leaving => true,
            Stage::Streaming { at, .. } => at < limit,
        }
    }

    fn hear(&mut self, shared: &Shared, framing: Framing) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            match (&self.socket).read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.heard.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        while let Some(args) = talk::take_command(&mut self.heard) {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            self.answer(&args, shared, framing);
        }
        Ok(())
    }

    fn answer(&mut self, args: &[&str], shared: &Shared, framing: Framing) {
        let head = shared.head.load(Ordering::Relaxed);
        let lower: Vec<String> = args.iter().map(|arg| arg.to_ascii_lowercase()).collect();
        let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
        match lower[..] {
            ["replconf", "ack", offset, ..] => self.acknowledged(offset.parse().unwrap_or(0), shared),
            ["ping"] => self.say("+PONG\r\n"),
            ["replconf", "rdb-only", "1"] => {
                self.wants = Wants::SnapshotOnly;
                self.say("+OK\r\n");
            }
            ["replconf", option, ..] if !["listening-port", "ip-address", "capa", "version"].contains(&option) => {
                self.say(&format!("-ERR Unrecognized REPLCONF option: {option}\r\n"));
            }
            ["replconf", ref pairs @ ..] => {
                self.marks |= pairs.contains(&"eof");
                self.say("+OK\r\n");
            }
            ["info", ..] => {
                let text = info(head);
                self.say(&format!("${}\r\n{text}\r\n", text.len()));
            }
            ["psync", id, next] => self.psync(id, next.parse().unwrap_or(-1), head, shared, framing),
            [] => {}
            _ => self.say("-ERR unknown command\r\n"),
        }
    }

    fn say(&mut self, text: &str) {
        self.pending.extend_from_slice(text.as_bytes());
    }

    fn acknowledged(&mut self, offset: u64, shared: &Shared) {
        shared.acks.fetch_add(1, Ordering::Relaxed);
        shared.acked.fetch_max(offset, Ordering::Relaxed);
        if let Stage::Silent { then } = self.stage {
            self.stream(then, shared);
        }
    }

    fn psync(&mut self, id: &str, next: i64, head: u64, shared: &Shared, framing: Framing) {
        if id == REPLID && self.wants == Wants::Stream && next >= 1 && next as u64 <= head + 1 {
            self.say(&format!("+CONTINUE {REPLID}\r\n"));
            self.stream(next as u64 - 1, shared);
            return;
        }
        // A snapshot is taken between two commands.
        let at = head - head % shared.layout.slot_bytes();
        self.say(&format!("+FULLRESYNC {REPLID} {at}\r\n"));
        match self.framing(framing) {
            Framing::Length => self.say(&format!("${}\r\n", shared.rdb.len())),
            Framing::Mark => self.say(&format!("$EOF:{MARK}\r\n")),
        }
        shared.rdbs.fetch_add(1, Ordering::Relaxed);
        self.stage = Stage::Snapshot { sent: 0, then: at };
    }

    fn framing(&self, framing: Framing) -> Framing {
        if self.marks { framing } else { Framing::Length }
    }

    fn stream(&mut self, at: u64, shared: &Shared) {
        let slot_bytes = shared.layout.slot_bytes();
        let seq = at / slot_bytes;
        let time = shared.times[seq as usize % TIMES].load(Ordering::Relaxed);
        let time = (!at.is_multiple_of(slot_bytes)).then_some(time);
        self.stage = Stage::Streaming { at, writer: Box::new(Writer::new(&shared.layout, seq, time)) };
        shared.streaming.fetch_add(1, Ordering::Relaxed);
    }

    fn write(&mut self, shared: &Shared, framing: Framing, limit: u64) -> io::Result<Written> {
        let mut turn = TURN;
        while turn > 0 {
            while self.written < self.pending.len() {
                match (&self.socket).write(&self.pending[self.written..]) {
                    Ok(n) => self.written += n,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Written::Blocked),
                    Err(error) => return Err(error),
                }
            }
            turn = turn.saturating_sub(self.written);
            self.pending.clear();
            self.written = 0;
            let framing = self.framing(framing);
            match &mut self.stage {
                Stage::Talking | Stage::Silent { .. } | Stage::Left => return Ok(Written::Room),
                Stage::Leaving => {
                    self.socket.shutdown(Shutdown::Write)?;
                    self.stage = Stage::Left;
                    return Ok(Written::Room);
                }
                Stage::Snapshot { sent, then } if *sent == shared.rdb.len() => {
                    let then = *then;
                    if framing == Framing::Mark {
                        self.say(MARK);
                    }
                    match (self.wants, framing) {
                        (Wants::SnapshotOnly, _) => self.stage = Stage::Leaving,
                        (Wants::Stream, Framing::Mark) => self.stage = Stage::Silent { then },
                        (Wants::Stream, Framing::Length) => self.stream(then, shared),
                    }
                }
                Stage::Snapshot { sent, .. } => {
                    shared.rdb.piece(*sent, PIECE, &mut self.pending);
                    *sent += self.pending.len() as u64;
                    shared.rdb_bytes.fetch_add(self.pending.len() as u64, Ordering::Relaxed);
                }
                Stage::Streaming { at, writer } => {
                    if *at >= limit {
                        return Ok(Written::Room);
                    }
                    let now_ns = clock_ns();
                    let times = &shared.times;
                    let bytes = writer.bytes(&shared.layout, *at, limit, now_ns, |seq| {
                        times[seq as usize % TIMES].store(now_ns, Ordering::Relaxed);
                    });
                    match (&self.socket).write(bytes) {
                        Ok(n) => {
                            *at += n as u64;
                            turn = turn.saturating_sub(n);
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Written::Blocked),
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(Written::Room)
    }
}

fn info(head: u64) -> String {
    format!(
        "# Server\r\nredis_version:7.0.15\r\nrun_id:{REPLID}\r\n# Persistence\r\nloading:0\r\n# Replication\r\n\
         role:master\r\nconnected_slaves:0\r\nmaster_replid:{REPLID}\r\nmaster_replid2:{}\r\nmaster_repl_offset:{head}\r\n\
         second_repl_offset:-1\r\nrepl_backlog_active:1\r\nrepl_backlog_size:1073741824\r\n\
         repl_backlog_first_byte_offset:1\r\nrepl_backlog_histlen:{head}\r\n",
        "0".repeat(40)
    )
}
