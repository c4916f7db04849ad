//! Carries out a plan. Nothing is decided here.
//!
//! A commit that moves many devices is written in batches, so that others get to write in between and devices start
//! before the last one is planned for. What says that the commit is in force, decommissions and new names go with the
//! last batch. Where that is not reached, the next pass finds what is left.

use std::{collections::HashMap, sync::Arc};

use longshore_protocol::{DeviceId, ManifestSet, Object, api::DeviceState, message::Held};
use tracing::info;

use super::{ReconcileError, Reconciler, decide::Target, short};
use crate::{
    rollout::Plan,
    source::mirror::Commit,
    store::{
        StoreError, content,
        devices::{self, Description, Desired},
        fleets::{self, FleetStatus, Revision},
    },
};

/// How many devices move in one transaction.
const BATCH: usize = 1000;

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
    /// Those that change a device's name, too.
    pub renames: Vec<Description>,
    /// What the devices that move are to run.
    pub targets: HashMap<DeviceId, Target>,
    pub plan: Plan,
    pub now: u64,
}

/// What is written in one transaction.
#[derive(Debug, Default)]
struct Batch {
    objects: Vec<Object>,
    sets: Vec<Arc<ManifestSet>>,
    moves: Vec<(DeviceId, Desired)>,
    descriptions: Vec<Description>,
    decommissions: Vec<DeviceId>,
    status: Option<FleetStatus>,
    revision: Option<Revision>,
}

impl Execution<'_> {
    fn is_nothing(&self) -> bool {
        self.status.is_none()
            && self.descriptions.is_empty()
            && self.renames.is_empty()
            && self.plan.moves.is_empty()
            && self.plan.decommissions.is_empty()
    }

    fn into_batches(mut self) -> Vec<Batch> {
        let commit = self.commit.id.to_string();
        let revision = |moved: usize| Revision {
            commit: commit.clone(),
            summary: self.commit.summary.clone(),
            author: self.commit.author.clone(),
            observed_at: self.now,
            devices_changed: moved as u64,
            problems: self.problems,
        };
        let mut batches = Vec::new();
        let mut moves = self.plan.moves.into_iter().peekable();
        let mut descriptions = self.descriptions.into_iter().peekable();
        loop {
            let mut batch = Batch::default();
            for change in moves.by_ref().take(BATCH) {
                let Some(target) = self.targets.remove(&change.id) else {
                    continue;
                };
                let desired = Desired {
                    target: Held {
                        generation: change.generation,
                        digest: change.digest,
                    },
                    revision: commit.clone(),
                    objects: target.set.len() as u64,
                    since: self.now,
                };
                batch.objects.extend(target.objects);
                batch.sets.push(target.set);
                batch.moves.push((change.id, desired));
            }
            batch.descriptions.extend(descriptions.by_ref().take(BATCH));
            let is_last = moves.peek().is_none() && descriptions.peek().is_none();
            if !batch.moves.is_empty() || is_last && self.is_new {
                batch.revision = Some(revision(batch.moves.len()));
            }
            if is_last {
                // Devices take names from each other only when they are written together.
                batch.descriptions.append(&mut self.renames);
                batch.decommissions = self.plan.decommissions;
                batch.status = self.status;
                batches.push(batch);
                return batches;
            }
            batches.push(batch);
        }
    }
}

impl Reconciler {
    pub(super) async fn execute(&self, execution: Execution<'_>) -> Result<(), ReconcileError> {
        if execution.is_nothing() {
            return Ok(());
        }
        let revision = execution.commit.id.to_string();
        let (is_new, held) = (execution.is_new, execution.plan.held.len());
        let (changed, gone) = (
            execution.plan.moves.len(),
            execution.plan.decommissions.len(),
        );
        let problems = execution.problems;
        for batch in execution.into_batches() {
            self.write(&revision, &batch).await?;
            self.parts
                .metrics
                .desired_changes
                .inc_by(batch.moves.len() as u64);
            let moved = batch.moves.iter().map(|(id, _)| id);
            self.parts.hub.poke(moved.chain(&batch.decommissions));
        }
        self.parts.progress.notify_one();
        if is_new || changed > 0 || gone > 0 {
            info!(
                revision = short(&revision),
                changed,
                decommissioned = gone,
                held,
                problems,
                "revision in force"
            );
        }
        if gone > 0 {
            self.parts.changes.tell();
        }
        Ok(())
    }

