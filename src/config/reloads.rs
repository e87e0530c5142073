//! Reading the configuration again: what of it holds at once, and how it went.

use std::sync::atomic::{AtomicBool, AtomicU64};

use super::settings::SETTINGS;
use super::{Config, Journal, Sentinels, Shown, Tls};
use crate::wall;

/// How reloads went.
#[derive(Debug)]
pub struct Reloads {
    /// Whether the last configuration that was read holds; the first did.
    pub is_good: AtomicBool,
    /// When it was read.
    pub at_unix_ms: AtomicU64,
    /// When the one that is in force was read.
    pub good_at_unix_ms: AtomicU64,
}

impl Default for Reloads {
    fn default() -> Self {
        let now = wall::unix_ms();
        Self { is_good: AtomicBool::new(true), at_unix_ms: AtomicU64::new(now), good_at_unix_ms: AtomicU64::new(now) }
    }
}

/// What differs between the configuration that is in force and one that was read, by the names of settings.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changed {
    /// In force from now on.
    pub applied: Vec<&'static str>,
    /// In force after a restart.
    pub waiting: Vec<&'static str>,
}

impl Changed {
    /// What differs in the values that are shown.
    fn between(old: &[Shown], new: &[Shown]) -> Self {
        let mut changed = Self::default();
        for (old, new) in old.iter().zip(new).filter(|(old, new)| old.value != new.value) {
            debug_assert_eq!(old.name, new.name);
            let is_live = SETTINGS.iter().any(|setting| setting.name == new.name && setting.is_live());
            if is_live { changed.applied.push(new.name) } else { changed.waiting.push(new.name) }
        }
        changed
    }

    /// What a file holds has changed, or a secret nobody is shown.
    fn note(&mut self, name: &'static str) {
        if !self.applied.iter().any(|applied| applied.starts_with(name)) {
            self.applied.push(name);
        }
    }

    /// This one cannot be had before a restart.
    pub fn put_off(&mut self, name: &'static str) {
        self.applied.retain(|applied| *applied != name);
        if !self.waiting.contains(&name) {
            self.waiting.push(name);
        }
    }
}

impl Config {
    /// This configuration with everything of `new` that can change while psyncd runs, and what differs. Of the settings
    /// called [live](super::settings::Setting::is_live) all are taken; whether there is a journal at all is not for a reload to say.
    pub fn renewed(&self, new: Config) -> (Config, Changed) {
        let mut changed = Changed::between(&self.shown, &new.shown);
        if self.login() != new.login() {
            changed.note("masterauth");
        }
        if self.sentinel_login() != new.sentinel_login() {
            changed.note("sentinel-password");
        }
        if self.replica_requirepass != new.replica_requirepass {
            changed.note("replica-requirepass");
        }
        if self.requirepass != new.requirepass {
            changed.note("requirepass");
        }
        if self.admin_token != new.admin_token {
            changed.note("admin-token");
        }
        if self.users != new.users {
            changed.note("[[user]]");
        }
        let journal = match (self.journal, new.journal) {
            (Some(old), Some(new)) => {
                let Journal { segment_bytes, adopt, .. } = old;
                Some(Journal { segment_bytes, adopt, ..new })
            }
            (None, Some(_)) | (Some(_), None) => {
                changed.put_off("backlog-disk-size");
                self.journal
            }
            (None, None) => None,
        };
        let sentinels = match (&self.sentinels, new.sentinels) {
            (Some(old), Some(new)) => Some(Sentinels { user: new.user, password: new.password, ..old.clone() }),
            _ => self.sentinels.clone(),
        };
        let renewed = Config {
            upstream: new.upstream,
            replica_requirepass: new.replica_requirepass,
            sentinels,
            tls: Tls { allowed_replicas: new.tls.allowed_replicas, ..self.tls.clone() },
            journal,
            repl_backlog_bytes: new.repl_backlog_bytes,
            keep_lost_bytes: new.keep_lost_bytes,
            masteruser: new.masteruser,
            masterauth: new.masterauth,
            protected_mode: new.protected_mode,
            replica_auth: new.replica_auth,
            requirepass: new.requirepass,
            users: new.users,
            admin_hosts: new.admin_hosts,
            admin_token: new.admin_token,
            auth_cache_ttl: new.auth_cache_ttl,
            allow_replicas: new.allow_replicas,
            allow_clients: new.allow_clients,
            allow_admin: new.allow_admin,
            max_unauthenticated: new.max_unauthenticated,
            max_connection_rate: new.max_connection_rate,
            max_handshake_bytes: new.max_handshake_bytes,
            ack_policy: new.ack_policy,
            ack_when_empty: new.ack_when_empty,
            repl_timeout: new.repl_timeout,
            connect_timeout: new.connect_timeout,
            handshake_timeout: new.handshake_timeout,
            hold_timeout: new.hold_timeout,
            drain_timeout: new.drain_timeout,
            guard: new.guard,
            guard_interval: new.guard_interval,
            snapshot_source: new.snapshot_source,
            snapshot_min_interval: new.snapshot_min_interval,
            max_replicas: new.max_replicas,
            max_senders: new.max_senders,
            sender_rate_limit: new.sender_rate_limit,
            max_clients: new.max_clients,
            log_level: new.log_level,
            shown: new.shown,
            ..self.clone()
        };
        (renewed, changed)
    }

