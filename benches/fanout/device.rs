//! The devices under test: each a process (or two) between the synthetic master and the synthetic replicas.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use super::fleet::Snapshot;
use super::load;

const PATIENCE: Duration = Duration::from_secs(20);

/// What stands in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// psyncd.
    Psyncd,
    /// psyncd that keeps a journal.
    PsyncdJournal,
    /// psyncd behind psyncd.
    PsyncdChain,
    /// A redis-server that is a replica of the master.
    Redis,
    /// A valkey-server that is a replica of the master.
    Valkey,
    /// haproxy, one connection to the master for each replica.
    Haproxy,
    /// nginx, likewise.
    Nginx,
    /// The copy limit.
    Copy,
    /// The sendfile limit.
    Sendfile,
    /// Nothing.
    Direct,
}

impl Kind {
    /// What it is called in results.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Psyncd => "psyncd",
            Kind::PsyncdJournal => "psyncd-journal",
            Kind::PsyncdChain => "psyncd-chain",
            Kind::Redis => "redis-chain",
            Kind::Valkey => "valkey-chain",
            Kind::Haproxy => "haproxy",
            Kind::Nginx => "nginx",
            Kind::Copy => "copy-limit",
            Kind::Sendfile => "sendfile-limit",
            Kind::Direct => "direct",
        }
    }

    /// Whether it is part of this project: then a failure of it is a failure of the run.
    pub fn is_ours(self) -> bool {
        match self {
            Kind::Psyncd | Kind::PsyncdJournal | Kind::PsyncdChain | Kind::Copy | Kind::Sendfile | Kind::Direct => true,
            Kind::Redis | Kind::Valkey | Kind::Haproxy | Kind::Nginx => false,
        }
    }

    /// What replicas get for a snapshot.
    pub fn snapshot(self) -> Snapshot {
        match self {
            Kind::Redis | Kind::Valkey => Snapshot::Own,
            Kind::Psyncd
            | Kind::PsyncdJournal
            | Kind::PsyncdChain
            | Kind::Haproxy
            | Kind::Nginx
            | Kind::Copy
            | Kind::Sendfile
            | Kind::Direct => Snapshot::Verbatim,
        }
    }
}

/// Where the programs are.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// A redis-server of 7.0.
    pub redis: Option<PathBuf>,
    /// A valkey-server of 9.x.
    pub valkey: Option<PathBuf>,
    /// redis-benchmark.
    pub redis_benchmark: Option<PathBuf>,
    /// haproxy.
    pub haproxy: Option<PathBuf>,
    /// nginx with its stream module.
    pub nginx: Option<PathBuf>,
}

impl Places {
    /// Looks into the folders of fetched servers, then into PATH.
    pub fn find(servers: &[PathBuf]) -> Self {
        let fetched = |prefix: &str, name: &str| {
            let mut found: Vec<PathBuf> = servers
                .iter()
                .filter_map(|dir| dir.read_dir().ok())
                .flatten()
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
                .map(|path| path.join("bin").join(name))
                .filter(|path| path.is_file())
                .collect();
            found.sort();
            found.pop()
        };
        // Fetched valkeys keep the name of the binary they replace.
        Self {
            redis: fetched("redis-7.0", "redis-server").or_else(|| in_path("redis-server")),
            valkey: fetched("valkey-9", "valkey-server")
                .or_else(|| fetched("valkey-9", "redis-server"))
                .or_else(|| in_path("valkey-server")),
            redis_benchmark: fetched("redis-7.0", "redis-benchmark")
                .or_else(|| in_path("redis-benchmark"))
                .or_else(|| in_path("valkey-benchmark")),
            haproxy: in_path("haproxy"),
            nginx: in_path("nginx"),
        }
    }

    /// Whether `kind` can be run.
    pub fn has(&self, kind: Kind) -> bool {
        match kind {
            Kind::Redis => self.redis.is_some(),
            Kind::Valkey => self.valkey.is_some(),
            Kind::Haproxy => self.haproxy.is_some(),
            Kind::Nginx => self.nginx.is_some(),
            Kind::Psyncd | Kind::PsyncdJournal | Kind::PsyncdChain | Kind::Copy | Kind::Sendfile | Kind::Direct => true,
        }
    }

