//! Random sequences of verbs and restarts, against the model.

use std::sync::Arc;

use proptest::prelude::*;
use psyncd::store::journal::{Options, Room};

use crate::block_on;
use crate::chance::Chance;
use crate::disk::SimDisk;
use crate::ledger::{Ledger, Op};
use crate::model::{check, options};

#[derive(Debug, Clone, Copy)]
enum Step {
    Op(Op),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![
        20 => (0usize..3000, 0u64..4).prop_map(|(length, boundary)| Op::Append { length, boundary }),
        2 => Just(Op::Turn),
        2 => (0u64..9000).prop_map(|back| Op::Cut { back }),
        1 => (0u64..10_000).prop_map(|start| Op::Begin { start }),
        2 => Just(Op::Sync),
        3 => prop::option::of(0u64..9000).prop_map(|floor| Op::Trim { floor }),
        2 => (1usize..9000).prop_map(|max| Op::Read { max }),
    ];
    prop_oneof![30 => op.prop_map(Step::Op), 2 => Just(Step::Reopen)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn whatever_is_done_and_whenever_it_is_reopened_window_and_bytes_are_the_models(
        segment_bytes in prop_oneof![1u64..50, 200u64..20_000, Just(1 << 30)],
        limit_bytes in 1_000u64..40_000,
        steps in prop::collection::vec(step(), 1..80),
    ) {
        block_on(async {
            let options = Options {
                room: Room { limit_bytes, hard_limit_bytes: limit_bytes + 5_000, keep: None },
                ..options(segment_bytes)
            };
            let disk = Arc::new(SimDisk::new(Chance::new(0)));
            let mut ledger = Ledger::new();
            let mut journal = ledger.reopen(&disk, options.clone()).await.unwrap();
            for step in steps {
                match step {
                    Step::Op(op) => ledger.apply(&mut journal, op).await.unwrap(),
                    Step::Reopen => {
                        let window = journal.archive().window();
                        let before = ledger.now().cloned();
                        drop(journal);
                        journal = ledger.reopen(&disk, options.clone()).await.unwrap();
                        assert_eq!(journal.archive().window(), window);
                        assert_eq!(ledger.now(), before.as_ref());
                    }
                }
                if let Some(now) = ledger.now() {
                    check(&journal, now, 4000).await;
                }
                assert_eq!(journal.archive().used_bytes(), disk.usage().0);
            }
        });
    }
}
