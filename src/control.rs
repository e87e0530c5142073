//! The other end of the control socket and of the admin port: asks a running psyncd, and says what it answered.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::admin::control::{LIMIT_CONTROL_TIME, Verb};
use crate::config::Secret;
use crate::config::caller::Scheme;
use crate::net::{Address, Network};

/// Time for an order and its answer: that of the slowest verb, and a moment.
const PATIENCE: Duration = LIMIT_CONTROL_TIME.saturating_add(Duration::from_secs(5));
/// Time for a look and its answer: they are made from memory.
const GLANCE: Duration = Duration::from_secs(5);
/// No answer is larger than this, in bytes.
const LIMIT_ANSWER_BYTES: usize = 4 << 20;

/// Where a running psyncd is asked.
#[derive(Debug, Clone)]
pub enum Place {
    /// At its control socket.
    Socket(PathBuf),
    /// At its admin port.
    Admin(AdminPort),
}

/// An admin port, and how to call it.
#[derive(Clone)]
pub struct AdminPort {
    /// Where it is.
    pub url: AdminUrl,
    /// How to dial it: in TLS, if the URL says so.
    pub network: Arc<dyn Network>,
    /// What is shown to it by whoever wants something changed.
    pub token: Option<Secret>,
}

/// `http://host:port` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminUrl {
    /// Whether in TLS.
    pub scheme: Scheme,
    /// Never a unix socket's.
    address: Address,
}

impl AdminUrl {
    /// Reads it; without a scheme it is http.
    ///
    /// # Errors
    /// With what is wrong about it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            Some(("https", rest)) => (Scheme::Https, rest),
            Some(("http", rest)) => (Scheme::Http, rest),
            Some((other, _)) => return Err(format!("{other} is not spoken here: write http:// or https://HOST:PORT")),
            None => (Scheme::Http, text),
        };
        match rest.trim_end_matches('/').parse() {
            Ok(address @ Address::Tcp { .. }) => Ok(Self { scheme, address }),
            Ok(Address::Unix(_)) => Err("give a unix socket with --socket".to_owned()),
            Err(error) => Err(format!("{error}; write http://HOST:PORT or https://HOST:PORT")),
        }
    }

    /// Whether what is said to it can be read on the way.
    pub fn is_overheard(&self) -> bool {
        let Address::Tcp { host, .. } = &self.address else { return false };
        let is_here = host.parse().map_or(host == "localhost", |ip: std::net::IpAddr| ip.to_canonical().is_loopback());
        self.scheme == Scheme::Http && !is_here
    }
}

impl fmt::Display for AdminUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}", self.address)
    }
}

impl fmt::Debug for AdminPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminPort").field("url", &self.url).finish_non_exhaustive()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Socket(path) => path.display().fmt(f),
            Place::Admin(port) => port.url.fmt(f),
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    #[error("no socket at {0}: is psyncd running, and with this --socket or --dir?")]
    NoSocket(Place),
    /// It is there, and nobody behind it.
    #[error("nobody answers at {0}: psyncd does not run any more, or not there")]
    NobodyAnswers(Place),
    /// The socket belongs to somebody else.
    #[error("not permitted to open {0}: ask as the user psyncd runs as")]
    NotPermitted(Place),
    /// Anything else between here and there.
    #[error("{place}: {why}")]
    Broken {
        /// Where.
        place: Place,
        /// What happened.
        why: String,
    },
}

/// Asks the psyncd at `place`, or has it do something.
///
/// # Errors
/// When there is no answer. That something was not done is one.
pub async fn ask(place: &Place, question: &Question) -> Result<Answer, Error> {
    match question {
        Question::Do(verb) => {
            let (status, text) = within(place, PATIENCE, Method::POST, &verb.request()).await?;
            Ok(Answer { done: status.is_success(), text })
        }
        Question::GuardStatus => {
            let document: Value = document(place, "/api/v1/status").await?;
            Ok(Answer { done: true, text: describe(&document["guard"]) })
        }
    }
}

