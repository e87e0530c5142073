//! What follows from the facts. No rule asks anybody, and each says what mends what it finds.

use std::time::Duration;

use super::facts::{Answer, Machine, Upstream};
use crate::config::Config;
use crate::config::units::print_bytes;
use crate::console::words::{bytes, rate, seconds};
use crate::upstream::cast::Links;

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Looked at, and well.
    Ok,
    /// Worth knowing.
    Note,
    /// It will cost something some day.
    Warning,
    /// It does not work like that, or loses replicas.
    Problem,
}

impl Severity {
    /// One word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What was looked at.
    pub check: &'static str,
    /// What was found.
    pub text: String,
    /// What mends it: a command, or a setting of psyncd's.
    pub mend: Option<String>,
}

/// How large things should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizing {
    /// Bytes a second that were reckoned with.
    pub rate: f64,
    /// How long an absence is to cost nothing.
    pub outage: Duration,
    /// What the upstream's own backlog should hold, for psyncd's own absences.
    pub upstream_backlog: u64,
    /// What psyncd should hold, on disk and in memory together.
    pub backlog: u64,
    /// How long psyncd would last as it is configured; none is for ever.
    pub runway_seconds: Option<f64>,
}

/// What psyncd's own restart, or its host's, may take.
const OWN_ABSENCE: Duration = Duration::from_secs(120);
/// Room for a rate that was measured at a quiet time.
const HEADROOM: f64 = 2.0;
/// Bytes a second at which an RDB is sent, and at which a replica loads it, where both are slow.
const SLOW_RESYNC_BYTES: f64 = 100e6;

/// Reckons with twice the larger of the rates known.
pub fn sizing(config: &Config, facts: &Upstream, outage: Duration) -> Sizing {
    let rate = facts.rate().unwrap_or(0.0).max(facts.long_rate().unwrap_or(0.0));
    let needed = |span: Duration| round_up((rate * HEADROOM * span.as_secs_f64()) as u64);
    let held = config.repl_backlog_bytes.max(config.journal.map_or(0, |journal| journal.limit_bytes));
    Sizing {
        rate,
        outage,
        upstream_backlog: needed(OWN_ABSENCE),
        backlog: needed(outage),
        runway_seconds: (rate >= 1.0).then(|| held as f64 / rate),
    }
}

/// To the next power of two from a megabyte on.
fn round_up(bytes: u64) -> u64 {
    bytes.max(1 << 20).checked_next_power_of_two().unwrap_or(u64::MAX)
}

/// Judges everything; what is worst comes first.
pub fn judge(
    config: &Config,
    upstream: Result<&Upstream, String>,
    machine: &Machine,
    outage: Duration,
) -> Vec<Finding> {
    let mut found = Findings::default();
    let reached = upstream.as_ref().ok().copied();
    match upstream {
        Err(why) => {
            found.problem(
                "upstream",
                why,
                "check --upstream, masterauth-file, the network in between and `bind` and `protected-mode` there",
            );
        }
        Ok(facts) => {
            identity(facts, &mut found);
            permissions(config, facts, &mut found);
            backlog(config, facts, outage, &mut found);
            full_resync(config, facts, &mut found);
            patience(config, facts, &mut found);
            replicas_wanted(config, facts, &mut found);
            data(config, facts, machine, &mut found);
            clock(facts, &mut found);
        }
    }
    here(config, machine, reached, &mut found);
    found.0.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, check: &'static str, text: impl Into<String>, mend: Option<String>) {
        self.0.push(Finding { severity, check, text: text.into(), mend });
    }

    fn problem(&mut self, check: &'static str, text: impl Into<String>, mend: impl Into<String>) {
        self.add(Severity::Problem, check, text, Some(mend.into()));
    }

    fn warning(&mut self, check: &'static str, text: impl Into<String>, mend: impl Into<String>) {
        self.add(Severity::Warning, check, text, Some(mend.into()));
    }

    fn note(&mut self, check: &'static str, text: impl Into<String>) {
        self.add(Severity::Note, check, text, None);
    }

    fn ok(&mut self, check: &'static str, text: impl Into<String>) {
        self.add(Severity::Ok, check, text, None);
    }
}

