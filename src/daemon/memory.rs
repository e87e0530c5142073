//! Whom to follow at the start, and remembering whom we were told to follow.
//!
//! What was told last wins over the configuration, for as long as the configuration says what it said then: a relay that
//! Sentinel moved to another master does not go back to the old one because it was restarted. Once the configuration
//! says something else, it wins.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;
use crate::net::Address;
use crate::relay::target::{Source, Target};
use crate::store::state::{Following, Remembered, StateFile};

/// Between two tries to write down what was told.
const RETRY: Duration = Duration::from_secs(5);

/// What is known when psyncd starts.
pub(super) struct Memory {
    /// Whom to follow.
    pub(super) target: Arc<Target>,
    /// Who we are to a Sentinel: the same for as long as the directory is kept.
    pub(super) run_id: String,
    /// Whether the configuration now names the very node we were told to follow under the one before: then what is on
    /// disk is of that node.
    pub(super) caught_up: bool,
    configured: String,
    written: Remembered,
}

/// What the configuration follows, as a name: the same for as long as it says the same.
pub(super) fn configured(config: &Config) -> String {
    match (&config.sentinels, &config.upstream) {
        (Some(sentinels), _) => format!("sentinel:{}", sentinels.master),
        (None, Some(upstream)) => upstream.to_string(),
        (None, None) => unreachable!("the configuration was checked for one of them"),
    }
}

impl Memory {
    /// What follows from the configuration and from what was `written` in an earlier life.
    pub(super) fn new(config: &Config, written: Remembered, identity: &str) -> Self {
        let configured = configured(config);
        let told = written.following.as_ref();
        let followed: Option<Address> = told.and_then(|told| told.address.parse().ok());
        let unchanged = told.is_some_and(|told| told.configured == configured);
        let caught_up = followed.is_some() && followed == config.upstream;
        let target = match &followed {
            Some(followed) if unchanged => {
                if config.upstream.as_ref() != Some(followed) {
                    info!(event = "upstream_remembered", upstream = %followed, %configured, "following the node psyncd was last told to follow");
                }
                Target::new(Some(followed.clone()))
            }
            Some(followed) => {
                info!(event = "upstream_configured", %followed, %configured, "configuration changed since psyncd was told to follow another node");
                let target = Target::new(config.upstream.clone());
                target.repoints.increment(Source::Config);
                target
            }
            None => Target::new(config.upstream.clone()),
        };
        if let Some(epoch) = told.filter(|_| unchanged && followed.is_some()).and_then(|told| told.epoch) {
            target.agree(epoch);
        }
        let run_id = written.run_id.as_deref().filter(|id| id.len() == 40).unwrap_or(identity).to_owned();
        Self { target, run_id, caught_up, configured, written }
    }

    /// Writes down whatever changes until `shutdown`; the id at once, if others `know` us by it.
    pub(super) async fn keep(self, file: Option<Arc<StateFile>>, known: bool, shutdown: CancellationToken) {
        let Self { target, run_id, configured, written, .. } = self;
        let Some(file) = file else { return };
        let run_id = if known { Some(run_id) } else { written.run_id.clone() };
        // A configuration that was changed makes what was told before void.
        let mut following = written.following.clone().filter(|told| told.configured == configured);
        let mut news = (target.address(), target.epoch());
        let mut unsaved = run_id != written.run_id || following != written.following;
        loop {
            if unsaved {
                let update = |state: &mut Remembered| {
                    (state.following, state.run_id) = (following.clone(), run_id.clone());
                };
                match file.update(update).await {
                    Ok(()) => unsaved = false,
                    Err(error) => {
                        warn!(event = "state_not_saved", %error, path = %file.path().display(), "state not saved; a restart forgets whom psyncd was told to follow");
                    }
                }
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if !unsaved => return,
                (address, epoch) = target.news(news.0.as_ref(), news.1) => {
                    following = Some(Following { address: address.to_string(), configured: configured.clone(), epoch });
                    news = (Some(address), epoch);
                    unsaved = true;
                }
                () = sleep(RETRY), if unsaved => {
                    if shutdown.is_cancelled() {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, Surroundings};

    fn config(upstream: &str) -> Config {
        let around = Surroundings { env: vec![], read_file: &|_| Err(std::io::ErrorKind::NotFound.into()) };
        let values = vec![("upstream", upstream.to_owned())];
        Config::load(&Flags { file: None, values }, &around).map(|loaded| loaded.config).unwrap()
    }

    fn told(address: &str, configured: &str) -> Remembered {
        let following = Following { address: address.into(), configured: configured.into(), epoch: Some(3) };
        Remembered { following: Some(following), ..Remembered::default() }
    }

    #[test]
    fn what_was_told_wins_until_the_configuration_says_something_new() {
        let at = |written: Remembered| {
            let memory = Memory::new(&config("a:1"), written, "me");
            (memory.target.name(), memory.target.epoch(), memory.caught_up)
        };
        assert_eq!(at(Remembered::default()), ("a:1".into(), None, false));
        assert_eq!(at(told("b:2", "a:1")), ("b:2".into(), Some(3), false));
        assert_eq!(at(told("b:2", "c:3")), ("a:1".into(), None, false));
        assert_eq!(at(told("a:1", "c:3")), ("a:1".into(), None, true), "what is on disk is its");
        assert_eq!(at(told("nonsense", "a:1")), ("a:1".into(), None, false));
    }
}
