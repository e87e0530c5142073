//! In front of the old master: stops its writes and what is sent of its stream, for a psyncd that shows that it knows
//! the secret.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info, warn};

use super::fence::{Claim, Event, Fence, Ground, Step, successor};
use super::{FOLLOW_UP, Fenced, HOLD, Metrics, Node, PAUSE, order, replication};
use crate::net::{Link, PeerAddress};
use crate::ration::Ration;
use crate::relay::Relay;
use crate::relay::dam::Dam;
use crate::relay::replicas::Introduction;
use crate::upstream::conversation::{Conversation, LinkEnd};
use crate::wire::assist::{self, Answer, Ask};
use crate::wire::command::error_line;
use crate::wire::dialogue;
use crate::wire::resp::{Args, FrameLimits, parse_command};
use crate::wire::seal::{Seal, Side};

/// How long the asker may take for a word.
const WORD: Duration = HOLD.saturating_add(FOLLOW_UP);
/// How long the replicas are held for the new master's stream, which comes as soon as our node has asked for it.
const SWITCH: Duration = Duration::from_secs(10);

/// Who builds fences.
#[derive(Clone)]
pub struct Fencer {
    node: Node,
    relay: Arc<Relay>,
    secret: Vec<u8>,
    /// One fence at a time.
    turn: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    /// How often the log says that a stranger asked.
    strangers: Arc<Ration>,
}

/// The other end.
struct Asker {
    talk: Conversation,
    seal: Seal,
}

/// Why the asker was not understood.
enum Deaf {
    /// It went, or was silent.
    Gone(LinkEnd),
    /// It does not know the secret, or says what nobody says.
    Stranger,
}

impl Fencer {
    /// In front of `node`, whose stream `relay` has.
    pub fn new(node: Node, relay: Arc<Relay>, secret: Vec<u8>, metrics: Arc<Metrics>) -> Self {
        Self { node, relay, secret, turn: Arc::new(Semaphore::new(1)), metrics, strangers: Arc::default() }
    }

    /// Serves a connection that began with [`assist::COMMAND`]; `buffer` is what it has said. Dropping the future leaves
    /// the fence to fall by itself.
    pub async fn serve(&self, link: Link, buffer: BytesMut) {
        let peer = link.peer.clone();
        let mut talk = Conversation::over(link, WORD);
        talk.buffer = buffer;
        let Some(mut asker) = self.greet(talk).await else { return };
        let ask = match asker.next().await {
            Ok(ask) => ask,
            Err(Deaf::Gone(why)) => return debug!(%peer, %why, "asker left"),
            Err(Deaf::Stranger) => {
                if let Some(unsaid) = self.strangers.take(Instant::now()) {
                    warn!(event = "fence_denied", %peer, unsaid, "a fence was asked for by someone who does not know the secret");
                }
                self.metrics.fences.increment(Fenced::Refused);
                return asker.refuse("ERR psyncd: not sealed with our assist-secret").await;
            }
        };
        let (new, _turn) = match (self.judge(&ask, &peer), Arc::clone(&self.turn).try_acquire_owned()) {
            (Ok(new), Ok(turn)) => (new, turn),
            (Err(why), _) => return self.refuse(&mut asker, &peer, why).await,
            (Ok(_), Err(_)) => return self.refuse(&mut asker, &peer, "ERR psyncd stands at another fence").await,
        };
        let result = self.build(&mut asker, &new).await;
        self.metrics.fences.increment(result);
    }

    async fn greet(&self, mut talk: Conversation) -> Option<Asker> {
        let args = command(&mut talk).await.ok()?;
        let Some(theirs) = assist::parse_greeting(&args) else {
            let _ = talk.say(error_line("ERR psyncd knows no such conversation")).await;
            return None;
        };
        let ours = self.node.entropy.hex40();
        talk.say(assist::welcome(&ours)).await.ok()?;
        Some(Asker { talk, seal: Seal::new(&self.secret, &theirs, &ours, Side::Fencer) })
    }

