//! The configuration: flags, environment and file become one validated [`Config`], or one line that says what is
//! wrong and where. Begin with the table in [`settings`].
//!
//! Nothing here listens, connects or logs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

pub mod caller;
pub mod identity;
mod nearest;
pub mod reference;
pub mod reloads;
pub mod settings;
pub mod sources;
mod tls;
pub mod units;
mod users;

use crate::access::ReplicaAuth;
use crate::access::allow::AllowList;
use crate::access::users::User;
use crate::log;
use crate::net::{Address, InvalidAddress};
use crate::repl::{AckPolicy, guard};
use crate::scribe::Fsync;
use crate::upstream::cast::Links;
use crate::upstream::source::SnapshotSource;
use crate::wire::dialogue::Login;
use settings::{Kind, Setting};
pub use sources::{Flags, Origin, Shown, Surroundings, Values};
pub use tls::Tls;

/// No configuration or password file is larger than this.
pub const LIMIT_FILE_BYTES: u64 = 1 << 20;

/// The name of the control socket in `dir`.
const SOCKET: &str = "psyncd.sock";

/// Everything that can be set, checked: each value lies in the range its row of [`settings::SETTINGS`] gives.
#[derive(Debug, Clone)]
pub struct Config {
    /// The master to follow; none only where there are Sentinels to ask.
    pub upstream: Option<Address>,
    /// Where to listen for replicas and clients; never empty.
    pub bind: Vec<IpAddr>,
    /// The port on each of these; 0 takes any free one.
    pub port: u16,
    /// The port of the replica face; none or 0 for no face.
    pub replica_port: Option<u16>,
    /// Where the replica face listens; never empty.
    pub replica_bind: Vec<IpAddr>,
    /// What the replica face asks for: `replica-requirepass`, else `masterauth`.
    pub replica_requirepass: Option<Secret>,
    /// Whom to ask for the master.
    pub sentinels: Option<Sentinels>,
    /// TLS, on whichever side it is wanted.
    pub tls: Tls,
    /// Where the admin server listens, if it does; port 0 takes any free one.
    pub admin_bind: Option<SocketAddr>,
    /// Where the journal and snapshots are kept; none means a private temporary directory and no journal.
    pub dir: Option<PathBuf>,
    /// The journal; none keeps none.
    pub journal: Option<Journal>,
    /// Where the control socket is.
    pub socket: Socket,
    /// Memory for the replication stream.
    pub repl_backlog_bytes: u64,
    /// Bytes kept of what a promoted master never had; 0 keeps nothing.
    pub keep_lost_bytes: u64,
    /// Replication ids remembered.
    pub history_depth: usize,
    /// Whom to authenticate as.
    pub masteruser: Option<String>,
    /// With what, from `masterauth` or the file `masterauth-file` names.
    pub masterauth: Option<Secret>,
    /// Whether other hosts are refused where nothing protects the data.
    pub protected_mode: bool,
    /// Who judges replicas.
    pub replica_auth: ReplicaAuth,
    /// The password of replicas, from `requirepass` or the file `requirepass-file` names.
    pub requirepass: Option<Secret>,
    /// Users of our own, by name.
    pub users: Vec<User>,
    /// By which names `admin-bind` may be called, in lower case; none where nobody said.
    pub admin_hosts: Option<Vec<String>>,
    /// What a request over `admin-bind` has to show before it may change anything; without it none may.
    pub admin_token: Option<Secret>,
    /// How long a password the master accepted is remembered; zero for not at all.
    pub auth_cache_ttl: Duration,
    /// From where replicas may come.
    pub allow_replicas: AllowList,
    /// From where clients may come.
    pub allow_clients: AllowList,
    /// From where the admin server may be asked.
    pub allow_admin: AllowList,
    /// Connections of one address that have not shown yet what they are.
    pub max_unauthenticated: usize,
    /// Connections a second of one address; 0 for no limit.
    pub max_connection_rate: u32,
    /// Bytes of a connection before it is known what it is.
    pub max_handshake_bytes: usize,
    /// The host announced upstream.
    pub announce_ip: Option<String>,
    /// The port announced upstream; none means that none is announced.
    pub announce_port: Option<u16>,
    /// What is proven to another psyncd at a planned failover; none when those are not assisted.
    pub assist_secret: Option<Secret>,
    /// Whose word stands behind our acknowledgements to the master.
    pub ack_policy: AckPolicy,
    /// Whether the master hears acknowledgements while no replica is online.
    pub ack_when_empty: bool,
    /// How many links there are to the master.
    pub upstream_links: Links,
    /// Silence after which a link counts as lost, on either side.
    pub repl_timeout: Duration,
    /// Patience with a connect to the master.
    pub connect_timeout: Duration,
    /// Patience with the first commands of a connection.
    pub handshake_timeout: Duration,
    /// How long a replica is held before a full resync.
    pub hold_timeout: Duration,
    /// How long replicas may take at the end of psyncd.
    pub drain_timeout: Duration,
    /// The least time between two rounds of the stream while many replicas follow; zero for none.
    pub gather_time: Duration,
    /// What a master has to come back with.
    pub guard: guard::Rules,
    /// How often its keys are counted.
    pub guard_interval: Duration,
    /// Who may be asked for snapshots.
    pub snapshot_source: SnapshotSource,
    /// Between two forks the master is made to do.
    pub snapshot_min_interval: Duration,
    /// Replicas at once.
    pub max_replicas: usize,
    /// Snapshots sent to replicas at once.
    pub max_senders: usize,
    /// Bytes a second for all of these together; none means no limit.
    pub sender_rate_limit: Option<u64>,
    /// Passed-through clients at once.
    pub max_clients: usize,
    /// Idle time before the kernel probes a peer; at least three seconds.
    pub tcp_keepalive: Duration,
    /// Connections the kernel holds until they are accepted.
    pub tcp_backlog: i32,
    /// How log lines look.
    pub log_format: log::Format,
    /// How much is logged.
    pub log_level: log::Level,
    /// Everything above as text, secrets masked, for operators to see.
    pub shown: Arc<[Shown]>,
}

