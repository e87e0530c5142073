//! INFO and ROLE through psyncd: the replicas behind it stand where its own link would, and nothing else differs. What
//! redis_exporter makes of them is compared in `.ci/validate`.

use crate::harness::*;

/// Two replicas behind psyncd under addresses they announce, and one directly at the master.
struct World {
    master: Node,
    psyncd: Psyncd,
    behind: Vec<Node>,
    direct: Node,
}

impl World {
    fn of(name: &str) -> World {
        World::with(name, &[])
    }

    fn with(name: &str, options: &[&str]) -> World {
        let server = server(name);
        let master = Node::with(server, &["--min-slaves-to-write", "1", "--min-slaves-max-lag", "10"]);
        let psyncd = Psyncd::before_with(&master, options);
        let behind: Vec<Node> = [("10.77.0.1", "7001"), ("replica-2.example", "7002")]
            .map(|(host, port)| Node::with(server, &["--slave-announce-ip", host, "--slave-announce-port", port]))
            .into();
        let direct = Node::start(server);
        // One by one, so that they are listed in this order.
        for (replica, port) in behind.iter().map(|replica| (replica, psyncd.port)).chain([(&direct, master.port)]) {
            replica.replicate(port);
            replica.wait_for_link();
        }
        psyncd.wait_for_replicas(2);
        // It knows that it is there before its master does.
        wait_until("the master lists its own replica as online", || {
            let info = master.info();
            let mine = format!("port={},state=online", direct.port);
            when(info.values().any(|value| value.contains(&mine)), || format!("{info:?}"))
        });
        // With two of them good, so that it can be written at all.
        master.cmd(&["SET", "key", "value"]);
        World { master, psyncd, behind, direct }
    }

    /// The addresses that have to be listed, in order.
    fn addresses(&self) -> Vec<String> {
        vec![format!("127.0.0.1:{}", self.direct.port), "10.77.0.1:7001".into(), "replica-2.example:7002".into()]
    }
}

fn addresses_in(info: &str) -> Vec<String> {
    let lines = info.lines().filter(|line| line.starts_with("slave") && line.contains("ip="));
    lines
        .enumerate()
        .map(|(number, line)| {
            let parts = line.strip_prefix(&format!("slave{number}:")).unwrap_or_else(|| panic!("{number} in {info}"));
            let part = |key: &str| parts.split(',').find_map(|part| part.strip_prefix(key)).unwrap().to_owned();
            assert_eq!(part("state="), "online", "{line}");
            part("offset=").parse::<u64>().unwrap();
            assert!(part("lag=").parse::<u64>().unwrap() <= 10, "{line}");
            format!("{}:{}", part("ip="), part("port="))
        })
        .collect()
}

/// All that is not about replicas, without what changes from one moment to the next.
fn others(info: &str, values: bool) -> Vec<String> {
    const REPLICAS: [&str; 2] = ["connected_slaves:", "min_slaves_good_slaves:"];
    let is_replica =
        |line: &str| line.strip_prefix("slave").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let before = info.split("\r\n# Psyncd\r\n").next().unwrap();
    let lines = before.split("\r\n").filter(|line| !is_replica(line));
    let lines = lines.filter(|line| !REPLICAS.iter().any(|key| line.starts_with(key)));
    lines.map(|line| if values { line } else { line.split(':').next().unwrap() }.to_owned()).collect()
}

fn text(reply: Value) -> String {
    // RESP3's verbatim string begins with its kind.
    let text = reply.text();
    text.strip_prefix("txt:").map_or(text.clone(), str::to_owned)
}

