//! Three real nodes and three real Sentinels, with a psyncd in front of every node or without: what `deploy/sentinel`
//! describes, made of these very files.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::deployed::deployed;
use super::forwarder::Forwarder;
use super::load::fill;
use super::node::{Node, Syncs, assert_equal_data};
use super::process::free_port;
use super::psyncd::{Psyncd, Resyncs};
use super::servers::Server;
use super::wait::{wait_until, when};
use super::writer::Written;

mod sentinel;

use sentinel::Sentinel;

/// Down after this much silence. Long enough for two loaded cores.
const DOWN_AFTER: Duration = Duration::from_secs(3);

/// One node, and what stands in front of it.
#[derive(Debug)]
pub struct Site {
    pub node: Node,
    pub sidecar: Option<Psyncd>,
    /// Where everybody reaches it.
    pub port: u16,
    /// What everybody has to pass, when it can be shut.
    pub door: Option<Forwarder>,
    /// Where its psyncd listens: the port everybody knows, or behind the door.
    listen: u16,
    /// The directory and the configuration of its psyncd outlive it.
    dir: TempDir,
    extra: String,
}

/// Three sites. The first is the master at the start, and the second is preferred when another is looked for.
#[derive(Debug)]
pub struct Estate {
    pub sites: Vec<Site>,
    pub sentinels: Vec<Sentinel>,
}

/// What had happened at a site by some time.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    /// Of the node as a master.
    pub syncs: Syncs,
    /// Of the node as a replica.
    pub full: usize,
    /// Of its psyncd.
    pub served: Resyncs,
}

impl Estate {
    /// With a psyncd in front of every node, with these lines more in its file.
    #[track_caller]
    pub fn with_psyncd(server: &'static Server, extra: &str) -> Estate {
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let mut sites = Vec::new();
        for (place, port) in ports.iter().enumerate() {
            let mut site = Site::with_node(server, *port, free_port(), (place > 0).then_some(ports[0]), place);
            extra.clone_into(&mut site.extra);
            site.start_sidecar();
            if place == 0 {
                fill(&site.node);
            }
            sites.push(site);
        }
        Estate::watched(server, sites, DOWN_AFTER)
    }

    /// With or without a psyncd in front of every node, and with a door that can be shut in front of that.
    #[track_caller]
    pub fn with_doors(server: &'static Server, psyncd: bool, extra: &str) -> Estate {
        let mut sites: Vec<Site> = Vec::new();
        for place in 0..3 {
            let private = free_port();
            let listen = if psyncd { free_port() } else { private };
            let door = Forwarder::to(listen);
            let master = sites.first().map(|first| first.port);
            let mut site = Site::with_node(server, door.port, private, master, place);
            // Nothing is said by itself: who is a byte ahead was written to.
            site.node.cmd(&["CONFIG", "SET", "repl-ping-replica-period", "3600"]);
            (site.door, site.listen) = (Some(door), listen);
            extra.clone_into(&mut site.extra);
            if psyncd {
                site.start_sidecar();
            }
            if place == 0 {
                fill(&site.node);
            }
            sites.push(site);
        }
        Estate::watched(server, sites, DOWN_AFTER)
    }

    /// Without psyncd: what the controls run on.
    #[track_caller]
    pub fn plain(server: &'static Server) -> Estate {
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let mut sites = Vec::new();
        for (place, port) in ports.iter().enumerate() {
            let site = Site::with_node(server, *port, *port, (place > 0).then_some(ports[0]), place);
            if place == 0 {
                fill(&site.node);
            }
            sites.push(site);
        }
        Estate::watched(server, sites, DOWN_AFTER)
    }

    #[track_caller]
    fn watched(server: &'static Server, sites: Vec<Site>, down_after: Duration) -> Estate {
        sites[1..].iter().for_each(|site| site.node.wait_for_link());
        sites[1..].iter().for_each(|site| site.wait_for_sidecar());
        let master = sites[0].port;
        wait_until("the master lists its replicas", || {
            let listed = super::resp::Conn::open(master).and_then(|mut conn| conn.ask(&["ROLE"]));
            let listed = listed.map_err(|why| why.to_string())?;
            when(format!("{listed:?}").matches("Bulk").count() >= 6, || format!("{listed:?}"))
        });
        let sentinels: Vec<_> = (0..3).map(|_| Sentinel::watching(server, master, down_after)).collect();
        sentinels.iter().for_each(|sentinel| sentinel.wait_for_company(2, 2));
        Estate { sites, sentinels }
    }

    /// Where clients are to look for a master.
    pub fn ports(&self) -> Vec<u16> {
        self.sites.iter().map(|site| site.port).collect()
    }

