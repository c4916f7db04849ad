//! Brings one fleet's desired states in line with its repo.
//!
//! ```text
//! observation ─┐
//! build done ──┼─▶ pass: fleet ─▶ closures ─▶ builds known? ─▶ plan ─▶ store ─▶ poke devices
//! timer ───────┘                                   └─ no: start them; their end pokes the next pass
//! ```
//!
//! A pass takes no input but the store and the observation, and never waits for a build. So the first pass
//! after a start, the pass after a push and the pass after a build are the same code.

mod approve;
mod conditions;
mod decide;
mod desire;
mod execute;
mod reading;
pub mod roster;

use std::{sync::Arc, time::Duration};

use longshore_fleet::{ClosureCache, Fleet, Reader, RepoPath, Tree, TreeError};
use longshore_protocol::{Condition, condition};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::error;

pub use self::reading::Reading;
use self::{execute::Execution, roster::Roster};
use crate::{
    builds::{Asker, Builds, Purpose},
    clock,
    error::chain,
    fleets::Changes,
    hub::Hub,
    metrics::Metrics,
    replica::Lease,
    rollout::{self, Guard},
    source::{
        Observation,
        git::GitError,
        mirror::{Commit, Mirror},
    },
    store::{
        Store, StoreError, devices,
        fleets::{self, FleetId, FleetStatus},
    },
};

/// How often to look without being poked. It also finds devices that missed a poke.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long to wait after a pass that failed; each further failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How many problems a fleet's status lists.
const MAX_PROBLEMS: usize = 100;

/// Why a pass ended early. The next one starts afresh.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The mirror failed.
    #[error("the repo's mirror failed")]
    Mirror(#[from] GitError),
    /// The commit's tree cannot be read.
    #[error("the repo's mirror cannot be read")]
    Tree(#[from] TreeError),
    /// A task was cut off by the shutdown.
    #[error("the pass was cut off")]
    Cut,
}

/// What a fleet's reconciler works with.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The fleet.
    pub fleet: FleetId,
    /// Its folder in the repo.
    pub root: RepoPath,
    /// Its repo's mirror.
    pub mirror: Mirror,
    /// What the source sees.
    pub observation: watch::Receiver<Observation>,
    /// Says "look".
    pub poke: Arc<Notify>,
    /// Takes what the tracked branch says, for those who work with it too.
    pub readings: watch::Sender<Option<Arc<Reading>>>,
    /// Counts passes that changed a device's state, for those who wait for an approval.
    pub changes: Changes,
    /// Says that the fleet's status or a device's desired state moved.
    pub progress: Arc<Notify>,
    /// Remembers.
    pub store: Store,
    /// Builds.
    pub builds: Builds,
    /// Reaches devices.
    pub hub: Arc<Hub>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Under what it writes.
    pub lease: Lease,
}

/// One fleet's reconciler. What it remembers between passes only saves work.
#[derive(Debug)]
pub struct Reconciler {
    parts: Parts,
    asker: Asker,
    reader: Reader,
    closures: ClosureCache,
    read: Option<Arc<Reading>>,
    roster: Roster,
    memory: desire::Memory,
}

impl Reconciler {
    /// A reconciler that has seen nothing yet.
    pub fn new(parts: Parts) -> Self {
        let tenant = &parts.fleet.tenant;
        Self {
            asker: parts.builds.asker(tenant, Purpose::Devices, &parts.poke),
            parts,
            reader: Reader::new(),
            closures: ClosureCache::default(),
            read: None,
            roster: Roster::default(),
            memory: desire::Memory::default(),
        }
    }

    /// Passes until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut observation = self.parts.observation.clone();
        let mut is_due = false;
        let mut failures = 0_u32;
        // However often somebody pokes.
        let mut due = tokio::time::interval(INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            observation.mark_unchanged();
            let started = Instant::now();
            let done = match self.pass().await {
                Ok(()) if is_due => self.remind().await,
                done => done,
            };
            match done {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    error!(error = %chain(&error), "the pass failed; it will be tried again");
                }
            }
            self.parts.metrics.reconciliations.inc();
            self.parts
                .metrics
                .reconcile_seconds
                .observe(started.elapsed().as_secs_f64());
            is_due = false;
            let again = FIRST_PAUSE
                .saturating_mul(1 << failures.saturating_sub(1).min(10))
                .min(INTERVAL);
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = due.tick() => is_due = true,
                () = tokio::time::sleep(again), if failures > 0 => {}
                () = self.parts.poke.notified() => {}
                changed = observation.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn pass(&mut self) -> Result<(), ReconcileError> {
        let Observation { refs, problem } = self.parts.observation.borrow().clone();
        let now = clock::now_ms();
        let mut db = self.parts.store.read().await?;
        let Some(row) = fleets::find(&mut db, &self.parts.fleet).await? else {
            return Ok(());
        };
        let changed = self.roster.refresh(&mut db, &row).await?;
        self.memory.doubt(changed);
        drop(db);
        let mut status = row.status.clone();
        condition::set(
            &mut status.conditions,
            conditions::source(refs.as_ref(), problem, now),
        );
        let Some(refs) = refs else {
            return self.finish(&row.status, status).await;
        };
        let Some(commit) = refs.tracked.clone() else {
            return self.finish(&row.status, status).await;
        };
        let reading = self.read(&commit).await?;
        let fleet = match &reading.fleet {
            Ok(fleet) => fleet,
            Err(problem) => {
                condition::set(
                    &mut status.conditions,
                    Condition::fails("FleetValid", "Unreadable", problem.clone(), now),
                );
                status.problems = vec![problem.clone()];
                status.revision = Some(commit.id.to_string());
                return self.finish(&row.status, status).await;
            }
        };
        if self.roster.want(&fleet.settings.labels_from_facts) {
            self.refresh().await?;
        }
        if self.approve(&reading, fleet).await? {
            self.refresh().await?;
        }
        self.steer(&row, status, &commit, &reading, fleet).await
    }

