//! How many may knock at once, and how fast, from one address: whoever comes with more hurts nobody but himself.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use crate::net::PeerAddress;

/// Most addresses kept count of. Beyond, the ones nobody is connected from and that have waited long enough are
/// dropped, and if there are none everybody new shares one count.
const MAX_ADDRESSES: usize = 16_384;

/// Counts by address.
#[derive(Debug)]
pub struct Crowd {
    max_strangers: AtomicUsize,
    /// Connections a second, and at once; 0 for no limit.
    max_rate: AtomicU32,
    /// Held for an instruction or two, or while dropping what is not needed.
    rows: Mutex<HashMap<IpAddr, Row>>,
}

/// One address.
#[derive(Debug)]
struct Row {
    /// Connections nobody knows yet what to make of.
    strangers: usize,
    /// Connections that may still come at once.
    tokens: f64,
    at: Instant,
}

/// Why a connection is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMany {
    /// Its address has as many as may be unauthenticated at once.
    Strangers,
    /// Its address comes more often than it may.
    Rate,
}

/// One connection that nobody knows yet what to make of, until dropped.
#[derive(Debug)]
pub struct Stranger {
    crowd: Arc<Crowd>,
    address: Option<IpAddr>,
}

impl Crowd {
    /// Nobody is there. `max_rate` is connections a second; 0 for no limit.
    pub fn new(max_strangers: usize, max_rate: u32) -> Arc<Self> {
        Arc::new(Self {
            max_strangers: AtomicUsize::new(max_strangers),
            max_rate: AtomicU32::new(max_rate),
            rows: Mutex::default(),
        })
    }

    /// Other limits hold for whoever comes from now on.
    pub fn resize(&self, max_strangers: usize, max_rate: u32) {
        self.max_strangers.store(max_strangers, Ordering::Relaxed);
        self.max_rate.store(max_rate, Ordering::Relaxed);
    }

    /// Somebody comes.
    pub fn enter(self: &Arc<Self>, peer: &PeerAddress, now: Instant) -> Result<Stranger, TooMany> {
        let PeerAddress::Tcp(address) = peer else {
            return Ok(Stranger { crowd: Arc::clone(self), address: None });
        };
        let mut rows = self.rows.lock().expect("no one panics holding it");
        let mut address = block(address.ip());
        let max_rate = self.max_rate.load(Ordering::Relaxed);
        let rate = f64::from(max_rate);
        if rows.len() >= MAX_ADDRESSES && !rows.contains_key(&address) {
            rows.retain(|_, row| row.strangers > 0 || row.refilled(rate, now) < rate);
            if rows.len() >= MAX_ADDRESSES {
                address = Ipv6Addr::UNSPECIFIED.into();
            }
        }
        let row = rows.entry(address).or_insert(Row { strangers: 0, tokens: rate, at: now });
        row.tokens = row.refilled(rate, now);
        row.at = now;
        if max_rate > 0 && row.tokens < 1.0 {
            return Err(TooMany::Rate);
        }
        row.tokens -= 1.0;
        if row.strangers >= self.max_strangers.load(Ordering::Relaxed) {
            return Err(TooMany::Strangers);
        }
        row.strangers += 1;
        Ok(Stranger { crowd: Arc::clone(self), address: Some(address) })
    }
}

impl Row {
    fn refilled(&self, rate: f64, now: Instant) -> f64 {
        (self.tokens + now.duration_since(self.at).as_secs_f64() * rate).min(rate)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut rows = self.crowd.rows.lock().expect("no one panics holding it");
        if let Some(row) = rows.get_mut(&address) {
            row.strangers -= 1;
            if row.strangers == 0 && self.crowd.max_rate.load(Ordering::Relaxed) == 0 {
                rows.remove(&address);
            }
        }
    }
}

/// What one subscriber has: an IPv4 address, or the 64 bits of an IPv6 one that he does not choose.
fn block(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn peer(ip: &str) -> PeerAddress {
        PeerAddress::Tcp((ip.parse::<IpAddr>().unwrap(), 1).into())
    }

    #[test]
    fn too_many_strangers_hurt_only_the_address_they_come_from() {
        let (crowd, now) = (Crowd::new(2, 0), Instant::now());
        let first = crowd.enter(&peer("192.0.2.1"), now).unwrap();
        let _second = crowd.enter(&peer("::ffff:192.0.2.1"), now).unwrap();
        assert_eq!(crowd.enter(&peer("192.0.2.1"), now).unwrap_err(), TooMany::Strangers);
        assert!(crowd.enter(&peer("192.0.2.2"), now).is_ok());
        drop(first);
        assert!(crowd.enter(&peer("192.0.2.1"), now).is_ok());
    }

    #[test]
    fn whoever_comes_too_fast_waits_and_nobody_else_does() {
        let (crowd, now) = (Crowd::new(100, 3), Instant::now());
        for _ in 0..3 {
            crowd.enter(&peer("192.0.2.1"), now).unwrap();
        }
        assert_eq!(crowd.enter(&peer("192.0.2.1"), now).unwrap_err(), TooMany::Rate);
        assert!(crowd.enter(&peer("192.0.2.2"), now).is_ok());
        assert!(crowd.enter(&peer("192.0.2.1"), now + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn the_addresses_of_one_subscriber_count_as_one() {
        let (crowd, now) = (Crowd::new(1, 0), Instant::now());
        let _one = crowd.enter(&peer("2001:db8::1"), now).unwrap();
        assert_eq!(crowd.enter(&peer("2001:db8::ffff:2"), now).unwrap_err(), TooMany::Strangers);
        assert!(crowd.enter(&peer("2001:db8:0:1::1"), now).is_ok());
    }

    #[test]
    fn nothing_is_kept_of_those_who_left() {
        let (crowd, now) = (Crowd::new(1, 0), Instant::now());
        drop(crowd.enter(&peer("192.0.2.1"), now).unwrap());
        assert!(crowd.rows.lock().unwrap().is_empty());
        let (crowd, later) = (Crowd::new(1, 10), now + Duration::from_secs(9));
        for n in 0..MAX_ADDRESSES as u32 + 100 {
            let at = if n < MAX_ADDRESSES as u32 { now } else { later };
            drop(crowd.enter(&PeerAddress::Tcp((std::net::Ipv4Addr::from_bits(n), 1).into()), at).unwrap());
        }
        assert!(crowd.rows.lock().unwrap().len() <= MAX_ADDRESSES);
    }
}
