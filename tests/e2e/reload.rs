//! A reload changes what can be changed and cuts nobody off; a configuration that does not hold changes nothing.

use std::fmt::Write as _;

use tempfile::TempDir;

use crate::harness::*;

/// A configuration with its password in a file of its own.
struct Files(TempDir);

impl Files {
    fn new(master: &Node, password: &str) -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        files.write_password(password);
        files.write(master, "");
        files
    }

    fn conf(&self) -> std::path::PathBuf {
        self.0.path().join("psyncd.toml")
    }

    fn write_password(&self, password: &str) {
        std::fs::write(self.0.path().join("masterauth"), password).unwrap();
    }

    fn write(&self, master: &Node, more: &str) {
        let mut text = String::new();
        writeln!(text, "upstream = \"127.0.0.1:{}\"", master.port).unwrap();
        writeln!(text, "masterauth-file = \"{}\"", self.0.path().join("masterauth").display()).unwrap();
        writeln!(text, "port = 0\nadmin-bind = \"127.0.0.1:0\"\n{more}").unwrap();
        std::fs::write(self.conf(), text).unwrap();
    }
}

fn reloaded(psyncd: &mut Psyncd, result: f64) {
    let seen = |psyncd: &Psyncd| psyncd.metrics().one("psyncd_config_last_reload_timestamp_seconds", &[]);
    let before = seen(psyncd);
    psyncd.process().signal("HUP");
    wait_until("the configuration was read", || when(seen(psyncd) > before, || psyncd.log()));
    assert_eq!(psyncd.metrics().one("psyncd_config_last_reload_successful", &[]), result, "{}", psyncd.log());
}

#[test]
fn a_password_is_rotated_without_cutting_a_link_and_serves_the_next() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    master.cmd(&["CONFIG", "SET", "requirepass", "old"]);
    let files = Files::new(&master, "old");
    let mut psyncd = Psyncd::configured(&files.conf());
    psyncd.wait_for_link();
    let replica = Node::with(server("redis-7.0.15"), &["--masterauth", "old"]);
    replica.replicate(psyncd.port);
    replica.wait_for_link();
    let (before, cuts) = (master.syncs(), "psyncd_upstream_disconnects_total");

    master.cmd(&["CONFIG", "SET", "requirepass", "new"]);
    files.write_password("new");
    reloaded(&mut psyncd, 1.0);
    assert!(psyncd.log().contains("changed=masterauth"), "{}", psyncd.log());
    assert_eq!(psyncd.metrics().sum(cuts, &[]), 0.0);
    assert_eq!(replica.full_resyncs(), 1);

    // The old password would not do for this one.
    master.cmd(&["CLIENT", "KILL", "TYPE", "replica"]);
    wait_until("the link was lost", || when(psyncd.metrics().sum(cuts, &[]) >= 1.0, || psyncd.log()));
    psyncd.wait_for_link();
    assert_eq!((master.syncs().full, master.syncs().partial), (before.full, before.partial + 1));
    assert_equal_data(&master, [&replica]);
    assert!(!psyncd.log().contains("WRONGPASS"), "{}", psyncd.log());
    assert_eq!(replica.full_resyncs(), 1);
}

#[test]
fn a_reload_changes_the_level_of_the_log_and_names_what_needs_a_restart() {
    let master = Node::start(server("valkey-9.1.2"));
    master.cmd(&["CONFIG", "SET", "requirepass", "old"]);
    let files = Files::new(&master, "old");
    let mut psyncd = Psyncd::configured(&files.conf());
    psyncd.wait_for_link();
    let config = |psyncd: &Psyncd, name: &str| {
        let document: serde_json::Value = serde_json::from_str(&psyncd.get("/api/v1/config").1).unwrap();
        let settings = document["settings"].as_array().unwrap();
        let setting = settings.iter().find(|setting| setting["name"] == name).unwrap();
        setting["value"].as_str().unwrap().to_owned()
    };
    let depth = config(&psyncd, "history-depth");
    assert!(!psyncd.log().contains("level=debug"));

    files.write(&master, "loglevel = \"debug\"\nhistory-depth = 9");
    reloaded(&mut psyncd, 1.0);
    let said = psyncd.log();
    assert!(said.contains("changed=loglevel") && said.contains("needs_restart=history-depth"), "{said}");
    assert_eq!((config(&psyncd, "loglevel").as_str(), config(&psyncd, "history-depth")), ("debug", depth));
    master.cmd(&["CLIENT", "KILL", "TYPE", "replica"]);
    wait_until("more is said", || when(psyncd.log().contains("level=debug"), || psyncd.log()));

    files.write(&master, "loglevel = \"loud\"");
    reloaded(&mut psyncd, 0.0);
    assert!(psyncd.log().contains("the old one stays in force"), "{}", psyncd.log());
    let when = |which: &str| psyncd.metrics().one(&format!("psyncd_config_last_reload_{which}timestamp_seconds"), &[]);
    assert!(when("success_") < when(""), "what is in force is older than what was read");
    assert_eq!(config(&psyncd, "loglevel"), "debug");
    psyncd.wait_for_link();

    files.write(&master, "");
    reloaded(&mut psyncd, 1.0);
    assert_eq!(config(&psyncd, "loglevel"), "notice");
}

