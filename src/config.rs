//! The configuration: flags, environment and file become one validated [`Config`], or one line that says what is
//! wrong and where. Begin with the table in [`settings`].
//!
//! Nothing here listens, connects or logs.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub mod caller;
mod error;
pub mod identity;
mod nearest;
mod reading;
pub mod reference;
pub mod reloads;
mod secrets;
pub mod settings;
pub mod sources;
mod tls;
pub mod units;
mod users;

use crate::access::ReplicaAuth;
use crate::access::allow::AllowList;
use crate::access::users::User;
use crate::log;
use crate::net::Address;
use crate::repl::{AckPolicy, guard};
use crate::scribe::Fsync;
use crate::upstream::cast::Links;
use crate::upstream::source::SnapshotSource;
use crate::wire::dialogue::Login;
pub use error::Error;
use reading::{
    missing, parse_addresses, parse_host, parse_hosts, parse_listen, parse_names, parse_number, parse_percent,
    parse_rate, parse_yes,
};
pub use secrets::Secret;
use secrets::{admin_token, assist, secret};
pub use sources::{Flags, Origin, Shown, Surroundings, Values};
pub use tls::Tls;

/// No configuration or password file is larger than this.
pub const LIMIT_FILE_BYTES: u64 = 1 << 20;

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

#[cfg(test)]
mod tests;
