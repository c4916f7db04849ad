//! Builds that somebody waits for, such as a preview's.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use longshore_fleet::{Closure, InputKey, Tree};
use longshore_protocol::TenantName;
use tokio::sync::Notify;

use super::{Builds, Purpose, Standing};
use crate::store::{
    StoreError,
    content::{self, Build},
};

/// One closure to build, with the tree that has its files.
pub type Wanted = (Arc<Closure>, Arc<dyn Tree>);

/// How a build ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The store has its objects.
    Built,
    /// It fails, and always will, with this message.
    Fails(String),
    /// It failed in a way that may pass: a timeout, a full disk.
    FailedNow(String),
}

/// How much one caller may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many builds may be started.
    pub builds: usize,
    /// How long they may take together.
    pub time: Duration,
}

/// Why there are no results. What was built by then is in the store: another try goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// More is not built than may be started.
    #[error(
        "{wanted} overlays would have to be built, and at most {limit} are built for one preview"
    )]
    TooMany {
        /// How many would have to be built.
        wanted: usize,
        /// How many may be.
        limit: usize,
    },
    /// It takes too long.
    #[error("building the overlays takes longer than {} s; what was built is kept, so try again", .limit.as_secs())]
    TooLong {
        /// How long it may take.
        limit: Duration,
    },
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

impl Builds {
    /// Builds what is not in the store, and tells how each of `wanted` ended, once all have.
    ///
    /// Dropping the future starts no further builds; those that run go on.
    ///
    /// # Errors
    /// Where `limits` are reached, or the store fails.
    pub async fn ensure(
        &self,
        tenant: &TenantName,
        wanted: impl IntoIterator<Item = Wanted>,
        limits: Limits,
    ) -> Result<BTreeMap<InputKey, Ended>, EnsureError> {
        let mut missing: BTreeMap<_, _> = wanted
            .into_iter()
            .map(|wanted| (wanted.0.key, wanted))
            .collect();
        let keys: Vec<_> = missing.keys().copied().collect();
        let mut ended = self.ended(tenant, &keys).await?;
        missing.retain(|key, _| !ended.contains_key(key));
        if missing.len() > limits.builds {
            return Err(EnsureError::TooMany {
                wanted: missing.len(),
                limit: limits.builds,
            });
        }
        let waited_for = tokio::time::timeout(limits.time, self.wait_for(tenant, missing));
        let fresh = waited_for
            .await
            .map_err(|_elapsed| EnsureError::TooLong { limit: limits.time })??;
        ended.extend(fresh);
        Ok(ended)
    }

    async fn wait_for(
        &self,
        tenant: &TenantName,
        mut missing: BTreeMap<InputKey, Wanted>,
    ) -> Result<BTreeMap<InputKey, Ended>, StoreError> {
        let done = Arc::new(Notify::new());
        let asker = self.asker(tenant, Purpose::Preview, &done);
        let mut ended = BTreeMap::new();
        loop {
            missing.retain(|key, (closure, tree)| match asker.start(closure, tree) {
                Standing::UnderWay | Standing::Failed { again: true, .. } => true,
                Standing::Failed { message, .. } => {
                    ended.insert(*key, Ended::FailedNow(message));
                    false
                }
            });
            if missing.is_empty() {
                return Ok(ended);
            }
            done.notified().await;
            let keys: Vec<_> = missing.keys().copied().collect();
            let known = self.ended(tenant, &keys).await?;
            missing.retain(|key, _| !known.contains_key(key));
            ended.extend(known);
        }
    }

    /// How builds ended that the store knows of.
    async fn ended(
        &self,
        tenant: &TenantName,
        keys: &[InputKey],
    ) -> Result<BTreeMap<InputKey, Ended>, StoreError> {
        let mut db = self.store.read().await?;
        let builds = content::builds(&mut db, tenant, keys).await?;
        Ok(builds
            .into_iter()
            .map(|(key, build)| match build {
                Build::Objects(_) => (key, Ended::Built),
                Build::Failed(message) => (key, Ended::Fails(message)),
            })
            .collect())
    }
}