/// How the journal is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Journal {
    /// Bytes it may take.
    pub limit_bytes: u64,
    /// Bytes it may take while somebody needs what it would drop.
    pub hard_limit_bytes: u64,
    /// Bytes it may be behind the stream before it gives up continuity.
    pub max_lag_bytes: u64,
    /// How long it keeps bytes; none means as long as there is room.
    pub keep: Option<Duration>,
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// When it is made durable.
    pub fsync: Fsync,
    /// Whether one that was written following another upstream is taken over.
    pub adopt: bool,
}

/// Where a process is told what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Socket {
    /// Nowhere.
    None,
    /// Where somebody chose.
    At(PathBuf),
    /// In the directory, because nobody chose.
    InDir(PathBuf),
}

impl Socket {
    /// Its path.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Socket::None => None,
            Socket::At(path) | Socket::InDir(path) => Some(path),
        }
    }
}

/// Whom to ask for the master, and how.
#[derive(Debug, Clone)]
pub struct Sentinels {
    /// At least one and at most [`SENTINELS_MAX`].
    pub addresses: Vec<Address>,
    /// The name of the master.
    pub master: String,
    /// Whom to authenticate as.
    pub user: Option<String>,
    /// With what.
    pub password: Option<Secret>,
}

/// Most Sentinels that are asked.
pub const SENTINELS_MAX: usize = 16;

/// A password. Shows itself to nobody who does not ask for it by name, and is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Keeps `bytes`.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// A copy that is wiped like the original.
    pub fn to_zeroizing(&self) -> Zeroizing<Vec<u8>> {
        self.0.clone()
    }

    /// The password itself: never for a log, a label, a status document or an error.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What is wrong with the configuration, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key of the file that is none of ours.
    #[error("unknown key {key:?} ({origin}): {hint}")]
    Key {
        /// As written.
        key: String,
        /// Where.
        origin: Origin,
        /// What was probably meant.
        hint: String,
    },
    /// A variable with our prefix that is none of ours.
    #[error("unknown environment variable {name}: {hint}")]
    Variable {
        /// As written.
        name: String,
        /// What was probably meant.
        hint: String,
    },
    /// A value that is no text at all.
    #[error("{name} ({origin}) {why}")]
    Type {
        /// The setting.
        name: &'static str,
        /// Where.
        origin: Origin,
        /// What it is instead.
        why: String,
    },
    /// A value that is not allowed.
    #[error("{name} = {shown} ({origin}) {why}; allowed: {allowed}")]
    Value {
        /// The setting.
        name: &'static str,
        /// The value, or what stands for a secret.
        shown: String,
        /// Where.
        origin: Origin,
        /// What is wrong with it.
        why: String,
        /// What would be right.
        allowed: String,
    },
    /// A setting without a default that nobody set.
    #[error("{name} is not set: give --{name} {placeholder}, {env}, or {name} = \"{placeholder}\" in {}", file.display())]
    Missing {
        /// The setting.
        name: &'static str,
        /// What its value looks like.
        placeholder: &'static str,
        /// Its variable.
        env: String,
        /// The file that was looked for.
        file: PathBuf,
    },
    /// A file that cannot be used.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Values that are right alone and wrong together.
    #[error("{0}")]
    Contradiction(String),
}

