use std::cell::RefCell;

use proptest::prelude::*;

use super::*;
use crate::wire::portrait::{Link, Portrait};
use crate::wire::resp::{FrameLimits, parse_command};

/// Notes what is asked of it.
#[derive(Default)]
struct World {
    deeds: RefCell<Vec<String>>,
}

impl World {
    fn note(&self, deed: impl Into<String>) {
        self.deeds.borrow_mut().push(deed.into());
    }
}

impl Standing for World {
    fn password_is(&self, given: &[u8]) -> bool {
        given == b"sesame"
    }

    fn portrait(&self) -> Portrait {
        Portrait {
            run_id: "a".repeat(40),
            redis_version: "7.0.15".into(),
            valkey_version: None,
            psyncd_version: "0",
            port: 6390,
            uptime: std::time::Duration::ZERO,
            connected_clients: 0,
            master_host: "m".into(),
            master_port: 1,
            link: Link::Down(None),
            last_io: None,
            line: None,
            chain: vec![],
            replicas: vec![],
        }
    }

    fn follow(&self, address: Address) -> Result<Repointed, String> {
        self.note(format!("follow {address}"));
        match address.to_string().as_str() {
            "self:1" => Err("psyncd would follow itself".into()),
            "m:1" => Ok(Repointed::Already),
            _ => Ok(Repointed::Moved),
        }
    }

    fn refused(&self, what: Refusal) {
        self.note(format!("refused {what}"));
    }

    fn publish(&self, message: &[u8]) -> usize {
        self.note(format!("publish {}", message.escape_ascii()));
        3
    }

    fn listen(&self, _: Resp, channel: bool, patterns: &[Bytes]) {
        self.note(format!("listen {channel} {}", patterns.len()));
    }

    fn rename(&self, name: &str) {
        self.note(format!("name {name}"));
    }

    fn clients(&self, only: Option<u64>) -> String {
        format!("clients {only:?}")
    }

    fn kill(&self, victims: &Victims) -> usize {
        self.note(format!("kill {:?} except {:?}", victims.kind, victims.except));
        2
    }
}

/// Runs inline commands, one a line; the replies with their line ends as `|`, and what was done.
fn talk(protected: bool, lines: &str) -> (String, Vec<String>) {
    let world = World::default();
    let mut manners = Manners::new(7, protected);
    let mut said = String::new();
    for line in lines.lines() {
        let text = format!("{}\r\n", line.trim());
        let (args, _) = parse_command(text.as_bytes(), &FrameLimits::HANDSHAKE).unwrap().unwrap();
        match manners.command(&args, &world) {
            Step::Reply(bytes) => said.push_str(str::from_utf8(&bytes).unwrap()),
            Step::Close(bytes) => said.push_str(&format!("closing {}", str::from_utf8(&bytes).unwrap())),
            Step::Replicate => said.push_str("(replica)\r\n"),
        }
    }
    (said.replace("\r\n", "|"), world.deeds.into_inner())
}

fn said(lines: &str) -> String {
    talk(false, lines).0
}

#[test]
fn sentinels_order_to_follow_another_master_is_obeyed() {
    let order = "MULTI\nSLAVEOF 10.0.0.2 6380\nCONFIG REWRITE\nCLIENT KILL TYPE normal\nCLIENT KILL TYPE pubsub\nEXEC";
    let (replies, deeds) = talk(false, order);
    assert_eq!(replies, "+OK|+QUEUED|+QUEUED|+QUEUED|+QUEUED|*4|+OK|+OK|:2|:2|");
    assert_eq!(deeds, ["follow 10.0.0.2:6380", "kill Some(Normal) except Some(7)", "kill Some(Pubsub) except Some(7)"]);
}

#[test]
fn a_verb_it_does_not_know_does_not_keep_an_order_from_being_obeyed() {
    let (replies, deeds) = talk(false, "MULTI\nFAILOVER ABORT\nNEWVERB x\nSLAVEOF h 1\nEXEC");
    assert!(
        replies.starts_with("+OK|+QUEUED|+QUEUED|+QUEUED|*3|-ERR No failover in progress.|-ERR psyncd is"),
        "{replies}"
    );
    assert_eq!(deeds, ["refused command", "follow h:1"]);
}

