//! What was found out, as plain data.

use std::collections::BTreeMap;
use std::time::Duration;

/// What the upstream said.
#[derive(Debug, Clone, Default)]
pub struct Upstream {
    /// The fields of all its INFO; empty when it denies it.
    pub info: BTreeMap<String, String>,
    /// The settings it told; those it would not tell are missing.
    pub config: BTreeMap<String, String>,
    /// What it said to each of the commands psyncd needs, by name.
    pub commands: BTreeMap<&'static str, Answer>,
    /// Whom we are to it, where it says so.
    pub user: Option<String>,
    /// What its offset grew by, and in how long.
    pub growth: Option<(u64, Duration)>,
    /// Its clock less ours, in milliseconds.
    pub clock_ahead_ms: Option<i64>,
    /// How long it takes to answer.
    pub round_trip: Duration,
    /// Whether it lets us in without a password.
    pub open: bool,
}

/// What a command met with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It may be used.
    Allowed,
    /// Our user may not use it.
    Denied(String),
    /// There is no such command, or it goes by another name.
    Missing,
    /// Something else, from which neither can be told.
    Unclear(String),
}

impl Answer {
    /// What an error, or the lack of one, says of the command it answers.
    pub fn of(reply: &[u8]) -> Answer {
        let line = reply.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let Some(error) = line.strip_prefix(b"-") else { return Answer::Allowed };
        let text = String::from_utf8_lossy(error).into_owned();
        let lower = text.to_ascii_lowercase();
        match () {
            () if lower.starts_with("noperm") || lower.starts_with("noauth") || lower.starts_with("denied") => {
                Answer::Denied(text)
            }
            () if lower.contains("unknown command") => Answer::Missing,
            // It was about to be done: what was wrong were the words we put there on purpose.
            () if lower.contains("syntax error")
                || lower.contains("not an integer")
                || lower.contains("wrong number of arguments") =>
            {
                Answer::Allowed
            }
            () => Answer::Unclear(text),
        }
    }
}

impl Upstream {
    /// A field of INFO as a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.info.get(name)?.parse().ok()
    }

    /// A field of INFO.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.info.get(name).map(String::as_str)
    }

    /// A setting as a number.
    pub fn setting(&self, name: &str) -> Option<u64> {
        self.config.get(name)?.parse().ok()
    }

    /// Major and minor of the version of Redis it is compatible with.
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut parts = self.field("redis_version")?.split('.').map(str::parse);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    }

    /// Bytes a second it writes, as measured.
    pub fn rate(&self) -> Option<f64> {
        let (bytes, took) = self.growth?;
        (took > Duration::ZERO).then(|| bytes as f64 / took.as_secs_f64())
    }

    /// Bytes a second since it was started, where its stream began then.
    pub fn long_rate(&self) -> Option<f64> {
        let (offset, uptime) = (self.number("master_repl_offset")?, self.number("uptime_in_seconds")?);
        let begun_here =
            self.field("role") == Some("master") && self.number("second_repl_offset").is_none_or(|o| o > offset);
        (begun_here && uptime >= 60).then(|| offset as f64 / uptime as f64)
    }
}

/// What this machine says.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Open files allowed to a process started like this one; none for any number.
    pub open_files: Option<u64>,
    /// Bytes free where snapshots and the journal are kept, and what that place is called.
    pub free: Option<(String, u64)>,
    /// Bytes of memory that can be had without swapping.
    pub memory: Option<u64>,
    /// Why the announced address will not do.
    pub announce: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_whether_the_command_may_be_used() {
        for (reply, answer) in [
            ("+PONG\r\n", Answer::Allowed),
            ("-ERR value is not an integer or out of range\r\n", Answer::Allowed),
            ("-ERR syntax error\r\n", Answer::Allowed),
            ("-ERR unknown command 'PSYNC', with args beginning with: \r\n", Answer::Missing),
            ("-LOADING x\r\n", Answer::Unclear("LOADING x".to_owned())),
        ] {
            assert_eq!(Answer::of(reply.as_bytes()), answer, "{reply}");
        }
        let denied = Answer::of(b"-NOPERM this user has no permissions to run the 'psync' command\r\n");
        assert!(matches!(denied, Answer::Denied(_)), "{denied:?}");
    }
}
