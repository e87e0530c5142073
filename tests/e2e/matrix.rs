//! Every server as a master, with every server that can load its data as a replica, behind psyncd.
//!
//! The outcome is one table, `target/e2e-matrix.txt` (`e2e-matrix-old.txt` for the oldest servers), which grows as the cells
//! finish and is printed with `--nocapture`.
//! It never claims what was not seen: a cell that fails leaves no row.

use std::fmt::Write as _;
use std::sync::Mutex;

use crate::harness::*;

/// What one master and its replicas showed.
struct Row {
    master: String,
    replicas: Vec<String>,
    /// RDBs that left the master for all of them, with diskless and with disk-based full syncs.
    diskless: i64,
    /// None where the server cannot choose.
    disk: Option<i64>,
    partial: usize,
    late: usize,
    equal: usize,
}

/// Runs one master through full sync, partial resync, late join and a disk-based full sync, and writes its row.
#[track_caller]
pub fn serve(name: &str, tier: Tier) {
    let master = Node::start(server(name));
    fill(&master);
    let fresh = master.syncs();
    let psyncd = Psyncd::before(&master);
    let network = Forwarder::to(psyncd.port);

    let mut followers = all(Tier::Core);
    if tier == Tier::Old {
        followers.extend(all(Tier::Old));
    }
    followers.retain(|server| server.loads(master.server.rdb_for_psyncd()));
    let replicas = Node::start_all(followers.iter().copied());

    let load = Load::on(&master);
    replicas.iter().for_each(|replica| replica.replicate(network.port));
    replicas.iter().for_each(Node::wait_for_link);
    let full = psyncd.resyncs().full;
    assert_eq!(full, replicas.len() as i64, "each replica starts with one full resync from psyncd");
    let diskless = master.syncs().full - fresh.full;
    assert!(diskless <= 1, "the master sent {diskless} RDBs");

    let before = master.syncs();
    assert!(master.cut_replicas() >= 1, "psyncd is a replica of the master");
    wait_until("psyncd goes on by a partial resync", || {
        let partial = master.syncs().partial;
        when(partial > before.partial, || format!("sync_partial_ok {partial}, was {}", before.partial))
    });
    psyncd.wait_for_link();
    network.cut();
    wait_until("every replica goes on by a partial resync", || {
        let now = psyncd.resyncs();
        when(now.partial >= replicas.len() as i64, || format!("{now:?}"))
    });
    load.go_on_for(20);
    load.stop();
    assert_equal_data(&master, &replicas);
    assert_eq!(psyncd.resyncs().full, full, "a lost link cost a full resync");
    assert_eq!(master.syncs().full, before.full, "a lost link cost the master an RDB");
    for replica in &replicas {
        let who = &replica.server.name;
        assert_eq!(replica.full_resyncs(), 1, "{who}, by its own log");
        assert!(replica.partial_resyncs() >= 1, "{who} saw no partial resync by its own log");
    }

    let late = Node::start_all([master.server, followers[0]]);
    late.iter().for_each(|replica| replica.replicate(psyncd.port));
    assert_equal_data(&master, &late);
    assert_eq!(
        master.syncs(),
        Syncs { partial: master.syncs().partial, ..before },
        "a late joiner cost the master an RDB"
    );

    // A second psyncd comes to a master that has a backlog: it needs no RDB for itself, and one for its first stranger.
    let mut disk = None;
    if master.server.has_redis(3, 0) {
        master.cmd(&["CONFIG", "SET", "repl-diskless-sync", "no"]);
        let from_disk = Psyncd::before(&master);
        let strangers = Node::start_all([master.server, followers[0]]);
        strangers.iter().for_each(|replica| replica.replicate(from_disk.port));
        assert_equal_data(&master, &strangers);
        let sent = master.syncs().full - before.full;
        assert!(sent <= 1, "the master sent {sent} RDBs for the second psyncd");
        disk = Some(sent);
    }

    let file = if tier == Tier::Old { "e2e-matrix-old.txt" } else { "e2e-matrix.txt" };
    let row = Row {
        master: name.to_owned(),
        replicas: replicas.iter().map(|replica| replica.server.name.clone()).collect(),
        diskless,
        disk,
        partial: replicas.len(),
        late: late.len(),
        equal: replicas.len() + late.len(),
    };
    report(row, file);
}

fn report(row: Row, file: &str) {
    static ROWS: Mutex<Vec<Row>> = Mutex::new(Vec::new());
    let mut rows = ROWS.lock().expect("reporting does not panic");
    rows.push(row);
    rows.sort_by(|one, other| one.master.cmp(&other.master));
    let mut table = String::from(
        "master         RDBs sent        partial   late join   digest equal   replicas behind psyncd\n\
         \x20              diskless  disk\n",
    );
    for row in rows.iter() {
        let count = row.replicas.len();
        let Row { master, diskless, disk, partial, late, equal, .. } = row;
        let (partial, late, equal) =
            (format!("{partial}/{count}"), format!("{late}/2"), format!("{equal}/{}", count + 2));
        let disk = disk.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let replicas = row.replicas.join(" ");
        writeln!(table, "{master:<14} {diskless:<9} {disk:<6} {partial:<9} {late:<11} {equal:<14} {replicas}").unwrap();
    }
    let path = target_directory().join(file);
    std::fs::write(&path, &table).unwrap_or_else(|why| panic!("write {}: {why}", path.display()));
    println!("{table}");
}

macro_rules! masters {
    ($($test:ident $name:literal)*) => { $(
        #[test]
        fn $test() {
            serve($name, Tier::Core);
        }
    )* };
}

masters! {
    redis_5_0_is_served "redis-5.0.6"
    redis_6_0_is_served "redis-6.0.9"
    redis_6_2_is_served "redis-6.2.14"
    redis_7_0_is_served "redis-7.0.15"
    redis_7_2_is_served "redis-7.2.4"
    redis_7_4_is_served "redis-7.4.1"
    redis_8_0_is_served "redis-8.0.2"
    redis_8_6_is_served "redis-8.6.2"
    valkey_8_1_is_served "valkey-8.1.1"
    valkey_9_0_is_served "valkey-9.0.0"
    valkey_9_1_is_served "valkey-9.1.2"
}

#[test]
fn every_server_of_the_catalogue_is_a_master_here() {
    let served = include_str!("matrix.rs");
    for server in all(Tier::Core) {
        assert!(served.contains(&format!("\"{}\"", server.name)), "{} has no test as a master", server.name);
    }
}
