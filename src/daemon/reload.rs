//! A reload: what is changed while psyncd runs, and what waits for a restart.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{error, info, warn};

use super::options;
use crate::access::Access;
use crate::access::crowd::Crowd;
use crate::admin;
use crate::config::reloads::{Changed, Reloads};
use crate::config::sources::Shown;
use crate::config::{self, Config, Loaded};
use crate::downstream::Downstream;
use crate::front::{self, face};
use crate::live::Live;
use crate::log;
use crate::net::Address;
use crate::scribe::Upkeep;
use crate::upstream::Upstream;
use crate::wall;
use crate::wire::dialogue::Login;

/// What a reload reaches: every part that was built with what may change.
pub(super) struct Reach {
    pub(super) upstream: Upstream,
    pub(super) downstream: Downstream,
    pub(super) front: Live<front::Options>,
    pub(super) face: Live<face::Options>,
    pub(super) admin: Live<admin::Options>,
    pub(super) access: Arc<Access>,
    pub(super) crowd: Arc<Crowd>,
    /// None without a journal.
    pub(super) upkeep: Option<Live<Upkeep>>,
    /// What the Sentinels are named, and how long they may take.
    pub(super) sentinel_login: Live<Login>,
    pub(super) sentinel_timeout: Live<Duration>,
    pub(super) drain_timeout: Live<Duration>,
}

impl Reach {
    /// Has everybody go by `config` from now on.
    fn renew(&self, config: &Config) {
        let Reach { upstream, downstream, access, .. } = self;
        let now = upstream.options.get();
        now.login.set(config.login());
        upstream.options.set(options::upstream(config, now.identity.clone(), now.login.clone()));
        upstream.guard.set_rules(config.guard);
        upstream.relay.resize(options::relay(config));
        downstream.set_options(options::downstream(config, now.identity.clone()));
        access.set(options::access(config), options::oracle(config), config.auth_cache_ttl);
        self.crowd.resize(config.max_unauthenticated, config.max_connection_rate);
        self.front.set(options::front(config));
        self.face.set(options::face(config));
        self.admin.set(options::admin(config));
        if let (Some(upkeep), Some(journal)) = (&self.upkeep, &config.journal) {
            upkeep.set(options::upkeep(journal));
        }
        self.sentinel_login.set(config.sentinel_login());
        self.sentinel_timeout.set(config.connect_timeout);
        self.drain_timeout.set(config.drain_timeout);
        log::set_level(config.log_level);
    }
}

/// What can be changed, as it is.
pub(super) struct Changeable {
    reach: Reach,
    /// Every setting as it is in force.
    pub(super) settings: Live<Arc<[Shown]>>,
    /// Told when certificates are to be read again.
    pub(super) certificates: Arc<Notify>,
    pub(super) reloads: Arc<Reloads>,
    /// What is in force.
    current: Mutex<Config>,
}

impl Changeable {
    pub(super) fn new(config: &Config, reach: Reach) -> Self {
        Self {
            reach,
            settings: Live::new(Arc::clone(&config.shown)),
            certificates: Arc::default(),
            reloads: Arc::default(),
            current: Mutex::new(config.clone()),
        }
    }

    pub(super) fn drain_timeout(&self) -> Duration {
        *self.reach.drain_timeout.get()
    }

    /// Takes over what differs, and says what did, or what is wrong. Certificates are read again in any case.
    /// `repoint` has another upstream followed, or says why that cannot be.
    pub(super) fn reload(
        &self,
        loaded: Result<Loaded, config::Error>,
        repoint: impl FnOnce(Address) -> Result<(), String>,
    ) -> Result<Changed, config::Error> {
        self.certificates.notify_one();
        let now = wall::unix_ms();
        self.reloads.at_unix_ms.store(now, Ordering::Relaxed);
        if loaded.is_ok() {
            self.reloads.good_at_unix_ms.store(now, Ordering::Relaxed);
        }
        self.reloads.is_good.store(loaded.is_ok(), Ordering::Relaxed);
        let Loaded { config, warnings, .. } = match loaded {
            Ok(loaded) => loaded,
            Err(why) => {
                error!(event = "config_not_reloaded", %why, "configuration not reloaded; the old one stays in force");
                return Err(why);
            }
        };
        for warning in warnings {
            warn!(event = "config_questioned", warning, "configuration questioned");
        }
        let changed = self.take(config, repoint);
        for name in &changed.waiting {
            warn!(
                event = "setting_needs_restart",
                setting = name,
                "setting changed that needs a restart; the old value stays in force"
            );
        }
        info!(
            event = "config_reloaded",
            changed = changed.applied.join(","),
            needs_restart = changed.waiting.join(","),
            "configuration reloaded"
        );
        Ok(changed)
    }

    fn take(&self, new: Config, repoint: impl FnOnce(Address) -> Result<(), String>) -> Changed {
        let mut current = self.current.lock().expect("no one panics holding it");
        let (mut renewed, mut changed) = current.renewed(new);
        if let (Some(address), true) = (&renewed.upstream, renewed.upstream != current.upstream)
            && let Err(why) = repoint(address.clone())
        {
            error!(event = "upstream_not_changed", %address, why, "upstream not changed");
            changed.put_off("upstream");
            renewed.upstream.clone_from(&current.upstream);
        }
        renewed.show_in_force(&current.shown, &changed);
        self.reach.renew(&renewed);
        self.settings.set(Arc::clone(&renewed.shown));
        *current = renewed;
        changed
    }
}
