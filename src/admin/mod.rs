//! For people and Prometheus: what goes on inside, over HTTP. Over TCP it answers questions, and changes nothing
//! for whoever does not show a token; what can be changed ([`control`]) is asked for over a unix socket that only the
//! owner of the process can open.
//!
//! It shares the process with the replication stream, so it is bounded in everything: connections, the time and
//! size of a request, the life of a connection. Request bodies are never read.

pub mod control;
pub mod hosts;
pub mod page;

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderName, HeaderValue,
    REFERRER_POLICY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::access::allow::AllowList;
use crate::access::credentials::same;
use crate::live::Live;
use crate::net::{ControlSocket, Link, Listener, PeerAddress};
use crate::wall;

use control::{Control, LIMIT_CONTROL_TIME, NoVerb, Verb};
use hosts::Hosts;

/// Connections at once; the next is told to come back later.
pub const LIMIT_CONNECTIONS: usize = 64;
/// Time for a request's first line and headers, and time a connection may be idle.
pub const LIMIT_HEADER_TIME: Duration = Duration::from_secs(10);
/// Size of a request's first line and headers.
pub const LIMIT_HEADER_BYTES: usize = 16 << 10;
/// Headers in a request.
pub const LIMIT_HEADERS: usize = 64;
/// A connection older than this gets no further request answered, so that one that does not read cannot stay.
pub const LIMIT_CONNECTION_TIME: Duration = Duration::from_secs(60);
/// Time a last answer gets when its connection ends.
pub const LIMIT_GRACE_TIME: Duration = Duration::from_secs(2);

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";

/// Whom the admin server asks. Called at every request, so the answers must neither block nor wait.
pub trait Source: Send + Sync {
    /// The metrics page.
    fn metrics(&self) -> String;

    /// The status document.
    fn status(&self) -> serde_json::Value;

    /// How things stand, in one line.
    fn verdict(&self) -> String;

    /// What happened after the event of that number, oldest first.
    fn events(&self, after: u64) -> serde_json::Value;

    /// What is set, secrets masked.
    fn settings(&self) -> serde_json::Value;

    /// The clients that are passed through.
    fn clients(&self) -> serde_json::Value;

    /// How far the stream had come so long ago; `None` where that is not known any more.
    fn offset(&self, ago: Duration) -> Option<u64>;

    /// A connection could not be accepted or served; for counting.
    fn trouble(&self) {}

    /// Whether psyncd is ready: by all checks that count for it, or by the one named.
    fn ready(&self, check: Option<&str>) -> Readiness;
}

/// The checks that were asked for. None at all means that no check has the name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// In the order they are shown.
    pub checks: Vec<Check>,
}

/// One thing that is ready or is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name, as in `/readyz?check=NAME`.
    pub name: &'static str,
    /// Why it is not ready; none if it is.
    pub obstacle: Option<String>,
}

impl Readiness {
    /// Whether nothing stands in the way.
    pub fn is_ready(&self) -> bool {
        self.checks.iter().all(|check| check.obstacle.is_none())
    }

    fn print(&self) -> String {
        let mut text = String::from(if self.is_ready() { "ready\n" } else { "not ready\n" });
        for Check { name, obstacle } in &self.checks {
            text.push_str(&format!("{name}: {}\n", obstacle.as_deref().unwrap_or("ok")));
        }
        text
    }
}

/// Where questions come in, which decides what may be asked.
pub enum Door {
    /// Over TCP, from anybody who reaches it, is on the list and calls it by a right name: nothing can be changed, but by those who are
    /// trusted.
    Public(Box<dyn Listener>, Live<Options>, Arc<dyn Control>),
    /// Over the control socket, from the owner of the process.
    Private(ControlSocket, Arc<dyn Control>),
}

/// Who may come over TCP.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// From where.
    pub allow: AllowList,
    /// By which names.
    pub hosts: Hosts,
    /// What has to be shown to change something; without it nobody may.
    pub token: Option<Zeroizing<Vec<u8>>>,
}

/// What a connection may ask to have changed.
#[derive(Clone)]
enum Power {
    /// With the token, where there is one.
    WithToken(Live<Options>, Arc<dyn Control>),
    Full(Arc<dyn Control>),
}

impl Power {
    /// Who would do it.
    fn control(&self, request: &Request<Incoming>) -> Option<&dyn Control> {
        match self {
            Power::Full(control) => Some(control.as_ref()),
            Power::WithToken(options, control) => {
                let options = options.get();
                let (Some(token), Some(shown)) = (&options.token, shown(request)) else { return None };
                same(token, shown).then_some(control.as_ref())
            }
        }
    }

    /// What is answered to those it would not do it for.
    fn denial(&self, verb: &Verb) -> Response<Full<Bytes>> {
        match self {
            Power::WithToken(options, _) if options.get().token.is_some() => {
                let mut denied =
                    response(StatusCode::UNAUTHORIZED, TEXT, "show the token: Authorization: Bearer ...\n");
                denied.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                denied
            }
            Power::Full(_) | Power::WithToken(..) => {
                let text = format!(
                    "not over TCP without admin-token: run `{}` on this host, or POST {} to the unix socket (setting socket)\n",
                    verb.command(),
                    verb.request()
                );
                response(StatusCode::FORBIDDEN, TEXT, text)
            }
        }
    }
}

