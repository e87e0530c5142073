//! `psyncd check`: one line and an exit code, as monitoring plugins give them (Nagios, Icinga, Zabbix, Sensu). A pure
//! judgement over the status document.

use std::time::Duration;

use super::document::Status;
use super::words::{bytes, plain, seconds};

/// What is asked of a psyncd. Each breach is critical, unless it says otherwise.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// Most seconds of data an online replica may lack.
    pub max_lag: Option<Duration>,
    /// The same, for a warning.
    pub warn_lag: Option<Duration>,
    /// Most bytes an online replica may lack.
    pub max_lag_bytes: Option<u64>,
    /// Fewest replicas that have to be online.
    pub min_replicas: Option<u64>,
    /// The least time replicas must be able to stay away; less is a warning.
    pub min_runway: Option<Duration>,
    /// How long the link to the upstream may be lost.
    pub max_link_down: Duration,
}

/// How it stands; the exit code of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// As it should be.
    Ok = 0,
    /// Somebody should look.
    Warning = 1,
    /// Somebody must act.
    Critical = 2,
    /// It cannot be said.
    Unknown = 3,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            State::Ok => "OK",
            State::Warning => "WARNING",
            State::Critical => "CRITICAL",
            State::Unknown => "UNKNOWN",
        }
    }

    /// The line of a check that came to this, without its end.
    pub fn line(self, text: &str) -> String {
        // A bar would begin the performance data, and a second line would be cut off.
        format!("PSYNCD {} - {}", self.word(), plain(text).replace('|', "/"))
    }
}

/// Judges, and says it in a line with performance data.
pub fn check(status: &Status, limits: &Limits) -> (State, String) {
    let mut found: Vec<(State, String)> = Vec::new();
    let online: Vec<_> = status.replicas.iter().filter(|replica| replica.is_online()).collect();
    let upstream = &status.upstream;
    if !upstream.is_streaming() {
        let down = upstream.down_seconds;
        if down.is_none_or(|down| down > limits.max_link_down.as_secs_f64()) {
            let long = down.map_or(String::new(), |down| format!(" for {}", seconds(down)));
            found.push((State::Critical, format!("{} is {}{long}", upstream.address, upstream.link)));
        }
    }
    if status.guard.active {
        found.push((State::Critical, "the wipe guard holds a master that lost its data".to_owned()));
    }
    if let Some(least) = limits.min_replicas.filter(|least| (online.len() as u64) < *least) {
        found.push((State::Critical, format!("{} of at least {least} replicas online", online.len())));
    }
    for replica in &online {
        let over = |limit: Option<Duration>| limit.filter(|limit| replica.lag_seconds > limit.as_secs_f64());
        let state = match (over(limits.max_lag), over(limits.warn_lag)) {
            (Some(_), _) => State::Critical,
            (None, Some(_)) => State::Warning,
            (None, None) => State::Ok,
        };
        if state != State::Ok {
            found.push((state, format!("{} lags {}", replica.replica, seconds(replica.lag_seconds))));
        }
        if limits.max_lag_bytes.is_some_and(|limit| replica.lag_bytes > limit) {
            found.push((State::Critical, format!("{} lags {}", replica.replica, bytes(replica.lag_bytes))));
        }
    }
    let runway = status.backlog.as_ref().and_then(|backlog| backlog.runway_seconds);
    if let (Some(runway), Some(least)) = (runway, limits.min_runway)
        && runway < least.as_secs_f64()
    {
        found.push((State::Warning, format!("replicas may stay away for {} only", seconds(runway))));
    }
    if status.backlog.as_ref().and_then(|backlog| backlog.journal.as_ref()).is_some_and(|journal| journal.degraded) {
        found.push((State::Warning, "the journal does not follow the stream".to_owned()));
    }
    found.sort_by_key(|(state, _)| std::cmp::Reverse(*state));
    let state = found.first().map_or(State::Ok, |(state, _)| *state);
    let worst = online.iter().map(|replica| replica.lag_seconds).fold(0.0, f64::max);
    let text = match found.is_empty() {
        true => format!(
            "{} from {}, {} replicas online, worst lag {}",
            upstream.link,
            upstream.address,
            online.len(),
            seconds(worst)
        ),
        false => found.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(", "),
    };
    let worst_bytes = online.iter().map(|replica| replica.lag_bytes).max().unwrap_or(0);
    let limit = |limit: Option<Duration>| limit.map_or(String::new(), |limit| limit.as_secs_f64().to_string());
    let mut data = format!(
        "lag={worst:.3}s;{};{};0 lag_bytes={worst_bytes}B;;{};0 replicas={};;{};0;{} clients={}",
        limit(limits.warn_lag),
        limit(limits.max_lag),
        limits.max_lag_bytes.map_or(String::new(), |limit| limit.to_string()),
        online.len(),
        // Below is what alerts, which is written with a colon.
        limits.min_replicas.map_or(String::new(), |least| format!("{least}:")),
        status.max_replicas,
        status.clients
    );
    if let Some(runway) = runway {
        let least = limits.min_runway.map_or(String::new(), |least| format!("{}:", least.as_secs_f64()));
        data.push_str(&format!(" runway={runway:.0}s;{least};;0"));
    }
    (state, format!("{} | {data}", state.line(&text)))
}

