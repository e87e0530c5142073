//! What the judge makes of the upstream's word, and what it does without.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::access::oracle::Probe;
use crate::net::{Address, Link, Listener, NetFuture, Network, PeerAddress, Security};
use crate::relay::target::Target;

/// An upstream that answers line by line from a script, or is away.
struct Scripted {
    lines: Mutex<Option<&'static [&'static str]>>,
    /// The last command.
    asked: Arc<Mutex<Vec<u8>>>,
    dialed: AtomicUsize,
}

impl Network for Scripted {
    fn dial<'a>(&'a self, _: &'a Address) -> NetFuture<'a, Link> {
        self.dialed.fetch_add(1, Ordering::Relaxed);
        let (lines, asked) = (*self.lines.lock().unwrap(), Arc::clone(&self.asked));
        Box::pin(async move {
            let lines = lines.ok_or(std::io::ErrorKind::ConnectionRefused)?;
            let (here, there) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let (mut source, mut sink) = tokio::io::split(there);
                for line in lines {
                    let mut command = [0; 1024];
                    let Ok(length @ 1..) = source.read(&mut command).await else { return };
                    *asked.lock().unwrap() = command[..length].to_vec();
                    sink.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
                }
            });
            let (source, sink) = tokio::io::split(here);
            let (source, sink) = (Box::new(source), Box::new(TestSink(sink)));
            Ok(Link {
                source,
                sink,
                peer: PeerAddress::Unix,
                local: PeerAddress::Unix,
                security: Security::Plain,
                place: None,
            })
        })
    }

    fn listen<'a>(&'a self, _: SocketAddr) -> NetFuture<'a, Box<dyn Listener>> {
        unreachable!("nobody listens")
    }
}

struct TestSink(tokio::io::WriteHalf<tokio::io::DuplexStream>);

impl crate::net::Outlet for TestSink {}

impl tokio::io::AsyncWrite for TestSink {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

async fn judge(change: impl FnOnce(&mut Options)) -> (Arc<Access>, Arc<Scripted>) {
    judge_by(Probe::Psync, change).await
}

async fn judge_by(probe: Probe, change: impl FnOnce(&mut Options)) -> (Arc<Access>, Arc<Scripted>) {
    let target = Target::new(Some("upstream:6379".parse().unwrap()));
    let pointing = target.pointing().await;
    target.meet(&pointing);
    let network = Arc::new(Scripted { lines: Mutex::default(), asked: Arc::default(), dialed: AtomicUsize::new(0) });
    let mut options = Options {
        replica_auth: ReplicaAuth::Upstream,
        requirepass: None,
        users: Vec::new(),
        own: Some(named("psyncd", "own")),
        protected_mode: true,
        allow_replicas: AllowList::default(),
        allow_clients: AllowList::default(),
        names: None,
    };
    change(&mut options);
    let oracle = Oracle {
        target,
        network: Arc::clone(&network) as Arc<dyn Network>,
        probe: Arc::new(move || probe),
        patience: Live::new(Patience { connect: Duration::from_secs(1), reply: Duration::from_secs(1) }),
    };
    (Access::new(options, oracle, Memory::new([1; 16], Duration::from_secs(3600))), network)
}

fn named(user: &str, password: &str) -> Credentials {
    Credentials::own(Some(user), password.as_bytes())
}

impl Scripted {
    fn says(&self, lines: &'static [&'static str]) {
        *self.lines.lock().unwrap() = Some(lines);
    }

    fn is_away(&self) {
        *self.lines.lock().unwrap() = None;
    }
}

const YES: &str = "-ERR value is not an integer or out of range";
const NOAUTH: &str = "-NOAUTH Authentication required.";

fn host(ip: &str) -> PeerAddress {
    PeerAddress::Tcp((ip.parse::<std::net::IpAddr>().unwrap(), 1).into())
}

