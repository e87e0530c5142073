//! The benchmark: what psyncd costs beside what would be used instead of it and beside the limit of the machine,
//! all in one run. `benches/README.md` tells how to run and how to read it.
//!
//! ```text
//!   master (thread)  ──stream──▶  device (child process)  ──stream──▶  fleet (thread): N replicas
//!                                 CPU and memory from the kernel
//! ```
//!
//! Reading order: `stream` (what is sent, and how any byte of it is checked), `master`, `fleet`, `device`, `limit`
//! (the copy and the sendfile limit), `rig` (all put together), `scenario` (what is measured), `report`.
//! Nothing here uses the code it measures.

mod device;
mod doubt;
mod fleet;
mod limit;
mod load;
mod master;
mod poll;
mod rdb;
mod report;
mod rig;
mod scenario;
mod stream;
mod talk;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

use device::{Kind, Places};
use fleet::Check;
use limit::Limit;
use master::Framing;
use report::Report;
use scenario::{Scale, Scenario, WORDS};

/// Measures psyncd beside its peers and beside the limit of the machine.
#[derive(Debug, Parser)]
#[command(name = "fanout", bin_name = "cargo bench --bench fanout --")]
struct Arguments {
    /// What to measure; all, unless said: fanout latency fullsync staggered storm slow passthrough chain memory restart.
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// A minute, every byte checked, of psyncd and the limits only: for correctness, not for numbers.
    #[arg(long)]
    quick: bool,
    /// Rounds. In each every device is measured once, one after the other.
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// Length of a window of full speed.
    #[arg(long, value_name = "SECONDS")]
    window: Option<f64>,
    /// Sizes of the fan-out.
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    fanout: Vec<usize>,
    /// Sizes of the fan-out at a fixed rate.
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    latency: Vec<usize>,
    /// Only these devices.
    #[arg(long, value_name = "DEVICE,…", value_delimiter = ',')]
    devices: Vec<Kind>,
    /// Size of a large snapshot.
    #[arg(long, value_name = "MIB")]
    rdb_mib: Option<u64>,
    /// Bytes of each value of the stream.
    #[arg(long, value_name = "BYTES")]
    value_bytes: Option<usize>,
    /// Check every byte, which takes time from whoever shares the cores.
    #[arg(long)]
    check_every_byte: bool,
    /// Folders that hold NAME/bin/redis-server; looked into before PATH. [default: target/servers]
    #[arg(long, value_name = "DIR")]
    servers: Vec<PathBuf>,
    /// Where JSON lines go.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Be a limit instead.
    #[arg(long, hide = true)]
    limit: Option<Limit>,
    #[arg(long, hide = true)]
    master: Option<SocketAddr>,
    #[arg(long, hide = true, default_value_t = 1)]
    replicas: usize,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fanout: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if let (Some(limit), Some(master)) = (arguments.limit, arguments.master) {
        limit::run(limit, master, arguments.replicas)?;
        return Ok(ExitCode::SUCCESS);
    }
    doubt::check_the_checks().context("the harness does not notice what it has to")?;
    let begun = Instant::now();
    let scale = scale(&arguments);
    let scenarios = chosen(&arguments, &scale)?;
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into()));
    let servers =
        if arguments.servers.is_empty() { vec![root.join("target/servers")] } else { arguments.servers.clone() };
    let places = Places::find(&servers);
    let mut report = Report::new(arguments.json.as_deref()).context("create the file of JSON lines")?;
    report.fact("machine", &load::machine())?;
    let runs = arguments.runs.unwrap_or(if arguments.quick { 1 } else { 5 });
    let devices = present(&arguments, &places, &mut report)?;
    for scenario in scenarios {
        let kinds: Vec<Kind> = scenario.devices().iter().copied().filter(|kind| devices.contains(kind)).collect();
        if scenario == Scenario::Passthrough && (places.redis.is_none() || places.redis_benchmark.is_none()) {
            report.fact("left out", "passthrough: needs a redis-server and a redis-benchmark")?;
            continue;
        }
        for round in 0..runs {
            measure(scenario, round, &kinds, &places, &scale, &mut report)?;
        }
    }
    println!("{}", report.table());
    conclude(&report, begun.elapsed())
}

