//! INFO and ROLE of a replica as we write them of ourselves: fields, order and line ends are those of a server
//! (server.c `genRedisInfoString`, replication.c `roleCommand`), so that Sentinel, clients and exporters read them
//! without a special case.

use std::fmt::Write;
use std::time::Duration;

use crate::repl::{Offset, ReplId};

use super::info::Replication;
use super::listing::{Face, Listed};
use super::reply::Reply;

/// What there is to say of ourselves at one instant.
#[derive(Debug, Clone)]
pub struct Portrait {
    /// The id of this node; must not change while it is known to a Sentinel, which would take it for a reboot.
    pub run_id: String,
    /// The version the master said it is compatible with; `0.0.0` before it was met.
    pub redis_version: String,
    /// The master's version where it is a Valkey.
    pub valkey_version: Option<String>,
    /// psyncd's own version.
    pub psyncd_version: &'static str,
    /// The port this is answered on.
    pub port: u16,
    /// Since the process began.
    pub uptime: Duration,
    /// Connections open.
    pub connected_clients: usize,
    /// The host of the node that is followed; the path of a unix socket; empty before one is known.
    pub master_host: String,
    /// Its port, 0 for a unix socket.
    pub master_port: u16,
    /// The link to it.
    pub link: Link,
    /// Since the last byte came from it.
    pub last_io: Option<Duration>,
    /// What is held, once there is something.
    pub line: Option<Replication>,
    /// The psyncd's between the master and whoever asks, from the master down and us the last.
    pub chain: Vec<String>,
    /// The replicas behind us, oldest first.
    pub replicas: Vec<Listed>,
}

/// The link to the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// No connection, for this long; none when there never was one.
    Down(Option<Duration>),
    /// Dialing.
    Connecting,
    /// Before PSYNC is answered.
    Handshake,
    /// Receiving a snapshot.
    Syncing,
    /// Receiving the stream.
    Up,
}

/// The lines of a list of replicas, numbered from 0, each with its line end.
fn replica_lines(replicas: &[Listed]) -> String {
    let mut text = String::new();
    for (n, replica) in replicas.iter().enumerate() {
        let Listed { face: Face { host, port }, state, offset, .. } = replica;
        let (state, lag) = (state.as_str(), replica.lag());
        line(&mut text, format_args!("slave{n}:ip={host},port={port},state={state},offset={offset},lag={lag}"));
    }
    text
}