#[track_caller]
fn is_listed(world: &World, info: &str) {
    assert_eq!(addresses_in(info), world.addresses(), "{info}");
    assert!(info.contains("\r\nconnected_slaves:3\r\n"), "{info}");
    assert!(info.contains("\r\nmin_slaves_good_slaves:3\r\n"), "{info}");
    assert!(info.contains("\r\n\r\n# Psyncd\r\npsyncd_version:"), "{info}");
    assert!(
        info.contains("psyncd_upstream_link:streaming\r\n") && info.contains("psyncd_replicas_online:2\r\n"),
        "{info}"
    );
    let suffix = if world.master.server.is_valkey() { ",type=replica\r\n" } else { "lag=" };
    assert_eq!(info.matches(suffix).count(), 3, "{info}");
}

/// The whole list of forms in which a client can ask, for one kind of server.
#[track_caller]
fn every_form_is_rewritten(name: &str) {
    let world = World::of(name);
    let master = &world.master;
    let through = || world.psyncd.conn();

    // As the very first command of a connection, and behind what a connection begins with.
    for section in ["replication", "all", "default", "everything"] {
        is_listed(&world, &through().cmd(&["INFO", section]).text());
    }
    let mut conn = through();
    conn.cmd(&["PING"]);
    is_listed(&world, &conn.cmd(&["INFO"]).text());

    // Inline, as HAProxy's checks ask.
    let mut conn = through();
    conn.send("info replication\r\nPING\r\n").unwrap();
    is_listed(&world, &conn.reply().unwrap().text());
    assert_eq!(conn.reply().unwrap(), Value::Simple("PONG".into()));

    // Everything else is the master's, in the master's order.
    wait_until("both say the same", || {
        let (direct, passed) =
            (master.cmd(&["INFO", "replication"]).text(), through().cmd(&["INFO", "replication"]).text());
        when(others(&direct, true) == others(&passed, true), || format!("{direct}\n{passed}"))
    });
    let (direct, passed) = (master.cmd(&["INFO", "everything"]).text(), through().cmd(&["INFO", "everything"]).text());
    let keys = |info: &str| {
        others(info, false)
            .into_iter()
            .filter(|key| !key.starts_with("cmdstat_") && !key.starts_with("latency_"))
            .collect::<Vec<_>>()
    };
    assert_eq!(keys(&direct), keys(&passed));
    let run_id = |info: &str| info.lines().find(|line| line.starts_with("run_id:")).unwrap().to_owned();
    assert_eq!(run_id(&direct), run_id(&passed));
    assert!(passed.contains("\r\n# Commandstats\r\n"));

    // Sections that say nothing of replicas.
    let server = through().cmd(&["INFO", "server"]).text();
    assert!(server.starts_with("# Server\r\n") && !server.contains("syncd_"), "{server}");
    assert!(through().cmd(&["INFO", "psyncd"]).text().starts_with("# Psyncd\r\npsyncd_version:"));

    // In the middle of a pipeline, with large values around.
    let value = "x".repeat(300_000);
    let mut conn = through();
    let mut writer = Conn::over(conn.stream().try_clone().unwrap());
    let script: Vec<Vec<u8>> = (0..20)
        .flat_map(|_| {
            [
                encode(&["SET", "large", &value]),
                encode(&["INFO", "replication"]),
                encode(&["GET", "large"]),
                encode(&["ROLE"]),
            ]
        })
        .collect();
    let asking = std::thread::spawn(move || script.into_iter().for_each(|command| writer.send(command).unwrap()));
    for _ in 0..20 {
        assert_eq!(conn.reply().unwrap(), Value::Simple("OK".into()));
        is_listed(&world, &conn.reply().unwrap().text());
        assert_eq!(conn.reply().unwrap().text(), value);
        is_in_role(&world, conn.reply().unwrap());
    }
    asking.join().unwrap();

    // In a transaction.
    let mut conn = through();
    for (command, reply) in [
        (&["MULTI"][..], "OK"),
        (&["SET", "a", "1"], "QUEUED"),
        (&["INFO"], "QUEUED"),
        (&["ROLE"], "QUEUED"),
        (&["GET", "a"], "QUEUED"),
    ] {
        assert_eq!(conn.cmd(command), Value::Simple(reply.into()));
    }
    let executed = conn.cmd(&["EXEC"]).array();
    assert_eq!((executed.len(), executed[3].text()), (4, "1".to_owned()));
    is_listed(&world, &executed[1].text());
    is_in_role(&world, executed[2].clone());
    is_listed(&world, &conn.cmd(&["INFO"]).text());

    // In RESP3, where it is a verbatim string, and a push frame may come first.
    let mut conn = through();
    assert!(matches!(conn.cmd(&["HELLO", "3"]), Value::Map(_)));
    is_listed(&world, &text(conn.cmd(&["INFO"])));
    conn.cmd(&["CLIENT", "TRACKING", "ON"]);
    conn.cmd(&["GET", "a"]);
    through().cmd(&["SET", "a", "2"]);
    assert!(matches!(conn.reply().unwrap(), Value::Push(_)));
    is_listed(&world, &text(conn.cmd(&["INFO", "replication"])));
    is_in_role(&world, conn.cmd(&["ROLE"]));
    assert!(text(conn.cmd(&["INFO", "psyncd"])).starts_with("# Psyncd\r\n"));

    let metrics = world.psyncd.metrics();
    assert!(metrics.one("psyncd_rewrites_total", &[("command", "info")]) >= 30.0);
    assert!(metrics.one("psyncd_rewrites_total", &[("command", "role")]) >= 22.0);
    assert_eq!(metrics.sum("psyncd_rewrite_given_up_total", &[]), 0.0);

    // Nobody behind psyncd is listed any more when they have left.
    world.behind.iter().for_each(|replica| drop(replica.cmd(&["SLAVEOF", "NO", "ONE"])));
    wait_until("they are gone from the list", || {
        let info = through().cmd(&["INFO", "replication"]).text();
        when(addresses_in(&info) == world.addresses()[..1] && info.contains("connected_slaves:1\r\n"), || info.clone())
    });
}

