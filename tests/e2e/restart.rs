//! psyncd itself may die at any instant, and nobody resyncs.
//!
//! Controls: `without_psyncd_a_chained_replica_that_is_killed_resyncs_and_its_replicas_with_it` here, and
//! `without_psyncd_a_small_backlog_makes_an_absence_a_full_resync`.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::harness::*;

/// psyncd with a memory and an address that outlive it.
struct Place {
    dir: TempDir,
    port: String,
    upstream: String,
    options: Vec<&'static str>,
}

impl Place {
    fn before(master: &Node, options: &[&'static str]) -> Place {
        Place {
            dir: TempDir::with_prefix("psyncd-e2e-").unwrap(),
            port: free_port().to_string(),
            upstream: master.address(),
            options: options.to_vec(),
        }
    }

    fn port(&self) -> u16 {
        self.port.parse().unwrap()
    }

    fn options(&self) -> Vec<&str> {
        let mut options = vec!["--dir", self.dir.path().to_str().unwrap(), "--port", &self.port];
        options.extend(&self.options);
        options
    }

    fn start(&self) -> Psyncd {
        Psyncd::toward(&self.upstream, &self.options())
    }

    fn newest_segment(&self) -> PathBuf {
        let segments = |path: &Path| path.extension().is_some_and(|ending| ending == "seg");
        let files = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| segments(path)).max().expect("there is a journal")
    }
}

fn averted(psyncd: &Psyncd, mechanism: &str) -> f64 {
    psyncd.metrics().one("psyncd_full_resyncs_averted_total", &[("mechanism", mechanism)])
}

fn killed_under_load(name: &str, followers: &[&str]) {
    let master = Node::start(server(name));
    fill(&master);
    let place = Place::before(&master, &[]);
    let mut psyncd = place.start();
    psyncd.wait_for_link();
    let replicas = Node::start_all(followers.iter().map(|name| server(name)));
    replicas.iter().for_each(|replica| replica.replicate(place.port()));
    replicas.iter().for_each(Node::wait_for_link);
    let before = master.syncs();
    let load = Load::on(&master);
    for _ in 0..3 {
        load.go_on_for(20);
        psyncd.process().kill();
        psyncd = place.start();
        psyncd.wait_for_link();
        psyncd.wait_for_replicas(replicas.len());
        let resyncs = psyncd.resyncs();
        assert_eq!(resyncs, Resyncs { partial: replicas.len() as i64, full: 0 }, "{}", psyncd.log());
    }
    load.stop();
    assert_equal_data(&master, &replicas);
    for replica in &replicas {
        assert_eq!(replica.full_resyncs(), 1, "{} by its own log", replica.server.name);
    }
    let after = master.syncs();
    assert_eq!((after.full, after.forks), (before.full, before.forks), "the master served no data set");
}

#[test]
fn killed_under_load_it_comes_back_and_every_replica_continues_redis() {
    killed_under_load("redis-7.0.15", &["redis-7.0.15", "redis-7.4.1", "valkey-8.1.1"]);
}

#[test]
fn killed_under_load_it_comes_back_and_every_replica_continues_old_redis() {
    killed_under_load("redis-5.0.6", &["redis-5.0.6", "redis-6.2.14"]);
}

#[test]
fn killed_under_load_it_comes_back_and_every_replica_continues_valkey() {
    killed_under_load("valkey-9.1.2", &["valkey-9.1.2", "valkey-9.0.0"]);
}

#[test]
fn without_psyncd_a_chained_replica_that_is_killed_resyncs_and_its_replicas_with_it() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let mut middle = Node::start(master.server);
    middle.replicate(master.port);
    middle.wait_for_link();
    let replica = Node::start(master.server);
    replica.replicate(middle.port);
    replica.wait_for_link();
    let before = master.syncs();
    middle.kill();
    write_megabytes(&master, 1);
    middle.restart();
    middle.replicate(master.port);
    middle.wait_for_link();
    wait_until("the replica behind it is back", || {
        let full = replica.full_resyncs();
        when(full == 2, || format!("{full} full resyncs by its own log"))
    });
    assert_eq!(master.syncs().full, before.full + 1);
}