#[cfg(test)]
mod tests {
    use super::super::document::example;
    use super::*;

    const fn s(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    #[test]
    fn what_is_as_it_should_be_is_ok_with_numbers() {
        let limits = Limits { max_lag: s(10), warn_lag: s(1), min_replicas: Some(2), ..Limits::default() };
        let (state, line) = check(&example(), &limits);
        assert_eq!(state, State::Ok);
        assert_eq!(
            line,
            "PSYNCD OK - streaming from 10.0.0.1:6379, 2 replicas online, worst lag 0.2 s | lag=0.200s;1;10;0 \
             lag_bytes=7500B;;;0 replicas=2;;2:;0;64 clients=7 runway=1000s;;;0"
        );
    }

    #[test]
    fn each_breach_has_its_state_and_the_worst_counts() {
        type Change = fn(&mut Status);
        let judge = |change: Change, limits: Limits| {
            let mut status = example();
            change(&mut status);
            let (state, line) = check(&status, &limits);
            assert_eq!(line.matches('|').count(), 1, "{line}");
            assert!(line.contains(state.word()), "{line}");
            state
        };
        let none = Limits::default();
        let same: Change = |_| {};
        let cases: [(Change, Limits, State); 9] = [
            (same, Limits { min_replicas: Some(3), ..none.clone() }, State::Critical),
            (same, Limits { max_lag_bytes: Some(7000), ..none.clone() }, State::Critical),
            (same, Limits { min_runway: s(2000), ..none.clone() }, State::Warning),
            (|status| status.replicas[0].lag_seconds = 5.0, Limits { warn_lag: s(1), ..none.clone() }, State::Warning),
            (|status| status.replicas[0].lag_seconds = 5.0, Limits { max_lag: s(4), ..none.clone() }, State::Critical),
            (|status| status.replicas[2].lag_seconds = 99.0, Limits { max_lag: s(4), ..none.clone() }, State::Ok),
            (|status| status.upstream.link = "connecting | x".into(), none.clone(), State::Critical),
            (|status| status.guard.active = true, none.clone(), State::Critical),
            (
                |status| {
                    status.upstream.link = "connecting".into();
                    status.upstream.down_seconds = Some(3.0);
                },
                Limits { max_link_down: Duration::from_secs(5), ..none },
                State::Ok,
            ),
        ];
        for (number, (change, limits, expected)) in cases.into_iter().enumerate() {
            assert_eq!(judge(change, limits), expected, "case {number}");
        }
    }
}
