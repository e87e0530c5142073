//! The real network: tokio's sockets with the options replication needs.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UnixStream, tcp, unix};

use super::{Address, Link, Listener, NetFuture, Network, Outlet, PeerAddress, Security};

/// tokio's TCP and unix sockets.
#[derive(Debug, Clone)]
pub struct TokioNetwork {
    /// Idle time before the kernel probes a peer, and the interval between probes after that. Half-open
    /// links behind middleboxes are otherwise noticed only after repl-timeout.
    pub keepalive: Duration,
    /// Connections the kernel may hold before we accept them.
    pub backlog: i32,
}

impl Default for TokioNetwork {
    fn default() -> Self {
        Self { keepalive: Duration::from_secs(300), backlog: 511 }
    }
}

impl TokioNetwork {
    fn prepare(&self, stream: &TcpStream) -> io::Result<()> {
        // Nagle's algorithm costs 0.9 ms on every small command.
        stream.set_nodelay(true)?;
        let probes = TcpKeepalive::new().with_time(self.keepalive).with_interval(self.keepalive / 3).with_retries(3);
        SockRef::from(stream).set_tcp_keepalive(&probes)
    }

    fn link(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<Link> {
        self.prepare(&stream)?;
        let local = PeerAddress::Tcp(stream.local_addr()?);
        let (source, sink) = stream.into_split();
        Ok(Link {
            source: Box::new(source),
            sink: Box::new(sink),
            peer: PeerAddress::Tcp(peer),
            local,
            security: Security::Plain,
        })
    }
}

impl Network for TokioNetwork {
    fn dial<'a>(&'a self, address: &'a Address) -> NetFuture<'a, Link> {
        Box::pin(async move {
            match address {
                Address::Tcp { host, port } => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    let peer = stream.peer_addr()?;
                    self.link(stream, peer)
                }
                Address::Unix(path) => {
                    let (source, sink) = UnixStream::connect(path).await?.into_split();
                    let (peer, local) = (PeerAddress::Unix, PeerAddress::Unix);
                    Ok(Link { source: Box::new(source), sink: Box::new(sink), peer, local, security: Security::Plain })
                }
            }
        })
    }

    fn listen<'a>(&'a self, address: SocketAddr) -> NetFuture<'a, Box<dyn Listener>> {
        Box::pin(async move {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            // A restart must not wait for the kernel to forget the links of the last run.
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(self.backlog)?;
            let listener = TcpListener::from_std(socket.into())?;
            let local = listener.local_addr()?;
            Ok(Box::new(TokioListener { network: self.clone(), listener, local }) as Box<dyn Listener>)
        })
    }
}

impl Outlet for tcp::OwnedWriteHalf {
    fn send_file<'a>(&'a mut self, file: &'a Arc<File>, at: u64, most: usize) -> Option<NetFuture<'a, usize>> {
        Some(Box::pin(async move {
            let stream: &TcpStream = self.as_ref();
            loop {
                stream.writable().await?;
                let (file, socket) = (Arc::clone(file), stream.as_fd().try_clone_to_owned()?);
                // A file that is not in the page cache is read here, however long that takes.
                let sent = tokio::task::spawn_blocking(move || {
                    let mut at = at;
                    rustix::fs::sendfile(&socket, &file, Some(&mut at), most)
                });
                match sent.await.map_err(io::Error::other)? {
                    Ok(sent) => return Ok(sent),
                    // Tells tokio that the socket is full after all.
                    Err(rustix::io::Errno::AGAIN) => {
                        let _ = stream
                            .try_io(Interest::WRITABLE, || -> io::Result<()> { Err(io::ErrorKind::WouldBlock.into()) });
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }))
    }
}

impl Outlet for unix::OwnedWriteHalf {}

struct TokioListener {
    network: TokioNetwork,
    listener: TcpListener,
    local: SocketAddr,
}

impl Listener for TokioListener {
    fn accept(&mut self) -> NetFuture<'_, Link> {
        Box::pin(async move {
            let (stream, peer) = self.listener.accept().await?;
            self.network.link(stream, peer)
        })
    }

    fn local(&self) -> SocketAddr {
        self.local
    }
}
