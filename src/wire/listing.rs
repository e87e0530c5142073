//! The replicas a server lists, in the replies to INFO and ROLE, with those behind us in the place of ourselves.
//!
//! Who reads these lists believes them: Sentinel tells every address in them what to replicate, clients read from them.
//! So ours is taken out, wherever it stands, and our replicas are put in by the addresses they announced. Nothing else
//! of a reply changes, not even what nobody knows the meaning of.
//!
//! In INFO it is the lines `slaveN:ip=..,port=..,state=..,offset=..,lag=..` of the section Replication, numbered from 0,
//! behind `connected_slaves` and `min_slaves_good_slaves`; in ROLE the array behind the offset, of online replicas only.

use std::net::IpAddr;
use std::ops::Range;

use bytes::Bytes;

use super::text;
use crate::repl::Offset;

/// What a server calls whoever called on it over a unix socket (redis anet.c, `anetFdToString`).
pub const UNIX_HOST: &str = "/unixsocket";
/// Seconds of silence after which a replica is no longer good: `min-replicas-max-lag` as it is by default. A server
/// does not say in INFO what it was set to.
const GOOD_LAG_SECONDS: u64 = 10;
/// The section whose lines are ours to change.
const SECTION: &[u8] = b"# Replication";

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The addresses under which the server may know us.
    pub faces: Vec<Face>,
    /// Whether the server must know us now.
    pub link: Attached,
    /// Who is behind us.
    pub replicas: Vec<Listed>,
    /// What INFO says of us: lines with their ends, without the heading.
    pub section: String,
}

/// Whether a server lists us.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Attached {
    /// We are its replica.
    Yes,
    /// We may not be.
    #[default]
    No,
}

/// The address of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Face {
    /// What it announced, or where it called from.
    pub host: String,
    /// What it announced, else 0.
    pub port: u16,
}

/// A replica behind us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its address. With port 0 nobody can call on it and it is not listed: for a Sentinel it would be a replica that is
    /// down, for ever.
    pub face: Face,
    /// How far it is.
    pub state: ListedState,
    /// What it acknowledged.
    pub offset: Offset,
    /// Whole seconds since it did.
    pub lag_seconds: u64,
}

/// A replica's state, as servers name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListedState {
    /// It waits for a snapshot.
    WaitBgsave,
    /// It is sent one.
    SendBulk,
    /// It follows the stream.
    Online,
}

impl ListedState {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            ListedState::WaitBgsave => "wait_bgsave",
            ListedState::SendBulk => "send_bulk",
            ListedState::Online => "online",
        }
    }
}

impl Face {
    fn is(&self, host: &[u8], port: u16) -> bool {
        self.port == port
            && match (self.host.parse::<IpAddr>(), str::from_utf8(host).map(str::parse::<IpAddr>)) {
                (Ok(ours), Ok(Ok(theirs))) => ours.to_canonical() == theirs.to_canonical(),
                _ => self.host.as_bytes().eq_ignore_ascii_case(host),
            }
    }
}

impl Listed {
    /// Seconds since it gave a sign, as servers tell them: of an online replica only.
    pub(super) fn lag(&self) -> u64 {
        if self.state == ListedState::Online { self.lag_seconds } else { 0 }
    }
}

impl Listing {
    fn ours(&self) -> impl Iterator<Item = &Listed> {
        self.replicas.iter().filter(|replica| replica.face.port != 0)
    }

    /// Which of the addresses a server lists are ours to replace.
    fn replaced(&self, listed: &[(&[u8], u16)]) -> Vec<bool> {
        let known = |host: &[u8], port| self.faces.iter().any(|face| face.is(host, port));
        let found = listed.iter().any(|(host, port)| known(host, *port));
        // Behind a translated address the server sees another host than we do; a replica nobody can call on is us then.
        let nameless = listed.iter().filter(|(_, port)| *port == 0).count();
        let guessed = self.link == Attached::Yes && !found && nameless == 1 && self.faces.iter().any(|f| f.port == 0);
        let is_ours = |(host, port): &(&[u8], u16)| {
            known(host, *port) || self.ours().any(|replica| replica.face.is(host, *port)) || (guessed && *port == 0)
        };
        listed.iter().map(is_ours).collect()
    }

