//! The wipe guard: a master that comes back without its data does not take its replicas' data with it.
//!
//! The harm is suffered first by plain servers, then by nobody.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::*;

const KEYS: i64 = 5000;
const NO_PINGS: [&str; 2] = ["--repl-ping-replica-period", "3600"];

/// A master with [`KEYS`] keys and nothing on disk.
#[track_caller]
fn rich_master(name: &str, options: &[&str]) -> Node {
    let master = Node::with(server(name), options);
    add_keys(&master);
    master
}

#[track_caller]
fn add_keys(master: &Node) {
    let script = "for n = 1, tonumber(ARGV[1]) do redis.call('SET', 'key:' .. n, n) end";
    master.cmd(&["EVAL", script, "0", &KEYS.to_string()]);
    assert_eq!(master.cmd(&["DBSIZE"]).int(), KEYS);
}

/// A psyncd with a directory, and the command that talks to it.
struct Site {
    dir: TempDir,
    psyncd: Psyncd,
}

impl Site {
    #[track_caller]
    fn before(master: &Node, options: &[&str]) -> Site {
        let dir = TempDir::with_prefix("psyncd-e2e-").expect("a temporary directory can be made");
        let psyncd = start(master, &dir, options);
        psyncd.wait_for_link();
        Site { dir, psyncd }
    }

    /// The same directory, another process; what is attached finds it under the same port.
    #[track_caller]
    fn restart(&mut self, master: &Node, options: &[&str]) {
        let port = self.psyncd.port.to_string();
        self.psyncd.process().kill();
        self.psyncd = start(master, &self.dir, &[options, &["--port", &port]].concat());
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("psyncd.sock")
    }

    /// `psyncd guard WORD`: exit code, and all it said.
    fn guard(&self, word: &str) -> (i32, String) {
        guard(&self.socket(), word)
    }

    #[track_caller]
    fn wait_for_hold(&self) {
        wait_until("the guard holds the master", || {
            let metrics = self.psyncd.metrics();
            let active = metrics.one("psyncd_wipe_guard_active", &[]);
            let held = metrics.one("psyncd_upstream_link_state", &[("state", "held")]);
            when((active, held) == (1.0, 1.0), || format!("active {active}, held {held}"))
        });
    }

    /// Waits until psyncd has counted the keys and has them on disk.
    #[track_caller]
    fn wait_for_count(&self) {
        wait_until("psyncd knows what there is to lose", || {
            let text = std::fs::read_to_string(self.dir.path().join("psyncd.state")).map_err(|why| why.to_string())?;
            when(text.contains(&format!("\"keys\": {KEYS}")), || text.clone())
        });
    }

    #[track_caller]
    fn outcome(&self, word: &str) -> f64 {
        self.psyncd.metrics().one("psyncd_wipe_guard_outcomes_total", &[("outcome", word)])
    }
}

#[track_caller]
fn start(master: &Node, dir: &TempDir, options: &[&str]) -> Psyncd {
    let dir = dir.path().to_str().expect("temporary paths are UTF-8");
    Psyncd::toward(&master.address(), &[&["--dir", dir, "--guard-interval", "1s"], options].concat())
}

fn guard(socket: &Path, word: &str) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_psyncd")).args(["guard", word, "--socket"]).arg(socket).output();
    let output = output.expect("psyncd can be run");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().expect("it exits"), String::from_utf8(said).expect("psyncd writes UTF-8"))
}

#[track_caller]
fn two_replicas(master: &Node, port: u16) -> Vec<Node> {
    let replicas = Node::start_all([master.server; 2]);
    replicas.iter().for_each(|replica| replica.replicate(port));
    assert_equal_data(master, &replicas);
    replicas
}

/// Waits until each has so many keys. Offsets alone would not do: both histories may stand at the same one.
#[track_caller]
fn have(replicas: &[Node], keys: i64) {
    wait_until(&format!("the replicas have {keys} keys"), || {
        let sizes: Vec<_> = replicas.iter().map(|replica| replica.cmd(&["DBSIZE"]).int()).collect();
        when(sizes == [keys; 2], || format!("{sizes:?} keys"))
    });
}

#[track_caller]
fn keep_their_data(replicas: &[Node], digest: &str, time: Duration) {
    holds_for(time, "the replicas keep their data", || {
        let sizes: Vec<_> = replicas.iter().map(|replica| replica.cmd(&["DBSIZE"]).int()).collect();
        when(sizes == [KEYS; 2], || format!("{sizes:?} keys"))
    });
    replicas.iter().for_each(|replica| assert_eq!(replica.digest(), digest));
}

