//! Full and partial resyncs one by one: who gets which, over links that break where it hurts.

use std::time::{Duration, Instant};

use crate::harness::*;

/// A lost upstream link is the master's and psyncd's affair: the replicas do not even notice.
#[track_caller]
fn replicas_do_not_notice_a_lost_upstream_link(name: &str) {
    let master = Node::start(server(name));
    fill(&master);
    let network = Forwarder::to(master.port);
    let psyncd = Psyncd::toward(&network.address(), &[]);
    psyncd.wait_for_link();
    let replicas = Node::start_all([master.server; 2]);
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    replicas.iter().for_each(Node::wait_for_link);

    let load = Load::on(&master);
    let before = master.syncs();
    for round in 1..=6 {
        // An odd number of bytes: the cut falls inside a command, often inside a transaction.
        network.cut_after(20_011 + round * 1_237);
        load.go_on_for(30);
        wait_until("psyncd continues", || {
            let partial = master.syncs().partial - before.partial;
            when(partial >= round, || format!("{partial} partial resyncs after {round} cuts"))
        });
        psyncd.wait_for_link();
    }
    load.stop();
    assert_equal_data(&master, &replicas);
    assert_eq!(master.syncs().full, before.full);
    assert_eq!(psyncd.resyncs(), Resyncs { partial: 0, full: 2 }, "the replicas' own links never broke");
}

#[test]
fn redis_replicas_do_not_notice_an_upstream_link_cut_in_mid_command() {
    replicas_do_not_notice_a_lost_upstream_link("redis-7.0.15");
}

#[test]
fn valkey_replicas_do_not_notice_an_upstream_link_cut_in_mid_command() {
    replicas_do_not_notice_a_lost_upstream_link("valkey-9.1.2");
}

#[track_caller]
fn a_cut_replica_goes_on(name: &str) {
    let master = Node::start(server(name));
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let network = Forwarder::to(psyncd.port);
    let replica = Node::start(master.server);
    replica.replicate(network.port);
    replica.wait_for_link();

    let load = Load::on(&master);
    for round in 1..=6 {
        network.cut_after(15_013 + round * 977);
        wait_until("the replica comes back by a partial resync", || {
            let now = psyncd.resyncs();
            when(now.partial >= round, || format!("{now:?}"))
        });
        replica.wait_for_link();
    }
    load.stop();
    assert_equal_data(&master, [&replica]);
    assert_eq!(replica.full_resyncs(), 1);
}

#[test]
fn a_redis_6_0_replica_cut_in_mid_command_goes_on_where_it_was() {
    a_cut_replica_goes_on("redis-6.0.9");
}

#[test]
fn a_redis_8_6_replica_cut_in_mid_command_goes_on_where_it_was() {
    a_cut_replica_goes_on("redis-8.6.2");
}

#[test]
fn a_valkey_9_1_replica_cut_in_mid_command_goes_on_where_it_was() {
    a_cut_replica_goes_on("valkey-9.1.2");
}

/// Control: `without_psyncd_a_small_backlog_makes_an_absence_a_full_resync`.
#[test]
fn a_replica_away_for_longer_than_the_masters_backlog_reaches_goes_on() {
    let master = Node::with(server("redis-7.2.4"), &["--repl-backlog-size", "16kb"]);
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let network = Forwarder::to(psyncd.port);
    let replica = Node::start(master.server);
    replica.replicate(network.port);
    replica.wait_for_link();
    let before = master.syncs();

    network.sever();
    write_megabytes(&master, 4);
    network.restore();

    assert_equal_data(&master, [&replica]);
    assert_eq!(master.syncs().full, before.full);
    assert_eq!(psyncd.resyncs(), Resyncs { partial: 1, full: 1 });
    assert_eq!(replica.full_resyncs(), 1);
}