    /// The reply to INFO, a whole string of RESP2 or RESP3 as it came, with our replicas in it; and with our section
    /// when it has the one on replication or ours is `asked` for. `None`: nothing is to be changed.
    pub fn rewrite_info(&self, reply: &[u8], asked: bool) -> Option<Bytes> {
        let (kind, body) = string(reply)?;
        let (front, info) = match (kind, body) {
            (b'=', [b't', b'x', b't', b':', info @ ..]) => ("txt:", info),
            (b'$', info) => ("", info),
            _ => return None,
        };
        let lists = info.split(|&byte| byte == b'\n').any(|line| trimmed(line) == SECTION);
        if !lists && !asked {
            return None;
        }
        let mut text = if lists { self.relisted(info) } else { info.to_vec() };
        if !text.is_empty() {
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"# Psyncd\r\n");
        text.extend_from_slice(self.section.as_bytes());
        let header = format!("{}{}\r\n{front}", char::from(kind), front.len() + text.len());
        Some(Bytes::from([header.as_bytes(), &text, b"\r\n"].concat()))
    }

    /// The section on replication with our replicas in it, between what is around it.
    fn relisted(&self, info: &[u8]) -> Vec<u8> {
        let section = replication(info);
        let lines = || info[section.clone()].split_inclusive(|&byte| byte == b'\n');
        let theirs: Vec<Line<'_>> = lines().filter_map(Line::parse).collect();
        let replaced = self.replaced(&theirs.iter().map(|line| (line.host, line.port)).collect::<Vec<_>>());
        let dropped = replaced.iter().filter(|replaced| **replaced).count() as u64;
        let kept = theirs.iter().zip(&replaced).filter(|(_, replaced)| !**replaced).map(|(line, _)| line);
        let good = kept.filter(|line| line.is_good()).count() + self.ours().filter(|replica| is_good(replica)).count();
        let pattern = pattern(theirs.iter().zip(&replaced));

        let mut out = info[..section.start].to_vec();
        let mut number = 0;
        let mut verdicts = replaced.iter();
        let mut due = false;
        for line in lines() {
            let value = |key: &[u8]| trimmed(line).strip_prefix(key).and_then(text::natural);
            if let Some(count) = value(b"connected_slaves:") {
                let count = count.saturating_sub(dropped) + self.ours().count() as u64;
                out.extend_from_slice(format!("connected_slaves:{count}\r\n").as_bytes());
                due = true;
            } else if value(b"min_slaves_good_slaves:").is_some() {
                out.extend_from_slice(format!("min_slaves_good_slaves:{good}\r\n").as_bytes());
            } else if let Some(known) = Line::parse(line) {
                if verdicts.next() == Some(&false) {
                    out.extend_from_slice(format!("slave{number}:").as_bytes());
                    out.extend_from_slice(known.value);
                    number += 1;
                }
            } else {
                if std::mem::take(&mut due) {
                    self.list(&mut out, number, &pattern);
                }
                out.extend_from_slice(line);
            }
        }
        if due {
            self.list(&mut out, number, &pattern);
        }
        out.extend_from_slice(&info[section.end..]);
        out
    }

    fn list(&self, out: &mut Vec<u8>, from: usize, pattern: &[&[u8]]) {
        for (number, replica) in self.ours().enumerate() {
            let mut line = format!("slave{}:", from + number).into_bytes();
            for (at, part) in pattern.iter().enumerate() {
                if at > 0 {
                    line.push(b',');
                }
                let Face { host, port } = &replica.face;
                let ours = match part.split(|&byte| byte == b'=').next() {
                    Some(b"ip") => format!("ip={host}"),
                    Some(b"port") => format!("port={port}"),
                    Some(b"state") => format!("state={}", replica.state.as_str()),
                    Some(b"offset") => format!("offset={}", replica.offset),
                    Some(b"lag") => format!("lag={}", replica.lag()),
                    _ => {
                        line.extend_from_slice(part);
                        continue;
                    }
                };
                line.extend_from_slice(ours.as_bytes());
            }
            line.extend_from_slice(b"\r\n");
            out.extend_from_slice(&line);
        }
    }

