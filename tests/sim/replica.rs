//! The model replica: the replica half of real servers, from 2.8 to 8.x, with what each of them forgets.
//!
//! It holds no data set but knows which one it would have, and it compares every byte it is sent with the
//! truth the moment it arrives.
//!
//! One actor: its state is touched by all it does, so it is not split.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use psyncd::net::{Address, Link, Sink, Source};
use psyncd::repl::{Offset, Position, ReplId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::chance::Chance;
use crate::log::Log;
use crate::master::short;
use crate::network::SimNetwork;
use crate::rdb;
use crate::resp::{Commands, Item, array, is};
use crate::truth::Truth;

const REPL_TIMEOUT: Duration = Duration::from_secs(60);

/// What a replica of its age does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Age {
    /// Inline, no `psync2`, counts raw bytes, forgets on any refusal.
    V28,
    /// RESP, one command at a time, forgets when PSYNC is not answered, reconnects each second.
    V5,
    /// Pipelines its handshake, reconnects at once, acknowledges a payload at once; forgets as before.
    V62,
    /// Remembers its position until a new data set is loaded.
    V7,
}

/// How a replica is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    pub age: Age,
    /// Says `capa eof`.
    pub eof: bool,
    /// The first PSYNC asks for its own id, as a server does that was made a replica while it ran.
    pub asks_own_id: bool,
    /// The longest time a payload takes to load.
    pub load: Duration,
    /// Pause after each read until the world is calm: a slow reader.
    pub pace: Duration,
    pub auth: Option<(Option<String>, String)>,
    /// Announces itself.
    pub ip_address: Option<String>,
    pub habit: Option<Habit>,
    /// What it says when it is asked at its own port; none: nobody answers there.
    pub priority: Option<u32>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            age: Age::V7,
            eof: true,
            asks_own_id: false,
            load: Duration::from_millis(300),
            pace: Duration::ZERO,
            auth: None,
            ip_address: None,
            habit: None,
            priority: None,
        }
    }
}

/// What no healthy replica does: to see whether the master's checks notice, or whether others suffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Acknowledges what it has not been sent.
    AcksAhead,
    /// Sends PSYNC behind a command whose reply it has not read.
    Hasty,
    /// Sends commands on the live link.
    Talkative,
    /// Never reads the stream.
    Deaf,
    /// Takes no byte of a payload until the world is calm, and tries again only long after.
    Hangs,
}

/// What the replica counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub fulls: u64,
    /// Those of them for which it had asked to continue what is no part of the line it was given instead.
    pub diverged: u64,
    /// Those for which it had asked to continue what is.
    pub overtaken: u64,
    pub partials: u64,
    pub links: u64,
    /// Payloads that began to arrive.
    pub begun: u64,
}

/// Says whether the node a replica asks would have to continue `position`; none when it cannot be known.
pub type Oracle = Rc<dyn Fn(&Address, &Position) -> Option<bool>>;

/// What a replica tells the node it is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It goes on from there, under that id.
    WentOn(Position),
    /// It has that data set now.
    Loaded(Position),
    /// It has everything up to there.
    Applied(Offset),
    /// Its link is gone.
    Unlinked,
}

/// Somebody who is told so.
pub type Tell = Rc<dyn Fn(Taken)>;

struct State {
    master: Option<Address>,
    /// What it would ask for: id and offset of what it has.
    cached: Option<Position>,
    /// The data set it has.
    data: Option<Position>,
    /// The half command an old replica keeps over a lost link.
    half: Vec<u8>,
    online: bool,
    moves: u64,
    chance: Chance,
    counts: Counts,
}

/// The model replica of one host.
pub struct Replica {
    pub name: String,
    pub setup: Setup,
    log: Log,
    truth: Truth,
    network: SimNetwork,
    oracle: Oracle,
    state: RefCell<State>,
    changed: Notify,
    pace: Rc<Cell<Duration>>,
    calm: Cell<bool>,
    /// The node it is part of, if any.
    node: RefCell<Option<Tell>>,
}

