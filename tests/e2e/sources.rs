//! Where an RDB comes from, cheapest first: a cached one, one of our own replicas, the master.
//!
//! In each scenario the cached snapshot has fallen out of a small backlog before a stranger comes, so that somebody has to
//! make a new one. Control: `asked_for_by_setting_the_master_forks_for_a_late_joiner`, and for plain servers
//! `without_psyncd_a_late_joiner_costs_the_master_a_fork`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::*;

/// Small enough to be overrun at will, and enough for what is written while a snapshot is sent.
const BACKLOG: [&str; 2] = ["--repl-backlog-size", "4mb"];
const NO_PAUSE: [&str; 2] = ["--snapshot-min-interval", "0"];

struct World {
    master: Node,
    psyncd: Psyncd,
    replicas: Vec<Node>,
    /// The stranger, not yet a replica.
    stranger: Node,
}

/// A master, replicas that are in sync, and a psyncd whose snapshot is too old for its backlog.
#[track_caller]
fn world(name: &str, replicas: Vec<Node>, options: &[&str]) -> World {
    let master = Node::start(server(name));
    fill(&master);
    world_of(master, replicas, options)
}

#[track_caller]
fn world_of(master: Node, replicas: Vec<Node>, options: &[&str]) -> World {
    let options: Vec<&str> = BACKLOG.iter().chain(options).copied().collect();
    let psyncd = Psyncd::before_with(&master, &options);
    for replica in &replicas {
        replica.replicate(psyncd.port);
        replica.wait_for_link();
    }
    let stranger = Node::start(master.server);
    stranger.cmd(&["SET", "mine", "not the master's"]);
    let world = World { master, psyncd, replicas, stranger };
    world.outrun();
    world
}

impl World {
    /// Writes until the snapshot there is has fallen out of the backlog, and everybody has it all.
    #[track_caller]
    fn outrun(&self) {
        // Before its first acknowledgement a replica is nobody's source.
        self.psyncd.wait_for_replicas(self.replicas.len());
        for _ in 0..8 {
            write_megabytes(&self.master, 1);
            let head = self.master.offset();
            for replica in &self.replicas {
                wait_until("the replicas keep up", || {
                    let at = replica.offset();
                    when(at >= head, || format!("{at} of {head}"))
                });
            }
        }
        wait_until("the old snapshot is of no use and all have acknowledged", || {
            let status = self.psyncd.status();
            let lag: f64 = self.psyncd.metrics().sum("psyncd_replica_lag_bytes", &[]);
            when(status["snapshot"]["ready"].is_null() && lag < 100_000.0, || {
                format!("lag {lag}, {}", status["snapshot"])
            })
        });
    }

    /// The stranger becomes a replica under writes, and ends equal to all others. Returns by how much the master's counts grew.
    #[track_caller]
    fn join(&mut self) -> Syncs {
        let before = self.master.syncs();
        let load = Load::on(&self.master);
        self.stranger.replicate(self.psyncd.port);
        self.stranger.wait_for_link();
        load.go_on_for(50);
        load.stop();
        let ended = self.stranger.process().ended();
        assert!(ended.is_none(), "the stranger ended with {ended:?}");
        assert_equal_data(&self.master, self.replicas.iter().chain([&self.stranger]));
        let after = self.master.syncs();
        Syncs {
            full: after.full - before.full,
            partial: after.partial - before.partial,
            forks: after.forks - before.forks,
        }
    }

    #[track_caller]
    fn snapshots(&self, source: &str, result: &str) -> f64 {
        self.psyncd.metrics().one("psyncd_snapshots_total", &[("source", source), ("result", result)])
    }

    #[track_caller]
    fn rejected(&self, reason: &str) -> f64 {
        self.psyncd.metrics().one("psyncd_snapshot_sources_rejected_total", &[("reason", reason)])
    }
}

const NOTHING: Syncs = Syncs { full: 0, partial: 0, forks: 0 };

