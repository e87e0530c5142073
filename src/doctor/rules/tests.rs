use super::*;
use crate::config::{Flags, Surroundings};

fn config(values: &[(&'static str, &str)]) -> Config {
    let around = Surroundings { env: vec![], read_file: &|_| Err(std::io::ErrorKind::NotFound.into()) };
    let values = [("upstream", "a:1")].iter().chain(values).map(|(name, value)| (*name, (*value).to_owned())).collect();
    Config::load(&Flags { file: None, values }, &around).map(|loaded| loaded.config).unwrap()
}

fn healthy() -> Upstream {
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Upstream {
        info: pairs(&[
            ("redis_version", "7.2.4"),
            ("role", "master"),
            ("master_repl_offset", "1000000000"),
            ("second_repl_offset", "-1"),
            ("uptime_in_seconds", "1000000"),
            ("repl_backlog_active", "1"),
            ("used_memory", "1000000"),
            ("rdb_last_bgsave_status", "ok"),
        ]),
        config: pairs(&[
            ("repl-backlog-size", "134217728"),
            ("repl-backlog-ttl", "0"),
            ("repl-timeout", "60"),
            ("repl-ping-replica-period", "10"),
            ("min-replicas-to-write", "0"),
            ("save", "3600 1"),
            ("appendonly", "no"),
            ("client-output-buffer-limit", "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60"),
        ]),
        commands: ["ping", "info", "replconf", "psync"].map(|name| (name, Answer::Allowed)).into(),
        user: Some("default".to_owned()),
        growth: Some((500_000, Duration::from_secs(5))),
        clock_ahead_ms: Some(3),
        round_trip: Duration::from_millis(1),
        open: false,
    }
}

fn machine() -> Machine {
    Machine {
        open_files: Some(1 << 20),
        free: Some(("/d".to_owned(), 100 << 30)),
        memory: Some(8 << 30),
        announce: None,
    }
}

const OUTAGE: Duration = Duration::from_secs(600);

fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
}

#[test]
fn a_healthy_upstream_needs_no_mending() {
    let findings = judge(&config(&[]), Ok(&healthy()), &machine(), OUTAGE);
    assert!(worst(&findings) <= Severity::Note, "{findings:#?}");
    assert!(findings.iter().all(|finding| finding.mend.is_none()));
}

#[test]
fn each_fault_is_found_with_what_mends_it() {
    type Fault = fn(&mut Upstream, &mut Machine);
    let cases: [(Fault, Severity, &str, &str); 18] = [
        (|u, _| drop(u.info.insert("redis_version".into(), "3.2.12".into())), Severity::Warning, "version", "4.0"),
        (|u, _| drop(u.info.insert("redis_version".into(), "2.6.0".into())), Severity::Problem, "version", "4.0"),
        (
            |u, _| drop(u.commands.insert("psync", Answer::Denied("NOPERM".into()))),
            Severity::Problem,
            "permissions",
            "ACL SETUSER default +psync",
        ),
        (
            |u, _| drop(u.commands.insert("info", Answer::Denied("NOPERM".into()))),
            Severity::Warning,
            "permissions",
            "+info",
        ),
        (
            |u, _| drop(u.commands.insert("psync", Answer::Missing)),
            Severity::Problem,
            "permissions",
            "rename-command PSYNC",
        ),
        (
            |u, _| drop(u.config.insert("repl-backlog-size".into(), "16384".into())),
            Severity::Warning,
            "backlog",
            "CONFIG SET repl-backlog-size 32mb",
        ),
        (
            |u, _| drop(u.config.insert("repl-backlog-ttl".into(), "3600".into())),
            Severity::Warning,
            "backlog",
            "CONFIG SET repl-backlog-ttl 0",
        ),
        (
            |u, _| u.growth = Some((50_000_000, Duration::from_secs(5))),
            Severity::Warning,
            "own backlog",
            "repl-backlog-size",
        ),
        (
            |u, _| {
                drop(u.info.insert("used_memory".into(), "20000000000".into()));
                u.growth = Some((5_000_000, Duration::from_secs(5)));
            },
            Severity::Warning,
            "full resync",
            "repl-backlog-size = \"1gb\"",
        ),
        (
            |u, _| drop(u.config.insert("min-replicas-to-write".into(), "2".into())),
            Severity::Problem,
            "min-replicas",
            "mirrored",
        ),
        (
            |u, _| drop(u.config.insert("repl-ping-replica-period".into(), "45".into())),
            Severity::Problem,
            "timeouts",
            "repl-ping-replica-period",
        ),
        (
            |u, _| drop(u.config.insert("repl-timeout".into(), "5".into())),
            Severity::Problem,
            "timeouts",
            "repl-timeout",
        ),
        (
            |u, _| drop(u.info.insert("rdb_last_bgsave_status".into(), "err".into())),
            Severity::Problem,
            "snapshots",
            "log",
        ),
        (|u, _| u.clock_ahead_ms = Some(-60_000), Severity::Warning, "clock", "chrony"),
        (|_, m| m.free = Some(("/d".into(), 500_000)), Severity::Problem, "disk", "dir"),
        (|_, m| m.open_files = Some(1024), Severity::Warning, "open files", "ulimit -n"),
        (|_, m| m.memory = Some(64 << 20), Severity::Problem, "memory", "repl-backlog-size"),
        (|_, m| m.announce = Some("no such name".into()), Severity::Problem, "announce", "announce-ip"),
    ];
    for (number, (fault, severity, check, mend)) in cases.into_iter().enumerate() {
        let (mut upstream, mut machine) = (healthy(), machine());
        fault(&mut upstream, &mut machine);
        let findings = judge(&config(&[]), Ok(&upstream), &machine, OUTAGE);
        assert_eq!(findings[0].severity, severity, "case {number}: {findings:#?}");
        let found = findings.iter().find(|finding| (finding.severity, finding.check) == (severity, check));
        let said = found.and_then(|finding| finding.mend.as_deref());
        assert!(said.is_some_and(|said| said.contains(mend)), "case {number}: {findings:#?}");
    }
}

#[test]
fn mirrored_links_count_as_many_replicas_as_there_are() {
    let mut upstream = healthy();
    upstream.config.insert("min-replicas-to-write".into(), "2".into());
    let findings = judge(&config(&[("upstream-links", "mirrored")]), Ok(&upstream), &machine(), OUTAGE);
    assert!(worst(&findings) <= Severity::Note, "{findings:#?}");
}

#[test]
fn an_upstream_that_cannot_be_asked_is_a_problem_and_the_machine_is_looked_at_all_the_same() {
    let starved = Machine { open_files: Some(64), ..machine() };
    let findings = judge(&config(&[]), Err("cannot connect: refused".to_owned()), &starved, OUTAGE);
    assert_eq!((findings[0].severity, findings[0].check), (Severity::Problem, "upstream"));
    assert!(findings.iter().any(|finding| finding.check == "open files"));
}

#[test]
fn the_sizes_recommended_hold_twice_what_is_written_meanwhile() {
    let sizing = sizing(&config(&[]), &healthy(), OUTAGE);
    assert_eq!(sizing.rate, 100_000.0);
    // 100 kB/s for 600 s is 60 MB; twice that fits into 128 MiB. The upstream's has to last two minutes.
    assert_eq!((sizing.backlog, sizing.upstream_backlog), (128 << 20, 32 << 20));
    assert_eq!(sizing.runway_seconds.map(f64::round), Some(2684.0));
}

#[test]
fn the_sizes_in_the_readme_are_those_the_doctor_recommends() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    for (rate, shown) in [(100_000u64, "100 kB/s"), (1_000_000, "1 MB/s"), (10_000_000, "10 MB/s")] {
        let needed = |seconds: u64| print_bytes(round_up(rate * 2 * seconds));
        let row = format!("| {shown} | {} | {} |", needed(600), needed(7200));
        assert!(readme.contains(&row), "{row}");
    }
}
