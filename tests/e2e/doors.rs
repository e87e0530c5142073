//! TLS and access control together, which were made apart: each combination that people run, and each way around one
//! through the other.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ::psyncd::net::tls::{Callers, Options, Tls, TlsNetwork, Verify};
use ::psyncd::net::{Address, Network, TokioNetwork};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::access::{KNOWN, PASSWORD, attempts, leaks, locked, secret, what_came};
use crate::harness::*;

/// An authority, and what everybody shows.
pub struct World {
    pub authority: Authority,
    pub node: Issued,
    psyncd: Issued,
}

impl World {
    pub fn new() -> World {
        let authority = Authority::new();
        let node = authority.issue("node", &["127.0.0.1"]);
        let psyncd = authority.issue("psyncd", &["127.0.0.1"]);
        World { authority, node, psyncd }
    }

    /// A server's options for TLS beside its plain port, and its port for that.
    fn server(&self, shown: &Issued) -> (Vec<String>, u16) {
        let port = free_port();
        let ca = self.authority.ca();
        let text = port.to_string();
        let options = [
            ["--tls-port", &text],
            ["--tls-cert-file", &shown.cert],
            ["--tls-key-file", &shown.key],
            ["--tls-ca-cert-file", &ca],
            ["--tls-replication", "yes"],
        ];
        (options.concat().iter().map(|word| (*word).to_owned()).collect(), port)
    }

    #[track_caller]
    pub fn node(&self, name: &str, shown: &Issued, more: &[&str]) -> (Node, u16) {
        let (options, port) = self.server(shown);
        let options: Vec<&str> = options.iter().map(String::as_str).chain(more.iter().copied()).collect();
        (Node::with(server(name), &options), port)
    }

    /// psyncd's options for those who call it, and the port for that.
    pub fn door(&self) -> (Vec<String>, u16) {
        let port = free_port();
        let text = port.to_string();
        let ca = self.authority.ca();
        let options = [
            ["--tls-port", &text],
            ["--tls-cert-file", &self.psyncd.cert],
            ["--tls-key-file", &self.psyncd.key],
            ["--tls-ca-cert-file", &ca],
        ];
        (options.concat().iter().map(|word| (*word).to_owned()).collect(), port)
    }

    #[track_caller]
    pub fn psyncd(&self, upstream: &str, more: &[&str]) -> (Psyncd, u16) {
        let (options, port) = self.door();
        let options: Vec<&str> = options.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let psyncd = Psyncd::toward(upstream, &options);
        psyncd.wait_for_link();
        (psyncd, port)
    }

    /// All that comes back to attempts over TLS by somebody who has no certificate to show.
    fn scan(&self, port: u16, attempts: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
        let second = Duration::from_secs(1);
        let options = Options {
            server: None,
            client: None,
            authority: Some(self.authority.ca().into()),
            callers: Callers::Anyone,
            verify: Verify::Full,
            upstream: None,
            server_name: None,
            handshake_timeout: 10 * second,
            dial_timeout: 10 * second,
            max_handshakes: 1,
        };
        let tls = Arc::new(Tls::open(options).unwrap());
        let network = Arc::new(TlsNetwork { inner: Arc::new(TokioNetwork::default()), tls, admit: None });
        let address = Address::Tcp { host: "127.0.0.1".to_owned(), port };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut heard = Vec::new();
            for some in attempts.chunks(100) {
                let mut open = Vec::new();
                for attempt in some {
                    let mut link = network.dial(&address).await.unwrap();
                    link.sink.write_all(attempt).await.unwrap();
                    link.sink.flush().await.unwrap();
                    open.push((String::from_utf8_lossy(attempt).into_owned(), link));
                }
                // A refusal closes a second later, and until then more could come.
                tokio::time::sleep(second * 3 / 2).await;
                for (attempt, mut link) in open {
                    let mut all = Vec::new();
                    while let Ok(Ok(1..)) =
                        tokio::time::timeout(Duration::from_millis(5), link.source.read_buf(&mut all)).await
                    {
                    }
                    heard.push((attempt, all));
                }
            }
            heard
        })
    }
}

