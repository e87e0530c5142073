//! Every way to say who one is, over every way to speak: replicas with passwords and ACL users of the master come in through
//! psyncd, which itself is one of them to the master, over plain and TLS ports that ask for certificates or do not.
//!
//! One replica for each way to say it, all of them sent from door to door; nobody is started twice.

use crate::access::PASSWORD;
use crate::doors::World;
use crate::harness::*;

/// What a replica says of itself.
struct Says {
    user: &'static str,
    password: &'static str,
    /// What its log says each time it is refused; nothing where it has to be let in.
    refusal: Option<&'static str>,
}

const SAID: [Says; 8] = [
    // The old way, one password for all.
    Says { user: "", password: PASSWORD, refusal: None },
    Says { user: "default", password: PASSWORD, refusal: None },
    // An administrator's, and the least a replica needs.
    Says { user: "everything", password: "right", refusal: None },
    Says { user: "replica", password: "right", refusal: None },
    Says { user: "", password: "", refusal: Some("NOAUTH") },
    Says { user: "replica", password: "wrong", refusal: Some("Unable to AUTH to ") },
    Says { user: "stranger", password: "right", refusal: Some("Unable to AUTH to ") },
    Says { user: "app", password: "right", refusal: Some("NOPERM") },
];

/// A psyncd: how it speaks to the master and what it says, and whom it asks for a certificate.
struct Through {
    /// The master's `tls-auth-clients`; nothing where it is spoken to plainly.
    master: Option<&'static str>,
    says: &'static [&'static str],
    callers: &'static str,
}

const WAYS: [Through; 4] = [
    Through { master: None, says: &[], callers: "yes" },
    Through { master: Some("yes"), says: &["--masteruser", "psyncd"], callers: "no" },
    Through { master: Some("no"), says: &["--masteruser", "minimal"], callers: "optional" },
    Through { master: Some("optional"), says: &["--masteruser", "default"], callers: "yes" },
];

struct Site {
    world: World,
    master: Node,
    /// Where the master speaks TLS, if it can.
    tls: Option<u16>,
    password: String,
}

impl Site {
    fn new(name: &str, speaks: Speaks) -> Site {
        let world = World::new();
        let (master, tls) = match speaks {
            Speaks::Tls => {
                let (master, port) = world.node(name, &world.node, &[]);
                (master, Some(port))
            }
            Speaks::Plainly => (Node::start(server(name)), None),
        };
        fill(&master);
        for (user, rights) in [
            ("everything", &["+@all", "~*", "&*"][..]),
            ("replica", &["+psync", "+replconf", "+ping"]),
            ("psyncd", &["+psync", "+replconf", "+ping", "+info", "+config|get"]),
            ("minimal", &["+psync", "+replconf", "+ping"]),
            ("app", &["+@all", "-psync", "-sync", "~*"]),
        ] {
            let said = ["ACL", "SETUSER", user, "on", ">right", &format!(">{PASSWORD}")];
            master.cmd(&said.iter().chain(rights).copied().collect::<Vec<_>>());
        }
        master.cmd(&["CONFIG", "SET", "requirepass", PASSWORD]);
        let password = world.authority.write("masterauth", PASSWORD);
        Site { world, master, tls, password }
    }

    /// psyncd that goes this way, and the port on which it speaks TLS.
    #[track_caller]
    fn psyncd(&self, way: &Through) -> (Psyncd, u16) {
        let own = ["--masterauth-file", &self.password, "--tls-auth-clients", way.callers];
        let (upstream, tls) = match (way.master, self.tls) {
            (Some(asks), Some(port)) => {
                self.master.cmd(&["CONFIG", "SET", "tls-auth-clients", asks]);
                (format!("127.0.0.1:{port}"), "yes")
            }
            _ => (self.master.address(), "no"),
        };
        self.world.psyncd(&upstream, &[&own[..], way.says, &["--upstream-tls", tls]].concat())
    }

