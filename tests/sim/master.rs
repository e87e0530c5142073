//! The model master: the master half of Redis replication, from 2.8 to 7.x, with every bad day it can have.
//!
//! It holds no data set. What it says is recorded in [`Truth`], and its snapshots say where they were taken.
//! It judges whoever follows it: commands it must not get, acknowledgements above what it sent.
//!
//! One actor: its state is touched by all it does, so it is not split.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use psyncd::net::{Link, Sink, Source};
use psyncd::repl::{Offset, Position, ReplId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::chance::Chance;
use crate::log::Log;
use crate::network::{Probe, SimNetwork};
use crate::rdb;
use crate::resp::{Commands, Item, is, words};
use crate::stream::{Author, GETACK};
use crate::truth::Truth;

pub const PORT: u16 = 6379;
const REPL_TIMEOUT: Duration = Duration::from_secs(60);

/// What a master of its age does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Age {
    /// One id, no `psync2`, no `$EOF`, nothing about it in INFO.
    V28,
    /// Two ids; no side links.
    V5,
    /// `rdb-only`.
    V62,
    /// A restart from its file keeps the old id as the second one.
    V7,
}

impl Age {
    fn version(self) -> &'static str {
        match self {
            Age::V28 => "2.8.24",
            Age::V5 => "5.0.14",
            Age::V62 => "6.2.14",
            Age::V7 => "7.2.6",
        }
    }

    pub fn rdb_version(self) -> u16 {
        match self {
            Age::V28 => 6,
            Age::V5 | Age::V62 => 9,
            Age::V7 => 11,
        }
    }
}

/// How a master is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    pub age: Age,
    pub diskless: bool,
    pub diskless_delay: Duration,
    pub backlog_bytes: u64,
    /// A replica that is further behind loses its link.
    pub output_limit_bytes: u64,
    pub filler_bytes: usize,
    pub checksum: bool,
    /// `(user, password)`; the user only from 6.0 on.
    pub auth: Option<(Option<String>, String)>,
    pub info_denied: bool,
    /// What it has in its databases, as far as INFO tells; nothing else knows of keys.
    pub keys: u64,
    /// The longest pause between writes.
    pub write_every: Duration,
    pub large_one_in: u64,
    pub large_bytes: u64,
    pub ping_every: Duration,
    /// It had replicas before the world began, so it has a backlog with something in it.
    pub warm: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            age: Age::V7,
            diskless: true,
            diskless_delay: Duration::from_secs(5),
            backlog_bytes: 1 << 20,
            output_limit_bytes: 4 << 20,
            filler_bytes: 20_000,
            checksum: true,
            auth: None,
            info_denied: false,
            keys: 0,
            write_every: Duration::from_millis(200),
            large_one_in: 100,
            large_bytes: 60_000,
            ping_every: Duration::from_secs(10),
            warm: false,
        }
    }
}

/// What the master says instead of the right thing, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slip {
    /// Answers PSYNC with an error the replica does not know.
    Error,
    /// Answers PSYNC with `+FULLRESYNC` and no proper id.
    ShortId,
    /// Answers PSYNC with something that only looks like `+CONTINUE`.
    LowerCase,
    /// Sends hundreds of newlines before its answer.
    ManyNewlines,
    /// Closes instead of answering PSYNC.
    Silence,
    /// An error line where the payload's header should be.
    ErrorForHeader,
    /// `$0`.
    EmptyPayload,
    /// A header that is no header.
    BadHeader,
    /// A payload whose CRC is wrong, in whole framing.
    WrongCrc,
    /// A payload that does not begin as an RDB.
    WrongMagic,
    /// A payload that ends early, in whole framing.
    ShortPayload,
    /// The link dies within the payload.
    DiesInPayload,
    /// A wrong byte in the stream. No follower can notice; only the checks can.
    WrongByte,
    /// A byte twice in the stream, likewise.
    TwiceByte,
    /// `+CONTINUE` for whatever was asked, likewise.
    ContinueAnything,
    /// A full resync although the stream could go on, likewise.
    NeedlessFull,
    /// A newline in the live stream.
    InjectedNewline,
    /// Stream bytes glued behind the mark of a `$EOF` payload.
    GluedBehindMark,
    /// `+FULLRESYNC` with an offset that is not the snapshot's.
    WrongOffset,
}

impl Slip {
    /// What a real replica survives by itself.
    pub const HARMLESS: [Slip; 5] =
        [Slip::Error, Slip::ManyNewlines, Slip::Silence, Slip::ErrorForHeader, Slip::DiesInPayload];

    /// What a follower must survive without passing any of it on.
    pub const SURVIVABLE: [Slip; 12] = [
        Slip::Error,
        Slip::ShortId,
        Slip::LowerCase,
        Slip::ManyNewlines,
        Slip::Silence,
        Slip::ErrorForHeader,
        Slip::EmptyPayload,
        Slip::BadHeader,
        Slip::WrongCrc,
        Slip::WrongMagic,
        Slip::ShortPayload,
        Slip::DiesInPayload,
    ];
}

/// What a master answers while it cannot serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Serving,
    Loading,
    NoMasterLink,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    WaitsForSnapshot,
    Receives,
    Online,
}

