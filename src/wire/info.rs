//! Reading a master's INFO: who it is, whose stream it has, and how much of it.
//!
//! Lines are `key:value`, ended by CRLF or LF, in sections; what is missing or makes no sense is `None`,
//! what is not known is skipped (server.c `genRedisInfoString`, in Valkey `genValkeyInfoString`). The text may still
//! wear the header of its bulk.

use bytes::Bytes;

use crate::repl::{Ancestor, Offset, Position, ReplId, Span};

use super::text;

/// What we want to know of a server. Every field is `None` when the server did not say it, be it for its
/// age or because the section was not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MasterInfo {
    /// Whether it is a master.
    pub role: Option<Role>,
    /// The id of its stream (4.0 and later).
    pub replid: Option<ReplId>,
    /// The id of its stream before, and the last point at which that stream was its own:
    /// `second_repl_offset` less one.
    pub replid2: Option<(ReplId, Offset)>,
    /// Up to where it has the stream. On a replica this is its own, not its master's.
    pub offset: Option<Offset>,
    /// What of the stream it still holds; `None` also when it holds no backlog.
    pub backlog: Option<Span>,
    /// The id of the process, new with every start.
    pub run_id: Option<String>,
    /// What kind of server it is.
    pub server: Option<Server>,
    /// Its own version: Valkey's for Valkey, else as [`Self::redis_version`].
    pub version: Option<String>,
    /// The version of Redis it is compatible with.
    pub redis_version: Option<String>,
    /// Of a replica: whether it is connected to its master.
    pub link: Option<LinkStatus>,
    /// Of a replica: the host and port it follows.
    pub master: Option<(String, u16)>,
    /// Of a replica: up to where it has applied its master's stream.
    pub applied: Option<Offset>,
    /// Whether it is loading a data set.
    pub loading: Option<bool>,
    /// Replicas it lists.
    pub connected_replicas: Option<u64>,
    /// Bytes its backlog can hold.
    pub backlog_size: Option<u64>,
    /// Of a replica: how early it is chosen for promotion, low numbers first; 0 is never.
    pub priority: Option<u32>,
    /// Keys in all databases together; `None` when that section was not said, which an empty server says as well.
    pub keys: Option<u64>,
    /// Of a replica: whether it refuses writes of its own.
    pub read_only: Option<bool>,
    /// Of a replica: whether it is receiving a data set from its master.
    pub syncing: Option<bool>,
    /// Whether a child of it is writing a snapshot or a log.
    pub saving: Option<bool>,
    /// Commands it executes a second.
    pub ops_per_second: Option<u64>,
    /// Clients it serves.
    pub clients: Option<u64>,
    /// The memory it may use for data, in bytes; 0 means any.
    pub max_memory: Option<u64>,
    /// Of a psyncd: the ids of the psyncd's between the master and whoever asks, from the master down, its own the
    /// last. At most [`CHAIN_MAX`].
    pub chain: Vec<String>,
}

/// Most ids of a chain that are read.
pub const CHAIN_MAX: usize = 16;

/// What a server takes itself for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes writes.
    Master,
    /// It follows someone.
    Replica,
}

impl Role {
    /// Metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Master => "master",
            Role::Replica => "replica",
        }
    }
}

/// Whose work a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// Redis.
    Redis,
    /// Valkey.
    Valkey,
    /// Another one, by the name it gives itself.
    Other(String),
}

/// A replica's link to its master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkStatus {
    /// In sync and connected.
    Up,
    /// Anything else.
    Down,
}

/// Where and how to attach to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attach {
    /// The point to continue from; maybe in the middle of a command.
    pub from: Position,
    /// The first point known to lie between commands: where the server was when it answered.
    pub boundary: Offset,
}

