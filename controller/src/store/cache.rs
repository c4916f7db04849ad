//! Sets and objects in memory: content-addressed, so what is here is never stale. Bounded in bytes.
//!
//! What the reconciler has just stored is read by the sessions within moments, so it passes through here.

use std::sync::Arc;

use longshore_protocol::{Digest, Entry, ManifestSet, Object, TenantName};
use quick_cache::{Weighter, sync};

/// How many bytes it holds, about: the changes of a large fleet between a commit and its delivery.
const CAPACITY: u64 = 64 * 1024 * 1024;
/// How large an entry is taken to be when room is made for them.
const USUAL: u64 = 2048;
/// What an entry costs beside its content.
const OVERHEAD: u64 = 128;

type Key = (TenantName, Digest);

#[derive(Clone, Debug)]
enum Content {
    Set(Arc<ManifestSet>),
    Object(Object),
}

#[derive(Clone, Debug)]
struct Bytes;

impl Weighter<Key, Content> for Bytes {
    fn weight(&self, _: &Key, content: &Content) -> u64 {
        OVERHEAD
            + match content {
                Content::Object(object) => object.body().len() as u64,
                Content::Set(set) => set.entries().iter().map(size_of_entry).sum(),
            }
    }
}

fn size_of_entry(entry: &Entry) -> u64 {
    let key = &entry.key;
    let texts = [&key.api_version, &key.kind, &key.namespace, &key.name];
    let texts: usize = texts.iter().map(|text| text.capacity()).sum();
    (size_of::<Entry>() + texts) as u64
}

/// The cache. Clones of a store share it.
#[derive(Debug)]
pub struct Cache(sync::Cache<Key, Content, Bytes>);

impl Default for Cache {
    fn default() -> Self {
        Self::of(CAPACITY)
    }
}

impl Cache {
    /// One that holds so many bytes.
    fn of(capacity: u64) -> Self {
        let entries = usize::try_from(capacity / USUAL).unwrap_or_default();
        Self(sync::Cache::with_weighter(entries, capacity, Bytes))
    }

    /// Keeps what a transaction stored.
    pub fn put<'a>(
        &self,
        tenant: &TenantName,
        sets: impl IntoIterator<Item = &'a Arc<ManifestSet>>,
        objects: impl IntoIterator<Item = &'a Object>,
    ) {
        for set in sets {
            self.put_set(tenant, set.clone());
        }
        for object in objects {
            self.put_object(tenant, object);
        }
    }

    /// Keeps a set.
    pub fn put_set(&self, tenant: &TenantName, set: Arc<ManifestSet>) {
        let key = (tenant.clone(), set.digest());
        self.0.insert(key, Content::Set(set));
    }

    /// Keeps an object.
    pub fn put_object(&self, tenant: &TenantName, object: &Object) {
        let key = (tenant.clone(), object.digest());
        self.0.insert(key, Content::Object(object.clone()));
    }

    /// The set with this digest, if it is here.
    pub fn set(&self, key: &(TenantName, Digest)) -> Option<Arc<ManifestSet>> {
        match self.0.get(key)? {
            Content::Set(set) => Some(set),
            Content::Object(_) => None,
        }
    }

    /// The object with this digest, if it is here.
    pub fn object(&self, key: &(TenantName, Digest)) -> Option<Object> {
        match self.0.get(key)? {
            Content::Object(object) => Some(object),
            Content::Set(_) => None,
        }
    }

    /// How many bytes are held, about.
    pub fn bytes(&self) -> u64 {
        self.0.weight()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(n: usize, size: usize) -> Object {
        let value = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("n{n}")},
            "data": {"text": "x".repeat(size)},
        });
        Object::from_value(&value).unwrap()
    }

    #[test]
    fn it_keeps_to_its_bounds_and_to_its_tenants() {
        const SMALL: u64 = CAPACITY / 64;
        let cache = Cache::of(SMALL);
        let [one, two]: [TenantName; 2] = ["one", "two"].map(|name| name.parse().unwrap());
        let objects: Vec<_> = (0..200).map(|n| object(n, 8 * 1024)).collect();
        for object in &objects {
            cache.put_object(&one, object);
            assert!(cache.bytes() <= SMALL);
        }
        let here = |tenant: &TenantName| {
            let key = |object: &Object| (tenant.clone(), object.digest());
            objects
                .iter()
                .filter(|it| cache.object(&key(it)).as_ref() == Some(*it))
                .count()
        };
        assert!((40..=128).contains(&here(&one)), "{}", here(&one));
        assert_eq!(here(&two), 0);
        // A full one may not take in what comes once.
        let cache = Cache::of(SMALL);
        let set = Arc::new(ManifestSet::of(&objects).unwrap());
        cache.put(&two, [&set], &objects[..1]);
        assert_eq!(cache.set(&(two.clone(), set.digest())), Some(set.clone()));
        assert_eq!(cache.object(&(two, set.digest())), None);
        assert_eq!(cache.set(&(one, set.digest())), None);
    }
}
