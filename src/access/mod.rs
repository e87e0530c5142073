//! Who may have the data: whoever may say PSYNC gets all of it.
//!
//! ```text
//!   accept ──▶ crowd ──▶ allow-lists, protected mode ──▶ first words ──▶ client: the upstream judges
//!                                                            └─────────▶ replica: [`Access::judge`]
//! ```
//!
//! The master judges its own users: what a replica names is named to it again, on a connection for that alone, and then
//! it is asked whether this user may replicate ([`oracle`]). It is away exactly when replicas come back; then those are
//! let in who were right before ([`memory`]), who name `requirepass` or a user of our own ([`users`]), or who name what psyncd itself got the data
//! with. Where nothing is known nobody is.
//!
//! **What counts as protection** (protected mode refuses every other host where there is none): a certificate of the
//! peer's that was verified; for clients an `allow-clients`, or an upstream that wants a password; for replicas an
//! `allow-replicas`, `replica-auth static`, or `replica-auth upstream` before an upstream that lets nobody replicate
//! without a password.

pub mod allow;
pub mod credentials;
pub mod crowd;
pub mod memory;
pub mod oracle;
pub mod users;

use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::counters::CounterSet;
use crate::label;
use crate::live::Live;
use crate::net::{PeerAddress, Security};
use crate::wire::command::error_line;
use allow::AllowList;
use credentials::Credentials;
use memory::Memory;
use oracle::{Oracle, Patience, Word};
use users::User;

/// How long the upstream's word on those who name no password is good enough for protected mode.
const FRESH: Duration = Duration::from_secs(10);

/// What those are told whom nobody can be asked about. An error to AUTH makes replicas of every version come back
/// with the data and the offset they have.
const AWAY: &str = "NOAUTH psyncd cannot ask its upstream, which is away, whether this is right; try again";
/// What a wrong `requirepass` is told, in Redis's words.
const WRONG: &str = "WRONGPASS invalid username-password pair or user is disabled.";
/// What a user of our own is told who may not replicate.
const BARRED: &str = "NOPERM this user may not replicate (psyncd [[user]])";
/// What those are told who named nothing, in Redis's words.
const NOTHING_NAMED: &str = "NOAUTH Authentication required.";

/// Who judges replicas.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReplicaAuth {
    /// The master.
    #[default]
    Upstream,
    /// `requirepass` and `[[user]]`.
    Static,
    /// Nobody: every replica is let in.
    None,
}

impl FromStr for ReplicaAuth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "upstream" => Ok(ReplicaAuth::Upstream),
            "static" => Ok(ReplicaAuth::Static),
            "none" => Ok(ReplicaAuth::None),
            _ => Err("is nobody who could judge".to_owned()),
        }
    }
}

/// Who may come and who judges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Who judges replicas.
    pub replica_auth: ReplicaAuth,
    /// `requirepass`.
    pub requirepass: Option<Credentials>,
    /// `[[user]]`.
    pub users: Vec<User>,
    /// What psyncd names to the upstream.
    pub own: Option<Credentials>,
    /// Whether other hosts are refused where nothing protects the data.
    pub protected_mode: bool,
    /// From where replicas may come.
    pub allow_replicas: AllowList,
    /// From where clients may come.
    pub allow_clients: AllowList,
    /// The names of which a replica's certificate has to have one; none where it needs no certificate.
    pub names: Option<Vec<String>>,
}

/// What is made of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may have everything.
    Granted,
    /// What it named is wrong; this is the answer to its AUTH.
    Failed(Bytes),
    /// It may not replicate; this is the answer to all it asks.
    Refused(Bytes),
}

/// Whether a peer may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// It may.
    Open,
    /// It is on no list.
    Denied,
    /// It is another host, and nothing protects the data.
    Protected,
    /// Its certificate has none of the names that may come, or it showed none.
    Nameless,
}

impl Entry {
    /// Whether it may.
    pub fn is_open(self) -> bool {
        self == Entry::Open
    }

    /// What it is told.
    pub fn line(self) -> Bytes {
        match self {
            Entry::Open => Bytes::new(),
            Entry::Denied => error_line("DENIED psyncd lets nobody in from your address"),
            Entry::Nameless => error_line("NOPERM psyncd: this certificate may not replicate (tls-allow-replicas)"),
            Entry::Protected => error_line(
                "DENIED psyncd is running in protected mode: it answers only its own host until the master has a password, \
                 allow-replicas and allow-clients name networks, or protected-mode is set to no.",
            ),
        }
    }
}

/// Whether a peer may come as a replica, and as a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entries {
    /// As a replica.
    pub replica: Entry,
    /// As a client.
    pub client: Entry,
}

impl Entries {
    /// Why nobody may come in, where nobody may.
    pub fn closed(self) -> Option<Entry> {
        (!self.replica.is_open() && !self.client.is_open()).then_some(self.client)
    }
}