fn identity(facts: &Upstream, found: &mut Findings) {
    let name = match (facts.field("valkey_version"), facts.field("redis_version")) {
        (Some(version), _) => format!("Valkey {version}"),
        (None, Some(version)) => format!("Redis {version}"),
        (None, None) => return,
    };
    match facts.version() {
        Some(version) if version < (2, 8) => {
            found.problem("version", format!("{name} knows no PSYNC"), "upgrade it to 4.0 or later");
        }
        Some(version) if version < (4, 0) => found.warning(
            "version",
            format!("{name}: every failover changes the stream's id beyond recognition and costs each replica a full resync"),
            "upgrade it to 4.0 or later",
        ),
        Some(version) if version < (7, 0) => found.note(
            "version",
            format!("{name}: a restart forgets the stream's id, so it costs psyncd one RDB (7.0 and later keep it in the RDB)"),
        ),
        Some(_) => found.ok("version", name),
        None => found.note("version", format!("{name}, which is not understood")),
    }
    match facts.field("role") {
        Some("master") | None => {}
        Some(_) => match facts.field("master_link_status") {
            Some("up") => found.note("role", "the upstream is a replica itself: psyncd continues its stream"),
            _ => found.warning(
                "role",
                "the upstream is a replica whose own link is down: its stream stands still",
                "look at master_link_status there (INFO replication)",
            ),
        },
    }
    if facts.field("loading").is_some_and(|loading| loading != "0") {
        found.warning("loading", "the upstream is loading its data set, and serves nobody meanwhile", "wait");
    }
    if let Some(full) = facts.number("sync_full").filter(|full| *full > 0) {
        let partial = facts.number("sync_partial_err").unwrap_or(0);
        found.note(
            "history",
            format!("full resyncs since it started: {full}, after a partial one was refused: {partial}"),
        );
    }
}

fn permissions(config: &Config, facts: &Upstream, found: &mut Findings) {
    let user = facts.user.clone().or_else(|| config.masteruser.clone()).unwrap_or_else(|| "default".to_owned());
    let mut missing = Vec::new();
    for (name, answer) in &facts.commands {
        match answer {
            Answer::Allowed => {}
            Answer::Denied(_) => missing.push(*name),
            Answer::Missing => found.problem(
                "permissions",
                format!("the upstream has no command {}", name.to_uppercase()),
                format!(
                    "remove `rename-command {}` there; a managed service that hides it cannot be replicated from",
                    name.to_uppercase()
                ),
            ),
            Answer::Unclear(said) => found.note("permissions", format!("{} was answered: {said}", name.to_uppercase())),
        }
    }
    let grant = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| format!("+{name}")).collect();
        format!("ACL SETUSER {user} {}", names.join(" "))
    };
    let (needed, wished): (Vec<&str>, Vec<&str>) = missing.iter().partition(|name| **name != "info");
    if !needed.is_empty() {
        found.problem(
            "permissions",
            format!("user {user} may not use {}: the upstream will refuse psyncd", needed.join(", ").to_uppercase()),
            grant(&missing),
        );
    }
    if needed.is_empty() && !wished.is_empty() {
        found.warning(
            "permissions",
            format!("user {user} may not use INFO: attaching costs a full resync, replicas' snapshots cannot be used, the wipe guard is blind"),
            grant(&missing),
        );
    }
    if missing.is_empty() {
        found.ok("permissions", format!("user {user} may replicate and use INFO"));
    }
    if facts.config.is_empty() {
        found.note("settings", format!("user {user} may not use CONFIG GET, so the upstream's settings were not looked at (psyncd itself needs none)"));
    }
}

fn backlog(config: &Config, facts: &Upstream, outage: Duration, found: &mut Findings) {
    let sizing = sizing(config, facts, outage);
    let size = facts.setting("repl-backlog-size").or_else(|| facts.number("repl_backlog_size"));
    if facts.field("repl_backlog_active") == Some("0") {
        found.note(
            "backlog",
            "the upstream has no backlog yet (it never had a replica): psyncd's first contact costs one RDB",
        );
    }
    if let Some(size) = size {
        let lasts = size as f64 / sizing.rate.max(1.0);
        let text = format!(
            "the upstream's own backlog of {} lasts {} at {}: that is how long psyncd itself may be away",
            bytes(size),
            seconds(lasts),
            rate(sizing.rate)
        );
        if lasts < OWN_ABSENCE.as_secs_f64() && size < sizing.upstream_backlog {
            let wanted = print_bytes(sizing.upstream_backlog);
            found.warning("backlog", text, format!("CONFIG SET repl-backlog-size {wanted}, and CONFIG REWRITE"));
        } else if sizing.rate >= 1.0 {
            found.ok("backlog", text);
        } else {
            found.note(
                "backlog",
                format!("nothing was written while psyncd measured; the upstream's own backlog is {}", bytes(size)),
            );
        }
    }
    if facts.setting("repl-backlog-ttl").is_some_and(|ttl| ttl > 0) {
        let ttl = facts.setting("repl-backlog-ttl").unwrap_or(0);
        found.warning(
            "backlog",
            format!(
                "the upstream throws its backlog and its stream's id away when psyncd was away for {}",
                seconds(ttl as f64)
            ),
            "CONFIG SET repl-backlog-ttl 0, and CONFIG REWRITE",
        );
    }
    if let Some(runway) = sizing.runway_seconds {
        let text = format!("psyncd's backlog outlasts an absence of {} at {}", seconds(runway), rate(sizing.rate));
        if runway < outage.as_secs_f64() {
            let setting = if config.dir.is_some() { "backlog-disk-size" } else { "repl-backlog-size" };
            found.warning(
                "own backlog",
                text,
                format!("{setting} = \"{}\" for {}", print_bytes(sizing.backlog), seconds(outage.as_secs_f64())),
            );
        } else {
            found.ok("own backlog", text);
        }
    }
    if config.dir.is_none() {
        found.note(
            "own backlog",
            "without dir psyncd forgets everything when it is restarted; the upstream's own backlog has to do then",
        );
    }
}