struct Follower {
    peer: String,
    stage: Stage,
    rdb_only: bool,
    /// Came with SYNC: it never acknowledges.
    legacy: bool,
    acked: Option<Offset>,
    heard: Instant,
    probe: Probe,
}

/// One fork of the master.
struct Fork {
    eof: bool,
    begins: Instant,
    ready: Instant,
    position: Cell<Option<Position>>,
    /// Transfers not finished yet.
    users: Cell<usize>,
}

/// What the master counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub forks: u64,
    pub payloads: u64,
    pub continues: u64,
    pub most_payloads_at_once: usize,
}

/// How far a node that is no master has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Follows {
    has: Offset,
    linked: bool,
}

struct State {
    id: ReplId,
    /// The older id and the last point up to which it is ours.
    second: Option<Position>,
    /// The first point a reader may stand at; none: no backlog.
    backlog: Option<Offset>,
    /// A node that follows another: what it has of that one's line, and whether its link is up. None: it is a master.
    follows: Option<Follows>,
    up: bool,
    mood: Mood,
    writing: bool,
    keys: u64,
    incarnation: u64,
    slips: VecDeque<Slip>,
    author: Author,
    chance: Chance,
    followers: BTreeMap<u64, Follower>,
    next: u64,
    fork: Option<Rc<Fork>>,
    counts: Counts,
}

/// The model master of one host.
pub struct Master {
    pub name: String,
    pub setup: Setup,
    log: Log,
    truth: Truth,
    network: SimNetwork,
    state: RefCell<State>,
    changed: Notify,
    /// Laws that hold when psyncd is the only follower.
    pub proxied: Cell<bool>,
}

#[derive(Default)]
struct Session {
    authenticated: bool,
    port: String,
    eof: bool,
    psync2: bool,
    rdb_only: bool,
}

enum Asked {
    Psync(Option<ReplId>, i64),
    Sync,
}

impl Master {
    pub fn new(name: &str, setup: Setup, chance: &Chance, log: Log, truth: Truth, network: SimNetwork) -> Rc<Self> {
        let mut chance = chance.fork(name);
        let id = chance.replid();
        truth.begin(id, Offset::ZERO);
        let state = State {
            id,
            second: None,
            backlog: None,
            follows: None,
            up: true,
            mood: Mood::Serving,
            writing: true,
            keys: setup.keys,
            incarnation: 0,
            slips: VecDeque::new(),
            author: Author::new(chance.fork("author"), setup.large_one_in, setup.large_bytes),
            chance,
            followers: BTreeMap::new(),
            next: 0,
            fork: None,
            counts: Counts::default(),
        };
        let master = Rc::new(Self {
            name: name.to_owned(),
            setup,
            log,
            truth,
            network,
            state: RefCell::new(state),
            changed: Notify::new(),
            proxied: Cell::new(false),
        });
        if master.setup.warm {
            master.state.borrow_mut().backlog = Some(Offset::ZERO);
            for _ in 0..20 {
                let command = master.state.borrow_mut().author.write();
                master.feed(&command);
            }
        }
        master
    }

    // ---- what the world may ask and do ----

    pub fn position(&self) -> Position {
        let state = self.state.borrow();
        Position::new(state.id, self.head(&state))
    }

    fn head(&self, state: &State) -> Offset {
        state.follows.map_or_else(|| self.truth.head(state.id), |follows| follows.has)
    }

    pub fn counts(&self) -> Counts {
        self.state.borrow().counts
    }

    /// Whether a replica standing at `position` would be continued.
    pub fn serves(&self, position: &Position) -> bool {
        let state = self.state.borrow();
        let head = self.head(&state);
        let ours =
            position.id == state.id || state.second.is_some_and(|s| s.id == position.id && position.offset <= s.offset);
        let kept = state.backlog.is_some_and(|start| start <= position.offset && position.offset <= head);
        let able = state.mood == Mood::Serving && state.follows.is_none_or(|follows| follows.linked);
        state.up && able && ours && kept
    }

    /// Whether it takes itself for a master.
    pub fn is_master(&self) -> bool {
        self.state.borrow().follows.is_none()
    }

    pub fn is_up(&self) -> bool {
        self.state.borrow().up
    }

    // ---- a node that follows another; the following itself is done by a model replica ----

    /// It is a replica from now on, and has what it has.
    pub fn demote(&self) {
        let has = self.position().offset;
        let mut state = self.state.borrow_mut();
        state.follows = Some(Follows { has, linked: false });
        state.fork = None;
        state.incarnation += 1;
        drop(state);
        self.changed.notify_waiters();
    }

    /// REPLICAOF NO ONE: a new line, from where it is.
    pub fn promote(&self) {
        let from = self.position();
        let id = self.state.borrow_mut().chance.replid();
        self.truth.branch(id, from);
        let kept = self.state.borrow().backlog.unwrap_or(from.offset);
        self.become_line(id, Some(from), Some(kept));
    }

