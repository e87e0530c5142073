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
            place: None,
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
                    Ok(Link {
                        source: Box::new(source),
                        sink: Box::new(sink),
                        peer,
                        local,
                        security: Security::Plain,
                        place: None,
                    })
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
            let own: &TcpStream = self.as_ref();
            // Another handle to the same socket, which can be lent to another thread.
            let socket = std::net::TcpStream::from(own.as_fd().try_clone_to_owned()?);
            let socket = Arc::new(TcpStream::from_std(socket)?);
            loop {
                socket.writable().await?;
                let (file, sender) = (Arc::clone(file), Arc::clone(&socket));
                // A file that is not in the page cache is read here, however long that takes. The call is made inside
                // `try_io`, which takes back only the readiness it found before: taken back afterwards, room that was
                // made while the call returned would be forgotten, and waited for in vain.
                let sent = tokio::task::spawn_blocking(move || {
                    let mut at = at;
                    sender.try_io(Interest::WRITABLE, || {
                        Ok(rustix::fs::sendfile(sender.as_fd(), &file, Some(&mut at), most)?)
                    })
                });
                match sent.await.map_err(io::Error::other)? {
                    Err(full) if matches!(full.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                    sent => return sent,
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;

    const PIECE: usize = 64 * 1024;
    const PIECES: usize = 2_000;
    const PEERS: usize = 4;

    async fn send_whole(mut link: Link, file: Arc<File>) {
        let mut sent = 0;
        while sent < PIECES * PIECE {
            let at = (sent % PIECE) as u64;
            let sending = link.sink.send_file(&file, at, PIECE - at as usize).expect("a socket");
            sent += timeout(Duration::from_secs(20), sending).await.expect("room was forgotten").expect("sent");
        }
    }

    /// Reads all there is at once, and pauses: the kernel tells the sender of that room only once.
    fn read_whole(mut peer: std::net::TcpStream) {
        let (mut buffer, mut read, mut pause) = (vec![0; 1024 * 1024], 0, 0u64);
        while read < PIECES * PIECE {
            read += peer.read(&mut buffer).expect("bytes");
            pause = (pause * 7 + 13) % 101;
            let until = std::time::Instant::now() + Duration::from_micros(pause);
            while std::time::Instant::now() < until {
                std::hint::spin_loop();
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_file_is_sent_to_peers_that_make_room_at_any_time() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&[7; PIECE]).expect("a piece");
        let file = Arc::new(file);
        let network = TokioNetwork::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (mut senders, mut readers) = (JoinSet::new(), Vec::new());
        for _ in 0..PEERS {
            let peer = std::net::TcpStream::connect(address).expect("a connection");
            SockRef::from(&peer).set_recv_buffer_size(PIECE / 2).expect("a small buffer");
            readers.push(std::thread::spawn(move || read_whole(peer)));
            let (stream, peer) = listener.accept().await.expect("a connection");
            SockRef::from(&stream).set_send_buffer_size(PIECE / 2).expect("a small buffer");
            let link = network.link(stream, peer).expect("a link");
            senders.spawn(send_whole(link, Arc::clone(&file)));
        }
        while let Some(sent) = senders.join_next().await {
            sent.expect("a whole file");
        }
        readers.into_iter().for_each(|reader| reader.join().expect("all was read"));
    }
}
