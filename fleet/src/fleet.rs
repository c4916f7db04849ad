//! What a fleet repo says: the fleet's settings and its devices.
//!
//! [`Reader::read`] reads `fleet.yaml` and every `devices/<name>/device.yaml`, strictly: an unknown field is a
//! [`Problem`], never ignored. One device's problem holds back that device only; all others are read. A broken
//! `fleet.yaml` is an error of the whole fleet.
//!
//! A device that is held back is not a device that was removed: [`Fleet::folders`] names every device that has
//! a folder, readable or not, so that a typing error in `device.yaml` decommissions nobody.
//!
//! Reading again after a commit costs what changed: device files are remembered by content id, whole device
//! folders by the id of the folder's tree.

mod device;
mod fields;
mod read;
mod settings;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use longshore_protocol::{DeviceId, DeviceName, Digest};

pub use device::check_labels;
pub(crate) use fields::closest;
pub use read::{FleetError, Reader};
pub use settings::{EnrollmentSettings, FleetSettings, MaxDecommission};
pub use write::device_yaml;

use crate::{problem::Problem, tree::RepoPath};

/// The API version of `fleet.yaml` and `device.yaml`.
pub const API_VERSION: &str = "longshore.dev/v1alpha1";

/// Everything that a fleet repo says at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// What `fleet.yaml` says.
    pub settings: FleetSettings,
    /// The devices without problems.
    pub devices: BTreeMap<DeviceName, Arc<DeviceSpec>>,
    /// Every device that has a folder, also those with problems.
    pub folders: BTreeSet<DeviceName>,
    /// Every key that a readable `device.yaml` names, also one with problems: whoever has it is not gone.
    pub keys: BTreeSet<Digest>,
    /// The folders whose `device.yaml` cannot be read, so that nobody knows which key they name.
    pub unreadable: BTreeSet<DeviceName>,
    /// What holds devices back, sorted by device and path.
    pub problems: Vec<Problem>,
}

impl Fleet {
    /// Whether there is still something for a device that has no readable specification, but with problems: its
    /// folder, or a file that names its key. Such a device is held back, not removed.
    pub fn still_has(&self, name: &DeviceName, key: Option<&Digest>) -> bool {
        self.folders.contains(name) && !self.devices.contains_key(name)
            || key.is_some_and(|key| self.keys.contains(key))
    }

    /// Whether a device that is nowhere to be found may be in a folder that cannot be read: one that none of the
    /// devices known so far has.
    pub fn may_hide_a_device(&self, is_known: impl Fn(&DeviceName) -> bool) -> bool {
        self.unreadable.iter().any(|folder| !is_known(folder))
    }
}

/// What `devices/<name>/device.yaml` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Its name, and its folder's.
    pub name: DeviceName,
    /// The file that says all this.
    pub file: RepoPath,
    /// Labels, in the syntax of Kubernetes labels.
    pub labels: BTreeMap<String, String>,
    /// The id that it was given at enrollment.
    pub id: Option<DeviceId>,
    /// The digest of the public key that the approver vouches for.
    pub public_key: Option<Digest>,
    /// The directory that renders its manifests, from the repo's root.
    pub overlay: RepoPath,
    /// Whether the overlay is named by `spec.overlay` rather than being its own folder.
    pub shared: bool,
    /// What `${NAME}` references stand for, besides the built-in ones.
    pub variables: BTreeMap<String, String>,
}