/// A configuration that holds, with what is worth saying about it.
pub struct Loaded {
    /// The result.
    pub config: Config,
    /// Worth a line in the log once there is one.
    pub warnings: Vec<String>,
    /// The same values as text with their origins.
    pub values: Values,
}

impl Config {
    /// Gathers and checks every value. Reads the configuration file and the password file, nothing else.
    pub fn load(flags: &Flags, around: &Surroundings<'_>) -> Result<Loaded, Error> {
        let (values, mut warnings) = Values::gather(flags, around)?;
        let upstream = values.address("upstream")?;
        let sentinels = sentinels(&values, around, &mut warnings)?;
        if upstream.is_none() && sentinels.is_none() {
            return Err(missing("upstream", &values));
        }
        let bind = values.hosts("bind")?;
        let masterauth = secret(&values, around, ["masterauth", "masterauth-file"], &mut warnings)?;
        let requirepass = secret(&values, around, ["replica-requirepass", "replica-requirepass-file"], &mut warnings)?;
        let config = Config {
            upstream,
            replica_port: values.narrow_or_none("replica-port")?,
            replica_bind: values.parsed("replica-bind", |_, text| parse_hosts(text))?.unwrap_or_else(|| bind.clone()),
            replica_requirepass: requirepass.or_else(|| masterauth.clone()),
            sentinels,
            bind,
            port: values.narrow("port")?,
            tls: tls::of(&values)?,
            admin_bind: values.parsed("admin-bind", |_, text| parse_listen(text))?.flatten(),
            dir: values.path("dir")?,
            journal: journal(&values)?,
            socket: values.socket()?,
            repl_backlog_bytes: values.number("repl-backlog-size")?,
            keep_lost_bytes: values.number("keep-lost-writes")?,
            history_depth: values.narrow("history-depth")?,
            masteruser: values.text("masteruser")?,
            masterauth,
            protected_mode: values.required("protected-mode", parse_yes)?,
            replica_auth: values.required("replica-auth", |_, text| text.parse())?,
            requirepass: secret(&values, around, ["requirepass", "requirepass-file"], &mut warnings)?,
            users: users::of(&values.users, around, &mut warnings)?,
            admin_hosts: values.parsed("admin-hosts", |_, text| parse_names(text))?,
            admin_token: admin_token(&values, around, &mut warnings)?,
            auth_cache_ttl: values.time("auth-cache-ttl")?,
            allow_replicas: values.networks("allow-replicas")?,
            allow_clients: values.networks("allow-clients")?,
            allow_admin: values.networks("allow-admin")?,
            max_unauthenticated: values.narrow("max-unauthenticated")?,
            max_connection_rate: values.narrow("max-connection-rate")?,
            max_handshake_bytes: values.narrow("max-handshake-bytes")?,
            announce_ip: values.parsed("announce-ip", |_, text| parse_host(text))?,
            announce_port: values.narrow_or_none("announce-port")?,
            assist_secret: assist(&values, around, &mut warnings)?,
            ack_policy: values
                .required("ack-policy", |_, text| text.parse().map_err(|()| "is no such policy".to_owned()))?,
            ack_when_empty: values.required("ack-when-empty", parse_yes)?,
            upstream_links: values
                .required("upstream-links", |_, text| text.parse().map_err(|()| "is none of these words".to_owned()))?,
            repl_timeout: values.time("repl-timeout")?,
            connect_timeout: values.time("connect-timeout")?,
            handshake_timeout: values.time("handshake-timeout")?,
            hold_timeout: values.time("hold-timeout")?,
            drain_timeout: values.time("drain-timeout")?,
            gather_time: values.time("gather-time")?,
            guard: guard::Rules {
                mode: values.required("wipe-guard", |_, text| text.parse())?,
                min_keys: values.number("guard-min-keys")?,
                min_percent: values.required("guard-min-ratio", parse_percent)?,
            },
            guard_interval: values.time("guard-interval")?,
            snapshot_source: values.required("snapshot-source", |_, text| text.parse())?,
            snapshot_min_interval: values.time("snapshot-min-interval")?,
            max_replicas: values.narrow("max-replicas")?,
            max_senders: values.narrow("max-senders")?,
            sender_rate_limit: values.required("sender-rate-limit", parse_rate)?,
            max_clients: values.narrow("maxclients")?,
            tcp_keepalive: values.time("tcp-keepalive")?,
            tcp_backlog: values.narrow("tcp-backlog")?,
            log_format: values.required("log-format", |_, text| text.parse())?,
            log_level: values.required("loglevel", |_, text| text.parse())?,
            shown: values.shown(),
        };
        config.check_loops()?;
        config.check_identity(&mut warnings)?;
        if config.masteruser.is_some() && config.masterauth.is_none() {
            warnings.push("masteruser has no effect without masterauth or masterauth-file".to_owned());
        }
        let has_users = config.requirepass.is_some() || !config.users.is_empty();
        match config.replica_auth {
            ReplicaAuth::Static if !has_users => {
                return Err(Error::Contradiction(
                    "replica-auth static needs requirepass, requirepass-file or a [[user]]: without one nobody could \
                     come in"
                        .to_owned(),
                ));
            }
            ReplicaAuth::None if has_users => {
                warnings.push("requirepass and [[user]] have no effect with replica-auth none".to_owned());
            }
            ReplicaAuth::Upstream | ReplicaAuth::Static | ReplicaAuth::None => {}
        }
        Ok(Loaded { config, warnings, values })
    }

