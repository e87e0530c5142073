//! psyncd: a replication-aware TCP proxy for Redis and Valkey.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod log;
pub mod net;
pub mod repl;
pub mod store;
