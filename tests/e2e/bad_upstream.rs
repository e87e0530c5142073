//! A master that is broken, or an impostor. Real replicas stand behind psyncd; whatever it sends, they live and keep their
//! data, and once psyncd is given a sane master again they equal it.
//!
//! Control: `without_psyncd_a_replica_that_gets_a_broken_rdb_exits`.

use std::io;
use std::time::Duration;

use crate::harness::*;

type Script = fn(&mut Conn, &[u8]) -> io::Result<()>;

/// Replicas of several generations are in sync with a sane master; then psyncd finds the scripted one at its place, which
/// has the RDB of another data set to send; then the sane one is back.
#[track_caller]
fn survives(script: Script) {
    let sane = Node::start(server("redis-6.2.14"));
    fill(&sane);
    let other = Node::start(server("redis-6.2.14"));
    other.cmd(&["SET", "other", &"data ".repeat(20_000)]);
    let rdb = rdb_of(&other);

    let network = Forwarder::to(sane.port);
    let mut psyncd = Psyncd::toward(&network.address(), &[]);
    psyncd.wait_for_link();
    let mut replicas = Node::start_all(["redis-5.0.6", "redis-6.2.14", "redis-7.2.4", "valkey-9.1.2"].map(server));
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    assert_equal_data(&sane, &replicas);
    let digest = sane.digest();

    let fake = FakeMaster::start(move |conn, _| script(conn, &rdb));
    network.point_to(fake.port);
    wait_until("psyncd has tried the broken master twice, or keeps it", || {
        let asked = fake.asked();
        when(asked >= 2, || format!("it asked {asked} times"))
    });
    // A stranger with data of its own comes in the middle of it. It must not lose that for nothing.
    let mut stranger = Node::start(server("redis-7.0.15"));
    stranger.cmd(&["SET", "mine", "kept"]);
    stranger.replicate(psyncd.port);
    holds_for(Duration::from_secs(2), "every replica lives and has the data it had", || {
        for replica in &mut replicas {
            let ended = replica.process().ended();
            when(ended.is_none(), || format!("{} ended with {ended:?}:\n{}", replica.server.name, replica.log()))?;
            let now = replica.digest();
            when(now == digest, || format!("{} has other data now:\n{}", replica.server.name, replica.log()))?;
        }
        let ended = stranger.process().ended();
        when(ended.is_none(), || format!("the stranger ended with {ended:?}:\n{}", stranger.log()))
    });
    assert!(psyncd.process().ended().is_none(), "psyncd ended");
    assert!(!psyncd.log().contains("panicked"), "psyncd panicked");
    let resident = psyncd.process().resident_bytes() >> 20;
    assert!(resident < 100, "psyncd holds {resident} MB");
    let asked = fake.asked();
    assert!(asked < 60, "psyncd asked the broken master {asked} times within seconds");

    network.point_to(sane.port);
    psyncd.wait_for_link();
    sane.cmd(&["SET", "all", "well"]);
    assert_equal_data(&sane, replicas.iter().chain([&stranger]));
}

fn fullresync(conn: &mut Conn) -> io::Result<()> {
    conn.send(format!("+FULLRESYNC {REPLID} 0\r\n"))
}

fn with_length(conn: &mut Conn, rdb: &[u8]) -> io::Result<()> {
    fullresync(conn)?;
    conn.send(format!("${}\r\n", rdb.len()))?;
    conn.send(rdb)?;
    linger(conn, SOON);
    Ok(())
}

const MARK: &str = "0123456789012345678901234567890123456789";

fn with_mark(conn: &mut Conn, rdb: &[u8]) -> io::Result<()> {
    fullresync(conn)?;
    conn.send(format!("$EOF:{MARK}\r\n"))?;
    conn.send(rdb)?;
    conn.send(MARK)?;
    linger(conn, SOON);
    Ok(())
}

fn flipped(rdb: &[u8], at: usize) -> Vec<u8> {
    let mut broken = rdb.to_vec();
    broken[at] ^= 0xff;
    broken
}

