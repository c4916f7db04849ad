//! What a device holds.

use std::{collections::BTreeMap, sync::Arc};

use crate::{Digest, Generation, ManifestSet, Object, manifest::DuplicateKey, message::Held};

/// A manifest set with all its bodies, verified: what a ledger keeps and a runtime applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    pub(super) generation: Generation,
    pub(super) revision: String,
    pub(super) set: Arc<ManifestSet>,
    pub(super) objects: BTreeMap<Digest, Object>,
}

impl Holding {
    /// The holding of these objects.
    ///
    /// # Errors
    /// Where two objects have the same key.
    pub fn new(
        generation: Generation,
        revision: String,
        objects: impl IntoIterator<Item = Object>,
    ) -> Result<Self, DuplicateKey> {
        let objects: Vec<_> = objects.into_iter().collect();
        let set = Arc::new(ManifestSet::of(&objects)?);
        let objects = objects
            .into_iter()
            .map(|object| (object.digest(), object))
            .collect();
        Ok(Self {
            generation,
            revision,
            set,
            objects,
        })
    }

    /// Its generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The commit that it comes from.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Its manifest set.
    pub fn set(&self) -> &Arc<ManifestSet> {
        &self.set
    }

    /// Its objects in the order of their keys.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.set
            .entries()
            .iter()
            .filter_map(|entry| self.objects.get(&entry.digest))
    }

    /// Generation and digest.
    pub fn held(&self) -> Held {
        Held {
            generation: self.generation,
            digest: self.set.digest(),
        }
    }
}
