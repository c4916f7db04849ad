//! The state that the agent reports: what it holds, how far the runtime is, and its conditions.
//!
//! Whoever knows something changes it here; the link sends the latest state when it changed. Intermediate
//! states may be skipped, the last one never is.

use jiff::Timestamp;
use longshore_protocol::{
    Condition, Generation, ManifestSet, condition,
    message::{Held, Phase, StatusReport},
};
use tokio::sync::watch;

use crate::{clock::Clock, journal::Journal};

/// The runtime matches what was accepted last.
pub const APPLIED: &str = "Applied";
/// The runtime had been changed by other hands, and was put right.
pub const DRIFTED: &str = "Drifted";
/// What was applied is what it is meant to be; unknown while it is on its way.
pub const HEALTHY: &str = "Healthy";
/// What was accepted waits, and why.
pub const UPDATE_HELD: &str = "UpdateHeld";
/// What was accepted did not become healthy, and the last good set runs.
pub const ROLLED_BACK: &str = "RolledBack";
/// Nobody could be told how the device does; what happened then.
pub const OFFLINE: &str = "Offline";
/// The ledger can be read and written.
pub const LEDGER_WRITABLE: &str = "LedgerWritable";
/// The settings' file is not in force, and why.
pub const CONFIG_INVALID: &str = "ConfigInvalid";

/// Changes the report.
#[derive(Clone, Debug)]
pub struct Reporter {
    latest: watch::Sender<StatusReport>,
    clock: Clock,
    journal: Journal,
}

impl Reporter {
    /// A report of a device that holds this, or nothing yet. Conditions are timed by `clock`.
    pub fn new(held: Option<Held>, clock: impl Into<Clock>) -> Self {
        let nothing = Held {
            generation: Generation::default(),
            digest: ManifestSet::empty().digest(),
        };
        let first = StatusReport {
            held: held.unwrap_or(nothing),
            phase: Phase::Pending,
            conditions: Vec::new(),
        };
        Self {
            latest: watch::Sender::new(first),
            clock: clock.into(),
            journal: Journal::default(),
        }
    }

    /// Writes down in this journal what changes while nobody can be told.
    #[must_use]
    pub fn writing_to(mut self, journal: Journal) -> Self {
        self.journal = journal;
        self
    }

    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The time by the clock that conditions are timed with.
    pub fn now(&self) -> Timestamp {
        let now = i64::try_from(self.clock.now()).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(now).unwrap_or(Timestamp::MAX)
    }

    /// Follows the report.
    pub fn follow(&self) -> watch::Receiver<StatusReport> {
        self.latest.subscribe()
    }

    /// How far the runtime is with what.
    pub fn phase(&self, held: Held, phase: Phase) {
        self.change(|report| {
            report.held = held;
            report.phase = phase;
        });
    }

    /// Something holds.
    pub fn holds(&self, kind: &str, reason: &str, message: impl Into<String>) {
        let stated = Condition::holds(kind, reason, message, self.clock.now());
        self.change(|report| condition::set(&mut report.conditions, stated));
    }

    /// Something does not hold.
    pub fn fails(&self, kind: &str, reason: &str, message: impl Into<String>) {
        let stated = Condition::fails(kind, reason, message, self.clock.now());
        self.change(|report| condition::set(&mut report.conditions, stated));
    }

    /// Nobody knows yet whether something holds.
    pub fn unknown(&self, kind: &str, reason: &str, message: impl Into<String>) {
        let stated = Condition::unknown(kind, reason, message, self.clock.now());
        self.change(|report| condition::set(&mut report.conditions, stated));
    }

    /// There is nothing to say of this any more.
    pub fn withdraw(&self, kind: &str) {
        self.change(|report| report.conditions.retain(|condition| condition.kind != kind));
    }

    fn change(&self, change: impl FnOnce(&mut StatusReport)) {
        self.latest.send_if_modified(|report| {
            let before = report.clone();
            change(report);
            let (generation, now) = (report.held.generation, self.clock.now());
            self.journal
                .note(generation, &before.conditions, &report.conditions, now);
            *report != before
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_wake_the_link() {
        let reporter = Reporter::new(None, || 7);
        let mut follower = reporter.follow();
        assert!(!follower.has_changed().unwrap());
        reporter.holds(APPLIED, "Applied", "");
        assert!(follower.has_changed().unwrap());
        assert_eq!(follower.borrow_and_update().conditions.len(), 1);
        reporter.holds(APPLIED, "Applied", "");
        assert!(!follower.has_changed().unwrap());
        reporter.fails(APPLIED, "DiskFull", "no space");
        assert!(follower.has_changed().unwrap());
    }
}
