//! The physical limits: what it costs to move a stream to many sockets when nothing is understood.
//!
//! A limit is a process of its own (this binary, run again). It gathers the replicas, asks the master for
//! everything, and from then on moves bytes: snapshot and stream alike, unparsed but for the one header that tells
//! at which offset the stream begins, so that replicas can come back with PSYNC. Unlike psyncd it holds the master
//! back rather than lose a replica.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{MemfdFlags, memfd_create, sendfile};

use super::poll::{Poll, Ready, Want};
use super::talk;

/// Bytes kept for replicas that are behind or away.
const KEPT: u64 = 16 << 20;
/// Bytes read before they are sent on.
const ROUND: usize = 256 * 1024;
/// Bytes of one page-cache segment.
const SEGMENT: u64 = 64 << 20;
const LISTENER: u64 = u64::MAX;
const MASTER: u64 = u64::MAX - 1;

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Limit {
    /// From a ring in memory by write.
    Copy,
    /// From the page cache by sendfile.
    Sendfile,
}

/// Serves until the parent closes our standard input.
pub fn run(limit: Limit, master: SocketAddr, replicas: usize) -> Result<()> {
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        // Whatever comes, or not: its end is the sign.
        let _ = io::stdin().read_to_end(&mut rest);
        std::process::exit(0);
    });
    match limit {
        Limit::Copy => Mover::new(Ring::new(), master)?.run(replicas),
        Limit::Sendfile => Mover::new(Pages::default(), master)?.run(replicas),
    }
}

/// Where bytes are between being read and being sent. Positions count all bytes ever taken from the master.
trait Store {
    /// Takes what the socket has, at most `most` bytes, which fit.
    fn ingest(&mut self, socket: &TcpStream, most: usize) -> io::Result<usize>;
    /// Sends from `position` on what the socket takes in one go.
    fn send(&mut self, position: u64, socket: &TcpStream) -> io::Result<usize>;
    /// The end.
    fn head(&self) -> u64;
    /// Nobody needs bytes before `position`.
    fn release(&mut self, position: u64);
}

struct Ring {
    bytes: Vec<u8>,
    head: u64,
}

impl Ring {
    fn new() -> Self {
        Self { bytes: vec![0; KEPT as usize], head: 0 }
    }
}

impl Store for Ring {
    fn ingest(&mut self, mut socket: &TcpStream, most: usize) -> io::Result<usize> {
        let at = (self.head % KEPT) as usize;
        let end = (at + most).min(self.bytes.len());
        let n = socket.read(&mut self.bytes[at..end])?;
        self.head += n as u64;
        Ok(n)
    }

    fn send(&mut self, position: u64, mut socket: &TcpStream) -> io::Result<usize> {
        let at = (position % KEPT) as usize;
        let len = (self.head - position) as usize;
        let first = len.min(self.bytes.len() - at);
        socket.write_vectored(&[IoSlice::new(&self.bytes[at..at + first]), IoSlice::new(&self.bytes[..len - first])])
    }

    fn head(&self) -> u64 {
        self.head
    }

    fn release(&mut self, _position: u64) {}
}

#[derive(Default)]
struct Pages {
    segments: VecDeque<File>,
    /// The number of segments dropped.
    first: u64,
    head: u64,
    buffer: Vec<u8>,
}

impl Store for Pages {
    fn ingest(&mut self, mut socket: &TcpStream, most: usize) -> io::Result<usize> {
        self.buffer.resize(ROUND, 0);
        if self.head == (self.first + self.segments.len() as u64) * SEGMENT {
            self.segments.push_back(File::from(memfd_create("segment", MemfdFlags::CLOEXEC)?));
        }
        let room = (SEGMENT - self.head % SEGMENT) as usize;
        let n = socket.read(&mut self.buffer[..most.min(ROUND).min(room)])?;
        let segment = self.segments.back_mut().expect("one was just made");
        segment.write_all(&self.buffer[..n])?;
        self.head += n as u64;
        Ok(n)
    }

    fn send(&mut self, position: u64, socket: &TcpStream) -> io::Result<usize> {
        let segment = &self.segments[(position / SEGMENT - self.first) as usize];
        let mut offset = position % SEGMENT;
        let len = (self.head - position).min(SEGMENT - offset) as usize;
        Ok(sendfile(socket, segment, Some(&mut offset), len)?)
    }

    fn head(&self) -> u64 {
        self.head
    }

    fn release(&mut self, position: u64) {
        while (self.first + 1) * SEGMENT <= position {
            self.segments.pop_front();
            self.first += 1;
        }
    }
}

struct Peer {
    socket: TcpStream,
    heard: Vec<u8>,
    /// What it was sent of what the master sent; `None` before it asked.
    position: Option<u64>,
    blocked: bool,
}

struct Mover<S> {
    store: S,
    master: SocketAddr,
    poll: Poll,
    listener: TcpListener,
    peers: HashMap<u64, Peer>,
    next: u64,
    /// The position at which the stream begins, and its offset there.
    origin: Option<(u64, u64)>,
    id: String,
}

impl<S: Store> Mover<S> {
    fn new(store: S, master: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        println!("listen={}", listener.local_addr()?);
        listener.set_nonblocking(true)?;
        let poll = Poll::new()?;
        poll.add(&listener, LISTENER, Want::Read)?;
        Ok(Self { store, master, poll, listener, peers: HashMap::new(), next: 0, origin: None, id: String::new() })
    }

