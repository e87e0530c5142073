//! What survives: files, not sockets. Begin at [`snapshot`].

pub mod disk;
pub mod snapshot;
