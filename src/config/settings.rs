//! The one table of settings. Flags, environment variables, keys of the file, `--help`, hints in errors and the
//! example file and the reference are all generated from it, so none of them can disagree.

use std::time::Duration;

use super::tls::LikeUpstream;
use super::units::{print_bytes, print_duration};
use crate::scribe::Fsync;
use crate::upstream::cast::Links;

/// One thing that can be set.
#[derive(Debug)]
pub struct Setting {
    /// Its key in the file; `--name` as a flag.
    pub name: &'static str,
    /// What its values look like and which are allowed.
    pub kind: Kind,
    /// What holds when nobody sets it.
    pub preset: Preset,
    /// What it does, in one or two sentences.
    pub help: &'static str,
    /// What people coming from redis.conf may call it.
    pub also: &'static [&'static str],
}

/// What holds when nobody sets a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// This value.
    Value(&'static str),
    /// Nothing can: it must be set.
    Required,
    /// No value, which means what the text says.
    Nothing(&'static str),
}

/// What a setting's values look like. All ends are inclusive.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Where a node can be reached.
    Address,
    /// Where any number of nodes can be reached.
    Addresses,
    /// A list of IP addresses.
    Hosts,
    /// A list of networks.
    Networks,
    /// An IP address and a port, or `none`.
    Listen,
    /// A host name or IP address.
    Host,
    /// A path.
    Path,
    /// Any text.
    Text,
    /// A text that is never shown and never a flag, because other users can see the flags of a process.
    Secret,
    /// A number.
    Count {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// A size in bytes.
    Bytes {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// A time.
    Time {
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
    /// A share in percent.
    Percent {
        /// The smallest.
        min: u8,
        /// The largest.
        max: u8,
    },
    /// One of these words.
    Word(&'static [&'static str]),
}

const DAY: Duration = Duration::from_secs(86_400);

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Every setting, in the order people read about them.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "upstream",
        kind: Kind::Address,
        preset: Preset::Required,
        help: "The master to follow and to pass ordinary clients to. With sentinels it is only the first guess and need not be given.",
        also: &["replicaof", "slaveof", "master", "address"],
    },
    Setting {
        name: "bind",
        kind: Kind::Hosts,
        preset: Preset::Value("127.0.0.1"),
        help: "Addresses to listen on for replicas and clients.",
        also: &["host", "listen"],
    },
    Setting {
        name: "port",
        kind: Kind::Count { min: 0, max: 65535 },
        preset: Preset::Value("6380"),
        help: "Port to listen on for replicas and clients; 0 takes any free one.",
        also: &[],
    },
    Setting {
        name: "replica-port",
        kind: Kind::Count { min: 0, max: 65535 },
        preset: Preset::Nothing("no replica face"),
        help: "Port of the replica face: the address announced to the master, which answers Sentinel as a replica that is never promoted and obeys REPLICAOF. 0 opens none, also with sentinels.",
        also: &[],
    },
    Setting {
        name: "replica-bind",
        kind: Kind::Hosts,
        preset: Preset::Nothing("as bind"),
        help: "Addresses the replica face listens on.",
        also: &[],
    },
    Setting {
        name: "replica-requirepass",
        kind: Kind::Secret,
        preset: Preset::Nothing("masterauth, as replicas of one set share it"),
        help: "The password the replica face asks for. Whoever knows it may have the data and may have psyncd follow another master.",
        also: &[],
    },
    Setting {
        name: "replica-requirepass-file",
        kind: Kind::Path,
        preset: Preset::Nothing("masterauth"),
        help: "A file with the password the replica face asks for.",
        also: &[],
    },
    Setting {
        name: "sentinels",
        kind: Kind::Addresses,
        preset: Preset::Nothing("the master is not looked for"),
        help: "Sentinels to ask for the master: as many of them as there are, since it takes most of them to leave a master that is there.",
        also: &["sentinel"],
    },
    Setting {
        name: "sentinel-master",
        kind: Kind::Text,
        preset: Preset::Nothing("required with sentinels"),
        help: "The name the Sentinels know the master by.",
        also: &["master-name"],
    },
    Setting {
        name: "sentinel-user",
        kind: Kind::Text,
        preset: Preset::Nothing("the default user"),
        help: "The ACL user to authenticate to the Sentinels as.",
        also: &[],
    },
    Setting {
        name: "sentinel-password",
        kind: Kind::Secret,
        preset: Preset::Nothing("no authentication"),
        help: "The password to authenticate to the Sentinels with.",
        also: &["sentinel-pass"],
    },
    Setting {
        name: "sentinel-password-file",
        kind: Kind::Path,
        preset: Preset::Nothing("no authentication"),
        help: "A file with the password to authenticate to the Sentinels with.",
        also: &["sentinel-pass-file"],
    },
    Setting {
        name: "tls-port",
        kind: Kind::Count { min: 0, max: 65535 },
        preset: Preset::Value("0"),
        help: "Port to listen on for replicas and clients that speak TLS, on the same addresses; 0 is none.",
        also: &[],
    },
    Setting {
        name: "tls-only",
        kind: Kind::Word(&["yes", "no"]),
        preset: Preset::Value("no"),
        help: "Whether tls-port alone is listened on, and port is not.",
        also: &[],
    },
    Setting {
        name: "admin-bind",
        kind: Kind::Listen,
        preset: Preset::Value("127.0.0.1:9379"),
        help: "Where metrics, health and status are served over HTTP. Whoever reaches it can read them.",
        also: &["admin", "admin-port", "metrics-bind"],
    },
    Setting {
        name: "admin-tls",
        kind: Kind::Word(&["yes", "no"]),
        preset: Preset::Value("no"),
        help: "Whether admin-bind speaks TLS, with tls-cert-file and by the rule of tls-auth-clients.",
        also: &[],
    },
    Setting {
        name: "admin-hosts",
        kind: Kind::Text,
        preset: Preset::Nothing("over loopback no name but localhost and this machine's; elsewhere any"),
        help: "The names, separated by commas, that admin-bind may be called by (.example for all below it, * for all), so that no page in somebody's browser reads it under a name of its own. Addresses and localhost are always right.",
        also: &["admin-host"],
    },
    Setting {
        name: "admin-token",
        kind: Kind::Secret,
        preset: Preset::Nothing("nothing can be changed over admin-bind"),
        help: "With it, requests that change something (POST /-/...) are also taken on admin-bind from whoever shows it: Authorization: Bearer TOKEN. At least 16 bytes. Without admin-tls it passes in clear.",
        also: &[],
    },
    Setting {
        name: "admin-token-file",
        kind: Kind::Path,
        preset: Preset::Nothing("nothing can be changed over admin-bind"),
        help: "A file with admin-token; one line end at its end is ignored.",
        also: &[],
    },
    Setting {
        name: "dir",
        kind: Kind::Path,
        preset: Preset::Nothing("a private temporary directory"),
        help: "Directory for the journal and for snapshots, which hold the data set in clear, and for what else is remembered. With one, psyncd can be killed and nobody resyncs. Without one, snapshots are files without a name in a temporary directory (TMPDIR), and gone with the process.",
        also: &["data-dir"],
    },
    Setting {
        name: "socket",
        kind: Kind::Path,
        preset: Preset::Nothing("psyncd.sock in dir; none without dir"),
        help: "The unix socket over which this process is told what to do (psyncd guard ...), for its own user only; none for none.",
        also: &["control-socket", "unixsocket", "admin-socket"],
    },
    Setting {
        name: "repl-backlog-size",
        kind: Kind::Bytes { min: 16 << 10, max: 1 << 40 },
        preset: Preset::Value("256mb"),
        help: "Memory for the replication stream: how far behind a replica may be and still continue without a full resync.",
        also: &["backlog-size"],
    },
    Setting {
        name: "backlog-disk-size",
        kind: Kind::Bytes { min: 0, max: 1 << 50 },
        preset: Preset::Value("4gb"),
        help: "Disk for the replication stream behind what memory holds, in dir: how far behind a replica may be and still continue. 0 keeps no journal, and so does not setting dir.",
        also: &["journal-size"],
    },
    Setting {
        name: "backlog-disk-hard-limit",
        kind: Kind::Bytes { min: 0, max: 1 << 50 },
        preset: Preset::Nothing("half as much again as backlog-disk-size"),
        help: "Disk the journal may take while a replica that loads a snapshot still needs what would otherwise be dropped.",
        also: &[],
    },
    Setting {
        name: "backlog-disk-keep",
        kind: Kind::Time { min: seconds(1), max: Duration::from_secs(10 * 365 * 86_400) },
        preset: Preset::Nothing("as long as there is room"),
        help: "How long the journal keeps the stream where there would be room for more.",
        also: &["journal-keep"],
    },
    Setting {
        name: "segment-size",
        kind: Kind::Bytes { min: 64 << 10, max: 4 << 30 },
        preset: Preset::Value("64mb"),
        help: "The journal is dropped in pieces of this size.",
        also: &[],
    },
    Setting {
        name: "journal-max-lag",
        kind: Kind::Bytes { min: 0, max: 1 << 40 },
        preset: Preset::Value("64mb"),
        help: "Memory that may hold what a slow disk has not taken yet, where repl-backlog-size is less. Beyond the larger of the two the journal has a gap and begins anew.",
        also: &[],
    },
    Setting {
        name: "fsync",
        kind: Kind::Word(Fsync::WORDS),
        preset: Preset::Value("everysec"),
        help: "When the journal is made durable. A psyncd that is killed loses nothing either way; a machine that crashes loses what was not durable, and the master sends it again.",
        also: &["appendfsync"],
    },
    Setting {
        name: "adopt-journal",
        kind: Kind::Word(&["yes", "no"]),
        preset: Preset::Value("no"),
        help: "Take over a journal that was written following another upstream: yes after the same node got another address. Otherwise psyncd refuses to start with it.",
        also: &[],
    },
    Setting {
        name: "history-depth",
        kind: Kind::Count { min: 1, max: 1024 },
        preset: Preset::Value("16"),
        help: "How many replication ids are remembered across failovers, so that replicas that missed several can still continue.",
        also: &[],
    },
    Setting {
        name: "keep-lost-writes",
        kind: Kind::Bytes { min: 0, max: 1 << 40 },
        preset: Preset::Value("64mb"),
        help: "After a failover that lost writes, psyncd keeps this much of what the new master never had in dir, as lost-*.resp: the old master's commands, for people to look at. 0 keeps nothing.",
        also: &[],
    },
    Setting {
        name: "masteruser",
        kind: Kind::Text,
        preset: Preset::Nothing("the default user"),
        help: "The ACL user to authenticate to the master as.",
        also: &["user", "username"],
    },
    Setting {
        name: "masterauth",
        kind: Kind::Secret,
        preset: Preset::Nothing("no authentication"),
        help: "The password to authenticate to the master with. Better kept in a file of its own: see masterauth-file.",
        also: &["password", "auth"],
    },
    Setting {
        name: "masterauth-file",
        kind: Kind::Path,
        preset: Preset::Nothing("no authentication"),
        help: "A file with the password to authenticate to the master with; one line end at its end is ignored.",
        also: &["password-file"],
    },
    Setting {
        name: "upstream-tls",
        kind: Kind::Word(&["yes", "no"]),
        preset: Preset::Value("no"),
        help: "Whether psyncd speaks TLS to the upstream.",
        also: &["tls", "tls-replication"],
    },
    Setting {
        name: "peer-tls",
        kind: Kind::Word(LikeUpstream::WORDS),
        preset: Preset::Value("upstream"),
        help: "Whether psyncd speaks TLS to the replicas that it asks for a snapshot or for their priority, at the addresses they announced, and in a planned failover to the old master's psyncd. upstream: as upstream-tls has it.",
        also: &["replica-tls", "snapshot-source-tls"],
    },
    Setting {
        name: "sentinel-tls",
        kind: Kind::Word(LikeUpstream::WORDS),
        preset: Preset::Value("upstream"),
        help: "Whether psyncd speaks TLS to the Sentinels it asks. upstream: as upstream-tls has it.",
        also: &[],
    },
    Setting {
        name: "tls-cert-file",
        kind: Kind::Path,
        preset: Preset::Nothing("none"),
        help: "The certificate (PEM, followed by those that lead to its authority) that is shown to whoever connects to tls-port, and to the upstream where it wants one. Read again on SIGHUP and when it changes.",
        also: &["tls-cert"],
    },
    Setting {
        name: "tls-key-file",
        kind: Kind::Path,
        preset: Preset::Nothing("none"),
        help: "The private key (PEM, not encrypted) of tls-cert-file.",
        also: &["tls-key"],
    },
    Setting {
        name: "tls-client-cert-file",
        kind: Kind::Path,
        preset: Preset::Nothing("tls-cert-file"),
        help: "The certificate that is shown to the upstream, where that is another one.",
        also: &[],
    },
    Setting {
        name: "tls-client-key-file",
        kind: Kind::Path,
        preset: Preset::Nothing("tls-key-file"),
        help: "The private key of tls-client-cert-file.",
        also: &[],
    },
    Setting {
        name: "tls-ca-cert-file",
        kind: Kind::Path,
        preset: Preset::Nothing("none"),
        help: "The authorities (PEM) whose certificates are believed, of those who connect and of the upstream.",
        also: &["tls-ca-file"],
    },
    Setting {
        name: "tls-auth-clients",
        kind: Kind::Word(&["yes", "no", "optional"]),
        preset: Preset::Value("yes"),
        help: "Whether those who connect to tls-port have to show a certificate. With optional they need none, but one that is shown has to be good.",
        also: &[],
    },
    Setting {
        name: "tls-allow-replicas",
        kind: Kind::Text,
        preset: Preset::Nothing("any replica"),
        help: "The names, separated by commas, one of which the certificate of a replica has to have (a DNS name among its alternative names, or its common name). Where this is set a replica needs a certificate, so none can come to the plain port.",
        also: &[],
    },
    Setting {
        name: "tls-verify",
        kind: Kind::Word(&["full", "ca", "none"]),
        preset: Preset::Value("full"),
        help: "What is checked of the upstream's certificate: full is its authority and its name, ca only its authority, which is what Redis does, none is nothing.",
        also: &[],
    },
    Setting {
        name: "tls-server-name",
        kind: Kind::Host,
        preset: Preset::Nothing("the host in upstream"),
        help: "The name the upstream's certificate has to have, where psyncd reaches it under another one (127.0.0.1, say).",
        also: &[],
    },
    Setting {
        name: "protected-mode",
        kind: Kind::Word(&["yes", "no"]),
        preset: Preset::Value("yes"),
        help: "Whether other hosts are refused where nothing protects the data: clients while the master wants no password and allow-clients is not set; replicas while everybody may replicate and allow-replicas is not set. The master's own protected mode sees only psyncd.",
        also: &[],
    },
    Setting {
        name: "replica-auth",
        kind: Kind::Word(&["upstream", "static", "none"]),
        preset: Preset::Value("upstream"),
        help: "Who judges replicas. upstream: the master, by their own AUTH and its ACL; while it is away, those are let in who were right before, or name requirepass, a [[user]] or masterauth. static: requirepass and [[user]] alone. none: every replica is let in.",
        also: &[],
    },
    Setting {
        name: "requirepass",
        kind: Kind::Secret,
        preset: Preset::Nothing("none"),
        help: "The password of replicas (masterauth there, without masteruser): the only one but those of [[user]] with replica-auth static, and with upstream one that counts while the master is away. Better kept in a file of its own: see requirepass-file.",
        also: &[],
    },
    Setting {
        name: "requirepass-file",
        kind: Kind::Path,
        preset: Preset::Nothing("none"),
        help: "A file with requirepass; one line end at its end is ignored.",
        also: &[],
    },
    Setting {
        name: "auth-cache-ttl",
        kind: Kind::Time { min: Duration::ZERO, max: Duration::from_secs(365 * 86_400) },
        preset: Preset::Value("24h"),
        help: "How long a password the master accepted lets a replica in while the master is away. Only a salted hash is kept, in memory. 0 remembers none.",
        also: &[],
    },
    Setting {
        name: "allow-replicas",
        kind: Kind::Networks,
        preset: Preset::Nothing("every address"),
        help: "From where replicas may come.",
        also: &[],
    },
    Setting {
        name: "allow-clients",
        kind: Kind::Networks,
        preset: Preset::Nothing("every address"),
        help: "From where ordinary clients may come. One that says PSYNC or SYNC has to be in allow-replicas too.",
        also: &[],
    },
    Setting {
        name: "allow-admin",
        kind: Kind::Networks,
        preset: Preset::Nothing("every address"),
        help: "From where admin-bind may be asked.",
        also: &[],
    },
    Setting {
        name: "max-unauthenticated",
        kind: Kind::Count { min: 1, max: 1_000_000 },
        preset: Preset::Value("256"),
        help: "How many connections from one address may be open that have not yet shown what they are: a client passed on, or a replica that may be one. Of IPv6 addresses the first 64 bits count.",
        also: &[],
    },
    Setting {
        name: "max-connection-rate",
        kind: Kind::Count { min: 0, max: 1_000_000 },
        preset: Preset::Value("0"),
        help: "How many connections a second one address may open; 0 is no limit.",
        also: &[],
    },
    Setting {
        name: "max-handshake-bytes",
        kind: Kind::Bytes { min: 1 << 10, max: 1 << 20 },
        preset: Preset::Value("16kb"),
        help: "How much a connection may say before it is known to be a client's, or a replica's that asked for the data.",
        also: &[],
    },
    Setting {
        name: "announce-ip",
        kind: Kind::Host,
        preset: Preset::Nothing("the address the master sees"),
        help: "The host the master is told this node can be reached at.",
        also: &["replica-announce-ip", "slave-announce-ip"],
    },
    Setting {
        name: "announce-port",
        kind: Kind::Count { min: 1, max: 65535 },
        preset: Preset::Nothing("replica-port, or none: nobody who reads the master's INFO will call"),
        help: "The port the master is told this node can be reached at.",
        also: &["replica-announce-port", "slave-announce-port"],
    },
    Setting {
        name: "assist-failover",
        kind: Kind::Word(&["yes", "no"]),
        preset: Preset::Value("no"),
        help: "Whether a planned failover is assisted: the promotion of this node is held for at most a second while the old master's psyncd stops writes and lets everybody catch up, so that nothing is lost and nobody resyncs. Both psyncds need it, and the same assist-secret.",
        also: &["assisted-failover"],
    },
    Setting {
        name: "assist-secret",
        kind: Kind::Secret,
        preset: Preset::Nothing("none: assist-failover needs one"),
        help: "What psyncds prove to each other to know before one of them stops the writes of its master. Better kept in a file of its own: see assist-secret-file.",
        also: &[],
    },
    Setting {
        name: "assist-secret-file",
        kind: Kind::Path,
        preset: Preset::Nothing("none: assist-failover needs one"),
        help: "A file with the assist-secret; one line end at its end is ignored.",
        also: &[],
    },
    Setting {
        name: "ack-policy",
        kind: Kind::Text,
        preset: Preset::Value("quorum:1"),
        help: "What the master hears acknowledged, and so what WAIT, FAILOVER and SHUTDOWN go by: received (what psyncd has), quorum:K (what K online replicas have) or all (what every online replica has). While no replica is online it is what psyncd has.",
        also: &[],
    },
    Setting {
        name: "ack-when-empty",
        kind: Kind::Word(&["yes", "no"]),
        preset: Preset::Value("yes"),
        help: "Whether psyncd acknowledges while no replica is online. With no, min-replicas-to-write on the master is not satisfied by psyncd alone; the master drops the link every repl-timeout, and it is resumed.",
        also: &[],
    },
    Setting {
        name: "upstream-links",
        kind: Kind::Word(Links::WORDS),
        preset: Preset::Value("single"),
        help: "single: to the master psyncd is one replica. mirrored: every online replica has a link of its own, which announces its address and forwards its acknowledgements, so that WAIT, min-replicas-to-write and FAILOVER TO on the master are as without psyncd; ack-policy then holds only while no replica is online. The master sends the stream once for each.",
        also: &[],
    },
    Setting {
        name: "repl-timeout",
        kind: Kind::Time { min: seconds(2), max: DAY },
        preset: Preset::Value("60"),
        help: "How long the master or a replica may be silent before the link to it counts as lost.",
        also: &[],
    },
    Setting {
        name: "connect-timeout",
        kind: Kind::Time { min: Duration::from_millis(10), max: seconds(3600) },
        preset: Preset::Value("5s"),
        help: "How long connecting to the master may take.",
        also: &[],
    },
    Setting {
        name: "handshake-timeout",
        kind: Kind::Time { min: Duration::from_millis(100), max: seconds(3600) },
        preset: Preset::Value("10s"),
        help: "How long a new connection may take to say whether it is a replica or a client.",
        also: &[],
    },
    Setting {
        name: "hold-timeout",
        kind: Kind::Time { min: Duration::ZERO, max: DAY },
        preset: Preset::Value("60s"),
        help: "How long a replica that is ahead of this node, or of an unknown history, waits for the master's word before a full resync.",
        also: &[],
    },
    Setting {
        name: "drain-timeout",
        kind: Kind::Time { min: Duration::ZERO, max: seconds(3600) },
        preset: Preset::Value("20s"),
        help: "How long replicas may take, at the end of psyncd, for what there is to send them and to acknowledge it. A second signal ends at once.",
        also: &[],
    },
    Setting {
        name: "gather-time",
        kind: Kind::Time { min: Duration::ZERO, max: Duration::from_millis(10) },
        preset: Preset::Value("0s"),
        help: "The least time between two writes to the replicas while eight or more are attached. More (200us, say) costs them as much delay at most and saves CPU time at ordinary rates; a command after a silence and WAIT are never delayed.",
        also: &[],
    },
    Setting {
        name: "wipe-guard",
        kind: Kind::Word(&["off", "warn", "hold"]),
        preset: Preset::Value("hold"),
        help: "What happens when the master comes back empty, or nearly so, with a history that does not explain it: hold keeps the replicas on their data until psyncd guard release, or until the data is back.",
        also: &["guard", "guard-mode"],
    },
    Setting {
        name: "guard-min-keys",
        kind: Kind::Count { min: 0, max: 1 << 62 },
        preset: Preset::Value("1000"),
        help: "The wipe guard acts only for masters that last had more keys than this.",
        also: &[],
    },
    Setting {
        name: "guard-min-ratio",
        kind: Kind::Percent { min: 0, max: 100 },
        preset: Preset::Value("10%"),
        help: "A master that comes back with less than this much of the keys it last had counts as wiped; one without any always does.",
        also: &["guard-ratio"],
    },
    Setting {
        name: "guard-interval",
        kind: Kind::Time { min: seconds(1), max: seconds(3600) },
        preset: Preset::Value("15s"),
        help: "How often the master's keys are counted for the wipe guard, each time with one short connection that asks INFO.",
        also: &[],
    },
    Setting {
        name: "snapshot-source",
        kind: Kind::Word(&["auto", "replicas", "upstream"]),
        preset: Preset::Value("auto"),
        help: "Who is asked for an RDB when a replica needs one and none is cached. auto asks the replicas that are in sync, at the addresses they announced (with a password only those that named it themselves), then the master; replicas never makes the master fork on behalf of a replica, which waits instead; upstream leaves the replicas alone.",
        also: &[],
    },
    Setting {
        name: "snapshot-min-interval",
        kind: Kind::Time { min: Duration::ZERO, max: seconds(3600) },
        preset: Preset::Value("60"),
        help: "The least time between two RDBs that the master is asked for. The first one is never put off; replicas that need another one sooner wait, unless one of the others can give it.",
        also: &[],
    },
    Setting {
        name: "max-replicas",
        kind: Kind::Count { min: 1, max: 4096 },
        preset: Preset::Value("64"),
        help: "How many replicas may be attached at once.",
        also: &["maxreplicas"],
    },
    Setting {
        name: "max-senders",
        kind: Kind::Count { min: 1, max: 4096 },
        preset: Preset::Value("4"),
        help: "How many replicas are sent a snapshot at once. The others wait their turn, failover candidates first; replicas that can continue never wait.",
        also: &["max-concurrent-senders"],
    },
    Setting {
        name: "sender-rate-limit",
        kind: Kind::Bytes { min: 0, max: 1 << 40 },
        preset: Preset::Value("0"),
        help: "Bytes a second that all snapshots being sent may use together, at least 64kb; 0 is no limit. The live stream is never limited.",
        also: &["max-sender-rate"],
    },
    Setting {
        name: "maxclients",
        kind: Kind::Count { min: 1, max: 1_000_000 },
        preset: Preset::Value("10000"),
        help: "How many ordinary clients may be passed through at once.",
        also: &["max-clients"],
    },
    Setting {
        name: "tcp-keepalive",
        // Three probes follow, each after a third of the time, and the kernel counts in whole seconds up to 32767.
        kind: Kind::Time { min: seconds(3), max: seconds(32_767) },
        preset: Preset::Value("300"),
        help: "How long a connection may be idle before the kernel asks whether the peer is still there.",
        also: &[],
    },
    Setting {
        name: "tcp-backlog",
        kind: Kind::Count { min: 1, max: 65535 },
        preset: Preset::Value("511"),
        help: "How many connections the kernel holds until they are accepted.",
        also: &[],
    },
    Setting {
        name: "log-format",
        kind: Kind::Word(&["auto", "logfmt", "json", "pretty"]),
        preset: Preset::Value("auto"),
        help: "How log lines look. auto is pretty on a terminal and logfmt elsewhere, with journald's priorities where it listens.",
        also: &[],
    },
    Setting {
        name: "loglevel",
        kind: Kind::Word(&["debug", "verbose", "notice", "warning", "trace", "info", "warn", "error"]),
        preset: Preset::Value("notice"),
        help: "How much is logged. Redis's words and the usual ones both work.",
        also: &["log-level"],
    },
];