    /// Its link is up, under this id and from there on, and what it had is still good.
    pub fn went_on(&self, at: Position) {
        let mut state = self.state.borrow_mut();
        if state.id != at.id {
            // redis 7.0 replication.c, slaveTryPartialResynchronization: the old id is the second one now, and
            // everybody is told so by the loss of his link.
            state.second = Some(Position::new(state.id, at.offset));
            state.id = at.id;
            state.incarnation += 1;
        }
        state.backlog.get_or_insert(at.offset);
        state.follows = Some(Follows { has: at.offset, linked: true });
        drop(state);
        self.changed.notify_waiters();
    }

    /// It has loaded another data set.
    pub fn loaded(&self, at: Position) {
        self.become_line(at.id, None, Some(at.offset));
        self.state.borrow_mut().follows = Some(Follows { has: at.offset, linked: true });
    }

    /// Has it taken in more, up to there.
    pub fn applied(&self, has: Offset) {
        let mut state = self.state.borrow_mut();
        if let Some(follows) = &mut state.follows {
            follows.has = has;
        }
        let oldest = has.back(self.setup.backlog_bytes);
        state.backlog = state.backlog.map(|start| start.max(oldest));
        drop(state);
        self.changed.notify_waiters();
    }

    /// Its link is gone.
    pub fn unlinked(&self) {
        if let Some(follows) = &mut self.state.borrow_mut().follows {
            follows.linked = false;
        }
    }

    /// A replica comes back from its file: with an older position, or none, and no backlog.
    pub fn reborn(&self, has: Position) {
        self.become_line(has.id, None, None);
        self.state.borrow_mut().follows = Some(Follows { has: has.offset, linked: false });
    }

    pub fn set_writing(&self, writing: bool) {
        self.state.borrow_mut().writing = writing;
    }

    pub fn set_mood(&self, mood: Mood) {
        self.log.note(&self.name, format!("mood {mood:?}"));
        self.state.borrow_mut().mood = mood;
    }

    pub fn slip(&self, slip: Slip) {
        self.log.note(&self.name, format!("will slip: {slip:?}"));
        self.state.borrow_mut().slips.push_back(slip);
        self.changed.notify_waiters();
    }

    pub fn forget_slips(&self) {
        self.state.borrow_mut().slips.clear();
    }