impl MasterInfo {
    /// Where a stream can be attached to without any payload. `None` while it loads, since its id may then still
    /// change, and without a backlog.
    ///
    /// As early as possible, so that replicas that are a little behind its head can continue from us: at the oldest
    /// byte held, or, where the backlog is full and loses its oldest bytes while we ask, a quarter of it further on.
    pub fn warm_attach(&self) -> Option<Attach> {
        if self.loading == Some(true) {
            return None;
        }
        let (id, head, held) = (self.replid?, self.offset?, self.backlog?);
        if !held.serves(head) {
            return None;
        }
        let room = self.backlog_size.is_some_and(|size| held.len() < size / 4 * 3);
        let from = if room { held.start } else { held.start.forward(held.len() / 4) };
        Some(Attach { from: Position::new(id, from.min(head)), boundary: head })
    }

    /// Whether the Redis it is compatible with is at least `(major, minor)`; `false` when unknown.
    pub fn version_at_least(&self, least: (u32, u32)) -> bool {
        self.redis_version.as_deref().and_then(major_minor).is_some_and(|version| version >= least)
    }
}

/// What we say of our own replication to a psyncd behind us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replication {
    /// The current id.
    pub id: ReplId,
    /// The newest earlier one.
    pub previous: Option<Ancestor>,
    /// What is held.
    pub window: Span,
    /// The last point known to lie between commands.
    pub boundary: Offset,
    /// Bytes the backlog can hold.
    pub limit: u64,
}

impl Replication {
    /// The replication section of INFO as a master has it, as far as it takes to attach without a full sync, in a
    /// RESP bulk. Its offset is a boundary, as a server's always is, though we may hold a little more.
    ///
    /// `chain` are the psyncd's between the master and the asker, from the master down and us the last.
    pub fn reply(&self, chain: &[String]) -> Bytes {
        let text = format!("# Replication\r\nrole:master\r\n{}psyncd_chain:{}\r\n", self.lines(), chain.join(","));
        Bytes::from(format!("${}\r\n{text}\r\n", text.len()))
    }

    /// Where a server would be: at a boundary, though we may hold a little more.
    pub(super) fn end(&self) -> Offset {
        self.boundary.max(self.window.start)
    }

    /// The lines from `master_replid` on, each with its line end.
    pub(super) fn lines(&self) -> String {
        let (second, second_offset) = match self.previous {
            Some(ancestor) => (ancestor.id.to_string(), ancestor.boundary.forward(1).to_string()),
            None => ("0".repeat(ReplId::LEN), "-1".to_owned()),
        };
        let Replication { id, window, limit, .. } = self;
        let end = self.end();
        format!(
            "master_replid:{id}\r\nmaster_replid2:{second}\r\n\
             master_repl_offset:{}\r\nsecond_repl_offset:{second_offset}\r\nrepl_backlog_active:1\r\n\
             repl_backlog_size:{limit}\r\nrepl_backlog_first_byte_offset:{}\r\nrepl_backlog_histlen:{}\r\n",
            end,
            window.start.forward(1),
            end.since(window.start)
        )
    }
}

fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    Some((parts.next()??, parts.next()??))
}

