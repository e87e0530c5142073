//! In front of the node that is promoted: holds the command that does it while the old master's psyncd builds a fence.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::promotion::{Event, Fencer, Promotion, Step};
use super::{Assisted, CONNECT, FOLLOW_UP, HOLD, Metrics, Node, replication};
use crate::counters::Label;
use crate::net::Address;
use crate::upstream::conversation::{Conversation, LinkEnd};
use crate::wire::assist::{self, Answer, Ask};
use crate::wire::dialogue;
use crate::wire::info::{LinkStatus, Role};
use crate::wire::seal::{Seal, Side};

/// Between two looks at the node, doubled each time up to the other.
const LOOK_FIRST: Duration = Duration::from_millis(1);
const LOOK_LAST: Duration = Duration::from_millis(10);
/// How long a single reply may take: more than there is time for in all, so that it is the deadline which ends it.
const PATIENCE: Duration = HOLD.saturating_add(FOLLOW_UP);
/// How long saying good-bye may take.
const FAREWELL: Duration = Duration::from_millis(200);

/// Where a promotion asks for leave.
#[derive(Clone)]
pub struct Desk {
    /// One promotion at a time.
    turn: Arc<Semaphore>,
    requests: mpsc::Sender<Request>,
    metrics: Arc<Metrics>,
}

struct Request {
    leave: oneshot::Sender<()>,
    since: Instant,
    _turn: OwnedSemaphorePermit,
}

impl Desk {
    /// Resolves when the command that promotes our node may pass, at the latest after [`HOLD`]. Cancel-safe: the fence
    /// is given up when nobody waits any more.
    pub async fn hold(&self) {
        let Ok(turn) = Arc::clone(&self.turn).try_acquire_owned() else {
            return self.metrics.assists.increment(Assisted::Skipped);
        };
        let (leave, granted) = oneshot::channel();
        let request = Request { leave, since: Instant::now(), _turn: turn };
        if self.requests.try_send(request).is_ok() {
            // Granted, too late, or the other side has gone: it passes.
            let _ = timeout(HOLD, granted).await;
        }
    }
}

/// Who carries promotions out.
pub struct Asker {
    node: Node,
    secret: Vec<u8>,
    /// Where our replica is reached if it announces nothing: our own main port.
    port: u16,
    metrics: Arc<Metrics>,
    requests: mpsc::Receiver<Request>,
}

/// All that is known when the fence is asked for.
struct Meeting {
    node: Conversation,
    fencer: Conversation,
    seal: Seal,
    fence: Ask,
    master: Address,
}

/// Why there is no meeting.
enum Alone {
    /// Nothing to do.
    Skipped(String),
    /// The other side would not.
    Refused(String),
}

impl From<LinkEnd> for Alone {
    fn from(end: LinkEnd) -> Self {
        Alone::Skipped(end.to_string())
    }
}

impl Asker {
    /// Somebody who carries out what is asked for at the desk.
    pub fn new(node: Node, secret: Vec<u8>, port: u16, metrics: Arc<Metrics>) -> (Self, Desk) {
        let (sender, requests) = mpsc::channel(1);
        let desk = Desk { turn: Arc::new(Semaphore::new(1)), requests: sender, metrics: Arc::clone(&metrics) };
        (Self { node, secret, port, metrics, requests }, desk)
    }

