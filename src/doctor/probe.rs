//! Asking the upstream, on a connection for that alone, and this machine. No question has an effect.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::facts::{Answer, Machine, Upstream};
use crate::config::Config;
use crate::daemon::announce;
use crate::net::tls::{Tls, TlsNetwork};
use crate::net::{Network, TokioNetwork};
use crate::upstream::conversation::Conversation;
use crate::wall;
use crate::wire::dialogue::Login;
use crate::wire::reply::Reply;
use crate::wire::resp::encode_command;

/// Longest reply that is read: all of INFO.
const REPLY_MAX: usize = 1 << 20;
/// What the upstream is asked for.
const SETTINGS: &[&str] = &[
    "repl-backlog-size",
    "repl-backlog-ttl",
    "repl-timeout",
    "repl-ping-replica-period",
    "repl-ping-slave-period",
    "repl-diskless-sync",
    "repl-diskless-sync-delay",
    "min-replicas-to-write",
    "min-slaves-to-write",
    "min-replicas-max-lag",
    "client-output-buffer-limit",
    "appendonly",
    "save",
    "protected-mode",
    "maxmemory",
];

/// Why there is nothing to judge.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// There is no upstream in the configuration.
    #[error("no upstream is configured that could be asked (give --upstream HOST:PORT)")]
    Nowhere,
    /// Our own TLS settings are wrong.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// It broke off.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// It does not let us in.
    #[error("it does not let psyncd in: {0}")]
    Refused(String),
}

/// Asks the upstream everything; measures its writes for `sample`.
///
/// # Errors
/// When it cannot be asked at all.
pub async fn upstream(config: &Config, sample: Duration) -> Result<Upstream, Unreachable> {
    let address = config.upstream.as_ref().ok_or(Unreachable::Nowhere)?;
    let plain = TokioNetwork { keepalive: config.tcp_keepalive, backlog: config.tcp_backlog };
    let network: Arc<dyn Network> = match &config.tls.options {
        Some(options) if config.tls.upstream => {
            let tls = Tls::open(options.clone()).map_err(|error| Unreachable::Tls(error.to_string()))?;
            Arc::new(TlsNetwork { inner: Arc::new(plain), tls: Arc::new(tls) })
        }
        Some(_) | None => Arc::new(plain),
    };
    let link = match timeout(config.connect_timeout, network.dial(address)).await {
        Ok(Ok(link)) => link,
        Ok(Err(error)) => return Err(Unreachable::Connect(error.to_string())),
        Err(_) => return Err(Unreachable::Connect(format!("no answer within {:?}", config.connect_timeout))),
    };
    let mut talk = Talk(Conversation::over(link, config.handshake_timeout));
    let mut facts = Upstream::default();
    let asked = Instant::now();
    let greeting = talk.ask(&["PING"]).await?;
    facts.round_trip = asked.elapsed();
    facts.open = greeting.starts_with(b"+");
    if greeting.starts_with(b"-DENIED") {
        return Err(Unreachable::Refused(error_text(&greeting)));
    }
    let login = Login {
        user: config.masteruser.clone(),
        password: config.masterauth.as_ref().map(|password| password.reveal().to_vec().into()),
    };
    if let Some(auth) = login.auth() {
        let said = talk.send(auth).await?;
        // Who names a password where none is wanted is let in all the same, as a replica is.
        if said.starts_with(b"-") && !facts.open {
            return Err(Unreachable::Refused(error_text(&said)));
        }
    } else if greeting.starts_with(b"-NOAUTH") {
        return Err(Unreachable::Refused(format!("{} (give masterauth-file)", error_text(&greeting))));
    }
    facts.commands.insert("ping", Answer::of(&talk.ask(&["PING"]).await?));
    let (info, answer) = info(&mut talk).await?;
    (facts.info, _) = (info, facts.commands.insert("info", answer));
    facts.user = match talk.reply(&["ACL", "WHOAMI"]).await? {
        Some(Reply::Bulk(name)) => Some(String::from_utf8_lossy(&name).into_owned()),
        _ => None,
    };
    for name in SETTINGS {
        if let Some(value) = setting(&mut talk, name).await? {
            facts.config.insert((*name).to_owned(), value);
        }
    }
    facts.clock_ahead_ms = clock(&mut talk).await?;
    // These two last: what a server makes of a client that has said them is its own affair.
    facts.commands.insert("replconf", Answer::of(&talk.ask(&["REPLCONF"]).await?));
    if facts.version().is_some_and(|version| version >= (6, 2)) {
        facts.commands.insert("psync", Answer::of(&talk.ask(&["PSYNC", "?", "x"]).await?));
    }
    let offset = |info: &BTreeMap<String, String>| info.get("master_repl_offset")?.parse::<u64>().ok();
    if let Some(before) = offset(&facts.info) {
        let began = Instant::now();
        sleep(sample).await;
        let (later, _) = self::info(&mut talk).await?;
        facts.growth = offset(&later).map(|after| (after.saturating_sub(before), began.elapsed()));
    }
    Ok(facts)
}