    /// Waits until all Sentinels call another node than the first the master, and says which.
    #[track_caller]
    pub fn wait_for_switch(&self) -> usize {
        self.wait_for_switch_from(0, &self.sentinels)
    }

    /// Waits until all Sentinels call another node than the first the master, or the first Sentinel gives its failover up: whether
    /// it did.
    #[track_caller]
    pub fn wait_for_switch_or_abort(&self) -> bool {
        wait_until("the Sentinels agree on another master, or give up", || {
            let called: Vec<u16> = self.sentinels.iter().map(Sentinel::master).collect();
            let aborted = self.sentinels[0].log().contains("-failover-abort");
            let switched = called.iter().all(|port| *port != self.sites[0].port);
            if aborted || switched { Ok(aborted) } else { Err(format!("{called:?}")) }
        })
    }

    /// Waits until these Sentinels call another node than that one the master, and says which.
    #[track_caller]
    pub fn wait_for_switch_from(&self, place: usize, sentinels: &[Sentinel]) -> usize {
        wait_until("the Sentinels agree on another master", || {
            let called: Vec<u16> = sentinels.iter().map(Sentinel::master).collect();
            let agreed = called.iter().all(|port| *port == called[0]) && called[0] != self.sites[place].port;
            let place = self.sites.iter().position(|site| site.port == called[0]);
            place.filter(|_| agreed).ok_or_else(|| format!("{called:?}"))
        })
    }

    /// Waits until these nodes follow the master's address and are linked.
    #[track_caller]
    pub fn wait_until_following(&self, master: usize, places: &[usize]) {
        let port = self.sites[master].port.to_string();
        for place in places {
            wait_until(&format!("node {place} follows node {master}"), || {
                let info = self.sites[*place].node.ask(&["INFO", "replication"]).map_err(|why| why.to_string())?;
                let super::resp::Value::Bulk(text) = info else { return Err(format!("{info:?}")) };
                let info = super::node::parse_info(&String::from_utf8_lossy(&text));
                let is = |key: &str, value: &str| info.get(key).is_some_and(|is| is == value);
                when(is("master_port", &port) && is("master_link_status", "up"), || format!("{info:?}"))
            });
        }
    }

    /// Nobody outside reaches the site any more.
    #[track_caller]
    pub fn shut(&self, place: usize) {
        self.sites[place].door.as_ref().expect("it has a door").sever();
    }

    /// Everybody does again.
    #[track_caller]
    pub fn open(&self, place: usize) {
        self.sites[place].door.as_ref().expect("it has a door").restore();
    }

    /// What has happened at each site so far.
    #[track_caller]
    pub fn past(&self) -> Vec<Past> {
        self.sites.iter().map(Site::past).collect()
    }

    /// All nodes hold the same, and nobody is connected to anybody but the master.
    #[track_caller]
    pub fn assert_equal(&self, master: usize) {
        let others = self.sites.iter().enumerate().filter(|(place, _)| *place != master);
        assert_equal_data(&self.sites[master].node, others.map(|(_, site)| &site.node));
    }

    /// The Sentinels know the three public addresses and never heard of another.
    #[track_caller]
    pub fn assert_nobody_else_is_known(&self) {
        for sentinel in &self.sentinels {
            // While it fails over, it calls the new master the master and lists the replicas of the old one.
            wait_until("the Sentinel lists all but the master", || {
                let master = sentinel.master();
                let mut expected = self.ports();
                expected.retain(|port| *port != master);
                let mut expected: Vec<_> = expected.iter().map(|port| format!("127.0.0.1:{port}")).collect();
                expected.sort();
                let known = sentinel.replicas();
                when(known == expected, || format!("{known:?}, not {expected:?}"))
            });
            for line in sentinel.conf().lines().filter(|line| line.contains("known-replica")) {
                assert!(self.ports().iter().any(|port| line.ends_with(&format!(" {port}"))), "{line}");
            }
        }
    }

    /// One line of the table of what was measured.
    pub fn report(&self, scenario: &str, before: &[Past], written: &Written, master: usize, back: Duration) {
        let after = self.past();
        let full: Vec<_> = after.iter().zip(before).map(|(now, then)| now.full - then.full.min(now.full)).collect();
        let forks = after[master].syncs.forks - before[master].syncs.forks;
        let lost = written.lost_on(&self.sites[master].node);
        println!(
            "MEASURED {} | {scenario} | full resyncs by node {full:?} | forks of the new master {forks} | lost {lost} of {} | longest pause {} ms | all back after {:.1} s",
            self.sites[0].node.server.name,
            written.count(),
            written.longest_pause().as_millis(),
            back.as_secs_f64(),
        );
    }
}

