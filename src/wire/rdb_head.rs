//! What an RDB says of its own position, in the fields at its front.
//!
//! Behind the nine bytes of the header come auxiliary fields: the opcode 0xFA and two strings, name and value (redis
//! rdb.c, `rdbSaveInfoAuxFields`). A server that writes a snapshot for a replica puts `repl-stream-db`, `repl-id` and
//! `repl-offset` among the first few, and they equal what it announced in `+FULLRESYNC`. A string begins with its length
//! (`rdbLoadLenByRef`): two bits of form, then
//!
//! ```text
//! 00 nnnnnn              length n
//! 01 nnnnnn nnnnnnnn     length n, big endian
//! 10 000000 <4 bytes>    length, big endian
//! 10 000001 <8 bytes>    length, big endian
//! 11 000000 <1 byte>     no length: the string is this number in decimal
//! 11 000001 <2 bytes>    the same, little endian; 11 000010 with 4 bytes
//! 11 000011              compressed: how many bytes follow, how many they stand for, the bytes
//! ```

use crate::repl::{Offset, Position, ReplId};

use super::text;

/// Most bytes at the front of an RDB that are looked at. Real servers need less than 300.
pub const HEAD_MAX: usize = 4096;

/// Bytes of an RDB's header.
const HEADER_LEN: usize = 9;
/// The opcode in front of an auxiliary field.
const OPCODE_AUX: u8 = 0xFA;

/// What an RDB says of its position.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RdbHead {
    /// Whose data set it is.
    pub position: Option<Position>,
    /// The database that is selected in the stream at that point. A file that does not say it can only be followed by a
    /// stream that begins with SELECT.
    pub db: Option<u32>,
}

/// Reads the fields at the front of an RDB. `None` while `front` may be too short to tell; never so from
/// [`HEAD_MAX`] bytes on.
pub fn read_head(front: &[u8]) -> Option<RdbHead> {
    let mut reader = Reader { rest: front.get(HEADER_LEN..).unwrap_or_default() };
    let mut fields = Fields::default();
    loop {
        match reader.field() {
            Step::Field(name, value) => fields.take(&name, &value),
            Step::Short if front.len() < HEAD_MAX => return None,
            Step::Short | Step::Over => return Some(fields.head()),
        }
        if fields.id.is_some() && fields.offset.is_some() && fields.db.is_some() {
            return Some(fields.head());
        }
    }
}

#[derive(Default)]
struct Fields {
    id: Option<ReplId>,
    offset: Option<u64>,
    db: Option<u32>,
}

impl Fields {
    fn take(&mut self, name: &[u8], value: &[u8]) {
        match name {
            b"repl-id" => self.id = ReplId::from_ascii(value),
            b"repl-offset" => self.offset = text::natural(value),
            // Early 4.0 wrote -1, which means nothing (redis #4316).
            b"repl-stream-db" => self.db = text::natural(value).and_then(|db| u32::try_from(db).ok()),
            _ => {}
        }
    }

    fn head(&self) -> RdbHead {
        let position = self.id.zip(self.offset).map(|(id, offset)| Position::new(id, Offset::new(offset)));
        RdbHead { position, db: self.db }
    }
}

