//! One child process that cannot outlive the test: killed by its own pid when dropped, also while a panic unwinds.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::wait::wait_at_most;

/// A running child whose output is kept.
#[derive(Debug)]
pub struct Process {
    child: Child,
    said: Arc<Mutex<String>>,
    collectors: [JoinHandle<()>; 2],
}

impl Process {
    /// Starts it with standard output and standard error collected, standard input closed.
    pub fn start(program: &std::path::Path, configure: impl FnOnce(&mut Command)) -> Process {
        // When the test binary itself is killed, no drop runs: the kernel then ends the children. It watches the
        // thread that started them, which is the test's own.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program);
        configure(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|why| panic!("start {} (by setpriv): {why}", program.display()));
        let said = Arc::new(Mutex::new(String::new()));
        let collectors =
            [collect(child.stdout.take().expect("piped"), &said), collect(child.stderr.take().expect("piped"), &said)];
        Process { child, said, collectors }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far, standard output and error together.
    pub fn said(&self) -> String {
        self.said.lock().expect("nobody panics with the lock").clone()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child can be waited for")
    }

    pub fn kill(&mut self) {
        if self.ended().is_none() {
            self.child.kill().expect("our own child can be killed");
            self.child.wait().expect("our own child can be waited for");
        }
    }

    /// Sends a signal by name (`TERM`, `STOP`, `CONT`) to this process alone.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -{name} {} failed", self.pid());
    }

    #[track_caller]
    pub fn wait_for_end(&mut self, limit: Duration) -> ExitStatus {
        let status = wait_at_most(limit, "the process ends", || {
            self.child.try_wait().expect("our own child").ok_or("it runs".to_owned())
        });
        // Its last words may still be in the pipe.
        wait_at_most(limit, "all it said is read", || {
            self.collectors.iter().all(JoinHandle::is_finished).then_some(()).ok_or("the pipe is open".to_owned())
        });
        status
    }

    /// Its resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("VmRSS is a number of kB") * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn collect(pipe: impl std::io::Read + Send + 'static, said: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let said = Arc::clone(said);
    std::thread::spawn(move || {
        let mut lines = BufReader::new(pipe);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            said.lock().expect("nobody panics with the lock").push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}

/// A loopback port that nobody listens on. It lies below the range from which the kernel takes ports for outgoing
/// connections, so that a server which is killed and started again finds its port free.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 18_000;
    // Other test processes may run beside this one: each begins elsewhere.
    let start = (std::process::id().wrapping_mul(7919) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + ((u32::from(start) + u32::from(step)) % u32::from(COUNT)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

/// The end of a log, for a failing test's report.
pub fn tail(log: &str, lines: usize) -> String {
    let all: Vec<_> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