#[test]
fn a_wrong_checksum_in_an_rdb_of_known_length() {
    survives(|conn, rdb| with_length(conn, &flipped(rdb, rdb.len() - 1)));
}

#[test]
fn a_wrong_byte_in_an_rdb_up_to_a_mark() {
    survives(|conn, rdb| with_mark(conn, &flipped(rdb, rdb.len() / 2)));
}

#[test]
fn a_truncated_rdb_in_complete_framing_of_known_length() {
    survives(|conn, rdb| with_length(conn, &rdb[..rdb.len() / 2]));
}

#[test]
fn a_truncated_rdb_in_complete_framing_up_to_a_mark() {
    survives(|conn, rdb| with_mark(conn, &rdb[..rdb.len() - 9]));
}

#[test]
fn a_file_that_is_no_rdb() {
    survives(|conn, rdb| with_length(conn, &[b"NOTREDIS9", &rdb[9..]].concat()));
}

#[test]
fn an_rdb_of_a_version_from_the_future() {
    survives(|conn, rdb| with_length(conn, &[b"REDIS9999", &rdb[9..]].concat()));
}

#[test]
fn an_empty_rdb_and_absurd_lengths() {
    survives(|conn, _| {
        fullresync(conn)?;
        // Each attempt gets another of these.
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let headers = ["$0\r\n", "$-5\r\n", "$99999999999999999999999\r\n", "$x\r\n", "garbage\r\n", "$EOF:short\r\n"];
        conn.send(headers[NEXT.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % headers.len()])?;
        linger(conn, Duration::from_secs(2));
        Ok(())
    });
}

#[test]
fn a_master_that_dies_in_the_middle_of_its_rdb() {
    survives(|conn, rdb| {
        fullresync(conn)?;
        conn.send(format!("${}\r\n", rdb.len()))?;
        conn.send(&rdb[..rdb.len() / 2])
    });
}

#[test]
fn a_master_that_dies_before_the_mark() {
    survives(|conn, rdb| {
        fullresync(conn)?;
        conn.send(format!("$EOF:{MARK}\r\n"))?;
        conn.send(rdb)?;
        conn.send(&MARK[..39])
    });
}

#[test]
fn replies_to_psync_that_are_none() {
    survives(|conn, _| {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let replies = [
            "+FULLRESYNC\r\n".to_owned(),
            "+FULLRESYNC short 0\r\n".to_owned(),
            format!("+FULLRESYNC {REPLID} minus\r\n"),
            format!("+FULLRESYNC {REPLID} -77\r\n"),
            format!("+FULLRESYNC {REPLID} 99999999999999999999\r\n"),
            "+DUALCHANNELSYNC\r\n".to_owned(),
            "+RDBCHANNELSYNC 5\r\n".to_owned(),
            "*1\r\n$4\r\nWHAT\r\n".to_owned(),
            format!("+{}\r\n", "A".repeat(100_000)),
            "-ERR not today\r\n".to_owned(),
        ];
        conn.send(&replies[NEXT.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % replies.len()])?;
        linger(conn, Duration::from_secs(2));
        Ok(())
    });
}

#[test]
fn a_reply_that_is_broken_off() {
    survives(|conn, _| conn.send("+FULLRESYNC 00112233445"));
}

/// These go on for ever with one connection, so the number of attempts says nothing.
#[track_caller]
fn outlives(script: Script) -> usize {
    let sane = Node::start(server("redis-7.0.15"));
    fill(&sane);
    let network = Forwarder::to(sane.port);
    let mut psyncd = Psyncd::toward(&network.address(), &[]);
    psyncd.wait_for_link();
    let mut replica = Node::start(server("redis-7.0.15"));
    replica.replicate(psyncd.port);
    assert_equal_data(&sane, [&replica]);
    let digest = sane.digest();
    let fake = FakeMaster::start(move |conn, _| script(conn, &[]));
    network.point_to(fake.port);
    wait_until("psyncd asks the broken master", || when(fake.asked() >= 1, || "it did not".to_owned()));
    holds_for(Duration::from_secs(4), "the replica lives and has the data it had", || {
        let ended = replica.process().ended();
        when(ended.is_none(), || format!("it ended with {ended:?}"))?;
        when(replica.digest() == digest, || replica.log())
    });
    let resident = psyncd.process().resident_bytes() >> 20;
    assert!(resident < 100, "psyncd holds {resident} MB");
    assert_eq!(psyncd.get("/healthz").0, 200);
    let asked = fake.asked();
    network.point_to(sane.port);
    psyncd.wait_for_link();
    sane.cmd(&["SET", "all", "well"]);
    assert_equal_data(&sane, [&replica]);
    asked
}