#[test]
fn a_reload_moves_to_another_upstream_and_back_to_equal_data() {
    let (old, new) = (Node::start(server("redis-7.0.15")), Node::start(server("redis-7.0.15")));
    fill(&old);
    old.cmd(&["CONFIG", "SET", "requirepass", "one"]);
    new.cmd(&["CONFIG", "SET", "requirepass", "one", "masterauth", "one"]);
    let files = Files::new(&old, "one");
    let mut psyncd = Psyncd::configured(&files.conf());
    psyncd.wait_for_link();
    let replica = Node::with(server("redis-7.0.15"), &["--masterauth", "one"]);
    replica.replicate(psyncd.port);
    replica.wait_for_link();
    new.replicate(old.port);
    new.wait_for_link();
    wait_until("the new one has it all", || when(new.digest() == old.digest(), || new.digest()));
    new.cmd(&["REPLICAOF", "NO", "ONE"]);

    files.write(&new, "");
    reloaded(&mut psyncd, 1.0);
    wait_until("the new one is followed", || {
        let upstream = psyncd.status()["upstream"]["address"].to_string();
        when(upstream.contains(&new.port.to_string()), || psyncd.log())
    });
    psyncd.wait_for_link();
    new.cmd(&["SET", "after", "the move"]);
    assert_equal_data(&new, [&replica]);
    assert_eq!((replica.full_resyncs(), new.syncs().full), (1, 0), "{}", psyncd.log());
}

#[test]
fn who_may_come_is_changed_by_a_reload_and_who_is_there_stays() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    master.cmd(&["CONFIG", "SET", "requirepass", "the master's"]);
    let files = Files::new(&master, "the master's");
    let password = files.0.path().join("requirepass");
    std::fs::write(&password, "old").unwrap();
    files.write(&master, &format!("replica-auth = \"static\"\nrequirepass-file = \"{}\"", password.display()));
    let mut psyncd = Psyncd::configured(&files.conf());
    psyncd.wait_for_link();
    let there = Node::with(server("redis-7.0.15"), &["--masterauth", "old"]);
    there.replicate(psyncd.port);
    there.wait_for_link();

    std::fs::write(&password, "new").unwrap();
    reloaded(&mut psyncd, 1.0);
    assert!(psyncd.log().contains("changed=requirepass"), "{}", psyncd.log());
    let (old, new) = (
        Node::with(server("redis-7.0.15"), &["--masterauth", "old"]),
        Node::with(server("redis-7.0.15"), &["--masterauth", "new"]),
    );
    old.replicate(psyncd.port);
    wait_until("the old password is refused", || when(old.log().contains("Unable to AUTH"), || old.log()));
    new.replicate(psyncd.port);
    new.wait_for_link();
    assert_equal_data(&master, [&there, &new]);
    assert_eq!((there.full_resyncs(), there.partial_resyncs()), (1, 0), "it was cut: {}", there.log());
    assert_eq!(old.full_resyncs(), 0);
}

/// Bytes of values written to `node`, in one go.
fn write(node: &Node, bytes: usize) {
    let value = "v".repeat(64 << 10);
    for n in 0..bytes / value.len() {
        node.cmd(&["SET", &format!("bulk:{}", n % 16), &value]);
    }
}

