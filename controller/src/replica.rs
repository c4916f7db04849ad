//! Which controller this is, among those that share a database.
//!
//! ```text
//! replica A ── holds the leases of fleets 1, 3 ─┐                        ┌─ reconciler, enrollment, statuses
//!                                               ├─ PostgreSQL: leases ───┤   of a fleet: where its lease is
//! replica B ── holds the lease of fleet 2 ──────┘  NOTIFY: "look"        └─ sources, API, sessions: everywhere
//! ```
//!
//! Every replica follows every fleet's repo and serves any device. What writes for a fleet (its reconciler, its
//! enrollment, what its forge is told) runs where the fleet's [`Lease`] is. [`Notices`] carry pokes between
//! replicas; what gets lost of them, timers find.
//!
//! With SQLite there is one replica, and it holds everything.

pub mod common;
mod keeper;
mod leases;
mod notices;

use std::{fmt, sync::Arc};

use self::keeper::Keeper;
pub use self::{
    leases::{Lease, Leases, Wish},
    notices::{Notice, Notices, heard, texts},
};
use crate::{
    metrics::Metrics,
    store::{Store, StoreError, peers::Peers, replicas},
    tasks::Tasks,
};

/// A controller process's own id: random, made anew at each start, so that what a dead process left behind is
/// never taken for a living one's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaId(String);

impl ReplicaId {
    /// A new one.
    pub fn random() -> Self {
        Self(format!("rep_{}", hex::encode(rand::random::<[u8; 16]>())))
    }

    /// As it stands in the store.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// This controller, among those that share its database; clones are the same one.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its id.
    pub id: ReplicaId,
    /// The fleets that it works for.
    pub leases: Leases,
    /// What it tells the others.
    pub notices: Notices,
    /// The way to the others, where there may be any.
    pub peers: Option<Arc<Peers>>,
}

impl Replica {
    /// The only one: it holds everything, and has nobody to talk to.
    pub fn alone() -> Self {
        Self {
            id: ReplicaId::random(),
            leases: Leases::all(),
            notices: Notices::nobody(),
            peers: None,
        }
    }

    /// Takes its place among those that have the store, until the shutdown.
    ///
    /// Where devices are connected counts only while their replica lives, so this comes before any device does.
    pub async fn join(
        store: &Store,
        metrics: &Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, StoreError> {
        let Some(peers) = store.peers().cloned() else {
            let replica = Self::alone();
            let mut db = store.write().await?;
            replicas::alone(&mut db, &replica.id).await?;
            db.commit().await?;
            return Ok(replica);
        };
        let id = ReplicaId::random();
        peers.beat(&id, 0, keeper::LIFE).await?;
        let (leases, shared) = Leases::some();
        let keeper = Keeper::new(id.clone(), peers.clone(), shared, metrics.clone());
        tasks.vital("the leases", keeper.run(tasks.shutdown.clone()));
        let (notices, outbox) = Notices::to(id.clone(), peers.clone());
        tasks.vital("the notices", outbox.run(tasks.shutdown.clone()));
        Ok(Self {
            id,
            leases,
            notices,
            peers: Some(peers),
        })
    }
}
