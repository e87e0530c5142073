//! Who was right before: what decides while the upstream, which would know, is away.
//!
//! Passwords are not kept, only what scrypt makes of them with a salt that no other process has. One salt serves all,
//! with the user mixed in, so that whoever asks costs one hash however many are remembered. Nothing is written to disk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

use super::credentials::Credentials;
use crate::live::Live;

/// Most users and passwords remembered; the oldest makes room.
pub const MAX_REMEMBERED: usize = 1024;
/// scrypt's cost: 2^12 rounds of 1 KiB blocks are 4 MiB and some ten milliseconds.
const LOG_N: u8 = 12;
/// Its block size.
const R: u32 = 8;

/// What scrypt makes of a user and a password.
type Digest = [u8; 32];

/// Successes, for a time.
pub struct Memory {
    salt: [u8; 16],
    ttl: Live<Duration>,
    /// When each was last right. Held for an instruction or two, never while hashing.
    known: Mutex<HashMap<Digest, Instant>>,
    /// One hash at a time: whoever guesses costs one core at most, and 4 MiB.
    turn: Semaphore,
    /// Being hashed now. Replicas come back together and name the same: they share one hash. Held for a word.
    hashing: Mutex<HashMap<Credentials, Arc<OnceCell<Digest>>>>,
}

impl Memory {
    /// Knows nobody. `salt` comes from chance; a success counts for `ttl`, and not at all if that is zero.
    pub fn new(salt: [u8; 16], ttl: Duration) -> Self {
        Self { salt, ttl: Live::new(ttl), known: Mutex::default(), turn: Semaphore::new(1), hashing: Mutex::default() }
    }

    /// A success counts for `ttl` from now on, also one of before.
    pub fn set_ttl(&self, ttl: Duration) {
        self.ttl.set(ttl);
    }

    /// These were right just now.
    pub async fn remember(&self, credentials: &Credentials) {
        if self.ttl.get().is_zero() {
            return;
        }
        let Some(digest) = self.digest(credentials).await else { return };
        let now = Instant::now();
        let mut known = self.known();
        if known.len() >= MAX_REMEMBERED && !known.contains_key(&digest) {
            let oldest = known.iter().min_by_key(|(_, at)| **at).map(|(digest, _)| *digest);
            oldest.map(|oldest| known.remove(&oldest));
        }
        known.insert(digest, now);
    }

    /// Whether they were right, recently enough.
    pub async fn recalls(&self, credentials: &Credentials) -> bool {
        if self.is_empty() {
            return false;
        }
        let Some(digest) = self.digest(credentials).await else { return false };
        let now = Instant::now();
        self.known().get(&digest).is_some_and(|at| now.duration_since(*at) < *self.ttl.get())
    }

    /// They are wrong now, whatever they were.
    pub async fn forget(&self, credentials: &Credentials) {
        if self.is_empty() {
            return;
        }
        if let Some(digest) = self.digest(credentials).await {
            self.known().remove(&digest);
        }
    }

    /// Whether nobody is remembered.
    pub fn is_empty(&self) -> bool {
        let now = Instant::now();
        let mut known = self.known();
        known.retain(|_, at| now.duration_since(*at) < *self.ttl.get());
        known.is_empty()
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Instant>> {
        self.known.lock().expect("no one panics holding it")
    }

    async fn digest(&self, credentials: &Credentials) -> Option<Digest> {
        let share = Share::of(&self.hashing, credentials);
        let digest = share.cell.get_or_try_init(|| async {
            let _turn = self.turn.acquire().await.map_err(drop)?;
            let (salt, credentials) = (self.salt, credentials.clone());
            tokio::task::spawn_blocking(move || hash(&salt, &credentials)).await.map_err(drop)
        });
        digest.await.ok().copied()
    }
}

/// A part in a hash that others may wait for as well. The last to leave takes the password with it.
struct Share<'a> {
    all: &'a Mutex<HashMap<Credentials, Arc<OnceCell<Digest>>>>,
    credentials: &'a Credentials,
    cell: Arc<OnceCell<Digest>>,
}

