//! One connection, from its first byte until it is known what it is for.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::classify::{Heard, Opening, Route};
use super::leg::{Leg, Unreachable};
use super::{Caller, Client, Front, Gauge, TOO_MANY, enter, passthrough};
use crate::access::credentials::Credentials;
use crate::access::{Entries, Entry, Verdict};
use crate::net::{Link, Place};
use crate::wire::command::{error_line, ok};
use crate::wire::resp::{FrameLimits, parse_command};

/// What a first PING is told while the upstream is away: every replica goes on with its handshake, every health
/// check and every Sentinel sees a failure. `-LOADING` and `-MASTERDOWN` would count as alive.
const UPSTREAM_DOWN: &str = "ERR operation not permitted: psyncd upstream is down, serving replication only";
/// What a first PING is told when there is nothing to serve either: replicas keep what they have and come back.
const NOTHING_YET: &str = "ERR psyncd has no history yet and its upstream is not reachable; try again";
/// What a first PING is told when everybody who may come in would have to be asked about: every replica comes back
/// with what it has, where a refusal at its next step would cost those before 7.0 their position.
const NOBODY_KNOWN: &str = "ERR psyncd cannot ask its upstream, which is away, who may replicate; try again";
/// How long a last word may take.
const GOODBYE: std::time::Duration = std::time::Duration::from_secs(1);
/// What is told whose first words take too long.
const TOO_SLOW: &str = "ERR psyncd: the first command did not arrive in time";
/// What is told who goes on naming passwords.
const TOO_LONG: &str = "ERR psyncd: more was said than max-handshake-bytes allows, and no command yet";

/// Runs one connection to its end.
pub async fn serve(front: &Front, mut link: Link, shutdown: &CancellationToken) {
    let open = Gauge::one_more(&front.metrics.open);
    if front.metrics.open.load(std::sync::atomic::Ordering::Relaxed) > front.options.get().max_clients {
        front.metrics.clients.increment(Client::Limit);
        return turn_away(link, &error_line("ERR max number of clients reached")).await;
    }
    let place = link.place.take().or_else(|| enter(&front.crowd, &front.metrics, &link.peer));
    let Some(place) = place else { return turn_away(link, &error_line(TOO_MANY)).await };
    let entries = tokio::select! {
        biased;
        () = shutdown.cancelled() => return,
        entries = front.access.entries(&link.peer, &link.security) => entries,
    };
    if let Some(why) = entries.closed() {
        front.metrics.clients.increment(kept_out(why));
        return turn_away(link, &why.line()).await;
    }
    let mut opening = Connection {
        front,
        link,
        buffer: BytesMut::new(),
        heard: Heard::default(),
        heard_bytes: 0,
        deadline: None,
        entries,
        credentials: None,
        said: Vec::new(),
        leg: None,
        place: Some(place),
    };
    let outcome = tokio::select! {
        biased;
        () = shutdown.cancelled() => return,
        outcome = opening.open() => outcome,
    };
    let Connection { link, buffer, credentials, said, leg, heard_bytes, entries, place, .. } = opening;
    let caller = |link, buffer, said, place| {
        let (entry, heard) = (entries.replica, heard_bytes);
        Caller { link, buffer, said, credentials, heard, entry, place }
    };
    match (outcome, leg) {
        (Outcome::Replica, leg) => {
            drop(leg);
            if let Some(master) = (front.serve_replica)(caller(link, buffer, said, place)).await {
                promote(front, master, shutdown).await;
            }
        }
        (Outcome::Psyncd, _) if !entries.replica.is_open() => {
            front.metrics.clients.increment(kept_out(entries.replica));
            turn_away(link, &entries.replica.line()).await;
        }
        (Outcome::Psyncd, _) => match &front.serve_psyncd {
            Some(serve) => drop(serve(caller(link, buffer, said, place)).await),
            None => {
                let mut link = link;
                let _ = link.sink.write_all(&error_line("ERR psyncd: assist-failover is off here")).await;
            }
        },
        (Outcome::Client, Some(leg)) => {
            drop(place);
            front.metrics.clients.increment(Client::Ok);
            let moved = leg.pointing.token();
            tokio::select! {
                biased;
                // Its next words belong to another node, which it reaches by coming back.
                () = moved.cancelled() => {}
                () = passthrough::copy(front, link, buffer, leg, entries.replica, shutdown) => {}
            }
        }
        (Outcome::Client, None) | (Outcome::Closed, _) => {}
    }
    drop(open);
}

