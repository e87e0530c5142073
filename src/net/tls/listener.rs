//! Accepts streams whose TLS handshake is done. Handshakes run beside each other, so that one that dawdles holds up
//! nobody.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::mistake::Failed;
use super::{Handshake, Tls};
use crate::net::{Admit, Link, Listener, NetFuture};

pub(super) struct TlsListener {
    inner: Box<dyn Listener>,
    tls: Arc<Tls>,
    admit: Option<Admit>,
    most: usize,
    /// Under way; none is left when this is dropped.
    handshakes: JoinSet<Option<Link>>,
}

impl TlsListener {
    pub(super) fn new(inner: Box<dyn Listener>, tls: Arc<Tls>, admit: Option<Admit>, most: usize) -> Self {
        Self { inner, tls, admit, most, handshakes: JoinSet::new() }
    }

    fn begin(&mut self, mut link: Link) {
        let peer = link.peer.clone();
        if let Some(admit) = &self.admit {
            let Some(place) = admit(&peer) else {
                let many =
                    Failed::new(Handshake::Limit, "its address has too many connections, or opens them too fast");
                return self.tls.note_accepted(&peer, Err(&many));
            };
            link.place = Some(place);
        }
        if self.handshakes.len() >= self.most {
            let many = Failed::new(Handshake::Limit, "too many TLS handshakes at once");
            return self.tls.note_accepted(&peer, Err(&many));
        }
        let tls = Arc::clone(&self.tls);
        self.handshakes.spawn(async move {
            let done = tls.receive(link).await;
            tls.note_accepted(&peer, done.as_ref().map(|_| ()));
            done.ok()
        });
    }
}

impl Listener for TlsListener {
    fn accept(&mut self) -> NetFuture<'_, Link> {
        Box::pin(async move {
            loop {
                tokio::select! {
                    biased;
                    Some(done) = self.handshakes.join_next() => {
                        if let Ok(Some(link)) = done {
                            return Ok(link);
                        }
                    }
                    accepted = self.inner.accept() => {
                        let link = accepted?;
                        self.begin(link);
                    }
                }
            }
        })
    }

    fn local(&self) -> SocketAddr {
        self.inner.local()
    }
}
