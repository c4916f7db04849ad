//! Carries out a plan: one transaction, then pokes. Nothing is decided here.

use longshore_protocol::{api::DeviceState, message::Held};
use tracing::info;

use super::{ReconcileError, Reconciler, short};
use crate::{
    rollout::Plan,
    source::mirror::Commit,
    store::{
        StoreError, content,
        devices::{self, Description, Desired},
        fleets::{self, FleetStatus, Revision},
    },
};

/// All that one pass has to write.
#[derive(Debug)]
pub(super) struct Execution<'a> {
    /// Whether the commit was not in force before.
    pub is_new: bool,
    /// The fleet's status, where it changed.
    pub status: Option<FleetStatus>,
    pub commit: &'a Commit,
    /// How many problems the commit has.
    pub problems: u64,
    /// Devices' descriptions that changed.
    pub descriptions: Vec<Description>,
    /// Objects that are not in the store yet.
    pub fresh_objects: Vec<longshore_protocol::Object>,
    pub plan: Plan,
    pub now: u64,
}

impl Execution<'_> {
    fn is_nothing(&self) -> bool {
        self.status.is_none()
            && self.descriptions.is_empty()
            && self.fresh_objects.is_empty()
            && self.plan.moves.is_empty()
            && self.plan.decommissions.is_empty()
    }
}

impl Reconciler {
    pub(super) async fn execute(&self, execution: Execution<'_>) -> Result<(), ReconcileError> {
        if execution.is_nothing() {
            return Ok(());
        }
        let Execution {
            plan, commit, now, ..
        } = &execution;
        let revision = commit.id.to_string();
        let moves: Vec<_> = plan
            .moves
            .iter()
            .map(|change| {
                let target = Held {
                    generation: change.generation,
                    digest: change.set.digest(),
                };
                let objects = change.set.len() as u64;
                let revision = revision.clone();
                (
                    change.id.clone(),
                    Desired {
                        target,
                        revision,
                        objects,
                        since: *now,
                    },
                )
            })
            .collect();
        self.write(&execution, &revision, &moves).await?;
        self.parts.progress.notify_one();
        if execution.is_new || !moves.is_empty() || !plan.decommissions.is_empty() {
            info!(
                revision = short(&revision),
                changed = moves.len(),
                decommissioned = plan.decommissions.len(),
                held = plan.held.len(),
                problems = execution.problems,
                "revision in force"
            );
        }
        self.parts
            .metrics
            .desired_changes
            .inc_by(moves.len() as u64);
        if !plan.decommissions.is_empty() {
            self.parts.changes.tell();
        }
        self.parts
            .hub
            .poke(moves.iter().map(|(id, _)| id).chain(&plan.decommissions));
        Ok(())
    }

    async fn write(
        &self,
        execution: &Execution<'_>,
        revision: &str,
        moves: &[(longshore_protocol::DeviceId, Desired)],
    ) -> Result<(), StoreError> {
        let Execution { plan, commit, .. } = execution;
        let fleet = &self.parts.fleet;
        let tenant = &fleet.tenant;
        let mut db = self.parts.lease.write(&self.parts.store).await?;
        content::put_objects(&mut db, tenant, &execution.fresh_objects).await?;
        content::put_sets(
            &mut db,
            tenant,
            plan.moves.iter().map(|change| &*change.set),
        )
        .await?;
        devices::put_desired(&mut db, fleet, moves).await?;
        let gone = &plan.decommissions;
        let reason = format!("revision {} no longer has it", short(revision));
        devices::set_state(&mut db, fleet, gone, DeviceState::Decommissioned, &reason).await?;
        devices::describe(&mut db, fleet, &execution.descriptions).await?;
        if let Some(status) = &execution.status {
            fleets::set_status(&mut db, fleet, status).await?;
        }
        if execution.is_new || !moves.is_empty() {
            let revision = Revision {
                commit: revision.to_owned(),
                summary: commit.summary.clone(),
                author: commit.author.clone(),
                observed_at: execution.now,
                devices_changed: moves.len() as u64,
                problems: execution.problems,
            };
            fleets::record_revision(&mut db, fleet, &revision).await?;
        }
        db.commit().await?;
        // The devices' sessions are about to ask for these.
        self.parts.store.cache().put(
            tenant,
            plan.moves.iter().map(|change| &change.set),
            &execution.fresh_objects,
        );
        Ok(())
    }
}