/// Reads the text of an INFO reply, of any sections. Of a key said twice the last counts.
///
/// ```
/// use psyncd::wire::info::{Role, parse_info};
/// let info = parse_info(b"# Replication\r\nrole:master\r\nconnected_slaves:2\r\n");
/// assert_eq!((info.role, info.connected_replicas), (Some(Role::Master), Some(2)));
/// ```
pub fn parse_info(info: &[u8]) -> MasterInfo {
    let mut read = MasterInfo::default();
    let mut replid2 = None;
    let mut second_next_byte = None;
    let (mut master_host, mut master_port) = (None, None);
    let mut backlog = Backlog::default();
    let mut names = Names::default();
    for line in info.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line == b"# Keyspace" {
            read.keys = read.keys.or(Some(0));
        }
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let (key, value) = (&line[..colon], &line[colon + 1..]);
        match key {
            b"role" => read.role = role(value),
            b"master_replid" => read.replid = some_id(value),
            b"master_replid2" => replid2 = some_id(value),
            b"second_repl_offset" => second_next_byte = text::natural(value),
            b"master_repl_offset" => read.offset = text::natural(value).map(Offset::new),
            b"repl_backlog_active" => backlog.active = value == b"1",
            b"repl_backlog_first_byte_offset" => backlog.first_byte = text::natural(value),
            b"repl_backlog_histlen" => backlog.len = text::natural(value),
            b"run_id" => read.run_id = word(value),
            b"redis_version" => read.redis_version = word(value),
            b"server_name" => names.server = word(value),
            b"valkey_version" => names.valkey = word(value),
            b"redict_version" => names.redict = word(value),
            b"dragonfly_version" => names.dragonfly = word(value),
            b"master_link_status" => read.link = Some(if value == b"up" { LinkStatus::Up } else { LinkStatus::Down }),
            b"master_host" => master_host = word(value),
            b"master_port" => master_port = text::natural(value).and_then(|port| u16::try_from(port).ok()),
            b"slave_repl_offset" => read.applied = text::natural(value).map(Offset::new),
            b"loading" => read.loading = text::natural(value).map(|loading| loading != 0),
            b"repl_backlog_size" => read.backlog_size = text::natural(value),
            b"slave_priority" => read.priority = text::natural(value).and_then(|number| u32::try_from(number).ok()),
            b"psyncd_chain" => read.chain = chain(value),
            b"connected_slaves" => read.connected_replicas = text::natural(value),
            b"slave_read_only" | b"replica_read_only" => read.read_only = Some(value == b"1"),
            b"master_sync_in_progress" => read.syncing = Some(value != b"0"),
            b"rdb_bgsave_in_progress" | b"aof_rewrite_in_progress" => {
                read.saving = Some(read.saving == Some(true) || value != b"0");
            }
            b"instantaneous_ops_per_sec" => read.ops_per_second = text::natural(value),
            b"connected_clients" => read.clients = text::natural(value),
            b"maxmemory" => read.max_memory = text::natural(value),
            _ => {
                if let Some(keys) = database_keys(key, value) {
                    read.keys = Some(read.keys.unwrap_or(0).saturating_add(keys));
                }
            }
        }
    }
    // A next byte of 0 or -1 means that there is no second id.
    let second = second_next_byte.and_then(|next_byte| next_byte.checked_sub(1)).map(Offset::new);
    read.replid2 = replid2.zip(second);
    read.backlog = backlog.span();
    read.master = master_host.zip(master_port);
    (read.server, read.version) = names.server_and_version(read.redis_version.as_ref());
    read
}

/// The keys of one database: `db0:keys=5000,expires=0,avg_ttl=0`. One without keys has no line.
fn database_keys(key: &[u8], value: &[u8]) -> Option<u64> {
    let number = key.strip_prefix(b"db")?;
    if number.is_empty() || !number.iter().all(u8::is_ascii_digit) {
        return None;
    }
    value.split(|&byte| byte == b',').find_map(|pair| text::natural(pair.strip_prefix(b"keys=")?))
}

/// The backlog as INFO writes it.
#[derive(Default)]
struct Backlog {
    active: bool,
    /// As on the wire: the number of the first byte held, from 1.
    first_byte: Option<u64>,
    len: Option<u64>,
}

impl Backlog {
    fn span(&self) -> Option<Span> {
        if !self.active {
            return None;
        }
        let start = Offset::new(self.first_byte?.checked_sub(1)?);
        Some(Span { start, end: start.forward(self.len?) })
    }
}

/// The names and versions by which servers tell who they are.
#[derive(Default)]
struct Names {
    server: Option<String>,
    valkey: Option<String>,
    redict: Option<String>,
    dragonfly: Option<String>,
}

impl Names {
    fn server_and_version(self, redis_version: Option<&String>) -> (Option<Server>, Option<String>) {
        let redis_version = redis_version.cloned();
        match self {
            Self { valkey: Some(version), .. } => (Some(Server::Valkey), Some(version)),
            Self { redict: Some(version), .. } => (Some(Server::Other("redict".into())), Some(version)),
            Self { dragonfly: Some(version), .. } => (Some(Server::Other("dragonfly".into())), Some(version)),
            Self { server: Some(name), .. } => match name.as_str() {
                "valkey" => (Some(Server::Valkey), redis_version),
                "redis" => (Some(Server::Redis), redis_version),
                _ => (Some(Server::Other(name)), redis_version),
            },
            Self { server: None, .. } => (redis_version.is_some().then_some(Server::Redis), redis_version),
        }
    }
}

