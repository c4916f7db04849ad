//! Makes the runtime match what the ledger holds, for as long as the agent runs.
//!
//! The loop is level-triggered: whatever woke it (a new holding, a hand in the runtime, the timer, the end of a
//! backoff), it does the same thing, one pass of the runtime over the latest holding. Holdings that are
//! overtaken while a pass runs are never begun.
//!
//! Then it asks how the objects fare, more often while some are on their way, and says so in `Healthy`.
//!
//! Which set that is, [`crate::update`] decides: the one that was accepted, or, while that has to wait or has
//! failed, the last good one.
//!
//! A pass that changes something although this holding was applied before has repaired drift. `Drifted` then
//! says what, at least until the next timed pass finds everything in place.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use longshore_protocol::{
    message::{Held, Phase},
    session::Holding,
};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    causes,
    files::FileError,
    ledger::Ledger,
    report::{APPLIED, DRIFTED, HEALTHY, LEDGER_WRITABLE, ROLLED_BACK, Reporter, UPDATE_HELD},
    runtime::{
        ApplyError, Changes, Runtime,
        health::{self, Health},
    },
    update::{self, Aim, Stay, Updates},
    watchdog,
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
    /// How long a set has to stay healthy before it is what to fall back to, where the runtime knows health.
    pub steady: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            check: Duration::from_mins(1),
            progress: Duration::from_secs(2),
            settle: Duration::from_millis(250),
            steady: Duration::from_secs(30),
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
    /// What the runtime matched last.
    applied: Option<Held>,
    /// Which set was in place, if only in parts, when the runtime was asked for its version.
    probed: Option<Held>,
    /// Why the last pass failed, where it did.
    failing: String,
    /// Whether there is something in the runtime that other hands could change.
    is_watched: bool,
    /// The set that the hook after updates ran for last.
    followed_up: Option<Held>,
    updates: Updates,
    ledger: Option<Arc<Ledger>>,
    /// What it applies to, with its version.
    version: watch::Sender<String>,
}

