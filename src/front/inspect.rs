//! Which of the replies that pass answer INFO or ROLE, and what passes instead of those.
//!
//! Replies come in the order of their commands, so counting both finds the one that belongs to the other. Each
//! direction of a connection has half of the machine, because each runs in a task of its own; between them lies the
//! `Ledger`, in which the commands' half writes before the commands go out, so that no reply can be there first:
//!
//! ```text
//!   client ── commands ──▶ Asking ──────────────────────────▶ upstream
//!                             │ how many; which are special
//!                             ▼
//!                          Ledger
//!                             │
//!                             ▼
//!   client ◀────────────── Answering ◀────────── replies ── upstream
//! ```
//!
//! Bytes that are not an INFO's or a ROLE's pass as they came and at once; of those two the whole reply is awaited,
//! up to `REPLY_MAX`. Whenever the count might be wrong (a subscription, `MONITOR`, `CLIENT REPLY`, bytes that make no
//! sense) the machine gives up and everything passes untouched from there on: a list that is not rewritten is better
//! than a wrong byte.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};

use crate::label;
use crate::wire::resp::{self, FrameError};
use crate::wire::skip::Skipper;
use crate::wire::watch::{Notable, Watcher};

/// Longest reply to INFO or ROLE that is waited for.
const REPLY_MAX: usize = 1 << 20;
/// Most special commands that are asked and not answered.
const PENDING_MAX: usize = 4096;
/// Longest header of an EXEC's reply: a star, a count and the line end.
const HEADER_MAX: usize = 24;

label! {
    /// Whose reply was rewritten.
    pub enum Rewrite {
        /// INFO's.
        Info = "info",
        /// ROLE's.
        Role = "role",
    }
}

label! {
    /// Why replies pass that nobody looks at any more.
    pub enum GivenUp {
        /// The client wants replies that answer no command: a subscription, `MONITOR`, `CLIENT REPLY`, a replication link.
        Mode = "mode",
        /// What came is no command or no reply, or answers nobody.
        Protocol = "protocol",
        /// More INFO, ROLE and EXEC were asked at once than are remembered.
        Pipeline = "pipeline",
        /// A reply to INFO or ROLE was longer than is waited for. Only that one passed untouched.
        TooLong = "too_long",
    }
}

/// A reply to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// INFO's, and whether it asked for our own section by name.
    Info {
        /// By name.
        psyncd: bool,
    },
    /// ROLE's.
    Role,
}

/// What is special about the reply of a certain number.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Special {
    Asked(Asked),
    /// An EXEC's, of a transaction of so many commands, with these among them.
    Exec {
        commands: u64,
        asked: Vec<(u64, Asked)>,
    },
    /// There is no counting from here on.
    End(GivenUp),
}

/// What one half tells the other.
#[derive(Debug)]
struct Ledger {
    /// Commands that were asked and are answered one by one.
    asked: AtomicU64,
    /// The number of the first special one that has not been answered; `u64::MAX` without one.
    next: AtomicU64,
    /// Special ones by number, in order. Held for an instruction or two.
    specials: Mutex<VecDeque<(u64, Special)>>,
    /// Nobody looks any more.
    over: AtomicBool,
}

impl Ledger {
    fn specials(&self) -> std::sync::MutexGuard<'_, VecDeque<(u64, Special)>> {
        self.specials.lock().expect("no one panics holding it")
    }

    fn note(&self, number: u64, special: Special) {
        let mut specials = self.specials();
        specials.push_back((number, special));
        self.next.store(specials[0].0, Ordering::Release);
    }

    /// Removes the first.
    fn take(&self) -> Option<Special> {
        let mut specials = self.specials();
        let taken = specials.pop_front();
        self.next.store(specials.front().map_or(u64::MAX, |(number, _)| *number), Ordering::Release);
        taken.map(|(_, special)| special)
    }
}