/// Says why, and hangs up. A fresh socket takes so few bytes at once.
async fn turn_away(mut link: Link, line: &[u8]) {
    let _ = timeout(GOODBYE, link.sink.write_all(line)).await;
    let _ = timeout(GOODBYE, link.sink.shutdown()).await;
}

/// Passes on a master in `FAILOVER`: the node becomes its master over this very connection, which from here on is as
/// any client's. If that cannot be it has to hear so at once, because until then it takes no writes (6.2 and
/// later; replication.c `syncWithMaster`, which aborts the failover at any error and dials again at an end).
async fn promote(front: &Front, master: Caller, shutdown: &CancellationToken) {
    let Caller { mut link, buffer, said, entry, .. } = master;
    let limit = front.options.get().handshake_timeout;
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
            info!(event = "failover_passed", master = %link.peer, "failover passed on to the upstream");
            front.metrics.clients.increment(Client::Ok);
            passthrough::copy(front, link, buffer, leg, entry, shutdown).await;
        }
        Err(why) => {
            warn!(event = "failover_not_passed", master = %link.peer, %why, "failover refused for the upstream");
            front.metrics.clients.increment(Client::UpstreamError);
            let _ = link.sink.write_all(&error_line(UPSTREAM_DOWN)).await;
            let _ = link.sink.shutdown().await;
        }
    }
}

/// What a peer that is turned away for `why` counts as.
pub(super) fn kept_out(why: Entry) -> Client {
    match why {
        Entry::Protected => Client::ProtectedMode,
        Entry::Denied | Entry::Nameless | Entry::Open => Client::Denied,
    }
}

