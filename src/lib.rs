//! psyncd: a replication-aware TCP proxy for Redis and Valkey.

pub mod admin;
pub mod cli;
pub mod config;
pub mod counters;
pub mod daemon;
pub mod downstream;
pub mod entropy;
pub mod front;
pub mod log;
pub mod metrics;
pub mod net;
pub mod observer;
pub mod relay;
pub mod repl;
pub mod store;
pub mod upstream;
pub mod wire;
