//! What a person at a terminal sees of a running psyncd, and of what it leaves on disk.
//!
//! Everything comes from the documents of the control socket or of the admin port ([`document`]); what is shown of them is
//! pure text ([`show`], [`ruler`], [`check`]); only [`look`], [`top`] and [`journal`] ask, wait and print. Nothing here
//! changes anything.

pub mod check;
pub mod document;
pub mod journal;
pub mod look;
pub mod manual;
pub mod ruler;
pub mod show;
pub mod top;
pub mod words;