#[track_caller]
fn is_in_role(world: &World, role: Value) {
    let role = role.array();
    assert_eq!((role[0].text().as_str(), role.len()), ("master", 3));
    assert!(role[1].int() > 0);
    let listed: Vec<String> = role[2]
        .clone()
        .array()
        .into_iter()
        .map(|replica| {
            let [host, port, offset] = &replica.array()[..] else { panic!("a replica in ROLE has three words") };
            offset.text().parse::<u64>().unwrap();
            format!("{}:{}", host.text(), port.text())
        })
        .collect();
    assert_eq!(listed, world.addresses());
}

#[test]
fn every_form_of_info_and_role_is_rewritten_for_redis_6_2() {
    every_form_is_rewritten("redis-6.2.14");
}

#[test]
fn every_form_of_info_and_role_is_rewritten_for_redis_7_0() {
    every_form_is_rewritten("redis-7.0.15");
}

#[test]
fn every_form_of_info_and_role_is_rewritten_for_redis_7_2() {
    every_form_is_rewritten("redis-7.2.4");
}

#[test]
fn every_form_of_info_and_role_is_rewritten_for_redis_8_6() {
    every_form_is_rewritten("redis-8.6.2");
}

#[test]
fn every_form_of_info_and_role_is_rewritten_for_valkey_8_1() {
    every_form_is_rewritten("valkey-8.1.1");
}

#[test]
fn every_form_of_info_and_role_is_rewritten_for_valkey_9_1() {
    every_form_is_rewritten("valkey-9.1.2");
}

#[test]
fn without_replicas_a_master_looks_as_if_psyncd_were_not_there() {
    let master = Node::start(server("redis-7.2.4"));
    let psyncd = Psyncd::before(&master);
    assert!(master.cmd(&["INFO", "replication"]).text().contains("connected_slaves:1\r\nslave0:ip=127.0.0.1,port=0,"));
    let info = psyncd.conn().cmd(&["INFO", "replication"]).text();
    assert!(info.contains("role:master\r\nconnected_slaves:0\r\nmaster_failover_state:"), "{info}");
    assert_eq!(psyncd.conn().cmd(&["ROLE"]).array()[2], Value::Array(vec![]));
}

