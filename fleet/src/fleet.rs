//! What a fleet repo says: the fleet's settings and its devices.
//!
//! [`Reader::read`] reads `fleet.yaml` and every `devices/<name>/device.yaml`, strictly: an unknown field is a
//! [`Problem`], never ignored. One device's problem holds back that device only; all others are read. A broken
//! `fleet.yaml` is an error of the whole fleet.
//!
//! A device that is held back is not a device that was removed: [`Fleet::held_back`] names every device that has
//! a folder with problems, so that a typing error in `device.yaml` decommissions nobody.
//!
//! Reading again after a commit costs what changed: [`Reader::advance`] reads the folders that changes reach into, and a
//! fleet shares with the one before it all that is the same.

mod device;
mod facts;
mod fields;
mod folder;
mod read;
mod register;
mod settings;
mod write;

use std::{collections::BTreeMap, sync::Arc};

use imbl::{HashMap, OrdMap, OrdSet};
use longshore_protocol::{DeviceId, DeviceName, Digest};

pub use device::check_labels;
pub use facts::labels_with_facts;
pub(crate) use fields::closest;
pub use read::{FleetError, Reader};
pub use settings::{EnrollmentSettings, FleetSettings, MaxDecommission};
pub use write::device_yaml;

use crate::{problem::Problem, tree::RepoPath};

/// The API version of `fleet.yaml` and `device.yaml`.
pub const API_VERSION: &str = "longshore.dev/v1alpha1";

/// Everything that a fleet repo says at one commit. A clone costs nothing, however many devices there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// What `fleet.yaml` says.
    pub settings: FleetSettings,
    /// The devices without problems.
    pub devices: OrdMap<DeviceName, Arc<DeviceSpec>>,
    /// The devices that have a folder, but with problems.
    pub held_back: OrdSet<DeviceName>,
    /// Every key that a readable `device.yaml` names, also one with problems: whoever has it is not gone. With the
    /// device, where it has no problems.
    keys: HashMap<Digest, Option<Arc<DeviceSpec>>>,
    /// The folders whose `device.yaml` cannot be read, so that nobody knows which key they name.
    pub unreadable: OrdSet<DeviceName>,
    /// What holds devices back, sorted by device and path.
    pub problems: Vec<Problem>,
}

impl Fleet {
    /// A fleet without devices.
    fn of(settings: FleetSettings) -> Self {
        Self {
            settings,
            devices: OrdMap::new(),
            held_back: OrdSet::new(),
            keys: HashMap::new(),
            unreadable: OrdSet::new(),
            problems: Vec::new(),
        }
    }

    /// The device without problems whose file names this key.
    pub fn with_key(&self, key: &Digest) -> Option<&Arc<DeviceSpec>> {
        self.keys.get(key)?.as_ref()
    }

    /// Completes what files leave out of devices; those for which there is nothing to complete stay as they are.
    pub fn fill_in(
        &mut self,
        complete: impl Fn(&FleetSettings, &DeviceSpec) -> Option<DeviceSpec>,
    ) {
        let settings = &self.settings;
        let completed = self
            .devices
            .values()
            .filter_map(|spec| complete(settings, spec));
        for spec in completed.map(Arc::new).collect::<Vec<_>>() {
            if let Some(key) = spec.public_key {
                self.keys.insert(key, Some(spec.clone()));
            }
            self.devices.insert(spec.name.clone(), spec);
        }
    }

    /// Whether a readable `device.yaml` names this key, also one with problems.
    pub fn names_key(&self, key: &Digest) -> bool {
        self.keys.contains_key(key)
    }

    /// Whether there is a folder of this name, readable or not.
    pub fn has_folder(&self, name: &DeviceName) -> bool {
        self.devices.contains_key(name) || self.held_back.contains(name)
    }

    /// Whether there is still something for a device that has no readable specification, but with problems: its
    /// folder, or a file that names its key. Such a device is held back, not removed.
    pub fn still_has(&self, name: &DeviceName, key: Option<&Digest>) -> bool {
        self.held_back.contains(name) || key.is_some_and(|key| self.names_key(key))
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
