//! Disks that fail a call, fill up, or turn read-only, while the stream goes on.

use std::cell::Cell;
use std::sync::Arc;

use psyncd::store::journal::{Options, Room};

use crate::chance::Chance;
use crate::disk::{Crash, DiskFaults, SimDisk};
use crate::ledger::{Ledger, Op};
use crate::model::{check, options};
use crate::{block_on, each_seed};

fn faults(chance: &mut Chance, disk: &SimDisk) -> DiskFaults {
    match chance.below(6) {
        0 => DiskFaults { failing: [chance.between(1, 6)].into(), ..Default::default() },
        1 => DiskFaults { failing: (1..=chance.between(1, 12)).collect(), ..Default::default() },
        2 => DiskFaults { capacity_bytes: Some(disk.usage().0 + chance.below(1500)), ..Default::default() },
        3 => DiskFaults { read_only: true, ..Default::default() },
        _ => DiskFaults::default(),
    }
}

#[test]
fn a_disk_that_fails_costs_no_claim_that_was_made_and_is_used_again_when_it_works() {
    let errors = Cell::new(0u64);
    let calls = Cell::new(0u64);
    each_seed(300, |seed| {
        block_on(async {
            let mut chance = Chance::new(seed);
            let segment_bytes = *chance.pick(&[300, 1000, 3000, 100_000]);
            let limit_bytes = chance.between(5_000, 30_000);
            let options = Options {
                room: Room { limit_bytes, hard_limit_bytes: limit_bytes + 5_000, keep: None },
                ..options(segment_bytes)
            };
            let mut disk = Arc::new(SimDisk::new(chance.fork("disk")));
            let mut ledger = Ledger::new();
            let mut journal = ledger.reopen(&disk, options.clone()).await.unwrap();
            for _ in 0..120 {
                let op = match Op::draw(&mut chance) {
                    Op::Read { .. } => Op::Sync,
                    op => op,
                };
                disk.suffer(faults(&mut chance, &disk));
                let done = ledger.apply(&mut journal, op).await;
                disk.suffer(DiskFaults::default());
                calls.set(calls.get() + 1);
                errors.set(errors.get() + u64::from(done.is_err()));
                // Earlier claims stand: everything still claimed reads back, up to the end.
                match (journal.archive().window(), ledger.now()) {
                    (Some(_), Some(now)) => check(&journal, now, 3000).await,
                    (None, _) => {
                        let idle = matches!(op, Op::Trim { .. } | Op::Append { length: 0, .. });
                        assert!(done.is_err() || idle, "{op:?}");
                    }
                    (Some(_), None) => panic!("a claim of nothing"),
                }
                // A healthy disk takes the stream up again at once, from where it stands or at a new beginning.
                if chance.one_in(3) {
                    ledger.apply(&mut journal, Op::Append { length: 100, boundary: 0 }).await.unwrap();
                    ledger.apply(&mut journal, Op::Sync).await.unwrap();
                    check(&journal, ledger.now().unwrap(), 3000).await;
                }
                match chance.below(20) {
                    0 => {
                        drop(journal);
                        journal = ledger.reopen(&disk, options.clone()).await.unwrap();
                    }
                    1 => {
                        drop(journal);
                        disk = Arc::new(disk.crash(*chance.pick(&Crash::ALL), chance.fork("crash")));
                        journal = ledger.reopen(&disk, options.clone()).await.unwrap();
                    }
                    _ => {}
                }
            }
        });
    });
    assert!(errors.get() * 5 > calls.get(), "{} of {}", errors.get(), calls.get());
}
