//! What only this machine and its resolver can tell about the address we are announced under: that it exists, and
//! that it is not the master's, nor one that passes commands on to it.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::config::Config;
use crate::config::identity::{front_announced, identity_clash, reaches};
use crate::net::Address;

/// Looks at the configuration before anything is announced.
///
/// # Errors
/// When psyncd must not start like that, with a line that says why.
pub(crate) async fn check(config: &Config) -> Result<(), String> {
    let announced = match &config.announce_ip {
        None => None,
        Some(host) => match resolve(host).await {
            Ok(ips) => Some(ips),
            Err(why) => {
                return Err(format!(
                    "announce-ip {host} does not resolve here ({why}): a Sentinel that is told a name it cannot \
                     resolve writes a line into its file with which it cannot start again; give an address, or a name \
                     that every Sentinel can resolve"
                ));
            }
        },
    };
    let Some(port) = config.announced_port() else { return Ok(()) };
    let announced_here = announced.as_ref().is_none_or(|ips| ips.iter().copied().any(is_local));
    if port == config.port && announced_here {
        return Err(front_announced(port));
    }
    let Some(Address::Tcp { host, port: upstream_port }) = &config.upstream else { return Ok(()) };
    if port != *upstream_port {
        return Ok(());
    }
    // A master that cannot be resolved now cannot be reached either; it is asked for its name again at every try.
    let upstream = resolve(host).await.unwrap_or_default();
    let upstream_here = upstream.iter().copied().any(is_local);
    let same = match &announced {
        Some(announced) => announced.iter().any(|ip| upstream.contains(ip)) || (announced_here && upstream_here),
        // Who calls an address of its own machine is seen under that address.
        None => upstream_here,
    };
    if same { Err(identity_clash(&config.announce_ip, port, host, *upstream_port)) } else { Ok(()) }
}

/// Why `address` must not be followed; `own` is where we really listen.
pub(crate) fn forbidden(own: &[SocketAddr], announced: Option<&Address>, address: &Address) -> Option<String> {
    let here = match address {
        Address::Tcp { host, port } => {
            own.iter().any(|own| reaches(address, *own))
                || host.parse().is_ok_and(|ip: IpAddr| {
                    own.iter().any(|own| own.port() == *port && own.ip().is_unspecified() && is_local(ip))
                })
        }
        Address::Unix(_) => false,
    };
    (here || announced == Some(address)).then(|| format!("psyncd would follow itself: {address} is its own address"))
}

/// Whether this machine has that address: only then can a socket be bound to it. Nothing is sent.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

async fn resolve(host: &str) -> std::io::Result<Vec<IpAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![ip.to_canonical()]);
    }
    Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip().to_canonical()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_leads_back_here_is_not_followed() {
        let own = ["0.0.0.0:6379".parse().unwrap(), "127.0.0.1:6390".parse().unwrap()];
        let announced: Address = "relay.example:6390".parse().unwrap();
        for bad in ["127.0.0.1:6379", "localhost:6390", "127.0.0.1:6390", "relay.example:6390"] {
            assert!(forbidden(&own, Some(&announced), &bad.parse().unwrap()).is_some(), "{bad}");
        }
        for good in ["127.0.0.1:6380", "192.0.2.1:6379", "master.example:6390", "unix:/run/redis.sock"] {
            assert_eq!(forbidden(&own, Some(&announced), &good.parse().unwrap()), None, "{good}");
        }
    }
}