fn role(value: &[u8]) -> Option<Role> {
    match value {
        b"master" => Some(Role::Master),
        b"slave" | b"replica" => Some(Role::Replica),
        _ => None,
    }
}

/// An id, unless it is the forty zeros that stand for none.
fn some_id(value: &[u8]) -> Option<ReplId> {
    ReplId::from_ascii(value).filter(|id| id.as_str().bytes().any(|digit| digit != b'0'))
}

fn chain(value: &[u8]) -> Vec<String> {
    value.split(|&byte| byte == b',').filter(|id| !id.is_empty()).take(CHAIN_MAX).map(text::excerpt).collect()
}

fn word(value: &[u8]) -> Option<String> {
    (!value.is_empty()).then(|| text::excerpt(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "8de1787ba490483314a4d30f1c628bc5025eb761";
    const OLD: &str = "1b4b3a3b2d8c1a1b0c9d8e7f6a5b4c3d2e1f0a9b";

    fn replication(replid2: &str, second: &str, active: u8) -> String {
        format!(
            "# Replication\r\nrole:master\r\nconnected_slaves:1\r\n\
             slave0:ip=127.0.0.1,port=6380,state=online,offset=1234,lag=0\r\n\
             master_failover_state:no-failover\r\nmaster_replid:{ID}\r\nmaster_replid2:{replid2}\r\n\
             master_repl_offset:1234\r\nsecond_repl_offset:{second}\r\nrepl_backlog_active:{active}\r\n\
             repl_backlog_size:1048576\r\nrepl_backlog_first_byte_offset:101\r\nrepl_backlog_histlen:1134\r\n"
        )
    }

    #[test]
    fn a_master_tells_its_stream_and_what_it_holds_of_it() {
        let info = parse_info(replication(OLD, "601", 1).as_bytes());
        assert_eq!(info.role, Some(Role::Master));
        assert_eq!(info.replid, Some(ID.parse().unwrap()));
        assert_eq!(info.offset, Some(Offset::new(1234)));
        assert_eq!(info.replid2, Some((OLD.parse().unwrap(), Offset::new(600))));
        assert_eq!(info.backlog, Some(Span { start: Offset::new(100), end: Offset::new(1234) }));
        assert_eq!(info.connected_replicas, Some(1));
        let from = Position::new(ID.parse().unwrap(), Offset::new(100));
        assert_eq!(info.warm_attach(), Some(Attach { from, boundary: Offset::new(1234) }));
    }

    #[test]
    fn forty_zeros_and_minus_one_mean_none() {
        let zeros = "0".repeat(40);
        assert_eq!(parse_info(replication(&zeros, "-1", 1).as_bytes()).replid2, None);
        assert_eq!(parse_info(replication(OLD, "-1", 1).as_bytes()).replid2, None);
        assert_eq!(parse_info(replication(&zeros, "5", 1).as_bytes()).replid2, None);
    }

    #[test]
    fn without_a_backlog_there_is_no_warm_attach() {
        let info = parse_info(replication(OLD, "601", 0).as_bytes());
        assert_eq!((info.backlog, info.warm_attach()), (None, None));
    }

    #[test]
    fn a_server_that_loads_is_not_attached_to() {
        let text = replication(OLD, "601", 1) + "# Persistence\r\nloading:1\r\n";
        assert_eq!(parse_info(text.as_bytes()).warm_attach(), None);
    }

    #[test]
    fn a_replica_tells_its_link() {
        let up = parse_info(b"role:slave\r\nmaster_host:127.0.0.1\r\nmaster_link_status:up\r\n");
        assert_eq!((up.role, up.link), (Some(Role::Replica), Some(LinkStatus::Up)));
        assert_eq!(parse_info(b"role:slave\nmaster_link_status:down\n").link, Some(LinkStatus::Down));
    }

    #[test]
    fn a_replica_tells_how_busy_and_how_faithful_it_is() {
        let info = parse_info(
            b"# Clients\r\nconnected_clients:12\r\n# Memory\r\nmaxmemory:0\r\n# Persistence\r\n\
              rdb_bgsave_in_progress:1\r\naof_rewrite_in_progress:0\r\n# Stats\r\ninstantaneous_ops_per_sec:77\r\n\
              # Replication\r\nrole:slave\r\nmaster_sync_in_progress:0\r\nslave_read_only:1\r\n",
        );
        assert_eq!((info.read_only, info.syncing, info.saving), (Some(true), Some(false), Some(true)));
        assert_eq!((info.clients, info.ops_per_second, info.max_memory), (Some(12), Some(77), Some(0)));
    }

    #[test]
    fn a_replica_of_redis_8_is_read_in_full() {
        let info = parse_info(
            b"# Server\r\nredis_version:8.2.3\r\nredis_mode:standalone\r\n\
              run_id:5d4f1e0c3b2a19087f6e5d4c3b2a190817263544\r\n\r\n# Persistence\r\nloading:0\r\nasync_loading:0\r\n\r\n\
              # Replication\r\nrole:slave\r\nmaster_host:10.0.0.1\r\nmaster_port:6379\r\nmaster_link_status:up\r\n\
              slave_read_repl_offset:1300\r\nslave_repl_offset:1250\r\nslave_priority:100\r\nconnected_slaves:0\r\n\
              master_replid:8de1787ba490483314a4d30f1c628bc5025eb761\r\n\
              master_replid2:0000000000000000000000000000000000000000\r\nmaster_repl_offset:1250\r\n\
              second_repl_offset:-1\r\nrepl_backlog_active:1\r\nrepl_backlog_size:1048576\r\n\
              repl_backlog_first_byte_offset:1\r\nrepl_backlog_histlen:1250\r\n",
        );
        assert_eq!(
            info,
            MasterInfo {
                role: Some(Role::Replica),
                replid: Some(ID.parse().unwrap()),
                replid2: None,
                offset: Some(Offset::new(1250)),
                backlog: Some(Span { start: Offset::ZERO, end: Offset::new(1250) }),
                run_id: Some("5d4f1e0c3b2a19087f6e5d4c3b2a190817263544".into()),
                server: Some(Server::Redis),
                version: Some("8.2.3".into()),
                redis_version: Some("8.2.3".into()),
                link: Some(LinkStatus::Up),
                master: Some(("10.0.0.1".into(), 6379)),
                applied: Some(Offset::new(1250)),
                loading: Some(false),
                connected_replicas: Some(0),
                backlog_size: Some(1_048_576),
                priority: Some(100),
                chain: vec![],
                ..MasterInfo::default()
            }
        );
    }

    #[test]
    fn a_server_of_before_4_0_has_no_ids() {
        let info = parse_info(
            b"role:master\r\nconnected_slaves:0\r\nmaster_repl_offset:0\r\nrepl_backlog_active:0\r\n\
              repl_backlog_size:1048576\r\nrepl_backlog_first_byte_offset:0\r\nrepl_backlog_histlen:0\r\n",
        );
        assert_eq!((info.replid, info.replid2, info.backlog), (None, None, None));
        assert_eq!(info.offset, Some(Offset::ZERO));
    }

    #[test]
    fn servers_are_told_apart() {
        for (text, server, version) in [
            ("redis_version:7.2.4\r\n", Some(Server::Redis), Some("7.2.4")),
            (
                "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n",
                Some(Server::Valkey),
                Some("9.1.2"),
            ),
            ("redis_version:7.2.4\r\nredict_version:7.3.6\r\n", Some(Server::Other("redict".into())), Some("7.3.6")),
            ("redis_version:6.0.0\r\nserver_name:keydb\r\n", Some(Server::Other("keydb".into())), Some("6.0.0")),
            ("role:master\r\n", None, None),
        ] {
            let info = parse_info(text.as_bytes());
            assert_eq!((info.server, info.version.as_deref()), (server, version), "{text}");
        }
    }

    #[test]
    fn the_keys_of_all_databases_are_added_up() {
        let keys = |text: &str| parse_info(text.as_bytes()).keys;
        assert_eq!(
            keys("# Keyspace\r\ndb0:keys=5000,expires=3,avg_ttl=0\r\ndb15:keys=7,expires=0,avg_ttl=0,subexpiry=0\r\n"),
            Some(5007)
        );
        assert_eq!(keys("$14\r\n# Keyspace\r\n\r\n"), Some(0), "an empty server says so");
        assert_eq!(keys("# Replication\r\nrole:master\r\n"), None, "it was not asked");
        for odd in ["db:keys=1\r\n", "dbx:keys=1\r\n", "db0:expires=1\r\n", "db0:keys=-1\r\n", "db0:keys=\r\n"] {
            assert_eq!(keys(odd), None, "{odd}");
        }
        let most = u64::MAX / 2;
        assert_eq!(
            keys(&format!("db0:keys={most}\ndb1:keys={most}\ndb2:keys={most}\ndb3:keys={most}\n")),
            Some(u64::MAX)
        );
    }

    #[test]
    fn versions_compare_by_number() {
        let info = parse_info(b"redis_version:6.10.0\r\n");
        assert!(info.version_at_least((6, 2)) && info.version_at_least((6, 10)) && info.version_at_least((5, 99)));
        assert!(!info.version_at_least((6, 11)) && !info.version_at_least((7, 0)));
        assert!(!parse_info(b"").version_at_least((0, 0)));
        assert!(!parse_info(b"redis_version:unstable\r\n").version_at_least((0, 0)));
    }

    #[test]
    fn the_header_of_a_bulk_or_verbatim_reply_does_no_harm() {
        for front in ["$500\r\n", "=500\r\ntxt:"] {
            let info = parse_info(format!("{front}{}\r\n", replication(OLD, "601", 1)).as_bytes());
            assert_eq!(info.offset, Some(Offset::new(1234)));
        }
    }

    #[test]
    fn line_ends_and_order_do_not_matter() {
        let text = replication(OLD, "601", 1);
        let mut lines: Vec<&str> = text.lines().collect();
        lines.reverse();
        assert_eq!(parse_info(lines.join("\n").as_bytes()), parse_info(text.as_bytes()));
    }

    #[test]
    fn what_we_say_of_ourselves_is_enough_to_attach_without_a_full_sync() {
        let id = ReplId::from_ascii(&[b'a'; 40]).unwrap();
        let window = Span { start: Offset::new(10), end: Offset::new(30) };
        let told = Replication { id, previous: None, window, boundary: Offset::new(28), limit: 100 };
        let read = parse_info(&told.reply(&["a1".into(), "b2".into()]));
        assert_eq!(read.chain, ["a1", "b2"]);
        let attach = |from| Attach { from: Position::new(id, Offset::new(from)), boundary: Offset::new(28) };
        assert_eq!(read.warm_attach(), Some(attach(10)), "the oldest byte, and where commands begin");
        assert_eq!(read.replid2, None);
        let old = ReplId::from_ascii(&[b'b'; 40]).unwrap();
        let previous = Some(Ancestor { id: old, boundary: Offset::new(7) });
        let read = parse_info(&Replication { previous, limit: 20, ..told }.reply(&[]));
        assert_eq!(read.chain, [""; 0]);
        assert_eq!(read.replid2, Some((old, Offset::new(7))));
        assert_eq!(read.warm_attach(), Some(attach(14)), "a full backlog is losing its oldest bytes");
        assert_eq!(read.backlog, Some(Span { start: Offset::new(10), end: Offset::new(28) }));
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_far_as_it_makes_sense(
            values in prop::collection::vec((0usize..8, "(-?[0-9]{1,20}|[0-9a-f]{40}|0{40}|up|slave|)"), 0..12),
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            const KEYS: [&str; 8] = ["role", "master_replid", "master_replid2", "second_repl_offset",
                "master_repl_offset", "repl_backlog_active", "repl_backlog_first_byte_offset", "repl_backlog_histlen"];
            let mut text: Vec<u8> = values.iter().flat_map(|(key, value)| format!("{}:{value}\r\n", KEYS[*key]).into_bytes()).collect();
            text.extend_from_slice(&noise);
            let info = parse_info(&text);
            prop_assert!(info.backlog.is_none_or(|span| span.start <= span.end));
            let _ = info.warm_attach();
        }
    }
}
