//! psyncd's network over turmoil, with everything real sockets do that loopback hides: reads and writes of
//! any size, windows that fill, wake-ups for nothing, links cut at any byte, links that fall silent.
//!
//! Every open stream is a *wire* in one table that both ends share, so that a model can know exactly what
//! its peer has read, and a fault can hit a direction at a byte.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use psyncd::net::{Address, Link, Listener, NetFuture, Network, PeerAddress, Security};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use turmoil::net::{TcpListener, TcpStream};

use crate::chance::Chance;
use crate::log::Log;

/// Dialer's and acceptor's socket addresses.
type Key = (SocketAddr, SocketAddr);

/// How long whoever dials a parted host waits in vain.
const UNREACHABLE: std::time::Duration = std::time::Duration::from_secs(3);

/// A direction of a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the dialer to the acceptor.
    Up,
    /// From the acceptor to the dialer.
    Down,
}

impl Way {
    fn back(self) -> Self {
        match self {
            Way::Up => Way::Down,
            Way::Down => Way::Up,
        }
    }
}

#[derive(Default)]
struct Lane {
    written: u64,
    read: u64,
    cut_at: Option<u64>,
    /// The writer was cut off; what it wrote can still be read.
    ended: bool,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

struct Wire {
    number: u64,
    dialer: String,
    acceptor: String,
    lanes: [Lane; 2],
    /// Nothing moves and nobody is told.
    silent: bool,
    /// Both ends get errors.
    dead: bool,
    halves: usize,
}

impl Wire {
    fn wake(&mut self) {
        for lane in &mut self.lanes {
            for waker in [lane.reader.take(), lane.writer.take()].into_iter().flatten() {
                waker.wake();
            }
        }
    }
}

/// How badly the network behaves.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Bytes in flight per direction before a writer must wait.
    pub window_bytes: u64,
    /// One in so many new wires is cut at some byte; 0: none.
    pub cut_one_in: u64,
    /// One in so many new wires falls silent at some byte; 0: none.
    pub silent_one_in: u64,
    /// Whether reads and writes are broken up.
    pub rechunk: bool,
}

impl Default for Weather {
    fn default() -> Self {
        Self { window_bytes: 64 * 1024, cut_one_in: 0, silent_one_in: 0, rechunk: true }
    }
}

struct Table {
    wires: BTreeMap<Key, Wire>,
    next: u64,
    /// Never drawn from: how a wire is broken up depends on its number only.
    seed: Chance,
    chance: Chance,
    weather: Weather,
    refusing: BTreeSet<String>,
    /// Pairs of hosts between which nothing passes; the lower name first.
    apart: BTreeSet<(String, String)>,
}

/// All wires of a world. The lock is held for one poll.
#[derive(Clone)]
pub struct Wires {
    table: Arc<Mutex<Table>>,
    log: Log,
}

impl Wires {
    pub fn new(chance: Chance, weather: Weather, log: Log) -> Self {
        let table = Table {
            wires: BTreeMap::new(),
            next: 0,
            seed: chance.fork("wires"),
            chance,
            weather,
            refusing: BTreeSet::new(),
            apart: BTreeSet::new(),
        };
        Self { table: Arc::new(Mutex::new(table)), log }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder panics")
    }

    /// Cuts every wire between the two hosts, whoever dialed: at once, or `after` so many more bytes in
    /// some direction. Returns how many there were.
    pub fn cut(&self, a: &str, b: &str, after: Option<u64>) -> usize {
        let mut table = self.table();
        let way = if table.chance.one_in(2) { Way::Up } else { Way::Down };
        let mut hit = 0;
        for wire in table.wires.values_mut().filter(|w| between(w, a, b)) {
            hit += 1;
            match after {
                Some(bytes) => {
                    let lane = &mut wire.lanes[way as usize];
                    lane.cut_at = Some(lane.written + bytes);
                }
                None => wire.dead = true,
            }
            wire.wake();
        }
        hit
    }

    /// Lets every wire between the two hosts fall silent: nothing arrives any more and no end is told.
    pub fn silence(&self, a: &str, b: &str) -> usize {
        let mut table = self.table();
        table.wires.values_mut().filter(|w| between(w, a, b)).map(|w| w.silent = true).count()
    }

