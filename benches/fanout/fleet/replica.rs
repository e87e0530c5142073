//! One synthetic replica: what it says, what it expects, and how it judges what it hears.

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::super::master::Shared as MasterShared;
use super::super::poll::{Poll, Want};
use super::super::stream::{Checker, Wrong, clock_ns};
use super::super::talk;
use super::{Check, LOOK, Orders, RETRY, Row, Snapshot, Stage, View};

pub(super) struct Replica {
    pub(super) socket: Option<TcpStream>,
    /// When it may dial again; `None` while it stays away.
    pub(super) dial_at: Option<Instant>,
    pub(super) asked: Instant,
    pub(super) heard: Vec<u8>,
    pub(super) step: Step,
    pub(super) id: Option<String>,
    pub(super) at: u64,
    pub(super) checker: Checker,
    pub(super) reads: u32,
    pub(super) pace: Pace,
    /// What a slow one may read now.
    pub(super) allowance: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    Eager,
    Slow,
}

pub(super) enum Step {
    /// So many replies are to come before PSYNC.
    Greeting(usize),
    /// PSYNC was sent.
    Asked,
    /// A header has to come.
    Header,
    Counted {
        done: u64,
        len: u64,
    },
    /// The last bytes are kept back: they may be the mark.
    Marked {
        done: u64,
        mark: Vec<u8>,
        tail: Vec<u8>,
    },
    Stream,
}

/// What a replica needs to judge what it hears.
pub(super) struct Hearing<'a> {
    pub(super) orders: &'a Orders,
    pub(super) master: &'a MasterShared,
    pub(super) view: &'a View,
    pub(super) row: &'a Row,
    pub(super) delays: Option<&'a mut Vec<u64>>,
}

/// What is done with the bytes of a read.
#[derive(Clone, Copy)]
pub(super) enum Look {
    Closely,
    Away,
}

pub(super) enum Heard {
    Fine,
    /// The device cannot serve now.
    NotNow,
}

impl Replica {
    pub(super) fn online(&self) -> bool {
        matches!(self.step, Step::Stream) && self.socket.is_some()
    }

    pub(super) fn stage(&self) -> Stage {
        match self.step {
            Step::Greeting(_) | Step::Asked | Step::Header => Stage::Greeting,
            Step::Counted { .. } | Step::Marked { .. } => Stage::Loading,
            Step::Stream => Stage::Online,
        }
    }

    pub(super) fn dial(&mut self, orders: &Orders, poll: &Poll, index: usize) -> io::Result<()> {
        self.heard.clear();
        self.step = Step::Greeting(3);
        let greeting: Vec<u8> = [
            talk::command(&["PING"]),
            talk::command(&["REPLCONF", "listening-port", &(20_000 + index).to_string()]),
            talk::command(&["REPLCONF", "capa", "eof", "capa", "psync2"]),
        ]
        .concat();
        let dialed = TcpStream::connect(orders.address).and_then(|mut socket| {
            socket.set_nodelay(true)?;
            socket.write_all(&greeting)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        match dialed {
            Ok(socket) => {
                poll.add(&socket, index as u64, Want::Read)?;
                self.socket = Some(socket);
                self.asked = Instant::now();
            }
            Err(_) => self.lose(),
        }
        Ok(())
    }

    /// Tries again soon.
    pub(super) fn lose(&mut self) {
        self.socket = None;
        self.step = Step::Greeting(0);
        self.dial_at = Some(Instant::now() + RETRY);
    }

    pub(super) fn take(&mut self, mut bytes: &[u8], hearing: &mut Hearing) -> Result<Heard, Wrong> {
        while !bytes.is_empty() {
            match &mut self.step {
                Step::Greeting(_) | Step::Asked | Step::Header => {
                    let end = bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |end| end + 1);
                    self.heard.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end..];
                    while let Some(line) = talk::take_line(&mut self.heard) {
                        match self.line(&line, hearing) {
                            Heard::Fine => {}
                            Heard::NotNow => return Ok(Heard::NotNow),
                        }
                    }
                }
                Step::Counted { done, len } => {
                    let take = bytes.len().min((*len - *done) as usize);
                    snapshot(hearing, *done, &bytes[..take])?;
                    *done += take as u64;
                    bytes = &bytes[take..];
                    if *done == *len {
                        self.loaded(hearing)?;
                    }
                }
                Step::Marked { done, mark, tail } => {
                    tail.extend_from_slice(bytes);
                    bytes = &[];
                    let body = tail.len().saturating_sub(mark.len());
                    snapshot(hearing, *done, &tail[..body])?;
                    *done += body as u64;
                    tail.drain(..body);
                    if tail == mark {
                        self.loaded(hearing)?;
                    }
                }
                Step::Stream => {
                    self.stream(bytes, hearing)?;
                    bytes = &[];
                }
            }
        }
        Ok(Heard::Fine)
    }

