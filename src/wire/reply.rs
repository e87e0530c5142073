//! A server's reply as a value: what we answer where we stand for a server, and what a Sentinel answers us.
//!
//! Written for RESP2 and RESP3; read as RESP2, which is what we ask for. Streams and snapshots never come this way.

use bytes::{BufMut, Bytes, BytesMut};

use super::command::error_line;
use super::resp::{FrameError, reply_len};
use super::text;

/// How deep arrays may lie in each other when they are read; a Sentinel's replies have two levels.
const DEPTH_MAX: usize = 4;

/// The protocol a connection has agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resp {
    /// What every connection begins with.
    Two,
    /// After `HELLO 3`.
    Three,
}

/// One reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A status. Never holds a line end.
    Simple(&'static str),
    /// An error, without its dash.
    Error(String),
    /// A number.
    Int(i64),
    /// Bytes.
    Bulk(Bytes),
    /// Text for people: a verbatim string in RESP3.
    Text(String),
    /// Nothing.
    Null,
    /// A list.
    Array(Vec<Reply>),
    /// Pairs: a flat list in RESP2.
    Map(Vec<(Reply, Reply)>),
    /// What nobody asked for just now: a list in RESP2.
    Push(Vec<Reply>),
}

impl Reply {
    /// `+OK`.
    pub const OK: Reply = Reply::Simple("OK");

    /// A bulk of `text`.
    pub fn bulk(text: impl AsRef<[u8]>) -> Reply {
        Reply::Bulk(Bytes::copy_from_slice(text.as_ref()))
    }

    /// As bytes.
    pub fn encode(&self, resp: Resp) -> Bytes {
        let mut out = BytesMut::new();
        self.write(resp, &mut out);
        out.freeze()
    }

    fn write(&self, resp: Resp, out: &mut BytesMut) {
        let head = |out: &mut BytesMut, kind: u8, number: usize| {
            out.put_u8(kind);
            out.put_slice(number.to_string().as_bytes());
            out.put_slice(b"\r\n");
        };
        match (self, resp) {
            (Reply::Simple(status), _) => out.put_slice(format!("+{status}\r\n").as_bytes()),
            (Reply::Error(text), _) => out.put_slice(&error_line(text)),
            (Reply::Int(number), _) => out.put_slice(format!(":{number}\r\n").as_bytes()),
            (Reply::Bulk(bytes), _) => {
                head(out, b'$', bytes.len());
                out.put_slice(bytes);
                out.put_slice(b"\r\n");
            }
            (Reply::Text(text), Resp::Two) => {
                head(out, b'$', text.len());
                out.put_slice(text.as_bytes());
                out.put_slice(b"\r\n");
            }
            (Reply::Text(text), Resp::Three) => {
                head(out, b'=', text.len() + 4);
                out.put_slice(b"txt:");
                out.put_slice(text.as_bytes());
                out.put_slice(b"\r\n");
            }
            (Reply::Null, Resp::Two) => out.put_slice(b"$-1\r\n"),
            (Reply::Null, Resp::Three) => out.put_slice(b"_\r\n"),
            (Reply::Array(items), _) | (Reply::Push(items), Resp::Two) => {
                head(out, b'*', items.len());
                items.iter().for_each(|item| item.write(resp, out));
            }
            (Reply::Push(items), Resp::Three) => {
                head(out, b'>', items.len());
                items.iter().for_each(|item| item.write(resp, out));
            }
            (Reply::Map(pairs), _) => {
                match resp {
                    Resp::Two => head(out, b'*', pairs.len() * 2),
                    Resp::Three => head(out, b'%', pairs.len()),
                }
                for (key, value) in pairs {
                    key.write(resp, out);
                    value.write(resp, out);
                }
            }
        }
    }

    /// Reads one RESP2 reply at the front of `buf`: the reply and the bytes it took. `None`: more is needed.
    /// A status becomes a [`Reply::Bulk`], since its text is the peer's.
    ///
    /// # Errors
    /// When the bytes can be no reply, or it is longer than `max` bytes.
    pub fn parse(buf: &[u8], max: usize) -> Result<Option<(Reply, usize)>, FrameError> {
        let Some(len) = reply_len(buf, max)? else { return Ok(None) };
        let mut rest = &buf[..len];
        Ok(Some((read(&mut rest, DEPTH_MAX)?, len)))
    }

