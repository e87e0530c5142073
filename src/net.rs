//! The doors: how a byte gets in and out. A [`Network`] dials and listens; a [`Link`] is one open stream,
//! split into its two directions. The simulation puts its own network behind the same traits.
//!
//! Nothing here knows what the bytes mean.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

mod tcp;
pub mod tls;
mod unix;
pub use tcp::TokioNetwork;
pub use unix::ControlSocket;

/// A boxed future of the traits in this module.
pub type NetFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// The reading direction of a stream.
pub type Source = Box<dyn AsyncRead + Send + Unpin>;
/// The writing direction of a stream. Shutting it down half-closes the stream.
pub type Sink = Box<dyn Outlet>;

/// A writing direction that may be able to send a file by itself.
pub trait Outlet: AsyncWrite + Send + Unpin {
    /// Sends at most `most` bytes of `file`, from `at` on, without copying them through this process; returns how
    /// many, 0 only at the end of the file. `None` when it cannot, and they have to be read and written.
    ///
    /// The bytes must not change afterwards: what the kernel has queued is the file's own pages. Cancel-safe in that
    /// the stream stays in order, but bytes may have been sent that nobody counted.
    fn send_file<'a>(&'a mut self, file: &'a Arc<File>, at: u64, most: usize) -> Option<NetFuture<'a, usize>> {
        let _ = (file, at, most);
        None
    }
}

/// One open stream. Dropping both halves closes it.
pub struct Link {
    /// What the peer sends.
    pub source: Source,
    /// What the peer is sent.
    pub sink: Sink,
    /// The peer's address as the network names it.
    pub peer: PeerAddress,
    /// Our own, which is where the peer sees us unless somebody translates addresses in between.
    pub local: PeerAddress,
    /// What keeps others from reading along.
    pub security: Security,
    /// The place of one who called among those nobody knows yet, where it was taken before he had our attention.
    pub place: Option<Place>,
}

/// A place among those who may knock at once; free again when dropped.
pub type Place = Box<dyn Send + Sync>;

/// Says who may knock, before that costs more than a socket; `None` turns him away.
pub type Admit = Arc<dyn Fn(&PeerAddress) -> Option<Place> + Send + Sync>;

/// What keeps others from reading along, and what is known of the peer for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Nothing.
    Plain,
    /// TLS.
    Tls {
        /// What the certificate of a peer that called us calls it, where there is one and it was verified.
        names: Vec<String>,
    },
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Opens streams and accepts them.
pub trait Network: Send + Sync {
    /// Opens a stream to `address`. Cancel-safe: dropping the future abandons the attempt.
    fn dial<'a>(&'a self, address: &'a Address) -> NetFuture<'a, Link>;

    /// Listens on `address`; port 0 lets the system choose.
    fn listen<'a>(&'a self, address: SocketAddr) -> NetFuture<'a, Box<dyn Listener>>;
}

/// Accepts streams on one address.
pub trait Listener: Send {
    /// The next stream. Cancel-safe: no accepted stream is lost when the future is dropped.
    fn accept(&mut self) -> NetFuture<'_, Link>;

    /// Where it really listens.
    fn local(&self) -> SocketAddr;
}

/// Where a peer called from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerAddress {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over a unix socket, whose clients have no address.
    Unix,
}

impl PeerAddress {
    /// The host part as text: what a replica without an announced address is known by.
    pub fn host(&self) -> String {
        match self {
            PeerAddress::Tcp(address) => address.ip().to_canonical().to_string(),
            PeerAddress::Unix => "unix".to_owned(),
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerAddress::Tcp(address) => address.fmt(f),
            PeerAddress::Unix => f.write_str("unix"),
        }
    }
}

/// Where a node can be reached: `host:port`, `[v6]:port` or `unix:/path`.
///
/// ```
/// use psyncd::net::Address;
/// let address: Address = "redis-0.redis:6379".parse().unwrap();
/// assert_eq!(address, Address::Tcp { host: "redis-0.redis".into(), port: 6379 });
/// assert_eq!("[::1]:7000".parse::<Address>().unwrap().to_string(), "[::1]:7000");
/// assert!("redis-0".parse::<Address>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A host name or IP address, resolved at every dial, and a port.
    Tcp {
        /// Name or address, IPv6 without brackets.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// Why a text is no [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// No colon between host and port.
    #[error("\"{0}\" has no port: write HOST:PORT, [IPV6]:PORT or unix:/path")]
    NoPort(String),
    /// The part after the last colon is no port.
    #[error("\"{0}\" is no port: it must be a number from 1 to 65535")]
    Port(String),
    /// Nothing, or something impossible, where the host should be.
    #[error("\"{0}\" is no host")]
    Host(String),
    /// `unix:` without an absolute path.
    #[error("\"{0}\" is no absolute path of a unix socket")]
    Path(String),
}

impl Address {
    /// A host, IPv6 with or without brackets, and a port, as two texts; `None` when they are none.
    pub fn tcp(host: &str, port: &str) -> Option<Address> {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let text = if bare.contains(':') { format!("[{bare}]:{port}") } else { format!("{bare}:{port}") };
        text.parse().ok()
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(InvalidAddress::Path(path.to_owned()));
            }
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| InvalidAddress::NoPort(text.to_owned()))?;
        let port = match port.parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => return Err(InvalidAddress::Port(port.to_owned())),
        };
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let valid = match bare {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.len() <= 255
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        if !valid {
            return Err(InvalidAddress::Host(host.to_owned()));
        }
        Ok(Address::Tcp { host: bare.unwrap_or(host).to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_what_it_prints() {
        for text in ["127.0.0.1:6379", "[::1]:6379", "redis-0.redis.svc:1", "unix:/run/redis.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_with_an_address_is_said() {
        let why = |text: &str| text.parse::<Address>().unwrap_err();
        assert_eq!(why("localhost"), InvalidAddress::NoPort("localhost".into()));
        assert_eq!(why("localhost:0"), InvalidAddress::Port("0".into()));
        assert_eq!(why("localhost:70000"), InvalidAddress::Port("70000".into()));
        assert_eq!(why(":6379"), InvalidAddress::Host("".into()));
        assert_eq!(why("::1:6379"), InvalidAddress::Host("::1".into()));
        assert_eq!(why("a b:6379"), InvalidAddress::Host("a b".into()));
        assert_eq!(why("unix:redis.sock"), InvalidAddress::Path("redis.sock".into()));
    }
}
