//! How reading the configuration again went.

use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::wall;

/// How reloads went.
#[derive(Debug)]
pub struct Reloads {
    /// Whether the last configuration that was read holds; the first did.
    pub is_good: AtomicBool,
    /// When it was read.
    pub at_unix_ms: AtomicU64,
}

impl Default for Reloads {
    fn default() -> Self {
        Self { is_good: AtomicBool::new(true), at_unix_ms: AtomicU64::new(wall::unix_ms()) }
    }
}