/// The two halves for one connection, of which nothing has been counted yet.
pub fn halves() -> (Asking, Answering) {
    let ledger = Arc::new(Ledger {
        asked: AtomicU64::new(0),
        next: AtomicU64::new(u64::MAX),
        specials: Mutex::default(),
        over: AtomicBool::new(false),
    });
    let asking = Asking {
        ledger: Arc::clone(&ledger),
        watcher: Watcher::default(),
        asked: 0,
        transaction: None,
        promotion: false,
        sentinel: false,
    };
    let answering = Answering {
        ledger,
        skipper: Skipper::default(),
        answered: 0,
        transaction: None,
        held: BytesMut::new(),
        over: None,
    };
    (asking, answering)
}

/// The half that sees the commands. It changes none.
#[derive(Debug)]
pub struct Asking {
    ledger: Arc<Ledger>,
    watcher: Watcher,
    asked: u64,
    transaction: Option<Queued>,
    promotion: bool,
    sentinel: bool,
}

/// A transaction that is being told.
#[derive(Debug, Default)]
struct Queued {
    commands: u64,
    asked: Vec<(u64, Asked)>,
}

impl Asking {
    /// Looks at bytes that are about to be sent, before they are.
    pub fn see(&mut self, mut data: &[u8]) {
        if self.ledger.over.load(Ordering::Relaxed) {
            return;
        }
        while !data.is_empty() {
            let Ok(watched) = self.watcher.watch(data) else { return self.end(GivenUp::Protocol) };
            data = &data[watched.bytes..];
            self.asked += watched.commands;
            if let Some(queued) = &mut self.transaction {
                queued.commands += watched.commands;
            }
            if let Some(notable) = watched.notable
                && !self.note(notable)
            {
                return;
            }
        }
        self.ledger.asked.store(self.asked, Ordering::Release);
    }

    /// Whether what was seen since the last call tells the server to become a master.
    pub fn take_promotion(&mut self) -> bool {
        std::mem::take(&mut self.promotion)
    }

    /// Whether who asks has ever named itself as a Sentinel does.
    pub fn is_a_sentinel(&self) -> bool {
        self.sentinel
    }

    /// Notes a command that has just been counted. Returns whether to go on.
    fn note(&mut self, notable: Notable) -> bool {
        let number = self.asked - 1;
        let asked = match notable {
            Notable::Info { psyncd } => Asked::Info { psyncd },
            Notable::Role => Asked::Role,
            Notable::Promotion => {
                self.promotion = true;
                return true;
            }
            Notable::Sentinel => {
                self.sentinel = true;
                return true;
            }
            Notable::Multi => {
                match &mut self.transaction {
                    // One in another is refused, and not part of it.
                    Some(queued) => queued.commands -= 1,
                    None => self.transaction = Some(Queued::default()),
                }
                return true;
            }
            Notable::Apart => {
                if let Some(queued) = &mut self.transaction {
                    queued.commands -= 1;
                }
                return true;
            }
            Notable::Discard => {
                self.transaction = None;
                return true;
            }
            Notable::Exec => {
                let Some(Queued { commands, asked }) = self.transaction.take() else { return true };
                // It was counted itself.
                let special = Special::Exec { commands: commands - 1, asked };
                return match &special {
                    Special::Exec { asked, .. } if asked.is_empty() => true,
                    _ => self.special(number, special),
                };
            }
            Notable::Mode | Notable::Replicate => {
                // It is answered in a way of its own already.
                self.asked = number;
                self.end(GivenUp::Mode);
                return false;
            }
        };
        if let Some(queued) = &mut self.transaction {
            if queued.asked.len() == PENDING_MAX {
                self.end(GivenUp::Pipeline);
                return false;
            }
            queued.asked.push((queued.commands - 1, asked));
        }
        // Also in a transaction: there may be none, if MULTI was refused.
        self.special(number, Special::Asked(asked))
    }