/// A replica that has loaded everything continues from where its RDB was made: what was written since has to be there.
fn full_resync(config: &Config, facts: &Upstream, found: &mut Findings) {
    let rate = facts.rate().unwrap_or(0.0).max(facts.long_rate().unwrap_or(0.0));
    let Some(used) = facts.number("used_memory").filter(|_| rate >= 1.0) else { return };
    let takes = 2.0 * used as f64 / SLOW_RESYNC_BYTES;
    let needed = round_up((rate * HEADROOM * takes) as u64);
    let held = config.repl_backlog_bytes.max(config.journal.map_or(0, |journal| journal.hard_limit_bytes));
    let text = format!(
        "a full resync of {} may take {}, and psyncd's backlog holds what is written in {}",
        bytes(used),
        seconds(takes),
        seconds(held as f64 / rate)
    );
    if held < needed {
        let setting = if config.dir.is_some() { "backlog-disk-hard-limit" } else { "repl-backlog-size" };
        found.warning("full resync", text, format!("{setting} = \"{}\", or it never ends", print_bytes(needed)));
    } else {
        found.ok("full resync", text);
    }
}

fn patience(config: &Config, facts: &Upstream, found: &mut Findings) {
    let ping = facts.setting("repl-ping-replica-period").or_else(|| facts.setting("repl-ping-slave-period"));
    let theirs = facts.setting("repl-timeout");
    if let Some(ping) = ping.filter(|ping| Duration::from_secs(*ping) * 2 > config.repl_timeout) {
        found.problem(
            "timeouts",
            format!(
                "the upstream says something every {ping} s when nothing is written, and psyncd gives it up after {} s",
                config.repl_timeout.as_secs()
            ),
            format!("repl-timeout = \"{}s\" here, or CONFIG SET repl-ping-replica-period 10 there", ping * 6),
        );
    }
    if let (Some(ping), Some(theirs)) = (ping, theirs)
        && theirs <= ping
    {
        found.problem(
            "timeouts",
            format!("the upstream's repl-timeout of {theirs} s is not above its repl-ping-replica-period of {ping} s"),
            format!("CONFIG SET repl-timeout {}", ping * 6),
        );
    } else if let Some(theirs) = theirs.filter(|theirs| *theirs < 10) {
        found.warning(
            "timeouts",
            format!("the upstream gives a silent replica up after {theirs} s"),
            "CONFIG SET repl-timeout 60",
        );
    } else if let Some(theirs) = theirs {
        found.ok("timeouts", format!("repl-timeout is {theirs} s there and {} s here", config.repl_timeout.as_secs()));
    }
    let limit = facts.config.get("client-output-buffer-limit").map_or("", String::as_str);
    let words: Vec<&str> = limit.split_whitespace().collect();
    let hard = words
        .windows(2)
        .find(|pair| matches!(pair[0], "slave" | "replica"))
        .and_then(|pair| pair[1].parse::<u64>().ok());
    let writes = facts.rate().unwrap_or(0.0).max(facts.long_rate().unwrap_or(0.0));
    // What is written while an RDB is made and sent waits in that buffer.
    if let Some(hard) = hard.filter(|hard| *hard > 0 && (*hard as f64) < writes * 60.0) {
        found.warning(
            "output buffer",
            format!(
                "an RDB that takes longer than {} is cut off: client-output-buffer-limit replica is {}",
                seconds(hard as f64 / writes),
                bytes(hard)
            ),
            format!("CONFIG SET client-output-buffer-limit \"replica {} 0 0\"", round_up((writes * 600.0) as u64)),
        );
    }
    if let Some(delay) = facts.setting("repl-diskless-sync-delay")
        && facts.config.get("repl-diskless-sync").is_some_and(|set| set == "yes")
        && delay > 30
    {
        found.note(
            "diskless",
            format!("the upstream waits {delay} s (repl-diskless-sync-delay) before it begins an RDB"),
        );
    }
}