impl<'a> Share<'a> {
    fn of(all: &'a Mutex<HashMap<Credentials, Arc<OnceCell<Digest>>>>, credentials: &'a Credentials) -> Self {
        let mut hashing = all.lock().expect("no one panics holding it");
        let cell = Arc::clone(hashing.entry(credentials.clone()).or_default());
        Self { all, credentials, cell }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut hashing = self.all.lock().expect("no one panics holding it");
        // Ours and the map's: shares are made with the lock held.
        if Arc::strong_count(&self.cell) == 2 {
            hashing.remove(self.credentials);
        }
    }
}

fn hash(salt: &[u8], credentials: &Credentials) -> Digest {
    // The length keeps a user that ends as another salt begins apart from it.
    let user = credentials.user();
    let salt = [salt, &(user.len() as u64).to_be_bytes(), user].concat();
    let params = scrypt::Params::new(LOG_N, R, 1).expect("the constants are valid parameters");
    let mut digest = Digest::default();
    scrypt::scrypt(credentials.password(), &salt, &params, &mut digest).expect("the output's length is allowed");
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn of(user: &str, password: &str) -> Credentials {
        let words = ["AUTH", user, password].map(|word| Bytes::copy_from_slice(word.as_bytes()));
        Credentials::of_auth(&words.to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_is_recalled_until_its_time_is_over() {
        let memory = Memory::new([7; 16], Duration::from_secs(60));
        let app = of("app", "right");
        assert!(!memory.recalls(&app).await);
        memory.remember(&app).await;
        assert!(memory.recalls(&app).await);
        assert!(!memory.recalls(&of("app", "wrong")).await);
        assert!(!memory.recalls(&of("other", "right")).await);
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(!memory.recalls(&app).await);
        assert!(memory.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_master_refuses_is_forgotten() {
        let memory = Memory::new([7; 16], Duration::from_secs(60));
        let (old, new) = (of("app", "old"), of("app", "new"));
        memory.remember(&old).await;
        memory.remember(&new).await;
        memory.forget(&old).await;
        assert!(!memory.recalls(&old).await);
        assert!(memory.recalls(&new).await);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_lifetime_nothing_is_remembered() {
        let memory = Memory::new([7; 16], Duration::ZERO);
        memory.remember(&of("app", "right")).await;
        assert!(!memory.recalls(&of("app", "right")).await);
    }

    #[tokio::test]
    async fn a_hundred_who_name_the_same_at_once_cost_one_hash_and_leave_no_password() {
        let memory = Arc::new(Memory::new([7; 16], Duration::from_secs(60)));
        let app = of("app", "right");
        memory.remember(&app).await;
        let turn = memory.turn.acquire().await.unwrap();
        let mut recalled = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (memory, app) = (Arc::clone(&memory), app.clone());
            recalled.spawn(async move { memory.recalls(&app).await });
        }
        let shares = || memory.hashing.lock().unwrap().values().map(Arc::strong_count).collect::<Vec<_>>();
        while shares() != [101] {
            tokio::task::yield_now().await;
        }
        // One who waits no longer leaves nothing behind.
        assert!(tokio::time::timeout(Duration::ZERO, memory.recalls(&of("app", "wrong"))).await.is_err());
        assert_eq!(shares(), [101]);
        drop(turn);
        assert_eq!(recalled.join_all().await, [true; 100]);
        assert!(shares().is_empty());
    }

    #[test]
    fn the_user_is_part_of_what_is_hashed() {
        assert_ne!(hash(b"salt", &of("ab", "c")), hash(b"salt", &of("a", "c")));
        assert_ne!(hash(b"salt", &of("a", "c")), hash(b"pepper", &of("a", "c")));
    }

    #[test]
    fn no_more_than_the_limit_are_remembered() {
        let memory = Memory::new([7; 16], Duration::from_secs(60));
        let mut known = memory.known();
        for n in 0..MAX_REMEMBERED {
            let mut digest = Digest::default();
            digest[..8].copy_from_slice(&n.to_be_bytes());
            known.insert(digest, Instant::now());
        }
        drop(known);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(memory.remember(&of("app", "right")));
        assert_eq!(memory.known().len(), MAX_REMEMBERED);
        assert!(runtime.block_on(memory.recalls(&of("app", "right"))));
    }
}
