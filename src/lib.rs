//! psyncd: a replication-aware TCP proxy for Redis and Valkey.

mod count;
pub mod entropy;
pub mod net;
pub mod relay;
pub mod repl;
pub mod store;
pub mod wire;
