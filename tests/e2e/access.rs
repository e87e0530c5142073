//! Who may have the data: strangers get not a byte of it, in any order of words; replicas of every kind come in with
//! what the master knows them by, also while it is away.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::*;

/// A value that nothing but the data set has in it.
pub const KNOWN: &str = "a-value-nobody-may-see";
pub const PASSWORD: &str = "correct-horse";

/// A master with a password and one known value.
pub fn locked(name: &str) -> Node {
    let master = Node::start(server(name));
    fill(&master);
    master.cmd(&["SET", "known", KNOWN]);
    // The connection that says so stays open, and in.
    master.cmd(&["CONFIG", "SET", "requirepass", PASSWORD]);
    master
}

pub fn secret() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let path = file.to_str().unwrap().to_owned();
    (dir, path)
}

/// Everything a stranger may try: what opens a connection, and what may be said then.
pub fn attempts(replid: &str, offset: i64) -> Vec<Vec<u8>> {
    let asks = [
        "PSYNC ? -1".to_owned(),
        "PSYNC ? x".to_owned(),
        format!("PSYNC {replid} {offset}"),
        format!("PSYNC {replid} {offset} FAILOVER"),
        "SYNC".to_owned(),
        "INFO replication".to_owned(),
        "INFO psyncd".to_owned(),
        "ROLE".to_owned(),
        "GET known".to_owned(),
        "MONITOR".to_owned(),
    ];
    let preludes: &[&[&str]] = &[
        &[],
        &["PING"],
        &["PING", "PING"],
        &["AUTH wrong"],
        &["AUTH default wrong"],
        &["AUTH"],
        &["HELLO 3 AUTH default wrong"],
        &["REPLCONF"],
        &["REPLCONF psyncd-id stranger,1"],
        &["REPLCONF psyncd-id stranger,1", "REPLCONF psyncd-since 1"],
        &["REPLCONF psyncd-id stranger,1", "AUTH wrong"],
        &["PING", "AUTH wrong", "REPLCONF listening-port 7001", "REPLCONF capa eof capa psync2"],
        &["REPLCONF rdb-only 1", "REPLCONF capa eof"],
        &["REPLCONF rdb-filter-only functions"],
        &["REPLCONF ack 1"],
        &["REPLCONF getack *"],
        &["", "MULTI"],
    ];
    let mut all = Vec::new();
    for prelude in preludes {
        for ask in &asks {
            let lines: Vec<&str> = prelude.iter().copied().chain([ask.as_str(), "PING"]).collect();
            all.push(lines.iter().map(|line| format!("{line}\r\n")).collect::<String>().into_bytes());
            let framed = lines.iter().filter(|line| !line.is_empty());
            all.push(framed.flat_map(|line| encode(&line.split(' ').collect::<Vec<_>>())).collect());
        }
    }
    all
}

/// All that comes back to these attempts, each on a connection of its own, all at once.
fn scan(psyncd: &Psyncd, replid: &str, offset: i64) -> Vec<(String, Vec<u8>)> {
    let attempts = attempts(replid, offset);
    let mut heard = Vec::new();
    for some in attempts.chunks(100) {
        let open: Vec<_> = some
            .iter()
            .map(|attempt| {
                let mut conn = psyncd.conn();
                conn.send(attempt).unwrap();
                (String::from_utf8_lossy(attempt).into_owned(), conn)
            })
            .collect();
        // A refusal closes a second later, and until then more could come.
        std::thread::sleep(Duration::from_millis(1500));
        for (attempt, mut conn) in open {
            heard.push((attempt, what_came(&mut conn)));
        }
    }
    heard
}

/// What has come already.
pub fn what_came(conn: &mut Conn) -> Vec<u8> {
    use std::io::Read;
    let mut stream = conn.stream();
    stream.set_nonblocking(true).unwrap();
    let (mut all, mut piece) = (Vec::new(), [0; 65536]);
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        all.extend_from_slice(&piece[..n]);
    }
    all
}

/// The attempts that got something of the data, its id, or how far it goes.
pub fn leaks(heard: &[(String, Vec<u8>)], replid: &str) -> Vec<String> {
    let holds = |bytes: &[u8], part: &str| bytes.windows(part.len()).any(|window| window == part.as_bytes());
    let forbidden = [replid, "REDIS0", "VALKEY0", KNOWN, "+CONTINUE", "+FULLRESYNC", "$EOF:", "master_repl_offset"];
    let leaky = heard.iter().filter(|(_, bytes)| forbidden.iter().any(|part| holds(bytes, part)));
    leaky.map(|(attempt, bytes)| format!("{attempt:?}: {:?}", String::from_utf8_lossy(bytes))).collect()
}