/// What putting psyncd in front of a running master, and taking it away again, costs: nothing.
#[track_caller]
fn a_replica_moves_without_a_full_resync(name: &str) {
    let master = Node::start(server(name));
    fill(&master);
    let replicas = Node::start_all([master.server; 2]);
    replicas.iter().for_each(|replica| replica.replicate(master.port));
    replicas.iter().for_each(Node::wait_for_link);
    let before = master.syncs();

    let load = Load::on(&master);
    let psyncd = Psyncd::before(&master);
    load.go_on_for(20);
    for port in [psyncd.port, master.port, psyncd.port] {
        for replica in &replicas {
            replica.replicate(port);
            load.go_on_for(5);
        }
        replicas.iter().for_each(Node::wait_for_link);
        load.go_on_for(20);
    }
    load.stop();
    assert_equal_data(&master, &replicas);
    assert_eq!(master.syncs().full, before.full, "psyncd came and went by partial resyncs only");
    assert_eq!(psyncd.resyncs().full, 0);
    for replica in &replicas {
        assert_eq!((replica.full_resyncs(), replica.partial_resyncs()), (1, 3), "by the replica's own log");
    }
}

#[test]
fn a_redis_6_2_replica_moves_to_psyncd_and_back_by_partial_resyncs_only() {
    a_replica_moves_without_a_full_resync("redis-6.2.14");
}

#[test]
fn a_redis_7_4_replica_moves_to_psyncd_and_back_by_partial_resyncs_only() {
    a_replica_moves_without_a_full_resync("redis-7.4.1");
}

#[test]
fn a_redis_8_6_replica_moves_to_psyncd_and_back_by_partial_resyncs_only() {
    a_replica_moves_without_a_full_resync("redis-8.6.2");
}

#[test]
fn a_valkey_9_1_replica_moves_to_psyncd_and_back_by_partial_resyncs_only() {
    a_replica_moves_without_a_full_resync("valkey-9.1.2");
}

#[test]
fn first_contact_with_a_master_that_has_a_backlog_makes_no_fork() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let replicas = Node::start_all([master.server; 2]);
    replicas[0].replicate(master.port);
    replicas[0].wait_for_link();
    let before = master.syncs();

    let psyncd = Psyncd::before(&master);
    assert_eq!(master.syncs().full, before.full, "psyncd attached by a partial resync");
    assert_eq!(master.syncs().forks, before.forks);
    assert!(psyncd.metrics().sum("psyncd_upstream_resyncs_total", &[("kind", "partial")]) >= 1.0);

    replicas[1].replicate(psyncd.port);
    assert_equal_data(&master, &replicas);
    assert!(master.syncs().full - before.full <= 1, "the first stranger costs one RDB at most");
}

#[test]
fn redis_cli_takes_an_rdb_through_psyncd_without_a_fork_on_the_master() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    assert_equal_data(&master, [&replica]);
    let before = master.syncs();

    let dir = tempfile::tempdir().unwrap();
    let mut copy = std::process::Command::new(master.server.tool("redis-cli"));
    copy.args(["-p", &psyncd.port.to_string(), "--rdb"]).arg(dir.path().join("dump.rdb"));
    let copied = copy.output().unwrap();
    assert!(copied.status.success(), "redis-cli --rdb: {}", String::from_utf8_lossy(&copied.stderr));
    assert_eq!(master.syncs().full, before.full);
    assert_eq!(master.syncs().forks, before.forks);

    // The cached snapshot is as old as the first replica; nothing was written since.
    let loaded = Node::with(master.server, &["--dir", dir.path().to_str().unwrap(), "--dbfilename", "dump.rdb"]);
    assert_eq!(loaded.digest(), master.digest());
    assert_eq!(loaded.functions(), master.functions());
}