impl Portrait {
    /// INFO of these sections; of all of them when none is named.
    pub fn info<S: AsRef<[u8]>>(&self, sections: &[S]) -> String {
        const EVERYTHING: [&[u8]; 3] = [b"default", b"all", b"everything"];
        let wanted = |name: &str| {
            let named = |section: &S| {
                let section = section.as_ref();
                section.eq_ignore_ascii_case(name.as_bytes())
                    || EVERYTHING.iter().any(|all| section.eq_ignore_ascii_case(all))
            };
            sections.is_empty() || sections.iter().any(named)
        };
        let parts = [
            wanted("server").then(|| self.server()),
            wanted("clients").then(|| format!("# Clients\r\nconnected_clients:{}\r\n", self.connected_clients)),
            wanted("persistence").then(|| "# Persistence\r\nloading:0\r\n".to_owned()),
            wanted("replication").then(|| self.replication()),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("\r\n")
    }

    fn server(&self) -> String {
        let mut text = String::from("# Server\r\n");
        line(&mut text, format_args!("redis_version:{}", self.redis_version));
        if let Some(version) = &self.valkey_version {
            line(&mut text, format_args!("server_name:valkey"));
            line(&mut text, format_args!("valkey_version:{version}"));
        }
        line(&mut text, format_args!("psyncd_version:{}", self.psyncd_version));
        line(&mut text, format_args!("redis_mode:standalone"));
        line(&mut text, format_args!("run_id:{}", self.run_id));
        line(&mut text, format_args!("tcp_port:{}", self.port));
        line(&mut text, format_args!("uptime_in_seconds:{}", self.uptime.as_secs()));
        text
    }

    fn replication(&self) -> String {
        let mut text = String::from("# Replication\r\nrole:slave\r\n");
        let (up, head) = (self.link == Link::Up, self.head());
        line(&mut text, format_args!("master_host:{}", self.master_host));
        line(&mut text, format_args!("master_port:{}", self.master_port));
        line(&mut text, format_args!("master_link_status:{}", if up { "up" } else { "down" }));
        match self.last_io.filter(|_| up) {
            Some(ago) => line(&mut text, format_args!("master_last_io_seconds_ago:{}", ago.as_secs())),
            None => line(&mut text, format_args!("master_last_io_seconds_ago:-1")),
        }
        line(&mut text, format_args!("master_sync_in_progress:{}", u8::from(self.link == Link::Syncing)));
        line(&mut text, format_args!("slave_read_repl_offset:{head}"));
        line(&mut text, format_args!("slave_repl_offset:{head}"));
        match self.link {
            Link::Up => {}
            Link::Down(Some(since)) => {
                line(&mut text, format_args!("master_link_down_since_seconds:{}", since.as_secs()))
            }
            Link::Down(None) | Link::Connecting | Link::Handshake | Link::Syncing => {
                line(&mut text, format_args!("master_link_down_since_seconds:-1"))
            }
        }
        // What keeps Sentinel from promoting us, and from listing us to clients.
        line(&mut text, format_args!("slave_priority:0"));
        line(&mut text, format_args!("slave_read_only:1"));
        line(&mut text, format_args!("replica_announced:0"));
        line(&mut text, format_args!("connected_slaves:{}", self.replicas.len()));
        text.push_str(&replica_lines(&self.replicas));
        line(&mut text, format_args!("master_failover_state:no-failover"));
        match &self.line {
            Some(held) => text.push_str(&held.lines()),
            None => {
                let zeros = "0".repeat(ReplId::LEN);
                line(&mut text, format_args!("master_replid:{zeros}"));
                line(&mut text, format_args!("master_replid2:{zeros}"));
                line(&mut text, format_args!("master_repl_offset:0"));
                line(&mut text, format_args!("second_repl_offset:-1"));
                line(&mut text, format_args!("repl_backlog_active:0"));
            }
        }
        line(&mut text, format_args!("psyncd_chain:{}", self.chain.join(",")));
        text
    }

    /// Where we are, as a server that applies whole commands would say.
    fn head(&self) -> Offset {
        self.line.map_or(Offset::ZERO, |held| held.end())
    }

    /// ROLE.
    pub fn role(&self) -> Reply {
        let state = match self.link {
            Link::Down(_) => "connect",
            Link::Connecting => "connecting",
            Link::Handshake => "handshake",
            Link::Syncing => "sync",
            Link::Up => "connected",
        };
        let offset = if self.link == Link::Up { i64::try_from(self.head().get()).unwrap_or(i64::MAX) } else { -1 };
        Reply::Array(vec![
            Reply::bulk("slave"),
            Reply::bulk(&self.master_host),
            Reply::Int(i64::from(self.master_port)),
            Reply::bulk(state),
            Reply::Int(offset),
        ])
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = write!(text, "{content}\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repl::{Ancestor, Span};
    use crate::wire::info::{LinkStatus, Role, parse_info};
    use crate::wire::listing::ListedState;

    const ID: &str = "8de1787ba490483314a4d30f1c628bc5025eb761";

    fn portrait() -> Portrait {
        Portrait {
            run_id: "5".repeat(40),
            redis_version: "7.0.15".into(),
            valkey_version: None,
            psyncd_version: "0.1.0",
            port: 6390,
            uptime: Duration::from_secs(9),
            connected_clients: 3,
            master_host: "10.0.0.1".into(),
            master_port: 6379,
            link: Link::Up,
            last_io: Some(Duration::from_millis(1500)),
            line: Some(Replication {
                id: ID.parse().unwrap(),
                previous: Some(Ancestor { id: "1".repeat(40).parse().unwrap(), boundary: Offset::new(60) }),
                window: Span { start: Offset::new(40), end: Offset::new(107) },
                boundary: Offset::new(100),
                limit: 1000,
            }),
            chain: vec!["a1".into()],
            replicas: vec![Listed {
                face: Face { host: "10.0.0.9".into(), port: 6381 },
                state: ListedState::Online,
                offset: Offset::new(90),
                lag_seconds: 1,
            }],
        }
    }

    #[test]
    fn sentinel_finds_all_it_looks_for_and_never_promotes_us() {
        let text = portrait().info::<&str>(&[]);
        for line in [
            "role:slave",
            "master_host:10.0.0.1",
            "master_port:6379",
            "master_link_status:up",
            "master_last_io_seconds_ago:1",
            "slave_repl_offset:100",
            "slave_priority:0",
            "replica_announced:0",
            "connected_slaves:1",
            "slave0:ip=10.0.0.9,port=6381,state=online,offset=90,lag=1",
            "repl_backlog_first_byte_offset:41",
            "second_repl_offset:61",
        ] {
            assert!(text.contains(&format!("\r\n{line}\r\n")), "{line} in\n{text}");
        }
        // Sentinel reads the fields of a replica only behind the role.
        assert!(text.find("role:slave") < text.find("master_host:"));
        let info = parse_info(text.as_bytes());
        assert_eq!((info.role, info.link), (Some(Role::Replica), Some(LinkStatus::Up)));
        assert_eq!((info.replid, info.offset), (Some(ID.parse().unwrap()), Some(Offset::new(100))));
    }

    #[test]
    fn a_link_that_is_down_says_since_when() {
        let down = Portrait { link: Link::Down(Some(Duration::from_secs(7))), ..portrait() };
        let text = down.info(&["replication"]);
        assert!(text.contains("master_link_status:down\r\nmaster_last_io_seconds_ago:-1\r\n"), "{text}");
        assert!(text.contains("\r\nmaster_link_down_since_seconds:7\r\n"), "{text}");
        assert!(!text.contains("# Server"), "{text}");
        let never = Portrait { link: Link::Down(None), line: None, ..portrait() };
        assert!(never.info(&["all"]).contains("\r\nmaster_link_down_since_seconds:-1\r\n"));
        assert_eq!(never.role().items().unwrap()[4], Reply::Int(-1));
    }
}
