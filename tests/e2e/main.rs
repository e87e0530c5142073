//! psyncd against real Redis and Valkey servers.
//!
//! Every scenario starts its own servers, runs the psyncd binary as a user would, and proves what it claims by what the
//! servers themselves report: `DEBUG DIGEST`, offsets, `sync_full`, their logs. `control` shows that the harms psyncd
//! prevents are real: there plain servers suffer them. `harness` is what the scenarios are told with, `servers` is where
//! the binaries come from.
//!
//! `cargo test --test e2e` runs it; the first run fetches the servers. Two parts run on demand: the oldest versions, which
//! are compiled (`cargo test --test e2e -- --ignored old`), and whole failovers with real Sentinels, a minute and a half of
//! waiting for them (`cargo test --test e2e -- --ignored sidecars --test-threads 6`).

#![allow(clippy::unwrap_used, reason = "a test says what it expects, and fails where it does not come")]

mod harness;

mod access;
mod assist;
mod bad_disk;
mod bad_input;
mod bad_upstream;
mod clients;
mod cluster;
mod combinations;
mod command_line;
mod control;
mod daemon;
mod data;
mod doors;
mod failover;
mod guard;
mod lists;
mod many;
mod matrix;
mod mirrored;
mod notify;
mod old;
mod outage;
mod page;
mod relay;
mod reload;
mod restart;
mod seen;
mod sentinel;
mod sidecars;
mod sidecars_apart;
mod sidecars_killed;
mod slow;
mod sources;
mod storm;
mod syncs;
mod tls;
mod topology;