/// This host's address that is not loopback's, if it has one: nothing is sent to find it.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = socket.connect("198.51.100.1:9").ok().and_then(|()| socket.local_addr().ok());
    if own.is_none() {
        eprintln!("this host has no address but loopback");
    }
    own.map(|own| own.ip())
}

/// Users on the master, certificates on every leg, names for replicas, and psyncd with a user of few rights.
#[track_caller]
fn users_and_certificates_go_together(name: &str) {
    let world = World::new();
    let (mut master, upstream) = world.node(name, &world.node, &[]);
    fill(&master);
    let setuser = |user: &str, rights: &[&str]| {
        let said = ["ACL", "SETUSER", user, "on", ">right"];
        master.cmd(&said.iter().chain(rights).copied().collect::<Vec<_>>());
    };
    setuser("psyncd", &["+psync", "+replconf", "+ping", "+info", "+config|get"]);
    setuser("replica", &["+psync", "+replconf", "+ping"]);
    let expected = master.digest();
    master.cmd(&["CONFIG", "SET", "requirepass", PASSWORD]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("masterauth");
    std::fs::write(&file, "right\n").unwrap();
    let own = ["--upstream-tls", "yes", "--masteruser", "psyncd", "--masterauth-file", file.to_str().unwrap()];
    let named = ["--tls-allow-replicas", "node"];
    let (psyncd, port) = world.psyncd(&format!("127.0.0.1:{upstream}"), &[&own[..], &named].concat());

    let credentials = ["--masteruser", "replica", "--masterauth", "right"];
    let (good, _) = world.node(name, &world.node, &credentials);
    good.replicate(port);
    good.wait_for_link();
    wait_until("the data is there", || when(good.digest() == expected, || good.digest()));

    // The right user with the wrong certificate, and the right certificate with the wrong user.
    let stranger = world.authority.issue("stranger", &["127.0.0.1"]);
    let (unnamed, _) = world.node(name, &stranger, &credentials);
    let (wrong, _) = world.node(name, &world.node, &["--masteruser", "replica", "--masterauth", "wrong"]);
    unnamed.replicate(port);
    wrong.replicate(port);
    let rejected = |why| psyncd.metrics().one("psyncd_replica_rejects_total", &[("reason", why)]);
    wait_until("the wrong certificate is refused", || when(rejected("certificate") >= 1.0, || psyncd.log()));
    wait_until("the wrong password is refused", || when(wrong.log().contains("Unable to AUTH to "), || wrong.log()));
    for node in [&unnamed, &wrong] {
        assert_eq!((node.cmd(&["DBSIZE"]).int(), node.full_resyncs()), (0, 0));
    }

    // With the master away the one who was right comes back, and continues.
    master.kill();
    psyncd.wait_for_lost_link();
    let full = good.full_resyncs();
    good.cmd(&["CLIENT", "KILL", "TYPE", "master"]);
    good.wait_for_link();
    assert_eq!((good.full_resyncs(), good.digest()), (full, expected));
    assert_eq!((unnamed.cmd(&["DBSIZE"]).int(), wrong.cmd(&["DBSIZE"]).int()), (0, 0));
}

#[test]
fn redis_users_and_certificates_go_together() {
    users_and_certificates_go_together("redis-7.0.15");
}

#[test]
fn valkey_users_and_certificates_go_together() {
    users_and_certificates_go_together("valkey-8.1.1");
}

#[test]
fn a_scan_over_tls_yields_nothing_either() {
    let world = World::new();
    let master = locked("redis-7.2.4");
    let (replid, offset) = (master.replid(), master.offset());
    let (_dir, file) = secret();
    let options = ["--masterauth-file", &file, "--tls-auth-clients", "no", "--max-unauthenticated", "1000"];
    let (_psyncd, port) = world.psyncd(&master.address(), &options);
    let (_open, open) = world.psyncd(&master.address(), &[&options[..], &["--replica-auth", "none"]].concat());
    let attempts = attempts(&replid, offset);
    let heard = world.scan(port, &attempts);
    let answered = heard.iter().filter(|(_, bytes)| !bytes.is_empty()).count();
    assert!(answered > 300, "{answered} of {} were answered", heard.len());
    assert_eq!(leaks(&heard, &replid), Vec::<String>::new());
    let control = leaks(&world.scan(open, &attempts[..100]), &replid);
    assert!(control.len() > 10, "the same scan finds what is there to be found: {control:?}");
}

#[test]
fn a_scan_of_the_replica_face_yields_nothing_either() {
    let master = locked("redis-7.2.4");
    let (replid, offset) = (master.replid(), master.offset());
    let (_dir, file) = secret();
    let face = free_port();
    let options = ["--masterauth-file", &file, "--replica-port", &face.to_string(), "--max-unauthenticated", "1000"];
    let _psyncd = Psyncd::before_with(&master, &options);
    let scan = |first: &str| {
        let mut heard = Vec::new();
        for some in attempts(&replid, offset).chunks(100) {
            let open = some.iter().map(|attempt| {
                let mut conn = Conn::to(face);
                conn.send([first.as_bytes(), attempt].concat()).unwrap();
                (String::from_utf8_lossy(attempt).into_owned(), conn)
            });
            let open: Vec<_> = open.collect();
            std::thread::sleep(Duration::from_millis(1500));
            heard.extend(open.into_iter().map(|(attempt, mut conn)| (attempt, what_came(&mut conn))));
        }
        heard
    };
    let heard = scan("");
    assert!(heard.len() > 300 && heard.iter().filter(|(_, bytes)| !bytes.is_empty()).count() > 300);
    assert_eq!(leaks(&heard, &replid), Vec::<String>::new());
    let control = leaks(&scan(&format!("AUTH {PASSWORD}\r\n")), &replid);
    assert!(control.len() > 20, "whoever knows the password finds it: {control:?}");
}

#[test]
fn who_has_not_finished_a_tls_handshake_is_one_of_the_strangers_of_his_address() {
    let world = World::new();
    let master = Node::start(server("redis-7.0.15"));
    let limits = ["--max-unauthenticated", "3", "--handshake-timeout", "2s"];
    let (psyncd, port) = world.psyncd(&master.address(), &limits);
    let counted = |name: &str, labels: &[(&str, &str)]| psyncd.metrics().one(name, labels);
    let dumb: Vec<_> = (0..6).map(|_| Conn::to(port)).collect();
    wait_until("the fourth is hung up on, without a handshake", || {
        let limit = counted("psyncd_tls_handshakes_total", &[("side", "accepted"), ("result", "limit")]);
        when(limit >= 3.0, || limit.to_string())
    });
    assert!(counted("psyncd_client_connections_total", &[("result", "unauthenticated")]) >= 1.0);
    // They are bounded in time, too, and then there is room.
    wait_until("there is room again", || {
        let said = psyncd.conn().ask(&["PING"]);
        when(!matches!(said, Ok(Value::Error(_)) | Err(_)), || format!("{said:?}"))
    });
    drop(dumb);
}

#[test]
fn the_replica_face_counts_strangers_as_well() {
    let master = locked("redis-7.0.15");
    let (_dir, file) = secret();
    let face = free_port();
    let psyncd = Psyncd::before_with(
        &master,
        &[
            ["--masterauth-file", &file],
            ["--replica-port", &face.to_string()],
            ["--max-unauthenticated", "3"],
            ["--handshake-timeout", "2s"],
        ]
        .concat(),
    );
    let mut known: Vec<_> = (0..6)
        .map(|_| {
            let mut conn = Conn::to(face);
            assert_eq!(conn.cmd(&["AUTH", PASSWORD]).text(), "OK", "whoever names the password is none of them");
            conn
        })
        .collect();
    // Six come at once and say nothing: three are bounded in time, three too many.
    let mut silent: Vec<_> = (0..6).map(|_| Conn::to(face)).collect();
    let said: Vec<_> = silent.iter_mut().map(|conn| conn.until_closed(SOON).unwrap()).collect();
    let refused = said.iter().filter(|said| said.starts_with(b"-ERR max number of clients reached for your address"));
    assert_eq!((refused.count(), said.iter().filter(|said| said.is_empty()).count()), (3, 3), "{said:?}");
    assert!(psyncd.metrics().one("psyncd_client_connections_total", &[("result", "unauthenticated")]) >= 1.0);
    for conn in &mut known {
        assert_eq!(conn.cmd(&["PING"]).text(), "PONG", "the others stay");
    }
}

#[test]
fn protected_mode_knows_a_certificate_that_comes_from_another_host() {
    let Some(own) = own_address() else { return };
    let world = World::new();
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let (psyncd, port) = world.psyncd(&master.address(), &["--bind", "0.0.0.0"]);
    let (replica, _) = world.node("redis-7.0.15", &world.node, &[]);
    replica.cmd(&["REPLICAOF", &own.to_string(), &port.to_string()]);
    replica.wait_for_link();
    assert_equal_data(&master, [&replica]);
    let stream = TcpStream::connect(SocketAddr::new(own, psyncd.port)).unwrap();
    let said = Conn::over(stream).until_closed(SOON).unwrap();
    assert!(said.starts_with(b"-DENIED psyncd is running in protected mode"), "the plain port shows nothing: {said:?}");
}

#[test]
fn a_client_without_the_name_is_no_replica_for_asking_late() {
    let world = World::new();
    let master = Node::start(server("redis-7.0.15"));
    master.cmd(&["SET", "known", KNOWN]);
    let (psyncd, _) = world.psyncd(&master.address(), &["--tls-allow-replicas", "node"]);
    let late = |psyncd: &Psyncd| {
        let mut conn = psyncd.conn();
        assert_eq!(conn.cmd(&["DBSIZE"]).int(), 1);
        conn.send("SYNC\r\n").unwrap();
        conn
    };
    assert_eq!(late(&psyncd).until_closed(SOON).unwrap(), b"");
    // The control: without the list the master judges, and it has no password.
    let (open, _) = world.psyncd(&master.address(), &[]);
    assert!(late(&open).payload().unwrap().starts_with(b"REDIS0"));
}

#[test]
fn hello_names_a_user_as_well_as_auth_does() {
    let master = Node::start(server("redis-7.0.15"));
    master.cmd(&["SET", "known", KNOWN]);
    master.cmd(&["ACL", "SETUSER", "replica", "on", ">right", "+psync", "+replconf", "+ping"]);
    master.cmd(&["CONFIG", "SET", "requirepass", PASSWORD]);
    let (_dir, file) = secret();
    let psyncd = Psyncd::before_with(&master, &["--masterauth-file", &file]);
    let mut conn = psyncd.conn();
    conn.send("HELLO 2 AUTH replica right\r\nREPLCONF capa eof\r\nPSYNC ? -1\r\n").unwrap();
    conn.reply().unwrap();
    assert_eq!(conn.line().unwrap(), "+OK");
    assert!(conn.line_after_newlines().unwrap().starts_with("+FULLRESYNC "));
    assert_eq!(psyncd.resyncs().full, 1, "from psyncd, which judged it");
    let mut conn = psyncd.conn();
    conn.send("HELLO 2 AUTH replica wrong\r\nPSYNC ? -1\r\n").unwrap();
    let said = conn.until_closed(SOON).unwrap();
    let said = String::from_utf8_lossy(&said);
    assert!(said.starts_with("-WRONGPASS") && said.contains("-NOAUTH") && said.lines().count() == 2, "{said}");
    // A client that says it first is a client, and speaks what it asked for.
    let mut conn = psyncd.conn();
    conn.send(format!("HELLO 3 AUTH default {PASSWORD}\r\n")).unwrap();
    assert!(conn.line().unwrap().starts_with('%'));
}

#[test]
fn users_of_our_own_are_let_in_and_those_who_may_not_are_told() {
    let mut master = locked("redis-7.0.15");
    let dir = tempfile::tempdir().unwrap();
    let (conf, file) = (dir.path().join("psyncd.toml"), dir.path().join("password"));
    std::fs::write(&file, PASSWORD).unwrap();
    let text = format!(
        "masterauth-file = {0:?}\n\n[[user]]\nname = \"replica\"\npassword-file = {0:?}\n\n[[user]]\nname = \"viewer\"\n\
         password-hash = \"{RIGHT}\"\nreplicate = \"no\"\n",
        file.to_str().unwrap()
    );
    std::fs::write(&conf, text).unwrap();
    let conf = conf.to_str().unwrap();
    let psyncd = Psyncd::before_with(&master, &["--config", conf, "--replica-auth", "static"]);
    let replica = Node::with(server("redis-7.0.15"), &["--masteruser", "replica", "--masterauth", PASSWORD]);
    replica.replicate(psyncd.port);
    replica.wait_for_link();
    let said = |user: &str, password: &str| {
        let mut conn = psyncd.conn();
        conn.send(format!("REPLCONF psyncd-id x,1\r\nAUTH {user} {password}\r\nPSYNC ? -1\r\n")).unwrap();
        let said = conn.until_closed(SOON).unwrap();
        String::from_utf8(said).unwrap()
    };
    assert!(said("viewer", "right").ends_with("-NOPERM this user may not replicate (psyncd [[user]])\r\n"));
    assert!(said("viewer", "wrong").contains("-WRONGPASS"));
    assert!(said("replica", "wrong").contains("-WRONGPASS"));

    // With upstream as the judge they count while it is away.
    let other = Psyncd::before_with(&master, &["--config", conf]);
    let full = |node: &Node| node.full_resyncs();
    replica.replicate(other.port);
    wait_until("the master does not know the user", || {
        when(replica.log().contains("Unable to AUTH to "), || replica.log())
    });
    master.kill();
    other.wait_for_lost_link();
    replica.wait_for_link();
    assert_eq!(full(&replica), 1, "{}", replica.log());
}

/// `printf right | sha256sum`.
const RIGHT: &str = "27042f4e6eca7d0b2a7ee4026df2ecfa51d3339e6d122aa099118ecd8563bad9";

#[test]
fn a_process_that_crashes_leaves_no_core() {
    let crashed = |program: &str| {
        let narrow = format!("ulimit -c unlimited; cd /tmp; exec {program}");
        let mut child =
            Command::new("sh").args(["-c", &narrow]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        if program.contains("psyncd") {
            // It says so once it has switched them off.
            use std::io::{BufRead, BufReader};
            let lines = BufReader::new(child.stderr.take().unwrap()).lines();
            assert!(lines.map_while(Result::ok).any(|line| line.contains("psyncd started")));
        } else {
            std::thread::sleep(Duration::from_millis(300));
        }
        Command::new("kill").args(["-ABRT", &child.id().to_string()]).status().unwrap();
        child.wait().unwrap().core_dumped()
    };
    let bin = env!("CARGO_BIN_EXE_psyncd");
    assert!(!crashed(&format!("{bin} run --upstream 127.0.0.1:1 --port 0 --admin-bind none")));
    if !crashed("sleep 100") {
        eprintln!("no process of this host leaves a core, so this proves nothing here");
    }
}

#[test]
fn clients_and_replicas_have_a_limit_that_hurts_only_the_one_too_many() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let psyncd = Psyncd::before_with(&master, &["--maxclients", "5", "--max-replicas", "1"]);
    let replica = Node::start(server("redis-7.0.15"));
    replica.replicate(psyncd.port);
    replica.wait_for_link();
    let mut second = psyncd.conn();
    second.send("REPLCONF capa eof\r\nPSYNC ? -1\r\n").unwrap();
    assert_eq!(second.line().unwrap(), "+OK");
    assert_eq!(second.line().unwrap(), "-ERR psyncd serves as many replicas as max-replicas allows");
    drop(second);
    wait_until("it is counted", || {
        let count = psyncd.metrics().one("psyncd_replica_rejects_total", &[("reason", "limit")]);
        when(count == 1.0, || count.to_string())
    });
    // The replica is one of the five, and the refused one is gone.
    let mut clients: Vec<_> = (0..4).map(|_| psyncd.conn()).collect();
    wait_until("four clients are served", || {
        for client in &mut clients {
            if !matches!(client.ask(&["PING"]), Ok(value) if value.text() == "PONG") {
                *client = psyncd.conn();
                return Err("not all".to_owned());
            }
        }
        Ok(())
    });
    let said = psyncd.conn().until_closed(SOON).unwrap();
    assert_eq!(said, b"-ERR max number of clients reached\r\n");
    assert!(psyncd.metrics().one("psyncd_client_connections_total", &[("result", "limit")]) >= 1.0);
    assert_eq!(clients[0].cmd(&["SET", "after", "1"]).text(), "OK");
    assert_equal_data(&master, [&replica]);
}

#[test]
fn the_replica_face_has_as_many_connections_as_the_rest() {
    let master = Node::start(server("redis-7.0.15"));
    let face = free_port();
    let psyncd = Psyncd::before_with(&master, &["--maxclients", "3", "--replica-port", &face.to_string()]);
    let mut many: Vec<_> = (0..6).map(|_| Conn::to(face)).collect();
    let mut answers = || {
        let said = many.iter_mut().map(|conn| match conn.ask(&["PING"]) {
            Ok(Value::Simple(_)) => "served",
            Ok(Value::Error(why)) if why.contains("max number of clients") => "refused",
            _ => "gone",
        });
        said.collect::<Vec<_>>()
    };
    let said = answers();
    assert_eq!(said.iter().filter(|said| **said == "served").count(), 3, "{said:?}");
    assert!(psyncd.metrics().one("psyncd_client_connections_total", &[("result", "limit")]) >= 3.0);
    assert_eq!(answers().iter().filter(|said| **said == "served").count(), 3, "those who were there stay");
}

#[test]
fn too_few_open_files_are_said_at_start() {
    let master = Node::start(server("redis-7.0.15"));
    let psyncd = Psyncd::narrowed("ulimit -n 200;", &master.address(), &["--maxclients", "1000"]);
    assert!(psyncd.log().contains("too few open files allowed"), "{}", psyncd.log());
    let enough = Psyncd::narrowed("ulimit -n 400;", &master.address(), &["--maxclients", "50", "--max-replicas", "4"]);
    assert!(!enough.log().contains("too few open files allowed"), "{}", enough.log());
}

#[test]
fn no_secret_of_any_kind_is_shown_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let secret = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("{name}-hunter2-hunter2\n")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let master = Node::start(server("redis-7.0.15"));
    master.cmd(&["CONFIG", "SET", "requirepass", "masterauth-hunter2-hunter2"]);
    let files =
        ["masterauth", "requirepass", "replica-requirepass", "sentinel-password", "assist-secret", "admin-token"];
    let mut text: String = files.iter().map(|name| format!("{name}-file = {:?}\n", secret(name))).collect();
    text.push_str("sentinels = \"127.0.0.1:1\"\nsentinel-master = \"m\"\nassist-failover = \"yes\"\n");
    text.push_str(&format!("[[user]]\nname = \"u\"\npassword-file = {:?}\n", secret("user")));
    let conf = dir.path().join("psyncd.toml");
    std::fs::write(&conf, text).unwrap();
    let (conf, face) = (conf.to_str().unwrap(), free_port().to_string());
    let mut psyncd = Psyncd::before_with(&master, &["--config", conf, "--replica-port", &face, "--loglevel", "trace"]);
    // Right and wrong ones, in every place where one can be named.
    for port in [psyncd.port, psyncd.face()] {
        for words in [
            "AUTH masterauth-hunter2-hunter2",
            "AUTH u user-hunter2-hunter2",
            "AUTH wrong-hunter2",
            "HELLO 3 AUTH u hunter2",
        ] {
            let mut conn = Conn::to(port);
            conn.send(format!("{words}\r\nREPLCONF capa eof\r\nPSYNC ? -1\r\n")).unwrap();
            let _ = conn.line();
            let _ = conn.line();
        }
    }
    let pid = psyncd.process().pid();
    let printed = Command::new(env!("CARGO_BIN_EXE_psyncd"))
        .args(["check-config", "--print", "--upstream", "127.0.0.1:1", "--config", conf])
        .output()
        .unwrap();
    let proc =
        |name: &str| String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{name}")).unwrap()).into_owned();
    let mut shown = vec![
        ("log", psyncd.log()),
        ("arguments", proc("cmdline")),
        ("environment", proc("environ")),
        ("check-config", String::from_utf8_lossy(&[printed.stdout, printed.stderr].concat()).into_owned()),
    ];
    for path in ["/metrics", "/status", "/readyz", "/offset", "/-/guard/release", "/config", "/"] {
        shown.push((path, psyncd.get(path).1));
    }
    for (place, text) in shown {
        assert!(!text.contains("hunter2"), "{place}: {text}");
    }
}
