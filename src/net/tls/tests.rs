use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::net::TokioNetwork;
use authority::{Authority, Issued, Validity};

#[allow(dead_code, reason = "the scenarios with real servers use more of it")]
#[path = "../../../tests/e2e/harness/authority.rs"]
mod authority;

fn pair(issued: &Issued) -> Pair {
    Pair { certificate: issued.cert.clone().into(), key: issued.key.clone().into() }
}

fn options(authority: &Authority, shown: &Issued) -> Options {
    Options {
        server: Some(pair(shown)),
        client: Some(pair(shown)),
        authority: Some(authority.ca().into()),
        callers: Callers::Certified,
        verify: Verify::Full,
        upstream: None,
        server_name: None,
        handshake_timeout: Duration::from_millis(300),
        dial_timeout: Duration::from_secs(4),
        max_handshakes: 2,
    }
}

fn network(options: Options) -> TlsNetwork {
    TlsNetwork { inner: Arc::new(TokioNetwork::default()), tls: Arc::new(Tls::open(options).unwrap()), admit: None }
}

async fn listen(network: &TlsNetwork) -> (Box<dyn Listener>, Address) {
    let listener = network.listen((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let address = Address::Tcp { host: "127.0.0.1".into(), port: listener.local().port() };
    (listener, address)
}

/// Both ends of a stream between the two, or what the caller was told.
async fn meet(server: &TlsNetwork, client: &TlsNetwork) -> Result<(Link, Link), String> {
    let (mut listener, address) = listen(server).await;
    let calling = async {
        let mut link = client.dial(&address).await.map_err(|error| error.to_string())?;
        // In TLS 1.3 a caller is done before he knows whether he was accepted.
        link.sink.write_all(b"?").await.map_err(|error| error.to_string())?;
        let mut answer = [0];
        match link.source.read(&mut answer).await {
            Ok(1) => Ok(link),
            Ok(_) => Err("closed".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    };
    let answering = async {
        let mut link = listener.accept().await.unwrap();
        assert_eq!(link.source.read_u8().await.unwrap(), b'?');
        link.sink.write_all(b"!").await.unwrap();
        Ok(link)
    };
    tokio::select! {
        biased;
        met = async { tokio::try_join!(calling, answering) } => met,
        () = tokio::time::sleep(Duration::from_secs(2)) => Err("nobody was accepted".to_owned()),
    }
}

/// What the caller is told by a server that shows `shown`.
async fn told(authority: &Authority, good: &Issued, shown: &Issued, verify: Verify) -> String {
    let server = network(Options { server: Some(pair(shown)), ..options(authority, good) });
    let client = network(Options { verify, ..options(authority, good) });
    let (listener, address) = listen(&server).await;
    let mut listener = listener;
    tokio::select! {
        biased;
        told = client.dial(&address) => told.map_or_else(|error| error.to_string(), |_| "nothing".to_owned()),
        _ = async { loop { let _ = listener.accept().await; } } => unreachable!("it accepts for ever"),
    }
}

#[tokio::test]
async fn bytes_arrive_as_they_were_sent_also_where_writers_give_up_and_come_again() {
    let authority = Authority::new();
    let shown = authority.issue("node", &["127.0.0.1", "replica-0.redis"]);
    let both = network(options(&authority, &shown));
    let (mut called, mut answered) = meet(&both, &both).await.unwrap();
    assert_eq!(answered.security, Security::Tls { names: vec!["replica-0.redis".into(), "node".into()] });
    let sent: Vec<u8> = (0..3_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        let mut at = 0;
        while at < sent.len() {
            let (one, two) = sent[at..].split_at((sent.len() - at).min(1000));
            let slices = [io::IoSlice::new(one), io::IoSlice::new(two)];
            // So short that it is often given up while the peer does not read.
            if let Ok(written) = timeout(Duration::from_millis(1), answered.sink.write_vectored(&slices)).await {
                at += written.unwrap();
            }
        }
        answered
    });
    let mut received = Vec::new();
    while received.len() < expected.len() {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut piece = vec![0; 300_000];
        let read = called.source.read(&mut piece).await.unwrap();
        assert!(read > 0, "closed after {} bytes", received.len());
        received.extend_from_slice(&piece[..read]);
    }
    assert!(received == expected, "the bytes differ");
    let mut answered = writing.await.unwrap();
    answered.sink.shutdown().await.unwrap();
    assert_eq!(called.source.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_write_that_was_given_up_for_another_one_breaks_the_stream_and_never_its_order() {
    let authority = Authority::new();
    let shown = authority.issue("node", &["127.0.0.1"]);
    let both = network(options(&authority, &shown));
    let (_called, mut answered) = meet(&both, &both).await.unwrap();
    let full = async {
        loop {
            answered.sink.write_all(&[1; 100_000]).await.unwrap();
        }
    };
    assert!(timeout(Duration::from_millis(300), full).await.is_err());
    let error = answered.sink.write(&[2; 100_000]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn each_bad_certificate_of_a_server_is_named() {
    let authority = Authority::new();
    let other = Authority::new();
    let good = authority.issue("good", &["127.0.0.1"]);
    let elsewhere = authority.issue("elsewhere", &["redis-0"]);
    let nameless = authority.issue("nameless", &[]);
    let expired = authority.issue_valid("expired", &["127.0.0.1"], Validity::Past);
    let early = authority.issue_valid("early", &["127.0.0.1"], Validity::Future);
    let foreign = other.issue("foreign", &["127.0.0.1"]);
    let table = [
        (&good, Verify::Full, "nothing"),
        (&elsewhere, Verify::Full, "certificate is for"),
        (&elsewhere, Verify::Chain, "nothing"),
        (&nameless, Verify::Full, "no subject alternative name"),
        (&nameless, Verify::Chain, "nothing"),
        (&expired, Verify::Chain, "has expired"),
        (&early, Verify::Chain, "not valid yet"),
        (&foreign, Verify::Full, "not signed by an authority in tls-ca-cert-file"),
        (&foreign, Verify::Chain, "not signed by an authority in tls-ca-cert-file"),
        (&foreign, Verify::Nothing, "nothing"),
    ];
    for (shown, verify, expected) in table {
        let told = told(&authority, &good, shown, verify).await;
        assert!(told.contains(expected), "{} under {verify:?}: {told:?}, expected {expected:?}", shown.cert);
        assert!(!told.contains('\n'));
    }
}

#[tokio::test]
async fn a_name_is_checked_where_the_override_says_and_only_for_the_upstream() {
    let authority = Authority::new();
    let shown = authority.issue("node", &["redis-0"]);
    let server = network(options(&authority, &shown));
    let (_listener, address) = listen(&server).await;
    let named = |address: Address| Options {
        upstream: Some(address),
        server_name: Some("redis-0".into()),
        ..options(&authority, &shown)
    };
    let name = |options: Options| Tls::open(options).unwrap().name_of(&address).unwrap();
    assert_eq!(name(named(address.clone())), ServerName::try_from("redis-0").unwrap());
    assert_eq!(name(named("127.0.0.1:1".parse().unwrap())), ServerName::try_from("127.0.0.1").unwrap());
}

#[tokio::test]
async fn callers_without_a_good_certificate_are_told_and_counted_and_hold_up_nobody() {
    let authority = Authority::new();
    let good = authority.issue("good", &["127.0.0.1"]);
    let server = network(options(&authority, &good));
    let client = |client: Option<&Issued>| network(Options { client: client.map(pair), ..options(&authority, &good) });
    let why = meet(&server, &client(None)).await.unwrap_err();
    assert!(why.contains("wants a certificate of us"), "{why}");
    let optional = network(Options { callers: Callers::MaybeCertified, ..options(&authority, &good) });
    let (_, answered) = meet(&optional, &client(None)).await.unwrap();
    assert_eq!(answered.security, Security::Tls { names: vec![] });
    let accepted = &server.tls.metrics.accepted;
    assert_eq!(accepted.get(Handshake::NoCertificate), 1);

    // Two who say nothing take all there is; a third is turned away, and once their time is over others get through.
    let (mut listener, address) = listen(&server).await;
    let Address::Tcp { port, .. } = address else { unreachable!() };
    let accepting = tokio::spawn(async move { listener.accept().await.unwrap() });
    let dumb = [0; 3].map(|_| tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
    let mut held = Vec::new();
    for connect in dumb {
        held.push(connect.await.unwrap());
    }
    // The last one is closed at once.
    assert_eq!(held[2].read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(accepted.get(Handshake::Limit), 1);
    assert_eq!(held[0].read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(held[1].read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(accepted.get(Handshake::Timeout), 2);
    client(Some(&good)).dial(&Address::Tcp { host: "127.0.0.1".into(), port }).await.unwrap();
    accepting.await.unwrap();
    assert_eq!(accepted.get(Handshake::Ok), 1);
}

#[tokio::test]
async fn one_who_speaks_no_tls_is_told_apart() {
    let authority = Authority::new();
    let good = authority.issue("good", &["127.0.0.1"]);
    let both = network(options(&authority, &good));
    let (mut listener, address) = listen(&both).await;
    let Address::Tcp { port, .. } = address else { unreachable!() };
    let accepting = tokio::spawn(async move { listener.accept().await });
    let mut plain = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    plain.write_all(b"PING\r\nPING\r\n").await.unwrap();
    let _ = plain.read_to_end(&mut Vec::new()).await;
    assert_eq!(both.tls.metrics.accepted.get(Handshake::Protocol), 1);
    accepting.abort();

    // And a server that speaks none.
    let plain = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = Address::Tcp { host: "127.0.0.1".into(), port: plain.local_addr().unwrap().port() };
    tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        let _ = stream.write_all(b"-ERR unknown command\r\n").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let error = both.dial(&address).await.unwrap_err();
    assert!(Failed::is_behind(&error) && error.to_string().contains("does not speak TLS"), "{error}");
}

fn refused(options: Options) -> String {
    Tls::open(options).unwrap_err().to_string()
}

#[test]
fn each_file_that_cannot_be_used_is_named_with_the_reason() {
    let authority = Authority::new();
    let good = authority.issue("good", &["127.0.0.1"]);
    let other = authority.issue("other", &["127.0.0.1"]);
    let old = authority.v1("v1");
    let sealed = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let sealed = Issued { key: authority.write("sealed.key", sealed), ..good.clone() };
    let mixed = Issued { key: other.key.clone(), ..good.clone() };
    let swapped = Issued { cert: good.key.clone(), key: good.cert.clone() };
    let missing = Issued { key: "/nonexistent/key".into(), ..good.clone() };
    let table = [
        (&old, "X.509 v1"),
        (&sealed, "is encrypted"),
        (&mixed, "is not the key of the certificate"),
        (&swapped, "has no certificate in it"),
        (&missing, "cannot be read"),
    ];
    for (shown, expected) in table {
        let why = refused(Options { server: Some(pair(shown)), ..options(&authority, &good) });
        assert!(why.contains(expected), "{why:?}, expected {expected:?}");
        assert!(!why.contains('\n') && !why.contains("BEGIN PRIVATE"), "{why}");
    }
    let why = refused(Options { authority: Some(good.key.clone().into()), ..options(&authority, &good) });
    assert!(why.contains("has no certificate in it"), "{why}");
}

#[test]
fn what_others_will_not_like_about_our_certificate_is_said_at_start() {
    let authority = Authority::new();
    let doubts = |shown: &Issued| Tls::open(options(&authority, shown)).unwrap().doubts();
    assert_eq!(doubts(&authority.issue("good", &["a"])), Vec::<String>::new());
    let foreign = Authority::new();
    let table = [
        (authority.issue("nameless", &[]), "no subject alternative name"),
        (authority.issue_valid("expired", &["a"], Validity::Past), "has expired"),
        (authority.issue_valid("early", &["a"], Validity::Future), "is not valid yet"),
        (foreign.issue("foreign", &["a"]), "not signed by an authority in tls-ca-cert-file"),
    ];
    for (shown, expected) in &table {
        let said = doubts(shown);
        assert!(said.len() == 1 && said[0].contains(expected), "{said:?}, expected {expected:?}");
    }
}

#[tokio::test]
async fn new_files_are_noticed_and_a_broken_one_changes_nothing() {
    let authority = Authority::new();
    let shown = authority.issue("node", &["127.0.0.1"]);
    let server = network(options(&authority, &shown));
    let (asked, stop) = (Arc::new(tokio::sync::Notify::new()), tokio_util::sync::CancellationToken::new());
    let watching = watch::run(Arc::clone(&server.tls), asked.clone(), Duration::from_millis(5), stop.clone());
    let watching = tokio::spawn(watching);
    let before = meet(&server, &server).await.unwrap();
    let reloads = |how| server.tls.metrics.reloads.get(how);
    let until = async |how, count| {
        while reloads(how) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(10);
    // It has looked at the files once before they change.
    asked.notify_one();
    timeout(limit, until(Reload::Ok, 1)).await.unwrap();
    authority.issue("broken", &["127.0.0.1"]);
    std::fs::rename(authority.path("broken.key"), authority.path("node.key")).unwrap();
    timeout(limit, until(Reload::Failed, 1)).await.unwrap();
    meet(&server, &server).await.expect("the old certificate is used on");
    std::fs::rename(authority.path("broken.pem"), authority.path("node.pem")).unwrap();
    timeout(limit, until(Reload::Ok, 2)).await.unwrap();
    let (_, answered) = meet(&server, &server).await.unwrap();
    assert_eq!(answered.security, Security::Tls { names: vec!["broken".into()] }, "the new one is shown");
    // Expired is as good as broken while the old one is not.
    let (failed, ok) = (reloads(Reload::Failed), reloads(Reload::Ok));
    authority.issue_valid("node", &["127.0.0.1"], Validity::Past);
    timeout(limit, until(Reload::Failed, failed + 1)).await.unwrap();
    meet(&server, &server).await.expect("the good certificate is used on");
    authority.issue("node", &["127.0.0.1"]);
    asked.notify_one();
    timeout(limit, until(Reload::Ok, ok + 1)).await.unwrap();
    // What was open all the time is.
    let (mut called, mut answered) = before;
    called.sink.write_all(b"still").await.unwrap();
    let mut heard = [0; 5];
    answered.source.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still");
    stop.cancel();
    watching.await.unwrap();
}