    /// Works until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let request = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                request = self.requests.recv() => request,
            };
            let Some(Request { leave, since, _turn }) = request else { return };
            let result = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                result = self.assist(leave, since) => result,
            };
            self.metrics.assists.increment(result);
            let elapsed_ms = since.elapsed().as_millis();
            match result {
                Assisted::Ok => info!(event = "promotion_assisted", elapsed_ms, "promotion assisted"),
                Assisted::Skipped => info!(
                    event = "promotion_unassisted",
                    elapsed_ms,
                    result = result.as_str(),
                    "promotion passed alone"
                ),
                Assisted::Timeout | Assisted::Refused => {
                    warn!(
                        event = "promotion_unassisted",
                        elapsed_ms,
                        result = result.as_str(),
                        "promotion passed alone; expect full resyncs"
                    );
                }
            }
        }
    }

    async fn assist(&self, leave: oneshot::Sender<()>, since: Instant) -> Assisted {
        let deadline = since + HOLD;
        match timeout_at(deadline, self.meet()).await {
            Ok(Ok(meeting)) => self.carry_out(meeting, leave, deadline).await,
            Ok(Err(Alone::Skipped(why))) => {
                debug!(%why, "no fence asked for");
                Assisted::Skipped
            }
            Ok(Err(Alone::Refused(why))) => {
                warn!(event = "fence_refused", %why, "fence refused");
                Assisted::Refused
            }
            Err(_) => Assisted::Timeout,
        }
    }

    async fn meet(&self) -> Result<Meeting, Alone> {
        let mut node = self.node.call(PATIENCE).await?;
        let info = replication(&mut node).await?;
        let nothing = |why: &str| Alone::Skipped(why.to_owned());
        if (info.role, info.link) != (Some(Role::Replica), Some(LinkStatus::Up)) {
            return Err(nothing("the node follows nobody, or has lost its master"));
        }
        let (host, port) = info.master.ok_or_else(|| nothing("the node does not say whom it follows"))?;
        let replid = info.replid.ok_or_else(|| nothing("the node has no history"))?;
        let (host_announced, port_announced) = announced(&mut node).await?;
        let fence = Ask::Fence { replid, host: host_announced, port: port_announced.unwrap_or(self.port) };

        let master = Address::Tcp { host, port };
        let link = timeout(CONNECT, self.node.peers.dial(&master))
            .await
            .map_err(|_| LinkEnd::ConnectTimeout(CONNECT))?
            .map_err(LinkEnd::Unreachable)?;
        let mut fencer = Conversation::over(link, PATIENCE);
        let nonce = self.node.entropy.hex40();
        let welcome = fencer.ask(assist::greeting(&nonce)).await?;
        let theirs = assist::parse_welcome(&welcome)
            .ok_or_else(|| Alone::Refused(String::from_utf8_lossy(&welcome).into_owned()))?;
        let seal = Seal::new(&self.secret, &nonce, &theirs, Side::Asker);
        Ok(Meeting { node, fencer, seal, fence, master })
    }

    async fn carry_out(&self, meeting: Meeting, leave: oneshot::Sender<()>, deadline: Instant) -> Assisted {
        let Meeting { mut node, mut fencer, mut seal, fence, master } = meeting;
        let (mut promotion, mut step) = Promotion::begin(fence);
        let mut leave = Some(leave);
        let mut look = LOOK_FIRST;
        loop {
            let deadline = if promotion.has_passed() { deadline + FOLLOW_UP } else { deadline };
            let event = match step {
                Step::Tell(ask) => {
                    look = LOOK_FIRST;
                    timeout_at(deadline, tell(&mut fencer, &mut seal, &ask)).await
                }
                Step::AskNode => {
                    let asked = timeout_at(deadline, self.look_at(&mut node, look)).await;
                    look = (look * 2).min(LOOK_LAST);
                    asked
                }
                Step::LetPass => Ok(match leave.take().map(|leave| leave.send(())) {
                    Some(Ok(())) => Event::Passed,
                    Some(Err(())) | None => Event::NotPassed,
                }),
                Step::Over(result, waits) => {
                    // First of all nobody is held any more.
                    drop(leave);
                    if waits == Fencer::Waits {
                        let _ = timeout(FAREWELL, tell(&mut fencer, &mut seal, &Ask::Release)).await;
                    }
                    if result == Assisted::Ok {
                        info!(event = "old_master_follows", %master, "old master follows the new one");
                    }
                    return result;
                }
            };
            step = promotion.on(event.unwrap_or(Event::Late));
        }
    }

    /// The command that promotes comes with one that ends all clients' connections, ours among them.
    async fn look_at(&self, node: &mut Conversation, pause: Duration) -> Event {
        sleep(pause).await;
        let said = match replication(node).await {
            Err(LinkEnd::Eof | LinkEnd::Io(_)) => match self.node.call(PATIENCE).await {
                Ok(again) => {
                    *node = again;
                    replication(node).await
                }
                Err(end) => Err(end),
            },
            said => said,
        };
        match said {
            Ok(info) => match (info.role, info.applied) {
                (Some(Role::Master), _) => Event::Node { role: Role::Master, applied: info.offset.unwrap_or_default() },
                (Some(Role::Replica), Some(applied)) => Event::Node { role: Role::Replica, applied },
                (Some(Role::Replica) | None, _) => Event::Failed,
            },
            Err(why) => {
                debug!(%why, "node did not say where it is");
                Event::Failed
            }
        }
    }
}

/// What the node tells its master to be called. A node that does not say is called by what we know.
async fn announced(node: &mut Conversation) -> Result<(Option<String>, Option<u16>), LinkEnd> {
    let host = node.ask_whole(dialogue::config_get("replica-announce-ip")).await?;
    let port = node.ask_whole(dialogue::config_get("replica-announce-port")).await?;
    let text = |reply: &[u8]| dialogue::config_value(reply).filter(|text| !text.is_empty() && !text.contains(' '));
    Ok((text(&host), text(&port).and_then(|port| port.parse().ok()).filter(|port| *port > 0)))
}

async fn tell(fencer: &mut Conversation, seal: &mut Seal, ask: &Ask) -> Event {
    let said = fencer.ask(assist::command(&seal.seal(&ask.text()))).await;
    let why = match said {
        Ok(line) => {
            let text = str::from_utf8(&line).ok().and_then(|line| line.strip_prefix('+'));
            match text.and_then(|sealed| seal.open(sealed)).and_then(Answer::parse) {
                Some(answer) => {
                    debug!(?ask, ?answer, "fencer answered");
                    return Event::Told(answer);
                }
                None => String::from_utf8_lossy(&line).into_owned(),
            }
        }
        Err(end) => end.to_string(),
    };
    warn!(event = "fencer_failed", ?ask, %why, "fencer did not do it");
    Event::Failed
}
