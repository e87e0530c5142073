//! Real Sentinels: three of them, watching one master, as people run them.

use std::time::Duration;

use tempfile::TempDir;

use super::deployed::deployed;
use super::node::Node;
use super::process::{Process, free_port, tail};
use super::resp::{Conn, Value};
use super::servers::Server;
use super::wait::{SOON, wait_at_most, when};

/// The name under which they know the master.
pub const NAME: &str = "mymaster";

/// A running Sentinel.
#[derive(Debug)]
pub struct Sentinel {
    pub port: u16,
    dir: TempDir,
    server: &'static Server,
    process: Process,
}

impl Sentinel {
    /// From `deploy/relay/sentinel.conf`: one that watches the master at `port`, needs `quorum` to call it down, and calls it so after three seconds.
    #[track_caller]
    pub fn watching(server: &'static Server, port: u16, quorum: usize) -> Sentinel {
        let dir = TempDir::with_prefix("psyncd-e2e-").expect("a temporary directory can be made");
        let own = free_port();
        let config = deployed(
            "relay/sentinel.conf",
            &[
                ("port 26379", &format!("port {own}\nbind 127.0.0.1\ndir {}", dir.path().display())),
                ("monitor mymaster 10.0.0.11 6379 2", &format!("monitor {NAME} 127.0.0.1 {port} {quorum}")),
                ("milliseconds mymaster 5000", &format!("milliseconds {NAME} 3000")),
                ("timeout mymaster 60000", &format!("timeout {NAME} 20000")),
            ],
        );
        std::fs::write(dir.path().join("sentinel.conf"), config).expect("its file can be written");
        let process = spawn(server, &dir);
        let sentinel = Sentinel { port: own, dir, server, process };
        wait_at_most(SOON, "the Sentinel answers", || sentinel.fields().map(|_| ()));
        sentinel
    }

    /// Three that agree with each other on who they are.
    #[track_caller]
    pub fn three(master: &Node) -> [Sentinel; 3] {
        let all = [(); 3].map(|()| Sentinel::watching(master.server, master.port, 2));
        for sentinel in &all {
            sentinel.wait_for("it knows the two others", |fields| fields("num-other-sentinels") == "2");
        }
        all
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn ask(&self, args: &[&str]) -> Result<Value, String> {
        let mut conn = Conn::open(self.port).map_err(|why| why.to_string())?;
        conn.ask(args).map_err(|why| why.to_string())
    }

    /// The fields of `SENTINEL MASTER`.
    pub fn fields(&self) -> Result<Vec<(String, String)>, String> {
        let reply = self.ask(&["SENTINEL", "MASTER", NAME])?;
        Ok(pairs(reply))
    }

    /// Waits until the fields of its master are as they should be.
    #[track_caller]
    pub fn wait_for(&self, what: &str, is: impl Fn(&dyn Fn(&str) -> String) -> bool) {
        wait_at_most(Duration::from_secs(60), &format!("Sentinel {}: {what}", self.port), || {
            let fields = self.fields()?;
            let get = |name: &str| {
                fields.iter().find(|(key, _)| key == name).map_or_else(String::new, |(_, value)| value.clone())
            };
            when(is(&get), || format!("{fields:?}; log ends\n{}", tail(&self.log(), 10)))
        });
    }

    /// The replicas it shows to clients: their ports and flags.
    #[track_caller]
    pub fn replicas(&self) -> Vec<(u16, String)> {
        let list = self.ask(&["SENTINEL", "REPLICAS", NAME]).expect("it answers").array();
        let each = list.into_iter().map(|replica| {
            let fields = pairs(replica);
            let get = |name: &str| fields.iter().find(|(key, _)| key == name).expect("Sentinel tells it").1.clone();
            (get("port").parse().expect("a port is a number"), get("flags"))
        });
        each.collect()
    }

    /// Its own file, which it keeps writing.
    pub fn file(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("sentinel.conf")).expect("its file is there")
    }

    pub fn log(&self) -> String {
        self.process.said()
    }

    /// Starts it again from the file it wrote, and waits until it ends; what it said.
    #[track_caller]
    pub fn fails_to_start_again(mut self) -> String {
        self.process.kill();
        self.process = spawn(self.server, &self.dir);
        let status = self.process.wait_for_end(SOON);
        assert!(!status.success(), "{status}");
        self.log()
    }
}

/// The port of the master that most of them name.
pub fn agreed_master(sentinels: &[Sentinel]) -> Option<u16> {
    let named: Vec<u16> = sentinels
        .iter()
        .filter_map(|sentinel| {
            let reply = sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]).ok()?;
            reply.array().get(1)?.text().parse().ok()
        })
        .collect();
    named.iter().copied().find(|port| named.iter().filter(|other| *other == port).count() * 2 > sentinels.len())
}

fn pairs(reply: Value) -> Vec<(String, String)> {
    let texts: Vec<String> = match reply {
        Value::Array(items) => items.iter().map(Value::text).collect(),
        other => panic!("a list of fields was expected, not {other:?}"),
    };
    texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

fn spawn(server: &Server, dir: &TempDir) -> Process {
    Process::start(server.binary(), |command| {
        command.arg(dir.path().join("sentinel.conf")).arg("--sentinel");
    })
}
