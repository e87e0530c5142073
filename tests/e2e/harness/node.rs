//! One real Redis or Valkey server, on its own port and in its own temporary directory.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tempfile::TempDir;

use super::process::{Process, free_port, tail};
use super::resp::{Conn, Value};
use super::servers::Server;
use super::wait::{wait_until, when};

/// A running server.
#[derive(Debug)]
pub struct Node {
    pub server: &'static Server,
    pub port: u16,
    dir: TempDir,
    options: Vec<String>,
    process: Process,
    /// The connection for the test's own questions; opened anew when the server was restarted.
    conn: Mutex<Option<Conn>>,
}

/// The name of a configuration file in a node's directory.
const CONF: &str = "node.conf";

/// How often a master answered with a full resync, with a partial one, and forked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syncs {
    pub full: i64,
    pub partial: i64,
    /// `total_forks`, known from 6.2 on; else 0.
    pub forks: i64,
}

/// INFO's fields.
pub type Info = BTreeMap<String, String>;

impl Node {
    /// Starts a server with nothing persisted and full syncs without delay, and waits until it answers.
    #[track_caller]
    pub fn start(server: &'static Server) -> Node {
        Node::with(server, &[])
    }

    /// [`Node::start`] with more options (`--name value`), which win over the harness's own.
    #[track_caller]
    pub fn with(server: &'static Server, options: &[&str]) -> Node {
        let node = Node::begin(server, options);
        node.wait_for_answer();
        node
    }

    /// [`Node::start`] on a port that others already know.
    #[track_caller]
    pub fn on_port(server: &'static Server, port: u16) -> Node {
        Node::on_port_with(server, port, &[])
    }

    /// [`Node::with`] on a port that others already know.
    #[track_caller]
    pub fn on_port_with(server: &'static Server, port: u16, options: &[&str]) -> Node {
        let node = Node::begin_on(server, port, options);
        node.wait_for_answer();
        node
    }

    /// [`Node::start`] from a configuration file, which others may have rewritten when it is started again.
    #[track_caller]
    pub fn configured(server: &'static Server, port: u16, conf: &str, options: &[&str]) -> Node {
        let dir = TempDir::with_prefix("psyncd-e2e-").expect("a temporary directory can be made");
        std::fs::write(dir.path().join(CONF), conf).expect("the file can be written");
        let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
        let process = spawn(server, port, &dir, &options);
        let node = Node { server, port, dir, options, process, conn: Mutex::new(None) };
        node.wait_for_answer();
        node
    }

    /// It was told to listen on another port.
    pub fn moved_to(&mut self, port: u16) {
        self.port = port;
        *self.conn.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }

    /// Many at once: all processes begin before the first is waited for.
    #[track_caller]
    pub fn start_all(servers: impl IntoIterator<Item = &'static Server>) -> Vec<Node> {
        let nodes: Vec<_> = servers.into_iter().map(|server| Node::begin(server, &[])).collect();
        nodes.iter().for_each(Node::wait_for_answer);
        nodes
    }

    fn begin(server: &'static Server, options: &[&str]) -> Node {
        Node::begin_on(server, free_port(), options)
    }

    fn begin_on(server: &'static Server, port: u16, options: &[&str]) -> Node {
        let dir = TempDir::with_prefix("psyncd-e2e-").expect("a temporary directory can be made");
        let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
        let process = spawn(server, port, &dir, &options);
        Node { server, port, dir, options, process, conn: Mutex::new(None) }
    }

