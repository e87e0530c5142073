//! psyncd: a replication-aware TCP proxy for Redis and Valkey.

pub mod net;
pub mod repl;
pub mod store;
pub mod wire;
