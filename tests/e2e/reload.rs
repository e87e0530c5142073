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
    let senders = config(&psyncd, "max-senders");
    assert!(!psyncd.log().contains("level=debug"));

    files.write(&master, "loglevel = \"debug\"\nmax-senders = 9");
    reloaded(&mut psyncd, 1.0);
    let said = psyncd.log();
    assert!(said.contains("changed=loglevel") && said.contains("needs_restart=max-senders"), "{said}");
    assert_eq!((config(&psyncd, "loglevel").as_str(), config(&psyncd, "max-senders")), ("debug", senders));
    master.cmd(&["CLIENT", "KILL", "TYPE", "replica"]);
    wait_until("more is said", || when(psyncd.log().contains("level=debug"), || psyncd.log()));

    files.write(&master, "loglevel = \"loud\"");
    reloaded(&mut psyncd, 0.0);
    assert!(psyncd.log().contains("the old one stays in force"), "{}", psyncd.log());
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
