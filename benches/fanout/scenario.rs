//! What is measured, how, and of whom.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::device::{Device, Kind, Places, Settings};
use super::fleet::{Check, Stage};
use super::master::{Framing, Pace};
use super::rig::{Marks, PATIENCE, Plan, Rig};

const MIB: u64 = 1 << 20;

/// One thing to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Full speed to so many.
    Fanout(usize),
    /// Ten thousand commands a second to so many.
    Latency(usize),
    /// A whole snapshot to eight at once, from a device that just started, and again from one that has it.
    FullSync,
    /// The same one after the other.
    Staggered,
    /// All cut and back at once.
    Storm,
    /// One slow among eight.
    Slow,
    /// Ordinary commands through the device.
    Passthrough,
    /// Full speed to eight through two.
    Chain,
    /// Many replicas, some slow.
    Memory,
    /// psyncd is killed under load and started again.
    Restart,
}

/// Words of the command line.
pub const WORDS: [&str; 10] =
    ["fanout", "latency", "fullsync", "staggered", "storm", "slow", "passthrough", "chain", "memory", "restart"];

/// How much of everything.
#[derive(Debug, Clone)]
pub struct Scale {
    /// Sizes of the fan-out.
    pub fanouts: Vec<usize>,
    /// Sizes of the fan-out at a fixed rate.
    pub latencies: Vec<usize>,
    /// Length of a window of full speed.
    pub window: Duration,
    /// Bytes of a large snapshot.
    pub rdb_bytes: u64,
    /// Replicas of the storm.
    pub storm: usize,
    /// Replicas of the memory scenario, and how many of them are slow.
    pub crowd: (usize, usize),
    /// Its length.
    pub crowd_window: Duration,
    /// Bytes a second of the stream beside a slow replica, and the length of it.
    pub slow: (f64, Duration),
    /// Backlog of the scenarios in which a replica is to fall out of it.
    pub small_backlog: u64,
    /// Requests of each pass-through test without pipelining.
    pub requests: u64,
    /// How closely bytes are looked at.
    pub check: Check,
    /// How snapshots are delimited.
    pub framing: Framing,
    /// Periods between GETACKs.
    pub getack_periods: u64,
    /// Bytes of each value.
    pub value_bytes: usize,
}