    #[track_caller]
    fn wait_for_answer(&self) {
        wait_until(&format!("{} answers on port {}", self.server.name, self.port), || {
            let mut conn = Conn::open(self.port).map_err(|why| format!("{why}; log: {}", tail(&self.log(), 5)))?;
            match conn.ask(&["PING"]) {
                Ok(Value::Simple(pong)) if pong == "PONG" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A connection of its own.
    #[track_caller]
    pub fn conn(&self) -> Conn {
        Conn::to(self.port)
    }

    /// One command; an error reply is a failure of the test.
    #[track_caller]
    pub fn cmd<A: AsRef<[u8]>>(&self, args: &[A]) -> Value {
        match self.ask(args) {
            Ok(Value::Error(why)) => panic!("{} answered -{why}", self.server.name),
            Ok(reply) => reply,
            Err(why) => panic!("{} on port {} did not answer: {why}", self.server.name, self.port),
        }
    }

    /// One command whose failure the caller judges.
    pub fn ask<A: AsRef<[u8]>>(&self, args: &[A]) -> std::io::Result<Value> {
        let mut conn = self.conn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(open) = conn.as_mut()
            && let Ok(reply) = open.ask(args)
        {
            return Ok(reply);
        }
        *conn = None;
        let mut fresh = Conn::open(self.port)?;
        let reply = fresh.ask(args)?;
        *conn = Some(fresh);
        Ok(reply)
    }

    #[track_caller]
    pub fn info(&self) -> Info {
        self.try_info().unwrap_or_else(|why| panic!("INFO of {}: {why}", self.server.name))
    }

    fn try_info(&self) -> Result<Info, String> {
        match self.ask(&["INFO"]) {
            Ok(Value::Bulk(text)) => Ok(parse_info(&String::from_utf8_lossy(&text))),
            other => Err(format!("{other:?}")),
        }
    }

    #[track_caller]
    pub fn syncs(&self) -> Syncs {
        let info = self.info();
        let count = |key| info.get(key).map_or(0, |value: &String| value.parse().expect("INFO's counters are numbers"));
        Syncs { full: count("sync_full"), partial: count("sync_partial_ok"), forks: count("total_forks") }
    }

    /// The stream offset: produced by a master, applied by a replica.
    #[track_caller]
    pub fn offset(&self) -> i64 {
        let info = self.info();
        let key = if info["role"] == "master" { "master_repl_offset" } else { "slave_repl_offset" };
        info[key].parse().expect("an offset is a number")
    }

    #[track_caller]
    pub fn replid(&self) -> String {
        self.info()["master_replid"].clone()
    }

    /// DEBUG DIGEST: equal for equal data sets.
    #[track_caller]
    pub fn digest(&self) -> String {
        self.cmd(&["DEBUG", "DIGEST"]).text()
    }

    /// The names and code of its functions, which the digest does not cover (none before 7.0).
    #[track_caller]
    pub fn functions(&self) -> String {
        if !self.server.has_redis(7, 0) {
            return String::new();
        }
        let mut listed = Vec::new();
        for library in self.cmd(&["FUNCTION", "LIST", "WITHCODE"]).array() {
            let fields = library.array();
            let text = |name: &str| {
                let at = fields.iter().position(|field| matches!(field, Value::Bulk(key) if key == name.as_bytes()));
                fields[at.expect("FUNCTION LIST names the library and its code") + 1].text()
            };
            listed.push(format!("{}: {}", text("library_name"), text("library_code")));
        }
        listed.sort();
        listed.join("\n")
    }

    #[track_caller]
    pub fn replicate(&self, port: u16) {
        // SLAVEOF is what every version understands.
        self.cmd(&["SLAVEOF", "127.0.0.1", &port.to_string()]);
    }

    #[track_caller]
    pub fn wait_for_link(&self) {
        wait_until(&format!("{} (port {}) is linked to its master", self.server.name, self.port), || {
            let info = self.try_info()?;
            let state = info.get("master_link_status").cloned().unwrap_or_else(|| "it is no replica".to_owned());
            let log = || format!("link {state}; its log ends\n{}", tail(&self.log(), 8));
            when(state == "up", log)
        });
    }

    /// Ends every replication link of this master.
    #[track_caller]
    pub fn cut_replicas(&self) -> i64 {
        self.cmd(&["CLIENT", "KILL", "TYPE", "slave"]).int()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.process.said()
    }

    /// How often this replica was told to begin anew.
    pub fn full_resyncs(&self) -> usize {
        // Redis 8's second form is that of a full sync over two links, which psyncd does not offer.
        let log = self.log();
        log.matches("Full resync from").count() + log.matches("initialize RDB channel").count()
    }

    /// How often this replica went on where it was.
    pub fn partial_resyncs(&self) -> usize {
        self.log().matches("Successful partial resynchronization").count()
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port and directory. The log begins anew.
    #[track_caller]
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(self.server, self.port, &self.dir, &self.options);
        self.wait_for_answer();
    }

    /// Puts a file of its directory where it does not find it.
    #[track_caller]
    pub fn hide(&self, name: &str) {
        self.rename(name, &format!("{name}.hidden"));
    }

    /// Undoes [`Node::hide`].
    #[track_caller]
    pub fn unhide(&self, name: &str) {
        self.rename(&format!("{name}.hidden"), name);
    }

    #[track_caller]
    fn rename(&self, from: &str, to: &str) {
        let at = |name: &str| self.dir.path().join(name);
        std::fs::rename(at(from), at(to)).unwrap_or_else(|why| panic!("rename {from} to {to}: {why}"));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} on port {}, its log ends:\n{}", self.server.name, self.port, tail(&self.log(), 40));
        }
    }
}

fn spawn(server: &Server, port: u16, dir: &TempDir, options: &[String]) -> Process {
    let port = port.to_string();
    let mut ours =
        vec!["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--databases", "16"];
    if server.has_redis(3, 0) {
        ours.extend(["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]);
    }
    if server.has_redis(7, 0) {
        ours.extend(["--enable-debug-command", "yes"]);
    }
    let conf = dir.path().join(CONF);
    Process::start(server.binary(), |command| {
        if conf.exists() {
            command.arg(&conf);
        }
        command.arg("--dir").arg(dir.path()).args(ours).args(options);
    })
}

/// The fields of an INFO text.
pub fn parse_info(text: &str) -> Info {
    let fields = text.lines().filter_map(|line| line.trim_end().split_once(':'));
    fields.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Waits until every replica has applied exactly what the master produced, then demands equal data everywhere.
/// The write load must have stopped.
#[track_caller]
pub fn assert_equal_data<'n>(master: &Node, replicas: impl IntoIterator<Item = &'n Node>) {
    let digest = master.digest();
    let functions = master.functions();
    for replica in replicas {
        let who = format!("{} on port {}", replica.server.name, replica.port);
        wait_until(&format!("{who} is at the master's offset"), || {
            // The master's PING may fall between the two questions: it is asked again each time.
            let there = replica.try_info()?;
            let (link, at) = (there.get("master_link_status"), there.get("slave_repl_offset"));
            let head = master.offset();
            let equal = at.is_some_and(|at| *at == head.to_string()) && link.is_some_and(|link| link == "up");
            when(equal, || {
                format!("link {link:?}, offset {at:?}, the master's {head}; log\n{}", tail(&replica.log(), 8))
            })
        });
        assert_eq!(replica.digest(), digest, "the data of {who} differs from the master's");
        if replica.server.has_redis(7, 0) && master.server.has_redis(7, 0) {
            assert_eq!(replica.functions(), functions, "the functions of {who} differ from the master's");
        }
    }
}
