//! Whether an RDB is whole, judged while it passes.
//!
//! An RDB is nine bytes of header (`REDIS` and four digits, or `VALKEY` and three), contents that are nobody's
//! business here, the byte 0xFF, and from version 5 on eight bytes of CRC-64, little endian, all zero when the
//! master computes none (redis rdb.c, `rdbSaveRio`).

use crc_fast::{CrcAlgorithm, Digest};

use crate::repl::RdbFormat;

use super::text;

/// Bytes of an RDB's header.
const HEADER_LEN: usize = 9;

/// Reads a header; versions are 1 to 9999.
fn format_of(header: &[u8; HEADER_LEN]) -> Option<RdbFormat> {
    let version = |digits: &[u8]| {
        let number = digits
            .iter()
            .try_fold(0u32, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u32::from(digit - b'0')));
        number.filter(|&number| number > 0)
    };
    if let Some(digits) = header.strip_prefix(b"REDIS") {
        version(digits).map(RdbFormat::Redis)
    } else if let Some(digits) = header.strip_prefix(b"VALKEY") {
        version(digits).map(RdbFormat::Valkey)
    } else {
        None
    }
}

/// Whether such a file ends with a checksum (redis rdb.c, `rdbLoadRioWithLoadingCtx`: from 5 on).
fn has_checksum(format: RdbFormat) -> bool {
    format.version() >= 5
}

/// Bytes at the end of an RDB that decide whether it is whole: the end opcode and the checksum. A spool
/// must not hand them out before [`RdbCheck::finish`] agreed, since a replica that gets a complete frame
/// around a broken RDB exits.
pub const HOLDBACK: usize = 9;

/// Bytes of the checksum.
const CHECKSUM_LEN: usize = 8;
/// The opcode behind the last key.
const OPCODE_END: u8 = 0xFF;

/// Verifies an RDB while it passes: header at the front, end opcode and checksum at the end, whatever is
/// between. Invariant: `tail` holds the last bytes seen, [`HOLDBACK`] at most, and `digest` all before them.
#[derive(Debug, Clone)]
pub struct RdbCheck {
    head: [u8; HEADER_LEN],
    tail: [u8; HOLDBACK],
    len: u64,
    digest: Digest,
    format: Option<RdbFormat>,
}

/// What a whole RDB is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RdbSummary {
    /// Who can read it.
    pub format: RdbFormat,
    /// Its length in bytes.
    pub len: u64,
    /// Whether its bytes are known to be right.
    pub checksum: Checksum,
}

/// What the checksum said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// It matched.
    Verified,
    /// The master wrote none (`rdbchecksum no`, or a version before 5); every server accepts that.
    Absent,
}

/// Why bytes are no whole RDB.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RdbError {
    /// The first nine bytes name no format.
    #[error("no RDB header: {0}")]
    BadHeader(String),
    /// Too short to be one.
    #[error("the RDB is cut off after {len} bytes")]
    Truncated {
        /// Bytes seen.
        len: u64,
    },
    /// The end opcode is not where it must be.
    #[error("the RDB of {len} bytes does not end where it must")]
    NoEnd {
        /// Bytes seen.
        len: u64,
    },
    /// The checksum does not match.
    #[error("the RDB's checksum is {said:016x} but its bytes have {computed:016x}")]
    Checksum {
        /// What the file says.
        said: u64,
        /// What its bytes have.
        computed: u64,
    },
}

impl Default for RdbCheck {
    fn default() -> Self {
        Self::new()
    }
}

impl RdbCheck {
    /// A check that has seen nothing.
    pub fn new() -> Self {
        Self {
            head: [0; HEADER_LEN],
            tail: [0; HOLDBACK],
            len: 0,
            digest: Digest::new(CrcAlgorithm::Crc64Redis),
            format: None,
        }
    }

    /// Looks at the next bytes.
    ///
    /// # Errors
    /// When the header, complete with these bytes, is none.
    pub fn push(&mut self, data: &[u8]) -> Result<(), RdbError> {
        let seen = usize::try_from(self.len).unwrap_or(usize::MAX);
        let header = match self.head.get_mut(seen..) {
            Some(missing) if !missing.is_empty() => {
                let take = missing.len().min(data.len());
                missing[..take].copy_from_slice(&data[..take]);
                take == missing.len()
            }
            Some(_) | None => false,
        };
        self.keep_tail(seen.min(HOLDBACK), data);
        self.len += data.len() as u64;
        if header {
            let format = format_of(&self.head);
            self.format = Some(format.ok_or_else(|| RdbError::BadHeader(text::excerpt(&self.head)))?);
        }
        Ok(())
    }

