//! psyncd: a replication-aware TCP proxy for Redis and Valkey.
//!
//! It stands between a master and its replicas. **A small loss of contact must never cost the whole data set**: that
//! is what it is for.
//!
//! # The idea
//!
//! psyncd is a relay of a byte stream with a memory. One *link* reads the master's replication stream and appends it
//! to the *relay*; any number of *sessions* read it back, each with its own *cursor*. The relay knows which *history*
//! its bytes belong to, and keeps a *snapshot* (one RDB) from which a stranger can start. It holds bytes, never a
//! data set. What must be decided is a pure function; what must be waited for is a straight async function.
//!
//! # The laws
//!
//! 1. **Purity.** After the snapshot a replica receives exactly the master's bytes at the master's offsets; nothing is
//!    injected, dropped, repeated or re-ordered.
//! 2. **One writer.** Only the link appends to the relay. Everyone else holds a cursor.
//! 3. **One arithmetic.** An [`Offset`](repl::Offset) counts the bytes before it. The protocol's "next byte wanted" is
//!    known only to [`wire`].
//! 4. **A relay can rewind.** Where a promoted master's history parted below our head, we cut back to that point.
//! 5. **Never claim what cannot be served.** `+CONTINUE` only for a position that is on our line and in the window;
//!    `+FULLRESYNC` only with a snapshot from which the window reaches the head; never `+CONTINUE` for `PSYNC ? -1`.
//! 6. **Everything has a limit** with a name and a default.
//! 7. **One slow or broken peer harms nobody else**: not another replica, not the master, not the stream.
//! 8. **Fail closed, lose nothing.** The end of a snapshot is handed out only when the whole is known to be good.
//!
//! # The rooms
//!
//! Imports point down this list, and never sideways within a line.
//!
//! | room | what it is |
//! |---|---|
//! | `main`, [`cli`], [`config`], [`log`], [`events`], [`daemon`], [`observer`], [`verdict`], [`operator`], [`control`], [`notify`], [`metrics`], [`console`], [`doctor`] | the shell: arguments to exit code, the order of life and death, what operators see and have done |
//! | [`admin`] | HTTP for people and Prometheus |
//! | [`assist`] | two psyncd's at a planned failover |
//! | [`upstream`], [`downstream`], [`front`], [`scribe`], [`sentinel`] | toward the master; toward the replicas; the ports; toward the disk; who is master |
//! | [`access`] | who may have the data |
//! | [`relay`] | the heart: history, backlog, cursors, rows; whose stream it is |
//! | [`wire`], [`store`], [`net`] | bytes to meaning; files; sockets |
//! | [`repl`], [`counters`], [`entropy`], [`live`], [`ration`], [`wall`] | vocabulary and judgement; counting; chance; what a reload changes; how often a thing is said; the clock on the wall |
//!
//! # Four walks
//!
//! **A byte** is read in [`upstream::stream`], looked at by [`wire::scan`], appended to [`relay::backlog`], and written
//! by every session's [`downstream::stream`] from the very buffer it was read into.
//!
//! **A PSYNC** arrives in [`front::connection`], where [`front::classify`] knows it for a replica's; its words go through
//! [`downstream::handshake`]; [`downstream::admission`] holds it until [`relay::Relay::judge`] has an answer, which is
//! [`repl::decide`]'s.
//!
//! **An RDB** comes in through [`upstream::full`], on the link itself, or on a connection of [`upstream::fetch`] to one of
//! our own replicas ([`upstream::replicas`]) or to the master; or it is found again after a restart ([`store::kept`]). It is
//! unframed and checked by [`wire::payload`] and spooled by [`store::snapshot`], from where [`downstream::full`] sends it
//! to everybody, also while it is still arriving, a few at a time by the turns of [`downstream::senders`].
//!
//! **Another master** is heard of in [`front::face`] as an order, or in [`sentinel`], where [`sentinel::tracker`] judges and
//! the node itself is asked. Either changes the [`relay::target`]; the link leaves the old node for the new one and
//! finds out what of the stream may be kept, as after any reconnect; clients are closed and come back.

pub mod access;
pub mod admin;
pub mod assist;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod counters;
pub mod daemon;
pub mod doctor;
pub mod downstream;
pub mod entropy;
pub mod events;
pub mod front;
pub mod live;
pub mod log;
pub mod metrics;
pub mod net;
pub mod notify;
pub mod observer;
pub mod operator;
pub mod ration;
pub mod relay;
pub mod repl;
pub mod scribe;
pub mod sentinel;
pub mod store;
pub mod upstream;
pub mod verdict;
pub mod wall;
pub mod wire;
