//! The stream: an endless sequence of SET commands in which every byte is known from its offset alone, but for the
//! send time, which a check word vouches for.
//!
//! The stream is cut into slots of equal length, one command each. A period of [`PERIOD`] slots differs in key and
//! filler from slot to slot and then repeats; what does not repeat is the stamp at the front of each value:
//!
//! ```text
//!   *3 SET key:00017 $256   | sequence u64 | sent ns u64 | check u64 | filler ...  \r\n
//! ```
//!
//! All three little-endian. The first slot of every so many periods begins with a REPLCONF GETACK and has a value
//! shorter by as much, so that slots stay equally long and arithmetic stays trivial.

use std::sync::OnceLock;
use std::time::Instant;

/// Slots after which keys and filler repeat.
pub const PERIOD: u64 = 1024;
/// Bytes of a stamp.
const STAMP: usize = 24;
const GETACK: &[u8] = b"*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n";

/// Nanoseconds of this process's clock.
pub fn clock_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// The form of a stream.
pub struct Layout {
    period: Vec<u8>,
    /// Slot 0 of a period that asks for an acknowledgement.
    asking: Vec<u8>,
    slot_bytes: usize,
    stamp_at: usize,
    asking_stamp_at: usize,
    getack_periods: u64,
}

/// A byte that is not what the generator says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Where, in bytes of the stream (or of the RDB) before it.
    pub offset: u64,
    /// In what.
    pub what: &'static str,
}

impl Layout {
    /// Values of `value_bytes`, at least 64; a GETACK every `getack_periods` periods, never if 0.
    pub fn new(value_bytes: usize, getack_periods: u64) -> Self {
        let slot_bytes = frame_head(0, value_bytes).len() + value_bytes + 2;
        let mut noise = Noise(0x5eed);
        let mut period = Vec::with_capacity(slot_bytes * PERIOD as usize);
        for key in 0..PERIOD {
            set(&mut period, key, value_bytes, &mut noise);
        }
        let room = slot_bytes - GETACK.len();
        let shorter = (STAMP..room)
            .find(|value| frame_head(0, *value).len() + value + 2 == room)
            .expect("a value fits beside a GETACK");
        let mut asking = GETACK.to_vec();
        set(&mut asking, 0, shorter, &mut noise);
        assert_eq!((period.len(), asking.len()), (slot_bytes * PERIOD as usize, slot_bytes));
        let stamp_at = frame_head(0, value_bytes).len();
        let asking_stamp_at = GETACK.len() + frame_head(0, shorter).len();
        Self { period, asking, slot_bytes, stamp_at, asking_stamp_at, getack_periods }
    }

    /// Bytes of one command.
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes as u64
    }

    fn asks(&self, seq: u64) -> bool {
        self.getack_periods > 0 && seq.is_multiple_of(PERIOD * self.getack_periods)
    }

    /// The bytes of slot `seq` with a blank stamp, and where the stamp is.
    fn slot(&self, seq: u64) -> (&[u8], usize) {
        if self.asks(seq) {
            return (&self.asking, self.asking_stamp_at);
        }
        let at = (seq % PERIOD) as usize * self.slot_bytes;
        (&self.period[at..at + self.slot_bytes], self.stamp_at)
    }
}

fn frame_head(key: u64, value_bytes: usize) -> String {
    format!("*3\r\n$3\r\nSET\r\n$9\r\nkey:{key:05}\r\n${value_bytes}\r\n")
}

fn set(out: &mut Vec<u8>, key: u64, value_bytes: usize, noise: &mut Noise) {
    out.extend_from_slice(frame_head(key, value_bytes).as_bytes());
    out.extend((0..value_bytes).map(|_| noise.byte()));
    out.extend_from_slice(b"\r\n");
}

/// Bytes without a pattern, the same in every run.
pub struct Noise(pub u64);

impl Noise {
    /// The next one.
    pub fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 56) as u8
    }
}

