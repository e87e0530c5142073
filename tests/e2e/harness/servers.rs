//! The real servers the tests run: which there are, and where their binaries lie.
//!
//! They are obtained once per checkout by `servers/fetch.py` into `target/servers` (or looked for in `TEST_SERVERS`).
//! A server that cannot be had fails the test that needs it; nothing is ever skipped in silence.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Which servers a test asks for: each tier is fetched when the first test needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Redis 5.0 to 8.6 and Valkey 8.1 to 9.1, as packaged binaries.
    Core,
    /// Redis 2.8 and 3.2, compiled here.
    Old,
}

/// One installed server binary.
#[derive(Debug)]
pub struct Server {
    /// Its name in the catalogue: family, a dash, version.
    pub name: String,
    /// The version it says it is.
    pub version: String,
    /// The RDB version it writes, which is also the highest of its own family that it reads.
    pub rdb: u32,
    path: PathBuf,
}

impl Server {
    /// The server binary.
    pub fn binary(&self) -> &Path {
        &self.path
    }

    /// A tool that came with the server.
    pub fn tool(&self, name: &str) -> PathBuf {
        let tool = self.path.with_file_name(name);
        assert!(tool.exists(), "{} has no {name}", self.name);
        tool
    }

    pub fn is_valkey(&self) -> bool {
        self.name.starts_with("valkey")
    }

    /// Whether it has what Redis has since that version. Valkey forked from 7.2.4 and only grew.
    pub fn has_redis(&self, major: u32, minor: u32) -> bool {
        if self.is_valkey() {
            return (major, minor) <= (7, 2);
        }
        let mut parts = self.version.split('.').map(|part| part.parse::<u32>().expect("a version is numbers"));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
    }

    /// The RDB version psyncd gets from it: Valkey 9.1 writes the old form for a replica that calls itself older.
    pub fn rdb_for_psyncd(&self) -> u32 {
        if self.is_valkey() && self.version.starts_with("9.") && !self.version.starts_with("9.0") {
            11
        } else {
            self.rdb
        }
    }

    /// Whether it can load an RDB of that version. The two families part after 11: Redis went on to 12, Valkey to 80.
    pub fn loads(&self, rdb: u32) -> bool {
        match (self.is_valkey(), self.rdb) {
            (true, 80) => rdb <= 11 || rdb == 80,
            (true, _) => rdb <= 11,
            (false, own) => rdb <= own,
        }
    }
}

/// The server of that name; fetches its tier if it is not there yet.
pub fn server(name: &str) -> &'static Server {
    let tier = if name.starts_with("redis-2.") || name.starts_with("redis-3.") { Tier::Old } else { Tier::Core };
    tier_of(tier).get(name).unwrap_or_else(|| panic!("{name} is not in tests/e2e/servers/catalog.json"))
}

/// Every server of a tier, in the catalogue's order of names.
pub fn all(tier: Tier) -> Vec<&'static Server> {
    tier_of(tier).values().collect()
}

fn tier_of(tier: Tier) -> &'static BTreeMap<String, Server> {
    static CORE: OnceLock<BTreeMap<String, Server>> = OnceLock::new();
    static OLD: OnceLock<BTreeMap<String, Server>> = OnceLock::new();
    match tier {
        Tier::Core => CORE.get_or_init(|| fetch("core")),
        Tier::Old => OLD.get_or_init(|| fetch("old")),
    }
}

fn fetch(tier: &str) -> BTreeMap<String, Server> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/servers/fetch.py");
    let mut fetch = Command::new("python3");
    fetch.arg(&script).args(["--tier", tier]);
    match std::env::var_os("TEST_SERVERS") {
        Some(ready) => fetch.arg("--check").arg(ready),
        None => fetch.arg(target_directory().join("servers")),
    };
    // Standard error goes straight to the terminal: the first fetch takes a while and should be seen to work.
    let output = fetch.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.unwrap_or_else(|why| panic!("{} did not start, python3 is needed: {why}", script.display()));
    assert!(
        output.status.success(),
        "not all real servers of tier {tier} could be had (see above); these tests are worth nothing without them"
    );
    let listed = String::from_utf8(output.stdout).expect("fetch.py prints text");
    listed.lines().map(parse).map(|server| (server.name.clone(), server)).collect()
}

fn parse(line: &str) -> Server {
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().unwrap_or_else(|| panic!("fetch.py printed {line:?}"));
    Server {
        name: word().to_owned(),
        version: word().to_owned(),
        rdb: word().parse().expect("an RDB version"),
        path: PathBuf::from(word()),
    }
}

/// Cargo's target directory, wherever this build put it.
pub fn target_directory() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_psyncd"));
    binary.ancestors().nth(2).expect("a binary lies in target/profile").to_owned()
}