#[test]
fn a_scan_without_credentials_yields_nothing_with_the_master_there_or_away() {
    let mut master = locked("redis-7.2.4");
    let (replid, offset) = (master.replid(), master.offset());
    let (_dir, file) = secret();
    let options = ["--masterauth-file", &file, "--max-unauthenticated", "1000"];
    let psyncd = Psyncd::before_with(&master, &options);
    let open = Psyncd::before_with(&master, &[&options[..], &["--replica-auth", "none"]].concat());

    let heard = scan(&psyncd, &replid, offset);
    assert!(heard.len() > 300 && heard.iter().all(|(_, bytes)| !bytes.is_empty()), "{} attempts", heard.len());
    assert_eq!(leaks(&heard, &replid), Vec::<String>::new());
    let control = leaks(&scan(&open, &replid, offset), &replid);
    assert!(control.len() > 50, "without authentication the same scan finds the data, so it can find it: {control:?}");

    master.kill();
    psyncd.wait_for_lost_link();
    assert_eq!(leaks(&scan(&psyncd, &replid, offset), &replid), Vec::<String>::new());
    open.wait_for_lost_link();
    assert!(!leaks(&scan(&open, &replid, offset), &replid).is_empty());
}

/// A replica with these credentials behind psyncd, while `master` is there, away, and psyncd new.
fn replicas_come_in_with_what_the_master_knows(name: &str, user: Option<&str>) {
    let mut master = Node::start(server(name));
    fill(&master);
    if user.is_some() {
        let setuser = |user: &str, rights: &[&str]| {
            let said = ["ACL", "SETUSER", user, "on", ">right"];
            master.cmd(&said.iter().chain(rights).copied().collect::<Vec<_>>());
        };
        setuser("replica", &["+psync", "+replconf", "+ping"]);
        setuser("app", &["+@all", "-psync", "-sync", "~*"]);
    }
    let expected = master.digest();
    master.cmd(&["CONFIG", "SET", "requirepass", PASSWORD]);
    let (_dir, file) = secret();
    let psyncd = Psyncd::before_with(&master, &["--masterauth-file", &file]);
    let password = if user.is_some() { "right" } else { PASSWORD };
    let mut credentials = vec!["--masterauth", password];
    credentials.extend(user.iter().flat_map(|user| ["--masteruser", user]));
    let replica = Node::with(server(name), &credentials);
    replica.replicate(psyncd.port);
    replica.wait_for_link();
    wait_until("the data is there", || when(replica.digest() == expected, || replica.digest()));

    // The master is away, and the replica comes back.
    master.kill();
    psyncd.wait_for_lost_link();
    let full = replica.full_resyncs();
    replica.cmd(&["CLIENT", "KILL", "TYPE", "master"]);
    replica.wait_for_link();
    assert_eq!(replica.full_resyncs(), full, "it was known, so it continued");

    // Whoever is wrong is refused, and keeps what it has.
    replica.cmd(&["CONFIG", "SET", "masterauth", "wrong"]);
    replica.cmd(&["CLIENT", "KILL", "TYPE", "master"]);
    wait_until("it is refused", || {
        let log = replica.log();
        when(log.contains("Unable to AUTH to "), || log.clone())
    });
    assert_eq!(replica.digest(), expected);
    replica.cmd(&["CONFIG", "SET", "masterauth", password]);
    replica.wait_for_link();
    assert_eq!(replica.full_resyncs(), full, "a wrong password cost it nothing");
    drop(psyncd);
}

#[test]
fn a_redis_5_replica_comes_in_with_the_masters_password() {
    replicas_come_in_with_what_the_master_knows("redis-5.0.6", None);
}

#[test]
fn a_redis_6_2_replica_comes_in_with_its_acl_user() {
    replicas_come_in_with_what_the_master_knows("redis-6.2.14", Some("replica"));
}

#[test]
fn a_redis_7_0_replica_comes_in_with_its_acl_user() {
    replicas_come_in_with_what_the_master_knows("redis-7.0.15", Some("replica"));
}

#[test]
fn a_valkey_8_1_replica_comes_in_with_its_acl_user() {
    replicas_come_in_with_what_the_master_knows("valkey-8.1.1", Some("replica"));
}

