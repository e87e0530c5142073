//! A Redis Cluster with psyncd beside every node, configured by the files in `deploy/cluster`. Clients and replicas know
//! only the addresses of the psyncd's; the bus goes past them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::*;

const REDIS_CONF: &str = include_str!("../../deploy/cluster/redis.conf");
const PSYNCD_TOML: &str = include_str!("../../deploy/cluster/psyncd.toml");
const SLOTS: u32 = 16_384;
/// The master of each node, by its number; those without one begin as masters. The last shard has two replicas.
const MASTERS: [Option<usize>; 7] = [None, None, None, Some(0), Some(1), Some(2), Some(2)];

/// A node and the psyncd beside it.
struct Pair {
    node: Node,
    psyncd: Psyncd,
    bus: u16,
    _dir: TempDir,
}

/// A file from `deploy` with some of its values replaced, each of which must be there once.
#[track_caller]
fn filled_in(template: &str, values: &[(&str, String)]) -> String {
    let mut lines: Vec<String> = template.lines().map(str::to_owned).collect();
    for (line, value) in values {
        let found: Vec<_> = lines.iter_mut().filter(|own| own == line).collect();
        assert_eq!(found.len(), 1, "{line:?} in\n{template}");
        found.into_iter().for_each(|own| own.clone_from(value));
    }
    lines.join("\n") + "\n"
}

impl Pair {
    #[track_caller]
    fn start(name: &str) -> Pair {
        let (port, front, bus) = (free_port(), free_port(), free_port());
        let dir = TempDir::with_prefix("psyncd-e2e-").unwrap();
        let conf = filled_in(
            REDIS_CONF,
            &[
                ("port 6380", format!("port {port}")),
                ("bind 0.0.0.0", "bind 127.0.0.1".into()),
                ("cluster-node-timeout 5000", "cluster-node-timeout 2000".into()),
                ("cluster-port 16379", format!("cluster-port {bus}")),
                ("cluster-announce-port 6379", format!("cluster-announce-port {front}")),
                ("replica-announce-port 6379", format!("replica-announce-port {front}")),
            ],
        );
        let toml = filled_in(
            PSYNCD_TOML,
            &[
                ("upstream = \"127.0.0.1:6380\"", format!("upstream = \"127.0.0.1:{port}\"")),
                ("bind = \"0.0.0.0\"", "bind = \"127.0.0.1\"".into()),
                ("port = 6379", format!("port = {front}")),
                ("admin-bind = \"127.0.0.1:9379\"", "admin-bind = \"127.0.0.1:0\"".into()),
                ("dir = \"/var/lib/psyncd\"", format!("dir = \"{}\"", dir.path().join("psyncd").display())),
            ],
        );
        let (conf_path, toml_path) = (dir.path().join("redis.conf"), dir.path().join("psyncd.toml"));
        std::fs::write(&conf_path, conf).unwrap();
        std::fs::write(&toml_path, toml).unwrap();
        let node = Node::on_port_with(server(name), port, &["--include", conf_path.to_str().unwrap()]);
        let psyncd = Psyncd::configured(&toml_path);
        assert_eq!(psyncd.port, front);
        Pair { node, psyncd, bus, _dir: dir }
    }

    /// A command to the node, through psyncd.
    #[track_caller]
    fn cmd(&self, args: &[&str]) -> Value {
        self.psyncd.conn().cmd(args)
    }

    #[track_caller]
    fn cluster_info(&self, key: &str) -> String {
        let info = parse_info(&self.cmd(&["CLUSTER", "INFO"]).text());
        info.get(key).cloned().unwrap_or_default()
    }

    fn is_master(&self) -> bool {
        self.node.info()["role"] == "master"
    }
}

struct Cluster {
    pairs: Vec<Pair>,
    /// A word whose keys are in the slots of that shard.
    tags: Vec<String>,
}