/// Why an attempt ended.
enum End {
    /// Before the stream: wait for the next second.
    NotSynced(String),
    /// From the live stream.
    Lost(String),
}

impl End {
    fn early(what: impl std::fmt::Display) -> Self {
        End::NotSynced(what.to_string())
    }
}

impl From<io::Error> for End {
    fn from(e: io::Error) -> Self {
        End::NotSynced(e.to_string())
    }
}

/// What a replica reads from, with what it has read and not used yet.
struct Inbox {
    source: Source,
    buffer: Vec<u8>,
    pace: Rc<Cell<Duration>>,
}

impl Inbox {
    async fn more(&mut self) -> io::Result<()> {
        let mut part = vec![0; 16 * 1024];
        let read = timeout(REPL_TIMEOUT, self.source.read(&mut part)).await;
        let n = read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&part[..n]);
        if !self.pace.get().is_zero() {
            sleep(self.pace.get()).await;
        }
        Ok(())
    }

    /// The next line without its end; a bare newline gives an empty one.
    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.more().await?;
        }
    }
}

impl Replica {
    pub fn new(
        name: &str,
        setup: Setup,
        chance: &Chance,
        log: Log,
        truth: Truth,
        network: SimNetwork,
        oracle: Oracle,
    ) -> Rc<Self> {
        let mut chance = chance.fork(name);
        let own = Position::new(chance.replid(), Offset::ZERO);
        let state = State {
            master: None,
            cached: setup.asks_own_id.then_some(own),
            data: None,
            half: Vec::new(),
            online: false,
            moves: 0,
            chance,
            counts: Counts::default(),
        };
        let (state, changed) = (RefCell::new(state), Notify::new());
        let pace = Rc::new(Cell::new(setup.pace));
        let (calm, node) = (Cell::new(false), RefCell::new(None));
        Rc::new(Self { name: name.to_owned(), setup, log, truth, network, oracle, state, changed, pace, calm, node })
    }

    /// Tells somebody what it takes in.
    pub fn tell(&self, node: Tell) {
        self.node.replace(Some(node));
    }

    fn told(&self, what: Taken) {
        if let Some(node) = &*self.node.borrow() {
            node(what);
        }
    }

    /// What it has from now on, and whom it follows with that: a server that was made a replica, or came back as one.
    pub fn adopt(&self, has: Option<Position>, master: Option<Address>) {
        let mut state = self.state.borrow_mut();
        (state.cached, state.data) = (has, has);
        drop(state);
        self.follow(master);
    }

    /// Whom it follows.
    pub fn followed(&self) -> Option<Address> {
        self.state.borrow().master.clone()
    }

    // ---- what the world may ask and do ----