    /// What is shown as in force: of what waits for a restart, the `old`.
    pub fn show_in_force(&mut self, old: &[Shown], changed: &Changed) {
        let pick = |(old, new): (&Shown, &Shown)| {
            if changed.waiting.contains(&new.name) { old.clone() } else { new.clone() }
        };
        self.shown = old.iter().zip(self.shown.iter()).map(pick).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{Kind, Setting};
    use crate::config::tests::loaded_from;

    /// A value that differs from the default, for settings of which any value will do.
    fn another(setting: &Setting) -> Option<String> {
        let preset = match setting.preset {
            crate::config::settings::Preset::Value(value) => value,
            _ => "",
        };
        Some(match setting.kind {
            Kind::Word(words) => (*words.iter().find(|word| **word != preset)?).to_owned(),
            Kind::Count { min, max } => (min.max(3)..=max).map(|n| n.to_string()).find(|n| n != preset)?,
            Kind::Bytes { .. } => "300mb".to_owned(),
            Kind::Time { min, max } => {
                let middle = min + (max - min) / 3;
                format!("{}ms", middle.as_millis())
            }
            Kind::Percent { .. } => "33".to_owned(),
            Kind::Networks => "10.1.2.0/24".to_owned(),
            Kind::Address => "elsewhere:1".to_owned(),
            _ => return None,
        })
    }

    #[test]
    fn exactly_what_is_called_live_changes_with_a_reload() {
        let base = "upstream = \"a:1\"\ndir = \"/d\"\nreplica-auth = \"none\"\n";
        let old = loaded_from(base).unwrap();
        let mut tried = 0;
        for setting in SETTINGS {
            let Some(value) = another(setting) else { continue };
            let text = if ["upstream", "replica-auth"].contains(&setting.name) {
                base.lines().filter(|line| !line.starts_with(setting.name)).collect::<Vec<_>>().join("\n") + "\n"
            } else {
                base.to_owned()
            };
            let Ok(new) = loaded_from(&format!("{text}{} = \"{value}\"\n", setting.name)) else { continue };
            let (renewed, changed) = old.renewed(new);
            let (mut before, mut after) = (old.clone(), renewed);
            before.shown = [].into();
            after.shown = [].into();
            let took = format!("{before:?}") != format!("{after:?}");
            assert_eq!(took, setting.is_live(), "{} = {value}", setting.name);
            let named = if setting.is_live() { &changed.applied } else { &changed.waiting };
            assert_eq!(named[..], [setting.name], "{value}");
            tried += 1;
        }
        assert!(tried >= 40, "{tried}");
    }

    #[test]
    fn a_journal_is_neither_begun_nor_given_up_by_a_reload() {
        let with = loaded_from("upstream = \"a:1\"\ndir = \"/d\"\n").unwrap();
        let without = loaded_from("upstream = \"a:1\"\ndir = \"/d\"\nbacklog-disk-size = \"0\"\n").unwrap();
        for (old, new) in [(&with, &without), (&without, &with)] {
            let (renewed, changed) = old.renewed(new.clone());
            assert_eq!((renewed.journal, &changed.waiting[..]), (old.journal, &["backlog-disk-size"][..]));
        }
    }
}
