//! Waiting for conditions.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::{Instant, sleep};

/// How long anything may take that is not itself about time. Machines that run tests are slow.
pub const PATIENCE: Duration = Duration::from_mins(1);

const PAUSE: Duration = Duration::from_millis(10);

/// Looks again and again until `look` succeeds, and returns what it found.
///
/// # Errors
/// What `look` said last, when it does not succeed within `deadline`.
pub async fn within<T>(
    deadline: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() >= end => {
                return Err(error).with_context(|| format!("not within {deadline:?}: {what}"));
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// [`within`] the usual [`PATIENCE`].
///
/// # Errors
/// What `look` said last, when it does not succeed in time.
pub async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    within(PATIENCE, what, look).await
}
