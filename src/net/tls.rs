//! TLS around any stream of the network, as server and as client, with certificates that can be changed while it runs.
//!
//! What was negotiated once stays: new certificates count for new streams only. Nothing here ever shows a private key,
//! and no host name is believed that was not asked for.
//!
//! [`files`] reads and judges PEM files, `verify` is what Redis checks of a server, [`mistake`] says in one line what
//! went wrong, `stream` is an open stream, [`watch`] notices new files; [`Tls`] is what all of them share.

pub mod files;
mod listener;
pub mod mistake;
mod stream;
mod verify;
pub mod watch;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::{debug, warn};

use super::{Address, Admit, Link, Listener, NetFuture, Network, Security};
use crate::counters::{CounterSet, Label};
use crate::label;
use files::{Pair, Shown, Unusable};
use listener::TlsListener;
use mistake::{Failed, Side};
use verify::{AnyServer, ChainOnly};

/// How often one kind of failure of those who call us is worth a warning.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What is known of certificates before any file is read.
#[derive(Debug, Clone)]
pub struct Options {
    /// Shown to those who call us; without it nobody can.
    pub server: Option<Pair>,
    /// Shown to those we call, if they ask.
    pub client: Option<Pair>,
    /// Who signed the certificates we believe.
    pub authority: Option<PathBuf>,
    /// What those who call us have to show.
    pub callers: Callers,
    /// What those we call have to show.
    pub verify: Verify,
    /// The node we follow; none where Sentinels say which it is.
    pub upstream: Option<Address>,
    /// The name its certificate has to have, where that is not the one in its address.
    pub server_name: Option<String>,
    /// Bound on a handshake of somebody who calls us.
    pub handshake_timeout: Duration,
    /// Bound on a handshake with somebody we called; less than what whoever dials waits in all, so that a server that
    /// takes the connection and says nothing is told apart from a network that does not answer.
    pub dial_timeout: Duration,
    /// Handshakes of those who call us at once.
    pub max_handshakes: usize,
}

/// What those who call us have to show: Redis's `tls-auth-clients`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// A certificate of our authority.
    Certified,
    /// None, but one that is shown has to be of our authority.
    MaybeCertified,
    /// Nothing; they are not asked.
    Anyone,
}

/// What those we call have to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// A certificate of our authority for the name they were called by.
    Full,
    /// A certificate of our authority, for whatever name: what Redis checks.
    Chain,
    /// Nothing. Whoever can redirect packets can read along.
    Nothing,
}

label! {
    /// How a TLS handshake ended.
    pub enum Handshake {
        /// Well.
        Ok = "ok",
        /// The certificate shown to us is not good.
        Certificate = "certificate",
        /// None was shown to us.
        NoCertificate = "no_certificate",
        /// The peer did not accept us.
        Refused = "refused",
        /// The peer speaks no TLS, or none that we speak.
        Protocol = "protocol",
        /// The connection ended in the middle.
        Lost = "lost",
        /// It took too long.
        Timeout = "timeout",
        /// There were as many at once as there may be.
        Limit = "limit",
    }
}

label! {
    /// How an attempt to take new certificates ended.
    pub enum Reload {
        /// They are used from now on.
        Ok = "ok",
        /// They are not usable; the old ones are used on.
        Failed = "failed",
    }
}

/// Counters of TLS.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Of those who called us.
    pub accepted: CounterSet<Handshake>,
    /// Of those we called.
    pub dialed: CounterSet<Handshake>,
    /// New certificates.
    pub reloads: CounterSet<Reload>,
}

/// What both sides of TLS are done with now.
struct Current {
    acceptor: Option<TlsAcceptor>,
    connector: TlsConnector,
    shown: Vec<Shown>,
}

/// Certificates and rules, ready to be used, and replaceable.
pub struct Tls {
    options: Options,
    provider: Arc<CryptoProvider>,
    /// What the files looked like before they were first read, so that whatever changes from then on is noticed.
    opened: Vec<watch::Stamp>,
    /// Guards a pointer, held to clone or to replace it.
    current: Mutex<Arc<Current>>,
    /// Guards when each kind of failure was last worth a warning; held to look and set.
    warned: Mutex<BTreeMap<&'static str, Instant>>,
    /// What happened.
    pub metrics: Metrics,
}

