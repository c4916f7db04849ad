//! What sessions and enrollment calls read: tokens, how devices stand, sets and objects; for many at once.

use std::{collections::HashMap, sync::Arc};

use futures_util::FutureExt as _;
use longshore_protocol::{DeviceId, Digest, ManifestSet, Object, TenantName};
use tokio_util::sync::CancellationToken;

use super::gather::{AskError, Found, Gather};
use crate::{
    metrics::Metrics,
    store::{
        Store, StoreError,
        cache::Cache,
        content,
        devices::{self, Standing},
        tokens::{self, Token},
    },
};

type Content = (TenantName, Digest);

/// Reads for sessions.
#[derive(Debug)]
pub struct Lookups {
    store: Store,
    metrics: Arc<Metrics>,
    tokens: Gather<Digest, Token>,
    standings: Gather<DeviceId, Standing>,
    sets: Gather<Content, Arc<ManifestSet>>,
    objects: Gather<Content, Object>,
}

impl Lookups {
    /// Looks into `store`.
    pub fn new(store: Store, metrics: Arc<Metrics>) -> Self {
        Self {
            store,
            metrics,
            tokens: Gather::default(),
            standings: Gather::default(),
            sets: Gather::default(),
            objects: Gather::default(),
        }
    }

    /// The provisioning token whose secret has this hash; `None` where there is none.
    pub(crate) async fn token(&self, hash: Digest) -> Result<Option<Token>, AskError> {
        let mut found = self.tokens.ask(vec![hash]).await?;
        Ok(found.remove(&hash))
    }

    /// How a device stands now; `None` where there is no such device.
    pub(crate) async fn standing(&self, device: &DeviceId) -> Result<Option<Standing>, AskError> {
        let mut found = self.standings.ask(vec![device.clone()]).await?;
        Ok(found.remove(device))
    }

    /// These sets, where the store has them.
    pub(super) async fn sets(
        &self,
        tenant: &TenantName,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Result<HashMap<Digest, Arc<ManifestSet>>, AskError> {
        let cached = |cache: &Cache, key: &Content| cache.set(key);
        self.content(&self.sets, cached, tenant, digests).await
    }

    /// These objects, where the store has them.
    pub(super) async fn objects(
        &self,
        tenant: &TenantName,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Result<HashMap<Digest, Object>, AskError> {
        let cached = |cache: &Cache, key: &Content| cache.object(key);
        self.content(&self.objects, cached, tenant, digests).await
    }

    async fn content<V: Clone>(
        &self,
        gather: &Gather<Content, V>,
        cached: impl Fn(&Cache, &Content) -> Option<V>,
        tenant: &TenantName,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Result<HashMap<Digest, V>, AskError> {
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        for digest in digests {
            let key = (tenant.clone(), digest);
            match cached(self.store.cache(), &key) {
                Some(value) => {
                    found.insert(digest, value);
                }
                None => missing.push(key),
            }
        }
        self.metrics.cache_hits.inc_by(found.len() as u64);
        self.metrics.cache_misses.inc_by(missing.len() as u64);
        let read = gather.ask(missing).await?;
        found.extend(read.into_iter().map(|((_, digest), value)| (digest, value)));
        Ok(found)
    }

    /// Answers until `end`.
    pub async fn run(&self, end: CancellationToken) {
        let answer = async {
            tokio::join!(
                self.tokens
                    .answer(|hashes| self.find_tokens(hashes).boxed()),
                self.standings.answer(|devices| self.look(devices).boxed()),
                self.sets.answer(|keys| self.read_sets(keys).boxed()),
                self.objects.answer(|keys| self.read_objects(keys).boxed()),
            )
        };
        tokio::select! {
            _ = answer => {}
            () = end.cancelled() => {}
        }
    }

    async fn find_tokens(&self, hashes: Vec<Digest>) -> Result<Found<Digest, Token>, StoreError> {
        let mut db = self.store.read().await?;
        tokens::by_hashes(&mut db, &hashes).await
    }

    async fn look(&self, devices: Vec<DeviceId>) -> Result<Found<DeviceId, Standing>, StoreError> {
        self.metrics.lookups.inc();
        self.metrics.looked_up.inc_by(devices.len() as u64);
        let mut db = self.store.read().await?;
        devices::standings(&mut db, &devices).await
    }

    async fn read_sets(
        &self,
        keys: Vec<Content>,
    ) -> Result<Found<Content, Arc<ManifestSet>>, StoreError> {
        let mut found = HashMap::with_capacity(keys.len());
        for (tenant, digests) in by_tenant(keys) {
            let mut db = self.store.read().await?;
            for (digest, set) in content::sets(&mut db, &tenant, &digests).await? {
                let set = set.map(Arc::new);
                if let Ok(set) = &set {
                    self.store.cache().put_set(&tenant, set.clone());
                }
                found.insert((tenant.clone(), digest), set);
            }
        }
        Ok(found)
    }

    async fn read_objects(&self, keys: Vec<Content>) -> Result<Found<Content, Object>, StoreError> {
        let mut found = HashMap::with_capacity(keys.len());
        for (tenant, digests) in by_tenant(keys) {
            let mut db = self.store.read().await?;
            for (digest, object) in content::objects(&mut db, &tenant, digests).await? {
                self.store.cache().put_object(&tenant, &object);
                found.insert((tenant.clone(), digest), Ok(object));
            }
        }
        Ok(found)
    }
}

fn by_tenant(keys: Vec<Content>) -> HashMap<TenantName, Vec<Digest>> {
    let mut tenants: HashMap<_, Vec<_>> = HashMap::new();
    for (tenant, digest) in keys {
        tenants.entry(tenant).or_default().push(digest);
    }
    tenants
}
