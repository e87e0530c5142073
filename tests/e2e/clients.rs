//! Ordinary clients on psyncd's port: they reach the master and cannot tell the difference.

use std::process::Command;
use std::time::Duration;

use redis::Commands;

use crate::harness::*;

fn world(name: &str) -> (Node, Psyncd) {
    let master = Node::start(server(name));
    let psyncd = Psyncd::before(&master);
    (master, psyncd)
}

#[track_caller]
fn a_client_library_works(protocol: &str) {
    let (master, psyncd) = world("redis-7.2.4");
    let client = redis::Client::open(format!("redis://127.0.0.1:{}/2{protocol}", psyncd.port)).unwrap();
    let mut conn = client.get_connection().unwrap();
    let () = conn.set("key", "value").unwrap();
    assert_eq!(conn.get::<_, String>("key").unwrap(), "value");
    assert_eq!(conn.get::<_, Option<String>>("none").unwrap(), None);
    let (one, two): (i64, i64) = redis::pipe().atomic().incr("n", 1).incr("n", 41).query(&mut conn).unwrap();
    assert_eq!((one, two), (1, 42));
    let wrong: redis::RedisResult<i64> = conn.lpush("key", "not a list");
    assert!(wrong.unwrap_err().to_string().contains("WRONGTYPE"));
    let mut pipeline = redis::pipe();
    for number in 0..5_000 {
        pipeline.set(format!("many:{number}"), number).ignore();
    }
    let () = pipeline.query(&mut conn).unwrap();
    let keys: i64 = redis::cmd("DBSIZE").query(&mut conn).unwrap();
    assert_eq!(keys, 5_002);
    assert_eq!(master.info()["db2"].split(',').next(), Some("keys=5002"));
}

#[test]
fn a_client_library_works_through_psyncd() {
    a_client_library_works("");
}

#[test]
fn a_client_library_works_through_psyncd_with_resp3() {
    a_client_library_works("?protocol=resp3");
}

#[test]
fn a_subscriber_behind_psyncd_gets_what_is_published() {
    let (master, psyncd) = world("valkey-9.0.0");
    let client = redis::Client::open(format!("redis://127.0.0.1:{}/", psyncd.port)).unwrap();
    let mut listening = client.get_connection().unwrap();
    let mut subscriber = listening.as_pubsub();
    subscriber.set_read_timeout(Some(SOON)).unwrap();
    subscriber.subscribe("news").unwrap();
    subscriber.psubscribe("news.*").unwrap();
    let mut publisher = client.get_connection().unwrap();
    assert_eq!(publisher.publish::<_, _, i64>("news", "one").unwrap(), 1);
    assert_eq!(master.cmd(&["PUBLISH", "news.local", "two"]).int(), 1);
    for (channel, payload) in [("news", "one"), ("news.local", "two")] {
        let message = subscriber.get_message().unwrap();
        assert_eq!((message.get_channel_name(), message.get_payload::<String>().unwrap().as_str()), (channel, payload));
    }
}