#[test]
fn endless_newlines_instead_of_a_reply() {
    outlives(|conn, _| {
        loop {
            conn.send(vec![b'\n'; 16_384])?;
        }
    });
}

#[test]
fn endless_newlines_instead_of_an_rdb() {
    outlives(|conn, _| {
        fullresync(conn)?;
        loop {
            conn.send(vec![b'\n'; 16_384])?;
        }
    });
}

#[test]
fn an_endless_line_instead_of_a_reply() {
    let asked = outlives(|conn, _| {
        loop {
            conn.send(vec![b'A'; 16_384])?;
        }
    });
    assert!(asked >= 2, "it was given up and tried again, not read to its end");
}

#[test]
fn nothing_at_all_instead_of_a_reply() {
    outlives(|conn, _| {
        linger(conn, SOON);
        Ok(())
    });
    // Nor is it waited for without end.
    let silent = FakeMaster::start(|conn, _| {
        linger(conn, Duration::from_secs(120));
        Ok(())
    });
    let address = format!("127.0.0.1:{}", silent.port);
    let _psyncd = Psyncd::toward(&address, &["--repl-timeout", "2s", "--handshake-timeout", "1s"]);
    wait_until("it is given up and asked again", || when(silent.asked() >= 2, || silent.asked().to_string()));
}

/// A continued stream that is no stream: a compressed envelope, or noise. No byte of it may reach a replica as a command.
#[track_caller]
fn refuses_the_stream(bytes: &'static [u8]) {
    let sane = Node::with(server("redis-7.0.15"), &["--repl-ping-replica-period", "3600"]);
    fill(&sane);
    let network = Forwarder::to(sane.port);
    let psyncd = Psyncd::toward(&network.address(), &[]);
    psyncd.wait_for_link();
    let replica = Node::start(server("redis-7.0.15"));
    replica.replicate(psyncd.port);
    assert_equal_data(&sane, [&replica]);
    let digest = sane.digest();
    let fake = FakeMaster::start(move |conn, request| {
        if request.first().is_some_and(|word| word.eq_ignore_ascii_case("psync")) && request[1] != "?" {
            conn.send(format!("+CONTINUE {}\r\n", request[1]))?;
            conn.send(bytes)?;
        }
        linger(conn, SOON);
        Ok(())
    });
    network.point_to(fake.port);
    wait_until("psyncd continues with the impostor, and leaves it", || {
        let asked = fake.asked();
        when(asked >= 2, || format!("it asked {asked} times"))
    });
    network.point_to(sane.port);
    psyncd.wait_for_link();
    assert_eq!(replica.digest(), digest);
    sane.cmd(&["SET", "all", "well"]);
    assert_equal_data(&sane, [&replica]);
    let log = replica.log();
    assert!(!log.contains("Protocol error") && !log.contains("Desync"), "{log}");
}

#[test]
fn a_compressed_envelope_instead_of_the_stream() {
    refuses_the_stream(b"VLZ4\x00\x01\x02\x03 compressed bytes follow");
}

#[test]
fn noise_instead_of_the_stream() {
    refuses_the_stream(b"\x00\xff\xfe garbage \r\n +OK\r\n");
}

#[test]
fn an_rdb_where_the_stream_should_be() {
    refuses_the_stream(b"$5\r\nREDIS0011");
}
