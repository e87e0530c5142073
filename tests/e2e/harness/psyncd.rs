//! The program under test, run as a user runs it, and what it tells: its log, `/metrics` and `/status`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use super::node::Node;
use super::process::{Process, tail};
use super::resp::Conn;
use super::wait::{wait_until, when};

/// A running psyncd.
#[derive(Debug)]
pub struct Psyncd {
    process: Process,
    /// Where replicas and clients connect; 0 where nobody speaks plainly.
    pub port: u16,
    /// Where people and Prometheus look.
    pub admin: u16,
    face: Option<u16>,
}

impl Psyncd {
    /// In front of a master, on ports of its own choice, and streaming.
    #[track_caller]
    pub fn before(master: &Node) -> Psyncd {
        Psyncd::before_with(master, &[])
    }

    #[track_caller]
    pub fn before_with(master: &Node, options: &[&str]) -> Psyncd {
        let psyncd = Psyncd::toward(&master.address(), options);
        psyncd.wait_for_link();
        psyncd
    }

    /// In front of any address; it has started, but may not have reached it.
    #[track_caller]
    pub fn toward(upstream: &str, options: &[&str]) -> Psyncd {
        Psyncd::start(upstream, options).unwrap_or_else(|log| panic!("psyncd did not start:\n{log}"))
    }

    /// From a configuration file, which says everything.
    #[track_caller]
    pub fn configured(conf: &Path) -> Psyncd {
        let process = Process::start(Path::new(env!("CARGO_BIN_EXE_psyncd")), |command| {
            command.args(["run", "--log-format", "logfmt", "--config"]).arg(conf);
        });
        Psyncd::come_up(process).unwrap_or_else(|log| panic!("psyncd did not start:\n{log}"))
    }

    /// With a shell in front of it that takes something away from it.
    #[track_caller]
    pub fn narrowed(narrow: &str, upstream: &str, options: &[&str]) -> Psyncd {
        Psyncd::come_up(Psyncd::spawn_under(Some(narrow), upstream, options))
            .unwrap_or_else(|log| panic!("psyncd did not start:\n{log}"))
    }

    /// With Sentinels to ask and no upstream.
    #[track_caller]
    pub fn looking(options: &[&str]) -> Psyncd {
        Psyncd::start("", options).unwrap_or_else(|log| panic!("psyncd did not start:\n{log}"))
    }

    /// The port of its replica face, which was asked for.
    #[track_caller]
    pub fn face(&self) -> u16 {
        self.face.expect("it has a replica face")
    }

    /// Starts it, or gives back what it said when it would not.
    fn start(upstream: &str, options: &[&str]) -> Result<Psyncd, String> {
        Psyncd::come_up(Psyncd::spawn(upstream, options))
    }

    fn come_up(mut process: Process) -> Result<Psyncd, String> {
        let started = wait_until("psyncd says that it started, or ends", || {
            let said = process.said();
            match said.lines().find(|line| line.contains("psyncd started")) {
                Some(line) => Ok(Some(line.to_owned())),
                None if process.ended().is_some() => Ok(None),
                None => Err(said),
            }
        });
        let Some(line) = started else { return Err(process.said()) };
        let port_of = |field: &str| {
            let value = line.split_whitespace().find_map(|word| word.strip_prefix(field));
            let value = value.unwrap_or_else(|| panic!("no {field} in {line:?}")).trim_matches('"');
            if value == "none" {
                return 0;
            }
            value
                .rsplit(':')
                .next()
                .and_then(|port| port.parse().ok())
                .unwrap_or_else(|| panic!("no port in {value:?}"))
        };
        let (port, admin) = (port_of("listen="), port_of("admin="));
        let face = (!line.contains("face=none")).then(|| port_of("face="));
        Ok(Psyncd { process, port, admin, face })
    }

    /// The bare process, for starts that must fail. The options win over the harness's own.
    pub fn spawn(upstream: &str, options: &[&str]) -> Process {
        Psyncd::spawn_under(None, upstream, options)
    }

