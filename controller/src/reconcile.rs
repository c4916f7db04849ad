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
mod desire;
mod execute;
pub mod roster;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use git2::Oid;
use longshore_fleet::{Fleet, Reader, RepoPath, Tree, closure::ClosureCache};
use longshore_protocol::{Condition, DeviceId, api::DeviceState, condition};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use self::execute::Execution;
use crate::{
    builds::{Asker, Builds, Purpose},
    clock,
    error::chain,
    fleets::Changes,
    hub::Hub,
    metrics::Metrics,
    replica::Lease,
    rollout::{self, Guard, Wanted},
    source::{
        Observation,
        git::GitError,
        mirror::{Commit, Mirror},
    },
    store::{
        Store, StoreError,
        devices::{self, Description, DeviceView},
        fleets::{self, FleetId, FleetStatus},
    },
};

/// How often to look without being poked. It also finds devices that missed a poke.
const INTERVAL: Duration = Duration::from_secs(30);
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
    desires: desire::Memory,
}

/// What the repo says at one commit.
pub struct Reading {
    /// The commit.
    pub commit: Oid,
    /// The fleet, or why there is none.
    pub fleet: Result<Fleet, String>,
    tree: Arc<dyn Tree>,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading")
            .field("commit", &self.commit)
            .field("fleet", &self.fleet)
            .finish_non_exhaustive()
    }
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
            desires: desire::Memory::default(),
        }
    }

    /// Passes until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut observation = self.parts.observation.clone();
        loop {
            observation.mark_unchanged();
            let started = Instant::now();
            match self.pass().await {
                Ok(()) => {}
                Err(error) => error!(
                    error = %chain(&error),
                    "the pass failed; it will be tried again"
                ),
            }
            self.parts.metrics.reconciliations.inc();
            self.parts
                .metrics
                .reconcile_seconds
                .observe(started.elapsed().as_secs_f64());
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
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
        let devices = devices::list(&mut db, &self.parts.fleet).await?;
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
        let devices = self.approve(&refs, fleet, devices).await?;
        self.steer(&row, status, &commit, &reading, fleet, devices)
            .await
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
        let (root, commit) = (self.parts.root.clone(), commit.id);
        let (reader, reading) = blocking(move || {
            let fleet = reader
                .read(&*tree, &root)
                .map_err(|error| error.to_string());
            let reading = Reading {
                commit,
                fleet,
                tree,
            };
            (reader, Arc::new(reading))
        })
        .await?;
        self.reader = reader;
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
        reading: &Reading,
        fleet: &Fleet,
        devices: Vec<DeviceView>,
    ) -> Result<(), ReconcileError> {
        let now = clock::now_ms();
        let revision = commit.id.to_string();
        let active: Vec<_> = devices
            .into_iter()
            .filter(|view| view.device.state == DeviceState::Active)
            .collect();
        let mut desires = self.desire(reading, fleet, &active).await?;
        let guard = Guard {
            max_removals: fleet.settings.max_decommission.of(active.len()),
            confirmed: row.confirmed_revision.as_deref() == Some(&*revision),
        };
        let building = desires
            .candidates
            .iter()
            .filter(|candidate| matches!(candidate.wanted, Wanted::Building))
            .count();
        let plan = rollout::plan(std::mem::take(&mut desires.candidates), guard);

        let mut problems: Vec<_> = fleet.problems.iter().map(ToString::to_string).collect();
        problems.append(&mut desires.problems);
        problems.dedup();
        let problem_count = problems.len() as u64;
        problems.truncate(MAX_PROBLEMS);
        condition::set(
            &mut status.conditions,
            conditions::valid(problem_count, &problems, now),
        );
        condition::set(&mut status.conditions, conditions::planned(building, now));
        condition::set(
            &mut status.conditions,
            conditions::held(&plan.held, &self.parts.fleet.name, &revision, now),
        );
        status.problems = problems;
        status.held.clone_from(&plan.held);
        status.revision = Some(revision.clone());
        self.execute(Execution {
            is_new: row.status.revision != status.revision,
            status: (status != row.status).then_some(status),
            commit,
            problems: problem_count,
            descriptions: changed_descriptions(&active, desires.descriptions),
            fresh_objects: desires.fresh_objects,
            plan,
            now,
        })
        .await?;
        self.desires.sets = desires.sets;
        let lagging = active
            .iter()
            .filter(|view| view.connection.connected && lags(view));
        self.parts.hub.poke(lagging.map(|view| &view.device.id));
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

/// Whether a device does not hold what it should.
fn lags(view: &DeviceView) -> bool {
    view.desired.as_ref().is_some_and(|desired| {
        view.observed
            .as_ref()
            .is_none_or(|observed| observed.report.held != desired.target)
    })
}

/// Only what differs from what the store has, so that a pass without news writes nothing.
fn changed_descriptions(
    active: &[DeviceView],
    descriptions: BTreeMap<DeviceId, Description>,
) -> Vec<Description> {
    let before: HashMap<_, _> = active
        .iter()
        .map(|view| (&view.device.id, &view.device))
        .collect();
    descriptions
        .into_values()
        .filter(|now| {
            before.get(&now.id).is_some_and(|before| {
                before.name != now.name
                    || before.labels != now.labels
                    || before.conditions != now.conditions
            })
        })
        .collect()
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