    /// The reply to ROLE with our replicas in it. `None`: it is not a master's, or no reply to ROLE at all.
    pub fn rewrite_role(&self, reply: &[u8]) -> Option<Bytes> {
        let rest = reply.strip_prefix(b"*3\r\n$6\r\nmaster\r\n:")?;
        let (offset, rest) = line(rest)?;
        // A line feed alone ends nothing for us, and would for whoever reads the reply.
        text::integer(offset)?;
        let (count, mut rest) = line(rest.strip_prefix(b"*")?)?;
        let front = &reply[..reply.len() - rest.len() - count.len() - 3];
        let mut entries = Vec::new();
        for _ in 0..text::natural(count)? {
            let entry = rest;
            let (host, after) = bulk(rest.strip_prefix(b"*3\r\n")?)?;
            let (port, after) = bulk(after)?;
            let (_offset, after) = bulk(after)?;
            let port = text::natural(port).and_then(|port| u16::try_from(port).ok())?;
            entries.push((&entry[..entry.len() - after.len()], (host, port)));
            rest = after;
        }
        if !rest.is_empty() {
            return None;
        }
        let replaced = self.replaced(&entries.iter().map(|(_, listed)| *listed).collect::<Vec<_>>());
        let kept: Vec<&[u8]> =
            entries.iter().zip(&replaced).filter(|(_, replaced)| !**replaced).map(|((raw, _), _)| *raw).collect();
        let ours: Vec<&Listed> = self.ours().filter(|replica| replica.state == ListedState::Online).collect();
        let mut out = front.to_vec();
        out.extend_from_slice(format!("*{}\r\n", kept.len() + ours.len()).as_bytes());
        kept.iter().for_each(|raw| out.extend_from_slice(raw));
        for replica in ours {
            out.extend_from_slice(b"*3\r\n");
            for word in [replica.face.host.clone(), replica.face.port.to_string(), replica.offset.to_string()] {
                out.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
            }
        }
        Some(Bytes::from(out))
    }
}

fn is_good(replica: &Listed) -> bool {
    replica.state == ListedState::Online && replica.lag() <= GOOD_LAG_SECONDS
}

/// A line `slaveN:`.
struct Line<'a> {
    /// All behind the colon, with the line end.
    value: &'a [u8],
    host: &'a [u8],
    port: u16,
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let number = line[..colon].strip_prefix(b"slave")?;
        if number.is_empty() || !number.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let mut known = Line { value: &line[colon + 1..], host: b"", port: 0 };
        known.host = known.part(b"ip=")?;
        known.port = text::natural(known.part(b"port=")?).and_then(|port| u16::try_from(port).ok())?;
        Some(known)
    }

    fn parts(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        trimmed(self.value).split(|&byte| byte == b',')
    }

    fn part(&self, key: &[u8]) -> Option<&'a [u8]> {
        self.parts().find_map(|part| part.strip_prefix(key))
    }

    fn is_online(&self) -> bool {
        self.part(b"state=") == Some(b"online")
    }

    fn is_good(&self) -> bool {
        self.is_online() && self.part(b"lag=").and_then(text::natural).is_some_and(|lag| lag <= GOOD_LAG_SECONDS)
    }
}

/// The parts our lines have: those of the server's line for us, whatever it has in it, else of another one.
fn pattern<'a>(lines: impl Iterator<Item = (&'a Line<'a>, &'a bool)>) -> Vec<&'a [u8]> {
    let best = lines.max_by_key(|(line, replaced)| (**replaced, line.is_online()));
    match best {
        Some((line, _)) => line.parts().collect(),
        None => vec![b"ip", b"port", b"state", b"offset", b"lag"],
    }
}

