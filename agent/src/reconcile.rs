//! Makes the runtime match what the ledger holds, for as long as the agent runs.
//!
//! The loop is level-triggered: whatever woke it (a new holding, a hand in the runtime, the timer, the end of a
//! backoff), it does the same thing, one pass of the runtime over the latest holding. Holdings that are
//! overtaken while a pass runs are never begun.
//!
//! Then it asks how the objects fare, more often while some are on their way, and says so in `Healthy`.
//!
//! A pass that changes something although this holding was applied before has repaired drift. `Drifted` then
//! says what, at least until the next timed pass finds everything in place.

use std::{sync::Arc, time::Duration};

use longshore_protocol::{
    message::{Held, Phase},
    session::Holding,
};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    report::{APPLIED, DRIFTED, HEALTHY, Reporter},
    runtime::{
        ApplyError, Changes, Runtime,
        health::{self, Health},
    },
};

/// How often to look.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two passes that nothing else asked for.
    pub check: Duration,
    /// Between two looks at objects that are on their way.
    pub progress: Duration,
    /// From the first sign of a hand in the runtime to the pass that repairs it: one save of an editor, or
    /// one `cp -r`, is one repair.
    pub settle: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            check: Duration::from_mins(1),
            progress: Duration::from_secs(2),
            settle: Duration::from_millis(250),
        }
    }
}

/// The loop's state.
#[derive(Debug)]
pub struct Reconciler<R: ?Sized> {
    runtime: Box<R>,
    target: watch::Receiver<Option<Arc<Holding>>>,
    reporter: Reporter,
    timing: Timing,
    backoff: Backoff,
    applied: Option<Held>,
}

/// Why there is another pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Target,
    Disturbance,
    Timer,
}

impl<R: Runtime + ?Sized> Reconciler<R> {
    /// A loop over `runtime` that follows `target`. `backoff` spaces the tries of a pass that fails.
    pub fn new(
        runtime: Box<R>,
        target: watch::Receiver<Option<Arc<Holding>>>,
        reporter: Reporter,
        timing: Timing,
        backoff: Backoff,
    ) -> Self {
        Self {
            runtime,
            target,
            reporter,
            timing,
            backoff,
            applied: None,
        }
    }

    /// Runs until it is stopped, and gives the runtime back. A pass that has begun is finished first.
    pub async fn run(mut self, stop: CancellationToken) -> Box<R> {
        let mut cause = Cause::Target;
        loop {
            let wait = self.pass(cause).await;
            cause = tokio::select! {
                () = stop.cancelled() => return self.runtime,
                cause = self.next(wait) => cause,
            };
        }
    }

    /// Waits for a reason to look again.
    async fn next(&mut self, wait: Duration) -> Cause {
        let timer = time::sleep(wait);
        let disturbance = async {
            self.runtime.disturbed().await;
            time::sleep(self.timing.settle).await;
        };
        tokio::select! {
            // Nobody can name another target once the other end is gone, but the present one still counts.
            Ok(()) = self.target.changed() => Cause::Target,
            () = disturbance, if self.applied.is_some() => Cause::Disturbance,
            () = timer => Cause::Timer,
        }
    }

    /// One pass; returns after how long there should be another one at the latest.
    async fn pass(&mut self, cause: Cause) -> Duration {
        let Some(holding) = self.target.borrow_and_update().clone() else {
            return self.timing.check;
        };
        let held = holding.held();
        let fresh = self.applied != Some(held);
        if fresh {
            self.reporter.phase(held, Phase::Applying);
        }
        match self.runtime.apply(holding).await {
            Ok(changes) => {
                self.backoff.reset();
                self.succeeded(held, fresh, cause, &changes);
                self.look_at_health().await
            }
            Err(error) => {
                self.failed(held, &error);
                if error.is_partial() {
                    self.look_at_health().await;
                }
                self.backoff.after_failure().max(self.timing.settle)
            }
        }
    }

    fn succeeded(&mut self, held: Held, fresh: bool, cause: Cause, changes: &Changes) {
        self.applied = Some(held);
        if fresh {
            tracing::info!(generation = %held.generation, written = changes.written.len(), removed = changes.removed.len(), "applied");
            self.reporter.fails(DRIFTED, "InPlace", "");
        } else if !changes.is_empty() {
            tracing::warn!(generation = %held.generation, repaired = changes.summary(), "repaired drift");
            self.reporter.holds(DRIFTED, "Repaired", changes.summary());
        } else if cause == Cause::Timer {
            self.reporter.fails(DRIFTED, "InPlace", "");
        }
        let reason = if changes.waiting.is_empty() {
            "Applied"
        } else {
            "Waiting"
        };
        self.reporter.holds(APPLIED, reason, changes.waits());
        self.reporter.phase(held, Phase::Applied);
    }

    /// Says how the objects fare; returns when to look again.
    async fn look_at_health(&mut self) -> Duration {
        let Some(objects) = self.runtime.health().await else {
            return self.timing.check;
        };
        let summary = health::summary(&objects);
        match health::worst(&objects) {
            Health::Current => {
                self.reporter.holds(HEALTHY, "Current", "");
                return self.timing.check;
            }
            Health::InProgress => self.reporter.unknown(HEALTHY, "InProgress", summary),
            Health::Failed => self.reporter.fails(HEALTHY, "Failed", summary),
        }
        self.timing.progress
    }

    fn failed(&mut self, held: Held, error: &ApplyError) {
        tracing::warn!(generation = %held.generation, error = error.explanation(), "not applied; trying again");
        self.reporter
            .fails(APPLIED, error.reason(), error.explanation());
        self.reporter.phase(held, Phase::Failed);
    }
}