#[test]
fn redis_benchmark_runs_through_psyncd() {
    let (master, psyncd) = world("redis-7.0.15");
    let mut benchmark = Command::new(master.server.tool("redis-benchmark"));
    benchmark.args(["-p", &psyncd.port.to_string(), "-q", "-n", "20000", "-c", "20", "-P", "16", "-d", "100"]);
    let output = benchmark.args(["-t", "ping,set,get,lpush,lrange_100,mset"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "\n");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    // PING counts twice (inline and RESP), and LRANGE fills its list first.
    assert_eq!(text.matches("requests per second").count(), 8, "{text}");
    let served: i64 = master.info()["total_commands_processed"].parse().unwrap();
    assert!(served >= 140_000, "only {served} commands reached the master");
}

#[test]
fn monitor_shows_what_the_master_does() {
    let (master, psyncd) = world("redis-6.2.14");
    let mut monitor = psyncd.conn();
    assert_eq!(monitor.cmd(&["MONITOR"]), Value::Simple("OK".into()));
    master.cmd(&["SET", "watched", "1"]);
    wait_until("the monitor sees the write", || {
        let line = monitor.line().map_err(|why| why.to_string())?;
        when(line.contains("\"SET\" \"watched\" \"1\""), || line.clone())
    });
}

#[test]
fn a_blocking_pop_waits_and_then_gets_its_element() {
    let (master, psyncd) = world("valkey-8.1.1");
    let mut waiting = psyncd.conn();
    waiting.send(encode(&["BLPOP", "queue", "0"])).unwrap();
    wait_until("the client is blocked at the master", || {
        let blocked = master.info()["blocked_clients"].clone();
        when(blocked == "1", || format!("{blocked} blocked"))
    });
    psyncd.conn().cmd(&["RPUSH", "queue", "element"]);
    let popped = waiting.reply().unwrap().array();
    assert_eq!(popped[1].text(), "element");
}

#[test]
fn hello_3_is_answered_by_the_master_itself() {
    let (_master, psyncd) = world("redis-7.4.1");
    let mut conn = psyncd.conn();
    let Value::Map(hello) = conn.cmd(&["HELLO", "3"]) else { panic!("RESP3's HELLO answers a map") };
    let field = |name: &str| hello.iter().find(|(key, _)| key.text() == name).map(|(_, value)| value.text());
    assert_eq!(field("proto").as_deref(), Some("3"));
    assert_eq!(field("version").as_deref(), Some("7.4.1"));
    assert_eq!(field("role").as_deref(), Some("master"));
    conn.cmd(&["HSET", "map", "field", "value"]);
    assert!(matches!(conn.cmd(&["HGETALL", "map"]), Value::Map(pairs) if pairs.len() == 1));
}

#[test]
fn inline_commands_and_a_half_close_pass_through() {
    let (_master, psyncd) = world("redis-5.0.6");
    let mut conn = psyncd.conn();
    conn.send("PING\r\nSET inline yes\r\nGET inline\r\n").unwrap();
    // netcat does this: everything is asked, then the answers are read.
    conn.finish_sending();
    let answers = conn.until_closed(SOON).unwrap();
    assert_eq!(String::from_utf8_lossy(&answers), "+PONG\r\n+OK\r\n$3\r\nyes\r\n");
}

#[test]
fn a_first_ping_in_pieces_is_still_a_clients() {
    let (_master, psyncd) = world("redis-7.0.15");
    let mut conn = psyncd.conn();
    for byte in encode(&["PING"]).chunks(1).chain(encode(&["ECHO", "hello"]).chunks(1)) {
        conn.send(byte).unwrap();
    }
    assert_eq!(conn.reply().unwrap(), Value::Simple("PONG".into()));
    assert_eq!(conn.reply().unwrap().text(), "hello");
}

#[test]
fn a_pipeline_far_larger_than_any_buffer_is_answered_in_order() {
    let (_master, psyncd) = world("redis-7.0.15");
    let conn = psyncd.conn();
    let mut writer = Conn::over(conn.stream().try_clone().unwrap());
    let value = "p".repeat(1_000);
    let asking = std::thread::spawn(move || {
        for number in 0..20_000 {
            let mut pair = encode(&["SET", "pipelined", &format!("{number}:{value}")]);
            pair.extend(encode(&["GET", "pipelined"]));
            writer.send(pair).unwrap();
        }
    });
    let mut conn = conn;
    for number in 0..20_000 {
        assert_eq!(conn.reply().unwrap(), Value::Simple("OK".into()));
        let got = conn.reply().unwrap().text();
        assert!(got.starts_with(&format!("{number}:")), "answer {number} was {}", &got[..20]);
    }
    asking.join().unwrap();
}

#[test]
fn a_large_value_passes_both_ways_unchanged() {
    let (_master, psyncd) = world("valkey-9.1.2");
    let mut conn = psyncd.conn();
    let value: Vec<u8> = (0..10_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    conn.cmd(&[&b"SET"[..], b"binary", &value]);
    assert!(conn.cmd(&["GET", "binary"]) == Value::Bulk(value), "the value came back changed");
}

#[test]
fn two_hundred_clients_are_served_at_once_beside_the_replicas() {
    let (master, psyncd) = world("redis-7.2.4");
    let replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    let mut clients: Vec<_> = (0..200).map(|_| psyncd.conn()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(encode(&["SET", &format!("client:{number}"), "here"])).unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.reply().unwrap(), Value::Simple("OK".into()));
    }
    wait_until("psyncd counts them", || {
        let open = psyncd.metrics().one("psyncd_client_connections", &[]);
        when(open == 200.0, || format!("{open} clients"))
    });
    drop(clients);
    wait_until("psyncd lets them go", || {
        let open = psyncd.metrics().one("psyncd_client_connections", &[]);
        when(open == 0.0, || format!("{open} clients"))
    });
    assert_equal_data(&master, [&replica]);
}

#[test]
fn a_password_is_the_masters_affair_for_clients_and_psyncds_for_its_link() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let password = "correct horse";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, format!("{password}\n")).unwrap();
    let replica = Node::with(master.server, &["--masterauth", password]);

    let digest = master.digest();
    master.cmd(&["CONFIG", "SET", "requirepass", password]);
    let psyncd = Psyncd::toward(&master.address(), &["--masterauth-file", file.to_str().unwrap()]);
    psyncd.wait_for_link();
    let mut client = psyncd.conn();
    assert!(matches!(client.ask(&["GET", "counter"]).unwrap(), Value::Error(why) if why.starts_with("NOAUTH")));
    client.cmd(&["AUTH", password]);
    client.cmd(&["SET", "by", "an authenticated client"]);
    client.cmd(&["DEL", "by"]);

    replica.replicate(psyncd.port);
    replica.wait_for_link();
    wait_until("the data is there", || when(replica.digest() == digest, || replica.digest()));
    assert!(!psyncd.log().contains(password), "the password is in the log");
}