    /// Files that may be open at once: two for each client, one for each replica and what is sent to it, and what serves
    /// ourselves.
    pub fn files_needed(&self) -> u64 {
        /// The journal, snapshots, links, listeners, the admin server's connections.
        const OWN: u64 = 128;
        2 * self.max_clients as u64 + 2 * self.max_replicas as u64 + OWN
    }

    /// What the master is named.
    pub fn login(&self) -> Login {
        Login { user: self.masteruser.clone(), password: self.masterauth.as_ref().map(Secret::to_zeroizing) }
    }

    /// What Sentinels are named.
    pub fn sentinel_login(&self) -> Login {
        let Some(sentinels) = &self.sentinels else { return Login::default() };
        Login { user: sentinels.user.clone(), password: sentinels.password.as_ref().map(Secret::to_zeroizing) }
    }
}

/// The journal that was asked for; a directory is what asks for one.
fn journal(values: &Values) -> Result<Option<Journal>, Error> {
    let limit_bytes: u64 = values.number("backlog-disk-size")?;
    let segment_bytes = values.number("segment-size")?;
    let hard_limit = values.parsed("backlog-disk-hard-limit", parse_number)?;
    let journal = Journal {
        limit_bytes,
        hard_limit_bytes: hard_limit.unwrap_or(limit_bytes.saturating_add(limit_bytes / 2)),
        max_lag_bytes: values.number("journal-max-lag")?,
        keep: values.time_or_none("backlog-disk-keep")?,
        segment_bytes,
        fsync: values.required("fsync", |_, text| text.parse().map_err(|()| "is none of these words".to_owned()))?,
        adopt: values.required("adopt-journal", parse_yes)?,
    };
    if limit_bytes > 0 && limit_bytes < 2 * segment_bytes {
        return Err(Error::Contradiction(format!(
            "backlog-disk-size {} holds less than two segments of segment-size {}, and the journal is dropped by segments: \
             give more disk or smaller segments",
            units::print_bytes(limit_bytes),
            units::print_bytes(segment_bytes)
        )));
    }
    if journal.hard_limit_bytes < limit_bytes {
        return Err(Error::Contradiction("backlog-disk-hard-limit is below backlog-disk-size".to_owned()));
    }
    Ok((limit_bytes > 0 && values.path("dir")?.is_some()).then_some(journal))
}