label! {
    /// How a replica was judged.
    pub enum Judged {
        /// Let in by the master.
        Upstream = "upstream",
        /// Let in because nobody needs a password.
        Open = "open",
        /// Let in with the upstream away, because the master had let it in before.
        Remembered = "remembered",
        /// Let in by requirepass or a user of our own, or by what psyncd itself got the data with.
        Static = "static",
        /// Refused by the master, or by requirepass and our own users.
        Refused = "refused",
        /// Refused with the upstream away, because nothing was known of it.
        Unknown = "unknown",
    }
}

/// What the upstream lets those do who name no password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nameless {
    /// Everything.
    Replicate,
    /// Something, but not replicate.
    Enter,
    /// Nothing.
    Nothing,
}

/// The judge.
pub struct Access {
    /// Who may come and who judges, from here on.
    pub options: Live<Options>,
    oracle: Oracle,
    memory: Memory,
    /// The upstream's last word on those who name no password. Held for a copy.
    nameless: Mutex<Option<(Nameless, Instant)>>,
    /// How replicas were judged.
    pub judged: CounterSet<Judged>,
}

impl Access {
    /// Nobody was judged yet.
    pub fn new(options: Options, oracle: Oracle, memory: Memory) -> Arc<Self> {
        Arc::new(Self {
            options: Live::new(options),
            oracle,
            memory,
            nameless: Mutex::default(),
            judged: CounterSet::new(),
        })
    }

    /// Other rules and bounds hold for whoever comes from now on.
    pub fn set(&self, options: Options, patience: Patience, remember_for: Duration) {
        self.options.set(options);
        self.oracle.patience.set(patience);
        self.memory.set_ttl(remember_for);
    }

    /// Whether `peer` may come at all. Asks the upstream at most every ten seconds, and only about other hosts that showed
    /// no certificate.
    pub async fn entries(&self, peer: &PeerAddress, security: &Security) -> Entries {
        let options = self.options.get();
        let Options { allow_replicas, allow_clients, protected_mode, .. } = &*options;
        let is_certified = matches!(security, Security::Tls { names } if !names.is_empty());
        let is_asked = *protected_mode && !is_certified && !allow::is_local(peer);
        let nameless = if is_asked { Some(self.nameless().await) } else { None };
        let entry = |list: &AllowList, is_safe: &dyn Fn(Nameless) -> bool| match nameless {
            _ if !list.admits(peer) => Entry::Denied,
            Some(nameless) if !list.is_set() && !is_safe(nameless) => Entry::Protected,
            Some(_) | None => Entry::Open,
        };
        let replica = entry(allow_replicas, &|nameless| match options.replica_auth {
            ReplicaAuth::Upstream => nameless != Nameless::Replicate,
            ReplicaAuth::Static => true,
            ReplicaAuth::None => false,
        });
        let is_named = options.names.as_ref().is_none_or(|allowed| has_name(security, allowed));
        Entries {
            replica: if replica.is_open() && !is_named { Entry::Nameless } else { replica },
            client: entry(allow_clients, &|nameless| nameless == Nameless::Nothing),
        }
    }

    /// Whether a replica that named these, or nothing, may have the data. Bounded in time by what asking the upstream
    /// is. Cancel-safe.
    pub async fn judge(&self, named: Option<&Credentials>) -> Verdict {
        match self.options.get().replica_auth {
            ReplicaAuth::None => self.admit(Judged::Open),
            ReplicaAuth::Static => self.judge_by_list(named),
            ReplicaAuth::Upstream => match self.oracle.ask(named).await {
                Ok(word) => self.hear(named, word).await,
                Err(why) => {
                    debug!(%why, "upstream not asked about a replica");
                    self.judge_alone(named).await
                }
            },
        }
    }

    /// The same where the upstream is known to be away.
    pub async fn judge_alone(&self, named: Option<&Credentials>) -> Verdict {
        match (self.options.get().replica_auth, named) {
            (ReplicaAuth::None, _) => self.admit(Judged::Open),
            (ReplicaAuth::Static, _) => self.judge_by_list(named),
            (ReplicaAuth::Upstream, _) if self.last_known() == Nameless::Replicate => self.admit(Judged::Open),
            (ReplicaAuth::Upstream, Some(named)) if self.is_known(named) => self.admit(Judged::Static),
            (ReplicaAuth::Upstream, Some(named)) if self.is_barred(named) => self.refuse(BARRED),
            (ReplicaAuth::Upstream, Some(named)) if self.memory.recalls(named).await => self.admit(Judged::Remembered),
            (ReplicaAuth::Upstream, Some(_)) => {
                self.judged.increment(Judged::Unknown);
                Verdict::Failed(error_line(AWAY))
            }
            (ReplicaAuth::Upstream, None) => {
                self.judged.increment(Judged::Unknown);
                Verdict::Refused(error_line(AWAY))
            }
        }
    }

