//! What this agent applied, kept in the state directory.
//!
//! Names are added before their objects are applied and removed after they are gone, so that nothing that was
//! applied is ever unlisted. What an object was applied as is unlisted before it is applied anew and listed again
//! afterwards, so that after a kill in between the object counts as one to apply.
//!
//! A lost inventory is made up from the objects themselves, which carry the device's id and are managed by us.

use std::{collections::BTreeMap, path::PathBuf};

use longshore_protocol::{DeviceId, Digest};
use serde::{Deserialize, Serialize};

use super::name::Name;
use crate::files::{FileError, Folder, Found};

const FILE: &str = "inventory.json";
const MOST_BYTES: u64 = 64 * 1024 * 1024;

/// One object that was applied, or is about to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The version of its API in which it was applied.
    pub version: String,
    /// Which object it was; empty before the first apply.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// What was applied; none while it is being applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The fields that were ours after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Digest>,
    /// Whether the object was there before, and so is not ours to delete.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inventory {
    pub records: BTreeMap<Name, Record>,
    /// Whether there was none to read although there should have been one.
    pub lost: bool,
}

/// The file's form.
#[derive(Serialize, Deserialize)]
struct File {
    device: DeviceId,
    objects: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    name: Name,
    #[serde(flatten)]
    record: Record,
}

/// Where the inventory is kept.
#[derive(Clone, Debug)]
pub(super) struct Store {
    path: PathBuf,
    device: DeviceId,
}

impl Store {
    pub(super) fn new(path: PathBuf, device: DeviceId) -> Self {
        Self { path, device }
    }

    /// What is kept.
    pub(super) fn load(&self) -> Result<Inventory, FileError> {
        let lost = Inventory {
            lost: true,
            ..Inventory::default()
        };
        let Found::File { content, .. } = Folder::create(&self.path)?.read(FILE, MOST_BYTES)?
        else {
            return Ok(lost);
        };
        match serde_json::from_slice::<File>(&content) {
            Ok(file) if file.device == self.device => Ok(Inventory {
                records: file
                    .objects
                    .into_iter()
                    .map(|line| (line.name, line.record))
                    .collect(),
                lost: false,
            }),
            // Another life of this device: the objects carry that one's id.
            Ok(_) => Ok(lost),
            Err(error) => {
                tracing::warn!(%error, "the inventory is damaged; looking for the objects themselves");
                Ok(lost)
            }
        }
    }

    /// Keeps it, durably.
    pub(super) fn keep(&self, inventory: &Inventory) -> Result<(), FileError> {
        let lines = inventory.records.iter().map(|(name, record)| Line {
            name: name.clone(),
            record: record.clone(),
        });
        let file = File {
            device: self.device.clone(),
            objects: lines.collect(),
        };
        // A struct of strings always serializes.
        let content = serde_json::to_vec(&file).unwrap_or_default();
        let folder = Folder::create(&self.path)?;
        folder.write(FILE, &content)?;
        folder.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_is_read_as_it_was_kept_by_its_own_device() {
        let dir = tempfile::tempdir().unwrap();
        let device = DeviceId::from_random([1; 16]);
        let store = Store::new(dir.path().join("kube"), device);
        assert!(store.load().unwrap().lost);
        let mut inventory = Inventory::default();
        let name = |kind: &str| Name {
            group: String::new(),
            kind: kind.to_owned(),
            namespace: "shop".to_owned(),
            name: "till".to_owned(),
        };
        let full = Record {
            version: "v1".to_owned(),
            uid: "1".to_owned(),
            digest: Some(Digest::of(b"a")),
            fields: Some(Digest::of(b"b")),
            adopted: true,
        };
        let empty = Record {
            version: "v1".to_owned(),
            ..Record::default()
        };
        inventory.records.insert(name("ConfigMap"), full);
        inventory.records.insert(name("Secret"), empty);
        store.keep(&inventory).unwrap();
        assert_eq!(store.load().unwrap(), inventory);
        let other = Store::new(dir.path().join("kube"), DeviceId::from_random([2; 16]));
        assert!(other.load().unwrap().lost);
        std::fs::write(dir.path().join("kube").join(FILE), "{").unwrap();
        assert!(store.load().unwrap().lost);
    }
}