#[test]
fn a_client_that_goes_away_in_mid_command_leaves_nothing_behind() {
    let (master, psyncd) = world("redis-7.0.15");
    for _ in 0..20 {
        let mut conn = psyncd.conn();
        conn.send("*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$100\r\nonly the beginn").unwrap();
    }
    wait_until("the master has only psyncd's own link and ours", || {
        let list = master.cmd(&["CLIENT", "LIST"]).text();
        when(list.lines().count() <= 3, || list.clone())
    });
    assert_eq!(master.cmd(&["EXISTS", "half"]).int(), 0);
    wait_at_most(Duration::from_secs(10), "psyncd lets them go", || {
        let open = psyncd.metrics().one("psyncd_client_connections", &[]);
        when(open == 0.0, || format!("{open} clients"))
    });
}

/// As Sentinel has it done to the clients of a node that it reconfigures.
#[test]
fn a_client_kill_through_psyncd_ends_clients_and_no_replica() {
    let (master, psyncd) = world("redis-7.0.15");
    let replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    replica.wait_for_link();
    let mut other = psyncd.conn();
    other.cmd(&["PING"]);
    other.cmd(&["SET", "before", "it"]);
    let mut killer = psyncd.conn();
    assert!(killer.cmd(&["CLIENT", "KILL", "TYPE", "normal"]).int() >= 1);
    assert!(other.ask(&["PING"]).is_err(), "the other client was to be closed");
    assert_eq!(killer.cmd(&["PING"]), Value::Simple("PONG".into()));
    assert_eq!(psyncd.conn().cmd(&["SET", "after", "it"]), Value::Simple("OK".into()));
    assert_equal_data(&master, [&replica]);
    assert_eq!(psyncd.resyncs(), Resyncs { partial: 0, full: 1 });
    assert_eq!(psyncd.metrics().sum("psyncd_upstream_disconnects_total", &[]), 0.0);
}