#[tokio::test]
async fn the_masters_word_decides_and_outlives_the_master() {
    let (access, upstream) = judge(|_| {}).await;
    let (app, wrong) = (named("app", "right"), named("app", "wrong"));
    upstream.says(&["+OK", YES]);
    assert_eq!(access.judge(Some(&app)).await, Verdict::Granted);
    upstream.says(&["-WRONGPASS no"]);
    assert_eq!(access.judge(Some(&wrong)).await, Verdict::Failed("-WRONGPASS no\r\n".into()));
    upstream.says(&["+OK", "-NOPERM no psync"]);
    assert_eq!(access.judge(Some(&wrong)).await, Verdict::Refused("-NOPERM no psync\r\n".into()));
    upstream.is_away();
    assert_eq!(access.judge(Some(&app)).await, Verdict::Granted);
    assert_eq!(access.judged.get(Judged::Remembered), 1);
    assert!(matches!(access.judge(Some(&wrong)).await, Verdict::Failed(_)));
    assert!(matches!(access.judge(None).await, Verdict::Refused(_)));
    // A password that the master has refused since is not remembered any longer.
    upstream.says(&["-WRONGPASS no"]);
    access.judge(Some(&app)).await;
    upstream.is_away();
    assert!(matches!(access.judge(Some(&app)).await, Verdict::Failed(_)));
}

#[tokio::test]
async fn a_master_of_unknown_version_is_asked_for_it_before_it_judges() {
    const NEW: &str = "*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15";
    const OLD: &str = "*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n6.0.9";
    let (access, upstream) = judge_by(Probe::Unknown, |_| {}).await;
    let app = named("app", "right");
    for (lines, granted) in [
        (&["+OK", NEW, YES][..], true),
        (&["+OK", NEW, "-NOPERM no psync"], false),
        (&["+OK", OLD, "+OK"], true),
        (&["+OK", "-NOPERM no hello", "+OK"], true),
        (&["+OK", "-ERR unknown command 'HELLO'", "-NOAUTH no"], false),
    ] {
        upstream.says(lines);
        assert_eq!(access.judge(Some(&app)).await == Verdict::Granted, granted, "{lines:?}");
        // What was asked last is what its version understands.
        let expected: &[u8] = if lines[1] == NEW { b"PSYNC" } else { b"REPLCONF" };
        let asked = upstream.asked.lock().unwrap().clone();
        assert!(asked.windows(expected.len()).any(|word| word == expected), "{lines:?}: {}", asked.escape_ascii());
    }
    upstream.says(&["+OK", "*1\r\n$999999999"]);
    assert!(matches!(access.judge(Some(&app)).await, Verdict::Granted | Verdict::Failed(_)), "and no answer is none");
}

#[tokio::test]
async fn with_the_master_away_what_the_operator_gave_us_opens_and_nothing_else() {
    let (access, _) = judge(|options| options.requirepass = Some(Credentials::own(None, b"static"))).await;
    assert_eq!(access.judge(Some(&Credentials::own(None, b"static"))).await, Verdict::Granted);
    assert_eq!(access.judge(Some(&named("default", "static"))).await, Verdict::Granted);
    assert_eq!(access.judge(Some(&named("psyncd", "own"))).await, Verdict::Granted);
    assert!(matches!(access.judge(Some(&named("psyncd", "static"))).await, Verdict::Failed(_)));
    let (access, _) = judge(|options| options.own = None).await;
    assert_eq!(access.judge(None).await, Verdict::Granted, "what we hold was got without a password");
}