#[test]
fn nobody_makes_it_a_master() {
    let (replies, deeds) = talk(false, "REPLICAOF NO ONE\nMULTI\nslaveof no one\nEXEC");
    let no = "-ERR psyncd is a relay and cannot be promoted: it holds no data|";
    assert_eq!(replies, format!("{no}+OK|+QUEUED|*1|{no}"));
    assert_eq!(deeds, ["refused promotion", "refused promotion"]);
}

#[test]
fn whom_it_must_not_follow_it_does_not() {
    assert_eq!(said("REPLICAOF self 1"), "-ERR psyncd would follow itself|");
    assert_eq!(said("REPLICAOF m 1"), "+OK Already connected to specified master|");
    for bad in ["host 0", "host 65536", "host x", "ho/st 1"] {
        assert_eq!(said(&format!("REPLICAOF {bad}")), "-ERR Invalid master address or port|", "{bad}");
    }
    assert_eq!(said("REPLICAOF ::1 6379"), "+OK|");
    assert_eq!(said("REPLICAOF a"), "-ERR wrong number of arguments for 'replicaof' command|");
}

#[test]
fn no_command_gets_through() {
    let (replies, deeds) = talk(false, "GET a\nSHUTDOWN\nFAILOVER\nCONFIG SET a b\nCLIENT PAUSE 1");
    assert_eq!(replies.matches("-ERR psyncd is a relay and holds no data").count(), 5, "{replies}");
    assert!(replies.contains("'GET' is not served here; ask the master, m:1|"), "{replies}");
    assert_eq!(deeds, ["refused command"; 5]);
}

#[test]
fn replicas_are_handed_over() {
    assert_eq!(said("PING\nREPLCONF listening-port 1"), "+PONG|(replica)|");
    assert_eq!(said("PSYNC ? -1\n"), "(replica)|");
    assert_eq!(said("SYNC\n"), "(replica)|");
}

#[test]
fn before_the_password_nothing_else_is_answered() {
    let (replies, deeds) = talk(true, "PING\nREPLCONF capa eof\nREPLICAOF a 1\nAUTH wrong\nAUTH user sesame\nPING");
    let no = "-NOAUTH Authentication required.|";
    let wrong = "-WRONGPASS invalid username-password pair or user is disabled.|";
    assert_eq!(replies, format!("{no}{no}{no}{wrong}+OK|+PONG|"));
    assert_eq!(deeds, ["refused auth"; 4]);
    assert!(talk(true, "HELLO 3").0.starts_with("-NOAUTH"));
    assert!(talk(true, "HELLO 3 AUTH default sesame\nPING").0.ends_with("+PONG|"));
    assert!(talk(true, "AUTH sesame\nRESET\nPING").0.ends_with(no), "RESET forgets who it was");
}

#[test]
fn hello_changes_the_protocol_of_all_that_follows() {
    let replies = said("HELLO 3 SETNAME sentinel-1\nCLIENT GETNAME\nINFO nothing\nCLIENT ID");
    assert!(replies.starts_with("%7|$6|server|$5|redis|"), "{replies}");
    assert!(replies.contains("|$4|role|$7|replica|"), "{replies}");
    assert!(replies.ends_with("$10|sentinel-1|=4|txt:|:7|"), "{replies}");
    assert_eq!(said("HELLO 4"), "-NOPROTO unsupported protocol version|");
    assert!(said("HELLO").starts_with("*14|"));
}