#[test]
fn with_the_master_dead_it_starts_and_serves_what_it_holds_and_takes_nothing_from_the_others() {
    let mut master = Node::with(server("redis-7.2.4"), &["--repl-ping-replica-period", "3600"]);
    fill(&master);
    let place = Place::before(&master, &[]);
    let mut psyncd = place.start();
    psyncd.wait_for_link();
    let replicas = Node::start_all([master.server; 3]);
    replicas.iter().for_each(|replica| replica.replicate(place.port()));
    assert_equal_data(&master, &replicas);
    let network = Forwarder::to(place.port());
    replicas[0].replicate(network.port);
    replicas[0].wait_for_link();
    network.sever();
    write_megabytes(&master, 3);
    let (head, digest) = (master.offset(), master.digest());
    wait_until("the others have it all", || {
        when(replicas[1..].iter().all(|replica| replica.offset() == head), || format!("head is {head}"))
    });
    // One with a history of its own, which only the master could tell psyncd about, and one with none.
    let [stranger, fresh, follower] = [(); 3].map(|()| Node::start(master.server));
    follower.replicate(stranger.port);
    follower.wait_for_link();
    stranger.cmd(&["SET", "mine", "kept"]);
    wait_until("the snapshot is kept", || when(psyncd.log().contains("snapshot kept"), || psyncd.log()));
    psyncd.process().kill();
    master.kill();

    let psyncd = place.start();
    network.restore();
    stranger.replicate(place.port());
    wait_until("the one that missed three megabytes continues from the journal", || {
        when(replicas[0].offset() == head, || format!("{} of {head}", replicas[0].offset()))
    });
    psyncd.wait_for_replicas(3);
    assert_eq!(psyncd.resyncs(), Resyncs { partial: 3, full: 0 });
    assert_eq!(averted(&psyncd, "restart") + averted(&psyncd, "long_backlog"), 3.0);
    for replica in &replicas {
        assert_eq!((replica.digest(), replica.full_resyncs()), (digest.clone(), 1));
    }
    holds_for(std::time::Duration::from_secs(2), "the stranger keeps what it has", || {
        let size = stranger.cmd(&["DBSIZE"]).int();
        when(size == 1, || format!("{size} keys"))
    });
    fresh.replicate(place.port());
    wait_until("whoever has nothing to lose gets the snapshot that survived, and the journal behind it", || {
        when(fresh.offset() == head, || fresh.log())
    });
    assert_eq!(fresh.digest(), digest);
}

#[test]
fn a_replica_that_is_ahead_of_what_survived_is_held_and_then_continues() {
    let master = Node::with(server("valkey-8.1.1"), &["--repl-ping-replica-period", "3600"]);
    fill(&master);
    let road = Forwarder::to(master.port);
    let place = Place { upstream: road.address(), ..Place::before(&master, &[]) };
    let mut psyncd = place.start();
    psyncd.wait_for_link();
    let replica = Node::start(master.server);
    replica.replicate(place.port());
    assert_equal_data(&master, [&replica]);
    write_megabytes(&master, 2);
    assert_equal_data(&master, [&replica]);
    let before = master.syncs();
    road.sever();
    psyncd.process().kill();
    // As a crash of the machine leaves it: the last of what was written never reached the disk.
    let segment = place.newest_segment();
    let file = std::fs::OpenOptions::new().write(true).open(&segment).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length - 500_000).unwrap();

    let psyncd = place.start();
    wait_until("the replica is held", || {
        let log = psyncd.log();
        when(log.contains("replica held") && log.contains("offset_ahead"), || log.clone())
    });
    assert_eq!(psyncd.resyncs(), Resyncs { partial: 0, full: 0 });
    road.restore();
    psyncd.wait_for_replicas(1);
    assert_eq!(psyncd.resyncs(), Resyncs { partial: 1, full: 0 });
    master.cmd(&["SET", "after", "all"]);
    assert_equal_data(&master, [&replica]);
    assert_eq!(master.syncs().full, before.full);
    assert_eq!(replica.full_resyncs(), 1);
}

#[test]
fn a_replica_far_behind_reads_from_the_disk_and_holds_nobody_up() {
    let master = Node::with(server("redis-7.2.4"), &["--repl-backlog-size", "64kb"]);
    fill(&master);
    let place = Place::before(&master, &["--repl-backlog-size", "1mb", "--segment-size", "2mb"]);
    let mut psyncd = place.start();
    psyncd.wait_for_link();
    let replicas = Node::start_all([master.server; 2]);
    let network = Forwarder::to(place.port());
    replicas[0].replicate(network.port);
    replicas[1].replicate(place.port());
    assert_equal_data(&master, &replicas);
    let before = master.syncs();
    network.sever();
    for _ in 0..20 {
        write_megabytes(&master, 2);
        let head = master.offset();
        wait_until("the other replica keeps up", || {
            when(replicas[1].offset() >= head, || format!("{} of {head}", replicas[1].offset()))
        });
    }
    network.restore();
    write_megabytes(&master, 2);
    assert_equal_data(&master, &replicas);
    assert_eq!(master.syncs().full, before.full);
    assert_eq!((replicas[0].full_resyncs(), replicas[1].full_resyncs()), (1, 1));
    assert_eq!(averted(&psyncd, "long_backlog"), 1.0);
    let resident = psyncd.process().resident_bytes() >> 20;
    assert!(resident < 64, "psyncd holds {resident} MB with a backlog of one");
}

