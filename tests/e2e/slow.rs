//! One slow replica harms nobody but itself.
//!
//! Control: `without_psyncd_a_replica_that_does_not_read_is_cut_off_by_the_master_at_its_buffer_limit`.

use crate::harness::*;

#[test]
fn a_replica_that_does_not_read_is_dropped_alone() {
    let master = Node::start(server("redis-7.2.4"));
    fill(&master);
    let mut psyncd = Psyncd::before_with(&master, &["--repl-backlog-size", "8mb"]);
    let replica = Node::start(master.server);
    replica.replicate(psyncd.port);
    replica.wait_for_link();
    let mut sleeper = psyncd.conn();
    sleeper.send("PSYNC ? -1\r\n").unwrap();
    let answer = sleeper.line_after_newlines().unwrap();
    let offset = answer.rsplit(' ').next().unwrap();
    assert!(answer.starts_with("+FULLRESYNC"), "{answer}");
    sleeper.payload().unwrap();
    // Its last word: it has loaded the snapshot.
    sleeper.send(encode(&["REPLCONF", "ACK", offset])).unwrap();
    psyncd.wait_for_replicas(2);
    let before = master.syncs();
    let dropped = |psyncd: &Psyncd| psyncd.metrics().sum("psyncd_replica_disconnects_total", &[("reason", "lagging")]);
    assert_eq!(dropped(&psyncd), 0.0);

    for _ in 0..32 {
        write_megabytes(&master, 2);
        // The healthy one follows at its own pace, so that only the sleeper can fall out of the window.
        let head = master.offset();
        wait_until("the healthy replica keeps up", || {
            when(replica.offset() >= head, || format!("{} of {head}", replica.offset()))
        });
    }
    wait_until("the sleeper is dropped", || {
        let count = dropped(&psyncd);
        when(count == 1.0, || format!("{count} dropped for lagging"))
    });
    psyncd.wait_for_replicas(1);
    sleeper.until_closed(SOON).expect("its socket is closed");
    assert_equal_data(&master, [&replica]);
    assert_eq!(replica.full_resyncs(), 1);
    assert_eq!(master.syncs(), before, "the master noticed nothing");
    let resident = psyncd.process().resident_bytes() >> 20;
    assert!(resident < 80, "psyncd holds {resident} MB with a backlog of 8");
}

#[test]
fn a_replica_that_stops_in_the_middle_of_its_snapshot_harms_no_other() {
    let master = Node::start(server("redis-7.0.15"));
    fill(&master);
    master.cmd(&[&b"SET"[..], b"large", &vec![7; 30_000_000]]);
    let psyncd = Psyncd::before(&master);
    let mut sleepers: Vec<_> = (0..3).map(|_| psyncd.conn()).collect();
    for sleeper in &mut sleepers {
        sleeper.send("PSYNC ? -1\r\n").unwrap();
        assert!(sleeper.line_after_newlines().unwrap().starts_with("+FULLRESYNC"));
    }
    let load = Load::on(&master);
    let replicas = Node::start_all([master.server; 2]);
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    replicas.iter().for_each(Node::wait_for_link);
    load.go_on_for(40);
    load.stop();
    assert_equal_data(&master, &replicas);
    assert_eq!(master.syncs().full, 1);
}

#[test]
fn a_stopped_replica_does_not_hold_the_master_back() {
    let master = Node::start(server("valkey-8.1.1"));
    fill(&master);
    let psyncd = Psyncd::before(&master);
    let mut replicas = Node::start_all([master.server; 2]);
    replicas.iter().for_each(|replica| replica.replicate(psyncd.port));
    assert_equal_data(&master, &replicas);
    replicas[0].process().signal("STOP");
    write_megabytes(&master, 48);
    assert_equal_data(&master, [&replicas[1]]);
    // What the master keeps for psyncd: no more than the block of its backlog that is being filled.
    wait_until("the master has nothing left to send to psyncd", || {
        let clients = master.cmd(&["CLIENT", "LIST"]).text();
        let link = clients.lines().find(|line| line.contains(" flags=S ")).unwrap_or_default().to_owned();
        let kept = link.split(' ').find_map(|field| field.strip_prefix("omem=")).map(str::parse::<u64>);
        when(matches!(kept, Some(Ok(..200_000))), || link)
    });
    replicas[0].process().signal("CONT");
    assert_equal_data(&master, &replicas);
    assert_eq!(psyncd.resyncs(), Resyncs { partial: 0, full: 2 });
}
