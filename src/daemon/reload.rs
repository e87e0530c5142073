//! A reload: what is changed while psyncd runs, and what waits for a restart.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use super::access_options;
use crate::access::Access;
use crate::config::reloads::Reloads;
use crate::config::settings::SETTINGS;
use crate::config::sources::Shown;
use crate::config::{self, Config, Loaded};
use crate::live::Live;
use crate::log;
use crate::net::Address;
use crate::wall;
use crate::wire::dialogue::Login;

/// What a reload reaches.
pub(super) struct Changeable {
    /// What the master is named.
    pub(super) login: Live<Login>,
    /// What the Sentinels are named.
    pub(super) sentinel_login: Live<Login>,
    /// What the replica face asks for.
    pub(super) face_password: Live<Option<Zeroizing<Vec<u8>>>>,
    /// Who may come and who judges.
    access: Arc<Access>,
    /// Every setting as it is in force.
    pub(super) settings: Live<Arc<[Shown]>>,
    /// Told when certificates are to be read again.
    pub(super) certificates: Arc<Notify>,
    pub(super) reloads: Arc<Reloads>,
    /// What is in force of what can be changed, and for the rest what psyncd began with.
    current: Mutex<Config>,
}

impl Changeable {
    pub(super) fn new(
        config: &Config,
        login: Live<Login>,
        sentinel_login: Live<Login>,
        face_password: Live<Option<Zeroizing<Vec<u8>>>>,
        access: Arc<Access>,
    ) -> Self {
        Self {
            access,
            login,
            sentinel_login,
            face_password,
            settings: Live::new(Arc::clone(&config.shown)),
            certificates: Arc::default(),
            reloads: Arc::default(),
            current: Mutex::new(config.clone()),
        }
    }

    /// Takes over what differs, or says what is wrong. Certificates are read again in any case.
    /// `repoint` has another upstream followed, or says why that cannot be.
    pub(super) fn reload(
        &self,
        loaded: Result<Loaded, config::Error>,
        repoint: impl FnOnce(Address) -> Result<(), String>,
    ) {
        self.certificates.notify_one();
        self.reloads.at_unix_ms.store(wall::unix_ms(), Ordering::Relaxed);
        self.reloads.is_good.store(loaded.is_ok(), Ordering::Relaxed);
        let Loaded { config, warnings, .. } = match loaded {
            Ok(loaded) => loaded,
            Err(why) => {
                error!(%why, "configuration not reloaded; the old one stays in force");
                return;
            }
        };
        for warning in warnings {
            warn!(warning, "configuration questioned");
        }
        let changed = self.take(config, repoint);
        for name in &changed.waiting {
            warn!(setting = name, "setting changed that needs a restart; the old value stays in force");
        }
        info!(changed = changed.applied.join(","), needs_restart = changed.waiting.join(","), "configuration reloaded");
    }

    fn take(&self, new: Config, repoint: impl FnOnce(Address) -> Result<(), String>) -> Changed {
        let mut current = self.current.lock().expect("no one panics holding it");
        let mut changed = Changed::between(&current.shown, &new.shown);
        let login = new.login();
        if *self.login.get() != login {
            changed.note("masterauth");
            self.login.set(login);
        }
        let login = new.sentinel_login();
        if *self.sentinel_login.get() != login {
            changed.note("sentinel-password");
            self.sentinel_login.set(login);
        }
        let password = new.replica_requirepass.as_ref().map(config::Secret::to_zeroizing);
        if *self.face_password.get() != password {
            changed.note("replica-requirepass");
            self.face_password.set(password);
        }
        let (old, options) = (self.access.options.get(), access_options(&new));
        if *old != options {
            if old.requirepass != options.requirepass {
                changed.note("requirepass");
            }
            if old.users != options.users {
                changed.note("[[user]]");
            }
            self.access.options.set(options);
        }
        log::set_level(new.log_level);
        if let (Some(address), true) = (&new.upstream, new.upstream != current.upstream)
            && let Err(why) = repoint(address.clone())
        {
            error!(%address, why, "upstream not changed");
            changed.applied.retain(|name| *name != "upstream");
            changed.waiting.push("upstream");
        }
        let shown: Arc<[Shown]> = changed.shown(&current.shown, &new.shown);
        self.settings.set(Arc::clone(&shown));
        let upstream = if changed.waiting.contains(&"upstream") { current.upstream.clone() } else { new.upstream };
        *current = Config {
            upstream,
            masteruser: new.masteruser,
            masterauth: new.masterauth,
            replica_requirepass: new.replica_requirepass,
            log_level: new.log_level,
            shown,
            ..current.clone()
        };
        changed
    }
}

/// What differs between two configurations, by the names of settings.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changed {
    /// In force now.
    applied: Vec<&'static str>,
    /// In force after a restart.
    waiting: Vec<&'static str>,
}

impl Changed {
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

    /// What is in force.
    fn shown(&self, old: &[Shown], new: &[Shown]) -> Arc<[Shown]> {
        let pick =
            |(old, new): (&Shown, &Shown)| if self.waiting.contains(&new.name) { old.clone() } else { new.clone() };
        old.iter().zip(new).map(pick).collect()
    }
}
