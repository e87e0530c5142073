//! A client that writes one key after the other and remembers which writes were acknowledged, and when.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::node::Node;
use super::resp::{Conn, Value};
use super::wait::{wait_until, when};

/// Between two writes: a thousand a second are plenty, and leave the cores to the servers.
const PACE: Duration = Duration::from_millis(1);
/// Between two tries when nobody takes writes.
const RETRY: Duration = Duration::from_millis(5);

/// Writes on its own thread until stopped, or dropped. It stays on its connection until that fails or refuses, then
/// tries the ports in turn.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    next: Arc<AtomicUsize>,
    acknowledged: Arc<Mutex<Vec<(usize, Instant)>>>,
    thread: Option<JoinHandle<()>>,
}

/// What became of the writes.
#[derive(Debug)]
pub struct Written {
    /// Acknowledged writes, with the times of the acknowledgements.
    acknowledged: Vec<(usize, Instant)>,
}

impl Writer {
    /// Begins at the first of the ports.
    #[track_caller]
    pub fn on(ports: &[u16]) -> Writer {
        let mut writer =
            Writer { stop: Arc::default(), next: Arc::default(), acknowledged: Arc::default(), thread: None };
        let (stop, next, acknowledged) =
            (Arc::clone(&writer.stop), Arc::clone(&writer.next), Arc::clone(&writer.acknowledged));
        let ports = ports.to_vec();
        let thread = std::thread::spawn(move || {
            let mut conn: Option<Conn> = None;
            let mut turn = 0;
            while !stop.load(Ordering::SeqCst) {
                let number = next.fetch_add(1, Ordering::SeqCst);
                match write(&mut conn, ports[turn % ports.len()], number) {
                    Ok(Value::Simple(_)) => {
                        acknowledged.lock().expect("nobody panics with the lock").push((number, Instant::now()));
                        std::thread::sleep(PACE);
                    }
                    Ok(_) | Err(_) => {
                        conn = None;
                        turn += 1;
                        std::thread::sleep(RETRY);
                    }
                }
            }
        });
        writer.thread = Some(thread);
        writer.go_on_for(50);
        writer
    }

    /// Waits until so many more writes were acknowledged.
    #[track_caller]
    pub fn go_on_for(&self, writes: usize) {
        let goal = self.count() + writes;
        wait_until("writes are acknowledged", || when(self.count() >= goal, || format!("{} of {goal}", self.count())));
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().expect("nobody panics with the lock").len()
    }

    #[track_caller]
    pub fn stop(mut self) -> Written {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().expect("it is stopped once").join().expect("the writer does not panic");
        Written { acknowledged: std::mem::take(&mut self.acknowledged.lock().expect("nobody panics with the lock")) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write(conn: &mut Option<Conn>, port: u16, number: usize) -> io::Result<Value> {
    let open = match conn {
        Some(open) => open,
        None => conn.insert(Conn::open(port)?),
    };
    open.ask(&["SET", &key(number), "written"])
}

fn key(number: usize) -> String {
    format!("written:{number}")
}

impl Written {
    /// How many were acknowledged.
    pub fn count(&self) -> usize {
        self.acknowledged.len()
    }

    /// The longest time between two acknowledgements.
    pub fn longest_pause(&self) -> Duration {
        let pauses = self.acknowledged.windows(2).map(|pair| pair[1].1 - pair[0].1);
        pauses.max().unwrap_or_default()
    }

    /// How many of them the node does not have.
    #[track_caller]
    pub fn lost_on(&self, node: &Node) -> usize {
        let mut conn = node.conn();
        let mut there = 0;
        for chunk in self.acknowledged.chunks(1000) {
            let mut command = vec!["EXISTS".to_owned()];
            command.extend(chunk.iter().map(|(number, _)| key(*number)));
            there += conn.cmd(&command).int() as usize;
        }
        self.count() - there
    }
}