fn fulls(nodes: &[Node]) -> i64 {
    nodes.iter().map(|node| node.syncs().full).sum()
}

#[track_caller]
fn a_late_joiner_costs_the_master_nothing(name: &str) {
    let mut world = world(name, Node::start_all([server(name); 2]), &[]);
    let upstream = world.snapshots("upstream", "ok");
    assert_eq!(world.join(), NOTHING, "the master noticed nothing");
    assert_eq!(fulls(&world.replicas), 1, "one of the replicas made the RDB");
    assert_eq!((world.snapshots("replica", "ok"), world.snapshots("upstream", "ok")), (1.0, upstream));
    let averted = [("mechanism", "replica_snapshot")];
    assert_eq!(world.psyncd.metrics().one("psyncd_master_forks_averted_total", &averted), 1.0);
    for replica in &world.replicas {
        assert_eq!(replica.full_resyncs(), 1, "who gave it went on as before");
    }
    assert_eq!(world.stranger.full_resyncs(), 1);
}

#[test]
fn a_late_joiner_gets_the_rdb_of_a_redis_6_2_replica() {
    a_late_joiner_costs_the_master_nothing("redis-6.2.14");
}

#[test]
fn a_late_joiner_gets_the_rdb_of_a_redis_7_0_replica() {
    a_late_joiner_costs_the_master_nothing("redis-7.0.15");
}

#[test]
fn a_late_joiner_gets_the_rdb_of_a_redis_8_6_replica() {
    a_late_joiner_costs_the_master_nothing("redis-8.6.2");
}

#[test]
fn a_late_joiner_gets_the_rdb_of_a_valkey_8_1_replica() {
    a_late_joiner_costs_the_master_nothing("valkey-8.1.1");
}

#[test]
fn a_late_joiner_gets_the_rdb_of_a_valkey_9_1_replica() {
    a_late_joiner_costs_the_master_nothing("valkey-9.1.2");
}

#[test]
fn asked_for_by_setting_the_master_forks_for_a_late_joiner() {
    let options = [&NO_PAUSE[..], &["--snapshot-source", "upstream"]].concat();
    let mut world = world("redis-7.0.15", Node::start_all([server("redis-7.0.15"); 2]), &options);
    let cost = world.join();
    assert_eq!((cost.full, cost.forks), (1, 1));
    assert_eq!(fulls(&world.replicas), 0, "no replica was touched");
}

#[test]
fn a_replica_behind_a_password_is_asked_with_it() {
    let name = "redis-7.0.15";
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let user = ["ACL", "SETUSER", "psyncd", "on", ">secret", "+@all", "~*", "&*"];
    let master = Node::start(server(name));
    master.cmd(&user);
    let options = ["--masteruser", "psyncd", "--masterauth-file", secret.to_str().unwrap()];
    // Whoever does not know it is not asked, since anybody can announce any address.
    let knows = Node::with(server(name), &["--masteruser", "psyncd", "--masterauth", "secret"]);
    let mut world = world_of(master, vec![Node::start(server(name)), knows], &options);
    world.replicas[1].cmd(&user);
    // The harness's own connection is open already, and stays authenticated.
    world.replicas[1].cmd(&["CONFIG", "SET", "requirepass", "another"]);
    assert_eq!(world.join(), NOTHING);
    assert_eq!((world.snapshots("replica", "ok"), world.rejected("denied")), (1.0, 0.0));
    assert_eq!((world.replicas[0].syncs().full, world.replicas[1].syncs().full), (0, 1));
}

/// Listens on a port of its own, puts down what is said there, and answers that it wants a password.
fn listens(heard: Arc<Mutex<String>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let heard = Arc::clone(&heard);
            std::thread::spawn(move || {
                let mut piece = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut piece) {
                    heard.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..n]));
                    let _ = stream.write_all(b"-NOAUTH Authentication required.\r\n");
                }
            });
        }
    });
    port
}

