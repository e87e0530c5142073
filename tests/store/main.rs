//! The journal against a disk that loses, tears, fills and fails, and against a model that does not.
//!
//! Begin at [`model`], what every claim is held against; [`basics`] shows the verbs.

mod basics;
#[allow(dead_code)]
#[path = "../sim/chance.rs"]
mod chance;
#[allow(dead_code)]
#[path = "../sim/disk.rs"]
mod disk;
mod model;