/// The token a request shows.
fn shown(request: &Request<Incoming>) -> Option<&[u8]> {
    let value = request.headers().get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
}

impl Door {
    /// Cancel-safe.
    async fn accept(&mut self) -> io::Result<Link> {
        match self {
            Door::Public(listener, ..) => listener.accept().await,
            Door::Private(socket, _) => socket.accept().await,
        }
    }

    fn admits(&self, peer: &PeerAddress) -> bool {
        match self {
            Door::Public(_, options, _) => options.get().allow.admits(peer),
            Door::Private(..) => true,
        }
    }

    /// By which names it may be called, if that matters.
    fn options(&self) -> Option<Live<Options>> {
        match self {
            Door::Public(_, options, _) => Some(options.clone()),
            Door::Private(..) => None,
        }
    }

    fn power(&self) -> Power {
        match self {
            Door::Public(_, options, control) => Power::WithToken(options.clone(), Arc::clone(control)),
            Door::Private(_, control) => Power::Full(Arc::clone(control)),
        }
    }
}

/// Serves until `shutdown`, then lets answers under way finish, shortly. Dropping the future ends every connection.
pub async fn serve(mut door: Door, source: Arc<dyn Source>, shutdown: CancellationToken) {
    let (power, options) = (door.power(), door.options());
    let mut connections = JoinSet::new();
    loop {
        let link = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            link = door.accept() => link,
        };
        match link {
            // Not a word: whoever is not meant need not know what listens here.
            Ok(link) if !door.admits(&link.peer) => tracing::debug!(peer = %link.peer, "admin connection denied"),
            Ok(link) if connections.len() < LIMIT_CONNECTIONS => {
                connections.spawn(converse(link, source.clone(), power.clone(), options.clone(), shutdown.clone()));
            }
            Ok(link) => {
                source.trouble();
                refuse(link).await;
            }
            Err(error) => {
                source.trouble();
                tracing::warn!(
                    event = "admin_accept_failed",
                    error = &error as &dyn std::error::Error,
                    "admin connection not accepted"
                );
                // Out of file descriptors, most likely: asking again at once would only burn a core.
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(Duration::from_millis(500)) => {}
                }
            }
        }
    }
    drop(door);
    // Each connection ends by itself within its grace.
    while connections.join_next().await.is_some() {}
}

/// Tells a caller that there are too many. A fresh socket takes so few bytes at once, so this does not hold up others.
async fn refuse(mut link: Link) {
    const BUSY: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 21\r\nconnection: close\r\n\r\ntoo many connections\n";
    let _ = tokio::time::timeout(Duration::from_millis(50), async {
        link.sink.write_all(BUSY).await?;
        link.sink.shutdown().await
    })
    .await;
}

