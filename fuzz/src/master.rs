//! Our side of the handshake, with a master that says anything.

use std::cell::OnceCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use psyncd::entropy::SystemEntropy;
use psyncd::live::Live;
use psyncd::net::{Link, Outlet, PeerAddress, Security, TokioNetwork};
use psyncd::relay::target::Target;
use psyncd::relay::{self, Relay};
use psyncd::repl::{AckPolicy, guard};
use psyncd::store::disk::RealDisk;
use psyncd::store::snapshot::Shelf;
use psyncd::upstream::cast::Links;
use psyncd::upstream::conversation::Conversation;
use psyncd::upstream::guard::Guard;
use psyncd::upstream::handshake::{self, Purpose};
use psyncd::upstream::source::SnapshotSource;
use psyncd::upstream::{Options, Upstream};
use psyncd::wire::dialogue::Login;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};

use crate::cuts::Cuts;

/// Hands out pieces and then the end.
struct Pieces(std::vec::IntoIter<Vec<u8>>);

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(mut piece) = self.0.next() {
            let rest = piece.split_off(piece.len().min(buf.remaining()));
            buf.put_slice(&piece);
            if !rest.is_empty() {
                let later: Vec<Vec<u8>> = std::iter::once(rest).chain(self.0.by_ref()).collect();
                self.0 = later.into_iter();
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Takes everything.
struct Hole;

impl AsyncWrite for Hole {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Outlet for Hole {}

struct World {
    runtime: Runtime,
    upstream: Upstream,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Shelf::open(Arc::new(RealDisk), dir.path().to_owned());
        let shelf = Arc::new(runtime.block_on(shelf).expect("a shelf"));
        let second = Duration::from_secs(1);
        let options = Options {
            login: Live::new(Login { user: Some("u".to_owned()), password: Some(b"p".to_vec().into()) }),
            announce_host: Some("10.0.0.9".to_owned()),
            announce_port: Some(6380),
            connect_timeout: second,
            handshake_timeout: second,
            repl_timeout: second,
            keep_lost_bytes: 0,
            ack_policy: AckPolicy::Received,
            silent_when_empty: false,
            gather_time: Duration::ZERO,
            snapshot_source: SnapshotSource::Auto,
            snapshot_min_interval: Duration::ZERO,
            guard_interval: second,
            links: Links::Single,
            identity: "us".to_owned(),
        };
        let relay = Relay::new(relay::Options {
            backlog_bytes: 1 << 20,
            journal_bytes: 0,
            journal_lag_bytes: 0,
            history_depth: 16,
            max_replicas: 4,
        });
        let rules = guard::Rules { mode: "hold".parse().expect("a mode"), min_keys: 1000, min_percent: 10 };
        let upstream = Upstream {
            target: Target::new(None),
            options: Live::new(options),
            relay,
            network: Arc::new(TokioNetwork { keepalive: second * 300, backlog: 1 }),
            peers: Arc::new(TokioNetwork { keepalive: second * 300, backlog: 1 }),
            shelf,
            guard: Arc::new(Guard::new(rules, None, None)),
            entropy: Arc::new(SystemEntropy),
            cast: Arc::default(),
            metrics: Arc::default(),
            forks: Arc::default(),
            node: Arc::default(),
        };
        Self { runtime, upstream, _dir: dir }
    }

    /// How it ends, as text.
    fn shake(&self, purpose: Purpose<'_>, pieces: &[&[u8]]) -> String {
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let link = Link {
            source: Box::new(Pieces(pieces.into_iter())),
            sink: Box::new(Hole),
            peer: PeerAddress::Unix,
            local: PeerAddress::Unix,
            security: Security::Plain,
            place: None,
        };
        let mut talk = Conversation::over(link, Duration::from_secs(1));
        self.runtime.block_on(async {
            let greeting = handshake::greet(&self.upstream, &mut talk, purpose).await;
            let reply = match &greeting {
                Ok(_) => Some(handshake::psync(&self.upstream, &mut talk, None).await),
                Err(_) => None,
            };
            assert!(talk.buffer.len() <= 2 << 20, "{} bytes are held", talk.buffer.len());
            format!("{greeting:?} {reply:?}")
        })
    }
}

thread_local! {
    static WORLD: OnceCell<World> = const { OnceCell::new() };
}

/// A master's words, from its first reply to its answer to PSYNC, in whatever pieces they come.
pub fn master(data: &[u8]) {
    WORLD.with(|world| {
        let world = world.get_or_init(World::new);
        for purpose in [Purpose::Stream, Purpose::Snapshot] {
            let whole = world.shake(purpose, &[data]);
            for pieces in Cuts::of(data).pieces().into_iter().take(2) {
                assert_eq!(world.shake(purpose, &pieces), whole);
            }
        }
    });
}