/// Somebody announces an address, be it his own: what is said there when a snapshot is needed, and when he waits in line.
#[track_caller]
fn said_at_an_announced_address(first_words: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "secret-of-psyncd").unwrap();
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    master.cmd(&["ACL", "SETUSER", "psyncd", "on", ">secret-of-psyncd", "+@all", "~*", "&*"]);
    let options = [
        &["--masteruser", "psyncd", "--masterauth-file", secret.to_str().unwrap(), "--replica-auth", "none"],
        &BACKLOG[..],
        &NO_PAUSE,
        &["--max-senders", "1"],
    ];
    let psyncd = Psyncd::before_with(&master, &options.concat());
    for _ in 0..8 {
        write_megabytes(&master, 1);
    }
    wait_until("the snapshot of the first contact is of no use any more", || {
        let (ready, head) = (psyncd.status()["snapshot"]["ready"].clone(), psyncd.status()["position"].clone());
        when(ready.is_null(), || format!("{ready} {head}"))
    });
    let (id, next) = (master.replid(), master.offset() + 1);
    let heard: Arc<Mutex<String>> = Arc::default();
    // One that is asked for everything, and one whose priority matters: whoever waits is no source.
    let [source, waiting] = [(); 2].map(|()| listens(Arc::clone(&heard)));
    let announce = |port| format!("{first_words}\r\nREPLCONF listening-port {port} capa eof capa psync2\r\n");
    let mut online = psyncd.conn();
    online.send(format!("{}PSYNC {id} {next}\r\nREPLCONF ACK {}\r\n", announce(source), next - 1)).unwrap();
    psyncd.wait_for_replicas(1);
    // More than are sent one at once, so that it matters who is who.
    let mut strangers: Vec<_> = (0..3).map(|_| psyncd.conn()).collect();
    for conn in &mut strangers {
        conn.send(format!("{}PSYNC ? -1\r\n", announce(waiting))).unwrap();
    }
    wait_until("somebody called there, and the snapshot came all the same", || {
        let heard = heard.lock().unwrap().clone();
        when(heard.contains("INFO") && psyncd.resyncs().full >= 1, || format!("{heard:?} {}", psyncd.log()))
    });
    heard.lock().unwrap().clone()
}

#[test]
fn nobody_who_did_not_name_the_password_is_told_it() {
    let said = said_at_an_announced_address("");
    assert!(!said.contains("secret-of-psyncd") && !said.contains("AUTH"), "{said}");
    // The control: whoever knows it already is asked with it.
    let said = said_at_an_announced_address("AUTH psyncd secret-of-psyncd");
    assert!(said.contains("secret-of-psyncd"), "{said}");
}

#[test]
fn a_replica_that_does_not_let_psyncd_ask_is_passed_over() {
    let mut world = world("redis-7.0.15", Node::start_all([server("redis-7.0.15")]), &NO_PAUSE);
    world.replicas[0].cmd(&["CONFIG", "SET", "requirepass", "another"]);
    assert_eq!((world.join().full, world.rejected("denied")), (1, 1.0));
}

#[test]
fn a_replica_that_was_written_to_is_not_asked() {
    let mut world = world("redis-7.0.15", Node::start_all([server("redis-7.0.15")]), &NO_PAUSE);
    world.replicas[0].cmd(&["CONFIG", "SET", "replica-read-only", "no"]);
    world.replicas[0].cmd(&["SET", "written", "locally"]);
    let spoilt = world.replicas.pop().unwrap();
    let cost = world.join();
    assert_eq!((cost.full, world.rejected("writable")), (1, 1.0));
    assert_eq!(spoilt.syncs().full, 0);
    assert_ne!(spoilt.digest(), world.master.digest(), "it would have spoilt the stranger");
}

