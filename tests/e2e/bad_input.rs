//! What should never come, on psyncd's port: it ends that connection or is answered with an error, and nobody else notices.

use std::time::Duration;

use crate::harness::*;

/// A master, psyncd and a replica that must not be disturbed.
struct World {
    master: Node,
    psyncd: Psyncd,
    replica: Node,
}

impl World {
    #[track_caller]
    fn new() -> World {
        let master = Node::start(server("redis-7.0.15"));
        fill(&master);
        // Short, so that what is cut off by it need not be waited for.
        let psyncd = Psyncd::before_with(&master, &["--handshake-timeout", "2s"]);
        let replica = Node::start(master.server);
        replica.replicate(psyncd.port);
        assert_equal_data(&master, [&replica]);
        World { master, psyncd, replica }
    }

    /// Nobody else was hurt: clients and the replica are served as before.
    #[track_caller]
    fn assert_unharmed(mut self) {
        assert!(self.psyncd.process().ended().is_none(), "psyncd ended");
        assert!(!self.psyncd.log().contains("panicked"), "psyncd panicked");
        assert_eq!(self.psyncd.conn().cmd(&["SET", "still", "served"]), Value::Simple("OK".into()));
        assert_equal_data(&self.master, [&self.replica]);
        assert_eq!(self.replica.full_resyncs(), 1);
        assert_eq!(self.replica.partial_resyncs(), 0, "the replica's link broke");
        assert_eq!(self.master.syncs().full, 1);
        let resident = self.psyncd.process().resident_bytes() >> 20;
        assert!(resident < 100, "psyncd holds {resident} MB");
    }

    /// Sends bytes on a connection of their own and returns what came back until it was closed.
    #[track_caller]
    fn answer_to(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut conn = self.psyncd.conn();
        // psyncd may have had enough before it read everything.
        let _ = conn.send(&bytes);
        let answer = conn.until_closed(Duration::from_secs(40));
        let shown = String::from_utf8_lossy(&bytes.as_ref()[..bytes.as_ref().len().min(60)]).into_owned();
        String::from_utf8_lossy(&answer.unwrap_or_else(|why| panic!("after {shown:?}: {why}"))).into_owned()
    }

    /// Sends one line and returns the line that answers it.
    #[track_caller]
    fn line_for(&self, request: impl AsRef<[u8]>) -> String {
        let mut conn = self.psyncd.conn();
        conn.send(request).unwrap();
        conn.line_after_newlines().unwrap()
    }
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let world = World::new();
    let mut noise = Vec::new();
    let mut state = 88_172_645_463_325_252_u64;
    for _ in 0..100_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // No line end: it stays one endless first line.
        noise.push(if matches!(state as u8, b'\r' | b'\n') { 0 } else { state as u8 });
    }
    let answer = world.answer_to(&noise);
    assert!(answer.is_empty() || answer.starts_with('-'), "{answer:?}");
    let answer = world.answer_to(vec![b'A'; 1 << 20]);
    assert!(answer.is_empty() || answer.starts_with('-'), "{answer:?}");
    world.assert_unharmed();
}

