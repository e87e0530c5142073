//! psyncd as a process: how it starts, what it refuses, how it ends, and what it leaves on the disk.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::*;

#[test]
fn one_line_at_the_start_says_what_it_fronts_and_where() {
    let master = Node::start(server("redis-7.0.15"));
    let psyncd = Psyncd::before_with(&master, &["--repl-backlog-size", "32mb"]);
    let log = psyncd.log();
    let line = log.lines().find(|line| line.contains("psyncd started")).unwrap();
    for fact in [
        format!("upstream={}", master.address()),
        format!("listen={}", psyncd.address()),
        format!("admin=127.0.0.1:{}", psyncd.admin),
        "backlog_bytes=33554432".to_owned(),
    ] {
        assert!(line.contains(&fact), "{fact} is missing in {line:?}");
    }
}

#[test]
fn sigterm_ends_it_cleanly_and_keeps_nothing_but_the_journal_and_the_complete_snapshot() {
    let temporary = tempfile::tempdir().unwrap();
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let state = temporary.path().join("state");
    let mut psyncd = Psyncd::before_with(&master, &["--dir", state.to_str().unwrap()]);
    let replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    assert_equal_data(&master, [&replica]);
    wait_until("the snapshot is kept", || {
        when(psyncd.log().contains("snapshot kept for the next start"), || psyncd.log())
    });
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for file in files_in(&state) {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }

    psyncd.process().signal("TERM");
    let status = psyncd.process().wait_for_end(Duration::from_secs(30));
    assert_eq!(status.code(), Some(0), "{}", psyncd.log());
    let mut left = files_in(&state);
    // The lock, the journal and the state are there to be found again, and the snapshot; the socket is not.
    let begins =
        |file: &Path, with: &str| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(with));
    left.retain(|file| !["psyncd.lock", "psyncd.state", "journal-"].iter().any(|with| begins(file, with)));
    let kept = format!("snapshot-{}-", master.replid());
    assert!(left.len() == 1 && begins(&left[0], &kept), "left behind: {left:?}");
    // The replica goes back to the master, and has lost nothing.
    replica.replicate(master.port);
    assert_equal_data(&master, [&replica]);
    assert_eq!(replica.full_resyncs(), 1);
}

fn files_in(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_in(&path) } else { vec![path] }).collect()
}

#[test]
fn a_port_already_taken_is_said_and_ends_it_with_75() {
    let master = Node::start(server("redis-7.0.15"));
    for taken in ["--port", "--admin-bind"] {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let value = if taken == "--port" { port.to_string() } else { format!("127.0.0.1:{port}") };
        let mut psyncd = Psyncd::spawn(&master.address(), &[taken, &value]);
        let status = psyncd.wait_for_end(SOON);
        assert_eq!(status.code(), Some(75), "{}", psyncd.said());
        assert!(psyncd.said().contains(&port.to_string()), "it does not say which port: {}", psyncd.said());
    }
}

#[test]
fn wrong_flags_end_it_with_2_and_wrong_values_with_78() {
    let psyncd = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_psyncd")).args(args).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = psyncd(&["run", "--upstrem", "127.0.0.1:1"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--upstream"), "the nearest right one is named: {said}");
    let (code, said) = psyncd(&["run", "--upstream", "127.0.0.1:1", "--repl-backlog-size", "many"]);
    assert!(matches!(code, Some(2 | 78)), "{code:?}: {said}");
    assert!(said.contains("repl-backlog-size"), "{said}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("psyncd.toml");
    std::fs::write(&file, "upstream = \"127.0.0.1:1\"\nrepl-backlog-sise = \"1mb\"\n").unwrap();
    let (code, said) = psyncd(&["run", "--config", file.to_str().unwrap()]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("repl-backlog-sise") && said.contains("repl-backlog-size"), "{said}");
    let (code, said) = psyncd(&["run", "--config", dir.path().join("none.toml").to_str().unwrap()]);
    assert_eq!(code, Some(78), "{said}");
}

#[test]
fn a_state_directory_that_cannot_be_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    let below = file.join("state");
    let mut psyncd = Psyncd::spawn("127.0.0.1:1", &["--dir", below.to_str().unwrap()]);
    let status = psyncd.wait_for_end(SOON);
    assert!(matches!(status.code(), Some(73 | 77 | 78)), "{status}: {}", psyncd.said());
    assert!(psyncd.said().contains("state"), "it does not say which: {}", psyncd.said());
}

/// psyncd with its file system narrowed by a shell in front of it; the harness's options are the same.
fn narrowed(master: &Node, narrow: &str, dir: &Path) -> (Process, u16, u16) {
    let (port, admin) = (free_port(), free_port());
    let binary = env!("CARGO_BIN_EXE_psyncd");
    let script = format!(
        "{narrow} {binary} run --upstream {} --port {port} --admin-bind 127.0.0.1:{admin} --log-format logfmt --dir {}",
        master.address(),
        dir.display()
    );
    let process = Process::start(Path::new("/bin/sh"), |command| {
        command.args(["-c", &script]);
    });
    (process, port, admin)
}