    /// The version of a program, as it tells it.
    pub fn version(&self, kind: Kind) -> Option<String> {
        let (program, flag) = match kind {
            Kind::Redis => (self.redis.clone()?, "--version"),
            Kind::Valkey => (self.valkey.clone()?, "--version"),
            Kind::Haproxy => (self.haproxy.clone()?, "-v"),
            Kind::Nginx => (self.nginx.clone()?, "-v"),
            Kind::Psyncd | Kind::PsyncdJournal | Kind::PsyncdChain => {
                (PathBuf::from(env!("CARGO_BIN_EXE_psyncd")), "--version")
            }
            Kind::Copy | Kind::Sendfile | Kind::Direct => return None,
        };
        let output = Command::new(program).arg(flag).output().ok()?;
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        String::from_utf8_lossy(&text).lines().next().map(str::to_owned)
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Daemons are often outside the path of ordinary users.
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// How a device is set up.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Replicas that will come.
    pub replicas: usize,
    /// The backlog of those that have one.
    pub backlog_bytes: u64,
}

/// A running device. Dropping it ends it.
pub struct Device {
    /// Where replicas and clients go.
    pub address: SocketAddr,
    /// What it is.
    pub kind: Kind,
    children: Vec<(Child, PathBuf)>,
    /// What was started last.
    again: Option<Command>,
    _dir: TempDir,
}

impl Device {
    /// Starts `kind` between `master` and whoever connects, and waits until it listens.
    pub fn start(kind: Kind, places: &Places, master: SocketAddr, settings: &Settings) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("fanout-").tempdir().context("create a temporary directory")?;
        let mut device = Self { address: master, kind, children: Vec::new(), again: None, _dir: dir };
        device.launch(places, master, settings).with_context(|| format!("start {}", kind.as_str()))?;
        Ok(device)
    }

    fn launch(&mut self, places: &Places, master: SocketAddr, settings: &Settings) -> Result<()> {
        let absent = || anyhow!("{} is absent", self.kind.as_str());
        match self.kind {
            Kind::Direct => Ok(()),
            Kind::Psyncd => self.psyncd(master, settings),
            Kind::PsyncdJournal => self.psyncd(master, settings),
            Kind::PsyncdChain => {
                self.psyncd(master, settings)?;
                self.psyncd(self.address, settings)
            }
            Kind::Copy => self.limit("copy", master, settings),
            Kind::Sendfile => self.limit("sendfile", master, settings),
            Kind::Redis => self.server(&places.redis.clone().ok_or_else(absent)?, Some(master), settings),
            Kind::Valkey => self.server(&places.valkey.clone().ok_or_else(absent)?, Some(master), settings),
            Kind::Haproxy => self.haproxy(&places.haproxy.clone().ok_or_else(absent)?, master),
            Kind::Nginx => self.nginx(&places.nginx.clone().ok_or_else(absent)?, master),
        }
    }

    /// A real server that follows nobody.
    pub fn real_master(program: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("fanout-").tempdir().context("create a temporary directory")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut device = Self { address, kind: Kind::Redis, children: Vec::new(), again: None, _dir: dir };
        device.server(program, None, &Settings { replicas: 1, backlog_bytes: 16 << 20 })?;
        Ok(device)
    }

    /// CPU time so far.
    pub fn cpu(&self) -> Duration {
        self.children.iter().filter_map(|(child, _)| load::cpu(child.id())).sum()
    }

    /// The most memory it ever had resident, in bytes.
    pub fn peak_rss(&self) -> u64 {
        self.children.iter().filter_map(|(child, _)| load::peak_rss(child.id())).sum()
    }

    /// Fails if a process of it has ended.
    pub fn verdict(&self) -> Result<()> {
        for (child, log) in &self.children {
            if !load::alive(child.id()) {
                bail!("{} died; its last words: {}", self.kind.as_str(), last_words(log));
            }
        }
        Ok(())
    }

    /// What it said last.
    pub fn last_words(&self) -> String {
        self.children.iter().map(|(_, log)| last_words(log)).collect::<Vec<_>>().join(" | ")
    }

