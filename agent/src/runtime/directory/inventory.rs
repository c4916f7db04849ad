//! Which files the agent wrote, kept beside them.
//!
//! The inventory is written before the files of new names, so that no file of ours is ever unlisted, and
//! again after files of old names are gone. Anybody who can write to the directory can write to it, so names
//! in it are taken only where they could be ours, and a lost or damaged inventory is made up from the first
//! lines of the files themselves.

use std::collections::BTreeSet;

use longshore_protocol::{DeviceId, ObjectKey, message::Held};
use serde::{Deserialize, Serialize};

use super::{content, names, removals::Applied};
use crate::files::{FileError, Folder, Found};

pub(super) const FILE: &str = ".longshore-inventory.json";
const MOST_BYTES: u64 = 16 * 1024 * 1024;
/// The largest object is 4 MiB of JSON; quoting and indenting can blow that up.
pub(super) const MOST_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// What the directory holds of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inventory {
    /// Whose files these are.
    pub(super) device: Option<DeviceId>,
    /// The set that was applied last, or is being applied.
    pub(super) held: Option<Held>,
    /// The files, `kustomization.yaml` among them.
    pub(super) files: BTreeSet<String>,
    /// Their objects, where what leaves is to be named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) objects: Vec<Applied>,
    /// What has left and is named, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) removed: Vec<ObjectKey>,
}

impl Inventory {
    /// The inventory of this folder.
    pub(super) fn read(folder: &Folder) -> Result<Self, FileError> {
        if let Found::File { content, .. } = folder.read(FILE, MOST_BYTES)?
            && let Ok(mut inventory) = serde_json::from_slice::<Self>(&content)
        {
            inventory.files.retain(|name| names::is_possible(name));
            return Ok(inventory);
        }
        let mut recovered = Self::default();
        for name in folder.names()? {
            if names::is_possible(&name)
                && let Found::File { content, .. } = folder.read(&name, MOST_FILE_BYTES)?
                && content::is_ours(&name, &content)
            {
                recovered.files.insert(name);
            }
        }
        Ok(recovered)
    }

    /// Writes it down.
    pub(super) fn write(&self, folder: &Folder) -> Result<(), FileError> {
        // A struct of strings and numbers always serializes.
        let mut content = serde_json::to_vec_pretty(self).unwrap_or_default();
        content.push(b'\n');
        folder.write(FILE, &content)
    }
}
