//! Who we are to others, and who we must not be: our own master, or an address that passes commands on to it.
//!
//! A Sentinel that finds psyncd in the master's INFO under the master's own address tells the master to follow itself,
//! and the service is gone. So such a configuration is refused, as far as its text tells; what only name resolution can
//! tell is looked at when psyncd starts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Config, Error};
use crate::net::Address;

impl Config {
    /// Refuses to follow what would be ourselves, as far as addresses alone can tell.
    pub(super) fn check_loops(&self) -> Result<(), Error> {
        let ports = [
            (!self.tls.only).then_some(("its own port", self.port)),
            self.tls.port.map(|port| ("its own TLS port", port)),
        ];
        let own = ports.into_iter().flatten();
        let own = own.flat_map(|(what, port)| self.bind.iter().map(move |ip| (what, SocketAddr::new(*ip, port))));
        let face = self.face().map(|address| ("its own replica-port", address));
        let admin = self.admin_bind.map(|address| ("its own admin port", address));
        for (what, address) in own.clone().chain(face).chain(admin) {
            if let Some(upstream) = &self.upstream
                && reaches(upstream, address)
            {
                return Err(Error::Contradiction(format!(
                    "upstream {upstream} is {what} ({address}): psyncd would follow itself; give the master's address, or \
                     another port"
                )));
            }
        }
        if let Some(port) = self.replica_port
            && port != 0
            && (port == self.port || Some(port) == self.tls.port)
        {
            return Err(Error::Contradiction(format!(
                "port and replica-port are both {port}: one passes commands on to the master and the other never does"
            )));
        }
        for (_, address) in own {
            if let Some(admin) = self.admin_bind
                && admin.port() != 0
                && admin.port() == address.port()
                && (admin.ip() == address.ip() || admin.ip().is_unspecified() || address.ip().is_unspecified())
            {
                return Err(Error::Contradiction(format!("admin-bind {admin} and port {address} are the same")));
            }
        }
        Ok(())
    }

    /// Where the replica face listens; nowhere without one.
    pub fn face(&self) -> impl Iterator<Item = SocketAddr> {
        let port = self.replica_port.filter(|port| *port != 0);
        port.into_iter().flat_map(|port| self.replica_bind.iter().map(move |ip| SocketAddr::new(*ip, port)))
    }

    /// The port the master is told, if any: `announce-port`, else that of the replica face.
    pub fn announced_port(&self) -> Option<u16> {
        self.announce_port.or(self.replica_port.filter(|port| *port != 0))
    }

    /// Whether `address` is one of our own, as far as text can tell.
    pub fn is_own(&self, address: &Address) -> bool {
        let own = self.bind.iter().map(|ip| SocketAddr::new(*ip, self.port));
        own.chain(self.face()).any(|own| reaches(address, own))
            || matches!((address, &self.announce_ip, self.announced_port()),
                (Address::Tcp { host, port }, Some(ip), Some(announced))
                    if *port == announced && host.eq_ignore_ascii_case(ip))
    }

    /// Refuses to be announced as the master itself: Sentinel would have the master follow itself. Whether a name or
    /// an address of this machine is meant is looked at when psyncd starts; here is what the text tells.
    pub(super) fn check_identity(&self, warnings: &mut Vec<String>) -> Result<(), Error> {
        if self.sentinels.is_some() && self.replica_port.is_none() && self.announce_port.is_none() {
            return Err(Error::Contradiction(
                "sentinels is set and replica-port is not: without a port of its own psyncd would be a dead replica in \
                 the list of every Sentinel, until SENTINEL RESET; give replica-port, or replica-port = 0 to have it so"
                    .to_owned(),
            ));
        }
        if self.sentinels.is_some() && self.announced_port().is_none() {
            warnings.push(
                "replica-port is 0: Sentinels that watch the master will list psyncd as a replica that is down"
                    .to_owned(),
            );
        }
        let Some(announced) = self.announced_port() else { return Ok(()) };
        if announced == self.port
            && announced != 0
            && self
                .announce_ip
                .as_deref()
                .is_none_or(|ip| is_loopback(ip) || self.bind.iter().any(|own| own.to_string() == ip))
        {
            return Err(Error::Contradiction(front_announced(announced)));
        }
        let Some(Address::Tcp { host, port }) = &self.upstream else { return Ok(()) };
        if announced != *port {
            return Ok(());
        }
        let same = match &self.announce_ip {
            Some(ip) => ip.eq_ignore_ascii_case(host) || (is_loopback(ip) && is_loopback(host)),
            // Who calls a loopback address is seen as one.
            None => is_loopback(host),
        };
        if same {
            return Err(Error::Contradiction(identity_clash(&self.announce_ip, announced, host, *port)));
        }
        Ok(())
    }
}

/// Why psyncd does not start when it would be announced as its own master.
pub fn identity_clash(announce_ip: &Option<String>, announced: u16, host: &str, port: u16) -> String {
    let ip = announce_ip.as_deref().unwrap_or("(the address the master sees)");
    format!(
        "psyncd would be announced as {ip}:{announced}, which is the upstream {host}:{port} itself: a Sentinel would make \
         the master a replica of itself; give a replica-port (or announce-port) of psyncd's own"
    )
}

/// Why psyncd does not start when it would be announced under the port that passes commands on.
pub fn front_announced(port: u16) -> String {
    format!(
        "psyncd would be announced under its own port {port}, which passes commands on: what a Sentinel tells the replica \
         it takes it for would reach the master; announce a replica-port"
    )
}

/// Whether a host, by its text, is this machine and no other.
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback() || ip.is_unspecified())
}

/// Whether dialling `upstream` ends at a listener on `own`.
pub fn reaches(upstream: &Address, own: SocketAddr) -> bool {
    let Address::Tcp { host, port } = upstream else { return false };
    if own.port() == 0 || *port != own.port() {
        return false;
    }
    let targets: Vec<IpAddr> = if host.eq_ignore_ascii_case("localhost") {
        vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    } else {
        match host.parse::<IpAddr>() {
            // Connecting to the unspecified address means this host.
            Ok(IpAddr::V4(ip)) if ip.is_unspecified() => vec![Ipv4Addr::LOCALHOST.into()],
            Ok(IpAddr::V6(ip)) if ip.is_unspecified() => vec![Ipv6Addr::LOCALHOST.into()],
            Ok(ip) => vec![ip.to_canonical()],
            Err(_) => return false,
        }
    };
    targets.into_iter().any(|target| {
        let listening = own.ip().to_canonical();
        target == listening
            || match listening {
                IpAddr::V4(ip) => ip.is_unspecified() && target.is_ipv4() && target.is_loopback(),
                // Linux's dual-stack sockets take IPv4 as well.
                IpAddr::V6(ip) => ip.is_unspecified() && target.is_loopback(),
            }
    })
}
