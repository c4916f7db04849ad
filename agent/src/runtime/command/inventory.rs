//! What may be in the target, kept in the agent's state directory.

use std::collections::BTreeSet;

use longshore_protocol::{DeviceId, ObjectKey, message::Held};
use serde::{Deserialize, Serialize};

use crate::files::{FileError, Folder, Found};

pub(super) const FILE: &str = "inventory.json";
pub(super) const REMOVALS: &str = "removals.yaml";
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// What may be in the target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inventory {
    /// Whose objects these are.
    pub(super) device: Option<DeviceId>,
    /// The set that the program said it applied, while nothing else was handed over since.
    pub(super) applied: Option<Held>,
    /// Every object that was handed over since the program last succeeded, or then.
    pub(super) present: BTreeSet<Present>,
}

/// An object that may be in the target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Present {
    pub(super) key: ObjectKey,
    /// Whether it stays when it leaves the set.
    #[serde(default)]
    pub(super) keep: bool,
}

impl Inventory {
    /// The inventory in this folder. One that is damaged counts as none: no object is removed by guessing.
    pub(super) fn read(folder: &Folder) -> Result<Self, FileError> {
        match folder.read(FILE, MOST_BYTES)? {
            Found::File { content, .. } => Ok(serde_json::from_slice(&content).unwrap_or_else(|error| {
                tracing::error!(%error, "the inventory is damaged; what it listed is not removed any more");
                Self::default()
            })),
            Found::Nothing | Found::Other => Ok(Self::default()),
        }
    }

    pub(super) fn write(&self, folder: &Folder) -> Result<(), FileError> {
        // A struct of texts and numbers always serializes.
        folder.write(FILE, &serde_json::to_vec(self).unwrap_or_default())
    }

    /// Notes that these are handed over; of what is there, whether it stays is as they say.
    pub(super) fn claim(&mut self, wanted: &BTreeSet<Present>) {
        let keys: BTreeSet<_> = wanted.iter().map(|it| &it.key).collect();
        self.present.retain(|it| !keys.contains(&it.key));
        self.present.extend(wanted.iter().cloned());
    }
}