impl Setting {
    /// The setting of that name.
    pub fn named(name: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// Its environment variable.
    pub fn env(&self) -> String {
        format!("PSYNCD_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }

    /// Whether it may be given as a flag.
    pub fn is_flag(&self) -> bool {
        !self.is_secret()
    }

    /// Whether its value must never be shown.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Secret)
    }

    /// The help text with the environment variable and the default.
    pub fn long_help(&self) -> String {
        let preset = match self.preset {
            Preset::Value(value) => format!("[default: {value}]"),
            Preset::Required => "[required]".to_owned(),
            Preset::Nothing(meaning) => format!("[default: {meaning}]"),
        };
        let words = match self.kind {
            Kind::Word(words) => format!(" [one of: {}]", words.join(", ")),
            _ => String::new(),
        };
        let live = if self.is_live() { " [changed by a reload]" } else { "" };
        format!("{}{words} {preset}{live} [env: {}]", self.help, self.env())
    }

    /// Whether a reload changes it; for any other a restart is needed.
    pub fn is_live(&self) -> bool {
        LIVE.contains(&self.name)
    }
}

impl Kind {
    /// What stands for the value in `--help`.
    pub fn placeholder(&self) -> &'static str {
        match self {
            Kind::Address => "HOST:PORT",
            Kind::Addresses => "HOST:PORT,...",
            Kind::Hosts => "ADDR",
            Kind::Networks => "CIDR",
            Kind::Listen => "ADDR:PORT",
            Kind::Host => "HOST",
            Kind::Path => "PATH",
            Kind::Text => "TEXT",
            Kind::Secret => "SECRET",
            Kind::Count { .. } => "N",
            Kind::Bytes { .. } => "SIZE",
            Kind::Time { .. } => "TIME",
            Kind::Percent { .. } => "PERCENT",
            Kind::Word(_) => "WORD",
        }
    }

    /// Which values are allowed, as a phrase.
    pub fn allowed(&self) -> String {
        match self {
            Kind::Address => "HOST:PORT, [IPV6]:PORT or unix:/path".to_owned(),
            Kind::Addresses => "up to 16 of HOST:PORT or [IPV6]:PORT, separated by commas".to_owned(),
            Kind::Hosts => "IP addresses, separated by commas".to_owned(),
            Kind::Networks => "networks (10.0.0.0/8) and IP addresses, separated by commas".to_owned(),
            Kind::Listen => "ADDR:PORT with an IP address, or none".to_owned(),
            Kind::Host => "a host name or an IP address".to_owned(),
            Kind::Path => "a path".to_owned(),
            Kind::Text | Kind::Secret => "a text that is not empty".to_owned(),
            Kind::Count { min, max } => format!("a number from {min} to {max}"),
            Kind::Bytes { min, max } => {
                format!("a size from {} to {} (1k is 1000, 1kb is 1024)", print_bytes(*min), print_bytes(*max))
            }
            Kind::Time { min, max } => {
                format!("a time from {} to {} (bare numbers are seconds)", print_duration(*min), print_duration(*max))
            }
            Kind::Percent { min, max } => format!("a percentage from {min}% to {max}%"),
            Kind::Word(words) => words.join(", "),
        }
    }

    /// Whether the value reads best without quotes in the file.
    fn is_bare(&self, text: &str) -> bool {
        matches!(self, Kind::Count { .. } | Kind::Bytes { .. } | Kind::Time { .. })
            && text.bytes().all(|b| b.is_ascii_digit())
    }

    /// `text` as a value of the file.
    pub(super) fn quoted(&self, text: &str) -> String {
        // JSON's strings are TOML's basic strings, except that TOML wants DEL escaped too.
        if self.is_bare(text) {
            text.to_owned()
        } else {
            serde_json::json!(text).to_string().replace('\u{7f}', "\\u007f")
        }
    }
}

/// The commented example file.
pub fn example() -> String {
    let mut text = String::from(
        "# psyncd's settings: everything here is also a flag (--repl-backlog-size) and an environment variable\n\
         # (PSYNCD_REPL_BACKLOG_SIZE); a flag wins over the environment, the environment over this file.\n\
         # Sizes are Redis's: 1k is 1000, 1kb is 1024. Times are seconds, or 200us, 500ms, 10s, 1m30s, 2h.\n",
    );
    for setting in SETTINGS {
        text.push('\n');
        for line in wrapped(setting.help) {
            text.push_str(&format!("# {line}\n"));
        }
        if setting.is_live() {
            text.push_str("# Changed by a reload (SIGHUP).\n");
        }
        if !matches!(setting.kind, Kind::Path | Kind::Text | Kind::Secret) {
            text.push_str(&format!("# Allowed: {}.\n", setting.kind.allowed()));
        }
        match setting.preset {
            Preset::Value(value) => text.push_str(&format!("#{} = {}\n", setting.name, setting.kind.quoted(value))),
            Preset::Required => text.push_str(&format!("{} = \"127.0.0.1:6379\"\n", setting.name)),
            Preset::Nothing(meaning) => {
                text.push_str(&format!("# Default: {meaning}.\n#{} = {}\n", setting.name, sample(setting)));
            }
        }
    }
    text + USERS
}

/// What a reload changes. The files that certificates and passwords are in are read again in any case.
const LIVE: &[&str] = &[
    "upstream",
    "masteruser",
    "masterauth",
    "masterauth-file",
    "sentinel-user",
    "sentinel-password",
    "sentinel-password-file",
    "replica-requirepass",
    "replica-requirepass-file",
    "admin-token",
    "admin-token-file",
    "repl-backlog-size",
    "backlog-disk-size",
    "backlog-disk-hard-limit",
    "backlog-disk-keep",
    "journal-max-lag",
    "fsync",
    "keep-lost-writes",
    "tls-allow-replicas",
    "protected-mode",
    "replica-auth",
    "requirepass",
    "requirepass-file",
    "auth-cache-ttl",
    "allow-replicas",
    "allow-clients",
    "allow-admin",
    "admin-hosts",
    "max-unauthenticated",
    "max-connection-rate",
    "max-handshake-bytes",
    "ack-policy",
    "ack-when-empty",
    "repl-timeout",
    "connect-timeout",
    "handshake-timeout",
    "hold-timeout",
    "drain-timeout",
    "wipe-guard",
    "guard-min-keys",
    "guard-min-ratio",
    "guard-interval",
    "snapshot-source",
    "snapshot-min-interval",
    "max-replicas",
    "max-senders",
    "sender-rate-limit",
    "maxclients",
    "loglevel",
];

/// What the file may have besides settings, behind them all.
pub(super) const USERS: &str = "
# Users of our own, any number of them, for replicas (masteruser and masterauth there): with replica-auth static they
# are let in, with upstream they are while the master is away. Instead of password-file a user may have password-hash,
# the SHA-256 of the password in hexadecimal, as in Redis's ACLs; with replicate = \"no\" it is known and refused.
#[[user]]
#name = \"replica\"
#password-file = \"/etc/psyncd/replica\"
#replicate = \"yes\"
";

/// A value for a setting without a default one, to show its form.
fn sample(setting: &Setting) -> &'static str {
    match setting.kind {
        Kind::Path if setting.name == "dir" => "\"/var/lib/psyncd\"",
        Kind::Path if setting.name == "socket" => "\"/var/lib/psyncd/psyncd.sock\"",
        Kind::Path if setting.name.starts_with("tls-") => "\"/etc/psyncd/tls/tls.pem\"",
        Kind::Path if setting.name == "requirepass-file" => "\"/etc/psyncd/requirepass\"",
        Kind::Path => "\"/etc/psyncd/masterauth\"",
        Kind::Networks => "\"10.0.0.0/8\"",
        Kind::Host => "\"psyncd-0.psyncd\"",
        Kind::Count { .. } => "6380",
        Kind::Bytes { .. } => "\"6gb\"",
        Kind::Time { .. } => "\"24h\"",
        Kind::Hosts => "\"127.0.0.1\"",
        Kind::Addresses => "\"10.0.0.1:26379,10.0.0.2:26379,10.0.0.3:26379\"",
        _ => "\"psyncd\"",
    }
}

