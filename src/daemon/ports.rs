//! Where psyncd listens.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;

use crate::config::Config;
use crate::net::{Listener, Network};

/// How to listen on each port.
pub(super) struct Doors<'a> {
    /// As it is.
    pub(super) plain: &'a Arc<dyn Network>,
    /// In TLS, for replicas and clients.
    pub(super) tls: Option<&'a Arc<dyn Network>>,
    /// In TLS, for operators.
    pub(super) admin: Option<&'a Arc<dyn Network>>,
}

/// Everything that is listened on over TCP.
pub(super) struct Ports {
    /// For replicas and clients.
    pub(super) plain: Vec<Box<dyn Listener>>,
    /// For those of them who speak TLS.
    pub(super) tls: Vec<Box<dyn Listener>>,
    /// For those who take us for a replica.
    pub(super) face: Vec<Box<dyn Listener>>,
    /// For operators.
    pub(super) admin: Option<Box<dyn Listener>>,
    /// The port replicas and clients are told of.
    pub(super) port: u16,
}

impl Ports {
    /// Opens them all, or none.
    pub(super) async fn open(config: &Config, doors: Doors<'_>) -> anyhow::Result<Self> {
        let mut plain = Vec::new();
        let mut port = config.port;
        for address in config.bind.iter().filter(|_| !config.tls.only) {
            let listener = listen(&**doors.plain, SocketAddr::new(*address, port)).await?;
            // With port 0 the first address chooses for all.
            port = listener.local().port();
            plain.push(listener);
        }
        let mut tls = Vec::new();
        if let (Some(port), Some(door)) = (config.tls.port, doors.tls) {
            for address in &config.bind {
                tls.push(listen(&**door, SocketAddr::new(*address, port)).await?);
            }
        }
        if let (true, Some(listener)) = (config.tls.only, tls.first()) {
            port = listener.local().port();
        }
        let face_door = doors.tls.filter(|_| config.tls.only).unwrap_or(doors.plain);
        let mut face = Vec::new();
        for address in config.face() {
            face.push(listen(&**face_door, address).await?);
        }
        let admin_door = doors.admin.filter(|_| config.tls.admin).unwrap_or(doors.plain);
        let admin = match config.admin_bind {
            Some(address) => Some(listen(&**admin_door, address).await?),
            None => None,
        };
        Ok(Self { plain, tls, face, admin, port })
    }

    /// What replicas and clients call on.
    pub(super) fn front(&self) -> Vec<SocketAddr> {
        locals(&self.plain).into_iter().chain(locals(&self.tls)).collect()
    }
}

/// Where these listen.
pub(super) fn locals(listeners: &[Box<dyn Listener>]) -> Vec<SocketAddr> {
    listeners.iter().map(|listener| listener.local()).collect()
}

async fn listen(network: &dyn Network, address: SocketAddr) -> anyhow::Result<Box<dyn Listener>> {
    network.listen(address).await.with_context(|| format!("cannot listen on {address}"))
}