    fn run(mut self, replicas: usize) -> Result<()> {
        let mut ready: Vec<Ready> = Vec::new();
        while self.peers.values().filter(|peer| peer.position.is_some()).count() < replicas {
            self.poll.wait(Duration::from_millis(100), &mut ready)?;
            for event in &ready {
                self.serve(*event)?;
            }
        }
        let upstream = attach(self.master).context("attach to the master")?;
        self.poll.add(&upstream, MASTER, Want::Read)?;
        let mut watched = Want::Read;
        loop {
            self.poll.wait(Duration::from_millis(100), &mut ready)?;
            let mut news = false;
            for event in &ready {
                match event.token {
                    MASTER => news = true,
                    _ => self.serve(*event)?,
                }
            }
            if news {
                self.round(&upstream)?;
                self.feed_all();
            }
            let want = if self.room() == 0 { Want::Nothing } else { Want::Read };
            if want != watched {
                self.poll.change(&upstream, MASTER, want)?;
                watched = want;
            }
        }
    }

    fn slowest(&self) -> u64 {
        self.peers.values().filter_map(|peer| peer.position).min().unwrap_or(self.store.head())
    }

    /// How much may be read now: a whole round or nothing, since small rounds cost several times as much.
    fn room(&self) -> usize {
        if KEPT - (self.store.head() - self.slowest()) < ROUND as u64 { 0 } else { ROUND }
    }

    /// Reads until there is nothing more, at most a round.
    fn round(&mut self, upstream: &TcpStream) -> Result<()> {
        if self.origin.is_none() {
            self.open(upstream)?;
        }
        let mut left = self.room();
        while left > 0 {
            match self.store.ingest(upstream, left) {
                Ok(0) => bail!("the master left"),
                Ok(n) => left -= n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Looks at what comes first, without taking it, until it tells where the stream begins.
    fn open(&mut self, upstream: &TcpStream) -> Result<()> {
        let mut front = [0; 256];
        let n = match upstream.peek(&mut front) {
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let text = String::from_utf8_lossy(&front[..n]).into_owned();
        let mut lines = text.split_inclusive('\n');
        if let (Some(first), Some(header)) = (lines.next(), lines.next())
            && let ["+FULLRESYNC", id, offset] = first.split_whitespace().collect::<Vec<_>>()[..]
            && let Some(len) = header.strip_prefix('$').and_then(|len| len.trim_end().parse::<u64>().ok())
            && header.ends_with('\n')
        {
            self.id = id.to_owned();
            self.origin = Some(((first.len() + header.len()) as u64 + len, offset.parse().context("offset")?));
        }
        Ok(())
    }

    fn feed_all(&mut self) {
        let tokens: Vec<u64> = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.blocked && peer.position.is_some())
            .map(|(token, _)| *token)
            .collect();
        for token in tokens {
            self.feed(token);
        }
        let slowest = self.slowest().min(self.store.head().saturating_sub(KEPT));
        self.store.release(slowest);
    }

    fn feed(&mut self, token: u64) {
        let Some(peer) = self.peers.get_mut(&token) else { return };
        let Some(position) = &mut peer.position else { return };
        while *position < self.store.head() {
            match self.store.send(*position, &peer.socket) {
                Ok(n) => *position += n as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !peer.blocked {
                        peer.blocked = true;
                        let _ = self.poll.change(&peer.socket, token, Want::Both);
                    }
                    return;
                }
                Err(_) => {
                    self.peers.remove(&token);
                    return;
                }
            }
        }
        if peer.blocked {
            peer.blocked = false;
            let _ = self.poll.change(&peer.socket, token, Want::Read);
        }
    }

    fn serve(&mut self, event: Ready) -> Result<()> {
        if event.token == LISTENER {
            return self.accept();
        }
        if event.readable && self.hear(event.token).is_err() {
            self.peers.remove(&event.token);
        }
        if event.writable {
            self.feed(event.token);
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    socket.set_nonblocking(true)?;
                    socket.set_nodelay(true)?;
                    self.poll.add(&socket, self.next, Want::Read)?;
                    self.peers.insert(self.next, Peer { socket, heard: Vec::new(), position: None, blocked: false });
                    self.next += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn hear(&mut self, token: u64) -> Result<()> {
        let Some(peer) = self.peers.get_mut(&token) else { return Ok(()) };
        let mut buffer = [0; 1024];
        match peer.socket.read(&mut buffer) {
            Ok(0) => bail!("the replica left"),
            // Acknowledgements are no concern of ours.
            Ok(_) if peer.position.is_some() => return Ok(()),
            Ok(n) => peer.heard.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        while let Some(args) = talk::take_command(&mut peer.heard) {
            match &args[..] {
                [psync, id, _] if psync == "PSYNC" && id == "?" => {
                    if self.origin.is_some() {
                        bail!("a limit has no snapshot to give");
                    }
                    peer.position = Some(0);
                }
                [psync, _, next] if psync == "PSYNC" => {
                    let (position, offset) = self.origin.context("no stream yet")?;
                    let position = position + next.parse::<u64>()?.saturating_sub(1 + offset);
                    let head = self.store.head();
                    if position > head || position + KEPT < head {
                        bail!("too far away");
                    }
                    peer.socket.write_all(format!("+CONTINUE {}\r\n", self.id).as_bytes())?;
                    peer.position = Some(position);
                }
                [ping] if ping == "PING" => peer.socket.write_all(b"+PONG\r\n")?,
                _ => peer.socket.write_all(b"+OK\r\n")?,
            }
        }
        if self.origin.is_some() {
            self.feed(token);
        }
        Ok(())
    }
}

/// Dials the master and asks it for everything.
fn attach(master: SocketAddr) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(master)?;
    socket.set_nodelay(true)?;
    for greeting in [talk::command(&["PING"]), talk::command(&["REPLCONF", "capa", "psync2"])] {
        socket.write_all(&greeting)?;
        let mut byte = [0];
        while byte[0] != b'\n' {
            socket.read_exact(&mut byte)?;
        }
    }
    socket.write_all(&talk::psync(None))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