fn paths(options: &Options) -> Vec<PathBuf> {
    let Options { server, client, authority, .. } = options;
    let pairs = [server, client].into_iter().flatten();
    pairs.flat_map(|pair| [pair.certificate.clone(), pair.key.clone()]).chain(authority.clone()).collect()
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads all files. Blocks for as long as that takes.
    ///
    /// What is questionable about certificates that can be used all the same is in [`Tls::doubts`].
    pub fn open(options: Options) -> Result<Self, Unusable> {
        let provider = Arc::new(ring::default_provider());
        let opened = paths(&options).iter().map(|path| watch::stamp(path)).collect();
        let current = Mutex::new(Arc::new(build(&options, &provider)?));
        Ok(Self { options, provider, opened, current, warned: Mutex::default(), metrics: Metrics::default() })
    }

    /// What may be wrong with our own certificates, one line each.
    pub fn doubts(&self) -> Vec<String> {
        self.current().shown.iter().flat_map(|shown| shown.doubts.iter().cloned()).collect()
    }

    /// Our own certificates: which it is, and when it expires, in seconds since 1970.
    pub fn expiries(&self) -> Vec<(&'static str, i64)> {
        self.current().shown.iter().map(|shown| (shown.role, shown.not_after)).collect()
    }

    /// Reads all files again. When one cannot be used, nothing changes. Blocks.
    pub fn reload(&self) -> Result<(), Unusable> {
        let built = build(&self.options, &self.provider).and_then(|built| match built.shown.iter().find(|s| s.void) {
            Some(void) => Err(Unusable::new(&void.path, void.doubts.join("; "))),
            None => Ok(built),
        });
        match built {
            Ok(built) => {
                *self.current.lock().expect("nobody panics with the lock") = Arc::new(built);
                self.metrics.reloads.increment(Reload::Ok);
                Ok(())
            }
            Err(why) => {
                self.metrics.reloads.increment(Reload::Failed);
                Err(why)
            }
        }
    }

    /// Every file that is read.
    pub fn paths(&self) -> Vec<PathBuf> {
        paths(&self.options)
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.lock().expect("nobody panics with the lock"))
    }

    /// A handshake with somebody who called, bounded in time.
    async fn receive(&self, link: Link) -> Result<Link, Failed> {
        let Link { source, sink, peer, local, place, .. } = link;
        let Some(acceptor) = self.current().acceptor.clone() else {
            return Err(Failed::new(Handshake::Protocol, "no certificate to show is configured"));
        };
        let limit = self.options.handshake_timeout;
        let accepted = match timeout(limit, acceptor.accept(stream::joined(source, sink))).await {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(error)) => return Err(mistake::explain(&error, Side::Server)),
            Err(_) => return Err(Failed::new(Handshake::Timeout, format!("no TLS handshake within {limit:?}"))),
        };
        let certificate = accepted.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let names = certificate.map(|certificate| files::names(certificate)).unwrap_or_default();
        let (source, sink) = stream::halves(accepted, Side::Server);
        Ok(Link { source, sink, peer, local, security: Security::Tls { names }, place })
    }

    /// A handshake with somebody we called at `address`, bounded in time.
    async fn approach(&self, address: &Address, link: Link) -> Result<Link, Failed> {
        let Link { source, sink, peer, local, .. } = link;
        let name = self.name_of(address)?;
        let connector = self.current().connector.clone();
        let limit = self.options.dial_timeout;
        let connected = match timeout(limit, connector.connect(name, stream::joined(source, sink))).await {
            Ok(connected) => connected.map_err(|error| mistake::explain(&error, Side::Client))?,
            // A plain Redis waits for the end of what it takes for a line.
            Err(_) => {
                let why = format!("connected, and no TLS handshake within {limit:?}: is this the peer's plain port?");
                return Err(Failed::new(Handshake::Timeout, why));
            }
        };
        let (source, sink) = stream::halves(connected, Side::Client);
        Ok(Link { source, sink, peer, local, security: Security::Tls { names: Vec::new() }, place: None })
    }

    /// The name the certificate of whoever answers at `address` has to have.
    fn name_of(&self, address: &Address) -> Result<ServerName<'static>, Failed> {
        let Options { upstream, server_name, .. } = &self.options;
        let name = match (server_name, address) {
            (Some(name), _) if upstream.as_ref().is_none_or(|upstream| upstream == address) => name.clone(),
            (_, Address::Tcp { host, .. }) => host.clone(),
            (_, Address::Unix(_)) => "localhost".to_owned(),
        };
        match ServerName::try_from(name.clone()) {
            Ok(name) => Ok(name),
            // A name with an underscore, say, which is no name in a certificate; where no name is asked for, any will do.
            Err(_) if self.options.verify != Verify::Full => {
                Ok(ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()))
            }
            Err(_) => Err(Failed::new(
                Handshake::Certificate,
                format!("{name:?} is no name a certificate can have: set tls-server-name, or tls-verify ca"),
            )),
        }
    }

    /// Counts a handshake of somebody who called, and says why it failed, once a minute for each kind.
    fn note_accepted(&self, peer: &super::PeerAddress, done: Result<(), &Failed>) {
        let how = done.map_or_else(|failed| failed.how, |()| Handshake::Ok);
        self.metrics.accepted.increment(how);
        let Err(why) = done else { return };
        let now = Instant::now();
        let mut warned = self.warned.lock().expect("nobody panics with the lock");
        let due = warned.get(how.as_str()).is_none_or(|last| now.duration_since(*last) >= WARN_EVERY);
        if due {
            warned.insert(how.as_str(), now);
        }
        drop(warned);
        if due {
            warn!(event = "tls_handshake_failed", %peer, %why, result = how.as_str(), "tls handshake failed");
        } else {
            debug!(%peer, %why, result = how.as_str(), "tls handshake failed");
        }
    }
}