#[test]
fn psyncd_is_recognised_by_the_address_it_announces() {
    let world = World::with("redis-7.0.15", &["--announce-ip", "localhost", "--announce-port", "7777"]);
    let direct = world.master.cmd(&["INFO", "replication"]).text();
    assert!(direct.contains("ip=localhost,port=7777,"), "{direct}");
    is_listed(&world, &world.psyncd.conn().cmd(&["INFO"]).text());
    is_in_role(&world, world.psyncd.conn().cmd(&["ROLE"]));
}

#[test]
fn psyncd_is_recognised_at_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("master.sock");
    let master = Node::with(server("redis-8.6.2"), &["--unixsocket", socket.to_str().unwrap()]);
    let psyncd = Psyncd::toward(&format!("unix:{}", socket.display()), &[]);
    psyncd.wait_for_link();
    let direct = master.cmd(&["INFO", "replication"]).text();
    assert!(direct.contains("slave0:ip=/unixsocket,port=0,"), "{direct}");
    let info = psyncd.conn().cmd(&["INFO", "replication"]).text();
    assert!(info.contains("connected_slaves:0\r\nmaster_failover_state:"), "{info}");
}

#[test]
fn in_front_of_a_replica_its_own_link_is_told_as_it_is_and_those_behind_are_listed() {
    let server = server("valkey-9.0.0");
    let master = Node::start(server);
    let node = Node::start(server);
    node.replicate(master.port);
    node.wait_for_link();
    let psyncd = Psyncd::before(&node);
    let behind = Node::with(server, &["--replica-announce-ip", "10.77.0.9", "--replica-announce-port", "7009"]);
    behind.replicate(psyncd.port);
    behind.wait_for_link();
    psyncd.wait_for_replicas(1);
    wait_until("all but the list is as the node says it", || {
        let (direct, passed) =
            (node.cmd(&["INFO", "replication"]).text(), psyncd.conn().cmd(&["INFO", "replication"]).text());
        assert_eq!(addresses_in(&passed), ["10.77.0.9:7009"]);
        assert!(
            passed.contains(&format!("role:slave\r\nmaster_host:127.0.0.1\r\nmaster_port:{}\r\n", master.port)),
            "{passed}"
        );
        when(others(&direct, true) == others(&passed, true), || format!("{direct}\n{passed}"))
    });
    let role = psyncd.conn().cmd(&["ROLE"]).array();
    assert_eq!((role[0].text().as_str(), role[2].int()), ("slave", i64::from(master.port)));
}

#[test]
fn a_subscriber_s_replies_pass_unseen_and_are_counted_as_such() {
    let master = Node::start(server("redis-7.0.15"));
    let psyncd = Psyncd::before(&master);
    let mut subscriber = psyncd.conn();
    subscriber.send(encode(&["SUBSCRIBE", "a", "b"])).unwrap();
    for _ in 0..2 {
        assert_eq!(subscriber.reply().unwrap().array()[0].text(), "subscribe");
    }
    master.cmd(&["PUBLISH", "b", "$4\r\ninfo\r\n"]);
    assert_eq!(subscriber.reply().unwrap().array()[2].text(), "$4\r\ninfo\r\n");
    subscriber.send(encode(&["UNSUBSCRIBE"])).unwrap();
    for _ in 0..2 {
        assert_eq!(subscriber.reply().unwrap().array()[0].text(), "unsubscribe");
    }
    // The count is not taken up again: this one passes as the master says it.
    assert!(subscriber.cmd(&["INFO", "replication"]).text().contains(",port=0,"));
    assert_eq!(psyncd.metrics().one("psyncd_rewrite_given_up_total", &[("reason", "mode")]), 1.0);
}
