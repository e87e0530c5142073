//! The one line an operator reads first, and what stands behind it: judged once, here, for the status page and whatever
//! else shows the status. Pure: what is known in, words out. The limits are those of the alerts in
//! `deploy/prometheus/rules.yml`, without their patience, so that the page says first what an alert says later.

use std::time::Duration;

use crate::label;
use crate::relay::LinkState;
use crate::relay::replicas::{ReplicaState, Waits};
use crate::relay::status::{ReplicaStatus, Status};

/// Data older than this is worth a word.
pub const LAG_HIGH: Duration = Duration::from_secs(10);
/// A replica that lags and falls off within this time is in danger.
pub const FALL_NEAR: Duration = Duration::from_secs(60);
/// A replica acknowledges every second; this long without a word it may be gone.
pub const SILENCE_LONG: Duration = Duration::from_secs(10);
/// The master pings every ten seconds unless told otherwise.
pub const UPSTREAM_SILENCE_LONG: Duration = Duration::from_secs(20);
/// A link that comes back within this was hardly lost.
pub const LOSS_SHORT: Duration = Duration::from_secs(5);
/// A backlog that lasts less than this at the present rate is short.
pub const RUNWAY_SHORT: Duration = Duration::from_secs(900);

label! {
    /// How good something is; the greatest of several is that of the whole.
    #[derive(PartialOrd, Ord)]
    pub enum Grade {
        /// As it should be.
        Ok = "ok",
        /// On its way there: a transfer, a handshake.
        Busy = "busy",
        /// Not as it should be, and nothing is lost yet.
        Warn = "warn",
        /// A person should look now.
        Bad = "bad",
    }
}

/// What the verdict is about.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The node that is followed.
    pub upstream: &'a str,
    /// The relay.
    pub status: &'a Status,
    /// How long the link has been lost; none while it streams, and before it ever did.
    pub down: Option<Duration>,
    /// Since a byte came from the upstream; none before the first.
    pub silent: Option<Duration>,
    /// Whether psyncd is going away.
    pub draining: bool,
    /// Whether the wipe guard holds a master that lost its data.
    pub held: bool,
    /// Whether there is a journal that does not follow the stream.
    pub degraded: bool,
}

/// What there is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The worst of all.
    pub grade: Grade,
    /// One line: the worst first, then how things stand.
    pub text: String,
    /// What is not as it should be, the worst first.
    pub problems: Vec<Problem>,
    /// Of the link to the upstream alone.
    pub link: Grade,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub grade: Grade,
    /// What it is, and what it means.
    pub text: String,
}

/// What there is to say about one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaVerdict {
    /// How it is.
    pub grade: Grade,
    /// In a word or a few.
    pub text: String,
    /// How long until what it needs next is dropped, if the stream goes on as it does and the replica takes nothing;
    /// none before it streams, and while the stream does not grow.
    pub falls_off_in: Option<Duration>,
}

/// Judges the whole.
pub fn judge(scene: &Scene<'_>) -> Verdict {
    let status = scene.status;
    let mut problems = Vec::new();
    let mut add = |grade, text: String| problems.push(Problem { grade, text });
    if scene.draining {
        add(Grade::Warn, "psyncd is going away: replicas get what it still has".to_owned());
    }
    let link = link(scene).map_or(Grade::Ok, |(grade, text)| {
        add(grade, text);
        grade
    });
    for replica in &status.replicas {
        let verdict = judge_replica(replica, rate(status));
        if verdict.grade >= Grade::Warn {
            add(verdict.grade, format!("replica {} {}", replica.name, verdict.text));
        }
    }
    if scene.degraded {
        add(Grade::Warn, "the journal does not follow the stream: memory is all the backlog there is".to_owned());
    }
    if let Some(runway) = runway(status).filter(|runway| *runway < RUNWAY_SHORT) {
        add(Grade::Warn, format!("the backlog is short: at this rate a replica may be away for {} only", span(runway)));
    }
    problems.sort_by_key(|problem| std::cmp::Reverse(problem.grade));
    let transfers = status.replicas.iter().any(|replica| replica.state != ReplicaState::Online);
    let calm = if transfers { Grade::Busy } else { Grade::Ok };
    let grade = problems.first().map_or(calm, |worst| worst.grade);
    let stands = stands(scene);
    let text = match problems.as_slice() {
        [] => capital(&stands),
        [only] => format!("{}; {stands}", capital(&only.text)),
        [worst, rest @ ..] => format!("{}, and {} more; {stands}", capital(&worst.text), rest.len()),
    };
    Verdict { grade, text, problems, link }
}