    /// Everything that a reconciler writes of what it planned, it writes here.
    async fn write(&self, revision: &str, batch: &Batch) -> Result<(), StoreError> {
        let fleet = &self.parts.fleet;
        let tenant = &fleet.tenant;
        let mut db = self.parts.lease.write(&self.parts.store).await?;
        content::put_objects(&mut db, tenant, &batch.objects).await?;
        content::put_sets(&mut db, tenant, batch.sets.iter().map(|set| &**set)).await?;
        devices::put_desired(&mut db, fleet, &batch.moves).await?;
        let gone = &batch.decommissions;
        let reason = format!("revision {} no longer has it", short(revision));
        devices::set_state(&mut db, fleet, gone, DeviceState::Decommissioned, &reason).await?;
        devices::describe(&mut db, fleet, &batch.descriptions).await?;
        if let Some(status) = &batch.status {
            fleets::set_status(&mut db, fleet, status).await?;
        }
        if let Some(revision) = &batch.revision {
            fleets::record_revision(&mut db, fleet, revision).await?;
        }
        db.commit().await?;
        // The devices' sessions are about to ask for these.
        let cache = self.parts.store.cache();
        cache.put(tenant, &batch.sets, &batch.objects);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use git2::Oid;
    use longshore_protocol::Generation;

    use super::*;
    use crate::rollout::Move;

    fn device(n: usize) -> DeviceId {
        let mut random = [0; 16];
        random[..8].copy_from_slice(&n.to_be_bytes());
        DeviceId::from_random(random)
    }

    fn description(n: usize) -> Description {
        Description {
            id: device(n),
            name: format!("device-{n}").parse().unwrap(),
            labels: BTreeMap::new(),
            conditions: Vec::new(),
        }
    }

    fn batches(moves: usize, is_new: bool) -> Vec<Batch> {
        let commit = Commit {
            id: Oid::from_bytes(&[1; 20]).unwrap(),
            summary: String::new(),
            author: String::new(),
        };
        let set = Arc::new(ManifestSet::empty());
        let target = || Target {
            set: set.clone(),
            objects: Vec::new(),
        };
        let plan = Plan {
            moves: (0..moves)
                .map(|n| Move {
                    id: device(n),
                    generation: Generation::FIRST,
                    digest: set.digest(),
                })
                .collect(),
            decommissions: vec![device(9_999)],
            held: Vec::new(),
        };
        Execution {
            is_new,
            status: Some(FleetStatus::default()),
            commit: &commit,
            problems: 0,
            descriptions: (0..moves + 700).map(description).collect(),
            renames: vec![description(9_998)],
            targets: (0..moves).map(|n| (device(n), target())).collect(),
            plan,
            now: 1,
        }
        .into_batches()
    }

    #[test]
    fn what_says_that_a_commit_is_in_force_comes_last() {
        let batches = batches(2_500, true);
        let moves: Vec<_> = batches.iter().map(|it| it.moves.len()).collect();
        assert_eq!(moves, [1000, 1000, 500, 0]);
        let described: usize = batches.iter().map(|it| it.descriptions.len()).sum();
        assert_eq!(described, 3_201);
        let counted = batches.iter().filter_map(|it| it.revision.as_ref());
        assert_eq!(counted.map(|it| it.devices_changed).sum::<u64>(), 2_500);
        let (last, others) = batches.split_last().unwrap();
        assert!(last.status.is_some() && last.decommissions.len() == 1);
        assert_eq!(last.descriptions.last().unwrap().id, device(9_998));
        assert!(others.iter().all(|it| it.status.is_none()));
        assert!(others.iter().all(|it| it.decommissions.is_empty()));
    }

    #[test]
    fn a_small_commit_is_one_transaction_and_none_is_in_the_list() {
        for (moves, is_new, listed) in [(3, true, Some(3)), (0, true, Some(0)), (0, false, None)] {
            let batches = batches(moves, is_new);
            assert_eq!(batches.len(), 1);
            let revision = batches[0].revision.as_ref();
            assert_eq!(revision.map(|it| it.devices_changed), listed);
        }
    }
}