fn check_word(seq: u64, sent_ns: u64) -> u64 {
    (seq ^ sent_ns.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ sent_ns
}

/// Writes the stream into a buffer of one period, slot by slot.
pub struct Writer {
    buffer: Vec<u8>,
    /// The first slot of the period in the buffer.
    base: u64,
    /// Slots before this one are stamped.
    stamped: u64,
}

impl Writer {
    /// Begins at slot `seq`, which carries the time `sent_ns` if it was sent before.
    pub fn new(layout: &Layout, seq: u64, sent_ns: Option<u64>) -> Self {
        let mut writer = Self { buffer: layout.period.clone(), base: seq - seq % PERIOD, stamped: seq };
        writer.turn(layout);
        if let Some(sent_ns) = sent_ns {
            writer.stamp(layout, seq, sent_ns);
        }
        writer
    }

    /// The stream from `offset` up to at most `limit`, as far as one period reaches. Slots not sent before are
    /// stamped with `now_ns`, and `stamped` is told so.
    pub fn bytes(
        &mut self,
        layout: &Layout,
        offset: u64,
        limit: u64,
        now_ns: u64,
        mut stamped: impl FnMut(u64),
    ) -> &[u8] {
        let slot_bytes = layout.slot_bytes();
        if offset / slot_bytes >= self.base + PERIOD {
            self.base += PERIOD;
            self.turn(layout);
        }
        let start = self.base * slot_bytes;
        let end = limit.min(start + self.buffer.len() as u64).max(offset);
        while self.stamped * slot_bytes < end {
            stamped(self.stamped);
            self.stamp(layout, self.stamped, now_ns);
        }
        &self.buffer[(offset - start) as usize..(end - start) as usize]
    }

    fn stamp(&mut self, layout: &Layout, seq: u64, sent_ns: u64) {
        let stamp_at = if layout.asks(seq) { layout.asking_stamp_at } else { layout.stamp_at };
        let at = (seq - self.base) as usize * layout.slot_bytes + stamp_at;
        let stamp = &mut self.buffer[at..at + STAMP];
        stamp[..8].copy_from_slice(&seq.to_le_bytes());
        stamp[8..16].copy_from_slice(&sent_ns.to_le_bytes());
        stamp[16..].copy_from_slice(&check_word(seq, sent_ns).to_le_bytes());
        self.stamped = seq + 1;
    }

    fn turn(&mut self, layout: &Layout) {
        self.buffer[..layout.slot_bytes].copy_from_slice(layout.slot(self.base).0);
    }
}

/// Compares received bytes with the generator. Remembers a stamp of which only the front has come.
#[derive(Debug, Clone)]
pub struct Checker {
    stamp: [u8; STAMP],
    /// Everything in `[since, next)` was seen without a gap.
    since: u64,
    next: u64,
}

impl Checker {
    /// Nothing received yet.
    pub fn new() -> Self {
        Self { stamp: [0; STAMP], since: 0, next: 0 }
    }

    /// Checks every byte of `bytes`, which stand at `offset`; `sent` is told the send time of each command. Of a stamp
    /// whose front was not shown nothing can be said.
    pub fn every(
        &mut self,
        layout: &Layout,
        mut offset: u64,
        mut bytes: &[u8],
        mut sent: impl FnMut(u64),
    ) -> Result<(), Wrong> {
        if offset != self.next {
            self.since = offset;
        }
        self.next = offset + bytes.len() as u64;
        while !bytes.is_empty() {
            let seq = offset / layout.slot_bytes();
            let within = (offset % layout.slot_bytes()) as usize;
            let (slot, stamp_at) = layout.slot(seq);
            let stamp_end = stamp_at + STAMP;
            let take = if within < stamp_at {
                let take = bytes.len().min(stamp_at - within);
                same(&bytes[..take], &slot[within..within + take], offset, "the head of a command")?;
                take
            } else if within < stamp_end {
                let take = bytes.len().min(stamp_end - within);
                let at = within - stamp_at;
                self.stamp[at..at + take].copy_from_slice(&bytes[..take]);
                let whole = self.since <= seq * layout.slot_bytes() + stamp_at as u64;
                if at + take == STAMP && whole {
                    sent(self.stamp_of(seq).ok_or(Wrong { offset, what: "the stamp of a command" })?);
                }
                take
            } else {
                let take = bytes.len().min(slot.len() - within);
                same(&bytes[..take], &slot[within..within + take], offset, "the filler of a command")?;
                take
            };
            offset += take as u64;
            bytes = &bytes[take..];
        }
        Ok(())
    }

    /// Checks the first whole command of `bytes`, if there is one: cheap enough not to be seen in a measurement.
    pub fn spot(&mut self, layout: &Layout, offset: u64, bytes: &[u8]) -> Result<(), Wrong> {
        let slot_bytes = layout.slot_bytes();
        let skip = (offset.next_multiple_of(slot_bytes) - offset) as usize;
        match bytes.get(skip..skip + slot_bytes as usize) {
            Some(whole) => self.every(layout, offset + skip as u64, whole, |_| {}),
            None => Ok(()),
        }
    }

    fn stamp_of(&self, seq: u64) -> Option<u64> {
        let word = |at: usize| u64::from_le_bytes(self.stamp[at..at + 8].try_into().expect("eight bytes"));
        let sent_ns = word(8);
        (word(0) == seq && word(16) == check_word(seq, sent_ns)).then_some(sent_ns)
    }
}

fn same(got: &[u8], want: &[u8], offset: u64, what: &'static str) -> Result<(), Wrong> {
    if got == want {
        return Ok(());
    }
    let at = got.iter().zip(want).position(|(got, want)| got != want).expect("they differ");
    Err(Wrong { offset: offset + at as u64, what })
}