    fn special(&mut self, number: u64, special: Special) -> bool {
        if self.ledger.specials().len() >= PENDING_MAX {
            self.end(GivenUp::Pipeline);
            return false;
        }
        self.ledger.note(number, special);
        true
    }

    /// No more is counted. What has been counted is answered as ever.
    fn end(&mut self, why: GivenUp) {
        self.ledger.over.store(true, Ordering::Relaxed);
        self.ledger.note(self.asked, Special::End(why));
        self.ledger.asked.store(self.asked, Ordering::Release);
    }
}

/// The half that sees the replies.
#[derive(Debug)]
pub struct Answering {
    ledger: Arc<Ledger>,
    skipper: Skipper,
    answered: u64,
    transaction: Option<Executed>,
    /// The front of a reply that is awaited whole.
    held: BytesMut,
    over: Option<GivenUp>,
}

/// The reply to an EXEC that is passing.
#[derive(Debug)]
struct Executed {
    commands: u64,
    passed: u64,
    /// By place, the next one last.
    asked: Vec<(u64, Asked)>,
}

/// Who knows what to say instead.
pub trait Rewriter {
    /// What to send instead of `reply`, which is whole; `None` to send it as it is.
    fn rewrite(&self, asked: Asked, reply: &[u8]) -> Option<Bytes>;

    /// The counting ended, or one reply was too long for it.
    fn gave_up(&self, why: GivenUp);
}

/// What to do at the place reached.
enum Turn {
    /// Go on.
    On,
    /// More is needed; nothing behind here may pass.
    Hold,
}

impl Answering {
    /// Takes the bytes received in `buffer` and leaves in it those to pass on now.
    pub fn pass(&mut self, buffer: &mut BytesMut, rewriter: &impl Rewriter) {
        if self.over.is_some() {
            return;
        }
        if !self.held.is_empty() {
            self.held.extend_from_slice(buffer);
            std::mem::swap(&mut self.held, buffer);
            self.held.clear();
        }
        let mut passage = Passage { from: 0, at: 0, out: None };
        while passage.at < buffer.len() && self.over.is_none() {
            let quiet = self.quiet();
            match self.skipper.skip(&buffer[passage.at..], quiet) {
                Ok(skipped) => {
                    passage.at += skipped.bytes;
                    self.count(skipped.replies);
                }
                Err(_) => self.give_up(GivenUp::Protocol, rewriter),
            }
            // What is left begins a reply that is special, or that nobody asked for.
            if passage.at < buffer.len()
                && self.over.is_none()
                && self.quiet() == 0
                && let Turn::Hold = self.look(buffer, &mut passage, rewriter)
            {
                self.held = buffer.split_off(passage.at);
                break;
            }
        }
        if let Some(mut out) = passage.out {
            out.extend_from_slice(&buffer[passage.from..]);
            *buffer = out;
        }
    }

    /// What was held back, when no more comes.
    pub fn finish(&mut self) -> BytesMut {
        std::mem::take(&mut self.held)
    }

    /// How many replies may pass unseen.
    fn quiet(&self) -> u64 {
        match &self.transaction {
            Some(executed) => executed.asked.last().map_or(executed.commands, |(at, _)| *at) - executed.passed,
            None => {
                let asked = self.ledger.asked.load(Ordering::Acquire);
                asked.min(self.ledger.next.load(Ordering::Acquire)).saturating_sub(self.answered)
            }
        }
    }

    /// So many replies have passed.
    fn count(&mut self, replies: u64) {
        match &mut self.transaction {
            Some(executed) => {
                executed.passed += replies;
                if executed.passed == executed.commands {
                    self.transaction = None;
                    self.answered += 1;
                }
            }
            None => self.answered += replies,
        }
    }

