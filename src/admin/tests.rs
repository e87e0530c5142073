use std::net::SocketAddr;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;
use crate::counters::Counter;
use crate::net::{Network, TokioNetwork};

#[derive(Default)]
struct Fake {
    troubles: Counter,
}

impl Source for Fake {
    fn verdict(&self) -> String {
        String::new()
    }

    fn metrics(&self) -> String {
        "psyncd_ready 1\n".to_owned()
    }

    fn status(&self) -> serde_json::Value {
        serde_json::json!({ "upstream": "a:1", "replicas": [], "all_at_head": true })
    }

    fn events(&self, after: u64) -> serde_json::Value {
        serde_json::json!({ "after": after })
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::json!({ "settings": [] })
    }

    fn clients(&self) -> serde_json::Value {
        serde_json::json!({ "count": 0, "clients": [] })
    }

    fn offset(&self, ago: Duration) -> Option<u64> {
        (ago < Duration::from_secs(100)).then(|| 1000 - ago.as_secs())
    }

    fn trouble(&self) {
        self.troubles.increment();
    }

    fn ready(&self, check: Option<&str>) -> Readiness {
        let all = [("listener", None), ("upstream", Some("link down".to_owned()))];
        let checks = all.into_iter().map(|(name, obstacle)| Check { name, obstacle });
        Readiness { checks: checks.filter(|found| check.is_none_or(|name| name == found.name)).collect() }
    }
}

struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    async fn start() -> Server {
        Server::start_with(Arc::new(Fake::default())).await
    }

    async fn start_with(source: Arc<dyn Source>) -> Server {
        let listener = TokioNetwork::default().listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local();
        let shutdown = CancellationToken::new();
        let task =
            tokio::spawn(serve(Door::Public(listener, Live::default(), Arc::new(Obedient)), source, shutdown.clone()));
        Server { address, shutdown, task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `request` and reads until the server closes.
    async fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        // The server may be done with us before we are done with it.
        let _ = stream.write_all(request).await;
        read_all(stream).await
    }

    async fn get(&self, path: &str) -> String {
        self.ask(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes()).await
    }
}

