//! The snapshot: a well-formed RDB of string keys, of any number of records, cheap to make and to check.
//!
//! `REDIS0010`, SELECTDB 0, then records of [`RECORD`] bytes (`key rdb:0000000017`, one large value, the same in
//! all), then the end and a checksum of zero, which every server takes for "none".

use super::stream::{Noise, Wrong};

/// Bytes of one record.
pub const RECORD: usize = 16 * 1024;
const HEAD: &[u8] = b"REDIS0010\xfe\x00";
const TAIL: [u8; 9] = [0xff, 0, 0, 0, 0, 0, 0, 0, 0];
/// Type, key length and `rdb:`.
const DIGITS_AT: usize = 6;
const DIGITS: usize = 10;

/// An RDB.
pub struct Rdb {
    record: Vec<u8>,
    records: u64,
}

impl Rdb {
    /// At least `bytes` long, rounded up to whole records.
    pub fn new(bytes: u64) -> Self {
        let mut record = Vec::with_capacity(RECORD);
        record.extend_from_slice(b"\x00\x0erdb:0000000000\x80");
        let value = RECORD - record.len() - 4;
        record.extend_from_slice(&(value as u32).to_be_bytes());
        let mut noise = Noise(0xdb);
        record.extend((0..value).map(|_| noise.byte()));
        Self { record, records: bytes.div_ceil(RECORD as u64) }
    }

    /// Its length.
    pub fn len(&self) -> u64 {
        (HEAD.len() + TAIL.len()) as u64 + self.records * RECORD as u64
    }

    /// Appends a piece from `offset` on, at most about `most` bytes, to `out`. `offset` is where an earlier piece ended.
    pub fn piece(&self, offset: u64, most: usize, out: &mut Vec<u8>) {
        if offset == 0 {
            out.extend_from_slice(HEAD);
            return;
        }
        let first = (offset - HEAD.len() as u64) / RECORD as u64;
        if first == self.records {
            out.extend_from_slice(&TAIL);
            return;
        }
        for index in first..self.records.min(first + (most / RECORD).max(1) as u64) {
            let at = out.len();
            out.extend_from_slice(&self.record);
            out[at + DIGITS_AT..at + DIGITS_AT + DIGITS].copy_from_slice(&digits(index));
        }
    }

    /// Checks every byte of `bytes`, which stand at `offset`.
    pub fn check(&self, mut offset: u64, mut bytes: &[u8]) -> Result<(), Wrong> {
        let body = HEAD.len() as u64;
        let tail = body + self.records * RECORD as u64;
        while !bytes.is_empty() {
            let key;
            let (whole, within): (&[u8], usize) = if offset < body {
                (HEAD, offset as usize)
            } else if offset >= tail {
                (&TAIL, (offset - tail) as usize)
            } else {
                let within = ((offset - body) % RECORD as u64) as usize;
                match within {
                    ..DIGITS_AT => (&self.record[..DIGITS_AT], within),
                    DIGITS_AT..16 => {
                        key = digits((offset - body) / RECORD as u64);
                        (&key, within - DIGITS_AT)
                    }
                    16.. => (&self.record, within),
                }
            };
            let Some(want) = whole.get(within..).filter(|want| !want.is_empty()) else {
                return Err(Wrong { offset, what: "the end of the RDB" });
            };
            let take = want.len().min(bytes.len());
            if bytes[..take] != want[..take] {
                return Err(Wrong { offset, what: "the RDB" });
            }
            offset += take as u64;
            bytes = &bytes[take..];
        }
        Ok(())
    }
}

fn digits(index: u64) -> [u8; DIGITS] {
    let mut digits = [b'0'; DIGITS];
    let mut rest = index;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    digits
}
