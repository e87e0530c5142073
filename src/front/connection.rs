//! One connection, from its first byte until it is known what it is for.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::classify::{Heard, Opening, Route};
use super::leg::{Leg, Unreachable};
use super::{Caller, Client, Front, Gauge, passthrough};
use crate::net::Link;
use crate::wire::command::error_line;
use crate::wire::resp::{FrameLimits, parse_command};

/// What a first PING is told while the upstream is away: every replica goes on with its handshake, every health
/// check and every Sentinel sees a failure. `-LOADING` and `-MASTERDOWN` would count as alive.
const UPSTREAM_DOWN: &str = "ERR operation not permitted: psyncd upstream is down, serving replication only";
/// What a first PING is told when there is nothing to serve either: replicas keep what they have and come back.
const NOTHING_YET: &str = "ERR psyncd has no history yet and its upstream is not reachable; try again";

/// Runs one connection to its end.
pub async fn serve(front: &Front, link: Link, shutdown: &CancellationToken) {
    let open = Gauge::one_more(&front.metrics.open);
    if front.metrics.open.load(std::sync::atomic::Ordering::Relaxed) > front.options.max_clients {
        front.metrics.clients.increment(Client::Limit);
        let mut link = link;
        let _ = link.sink.write_all(&error_line("ERR max number of clients reached")).await;
        return;
    }
    let mut opening = Connection {
        front,
        link,
        buffer: BytesMut::new(),
        heard: Heard::default(),
        password: None,
        said: Vec::new(),
        leg: None,
    };
    let outcome = tokio::select! {
        biased;
        () = shutdown.cancelled() => return,
        outcome = opening.open() => outcome,
    };
    let Connection { link, buffer, password, said, leg, .. } = opening;
    match (outcome, leg) {
        (Outcome::Replica, leg) => {
            drop(leg);
            if let Some(master) = (front.serve_replica)(Caller { link, buffer, password, said }).await {
                promote(front, master, shutdown).await;
            }
        }
        (Outcome::Psyncd, _) => match &front.serve_psyncd {
            Some(serve) => drop(serve(Caller { link, buffer, password, said }).await),
            None => {
                let mut link = link;
                let _ = link.sink.write_all(&error_line("ERR psyncd: assist-failover is off here")).await;
            }
        },
        (Outcome::Client, Some(leg)) => {
            front.metrics.clients.increment(Client::Ok);
            let moved = leg.pointing.token();
            tokio::select! {
                biased;
                // Its next words belong to another node, which it reaches by coming back.
                () = moved.cancelled() => {}
                () = passthrough::copy(front, link, buffer, leg, shutdown) => {}
            }
        }
        (Outcome::Client, None) | (Outcome::Closed, _) => {}
    }
    drop(open);
}

/// Passes on a master in `FAILOVER`: the node becomes its master over this very connection, which from here on is as
/// any client's. If that cannot be it has to hear so at once, because until then it takes no writes (PROTOCOL 7.1).
async fn promote(front: &Front, master: Caller, shutdown: &CancellationToken) {
    let Caller { mut link, buffer, said, .. } = master;
    let limit = front.options.handshake_timeout;
    let asked = async {
        let mut leg = Leg::open(front).await?;
        for command in &said {
            // What the node thinks of it, it will say in answer to the PSYNC.
            leg.ask(command, limit).await?;
        }
        Ok::<Leg, Unreachable>(leg)
    };
    let asked = tokio::select! {
        biased;
        () = shutdown.cancelled() => return,
        asked = asked => asked,
    };
    match asked {
        Ok(leg) => {
            info!(master = %link.peer, "failover passed on to the upstream");
            front.metrics.clients.increment(Client::Ok);
            passthrough::copy(front, link, buffer, leg, shutdown).await;
        }
        Err(why) => {
            warn!(master = %link.peer, %why, "failover refused for the upstream");
            front.metrics.clients.increment(Client::UpstreamError);
            let _ = link.sink.write_all(&error_line(UPSTREAM_DOWN)).await;
            let _ = link.sink.shutdown().await;
        }
    }
}

struct Connection<'a> {
    front: &'a Front,
    link: Link,
    buffer: BytesMut,
    heard: Heard,
    password: Option<Bytes>,
    /// The AUTH that was passed on last, whole.
    said: Vec<Bytes>,
    leg: Option<Leg>,
}