    /// Closes every link and stops listening, or begins again.
    pub fn set_up(&self, up: bool) {
        self.log.note(&self.name, if up { "up" } else { "down" });
        let mut state = self.state.borrow_mut();
        state.up = up;
        state.incarnation += 1;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Closes every link of a follower, as CLIENT KILL does.
    pub fn kill_links(&self) {
        self.log.note(&self.name, "kills its links");
        self.state.borrow_mut().incarnation += 1;
        self.changed.notify_waiters();
    }

    /// Comes back without data and history.
    pub fn lose_everything(&self) {
        let id = self.state.borrow_mut().chance.replid();
        self.truth.begin(id, Offset::ZERO);
        self.become_line(id, None, None);
        self.state.borrow_mut().keys = 0;
    }

    /// Comes back with all its keys from a copy that knows nothing of the stream they came by.
    pub fn restore_from_backup(&self) {
        self.lose_everything();
        self.state.borrow_mut().keys = self.setup.keys;
    }

    /// Comes back from its file, which was written some bytes ago: the bytes since are lost. From 7.0 on
    /// the id in the file is remembered as the second one.
    pub fn restart_from_file(&self, lost_bytes: u64) {
        if self.setup.age < Age::V7 {
            return self.lose_everything();
        }
        let (id, from) = self.branch(lost_bytes);
        self.become_line(id, Some(from), Some(from.offset));
    }

    /// Somebody who had all but the last bytes takes over under the same address.
    pub fn fail_over(&self, lost_bytes: u64) {
        if self.setup.age == Age::V28 {
            return self.lose_everything();
        }
        let (id, from) = self.branch(lost_bytes);
        let kept = self.state.borrow().backlog.map(|start| start.min(from.offset));
        self.become_line(id, Some(from), kept);
    }

    fn branch(&self, lost_bytes: u64) -> (ReplId, Position) {
        let id = self.state.borrow_mut().chance.replid();
        let old = self.position();
        let at = self.truth.boundary_below(old.id, old.offset.back(lost_bytes));
        let from = Position::new(old.id, at);
        self.truth.branch(id, from);
        (id, from)
    }

    fn become_line(&self, id: ReplId, second: Option<Position>, backlog: Option<Offset>) {
        let mut state = self.state.borrow_mut();
        state.id = id;
        state.second = second;
        state.backlog = backlog;
        state.follows = None;
        state.fork = None;
        state.author.forget_db();
        state.incarnation += 1;
        drop(state);
        let text = second.map_or("nothing".to_owned(), |s| format!("{} at {}", s.id.short(), s.offset));
        self.log.note(&self.name, format!("is now {}, from {text}", id.short()));
        self.changed.notify_waiters();
    }

    /// Asks all followers for an acknowledgement; gives the point they must acknowledge.
    pub fn getack(&self) -> Offset {
        let head = self.position().offset;
        self.feed(&words(GETACK));
        head
    }

    /// The lowest point acknowledged by a follower that is online; none without followers.
    pub fn acknowledged(&self) -> Option<Offset> {
        let state = self.state.borrow();
        let online = state.followers.values().filter(|f| f.stage == Stage::Online && !f.legacy);
        online.map(|f| f.acked.unwrap_or_default()).min()
    }

    /// The longest time any follower that is online has said nothing.
    pub fn longest_silence(&self) -> Duration {
        let state = self.state.borrow();
        let online = state.followers.values().filter(|f| f.stage == Stage::Online && !f.legacy);
        online.map(|f| f.heard.elapsed()).max().unwrap_or_default()
    }

    // ---- life ----

    pub async fn run(self: Rc<Self>) -> turmoil::Result {
        loop {
            let changed = self.changed.notified();
            if !self.state.borrow().up {
                changed.await;
                continue;
            }
            let incarnation = self.state.borrow().incarnation;
            let listener = self.network.bind(PORT).await?;
            let mut tasks = JoinSet::new();
            tasks.spawn_local(Rc::clone(&self).write());
            tasks.spawn_local(Rc::clone(&self).ping());
            loop {
                let changed = self.changed.notified();
                if self.state.borrow().incarnation != incarnation {
                    break;
                }
                tokio::select! {
                    biased;
                    () = changed => {}
                    taken = listener.take() => {
                        let (link, probe) = taken?;
                        tasks.spawn_local(Rc::clone(&self).serve(link, probe));
                    }
                    Some(ended) = tasks.join_next() => ended?,
                }
            }
            drop(tasks);
            self.state.borrow_mut().fork = None;
        }
    }

    async fn write(self: Rc<Self>) {
        loop {
            let most = self.setup.write_every.as_millis() as u64;
            let pause = self.state.borrow_mut().chance.millis(1, most.max(1));
            sleep(pause).await;
            if !self.state.borrow().writing {
                continue;
            }
            let burst = self.state.borrow_mut().chance.between(1, 4);
            for _ in 0..burst {
                // Without a backlog a master neither counts nor keeps what it writes.
                let keeps = self.state.borrow().backlog.is_some() && self.is_master();
                if keeps {
                    let command = self.state.borrow_mut().author.write();
                    self.feed(&command);
                }
            }
            if self.state.borrow_mut().chance.one_in(30) {
                self.feed(&words(GETACK));
            }
        }
    }

    async fn ping(self: Rc<Self>) {
        loop {
            sleep(self.setup.ping_every).await;
            if self.is_master() && self.state.borrow().followers.values().any(|f| !f.rdb_only) {
                self.feed(&words("ping"));
            }
        }
    }

    fn feed(&self, command: &[u8]) {
        let mut state = self.state.borrow_mut();
        let (Some(start), None) = (state.backlog, state.follows) else { return };
        self.truth.append(state.id, command);
        let oldest = self.truth.head(state.id).back(self.setup.backlog_bytes);
        state.backlog = Some(start.max(oldest));
        drop(state);
        self.changed.notify_waiters();
    }

    // ---- one connection ----

    async fn serve(self: Rc<Self>, link: Link, probe: Probe) {
        let peer = link.peer.host();
        let session = Session { authenticated: self.setup.auth.is_none(), ..Default::default() };
        let ended = self.converse(link, session, probe).await;
        if let Err(e) = ended {
            self.log.note(&self.name, format!("link of {peer} ended: {e}"));
        }
    }

    async fn converse(self: &Rc<Self>, link: Link, mut session: Session, probe: Probe) -> io::Result<()> {
        let Link { mut source, mut sink, peer, local, security, .. } = link;
        let mut commands = Commands::default();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = source.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            commands.feed(&buffer[..n]);
            let mut replies = Vec::new();
            loop {
                let item = match commands.next() {
                    Ok(Some((item, _))) => item,
                    Ok(None) => break,
                    Err(why) => {
                        sink.write_all(format!("-ERR Protocol error: {why}\r\n").as_bytes()).await?;
                        return Ok(());
                    }
                };
                let Item::Command(args) = item else { continue };
                if !(is(args.first(), "PSYNC") || is(args.first(), "SYNC")) {
                    replies.extend(self.reply(&args, &mut session));
                    continue;
                }
                if !replies.is_empty() || probe.unread_by_peer() > 0 {
                    self.log.violation(&self.name, "PSYNC was sent before every reply was read");
                }
                match self.refusal(&args, &session) {
                    Err(line) => {
                        self.log.note(&self.name, format!("refused {peer}: {}", line.trim_end()));
                        replies.extend(line.into_bytes());
                    }
                    Ok(asked) => {
                        let link = Link { source, sink, peer, local, security, place: None };
                        return self.follow(asked, session, commands, link, probe).await;
                    }
                }
            }
            sink.write_all(&replies).await?;
        }
    }

    fn refusal(&self, args: &[Vec<u8>], session: &Session) -> Result<Asked, String> {
        if !session.authenticated {
            return Err("-NOAUTH Authentication required.\r\n".into());
        }
        match self.state.borrow().mood {
            Mood::Serving => {}
            Mood::Loading => return Err("-LOADING Redis is loading the dataset in memory\r\n".into()),
            Mood::NoMasterLink => {
                return Err("-NOMASTERLINK Can't SYNC while not connected with my master\r\n".into());
            }
        }
        if self.state.borrow().follows.is_some_and(|follows| !follows.linked) {
            return Err("-NOMASTERLINK Can't SYNC while not connected with my master\r\n".into());
        }
        if is(args.first(), "SYNC") {
            return Ok(Asked::Sync);
        }
        let [_, id, offset] = args else {
            return Err("-ERR wrong number of arguments for 'psync' command\r\n".into());
        };
        let offset = str::from_utf8(offset).ok().and_then(|o| o.parse().ok());
        let Some(offset) = offset else {
            return Err("-ERR value is not an integer or out of range\r\n".into());
        };
        Ok(Asked::Psync(ReplId::from_ascii(id), offset))
    }