#[test]
fn a_user_who_may_read_but_not_replicate_does_not() {
    let master = Node::start(server("redis-7.0.15"));
    master.cmd(&["SET", "known", KNOWN]);
    master.cmd(&["ACL", "SETUSER", "app", "on", ">right", "+@all", "-psync", "-sync", "~*"]);
    master.cmd(&["CONFIG", "SET", "requirepass", PASSWORD]);
    let (_dir, file) = secret();
    let psyncd = Psyncd::before_with(&master, &["--masterauth-file", &file]);
    let before = master.syncs();
    let mut conn = psyncd.conn();
    assert_eq!(conn.cmd(&["AUTH", "app", "right"]).text(), "OK");
    assert_eq!(conn.cmd(&["GET", "known"]).text(), KNOWN);
    let mut conn = psyncd.conn();
    assert_eq!(conn.cmd(&["AUTH", "app", "right"]).text(), "OK");
    for ask in [&["REPLCONF", "capa", "eof"][..], &["PSYNC", "?", "-1"]] {
        match conn.ask(ask).unwrap() {
            Value::Error(why) => assert!(why.starts_with("NOPERM") && why.contains("psync"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(master.syncs(), before, "asking the master has no effect there");
    wait_until("it is counted", || {
        let count = psyncd.metrics().one("psyncd_replica_rejects_total", &[("reason", "auth")]);
        when(count == 1.0, || format!("{count}"))
    });
}

#[test]
fn protected_mode_answers_other_hosts_with_one_line_until_there_is_a_password() {
    // Our own address on the network, if there is one: nothing is sent to find it.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let Some(own) = socket.connect("198.51.100.1:9").ok().and_then(|()| socket.local_addr().ok()) else {
        eprintln!("this host has no address but loopback; the judge's own tests have to do");
        return;
    };
    let master = Node::start(server("redis-7.0.15"));
    let psyncd = Psyncd::before_with(&master, &["--bind", "0.0.0.0"]);
    let from_afar = |psyncd: &Psyncd| {
        let stream = TcpStream::connect(SocketAddr::new(own.ip(), psyncd.port)).unwrap();
        Conn::over(stream)
    };
    let mut conn = from_afar(&psyncd);
    let said = conn.until_closed(SOON).unwrap();
    let said = String::from_utf8_lossy(&said);
    assert!(said.starts_with("-DENIED psyncd is running in protected mode") && said.lines().count() == 1, "{said}");
    assert_eq!(psyncd.metrics().one("psyncd_client_connections_total", &[("result", "protected_mode")]), 1.0);
    assert_eq!(psyncd.conn().cmd(&["PING"]).text(), "PONG", "our own host is answered");
    let open = Psyncd::before_with(&master, &["--bind", "0.0.0.0", "--protected-mode", "no"]);
    assert_eq!(from_afar(&open).cmd(&["PING"]).text(), "PONG");

    let listed = Psyncd::before_with(&master, &["--bind", "0.0.0.0", "--allow-clients", &own.ip().to_string()]);
    assert_eq!(from_afar(&listed).cmd(&["PING"]).text(), "PONG");
    let mut conn = from_afar(&listed);
    assert_eq!(conn.cmd(&["DBSIZE"]).int(), 0);
    conn.send("SYNC\r\n").unwrap();
    assert_eq!(conn.until_closed(SOON).unwrap(), b"", "a client on the list is no replica for that");

    master.cmd(&["CONFIG", "SET", "requirepass", PASSWORD]);
    let (_dir, file) = secret();
    let guarded = Psyncd::before_with(&master, &["--bind", "0.0.0.0", "--masterauth-file", &file]);
    match from_afar(&guarded).ask(&["PING"]).unwrap() {
        Value::Error(why) => assert!(why.starts_with("NOAUTH"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn whoever_is_on_no_list_hears_one_line() {
    let master = Node::start(server("redis-7.0.15"));
    let lists = ["--allow-clients", "192.0.2.0/24", "--allow-replicas", "192.0.2.0/24"];
    let psyncd = Psyncd::before_with(&master, &lists);
    let said = psyncd.conn().until_closed(SOON).unwrap();
    assert!(said.starts_with(b"-DENIED psyncd lets nobody in from your address"), "{said:?}");
    let replicas_only = Psyncd::before_with(&master, &lists[..2]);
    let mut conn = replicas_only.conn();
    conn.send("GET a\r\n").unwrap();
    assert!(conn.until_closed(SOON).unwrap().starts_with(b"-DENIED "));
    let replica = Node::start(server("redis-7.0.15"));
    replica.replicate(replicas_only.port);
    replica.wait_for_link();
    let clients_only = Psyncd::before_with(&master, &lists[2..]);
    assert_eq!(clients_only.conn().cmd(&["PING"]).text(), "PONG");
    let mut conn = clients_only.conn();
    conn.send("REPLCONF capa eof\r\nPSYNC ? -1\r\n").unwrap();
    assert!(conn.line().unwrap().starts_with("-DENIED "));
}

#[test]
fn the_limits_before_authentication_hurt_only_who_reaches_them() {
    let master = locked("redis-7.0.15");
    let (_dir, file) = secret();
    let psyncd = Psyncd::before_with(
        &master,
        &["--masterauth-file", &file, "--max-unauthenticated", "3", "--handshake-timeout", "3s"],
    );
    let mut client = psyncd.conn();
    client.cmd(&["AUTH", PASSWORD]);
    client.cmd(&["DBSIZE"]);
    let mut strangers: Vec<_> = (0..3).map(|_| psyncd.conn()).collect();
    for stranger in &mut strangers {
        stranger.send("*1\r\n$4\r\nPI").unwrap();
    }
    wait_until("one is too many", || {
        let mut another = psyncd.conn();
        another.send("*1\r\n$4\r\nPI").map_err(|why| why.to_string())?;
        match another.until_closed(Duration::from_millis(300)) {
            Ok(said) => {
                when(said.starts_with(b"-ERR max number of clients reached for your address"), || format!("{said:?}"))
            }
            // It got the place of one that was refused before it.
            Err(why) => {
                strangers.push(another);
                Err(why.to_string())
            }
        }
    });
    assert_eq!(client.cmd(&["EXISTS", "known"]).int(), 1, "who was let in before goes on");
    for stranger in &mut strangers {
        let said = stranger.until_closed(SOON).unwrap();
        let said = String::from_utf8_lossy(&said);
        let is_told = said.contains("the first command did not arrive in time") || said.contains("for your address");
        assert!(is_told || said.is_empty(), "{said}");
    }
    // The slow have gone, and there is room again; who talks without end is stopped.
    // Before it is known what it is, and when it is known to be a replica.
    for word in ["AUTH wrong", "REPLCONF capa eof"] {
        let mut endless = psyncd.conn();
        endless.send(format!("{word}\r\n").repeat(3000)).unwrap();
        let mut heard = 0;
        let last = loop {
            match endless.line() {
                Ok(line) if line.contains("max-handshake-bytes") => break line,
                Ok(_) => heard += 1,
                Err(why) => panic!("{word}: {why} after {heard} answers"),
            }
        };
        assert!(heard < 2000, "{heard} answers, then {last}");
    }
    assert!(psyncd.metrics().one("psyncd_client_connections_total", &[("result", "unauthenticated")]) >= 1.0);

    let slow = Psyncd::before_with(&master, &["--masterauth-file", &file, "--max-connection-rate", "5"]);
    let answers = (0..20).filter(|_| {
        let said = slow.conn().ask(&["PING"]);
        matches!(said, Ok(Value::Error(why)) if why.starts_with("NOAUTH"))
    });
    let answers = answers.count();
    assert!((5..20).contains(&answers), "{answers} of 20 were answered");
}

#[test]
fn no_secret_is_shown_to_anybody() {
    let master = locked("redis-7.0.15");
    let (_dir, file) = secret();
    let mut psyncd = Psyncd::before_with(
        &master,
        &["--masterauth-file", &file, "--requirepass-file", &file, "--replica-auth", "static", "--loglevel", "trace"],
    );
    let mut conn = psyncd.conn();
    conn.send(format!("AUTH {PASSWORD}\r\nREPLCONF capa eof\r\n")).unwrap();
    assert_eq!((conn.line().unwrap(), conn.line().unwrap()), ("+OK".to_owned(), "+OK".to_owned()));
    assert!(!psyncd.log().contains(PASSWORD), "it is in the log");
    let pid = psyncd.process().pid();
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!String::from_utf8_lossy(&arguments).contains(PASSWORD));
    let printed = std::process::Command::new(env!("CARGO_BIN_EXE_psyncd"))
        .args(["check-config", "--print", "--upstream", "127.0.0.1:1", "--requirepass-file", &file])
        .env("PSYNCD_MASTERAUTH", PASSWORD)
        .output()
        .unwrap();
    let printed = [printed.stdout, printed.stderr].concat();
    assert!(!String::from_utf8_lossy(&printed).contains(PASSWORD), "{}", String::from_utf8_lossy(&printed));
    let argued = std::process::Command::new(env!("CARGO_BIN_EXE_psyncd")).args(["run", "--requirepass", "x"]).output();
    assert!(!argued.unwrap().status.success(), "a password is no flag");
}