    /// Nothing passes between two hosts, and neither is told: until they are joined again.
    pub fn part(&self, a: &str, b: &str) {
        self.table().apart.insert(pair(a, b));
        self.silence(a, b);
    }

    /// What was under way between two parted hosts arrives after all, or the wires are found dead.
    pub fn rejoin(&self, a: &str, b: &str) {
        let mut table = self.table();
        if !table.apart.remove(&pair(a, b)) {
            return;
        }
        let survives = table.chance.one_in(2);
        for wire in table.wires.values_mut().filter(|w| between(w, a, b)) {
            (wire.silent, wire.dead) = (false, !survives);
            wire.wake();
        }
    }

    /// Whether something can pass between two hosts.
    pub fn joined(&self, a: &str, b: &str) -> bool {
        !self.table().apart.contains(&pair(a, b))
    }

    /// All pairs that are parted.
    pub fn parted(&self) -> Vec<(String, String)> {
        self.table().apart.iter().cloned().collect()
    }

    /// Nobody can dial `host` until it is allowed again.
    pub fn refuse(&self, host: &str, refused: bool) {
        let mut table = self.table();
        if refused {
            table.refusing.insert(host.to_owned());
        } else {
            table.refusing.remove(host);
        }
    }

    /// Fair weather from now on: no new faults, cuts not yet struck are forgotten. Silent wires stay so.
    pub fn calm(&self) {
        let mut table = self.table();
        table.weather.cut_one_in = 0;
        table.weather.silent_one_in = 0;
        table.refusing.clear();
        for lane in table.wires.values_mut().flat_map(|w| &mut w.lanes) {
            lane.cut_at = None;
        }
    }

    fn open(&self, key: Key, dialer: String, acceptor: String) {
        let mut table = self.table();
        if !table.wires.contains_key(&key) {
            let number = table.next;
            table.next += 1;
            let mut wire = Wire {
                number,
                dialer,
                acceptor,
                lanes: [Lane::default(), Lane::default()],
                silent: false,
                dead: false,
                halves: 0,
            };
            let Weather { cut_one_in, silent_one_in, .. } = table.weather;
            let chance = &mut table.chance;
            if cut_one_in > 0 && chance.one_in(cut_one_in) {
                let scale = chance.between(0, 18);
                wire.lanes[chance.below(2) as usize].cut_at = Some(chance.below(1 << scale));
            }
            if silent_one_in > 0 && chance.one_in(silent_one_in) {
                wire.silent = true;
            }
            table.wires.insert(key, wire);
        }
        table.wires.get_mut(&key).expect("just made").halves += 2;
    }

    fn close_half(&self, key: Key, lane: Way, reader: bool) {
        let mut table = self.table();
        let Some(wire) = table.wires.get_mut(&key) else { return };
        if reader {
            wire.lanes[lane as usize].reader_gone = true;
            wire.wake();
        }
        wire.halves -= 1;
        if wire.halves == 0 {
            table.wires.remove(&key);
        }
    }

    fn link(&self, stream: TcpStream, key: Key, side: Way, peer: SocketAddr) -> (Link, Probe) {
        let (chance, rechunk) = {
            let table = self.table();
            let number = table.wires[&key].number;
            (table.seed.fork(&format!("{number}{side:?}")), table.weather.rechunk)
        };
        let local = PeerAddress::Tcp(stream.local_addr().expect("an open stream has an address"));
        let (source, sink) = stream.into_split();
        let tap = |lane, label| Tap { wires: self.clone(), key, lane, chance: chance.fork(label), rechunk };
        let link = Link {
            source: Box::new(Reader { inner: source, tap: tap(side.back(), "read") }),
            sink: Box::new(Writer { inner: sink, tap: tap(side, "write"), gathered: Vec::new() }),
            peer: PeerAddress::Tcp(peer),
            local,
            security: Security::Plain,
            place: None,
        };
        (link, Probe { wires: self.clone(), key, way: side })
    }
}

fn pair(a: &str, b: &str) -> (String, String) {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    (low.to_owned(), high.to_owned())
}

fn between(wire: &Wire, a: &str, b: &str) -> bool {
    let ends = (wire.dialer.as_str(), wire.acceptor.as_str());
    ends == (a, b) || ends == (b, a)
}

