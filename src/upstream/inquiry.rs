//! Asking a server that is not the upstream what it says of itself, on a connection for that alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::conversation::{Conversation, LinkEnd};
use crate::live::Live;
use crate::net::{Address, Network};
use crate::wire::dialogue::{self, Login};
use crate::wire::info::{MasterInfo, parse_info};

/// How to ask.
#[derive(Clone)]
pub struct Inquiry {
    /// How to dial.
    pub network: Arc<dyn Network>,
    /// What servers are named.
    pub login: Live<Login>,
}

/// Whether to name the password to whoever answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// If there is one.
    Named,
    /// Never: where the address is from is not known well enough.
    Withheld,
}

impl Inquiry {
    /// What `address` says in this section of INFO, within `limit` in all. Cancel-safe: dropping it closes the
    /// connection.
    pub async fn info(
        &self,
        address: &Address,
        section: &str,
        credentials: Credentials,
        limit: Duration,
    ) -> Result<MasterInfo, LinkEnd> {
        let asked = async {
            let link = self.network.dial(address).await.map_err(LinkEnd::Unreachable)?;
            let mut talk = Conversation::over(link, limit);
            if let (Some(auth), Credentials::Named) = (self.login.get().auth(), credentials) {
                // A server without a password answers an error that means nothing; INFO shows whether it mattered.
                talk.ask(auth).await?;
            }
            let reply = talk.ask_whole(dialogue::info(section)).await?;
            match reply.first() {
                Some(b'-') => Err(LinkEnd::Denied(String::from_utf8_lossy(&reply[1..]).trim_end().to_owned())),
                _ => Ok(parse_info(&reply)),
            }
        };
        timeout(limit, asked).await.map_err(|_| LinkEnd::Silent(limit))?
    }
}