/// Where the lines of the section on replication are, behind its heading; empty when there is none.
fn replication(info: &[u8]) -> Range<usize> {
    let (mut at, mut start) = (0, None);
    for line in info.split_inclusive(|&byte| byte == b'\n') {
        match start {
            Some(start) if line.starts_with(b"#") => return start..at,
            Some(_) => {}
            None if trimmed(line) == SECTION => start = Some(at + line.len()),
            None => {}
        }
        at += line.len();
    }
    start.unwrap_or(info.len())..info.len()
}

fn trimmed(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The kind and the content of a whole string.
fn string(reply: &[u8]) -> Option<(u8, &[u8])> {
    let (kind, rest) = reply.split_first()?;
    let (len, rest) = line(rest)?;
    let len = usize::try_from(text::natural(len)?).ok()?;
    let body = rest.strip_suffix(b"\r\n")?;
    (body.len() == len).then_some((*kind, body))
}

fn line(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    Some((&rest[..end], &rest[end + 2..]))
}

fn bulk(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = line(rest.strip_prefix(b"$")?)?;
    let len = usize::try_from(text::natural(len)?).ok()?;
    let word = rest.get(..len)?;
    Some((word, rest[len..].strip_prefix(b"\r\n")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn face(host: &str, port: u16) -> Face {
        Face { host: host.into(), port }
    }

    fn listed(host: &str, port: u16, state: ListedState, offset: u64, lag_seconds: u64) -> Listed {
        Listed { face: face(host, port), state, offset: Offset::new(offset), lag_seconds }
    }

    fn listing() -> Listing {
        Listing {
            faces: vec![face("127.0.0.1", 0)],
            link: Attached::Yes,
            replicas: vec![
                listed("10.0.0.12", 6379, ListedState::Online, 1200, 1),
                listed("replica-3", 6380, ListedState::SendBulk, 0, 44),
                listed("10.0.0.99", 0, ListedState::Online, 1, 0),
            ],
            section: "psyncd_version:0\r\n".into(),
        }
    }

    fn bulked(kind: char, text: &str) -> Vec<u8> {
        let front = if kind == '=' { "txt:" } else { "" };
        format!("{kind}{}\r\n{front}{text}\r\n", text.len() + front.len()).into_bytes()
    }

    fn rewritten(listing: &Listing, text: &str) -> String {
        let plain = listing.rewrite_info(&bulked('$', text), false).unwrap();
        let verbatim = listing.rewrite_info(&bulked('=', text), false).unwrap();
        let (kind, body) = string(&plain).unwrap();
        assert_eq!((kind, [b"txt:", body].concat()), (b'$', string(&verbatim).unwrap().1.to_vec()));
        String::from_utf8(body.to_vec()).unwrap()
    }

    const REDIS_7: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n\r\n# Replication\r\nrole:master\r\nconnected_slaves:2\r\n\
        min_slaves_good_slaves:2\r\n\
        slave0:ip=127.0.0.1,port=0,state=online,offset=1234,lag=0\r\n\
        slave1:ip=10.0.0.77,port=6379,state=online,offset=1230,lag=10\r\n\
        master_failover_state:no-failover\r\nmaster_repl_offset:1234\r\n\r\n# CPU\r\nused_cpu_sys:1\r\n";

    #[test]
    fn our_line_gives_way_to_those_of_our_replicas_and_nothing_else_changes() {
        assert_eq!(
            rewritten(&listing(), REDIS_7),
            "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n\r\n# Replication\r\nrole:master\r\nconnected_slaves:3\r\n\
             min_slaves_good_slaves:2\r\n\
             slave0:ip=10.0.0.77,port=6379,state=online,offset=1230,lag=10\r\n\
             slave1:ip=10.0.0.12,port=6379,state=online,offset=1200,lag=1\r\n\
             slave2:ip=replica-3,port=6380,state=send_bulk,offset=0,lag=0\r\n\
             master_failover_state:no-failover\r\nmaster_repl_offset:1234\r\n\r\n# CPU\r\nused_cpu_sys:1\r\n\
             \r\n# Psyncd\r\npsyncd_version:0\r\n"
        );
    }

    #[test]
    fn what_newer_servers_say_of_a_replica_is_said_of_ours() {
        for more in [",type=replica", ",io-thread=3", ",type=replica,zone=\"a=b\""] {
            let text = format!(
                "# Replication\r\nrole:master\r\nconnected_slaves:1\r\nslave0:ip=127.0.0.1,port=0,state=online,offset=1,lag=0{more}\r\nreplicas_waiting_psync:0\r\n"
            );
            let told = rewritten(&listing(), &text);
            assert!(
                told.contains(&format!("slave0:ip=10.0.0.12,port=6379,state=online,offset=1200,lag=1{more}\r\n")),
                "{told}"
            );
            assert!(
                told.contains("slave1:ip=replica-3,") && told.contains("\r\nreplicas_waiting_psync:0\r\n"),
                "{told}"
            );
        }
    }

    #[test]
    fn a_master_without_replicas_and_one_that_ends_with_them_get_ours() {
        let told = rewritten(&listing(), "# Replication\r\nrole:master\r\nconnected_slaves:0\r\n");
        assert!(
            told.starts_with("# Replication\r\nrole:master\r\nconnected_slaves:2\r\nslave0:ip=10.0.0.12,"),
            "{told}"
        );
        assert!(told.contains("lag=0\r\n\r\n# Psyncd\r\n"), "{told}");
    }

    #[test]
    fn a_replica_s_own_link_is_none_of_our_business() {
        let text = "# Replication\r\nrole:slave\r\nmaster_host:127.0.0.1\r\nmaster_port:0\r\nslave_repl_offset:7\r\nslave_priority:100\r\n\
                    connected_slaves:1\r\nslave0:ip=127.0.0.1,port=0,state=online,offset=7,lag=1\r\nmaster_replid:x\r\n";
        let told = rewritten(&Listing { replicas: vec![], ..listing() }, text);
        assert_eq!(
            told,
            "# Replication\r\nrole:slave\r\nmaster_host:127.0.0.1\r\nmaster_port:0\r\nslave_repl_offset:7\r\nslave_priority:100\r\n\
             connected_slaves:0\r\nmaster_replid:x\r\n\r\n# Psyncd\r\npsyncd_version:0\r\n"
        );
    }

    #[test]
    fn sections_without_replicas_pass_untouched_unless_ours_is_asked_for() {
        let server = bulked('$', "# Server\r\nslave0:ip=127.0.0.1,port=0\r\nconnected_slaves:1\r\n");
        assert_eq!(listing().rewrite_info(&server, false), None);
        let asked = listing().rewrite_info(&server, true).unwrap();
        let body = string(&asked).unwrap().1;
        assert_eq!(
            body,
            b"# Server\r\nslave0:ip=127.0.0.1,port=0\r\nconnected_slaves:1\r\n\r\n# Psyncd\r\npsyncd_version:0\r\n"
        );
        assert_eq!(
            listing().rewrite_info(b"$0\r\n\r\n", true).unwrap(),
            bulked('$', "# Psyncd\r\npsyncd_version:0\r\n")
        );
        assert_eq!(
            listing().rewrite_info(b"=4\r\ntxt:\r\n", true).unwrap(),
            bulked('=', "# Psyncd\r\npsyncd_version:0\r\n")
        );
        assert_eq!(listing().rewrite_info(b"-NOPERM no\r\n", true), None);
        assert_eq!(listing().rewrite_info(b"$-1\r\n", true), None);
    }

    #[test]
    fn we_are_recognised_by_what_we_announced_and_by_where_we_call_from() {
        let info = |host: &str, port: u16| {
            format!(
                "# Replication\r\nrole:master\r\nconnected_slaves:1\r\nslave0:ip={host},port={port},state=online,offset=1,lag=0\r\n"
            )
        };
        let faced = |host, port, link| Listing { faces: vec![face(host, port)], link, ..Listing::default() };
        let gone = |listing: &Listing, host, port| !rewritten(listing, &info(host, port)).contains("slave0");
        for (host, port, seen) in [
            ("psyncd-0", 7000, "PSYNCD-0"),
            ("10.0.0.5", 0, "10.0.0.5"),
            ("::ffff:10.0.0.5", 0, "10.0.0.5"),
            ("0:0::1", 5, "::1"),
            (UNIX_HOST, 0, "/unixsocket"),
        ] {
            assert!(gone(&faced(host, port, Attached::Yes), seen, port), "{host}");
        }
        assert!(!gone(&faced("10.0.0.5", 7000, Attached::Yes), "10.0.0.6", 7000));
        assert!(!gone(&faced("10.0.0.5", 7000, Attached::Yes), "10.0.0.5", 0));
        // Behind a translated address.
        assert!(gone(&faced("10.0.0.5", 0, Attached::Yes), "192.168.0.1", 0));
        assert!(!gone(&faced("10.0.0.5", 0, Attached::No), "192.168.0.1", 0));
    }

    #[test]
    fn an_address_is_listed_once() {
        let text = "# Replication\r\nrole:master\r\nconnected_slaves:1\r\nslave0:ip=10.0.0.12,port=6379,state=online,offset=9,lag=70\r\n";
        let told = rewritten(&listing(), text);
        assert_eq!(told.matches("ip=10.0.0.12,port=6379,state=online,offset=1200,lag=1").count(), 1, "{told}");
        assert!(told.contains("connected_slaves:2\r\n"), "{told}");
    }

    #[test]
    fn role_lists_those_that_are_online() {
        let role = b"*3\r\n$6\r\nmaster\r\n:1234\r\n*2\r\n*3\r\n$9\r\n127.0.0.1\r\n$1\r\n0\r\n$4\r\n1234\r\n\
            *3\r\n$9\r\n10.0.0.77\r\n$4\r\n6379\r\n$4\r\n1230\r\n";
        assert_eq!(
            str::from_utf8(&listing().rewrite_role(role).unwrap()).unwrap(),
            "*3\r\n$6\r\nmaster\r\n:1234\r\n*2\r\n*3\r\n$9\r\n10.0.0.77\r\n$4\r\n6379\r\n$4\r\n1230\r\n\
             *3\r\n$9\r\n10.0.0.12\r\n$4\r\n6379\r\n$4\r\n1200\r\n"
        );
        for other in [
            &b"*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:6379\r\n$9\r\nconnected\r\n:14\r\n"[..],
            b"*2\r\n$8\r\nsentinel\r\n*0\r\n",
            b"-NOPERM no\r\n",
            b"+QUEUED\r\n",
        ] {
            assert_eq!(listing().rewrite_role(other), None);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_the_frame_is_always_whole(
            lines in prop::collection::vec("(# Replication|# CPU|connected_slaves:[0-9]{0,3}|slave[0-9]{0,2}:(ip=127.0.0.1,)?(port=0)?(,state=online)?,?x?|min_slaves_good_slaves:1|[ -~]{0,9}|)", 0..12),
            end in prop_oneof![Just("\r\n"), Just("\n"), Just("")],
        ) {
            let text = lines.join("\r\n") + end;
            for kind in ['$', '='] {
                if let Some(reply) = listing().rewrite_info(&bulked(kind, &text), false) {
                    prop_assert!(string(&reply).is_some());
                    let told = String::from_utf8(reply.to_vec()).unwrap();
                    // Every line of theirs that is not about replicas is still there.
                    for line in lines.iter().filter(|line| !line.contains("slave")) {
                        prop_assert!(told.contains(line.as_str()));
                    }
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(input in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = listing().rewrite_info(&input, true);
            let _ = listing().rewrite_role(&input);
        }
    }
}