/// What one run gave: metric and value.
pub type Values = Vec<(&'static str, f64)>;

/// One run, with how busy the machine was with other things.
pub struct Outcome {
    /// What was measured.
    pub values: Values,
    /// In cores.
    pub other_cores: f64,
}

impl Scenario {
    /// The scenarios that `word` stands for.
    pub fn of(word: &str, scale: &Scale) -> Vec<Self> {
        match word {
            "fanout" => scale.fanouts.iter().map(|&n| Scenario::Fanout(n)).collect(),
            "latency" => scale.latencies.iter().map(|&n| Scenario::Latency(n)).collect(),
            "fullsync" => vec![Scenario::FullSync],
            "staggered" => vec![Scenario::Staggered],
            "storm" => vec![Scenario::Storm],
            "slow" => vec![Scenario::Slow],
            "passthrough" => vec![Scenario::Passthrough],
            "chain" => vec![Scenario::Chain],
            "memory" => vec![Scenario::Memory],
            "restart" => vec![Scenario::Restart],
            _ => Vec::new(),
        }
    }

    /// What it is called in results.
    pub fn name(self) -> String {
        match self {
            Scenario::Fanout(n) => format!("fanout/{n}"),
            Scenario::Latency(n) => format!("latency/{n}"),
            Scenario::FullSync => "fullsync/8".into(),
            Scenario::Staggered => "staggered/8".into(),
            Scenario::Storm => "storm".into(),
            Scenario::Slow => "slow/8".into(),
            Scenario::Passthrough => "passthrough".into(),
            Scenario::Chain => "chain/8".into(),
            Scenario::Memory => "memory".into(),
            Scenario::Restart => "restart/50".into(),
        }
    }

    /// Whom it makes sense for.
    pub fn devices(self) -> &'static [Kind] {
        use Kind::*;
        match self {
            Scenario::Fanout(n) if n > 128 => &[Copy, Sendfile, Psyncd, Redis, Valkey],
            Scenario::Fanout(_) => &[Copy, Sendfile, Psyncd, PsyncdJournal, Redis, Valkey, Haproxy, Nginx],
            Scenario::Latency(n) if n > 8 => &[Direct, Copy, Psyncd, Redis, Valkey],
            Scenario::Latency(_) => &[Direct, Copy, Psyncd, Redis, Valkey, Haproxy, Nginx],
            Scenario::FullSync => &[Copy, Sendfile, Psyncd, Redis, Valkey],
            Scenario::Staggered => &[Psyncd, Redis, Valkey],
            Scenario::Storm => &[Copy, Sendfile, Psyncd, Redis, Valkey],
            Scenario::Slow => &[Psyncd, Redis, Valkey],
            Scenario::Passthrough => &[Direct, Psyncd, Haproxy, Nginx],
            Scenario::Chain => &[Psyncd, PsyncdChain],
            Scenario::Memory => &[Psyncd, Redis, Valkey],
            Scenario::Restart => &[PsyncdJournal],
        }
    }

    /// Whom the others are compared with.
    pub fn baselines(self) -> &'static [Kind] {
        match self {
            Scenario::Fanout(_) | Scenario::Latency(_) | Scenario::FullSync | Scenario::Storm => {
                &[Kind::Copy, Kind::Redis]
            }
            Scenario::Staggered | Scenario::Slow | Scenario::Memory => &[Kind::Redis],
            Scenario::Passthrough => &[Kind::Direct],
            Scenario::Chain => &[Kind::Psyncd],
            Scenario::Restart => &[],
        }
    }

    /// Measures `kind` once. `round` holds what others gave in this round.
    pub fn run(self, kind: Kind, places: &Places, scale: &Scale, round: &[(Kind, Values)]) -> Result<Outcome> {
        match self {
            Scenario::Fanout(n) => fanout(kind, places, scale, n),
            Scenario::Chain => fanout(kind, places, scale, 8),
            Scenario::Latency(n) => latency(kind, places, scale, n, round),
            Scenario::FullSync => full_sync(kind, places, scale, Duration::ZERO),
            Scenario::Staggered => full_sync(kind, places, scale, Duration::from_millis(200)),
            Scenario::Storm => storm(kind, places, scale),
            Scenario::Slow => slow(kind, places, scale),
            Scenario::Passthrough => passthrough(kind, places, scale),
            Scenario::Memory => memory(kind, places, scale),
            Scenario::Restart => restart(kind, places, scale),
        }
    }
}

impl Scale {
    fn plan(&self, replicas: usize) -> Plan {
        Plan {
            value_bytes: self.value_bytes,
            getack_periods: self.getack_periods,
            rdb_bytes: 0,
            framing: self.framing,
            backlog_bytes: 256 * MIB,
            replicas,
            stagger: Duration::ZERO,
            slow: 0,
            slow_rate: 0.0,
            check: self.check,
        }
    }
}

fn fanout(kind: Kind, places: &Places, scale: &Scale, replicas: usize) -> Result<Outcome> {
    let rig = Rig::online(kind, places, scale.plan(replicas))?;
    rig.flow(Pace::Full(64 * MIB))?;
    rig.window(scale.window / 4)?;
    let window = rig.window(scale.window)?;
    rig.finish()?;
    if window.delivered == 0.0 {
        bail!("nothing was delivered");
    }
    let values = vec![
        ("delivered_mb_s", window.delivered / window.seconds / 1e6),
        ("cpu_s_per_gb", window.cpu / window.delivered * 1e9),
        ("cpu_cores", window.cpu / window.seconds),
        ("peak_rss_mib", rig.device.peak_rss() as f64 / MIB as f64),
    ];
    Ok(Outcome { values, other_cores: window.other_cores })
}

