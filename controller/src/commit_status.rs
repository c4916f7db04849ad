//! Tells the forge how the tracked commit spreads, as the commit status `longshore/sync`.
//!
//! ```text
//! tracked commit ─┐
//! devices ────────┼─▶ Progress ─▶ CommitStatus ─▶ forge, where it says something new
//! fleet's status ─┘
//! ```
//!
//! Level-triggered: each look compares what should be told with what was told, which the store remembers. So a
//! restart repeats nothing, a forge that does not answer gets the newest state later, and the last thing told is
//! what is true. Whatever moves says "look"; the timer guarantees it. The more a commit was told of, the rarer
//! counts become; how it stands is told at once all the same, unless it flaps.
//!
//! A commit that was told to be under way when a newer one took its place is told to be superseded, so that no
//! commit waits for ever.

use std::{sync::Arc, time::Duration};

use longshore_protocol::{ConditionStatus, DeviceName};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    error::chain,
    forge::{CommitStatus, Forge, ForgeError, StatusState},
    replica::Lease,
    source::Observation,
    store::{
        Store, StoreError,
        devices::{self, Spread},
        fleets::{self, FleetId, FleetStatus},
    },
};

/// How often to look at most, which is how often the forge is told at most.
const BUSY: Duration = Duration::from_secs(2);
/// How often to look when nobody says that something moved.
const CALM: Duration = Duration::from_secs(30);
/// After how many statuses of one commit the pause before the next one doubles: GitHub takes 1000 of a commit.
/// <https://docs.github.com/en/rest/commits/statuses#create-a-commit-status>
const PATIENCE: u32 = 25;
/// The longest pause between two statuses of one commit.
const MAX_PAUSE: Duration = Duration::from_hours(6);
/// The longest pause between two tries of a forge that does not answer.
const MAX_BACKOFF: Duration = Duration::from_mins(5);
/// How many failing devices a status names.
const MAX_NAMES: u32 = 3;

/// Why a status was not told.
#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("the commit's status cannot be told")]
    Forge(#[from] ForgeError),
}

/// Follows the rollouts of one fleet.
#[derive(Clone, Debug)]
pub struct CommitStatuses {
    /// The fleet.
    pub fleet: FleetId,
    /// What the status is called.
    pub context: String,
    /// Where its repo is.
    pub forge: Arc<dyn Forge>,
    /// What the source sees.
    pub observation: watch::Receiver<Observation>,
    /// Says that the fleet's status or a device moved.
    pub progress: Arc<Notify>,
    /// Remembers.
    pub store: Store,
    /// Under what it writes.
    pub lease: Lease,
}

/// What was told of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    commit: String,
    state: StatusState,
    description: String,
    /// How many statuses of the commit changed the state, and how many did not.
    #[serde(default)]
    turns: u32,
    #[serde(default)]
    steps: u32,
}

impl Told {
    /// What is to be told after `before`, and how long after it.
    fn after(self, before: Option<&Self>) -> (Self, Duration) {
        let Some(before) = before.filter(|before| before.commit == self.commit) else {
            return (self, Duration::ZERO);
        };
        let (mut turns, mut steps) = (before.turns, before.steps);
        let times = if before.state == self.state {
            &mut steps
        } else {
            &mut turns
        };
        *times = times.saturating_add(1);
        let doubled = BUSY.saturating_mul(1 << (*times / PATIENCE).min(20));
        let told = Self {
            turns,
            steps,
            ..self
        };
        (told, doubled.min(MAX_PAUSE))
    }

    fn says(&self, commit: &str, state: StatusState, description: &str) -> bool {
        self.commit == commit && self.state == state && self.description == description
    }
}

/// How far a commit is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Why nobody gets anything of it, where the fleet cannot be read.
    unreadable: Option<String>,
    /// How far the devices are.
    spread: Spread,
    /// Whether what every device is to run is known and planned.
    planned: bool,
    /// How many removals wait for an operator.
    held: usize,
}