    fn spawn_under(narrow: Option<&str>, upstream: &str, options: &[&str]) -> Process {
        let ours =
            [("--upstream", upstream), ("--port", "0"), ("--admin-bind", "127.0.0.1:0"), ("--log-format", "logfmt")];
        let binary = env!("CARGO_BIN_EXE_psyncd");
        Process::start(Path::new(if narrow.is_some() { "/bin/sh" } else { binary }), |command| {
            if let Some(narrow) = narrow {
                command.args(["-c", &format!("{narrow} exec \"$@\""), "sh", binary]);
            }
            command.arg("run");
            for (name, value) in ours.iter().filter(|(name, value)| !value.is_empty() && !options.contains(name)) {
                command.arg(name).arg(value);
            }
            command.args(options);
        })
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    #[track_caller]
    pub fn conn(&self) -> Conn {
        Conn::to(self.port)
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn log(&self) -> String {
        self.process.said()
    }

    /// Waits until it streams from its upstream.
    #[track_caller]
    pub fn wait_for_link(&self) {
        wait_until("psyncd streams from its upstream", || {
            let up = self.metrics().one("psyncd_upstream_link_up", &[]);
            when(up == 1.0, || format!("psyncd_upstream_link_up is {up}; its log ends\n{}", tail(&self.log(), 12)))
        });
    }

    /// Waits until it knows that its upstream is gone.
    #[track_caller]
    pub fn wait_for_lost_link(&self) {
        wait_until("psyncd notices that its upstream is gone", || {
            let up = self.metrics().one("psyncd_upstream_link_up", &[]);
            when(up == 0.0, || format!("psyncd_upstream_link_up is {up}"))
        });
    }

    /// Waits until so many replicas are online behind it.
    #[track_caller]
    pub fn wait_for_replicas(&self, count: usize) {
        wait_until(&format!("{count} replicas are online behind psyncd"), || {
            let online = self.metrics().sum("psyncd_replicas", &[("state", "online")]);
            when(online == count as f64, || format!("{online} are; its log ends\n{}", tail(&self.log(), 12)))
        });
    }

    /// What `/metrics` says now.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let (status, body) = self.get("/metrics");
        assert_eq!(status, 200, "/metrics: {body}");
        Metrics::parse(&body)
    }

    /// What `/status` says now.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let (status, body) = self.get("/status");
        assert_eq!(status, 200, "/status: {body}");
        serde_json::from_str(&body).unwrap_or_else(|why| panic!("/status is no JSON ({why}): {body}"))
    }

    /// Partial and full resyncs that replicas got from it so far.
    #[track_caller]
    pub fn resyncs(&self) -> Resyncs {
        let metrics = self.metrics();
        let count = |kind| metrics.sum("psyncd_resyncs_total", &[("kind", kind)]) as i64;
        Resyncs { partial: count("partial"), full: count("full") }
    }

    /// GET on the admin port: status code and body.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        get(self.admin, path).unwrap_or_else(|why| panic!("GET {path}: {why}; log ends\n{}", tail(&self.log(), 12)))
    }
}

impl Drop for Psyncd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- psyncd on port {}, its log ends:\n{}", self.port, tail(&self.log(), 60));
        }
    }
}

/// Resyncs served to replicas, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resyncs {
    pub partial: i64,
    pub full: i64,
}

/// POST on an admin port: status code and body.
#[track_caller]
pub fn post(port: u16, path: &str) -> (u16, String) {
    http(port, "POST", path).unwrap_or_else(|why| panic!("POST {path}: {why}"))
}

fn get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    http(port, "GET", path)
}

fn http(port: u16, method: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let bad = || std::io::Error::new(std::io::ErrorKind::InvalidData, format!("no HTTP answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if chunked { unchunk(body).ok_or_else(bad)? } else { body.to_owned() }))
}

fn unchunk(mut rest: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n")?;
        let length = usize::from_str_radix(length.trim(), 16).ok()?;
        if length == 0 {
            return Some(whole);
        }
        whole.push_str(after.get(..length)?);
        rest = after.get(length + 2..)?;
    }
}

/// One scrape.
#[derive(Clone, Debug)]
pub struct Metrics {
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Metrics {
    fn parse(text: &str) -> Metrics {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Metrics { samples: lines.map(sample).collect() }
    }

    /// The sum over all series of that name that have these labels; 0 when there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|(_, _, value)| value).sum()
    }

    /// The only series of that name with these labels.
    #[track_caller]
    pub fn one(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found: Vec<_> = self.matching(name, labels).collect();
        assert_eq!(found.len(), 1, "series {name}{labels:?}: {found:?}");
        found[0].2
    }

    fn matching<'m>(
        &'m self,
        name: &'m str,
        labels: &'m [(&str, &str)],
    ) -> impl Iterator<Item = &'m (String, BTreeMap<String, String>, f64)> {
        self.samples.iter().filter(move |(series, has, _)| {
            series == name && labels.iter().all(|(key, value)| has.get(*key).is_some_and(|own| own == value))
        })
    }
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line:?}"));
    let value = value.parse().unwrap_or_else(|_| panic!("no number: {line:?}"));
    let Some((name, labels)) = series.split_once('{') else { return (series.to_owned(), BTreeMap::new(), value) };
    let labels = labels.trim_end_matches('}').split("\",").filter_map(|label| label.split_once("=\""));
    (
        name.to_owned(),
        labels.map(|(key, value)| (key.to_owned(), value.trim_end_matches('"').to_owned())).collect(),
        value,
    )
}