    /// Whether anybody can be let in while the upstream is away.
    pub fn lets_anybody_in_alone(&self) -> bool {
        let options = self.options.get();
        let Options { replica_auth, requirepass, users, own, .. } = &*options;
        match replica_auth {
            ReplicaAuth::None | ReplicaAuth::Static => true,
            ReplicaAuth::Upstream => {
                requirepass.is_some()
                    || users.iter().any(|user| user.may_replicate)
                    || own.is_some()
                    || self.last_known() == Nameless::Replicate
                    || !self.memory.is_empty()
            }
        }
    }

    /// Whether these are right whatever the upstream says: those of our own where they are what judges.
    pub fn settles(&self, named: &Credentials) -> bool {
        self.options.get().replica_auth == ReplicaAuth::Static && (self.is_listed(named) || self.is_barred(named))
    }

    async fn hear(&self, named: Option<&Credentials>, word: Word) -> Verdict {
        if named.is_none() {
            self.note(&word);
        }
        match (word, named) {
            (Word::Granted, Some(named)) => {
                self.memory.remember(named).await;
                self.admit(Judged::Upstream)
            }
            (Word::Granted, None) => self.admit(Judged::Open),
            (Word::Failed(line) | Word::Refused(line), None) => {
                self.judged.increment(Judged::Refused);
                Verdict::Refused(line)
            }
            (Word::Failed(line), Some(named)) => {
                self.memory.forget(named).await;
                self.judged.increment(Judged::Refused);
                Verdict::Failed(line)
            }
            (Word::Refused(line), Some(named)) => {
                self.memory.forget(named).await;
                self.judged.increment(Judged::Refused);
                Verdict::Refused(line)
            }
        }
    }

    fn judge_by_list(&self, named: Option<&Credentials>) -> Verdict {
        match named {
            Some(named) if self.is_listed(named) => self.admit(Judged::Static),
            Some(named) if self.is_barred(named) => self.refuse(BARRED),
            Some(_) => {
                self.judged.increment(Judged::Refused);
                Verdict::Failed(error_line(WRONG))
            }
            None => {
                self.judged.increment(Judged::Refused);
                Verdict::Refused(error_line(NOTHING_NAMED))
            }
        }
    }

    fn admit(&self, how: Judged) -> Verdict {
        self.judged.increment(how);
        Verdict::Granted
    }

    fn refuse(&self, why: &str) -> Verdict {
        self.judged.increment(Judged::Refused);
        Verdict::Refused(error_line(why))
    }

    /// Whether they are `requirepass`, or those of a user of our own who may replicate.
    fn is_listed(&self, named: &Credentials) -> bool {
        let options = self.options.get();
        let Options { requirepass, users, .. } = &*options;
        requirepass.as_ref().is_some_and(|password| password.is_same(named))
            || users.iter().any(|user| user.may_replicate && user.is(named))
    }

    /// Whether they are those of a user of our own who may not.
    fn is_barred(&self, named: &Credentials) -> bool {
        self.options.get().users.iter().any(|user| !user.may_replicate && user.is(named))
    }

    /// What we know to be right without anybody's word: what the operator gave us.
    fn is_known(&self, named: &Credentials) -> bool {
        self.is_listed(named) || self.options.get().own.as_ref().is_some_and(|own| own.is_same(named))
    }

    async fn nameless(&self) -> Nameless {
        let known = *self.nameless.lock().expect("no one panics holding it");
        if let Some((nameless, at)) = known
            && at.elapsed() < FRESH
        {
            return nameless;
        }
        match self.oracle.ask(None).await {
            Ok(word) => self.note(&word),
            Err(why) => {
                debug!(%why, "upstream not asked whether it needs a password");
                self.last_known()
            }
        }
    }

    /// The upstream's last word, or what follows from our own settings: what we hold was got without a password if we
    /// have none.
    fn last_known(&self) -> Nameless {
        let known = *self.nameless.lock().expect("no one panics holding it");
        match (known, &self.options.get().own) {
            (Some((nameless, _)), _) => nameless,
            (None, None) => Nameless::Replicate,
            (None, Some(_)) => Nameless::Nothing,
        }
    }

    fn note(&self, word: &Word) -> Nameless {
        let nameless = match word {
            Word::Granted => Nameless::Replicate,
            Word::Refused(line) if line.starts_with(b"-NOPERM") => Nameless::Enter,
            Word::Refused(_) | Word::Failed(_) => Nameless::Nothing,
        };
        let before = self.nameless.lock().expect("no one panics holding it").replace((nameless, Instant::now()));
        if nameless == Nameless::Replicate && before.is_some_and(|(before, _)| before != nameless) {
            warn!(event = "upstream_unprotected", "upstream lets everybody replicate now");
        }
        nameless
    }
}

/// Whether a peer's certificate has one of these names. Names of hosts have no case.
fn has_name(security: &Security, allowed: &[String]) -> bool {
    match security {
        Security::Plain => false,
        Security::Tls { names } => names.iter().any(|name| allowed.iter().any(|one| one.eq_ignore_ascii_case(name))),
    }
}

#[cfg(test)]
mod tests;
