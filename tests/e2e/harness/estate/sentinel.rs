//! A real Sentinel, from `deploy/sentinel/sentinel.conf`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::deployed::deployed;
use crate::harness::process::{Process, free_port, tail};
use crate::harness::resp::{Conn, Value};
use crate::harness::servers::Server;
use crate::harness::wait::{wait_until, when};

/// The name the group goes by in the file.
const GROUP: &str = "mymaster";

/// A running Sentinel.
#[derive(Debug)]
pub struct Sentinel {
    process: Process,
    conf: PathBuf,
    port: u16,
    _dir: TempDir,
}

impl Sentinel {
    /// Watches the master that answers on that port of this host.
    #[track_caller]
    pub fn watching(server: &Server, master: u16, down_after: Duration) -> Sentinel {
        let dir = TempDir::with_prefix("psyncd-e2e-").expect("a temporary directory can be made");
        let (conf, port) = (dir.path().join("sentinel.conf"), free_port());
        let text = deployed(
            "sentinel/sentinel.conf",
            &[
                ("port 26379", &format!("port {port}\nbind 127.0.0.1\ndir {}", dir.path().display())),
                ("10.0.0.11 6379", &format!("127.0.0.1 {master}")),
                ("milliseconds mymaster 5000", &format!("milliseconds mymaster {}", down_after.as_millis())),
                ("timeout mymaster 60000", "timeout mymaster 20000"),
            ],
        );
        std::fs::write(&conf, text).expect("the file can be written");
        let process = Process::start(server.binary(), |command| {
            command.arg(&conf).arg("--sentinel");
        });
        let sentinel = Sentinel { process, conf, port, _dir: dir };
        wait_until("the Sentinel answers", || {
            let mut conn = Conn::open(sentinel.port).map_err(|why| why.to_string())?;
            conn.ask(&["PING"]).map(drop).map_err(|why| why.to_string())
        });
        sentinel
    }

    /// One command to it.
    #[track_caller]
    pub fn cmd(&self, args: &[&str]) -> Value {
        Conn::to(self.port).cmd(args)
    }

    /// Tells it to make another node the master now.
    #[track_caller]
    pub fn fail_over(&self) {
        self.cmd(&["SENTINEL", "FAILOVER", GROUP]);
    }

    /// The same, with the hand-over done by the master itself (Valkey 9). The reply.
    #[track_caller]
    pub fn fail_over_coordinated(&self) -> Value {
        let mut conn = Conn::to(self.port);
        conn.ask(&["SENTINEL", "FAILOVER", GROUP, "COORDINATED"]).expect("it answers")
    }

    /// Stopped, it is to the others what one behind a cut cable is; and continued, one that has missed something.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// The port of the node it calls the master.
    #[track_caller]
    pub fn master(&self) -> u16 {
        let address = self.cmd(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", GROUP]).array();
        address[1].text().parse().expect("a port is a number")
    }

    /// Waits until it knows so many replicas and other Sentinels and finds all of them well.
    #[track_caller]
    pub fn wait_for_company(&self, replicas: usize, others: usize) {
        wait_until("the Sentinel knows everybody and finds them well", || {
            let replicas_known = self.listed("SLAVES");
            let others_known = self.listed("SENTINELS");
            let well = |known: &[BTreeMap<String, String>], flags: &str| known.iter().all(|one| one["flags"] == flags);
            let linked = replicas_known.iter().all(|replica| replica["master-link-status"] == "ok");
            let all = replicas_known.len() == replicas && others_known.len() == others;
            when(all && linked && well(&replicas_known, "slave") && well(&others_known, "sentinel"), || {
                let brief = |known: &[BTreeMap<String, String>]| {
                    known.iter().map(|one| format!("{} {}", one["name"], one["flags"])).collect::<Vec<_>>()
                };
                format!("{:?} {:?}", brief(&replicas_known), brief(&others_known))
            })
        });
    }

    /// The addresses of the replicas it knows, as `host:port`.
    #[track_caller]
    pub fn replicas(&self) -> Vec<String> {
        let mut names: Vec<_> = self.listed("SLAVES").into_iter().map(|mut one| one.remove("name")).collect();
        names.sort();
        names.into_iter().flatten().collect()
    }

    #[track_caller]
    fn listed(&self, what: &str) -> Vec<BTreeMap<String, String>> {
        let fields = |one: Value| {
            let words: Vec<String> = one.array().iter().map(Value::text).collect();
            words.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
        };
        self.cmd(&["SENTINEL", what, GROUP]).array().into_iter().map(fields).collect()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.process.said()
    }

    /// What it keeps for its next life.
    pub fn conf(&self) -> String {
        std::fs::read_to_string(&self.conf).expect("a Sentinel keeps its file")
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the Sentinel on port {}, its log ends:\n{}", self.port, tail(&self.log(), 30));
        }
    }
}
