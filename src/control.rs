//! The other end of the control socket: `psyncd guard …` asks the running psyncd, and says what it answered.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::admin::control::{LIMIT_CONTROL_TIME, Verb};

/// Time for a question and its answer: that of the slowest verb, and a moment.
const PATIENCE: Duration = LIMIT_CONTROL_TIME.saturating_add(Duration::from_secs(5));
/// No answer is larger than this, in bytes.
const LIMIT_ANSWER_BYTES: usize = 4 << 20;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// How the wipe guard stands.
    GuardStatus,
    /// To do something.
    Do(Verb),
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it was done, or told.
    pub done: bool,
    /// The answer for people, with its line end.
    pub text: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such file.
    #[error("no socket at {}: is psyncd running, and with this --socket or --dir?", .0.display())]
    NoSocket(PathBuf),
    /// The file is there, and nobody behind it.
    #[error("nobody answers at {}: psyncd does not run any more", .0.display())]
    NobodyAnswers(PathBuf),
    /// The socket belongs to somebody else.
    #[error("not permitted to open {}: ask as the user psyncd runs as", .0.display())]
    NotPermitted(PathBuf),
    /// Anything else between here and there.
    #[error("{}: {why}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        why: String,
    },
}

/// Asks the psyncd behind `socket`.
pub async fn ask(socket: &Path, question: Question) -> Result<Answer, Error> {
    let broken = |why: String| Error::Broken { path: socket.to_owned(), why };
    let (status, body) = match timeout(PATIENCE, exchange(socket, question)).await {
        Ok(answered) => answered?,
        Err(_) => return Err(broken(format!("no answer within {} seconds", PATIENCE.as_secs()))),
    };
    match question {
        Question::Do(_) => Ok(Answer { done: status.is_success(), text: body }),
        Question::GuardStatus if status.is_success() => {
            let document: Value = serde_json::from_str(&body).map_err(|error| broken(error.to_string()))?;
            Ok(Answer { done: true, text: describe(&document["guard"]) })
        }
        Question::GuardStatus => Err(broken(format!("{status}: {}", body.trim_end()))),
    }
}

async fn exchange(socket: &Path, question: Question) -> Result<(StatusCode, String), Error> {
    let broken = |error: &dyn std::error::Error| Error::Broken { path: socket.to_owned(), why: error.to_string() };
    let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NoSocket(socket.to_owned()),
        io::ErrorKind::ConnectionRefused => Error::NobodyAnswers(socket.to_owned()),
        io::ErrorKind::PermissionDenied => Error::NotPermitted(socket.to_owned()),
        _ => broken(&error),
    })?;
    let (method, path) = match question {
        Question::GuardStatus => (Method::GET, "/api/v1/status"),
        Question::Do(verb) => (Method::POST, verb.path()),
    };
    let request = Request::builder().method(method).uri(path).header("host", "psyncd").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| broken(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LIMIT_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| broken(&*error))?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::pin!(talk, connection);
    // The connection has to be driven, and ends on its own account when the answer is through.
    tokio::select! {
        biased;
        answered = &mut talk => answered,
        ended = &mut connection => {
            ended.map_err(|error| broken(&error))?;
            talk.await
        }
    }
}

/// The guard's part of the status document, for people.
fn describe(guard: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let known = match &guard["known"]["keys"] {
        Value::Null => "the master's keys are not known".to_owned(),
        keys => format!("the master last had {keys} keys"),
    };
    let mode = text(&guard["mode"]);
    let held = &guard["held"];
    if held.is_null() {
        return format!("the wipe guard holds nothing (wipe-guard {mode}; {known})\n");
    }
    let mut lines = format!(
        "the wipe guard holds a master that lost its data: {} {}, before {}\n\
         master: {}\nheld for: {} s\nruling: {}\n",
        held["now"],
        text(&held["unit"]),
        held["before"],
        text(&held["master"]),
        held["held_seconds"],
        text(&held["ruling"]),
    );
    if held["ruling"] != "released" {
        lines.push_str(&format!(
            "to have the replicas follow it: {}\nto keep them on their data: restore the master's, or {}\n",
            text(&held["release"]),
            text(&held["reject"])
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_guard_is_described_with_what_to_do() {
        let free = json!({ "mode": "hold", "known": { "keys": 5000 }, "held": null });
        assert_eq!(describe(&free), "the wipe guard holds nothing (wipe-guard hold; the master last had 5000 keys)\n");
        let held = json!({ "mode": "hold", "known": { "keys": 5000 }, "held": {
            "unit": "keys", "before": 5000, "now": 0, "master": "run_id x", "held_seconds": 7, "ruling": "open",
            "release": "psyncd guard release --socket /s", "reject": "psyncd guard reject --socket /s" } });
        let said = describe(&held);
        for part in ["0 keys, before 5000", "run_id x", "psyncd guard release --socket /s", "guard reject"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[tokio::test]
    async fn a_missing_psyncd_is_told_from_a_dead_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(matches!(ask(&path, Question::GuardStatus).await, Err(Error::NoSocket(_))));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(ask(&path, Question::GuardStatus).await, Err(Error::NobodyAnswers(_))));
    }
}
