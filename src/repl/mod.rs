//! Vocabulary and judgement. Pure: no socket, no file, no clock, no log. Begin at [`position`].

mod history;
mod position;

pub use history::{Ancestor, History, Lineage};
pub use position::{InvalidReplId, Offset, Position, ReplId, Span};