#[test]
fn the_hello_channel_is_the_only_one() {
    let (replies, deeds) =
        talk(false, "PUBLISH __sentinel__:hello a,b\nPUBLISH other x\nSUBSCRIBE __sentinel__:hello\nPING\nGET a");
    assert!(
        replies.starts_with(":3|-ERR psyncd is a relay and carries no channel but __sentinel__:hello|"),
        "{replies}"
    );
    assert!(
        replies.contains("*3|$9|subscribe|$18|__sentinel__:hello|:1|*2|$4|pong|$0||-ERR Can't execute 'get'"),
        "{replies}"
    );
    assert_eq!(deeds, ["publish a,b", "refused command", "listen true 0"]);
    let gone = said("PSUBSCRIBE a* b*\nPUNSUBSCRIBE\nUNSUBSCRIBE");
    assert!(gone.ends_with("*3|$12|punsubscribe|$2|b*|:0|*3|$11|unsubscribe|$-1|:0|"), "{gone}");
}

#[test]
fn a_transaction_that_is_spoilt_does_nothing() {
    let (replies, deeds) = talk(false, "MULTI\nSUBSCRIBE x\nSLAVEOF h 1\nEXEC\nEXEC\nMULTI\nSLAVEOF h 1\nDISCARD");
    assert!(
        replies.contains("|-EXECABORT Transaction discarded because of previous errors.|-ERR EXEC without MULTI|"),
        "{replies}"
    );
    assert_eq!(deeds, [""; 0]);
    let many = format!("MULTI\n{}EXEC", "PING\n".repeat(QUEUE_MAX + 1));
    assert!(said(&many).contains("-ERR psyncd queues 64 commands and no more|-EXECABORT"));
    assert!(said("MULTI\nMULTI\nPING\nEXEC").ends_with("-ERR MULTI calls can not be nested|+QUEUED|*1|+PONG|"));
}

#[test]
fn a_kill_spares_who_asks_and_knows_its_words() {
    assert_eq!(talk(false, "CLIENT KILL TYPE pubsub SKIPME no").1, ["kill Some(Pubsub) except None"]);
    assert_eq!(said("CLIENT KILL TYPE replica"), ":0|");
    assert_eq!(said("CLIENT KILL TYPE what"), "-ERR syntax error|");
    assert_eq!(said("CLIENT KILL 1.2.3.4:5"), "+OK|");
    assert_eq!(
        said("CLIENT SETNAME \"a b\""),
        "-ERR Client names cannot contain spaces, newlines or special characters.|"
    );
}

#[test]
fn what_is_configured_is_that_of_a_replica() {
    assert_eq!(said("CONFIG GET replica-pri*"), "*2|$16|replica-priority|$1|0|");
    assert_eq!(said("CONFIG GET replicaof"), "*2|$9|replicaof|$3|m 1|");
    assert_eq!(
        said("SELECT 0\nSELECT 1\nCOMMAND\nECHO x\nQUIT"),
        "+OK|-ERR DB index is out of range|*0|$1|x|closing +OK|"
    );
}

proptest! {
    #[test]
    fn whatever_is_said_it_answers_each_command_and_forgets_no_limit(
        words in prop::collection::vec(prop::collection::vec(
            prop::sample::select(vec![
                "MULTI", "EXEC", "DISCARD", "SLAVEOF", "NO", "ONE", "h", "1", "SUBSCRIBE", "PSUBSCRIBE", "UNSUBSCRIBE",
                "__sentinel__:hello", "*", "PUBLISH", "CLIENT", "KILL", "TYPE", "normal", "HELLO", "3", "2", "RESET",
                "AUTH", "sesame", "INFO", "CONFIG", "GET", "REWRITE", "PING", "ROLE", "nonsense", "",
            ]),
            0..5,
        ), 0..200),
        protected: bool,
    ) {
        let world = World::default();
        let mut manners = Manners::new(1, protected);
        for words in words {
            let args: Args = words.iter().map(|word| Bytes::from_static(word.as_bytes())).collect();
            if let Step::Reply(bytes) = manners.command(&args, &world) {
                prop_assert_eq!(bytes.is_empty(), args.is_empty());
            }
            prop_assert!(manners.queue.as_ref().is_none_or(|queue| queue.commands.len() <= QUEUE_MAX));
            prop_assert!(manners.patterns.len() <= PATTERNS_MAX);
        }
    }
}