/// One round: every device once, in turn.
fn measure(
    scenario: Scenario,
    round: usize,
    kinds: &[Kind],
    places: &Places,
    scale: &Scale,
    report: &mut Report,
) -> Result<()> {
    let mut given = Vec::new();
    for &kind in kinds {
        match scenario.run(kind, places, scale, &given) {
            Ok(outcome) => {
                given.push((kind, outcome.values.clone()));
                report.add(scenario, kind, round, outcome)?;
            }
            Err(error) => report.refuse(scenario, kind, round, format!("{error:#}"))?,
        }
    }
    Ok(())
}

fn chosen(arguments: &Arguments, scale: &Scale) -> Result<Vec<Scenario>> {
    let words: Vec<&str> = match &arguments.scenarios[..] {
        [] => WORDS.into(),
        some => some.iter().map(String::as_str).collect(),
    };
    if let Some(unknown) = words.iter().find(|word| !WORDS.contains(word)) {
        bail!("there is no scenario \"{unknown}\"; there are: {}", WORDS.join(" "));
    }
    Ok(words.into_iter().flat_map(|word| Scenario::of(word, scale)).collect())
}

/// The devices that can be run, after telling which cannot.
fn present(arguments: &Arguments, places: &Places, report: &mut Report) -> Result<Vec<Kind>> {
    use clap::ValueEnum;
    let quick = [Kind::Psyncd, Kind::PsyncdJournal, Kind::PsyncdChain, Kind::Copy, Kind::Sendfile, Kind::Direct];
    let wanted: Vec<Kind> = match (&arguments.devices[..], arguments.quick) {
        ([], true) => quick.into(),
        ([], false) => Kind::value_variants().into(),
        (some, _) => some.into(),
    };
    for kind in wanted.iter().filter(|kind| !places.has(**kind)) {
        report.fact("left out", &format!("{}: not found in the folders of servers nor in PATH", kind.as_str()))?;
    }
    let present: Vec<Kind> = wanted.into_iter().filter(|kind| places.has(*kind)).collect();
    for kind in &present {
        if let Some(version) = places.version(*kind) {
            report.fact(kind.as_str(), &version)?;
        }
    }
    Ok(present)
}

fn scale(arguments: &Arguments) -> Scale {
    let mut scale = if arguments.quick { quick() } else { full() };
    if !arguments.fanout.is_empty() {
        scale.fanouts.clone_from(&arguments.fanout);
    }
    if !arguments.latency.is_empty() {
        scale.latencies.clone_from(&arguments.latency);
    }
    if let Some(seconds) = arguments.window {
        scale.window = Duration::from_secs_f64(seconds);
    }
    if let Some(mib) = arguments.rdb_mib {
        scale.rdb_bytes = mib << 20;
    }
    if let Some(bytes) = arguments.value_bytes {
        scale.value_bytes = bytes.max(64);
    }
    if arguments.check_every_byte {
        scale.check = Check::Every;
    }
    scale
}

fn full() -> Scale {
    Scale {
        fanouts: vec![1, 8, 32, 128, 512],
        latencies: vec![8],
        window: Duration::from_secs(3),
        rdb_bytes: 1 << 30,
        storm: 100,
        crowd: (512, 50),
        crowd_window: Duration::from_secs(15),
        slow: (50e6, Duration::from_secs(10)),
        small_backlog: 32 << 20,
        requests: 100_000,
        check: Check::Spot,
        framing: Framing::Mark,
        getack_periods: 64,
        value_bytes: 256,
    }
}

fn quick() -> Scale {
    Scale {
        fanouts: vec![1, 8, 32],
        latencies: vec![8],
        window: Duration::from_millis(800),
        rdb_bytes: 64 << 20,
        storm: 30,
        crowd: (128, 12),
        crowd_window: Duration::from_secs(3),
        slow: (20e6, Duration::from_secs(3)),
        small_backlog: 8 << 20,
        requests: 20_000,
        check: Check::Every,
        framing: Framing::Mark,
        getack_periods: 1,
        value_bytes: 256,
    }
}

fn conclude(report: &Report, elapsed: Duration) -> Result<ExitCode> {
    println!("took {:.0} s", elapsed.as_secs_f64());
    for (scenario, kind, why) in &report.refused {
        eprintln!("refused to report {scenario} of {}: {why}", kind.as_str());
    }
    // That a peer loses replicas is a finding; that we do is a failure.
    let failed = report.refused.iter().any(|(_, kind, _)| kind.is_ours());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