/// What a connection turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Replica,
    Psyncd,
    /// Its leg is open.
    Client,
    Closed,
}

impl Connection<'_> {
    async fn open(&mut self) -> Outcome {
        loop {
            match self.heard.route(&self.buffer) {
                Route::Replica => return Outcome::Replica,
                Route::Psyncd => return Outcome::Psyncd,
                Route::Client => return self.client().await,
                Route::NeedMore => match self.more().await {
                    Heeded::More => {}
                    Heeded::Gone => return Outcome::Closed,
                    // Pools open connections long before they use them; replicas speak at once.
                    Heeded::Silent if self.buffer.is_empty() => return self.client().await,
                    Heeded::Silent => return self.refuse("ERR psyncd: the first command did not arrive in time").await,
                },
                Route::Ambiguous(opening) => match parse_command(&self.buffer, &FrameLimits::HANDSHAKE) {
                    Ok(Some((args, used))) => {
                        if opening == Opening::Auth {
                            self.password = args.last().cloned();
                            self.said = vec![Bytes::copy_from_slice(&self.buffer[..used])];
                        }
                        if let Some(end) = self.pass(opening, used).await {
                            return end;
                        }
                    }
                    Ok(None) => match self.more().await {
                        Heeded::More => {}
                        Heeded::Gone => return Outcome::Closed,
                        Heeded::Silent => {
                            return self.refuse("ERR psyncd: the first command did not arrive in time").await;
                        }
                    },
                    // Not what a replica sends; the upstream may make of it what it will.
                    Err(_) => return self.client().await,
                },
            }
        }
    }

    /// Passes on a PING or an AUTH and hands back the reply; while the upstream is away we answer ourselves.
    async fn pass(&mut self, opening: Opening, used: usize) -> Option<Outcome> {
        let command = self.buffer.split_to(used);
        self.heard.passed(opening);
        let limit = self.front.options.handshake_timeout;
        let leg = match self.leg.take() {
            Some(leg) => Ok(leg),
            None => Leg::open(self.front).await,
        };
        let reply = match leg {
            Ok(mut leg) => {
                let reply = leg.ask(&command, limit).await;
                self.leg = reply.is_ok().then_some(leg);
                reply
            }
            Err(unreachable) => Err(unreachable),
        };
        let reply = match (reply, opening) {
            (Ok(reply), _) => reply,
            (Err(why), Opening::Ping) => {
                debug!(peer = %self.link.peer, %why, "first PING answered for the upstream");
                match self.front.relay.held() {
                    Some(_) => error_line(UPSTREAM_DOWN),
                    None => error_line(NOTHING_YET),
                }
            }
            // Nobody can be asked. A replica may go on; a client will be refused at its next command.
            (Err(_), Opening::Auth) => crate::wire::command::ok(),
        };
        match self.link.sink.write_all(&reply).await {
            Ok(()) => None,
            Err(_) => Some(Outcome::Closed),
        }
    }

    async fn client(&mut self) -> Outcome {
        if self.leg.is_some() {
            return Outcome::Client;
        }
        match Leg::open(self.front).await {
            Ok(leg) => {
                self.leg = Some(leg);
                Outcome::Client
            }
            Err(why) => {
                self.front.metrics.clients.increment(Client::UpstreamError);
                debug!(peer = %self.link.peer, %why, "client refused");
                let text = UPSTREAM_DOWN;
                let _ = self.link.sink.write_all(&error_line(text)).await;
                let _ = self.link.sink.shutdown().await;
                Outcome::Closed
            }
        }
    }

    async fn refuse(&mut self, text: &str) -> Outcome {
        self.front.metrics.clients.increment(Client::Protocol);
        let _ = self.link.sink.write_all(&error_line(text)).await;
        let _ = self.link.sink.shutdown().await;
        Outcome::Closed
    }

    async fn more(&mut self) -> Heeded {
        let limit = self.front.options.handshake_timeout;
        match timeout(limit, self.link.source.read_buf(&mut self.buffer)).await {
            Ok(Ok(0)) | Ok(Err(_)) => Heeded::Gone,
            Ok(Ok(_)) => Heeded::More,
            Err(_) => Heeded::Silent,
        }
    }
}

/// What waiting for input brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heeded {
    More,
    Gone,
    Silent,
}