impl Cluster {
    #[track_caller]
    fn of(name: &str) -> Cluster {
        let pairs: Vec<_> = MASTERS.iter().map(|_| Pair::start(name)).collect();
        pairs.iter().for_each(|pair| pair.psyncd.wait_for_link());
        let shards = MASTERS.iter().filter(|master| master.is_none()).count() as u32;
        for (at, pair) in pairs.iter().enumerate() {
            pair.cmd(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
            if MASTERS[at].is_none() {
                let (first, end) = (at as u32 * SLOTS / shards, (at as u32 + 1) * SLOTS / shards);
                pair.cmd(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &(end - 1).to_string()]);
            }
            if at > 0 {
                let (port, bus) = (pair.psyncd.port.to_string(), pair.bus.to_string());
                pairs[0].cmd(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
            }
        }
        for pair in &pairs {
            wait_until("every node knows every other", || {
                let known = pair.cluster_info("cluster_known_nodes");
                when(known == MASTERS.len().to_string(), || known)
            });
        }
        for (pair, master) in pairs.iter().zip(MASTERS) {
            if let Some(master) = master {
                let id = pairs[master].cmd(&["CLUSTER", "MYID"]).text();
                wait_until("the node knows its master as one", || {
                    match pair.psyncd.conn().ask(&["CLUSTER", "REPLICATE", &id]) {
                        Ok(Value::Simple(_)) => Ok(()),
                        other => Err(format!("{other:?}")),
                    }
                });
            }
        }
        let tags =
            (0..shards).map(|shard| tag(&pairs[0], shard * SLOTS / shards, (shard + 1) * SLOTS / shards)).collect();
        let cluster = Cluster { pairs, tags };
        cluster.wait_for_health();
        cluster
    }

    /// Every node says that the cluster is well, every replica is linked, every psyncd streams.
    #[track_caller]
    fn wait_for_health(&self) {
        for pair in &self.pairs {
            wait_until("the cluster is well", || {
                let state = pair.cluster_info("cluster_state");
                when(state == "ok", || state)
            });
            if !pair.is_master() {
                pair.node.wait_for_link();
            }
            pair.psyncd.wait_for_link();
        }
    }

    /// Waits until everybody knows that the one is the other's replica: a master takes no wish to fail over from anybody
    /// else, and the other masters do not vote for it.
    #[track_caller]
    fn wait_for_replica(&self, master: usize, replica: usize) {
        let id = |at: usize| self.pairs[at].cmd(&["CLUSTER", "MYID"]).text();
        let (master_id, replica_id) = (id(master), id(replica));
        for pair in &self.pairs {
            wait_until("everybody knows whose replica it is", || {
                let known = pair.psyncd.conn().ask(&["CLUSTER", "REPLICAS", &master_id]);
                match known.map_err(|why| why.to_string())? {
                    Value::Array(lines) if lines.iter().any(|line| line.text().starts_with(&replica_id)) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
    }

    /// Waits until this node is the master of its shard.
    #[track_caller]
    fn wait_for_master(&self, at: usize) {
        wait_until("the node is a master", || when(self.pairs[at].is_master(), || "it is a replica".to_owned()));
    }

    /// These nodes have the same data, and replicate from the psyncd of their master.
    #[track_caller]
    fn assert_shard(&self, master: usize, replicas: &[usize]) {
        let front = self.pairs[master].psyncd.port.to_string();
        for &at in replicas {
            wait_until("the replica follows the psyncd of its master", || {
                let port = self.pairs[at].node.info().get("master_port").cloned();
                when(port.as_deref() == Some(&front), || format!("{port:?}, not {front}"))
            });
        }
        assert_equal_data(&self.pairs[master].node, replicas.iter().map(|&at| &self.pairs[at].node));
    }

    /// Full resyncs that each node has asked for so far.
    fn full_resyncs(&self) -> Vec<usize> {
        self.pairs.iter().map(|pair| pair.node.full_resyncs()).collect()
    }

    /// Data sets that each node has sent so far, to psyncd or past it.
    fn sent(&self) -> Vec<i64> {
        self.pairs.iter().map(|pair| pair.node.syncs().full).collect()
    }

    /// How often each psyncd had to begin anew.
    fn lost(&self) -> Vec<f64> {
        let lost =
            |pair: &Pair| pair.psyncd.metrics().one("psyncd_upstream_resyncs_total", &[("reason", "history_lost")]);
        self.pairs.iter().map(lost).collect()
    }
}

/// A word whose slot is in that range.
fn tag(pair: &Pair, first: u32, end: u32) -> String {
    let mut conn = pair.psyncd.conn();
    let mut words = (0..1000).map(|n| format!("w{n}"));
    let within = |word: &String| (first..end).contains(&(conn.cmd(&["CLUSTER", "KEYSLOT", word]).int() as u32));
    words.find(within).expect("a third of all words is in each shard")
}

/// Counts in every shard as a cluster's client does: it goes where MOVED sends it.
struct Writer {
    stop: Arc<AtomicBool>,
    /// The counts that were answered, by tag.
    counted: Arc<Mutex<BTreeMap<String, i64>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn on(cluster: &Cluster) -> Writer {
        let fronts: Vec<u16> = cluster.pairs.iter().map(|pair| pair.psyncd.port).collect();
        let (tags, stop) = (cluster.tags.clone(), Arc::new(AtomicBool::new(false)));
        let counted = Arc::new(Mutex::new(BTreeMap::new()));
        let (ending, counting) = (Arc::clone(&stop), Arc::clone(&counted));
        let thread = std::thread::spawn(move || {
            let mut masters: Vec<u16> = tags.iter().map(|_| fronts[0]).collect();
            let mut conns: BTreeMap<u16, Conn> = BTreeMap::new();
            while !ending.load(Ordering::SeqCst) {
                for (shard, tag) in tags.iter().enumerate() {
                    let port = masters[shard];
                    if !conns.contains_key(&port) {
                        conns.extend(Conn::open(port).ok().map(|conn| (port, conn)));
                    }
                    let reply = conns.get_mut(&port).map(|conn| conn.ask(&["INCR", &format!("{{{tag}}}:count")]));
                    match reply {
                        Some(Ok(Value::Int(count))) => {
                            counting.lock().unwrap().insert(tag.clone(), count);
                        }
                        Some(Ok(Value::Error(why))) if why.starts_with("MOVED") => {
                            let port = why.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap();
                            assert!(fronts.contains(&port), "a client is sent past psyncd: {why}");
                            masters[shard] = port;
                        }
                        // Down for the moment: somebody else knows more.
                        _ => {
                            conns.remove(&port);
                            let at = fronts.iter().position(|front| *front == port).unwrap_or(0);
                            masters[shard] = fronts[(at + 1) % fronts.len()];
                        }
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Writer { stop, counted, thread: Some(thread) }
    }

    /// Waits until it has counted further in every shard.
    #[track_caller]
    fn go_on(&self, cluster: &Cluster) {
        let before = self.counted.lock().unwrap().clone();
        wait_until("the writer goes on in every shard", || {
            let now = self.counted.lock().unwrap().clone();
            let further = |tag: &String| now.get(tag) >= Some(&(before.get(tag).unwrap_or(&0) + 20));
            when(cluster.tags.iter().all(further), || format!("{now:?}, before {before:?}"))
        });
    }

    /// Ends it, and says what was answered last.
    fn stop(mut self) -> BTreeMap<String, i64> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.counted.lock().unwrap().clone()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

#[track_caller]
fn fails_over(name: &str) {
    let mut cluster = Cluster::of(name);
    let writer = Writer::on(&cluster);
    writer.go_on(&cluster);
    let (asked, sent, lost) = (cluster.full_resyncs(), cluster.sent(), cluster.lost());
    assert_eq!(asked, [0, 0, 0, 1, 1, 1, 1], "each replica began with one");

    // On purpose, and back, under writes.
    for (new, old) in [(3, 0), (0, 3)] {
        cluster.wait_for_replica(old, new);
        cluster.pairs[new].cmd(&["CLUSTER", "FAILOVER"]);
        cluster.wait_for_master(new);
        cluster.wait_for_health();
        writer.go_on(&cluster);
        wait_until("the old master follows", || when(!cluster.pairs[old].is_master(), || "it does not".to_owned()));
    }
    let counted = writer.stop();
    cluster.assert_shard(0, &[3]);
    let key = format!("{{{}}}:count", cluster.tags[0]);
    assert_eq!(
        cluster.pairs[0].node.cmd(&["GET", &key]).text(),
        counted[&cluster.tags[0]].to_string(),
        "no write is lost"
    );
    assert_eq!((cluster.full_resyncs(), cluster.sent(), cluster.lost()), (asked.clone(), sent.clone(), lost.clone()));

    // By accident: the master of two replicas that are level.
    cluster.assert_shard(2, &[5, 6]);
    cluster.pairs[2].node.kill();
    let new = wait_until("one of its replicas is the master", || {
        [5, 6].into_iter().find(|&at| cluster.pairs[at].is_master()).ok_or_else(|| "none is".to_owned())
    });
    let other = 11 - new;
    cluster.assert_shard(new, &[other]);
    let survivors = |all: Vec<usize>| [0, 1, 3, 4, 5, 6].map(|at: usize| all[at]);
    assert_eq!(survivors(cluster.full_resyncs()), survivors(asked), "no survivor starts over");
    assert_eq!(
        [5, 6].map(|at: usize| cluster.pairs[at].node.syncs().full),
        [5, 6].map(|at: usize| sent[at]),
        "the new master sent nobody its data"
    );

    // It comes back with nothing, and gets everything from psyncd.
    cluster.pairs[2].node.restart();
    wait_until("it has found its new master", || when(!cluster.pairs[2].is_master(), || "not yet".to_owned()));
    cluster.wait_for_health();
    let writer = Writer::on(&cluster);
    writer.go_on(&cluster);
    writer.stop();
    cluster.assert_shard(0, &[3]);
    cluster.assert_shard(1, &[4]);
    cluster.assert_shard(new, &[other, 2]);
    assert_eq!(cluster.pairs[2].node.full_resyncs(), 1);
    assert!(cluster.sent()[new] - sent[new] <= 1, "{:?}", cluster.sent());
}

#[test]
fn a_redis_cluster_fails_over_through_psyncd_and_nobody_starts_over_who_need_not() {
    fails_over("redis-7.0.15");
}

/// Not 8.1.1, which at times cannot read its own nodes.conf after a kill (valkey issue 2171).
#[test]
fn a_valkey_cluster_fails_over_through_psyncd_and_nobody_starts_over_who_need_not() {
    fails_over("valkey-9.1.2");
}
