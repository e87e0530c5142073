//! What takes part in planned failovers, put together where that is wanted.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Seams;
use crate::assist::asker::{Asker, Desk};
use crate::assist::fencer::Fencer;
use crate::assist::{Metrics, Node};
use crate::config::Config;
use crate::front::{Caller, HoldPromotion, ServeReplica};
use crate::upstream::Upstream;

/// The parts; none but the counters where planned failovers are not assisted.
pub(super) struct Assist {
    /// What happened.
    pub metrics: Arc<Metrics>,
    /// To be run as a task.
    pub asker: Option<Asker>,
    desk: Option<Desk>,
    fencer: Option<Fencer>,
}

impl Assist {
    /// For a psyncd that listens on `port`.
    pub fn new(config: &Config, seams: &Seams, upstream: &Upstream, port: u16) -> Self {
        let metrics: Arc<Metrics> = Arc::default();
        let Some(secret) = &config.assist_secret else {
            return Self { metrics, asker: None, desk: None, fencer: None };
        };
        let node = Node {
            network: Arc::clone(&upstream.network),
            peers: Arc::clone(&upstream.peers),
            target: Arc::clone(&upstream.target),
            login: upstream.options.get().login.clone(),
            entropy: Arc::clone(&seams.entropy),
        };
        let secret = secret.reveal().to_vec();
        let fencer = Fencer::new(node.clone(), Arc::clone(&upstream.relay), secret.clone(), Arc::clone(&metrics));
        let (asker, desk) = Asker::new(node, secret, port, Arc::clone(&metrics));
        Self { metrics, asker: Some(asker), desk: Some(desk), fencer: Some(fencer) }
    }

    /// Lends the front somebody who talks to another psyncd.
    pub fn serve_psyncd(&self, shutdown: &CancellationToken) -> Option<ServeReplica> {
        let (fencer, shutdown) = (self.fencer.clone()?, shutdown.clone());
        Some(Arc::new(move |caller: Caller| {
            let (fencer, shutdown) = (fencer.clone(), shutdown.clone());
            Box::pin(async move {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => {}
                    () = fencer.serve(caller.link, caller.buffer) => {}
                }
                None
            })
        }))
    }

    /// Lends the front somebody who holds promotions.
    pub fn hold_promotion(&self) -> Option<HoldPromotion> {
        let desk = self.desk.clone()?;
        Some(Arc::new(move || {
            let desk = desk.clone();
            Box::pin(async move { desk.hold().await })
        }))
    }
}
