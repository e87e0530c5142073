//! One link to the synthetic master: the dialogue, a snapshot, the stream.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;

use super::super::stream::{Writer, clock_ns};
use super::super::talk;
use super::{Framing, MARK, PIECE, REPLID, Shared, TIMES, TURN};

pub(super) struct Link {
    pub(super) socket: TcpStream,
    pub(super) heard: Vec<u8>,
    /// Made and not yet written.
    pub(super) pending: Vec<u8>,
    pub(super) written: usize,
    pub(super) blocked: bool,
    pub(super) wants: Wants,
    pub(super) marks: bool,
    pub(super) stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    Stream,
    SnapshotOnly,
}

pub(super) enum Stage {
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

pub(super) enum Written {
    Room,
    Blocked,
}

impl Link {
    pub(super) fn new(socket: TcpStream) -> Self {
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

    pub(super) fn at(&self) -> Option<u64> {
        match self.stage {
            Stage::Streaming { at, .. } => Some(at),
            Stage::Talking | Stage::Snapshot { .. } | Stage::Silent { .. } | Stage::Leaving | Stage::Left => None,
        }
    }

    pub(super) fn has_work(&self, limit: u64) -> bool {
        match self.stage {
            _ if !self.pending.is_empty() => true,
            Stage::Talking | Stage::Silent { .. } | Stage::Left => false,
            Stage::Snapshot { .. } | Stage::Leaving => true,
            Stage::Streaming { at, .. } => at < limit,
        }
    }

    pub(super) fn hear(&mut self, shared: &Shared, framing: Framing) -> io::Result<()> {
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

    pub(super) fn answer(&mut self, args: &[&str], shared: &Shared, framing: Framing) {
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
            ["psync", id, next] => match next.parse() {
                Ok(next) => self.psync(id, next, head, shared, framing),
                // As from 6.2 on (replication.c:masterTryPartialResync).
                Err(_) => self.say("-ERR value is not an integer or out of range\r\n"),
            },
            [] => {}
            _ => self.say("-ERR unknown command\r\n"),
        }
    }

    pub(super) fn say(&mut self, text: &str) {
        self.pending.extend_from_slice(text.as_bytes());
    }

    pub(super) fn acknowledged(&mut self, offset: u64, shared: &Shared) {
        shared.acks.fetch_add(1, Ordering::Relaxed);
        shared.acked.fetch_max(offset, Ordering::Relaxed);
        if let Stage::Silent { then } = self.stage {
            self.stream(then, shared);
        }
    }

    pub(super) fn psync(&mut self, id: &str, next: i64, head: u64, shared: &Shared, framing: Framing) {
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

    pub(super) fn framing(&self, framing: Framing) -> Framing {
        if self.marks { framing } else { Framing::Length }
    }

    pub(super) fn stream(&mut self, at: u64, shared: &Shared) {
        let slot_bytes = shared.layout.slot_bytes();
        let seq = at / slot_bytes;
        let time = shared.times[seq as usize % TIMES].load(Ordering::Relaxed);
        let time = (!at.is_multiple_of(slot_bytes)).then_some(time);
        self.stage = Stage::Streaming { at, writer: Box::new(Writer::new(&shared.layout, seq, time)) };
        shared.streaming.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn write(&mut self, shared: &Shared, framing: Framing, limit: u64) -> io::Result<Written> {
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
