//! Who is approved: exactly those whose key the tracked branch holds.
//!
//! A pending device becomes active when a `device.yaml` of the tracked branch names its key, under whatever
//! name and with whatever edits. It is rejected when its enrollment branch was there and is gone.

use std::collections::{HashMap, HashSet};

use longshore_fleet::{DeviceSpec, Fleet};
use longshore_protocol::{DeviceId, Digest, api::DeviceState};
use tracing::info;

use super::{ReconcileError, Reconciler};
use crate::{
    enrollment::branches::vouches_for,
    source::mirror::Refs,
    store::{
        StoreError,
        devices::{self, Description, DeviceView},
    },
};

/// The fleet's devices by the key that their files vouch for.
pub(super) fn by_key(fleet: &Fleet) -> HashMap<Digest, &DeviceSpec> {
    fleet
        .devices
        .values()
        .filter_map(|spec| Some((spec.public_key?, spec)))
        .collect()
}

impl Reconciler {
    /// Moves pending devices on, and returns all devices as they are then.
    pub(super) async fn approve(
        &self,
        refs: &Refs,
        fleet: &Fleet,
        mut devices: Vec<DeviceView>,
    ) -> Result<Vec<DeviceView>, ReconcileError> {
        let specs = by_key(fleet);
        let ours = self.branches(refs, &devices).await?;
        let (mut approved, mut renamed, mut rejected, mut seen) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for view in &mut devices {
            let device = &mut view.device;
            if device.state != DeviceState::Pending {
                continue;
            }
            let branch = ours.contains(&device.id);
            if let Some(spec) = specs.get(&device.public_key) {
                info!(device = %spec.name, id = %device.id, "approved");
                device.state = DeviceState::Active;
                approved.push(device.id.clone());
                renamed.push(Description {
                    id: device.id.clone(),
                    name: spec.name.clone(),
                    labels: spec.labels.clone(),
                    conditions: device.conditions.clone(),
                });
            } else if branch && !device.branch_pushed {
                seen.push(device.id.clone());
            } else if !refs.enrollment.contains_key(&device.name)
                && device.branch_pushed
                && !fleet.folders.contains(&device.name)
                && !fleet.keys.contains(&device.public_key)
            {
                info!(device = %device.name, id = %device.id, "rejected: its branch was deleted");
                device.state = DeviceState::Rejected;
                rejected.push(device.id.clone());
            }
        }
        if approved.is_empty() && rejected.is_empty() && seen.is_empty() {
            return Ok(devices);
        }
        let tenant = &self.parts.fleet.tenant;
        let mut db = self.parts.store.write().await?;
        let revision = refs.tracked.as_ref().map(|commit| commit.id.to_string());
        let reason = format!("revision {} has its key", revision.unwrap_or_default());
        devices::set_state(&mut db, tenant, &approved, DeviceState::Active, &reason).await?;
        let reason = "its enrollment branch was deleted";
        devices::set_state(&mut db, tenant, &rejected, DeviceState::Rejected, reason).await?;
        devices::describe(&mut db, tenant, &renamed).await?;
        for device in &seen {
            devices::set_branch_pushed(&mut db, tenant, device).await?;
        }
        db.commit().await.map_err(StoreError::from)?;
        self.parts.changes.send_modify(|count| *count += 1);
        Ok(devices)
    }

    /// The pending devices whose own branch the repo has, as far as that is not known yet.
    async fn branches(
        &self,
        refs: &Refs,
        devices: &[DeviceView],
    ) -> Result<HashSet<DeviceId>, ReconcileError> {
        let mut ours = HashSet::new();
        let pending = devices
            .iter()
            .map(|view| &view.device)
            .filter(|device| device.state == DeviceState::Pending && !device.branch_pushed);
        for device in pending {
            if let Some(tip) = refs.enrollment.get(&device.name) {
                let tree = self.parts.mirror.tree(*tip).await?;
                if vouches_for(&tree, &self.parts.root, device) {
                    ours.insert(device.id.clone());
                }
            }
        }
        Ok(ours)
    }
}
