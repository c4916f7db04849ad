//! Manifest sets, and the deltas between them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Digest, Object, ObjectKey, digest::Hasher};

/// One object of a set, by reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What names the object.
    pub key: ObjectKey,
    /// The digest of its canonical form.
    pub digest: Digest,
    /// The size of its canonical form in bytes.
    pub size: u64,
}

impl From<&Object> for Entry {
    fn from(object: &Object) -> Self {
        Self {
            key: object.key().clone(),
            digest: object.digest(),
            size: object.body().len() as u64,
        }
    }
}

/// The objects of one device, sorted by key, each key at most once.
///
/// The order in which a runtime applies them is the runtime's affair; here the order only makes equal sets
/// equal. A set holds entries, not bodies, so it stays small in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestSet {
    entries: Vec<Entry>,
    digest: Digest,
}

/// Two objects of one set share a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} appears twice")]
pub struct DuplicateKey(pub ObjectKey);

impl ManifestSet {
    /// The set of these entries, in whatever order they come.
    ///
    /// # Errors
    /// Where two entries have the same key.
    pub fn new(entries: impl IntoIterator<Item = Entry>) -> Result<Self, DuplicateKey> {
        let mut sorted = BTreeMap::new();
        for entry in entries {
            if let Some(twice) = sorted.insert(entry.key.clone(), entry) {
                return Err(DuplicateKey(twice.key));
            }
        }
        Ok(Self::from_sorted(sorted.into_values().collect()))
    }

    /// The set of these objects.
    ///
    /// # Errors
    /// Where two objects have the same key.
    pub fn of<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Result<Self, DuplicateKey> {
        Self::new(objects.into_iter().map(Entry::from))
    }

    /// The set with nothing in it.
    pub fn empty() -> Self {
        Self::from_sorted(Vec::new())
    }

    fn from_sorted(entries: Vec<Entry>) -> Self {
        let mut hasher = Hasher::new();
        hasher.part(b"longshore.dev/manifest-set/v1");
        for Entry { key, digest, size } in &entries {
            hasher
                .part(key.api_version.as_bytes())
                .part(key.kind.as_bytes())
                .part(key.namespace.as_bytes())
                .part(key.name.as_bytes())
                .part(digest.as_bytes())
                .part(&size.to_le_bytes());
        }
        Self {
            entries,
            digest: hasher.finish(),
        }
    }

    /// Its entries, sorted by key.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The digest over all keys and object digests.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// How many objects it has.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of `key`.
    pub fn entry(&self, key: &ObjectKey) -> Option<&Entry> {
        let at = self
            .entries
            .binary_search_by(|entry| entry.key.cmp(key))
            .ok()?;
        self.entries.get(at)
    }

    /// The size of all bodies together, in bytes.
    pub fn total_size(&self) -> u64 {
        self.entries.iter().map(|entry| entry.size).sum()
    }
}

/// What takes one manifest set to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Entries to add or to replace.
    pub upserts: Vec<Entry>,
    /// Keys to remove.
    pub removals: Vec<ObjectKey>,
}

impl Delta {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}

/// The delta from `base` to `target`: the fewest upserts and removals.
pub fn diff(base: &ManifestSet, target: &ManifestSet) -> Delta {
    let upserts = target
        .entries
        .iter()
        .filter(|entry| base.entry(&entry.key) != Some(entry))
        .cloned()
        .collect();
    let removals = base
        .entries
        .iter()
        .filter(|entry| target.entry(&entry.key).is_none())
        .map(|entry| entry.key.clone())
        .collect();
    Delta { upserts, removals }
}

/// `base` with `delta` applied: `apply(b, diff(b, t)) == t`.
pub fn apply(base: &ManifestSet, delta: &Delta) -> ManifestSet {
    let removals: BTreeSet<_> = delta.removals.iter().collect();
    let mut entries: BTreeMap<_, _> = base
        .entries
        .iter()
        .filter(|entry| !removals.contains(&entry.key))
        .map(|entry| (entry.key.clone(), entry.clone()))
        .collect();
    entries.extend(
        delta
            .upserts
            .iter()
            .map(|entry| (entry.key.clone(), entry.clone())),
    );
    ManifestSet::from_sorted(entries.into_values().collect())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    fn set() -> impl Strategy<Value = ManifestSet> {
        btree_map("[a-d]{1,2}", 0_u8..4, 0..12).prop_map(|names| {
            ManifestSet::new(names.into_iter().map(|(name, version)| Entry {
                key: ObjectKey {
                    api_version: "v1".into(),
                    kind: "ConfigMap".into(),
                    namespace: String::new(),
                    name,
                },
                digest: Digest::of(&[version]),
                size: 1,
            }))
            .unwrap()
        })
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_the_target(base in set(), target in set()) {
            let delta = diff(&base, &target);
            prop_assert_eq!(&apply(&base, &delta), &target);
            prop_assert_eq!(delta.is_empty(), base == target);
            prop_assert_eq!(base == target, base.digest() == target.digest());
        }

        #[test]
        fn a_difference_names_nothing_twice(base in set(), target in set()) {
            let delta = diff(&base, &target);
            for removed in &delta.removals {
                prop_assert!(delta.upserts.iter().all(|entry| entry.key != *removed));
            }
        }
    }

    #[test]
    fn a_key_stands_once() {
        let entry = Entry {
            key: ObjectKey {
                api_version: "v1".into(),
                kind: "Pod".into(),
                namespace: String::new(),
                name: "a".into(),
            },
            digest: Digest::of(b"a"),
            size: 1,
        };
        let error = ManifestSet::new([entry.clone(), entry]).unwrap_err();
        assert_eq!(error.to_string(), "v1/Pod/a appears twice");
    }
}