    /// One replica that says this, and has something of its own.
    fn replica(&self, says: &Says) -> Node {
        let name = &self.master.server.name;
        let said: Vec<&str> = [["--masteruser", says.user], ["--masterauth", says.password]]
            .into_iter()
            .filter(|[_, word]| !word.is_empty())
            .flatten()
            .collect();
        let node = match self.tls {
            Some(_) => self.world.node(name, &self.world.node, &said).0,
            None => Node::with(server(name), &said),
        };
        node.cmd(&["SET", "own", "1"]);
        node
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Speaks {
    Plainly,
    Tls,
}

#[track_caller]
fn every_combination(name: &str, speaks: Speaks) {
    let site = Site::new(name, speaks);
    let replicas: Vec<Node> = SAID.iter().map(|says| site.replica(says)).collect();
    let ways = WAYS.iter().filter(|way| way.master.is_none() || speaks == Speaks::Tls);
    for (number, way) in ways.enumerate() {
        let (psyncd, tls) = site.psyncd(way);
        for (door, port) in [("no", psyncd.port), ("yes", tls)] {
            if door == "yes" && speaks == Speaks::Plainly {
                continue;
            }
            let heard = |says: &Says, node: &Node| says.refusal.map_or(0, |line| node.log().matches(line).count());
            let before: Vec<usize> = SAID.iter().zip(&replicas).map(|(says, node)| heard(says, node)).collect();
            for node in &replicas {
                if speaks == Speaks::Tls {
                    node.cmd(&["CONFIG", "SET", "tls-replication", door]);
                }
                node.replicate(port);
            }
            site.master.cmd(&["SET", "way", &format!("{number} {door}")]);
            for ((says, node), before) in SAID.iter().zip(&replicas).zip(before) {
                let who = format!("{:?} with {:?}, way {number}, TLS {door}", says.user, says.password);
                if says.refusal.is_some() {
                    wait_until(&format!("{who} is refused"), || when(heard(says, node) > before, || node.log()));
                    assert_eq!((node.full_resyncs(), node.cmd(&["DBSIZE"]).int()), (0, 1), "{who}");
                } else {
                    node.wait_for_link();
                }
            }
            let let_in = SAID.iter().zip(&replicas).filter(|(says, _)| says.refusal.is_none());
            assert_equal_data(&site.master, let_in.map(|(_, node)| node));
        }
        assert_eq!(psyncd.metrics().one("psyncd_upstream_link_up", &[]), 1.0);
    }
    // Nor is a psyncd that says what is wrong.
    let upstream = site.tls.map_or_else(|| site.master.address(), |port| format!("127.0.0.1:{port}"));
    let tls = if speaks == Speaks::Tls { "yes" } else { "no" };
    let wrong = site.world.authority.write("wrong", "wrong");
    for (user, file) in [("psyncd", &wrong), ("stranger", &site.password), ("app", &site.password)] {
        let (mut options, _) = site.world.door();
        let own = ["--upstream-tls", tls, "--masteruser", user, "--masterauth-file", file];
        options.extend(own.map(str::to_owned));
        let psyncd = Psyncd::toward(&upstream, &options.iter().map(String::as_str).collect::<Vec<_>>());
        wait_until(&format!("psyncd as {user} is refused"), || {
            let log = psyncd.log();
            when(log.lines().any(|line| line.contains("link not established") && line.contains("refused")), || {
                log.clone()
            })
        });
    }
}

#[test]
fn everybody_says_who_he_is_to_redis_7_0() {
    every_combination("redis-7.0.15", Speaks::Tls);
}

#[test]
fn everybody_says_who_he_is_to_redis_8_0() {
    every_combination("redis-8.0.2", Speaks::Tls);
}

#[test]
fn everybody_says_who_he_is_to_valkey_8_1() {
    every_combination("valkey-8.1.1", Speaks::Tls);
}

/// The one there is has no TLS built in.
#[test]
fn everybody_says_who_he_is_to_valkey_9_1() {
    every_combination("valkey-9.1.2", Speaks::Plainly);
}

/// A Sentinel that speaks only TLS, wants a password, and watches a psyncd that does, too; a second psyncd asks it for the
/// master, follows what it says, and has a replica.
#[track_caller]
fn a_sentinel_with_a_password_over_tls(name: &str) {
    let site = Site::new(name, Speaks::Tls);
    let (front, port) = site.psyncd(&WAYS[1]);
    let World { authority, node, .. } = &site.world;
    let (at, dir) = (free_port(), tempfile::tempdir().unwrap());
    let conf = dir.path().join("sentinel.conf");
    let settings = format!(
        "port 0\ntls-port {at}\nbind 127.0.0.1\ndir {}\ntls-replication yes\ntls-cert-file {}\ntls-key-file {}\n\
         tls-ca-cert-file {}\nrequirepass sentinels-own\nsentinel monitor m 127.0.0.1 {port} 1\n\
         sentinel auth-user m everything\nsentinel auth-pass m right\nsentinel down-after-milliseconds m 3000\n",
        dir.path().display(),
        node.cert,
        node.key,
        authority.ca(),
    );
    std::fs::write(&conf, settings).unwrap();
    let sentinel = Process::start(server(name).binary(), |command| {
        command.arg(&conf).arg("--sentinel");
    });
    let asked = |password: &str| {
        let (mut options, port) = site.world.door();
        let file = authority.write(&format!("sentinel-{password}"), password);
        let own = [
            ["--upstream-tls", "yes"],
            ["--sentinels", &format!("127.0.0.1:{at}")],
            ["--sentinel-master", "m"],
            ["--sentinel-password-file", &file],
            ["--replica-port", "0"],
            ["--masteruser", "psyncd"],
            ["--masterauth-file", &site.password],
        ];
        options.extend(own.concat().into_iter().map(str::to_owned));
        (Psyncd::looking(&options.iter().map(String::as_str).collect::<Vec<_>>()), port)
    };
    let (wrong, _) = asked("wrong");
    let (behind, door) = asked("sentinels-own");
    behind.wait_for_link();
    let says = Says { user: "replica", password: "right", refusal: None };
    let replica = site.replica(&says);
    replica.replicate(door);
    replica.wait_for_link();
    assert_equal_data(&site.master, [&replica]);
    assert_eq!(behind.metrics().one("psyncd_sentinels_reachable", &[]), 1.0, "{}", sentinel.said());
    assert_eq!(wrong.metrics().one("psyncd_sentinels_reachable", &[]), 0.0);
    assert_eq!(front.metrics().one("psyncd_upstream_link_up", &[]), 1.0);
}

#[test]
fn a_sentinel_with_a_password_over_tls_is_asked_and_watches_redis() {
    a_sentinel_with_a_password_over_tls("redis-7.0.15");
}

#[test]
fn a_sentinel_with_a_password_over_tls_is_asked_and_watches_valkey() {
    a_sentinel_with_a_password_over_tls("valkey-8.1.1");
}