#[test]
fn a_journal_of_another_upstream_is_refused_and_left_as_it_is() {
    let master = Node::start(server("redis-7.2.4"));
    fill(&master);
    let place = Place::before(&master, &[]);
    let mut psyncd = place.start();
    psyncd.wait_for_link();
    wait_until("something is written", || {
        let at = psyncd.metrics().one("psyncd_backlog_used_bytes", &[("tier", "disk")]);
        when(at > 0.0, || format!("{at} bytes"))
    });
    psyncd.process().signal("TERM");
    psyncd.process().wait_for_end(SOON);
    let kept = std::fs::read(place.newest_segment()).unwrap();

    let other = Node::start(master.server);
    let mut refused = Psyncd::spawn(&other.address(), &place.options());
    assert_eq!(refused.wait_for_end(SOON).code(), Some(78), "{}", refused.said());
    let said = refused.said();
    for word in [&master.address(), &other.address(), "adopt-journal"] {
        assert!(said.contains(word), "{word} is missing: {said}");
    }
    assert_eq!(std::fs::read(place.newest_segment()).unwrap(), kept);

    let mut options = place.options();
    options.extend(["--adopt-journal", "yes"]);
    let moved = Forwarder::to(master.port);
    let adopted = Psyncd::toward(&moved.address(), &options);
    adopted.wait_for_link();
    assert_eq!(adopted.metrics().one("psyncd_upstream_resyncs_total", &[("reason", "same_id")]), 1.0);
}

#[test]
fn a_journal_of_an_unknown_format_is_refused_and_left_as_it_is() {
    let master = Node::start(server("redis-7.2.4"));
    let place = Place::before(&master, &[]);
    let mut psyncd = place.start();
    psyncd.wait_for_link();
    psyncd.process().signal("TERM");
    psyncd.process().wait_for_end(SOON);
    let segment = place.newest_segment();
    let mut bytes = std::fs::read(&segment).unwrap();
    // The version is in the last byte of the magic.
    bytes[7] ^= 0x7f;
    std::fs::write(&segment, &bytes).unwrap();
    let mut refused = Psyncd::spawn(&place.upstream, &place.options());
    assert_eq!(refused.wait_for_end(SOON).code(), Some(78), "{}", refused.said());
    assert!(refused.said().contains(segment.file_name().unwrap().to_str().unwrap()), "{}", refused.said());
    assert_eq!(std::fs::read(&segment).unwrap(), bytes);
}

/// `deploy/single`: the master is shut down and started again, psyncd is killed, and a replica is away meanwhile.
fn the_files_for_a_single_master_keep_what_they_promise(name: &str) {
    let (private, public, admin) = (free_port(), free_port(), free_port());
    let conf = deployed("single/redis.conf", &[("port 6380", &format!("port {private}"))]);
    let mut master = Node::configured(server(name), private, &conf, &[]);
    fill(&master);
    let dir = TempDir::with_prefix("psyncd-e2e-").expect("a temporary directory can be made");
    let text = deployed(
        "single/psyncd.toml",
        &[
            ("127.0.0.1:6380", &master.address()),
            ("0.0.0.0", "127.0.0.1"),
            ("\nport = 6379", &format!("\nport = {public}")),
            ("127.0.0.1:9379", &format!("127.0.0.1:{admin}")),
            ("/var/lib/psyncd", dir.path().join("psyncd").to_str().expect("a temporary path is text")),
        ],
    );
    let path = dir.path().join("psyncd.toml");
    std::fs::write(&path, text).expect("the file can be written");
    let mut psyncd = Psyncd::configured(&path);
    psyncd.wait_for_link();
    let replicas = [(); 2].map(|()| {
        let port = free_port();
        let replicaof = format!("replicaof 127.0.0.1 {public}");
        let replacements = [("port 6379", format!("port {port}")), ("replicaof 10.0.0.11 6379", replicaof)];
        let conf = deployed("single/replica.conf", &replacements.each_ref().map(|(from, to)| (*from, to.as_str())));
        Node::configured(master.server, port, &conf, &[])
    });
    assert_equal_data(&master, &replicas);
    let _ = master.ask(&["SHUTDOWN", "SAVE"]);
    master.process().wait_for_end(SOON);
    psyncd.process().kill();
    let psyncd = Psyncd::configured(&path);
    master.restart();
    psyncd.wait_for_link();
    master.cmd(&["SET", "back", "again"]);
    assert_equal_data(&master, &replicas);
    assert!(replicas.iter().all(|replica| replica.full_resyncs() == 1), "only when they came");
    assert_eq!((master.syncs().full, psyncd.resyncs().full), (0, 0));
}

#[test]
fn the_files_for_a_single_redis_master_keep_what_they_promise() {
    the_files_for_a_single_master_keep_what_they_promise("redis-7.0.15");
}

#[test]
fn the_files_for_a_single_valkey_master_keep_what_they_promise() {
    the_files_for_a_single_master_keep_what_they_promise("valkey-8.1.1");
}