    fn reply(&self, args: &[Vec<u8>], session: &mut Session) -> Vec<u8> {
        let text = |i: usize| args.get(i).map(|a| String::from_utf8_lossy(a).into_owned()).unwrap_or_default();
        let name = text(0).to_ascii_uppercase();
        if !session.authenticated && name != "AUTH" {
            return b"-NOAUTH Authentication required.\r\n".to_vec();
        }
        if self.state.borrow().mood == Mood::Loading && !matches!(name.as_str(), "AUTH" | "REPLCONF" | "INFO") {
            return b"-LOADING Redis is loading the dataset in memory\r\n".to_vec();
        }
        match name.as_str() {
            "PING" => b"+PONG\r\n".to_vec(),
            "AUTH" => self.authenticate(args, session),
            "REPLCONF" => self.replconf(args, session),
            "INFO" if self.setup.info_denied => {
                b"-NOPERM this user has no permissions to run the 'info' command\r\n".to_vec()
            }
            "INFO" => {
                let body = self.info();
                format!("${}\r\n{body}\r\n", body.len()).into_bytes()
            }
            "ROLE" if self.is_master() => b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n".to_vec(),
            "ROLE" => b"*5\r\n$5\r\nslave\r\n$1\r\nx\r\n:1\r\n$9\r\nconnected\r\n:0\r\n".to_vec(),
            "SET" => {
                self.feed(&words(&format!("SET {} {}", text(1), text(2))));
                b"+OK\r\n".to_vec()
            }
            "ECHO" => {
                let said = args.get(1).cloned().unwrap_or_default();
                [format!("${}\r\n", said.len()).as_bytes(), &said, b"\r\n"].concat()
            }
            _ => format!("-ERR unknown command '{}'\r\n", text(0)).into_bytes(),
        }
    }

    fn authenticate(&self, args: &[Vec<u8>], session: &mut Session) -> Vec<u8> {
        let said: Vec<String> = args[1..].iter().map(|a| String::from_utf8_lossy(a).into_owned()).collect();
        let right = match (&self.setup.auth, said.as_slice()) {
            (Some((None, password)), [said]) => said == password,
            (Some((None, password)), [user, said]) => user == "default" && said == password,
            (Some((Some(name), password)), [user, said]) => user == name && said == password,
            _ => false,
        };
        if right {
            session.authenticated = true;
            return b"+OK\r\n".to_vec();
        }
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n".to_vec()
    }

    fn replconf(&self, args: &[Vec<u8>], session: &mut Session) -> Vec<u8> {
        if args.len().is_multiple_of(2) {
            return b"-ERR syntax error\r\n".to_vec();
        }
        for pair in args[1..].chunks(2) {
            let (option, value) = (String::from_utf8_lossy(&pair[0]).to_ascii_lowercase(), &pair[1]);
            let age = self.setup.age;
            match option.as_str() {
                "listening-port" => session.port = String::from_utf8_lossy(value).into_owned(),
                "ip-address" if age > Age::V28 => {}
                "capa" => {
                    session.eof |= value.eq_ignore_ascii_case(b"eof");
                    session.psync2 |= value.eq_ignore_ascii_case(b"psync2") && age > Age::V28;
                }
                "rdb-only" if age >= Age::V62 => session.rdb_only = value == b"1",
                "ack" | "getack" => return Vec::new(),
                _ => return format!("-ERR Unrecognized REPLCONF option: {option}\r\n").into_bytes(),
            }
        }
        b"+OK\r\n".to_vec()
    }

    fn info(&self) -> String {
        let state = self.state.borrow();
        let head = self.head(&state);
        let age = self.setup.age;
        let run_id = if age == Age::V28 { state.id.to_string() } else { format!("{:040x}", state.incarnation + 1) };
        let mut out = format!(
            "# Server\r\nredis_version:{}\r\nredis_mode:standalone\r\nrun_id:{run_id}\r\ntcp_port:{PORT}\r\n\r\n",
            age.version()
        );
        match state.follows {
            None => out += "# Replication\r\nrole:master\r\n",
            Some(Follows { has, linked }) => {
                let link = if linked { "up" } else { "down" };
                out += &format!(
                    "# Replication\r\nrole:slave\r\nmaster_host:somewhere\r\nmaster_port:6379\r\n\
                     master_link_status:{link}\r\nslave_repl_offset:{has}\r\nslave_priority:100\r\nslave_read_only:1\r\n"
                );
            }
        }
        out += &format!("connected_slaves:{}\r\n", state.followers.len());
        if age > Age::V28 {
            let second = state.second.map_or("0".repeat(40), |s| s.id.to_string());
            out += &format!("master_replid:{}\r\nmaster_replid2:{second}\r\n", state.id);
        }
        out += &format!("master_repl_offset:{head}\r\n");
        if age > Age::V28 {
            let second = state.second.map_or(-1, |s| s.offset.get() as i64 + 1);
            out += &format!("second_repl_offset:{second}\r\n");
        }
        let (first, len) = state.backlog.map_or((0, 0), |start| (start.get() + 1, head.since(start)));
        out += &format!(
            "repl_backlog_active:{}\r\nrepl_backlog_size:{}\r\nrepl_backlog_first_byte_offset:{first}\r\nrepl_backlog_histlen:{len}\r\n",
            u8::from(state.backlog.is_some()),
            self.setup.backlog_bytes
        );
        out += "\r\n# Keyspace\r\n";
        if state.keys > 0 {
            out += &format!("db0:keys={},expires=0,avg_ttl=0\r\n", state.keys);
        }
        out
    }

