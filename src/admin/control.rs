//! What can be changed from outside, and who does it. Asked for with POST over the control socket only; a new verb is
//! a variant with its path here, and an arm where the daemon obeys.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use hyper::StatusCode;

/// Time a verb may take before its caller is told that it did not end.
pub const LIMIT_CONTROL_TIME: Duration = Duration::from_secs(30);

/// Something to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Follow the master the wipe guard holds, this once.
    GuardRelease,
    /// Go on holding it, and say no more about it.
    GuardReject,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Verb; 2] = [Verb::GuardRelease, Verb::GuardReject];

    /// Where it is asked for.
    pub const fn path(self) -> &'static str {
        match self {
            Verb::GuardRelease => "/-/guard/release",
            Verb::GuardReject => "/-/guard/reject",
        }
    }

    /// The same on the command line.
    pub const fn command(self) -> &'static str {
        match self {
            Verb::GuardRelease => "psyncd guard release",
            Verb::GuardReject => "psyncd guard reject",
        }
    }

    /// The verb asked for at `path`.
    pub fn at(path: &str) -> Option<Verb> {
        Verb::ALL.into_iter().find(|verb| verb.path() == path)
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
    /// It is done.
    Done,
    /// There was nothing to do it to.
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