#[tokio::test]
async fn requirepass_alone_decides_where_it_is_meant_to() {
    let (access, upstream) = judge(|options| {
        options.replica_auth = ReplicaAuth::Static;
        options.requirepass = Some(Credentials::own(None, b"static"));
    })
    .await;
    assert_eq!(access.judge(Some(&Credentials::own(None, b"static"))).await, Verdict::Granted);
    assert!(matches!(access.judge(Some(&named("psyncd", "own"))).await, Verdict::Failed(_)));
    assert!(matches!(access.judge(None).await, Verdict::Refused(_)));
    assert_eq!(upstream.dialed.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn other_hosts_are_refused_where_nothing_protects_the_data() {
    let (here, there) = (host("127.0.0.1"), host("192.0.2.1"));
    let of = |replica, client| Entries { replica, client };
    use Entry::{Denied, Open, Protected};

    let (access, upstream) = judge(|_| {}).await;
    upstream.says(&[YES]);
    assert_eq!(access.entries(&here, &Security::Plain).await, of(Open, Open));
    assert_eq!(upstream.dialed.load(Ordering::Relaxed), 0, "our own host is nothing to ask about");
    assert_eq!(access.entries(&there, &Security::Plain).await, of(Protected, Protected));
    upstream.says(&[NOAUTH]);
    assert_eq!(access.entries(&there, &Security::Plain).await, of(Protected, Protected), "an answer holds for a while");
    assert_eq!(upstream.dialed.load(Ordering::Relaxed), 1);
    tokio::time::advance(FRESH).await;
    assert_eq!(access.entries(&there, &Security::Plain).await, of(Open, Open), "the master has a password now");
    tokio::time::advance(FRESH).await;
    upstream.says(&["-NOPERM no psync"]);
    assert_eq!(
        access.entries(&there, &Security::Plain).await,
        of(Open, Protected),
        "clients need no password, replicas do"
    );

    let (access, upstream) = judge(|options| options.allow_clients = "192.0.2.0/24".parse().unwrap()).await;
    upstream.says(&[YES]);
    assert_eq!(access.entries(&there, &Security::Plain).await, of(Protected, Open));
    assert_eq!(access.entries(&host("198.51.100.1"), &Security::Plain).await, of(Protected, Denied));

    let (access, upstream) = judge(|options| options.replica_auth = ReplicaAuth::Static).await;
    upstream.says(&[YES]);
    assert_eq!(access.entries(&there, &Security::Plain).await, of(Open, Protected));

    let (access, upstream) = judge(|options| options.replica_auth = ReplicaAuth::None).await;
    upstream.says(&[NOAUTH]);
    assert_eq!(access.entries(&there, &Security::Plain).await, of(Protected, Open));

    let (access, _) = judge(|options| options.protected_mode = false).await;
    assert_eq!(access.entries(&there, &Security::Plain).await, of(Open, Open));
    let (access, _) = judge(|options| options.own = None).await;
    assert_eq!(
        access.entries(&there, &Security::Plain).await,
        of(Protected, Protected),
        "nobody can be asked, and we have no password"
    );
    let certified = Security::Tls { names: vec!["replica-1".to_owned()] };
    assert_eq!(access.entries(&there, &certified).await, of(Open, Open), "it showed a certificate");
    let nameless = Security::Tls { names: Vec::new() };
    assert_eq!(access.entries(&there, &nameless).await, of(Protected, Protected), "it showed none");
    let (access, _) = judge(|_| {}).await;
    assert_eq!(
        access.entries(&there, &Security::Plain).await,
        of(Open, Open),
        "nobody can be asked, but there is a password"
    );
}

#[test]
fn what_is_told_fits_into_one_line_of_a_replica() {
    for entry in [Entry::Denied, Entry::Protected] {
        let line = entry.line();
        assert!(line.starts_with(b"-DENIED ") && line.ends_with(b".\r\n") || entry == Entry::Denied, "{line:?}");
    }
}

#[tokio::test]
async fn a_replica_without_one_of_the_names_is_kept_out_and_a_client_is_not() {
    let (access, _) = judge(|options| options.names = Some(vec!["Replica-0.redis".to_owned()])).await;
    let tls = |name: &str| Security::Tls { names: vec![name.to_owned()] };
    for (security, replica) in [
        (tls("replica-0.REDIS"), Entry::Open),
        (tls("replica-1.redis"), Entry::Nameless),
        (Security::Tls { names: Vec::new() }, Entry::Nameless),
        (Security::Plain, Entry::Nameless),
    ] {
        let entries = access.entries(&host("127.0.0.1"), &security).await;
        assert_eq!(entries, Entries { replica, client: Entry::Open }, "{security:?}");
        assert_eq!(entries.closed(), None);
    }
}

#[tokio::test]
async fn users_of_our_own_are_asked_for_where_the_master_cannot_be() {
    let user = |name: &str, may_replicate| User {
        name: name.to_owned(),
        password: users::Known::Plain(b"pw".to_vec().into()),
        may_replicate,
    };
    let users = vec![user("replica", true), user("viewer", false)];
    for auth in [ReplicaAuth::Upstream, ReplicaAuth::Static] {
        let users = users.clone();
        let (access, upstream) = judge(|options| (options.replica_auth, options.users) = (auth, users)).await;
        upstream.is_away();
        assert!(access.lets_anybody_in_alone());
        assert_eq!(access.judge(Some(&named("replica", "pw"))).await, Verdict::Granted);
        assert!(
            matches!(access.judge(Some(&named("viewer", "pw"))).await, Verdict::Refused(why) if why.starts_with(b"-NOPERM"))
        );
        for (name, password) in [("replica", "no"), ("viewer", "no"), ("other", "pw"), ("default", "pw")] {
            assert!(matches!(access.judge(Some(&named(name, password))).await, Verdict::Failed(_)), "{auth:?} {name}");
        }
    }
}