    // ---- following ----

    async fn follow(
        self: &Rc<Self>,
        asked: Asked,
        session: Session,
        commands: Commands,
        mut link: Link,
        probe: Probe,
    ) -> io::Result<()> {
        let peer = link.peer.host();
        // Replicas that visit the master itself are not to suffer for what psyncd has to survive.
        let spared = self.proxied.get() && probe.dialer() != crate::world::PROXY;
        let slip = if spared { None } else { self.state.borrow_mut().slips.pop_front() };
        if let Some(slip) = slip {
            self.log.note(&self.name, format!("slips: {slip:?}"));
        }
        match slip {
            Some(Slip::Error) => {
                link.sink.write_all(b"-ERR something is wrong here\r\n").await?;
                return Box::pin(self.converse(link, session, probe)).await;
            }
            Some(Slip::ShortId) => return link.sink.write_all(b"+FULLRESYNC 0123456789abcdef 17\r\n").await,
            Some(Slip::LowerCase) => {
                link.sink.write_all(b"+continue\r\n").await?;
                return Box::pin(self.converse(link, session, probe)).await;
            }
            Some(Slip::Silence) => return Ok(()),
            Some(Slip::ManyNewlines) => link.sink.write_all(&b"\n".repeat(300)).await?,
            _ => {}
        }
        if let Asked::Psync(Some(id), wanted) = asked {
            let position = Position::new(id, Offset::new(wanted.max(1) as u64 - 1));
            let lie = slip == Some(Slip::ContinueAnything);
            if wanted > 0 && (self.serves(&position) || lie) && slip != Some(Slip::NeedlessFull) {
                return self.go_on(position.offset, slip, session, commands, link, probe).await;
            }
        } else if slip == Some(Slip::ContinueAnything) {
            let at = self.position().offset;
            return self.go_on(at, slip, session, commands, link, probe).await;
        }
        let place = Place::take(self, &peer, &session, Stage::WaitsForSnapshot, probe.clone());
        let is_sync = matches!(asked, Asked::Sync);
        let fork = self.forked(is_sync, slip, &session, &mut link.sink).await?;
        place.set(Stage::Receives);
        place.change(|follower| follower.legacy = is_sync);
        let position = fork.position.get().expect("a fork that began has its position");
        self.send_payload(&fork, position, slip, &mut link.sink).await?;
        drop(fork);
        if session.rdb_only {
            self.log.note(&self.name, format!("gave {peer} a snapshot at {}", short(&position)));
            return Ok(());
        }
        let eof = self.setup.diskless && session.eof;
        place.set(Stage::Online);
        self.stream(place, position.offset, eof, slip, commands, link, probe).await
    }

    async fn go_on(
        self: &Rc<Self>,
        from: Offset,
        slip: Option<Slip>,
        session: Session,
        commands: Commands,
        mut link: Link,
        probe: Probe,
    ) -> io::Result<()> {
        let place = Place::take(self, &link.peer.host(), &session, Stage::Online, probe.clone());
        let id = self.state.borrow().id;
        self.state.borrow_mut().counts.continues += 1;
        self.log.note(&self.name, format!("continues {} from {from} under {}", link.peer.host(), id.short()));
        let line = if session.psync2 { format!("+CONTINUE {id}\r\n") } else { "+CONTINUE\r\n".to_owned() };
        link.sink.write_all(line.as_bytes()).await?;
        self.stream(place, from, false, slip, commands, link, probe).await
    }

    /// Waits for a snapshot as a master does, with a newline each second, and announces it.
    async fn forked(
        self: &Rc<Self>,
        is_sync: bool,
        slip: Option<Slip>,
        session: &Session,
        sink: &mut Sink,
    ) -> io::Result<ForkUse> {
        let eof = self.setup.diskless && session.eof;
        let mut newline = Instant::now() + Duration::from_secs(1);
        let fork = loop {
            if let Some(fork) = self.join_fork(eof) {
                break fork;
            }
            wait_with_newlines(Instant::now() + Duration::from_millis(100), &mut newline, sink).await?;
        };
        wait_with_newlines(fork.begins, &mut newline, sink).await?;
        if fork.position.get().is_none() {
            let mut state = self.state.borrow_mut();
            if state.backlog.is_none() && state.follows.is_none() {
                // From 4.0 on a master that begins to keep a backlog begins a new history.
                if self.setup.age > Age::V28 {
                    let head = self.truth.head(state.id);
                    state.id = state.chance.replid();
                    state.second = None;
                    self.truth.begin(state.id, head);
                }
                state.backlog = Some(self.truth.head(state.id));
            }
            let position = Position::new(state.id, self.head(&state));
            fork.position.set(Some(position));
            state.author.forget_db();
            state.counts.forks += 1;
            self.log.note(&self.name, format!("forks for a snapshot at {}", short(&position)));
        }
        let position = fork.position.get().expect("set above");
        if !is_sync {
            let wrong = u64::from(slip == Some(Slip::WrongOffset));
            let line = format!("+FULLRESYNC {} {}\r\n", position.id, position.offset.forward(wrong));
            sink.write_all(line.as_bytes()).await?;
        }
        wait_with_newlines(fork.ready, &mut newline, sink).await?;
        Ok(fork)
    }

