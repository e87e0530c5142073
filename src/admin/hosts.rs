//! By which names the admin port may be called.
//!
//! A page in somebody's browser may have its own name lead to an address that only that browser reaches, such as
//! loopback: the browser then takes our answers for those of the page's own server, and lets the page read them ("DNS
//! rebinding"). What the page cannot change is that its name stands in `Host`. An address there is always right, because
//! no name led here.
//!
//! Over loopback that is looked at in any case. Elsewhere Prometheus and people call by whatever name their network
//! knows, so only where names are configured.

use std::net::{IpAddr, Ipv6Addr};

use crate::net::PeerAddress;

/// The names that are right.
#[derive(Debug, Clone, Default)]
pub struct Hosts {
    /// As configured, in lower case; none where nobody did.
    names: Option<Vec<String>>,
    /// This machine's.
    own: String,
}

impl Hosts {
    /// These, and `own`, which is this machine's: `a.example`, `.example` for all below it, `*` for all there are.
    pub fn new(names: Option<Vec<String>>, own: &str) -> Self {
        Self { names, own: own.to_ascii_lowercase() }
    }

    /// Whether somebody who came to our address `local` may call it `host`, with or without a port.
    pub fn admit(&self, local: &PeerAddress, host: &str) -> bool {
        let PeerAddress::Tcp(local) = local else { return true };
        let name = name(host);
        if name.parse::<IpAddr>().is_ok() {
            return true;
        }
        let is_below = |above: &str| name.strip_suffix(above).is_some_and(|rest| !rest.is_empty());
        if name == "localhost" || is_below(".localhost") || (name == self.own && !name.is_empty()) {
            return true;
        }
        match &self.names {
            Some(names) => names.iter().any(|right| match right.as_str() {
                "*" => true,
                domain if domain.starts_with('.') => is_below(domain),
                right => right == name,
            }),
            None => !local.ip().to_canonical().is_loopback(),
        }
    }
}

/// What stands before the port, in lower case, without brackets and without the dot that may end a name.
fn name(host: &str) -> String {
    let host = host.trim().to_ascii_lowercase();
    if let Some((v6, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']'))
        && v6.parse::<Ipv6Addr>().is_ok()
    {
        return v6.to_owned();
    }
    let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
    name.strip_suffix('.').unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: [&str; 9] = [
        "127.0.0.1",
        "127.0.0.1:9379",
        "[::1]:9379",
        "[::1]",
        "10.0.0.1:80",
        "localhost:9379",
        "LocalHost.",
        "psyncd.localhost",
        "Machine:9379",
    ];
    const NAMES: [&str; 8] = [
        "evil.example",
        "evil.example:9379",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "notlocalhost",
        ".localhost",
        "",
        "[evil]:1",
    ];

    fn at(local: &str) -> PeerAddress {
        PeerAddress::Tcp(local.parse().unwrap())
    }

    #[test]
    fn over_loopback_only_addresses_and_names_of_this_machine_are_right() {
        let hosts = Hosts::new(None, "machine");
        for local in ["127.0.0.1:1", "[::1]:1", "127.8.9.1:1", "[::ffff:127.0.0.1]:1"] {
            for host in RIGHT {
                assert!(hosts.admit(&at(local), host), "{host}");
            }
            for host in NAMES {
                assert!(!hosts.admit(&at(local), host), "{host}");
            }
        }
        assert!(!Hosts::default().admit(&at("127.0.0.1:1"), ""), "a machine without a name has not that one");
        assert!(hosts.admit(&PeerAddress::Unix, "evil.example"), "no browser comes by a unix socket");
    }

    #[test]
    fn elsewhere_every_name_is_right_until_some_are_configured() {
        let some = |names: &[&str]| Hosts::new(Some(names.iter().map(|name| (*name).to_owned()).collect()), "machine");
        assert!(Hosts::new(None, "machine").admit(&at("10.0.0.7:1"), "psyncd-0.psyncd:9379"));
        let hosts = some(&["psyncd-0.psyncd", ".svc.cluster.local"]);
        for local in ["10.0.0.7:1", "127.0.0.1:1"] {
            for host in ["psyncd-0.psyncd:9379", "a.b.svc.cluster.local"].iter().chain(&RIGHT) {
                assert!(hosts.admit(&at(local), host), "{host}");
            }
            for host in ["psyncd-1.psyncd", ".svc.cluster.local", "svc.cluster.local"].iter().chain(&NAMES) {
                assert!(!hosts.admit(&at(local), host), "{host}");
            }
            assert!(some(&["*"]).admit(&at(local), "evil.example"));
        }
    }
}
