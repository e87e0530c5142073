//! What the scenarios are told with: real servers, psyncd itself, a network that fails on demand, write loads, and waiting.
//!
//! Everything started here ends with the value that stands for it. Nothing outside loopback is touched, no port is
//! fixed, and no process is ended but by the pid we started. Begin reading at `node` and `psyncd`.

pub mod authority;
pub mod browser;
pub mod deployed;
pub mod estate;
pub mod fake;
pub mod forwarder;
pub mod load;
pub mod node;
pub mod process;
pub mod psyncd;
pub mod resp;
pub mod sentinel;
pub mod servers;
pub mod wait;
pub mod writer;

pub use authority::{Authority, Issued, Validity};
pub use browser::{Browser, NARROW_DARK, View, WIDE_LIGHT};
pub use deployed::deployed;
pub use estate::{Estate, Past};
pub use fake::{FakeMaster, REPLID, linger, rdb_of};
pub use forwarder::Forwarder;
pub use load::{Load, fill, write_megabytes};
pub use node::{Node, Syncs, assert_equal_data, parse_info};
pub use process::{Process, free_port, tail};
pub use psyncd::{Psyncd, Resyncs, post};
pub use resp::{Conn, Value, encode};
pub use sentinel::{Sentinel, agreed_master};
pub use servers::{Tier, all, server, target_directory};
pub use wait::{SOON, holds_for, wait_at_most, wait_until, when};
pub use writer::{Writer, Written};
