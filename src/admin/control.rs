//! What can be changed from outside, and who does it. Asked for with POST over the control socket, or with a token; a new verb is
//! a variant with its path here, and an arm where the daemon obeys.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use hyper::StatusCode;

use crate::net::Address;

/// Time a verb may take before its caller is told that it did not end.
pub const LIMIT_CONTROL_TIME: Duration = Duration::from_secs(30);

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// Follow the master the wipe guard holds, this once.
    GuardRelease,
    /// Go on holding it, and say no more about it.
    GuardReject,
    /// Say that psyncd is not ready, so that nobody new is sent to it.
    Drain,
    /// Say that it is ready again.
    Undrain,
    /// Read the configuration again.
    Reload,
    /// Follow another node.
    Repoint {
        /// Which.
        to: Address,
        /// What about Sentinels that say otherwise.
        despite: Despite,
    },
    /// Fetch a snapshot although nobody waits for one.
    SnapshotRefresh,
    /// Forget the snapshot there is.
    SnapshotDrop,
}

/// Whether somebody else's say is overruled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Despite {
    /// It is not.
    Nobody,
    /// That of Sentinels, who will probably have psyncd follow their master again.
    Sentinels,
}

/// Why a path is no verb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoVerb {
    /// Nothing is asked for at that path.
    Unknown,
    /// The verb needs another query.
    Query(String),
}

impl Verb {
    /// Where it is asked for.
    pub const fn path(&self) -> &'static str {
        match self {
            Verb::GuardRelease => "/-/guard/release",
            Verb::GuardReject => "/-/guard/reject",
            Verb::Drain => "/-/drain",
            Verb::Undrain => "/-/undrain",
            Verb::Reload => "/-/reload",
            Verb::Repoint { .. } => "/-/repoint",
            Verb::SnapshotRefresh => "/-/snapshot/refresh",
            Verb::SnapshotDrop => "/-/snapshot/drop",
        }
    }

    /// The path with what else there is to say.
    pub fn request(&self) -> String {
        match self {
            Verb::Repoint { to, despite } => {
                let force = if *despite == Despite::Sentinels { "&force=yes" } else { "" };
                format!("{}?to={to}{force}", self.path())
            }
            _ => self.path().to_owned(),
        }
    }

    /// The same on the command line.
    pub fn command(&self) -> String {
        match self {
            Verb::GuardRelease => "psyncd guard release".to_owned(),
            Verb::GuardReject => "psyncd guard reject".to_owned(),
            Verb::Drain => "psyncd drain".to_owned(),
            Verb::Undrain => "psyncd undrain".to_owned(),
            Verb::Reload => "psyncd reload".to_owned(),
            Verb::Repoint { to, .. } => format!("psyncd repoint {to}"),
            Verb::SnapshotRefresh => "psyncd snapshot refresh".to_owned(),
            Verb::SnapshotDrop => "psyncd snapshot drop".to_owned(),
        }
    }

    /// The verb asked for at `path` with `query`.
    ///
    /// # Errors
    /// When there is none there, or the query does not say what it needs.
    pub fn at(path: &str, query: Option<&str>) -> Result<Verb, NoVerb> {
        let simple = [
            Verb::GuardRelease,
            Verb::GuardReject,
            Verb::Drain,
            Verb::Undrain,
            Verb::Reload,
            Verb::SnapshotRefresh,
            Verb::SnapshotDrop,
        ];
        if path != "/-/repoint" {
            return simple.into_iter().find(|verb| verb.path() == path).ok_or(NoVerb::Unknown);
        }
        let value = |name: &str| query?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let to = value("to").ok_or_else(|| NoVerb::Query("say whom to follow: /-/repoint?to=HOST:PORT".to_owned()))?;
        let to = to.parse().map_err(|error: crate::net::InvalidAddress| NoVerb::Query(error.to_string()))?;
        let despite = if value("force") == Some("yes") { Despite::Sentinels } else { Despite::Nobody };
        Ok(Verb::Repoint { to, despite })
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// How it went.
    pub outcome: Outcome,
    /// The same in a sentence or two, for people, without a line end.
    pub text: String,
}

/// How a verb went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done, or was so already.
    Done,
    /// There was nothing to do it to, or it is not allowed.
    Nothing,
}

impl Outcome {
    pub(super) const fn status(self) -> StatusCode {
        match self {
            Outcome::Done => StatusCode::OK,
            Outcome::Nothing => StatusCode::CONFLICT,
        }
    }
}

/// A boxed future of [`Control`].
pub type ControlFuture<'a> = Pin<Box<dyn Future<Output = Reply> + Send + 'a>>;

/// Who does what is asked for.
pub trait Control: Send + Sync {
    /// Does it. The future is dropped after [`LIMIT_CONTROL_TIME`], and what it did by then stands.
    fn obey(&self, verb: Verb) -> ControlFuture<'_>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_found_where_it_asks_to_be() {
        let to: Address = "[::1]:6379".parse().unwrap();
        for verb in [
            Verb::GuardRelease,
            Verb::GuardReject,
            Verb::Drain,
            Verb::Undrain,
            Verb::Reload,
            Verb::Repoint { to: to.clone(), despite: Despite::Nobody },
            Verb::Repoint { to, despite: Despite::Sentinels },
            Verb::SnapshotRefresh,
            Verb::SnapshotDrop,
        ] {
            let request = verb.request();
            let (path, query) = request.split_once('?').map_or((&*request, None), |(path, query)| (path, Some(query)));
            assert_eq!(Verb::at(path, query), Ok(verb));
        }
        assert_eq!(Verb::at("/-/fly", None), Err(NoVerb::Unknown));
        for query in [None, Some("to=nowhere"), Some("to="), Some("force=yes")] {
            assert!(matches!(Verb::at("/-/repoint", query), Err(NoVerb::Query(_))), "{query:?}");
        }
    }
}
