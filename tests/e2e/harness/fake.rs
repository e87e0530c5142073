//! A master played by the test: a listener whose every connection is handled by a script, to say what no real server says.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::resp::{Conn, Value};

/// A scripted master.
#[derive(Debug)]
pub struct FakeMaster {
    pub port: u16,
    closing: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

/// The id every scripted master goes by.
pub const REPLID: &str = "00112233445566778899aabbccddeeff00112233";

impl FakeMaster {
    /// Answers the handshake (and INFO) as a 7.0 master without backlog would, then hands the connection to the script
    /// together with the PSYNC or SYNC it was asked. When the script returns, the connection closes.
    pub fn start(script: impl Fn(&mut Conn, &[String]) -> std::io::Result<()> + Send + Sync + 'static) -> FakeMaster {
        FakeMaster::saying(info, script)
    }

    /// [`FakeMaster::start`] with an INFO of its own.
    pub fn saying(
        info: impl Fn() -> String + Send + Sync + 'static,
        script: impl Fn(&mut Conn, &[String]) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> FakeMaster {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port can be had");
        let port = listener.local_addr().expect("it is bound").port();
        let closing = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicUsize::new(0));
        let (stop, count, script, info) = (Arc::clone(&closing), Arc::clone(&asked), Arc::new(script), Arc::new(info));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (count, script, info) = (Arc::clone(&count), Arc::clone(&script), Arc::clone(&info));
                std::thread::spawn(move || {
                    let mut conn = Conn::over(stream);
                    // The other side may go away at any time: that is its right, and some tests' purpose.
                    if let Ok(request) = until_sync(&mut conn, &*info) {
                        count.fetch_add(1, Ordering::SeqCst);
                        let _ = script(&mut conn, &request);
                    }
                });
            }
        });
        FakeMaster { port, closing, asked }
    }

    /// How many PSYNCs and SYNCs came.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for FakeMaster {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// What a 7.0 master without backlog says of itself.
fn info() -> String {
    format!(
        "# Server\r\nredis_version:7.0.15\r\nrun_id:{REPLID}\r\n# Replication\r\nrole:master\r\nconnected_slaves:0\r\n\
         master_failover_state:no-failover\r\nmaster_replid:{REPLID}\r\n\
         master_replid2:0000000000000000000000000000000000000000\r\nmaster_repl_offset:0\r\nsecond_repl_offset:-1\r\n\
         repl_backlog_active:0\r\nrepl_backlog_size:1048576\r\nrepl_backlog_first_byte_offset:0\r\n\
         repl_backlog_histlen:0\r\n"
    )
}

fn until_sync(conn: &mut Conn, info: &(impl Fn() -> String + ?Sized)) -> std::io::Result<Vec<String>> {
    loop {
        let line = conn.line()?;
        let words: Vec<String> = match line.strip_prefix('*').and_then(|count| count.parse().ok()) {
            Some(count) => (0..count).map(|_| conn.reply().map(|word: Value| word.text())).collect::<Result<_, _>>()?,
            None => line.split_whitespace().map(str::to_owned).collect(),
        };
        match words.first().map(|word| word.to_ascii_uppercase()).as_deref() {
            Some("PSYNC" | "SYNC") => return Ok(words),
            Some("PING") => conn.send("+PONG\r\n")?,
            Some("INFO") => {
                let info = info();
                conn.send(format!("${}\r\n{info}\r\n", info.len()))?;
            }
            Some("REPLCONF" | "AUTH" | "CLIENT" | "SELECT") => conn.send("+OK\r\n")?,
            Some(other) => conn.send(format!("-ERR unknown command '{other}'\r\n"))?,
            None => {}
        }
    }
}

/// Keeps a connection open, reading what comes, until the other side closes it or the time is over.
pub fn linger(conn: &mut Conn, time: Duration) {
    let _ = conn.until_closed(time);
}

/// The RDB of a running server, as it would send it to a replica.
#[track_caller]
pub fn rdb_of(master: &super::node::Node) -> Vec<u8> {
    let mut conn = master.conn();
    conn.send("SYNC\r\n").expect("the server reads");
    conn.payload().expect("the server sends its payload")
}