#[test]
fn without_psyncd_a_master_that_comes_back_empty_takes_every_replica_with_it() {
    for name in ["redis-7.0.15", "valkey-8.1.1"] {
        let mut master = rich_master(name, &[]);
        let replicas = two_replicas(&master, master.port);
        master.kill();
        master.restart();
        have(&replicas, 0);
    }
}

#[track_caller]
fn a_wiped_master_is_held_and_released(name: &str) {
    let mut master = rich_master(name, &[]);
    let site = Site::before(&master, &[]);
    let replicas = two_replicas(&master, site.psyncd.port);
    site.wait_for_count();
    let digest = master.digest();
    master.kill();
    site.psyncd.wait_for_lost_link();
    master.restart();
    let before = master.syncs();
    site.wait_for_hold();
    keep_their_data(&replicas, &digest, Duration::from_secs(5));
    assert_eq!(master.syncs(), before, "it was asked for nothing, not even for a fork");
    let held = site.psyncd.status()["guard"]["held"].clone();
    assert_eq!((&held["before"], &held["now"]), (&KEYS.into(), &0.into()), "{held}");
    let log = site.psyncd.log();
    let line = log.lines().find(|line| line.contains("wipe guard holds")).expect("it is said");
    assert!(line.contains("psyncd guard release --socket") && line.contains("level=error"), "{line}");
    assert_eq!(log.matches("wipe guard holds").count(), 1, "and said once");
    // A replica whose link flaps meanwhile goes on where it was.
    site.psyncd.wait_for_replicas(2);
    replicas[0].cmd(&["CLIENT", "KILL", "TYPE", "master"]);
    wait_until("it continues", || {
        let now = site.psyncd.resyncs();
        when(now.partial == 1, || format!("{now:?}"))
    });
    // What changes something is not done over TCP.
    let (code, said) = post(site.psyncd.admin, "/-/guard/release");
    assert!(code == 403 && said.contains("psyncd guard release"), "{code} {said}");
    let mode = std::fs::metadata(site.socket()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let (code, said) = site.guard("status");
    assert!(code == 0 && said.contains("0 keys, before 5000"), "{code} {said}");

    let (code, said) = site.guard("release");
    assert!(code == 0 && said.contains("released"), "{code} {said}");
    have(&replicas, 0);
    master.cmd(&["SET", "all", "new"]);
    assert_equal_data(&master, &replicas);
    assert_eq!(master.syncs().full - before.full, 1, "one RDB for both");
    assert_eq!((site.outcome("held"), site.outcome("released")), (1.0, 1.0));
    let (code, said) = site.guard("release");
    assert!(code == 1 && said.contains("holds no master"), "{code} {said}");
}

#[test]
fn a_redis_master_that_comes_back_empty_is_held_until_it_is_released() {
    a_wiped_master_is_held_and_released("redis-7.0.15");
}

#[test]
fn a_valkey_master_that_comes_back_empty_is_held_until_it_is_released() {
    a_wiped_master_is_held_and_released("valkey-8.1.1");
}

#[test]
fn a_psyncd_that_was_restarted_in_between_still_knows_what_the_master_had() {
    for word in ["TERM", "KILL"] {
        let mut master = rich_master("redis-7.0.15", &[]);
        let mut site = Site::before(&master, &[]);
        let replicas = two_replicas(&master, site.psyncd.port);
        site.wait_for_count();
        let digest = master.digest();
        site.psyncd.process().signal(word);
        site.psyncd.process().wait_for_end(SOON);
        master.kill();
        master.restart();
        let before = master.syncs();
        site.restart(&master, &[]);
        site.wait_for_hold();
        keep_their_data(&replicas, &digest, Duration::from_secs(5));
        assert_eq!(master.syncs(), before);

        assert_eq!(site.guard("release").0, 0);
        have(&replicas, 0);
        master.cmd(&["SET", "all", "new"]);
        assert_equal_data(&master, &replicas);
        assert_eq!(master.syncs().full - before.full, 1, "one RDB for both");
    }
}

#[test]
fn a_rejected_master_is_held_until_the_data_is_restored() {
    let mut master = rich_master("redis-7.0.15", &NO_PINGS);
    let site = Site::before(&master, &[]);
    let replicas = two_replicas(&master, site.psyncd.port);
    site.wait_for_count();
    let digest = master.digest();
    master.cmd(&["SAVE"]);
    master.hide("dump.rdb");
    master.kill();
    master.restart();
    site.wait_for_hold();
    let (code, said) = site.guard("reject");
    assert!(code == 0 && said.contains("rejected"), "{code} {said}");
    let told = site.psyncd.log().lines().count();
    keep_their_data(&replicas, &digest, Duration::from_secs(5));
    assert!(site.psyncd.log().lines().count() <= told + 3, "{}", site.psyncd.log());
    assert_eq!(site.psyncd.metrics().one("psyncd_wipe_guard_active", &[]), 1.0);

    master.kill();
    master.unhide("dump.rdb");
    master.restart();
    site.psyncd.wait_for_link();
    master.cmd(&["SET", "after", "the restore"]);
    assert_equal_data(&master, &replicas);
    assert_eq!((site.outcome("resumed"), site.outcome("released")), (1.0, 0.0));
    assert_eq!(master.syncs().full, 0, "the file has the history: nobody needed an RDB");
}

#[test]
fn a_master_that_restarts_from_its_file_is_not_held() {
    let mut master = rich_master("redis-7.0.15", &NO_PINGS);
    let site = Site::before(&master, &[]);
    let replicas = two_replicas(&master, site.psyncd.port);
    site.wait_for_count();
    // The drop in keys is in the stream, so the file explains it, however soon after.
    master.cmd(&["FLUSHALL"]);
    master.cmd(&["SET", "all", "new"]);
    assert_equal_data(&master, &replicas);
    master.cmd(&["SAVE"]);
    master.kill();
    site.psyncd.wait_for_lost_link();
    master.restart();
    site.psyncd.wait_for_link();
    assert_equal_data(&master, &replicas);
    assert_eq!((site.outcome("held"), master.syncs().full), (0.0, 0));
}

#[test]
fn a_guard_that_only_warns_says_so_and_lets_the_replicas_follow() {
    let mut master = rich_master("valkey-9.1.2", &[]);
    let site = Site::before(&master, &["--wipe-guard", "warn"]);
    let replicas = two_replicas(&master, site.psyncd.port);
    site.wait_for_count();
    master.kill();
    master.restart();
    have(&replicas, 0);
    master.cmd(&["SET", "all", "new"]);
    assert_equal_data(&master, &replicas);
    assert_eq!((site.outcome("warned"), site.outcome("held")), (1.0, 0.0));
    assert!(site.psyncd.log().contains("master lost its data, and the replicas follow it"), "{}", site.psyncd.log());
}

#[test]
fn a_master_that_denies_info_is_held_by_the_size_of_its_rdb() {
    let denied = ["--user", "default", "on", "nopass", "~*", "&*", "+@all", "-info"];
    let mut master = rich_master("redis-7.0.15", &denied);
    let digest = master.digest();
    let site = Site::before(&master, &[]);
    let replicas = Node::start_all([master.server; 2]);
    replicas.iter().for_each(|replica| replica.replicate(site.psyncd.port));
    have(&replicas, KEYS);
    master.kill();
    site.psyncd.wait_for_lost_link();
    master.restart();
    wait_until("the guard holds the master", || {
        let active = site.psyncd.metrics().one("psyncd_wipe_guard_active", &[]);
        when(active == 1.0, || site.psyncd.log())
    });
    keep_their_data(&replicas, &digest, Duration::from_secs(5));
    assert_eq!(site.psyncd.status()["guard"]["held"]["unit"], "rdb_bytes");
    assert_eq!(site.guard("release").0, 0);
    have(&replicas, 0);
}

#[test]
fn the_socket_of_a_living_psyncd_is_not_taken_from_it() {
    let master = Node::start(server("redis-7.0.15"));
    let site = Site::before(&master, &[]);
    let socket = site.socket();
    let mut second = Psyncd::spawn(&master.address(), &["--socket", socket.to_str().unwrap()]);
    assert_eq!(second.wait_for_end(SOON).code(), Some(75), "{}", second.said());
    assert!(second.said().contains("another process answers there"), "{}", second.said());
    let (code, said) = site.guard("status");
    assert!(code == 0 && said.contains("holds nothing"), "{code} {said}");
}
