//! Who may come, by address.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::net::PeerAddress;

/// Networks whose hosts may come. Empty, it lets everybody in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList(Vec<IpNet>);

impl AllowList {
    /// Whether it keeps anybody out.
    pub fn is_set(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether `peer` may come. Whoever may open our unix socket always may: the file system decided that. An IPv4
    /// address within an IPv6 one counts as the IPv4 address it is.
    pub fn admits(&self, peer: &PeerAddress) -> bool {
        match peer {
            PeerAddress::Tcp(address) => {
                let ip = address.ip().to_canonical();
                self.0.is_empty() || self.0.iter().any(|net| net.contains(&ip))
            }
            PeerAddress::Unix => true,
        }
    }
}

impl FromStr for AllowList {
    type Err = String;

    /// Reads networks (`10.0.0.0/8`) and addresses, separated by commas or blanks.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut nets = Vec::new();
        for part in text.split([',', ' ']).filter(|part| !part.is_empty()) {
            let net = part.parse::<IpNet>().or_else(|_| part.parse::<IpAddr>().map(IpNet::from));
            nets.push(net.map_err(|_| format!("has {part:?} in it, which is neither an address nor a network"))?);
        }
        // An empty list would let everybody in, which is not what somebody meant who wrote one.
        if nets.is_empty() { Err("names no network".to_owned()) } else { Ok(Self(nets)) }
    }
}

/// Whether `peer` is this very host, for which protected mode is not meant.
pub fn is_local(peer: &PeerAddress) -> bool {
    match peer {
        PeerAddress::Tcp(address) => address.ip().to_canonical().is_loopback(),
        PeerAddress::Unix => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(ip: &str) -> PeerAddress {
        PeerAddress::Tcp((ip.parse::<IpAddr>().unwrap(), 1).into())
    }

    #[test]
    fn an_empty_list_lets_everybody_in_and_any_other_only_its_own() {
        assert!(AllowList::default().admits(&peer("203.0.113.9")));
        let list: AllowList = "10.0.0.0/8, 192.0.2.7 2001:db8::/32".parse().unwrap();
        for inside in ["10.1.2.3", "192.0.2.7", "2001:db8::1", "::ffff:10.1.2.3"] {
            assert!(list.admits(&peer(inside)), "{inside}");
        }
        for outside in ["11.0.0.1", "192.0.2.8", "2001:db9::1", "127.0.0.1"] {
            assert!(!list.admits(&peer(outside)), "{outside}");
        }
        assert!(list.admits(&PeerAddress::Unix));
    }

    #[test]
    fn a_list_that_means_nothing_is_refused() {
        assert!("".parse::<AllowList>().is_err());
        assert!(", ".parse::<AllowList>().is_err());
        assert!("10.0.0.0/33".parse::<AllowList>().is_err());
        assert!("example.com".parse::<AllowList>().is_err());
    }

    #[test]
    fn loopback_is_local_in_every_notation() {
        for local in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(is_local(&peer(local)), "{local}");
        }
        assert!(!is_local(&peer("192.0.2.1")));
        assert!(is_local(&PeerAddress::Unix));
    }
}