/// What one end can know of its wire without asking the other.
#[derive(Clone)]
pub struct Probe {
    wires: Wires,
    key: Key,
    /// The direction this end writes.
    way: Way,
}

impl Probe {
    /// Bytes this end wrote and the peer has not read.
    pub fn unread_by_peer(&self) -> u64 {
        let table = self.wires.table();
        table.wires.get(&self.key).map_or(0, |w| {
            let lane = &w.lanes[self.way as usize];
            lane.written - lane.read
        })
    }

    /// The host that dialed.
    pub fn dialer(&self) -> String {
        self.wires.table().wires.get(&self.key).map_or_else(String::new, |wire| wire.dialer.clone())
    }

    /// Bytes this end wrote so far.
    pub fn written(&self) -> u64 {
        self.wires.table().wires.get(&self.key).map_or(0, |w| w.lanes[self.way as usize].written)
    }

    /// Bytes of this end's that the peer has read so far; none when both ends are gone.
    pub fn read_by_peer(&self) -> Option<u64> {
        self.wires.table().wires.get(&self.key).map(|w| w.lanes[self.way as usize].read)
    }

    /// Whether the peer can still be reached and listens.
    pub fn peer_listens(&self) -> bool {
        let table = self.wires.table();
        table.wires.get(&self.key).is_some_and(|w| {
            !w.silent && !w.dead && !w.lanes[self.way as usize].reader_gone && !w.lanes[self.way as usize].ended
        })
    }
}

/// One half's view of the table.
struct Tap {
    wires: Wires,
    key: Key,
    lane: Way,
    chance: Chance,
    rechunk: bool,
}

impl Tap {
    fn size(&mut self, whole: usize) -> usize {
        if self.rechunk { self.chance.chunk(whole) } else { whole }
    }

    /// Sometimes a poll finds nothing although there is something; the task is woken again at once.
    fn falters(&mut self, cx: &Context<'_>) -> bool {
        let falters = self.rechunk && self.chance.one_in(12);
        if falters {
            cx.waker().wake_by_ref();
        }
        falters
    }
}

struct Reader {
    inner: OwnedReadHalf,
    tap: Tap,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.tap.wires.close_half(self.tap.key, self.tap.lane, true);
    }
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        {
            let mut table = this.tap.wires.table();
            let wire = table.wires.get_mut(&this.tap.key).expect("a half keeps its wire");
            if wire.dead || wire.lanes[this.tap.lane.back() as usize].ended {
                return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
            }
            wire.lanes[this.tap.lane as usize].reader = Some(cx.waker().clone());
            if wire.silent {
                return Poll::Pending;
            }
        }
        if this.tap.falters(cx) {
            return Poll::Pending;
        }
        let max = this.tap.size(buf.remaining());
        let room = buf.initialize_unfilled_to(max);
        let mut part = ReadBuf::new(room);
        let polled = Pin::new(&mut this.inner).poll_read(cx, &mut part);
        let n = part.filled().len();
        buf.advance(n);
        if n > 0 {
            let mut table = this.tap.wires.table();
            let wire = table.wires.get_mut(&this.tap.key).expect("a half keeps its wire");
            let lane = &mut wire.lanes[this.tap.lane as usize];
            lane.read += n as u64;
            if let Some(writer) = lane.writer.take() {
                writer.wake();
            }
        }
        polled
    }
}

struct Writer {
    inner: OwnedWriteHalf,
    tap: Tap,
    gathered: Vec<u8>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.tap.wires.close_half(self.tap.key, self.tap.lane, false);
    }
}

