//! Redis 2.8 and 3.2: PSYNC 1, inline handshakes, no second id. They are compiled first, which takes a minute and a C
//! compiler; therefore they run on demand only: `cargo test --test e2e -- --ignored`.

use crate::harness::*;
use crate::matrix;

#[test]
#[ignore = "compiles redis 2.8.17 and 3.2.6; run with: cargo test --test e2e -- --ignored"]
fn redis_2_8_is_served() {
    matrix::serve("redis-2.8.17", Tier::Old);
}

#[test]
#[ignore = "compiles redis 2.8.17 and 3.2.6; run with: cargo test --test e2e -- --ignored"]
fn redis_3_2_is_served() {
    matrix::serve("redis-3.2.6", Tier::Old);
}
