//! psyncd: a replication-aware TCP proxy for Redis and Valkey.

pub mod admin;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod log;
pub mod metrics;
pub mod net;
pub mod repl;
pub mod store;