fn replicas_wanted(config: &Config, facts: &Upstream, found: &mut Findings) {
    let least = facts.setting("min-replicas-to-write").or_else(|| facts.setting("min-slaves-to-write"));
    match (least, config.upstream_links) {
        (Some(least @ 2..), Links::Single) => found.problem(
            "min-replicas",
            format!("the upstream refuses writes with fewer than {least} replicas, and psyncd counts as one, however many it has; WAIT {least} fails as well"),
            "upstream-links = \"mirrored\" here, or CONFIG SET min-replicas-to-write 1 there",
        ),
        (Some(1), _) => found.note("min-replicas", "the upstream refuses writes while psyncd is away (min-replicas-to-write 1)"),
        (Some(0), _) => found.ok("min-replicas", "the upstream takes writes without replicas"),
        (Some(least), Links::Mirrored) => {
            found.ok("min-replicas", format!("min-replicas-to-write {least} is met by mirrored links once {least} replicas are online"));
        }
        (None, _) => {}
    }
}

fn data(config: &Config, facts: &Upstream, machine: &Machine, found: &mut Findings) {
    if facts.field("rdb_last_bgsave_status").is_some_and(|status| status != "ok") {
        found.problem(
            "snapshots",
            "the upstream's last RDB failed, so a full resync would as well",
            "look into its log; memory for the fork (vm.overcommit_memory 1) and room on its disk are the usual causes",
        );
    }
    let saves = facts.config.get("save").is_none_or(|save| !save.is_empty());
    let appends = facts.config.get("appendonly").is_some_and(|set| set == "yes");
    if facts.config.contains_key("save") && !saves && !appends {
        found.note(
            "persistence",
            "the upstream keeps nothing on disk: restarted it is empty, which the wipe guard keeps from the replicas",
        );
    } else if appends {
        found.note("persistence", "with appendonly a restart changes the stream's id: it costs psyncd one RDB");
    }
    if let (Some(used), Some((place, free))) = (facts.number("used_memory"), &machine.free) {
        let journal = config.journal.map_or(0, |journal| journal.hard_limit_bytes);
        // Two RDBs may be there at once, the old one and the new; they are rarely larger than the data in memory.
        let needed = used.saturating_mul(2).saturating_add(journal);
        let text = format!("{place} has {} free; two RDBs and the journal may take {}", bytes(*free), bytes(needed));
        if *free < used {
            found.problem("disk", text, "give dir a larger disk (an RDB is kept there until every replica has it)");
        } else if *free < needed {
            found.warning("disk", text, "give dir a larger disk, or lower backlog-disk-size");
        } else {
            found.ok("disk", text);
        }
    }
}

fn clock(facts: &Upstream, found: &mut Findings) {
    if let Some(ahead) = facts.clock_ahead_ms.filter(|ahead| ahead.abs() > 2000) {
        let way = if ahead > 0 { "ahead of" } else { "behind" };
        found.warning(
            "clock",
            format!("the upstream's clock is {} {way} this machine's: logs cannot be compared, keys expire at another time after a failover", seconds(ahead.abs() as f64 / 1000.0)),
            "run chrony or another NTP client on both",
        );
    }
}

fn here(config: &Config, machine: &Machine, facts: Option<&Upstream>, found: &mut Findings) {
    let needed = config.files_needed();
    match machine.open_files {
        Some(limit) if limit < needed => found.warning(
            "open files",
            format!("ulimit -n is {limit}; maxclients and max-replicas may need {needed}"),
            format!("ulimit -n {needed} (LimitNOFILE={needed} with systemd), or a lower maxclients"),
        ),
        Some(limit) => found.ok("open files", format!("ulimit -n is {limit}, {needed} may be needed")),
        None => {}
    }
    if let Some(memory) = machine.memory {
        let backlog = config.repl_backlog_bytes;
        let text = format!("{} of memory can be had here, the backlog takes up to {}", bytes(memory), bytes(backlog));
        if memory < backlog {
            found.problem(
                "memory",
                text,
                format!("repl-backlog-size = \"{}\"", print_bytes((memory / 4).next_power_of_two() / 2)),
            );
        }
    }
    if let Some(why) = &machine.announce {
        found.problem("announce", why.clone(), "set announce-ip and announce-port to what others reach, or neither");
    }
    let loopback_only = config.bind.iter().all(std::net::IpAddr::is_loopback);
    if loopback_only {
        found.note("bind", "psyncd listens on the loopback only: replicas on other hosts need --bind");
    } else if facts.is_some_and(|facts| facts.open)
        && config.protected_mode
        && !(config.allow_replicas.is_set() && config.allow_clients.is_set())
    {
        found.warning(
            "protected mode",
            "the upstream wants no password, so psyncd turns other hosts away",
            "allow-replicas and allow-clients with their networks, or a password on the upstream",
        );
    }
}

#[cfg(test)]
mod tests;