    /// Looks at the reply that begins at the place reached.
    fn look(&mut self, buffer: &[u8], passage: &mut Passage, rewriter: &impl Rewriter) -> Turn {
        if let Some(executed) = &self.transaction {
            let Some((_, asked)) = executed.asked.last().copied() else { return Turn::On };
            return self.answer(asked, buffer, passage, rewriter);
        }
        if self.ledger.next.load(Ordering::Acquire) != self.answered {
            self.give_up(GivenUp::Protocol, rewriter);
            return Turn::On;
        }
        let special = self.ledger.specials().front().map(|(_, special)| special.clone());
        match special {
            Some(Special::Asked(asked)) => self.answer(asked, buffer, passage, rewriter),
            Some(Special::Exec { commands, asked }) => self.exec(commands, asked, &buffer[passage.at..], passage),
            Some(Special::End(why)) => {
                self.give_up(why, rewriter);
                Turn::On
            }
            None => {
                self.give_up(GivenUp::Protocol, rewriter);
                Turn::On
            }
        }
    }

    fn answer(&mut self, asked: Asked, buffer: &[u8], passage: &mut Passage, rewriter: &impl Rewriter) -> Turn {
        let reply = &buffer[passage.at..];
        // `+QUEUED`, an error, or nothing one could be asked for.
        let is_answer = matches!((asked, reply[0]), (Asked::Info { .. }, b'$' | b'=') | (Asked::Role, b'*'));
        if !is_answer {
            self.took();
            return Turn::On;
        }
        match resp::reply_len(reply, REPLY_MAX) {
            Ok(Some(len)) => {
                self.took();
                match rewriter.rewrite(asked, &reply[..len]) {
                    Some(instead) => passage.replace(buffer, len, &instead),
                    None => passage.at += len,
                }
                self.count(1);
                Turn::On
            }
            Ok(None) => Turn::Hold,
            Err(FrameError::TooBigFrame) => {
                self.took();
                rewriter.gave_up(GivenUp::TooLong);
                Turn::On
            }
            Err(_) => {
                self.give_up(GivenUp::Protocol, rewriter);
                Turn::On
            }
        }
    }

    /// The header of the reply to an EXEC, behind which its elements come one by one.
    fn exec(&mut self, commands: u64, mut asked: Vec<(u64, Asked)>, reply: &[u8], passage: &mut Passage) -> Turn {
        if reply[0] == b'*' {
            let header = &reply[..reply.len().min(HEADER_MAX)];
            match header.iter().position(|&byte| byte == b'\n') {
                None if reply.len() < HEADER_MAX => return Turn::Hold,
                // Of another length it is not the transaction that was counted; null is that of one that failed.
                Some(lf) if &header[..=lf] == format!("*{commands}\r\n").as_bytes() => {
                    passage.at += lf + 1;
                    asked.reverse();
                    self.ledger.take();
                    self.transaction = Some(Executed { commands, passed: 0, asked });
                    return Turn::On;
                }
                Some(_) | None => {}
            }
        }
        self.ledger.take();
        Turn::On
    }

    /// The special reply at the place reached is none any more.
    fn took(&mut self) {
        match &mut self.transaction {
            Some(executed) => drop(executed.asked.pop()),
            None => drop(self.ledger.take()),
        }
    }

    fn give_up(&mut self, why: GivenUp, rewriter: &impl Rewriter) {
        self.ledger.over.store(true, Ordering::Relaxed);
        self.ledger.specials().clear();
        self.over = Some(why);
        rewriter.gave_up(why);
    }
}

/// What has become of a buffer so far.
struct Passage {
    /// What lies before is in `out`, or was replaced.
    from: usize,
    /// What lies before is judged.
    at: usize,
    /// Nothing as long as nothing was replaced.
    out: Option<BytesMut>,
}

impl Passage {
    /// Puts `instead` in the place of the `len` bytes at the place reached.
    fn replace(&mut self, buffer: &[u8], len: usize, instead: &[u8]) {
        let out = self.out.get_or_insert_default();
        out.extend_from_slice(&buffer[self.from..self.at]);
        out.extend_from_slice(instead);
        self.at += len;
        self.from = self.at;
    }
}

#[cfg(test)]
mod tests;
