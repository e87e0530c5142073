//! Whether a node is a master, asked of itself.

use super::Scout;
use super::talk::Talk;
use crate::label;
use crate::net::Address;
use crate::wire::dialogue;
use crate::wire::info::{Role, parse_info};
use crate::wire::reply::Reply;
use crate::wire::resp::encode_command;

label! {
    /// What a node is.
    pub enum Verdict {
        /// It takes itself for a master.
        Master = "master",
        /// It does not.
        NotMaster = "not_master",
        /// It could not be asked.
        Unreachable = "unreachable",
    }
}

/// Asks with ROLE, and where that is not allowed with INFO, which psyncd needs to be allowed anyway.
pub async fn is_master(scout: &Scout, address: &Address) -> Verdict {
    let options = &scout.options;
    let login = options.master_login.get();
    let opened = Talk::open(&*scout.network, address, &login, *options.timeout.get()).await;
    let Ok(mut talk) = opened else { return Verdict::Unreachable };
    match talk.ask(encode_command(&["ROLE"])).await {
        Ok(Reply::Array(items)) => match items.first().and_then(Reply::bytes) {
            Some(b"master") => Verdict::Master,
            Some(_) | None => Verdict::NotMaster,
        },
        Ok(_) => match talk.ask(dialogue::info("replication")).await {
            Ok(reply) => match reply.bytes().and_then(|text| parse_info(text).role) {
                Some(Role::Master) => Verdict::Master,
                Some(Role::Replica) | None => Verdict::NotMaster,
            },
            Err(_) => Verdict::Unreachable,
        },
        Err(_) => Verdict::Unreachable,
    }
}
