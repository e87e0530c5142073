//! psyncd: a replication-aware TCP proxy for Redis and Valkey.

pub mod entropy;
pub mod net;
pub mod relay;
pub mod repl;
pub mod store;