/// `text` in lines of at most 100 columns.
pub(super) fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        if lines.last().is_some_and(|line| !line.is_empty() && line.len() + 1 + word.len() > 100) {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_a_reload_changes_are_settings() {
        for name in LIVE {
            assert!(SETTINGS.iter().any(|setting| setting.name == *name), "{name} is none");
        }
    }

    #[test]
    fn no_name_is_taken_twice() {
        let mut names = BTreeSet::new();
        for setting in SETTINGS {
            for name in setting.also.iter().chain([&setting.name]) {
                assert!(names.insert(*name), "{name} stands for two settings");
            }
        }
    }

    #[test]
    fn the_environment_variable_follows_from_the_name() {
        let setting = Setting::named("repl-backlog-size").unwrap();
        assert_eq!(setting.env(), "PSYNCD_REPL_BACKLOG_SIZE");
    }

    #[test]
    fn the_example_file_in_deploy_is_the_generated_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/psyncd.example.toml");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(written, example(), "renew it: cargo run -- check-config --example > deploy/psyncd.example.toml");
    }

    #[test]
    fn the_example_file_is_valid_with_every_line_uncommented() {
        let bare: String = example()
            .lines()
            .map(|line| if line.starts_with("# ") { "" } else { line.trim_start_matches('#') })
            .map(|line| format!("{line}\n"))
            .collect();
        let table: toml::Table = bare.parse().unwrap();
        assert_eq!(table.len(), SETTINGS.len() + 1, "and [[user]]");
    }
}