fn build(options: &Options, provider: &Arc<CryptoProvider>) -> Result<Current, Unusable> {
    let roots = match &options.authority {
        Some(path) => Some(Arc::new(files::authority(path)?)),
        None => None,
    };
    let mut shown = Vec::new();
    let acceptor = match &options.server {
        Some(pair) => {
            let own = files::own(pair, provider)?;
            shown.push(files::judge(pair, &own, "server", roots.as_deref()));
            Some(TlsAcceptor::from(Arc::new(server(options, provider, roots.as_ref(), own, &pair.certificate)?)))
        }
        None => None,
    };
    let client = match &options.client {
        Some(pair) => {
            let own = files::own(pair, provider)?;
            if options.server.as_ref() != Some(pair) {
                shown.push(files::judge(pair, &own, "client", roots.as_deref()));
            }
            Some(own)
        }
        None => None,
    };
    let connector = TlsConnector::from(Arc::new(caller(options, provider, roots, client)?));
    Ok(Current { acceptor, connector, shown })
}

type Own = tokio_rustls::rustls::sign::CertifiedKey;

fn server(
    options: &Options,
    provider: &Arc<CryptoProvider>,
    roots: Option<&Arc<RootCertStore>>,
    own: Own,
    path: &std::path::Path,
) -> Result<ServerConfig, Unusable> {
    let bad = |why: String| Unusable::new(path, why);
    let config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(error.to_string()))?;
    let verifier = |roots: &Arc<RootCertStore>| {
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
    };
    let missing = || bad("tls-auth-clients needs tls-ca-cert-file".to_owned());
    let config = match options.callers {
        Callers::Anyone => config.with_no_client_auth(),
        Callers::Certified => {
            let verifier = verifier(roots.ok_or_else(missing)?).build();
            config.with_client_cert_verifier(verifier.map_err(|error| bad(error.to_string()))?)
        }
        Callers::MaybeCertified => {
            let verifier = verifier(roots.ok_or_else(missing)?).allow_unauthenticated().build();
            config.with_client_cert_verifier(verifier.map_err(|error| bad(error.to_string()))?)
        }
    };
    Ok(config.with_cert_resolver(Arc::new(SingleCertAndKey::from(own))))
}

fn caller(
    options: &Options,
    provider: &Arc<CryptoProvider>,
    roots: Option<Arc<RootCertStore>>,
    own: Option<Own>,
) -> Result<ClientConfig, Unusable> {
    let path = options.authority.clone().unwrap_or_default();
    let bad = |why: String| Unusable::new(&path, why);
    let config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(error.to_string()))?;
    let config = match (options.verify, roots) {
        (Verify::Full, Some(roots)) => {
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider)).build();
            config.with_webpki_verifier(verifier.map_err(|error| bad(error.to_string()))?)
        }
        (Verify::Chain, Some(roots)) => {
            config.dangerous().with_custom_certificate_verifier(Arc::new(ChainOnly::new(roots, provider)))
        }
        // Without an authority nothing can be good: whoever asked for a check must not get none.
        (Verify::Full | Verify::Chain, None) => config.with_root_certificates(RootCertStore::empty()),
        (Verify::Nothing, _) => config.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer::new(provider))),
    };
    Ok(match own {
        Some(own) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
        None => config.with_no_client_auth(),
    })
}

/// A network whose every stream is TLS, but for unix sockets.
pub struct TlsNetwork {
    /// What the streams run over.
    pub inner: Arc<dyn Network>,
    /// Certificates and rules.
    pub tls: Arc<Tls>,
    /// Who may begin a handshake; without it whoever calls, up to [`Options::max_handshakes`].
    pub admit: Option<Admit>,
}

impl Network for TlsNetwork {
    fn dial<'a>(&'a self, address: &'a Address) -> NetFuture<'a, Link> {
        Box::pin(async move {
            let link = self.inner.dial(address).await?;
            if let Address::Unix(_) = address {
                return Ok(link);
            }
            let done = self.tls.approach(address, link).await;
            self.tls.metrics.dialed.increment(done.as_ref().map_or_else(|failed| failed.how, |_| Handshake::Ok));
            done.map_err(|failed| io::Error::new(failed.kind(), failed))
        })
    }

    fn listen<'a>(&'a self, address: SocketAddr) -> NetFuture<'a, Box<dyn Listener>> {
        Box::pin(async move {
            let inner = self.inner.listen(address).await?;
            let most = self.tls.options.max_handshakes;
            Ok(Box::new(TlsListener::new(inner, Arc::clone(&self.tls), self.admit.clone(), most)) as Box<dyn Listener>)
        })
    }
}

#[cfg(test)]
mod tests;