fn sentinels(
    values: &Values,
    around: &Surroundings<'_>,
    warnings: &mut Vec<String>,
) -> Result<Option<Sentinels>, Error> {
    let addresses = values.parsed("sentinels", |_, text| parse_addresses(text))?;
    let master = values.text("sentinel-master")?;
    let password = secret(values, around, ["sentinel-password", "sentinel-password-file"], warnings)?;
    let user = values.text("sentinel-user")?;
    match (addresses, master) {
        (Some(addresses), Some(master)) => Ok(Some(Sentinels { addresses, master, user, password })),
        (Some(_), None) => Err(Error::Contradiction(
            "sentinels is set and sentinel-master is not: say which master they shall be asked for".to_owned(),
        )),
        (None, Some(_)) => {
            Err(Error::Contradiction("sentinel-master is set and sentinels is not: say whom to ask for it".to_owned()))
        }
        (None, None) => Ok(None),
    }
}

fn missing(name: &'static str, values: &Values) -> Error {
    let setting = row(name);
    Error::Missing { name, placeholder: setting.kind.placeholder(), env: setting.env(), file: values.file.clone() }
}

/// What is proven to other psyncds, if planned failovers are assisted.
fn assist(values: &Values, around: &Surroundings<'_>, warnings: &mut Vec<String>) -> Result<Option<Secret>, Error> {
    let secret = secret(values, around, ["assist-secret", "assist-secret-file"], warnings)?;
    match (values.required("assist-failover", parse_yes)?, secret) {
        (true, None) => Err(Error::Contradiction(
            "assist-failover needs assist-secret or assist-secret-file: whoever knows it can stop the writes of the master"
                .to_owned(),
        )),
        (true, secret) => Ok(secret),
        (false, Some(_)) => {
            warnings.push("assist-secret has no effect without assist-failover".to_owned());
            Ok(None)
        }
        (false, None) => Ok(None),
    }
}

/// A secret that can be given itself or as the name of a file, from whichever has the higher precedence.
fn secret(
    values: &Values,
    around: &Surroundings<'_>,
    [name, in_file]: [&'static str; 2],
    warnings: &mut Vec<String>,
) -> Result<Option<Secret>, Error> {
    let direct = values.text(name)?;
    let path = values.path(in_file)?;
    let (Some(path), Some(file)) = (path, values.get(in_file)) else {
        return Ok(direct.map(Secret::new));
    };
    if let (Some(direct), Some(given)) = (direct, values.get(name)) {
        if given.origin.ranks_with(&file.origin) {
            return Err(Error::Contradiction(format!(
                "{name} ({}) and {in_file} ({}) are both set: give one of them",
                given.origin, file.origin
            )));
        }
        if given.origin.wins_over(&file.origin) {
            return Ok(Some(Secret::new(direct)));
        }
    }
    let bad = |why: String| Error::Type { name: in_file, origin: file.origin.clone(), why };
    read_secret(&path, around, warnings).map(|bytes| Some(Secret::new(bytes))).map_err(bad)
}

/// What a file holds, less one line end; or what is wrong with it.
fn read_secret(
    path: &std::path::Path,
    around: &Surroundings<'_>,
    warnings: &mut Vec<String>,
) -> Result<Vec<u8>, String> {
    let read = (around.read_file)(path).map_err(|error| format!("cannot be read from {}: {error}", path.display()))?;
    if read.is_too_open() {
        warnings.push(sources::too_open(path, read.mode));
    }
    let bytes = read.bytes.strip_suffix(b"\n").unwrap_or(&read.bytes);
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    if bytes.is_empty() { Err(format!("names {}, which is empty", path.display())) } else { Ok(bytes.to_vec()) }
}

/// The token of the admin port. A short one would be guessed, as nothing counts the tries.
fn admin_token(
    values: &Values,
    around: &Surroundings<'_>,
    warnings: &mut Vec<String>,
) -> Result<Option<Secret>, Error> {
    let token = secret(values, around, ["admin-token", "admin-token-file"], warnings)?;
    match &token {
        Some(short) if short.reveal().len() < 16 => {
            Err(Error::Contradiction("admin-token is too short: 16 bytes at least, from a random source".to_owned()))
        }
        Some(_) | None => Ok(token),
    }
}

/// The row of a name this file spells out.
fn row(name: &str) -> &'static Setting {
    Setting::named(name).expect("the names used here are those of the table")
}

