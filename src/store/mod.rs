//! What survives: files, not sockets. Begin at [`journal`] (the stream) and [`snapshot`] (data sets).

pub mod archive;
pub mod disk;
pub mod inspect;
pub mod journal;
pub mod kept;
mod recover;
pub mod segment;
pub mod snapshot;
pub mod state;
mod walk;
