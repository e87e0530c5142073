//! A small blocking client: commands out, replies in, and the raw socket for what no client would send.
//!
//! It never reconnects and never retries by itself; a test must see what the other side did.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// One reply, RESP2 or RESP3.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Simple(String),
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Value>),
    /// RESP3 map, as pairs in the order sent.
    Map(Vec<(Value, Value)>),
    /// RESP3 push, out of the order of replies.
    Push(Vec<Value>),
    /// RESP3 double, boolean, big number or set element types the tests only need as text.
    Other(String),
}

impl Value {
    /// The reply as text; panics on an error reply.
    #[track_caller]
    pub fn text(&self) -> String {
        match self {
            Value::Simple(text) | Value::Other(text) => text.clone(),
            Value::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Value::Int(number) => number.to_string(),
            other => panic!("a text was expected, not {other:?}"),
        }
    }

    #[track_caller]
    pub fn int(&self) -> i64 {
        match self {
            Value::Int(number) => *number,
            other => panic!("a number was expected, not {other:?}"),
        }
    }

    #[track_caller]
    pub fn array(self) -> Vec<Value> {
        match self {
            Value::Array(items) | Value::Push(items) => items,
            other => panic!("an array was expected, not {other:?}"),
        }
    }
}

/// One connection to whatever answers on a loopback port.
#[derive(Debug)]
pub struct Conn {
    reader: BufReader<TcpStream>,
}

impl Conn {
    pub fn open(port: u16) -> io::Result<Conn> {
        Ok(Conn::over(TcpStream::connect(("127.0.0.1", port))?))
    }

    /// Over a socket that is connected already.
    pub fn over(stream: TcpStream) -> Conn {
        let limit = Some(Duration::from_secs(30));
        let set = stream.set_nodelay(true).and(stream.set_read_timeout(limit)).and(stream.set_write_timeout(limit));
        set.expect("a TCP socket takes these options");
        Conn { reader: BufReader::with_capacity(64 * 1024, stream) }
    }

    /// A connection that has to be there.
    #[track_caller]
    pub fn to(port: u16) -> Conn {
        Conn::open(port).unwrap_or_else(|why| panic!("connect to 127.0.0.1:{port}: {why}"))
    }

    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    pub fn set_read_timeout(&self, limit: Duration) {
        self.stream().set_read_timeout(Some(limit)).expect("a timeout above zero is accepted");
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream().write_all(bytes.as_ref())
    }

    /// Says that nothing more will be sent, and goes on reading.
    pub fn finish_sending(&self) {
        self.stream().shutdown(Shutdown::Write).expect("the write side was open");
    }

    /// Sends one command and reads one reply.
    pub fn ask<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Value> {
        self.send(encode(args))?;
        self.reply()
    }

    /// Sends one command whose reply must not be an error.
    #[track_caller]
    pub fn cmd<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Value {
        match self.ask(args) {
            Ok(Value::Error(why)) => panic!("{} was answered -{why}", printable(args)),
            Ok(reply) => reply,
            Err(why) => panic!("{} was not answered: {why}", printable(args)),
        }
    }

    /// Reads a line without its CRLF (or LF).
    pub fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        if self.reader.read_until(b'\n', &mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while line.last().is_some_and(|byte| matches!(byte, b'\r' | b'\n')) {
            line.pop();
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// The next line that is not empty: replication keeps waiting replicas alive with bare newlines.
    pub fn line_after_newlines(&mut self) -> io::Result<String> {
        loop {
            let line = self.line()?;
            if !line.is_empty() {
                return Ok(line);
            }
        }
    }

    pub fn bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Everything until the other side closes (an error when it does not within the limit).
    pub fn until_closed(&mut self, limit: Duration) -> io::Result<Vec<u8>> {
        let end = Instant::now() + limit;
        let mut all = self.reader.buffer().to_vec();
        self.reader.consume(all.len());
        let mut chunk = [0; 16 * 1024];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seen = String::from_utf8_lossy(&all[..all.len().min(200)]).into_owned();
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("still open after {limit:?}; it sent {seen:?}"),
                ));
            }
            self.set_read_timeout(left);
            match self.reader.get_mut().read(&mut chunk) {
                Ok(0) => return Ok(all),
                Ok(count) => all.extend_from_slice(&chunk[..count]),
                Err(why) if matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                // A reset closes as well as a FIN does.
                Err(why) if why.kind() == io::ErrorKind::ConnectionReset => return Ok(all),
                Err(why) => return Err(why),
            }
        }
    }

    /// Reads one reply.
    pub fn reply(&mut self) -> io::Result<Value> {
        let line = self.line()?;
        let Some(kind) = line.chars().next() else { return Err(bad("an empty line instead of a reply")) };
        let rest = &line[kind.len_utf8()..];
        let number = || rest.parse::<i64>().map_err(|_| bad(&format!("{line:?} has no length")));
        Ok(match kind {
            '+' => Value::Simple(rest.to_owned()),
            '-' => Value::Error(rest.to_owned()),
            ':' => Value::Int(number()?),
            '_' => Value::Nil,
            ',' | '#' | '(' => Value::Other(rest.to_owned()),
            '$' | '=' | '!' => match usize::try_from(number()?) {
                Err(_) => Value::Nil,
                Ok(length) => {
                    let mut bytes = self.bytes(length + 2)?;
                    bytes.truncate(length);
                    Value::Bulk(bytes)
                }
            },
            '*' | '~' if rest == "-1" => Value::Nil,
            '*' | '~' => Value::Array(self.items(number()?)?),
            '>' => Value::Push(self.items(number()?)?),
            '%' => {
                let flat = self.items(number()? * 2)?;
                Value::Map(flat.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
            }
            _ => return Err(bad(&format!("{line:?} is no reply"))),
        })
    }

    fn items(&mut self, count: i64) -> io::Result<Vec<Value>> {
        (0..count).map(|_| self.reply()).collect()
    }

    /// Reads a full sync's payload, framed by length or by mark, and returns the RDB.
    pub fn payload(&mut self) -> io::Result<Vec<u8>> {
        let header = self.line_after_newlines()?;
        if let Some(mark) = header.strip_prefix("$EOF:") {
            let mut all = Vec::new();
            while !all.ends_with(mark.as_bytes()) {
                let chunk = self.reader.fill_buf()?;
                if chunk.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let count = chunk.len();
                all.extend_from_slice(chunk);
                self.reader.consume(count);
            }
            all.truncate(all.len() - mark.len());
            return Ok(all);
        }
        let length = header.strip_prefix('$').and_then(|length| length.parse().ok());
        self.bytes(length.ok_or_else(|| bad(&format!("{header:?} instead of a payload")))?)
    }
}

/// A command as an array of bulks.
pub fn encode<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        let arg = arg.as_ref();
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn printable<A: AsRef<[u8]>>(args: &[A]) -> String {
    let words: Vec<_> =
        args.iter().map(|arg| String::from_utf8_lossy(&arg.as_ref()[..arg.as_ref().len().min(60)])).collect();
    words.join(" ")
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