/// Typed reading. Every failure names the setting, the origin and what is allowed.
impl Values {
    fn parsed<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&Kind, &str) -> Result<T, String>,
    ) -> Result<Option<T>, Error> {
        let setting = row(name);
        let Some(given) = self.get(name) else { return Ok(None) };
        let parsed = if given.text.is_empty() { Err("is empty".to_owned()) } else { parse(&setting.kind, &given.text) };
        parsed.map(Some).map_err(|why| Error::Value {
            name,
            shown: if setting.is_secret() { "***".to_owned() } else { format!("{:?}", given.text) },
            origin: given.origin.clone(),
            why,
            allowed: setting.kind.allowed(),
        })
    }

    fn required<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&Kind, &str) -> Result<T, String>,
    ) -> Result<T, Error> {
        self.parsed(name, parse)?.ok_or_else(|| missing(name, self))
    }

    fn address(&self, name: &'static str) -> Result<Option<Address>, Error> {
        self.parsed(name, |_, text| {
            text.parse().map_err(|error| match error {
                // The general advice in it is what "allowed" says anyway.
                InvalidAddress::NoPort(_) => "has no port".to_owned(),
                other => format!("is no address: {other}"),
            })
        })
    }

    fn hosts(&self, name: &'static str) -> Result<Vec<IpAddr>, Error> {
        self.required(name, |_, text| parse_hosts(text))
    }

    fn path(&self, name: &'static str) -> Result<Option<PathBuf>, Error> {
        self.parsed(
            name,
            |_, text| {
                if text.contains('\0') { Err("has a NUL in it".to_owned()) } else { Ok(PathBuf::from(text)) }
            },
        )
    }

    fn socket(&self) -> Result<Socket, Error> {
        Ok(match (self.path("socket")?, self.path("dir")?) {
            (Some(path), _) if path.as_os_str() == "none" => Socket::None,
            (Some(path), _) => Socket::At(path),
            (None, Some(dir)) => Socket::InDir(dir.join(SOCKET)),
            (None, None) => Socket::None,
        })
    }

    fn networks(&self, name: &'static str) -> Result<AllowList, Error> {
        Ok(self.parsed(name, |_, text| text.parse())?.unwrap_or_default())
    }

    fn text(&self, name: &'static str) -> Result<Option<String>, Error> {
        self.parsed(name, |_, text| Ok(text.to_owned()))
    }

    fn number(&self, name: &'static str) -> Result<u64, Error> {
        self.required(name, parse_number)
    }

    /// A number whose range in the table fits `T`.
    fn narrow<T: TryFrom<u64>>(&self, name: &'static str) -> Result<T, Error> {
        self.number(name).map(fit)
    }

    fn narrow_or_none<T: TryFrom<u64>>(&self, name: &'static str) -> Result<Option<T>, Error> {
        Ok(self.parsed(name, parse_number)?.map(fit))
    }

    fn time(&self, name: &'static str) -> Result<Duration, Error> {
        self.required(name, parse_time)
    }

    fn time_or_none(&self, name: &'static str) -> Result<Option<Duration>, Error> {
        self.parsed(name, parse_time)
    }
}

fn parse_yes(kind: &Kind, text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(format!("must be one of: {}", kind.allowed())),
    }
}

fn parse_time(kind: &Kind, text: &str) -> Result<Duration, String> {
    let time = units::parse_duration(text).map_err(|why| why.to_string())?;
    match kind {
        Kind::Time { min, .. } if time < *min => Err("is too short".to_owned()),
        Kind::Time { max, .. } if time > *max => Err("is too long".to_owned()),
        _ => Ok(time),
    }
}

fn fit<T: TryFrom<u64>>(number: u64) -> T {
    T::try_from(number).ok().expect("the table's range fits the field")
}

fn parse_number(kind: &Kind, text: &str) -> Result<u64, String> {
    let (number, min, max) = match kind {
        Kind::Bytes { min, max } => (units::parse_bytes(text).map_err(|why| why.to_string())?, *min, *max),
        Kind::Count { min, max } => (parse_count(text)?, *min, *max),
        _ => return Err("is no number".to_owned()),
    };
    if number < min {
        return Err("is too small".to_owned());
    }
    if number > max {
        return Err("is too large".to_owned());
    }
    Ok(number)
}