    /// Digests all but the last bytes of `tail[..kept]` and `data`, and keeps those.
    fn keep_tail(&mut self, kept: usize, data: &[u8]) {
        if let Some(body) = data.len().checked_sub(HOLDBACK) {
            self.digest.update(&self.tail[..kept]);
            self.digest.update(&data[..body]);
            self.tail.copy_from_slice(&data[body..]);
        } else {
            let out = (kept + data.len()).saturating_sub(HOLDBACK);
            self.digest.update(&self.tail[..out]);
            self.tail.copy_within(out..kept, 0);
            self.tail[kept - out..][..data.len()].copy_from_slice(data);
        }
    }

    /// The format, as soon as the header was seen.
    pub fn format(&self) -> Option<RdbFormat> {
        self.format
    }

    /// Whether all that was pushed is one whole RDB.
    ///
    /// # Errors
    /// When it is not; such an RDB must never be given to a replica.
    pub fn finish(mut self) -> Result<RdbSummary, RdbError> {
        let len = self.len;
        let Some(format) = self.format else {
            // A header that was refused in push is no format either.
            return Err(if len < HEADER_LEN as u64 {
                RdbError::Truncated { len }
            } else {
                RdbError::BadHeader(text::excerpt(&self.head))
            });
        };
        let trailer = if has_checksum(format) { CHECKSUM_LEN } else { 0 };
        if len < (HEADER_LEN + 1 + trailer) as u64 {
            return Err(RdbError::Truncated { len });
        }
        let end = HOLDBACK - 1 - trailer;
        if self.tail[end] != OPCODE_END {
            return Err(RdbError::NoEnd { len });
        }
        let checksum = match self.tail.last_chunk::<CHECKSUM_LEN>() {
            Some(said) if has_checksum(format) && *said != [0; CHECKSUM_LEN] => {
                self.digest.update(&self.tail[..=end]);
                let (said, computed) = (u64::from_le_bytes(*said), self.digest.finalize());
                if said != computed {
                    return Err(RdbError::Checksum { said, computed });
                }
                Checksum::Verified
            }
            Some(_) | None => Checksum::Absent,
        };
        Ok(RdbSummary { format, len, checksum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::chop;
    use proptest::prelude::*;

    /// A header, a body, the end opcode and the checksum.
    fn rdb(header: &[u8], body: &[u8]) -> Vec<u8> {
        let mut rdb = [header, body, &[OPCODE_END]].concat();
        let crc = slow_crc(&rdb);
        rdb.extend_from_slice(&crc.to_le_bytes());
        rdb
    }

    /// CRC-64 as redis crc64.c describes it, a bit at a time: the definition ours is held against.
    fn slow_crc(data: &[u8]) -> u64 {
        const REFLECTED: u64 = 0xad93_d235_94c9_35a9_u64.reverse_bits();
        data.iter().fold(0u64, |crc, &byte| {
            (0..8).fold(crc ^ u64::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ REFLECTED } else { crc >> 1 })
        })
    }

    fn check(pieces: &[&[u8]]) -> Result<RdbSummary, RdbError> {
        let mut check = RdbCheck::new();
        for piece in pieces {
            check.push(piece)?;
        }
        check.finish()
    }

    #[test]
    fn the_checksum_is_the_one_redis_uses() {
        assert_eq!(crc_fast::checksum(CrcAlgorithm::Crc64Redis, b"123456789"), 0xe9c6_d914_c4b8_d9ca);
        assert_eq!(slow_crc(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn a_whole_rdb_of_either_family_passes() {
        for (header, format) in [
            (b"REDIS0012", RdbFormat::Redis(12)),
            (b"VALKEY080", RdbFormat::Valkey(80)),
            (b"REDIS0006", RdbFormat::Redis(6)),
        ] {
            let rdb = rdb(header, b"\xfa\x09redis-ver\x067.0.15");
            let summary = RdbSummary { format, len: rdb.len() as u64, checksum: Checksum::Verified };
            assert_eq!(check(&[&rdb]), Ok(summary));
            assert_eq!(format.to_string().as_bytes(), header);
        }
        let shortest = rdb(b"REDIS0011", b"");
        assert!(check(&[&shortest]).is_ok());
    }

    #[test]
    fn an_rdb_without_a_checksum_passes_as_such() {
        let mut zeroed = rdb(b"REDIS0011", b"x");
        let end = zeroed.len() - CHECKSUM_LEN;
        zeroed[end..].fill(0);
        assert_eq!(check(&[&zeroed]).unwrap().checksum, Checksum::Absent);
        assert_eq!(check(&[b"REDIS0004abc\xff"]).unwrap().checksum, Checksum::Absent);
        assert_eq!(check(&[b"REDIS0004\xff"]).unwrap().len, 10);
    }

    #[test]
    fn a_broken_rdb_never_passes() {
        let whole = rdb(b"REDIS0011", b"some keys");
        for cut in 0..whole.len() {
            assert!(check(&[&whole[..cut]]).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            assert!(check(&[&flipped]).is_err(), "flipped at {at}");
        }
        assert!(check(&[&whole, b"\n"]).is_err());
        assert_eq!(check(&[b"REDIS00"]), Err(RdbError::Truncated { len: 7 }));
        assert_eq!(check(&[b"REDIS0004"]), Err(RdbError::Truncated { len: 9 }));
        assert_eq!(check(&[b"REDIS0004ab"]), Err(RdbError::NoEnd { len: 11 }));
        for header in [b"REDIS0000", b"REDIS001x", b"VALKEY0x0", b"valkey080", b"\x28\xb5\x2f\xfdabcde"] {
            assert!(matches!(check(&[header]), Err(RdbError::BadHeader(_))), "{header:?}");
        }
    }

    #[test]
    fn the_format_is_known_with_the_ninth_byte() {
        let mut check = RdbCheck::new();
        check.push(b"REDIS001").unwrap();
        assert_eq!(check.format(), None);
        check.push(b"2rest").unwrap();
        assert_eq!(check.format(), Some(RdbFormat::Redis(12)));
    }

    /// What redis 7.2.0 writes for no keys, whole.
    const EMPTY_RDB: &[u8] =
        b"REDIS0011\xfa\x09redis-ver\x057.2.0\xfa\x0aredis-bits\xc0\x40\xfa\x05ctime\xc2\x6d\x08\xbc\x65\
        \xfa\x08used-mem\xc2\xb0\xc4\x10\x00\xfa\x08aof-base\xc0\x00\xff\xf0\x6e\x3b\xfe\xc0\xff\x5a\xa2";

    #[test]
    fn an_rdb_of_a_real_server_passes_in_pieces_of_any_size() {
        for size in [1, 7, 40, 1000] {
            let pieces: Vec<&[u8]> = EMPTY_RDB.chunks(size).collect();
            let summary = check(&pieces).unwrap();
            assert_eq!(summary.checksum, Checksum::Verified);
            assert_eq!((summary.format.to_string().as_str(), summary.len), ("REDIS0011", 88));
        }
    }

    #[test]
    fn a_header_that_was_refused_stays_refused() {
        let mut check = RdbCheck::new();
        assert!(check.push(b"VALKEX080").is_err());
        assert!(check.push(&[0xff; 20]).is_ok());
        assert!(matches!(check.finish(), Err(RdbError::BadHeader(_))));
    }

    proptest! {
        #[test]
        fn an_rdb_is_judged_the_same_however_it_is_cut(
            body in prop::collection::vec(any::<u8>(), 0..60),
            header in prop_oneof![Just(b"REDIS0011"), Just(b"VALKEY080"), Just(b"REDIS0003"), Just(b"NOTRDB001")],
            damage in prop::option::of(any::<(prop::sample::Index, u8)>()),
            cuts in chop::cuts(),
        ) {
            let mut input = rdb(header, &body);
            if let Some((at, byte)) = damage {
                let at = at.index(input.len());
                input[at] = byte;
            }
            prop_assert_eq!(check(&[&input]), check(&chop::pieces(&input, &cuts)));
        }
    }
}
