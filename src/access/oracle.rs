//! Asking the upstream whether somebody may replicate, without replicating.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::credentials::Credentials;
use crate::live::Live;
use crate::net::{Link, Network};
use crate::relay::target::Target;
use crate::repl::ServerVersion;
use crate::wire::dialogue::REPLY_LINE_MAX;
use crate::wire::reply::Reply;
use crate::wire::resp::{encode_command, parse_line};

/// What is asked. A server judges permission before anything else, so the answer tells it, and the question has no
/// other effect (redis server.c, `processCommand`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// `PSYNC ? x`, which 6.2 and later call no integer. Earlier ones read any offset behind a `?`, and would
    /// begin a full sync.
    Psync,
    /// `REPLCONF` without options. Before 6.0 it wants a password and there is no finer permission; in 6.0 a user
    /// who may REPLCONF but not PSYNC would pass.
    Replconf,
    /// Whichever its version understands, which it is asked for first: nobody knows it, because psyncd's own user may
    /// not ask for INFO. `HELLO` needs no permission from 6.2 on, which is when it matters.
    Unknown,
}

/// The first version that calls `PSYNC ? x` no integer instead of beginning a full sync.
const FIRST_STRICT: ServerVersion = ServerVersion { major: 6, minor: 2, patch: 0 };
/// Longest answer to `HELLO`: it lists the modules that are loaded.
const HELLO_MAX: usize = 64 << 10;

impl Probe {
    /// What a server of that version understands.
    pub fn of(version: ServerVersion) -> Self {
        if version >= FIRST_STRICT { Probe::Psync } else { Probe::Replconf }
    }

    fn command(self) -> Bytes {
        match self {
            Probe::Psync => encode_command(&["PSYNC", "?", "x"]),
            Probe::Replconf | Probe::Unknown => encode_command(&["REPLCONF"]),
        }
    }
}

/// The upstream's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// Whoever this is may replicate.
    Granted,
    /// The AUTH was refused, in these words.
    Failed(Bytes),
    /// Replication is refused, in these words.
    Refused(Bytes),
}

/// The upstream has no answer: it is away, or a psyncd whose own upstream is.
#[derive(Debug, thiserror::Error)]
#[error("upstream gave no answer: {0}")]
pub struct NoAnswer(String);

/// Which question the upstream understands, as far as is known now.
pub type Understands = Arc<dyn Fn() -> Probe + Send + Sync>;

/// Asks.
pub struct Oracle {
    /// Whom, and whether it was met: before, what answers there might be ourselves.
    pub target: Arc<Target>,
    /// How to dial.
    pub network: Arc<dyn Network>,
    /// What to ask.
    pub probe: Understands,
    /// How long it may take.
    pub patience: Live<Patience>,
}

/// How long an answer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Bound on dialing.
    pub connect: Duration,
    /// Bound on both answers together.
    pub reply: Duration,
}

impl Oracle {
    /// What the upstream says of these, or of those who name nothing. Cancel-safe: dropping it closes the connection.
    pub async fn ask(&self, named: Option<&Credentials>) -> Result<Word, NoAnswer> {
        let Patience { connect, reply } = *self.patience.get();
        let pointing = match timeout(connect, self.target.met()).await {
            Ok(Ok(pointing)) => pointing,
            Ok(Err(_)) | Err(_) => return Err(NoAnswer("it has not been met yet".into())),
        };
        let link = match timeout(connect, self.network.dial(&pointing.address)).await {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => return Err(NoAnswer(error.to_string())),
            Err(_) => return Err(NoAnswer(format!("no connection within {connect:?}"))),
        };
        match timeout(reply, converse(link, named, (self.probe)())).await {
            Ok(word) => word,
            Err(_) => Err(NoAnswer(format!("silence for {reply:?}"))),
        }
    }
}

async fn converse(mut link: Link, named: Option<&Credentials>, probe: Probe) -> Result<Word, NoAnswer> {
    let mut buffer = BytesMut::new();
    if let Some(named) = named
        && let Some(failed) = judge_auth(&ask(&mut link, &mut buffer, &named.auth()).await?)?
    {
        return Ok(failed);
    }
    let probe = match probe {
        Probe::Unknown => version_in(&greet(&mut link, &mut buffer).await?).map_or(Probe::Unknown, Probe::of),
        known => known,
    };
    judge_probe(&ask(&mut link, &mut buffer, &probe.command()).await?)
}

/// The line that answers, with its end.
async fn ask(link: &mut Link, buffer: &mut BytesMut, command: &[u8]) -> Result<Bytes, NoAnswer> {
    say(link, command).await?;
    loop {
        match parse_line(buffer, REPLY_LINE_MAX) {
            Ok(Some((_, used))) => return Ok(buffer.split_to(used).freeze()),
            Ok(None) => more(link, buffer).await?,
            Err(error) => return Err(NoAnswer(error.to_string())),
        }
    }
}