#[test]
fn a_replica_that_evicts_by_itself_is_not_asked() {
    let name = "valkey-9.1.2";
    let evicting = Node::with(server(name), &["--maxmemory", "500mb", "--replica-ignore-maxmemory", "no"]);
    let mut world = world(name, vec![evicting], &NO_PAUSE);
    assert_eq!((world.join().full, world.rejected("evicting")), (1, 1.0));
    // With its limit, but without its own judgement, it will do.
    world.replicas[0].cmd(&["CONFIG", "SET", "replica-ignore-maxmemory", "yes"]);
    // The first stranger ends with its name.
    world.stranger = Node::start(world.master.server);
    world.outrun();
    assert_eq!(world.join(), NOTHING);
    assert_eq!(world.snapshots("replica", "ok"), 1.0);
}

/// The replica takes a millisecond for each of ten thousand keys, and is killed when its snapshot has begun to arrive.
#[track_caller]
fn a_source_that_is_killed_in_the_middle_is_replaced(name: &str) {
    let master = Node::start(server(name));
    fill(&master);
    master.cmd(&["EVAL", "for i = 1, 20000 do redis.call('SET', 'k' .. i, string.rep(i, 30)) end", "0"]);
    let slow = Node::with(server(name), &["--rdb-key-save-delay", "1000"]);
    let mut world = world_of(master, vec![slow], &NO_PAUSE);
    let before = world.master.syncs();
    world.stranger.replicate(world.psyncd.port);
    wait_until("the replica's snapshot is arriving", || {
        let arriving = world.psyncd.status()["snapshot"]["arriving"]["received_bytes"].clone();
        when(arriving.as_u64().is_some_and(|bytes| bytes > 1000), || arriving.to_string())
    });
    assert_eq!(world.master.syncs().full, before.full);
    world.replicas[0].kill();
    world.replicas.clear();
    world.stranger.wait_for_link();
    assert_equal_data(&world.master, [&world.stranger]);
    assert_eq!(world.master.syncs().full - before.full, 1, "then the master was asked");
    assert_eq!((world.snapshots("replica", "failed"), world.rejected("transfer")), (1.0, 1.0));
}

#[test]
fn a_redis_replica_killed_while_it_gives_its_rdb_is_replaced_by_the_master() {
    a_source_that_is_killed_in_the_middle_is_replaced("redis-7.0.15");
}

#[test]
fn a_valkey_replica_killed_while_it_gives_its_rdb_is_replaced_by_the_master() {
    a_source_that_is_killed_in_the_middle_is_replaced("valkey-9.1.2");
}

/// What a liar answers to PSYNC: it is given where the master is, and the RDB of another data set.
type Lie = fn(&mut Conn, &str, i64, &[u8]) -> std::io::Result<()>;

fn announce(conn: &mut Conn, id: &str, offset: i64, rdb: &[u8]) -> std::io::Result<()> {
    conn.send(format!("+FULLRESYNC {id} {offset}\r\n${}\r\n", rdb.len()))?;
    conn.send(rdb)?;
    linger(conn, SOON);
    Ok(())
}

/// A peer that says it is a faithful replica and gives a false snapshot. `rdb` is what it has to give: that of a server with
/// other data, or, for a lie about a single byte, the master's own.
#[track_caller]
fn a_liar_is_found_out(reason: &str, truth: Truth, lie: Lie) {
    let name = "redis-7.0.15";
    let mut world = world(name, vec![], &NO_PAUSE);
    let other = Node::start(server(name));
    other.cmd(&["SET", "other", "data"]);
    let rdb = match truth {
        Truth::Other => rdb_of(&other),
        Truth::Ours => rdb_of(&world.master),
    };
    let place = Arc::new(Mutex::new((world.master.replid(), world.master.offset())));
    let (now, then) = (Arc::clone(&place), Arc::clone(&place));
    let info = move || {
        let (id, offset) = now.lock().unwrap().clone();
        format!(
            "# Server\r\nredis_version:7.0.15\r\nrun_id:{REPLID}\r\nmaxmemory:0\r\nloading:0\r\nrole:slave\r\n\
             master_link_status:up\r\nmaster_sync_in_progress:0\r\nslave_read_only:1\r\nmaster_replid:{id}\r\n\
             master_repl_offset:{offset}\r\n"
        )
    };
    let liar = FakeMaster::saying(info, move |conn, _| {
        let (id, offset) = then.lock().unwrap().clone();
        lie(conn, &id, offset, &rdb)
    });
    // It is online: it follows from where the master is.
    let mut follower = world.psyncd.conn();
    let (id, offset) = place.lock().unwrap().clone();
    for line in [format!("REPLCONF listening-port {}", liar.port), "REPLCONF capa eof capa psync2".to_owned()] {
        follower.send(format!("{line}\r\n")).unwrap();
        assert_eq!(follower.line().unwrap(), "+OK");
    }
    follower.send(format!("PSYNC {id} {}\r\n", offset + 1)).unwrap();
    assert_eq!(follower.line_after_newlines().unwrap(), format!("+CONTINUE {id}"));
    world.psyncd.wait_for_replicas(1);

    let before = world.snapshots("upstream", "ok");
    let cost = world.join();
    assert_eq!(liar.asked(), 1, "it was asked");
    assert_eq!(world.rejected(reason), 1.0, "{}", world.psyncd.log());
    assert_eq!((cost.full, world.snapshots("upstream", "ok")), (1, before + 1.0), "then the master was");
    assert_eq!(world.snapshots("replica", "ok"), 0.0);
}