    async fn refresh(&mut self) -> Result<(), ReconcileError> {
        let mut db = self.parts.store.read().await?;
        if let Some(row) = fleets::find(&mut db, &self.parts.fleet).await? {
            let changed = self.roster.refresh(&mut db, &row).await?;
            self.memory.doubt(changed);
        }
        Ok(())
    }

    /// Reads the fleet at a commit; the same commit is read once.
    async fn read(&mut self, commit: &Commit) -> Result<Arc<Reading>, ReconcileError> {
        if let Some(reading) = &self.read
            && reading.commit == commit.id
        {
            return Ok(reading.clone());
        }
        let tree: Arc<dyn Tree> = self.parts.mirror.tree(commit.id).await?;
        let mut reader = std::mem::take(&mut self.reader);
        let mut closures = std::mem::take(&mut self.closures);
        let (root, commit, last) = (self.parts.root.clone(), commit.id, self.read.clone());
        let (reader, closures, read) = blocking(move || {
            let last = last.as_deref();
            let read = Reading::take(commit, tree, &root, last, &mut reader, &mut closures);
            (reader, closures, read)
        })
        .await?;
        self.reader = reader;
        self.closures = closures;
        match &read {
            Ok((_, Some(news))) => {
                let ids = news.keys.iter().filter_map(|key| self.roster.with_key(key));
                self.memory.doubt(ids.cloned());
                self.memory.doubt_overlays(&news.overlays);
            }
            Ok((_, None)) | Err(_) => self.memory.doubt_all(),
        }
        let reading = Arc::new(read?.0);
        self.read = Some(reading.clone());
        self.parts.readings.send_replace(Some(reading.clone()));
        Ok(reading)
    }

    /// Finds what each active device is to run, plans, and carries the plan out.
    async fn steer(
        &mut self,
        row: &fleets::Fleet,
        mut status: FleetStatus,
        commit: &Commit,
        reading: &Arc<Reading>,
        fleet: &Arc<Fleet>,
    ) -> Result<(), ReconcileError> {
        let now = clock::now_ms();
        let revision = commit.id.to_string();
        let desires = self.desire(reading, fleet).await?;
        let guard = Guard {
            max_removals: (fleet.settings.max_decommission).of(self.roster.active_count()),
            confirmed: row.confirmed_revision.as_deref() == Some(&*revision),
        };
        let plan = rollout::plan(self.candidates(), guard);
        condition::set(
            &mut status.conditions,
            conditions::valid(desires.problem_count, &desires.problems, now),
        );
        let building = conditions::planned(desires.building, now);
        condition::set(&mut status.conditions, building);
        condition::set(
            &mut status.conditions,
            conditions::held(&plan.held, &self.parts.fleet.name, &revision, now),
        );
        status.problems = desires.problems;
        status.held.clone_from(&plan.held);
        status.revision = Some(revision.clone());
        self.execute(Execution {
            is_new: row.status.revision != status.revision,
            status: (status != row.status).then_some(status),
            commit,
            problems: desires.problem_count,
            descriptions: desires.descriptions,
            renames: desires.renames,
            targets: desires.targets,
            plan,
            now,
        })
        .await
    }

    /// Pokes the devices that are connected and do not hold what they should: they may have missed a poke.
    async fn remind(&self) -> Result<(), ReconcileError> {
        let mut db = self.parts.store.read().await?;
        let lagging = devices::lagging(&mut db, &self.parts.fleet).await?;
        drop(db);
        self.parts.hub.poke(&lagging);
        Ok(())
    }

    /// Ends a pass that got no further than the fleet's status.
    async fn finish(&self, before: &FleetStatus, after: FleetStatus) -> Result<(), ReconcileError> {
        if *before != after {
            let mut db = self.parts.lease.write(&self.parts.store).await?;
            fleets::set_status(&mut db, &self.parts.fleet, &after).await?;
            db.commit().await.map_err(StoreError::from)?;
            self.parts.progress.notify_one();
        }
        Ok(())
    }
}

fn short(revision: &str) -> &str {
    revision.get(..12).unwrap_or(revision)
}

/// Runs pure but heavy work where it does not hold up other tasks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReconcileError> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .map_err(|_cut| ReconcileError::Cut)
}
