//! What a change of a fleet repo would do to the fleet's devices, before it is accepted.
//!
//! The same report is a comment on a pull request, the answer to a push, and what `longshore preview` prints.
//! It names no value of a `Secret`, and is bounded: where something is left out, a count or a line says so.

pub mod text;

use serde::{Deserialize, Serialize};

use crate::{DeviceName, ObjectKey};

/// `POST …/fleets/{fleet}/previews`: previews a branch of the fleet's repo as if it were merged now.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreatePreview {
    /// The branch, without `refs/heads/`.
    pub branch: String,
}

/// What a change would do to a fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    /// The commit that it is compared with; `None` where the branch has none yet.
    pub base: Option<String>,
    /// The commit that was proposed.
    pub head: Option<String>,
    /// What is to be known of how the two were compared, where that is unusual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// How many devices the fleet has before the change.
    pub devices: u64,
    /// The devices whose objects change, those with the same change together, the largest group first.
    pub groups: Vec<Group>,
    /// The devices that the change adds.
    pub enrolled: Vec<Enrolled>,
    /// The devices that the change removes.
    pub decommissioned: Vec<DeviceName>,
    /// The devices, among those that change, that are left without any object.
    pub emptied: Vec<DeviceName>,
    /// What the mass-removal guard says to it.
    pub guard: Guard,
    /// What is wrong because of the change; the change is good where this is empty.
    pub problems: Problems,
    /// What is wrong with and without the change.
    pub old_problems: Problems,
}

impl Preview {
    /// How many devices change.
    pub fn changed(&self) -> usize {
        self.groups.iter().map(|group| group.devices.len()).sum()
    }

    /// How many devices the change adds.
    pub fn enrolling(&self) -> usize {
        self.enrolled.iter().map(|added| added.devices.len()).sum()
    }

    /// How many devices are removed or left without objects.
    pub fn removals(&self) -> usize {
        self.decommissioned.len() + self.emptied.len()
    }

    /// Whether the change does nothing to any device, good or bad.
    pub fn is_nothing(&self) -> bool {
        self.groups.is_empty()
            && self.enrolled.is_empty()
            && self.decommissioned.is_empty()
            && self.problems.count == 0
    }
}

/// Devices with the same change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Their names, sorted.
    pub devices: Vec<DeviceName>,
    /// The directories that render them after the change, sorted.
    pub overlays: Vec<String>,
    /// Whether what they run so far is not known, because it did not build; then everything counts as added.
    #[serde(default)]
    pub unknown_before: bool,
    /// What becomes of their objects, in the order of the objects' keys.
    pub changes: Vec<Change>,
}

/// What becomes of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The object.
    pub object: ObjectKey,
    /// Whether it comes, goes, or turns.
    #[serde(rename = "change")]
    pub kind: ChangeKind,
    /// A unified diff of the YAML forms, values of `Secret`s redacted.
    pub diff: String,
}

/// Whether an object comes, goes, or turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// It is there no longer.
    Removed,
    /// It is another one.
    Changed,
}

/// Devices that a change adds, of one overlay and with the same objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enrolled {
    /// Their names, sorted.
    pub devices: Vec<DeviceName>,
    /// The directory that renders them.
    pub overlay: String,
    /// What they will run.
    pub objects: Vec<ObjectKey>,
}

/// The mass-removal guard: how many devices a commit may take away unasked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Guard {
    /// How many, by the stricter of the settings before and after the change.
    pub allowed: u64,
    /// Whether the change takes away more than that.
    pub exceeded: bool,
    /// Whether the removals would wait for an operator's word; not so where the change itself loosens the guard.
    pub holds: bool,
}

/// Things that are wrong in a repo.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problems {
    /// The first ones, `path:line: message` each.
    pub lines: Vec<String>,
    /// How many there are.
    pub count: u64,
}