enum Truth {
    Other,
    Ours,
}

#[test]
fn a_replica_whose_rdb_is_of_another_history_than_it_announced() {
    a_liar_is_found_out("claim", Truth::Other, announce);
}

#[test]
fn a_replica_that_announces_another_history_than_it_told() {
    a_liar_is_found_out("claim", Truth::Other, |conn, _, offset, rdb| announce(conn, REPLID, offset, rdb));
}

#[test]
fn a_replica_that_announces_a_point_the_stream_has_not_reached() {
    a_liar_is_found_out("claim", Truth::Other, |conn, id, offset, rdb| announce(conn, id, offset + (1 << 40), rdb));
}

#[test]
fn a_replica_whose_rdb_has_a_wrong_byte_in_it() {
    // The master's own, so that all is true but one byte, and the stranger is given most of it before that shows.
    a_liar_is_found_out("transfer", Truth::Ours, |conn, id, offset, rdb| {
        let mut broken = rdb.to_vec();
        let middle = rdb.len() / 2;
        broken[middle] ^= 0xff;
        announce(conn, id, offset, &broken)
    });
}

#[test]
fn a_replica_that_says_nothing_when_it_is_asked_for_everything() {
    a_liar_is_found_out("transfer", Truth::Other, |conn, _, _, _| {
        conn.send("-LOADING not now\r\n")?;
        linger(conn, SOON);
        Ok(())
    });
}

/// A psyncd behind psyncd would only ask back: it passes us on, to whom we already know.
#[test]
fn neither_a_psyncd_behind_psyncd_nor_psyncd_itself_is_a_source() {
    let mut world = world("redis-7.0.15", vec![], &NO_PAUSE);
    let port = free_port().to_string();
    let chained = Psyncd::toward(&world.psyncd.address(), &["--replica-port", &port]);
    chained.wait_for_link();
    // And somebody who says that psyncd itself is where he can be asked.
    let mut follower = world.psyncd.conn();
    let (id, offset) = (world.master.replid(), world.master.offset());
    follower.send(format!("REPLCONF listening-port {}\r\nPSYNC {id} {}\r\n", world.psyncd.port, offset + 1)).unwrap();
    assert_eq!(follower.line().unwrap(), "+OK");
    world.psyncd.wait_for_replicas(2);
    let cost = world.join();
    assert_eq!(cost.full, 1);
    assert_eq!(world.rejected("upstream"), 2.0, "both ways lead to the master:\n{}", world.psyncd.log());
    assert_eq!(world.snapshots("replica", "ok"), 0.0);
}