/// Reads one of the documents of the psyncd at `place`.
///
/// # Errors
/// When there is no such document, or it is not as expected.
pub async fn document<T: serde::de::DeserializeOwned>(place: &Place, path: &str) -> Result<T, Error> {
    let broken = |why: String| Error::Broken { place: place.clone(), why };
    serde_json::from_str(&text(place, path).await?)
        .map_err(|error| broken(format!("{path} is not what this psyncd expects of it: {error}")))
}

/// The same as it came.
///
/// # Errors
/// When there is no such document.
pub async fn text(place: &Place, path: &str) -> Result<String, Error> {
    let broken = |why: String| Error::Broken { place: place.clone(), why };
    match within(place, GLANCE, Method::GET, path).await? {
        (status, body) if status.is_success() => Ok(body),
        (StatusCode::NOT_FOUND, _) => Err(broken(format!("the psyncd there has no {path}: it is of another version"))),
        (status, body) => Err(broken(format!("{status}: {}", body.trim_end()))),
    }
}

async fn within(place: &Place, limit: Duration, method: Method, path: &str) -> Result<(StatusCode, String), Error> {
    match timeout(limit, exchange(place, method, path)).await {
        Ok(answered) => answered,
        Err(_) => {
            let why = format!("no answer within {} seconds", limit.as_secs());
            Err(Error::Broken { place: place.clone(), why })
        }
    }
}

async fn exchange(place: &Place, method: Method, path: &str) -> Result<(StatusCode, String), Error> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Error::NoSocket(place.clone()),
        io::ErrorKind::ConnectionRefused => Error::NobodyAnswers(place.clone()),
        io::ErrorKind::PermissionDenied => Error::NotPermitted(place.clone()),
        _ => Error::Broken { place: place.clone(), why: error.to_string() },
    };
    let is_look = method == Method::GET;
    let request = |host: &str| Request::builder().method(method).uri(path).header(HOST, host);
    match place {
        Place::Socket(socket) => {
            let stream = UnixStream::connect(socket).await.map_err(failed)?;
            talk(place, request("psyncd"), stream).await
        }
        Place::Admin(AdminPort { url, network, token }) => {
            let link = network.dial(&url.address).await.map_err(failed)?;
            let mut request = request(&url.address.to_string());
            // Only whoever changes something has to show it.
            if let (Some(token), false) = (token, is_look) {
                let shown = [b"Bearer ", token.reveal()].concat();
                request = request.header(AUTHORIZATION, shown);
            }
            talk(place, request, tokio::io::join(link.source, link.sink)).await
        }
    }
}

async fn talk(
    place: &Place,
    request: hyper::http::request::Builder,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<(StatusCode, String), Error> {
    let broken = |error: &dyn std::error::Error| {
        // What TLS has to say of it stands at the bottom.
        let bottom = std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error);
        Error::Broken { place: place.clone(), why: bottom.to_string() }
    };
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| broken(&error))?;
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
        let place = Place::Socket(path.clone());
        assert!(matches!(ask(&place, &Question::GuardStatus).await, Err(Error::NoSocket(_))));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(ask(&place, &Question::GuardStatus).await, Err(Error::NobodyAnswers(_))));
    }

    #[test]
    fn an_admin_port_is_named_as_a_browser_names_it() {
        let read = |url: &str| AdminUrl::parse(url).map(|url| url.to_string());
        for (url, expected) in [
            ("http://[::1]:9379/", "http://[::1]:9379"),
            ("[::1]:9379", "http://[::1]:9379"),
            ("https://psyncd-0.psyncd:9379", "https://psyncd-0.psyncd:9379"),
        ] {
            assert_eq!(read(url), Ok(expected.to_owned()));
        }
        for bad in ["unix:/x", "http://a", "http://a:b", "http://a:1/metrics", "ftp://a:1", "https://a"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_goes_in_clear_over_a_network_is_known() {
        for (url, overheard) in [
            ("http://10.0.0.1:1", true),
            ("http://psyncd-0:1", true),
            ("https://10.0.0.1:1", false),
            ("http://127.0.0.1:1", false),
            ("http://[::1]:1", false),
            ("http://localhost:1", false),
        ] {
            assert_eq!(AdminUrl::parse(url).unwrap().is_overheard(), overheard, "{url}");
        }
    }
}