impl CommitStatuses {
    /// Looks and tells until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut failures: u32 = 0;
        let mut told_at = None;
        loop {
            self.observation.mark_unchanged();
            let (mut floor, mut pause) = (BUSY, CALM);
            match self.look(&mut told_at).await {
                Ok(rest) => {
                    failures = 0;
                    pause = rest.unwrap_or(CALM).min(CALM);
                }
                Err(error) => {
                    if failures == 0 {
                        warn!(error = %chain(&error), "this will be tried again");
                    }
                    failures += 1;
                    // What moves does not shorten what the forge asked for.
                    floor = BUSY.saturating_mul(1 << failures.min(9)).min(MAX_BACKOFF);
                    if let TellError::Forge(error) = &error {
                        floor = floor.max(error.retry_after().unwrap_or_default());
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(floor) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause.saturating_sub(floor)) => {}
                () = self.progress.notified() => {}
                told = self.observation.changed() => if told.is_err() { return },
            }
        }
    }

    /// Tells what is new, if anything. Returns how long to wait where it is too early.
    async fn look(&self, told_at: &mut Option<Instant>) -> Result<Option<Duration>, TellError> {
        let tracked = self
            .observation
            .borrow()
            .refs
            .as_ref()
            .and_then(|refs| Some(refs.tracked.as_ref()?.id.to_string()));
        let Some(commit) = tracked else {
            return Ok(None);
        };
        let mut db = self.store.read().await?;
        let Some(fleet) = fleets::find(&mut db, &self.fleet).await? else {
            return Ok(None);
        };
        let spread = devices::spread(&mut db, &self.fleet, MAX_NAMES).await?;
        let told = fleets::reported(&mut db, &self.fleet).await?;
        drop(db);
        let told: Option<Told> = told.and_then(|told| serde_json::from_str(&told).ok());
        if let Some(told) = told.as_ref().filter(|told| told.commit != commit) {
            self.supersede(told, &commit).await?;
        }
        let (state, description) = Progress::of(&commit, &fleet.status, spread).describe();
        if told
            .as_ref()
            .is_some_and(|told| told.says(&commit, state, &description))
        {
            return Ok(None);
        }
        let new = Told {
            commit,
            state,
            description,
            turns: 0,
            steps: 0,
        };
        let (now, pause) = new.after(told.as_ref());
        if let Some(rest) = told_at.and_then(|at| pause.checked_sub(at.elapsed()))
            && !rest.is_zero()
        {
            return Ok(Some(rest));
        }
        match self.tell(&now).await {
            // It would refuse it again; what comes next, it may take.
            Err(error @ ForgeError::Refused { .. }) => {
                warn!(error = %chain(&error), revision = now.commit, "its status stays as it is");
            }
            done => done?,
        }
        *told_at = Some(Instant::now());
        let text = serde_json::to_string(&now).unwrap_or_default();
        let mut db = self.lease.write(&self.store).await?;
        fleets::set_reported(&mut db, &self.fleet, &text).await?;
        db.commit().await.map_err(StoreError::from)?;
        if now.state != StatusState::Pending {
            info!(
                revision = now.commit,
                status = now.description,
                "told the forge"
            );
        }
        Ok(None)
    }

    /// Ends the status of a commit that a newer one took the place of.
    async fn supersede(&self, told: &Told, by: &str) -> Result<(), TellError> {
        if told.state != StatusState::Pending {
            return Ok(());
        }
        let by = by.get(..12).unwrap_or(by);
        let last = Told {
            state: StatusState::Success,
            description: format!("superseded by {by} at {}", told.description),
            ..told.clone()
        };
        match self.tell(&last).await {
            // A force push may have taken the commit away; then there is nothing to tell.
            Err(error @ (ForgeError::NotFound { .. } | ForgeError::Refused { .. })) => {
                debug!(error = %chain(&error), revision = told.commit, "its status stays");
                Ok(())
            }
            done => Ok(done?),
        }
    }

    async fn tell(&self, told: &Told) -> Result<(), ForgeError> {
        let status = CommitStatus {
            context: self.context.clone(),
            state: told.state,
            description: told.description.clone(),
            url: None,
        };
        self.forge.set_status(&told.commit, &status).await
    }
}

impl Progress {
    fn of(commit: &str, fleet: &FleetStatus, spread: Spread) -> Self {
        let in_force = fleet.revision.as_deref() == Some(commit);
        let condition = |kind: &str| fleet.conditions.iter().find(|it| it.kind == kind);
        let unreadable = condition("FleetValid")
            .filter(|it| in_force && it.reason == "Unreadable")
            .map(|it| it.message.clone());
        let planned = condition("Planned").is_some_and(|it| it.status == ConditionStatus::True);
        Self {
            unreadable,
            spread,
            planned: in_force && planned,
            held: fleet.held.len(),
        }
    }

