//! What a session would like to know of a replica and cannot see from here: its own word. The daemon lends somebody who
//! asks.

use std::future::Future;
use std::pin::Pin;

use crate::net::Address;

/// A boxed answer.
pub type Answered<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Whether a node may be told the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It named the password itself, so it learns nothing new.
    Shares,
    /// It did not. Anybody can announce any address.
    None,
}

/// Asks replicas on connections of its own.
pub trait Peers: Send + Sync {
    /// Whether `password` is ours, which makes whoever named it worth [`Trust::Shares`].
    fn shares(&self, password: &[u8]) -> Trust;

    /// The `slave_priority` the server at `address` reports; `None` when it does not say, for whatever reason. Bounded
    /// in time. Cancel-safe: dropping it closes the connection.
    fn priority(&self, address: Address, trust: Trust) -> Answered<Option<u32>>;
}
