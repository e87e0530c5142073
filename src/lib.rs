//! psyncd: a replication-aware TCP proxy for Redis and Valkey.

pub mod count;
pub mod downstream;
pub mod entropy;
pub mod net;
pub mod relay;
pub mod repl;
pub mod store;
pub mod upstream;
pub mod wire;
