//! Vocabulary and judgement. Pure: no socket, no file, no clock, no log. Begin at [`position`], end at
//! [`decide`](mod@decide).

pub mod ack;
pub mod decide;
pub mod format;
pub mod guard;
pub mod history;
pub mod milestones;
pub mod policy;
pub mod position;
pub mod reuse;

pub use ack::{Ack, AckPolicy};
pub use decide::{Ask, FullReason, HoldReason, PartialReason, Patience, Verdict};
pub use format::{RdbFormat, ServerVersion};
pub use history::{Ancestor, History, Lineage};
pub use position::{InvalidReplId, Offset, Position, ReplId, Span};
