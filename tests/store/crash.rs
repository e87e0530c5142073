//! The machine dies at every call that changes the disk.

use std::cell::Cell;
use std::sync::Arc;

use psyncd::store::journal::{Options, Room};

use crate::chance::Chance;
use crate::disk::{Crash, DiskFaults, SimDisk};
use crate::ledger::{Ledger, Op};
use crate::model::options;
use crate::{block_on, each_seed};

/// A journal's whole life by one seed.
struct Life {
    options: Options,
    ops: Vec<Op>,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let segment_bytes = *chance.pick(&[300, 1000, 3000, 100_000]);
        let limit_bytes = chance.between(2_000, 20_000);
        let hard_limit_bytes = limit_bytes + 5_000;
        let count = chance.between(10, 50);
        let ops = (0..count).map(|_| Op::draw(&mut chance)).collect();
        Self {
            options: Options { room: Room { limit_bytes, hard_limit_bytes, keep: None }, ..options(segment_bytes) },
            ops,
        }
    }

    /// Lives it on `disk` until the machine dies; returns whether it did.
    async fn live(&self, disk: &Arc<SimDisk>, ledger: &mut Ledger) -> bool {
        let Some(mut journal) = ledger.reopen(disk, self.options.clone()).await else { return true };
        for &op in &self.ops {
            let done = ledger.apply(&mut journal, op).await;
            if disk.is_dead() {
                return true;
            }
            done.unwrap();
        }
        false
    }

    /// Dies at call `n`, then again somewhere in the next life, possibly while recovering, and ends in peace.
    async fn die(&self, n: u64, crash: Crash, mut chance: Chance) {
        let mut disk = Arc::new(SimDisk::new(chance.fork("first")));
        let mut ledger = Ledger::new();
        disk.suffer(DiskFaults { dies_at: Some(n), ..Default::default() });
        self.live(&disk, &mut ledger).await;
        for _ in 0..2 {
            disk = Arc::new(disk.crash(crash, chance.fork("crash")));
            let longest = *chance.pick(&[6, 100]);
            disk.suffer(DiskFaults { dies_at: Some(chance.between(1, longest)), ..Default::default() });
            let next = Self::new(chance.draw());
            Self { options: self.options.clone(), ..next }.live(&disk, &mut ledger).await;
        }
        disk = Arc::new(disk.crash(crash, chance.fork("last")));
        for _ in 0..2 {
            ledger.reopen(&disk, self.options.clone()).await.unwrap();
        }
    }
}

/// How many calls of a life change the disk.
fn calls(life: &Life) -> u64 {
    block_on(async {
        let disk = Arc::new(SimDisk::new(Chance::new(0)));
        let died = life.live(&disk, &mut Ledger::new()).await;
        assert!(!died);
        disk.changes()
    })
}

#[test]
fn after_a_crash_at_any_call_what_is_claimed_is_a_true_prefix_with_all_that_was_synced() {
    let deaths = Cell::new(0u64);
    each_seed(12, |seed| {
        let life = Life::new(seed);
        for n in 1..=calls(&life) {
            for crash in Crash::ALL {
                block_on(life.die(n, crash, Chance::new(seed).fork(&format!("{n} {crash:?}"))));
                deaths.set(deaths.get() + 1);
            }
        }
    });
    println!("{} deaths", deaths.get());
}