/// One connection from its first request to its end.
async fn converse(
    link: Link,
    source: Arc<dyn Source>,
    power: Power,
    options: Option<Live<Options>>,
    shutdown: CancellationToken,
) {
    let (peer, local) = (link.peer.clone(), link.local.clone());
    let is_called_right = |request: &Request<Incoming>| {
        options.as_ref().is_none_or(|options| {
            let options = options.get();
            names(request).all(|host| options.hosts.admit(&local, host))
        })
    };
    let service = service_fn(|request: Request<Incoming>| {
        let (source, power) = (&source, &power);
        let is_called_right = is_called_right(&request);
        async move {
            if !is_called_right {
                return Ok::<_, Infallible>(response(StatusCode::FORBIDDEN, TEXT, MISCALLED));
            }
            Ok(match Verb::at(request.uri().path(), request.uri().query()) {
                Ok(verb) => match power.control(&request) {
                    Some(control) => change(request.method(), verb, control).await,
                    None => power.denial(&verb),
                },
                Err(NoVerb::Query(why)) => response(StatusCode::BAD_REQUEST, TEXT, why + "\n"),
                Err(NoVerb::Unknown) => answer(request.method(), request.uri(), source.as_ref()),
            })
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LIMIT_HEADER_TIME)
        .max_header_size(LIMIT_HEADER_BYTES)
        .max_buf_size(LIMIT_HEADER_BYTES)
        .max_headers(LIMIT_HEADERS)
        .serve_connection(TokioIo::new(tokio::io::join(link.source, link.sink)), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        ended = connection.as_mut() => Some(ended),
        () = tokio::time::sleep(LIMIT_CONNECTION_TIME) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LIMIT_GRACE_TIME, connection).await {
                Ok(ended) => ended,
                Err(_) => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, error = &error as &dyn std::error::Error, "admin connection lost");
    }
}

/// What is answered to a request by a name that is not ours.
const MISCALLED: &str =
    "psyncd is not called that here: ask by an address, as localhost, or by a name in admin-hosts\n";

/// Every name a request calls us by.
fn names(request: &Request<Incoming>) -> impl Iterator<Item = &str> {
    let line = request.uri().authority().map(|authority| authority.as_str());
    // What is no text is a wrong name.
    let headers = request.headers().get_all(HOST).iter().map(|host| host.to_str().unwrap_or_default());
    line.into_iter().chain(headers)
}

async fn change(method: &Method, verb: Verb, control: &dyn Control) -> Response<Full<Bytes>> {
    if *method != Method::POST {
        return not_allowed("only POST\n", "POST");
    }
    match tokio::time::timeout(LIMIT_CONTROL_TIME, control.obey(verb)).await {
        Ok(reply) => response(reply.outcome.status(), TEXT, reply.text + "\n"),
        Err(_) => response(StatusCode::GATEWAY_TIMEOUT, TEXT, "it did not end in time\n"),
    }
}

fn not_allowed(text: &'static str, allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn answer(method: &Method, uri: &hyper::Uri, source: &dyn Source) -> Response<Full<Bytes>> {
    let path = uri.path();
    if !PATHS.contains(&path) {
        return response(StatusCode::NOT_FOUND, TEXT, format!("not found: try {}\n", PATHS.join(" ")));
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        return not_allowed("only GET and HEAD\n", "GET, HEAD");
    }
    let document = |document: serde_json::Value| response(StatusCode::OK, JSON, format!("{document:#}\n"));
    match path {
        "/" => status_page(),
        "/metrics" => response(StatusCode::OK, prometheus::TEXT_FORMAT, source.metrics()),
        "/readyz" => readiness(source, uri.query()),
        "/healthz" => response(StatusCode::OK, TEXT, "ok\n"),
        "/offset" => offset(source, uri.query()),
        "/api/v1/events" => match parameter(uri.query(), "after").unwrap_or("0").parse() {
            Ok(after) => document(source.events(after)),
            Err(_) => response(StatusCode::BAD_REQUEST, TEXT, "say a number: /api/v1/events?after=SEQ\n"),
        },
        "/api/v1/clients" => document(source.clients()),
        "/api/v1/config" => document(source.settings()),
        "/api/v1/replicas" => {
            document(part(source.status(), &["replicas", "replicas_at_head", "all_at_head", "max_replicas"]))
        }
        "/api/v1/history" => document(part(source.status(), &["history", "backlog"])),
        _ => document(source.status()),
    }
}

/// Where questions are answered.
const PATHS: [&str; 12] = [
    "/",
    "/metrics",
    "/healthz",
    "/readyz",
    "/status",
    "/api/v1/status",
    "/api/v1/replicas",
    "/api/v1/history",
    "/api/v1/events",
    "/api/v1/clients",
    "/api/v1/config",
    "/offset",
];

/// What the status document has under these names.
fn part(mut status: serde_json::Value, names: &[&str]) -> serde_json::Value {
    names.iter().map(|name| ((*name).to_owned(), status[*name].take())).collect::<serde_json::Map<_, _>>().into()
}

/// For people: everything else is what it is made of.
fn status_page() -> Response<Full<Bytes>> {
    let mut response = response(StatusCode::OK, HTML, page::PAGE);
    let policy = HeaderValue::from_str(&page::POLICY).expect("digests are base64");
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}

/// The value of a parameter, as written.
fn parameter<'q>(query: Option<&'q str>, name: &str) -> Option<&'q str> {
    query?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// What the offset was at a time, given as seconds since 1970 (`at=`) or as seconds ago (`ago=`).
fn offset(source: &dyn Source, query: Option<&str>) -> Response<Full<Bytes>> {
    let number = |name: &str| {
        parameter(query, name)?.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    };
    let now = Duration::from_millis(wall::unix_ms());
    let Some(ago) = number("ago").or_else(|| Some(now.saturating_sub(number("at")?))) else {
        let usage = "say when: /offset?at=SECONDS since 1970 (date -d 12:03:10 +%s), or /offset?ago=SECONDS\n";
        return response(StatusCode::BAD_REQUEST, TEXT, usage);
    };
    match source.offset(ago) {
        Some(offset) => response(StatusCode::OK, TEXT, format!("{offset}\n")),
        None => response(StatusCode::NOT_FOUND, TEXT, "that is longer ago than what is held\n"),
    }
}

fn readiness(source: &dyn Source, query: Option<&str>) -> Response<Full<Bytes>> {
    let check = parameter(query, "check");
    let readiness = source.ready(check);
    if check.is_some() && readiness.checks.is_empty() {
        return response(StatusCode::NOT_FOUND, TEXT, "no such check: /readyz lists them\n");
    }
    let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    response(status, TEXT, readiness.print())
}

fn response(status: StatusCode, content: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // Nor may a page of another origin take an answer for a script or a picture of its own.
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::NOTHING));
    response
}

#[cfg(test)]
mod tests;