    /// The bytes of a status or a bulk.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Reply::Bulk(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The text of a status or a bulk, if it is UTF-8.
    pub fn str(&self) -> Option<&str> {
        str::from_utf8(self.bytes()?).ok()
    }

    /// The items of a list.
    pub fn items(&self) -> Option<&[Reply]> {
        match self {
            Reply::Array(items) => Some(items),
            _ => None,
        }
    }
}

/// Reads one reply off the front of `rest`, which holds all of it.
fn read(rest: &mut &[u8], depth: usize) -> Result<Reply, FrameError> {
    let (kind, line) = match take_line(rest) {
        Some([kind, line @ ..]) => (*kind, line),
        _ => return Err(FrameError::UnknownType(0)),
    };
    let length = || text::integer(line).ok_or(FrameError::InvalidBulkLength);
    match kind {
        b'+' => Ok(Reply::bulk(line)),
        b'-' => Ok(Reply::Error(text::excerpt(line))),
        b':' => length().map(Reply::Int),
        b'_' => Ok(Reply::Null),
        b'$' => match usize::try_from(length()?) {
            Err(_) => Ok(Reply::Null),
            Ok(len) => match (rest.get(..len), rest.get(len + 2..)) {
                (Some(bytes), Some(behind)) => {
                    *rest = behind;
                    Ok(Reply::bulk(bytes))
                }
                _ => Err(FrameError::UnterminatedBulk),
            },
        },
        b'*' if depth == 0 => Err(FrameError::TooBigFrame),
        b'*' => match usize::try_from(length()?) {
            Err(_) => Ok(Reply::Null),
            Ok(count) => (0..count).map(|_| read(rest, depth - 1)).collect::<Result<_, _>>().map(Reply::Array),
        },
        other => Err(FrameError::UnknownType(other)),
    }
}

fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let lf = rest.iter().position(|&byte| byte == b'\n')?;
    let line = &rest[..lf];
    *rest = &rest[lf + 1..];
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn both(reply: &Reply) -> [String; 2] {
        [Resp::Two, Resp::Three].map(|resp| String::from_utf8(reply.encode(resp).to_vec()).unwrap())
    }

    #[test]
    fn each_kind_is_written_as_its_protocol_wants_it() {
        assert_eq!(both(&Reply::OK), ["+OK\r\n", "+OK\r\n"]);
        assert_eq!(both(&Reply::Null), ["$-1\r\n", "_\r\n"]);
        assert_eq!(both(&Reply::Text("ab".into())), ["$2\r\nab\r\n", "=6\r\ntxt:ab\r\n"]);
        let pair = Reply::Map(vec![(Reply::bulk("proto"), Reply::Int(3))]);
        assert_eq!(both(&pair), ["*2\r\n$5\r\nproto\r\n:3\r\n", "%1\r\n$5\r\nproto\r\n:3\r\n"]);
        assert_eq!(both(&Reply::Push(vec![Reply::Int(1)])), ["*1\r\n:1\r\n", ">1\r\n:1\r\n"]);
        assert_eq!(both(&Reply::Error("ERR a\r\nb".into())), ["-ERR a  b\r\n", "-ERR a  b\r\n"]);
    }

    #[test]
    fn what_a_sentinel_answers_is_read() {
        let (reply, used) = Reply::parse(b"*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6379\r\n+rest", 1000).unwrap().unwrap();
        let items: Vec<_> = reply.items().unwrap().iter().map(|item| item.str().unwrap()).collect();
        assert_eq!((items, used), (vec!["127.0.0.1", "6379"], 29));
        assert_eq!(Reply::parse(b"*-1\r\n", 100).unwrap().unwrap().0, Reply::Null);
        assert_eq!(Reply::parse(b"*2\r\n$9\r\n127.0", 100), Ok(None));
        assert!(Reply::parse(b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n", 100).is_err(), "too deep");
    }

    proptest! {
        #[test]
        fn nothing_that_arrives_makes_it_panic(bytes: Vec<u8>) {
            let _ = Reply::parse(&bytes, 200);
        }

        #[test]
        fn a_list_reads_back_as_it_was_written(words: Vec<Vec<u8>>, number: i64) {
            let mut items: Vec<Reply> = words.iter().map(Reply::bulk).collect();
            items.push(Reply::Int(number));
            let reply = Reply::Array(items);
            let bytes = reply.encode(Resp::Two);
            prop_assert_eq!(Reply::parse(&bytes, 1 << 20), Ok(Some((reply, bytes.len()))));
        }
    }
}
