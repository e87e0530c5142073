//! The clients that are being passed through, for operators to see.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use crate::net::PeerAddress;

/// Everybody who is passed through. There are at most `maxclients`.
#[derive(Debug, Default)]
pub struct Roster {
    /// By number of arrival. Held to add or remove a row, or to copy them; never across an await.
    rows: Mutex<BTreeMap<u64, Arc<Row>>>,
    next: AtomicU64,
}

/// One client.
#[derive(Debug)]
pub struct Row {
    /// Where it called from.
    pub peer: PeerAddress,
    /// Since when it is passed through.
    pub since: Instant,
    /// Bytes it sent that were passed on.
    pub to_upstream: AtomicU64,
    /// Bytes passed on to it.
    pub to_client: AtomicU64,
    /// Whether it named itself as a Sentinel does.
    pub is_sentinel: AtomicBool,
}

impl Roster {
    /// One more client, until the guard drops.
    pub fn enter(&self, peer: PeerAddress) -> Entered<'_> {
        let row = Arc::new(Row {
            peer,
            since: Instant::now(),
            to_upstream: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            is_sentinel: AtomicBool::new(false),
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.rows().insert(number, Arc::clone(&row));
        Entered { roster: self, number, row }
    }

    /// How many there are, and the `most` of them that came first.
    pub fn list(&self, most: usize) -> (usize, Vec<Arc<Row>>) {
        let rows = self.rows();
        (rows.len(), rows.values().take(most).cloned().collect())
    }

    /// How many of them are Sentinels.
    pub fn sentinels(&self) -> usize {
        self.rows().values().filter(|row| row.is_sentinel.load(Ordering::Relaxed)).count()
    }

    fn rows(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Row>>> {
        self.rows.lock().expect("no one panics holding it")
    }
}

/// A client's place; its drop gives it up.
#[derive(Debug)]
pub struct Entered<'a> {
    roster: &'a Roster,
    number: u64,
    /// The client.
    pub row: Arc<Row>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.roster.rows().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_left_is_listed_no_more_and_the_first_come_first() {
        let roster = Roster::default();
        let at = |port: u16| PeerAddress::Tcp(([127, 0, 0, 1], port).into());
        let (first, second, _third) = (roster.enter(at(1)), roster.enter(at(2)), roster.enter(at(3)));
        first.row.to_client.fetch_add(5, Ordering::Relaxed);
        drop(second);
        first.row.is_sentinel.store(true, Ordering::Relaxed);
        assert_eq!(roster.sentinels(), 1);
        let (count, rows) = roster.list(1);
        assert_eq!((count, rows.len()), (2, 1));
        assert_eq!((&rows[0].peer, rows[0].to_client.load(Ordering::Relaxed)), (&at(1), 5));
        let ports: Vec<_> = roster.list(9).1.iter().map(|row| row.peer.clone()).collect();
        assert_eq!(ports, [at(1), at(3)]);
    }
}
