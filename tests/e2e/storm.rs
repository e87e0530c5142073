//! More replicas than may be sent a snapshot at once.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::harness::*;

/// Puts so many megabytes into a node that no compression makes smaller.
fn fill_with_noise(node: &Node, megabytes: usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for n in 0..megabytes {
        let value: Vec<u8> = (0..(1 << 20) / 8)
            .flat_map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            })
            .collect();
        node.cmd(&[b"SET", format!("noise:{n}").as_bytes(), &value]);
    }
}

/// The replicas `/status` lists, by name.
fn rows(psyncd: &Psyncd) -> BTreeMap<String, Json> {
    let status = psyncd.status();
    let rows = status["replicas"].as_array().expect("a list of replicas").clone();
    rows.into_iter().map(|row| (row["replica"].as_str().expect("a name").to_owned(), row)).collect()
}

fn in_state(rows: &BTreeMap<String, Json>, state: &str) -> usize {
    rows.values().filter(|row| row["state"] == state).count()
}

#[test]
fn twelve_replicas_at_once_are_sent_one_snapshot_two_at_a_time_and_disturb_nobody() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    fill_with_noise(&master, 16);
    let online = Node::start(master.server);
    let psyncd = Psyncd::before_with(&master, &["--max-senders", "2", "--sender-rate-limit", "20mb"]);
    online.replicate(psyncd.port);
    online.wait_for_link();
    psyncd.wait_for_replicas(1);
    let before = master.syncs();
    let replicas = Node::start_all([master.server; 12]);
    let load = Load::on(&master);

    let begin = Instant::now();
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    let (mut most, mut longest, mut progress, mut worst_lag, mut cut, mut back) = (0, 0, false, 0.0f64, None, None);
    let name = online.address();
    wait_at_most(Duration::from_secs(60), "everybody has been sent a snapshot", || {
        let rows = rows(&psyncd);
        let sending = in_state(&rows, "snapshot");
        assert!(sending <= 2, "{sending} are sent a snapshot at once: {rows:?}");
        most = most.max(sending);
        let mut queue: Vec<_> = rows.values().filter_map(|row| row["queue_position"].as_u64()).collect();
        queue.sort_unstable();
        assert_eq!(queue, (1..=queue.len() as u64).collect::<Vec<_>>(), "the queue's positions");
        longest = longest.max(queue.len());
        progress |= rows.values().any(|row| {
            let (sent, of) = (row["sent_snapshot_bytes"].as_u64(), row["snapshot_bytes"].as_u64());
            row["state"] == "snapshot" && sent > Some(0) && sent < of
        });
        // In the middle of it the online replica loses its link.
        if most == 2 && cut.is_none() {
            online.cmd(&["CLIENT", "KILL", "TYPE", "master"]);
            cut = Some(Instant::now());
        }
        if cut.is_some() && back.is_none() && online.partial_resyncs() == 1 {
            assert!(!queue.is_empty(), "nobody waited any more when it came back");
            back = Some(Instant::now());
        }
        if let Some(row) = rows.get(&name)
            && row["state"] == "online"
        {
            worst_lag = worst_lag.max(row["lag_seconds"].as_f64().expect("a lag"));
        }
        let online = in_state(&rows, "online");
        when(online == 13, || format!("{online} are online, {} wait", queue.len()))
    });
    let took = begin.elapsed();
    load.stop();
    let away = back.expect("it came back").duration_since(cut.expect("it was cut"));
    println!(
        "12 replicas in {took:.1?}, at most {most} sending and {longest} waiting; the cut one was back after {away:?}, the online one's worst lag was {worst_lag:.2} s"
    );
    assert_eq!((most, progress), (2, true));
    assert!(longest >= 8, "at most {longest} waited at a time");
    assert!(away < Duration::from_secs(3), "it was away for {away:?}");
    // It acknowledges once a second.
    assert!(worst_lag < 2.5, "it lagged by {worst_lag} s");
    // Twelve times sixteen megabytes at twenty a second.
    assert!(took > Duration::from_secs(8), "the budget was overdrawn: {took:?}");
    let metrics = psyncd.metrics();
    assert_eq!(metrics.one("psyncd_snapshot_served_total", &[]), 13.0);
    assert_eq!(metrics.one("psyncd_snapshot_senders_limit", &[]), 2.0);
    assert_eq!(metrics.one("psyncd_snapshot_waiters", &[("for", "turn")]), 0.0);
    assert_equal_data(&master, replicas.iter().chain([&online]));
    let now = master.syncs();
    assert!(now.full - before.full <= 1, "sync_full rose by {}", now.full - before.full);
    assert_eq!((online.full_resyncs(), online.partial_resyncs()), (1, 1));
}

