//! What one room lends another, so that neither knows the other.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::anyhow;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Failure, Seams, options};
use crate::access::Access;
use crate::access::credentials::same;
use crate::access::memory::Memory as Passwords;
use crate::access::oracle::{Oracle, Probe};
use crate::cli::Exit;
use crate::config::Config;
use crate::downstream::peers::{Answered, Peers, Trust};
use crate::downstream::session::{self, Before};
use crate::downstream::{Downstream, Summons};
use crate::front::{Caller, ServeReplica};
use crate::live::Live;
use crate::net::tls::Tls;
use crate::net::{Address, Network};
use crate::relay::target::Target;
use crate::repl::ServerVersion;
use crate::upstream::inquiry::{Credentials, Inquiry};
use crate::wire::info::MasterInfo;

/// How long a replica may take to say how important it is. Nobody waits for it.
const PRIORITY_PATIENCE: Duration = Duration::from_secs(1);

/// Lends the sessions somebody who asks replicas.
pub(super) struct ReplicaInquiry(pub(super) Inquiry);

impl Peers for ReplicaInquiry {
    fn shares(&self, password: &[u8]) -> Trust {
        match &self.0.login.get().password {
            Some(ours) if same(ours, password) => Trust::Shares,
            Some(_) | None => Trust::None,
        }
    }

    fn priority(&self, address: Address, trust: Trust) -> Answered<Option<u32>> {
        let inquiry = self.0.clone();
        let credentials = match trust {
            Trust::Shares => Credentials::Named,
            Trust::None => Credentials::Withheld,
        };
        Box::pin(async move {
            match inquiry.info(&address, "replication", credentials, PRIORITY_PATIENCE).await {
                Ok(info) => info.priority,
                Err(why) => {
                    debug!(replica = %address, %why, "replica did not tell its priority");
                    None
                }
            }
        })
    }
}

/// Who may have the data.
pub(super) fn access(
    config: &Config,
    seams: &Seams,
    dialing: &Arc<dyn Network>,
    target: &Arc<Target>,
    node: Arc<Mutex<Option<MasterInfo>>>,
) -> Arc<Access> {
    let understands = move || {
        let node = node.lock().expect("no one panics holding it");
        let version = node.as_ref().and_then(|node| ServerVersion::parse(node.redis_version.as_deref()?));
        // Also for a psyncd, which passes HELLO on, and judges before it looks at what is asked.
        version.map_or(Probe::Unknown, Probe::of)
    };
    let oracle = Oracle {
        target: Arc::clone(target),
        network: Arc::clone(dialing),
        probe: Arc::new(understands),
        patience: Live::new(options::oracle(config)),
    };
    let mut salt = [0; 16];
    seams.entropy.fill(&mut salt);
    Access::new(options::access(config), oracle, Passwords::new(salt, config.auth_cache_ttl))
}

/// Lends the ports somebody who serves replicas.
pub(super) fn serve_replica(downstream: Downstream, shutdown: CancellationToken) -> ServeReplica {
    Arc::new(move |caller| {
        let downstream = downstream.clone();
        let shutdown = shutdown.child_token();
        Box::pin(async move {
            let Caller { link, buffer, said, credentials, heard, entry, place } = caller;
            let before = Before { buffer, heard, credentials, entry, place };
            let ended = session::run(&downstream, link, before, &shutdown).await;
            ended.map(|Summons { link, buffer, said: more }| {
                let said = said.into_iter().chain(more).collect();
                Caller { link, buffer, said, credentials: None, heard, entry, place: None }
            })
        })
    })
}

/// Reads the certificates and says what is questionable about them.
pub(super) async fn open_tls(options: crate::net::tls::Options) -> Result<Arc<Tls>, Failure> {
    let opened = tokio::task::spawn_blocking(move || Tls::open(options)).await.map_err(anyhow::Error::from)?;
    let tls =
        opened.map_err(|error| Failure { exit: Exit::Config, error: anyhow!(error).context("cannot use TLS") })?;
    for doubt in tls.doubts() {
        warn!(event = "tls_certificate_questioned", doubt, "tls certificate questioned");
    }
    Ok(Arc::new(tls))
}