impl psyncd::net::Outlet for Writer {}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let broken = || Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        if this.tap.falters(cx) {
            return Poll::Pending;
        }
        let mut want = this.tap.size(buf.len());
        {
            let mut table = this.tap.wires.table();
            let window = table.weather.window_bytes;
            let wire = table.wires.get_mut(&this.tap.key).expect("a half keeps its wire");
            if wire.dead || wire.lanes.iter().any(|lane| lane.ended) {
                return broken();
            }
            let lane = &mut wire.lanes[this.tap.lane as usize];
            if !lane.reader_gone {
                let room = window.saturating_sub(lane.written - lane.read);
                if room == 0 {
                    lane.writer = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                want = want.min(room as usize);
            }
            if let Some(cut) = lane.cut_at {
                let left = cut.saturating_sub(lane.written);
                if left == 0 {
                    lane.ended = true;
                    this.tap.wires.log.note("network", format!("cut wire {} at byte {cut}", wire.number));
                    wire.wake();
                    drop(table);
                    let _ = Pin::new(&mut this.inner).poll_shutdown(cx);
                    return broken();
                }
                want = want.min(left as usize);
            }
        }
        let polled = Pin::new(&mut this.inner).poll_write(cx, &buf[..want]);
        if let Poll::Ready(Ok(n)) = polled {
            let mut table = this.tap.wires.table();
            let wire = table.wires.get_mut(&this.tap.key).expect("a half keeps its wire");
            wire.lanes[this.tap.lane as usize].written += n as u64;
        }
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut gathered = std::mem::take(&mut this.gathered);
        gathered.clear();
        for buf in bufs {
            gathered.extend_from_slice(buf);
            if gathered.len() > 256 * 1024 {
                break;
            }
        }
        let polled = Pin::new(&mut *this).poll_write(cx, &gathered);
        this.gathered = gathered;
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_shutdown(cx) {
            // turmoil refuses a second shutdown, a socket does not.
            Poll::Ready(Err(e)) if e.kind() == ErrorKind::NotConnected => Poll::Ready(Ok(())),
            other => other,
        }
    }
}

/// The network as one host sees it.
#[derive(Clone)]
pub struct SimNetwork {
    host: String,
    wires: Wires,
}

impl SimNetwork {
    pub fn new(host: &str, wires: Wires) -> Self {
        Self { host: host.to_owned(), wires }
    }

    /// As [`Network::dial`], with the probe.
    pub async fn open(&self, address: &Address) -> io::Result<(Link, Probe)> {
        let Address::Tcp { host, port } = address else {
            return Err(io::Error::new(ErrorKind::Unsupported, "the simulation has no unix sockets"));
        };
        if self.wires.table().refusing.contains(host) {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        if !self.wires.joined(&self.host, host) {
            tokio::time::sleep(UNREACHABLE).await;
            return Err(ErrorKind::TimedOut.into());
        }
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        let key = (stream.local_addr()?, stream.peer_addr()?);
        self.wires.open(key, self.host.clone(), name_of(key.1.ip()));
        Ok(self.wires.link(stream, key, Way::Up, key.1))
    }

    /// As [`Network::listen`], with the concrete listener.
    pub async fn bind(&self, port: u16) -> io::Result<SimListener> {
        let inner = TcpListener::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)).await?;
        Ok(SimListener { local: inner.local_addr()?, inner, host: self.host.clone(), wires: self.wires.clone() })
    }
}

fn name_of(ip: IpAddr) -> String {
    turmoil::reverse_lookup(ip).unwrap_or_else(|| ip.to_string())
}

impl Network for SimNetwork {
    fn dial<'a>(&'a self, address: &'a Address) -> NetFuture<'a, Link> {
        Box::pin(async move { Ok(self.open(address).await?.0) })
    }

    /// turmoil has no addresses to choose from: whatever is asked, it listens on all.
    fn listen<'a>(&'a self, address: SocketAddr) -> NetFuture<'a, Box<dyn Listener>> {
        Box::pin(async move { Ok(Box::new(self.bind(address.port()).await?) as Box<dyn Listener>) })
    }
}

/// A listening socket of the simulation.
pub struct SimListener {
    inner: TcpListener,
    local: SocketAddr,
    host: String,
    wires: Wires,
}

impl SimListener {
    /// As [`Listener::accept`], with the probe.
    pub async fn take(&self) -> io::Result<(Link, Probe)> {
        let (stream, peer) = self.inner.accept().await?;
        let key = (stream.peer_addr()?, stream.local_addr()?);
        self.wires.open(key, name_of(peer.ip()), self.host.clone());
        Ok(self.wires.link(stream, key, Way::Down, peer))
    }
}

impl Listener for SimListener {
    fn accept(&mut self) -> NetFuture<'_, Link> {
        Box::pin(async move { Ok(self.take().await?.0) })
    }

    fn local(&self) -> SocketAddr {
        self.local
    }
}
