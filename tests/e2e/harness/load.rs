//! Data of every kind, written at rest (`fill`) or all the time (`Load`).
//!
//! Expiries are far away, so that no copy loses a key before another and digests stay comparable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::node::Node;
use super::resp::{Conn, Value, encode};
use super::servers::Server;

/// A library with a function that writes, for servers from 7.0 on.
const LIBRARY: &str = "#!lua name=e2e\n\
    redis.register_function('put_twice', function(keys, args)\n\
      redis.call('SET', keys[1], args[1])\n\
      redis.call('SET', keys[2], args[1])\n\
      return 2\n\
    end)";

/// Puts some of everything into several databases.
#[track_caller]
pub fn fill(node: &Node) {
    let mut conn = node.conn();
    if node.server.has_redis(7, 0) {
        conn.cmd(&["FUNCTION", "LOAD", "REPLACE", LIBRARY]);
    }
    for round in 0..40 {
        let commands = round_of(round, node.server);
        run(&mut conn, &commands).unwrap_or_else(|why| panic!("fill {}: {why}", node.server.name));
    }
}

/// Writes on its own thread until stopped, or dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    writer: Option<JoinHandle<Result<(), String>>>,
}

impl Load {
    /// Writes to the node directly.
    #[track_caller]
    pub fn on(node: &Node) -> Load {
        Load::through(node.port, node.server)
    }

    /// Writes through any port behind which that server answers.
    #[track_caller]
    pub fn through(port: u16, server: &'static Server) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        // Every load has rounds of its own: stream ids may only grow.
        static LOADS: AtomicU64 = AtomicU64::new(1);
        let rounds = Arc::new(AtomicU64::new(LOADS.fetch_add(1, Ordering::SeqCst) * 1_000_000));
        let mut conn = Conn::to(port);
        if server.has_redis(7, 0) {
            conn.cmd(&["FUNCTION", "LOAD", "REPLACE", LIBRARY]);
        }
        let (ending, counting) = (Arc::clone(&stop), Arc::clone(&rounds));
        let writer = std::thread::spawn(move || {
            while !ending.load(Ordering::SeqCst) {
                let round = counting.fetch_add(1, Ordering::SeqCst);
                run(&mut conn, &round_of(round, server))?;
                // Some thousand writes a second: enough for every link to be in mid command when it is cut, and
                // little enough for two cores that run ten replicas.
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        Load { stop, rounds, writer: Some(writer) }
    }

    /// Waits until so many more rounds were written.
    #[track_caller]
    pub fn go_on_for(&self, rounds: u64) {
        let goal = self.rounds.load(Ordering::SeqCst) + rounds;
        super::wait::wait_until("the write load goes on", || {
            let done = self.rounds.load(Ordering::SeqCst);
            super::wait::when(done >= goal, || format!("round {done}, to be {goal}"))
        });
    }

    /// Ends it; every write was answered without an error.
    #[track_caller]
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let writer = self.writer.take().expect("it is stopped once");
        writer.join().expect("the writer does not panic").unwrap_or_else(|why| panic!("the write load: {why}"));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(writer) = self.writer.take() {
            // A failing test is already telling why.
            let _ = writer.join();
        }
    }
}

fn run(conn: &mut Conn, commands: &[Vec<String>]) -> Result<(), String> {
    let bytes: Vec<u8> = commands.iter().flat_map(|command| encode(command)).collect();
    conn.send(bytes).map_err(|why| why.to_string())?;
    for command in commands {
        match conn.reply() {
            Ok(Value::Error(why)) => return Err(format!("{command:?} was answered -{why}")),
            Ok(_) => {}
            Err(why) => return Err(format!("{command:?} was not answered: {why}")),
        }
    }
    Ok(())
}

/// A handful of commands: plain writes of every type, a transaction over two databases, a script, expiries, a function.
/// The same round gives the same commands.
fn round_of(round: u64, server: &Server) -> Vec<Vec<String>> {
    let slot = round % 97;
    let text = format!("{round:x}").repeat(1 + (round % 40) as usize);
    let mut out = Vec::new();
    let mut put = |line: &[&str]| out.push(line.iter().map(|word| (*word).to_owned()).collect());
    let key = |kind: &str| format!("{kind}:{slot}");
    let number = round.to_string();

    put(&["SELECT", &(round % 4).to_string()]);
    put(&["SET", &key("string"), &text]);
    put(&["APPEND", &key("log"), &text]);
    put(&["INCRBY", "counter", "3"]);
    put(&["RPUSH", &key("list"), &number, &text]);
    put(&["LTRIM", &key("list"), "-20", "-1"]);
    put(&["HSET", &key("hash"), &number, &text]);
    put(&["SADD", &key("set"), &number, "member"]);
    put(&["ZADD", &key("zset"), &number, &number]);
    put(&["SETEX", &key("expiring"), "100000", &text]);
    put(&["PEXPIRE", &key("list"), "90000000"]);
    put(&["PERSIST", &key("list")]);
    if server.has_redis(5, 0) {
        put(&["XADD", "stream", &format!("{}-1", round + 1), "field", &text]);
        put(&["XTRIM", "stream", "MAXLEN", "100"]);
    }
    put(&["MULTI"]);
    put(&["INCR", "in-transaction"]);
    put(&["SELECT", "9"]);
    put(&["SET", &key("in-nine"), &number]);
    put(&["EXEC"]);
    let script = "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('INCR', KEYS[2])";
    put(&["EVAL", script, "2", &key("scripted"), "script-counter", &text]);
    if server.has_redis(7, 0) {
        put(&["FCALL", "put_twice", "2", &key("once"), &key("twice"), &text]);
    }
    if round % 7 == 3 {
        put(&["DEL", &key("hash"), &key("set")]);
    }
    if round % 50 == 49 {
        put(&["SET", "large", &"x".repeat(300_000)]);
    }
    out
}

/// Writes so many megabytes of stream, in values of 64 kB over few keys.
#[track_caller]
pub fn write_megabytes(node: &Node, megabytes: usize) {
    let mut conn = node.conn();
    let value = "m".repeat(64 * 1024);
    for _ in 0..megabytes {
        let batch: Vec<_> = (0..16).map(|key| vec!["SET".to_owned(), format!("mega:{key}"), value.clone()]).collect();
        run(&mut conn, &batch).unwrap_or_else(|why| panic!("write to {}: {why}", node.server.name));
    }
}