    fn join_fork(self: &Rc<Self>, eof: bool) -> Option<ForkUse> {
        let now = Instant::now();
        let mut state = self.state.borrow_mut();
        if let Some(fork) = &state.fork {
            let open = if fork.eof { fork.position.get().is_none() } else { now < fork.ready };
            if open && fork.eof == eof {
                return Some(ForkUse::new(fork));
            }
            if fork.users.get() > 0 {
                return None;
            }
        }
        let begins = if eof { now + self.setup.diskless_delay } else { now };
        let ready = if eof { begins } else { now + state.chance.millis(0, 2500) };
        let fork = Rc::new(Fork { eof, begins, ready, position: Cell::new(None), users: Cell::new(0) });
        state.fork = Some(Rc::clone(&fork));
        Some(ForkUse::new(&fork))
    }

    async fn send_payload(
        &self,
        fork: &Fork,
        position: Position,
        slip: Option<Slip>,
        sink: &mut Sink,
    ) -> io::Result<()> {
        let Setup { filler_bytes, checksum, age, keys, .. } = self.setup;
        // Keys that were lost weigh nothing.
        let lost = self.state.borrow().keys < keys;
        let filler_bytes = if lost { 0 } else { filler_bytes };
        // Without a checksum nobody can see that one is wrong.
        let checksum = checksum || slip == Some(Slip::WrongCrc);
        let form = rdb::Form { version: age.rdb_version(), filler_bytes, checksum };
        let mut payload = rdb::write(&position, form).to_vec();
        match slip {
            Some(Slip::ErrorForHeader) => {
                return sink.write_all(b"-ERR BGSAVE failed, replication can't continue\r\n").await;
            }
            Some(Slip::EmptyPayload) => return sink.write_all(b"$0\r\n").await,
            Some(Slip::BadHeader) => return sink.write_all(b"$12x4\r\nREDIS0011").await,
            Some(Slip::WrongCrc) => {
                let middle = payload.len() / 2;
                payload[middle] ^= 1;
            }
            Some(Slip::WrongMagic) => payload[..5].copy_from_slice(b"RUBIS"),
            Some(Slip::ShortPayload) => payload.truncate(payload.len() * 2 / 3),
            _ => {}
        }
        let payload = Bytes::from(payload);
        let mark: Vec<u8> = (0..40).map(|i| b"0123456789abcdef"[(i * 7 + 3) % 16]).collect();
        let header = if fork.eof {
            [b"$EOF:", mark.as_slice(), b"\r\n"].concat()
        } else {
            format!("${}\r\n", payload.len()).into_bytes()
        };
        sink.write_all(&header).await?;
        let pause = self.state.borrow_mut().chance.millis(0, 40);
        for (n, chunk) in payload.chunks(8 * 1024).enumerate() {
            if slip == Some(Slip::DiesInPayload) && n * 8 * 1024 * 2 >= payload.len() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            sink.write_all(chunk).await?;
            sleep(pause).await;
        }
        if fork.eof {
            sink.write_all(&mark).await?;
        }
        self.state.borrow_mut().counts.payloads += 1;
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one call, all of a link's facts")]
    async fn stream(
        self: &Rc<Self>,
        place: Place,
        from: Offset,
        waits_for_ack: bool,
        slip: Option<Slip>,
        commands: Commands,
        link: Link,
        probe: Probe,
    ) -> io::Result<()> {
        let Link { source, sink, .. } = link;
        let sent = Cell::new(from);
        let opened = Notify::new();
        let before = probe.written();
        let read = || probe.read_by_peer().map(|total| from.forward(total.saturating_sub(before)));
        if !waits_for_ack || slip == Some(Slip::GluedBehindMark) {
            opened.notify_one();
        }
        tokio::select! {
            biased;
            ended = self.hear(&place, &read, &opened, commands, source) => ended,
            ended = self.speak(&sent, &opened, slip, sink) => ended,
        }
    }

    async fn speak(&self, sent: &Cell<Offset>, opened: &Notify, slip: Option<Slip>, mut sink: Sink) -> io::Result<()> {
        let id = self.state.borrow().id;
        let left = || {
            let state = self.state.borrow();
            if state.id == id { self.head(&state).since(sent.get()) } else { 0 }
        };
        opened.notified().await;
        if slip == Some(Slip::InjectedNewline) {
            sink.write_all(b"\n").await?;
        }
        let mut wrong = matches!(slip, Some(Slip::WrongByte | Slip::TwiceByte));
        loop {
            let changed = self.changed.notified();
            let left = left();
            if left > self.setup.output_limit_bytes {
                return Err(io::Error::other("output buffer limit"));
            }
            let mut bytes = self.truth.read(id, sent.get(), left.min(16 * 1024) as usize);
            if bytes.is_empty() {
                changed.await;
                continue;
            }
            let len = bytes.len() as u64;
            if wrong && bytes.len() > 10 {
                wrong = false;
                match slip {
                    Some(Slip::TwiceByte) => bytes.insert(9, bytes[9]),
                    _ => bytes[9] ^= 1,
                }
            }
            sink.write_all(&bytes).await?;
            sent.set(sent.get().forward(len));
        }
    }

    async fn hear(
        &self,
        place: &Place,
        read_by_peer: &impl Fn() -> Option<Offset>,
        opened: &Notify,
        mut commands: Commands,
        mut source: Source,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 4096];
        loop {
            while let Some((item, _)) = commands.next().map_err(io::Error::other)? {
                let Item::Command(args) = item else { continue };
                let ack = args.get(2).and_then(|a| str::from_utf8(a).ok()).and_then(|a| a.parse().ok());
                let (true, true, Some(ack)) = (is(args.first(), "REPLCONF"), is(args.get(1), "ACK"), ack) else {
                    let said = String::from_utf8_lossy(&args.join(&b' ')).into_owned();
                    self.log.violation(&self.name, format!("a follower said {said:?} on its link"));
                    continue;
                };
                self.acknowledge(place, Offset::new(ack), read_by_peer());
                opened.notify_one();
            }
            let Ok(read) = timeout(REPL_TIMEOUT, source.read(&mut buffer)).await else {
                return Err(io::ErrorKind::TimedOut.into());
            };
            let n = read?;
            if n == 0 {
                return Ok(());
            }
            commands.feed(&buffer[..n]);
            place.change(|_| {});
        }
    }

