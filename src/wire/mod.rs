//! BYTES TO MEANING. Pure: no tokio, no clock, no log, no socket, no file.
//!
//! The only home of the protocol's "next byte wanted" (our [`crate::repl::Offset`] plus one) and of the
//! wire's word for a replica. What comes in is a slice, what goes out is a value or [`bytes::Bytes`].
//! Peers' bytes are parsed, never asserted: nothing here panics, whatever it is fed, and every
//! incremental parser gives the same result however its input is cut.
//!
//! Begin at [`resp`] for frames, then [`command`] (what a peer says to us as a master), [`dialogue`]
//! (what we say as a replica and hear back), [`payload`] and [`rdb`] (the transfer of an RDB), [`scan`] (the live
//! stream) and [`info`] (a master's INFO); [`portrait`] (our own INFO), [`reply`] and [`hello`] are the replica face's
//! and the Sentinels'.

pub mod assist;
pub mod command;
pub mod dialogue;
pub mod hello;
pub mod info;
pub mod listing;
pub mod payload;
pub mod portrait;
pub mod rdb;
pub mod rdb_head;
pub mod reply;
pub mod resp;
pub mod scan;
pub mod seal;
pub mod skip;
mod text;
pub mod watch;

/// Ways to cut an input, for the property every incremental parser here must have.
#[cfg(test)]
pub(crate) mod chop {
    use proptest::prelude::*;

    /// Cutting points as fractions of whatever is cut; duplicates give empty pieces on purpose.
    pub(crate) fn cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
        prop::collection::vec(any::<prop::sample::Index>(), 0..12)
    }

    /// `data` in pieces cut at `cuts`.
    pub(crate) fn pieces<'a>(data: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(data.len() + 1)).collect();
        at.sort_unstable();
        at.push(data.len());
        let mut from = 0;
        at.into_iter()
            .map(|to| {
                let piece = &data[from..to];
                from = to;
                piece
            })
            .collect()
    }
}