    /// What is to be told.
    fn describe(&self) -> (StatusState, String) {
        if let Some(problem) = &self.unreadable {
            return (StatusState::Failure, problem.clone());
        }
        if !self.planned {
            return (StatusState::Pending, "finding out what changes".to_owned());
        }
        let Spread {
            devices, in_sync, ..
        } = self.spread;
        let all = plural(devices);
        if let Some(names) = self.names() {
            let description = format!("{} of {all} fail: {names}", self.spread.failing);
            return (StatusState::Failure, description);
        }
        if self.held > 0 {
            let description = format!(
                "{in_sync} of {all}; {} removals wait to be confirmed",
                self.held
            );
            return (StatusState::Pending, description);
        }
        if in_sync < devices {
            return (StatusState::Pending, format!("{in_sync} of {all}"));
        }
        (StatusState::Success, all)
    }

    /// The first few failing devices.
    fn names(&self) -> Option<String> {
        let first = &self.spread.failing_first;
        let others = self.spread.failing.saturating_sub(first.len() as u64);
        let first: Vec<_> = first.iter().map(DeviceName::as_str).collect();
        match (first.is_empty(), others) {
            (true, _) => None,
            (false, 0) => Some(first.join(", ")),
            (false, others) => Some(format!("{} and {others} more", first.join(", "))),
        }
    }
}

fn plural(devices: u64) -> String {
    match devices {
        1 => "1 device".to_owned(),
        many => format!("{many} devices"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(devices: u64, in_sync: u64) -> Progress {
        Progress {
            spread: Spread {
                devices,
                in_sync,
                ..Spread::default()
            },
            planned: true,
            ..Progress::default()
        }
    }

    #[test]
    fn a_rollout_in_words() {
        use StatusState::{Failure, Pending, Success};
        let failing = |failing: u64, names: &[&str]| {
            let mut progress = progress(412, 400);
            progress.spread.failing = failing;
            progress.spread.failing_first =
                names.iter().map(|name| name.parse().unwrap()).collect();
            progress
        };
        for (progress, state, description) in [
            (progress(412, 312), Pending, "312 of 412 devices"),
            (progress(412, 412), Success, "412 devices"),
            (progress(1, 1), Success, "1 device"),
            (progress(0, 0), Success, "0 devices"),
            (
                Progress {
                    planned: false,
                    ..progress(2, 2)
                },
                Pending,
                "finding out what changes",
            ),
            (
                Progress {
                    held: 40,
                    ..progress(412, 412)
                },
                Pending,
                "412 of 412 devices; 40 removals wait to be confirmed",
            ),
            (
                failing(2, &["a", "b"]),
                Failure,
                "2 of 412 devices fail: a, b",
            ),
            (
                failing(5, &["a", "b", "c"]),
                Failure,
                "5 of 412 devices fail: a, b, c and 2 more",
            ),
            (
                Progress {
                    unreadable: Some("fleet.yaml:3: fleet name `A`".to_owned()),
                    ..progress(2, 2)
                },
                Failure,
                "fleet.yaml:3: fleet name `A`",
            ),
        ] {
            assert_eq!(progress.describe(), (state, description.to_owned()));
        }
    }

    #[test]
    fn counts_become_rarer_and_what_matters_does_not() {
        use StatusState::{Pending, Success};
        let told = |state, steps| Told {
            commit: "c".to_owned(),
            state,
            description: String::new(),
            turns: 0,
            steps,
        };
        let after = |state, before: &Told| told(state, 0).after(Some(before));
        assert_eq!(told(Pending, 0).after(None).1, Duration::ZERO);
        assert_eq!(after(Pending, &told(Pending, 3)).1, BUSY);
        assert_eq!(after(Pending, &told(Pending, 49)).1, BUSY * 4);
        assert_eq!(after(Success, &told(Pending, 900)).1, BUSY);
        // However it moves, a commit stays below what GitHub takes for months.
        let (mut now, mut spent, mut times) = (told(Pending, 0), Duration::ZERO, 0);
        while times < 1000 {
            let state = if times % 3 == 0 { Success } else { Pending };
            let (next, pause) = after(state, &now);
            (now, spent, times) = (next, spent + pause, times + 1);
        }
        assert!(spent > Duration::from_hours(24 * 60), "{spent:?}");
    }
}