    fn judge(&self, ask: &Ask, peer: &PeerAddress) -> Result<Introduction, &'static str> {
        let Ask::Fence { replid, host, port } = ask else { return Err("ERR psyncd: no fence stands") };
        let ground = Ground {
            link: self.relay.link(),
            replid: self.relay.held().map(|(id, _)| id),
            replicas: self
                .relay
                .replicas()
                .rows()
                .iter()
                .map(|row| (row.introduction().clone(), row.state()))
                .collect(),
        };
        let claim = Claim { replid: *replid, host: host.as_deref(), port: *port, caller: peer };
        successor(&claim, ground)
    }

    async fn refuse(&self, asker: &mut Asker, peer: &PeerAddress, why: &str) {
        warn!(event = "fence_refused", %peer, %why, "fence refused");
        self.metrics.fences.increment(Fenced::Refused);
        asker.refuse(why).await;
    }

    async fn build(&self, asker: &mut Asker, new: &Introduction) -> Fenced {
        let began = Instant::now();
        let deadline = began + HOLD + FOLLOW_UP;
        let mut node = match self.node.call(HOLD).await {
            Ok(node) => node,
            Err(why) => {
                warn!(event = "fence_not_built", %why, "fence not built");
                asker.refuse("ERR psyncd does not reach its upstream").await;
                return Fenced::Undone;
            }
        };
        let mut dam: Option<Dam> = None;
        let (mut fence, mut step) = Fence::begin();
        loop {
            let event = match step {
                Step::Pause => {
                    done(timeout_at(deadline, order(&mut node, dialogue::pause_writes(PAUSE))).await, Event::Paused)
                }
                Step::AskNode => timeout_at(deadline, where_is(&mut node)).await.unwrap_or(Event::Late),
                Step::Dam(at) => match &mut dam {
                    Some(dam) => {
                        dam.raise();
                        Event::Dammed(dam.at())
                    }
                    None => match self.relay.dam(at) {
                        Some(built) => Event::Dammed(dam.insert(built).at()),
                        None => Event::Failed,
                    },
                },
                Step::Fill => match &dam {
                    Some(dam) => timeout_at(deadline, dam.filled()).await.map_or(Event::Late, |()| Event::Filled),
                    None => Event::Failed,
                },
                Step::Answer(answer) => {
                    debug!(?answer, "asker told");
                    match timeout_at(deadline, asker.answer_and_hear(answer)).await {
                        Ok(Ok(ask)) => Event::Asked { ask, head: self.relay.head() },
                        Ok(Err(_)) => Event::Failed,
                        Err(_) => Event::Late,
                    }
                }
                Step::Demote => done(timeout_at(deadline, demote(&mut node, new)).await, Event::Demoted),
                Step::Finish => {
                    let _ = asker.answer(Answer::Demoted).await;
                    info!(event = "node_follows", master = %new, elapsed_ms = began.elapsed().as_millis(), "our node follows the new master");
                    // So that it still does after a restart, as Sentinel does it. Not every node has a file.
                    if let Err(why) = order(&mut node, dialogue::config_rewrite()).await {
                        debug!(%why, "node did not rewrite its configuration");
                    }
                    if let Some(dam) = &dam {
                        let _ = timeout(SWITCH, dam.gone()).await;
                    }
                    return Fenced::Demoted;
                }
                Step::Undo => {
                    drop(dam);
                    if let Err(why) = order(&mut node, dialogue::unpause()).await {
                        warn!(event = "writes_not_resumed", %why, pause_ms = PAUSE.as_millis(), "writes not resumed; they will be when the pause is over");
                    }
                    let _ = asker.answer(Answer::Released).await;
                    warn!(event = "fence_undone", elapsed_ms = began.elapsed().as_millis(), "fence undone");
                    return Fenced::Undone;
                }
            };
            let next = fence.on(event.clone());
            if next == Step::Undo {
                warn!(event = "fence_fell", heard = ?event, ?step, "fence falls");
            }
            step = next;
        }
    }
}

/// The event that an order was carried out.
fn done(ordered: Result<Result<(), LinkEnd>, tokio::time::error::Elapsed>, event: Event) -> Event {
    match ordered {
        Ok(Ok(())) => event,
        Ok(Err(why)) => {
            warn!(event = "node_refused", %why, "node refused an order");
            Event::Failed
        }
        Err(_) => Event::Late,
    }
}

async fn where_is(node: &mut Conversation) -> Event {
    match replication(node).await.map(|info| info.role.zip(info.offset)) {
        Ok(Some((role, offset))) => Event::Node { role, offset },
        Ok(None) | Err(_) => Event::Failed,
    }
}

/// Once it follows the new master it refuses what it was asked to write.
async fn demote(node: &mut Conversation, new: &Introduction) -> Result<(), LinkEnd> {
    order(node, dialogue::replicaof(&new.host, new.port)).await?;
    order(node, dialogue::unpause()).await
}

async fn command(talk: &mut Conversation) -> Result<Args, LinkEnd> {
    loop {
        match parse_command(&talk.buffer, &FrameLimits::HANDSHAKE) {
            Ok(Some((args, used))) => {
                let _ = talk.buffer.split_to(used);
                return Ok(args);
            }
            Ok(None) => {
                talk.more(LINE_ROOM).await?;
            }
            Err(error) => return Err(LinkEnd::Protocol(error.to_string())),
        }
    }
}

/// Room for what an asker says.
const LINE_ROOM: usize = 4096;

impl Asker {
    async fn next(&mut self) -> Result<Ask, Deaf> {
        let args = command(&mut self.talk).await.map_err(Deaf::Gone)?;
        let sealed = assist::sealed(&args).ok_or(Deaf::Stranger)?;
        self.seal.open(&sealed).and_then(Ask::parse).ok_or(Deaf::Stranger)
    }

    async fn answer(&mut self, answer: Answer) -> Result<(), LinkEnd> {
        let sealed = self.seal.seal(&answer.text());
        self.talk.say(assist::reply(&sealed)).await
    }

    async fn answer_and_hear(&mut self, answer: Answer) -> Result<Ask, Deaf> {
        self.answer(answer).await.map_err(Deaf::Gone)?;
        self.next().await
    }

    async fn refuse(&mut self, why: &str) {
        let line: Bytes = error_line(why);
        let _ = self.talk.say(line).await;
        let _ = self.talk.sink.shutdown().await;
    }
}
