//! Stores what builds gave: those that finish together in one transaction.
//!
//! A lone build is stored at once. Those that finish while a transaction is under way are stored together by the next
//! one, so transactions do not grow with the builds, and nothing waits for a clock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use longshore_protocol::Object;
use tokio::sync::oneshot;
use tracing::warn;

use super::queue::Key;
use crate::{
    clock,
    error::chain,
    metrics::Metrics,
    store::{Store, StoreError, content},
};

/// How many builds are stored in one transaction at most.
const AT_ONCE: usize = 50;

/// The objects that came out, or why it will always fail.
pub(super) type Built = Result<Vec<Object>, String>;

/// Where finished builds wait to be stored.
#[derive(Debug)]
pub(super) struct Shelf {
    store: Store,
    metrics: Arc<Metrics>,
    finished: Mutex<Vec<Finished>>,
    /// Who has it stores for all that wait.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Finished {
    key: Key,
    built: Built,
    stored: oneshot::Sender<bool>,
}

impl Shelf {
    pub(super) fn new(store: Store, metrics: Arc<Metrics>) -> Self {
        Self {
            store,
            metrics,
            finished: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Whether the store has the build now.
    pub(super) async fn put(&self, key: &Key, built: Built) -> bool {
        let (stored, answer) = oneshot::channel();
        self.finished().push(Finished {
            key: key.clone(),
            built,
            stored,
        });
        let turn = self.turn.lock().await;
        let together = {
            let mut finished = self.finished();
            let some = finished.len().min(AT_ONCE);
            finished.drain(..some).collect::<Vec<_>>()
        };
        self.store_all(together).await;
        drop(turn);
        // Whoever had the turn and broke off has stored nothing.
        answer.await.unwrap_or(false)
    }

    async fn store_all(&self, together: Vec<Finished>) {
        if together.is_empty() {
            return;
        }
        let stored = self.write(&together).await;
        if !stored && together.len() > 1 {
            // One that the store does not take must not keep the others out.
            for finished in together {
                let stored = self.write(std::slice::from_ref(&finished)).await;
                let _asker_left = finished.stored.send(stored);
            }
            return;
        }
        for finished in together {
            let _asker_left = finished.stored.send(stored);
        }
    }

    async fn write(&self, together: &[Finished]) -> bool {
        match self.try_write(together).await {
            Ok(()) => true,
            Err(error) => {
                warn!(error = %chain(&error), builds = together.len(), "builds cannot be stored");
                false
            }
        }
    }

    async fn try_write(&self, together: &[Finished]) -> Result<(), StoreError> {
        // Replicas that store the same content do so in the same order.
        let mut of_tenants = BTreeMap::<_, BTreeMap<_, _>>::new();
        for Finished { key, built, .. } in together {
            of_tenants.entry(&key.0).or_default().insert(key.1, built);
        }
        let now = clock::now_ms();
        let mut db = self.store.write().await?;
        for (tenant, builds) in &of_tenants {
            content::put_builds(&mut db, tenant, builds, now).await?;
        }
        db.commit().await?;
        self.metrics.build_flushes.inc();
        // The devices' sessions are about to ask for these.
        for (tenant, builds) in of_tenants {
            let objects = builds.values().flat_map(|built| built.iter().flatten());
            self.store.cache().put(tenant, [], objects);
        }
        Ok(())
    }

    /// How many builds wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.finished().len()
    }

    fn finished(&self) -> MutexGuard<'_, Vec<Finished>> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