#[test]
fn giant_headers_are_refused_before_anything_is_allocated_for_them() {
    let world = World::new();
    for header in [
        "*1000000000\r\n",
        "*99999999999999999999\r\n",
        "*2147483647\r\n$4\r\nPING\r\n",
        "*-5\r\n*x\r\n",
        "*1\r\n$-7\r\n",
        "*1\r\n$99999999999\r\n",
        "*3\r\n$8\r\nREPLCONF\r\n$14\r\nlistening-port\r\n$2147483647\r\n",
        "*3\r\n$5\r\nPSYNC\r\n$1\r\n?\r\n$999999999999999999\r\n",
        "*1\r\nPING\r\n",
    ] {
        let mut conn = world.psyncd.conn();
        conn.send(header).unwrap();
        // Of a replica's it is psyncd that says so, and at once; the others are the master's to judge.
        if header.contains("REPLCONF") || header.contains("PSYNC") {
            assert!(conn.line().unwrap().starts_with("-ERR Protocol error: "), "{header:?}");
        }
        conn.finish_sending();
        let answer = conn.until_closed(Duration::from_secs(40)).unwrap_or_else(|why| panic!("after {header:?}: {why}"));
        assert!(
            answer.is_empty() || matches!(answer[0], b'-' | b'+'),
            "{header:?}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    world.assert_unharmed();
}

#[test]
fn half_a_replication_command_waits_for_its_limit_and_is_closed() {
    let world = World::new();
    for half in ["*3\r\n$8\r\nREPLCONF\r\n$4\r\nca", "REPLCONF listening-po", "*3\r\n$5\r\nPSY"] {
        let answer = world.answer_to(half);
        assert!(answer.is_empty() || answer.starts_with('-'), "{half:?}: {answer:?}");
    }
    world.assert_unharmed();
}

/// Pools open connections long before they use them, replicas speak at once: silence makes a client.
#[test]
fn a_connection_that_says_nothing_holds_nobody_up_and_is_served_when_it_speaks() {
    let world = World::new();
    let mut silent: Vec<_> = (0..20).map(|_| world.psyncd.conn()).collect();
    assert_eq!(world.psyncd.conn().cmd(&["PING"]), Value::Simple("PONG".into()));
    wait_until("the silent ones are taken for clients", || {
        let open = world.psyncd.metrics().one("psyncd_client_connections", &[]);
        when(open == 20.0, || format!("{open} clients"))
    });
    for conn in &mut silent {
        assert_eq!(conn.cmd(&["PING"]), Value::Simple("PONG".into()));
    }
    drop(silent);
    world.assert_unharmed();
}

/// A server that was told to follow us may have to wait for its disk (`CONFIG REWRITE`) before it says the first word.
#[test]
fn a_replica_that_is_slow_to_speak_is_served_by_psyncd_all_the_same() {
    let world = World::new();
    let mut late = world.psyncd.conn();
    let silent = |count: f64| {
        wait_until("it is taken for a client", || {
            let open = world.psyncd.metrics().one("psyncd_client_connections", &[]);
            when(open == count, || format!("{open} clients"))
        });
    };
    silent(1.0);
    assert_eq!(late.cmd(&["PING"]), Value::Simple("PONG".into()));
    wait_until("it was heard", || {
        when(world.psyncd.metrics().one("psyncd_client_connections", &[]) == 0.0, String::new)
    });
    silent(1.0);
    assert_eq!(
        late.cmd(&["REPLCONF", "listening-port", "7777", "capa", "eof", "capa", "psync2"]),
        Value::Simple("OK".into())
    );
    late.send(encode(&["PSYNC", "?", "-1"])).unwrap();
    wait_until("psyncd serves it", || {
        let full = world.psyncd.metrics().sum("psyncd_resyncs_total", &[("kind", "full"), ("reason", "requested")]);
        when(full >= 1.0 && world.psyncd.status().to_string().contains(":7777"), || format!("{full}"))
    });
    assert!(!world.master.cmd(&["INFO", "replication"]).text().contains("port=7777"), "it was passed to the master");
}

#[test]
fn a_malformed_replconf_is_answered_as_a_master_would() {
    let world = World::new();
    let mut conn = world.psyncd.conn();
    for (request, answer) in [
        (&["REPLCONF"][..], "+OK"),
        (&["REPLCONF", "listening-port"], "-ERR syntax error"),
        (&["REPLCONF", "listening-port", "abc"], "-ERR value is not an integer or out of range"),
        (&["REPLCONF", "capa", "eof", "bogus", "x"], "-ERR Unrecognized REPLCONF option: bogus"),
        (&["REPLCONF", "capa", "no-such-capability"], "+OK"),
        (&["REPLCONF", "version", "9.1.0"], "+OK"),
        (&["replconf", "RDB-NO-COMPRESS", "1", "rdb-no-checksum", "1"], "+OK"),
        (&["REPLCONF", "listening-port", "6379"], "+OK"),
    ] {
        conn.send(encode(request)).unwrap();
        assert_eq!(conn.line().unwrap(), answer, "for {request:?}");
    }
    // Errors before it leave the connection usable.
    conn.send(encode(&["PSYNC", "?", "-1"])).unwrap();
    assert!(conn.line_after_newlines().unwrap().starts_with("+FULLRESYNC "));
    drop(conn);
    world.assert_unharmed();
}

#[test]
fn an_announced_address_with_blanks_or_line_ends_is_refused_and_shown_nowhere() {
    let world = World::new();
    for evil in ["1.2.3.4 evil", "1.2.3.4\r\nevil:1", "evil,offset=9", &"evil".repeat(200)] {
        let mut conn = world.psyncd.conn();
        conn.send(encode(&["REPLCONF", "listening-port", "7777"])).unwrap();
        assert_eq!(conn.line().unwrap(), "+OK");
        conn.send(encode(&["REPLCONF", "ip-address", evil])).unwrap();
        let answer = conn.line().unwrap_or_default();
        assert!(answer.is_empty() || answer.starts_with("-ERR"), "{evil:?} was answered {answer:?}");
        assert!(answer.len() < 255, "old replicas read no longer lines");
        assert!(!world.psyncd.get("/metrics").1.contains("evil"));
        assert!(!world.psyncd.get("/status").1.contains("evil"));
    }
    world.assert_unharmed();
}

#[test]
fn a_malformed_psync_is_answered_with_an_error_or_a_full_resync() {
    let world = World::new();
    let id = world.master.replid();
    assert_eq!(world.line_for(format!("PSYNC {id} x1\r\n")), "-ERR value is not an integer or out of range");
    assert_eq!(
        world.line_for(format!("PSYNC {id} 99999999999999999999\r\n")),
        "-ERR value is not an integer or out of range"
    );
    for short in ["PSYNC\r\n", "PSYNC ?\r\n", "*1\r\n$5\r\nPSYNC\r\n"] {
        let answer = world.line_for(short);
        assert!(answer.starts_with("-ERR"), "{short:?} was answered {answer:?}");
    }
    for odd in [
        "PSYNC ? 0",
        "PSYNC short 1",
        "PSYNC ? 12345",
        "PSYNC zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz 1",
        &format!("PSYNC {id} 0"),
        &format!("PSYNC {id} -9"),
    ] {
        let answer = world.line_for(format!("{odd}\r\n"));
        assert!(answer.starts_with("+FULLRESYNC") || answer.starts_with("-ERR"), "{odd:?} was answered {answer:?}");
    }
    let answer = world.line_for(format!("PSYNC {id} 1 FAILOVER\r\n"));
    assert!(answer.starts_with("-ERR"), "a FAILOVER was answered {answer:?}");
    world.assert_unharmed();
}

#[test]
fn an_acknowledgement_beyond_the_head_is_not_believed() {
    let world = World::new();
    let mut liar = world.psyncd.conn();
    liar.send("REPLCONF listening-port 7777\r\n").unwrap();
    assert_eq!(liar.line().unwrap(), "+OK");
    liar.send("PSYNC ? -1\r\n").unwrap();
    liar.line_after_newlines().unwrap();
    liar.payload().unwrap();
    for number in ["999999999999", "99999999999999999999999", "-1", "x"] {
        // It may be cut off for the first of these already.
        let _ = liar.send(encode(&["REPLCONF", "ACK", number]));
    }
    let ignored = || world.psyncd.metrics().one("psyncd_replica_acks_beyond_head_total", &[]);
    wait_until("it is counted", || when(ignored() >= 1.0, || ignored().to_string()));
    let head = world.master.offset();
    holds_for(Duration::from_secs(3), "no acknowledgement beyond the head reaches the master", || {
        let link = world.master.info()["slave0"].clone();
        let acked: i64 = link.split(',').find_map(|field| field.strip_prefix("offset=")).unwrap().parse().unwrap();
        when(acked <= head + 1_000, || link)
    });
    assert_eq!(world.master.cmd(&["WAIT", "2", "200"]).int(), 1);
    world.assert_unharmed();
}

#[test]
fn a_replica_that_talks_out_of_turn_gets_no_byte_into_its_stream() {
    let world = World::new();
    let mut chatty = world.psyncd.conn();
    chatty.send("PSYNC ? -1\r\n").unwrap();
    chatty.line_after_newlines().unwrap();
    chatty.payload().unwrap();
    chatty.send("*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$7\r\ncounter\r\n").unwrap();
    let seen = chatty.until_closed(Duration::from_secs(20)).expect("such a link is closed");
    let seen = String::from_utf8_lossy(&seen);
    assert!(!seen.contains("+PONG") && !seen.contains('-'), "{seen:?}");
    world.assert_unharmed();
}

#[test]
fn connections_that_are_reset_at_any_moment_leave_nothing_behind() {
    let world = World::new();
    let talk = "PING\r\nREPLCONF listening-port 7777\r\nREPLCONF capa eof capa psync2\r\nPSYNC ? -1\r\n";
    for length in (0..talk.len()).step_by(3) {
        let mut conn = world.psyncd.conn();
        conn.send(&talk[..length]).unwrap();
    }
    for _ in 0..10 {
        let mut conn = world.psyncd.conn();
        conn.send("PSYNC ? -1\r\n").unwrap();
        conn.line_after_newlines().unwrap();
        // Closed with unread bytes: the other side sees a reset.
    }
    world.psyncd.wait_for_replicas(1);
    world.assert_unharmed();
}
