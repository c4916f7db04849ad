//! Follows the open pull requests of one fleet's repo, as [`crate::source`] follows its branches.
//!
//! A poke (a webhook) says "look"; the timer guarantees it. A forge that does not answer, or wants fewer calls,
//! is left alone for longer each time; the last good list stays in force.

use std::{sync::Arc, time::Duration};

use rand::RngExt as _;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Forge, PullRequest};
use crate::{
    error::chain,
    rate::{Pace, Rate},
};

/// The longest pause between two tries of a forge that does not answer.
const MAX_BACKOFF: Duration = Duration::from_mins(5);

/// How often to look, however often somebody pokes. Forges count calls: GitHub allows some thousands an hour.
const CALLS: Rate = Rate {
    burst: 20.0,
    per_second: 0.5,
};

/// What is known of a repo's pull requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullRequests {
    /// The open ones into the tracked branch, by the last call that worked; `None` before the first.
    pub open: Option<Arc<[PullRequest]>>,
    /// Why the last call did not work.
    pub problem: Option<String>,
}

/// Follows one repo's pull requests until `shutdown`.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The forge.
    pub forge: Arc<dyn Forge>,
    /// The tracked branch.
    pub base: String,
    /// How often to look without being poked: webhooks bring what matters sooner.
    pub interval: Duration,
    /// Says "look".
    pub poke: Arc<Notify>,
}

impl Watch {
    /// Lists whenever there may be something new, and publishes what it finds.
    pub async fn run(self, found: watch::Sender<PullRequests>, shutdown: CancellationToken) {
        let pace = Pace::new(CALLS);
        let mut failures: u32 = 0;
        loop {
            let list = async {
                pace.keep().await;
                self.forge.open_pull_requests(&self.base).await
            };
            let listed = tokio::select! {
                () = shutdown.cancelled() => return,
                listed = list => listed,
            };
            let mut asked_to_wait = Duration::ZERO;
            match listed {
                Ok(open) => {
                    if failures > 0 {
                        info!(forge = self.forge.name(), "the forge answers again");
                    }
                    failures = 0;
                    let now = PullRequests {
                        open: Some(open.into()),
                        problem: None,
                    };
                    found.send_if_modified(|before| {
                        let changed = *before != now;
                        *before = now;
                        changed
                    });
                }
                Err(error) => {
                    if failures == 0 {
                        warn!(error = %chain(&error), "the pull requests cannot be listed");
                    }
                    failures += 1;
                    asked_to_wait = error.retry_after().unwrap_or_default();
                    let problem = chain(&error);
                    found.send_if_modified(|before| {
                        let changed = before.problem.as_ref() != Some(&problem);
                        before.problem = Some(problem);
                        changed
                    });
                }
            }
            // A poke does not shorten what the forge asked for.
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(asked_to_wait) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause(self.interval, failures)) => {}
                () = self.poke.notified() => {}
            }
        }
    }
}

/// The interval give or take a fifth; after failures, up to twice as long each time.
fn pause(interval: Duration, failures: u32) -> Duration {
    let base = match failures {
        0 => interval,
        _ => Duration::from_secs(1)
            .saturating_mul(1 << failures.min(9))
            .min(MAX_BACKOFF),
    };
    base.mul_f64(rand::rng().random_range(0.8..1.2))
}