struct Connection<'a> {
    front: &'a Front,
    link: Link,
    buffer: BytesMut,
    heard: Heard,
    /// Bytes that were answered.
    heard_bytes: usize,
    /// When it has to be known what this is; counted from the first byte.
    deadline: Option<Instant>,
    entries: Entries,
    /// What was named and not refused.
    credentials: Option<Credentials>,
    /// The AUTH or HELLO that was passed on last, whole.
    said: Vec<Bytes>,
    leg: Option<Leg>,
    /// Its place among those of whom nothing is known.
    place: Option<Place>,
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
                    Heeded::Silent if self.buffer.is_empty() => {
                        if let Some(end) = self.wait_for_a_word().await {
                            return end;
                        }
                    }
                    Heeded::Silent => return self.refuse(TOO_SLOW).await,
                },
                Route::Ambiguous(opening) => match parse_command(&self.buffer, &FrameLimits::HANDSHAKE) {
                    Ok(Some((args, used))) => {
                        let named = match opening {
                            Opening::Auth => Credentials::of_auth(&args),
                            Opening::Hello => Credentials::of_hello(&args),
                            Opening::Ping => None,
                        };
                        drop(args);
                        if opening == Opening::Auth || named.is_some() {
                            self.said = vec![Bytes::copy_from_slice(&self.buffer[..used])];
                        }
                        self.heard_bytes += used;
                        if self.heard_bytes > self.front.options.get().max_handshake_bytes {
                            return self.refuse(TOO_LONG).await;
                        }
                        if let Some(end) = self.pass(opening, named, used).await {
                            return end;
                        }
                    }
                    Ok(None) => match self.more().await {
                        Heeded::More => {}
                        Heeded::Gone => return Outcome::Closed,
                        Heeded::Silent => return self.refuse(TOO_SLOW).await,
                    },
                    // Not what a replica sends; the upstream may make of it what it will.
                    Err(_) => return self.client().await,
                },
            }
        }
    }

    /// Passes on a PING, an AUTH or a HELLO and hands back the reply; while the upstream is away we answer ourselves.
    async fn pass(&mut self, opening: Opening, named: Option<Credentials>, used: usize) -> Option<Outcome> {
        let command = self.buffer.split_to(used);
        self.heard.passed(opening);
        let limit = self.front.options.get().handshake_timeout;
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
            // With replica-auth static the upstream need not know the password; it is the answer's to-be client that
            // is refused at its next command.
            (Ok(_), Opening::Auth) if named.as_ref().is_some_and(|named| self.front.access.settles(named)) => {
                self.credentials = named;
                ok()
            }
            (Ok(reply), Opening::Auth) => {
                if reply.starts_with(b"+") {
                    self.credentials = named;
                }
                reply
            }
            (Ok(reply), Opening::Hello) => {
                if named.is_some() && !reply.starts_with(b"-") {
                    self.credentials = named;
                }
                reply
            }
            (Ok(reply), Opening::Ping) => reply,
            // Its answer describes a server, and there is none.
            (Err(_), Opening::Hello) => error_line(UPSTREAM_DOWN),
            (Err(why), Opening::Ping) => {
                debug!(peer = %self.link.peer, %why, "first PING answered for the upstream");
                match self.front.relay.held() {
                    Some(_) if !self.front.access.lets_anybody_in_alone() => error_line(NOBODY_KNOWN),
                    Some(_) => error_line(UPSTREAM_DOWN),
                    None => error_line(NOTHING_YET),
                }
            }
            // Nobody can be asked. A replica that is known may go on; a client will be refused at its next command.
            (Err(_), Opening::Auth) => match self.front.access.judge_alone(named.as_ref()).await {
                Verdict::Granted => {
                    self.credentials = named;
                    ok()
                }
                Verdict::Failed(line) | Verdict::Refused(line) => line,
            },
        };
        match self.link.sink.write_all(&reply).await {
            Ok(()) => None,
            Err(_) => Some(Outcome::Closed),
        }
    }

    async fn client(&mut self) -> Outcome {
        if !self.entries.client.is_open() {
            return self.keep_out(self.entries.client).await;
        }
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

    /// Pools open connections long before they use them, so silence makes a client. Until it speaks, that is: a server
    /// that is told to follow us dials, and then may wait for its disk before it goes on. Passed to the node it would
    /// get what little the node remembers, and the node another replica.
    async fn wait_for_a_word(&mut self) -> Option<Outcome> {
        let outcome = self.client().await;
        let (Outcome::Client, Some(leg)) = (outcome, &mut self.leg) else { return Some(outcome) };
        let _passing = Gauge::one_more(&self.front.metrics.passing);
        self.place = None;
        let moved = leg.pointing.token();
        tokio::select! {
            biased;
            () = moved.cancelled() => return Some(Outcome::Closed),
            // The node has something to say, or has ended it.
            _ = leg.link.source.read_buf(&mut leg.buffer) => return Some(Outcome::Client),
            read = self.link.source.read_buf(&mut self.buffer) => match read {
                Ok(0) | Err(_) => return Some(Outcome::Closed),
                Ok(_) => {}
            },
        }
        self.deadline = Some(Instant::now() + self.front.options.get().handshake_timeout);
        None
    }

    async fn keep_out(&mut self, why: Entry) -> Outcome {
        self.front.metrics.clients.increment(kept_out(why));
        let _ = self.link.sink.write_all(&why.line()).await;
        let _ = self.link.sink.shutdown().await;
        Outcome::Closed
    }

    async fn refuse(&mut self, text: &str) -> Outcome {
        self.front.metrics.clients.increment(Client::Protocol);
        let _ = self.link.sink.write_all(&error_line(text)).await;
        let _ = self.link.sink.shutdown().await;
        Outcome::Closed
    }

    async fn more(&mut self) -> Heeded {
        let limit = self.front.options.get().handshake_timeout;
        // Whoever has begun to speak gets no more time by speaking slowly.
        let deadline = self.deadline.unwrap_or_else(|| Instant::now() + limit);
        match timeout_at(deadline, self.link.source.read_buf(&mut self.buffer)).await {
            Ok(Ok(0)) | Ok(Err(_)) => Heeded::Gone,
            Ok(Ok(_)) => {
                self.deadline.get_or_insert_with(|| Instant::now() + limit);
                Heeded::More
            }
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
