//! The wall clock, in the one place that reads it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch. A parameter, so that tests can bring their own time.
pub type Wall = fn() -> u64;

/// The system's wall clock.
pub fn system() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