#[test]
fn a_legacy_sync_gets_the_rdb_and_then_the_stream() {
    let master = Node::start(server("redis-6.2.14"));
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let mut legacy = psyncd.conn();
    legacy.send("SYNC\r\n").unwrap();
    let rdb = legacy.payload().unwrap();
    assert!(rdb.starts_with(b"REDIS0009"), "{:?}", String::from_utf8_lossy(&rdb[..20]));
    master.cmd(&["SET", "after", "the snapshot"]);
    wait_until("the stream follows", || {
        let word = legacy.line().map_err(|why| why.to_string())?;
        when(word == "the snapshot", || word.clone())
    });
}

#[test]
fn a_position_is_continued_exactly_as_redis_does() {
    let master = Node::with(server("redis-7.0.15"), &["--repl-ping-replica-period", "3600"]);
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let (id, head) = (master.replid(), master.offset());
    let ask = |capa: &str, id: &str, next: &str| {
        let mut conn = psyncd.conn();
        for setup in ["PING", "REPLCONF listening-port 1"].iter().chain((!capa.is_empty()).then_some(&capa)) {
            conn.send(format!("{setup}\r\n")).unwrap();
            conn.line().unwrap();
        }
        conn.send(format!("PSYNC {id} {next}\r\n")).unwrap();
        conn.line_after_newlines().unwrap()
    };
    let next = (head + 1).to_string();
    assert_eq!(ask("", &id, &next), "+CONTINUE");
    assert_eq!(ask("REPLCONF capa psync2", &id, &next), format!("+CONTINUE {id}"));
    assert_eq!(ask("REPLCONF capa psync2", &id.to_uppercase(), &next), format!("+CONTINUE {id}"));
    for unknown in ["?", "0000000000000000000000000000000000000000"] {
        let answer = ask("REPLCONF capa psync2", unknown, &next);
        assert_eq!(answer, format!("+FULLRESYNC {id} {head}"), "for {unknown}");
    }
    assert_eq!(ask("", &id, "garbage"), "-ERR value is not an integer or out of range");
}

#[test]
fn a_waiting_replica_is_kept_by_newlines_until_the_snapshot_comes() {
    // The master delays its first RDB, so that there is nothing to answer with for a while.
    let master = Node::with(server("redis-7.2.4"), &["--repl-diskless-sync-delay", "4"]);
    fill(&master);
    let psyncd = Psyncd::toward(&master.address(), &[]);
    let mut raw = psyncd.conn();
    raw.send("REPLCONF capa eof\r\n").unwrap();
    assert_eq!(raw.line().unwrap(), "+OK");
    raw.send("PSYNC ? -1\r\n").unwrap();
    raw.set_read_timeout(Duration::from_secs(3));
    assert_eq!(raw.line().expect("a newline within three seconds"), "");
    raw.set_read_timeout(SOON);
    assert!(raw.line_after_newlines().unwrap().starts_with("+FULLRESYNC "));
    assert!(raw.payload().unwrap().starts_with(b"REDIS0011"));
}

/// A diskless master sends nothing behind its payload until it hears an acknowledgement, and is deaf to one that comes
/// before it knows that its child is done (redis 7.0 replication.c, `replconfCommand`).
#[test]
fn a_master_that_missed_the_first_acknowledgement_need_not_wait_a_second_for_the_next() {
    let donor = Node::start(server("redis-7.0.15"));
    let rdb = rdb_of(&donor);
    let (heard, waited) = std::sync::mpsc::channel();
    let fake = FakeMaster::start(move |conn, _| {
        let mark = "m".repeat(40);
        conn.send(format!("+FULLRESYNC {REPLID} 0\r\n$EOF:{mark}\r\n"))?;
        conn.send(&rdb)?;
        conn.send(&mark)?;
        conn.reply()?;
        let first = Instant::now();
        conn.reply()?;
        let _ = heard.send(first.elapsed());
        linger(conn, SOON);
        Ok(())
    });
    let _psyncd = Psyncd::toward(&format!("127.0.0.1:{}", fake.port), &[]);
    let pause = waited.recv_timeout(SOON).unwrap();
    assert!(pause < Duration::from_millis(600), "{pause:?}");
}