    fn acknowledge(&self, place: &Place, ack: Offset, read: Option<Offset>) {
        let mut state = self.state.borrow_mut();
        let Some(follower) = state.followers.get_mut(&place.number) else { return };
        if let Some(read) = read.filter(|read| ack > *read) {
            let what = format!("{} acknowledged {ack} and had read {read}", follower.peer);
            drop(state);
            self.log.violation(&self.name, what);
            return;
        }
        follower.acked = Some(follower.acked.unwrap_or_default().max(ack));
    }
}

/// An id and an offset short enough for a log line.
pub fn short(position: &Position) -> String {
    format!("{}:{}", position.id.short(), position.offset)
}

async fn wait_with_newlines(until: Instant, newline: &mut Instant, sink: &mut Sink) -> io::Result<()> {
    while *newline < until {
        sleep_until(*newline).await;
        sink.write_all(b"\n").await?;
        *newline += Duration::from_secs(1);
    }
    sleep_until(until).await;
    Ok(())
}

/// A follower's row, gone when dropped.
struct Place {
    master: Rc<Master>,
    number: u64,
}

impl Place {
    fn take(master: &Rc<Master>, peer: &str, session: &Session, stage: Stage, probe: Probe) -> Self {
        let mut state = master.state.borrow_mut();
        let number = state.next;
        state.next += 1;
        let rdb_only = session.rdb_only;
        let what =
            format!("{peer} (port {:?}) follows: {stage:?}{}", session.port, if rdb_only { " rdb-only" } else { "" });
        master.log.note(&master.name, what);
        let follower = Follower {
            peer: peer.to_owned(),
            stage,
            rdb_only,
            legacy: rdb_only,
            acked: None,
            heard: Instant::now(),
            probe,
        };
        state.followers.insert(number, follower);
        // By this peer and on links it still listens to: what fell silent it may have given up.
        let fetches = |f: &&Follower| f.peer == peer && f.stage != Stage::Online && f.probe.peer_listens();
        let at_once = state.followers.values().filter(fetches).count();
        state.counts.most_payloads_at_once = state.counts.most_payloads_at_once.max(at_once);
        drop(state);
        if at_once > 1 && master.proxied.get() {
            master.log.violation(&master.name, format!("{at_once} snapshots are fetched at once"));
        }
        Self { master: Rc::clone(master), number }
    }

    fn set(&self, stage: Stage) {
        self.change(|follower| follower.stage = stage);
    }

    fn change(&self, change: impl FnOnce(&mut Follower)) {
        if let Some(follower) = self.master.state.borrow_mut().followers.get_mut(&self.number) {
            follower.heard = Instant::now();
            change(follower);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.master.state.borrow_mut().followers.remove(&self.number);
    }
}

/// One transfer of a fork's snapshot.
struct ForkUse(Rc<Fork>);

impl ForkUse {
    fn new(fork: &Rc<Fork>) -> Self {
        fork.users.set(fork.users.get() + 1);
        Self(Rc::clone(fork))
    }
}

impl std::ops::Deref for ForkUse {
    type Target = Fork;
    fn deref(&self) -> &Fork {
        &self.0
    }
}

impl Drop for ForkUse {
    fn drop(&mut self) {
        self.0.users.set(self.0.users.get() - 1);
    }
}
