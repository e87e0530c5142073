//! What a master writes into its stream: valid commands of every shape that has ever confused a reader.

use crate::chance::Chance;
use crate::resp::{array, words};

pub const GETACK: &str = "REPLCONF GETACK *";

/// Makes commands and remembers which database the stream has selected.
#[derive(Debug, Clone)]
pub struct Author {
    chance: Chance,
    /// None: the next data command is preceded by SELECT.
    db: Option<u64>,
    /// One command in so many is large.
    large_one_in: u64,
    large_bytes: u64,
}

impl Author {
    pub fn new(chance: Chance, large_one_in: u64, large_bytes: u64) -> Self {
        Self { chance, db: None, large_one_in, large_bytes }
    }

    /// A snapshot was taken: whoever loads it has no database selected.
    pub fn forget_db(&mut self) {
        self.db = None;
    }

    /// One command or one whole transaction.
    pub fn write(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let db = self.chance.below(3);
        if self.db != Some(db) && (self.db.is_none() || self.chance.one_in(4)) {
            self.db = Some(db);
            out.extend(words(&format!("SELECT {db}")));
        }
        if self.chance.one_in(6) {
            out.extend(words("MULTI"));
            for _ in 0..self.chance.between(1, 5) {
                out.extend(self.command());
            }
            out.extend(words("EXEC"));
        } else {
            out.extend(self.command());
        }
        out
    }

    fn command(&mut self) -> Vec<u8> {
        let key = format!("key:{}", self.chance.below(1000));
        if self.chance.one_in(self.large_one_in) {
            let mut value = vec![0; self.chance.between(1000, self.large_bytes) as usize];
            self.chance.fill(&mut value);
            return array(&[b"SET", key.as_bytes(), &value]);
        }
        match self.chance.below(8) {
            0 => array(&[b"DEL", key.as_bytes()]),
            1 => array(&[b"PEXPIREAT", key.as_bytes(), b"1893456000000"]),
            // Values that look like the protocol around them.
            2 => array(&[b"SET", key.as_bytes(), &words(GETACK)]),
            3 => array(&[b"PUBLISH", b"channel", b"\r\n*1\r\n$5\r\nMULTI\r\n\n\n"]),
            4 => array(&[b"SET", key.as_bytes(), b""]),
            5 => array(&[b"rpush", key.as_bytes(), b"a", b"b", b"$-1", b"*0"]),
            _ => array(&[b"SET", key.as_bytes(), format!("value {}", self.chance.draw()).as_bytes()]),
        }
    }
}
