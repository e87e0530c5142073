//! What the parts are built with, from the configuration. A reload builds the same again: every function here is pure, and what a
//! part was given once it can be given anew.

use zeroize::Zeroizing;

use crate::access::credentials::Credentials;
use crate::access::oracle::Patience;
use crate::admin::hosts::Hosts;
use crate::config::{Config, Journal, Secret};
use crate::front::face;
use crate::live::Live;
use crate::scribe::Upkeep;
use crate::store::journal::Room;
use crate::wire::dialogue::Login;
use crate::{access, admin, downstream, front, relay, upstream};

/// How long the upstream may take to judge a replica, which waits five seconds for the answer to its AUTH.
const ORACLE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

pub(super) fn relay(config: &Config) -> relay::Options {
    relay::Options {
        backlog_bytes: config.repl_backlog_bytes,
        journal_bytes: config.journal.map_or(0, |journal| journal.limit_bytes),
        journal_lag_bytes: config.journal.map_or(0, |journal| journal.max_lag_bytes),
        history_depth: config.history_depth,
        max_replicas: config.max_replicas,
    }
}

pub(super) fn upkeep(journal: &Journal) -> Upkeep {
    let Journal { limit_bytes, hard_limit_bytes, keep, fsync, .. } = *journal;
    Upkeep { room: Room { limit_bytes, hard_limit_bytes, keep }, fsync }
}

/// `login` is kept by whoever asks the upstream on the side, too.
pub(super) fn upstream(config: &Config, identity: String, login: Live<Login>) -> upstream::Options {
    upstream::Options {
        login,
        announce_host: config.announce_ip.clone(),
        announce_port: config.announced_port(),
        connect_timeout: config.connect_timeout,
        handshake_timeout: config.handshake_timeout.min(config.repl_timeout),
        repl_timeout: config.repl_timeout,
        keep_lost_bytes: if config.dir.is_some() { config.keep_lost_bytes } else { 0 },
        ack_policy: config.ack_policy,
        silent_when_empty: !config.ack_when_empty,
        gather_time: config.gather_time,
        snapshot_source: config.snapshot_source,
        snapshot_min_interval: config.snapshot_min_interval,
        guard_interval: config.guard_interval,
        links: config.upstream_links,
        identity,
    }
}

pub(super) fn downstream(config: &Config, identity: String) -> downstream::Options {
    downstream::Options {
        handshake_timeout: config.handshake_timeout,
        max_handshake_bytes: config.max_handshake_bytes,
        hold_timeout: config.hold_timeout,
        repl_timeout: config.repl_timeout,
        identity,
        max_senders: config.max_senders,
        sender_rate_limit: config.sender_rate_limit,
    }
}

pub(super) fn front(config: &Config) -> front::Options {
    front::Options {
        announce_host: config.announce_ip.clone(),
        announce_port: config.announced_port(),
        max_clients: config.max_clients,
        max_handshake_bytes: config.max_handshake_bytes,
        handshake_timeout: config.handshake_timeout,
        connect_timeout: config.connect_timeout,
    }
}

pub(super) fn face(config: &Config) -> face::Options {
    face::Options {
        password: config.replica_requirepass.as_ref().map(Secret::to_zeroizing),
        max_clients: config.max_clients,
        handshake_timeout: config.handshake_timeout,
        write_timeout: config.repl_timeout,
    }
}

/// Who may come and who judges.
pub(super) fn access(config: &Config) -> access::Options {
    let own = config.masterauth.as_ref();
    access::Options {
        replica_auth: config.replica_auth,
        requirepass: config.requirepass.as_ref().map(|secret| Credentials::own(None, secret.reveal())),
        users: config.users.clone(),
        own: own.map(|secret| Credentials::own(config.masteruser.as_deref(), secret.reveal())),
        protected_mode: config.protected_mode,
        allow_replicas: config.allow_replicas.clone(),
        allow_clients: config.allow_clients.clone(),
        names: config.tls.allowed_replicas.clone(),
    }
}

pub(super) fn oracle(config: &Config) -> Patience {
    Patience { connect: config.connect_timeout, reply: config.handshake_timeout.min(ORACLE_PATIENCE) }
}

pub(super) fn admin(config: &Config) -> admin::Options {
    let token = config.admin_token.as_ref().map(|token| Zeroizing::new(token.reveal().to_vec()));
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    admin::Options { allow: config.allow_admin.clone(), hosts: Hosts::new(config.admin_hosts.clone(), &own), token }
}