/// What a pass is about.
struct Pass {
    /// What was accepted, which is what the report is about.
    held: Held,
    cause: Cause,
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
            probed: None,
            failing: String::new(),
            is_watched: false,
            followed_up: None,
            updates: Updates::default(),
            ledger: None,
            version: watch::Sender::default(),
        }
    }

    /// Tells what the runtime is, with its version, whenever a set was applied anew.
    pub fn version(&self) -> watch::Receiver<String> {
        self.version.subscribe()
    }

    /// Moves from set to set as `updates` decides, and keeps in `ledger` what the next start has to know.
    #[must_use]
    pub fn carefully(mut self, updates: Updates, ledger: Arc<Ledger>) -> Self {
        self.updates = updates;
        self.ledger = Some(ledger);
        self
    }

    /// Runs until it is stopped, and gives the runtime back. A pass that has begun is finished first.
    pub async fn run(mut self, stop: CancellationToken) -> Box<R> {
        let mut cause = Cause::Target;
        if self.updates.resume() {
            self.remember_way().await;
        }
        loop {
            watchdog::beat(Duration::ZERO);
            let wait = self.pass(cause).await;
            watchdog::beat(wait);
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
            () = disturbance, if self.is_watched => Cause::Disturbance,
            () = timer => Cause::Timer,
        }
    }

    /// One pass; returns after how long there should be another one at the latest.
    async fn pass(&mut self, cause: Cause) -> Duration {
        let Some(accepted) = self.target.borrow_and_update().clone() else {
            return self.timing.check;
        };
        let held = accepted.held();
        let pass = Pass { held, cause };
        let now = self.reporter.now();
        match self.updates.aim(&accepted, now) {
            Aim::Forward { holding, begins } => {
                self.tell_what_is_held_back(&accepted);
                if begins && let Err((reason, error)) = self.begin(&holding).await {
                    return self.not_begun(&pass, reason, error).await;
                }
                self.reporter.withdraw(ROLLED_BACK);
                self.forward(&pass, holding).await
            }
            Aim::Stay { base, why } => self.stay(&pass, base, &why, now).await,
        }
    }

    /// Applies what was accepted, and sees to it that it becomes healthy.
    async fn forward(&mut self, pass: &Pass, holding: Arc<Holding>) -> Duration {
        let held = holding.held();
        if self.updates.is_first() {
            self.updates.began(&holding);
            self.remember_base(holding.clone()).await;
        }
        if self.applied != Some(held) {
            self.reporter.phase(pass.held, Phase::Applying);
        }
        match self.apply(pass, holding.clone()).await {
            Ok(changes) => {
                let is_waiting = !changes.waiting.is_empty();
                let reason = if is_waiting { "Waiting" } else { "Applied" };
                self.reporter.holds(APPLIED, reason, changes.waits());
                self.reporter.phase(pass.held, Phase::Applied);
                self.prove(holding).await
            }
            Err(error) => {
                self.failed(pass.held, &error);
                if error.is_lasting() {
                    // No try will do better, and the rest is the best that this device can run.
                    return self.prove(holding).await;
                }
                let wait = self.backoff.after_failure().max(self.timing.settle);
                if error.is_partial() {
                    self.look_at_health().await;
                }
                if error.is_the_sets() {
                    return self.not_healthy(held, error.explanation(), wait).await;
                }
                self.updates.excuse(Instant::now());
                wait
            }
        }
    }

    /// Sees whether what is applied is healthy, and stays so: then it is what to fall back to.
    async fn prove(&mut self, holding: Arc<Holding>) -> Duration {
        let held = holding.held();
        let health = self.look_at_health().await;
        if let Some((Health::InProgress | Health::Failed, why)) = health {
            self.backoff.reset();
            return self.not_healthy(held, why, self.timing.progress).await;
        }
        let knows = self.runtime.knows_health();
        if knows && health.is_none() {
            self.updates.excuse(Instant::now());
            return self.timing.progress;
        }
        if let Err(error) = self.follow_up(&holding).await {
            self.reporter.fails(HEALTHY, "AfterUpdateFailed", &error);
            let wait = self.backoff.after_failure();
            return self.not_healthy(held, error, wait).await;
        }
        self.backoff.reset();
        let steady = if knows {
            self.timing.steady
        } else {
            Duration::ZERO
        };
        if let Some(rest) = self.updates.unsteady(held, Instant::now(), steady) {
            return rest.min(self.timing.check);
        }
        if self.updates.succeeded(&holding) {
            self.remember_base(holding).await;
        }
        self.timing.check
    }

    /// Keeps the base in place while what was accepted waits or is given up.
    async fn stay(
        &mut self,
        pass: &Pass,
        base: Arc<Holding>,
        why: &Stay,
        now: Timestamp,
    ) -> Duration {
        let mut wait = self.timing.check;
        let (phase, reason, message) = match why {
            Stay::Closed { opens } => {
                let message = opens.map_or_else(
                    || "no update window ever opens".to_owned(),
                    |opens| format!("the next update window opens at {opens}"),
                );
                let until = opens.and_then(|opens| opens.duration_since(now).try_into().ok());
                wait = until.unwrap_or(wait).min(wait);
                self.reporter.holds(UPDATE_HELD, "OutsideWindow", &message);
                (Phase::Pending, "OutsideWindow", message)
            }
            Stay::Refused(refusal) => {
                let message = format!(
                    "it did not become healthy, so the set of generation {} is back; the next change of the desired \
                     state is tried again: {}",
                    base.generation(),
                    refusal.why
                );
                self.reporter.holds(ROLLED_BACK, "NotHealthy", &message);
                (Phase::Failed, "RolledBack", message)
            }
        };
        let applied = self.apply(pass, base).await;
        if let Err(error) = &applied
            && !error.is_lasting()
        {
            self.failed(pass.held, error);
            return self.backoff.after_failure().max(self.timing.settle);
        }
        self.backoff.reset();
        self.reporter.fails(APPLIED, reason, message);
        self.reporter.phase(pass.held, phase);
        match self.look_at_health().await {
            Some((Health::InProgress | Health::Failed, _)) => wait.min(self.timing.progress),
            Some((Health::Current, _)) | None => wait,
        }
    }

    /// Makes the runtime match, and says what that took.
    async fn apply(&mut self, pass: &Pass, holding: Arc<Holding>) -> Result<Changes, ApplyError> {
        let held = holding.held();
        let applied = self.runtime.apply(holding).await;
        let in_place = applied
            .as_ref()
            .map_or_else(ApplyError::is_partial, |_| true);
        self.is_watched |= in_place;
        if in_place
            && self.probed.replace(held) != Some(held)
            && let Ok(version) = self.runtime.probe().await
        {
            self.version.send_replace(version);
        }
        if applied.as_ref().is_err_and(ApplyError::is_lasting) {
            self.applied = Some(held);
        }
        let changes = applied?;
        self.failing.clear();
        let fresh = self.applied.replace(held) != Some(held);
        self.tell_drift(held, fresh, pass.cause, &changes);
        Ok(changes)
    }

    /// What comes before an update, while the last good set runs on.
    async fn begin(&mut self, holding: &Arc<Holding>) -> Result<(), (&'static str, String)> {
        self.runtime
            .prepare(holding)
            .await
            .map_err(|error| (error.reason(), error.explanation()))?;
        self.updates
            .policy
            .hooks
            .before(holding)
            .await
            .map_err(|error| ("BeforeUpdateFailed", error.to_string()))?;
        if self.updates.began(holding) {
            self.remember_base(holding.clone()).await;
        } else {
            self.remember_way().await;
        }
        Ok(())
    }

    /// The update cannot begin: the last good set stays, and there is another try.
    async fn not_begun(&mut self, pass: &Pass, reason: &'static str, error: String) -> Duration {
        tracing::warn!(generation = %pass.held.generation, reason, error, "the update does not begin; trying again");
        self.reporter.holds(UPDATE_HELD, reason, &error);
        self.reporter.fails(APPLIED, reason, error);
        self.reporter.phase(pass.held, Phase::Pending);
        if let Some(base) = self.updates.record().base.clone()
            && let Err(error) = self.apply(pass, base).await
        {
            tracing::warn!(
                error = error.explanation(),
                "nor is the set before it in place"
            );
        }
        self.backoff.after_failure().max(self.timing.settle)
    }

    /// Runs the hook after updates, once for each set.
    async fn follow_up(&mut self, holding: &Arc<Holding>) -> Result<(), String> {
        let held = holding.held();
        if !self.updates.is_under_way(held) || self.followed_up == Some(held) {
            return Ok(());
        }
        let after = self.updates.policy.hooks.after(holding).await;
        after.map_err(|error| error.to_string())?;
        self.followed_up = Some(held);
        Ok(())
    }

    /// Gives the set up, at once, when its time is over, and has another look after `wait` before.
    async fn not_healthy(&mut self, held: Held, why: String, wait: Duration) -> Duration {
        let now = Instant::now();
        if !self.updates.is_overdue(held, now) {
            if self.updates.count(now) {
                self.remember_way().await;
            }
            return wait;
        }
        tracing::error!(generation = %held.generation, why, "not healthy in time; going back to the last good set");
        self.updates.refuse(held, why);
        self.remember_way().await;
        Duration::ZERO
    }

    fn tell_what_is_held_back(&self, accepted: &Holding) {
        let held_back = update::held_back(accepted);
        if held_back.is_empty() {
            self.reporter.withdraw(UPDATE_HELD);
        } else {
            let objects = held_back.join(", ");
            self.reporter.holds(UPDATE_HELD, "Annotated", objects);
        }
    }

    /// Remembers what updates move away from. What is cut off in between is found as it was before, or not proven.
    async fn remember_base(&mut self, holding: Arc<Holding>) {
        let way = self.updates.record().way.clone();
        self.remember(move |ledger| {
            if way.unproven {
                ledger.store_way(&way)?;
            }
            ledger.store_base(&holding)?;
            ledger.store_way(&way)
        })
        .await;
    }

    async fn remember_way(&mut self) {
        let way = self.updates.record().way.clone();
        self.remember(move |ledger| ledger.store_way(&way)).await;
    }

    /// Where it cannot be remembered, all goes on: a restart may then repeat what was tried before.
    async fn remember(
        &mut self,
        write: impl FnOnce(&Ledger) -> Result<(), FileError> + Send + 'static,
    ) {
        let Some(ledger) = self.ledger.clone() else {
            return;
        };
        watchdog::allow(watchdog::FILES);
        let written = tokio::task::spawn_blocking(move || write(&ledger)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(
                error = causes(&error),
                "the way of the update is not recorded"
            );
            self.reporter
                .fails(LEDGER_WRITABLE, "NotWritable", causes(&error));
        }
    }

    fn tell_drift(&self, held: Held, fresh: bool, cause: Cause, changes: &Changes) {
        if fresh {
            tracing::info!(generation = %held.generation, written = changes.written.len(), removed = changes.removed.len(), "applied");
            self.reporter.fails(DRIFTED, "InPlace", "");
        } else if !changes.is_empty() {
            tracing::warn!(generation = %held.generation, repaired = changes.summary(), "repaired drift");
            self.reporter.holds(DRIFTED, "Repaired", changes.summary());
        } else if cause == Cause::Timer {
            self.reporter.fails(DRIFTED, "InPlace", "");
        }
    }

    /// Says how the objects fare, and why not better, where the runtime knows.
    async fn look_at_health(&mut self) -> Option<(Health, String)> {
        let objects = self.runtime.health().await?;
        let (health, summary) = (health::worst(&objects), health::summary(&objects));
        match health {
            Health::Current => self.reporter.holds(HEALTHY, "Current", ""),
            Health::InProgress => self.reporter.unknown(HEALTHY, "InProgress", &summary),
            Health::Failed => self.reporter.fails(HEALTHY, "Failed", &summary),
        }
        Some((health, summary))
    }

    fn failed(&mut self, held: Held, error: &ApplyError) {
        let explanation = error.explanation();
        // The same again and again says nothing new, and wears out a device's flash.
        if self.failing != explanation {
            tracing::warn!(generation = %held.generation, error = explanation, "not applied; trying again");
            self.failing.clone_from(&explanation);
        }
        self.reporter.fails(APPLIED, error.reason(), explanation);
        self.reporter.phase(held, Phase::Failed);
    }
}
