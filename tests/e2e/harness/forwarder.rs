//! A TCP forwarder standing for the network: it can cut links, refuse new ones, point elsewhere, hold back what
//! the target says, and cut after so many bytes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

/// Forwards a port of its own to another loopback port.
#[derive(Debug)]
pub struct Forwarder {
    pub port: u16,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    target: AtomicU16,
    refusing: AtomicBool,
    closing: AtomicBool,
    holding: AtomicBool,
    /// Bytes that may still pass from the target before the link is cut; negative for no limit.
    budget: AtomicI64,
    /// Both ends of every link, to be shut down. Held for a push or a drain only.
    open: Mutex<Vec<TcpStream>>,
}

impl Forwarder {
    pub fn to(target: u16) -> Forwarder {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port can be had");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(State {
            target: AtomicU16::new(target),
            refusing: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            holding: AtomicBool::new(false),
            budget: AtomicI64::new(-1),
            open: Mutex::new(Vec::new()),
        });
        let accepting = Arc::clone(&state);
        std::thread::spawn(move || accept(&listener, &accepting));
        Forwarder { port, state }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends every link; new ones are taken.
    pub fn cut(&self) {
        for stream in self.state.open.lock().expect("nobody panics with the lock").drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Ends every link and refuses new ones until [`Forwarder::restore`].
    pub fn sever(&self) {
        self.state.refusing.store(true, Ordering::SeqCst);
        self.cut();
    }

    pub fn restore(&self) {
        self.state.refusing.store(false, Ordering::SeqCst);
    }

    /// New links go to another port; the present ones end.
    pub fn point_to(&self, target: u16) {
        self.state.target.store(target, Ordering::SeqCst);
        self.cut();
    }

    /// Nothing that the target says arrives until [`Forwarder::let_go`]; what it is told still does.
    pub fn hold(&self) {
        self.state.holding.store(true, Ordering::SeqCst);
    }

    pub fn let_go(&self) {
        self.state.holding.store(false, Ordering::SeqCst);
    }

    /// Cuts once the target has sent that many more bytes, at exactly that byte, and only once.
    pub fn cut_after(&self, bytes: i64) {
        self.state.budget.store(bytes, Ordering::SeqCst);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.state.closing.store(true, Ordering::SeqCst);
        self.sever();
        // Wakes the accepting thread, so that it ends.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for near in listener.incoming().flatten() {
        if state.closing.load(Ordering::SeqCst) {
            return;
        }
        if state.refusing.load(Ordering::SeqCst) {
            continue;
        }
        let Ok(far) = TcpStream::connect(("127.0.0.1", state.target.load(Ordering::SeqCst))) else { continue };
        let clone = |stream: &TcpStream| stream.try_clone().expect("a socket can be cloned");
        let ends = [clone(&near), clone(&far)];
        state.open.lock().expect("nobody panics with the lock").extend(ends);
        let (up, down) = ((clone(&near), clone(&far)), (far, near));
        let counting = Arc::clone(state);
        std::thread::spawn(move || pump(up.0, up.1, |count| count));
        std::thread::spawn(move || pump(down.0, down.1, |count| allowed(&counting, count)));
    }
}

/// How much of a read may pass. Takes it off the budget.
fn allowed(state: &State, count: usize) -> usize {
    while state.holding.load(Ordering::SeqCst) && !state.closing.load(Ordering::SeqCst) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let left = state.budget.load(Ordering::SeqCst);
    if left < 0 {
        return count;
    }
    let pass = count.min(left as usize);
    // Once reached, the limit is off again, so that the next link lives.
    let next = if pass < count { -1 } else { left - pass as i64 };
    state.budget.store(next, Ordering::SeqCst);
    pass
}

fn pump(mut from: TcpStream, mut to: TcpStream, allow: impl Fn(usize) -> usize) {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let count = match from.read(&mut chunk) {
            // A half-close is forwarded as one.
            Ok(0) => return drop(to.shutdown(Shutdown::Write)),
            Ok(count) => count,
            Err(_) => break,
        };
        let pass = allow(count);
        if to.write_all(&chunk[..pass]).is_err() || pass < count {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