    /// REPLICAOF; none is NO ONE.
    pub fn follow(&self, master: Option<Address>) {
        let text = master.as_ref().map_or("no one".to_owned(), Address::to_string);
        self.log.note(&self.name, format!("is told to follow {text}"));
        let mut state = self.state.borrow_mut();
        state.master = master;
        state.moves += 1;
        if self.setup.age == Age::V28 {
            state.cached = None;
            state.half.clear();
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// The process dies and comes back, without its data.
    pub fn restart_empty(&self) {
        self.log.note(&self.name, "restarts without data");
        let mut state = self.state.borrow_mut();
        (state.cached, state.data) = (None, None);
        state.half.clear();
        state.moves += 1;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Reads as fast as it can from now on.
    pub fn hurry(&self) {
        self.calm.set(true);
        self.pace.set(Duration::ZERO);
    }

    /// The data set it has, when its link is up.
    pub fn position(&self) -> Option<Position> {
        let state = self.state.borrow();
        if state.online { state.data } else { None }
    }

    pub fn counts(&self) -> Counts {
        self.state.borrow().counts
    }

    // ---- life ----

    pub async fn run(self: Rc<Self>) -> turmoil::Result {
        if let Some(priority) = self.setup.priority {
            tokio::task::spawn_local(answer_info(self.network.clone(), priority));
        }
        loop {
            let changed = self.changed.notified();
            let (master, moves) = {
                let state = self.state.borrow();
                (state.master.clone(), state.moves)
            };
            let Some(master) = master else {
                changed.await;
                continue;
            };
            let moved = async {
                let mut changed = changed;
                while self.state.borrow().moves == moves {
                    changed.await;
                    changed = self.changed.notified();
                }
            };
            let attempt = async {
                let end = self.attempt(&master).await;
                let (at_once, why) = match end {
                    End::NotSynced(why) => (false, why),
                    End::Lost(why) => (self.setup.age >= Age::V62, why),
                };
                self.set_online(false);
                self.log.note(&self.name, format!("link ended: {why}"));
                let pause = if at_once { Duration::from_millis(1) } else { self.tick() };
                sleep(pause).await;
            };
            tokio::select! {
                biased;
                () = moved => self.set_online(false),
                () = attempt => {}
            }
        }
    }

    fn set_online(&self, online: bool) {
        self.state.borrow_mut().online = online;
        if !online {
            self.told(Taken::Unlinked);
        }
    }

    /// Until the next cron.
    fn tick(&self) -> Duration {
        self.state.borrow_mut().chance.millis(700, 1100)
    }

    async fn attempt(&self, master: &Address) -> End {
        match self.link(master).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn link(&self, master: &Address) -> Result<std::convert::Infallible, End> {
        let (link, _) = timeout(REPL_TIMEOUT, self.network.open(master))
            .await
            .map_err(|_| End::early("connect timed out"))?
            .map_err(|e| End::early(format!("connect: {e}")))?;
        self.state.borrow_mut().counts.links += 1;
        let Link { source, mut sink, .. } = link;
        let mut inbox = Inbox { source, buffer: Vec::new(), pace: Rc::clone(&self.pace) };
        self.introduce(&mut inbox, &mut sink).await?;
        let asked = self.state.borrow().cached;
        let served = asked.and_then(|p| (self.oracle)(master, &p));
        let (id, wanted) = match &asked {
            Some(p) => (p.id.to_string(), (p.offset.get() + 1).to_string()),
            None => ("?".to_owned(), "-1".to_owned()),
        };
        self.say(&mut sink, &["PSYNC", &id, &wanted]).await?;
        self.log.note(&self.name, format!("asks {master} for {}", asked.as_ref().map_or("?".into(), short)));
        let reply = match self.answer(&mut inbox).await {
            Ok(reply) => reply,
            Err(e) => {
                if self.setup.age < Age::V7 {
                    self.forget();
                }
                return Err(End::early(format!("no answer to PSYNC: {e}")));
            }
        };
        if let Some(rest) = reply.strip_prefix("+CONTINUE") {
            return self.go_on(asked, rest, inbox, sink).await;
        }
        if let Some(rest) = reply.strip_prefix("+FULLRESYNC ") {
            let still = asked.and_then(|p| (self.oracle)(master, &p));
            if let (Some(p), Some(true), Some(true)) = (asked, served, still) {
                self.log.violation(&self.name, format!("needless full resync: {} could go on", short(&p)));
            }
            let said = parse_fullresync(rest);
            let Some(said) = said else {
                self.log.violation(&self.name, format!("malformed reply {reply:?}"));
                return Err(End::early("malformed +FULLRESYNC"));
            };
            if let Some(asked) = asked {
                let part = self.truth.on_line(&asked, said.id);
                let mut state = self.state.borrow_mut();
                *(if part { &mut state.counts.overtaken } else { &mut state.counts.diverged }) += 1;
                drop(state);
                self.log.note(&self.name, format!("starts over, {}", if part { "overtaken" } else { "diverged" }));
            }
            if self.setup.age < Age::V7 {
                self.forget();
            }
            return self.load(Some(said), inbox, sink).await;
        }
        if reply.starts_with("-NOMASTERLINK") || reply.starts_with("-LOADING") {
            if self.setup.age > Age::V28 {
                return Err(End::early(reply));
            }
        } else if !reply.starts_with('-') {
            self.log.violation(&self.name, format!("malformed reply {reply:?}"));
        }
        self.log.note(&self.name, format!("falls back to SYNC after {reply:?}"));
        if self.setup.age < Age::V7 {
            self.forget();
        }
        sink.write_all(b"SYNC\r\n").await?;
        self.load(None, inbox, sink).await
    }

    fn forget(&self) {
        let mut state = self.state.borrow_mut();
        state.cached = None;
        state.half.clear();
    }

    async fn say(&self, sink: &mut Sink, command: &[&str]) -> io::Result<()> {
        let bytes = if self.setup.age == Age::V28 {
            format!("{}\r\n", command.join(" ")).into_bytes()
        } else {
            array(&command.iter().map(|w| w.as_bytes()).collect::<Vec<_>>())
        };
        sink.write_all(&bytes).await
    }

    /// One reply of the handshake. An empty line here is taken for the reply, so nobody may send one.
    async fn reply(&self, inbox: &mut Inbox) -> io::Result<String> {
        let line = timeout(Duration::from_secs(5), inbox.line()).await??;
        let Some(line) = line.strip_suffix('\r') else {
            self.log.violation(&self.name, format!("a bare newline before PSYNC: {line:?}"));
            return Ok(line);
        };
        if line.len() > 253 {
            self.log.violation(&self.name, format!("a reply of {} bytes", line.len()));
        }
        Ok(line.to_owned())
    }

    async fn introduce(&self, inbox: &mut Inbox, sink: &mut Sink) -> Result<(), End> {
        if self.setup.habit == Some(Habit::Hasty) {
            sink.write_all(&[array(&[b"PING"]), array(&[b"PSYNC", b"?", b"-1"])].concat()).await?;
        }
        self.say(sink, &["PING"]).await?;
        let pong = self.reply(inbox).await?;
        let goes_on = ["+", "-NOAUTH", "-NOPERM", "-ERR operation not permitted"];
        if !goes_on.iter().any(|known| pong.starts_with(known)) {
            return Err(End::early(format!("PING: {pong}")));
        }
        let mut commands: Vec<Vec<&str>> = Vec::new();
        if let Some((user, password)) = &self.setup.auth {
            commands.push(["AUTH"].into_iter().chain(user.as_deref()).chain([password.as_str()]).collect());
        }
        commands.push(vec!["REPLCONF", "listening-port", "6379"]);
        if let Some(ip) = &self.setup.ip_address {
            commands.push(vec!["REPLCONF", "ip-address", ip]);
        }
        match (self.setup.age, self.setup.eof) {
            (Age::V28, true) => commands.push(vec!["REPLCONF", "capa", "eof"]),
            (Age::V28, false) => {}
            (_, true) => commands.push(vec!["REPLCONF", "capa", "eof", "capa", "psync2"]),
            (_, false) => commands.push(vec!["REPLCONF", "capa", "psync2"]),
        }
        if self.setup.age == Age::V7 {
            commands.push(vec!["REPLCONF", "version", "8.0.1"]);
        }
        let pipelines = self.setup.age >= Age::V62;
        if pipelines {
            for command in &commands {
                self.say(sink, command).await?;
            }
        }
        for command in &commands {
            if !pipelines {
                self.say(sink, command).await?;
            }
            let reply = match self.reply(inbox).await {
                Ok(reply) => reply,
                Err(e) => {
                    if self.setup.age == Age::V62 {
                        self.forget();
                    }
                    return Err(End::early(format!("{}: {e}", command[0])));
                }
            };
            if command[0] == "AUTH" && reply.starts_with('-') {
                return Err(End::early(format!("AUTH: {reply}")));
            }
            if !(reply.starts_with("+OK") || reply.starts_with('-')) {
                self.log.violation(&self.name, format!("{} was answered {reply:?}", command.join(" ")));
            }
        }
        if !inbox.buffer.is_empty() {
            self.log.violation(&self.name, "more replies than commands");
        }
        Ok(())
    }

    /// The answer to PSYNC, behind any number of newlines.
    async fn answer(&self, inbox: &mut Inbox) -> io::Result<String> {
        loop {
            let line = inbox.line().await?;
            if line.is_empty() {
                continue;
            }
            let Some(line) = line.strip_suffix('\r') else {
                self.log.violation(&self.name, format!("a line without its end: {line:?}"));
                return Err(io::ErrorKind::InvalidData.into());
            };
            if line.len() > 253 {
                self.log.violation(&self.name, format!("a reply of {} bytes", line.len()));
            }
            return Ok(line.to_owned());
        }
    }

    async fn go_on(
        &self,
        asked: Option<Position>,
        rest: &str,
        inbox: Inbox,
        sink: Sink,
    ) -> Result<std::convert::Infallible, End> {
        let Some(asked) = asked else {
            self.log.violation(&self.name, "+CONTINUE for `PSYNC ? -1`: a real replica crashes");
            return Err(End::early("crashed"));
        };
        let named = rest.strip_prefix(' ').and_then(|id| {
            let id = id.parse::<ReplId>().ok().filter(|parsed| parsed.as_str() == id)?;
            Some(id)
        });
        let id = match (self.setup.age > Age::V28, named) {
            (true, Some(id)) => id,
            (false, None) if rest.is_empty() => asked.id,
            _ => {
                self.log.violation(&self.name, format!("malformed reply \"+CONTINUE{rest}\""));
                return Err(End::early("malformed +CONTINUE"));
            }
        };
        if !self.truth.on_line(&asked, id) {
            let what = format!("+CONTINUE {} is no sequel of {}", id.short(), short(&asked));
            self.log.violation(&self.name, what);
        }
        self.log.note(&self.name, format!("goes on from {} under {}", asked.offset, id.short()));
        self.state.borrow_mut().counts.partials += 1;
        let position = Position::new(id, asked.offset);
        self.told(Taken::WentOn(position));
        self.stream(position, inbox, sink, false).await
    }

    // ---- a full resync ----

    async fn load(
        &self,
        said: Option<Position>,
        mut inbox: Inbox,
        mut sink: Sink,
    ) -> Result<std::convert::Infallible, End> {
        let header = self.answer(&mut inbox).await?;
        if header.starts_with('$') {
            self.state.borrow_mut().counts.begun += 1;
            self.log.note(&self.name, "is being sent a payload");
        }
        if self.setup.habit == Some(Habit::Hangs) && !self.calm.get() {
            let wakes = Instant::now() + Duration::from_secs(100);
            while Instant::now() < wakes && !self.calm.get() {
                sleep(Duration::from_secs(1)).await;
            }
            return Err(End::early("woke up"));
        }
        let (payload, eof) = if let Some(mark) = header.strip_prefix("$EOF:") {
            if !self.setup.eof {
                self.log.violation(&self.name, "a $EOF payload for a replica without capa eof");
            }
            if mark.len() != 40 {
                self.log.violation(&self.name, format!("a mark of {} bytes", mark.len()));
            }
            (self.until_mark(mark.as_bytes(), &mut inbox).await?, true)
        } else if let Some(len) = header.strip_prefix('$').and_then(|len| len.parse::<usize>().ok()) {
            while inbox.buffer.len() < len {
                inbox.more().await?;
            }
            (inbox.buffer.drain(..len).collect(), false)
        } else {
            if !header.starts_with('-') {
                self.log.violation(&self.name, format!("a payload's header was {header:?}"));
            }
            return Err(End::early(format!("instead of a payload: {header}")));
        };
        let has = match rdb::read(&payload) {
            Ok(position) => position,
            Err(why) => {
                self.log.violation(&self.name, format!("loads a broken RDB and exits: {why}"));
                return Err(End::early("exited"));
            }
        };
        let position = said.unwrap_or(has);
        if has.offset != position.offset || !self.truth.on_line(&has, position.id) {
            let what = format!("was told {} and got a snapshot of {}", short(&position), short(&has));
            self.log.violation(&self.name, what);
        }
        self.spend_time_loading(eof, &mut inbox, &mut sink).await?;
        {
            let mut state = self.state.borrow_mut();
            state.counts.fulls += 1;
            state.data = Some(position);
            state.cached = Some(position);
            state.half.clear();
        }
        self.log.note(&self.name, format!("loaded {} ({} bytes)", short(&position), payload.len()));
        self.told(Taken::Loaded(position));
        let Some(_) = said else {
            // After SYNC it never acknowledges and has no position: it stays until the link breaks.
            self.forget();
            return self.stream(position, inbox, sink, false).await;
        };
        if eof || self.setup.age >= Age::V62 {
            self.acknowledge(position.offset, &mut sink).await?;
        }
        self.stream(position, inbox, sink, true).await
    }

    /// Reads as a replica does that loads from a temporary file: only the last bytes of each read are
    /// compared with the mark, so anything glued behind it hides it for ever.
    async fn until_mark(&self, mark: &[u8], inbox: &mut Inbox) -> Result<Vec<u8>, End> {
        loop {
            if inbox.buffer.ends_with(mark) {
                let mut payload = std::mem::take(&mut inbox.buffer);
                payload.truncate(payload.len() - mark.len());
                return Ok(payload);
            }
            if inbox.buffer.windows(mark.len().max(1)).rev().take(20_000).any(|w| w == mark) {
                self.log.violation(&self.name, "bytes were glued behind the mark");
            }
            inbox.more().await?;
        }
    }

    async fn spend_time_loading(&self, eof: bool, inbox: &mut Inbox, sink: &mut Sink) -> Result<(), End> {
        let most = self.setup.load.as_millis() as u64;
        let end = Instant::now() + self.state.borrow_mut().chance.millis(0, most);
        let mut newline = Instant::now() + Duration::from_millis(400);
        while Instant::now() < end {
            let until = end.min(newline);
            if eof {
                if let Ok(read) = timeout_at(until, inbox.more()).await {
                    read?;
                    self.log.violation(&self.name, "bytes came between the mark and the first ACK");
                    return Err(End::early("lost bytes"));
                }
            } else {
                tokio::time::sleep_until(until).await;
            }
            if newline <= Instant::now() {
                sink.write_all(b"\n").await?;
                newline += Duration::from_secs(1);
            }
        }
        Ok(())
    }

    // ---- the live stream ----

    async fn acknowledge(&self, offset: Offset, sink: &mut Sink) -> io::Result<()> {
        match self.setup.habit {
            Some(Habit::Talkative) => self.say(sink, &["PING"]).await?,
            Some(Habit::Deaf) => sleep(Duration::from_secs(1_000_000)).await,
            _ => {}
        }
        let ahead = u64::from(self.setup.habit == Some(Habit::AcksAhead));
        let ack = array(&[b"REPLCONF", b"ACK", offset.forward(ahead).to_string().as_bytes()]);
        timeout(REPL_TIMEOUT, sink.write_all(&ack)).await?
    }

    async fn stream(
        &self,
        from: Position,
        mut inbox: Inbox,
        mut sink: Sink,
        acknowledges: bool,
    ) -> Result<std::convert::Infallible, End> {
        let raw = self.setup.age == Age::V28;
        let acknowledges = acknowledges || self.state.borrow().cached.is_some();
        let mut stream = Stream { line: from.id, received: from.offset, applied: from.offset, ..Default::default() };
        {
            let mut state = self.state.borrow_mut();
            stream.commands.feed(&std::mem::take(&mut state.half));
            state.online = true;
            state.data = Some(from);
            if acknowledges {
                state.cached = Some(from);
            }
        }
        let lost = |e: io::Error| End::Lost(e.to_string());
        let mut tick = Instant::now() + self.tick();
        let mut heard = Instant::now();
        loop {
            let arrived = std::mem::take(&mut inbox.buffer);
            if !arrived.is_empty() {
                heard = Instant::now();
                let getacks = self.take_in(&mut stream, &arrived, raw);
                for offset in getacks {
                    if acknowledges {
                        self.acknowledge(offset, &mut sink).await.map_err(lost)?;
                    }
                }
            }
            if heard.elapsed() > REPL_TIMEOUT {
                return Err(End::Lost("silent master".into()));
            }
            match timeout_at(tick, inbox.more()).await {
                Ok(read) => read.map_err(lost)?,
                Err(_) => {
                    tick += Duration::from_secs(1);
                    if acknowledges {
                        let offset = if raw { stream.received } else { stream.applied };
                        self.acknowledge(offset, &mut sink).await.map_err(lost)?;
                    }
                }
            }
        }
    }

    /// Compares, counts and applies; gives the acknowledgements asked for.
    fn take_in(&self, stream: &mut Stream, arrived: &[u8], raw: bool) -> Vec<Offset> {
        if let Err(why) = self.truth.check(stream.line, stream.received, arrived) {
            self.log.violation(&self.name, why);
        }
        stream.received = stream.received.forward(arrived.len() as u64);
        stream.commands.feed(arrived);
        let mut getacks = Vec::new();
        loop {
            let args = match stream.commands.next() {
                Ok(Some((Item::Command(args), _))) => args,
                Ok(Some((Item::Newline, _))) => {
                    self.log.violation(&self.name, "a newline in the stream");
                    continue;
                }
                Ok(None) => break,
                Err(why) => {
                    self.log.violation(&self.name, format!("cannot parse the stream: {why}"));
                    break;
                }
            };
            let now = stream.received.back(stream.commands.unread() as u64);
            if is(args.first(), "REPLCONF") && is(args.get(1), "GETACK") {
                getacks.push(if raw { now } else { stream.applied });
            }
            stream.open |= is(args.first(), "MULTI");
            stream.open &= !is(args.first(), "EXEC");
            if !stream.open {
                stream.applied = now;
            }
        }
        let mut state = self.state.borrow_mut();
        let has = Position::new(stream.line, if raw { stream.received } else { stream.applied });
        state.data = Some(has);
        if state.cached.is_some() {
            state.cached = Some(has);
        }
        if raw {
            state.half = stream.commands.rest().to_vec();
        }
        drop(state);
        self.told(Taken::Applied(has.offset));
        getacks
    }
}

/// Answers whoever asks at its own port.
async fn answer_info(network: SimNetwork, priority: u32) -> io::Result<()> {
    let listener = network.bind(6379).await?;
    loop {
        let (mut link, _) = listener.take().await?;
        tokio::task::spawn_local(async move {
            let (mut commands, mut part) = (Commands::default(), [0; 1024]);
            while let Ok(read @ 1..) = link.source.read(&mut part).await {
                commands.feed(&part[..read]);
                while let Ok(Some((Item::Command(args), _))) = commands.next() {
                    let text = format!("role:slave\r\nslave_priority:{priority}\r\n");
                    let reply = match is(args.first(), "INFO") {
                        true => format!("${}\r\n{text}\r\n", text.len()),
                        false => "+OK\r\n".to_owned(),
                    };
                    let _ = link.sink.write_all(reply.as_bytes()).await;
                }
            }
        });
    }
}

struct Stream {
    line: ReplId,
    /// Bytes that arrived.
    received: Offset,
    /// The end of the last whole command outside of a transaction.
    applied: Offset,
    /// Within MULTI.
    open: bool,
    commands: Commands,
}

impl Default for Stream {
    fn default() -> Self {
        let line = ReplId::from_ascii(&[b'0'; 40]).expect("forty digits");
        Self { line, received: Offset::ZERO, applied: Offset::ZERO, open: false, commands: Commands::default() }
    }
}

fn parse_fullresync(rest: &str) -> Option<Position> {
    let (id, offset) = rest.split_once(' ')?;
    let parsed = id.parse::<ReplId>().ok().filter(|p| p.as_str() == id)?;
    Some(Position::new(parsed, Offset::new(offset.parse().ok()?)))
}