fn latency(kind: Kind, places: &Places, scale: &Scale, replicas: usize, round: &[(Kind, Values)]) -> Result<Outcome> {
    let rig = Rig::online(kind, places, Plan { value_bytes: 100, ..scale.plan(replicas) })?;
    rig.flow(Pace::Rate(10_000.0))?;
    rig.fleet.view.timing.store(true, Ordering::Relaxed);
    rig.window(scale.window / 4)?;
    // What was recorded while it warmed up.
    drop(rig.fleet.take_delays());
    let window = rig.window(scale.window)?;
    let mut delays = rig.fleet.take_delays();
    rig.finish()?;
    delays.sort_unstable();
    let quantile = |q: f64| delays.get((delays.len() as f64 * q) as usize).copied().unwrap_or(0) as f64 / 1e3;
    let p50_us = quantile(0.5);
    let mut values =
        vec![("p50_us", p50_us), ("p99_us", quantile(0.99)), ("cpu_s_per_gb", window.cpu / window.delivered * 1e9)];
    let direct = round.iter().find(|(kind, _)| *kind == Kind::Direct).and_then(|(_, values)| metric(values, "p50_us"));
    if let (Some(direct_us), true) = (direct, kind != Kind::Direct) {
        values.push(("hop_p50_us", p50_us - direct_us));
    }
    Ok(Outcome { values, other_cores: window.other_cores })
}

/// The value of `name`.
pub fn metric(values: &Values, name: &str) -> Option<f64> {
    values.iter().find(|(metric, _)| *metric == name).map(|(_, value)| *value)
}

fn full_sync(kind: Kind, places: &Places, scale: &Scale, stagger: Duration) -> Result<Outcome> {
    // Both ways to delimit a snapshot are seen in every run of everything.
    let framing = if stagger.is_zero() { scale.framing } else { Framing::Length };
    let rig = Rig::launch(kind, places, Plan { rdb_bytes: scale.rdb_bytes, stagger, framing, ..scale.plan(8) })?;
    let begun = Marks::of(&rig.device, 0);
    rig.judge(rig.fleet.wait("in possession of the snapshot", PATIENCE * 2, |row| row.stage() == Stage::Online))?;
    let cold = Marks::of(&rig.device, 0).since(&begun);
    let shared = &rig.master.shared;
    let mut values = vec![
        ("cold_s", cold.seconds),
        ("cold_cpu_s", cold.cpu),
        ("rdbs_from_master", shared.rdbs.load(Ordering::Relaxed) as f64),
    ];
    if !matches!(kind, Kind::Copy | Kind::Sendfile) && stagger.is_zero() {
        // A fork that has just sent everything is still to be collected.
        std::thread::sleep(Duration::from_millis(300));
        let begun = Marks::of(&rig.device, 0);
        let second = rig.second_fleet()?;
        rig.judge(second.wait("in possession of the snapshot", PATIENCE * 2, |row| row.stage() == Stage::Online))?;
        let waited = Marks::of(&rig.device, 0).since(&begun).seconds;
        std::thread::sleep(Duration::from_millis(300));
        let warm = Marks::of(&rig.device, 0).since(&begun);
        values.push(("warm_s", waited));
        values.push(("warm_cpu_s", warm.cpu));
        values.push(("rdbs_from_master_both", shared.rdbs.load(Ordering::Relaxed) as f64));
    }
    values.push(("peak_rss_mib", rig.device.peak_rss() as f64 / MIB as f64));
    let rdbs = shared.rdbs.load(Ordering::Relaxed);
    ensure!(rdbs == 1 || !kind.is_ours(), "{rdbs} snapshots left the master instead of one");
    // The stream goes on behind the snapshot.
    rig.flow(Pace::Rate(10_000.0))?;
    rig.finish()?;
    Ok(Outcome { values, other_cores: cold.other_cores })
}