enum Step {
    Field(Vec<u8>, Vec<u8>),
    /// More bytes are needed to tell.
    Short,
    /// Something that is no auxiliary field.
    Over,
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn field(&mut self) -> Step {
        match self.rest.split_first() {
            None => return Step::Short,
            Some((&OPCODE_AUX, rest)) => self.rest = rest,
            Some(_) => return Step::Over,
        }
        match (self.string(), self.string()) {
            (Some(name), Some(value)) => Step::Field(name, value),
            _ => Step::Short,
        }
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    /// A length, or the low bits of a form that has none.
    fn length(&mut self) -> Option<Result<usize, u8>> {
        let first = *self.take(1)?.first()?;
        let low = first & 0x3f;
        let number = |bytes: &[u8]| bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        let length = match (first >> 6, low) {
            (0, _) => u64::from(low),
            (1, _) => u64::from(low) << 8 | number(self.take(1)?),
            (2, 0) => number(self.take(4)?),
            (2, _) => number(self.take(8)?),
            _ => return Some(Err(low)),
        };
        Some(Ok(usize::try_from(length).unwrap_or(usize::MAX)))
    }

    /// A compressed string is passed over and read as nothing.
    fn string(&mut self) -> Option<Vec<u8>> {
        let little = |bytes: &[u8]| {
            let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
            let fill = if negative { -1i64 } else { 0 };
            bytes.iter().rev().fold(fill, |number, byte| number << 8 | i64::from(*byte)).to_string().into_bytes()
        };
        match self.length()? {
            Ok(length) => self.take(length).map(<[u8]>::to_vec),
            Err(form @ 0..=2) => self.take(1 << form).map(little),
            Err(3) => {
                let (Ok(compressed), Ok(_)) = (self.length()?, self.length()?) else { return Some(Vec::new()) };
                self.take(compressed).map(|_| Vec::new())
            }
            Err(_) => Some(Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "8de1787ba490483314a4d30f1c628bc5025eb761";

    fn string(text: &[u8]) -> Vec<u8> {
        [&[text.len() as u8][..], text].concat()
    }

    fn aux(name: &str, value: &[u8]) -> Vec<u8> {
        [&[OPCODE_AUX][..], &string(name.as_bytes()), value].concat()
    }

    /// The front of what redis 7.2 sends to a replica.
    fn front(db: &[u8], offset: &[u8]) -> Vec<u8> {
        [
            b"REDIS0011".to_vec(),
            aux("redis-ver", &string(b"7.2.0")),
            aux("redis-bits", &[0xc0, 0x40]),
            aux("ctime", &[0xc2, 0x6d, 0x08, 0xbc, 0x65]),
            aux("used-mem", &[0xc2, 0xb0, 0xc4, 0x10, 0x00]),
            aux("repl-stream-db", db),
            aux("repl-id", &string(ID.as_bytes())),
            aux("repl-offset", offset),
            aux("aof-base", &[0xc0, 0]),
            vec![0xff],
        ]
        .concat()
    }

    #[test]
    fn the_position_is_read_however_its_number_is_written() {
        for (offset, written) in [
            (5, vec![0xc0, 5]),
            (700, [&[0xc1][..], &700u16.to_le_bytes()].concat()),
            (70_000, [&[0xc2][..], &70_000u32.to_le_bytes()].concat()),
            (9_876_543_210, string(b"9876543210")),
        ] {
            let head = read_head(&front(&[0xc0, 9], &written)).unwrap();
            assert_eq!(head.position, Some(Position::new(ID.parse().unwrap(), Offset::new(offset))));
            assert_eq!(head.db, Some(9));
        }
    }

    #[test]
    fn a_file_of_no_stream_says_none_and_minus_one_is_no_database() {
        let plain = [b"REDIS0011".to_vec(), aux("redis-ver", &string(b"7.2.0")), vec![0xfe, 0]].concat();
        assert_eq!(read_head(&plain), Some(RdbHead::default()));
        assert_eq!(read_head(&front(&[0xc0, 0xff], &[0xc0, 5])).unwrap().db, None);
        assert_eq!(read_head(&front(&[0xc0, 0], &[0xc0, 0xfb])).unwrap().position, None, "a negative offset");
    }

    #[test]
    fn the_head_is_known_with_its_last_byte_and_not_before() {
        let whole = front(&[0xc0, 9], &string(b"9876543210"));
        let known = (0..whole.len()).find(|&len| read_head(&whole[..len]).is_some()).unwrap();
        let end = whole.windows(10).position(|bytes| bytes == b"9876543210").unwrap() + 10;
        assert_eq!(known, end);
    }

    #[test]
    fn a_head_without_an_end_is_given_up_at_the_limit() {
        let mut endless = b"REDIS0011".to_vec();
        while endless.len() < HEAD_MAX {
            assert_eq!(read_head(&endless), None);
            endless.extend(aux("x", &string(&[b'y'; 50])));
        }
        assert_eq!(read_head(&endless), Some(RdbHead::default()));
        let huge = [b"REDIS0011\xfa\x01x\x81".to_vec(), vec![0xff; 8], vec![0; HEAD_MAX]].concat();
        assert_eq!(read_head(&huge), Some(RdbHead::default()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm_and_a_decision_stands(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let input = [b"REDIS0011\xfa".to_vec(), bytes].concat();
            let mut decided = None;
            for len in 0..=input.len() {
                let now = read_head(&input[..len]);
                if decided.is_some() {
                    prop_assert_eq!(now, decided);
                }
                decided = now;
            }
            let padded = [input, vec![0; HEAD_MAX]].concat();
            prop_assert!(read_head(&padded).is_some());
        }
    }
}