    pub(super) fn line(&mut self, line: &str, hearing: &Hearing) -> Heard {
        let words: Vec<&str> = line.split(' ').collect();
        match (&mut self.step, &words[..]) {
            (Step::Greeting(left), _) if line.starts_with('+') => {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.step = Step::Asked;
                    let ask = talk::psync(self.id.as_deref().map(|id| (id, self.at)));
                    if let Some(socket) = &mut self.socket {
                        // A failure shows when the socket is read.
                        let _ = socket.write_all(&ask);
                    }
                }
                Heard::Fine
            }
            (Step::Asked | Step::Header, [""]) => Heard::Fine,
            (Step::Asked, ["+FULLRESYNC", id, offset]) => {
                self.id = Some((*id).to_owned());
                self.at = offset.parse().unwrap_or(0);
                self.step = Step::Header;
                Heard::Fine
            }
            (Step::Asked, ["+CONTINUE", ..]) if self.id.is_some() => {
                hearing.row.partials.fetch_add(1, Ordering::Relaxed);
                self.step = Step::Stream;
                Heard::Fine
            }
            (Step::Header, [header]) => {
                self.step = match (header.strip_prefix("$EOF:"), header.get(1..).and_then(|len| len.parse().ok())) {
                    (Some(mark), _) => Step::Marked { done: 0, mark: mark.as_bytes().to_vec(), tail: Vec::new() },
                    (None, Some(len)) => Step::Counted { done: 0, len },
                    (None, None) => return Heard::NotNow,
                };
                Heard::Fine
            }
            _ => Heard::NotNow,
        }
    }

    pub(super) fn loaded(&mut self, hearing: &Hearing) -> Result<(), Wrong> {
        let done = match &self.step {
            Step::Counted { done, .. } | Step::Marked { done, .. } => *done,
            Step::Greeting(_) | Step::Asked | Step::Header | Step::Stream => 0,
        };
        if hearing.orders.snapshot == Snapshot::Verbatim && done != hearing.master.rdb.len() {
            return Err(Wrong { offset: done, what: "the length of the snapshot" });
        }
        hearing.row.fulls.fetch_add(1, Ordering::Relaxed);
        hearing.row.loaded_ns.store(self.asked.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.step = Step::Stream;
        if let Some(socket) = &mut self.socket {
            let _ = socket.write_all(&talk::ack(self.at));
        }
        Ok(())
    }

    pub(super) fn stream(&mut self, bytes: &[u8], hearing: &mut Hearing) -> Result<(), Wrong> {
        let layout = &hearing.master.layout;
        match (&mut hearing.delays, hearing.orders.check) {
            (Some(delays), _) => {
                let now_ns = clock_ns();
                self.checker.every(layout, self.at, bytes, |sent| delays.push(now_ns.saturating_sub(sent)))?;
            }
            (None, Check::Every) => self.checker.every(layout, self.at, bytes, |_| {})?,
            (None, Check::Spot) => self.checker.spot(layout, self.at, bytes)?,
        }
        self.advance(bytes.len(), hearing);
        Ok(())
    }

    pub(super) fn advance(&mut self, n: usize, hearing: &Hearing) {
        self.at += n as u64;
        hearing.view.delivered.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Whether the next read is looked at.
    pub(super) fn looks(&mut self, check: Check, timing: bool) -> Look {
        self.reads = self.reads.wrapping_add(1);
        let spared = check == Check::Spot && !timing && self.online() && !self.reads.is_multiple_of(LOOK);
        if spared { Look::Away } else { Look::Closely }
    }
}

fn snapshot(hearing: &Hearing, offset: u64, bytes: &[u8]) -> Result<(), Wrong> {
    hearing.view.snapshot_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    if hearing.orders.snapshot == Snapshot::Own {
        return Ok(());
    }
    match hearing.orders.check {
        Check::Every => hearing.master.rdb.check(offset, bytes),
        // The first bytes of each read tell whether the place is right.
        Check::Spot => hearing.master.rdb.check(offset, &bytes[..bytes.len().min(64)]),
    }
}