    fn psyncd(&mut self, master: SocketAddr, settings: &Settings) -> Result<()> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_psyncd"));
        let dir = self._dir.path().join(format!("psyncd-{}", self.children.len()));
        // Whom it is compared with keeps nothing on disk.
        let disk = if self.kind == Kind::PsyncdJournal { "4gb" } else { "0" };
        command
            .args(["run", "--port", &free_port()?.to_string()])
            .args(["--admin-bind", "127.0.0.1:0", "--log-format", "logfmt"])
            .args(["--upstream", &master.to_string()])
            .args(["--repl-backlog-size", &settings.backlog_bytes.to_string()])
            .args(["--backlog-disk-size", disk])
            .args(["--max-replicas", &(settings.replicas + 16).max(64).to_string()])
            .arg("--dir")
            .arg(dir);
        self.told(command)
    }

    /// Kills the only process of a psyncd and starts it again as it was; returns once it listens.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        let (mut child, _) = self.children.pop().context("nothing runs")?;
        let again = self.again.take().context("it was not started by itself")?;
        child.kill()?;
        child.wait()?;
        let mut command = Command::new(again.get_program());
        command.args(again.get_args());
        self.told(command)
    }

    fn limit(&mut self, which: &str, master: SocketAddr, settings: &Settings) -> Result<()> {
        let mut command = Command::new(std::env::current_exe().context("find ourselves")?);
        command.args(["--limit", which, "--master", &master.to_string(), "--replicas", &settings.replicas.to_string()]);
        self.told(command)
    }

    fn server(&mut self, program: &Path, master: Option<SocketAddr>, settings: &Settings) -> Result<()> {
        let port = free_port()?;
        let mut command = Command::new(program);
        command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .args(["--repl-backlog-size", &settings.backlog_bytes.to_string()])
            // One fork for all who come at once: the best it can do.
            .args(["--repl-diskless-sync-max-replicas", &settings.replicas.to_string()])
            .arg("--dir")
            .arg(self._dir.path());
        if let Some(master) = master {
            command.args(["--replicaof", &format!("{} {}", master.ip(), master.port())]);
        }
        self.at_port(command, port)
    }

    fn haproxy(&mut self, program: &Path, master: SocketAddr) -> Result<()> {
        let port = free_port()?;
        let config = self._dir.path().join("haproxy.cfg");
        let text = format!(
            "global\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             listen front\n  bind 127.0.0.1:{port}\n  server master {master}\n"
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(config);
        self.at_port(command, port)
    }

    fn nginx(&mut self, program: &Path, master: SocketAddr) -> Result<()> {
        let port = free_port()?;
        let dir = self._dir.path().display();
        let module = ["/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so"]
            .into_iter()
            .find(|path| Path::new(path).is_file())
            .map_or(String::new(), |path| format!("load_module {path};\n"));
        let text = format!(
            "{module}daemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log {dir}/error.log;\n\
             events {{ worker_connections 4096; }}\n\
             stream {{ server {{ listen 127.0.0.1:{port}; proxy_pass {master}; proxy_timeout 1h; tcp_nodelay on; }} }}\n"
        );
        let config = self._dir.path().join("nginx.conf");
        std::fs::write(&config, text)?;
        let mut command = Command::new(program);
        command.arg("-c").arg(config).arg("-e").arg(self._dir.path().join("early.log"));
        self.at_port(command, port)
    }

    /// Starts a program that tells where it listens.
    fn told(&mut self, command: Command) -> Result<()> {
        let mut again = Command::new(command.get_program());
        again.args(command.get_args());
        let log = self.spawn(command)?;
        self.again = Some(again);
        self.address = self.until("tell its address", || {
            let text = read(&log);
            let address = text.split_once("listen=")?.1;
            // A line half written may end in the middle of a port.
            let (address, _) = address.split_once([' ', '\n'])?;
            address.parse().ok()
        })?;
        Ok(())
    }

    /// Starts a program that was told where to listen.
    fn at_port(&mut self, command: Command, port: u16) -> Result<()> {
        self.spawn(command)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        self.address = self.until("listen", || TcpStream::connect(address).ok().map(|_| address))?;
        Ok(())
    }

    fn spawn(&mut self, mut command: Command) -> Result<PathBuf> {
        let log = self._dir.path().join(format!("log-{}", self.children.len()));
        let file = File::create(&log)?;
        let child = command
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("run {:?}", command.get_program()))?;
        self.children.push((child, log.clone()));
        Ok(log)
    }

    fn until<T>(&self, what: &str, mut found: impl FnMut() -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found() {
                return Ok(found);
            }
            self.verdict()?;
            if Instant::now() > deadline {
                bail!("it did not {what} within {PATIENCE:?}; its last words: {}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        for (child, _) in &mut self.children {
            let pid = rustix::process::Pid::from_child(child);
            // It may be gone already, and then there is nothing to end.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(5);
            while let Ok(None) = child.try_wait() {
                if Instant::now() > deadline {
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn last_words(log: &Path) -> String {
    let text = read(log);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(4)..].join(" / ")
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