fn storm(kind: Kind, places: &Places, scale: &Scale) -> Result<Outcome> {
    let rig = Rig::online(kind, places, scale.plan(scale.storm))?;
    let rate = 20e6 / rig.master.shared.layout.slot_bytes() as f64;
    rig.flow(Pace::Rate(rate))?;
    rig.window(Duration::from_millis(500))?;
    rig.fleet.cut();
    // Long enough to fall behind, short enough for the ring of the limits.
    std::thread::sleep(Duration::from_millis(500));
    let begun = Marks::now(&rig);
    rig.fleet.come_back();
    let deadline = Instant::now() + PATIENCE;
    let back = loop {
        rig.judge(rig.fleet.verdict())?;
        match rig.fleet.back() {
            Some(back) => break back,
            None if Instant::now() > deadline => {
                let rows = &rig.fleet.view.rows;
                let count = |stage| rows.iter().filter(|row| row.stage() == stage).count();
                let late = Err(anyhow!(
                    "the replicas were not back within {PATIENCE:?}: {} down, {} greeting, {} loading, {} online",
                    count(Stage::Down),
                    count(Stage::Greeting),
                    count(Stage::Loading),
                    count(Stage::Online)
                ));
                rig.judge(late)?;
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let window = Marks::now(&rig).since(&begun);
    rig.finish()?;
    let fulls: u32 = rig.fleet.view.rows.iter().map(|row| row.fulls.load(Ordering::Relaxed)).sum();
    let values = vec![
        ("back_ms", back.as_secs_f64() * 1e3),
        ("back_cpu_s", window.cpu),
        ("full_resyncs", f64::from(fulls) - scale.storm as f64),
    ];
    Ok(Outcome { values, other_cores: window.other_cores })
}

/// Fifty replicas lose a psyncd that is killed in a stream of 20 MB/s, and come back to the one that is started at once.
fn restart(kind: Kind, places: &Places, scale: &Scale) -> Result<Outcome> {
    const REPLICAS: usize = 50;
    let mut rig = Rig::online(kind, places, scale.plan(REPLICAS))?;
    rig.flow(Pace::Rate(20e6 / rig.master.shared.layout.slot_bytes() as f64))?;
    rig.window(scale.window)?;
    let snapshots = rig.master.shared.rdbs.load(Ordering::Relaxed);
    // A replica that is dropped is a failure everywhere else, so these let go themselves, at the same moment.
    rig.fleet.cut();
    rig.judge(rig.fleet.wait("down", PATIENCE, |row| row.stage() == Stage::Down))?;
    let begun = Marks::now(&rig);
    rig.device.kill_and_restart()?;
    let listening = Marks::now(&rig).since(&begun).seconds;
    rig.fleet.come_back();
    let deadline = Instant::now() + PATIENCE;
    while rig.fleet.back().is_none() {
        rig.judge(rig.fleet.verdict())?;
        if Instant::now() > deadline {
            rig.judge(Err(anyhow!("the replicas were not back within {PATIENCE:?}")))?;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let window = Marks::now(&rig).since(&begun);
    rig.finish()?;
    let fulls: u32 = rig.fleet.view.rows.iter().map(|row| row.fulls.load(Ordering::Relaxed)).sum();
    let rdbs = rig.master.shared.rdbs.load(Ordering::Relaxed) - snapshots;
    ensure!(rdbs == 0 && fulls as usize == REPLICAS, "a restart cost {rdbs} snapshots of the master");
    let values = vec![
        ("listening_ms", listening * 1e3),
        ("all_back_ms", window.seconds * 1e3),
        ("full_resyncs", f64::from(fulls) - REPLICAS as f64),
        ("rdbs_from_master", rdbs as f64),
    ];
    Ok(Outcome { values, other_cores: window.other_cores })
}

fn slow(kind: Kind, places: &Places, scale: &Scale) -> Result<Outcome> {
    let (rate, length) = scale.slow;
    let plan = Plan { slow: 1, slow_rate: 1e6, backlog_bytes: scale.small_backlog, ..scale.plan(8) };
    let rig = Rig::online(kind, places, plan)?;
    let shared = &rig.master.shared;
    let start = shared.head.load(Ordering::Relaxed);
    let begun = Marks::now(&rig);
    rig.master.pace(Pace::Rate(rate / shared.layout.slot_bytes() as f64));
    let until = Instant::now() + length;
    let mut lags = Vec::new();
    let mut shares = Vec::new();
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
        rig.judge(rig.fleet.verdict())?;
        let head = shared.head.load(Ordering::Relaxed);
        let slowest = rig.fleet.fast().iter().map(|row| row.at.load(Ordering::Relaxed)).min().unwrap_or(head);
        lags.extend(
            rig.fleet.fast().iter().map(|row| head.saturating_sub(row.at.load(Ordering::Relaxed)) as f64 / 1e6),
        );
        shares.push(slowest.saturating_sub(start) as f64 / (head - start).max(1) as f64);
    }
    let window = Marks::now(&rig).since(&begun);
    rig.finish()?;
    lags.sort_by(f64::total_cmp);
    let lost = rig.fleet.view.rows[0].lost.load(Ordering::Relaxed);
    let values = vec![
        ("share_of_others", shares.last().copied().unwrap_or(0.0)),
        ("lag_p50_mb", lags[lags.len() / 2]),
        ("lag_max_mb", lags[lags.len() - 1]),
        ("slow_one_dropped", f64::from(lost)),
        ("cpu_cores", window.cpu / window.seconds),
        ("peak_rss_mib", rig.device.peak_rss() as f64 / MIB as f64),
    ];
    Ok(Outcome { values, other_cores: window.other_cores })
}

fn memory(kind: Kind, places: &Places, scale: &Scale) -> Result<Outcome> {
    let (replicas, slow) = scale.crowd;
    let plan = Plan { slow, slow_rate: 0.3e6, backlog_bytes: scale.small_backlog, ..scale.plan(replicas) };
    let rig = Rig::online(kind, places, plan)?;
    rig.flow(Pace::Rate(3e6 / rig.master.shared.layout.slot_bytes() as f64))?;
    let window = rig.window(scale.crowd_window)?;
    let peak = rig.device.peak_rss();
    rig.finish()?;
    let values = vec![
        ("peak_rss_mib", peak as f64 / MIB as f64),
        ("over_backlog_mib", (peak as f64 - scale.small_backlog as f64) / MIB as f64),
        ("cpu_cores", window.cpu / window.seconds),
        ("cpu_s_per_gb", window.cpu / window.delivered * 1e9),
    ];
    Ok(Outcome { values, other_cores: window.other_cores })
}

/// Requests a second of SET and of GET that `program` gets through at `address`.
fn benchmark_at(program: &Path, address: SocketAddr, pipeline: &str, requests: u64) -> Result<[f64; 2]> {
    let output = Command::new(program)
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
        .args(["-c", "50", "-t", "set,get", "-P", pipeline, "-n", &requests.to_string(), "--csv"])
        .output()
        .context("run redis-benchmark")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = |test: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(&format!("\"{test}\",\""))?.split('"').next()?.parse().ok())
            .with_context(|| format!("redis-benchmark gave no {test}: {text}"))
    };
    Ok([rate("SET")?, rate("GET")?])
}

fn passthrough(kind: Kind, places: &Places, scale: &Scale) -> Result<Outcome> {
    let program = places.redis.as_deref().context("there is no redis-server to pass commands to")?;
    let benchmark = places.redis_benchmark.as_deref().context("there is no redis-benchmark")?;
    let master = Device::real_master(program)?;
    let settings = Settings { replicas: 1, backlog_bytes: 16 * MIB };
    let device = Device::start(kind, places, master.address, &settings)?;
    // A device that follows its master as well does so from here on.
    std::thread::sleep(Duration::from_millis(200));
    let begun = Marks::of(&device, 0);
    let mut values = Vec::new();
    let tests = [
        ("1", scale.requests, ["p1_set_rps", "p1_get_rps"]),
        ("16", scale.requests * 5, ["p16_set_rps", "p16_get_rps"]),
    ];
    for (pipeline, requests, names) in tests {
        let rates = benchmark_at(benchmark, device.address, pipeline, requests)?;
        device.verdict()?;
        values.extend(names.into_iter().zip(rates));
    }
    let window = Marks::of(&device, 0).since(&begun);
    values.push(("cpu_s", window.cpu));
    if kind == Kind::Psyncd {
        // psyncd is the master's replica meanwhile, the other proxies are not: what that alone costs the clients.
        let rates = benchmark_at(benchmark, master.address, "16", scale.requests * 5)?;
        values.push(("p16_set_rps_at_the_master", rates[0]));
    }
    // The real server and redis-benchmark are not told from other load here.
    Ok(Outcome { values, other_cores: f64::NAN })
}
