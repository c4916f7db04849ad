//! What other replicas say, and what is found where they were not heard.
//!
//! | what | by a notice | by a timer |
//! |---|---|---|
//! | fleets made, changed, deleted | at once | [`PATROL`] |
//! | a device has a new desired state, or was cut off | at once | twice [`PATROL`] |
//! | a push seen by another replica's webhook | at once | the polling interval |
//! | a fleet's reconciler and enrollment are to look | at once | their own intervals |
//! | free leases | at once | the keeper's tick |

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::Fleets;
use crate::{
    clock,
    error::chain,
    replica::{Notice, heard},
    store::{StoreError, devices, fleets, peers::Peers},
};

/// How often to look for what went unheard.
const PATROL: Duration = Duration::from_secs(5);
/// The pause before listening again where that failed.
const PAUSE: Duration = Duration::from_secs(1);

impl Fleets {
    /// Keeps up with the other replicas, until the shutdown.
    pub fn keep_up(self: &Arc<Self>) {
        let (tasks, shutdown) = (&self.tasks, &self.tasks.shutdown);
        tasks.vital(
            "the hearing of other replicas",
            self.clone().hear(shutdown.clone()),
        );
        tasks.vital(
            "the search for what went unheard",
            self.clone().patrol(shutdown.clone()),
        );
    }

    /// Hears what other replicas say, until `shutdown`.
    async fn hear(self: Arc<Self>, shutdown: CancellationToken) {
        let Some(peers) = self.replica.peers.clone() else {
            return shutdown.cancelled().await;
        };
        let mut failing = false;
        loop {
            let lost = tokio::select! {
                () = shutdown.cancelled() => return,
                lost = self.listen(&peers) => lost,
            };
            match lost {
                Err(error) if !failing => {
                    warn!(error = %chain(&error), "other replicas are not heard; timers stand in");
                    failing = true;
                }
                Err(_) => {}
                Ok(()) => failing = false,
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Listens until the connection is lost.
    async fn listen(&self, peers: &Peers) -> Result<(), StoreError> {
        let mut listener = peers.listen().await?;
        // Whatever was said until now went unheard.
        for followed in self.followed().values() {
            followed.source.notify_one();
            followed.pull_requests.notify_one();
            followed.reconcile.notify_one();
            followed.branches.poke.notify_one();
            followed.changes.heard();
        }
        self.replica.leases.look();
        self.patrol.notify_one();
        loop {
            match listener.try_recv().await {
                Ok(Some(notification)) => {
                    for notice in heard(&self.replica.id, notification.payload()) {
                        self.obey(notice);
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn obey(&self, notice: Notice) {
        match notice {
            Notice::Look(fleet) => self.look_here(&fleet),
            Notice::Poke(fleet) => self.poke_here(&fleet),
            Notice::Progressed(fleet) => self.progressed_here(&fleet),
            Notice::Changed(fleet) => {
                if let Some(followed) = self.followed().get(&fleet) {
                    followed.changes.heard();
                }
            }
            Notice::Device(device) => drop(self.hub.poke_here([&device])),
            Notice::Here(device) => self.hub.moved_away(&device),
            Notice::Fleets => self.patrol.notify_one(),
            Notice::Leases => self.replica.leases.look(),
        }
    }

    /// Looks for what went unheard, now and then, until `shutdown`.
    async fn patrol(self: Arc<Self>, shutdown: CancellationToken) {
        if self.replica.peers.is_none() {
            return shutdown.cancelled().await;
        }
        let mut failing = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PATROL) => {}
                () = self.patrol.notified() => {}
            }
            match self.catch_up().await {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    warn!(error = %chain(&error), "the store cannot be asked for what went unheard");
                    failing = true;
                }
                Err(_) => {}
            }
        }
    }

    async fn catch_up(&self) -> Result<(), StoreError> {
        self.follow_all().await?;
        let late = clock::now_ms().saturating_sub(u64::try_from(PATROL.as_millis()).unwrap_or(0));
        let mut db = self.store.read().await?;
        let lagging = devices::lagging_at(&mut db, &self.replica.id, late).await?;
        drop(db);
        if !lagging.is_empty() {
            debug!(devices = lagging.len(), "devices here lag");
        }
        self.hub.poke_here(&lagging);
        Ok(())
    }

    /// Follows the store's fleets, and leaves those that are not there any more.
    pub async fn follow_all(&self) -> Result<(), StoreError> {
        let mut db = self.store.read().await?;
        let there = fleets::links(&mut db).await?;
        drop(db);
        let gone: Vec<_> = self
            .followed()
            .values()
            .filter(|followed| !there.contains_key(&followed.fleet.id))
            .map(|followed| followed.fleet.clone())
            .collect();
        for fleet in gone {
            // It may have been made since.
            let mut db = self.store.read().await?;
            if fleets::find(&mut db, &fleet.id).await?.is_none() {
                self.forget(&fleet);
            }
        }
        for (id, link) in there {
            let is_known = |followed: &super::Followed| followed.fleet.link() == link;
            let known = self.followed().get(&id).is_some_and(is_known);
            if known {
                continue;
            }
            let mut db = self.store.read().await?;
            let Some(fleet) = fleets::find(&mut db, &id).await? else {
                continue;
            };
            drop(db);
            if let Err(error) = self.follow(&fleet).await {
                // One fleet's broken mirror must not keep the others from being followed.
                error!(fleet = %fleet.id, error = %chain(&error), "not followed");
            }
        }
        Ok(())
    }
}