#[test]
fn limits_and_sizes_hold_from_the_reload_on_and_nobody_is_cut() {
    let master = Node::start(server("redis-7.0.15"));
    master.cmd(&["CONFIG", "SET", "requirepass", "p"]);
    let files = Files::new(&master, "p");
    let dir = files.0.path().join("dir");
    let with = |more: &str| format!("dir = \"{}\"\nsegment-size = \"1mb\"\n{more}", dir.display());
    files.write(&master, &with("max-replicas = 1\nrepl-backlog-size = \"1mb\"\nbacklog-disk-size = \"2mb\""));
    let mut psyncd = Psyncd::configured(&files.conf());
    psyncd.wait_for_link();
    let node = || Node::with(server("redis-7.0.15"), &["--masterauth", "p"]);
    let (first, second) = (node(), node());
    first.replicate(psyncd.port);
    first.wait_for_link();
    second.replicate(psyncd.port);
    let rejected = || psyncd.metrics().one("psyncd_replica_rejects_total", &[("reason", "limit")]);
    wait_until("one is too many", || when(rejected() >= 1.0, || psyncd.log()));
    let held = |psyncd: &Psyncd, tier: &str| psyncd.metrics().one("psyncd_backlog_used_bytes", &[("tier", tier)]);
    let mib = f64::from(1 << 20);
    write(&master, 6 << 20);
    // What is too much is dropped for what comes.
    let is_small = |psyncd: &Psyncd| {
        master.cmd(&["SET", "one", "more"]);
        let disk = held(psyncd, "disk");
        held(psyncd, "memory") <= 1.1 * mib && disk > mib && disk < 4.0 * mib
    };
    wait_until("memory and disk hold what they may", || when(is_small(&psyncd), || psyncd.status().to_string()));

    files.write(
        &master,
        &with("max-replicas = 2\nrepl-backlog-size = \"8mb\"\nbacklog-disk-size = \"16mb\"\nhold-timeout = \"5s\""),
    );
    reloaded(&mut psyncd, 1.0);
    let said = psyncd.log();
    let applied = "changed=repl-backlog-size,backlog-disk-size,hold-timeout,max-replicas";
    assert!(said.contains(applied) && said.contains("needs_restart=\"\""), "{said}");
    second.wait_for_link();
    let limit = |tier| psyncd.metrics().one("psyncd_backlog_limit_bytes", &[("tier", tier)]);
    assert_eq!((limit("memory"), limit("disk")), (8.0 * mib, 16.0 * mib));
    write(&master, 12 << 20);
    wait_until("memory and disk hold more", || {
        when(held(&psyncd, "memory") > 6.0 * mib && held(&psyncd, "disk") > 10.0 * mib, || psyncd.log())
    });
    assert_equal_data(&master, [&first, &second]);

    files.write(&master, &with("max-replicas = 1\nrepl-backlog-size = \"1mb\"\nbacklog-disk-size = \"2mb\""));
    reloaded(&mut psyncd, 1.0);
    write(&master, 4 << 20);
    wait_until("memory and disk hold less", || when(is_small(&psyncd), || psyncd.status().to_string()));
    assert_equal_data(&master, [&first, &second]);
    assert_eq!((first.full_resyncs(), second.full_resyncs()), (1, 1), "nobody was cut");
    assert_eq!(psyncd.metrics().sum("psyncd_upstream_disconnects_total", &[]), 0.0);
}

#[test]
fn a_reload_is_ordered_by_command_and_by_whoever_shows_the_token() {
    let master = Node::start(server("valkey-9.1.2"));
    let files = Files::new(&master, "unused");
    let dir = files.0.path().join("dir");
    let plain = |more: &str| {
        format!(
            "upstream = \"127.0.0.1:{}\"\nport = 0\nadmin-bind = \"127.0.0.1:0\"\ndir = \"{}\"\n{more}",
            master.port,
            dir.display()
        )
    };
    let write = |more: &str| std::fs::write(files.conf(), plain(more)).unwrap();
    write("");
    let psyncd = Psyncd::configured(&files.conf());
    psyncd.wait_for_link();
    let order = || {
        let command = std::process::Command::new(env!("CARGO_BIN_EXE_psyncd"))
            .args(["reload", "--dir", dir.to_str().unwrap()])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (command.status.code(), text(&command.stdout) + &text(&command.stderr))
    };
    assert_eq!(order(), (Some(0), "the configuration was read again; nothing in force has changed\n".to_owned()));
    assert_eq!(post(psyncd.admin, "/-/reload").0, 403, "without a token nobody may");

    write("hold-timeout = \"7s\"\ntcp-backlog = 99\nadmin-token = \"0123456789abcdef\"\n");
    let (code, said) = order();
    assert_eq!(code, Some(0));
    assert_eq!(said, "in force now: admin-token, hold-timeout; needs a restart: tcp-backlog\n");
    assert_eq!(post(psyncd.admin, "/-/reload").0, 401, "the token counts from now on");

    write("hold-timeout = \"eternal\"\n");
    let (code, said) = order();
    assert!(code == Some(1) && said.contains("stays in force") && said.contains("hold-timeout"), "{code:?} {said}");
    assert_eq!(psyncd.metrics().one("psyncd_config_last_reload_successful", &[]), 0.0);

    write("allow-admin = \"192.0.2.1\"\nadmin-token = \"0123456789abcdef\"\n");
    assert_eq!(order().0, Some(0));
    assert!(psyncd_is_deaf(psyncd.admin), "whoever is not on the list is not heard any more");
    write("");
    assert_eq!(order().0, Some(0));
    assert_eq!(post(psyncd.admin, "/-/reload").0, 403);
}

/// Whether the admin port closes a connection without a word.
fn psyncd_is_deaf(port: u16) -> bool {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    said.is_empty()
}
