//! The wall clock, for what people are shown. Nothing is decided by it: it jumps.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; 0 for a clock that stands before.
pub fn unix_ms() -> u64 {
    if let Some(instead) = INSTEAD.get() {
        return instead();
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What a simulation shows instead.
static INSTEAD: OnceLock<fn() -> u64> = OnceLock::new();

/// Has [`unix_ms`] show this from here on, in the whole process: a simulation brings its own time. The first one counts.
pub fn show_instead(unix_ms: fn() -> u64) {
    let _ = INSTEAD.set(unix_ms);
}