#[test]
fn a_disk_that_takes_no_more_costs_the_snapshot_and_nothing_else() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    let direct = Node::start(master.server);
    direct.replicate(master.port);
    direct.wait_for_link();
    // Noise, so that the RDB does not compress below the limit of 64 blocks of 512 bytes.
    let noise: Vec<u8> = (0..500_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    master.cmd(&[&b"SET"[..], b"noise", &noise]);
    let dir = tempfile::tempdir().unwrap();
    // A file that may not grow fails as a full disk does (EFBIG for ENOSPC), and needs no privilege to arrange.
    let (mut process, port, _) = narrowed(&master, "trap '' XFSZ; ulimit -f 64; exec", &dir.path().join("state"));
    wait_until("psyncd listens", || Conn::open(port).map(drop).map_err(|why| format!("{why}\n{}", process.said())));

    let stranger = Node::start(master.server);
    stranger.cmd(&["SET", "mine", "kept"]);
    stranger.replicate(port);
    holds_for(Duration::from_secs(4), "the stranger keeps its data and psyncd lives", || {
        when(process.ended().is_none(), || format!("psyncd ended:\n{}", process.said()))?;
        let size = stranger.cmd(&["DBSIZE"]).int();
        when(size == 1, || format!("{size} keys:\n{}", stranger.log()))
    });
    // What needs no disk works: clients, and a replica that only needs to continue.
    assert_eq!(Conn::to(port).cmd(&["PING"]), Value::Simple("PONG".into()));
    direct.replicate(port);
    assert_equal_data(&master, [&direct]);
    assert_eq!(direct.full_resyncs(), 1);
    let forks = master.syncs().forks;
    assert!(forks < 12, "the master forked {forks} times for snapshots that have no place");
    assert!(!process.said().contains("panicked"));
}

#[test]
fn a_state_directory_that_is_read_only_is_said_at_once() {
    let master = Node::start(server("redis-7.0.15"));
    // A directory of its own psyncd would make writable again, so it has to be another's. Root may write there all the same,
    // unless it has given that power away.
    let dir = tempfile::tempdir().unwrap();
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let (state, narrow) = if is_root {
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        std::os::unix::fs::chown(&state, Some(65_534), Some(65_534)).unwrap();
        (state, "exec setpriv --bounding-set=-dac_override,-dac_read_search,-fowner")
    } else {
        (Path::new("/usr/psyncd-state").to_owned(), "exec")
    };
    let (mut process, _, _) = narrowed(&master, narrow, &state);
    let status = process.wait_for_end(SOON);
    assert!(matches!(status.code(), Some(73 | 77 | 78)), "{status}: {}", process.said());
    assert!(process.said().contains("state"), "it does not say which: {}", process.said());
}

#[test]
fn at_the_end_a_replica_is_waited_for_until_it_has_everything_or_drain_timeout_is_over() {
    let mut master = Node::with(server("redis-7.0.15"), &["--repl-ping-replica-period", "3600"]);
    fill(&master);
    let mut psyncd = Psyncd::before(&master);
    let mut replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    assert_equal_data(&master, [&replica]);
    replica.process().signal("STOP");
    let value = "v".repeat(1 << 20);
    for n in 0..24 {
        master.cmd(&["SET", &format!("late:{n}"), &value]);
    }
    let (head, digest) = (master.offset(), master.digest());
    wait_until("psyncd has it", || {
        when(psyncd.status()["backlog"]["head_offset"].as_i64() >= Some(head), || psyncd.status().to_string())
    });
    // Nobody else has these writes any more.
    master.kill();
    psyncd.process().signal("TERM");
    wait_until("it is ending", || when(psyncd.log().contains("ending on SIGTERM"), || psyncd.log()));
    // What the kernel holds for a process that stands still is not what it has.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(psyncd.process().ended(), None, "{}", psyncd.log());
    replica.process().signal("CONT");
    assert_eq!(psyncd.process().wait_for_end(SOON).code(), Some(0));
    assert!(!psyncd.log().contains("drain_timeout"), "{}", psyncd.log());
    assert_eq!((replica.info()["slave_repl_offset"].clone(), replica.digest()), (head.to_string(), digest));

    let master = Node::start(server("redis-7.0.15"));
    let mut psyncd = Psyncd::before_with(&master, &["--drain-timeout", "500ms"]);
    let mut replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    assert_equal_data(&master, [&replica]);
    replica.process().signal("STOP");
    for n in 0..24 {
        master.cmd(&["SET", &format!("late:{n}"), &value]);
    }
    psyncd.process().signal("TERM");
    assert_eq!(psyncd.process().wait_for_end(Duration::from_secs(10)).code(), Some(0));
    assert!(psyncd.log().contains("event=drain_timeout"), "{}", psyncd.log());
    replica.process().signal("CONT");
}