impl Site {
    fn with_node(server: &'static Server, port: u16, private: u16, master: Option<u16>, place: usize) -> Site {
        let replicaof = match master {
            Some(master) => format!("replicaof 127.0.0.1 {master}"),
            None => String::new(),
        };
        let conf = deployed(
            "sentinel/redis.conf",
            &[
                ("# replicaof 10.0.0.11 6379", &replicaof),
                ("announce-ip 10.0.0.11", "announce-ip 127.0.0.1"),
                ("announce-port 6379", &format!("announce-port {port}")),
                ("port 6380", &format!("port {private}")),
            ],
        );
        // A lower number is preferred.
        let priority = if place == 1 { "10" } else { "100" };
        let node = Node::configured(server, private, &conf, &["--replica-priority", priority]);
        let dir = TempDir::with_prefix("psyncd-e2e-").expect("a temporary directory can be made");
        Site { node, sidecar: None, port, door: None, listen: port, dir, extra: String::new() }
    }

    /// Starts its psyncd, or starts it again.
    #[track_caller]
    pub fn start_sidecar(&mut self) {
        let path = self.write_conf();
        self.sidecar = Some(Psyncd::configured(&path));
    }

    fn write_conf(&self) -> PathBuf {
        let admin = self.sidecar.as_ref().map_or_else(free_port, |sidecar| sidecar.admin);
        let text = deployed(
            "sentinel/psyncd.toml",
            &[
                ("127.0.0.1:6380", &self.node.address()),
                ("0.0.0.0", "127.0.0.1"),
                ("port = 6379", &format!("port = {}", self.listen)),
                ("127.0.0.1:9379", &format!("127.0.0.1:{admin}")),
                ("/var/lib/psyncd", self.dir.path().join("psyncd").to_str().expect("a temporary path is text")),
            ],
        );
        let path = self.dir.path().join("psyncd.toml");
        std::fs::write(&path, format!("{text}\n{}", self.extra)).expect("the file can be written");
        path
    }

    /// Its psyncd dies at once and is started again.
    #[track_caller]
    pub fn crash_sidecar(&mut self) {
        if let Some(sidecar) = &mut self.sidecar {
            sidecar.process().kill();
        }
        self.start_sidecar();
    }

    /// Puts psyncd in front of a running node: the node moves to another port, and psyncd takes the one everybody knows.
    #[track_caller]
    pub fn insert_psyncd(&mut self) {
        let private = free_port();
        self.node.cmd(&["CONFIG", "SET", "port", &private.to_string()]);
        // Sentinels shall come back through psyncd before the node lists it: what they once saw they keep for ever.
        self.drop_sentinels();
        self.node.moved_to(private);
        self.start_sidecar();
        self.wait_for_sidecar();
        // They have the same address and now find psyncd there.
        self.node.cut_replicas();
        self.wait_for_sidecar();
    }

    /// The way back.
    #[track_caller]
    pub fn remove_psyncd(&mut self) {
        let mut sidecar = self.sidecar.take().expect("there is one");
        sidecar.process().signal("TERM");
        sidecar.process().wait_for_end(super::wait::SOON);
        self.node.cmd(&["CONFIG", "SET", "port", &self.port.to_string()]);
        self.node.moved_to(self.port);
    }

    /// Ends the connections of Sentinels to the node, and nobody else's.
    #[track_caller]
    fn drop_sentinels(&self) {
        for client in self.node.cmd(&["CLIENT", "LIST"]).text().lines() {
            let field = |name: &str| client.split(' ').find_map(|word| word.strip_prefix(name));
            if field("name=").is_some_and(|name| name.starts_with("sentinel-")) {
                let id = field("id=").expect("every client has one");
                // It may have gone by itself.
                let _ = self.node.ask(&["CLIENT", "KILL", "ID", id]);
            }
        }
    }

    #[track_caller]
    fn wait_for_sidecar(&self) {
        if let Some(sidecar) = &self.sidecar {
            sidecar.wait_for_link();
        }
    }

    #[track_caller]
    fn past(&self) -> Past {
        let alive = self.node.ask(&["PING"]).is_ok();
        let syncs = if alive { self.node.syncs() } else { Syncs { full: 0, partial: 0, forks: 0 } };
        let served = self.sidecar.as_ref().map_or(Resyncs { partial: 0, full: 0 }, Psyncd::resyncs);
        Past { syncs, full: self.node.full_resyncs(), served }
    }
}