async fn read_all(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(Ok(n @ 1..)) = tokio::time::timeout(Duration::from_secs(300), stream.read(&mut chunk)).await {
        bytes.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn every_endpoint_answers_in_its_format() {
    let server = Server::start().await;
    for (path, status, content, body) in [
        ("/metrics", "200 OK", "text/plain; version=0.0.4", "psyncd_ready 1\n"),
        ("/healthz", "200 OK", TEXT, "ok\n"),
        ("/readyz", "503 Service Unavailable", TEXT, "not ready\nlistener: ok\nupstream: link down\n"),
        ("/readyz?a=b&check=listener", "200 OK", TEXT, "ready\nlistener: ok\n"),
        ("/readyz?check=nonsense", "404 Not Found", TEXT, "no such check: /readyz lists them\n"),
        ("/status", "200 OK", JSON, "{\n  \"all_at_head\": true,\n  \"replicas\": [],\n  \"upstream\": \"a:1\"\n}\n"),
        (
            "/api/v1/status",
            "200 OK",
            JSON,
            "{\n  \"all_at_head\": true,\n  \"replicas\": [],\n  \"upstream\": \"a:1\"\n}\n",
        ),
        (
            "/api/v1/replicas",
            "200 OK",
            JSON,
            "{\n  \"all_at_head\": true,\n  \"max_replicas\": null,\n  \"replicas\": [],\n  \"replicas_at_head\": null\n}\n",
        ),
        ("/api/v1/history", "200 OK", JSON, "{\n  \"backlog\": null,\n  \"history\": null\n}\n"),
        ("/api/v1/events?x=1&after=7", "200 OK", JSON, "{\n  \"after\": 7\n}\n"),
        ("/api/v1/events", "200 OK", JSON, "{\n  \"after\": 0\n}\n"),
        ("/api/v1/events?after=-1", "400 Bad Request", TEXT, "say a number: /api/v1/events?after=SEQ\n"),
        ("/api/v1/config", "200 OK", JSON, "{\n  \"settings\": []\n}\n"),
        ("/", "200 OK", HTML, page::PAGE),
        ("/offset?ago=60", "200 OK", TEXT, "940\n"),
        ("/offset?at=60", "404 Not Found", TEXT, "that is longer ago than what is held\n"),
        (
            "/metrics/",
            "404 Not Found",
            TEXT,
            "not found: try / /metrics /healthz /readyz /status /api/v1/status /api/v1/replicas /api/v1/history /api/v1/events /api/v1/clients /api/v1/config /offset\n",
        ),
    ] {
        let response = server.get(path).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{path}: {response}");
        assert!(response.contains(&format!("content-type: {content}\r\n")), "{path}: {response}");
        assert!(response.ends_with(&format!("\r\n\r\n{body}")), "{path}: {response}");
    }
}

#[tokio::test]
async fn only_the_page_may_run_anything_and_only_what_is_in_it() {
    let server = Server::start().await;
    for path in PATHS {
        let response = server.get(path).await;
        let policy = response.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap();
        let expected = if path == "/" { page::POLICY.as_str() } else { page::NOTHING };
        assert_eq!(policy, expected, "{path}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!response.to_ascii_lowercase().contains("set-cookie"), "{path}");
    }
}

#[tokio::test]
async fn head_gets_the_length_and_no_body() {
    let server = Server::start().await;
    let response = server.ask(b"HEAD /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert!(response.contains("content-length: 3\r\n") && response.ends_with("\r\n\r\n"), "{response}");
}

#[tokio::test]
async fn nothing_can_be_changed() {
    let server = Server::start().await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let request = format!(
            "{method} /status HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\nconnection: close\r\n\r\n{{"
        );
        let response = server.ask(request.as_bytes()).await;
        assert!(response.starts_with("HTTP/1.1 405 ") && response.contains("allow: GET, HEAD\r\n"), "{response}");
    }
}

struct Obedient;

impl Control for Obedient {
    fn obey(&self, verb: Verb) -> control::ControlFuture<'_> {
        Box::pin(async move {
            let outcome = match verb {
                Verb::GuardRelease => control::Outcome::Done,
                _ => control::Outcome::Nothing,
            };
            control::Reply { outcome, text: verb.command() }
        })
    }
}

#[tokio::test]
async fn what_changes_something_is_refused_over_tcp() {
    let server = Server::start().await;
    for (method, verb) in [("POST", Verb::GuardRelease), ("POST", Verb::GuardReject), ("GET", Verb::GuardRelease)] {
        let path = verb.path();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let response = server.ask(request.as_bytes()).await;
        assert!(response.starts_with("HTTP/1.1 403 ") && response.contains(&verb.command()), "{response}");
    }
}

#[tokio::test]
async fn what_changes_something_is_done_over_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let socket = ControlSocket::bind(&path).await.unwrap();
    let shutdown = CancellationToken::new();
    let task =
        tokio::spawn(serve(Door::Private(socket, Arc::new(Obedient)), Arc::new(Fake::default()), shutdown.clone()));
    let ask = async |line: &str| {
        let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    };
    let done = ask("POST /-/guard/release").await;
    assert!(done.starts_with("HTTP/1.1 200 ") && done.ends_with("\r\n\r\npsyncd guard release\n"), "{done}");
    assert!(ask("POST /-/guard/reject").await.starts_with("HTTP/1.1 409 "));
    let get = ask("GET /-/guard/release").await;
    assert!(get.starts_with("HTTP/1.1 405 ") && get.contains("allow: POST\r\n"), "{get}");
    assert!(ask("POST /-/guard/else").await.starts_with("HTTP/1.1 404 "));
    assert!(ask("GET /api/v1/status").await.starts_with("HTTP/1.1 200 "), "questions are answered here as well");
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_page_whose_name_leads_to_loopback_reads_nothing() {
    let server = Server::start().await;
    let asked = async |line: &str, headers: &str| {
        server.ask(format!("{line}\r\n{headers}connection: close\r\n\r\n").as_bytes()).await
    };
    for path in PATHS.iter().chain(&["/-/drain", "/-/repoint?to=a:1"]) {
        for (line, headers) in [
            (format!("GET {path} HTTP/1.1"), "host: evil.example:9379\r\n"),
            (format!("POST {path} HTTP/1.1"), "host: evil.example\r\n"),
            (format!("GET {path} HTTP/1.1"), "host: 127.0.0.1\r\nhost: evil.example\r\n"),
            (format!("GET {path} HTTP/1.1"), "host: \u{e9}\r\n"),
            (format!("GET http://evil.example{path} HTTP/1.1"), "host: 127.0.0.1\r\n"),
        ] {
            let said = asked(&line, headers).await;
            assert!(said.starts_with("HTTP/1.1 403 ") && said.ends_with(MISCALLED), "{line} {headers}: {said}");
        }
    }
    for headers in ["", "host: 127.0.0.1:9379\r\n", "host: localhost\r\n", "host: [::1]:1\r\n"] {
        assert!(asked("GET /metrics HTTP/1.1", headers).await.starts_with("HTTP/1.1 200 "), "{headers}");
    }
    let said = asked("GET /metrics HTTP/1.1", "host: localhost\r\n").await;
    assert!(said.contains("cross-origin-resource-policy: same-origin\r\n"), "{said}");
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let server = Server::start().await;
    let request =
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let response = server.ask(request).await;
    assert_eq!(response.matches("HTTP/1.1 200 OK").count(), 2, "{response}");
}

#[tokio::test]
async fn garbage_is_refused_and_others_are_served_on() {
    let server = Server::start().await;
    for garbage in [
        &b"*1\r\n$4\r\nPING\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
    ] {
        let response = server.ask(garbage).await;
        assert!(response.is_empty() || response.starts_with("HTTP/1.1 400 "), "{response}");
        assert!(server.get("/healthz").await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn a_request_without_end_is_cut_off() {
    let server = Server::start().await;
    let mut long_line = b"GET /".to_vec();
    long_line.resize(LIMIT_HEADER_BYTES + 1000, b'a');
    let mut many_headers = b"GET /healthz HTTP/1.1\r\n".to_vec();
    for number in 0..=LIMIT_HEADERS {
        many_headers.extend_from_slice(format!("x-{number}: y\r\n").as_bytes());
    }
    many_headers.extend_from_slice(b"\r\n");
    for request in [long_line, many_headers] {
        let began = std::time::Instant::now();
        let response = server.ask(&request).await;
        assert!(response.is_empty() || response.starts_with("HTTP/1.1 4"), "{response}");
        assert!(began.elapsed() < LIMIT_HEADER_TIME / 2, "it was its size that ended it, not its time");
    }
    assert!(server.get("/healthz").await.starts_with("HTTP/1.1 200 "));
}

// In the paused tests the clock leaps whenever everybody waits, so that seconds pass in no time.

#[tokio::test(start_paused = true)]
async fn half_a_request_ends_after_ten_seconds() {
    let server = Server::start().await;
    for half in [&b""[..], b"GET /healthz HTT", b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n"] {
        let began = tokio::time::Instant::now();
        assert_eq!(server.ask(half).await, "");
        assert!(began.elapsed() < LIMIT_HEADER_TIME * 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed() {
    let server = Server::start().await;
    let began = tokio::time::Instant::now();
    let response = server.ask(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 200 "));
    assert!(began.elapsed() < LIMIT_HEADER_TIME * 2);
}

#[tokio::test]
async fn one_connection_too_many_is_told_and_counted_and_the_next_after_a_leave_is_served() {
    let source = Arc::new(Fake::default());
    let server = Server::start_with(Arc::clone(&source) as _).await;
    let mut held = Vec::new();
    for _ in 0..LIMIT_CONNECTIONS {
        held.push(server.connect().await);
    }
    let refused = read_all(server.connect().await).await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.ends_with("\r\n\r\ntoo many connections\n"), "{refused}");
    assert_eq!(source.troubles.get(), 1);
    held.pop();
    let served = async {
        // The server learns of the leave in its own time.
        while !server.get("/healthz").await.starts_with("HTTP/1.1 200 ") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), served).await.unwrap();
}

#[tokio::test]
async fn shutdown_closes_the_door_and_every_connection() {
    let server = Server::start().await;
    let idle = server.connect().await;
    let mut used = server.connect().await;
    used.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    used.read_u8().await.unwrap();
    server.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(30), server.task).await.unwrap().unwrap();
    read_all(idle).await;
    read_all(used).await;
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn over_tcp_only_whoever_shows_the_token_changes_anything() {
    let listener = TokioNetwork::default().listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local();
    let options = Live::new(Options { token: Some(b"0123456789abcdef".to_vec().into()), ..Options::default() });
    let shutdown = CancellationToken::new();
    let door = Door::Public(listener, options.clone(), Arc::new(Obedient));
    let task = tokio::spawn(serve(door, Arc::new(Fake::default()), shutdown.clone()));
    let server = Server { address, shutdown, task };
    let post = |header: &str| {
        let request = format!("POST /-/guard/release HTTP/1.1\r\nhost: localhost\r\n{header}connection: close\r\n\r\n");
        let server = &server;
        async move { server.ask(request.as_bytes()).await }
    };
    for wrong in [
        "",
        "authorization: Bearer\r\n",
        "authorization: Bearer 0123456789abcdeF\r\n",
        "authorization: Bearer 0123456789abcde\r\n",
        "authorization: Basic 0123456789abcdef\r\n",
    ] {
        let said = post(wrong).await;
        assert!(said.starts_with("HTTP/1.1 401 ") && said.contains("www-authenticate: Bearer"), "{wrong}: {said}");
    }
    let said = post("Authorization: bearer 0123456789abcdef\r\n").await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    let none = Server::start().await;
    let request = b"POST /-/guard/release HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer 0123456789abcdef\r\nconnection: close\r\n\r\n";
    let said = none.ask(request).await;
    assert!(said.starts_with("HTTP/1.1 403 "), "without one set nobody does: {said}");
}

#[tokio::test]
async fn whoever_is_not_on_the_list_hears_not_a_word() {
    for (list, answered) in [("10.0.0.0/8", false), ("10.0.0.0/8,127.0.0.1", true)] {
        let listener = TokioNetwork::default().listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, shutdown) = (listener.local(), CancellationToken::new());
        let door = Door::Public(
            listener,
            Live::new(Options { allow: list.parse().unwrap(), ..Options::default() }),
            Arc::new(Obedient),
        );
        let task = tokio::spawn(serve(door, Arc::new(Fake::default()), shutdown.clone()));
        let server = Server { address, shutdown, task };
        assert_eq!(server.get("/metrics").await.is_empty(), !answered, "{list}");
    }
}

struct Huge;

impl Source for Huge {
    fn verdict(&self) -> String {
        String::new()
    }

    fn metrics(&self) -> String {
        "x".repeat(64 << 20)
    }

    fn status(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    fn events(&self, _: u64) -> serde_json::Value {
        serde_json::Value::Null
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    fn clients(&self) -> serde_json::Value {
        serde_json::json!({ "count": 0, "clients": [] })
    }

    fn offset(&self, ago: Duration) -> Option<u64> {
        (ago < Duration::from_secs(100)).then(|| 1000 - ago.as_secs())
    }

    fn ready(&self, _: Option<&str>) -> Readiness {
        Readiness::default()
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_read_its_answer_is_closed() {
    let server = Server::start_with(Arc::new(Huge)).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    tokio::time::sleep((LIMIT_CONNECTION_TIME + LIMIT_GRACE_TIME) * 2).await;
    assert!(read_all(stream).await.len() < 64 << 20);
}