/// Judges one replica; `rate` is the stream's, in bytes a second.
pub fn judge_replica(replica: &ReplicaStatus, rate: f64) -> ReplicaVerdict {
    let falls_off_in = replica.remaining_bytes.and_then(|bytes| seconds(bytes as f64 / rate));
    let say = |grade, text: String| ReplicaVerdict { grade, text, falls_off_in };
    let late = replica.lag > LAG_HIGH;
    match replica.state {
        ReplicaState::Waiting => match replica.waits {
            Some(Waits::Snapshot) => say(Grade::Busy, "waits for a snapshot".to_owned()),
            Some(Waits::Turn) => say(Grade::Busy, "waits for its turn".to_owned()),
            Some(Waits::Backoff) => say(Grade::Warn, "is held back: its last full resyncs failed".to_owned()),
            Some(Waits::Answer) | None => say(Grade::Busy, "waits for an answer".to_owned()),
        },
        ReplicaState::Snapshot => say(Grade::Busy, "receives a snapshot".to_owned()),
        ReplicaState::Catchup => say(Grade::Busy, "catches up".to_owned()),
        ReplicaState::Online => match falls_off_in {
            _ if late && replica.remaining_bytes == Some(0) => {
                say(Grade::Bad, "has fallen off: what it needs next is dropped".to_owned())
            }
            Some(left) if late && left < FALL_NEAR => say(Grade::Bad, format!("falls off in {}", span(left))),
            _ if late && replica.silent > SILENCE_LONG => {
                say(Grade::Warn, format!("has been silent for {}, {} behind", span(replica.silent), span(replica.lag)))
            }
            _ if late => say(Grade::Warn, format!("is {} behind", span(replica.lag))),
            _ if replica.silent > SILENCE_LONG => {
                say(Grade::Warn, format!("has been silent for {}", span(replica.silent)))
            }
            _ => say(Grade::Ok, "is up to date".to_owned()),
        },
    }
}

/// What is wrong with the link, if anything is.
fn link(scene: &Scene<'_>) -> Option<(Grade, String)> {
    let Scene { upstream, status, down, .. } = scene;
    if scene.held || status.link == LinkState::Held {
        return Some((Grade::Bad, format!("the wipe guard holds {upstream}: it lost its data, a person must rule")));
    }
    match (status.link, down) {
        (LinkState::Streaming, _) => {
            let silent = scene.silent.filter(|silent| *silent > UPSTREAM_SILENCE_LONG)?;
            Some((Grade::Warn, format!("{upstream} has sent nothing for {}", span(silent))))
        }
        (LinkState::Syncing, _) => Some((Grade::Warn, format!("receiving the data set of {upstream}"))),
        (_, Some(down)) => {
            let grade = if *down < LOSS_SHORT { Grade::Warn } else { Grade::Bad };
            Some((grade, format!("lost the upstream {upstream} {} ago, trying again", span(*down))))
        }
        (_, None) => Some((Grade::Bad, format!("never reached the upstream {upstream} yet, trying"))),
    }
}

/// How things stand, apart from problems.
fn stands(scene: &Scene<'_>) -> String {
    let status = scene.status;
    let online: Vec<_> = status.replicas.iter().filter(|r| r.state == ReplicaState::Online).collect();
    let mut parts = Vec::new();
    if status.link == LinkState::Streaming {
        parts.push(format!("streaming from {}", scene.upstream));
    }
    parts.push(match (status.replicas.len(), online.len()) {
        (0, _) => "no replica is attached".to_owned(),
        (1, 1) => "1 replica online".to_owned(),
        (all, online) if all == online => format!("{online} replicas online"),
        (all, online) => format!("{online} of {all} replicas online"),
    });
    if let Some(worst) = online.iter().map(|replica| replica.lag).max() {
        parts.push(format!("worst lag {}", span(worst)));
    }
    if status.line.is_some() {
        parts.push(match runway(status) {
            Some(runway) if runway < MONTH => format!("survives an outage of {}", span(runway)),
            Some(_) | None => "survives an outage of weeks".to_owned(),
        });
    }
    parts.join(", ")
}

const MONTH: Duration = Duration::from_secs(30 * 86400);

fn rate(status: &Status) -> f64 {
    status.line.as_ref().map_or(0.0, |line| line.rate)
}

fn runway(status: &Status) -> Option<Duration> {
    seconds(status.line.as_ref()?.runway_seconds)
}

fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

/// A time for people: two units at most.
pub fn span(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..10 => format!("{:.1} s", (time.as_secs_f64() * 10.0).floor() / 10.0),
        10..60 => format!("{s} s"),
        60..3600 => format!("{} m {} s", s / 60, s % 60),
        3600..86400 => format!("{} h {} m", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86400, s / 3600 % 24),
    }
}

fn capital(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

#[cfg(test)]
mod tests;