/// Bytes a second; 0 is no limit.
fn parse_rate(kind: &Kind, text: &str) -> Result<Option<u64>, String> {
    /// Below, a replica would see too few bytes to believe in the transfer.
    const LEAST: u64 = 64 << 10;
    match parse_number(kind, text)? {
        0 => Ok(None),
        rate if rate < LEAST => Err("is too small: give 0 for no limit, or at least 64kb".to_owned()),
        rate => Ok(Some(rate)),
    }
}

fn parse_percent(kind: &Kind, text: &str) -> Result<u8, String> {
    let Kind::Percent { min, max } = kind else { return Err("is no percentage".to_owned()) };
    let number = text.strip_suffix('%').unwrap_or(text);
    let percent: u8 = number.parse().map_err(|_| "is no whole number of percent".to_owned())?;
    if (*min..=*max).contains(&percent) { Ok(percent) } else { Err("is out of range".to_owned()) }
}

fn parse_count(text: &str) -> Result<u64, String> {
    use std::num::IntErrorKind::PosOverflow;
    text.parse().map_err(|error: std::num::ParseIntError| {
        if *error.kind() == PosOverflow { "is too large".to_owned() } else { "is no number".to_owned() }
    })
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        // Redis's way to say every address.
        "*" => Ok(Ipv4Addr::UNSPECIFIED.into()),
        _ => {
            let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
            bare.parse().map_err(|_| format!("has {text:?} in it, which is no IP address"))
        }
    }
}

fn parse_hosts(text: &str) -> Result<Vec<IpAddr>, String> {
    let mut hosts = Vec::new();
    for part in text.split([',', ' ']).filter(|part| !part.is_empty()) {
        let host = parse_ip(part)?;
        if hosts.contains(&host) {
            return Err(format!("names {host} twice"));
        }
        hosts.push(host);
    }
    if hosts.is_empty() { Err("names no address".to_owned()) } else { Ok(hosts) }
}

fn parse_names(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> =
        text.split([',', ' ']).filter(|name| !name.is_empty()).map(str::to_ascii_lowercase).collect();
    let is_odd = |name: &&String| *name != "*" && parse_host(name.strip_prefix('.').unwrap_or(name)).is_err();
    match names.iter().find(is_odd) {
        Some(odd) => Err(format!("has {odd:?} in it, which is no name of a host (leave out the port)")),
        None if names.is_empty() => Err("names nobody".to_owned()),
        None => Ok(names),
    }
}

fn parse_addresses(text: &str) -> Result<Vec<Address>, String> {
    let mut addresses = Vec::new();
    for part in text.split([',', ' ']).filter(|part| !part.is_empty()) {
        match part.parse::<Address>() {
            Ok(address @ Address::Tcp { .. }) if addresses.contains(&address) => {
                return Err(format!("names {part} twice"));
            }
            Ok(address @ Address::Tcp { .. }) => addresses.push(address),
            Ok(Address::Unix(_)) => return Err("has a unix socket in it".to_owned()),
            Err(why) => return Err(format!("has {part:?} in it: {why}")),
        }
    }
    match addresses.len() {
        0 => Err("names no address".to_owned()),
        1..=SENTINELS_MAX => Ok(addresses),
        _ => Err("names too many".to_owned()),
    }
}

fn parse_listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "none" {
        return Ok(None);
    }
    let (host, port) = text.rsplit_once(':').ok_or("has no port")?;
    if host.contains(':') && !host.starts_with('[') {
        return Err("needs brackets around its IPv6 address".to_owned());
    }
    let port = port.parse().map_err(|_| format!("has {port:?} where a port should be"))?;
    Ok(Some(SocketAddr::new(parse_ip(host)?, port)))
}

fn parse_host(text: &str) -> Result<String, String> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok(text.to_owned());
    }
    match format!("{text}:1").parse::<Address>() {
        Ok(Address::Tcp { host, .. }) => Ok(host),
        Ok(Address::Unix(_)) | Err(_) => Err("is no host".to_owned()),
    }
}

#[cfg(test)]
mod tests;
