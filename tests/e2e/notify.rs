//! What a service manager hears from psyncd, and how psyncd ends when it is told to.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::harness::*;

/// The manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    dir: tempfile::TempDir,
}

impl Manager {
    fn new() -> Manager {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Manager { socket, dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// psyncd as this manager starts it.
    fn start(&self, upstream: &str, more: &str, options: &[&str]) -> Psyncd {
        let socket = self.path("notify");
        Psyncd::narrowed(&format!("export NOTIFY_SOCKET={} {more};", socket.display()), upstream, options)
    }

    fn next(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        let read = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..read].to_vec()).unwrap())
    }

    /// The next message that is more than a word about how things stand.
    #[track_caller]
    fn hears(&self, what: &str) -> String {
        wait_until(what, || match self.next() {
            Some(message) if !message.contains("STATUS=") => Ok(message),
            other => Err(format!("{other:?}")),
        })
    }

    #[track_caller]
    fn hears_status(&self, part: &str) -> String {
        wait_until("a status", || match self.next() {
            Some(message) if message.contains("STATUS=") && message.contains(part) => Ok(message),
            other => Err(format!("{other:?}")),
        })
    }
}

fn monotonic_usec() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

#[test]
fn a_manager_hears_of_the_start_how_things_stand_each_reload_and_the_end() {
    let (manager, master) = (Manager::new(), Node::start(server("redis-7.0.15")));
    let conf = manager.path("psyncd.toml");
    std::fs::write(&conf, "loglevel = \"notice\"\n").unwrap();
    let mut psyncd = manager.start(&master.address(), "", &["--config", conf.to_str().unwrap()]);
    assert_eq!(manager.hears("it is ready"), "READY=1");
    psyncd.wait_for_link();
    let status = manager.hears_status("Streaming from");
    assert!(status.starts_with("STATUS=") && status.lines().count() == 1, "no watchdog was asked for: {status}");

    // A configuration that does not hold is answered too, or `systemctl reload` would wait; the status tells.
    for (text, said) in [("loglevel = \"debug\"\n", ""), ("loglevel = \"loud\"\n", "does not hold")] {
        std::fs::write(&conf, text).unwrap();
        let before = monotonic_usec();
        psyncd.process().signal("HUP");
        let reloading = manager.hears("it reloads");
        let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
        let at: i64 = usec.parse().unwrap();
        assert!((before..=monotonic_usec()).contains(&at), "{at} is not after the signal at {before}");
        assert_eq!(manager.hears("it has reloaded"), "READY=1");
        manager.hears_status(said);
    }

    psyncd.process().signal("TERM");
    assert_eq!(manager.hears("it ends"), "STOPPING=1");
    let ended = psyncd.process().wait_for_end(SOON);
    assert_eq!(ended.code(), Some(0), "{}", psyncd.log());
}

#[test]
fn a_psyncd_whose_master_is_down_is_up_and_says_so() {
    let manager = Manager::new();
    let psyncd = manager.start(&format!("127.0.0.1:{}", free_port()), "", &[]);
    assert_eq!(manager.hears("it is ready"), "READY=1");
    let status = manager.hears_status("STATUS=");
    assert!(status.contains("ever reached the upstream"), "{status}");
    // Both mean the same by ready: the master may be waiting for psyncd.
    assert_eq!(psyncd.get("/readyz").0, 200);
    assert_eq!(psyncd.get("/readyz?check=upstream").0, 503, "who wants more than that it listens asks for it");
}

#[test]
fn a_watchdog_hears_a_living_psyncd_and_not_one_that_stands_still() {
    let (manager, master) = (Manager::new(), Node::start(server("redis-7.0.15")));
    let limit = Duration::from_secs(1);
    let mut psyncd = manager.start(&master.address(), "WATCHDOG_USEC=1000000", &[]);
    let mut heard = Instant::now();
    let start = heard;
    while start.elapsed() < 4 * limit {
        if manager.next().is_some_and(|message| message.starts_with("WATCHDOG=1\n")) {
            heard = Instant::now();
        }
        assert!(heard.elapsed() < limit, "silent for {:?}:\n{}", heard.elapsed(), psyncd.log());
    }
    psyncd.process().signal("STOP");
    while manager.next().is_some() {}
    holds_for(2 * limit, "nothing is heard", || match manager.next() {
        None => Ok(()),
        Some(message) => Err(message),
    });
    psyncd.process().signal("CONT");
    manager.hears_status("WATCHDOG=1");
}

#[test]
fn a_manager_that_is_not_there_costs_a_line_in_the_log_only() {
    let master = Node::start(server("redis-7.0.15"));
    let none = Path::new("/nonexistent/notify").display().to_string();
    let psyncd = Psyncd::narrowed(&format!("export NOTIFY_SOCKET={none};"), &master.address(), &[]);
    psyncd.wait_for_link();
    assert!(psyncd.log().contains("service manager not reached"), "{}", psyncd.log());
}

#[test]
fn a_second_sigterm_ends_it_while_a_replica_still_takes_what_there_is() {
    let master = Node::start(server("redis-7.0.15"));
    let mut psyncd = Psyncd::before_with(&master, &["--repl-backlog-size", "256mb"]);
    let mut replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    replica.wait_for_link();
    // More than the buffers of a socket take, so that this replica keeps the drain waiting.
    replica.process().signal("STOP");
    write_megabytes(&master, 64);
    let head = master.offset();
    wait_until("psyncd has it all", || {
        let at = psyncd.status()["backlog"]["head_offset"].as_i64().unwrap_or(0);
        when(at >= head, || format!("{at} of {head}"))
    });
    psyncd.process().signal("TERM");
    wait_until("it ends", || when(psyncd.log().contains("ending on SIGTERM"), || psyncd.log()));
    psyncd.process().signal("TERM");
    let ended = psyncd.process().wait_for_end(SOON);
    replica.process().signal("CONT");
    let log = psyncd.log();
    assert_eq!(ended.code(), Some(0), "{log}");
    assert!(log.contains("ended at once on a second signal"), "{log}");
    assert!(!log.contains("did not take all we have in time"), "the first wait was not cut short: {log}");
}
