//! Snapshots as the model master writes them: well-formed on the outside, and inside nothing but the
//! position they were taken at and filler that is a function of it. Whoever loads one knows exactly which
//! data set it has, and any wrong byte shows.
//!
//! ```text
//! "REDIS" version(4 digits)  FA "repl-id" id  FA "repl-offset" digits  FA "filler" string  FF crc64(8, little endian, or zero)
//! ```
//! Strings are a length byte (below 64) or 0x80 and four bytes, big endian; then the bytes.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use psyncd::repl::{Offset, Position, ReplId};

use crate::chance::Chance;

/// How a master writes its snapshots.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub version: u16,
    pub filler_bytes: usize,
    /// `rdbchecksum no` leaves the trailer zero.
    pub checksum: bool,
}

pub fn write(position: &Position, form: Form) -> Bytes {
    let mut out = format!("REDIS{:04}", form.version).into_bytes();
    aux(&mut out, b"repl-id", position.id.as_str().as_bytes());
    aux(&mut out, b"repl-offset", position.offset.to_string().as_bytes());
    aux(&mut out, b"filler", &filler(position, form.filler_bytes));
    out.push(0xff);
    let crc = if form.checksum { checksum(CrcAlgorithm::Crc64Redis, &out) } else { 0 };
    out.extend_from_slice(&crc.to_le_bytes());
    Bytes::from(out)
}

/// What a replica that loads `bytes` then has, or why it would exit.
pub fn read(bytes: &[u8]) -> Result<Position, String> {
    if bytes.len() < 18 || !bytes.starts_with(b"REDIS") || !bytes[5..9].iter().all(u8::is_ascii_digit) {
        return Err(format!("no RDB header: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(20)])));
    }
    let (body, trailer) = bytes.split_at(bytes.len() - 8);
    let said = u64::from_le_bytes(trailer.try_into().expect("eight bytes"));
    if said != 0 && said != checksum(CrcAlgorithm::Crc64Redis, body) {
        return Err("wrong CRC64".into());
    }
    let mut rest = &body[9..];
    let id = take_aux(&mut rest, b"repl-id")?;
    let id = ReplId::from_ascii(id).ok_or("no id")?;
    let offset = take_aux(&mut rest, b"repl-offset")?;
    let offset = str::from_utf8(offset).ok().and_then(|o| o.parse().ok()).ok_or("no offset")?;
    let position = Position::new(id, Offset::new(offset));
    let padding = take_aux(&mut rest, b"filler")?;
    if padding != filler(&position, padding.len()) {
        return Err("damaged content".into());
    }
    if rest != [0xff] {
        return Err(format!("no end of file but {} bytes", rest.len()));
    }
    Ok(position)
}

fn filler(position: &Position, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Chance::new(position.offset.get()).fork(position.id.short()).fill(&mut bytes);
    bytes
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    if text.len() < 64 {
        out.push(text.len() as u8);
    } else {
        out.push(0x80);
        out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    }
    out.extend_from_slice(text);
}

fn aux(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.push(0xfa);
    string(out, key);
    string(out, value);
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Result<&'a [u8], String> {
    let (head, tail) = rest.split_at_checked(n).ok_or("truncated")?;
    *rest = tail;
    Ok(head)
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let len = match take(rest, 1)?[0] {
        0x80 => u32::from_be_bytes(take(rest, 4)?.try_into().expect("four bytes")) as usize,
        short => usize::from(short),
    };
    take(rest, len)
}

fn take_aux<'a>(rest: &mut &'a [u8], key: &[u8]) -> Result<&'a [u8], String> {
    if take(rest, 1)? != [0xfa] || take_string(rest)? != key {
        return Err(format!("no field {}", String::from_utf8_lossy(key)));
    }
    take_string(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_tells_its_position_and_any_damage() {
        for checksum in [true, false] {
            let position = Position::new(Chance::new(3).replid(), Offset::new(12345));
            let rdb = write(&position, Form { version: 11, filler_bytes: 300, checksum });
            assert_eq!(read(&rdb), Ok(position));
            for at in 0..rdb.len() - if checksum { 0 } else { 8 } {
                let mut bad = rdb.to_vec();
                bad[at] ^= 1;
                assert!(read(&bad) != Ok(position) || (5..9).contains(&at) && !checksum, "byte {at}");
            }
            for cut in 0..rdb.len() {
                assert!(read(&rdb[..cut]).is_err(), "cut at {cut}");
            }
        }
    }
}