#[test]
fn the_master_is_not_made_to_fork_twice_within_the_interval() {
    let interval = Duration::from_secs(6);
    let began = Instant::now();
    let options = ["--snapshot-source", "upstream", "--snapshot-min-interval", "6"];
    let mut world = world("redis-7.0.15", Node::start_all([server("redis-7.0.15")]), &options);
    let first = world.master.syncs();
    assert_eq!(first.full, 1, "the first fork was for the link or for the first replica");
    assert!(began.elapsed() < interval, "this machine is too slow for this test");
    let cost = world.join();
    assert!(began.elapsed() >= interval, "the second fork came after {:?}", began.elapsed());
    assert_eq!(cost.full, 1);
    assert_eq!(world.stranger.full_resyncs(), 1, "it waited on one connection:\n{}", world.stranger.log());
}

#[test]
fn with_replicas_as_the_only_source_the_master_never_forks_for_a_stranger() {
    let name = "redis-7.0.15";
    let mut world = world(name, Node::start_all([server(name)]), &["--snapshot-source", "replicas"]);
    world.replicas[0].cmd(&["CONFIG", "SET", "replica-read-only", "no"]);
    let before = world.master.syncs();
    world.stranger.replicate(world.psyncd.port);
    wait_until("psyncd says that it has no source", || {
        when(world.psyncd.log().contains("snapshot-source is replicas"), || world.psyncd.log())
    });
    assert_eq!(world.master.syncs().full, before.full);
    assert_eq!(world.stranger.cmd(&["GET", "mine"]).text(), "not the master's", "it waits on the data it had");
    world.replicas[0].cmd(&["CONFIG", "SET", "replica-read-only", "yes"]);
    assert_eq!(world.join(), NOTHING);
    assert_eq!(world.snapshots("replica", "ok"), 1.0);
}

/// With a directory, what one run fetched serves the next, as long as the stream reaches back to it: here only the journal
/// does, and not the master's own backlog.
#[track_caller]
fn a_snapshot_survives(end: fn(&mut Process)) {
    let dir = tempfile::tempdir().unwrap();
    let master = Node::with(server("redis-7.0.15"), &["--repl-backlog-size", "1mb"]);
    fill(&master);
    let options = ["--dir", dir.path().to_str().unwrap()];
    let mut first = Psyncd::before_with(&master, &options);
    let replica = Node::start(master.server);
    replica.replicate(first.port);
    replica.wait_for_link();
    wait_until("the snapshot is kept", || {
        let kept = first.log().contains("snapshot kept for the next start");
        when(kept, || first.log())
    });
    write_megabytes(&master, 4);
    let head = master.offset();
    wait_until("the replica has it all", || when(replica.offset() >= head, || replica.offset().to_string()));
    wait_until("and so has the journal", || {
        let at = first.status()["backlog"]["journal"]["head_offset"].as_i64();
        when(at >= Some(head), || format!("{at:?} of {head}"))
    });
    end(first.process());
    let before = master.syncs();

    let second = Psyncd::before_with(&master, &options);
    // Not before it is back: a slow start would outlast the master's own backlog.
    let load = Load::on(&master);
    wait_until("what survived is offered", || {
        let ready = second.status()["snapshot"]["ready"].clone();
        when(!ready.is_null(), || second.log())
    });
    let stranger = Node::start(master.server);
    stranger.replicate(second.port);
    stranger.wait_for_link();
    replica.replicate(second.port);
    load.go_on_for(20);
    load.stop();
    assert_equal_data(&master, [&replica, &stranger]);
    let after = master.syncs();
    assert_eq!((after.full, after.forks), (before.full, before.forks), "nobody made another RDB");
    let averted = [("mechanism", "recovered_snapshot")];
    assert_eq!(second.metrics().one("psyncd_master_forks_averted_total", &averted), 1.0);
    assert_eq!(replica.syncs().full, 0);
}

#[test]
fn a_snapshot_survives_a_kill() {
    a_snapshot_survives(Process::kill);
}

#[test]
fn a_snapshot_survives_a_clean_end() {
    a_snapshot_survives(|process| {
        process.signal("TERM");
        assert!(process.wait_for_end(SOON).success());
    });
}