#[test]
fn a_failover_candidate_jumps_the_queue_with_the_password_it_shares() {
    let master = Node::start(server("valkey-8.1.1"));
    fill_with_noise(&master, 8);
    let replicas = Node::start_all([master.server; 5]);
    for node in replicas.iter().chain([&master]) {
        // The connection the test asks on stays authenticated.
        node.cmd(&["CONFIG", "SET", "masterauth", "sesame"]);
        node.cmd(&["CONFIG", "SET", "requirepass", "sesame"]);
    }
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    secret.write_all(b"sesame\n").unwrap();
    let secret = secret.path().to_str().unwrap();
    let psyncd = Psyncd::before_with(
        &master,
        &["--max-senders", "1", "--sender-rate-limit", "6mb", "--masterauth-file", secret],
    );
    replicas[1].cmd(&["CONFIG", "SET", "replica-priority", "0"]);
    replicas[4].cmd(&["CONFIG", "SET", "replica-priority", "10"]);
    for replica in &replicas {
        replica.replicate(psyncd.port);
        wait_until("it is in the queue", || {
            let rows = rows(&psyncd);
            when(rows.contains_key(&replica.address()), || format!("{rows:?}"))
        });
    }
    let mut order: Vec<String> = Vec::new();
    wait_at_most(Duration::from_secs(60), "everybody is online", || {
        let rows = rows(&psyncd);
        for (name, row) in &rows {
            if row["state"] != "waiting" && !order.contains(name) {
                order.push(name.clone());
            }
        }
        when(in_state(&rows, "online") == 5, || format!("{rows:?}"))
    });
    let place = |n: usize| order.iter().position(|name| *name == replicas[n].address()).unwrap();
    assert!(place(4) <= 1, "the candidate came last and is to be served next: {order:?}");
    assert_eq!(place(1), 4, "whoever is never promoted is served last: {order:?}");
    assert_eq!(rows(&psyncd)[&replicas[4].address()]["priority"], 10);
}

#[test]
fn the_password_is_not_told_to_who_only_announces_an_address() {
    let master = Node::start(server("redis-7.2.4"));
    fill_with_noise(&master, 8);
    master.cmd(&["CONFIG", "SET", "requirepass", "sesame"]);
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    secret.write_all(b"sesame\n").unwrap();
    let secret = secret.path().to_str().unwrap();
    let psyncd = Psyncd::before_with(
        &master,
        // Who names nothing replicates here, or nobody would ask at an address that a stranger announced.
        &["--max-senders", "1", "--sender-rate-limit", "1mb", "--masterauth-file", secret, "--replica-auth", "none"],
    );
    let mut sent = psyncd.conn();
    sent.send("PSYNC ? -1\r\n").unwrap();
    assert!(sent.line_after_newlines().unwrap().starts_with("+FULLRESYNC"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = psyncd.conn();
    for password in ["guess", "sesam"] {
        assert!(matches!(guest.ask(&["AUTH", password]).unwrap(), Value::Error(_)), "the master judges it");
    }
    guest.cmd(&["REPLCONF", "listening-port", &listener.local_addr().unwrap().port().to_string()]);
    guest.cmd(&["AUTH", "sesame?"]);
    guest.send("PSYNC ? -1\r\n").unwrap();
    let mut asked = Conn::over(listener.accept().unwrap().0);
    let first = asked.reply().unwrap();
    assert_eq!(first, Value::Array(["INFO", "replication"].map(|word| Value::Bulk(word.into())).to_vec()));
    asked.send("-NOAUTH Authentication required.\r\n").unwrap();
    assert_eq!(asked.until_closed(SOON).unwrap(), b"", "nothing more is said");
}

#[test]
fn a_replica_that_hangs_in_its_snapshot_holds_the_only_turn_for_no_longer_than_repl_timeout() {
    let master = Node::with(server("redis-6.2.14"), &["--repl-ping-replica-period", "1"]);
    fill_with_noise(&master, 24);
    let psyncd = Psyncd::before_with(&master, &["--max-senders", "1", "--repl-timeout", "4"]);
    let ask = "REPLCONF listening-port 7777\r\nPSYNC ? -1\r\n";
    let mut hung = psyncd.conn();
    hung.send(ask).unwrap();
    assert_eq!(hung.line().unwrap(), "+OK");
    assert!(hung.line_after_newlines().unwrap().starts_with("+FULLRESYNC"));
    let begin = Instant::now();
    let replicas = Node::start_all([master.server; 2]);
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    wait_until("both wait behind it", || {
        let rows = rows(&psyncd);
        let waiting = rows.values().filter(|row| row["waits_for"] == "turn").count();
        when(waiting == 2, || format!("{rows:?}"))
    });
    replicas.iter().for_each(Node::wait_for_link);
    assert!(begin.elapsed() > Duration::from_secs(3), "it was not given its time");
    assert_equal_data(&master, &replicas);
    assert_eq!(psyncd.metrics().one("psyncd_replica_disconnects_total", &[("reason", "timeout")]), 1.0);
    assert_eq!(master.syncs().full, 1);
    // The next time it is not sent its snapshot at once, if it comes back at once; two times it did not.
    drop(hung);
    for _ in 0..2 {
        let mut again = psyncd.conn();
        again.send(ask).unwrap();
        assert_eq!(again.line().unwrap(), "+OK");
        assert!(again.line_after_newlines().unwrap().starts_with("+FULLRESYNC"));
    }
    wait_until("both are gone", || {
        let rows = rows(&psyncd);
        when(rows.len() == 2, || format!("{rows:?}"))
    });
    let mut held = psyncd.conn();
    held.send(ask).unwrap();
    wait_until("it is held back", || {
        let count = psyncd.metrics().one("psyncd_snapshot_waiters", &[("for", "backoff")]);
        when(count == 1.0, || format!("{count} are"))
    });
    assert!(psyncd.metrics().one("psyncd_snapshot_backoffs_total", &[]) >= 1.0);
}