/// The answer to a `HELLO` that changes nothing.
async fn greet(link: &mut Link, buffer: &mut BytesMut) -> Result<Reply, NoAnswer> {
    say(link, &encode_command(&["HELLO"])).await?;
    loop {
        match Reply::parse(buffer, HELLO_MAX) {
            Ok(Some((reply, used))) => {
                buffer.advance(used);
                return Ok(reply);
            }
            Ok(None) => more(link, buffer).await?,
            Err(error) => return Err(NoAnswer(error.to_string())),
        }
    }
}

async fn say(link: &mut Link, command: &[u8]) -> Result<(), NoAnswer> {
    link.sink.write_all(command).await.map_err(|error| NoAnswer(error.to_string()))
}

async fn more(link: &mut Link, buffer: &mut BytesMut) -> Result<(), NoAnswer> {
    match link.source.read_buf(buffer).await {
        Ok(0) => Err(NoAnswer("closed by the upstream".into())),
        Ok(_) => Ok(()),
        Err(error) => Err(NoAnswer(error.to_string())),
    }
}

/// The version in an answer to `HELLO`; none in an error, which servers before 6.0 give, and 6.0 to those with few rights.
fn version_in(reply: &Reply) -> Option<ServerVersion> {
    let Reply::Array(words) = reply else { return None };
    let mut pairs = words.chunks_exact(2);
    let version = pairs.find(|pair| pair[0].bytes() == Some(b"version"))?[1].bytes()?;
    ServerVersion::parse(str::from_utf8(version).ok()?)
}

/// `None` when the AUTH was accepted.
fn judge_auth(line: &Bytes) -> Result<Option<Word>, NoAnswer> {
    if line.starts_with(b"+") {
        return Ok(None);
    }
    let is_verdict = [&b"-ERR"[..], b"-WRONGPASS", b"-NOAUTH", b"-NOPERM"].iter().any(|word| line.starts_with(word));
    if is_verdict && !is_excuse(line) { Ok(Some(Word::Failed(line.clone()))) } else { Err(unclear(line)) }
}

fn judge_probe(line: &Bytes) -> Result<Word, NoAnswer> {
    // What stands in the way only after permission was given (redis server.c, `processCommand`).
    const PERMITTED: [&[u8]; 7] =
        [b"+", b"-ERR value is not an integer", b"-LOADING", b"-MASTERDOWN", b"-NOMASTERLINK", b"-BUSY", b"-MISCONF"];
    if is_excuse(line) {
        return Err(unclear(line));
    }
    if PERMITTED.iter().any(|word| line.starts_with(word)) {
        return Ok(Word::Granted);
    }
    let is_verdict = [&b"-NOAUTH"[..], b"-NOPERM", b"-ERR"].iter().any(|word| line.starts_with(word));
    if is_verdict { Ok(Word::Refused(line.clone())) } else { Err(unclear(line)) }
}

/// Whether an error says nothing of whoever asks: a psyncd that cannot ask its own upstream, or a full server.
fn is_excuse(line: &[u8]) -> bool {
    [&b"psyncd"[..], b"max number of clients"].iter().any(|word| memchr::memmem::find(line, word).is_some())
}

fn unclear(line: &[u8]) -> NoAnswer {
    NoAnswer(String::from_utf8_lossy(line).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn only_what_permission_leads_to_is_taken_for_it() {
        for granted in [
            "-ERR value is not an integer or out of range\r\n",
            "+OK\r\n",
            "-LOADING Redis is loading the dataset in memory\r\n",
            "-NOMASTERLINK Can't SYNC while not connected with my master\r\n",
        ] {
            assert_eq!(judge_probe(&line(granted)).unwrap(), Word::Granted, "{granted}");
        }
        for refused in [
            "-NOAUTH Authentication required.\r\n",
            "-NOPERM this user has no permissions to run the 'psync' command\r\n",
            "-ERR operation not permitted\r\n",
            "-ERR unknown command 'PSYNC'\r\n",
        ] {
            assert_eq!(judge_probe(&line(refused)).unwrap(), Word::Refused(line(refused)), "{refused}");
        }
        for unclear in [
            "-NOAUTH psyncd cannot ask its upstream\r\n",
            "-ERR max number of clients reached\r\n",
            "-DENIED Redis is running in protected mode\r\n",
            "$5\r\n",
            "\r\n",
        ] {
            assert!(judge_probe(&line(unclear)).is_err(), "{unclear}");
        }
    }

    #[test]
    fn a_refused_auth_is_told_from_one_nobody_judged() {
        assert_eq!(judge_auth(&line("+OK\r\n")).unwrap(), None);
        for failed in ["-WRONGPASS invalid\r\n", "-ERR invalid password\r\n", "-ERR Client sent AUTH, but no\r\n"] {
            assert_eq!(judge_auth(&line(failed)).unwrap(), Some(Word::Failed(line(failed))), "{failed}");
        }
        for unclear in ["-NOAUTH psyncd cannot ask\r\n", "-DENIED protected\r\n", "-LOADING\r\n", "HTTP/1.1 400\r\n"] {
            assert!(judge_auth(&line(unclear)).is_err(), "{unclear}");
        }
    }
}
