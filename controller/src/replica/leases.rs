//! Leases of fleets, as those see them who work under one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use sqlx::{Any, Transaction};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::ReplicaId;
use crate::store::{Store, StoreError, fleets::FleetId, replicas};

/// The right to work for one fleet.
///
/// It ends in one of two ways. Where it is given up ([`Self::finish`]), work under way may come to its end, and only then
/// another replica gets it. Where it is lost ([`Self::lost`]), work is dropped where it stands. What was overtaken
/// all the same, [`Self::write`] keeps from writing.
#[derive(Clone, Debug)]
pub struct Lease {
    fence: Option<Arc<Fence>>,
    /// Says that the work is to come to its end.
    pub finish: CancellationToken,
    /// Says that the work is to stop where it stands.
    pub lost: CancellationToken,
    /// Who works under the lease.
    work: TaskTracker,
}

/// What a transaction checks.
#[derive(Debug)]
struct Fence {
    holder: ReplicaId,
    fleet: FleetId,
    epoch: i64,
}

impl Lease {
    /// One that never ends, of the only replica.
    pub fn always() -> Self {
        Self::new(None)
    }

    pub(super) fn of(holder: ReplicaId, fleet: FleetId, epoch: i64) -> Self {
        Self::new(Some(Arc::new(Fence {
            holder,
            fleet,
            epoch,
        })))
    }

    fn new(fence: Option<Arc<Fence>>) -> Self {
        Self {
            fence,
            finish: CancellationToken::new(),
            lost: CancellationToken::new(),
            work: TaskTracker::new(),
        }
    }

    /// A transaction that may write for the fleet. Until it ends, nobody else gets the lease.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] where somebody has it already.
    pub async fn write(&self, store: &Store) -> Result<Transaction<'static, Any>, StoreError> {
        let mut db = store.write().await?;
        if let Some(fence) = &self.fence {
            replicas::check(&mut db, &fence.holder, &fence.fleet, fence.epoch).await?;
        }
        Ok(db)
    }

    /// Runs `work` under the lease; it is waited for when the lease is given up, and dropped when it is lost.
    pub async fn under(&self, work: impl Future<Output = ()>) {
        // Whoever gives the lease back looks for tokens after it said so.
        let _token = self.work.token();
        if self.is_over() {
            return;
        }
        tokio::select! {
            () = self.lost.cancelled() => {}
            () = work => {}
        }
    }

    /// Whether another replica may have worked for the fleet before.
    pub fn is_taken_over(&self) -> bool {
        self.fence.is_some()
    }

    pub(super) fn epoch(&self) -> Option<i64> {
        self.fence.as_ref().map(|fence| fence.epoch)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.work.is_empty()
    }

    /// Waits until nobody works under it.
    pub(super) async fn idle(&self) {
        self.work.close();
        self.work.wait().await;
    }

    pub(super) fn is_over(&self) -> bool {
        self.finish.is_cancelled() || self.lost.is_cancelled()
    }
}

/// The leases that this replica holds, and those that it wants; clones are the same ones.
#[derive(Clone, Debug)]
pub struct Leases(Option<Arc<Shared>>);

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) held: watch::Sender<HashMap<FleetId, Lease>>,
    wanted: Mutex<HashMap<FleetId, usize>>,
    /// Says that something is wanted, or no longer, or may be free.
    pub(super) look: Notify,
    /// Where the ends of work are waited for.
    pub(super) ending: TaskTracker,
}

impl Shared {
    /// The fleets that this replica could work for.
    pub(super) fn wanted(&self) -> Vec<FleetId> {
        self.wishes().keys().cloned().collect()
    }

    pub(super) fn is_wanted(&self, fleet: &FleetId) -> bool {
        self.wishes().contains_key(fleet)
    }

    fn wishes(&self) -> std::sync::MutexGuard<'_, HashMap<FleetId, usize>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leases {
    /// Those of the only replica: all.
    pub fn all() -> Self {
        Self(None)
    }

    /// Those that a keeper takes.
    pub(super) fn some() -> (Self, Arc<Shared>) {
        let shared = Arc::<Shared>::default();
        (Self(Some(shared.clone())), shared)
    }

    /// Whether this replica works for the fleet.
    pub fn holds(&self, fleet: &FleetId) -> bool {
        self.0
            .as_ref()
            .is_none_or(|some| some.held.borrow().contains_key(fleet))
    }

    /// Looks at once whether leases are free.
    pub fn look(&self) {
        if let Some(some) = &self.0 {
            some.look.notify_one();
        }
    }

    /// Asks for the lease of a fleet for as long as the wish is kept.
    pub fn wish(&self, fleet: &FleetId) -> Wish {
        if let Some(some) = &self.0 {
            *some.wishes().entry(fleet.clone()).or_default() += 1;
            some.look.notify_one();
        }
        Wish {
            leases: self.clone(),
            fleet: fleet.clone(),
        }
    }
}

/// Asks for a fleet's lease.
#[derive(Debug)]
pub struct Wish {
    leases: Leases,
    fleet: FleetId,
}

impl Wish {
    /// The next lease of the fleet, when it is given.
    pub async fn granted(&self) -> Lease {
        let Some(some) = &self.leases.0 else {
            return Lease::always();
        };
        let mut held = some.held.subscribe();
        loop {
            let lease = held.borrow_and_update().get(&self.fleet).cloned();
            match lease {
                Some(lease) if !lease.is_over() => return lease,
                // The sender is in `some`.
                _ => drop(held.changed().await),
            }
        }
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        let Some(some) = &self.leases.0 else { return };
        let mut wishes = some.wishes();
        if let Some(count) = wishes.get_mut(&self.fleet) {
            *count -= 1;
            if *count == 0 {
                wishes.remove(&self.fleet);
            }
        }
        drop(wishes);
        some.look.notify_one();
    }
}