struct Talk(Conversation);

impl Talk {
    async fn send(&mut self, command: Bytes) -> Result<Bytes, Unreachable> {
        self.0.ask_whole(command).await.map_err(|end| Unreachable::Lost(end.to_string()))
    }

    async fn ask(&mut self, words: &[&str]) -> Result<Bytes, Unreachable> {
        self.send(encode_command(words)).await
    }

    /// The reply, unless it is an error.
    async fn reply(&mut self, words: &[&str]) -> Result<Option<Reply>, Unreachable> {
        let said = self.ask(words).await?;
        if said.starts_with(b"-") {
            return Ok(None);
        }
        Ok(Reply::parse(&said, REPLY_MAX).ok().flatten().map(|(reply, _)| reply))
    }
}

async fn info(talk: &mut Talk) -> Result<(BTreeMap<String, String>, Answer), Unreachable> {
    let said = talk.ask(&["INFO"]).await?;
    let answer = Answer::of(&said);
    let text = String::from_utf8_lossy(&said).into_owned();
    let fields = text.lines().filter_map(|line| line.trim_end().split_once(':'));
    let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Ok((if answer == Answer::Allowed { fields.collect() } else { BTreeMap::new() }, answer))
}

async fn setting(talk: &mut Talk, name: &str) -> Result<Option<String>, Unreachable> {
    let reply = talk.reply(&["CONFIG", "GET", name]).await?;
    let value = reply.as_ref().and_then(Reply::items).and_then(|items| items.get(1)?.str());
    Ok(value.map(str::to_owned))
}

/// The upstream's clock less ours, as of the middle of the question.
async fn clock(talk: &mut Talk) -> Result<Option<i64>, Unreachable> {
    let before = wall::unix_ms();
    let reply = talk.reply(&["TIME"]).await?;
    let middle = i64::try_from(before.midpoint(wall::unix_ms())).unwrap_or(0);
    let part = |at: usize| reply.as_ref()?.items()?.get(at)?.str()?.parse::<i64>().ok();
    Ok(part(0).zip(part(1)).map(|(seconds, micros)| seconds * 1000 + micros / 1000 - middle))
}

fn error_text(reply: &[u8]) -> String {
    let line = reply.split(|byte| *byte == b'\r').next().unwrap_or_default();
    String::from_utf8_lossy(line.strip_prefix(b"-").unwrap_or(line)).into_owned()
}

/// Asks this machine.
pub async fn machine(config: &Config) -> Machine {
    let place = config.dir.clone().unwrap_or_else(std::env::temp_dir);
    let free = existing(&place).and_then(|path| {
        let stat = rustix::fs::statvfs(&path).ok()?;
        Some((place.display().to_string(), stat.f_bavail.saturating_mul(stat.f_frsize)))
    });
    Machine {
        open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
        free,
        memory: memory(),
        announce: announce::check(config).await.err(),
    }
}

/// The part of a path that is there already.
fn existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|part| part.exists()).map(Path::to_owned)
}

fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}
