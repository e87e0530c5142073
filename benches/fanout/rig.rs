//! Master, device and replicas put together, and a look at all three over a window of time.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::device::{Device, Kind, Places, Settings};
use super::fleet::{Check, Fleet, Orders};
use super::load;
use super::master::{Framing, Master, Pace};
use super::rdb::Rdb;
use super::stream::Layout;

/// How long anything may take that takes no time when all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What to put together.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Bytes of each value of the stream.
    pub value_bytes: usize,
    /// Periods of the stream between two GETACKs.
    pub getack_periods: u64,
    /// Bytes of the snapshot.
    pub rdb_bytes: u64,
    /// How the master delimits it.
    pub framing: Framing,
    /// Bytes of the device's backlog, where it has one.
    pub backlog_bytes: u64,
    /// Replicas.
    pub replicas: usize,
    /// How far apart they arrive.
    pub stagger: Duration,
    /// How many of them are slow.
    pub slow: usize,
    /// How slow, in bytes each second.
    pub slow_rate: f64,
    /// How closely bytes are looked at.
    pub check: Check,
}

/// All three. They end in this order: replicas, device, master.
pub struct Rig {
    /// The replicas.
    pub fleet: Fleet,
    /// What is measured.
    pub device: Device,
    /// The source.
    pub master: Master,
    plan: Plan,
}

impl Rig {
    /// Starts all three and waits for nothing.
    pub fn launch(kind: Kind, places: &Places, plan: Plan) -> Result<Self> {
        let layout = Layout::new(plan.value_bytes, plan.getack_periods);
        let master =
            Master::start(layout, Rdb::new(plan.rdb_bytes), plan.framing).context("start the synthetic master")?;
        let settings = Settings { replicas: plan.replicas, backlog_bytes: plan.backlog_bytes };
        let device = Device::start(kind, places, master.address, &settings)?;
        let fleet = fleet(&device, &master, &plan)?;
        Ok(Self { fleet, device, master, plan })
    }

    /// Starts all three and waits until every replica is in the stream.
    pub fn online(kind: Kind, places: &Places, plan: Plan) -> Result<Self> {
        let rig = Self::launch(kind, places, plan)?;
        rig.judge(rig.fleet.wait_online(PATIENCE))?;
        Ok(rig)
    }

    /// Lets the stream flow like this, and waits until it has reached every replica: a chained server feeds a replica
    /// only from its next acknowledgement on.
    pub fn flow(&self, pace: Pace) -> Result<()> {
        let start = self.master.shared.head.load(Ordering::Relaxed);
        self.master.pace(pace);
        self.judge(self.fleet.wait("reached by the stream", PATIENCE, |row| row.at.load(Ordering::Relaxed) > start))
    }

    /// As many replicas again.
    pub fn second_fleet(&self) -> Result<Fleet> {
        fleet(&self.device, &self.master, &self.plan)
    }

    /// Lets `elapsed` pass and tells what it brought.
    pub fn window(&self, elapsed: Duration) -> Result<Window> {
        let before = Marks::now(self);
        std::thread::sleep(elapsed);
        self.judge(self.fleet.verdict())?;
        Ok(Marks::now(self).since(&before))
    }

    /// Stops the stream and fails unless every replica that keeps up has all of it, and nothing else.
    pub fn finish(&self) -> Result<()> {
        let end = self.master.halt();
        self.judge(self.fleet.wait_at(end, PATIENCE))?;
        self.judge(self.fleet.verdict())
    }

    /// A failure is the device's death if it died.
    pub fn judge(&self, result: Result<()>) -> Result<()> {
        self.device.verdict()?;
        match result {
            Ok(()) => Ok(()),
            Err(error) => bail!("{error:#}; last words of {}: {}", self.device.kind.as_str(), self.device.last_words()),
        }
    }
}

fn fleet(device: &Device, master: &Master, plan: &Plan) -> Result<Fleet> {
    let orders = Orders {
        address: device.address,
        count: plan.replicas,
        stagger: plan.stagger,
        slow: plan.slow,
        slow_rate: plan.slow_rate,
        check: plan.check,
        snapshot: device.kind.snapshot(),
    };
    Fleet::start(orders, std::sync::Arc::clone(&master.shared)).context("start the synthetic replicas")
}

/// Counters at one moment.
pub struct Marks {
    at: Instant,
    cpu: Duration,
    ours: Duration,
    machine: Duration,
    delivered: u64,
}

/// What a stretch of time brought.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Its length in seconds.
    pub seconds: f64,
    /// The device's CPU time in seconds.
    pub cpu: f64,
    /// Stream bytes delivered to all.
    pub delivered: f64,
    /// Cores that were busy with neither the device nor the harness.
    pub other_cores: f64,
}

impl Marks {
    /// As of now.
    pub fn now(rig: &Rig) -> Self {
        Self::of(&rig.device, rig.fleet.view.delivered.load(Ordering::Relaxed))
    }

    /// As of now, with `delivered` from elsewhere.
    pub fn of(device: &Device, delivered: u64) -> Self {
        Self {
            at: Instant::now(),
            cpu: device.cpu(),
            ours: load::cpu(std::process::id()).unwrap_or_default(),
            machine: load::machine_cpu(),
            delivered,
        }
    }

    /// From `before` to this.
    pub fn since(&self, before: &Marks) -> Window {
        let seconds = (self.at - before.at).as_secs_f64();
        let cpu = self.cpu.saturating_sub(before.cpu).as_secs_f64();
        let ours = self.ours.saturating_sub(before.ours).as_secs_f64();
        let machine = self.machine.saturating_sub(before.machine).as_secs_f64();
        Window {
            seconds,
            cpu,
            delivered: self.delivered.saturating_sub(before.delivered) as f64,
            other_cores: ((machine - cpu - ours) / seconds).max(0.0),
        }
    }
}
