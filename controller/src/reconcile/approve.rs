//! Who is approved: exactly those whose key the tracked branch holds.
//!
//! A pending device becomes active when a `device.yaml` of the tracked branch names its key, under whatever
//! name and with whatever edits. Who is rejected, [`crate::enrollment::branches`] finds.

use std::{collections::HashMap, sync::Arc};

use longshore_fleet::{DeviceSpec, Fleet};
use longshore_protocol::{Digest, api::DeviceState};
use tracing::info;

use super::{ReconcileError, Reconciler};
use crate::{
    source::mirror::Refs,
    store::{
        StoreError,
        devices::{self, Description, DeviceView},
    },
};

/// The fleet's devices by the key that their files vouch for.
pub(super) fn by_key(fleet: &Fleet) -> HashMap<Digest, &Arc<DeviceSpec>> {
    fleet
        .devices
        .values()
        .filter_map(|spec| Some((spec.public_key?, spec)))
        .collect()
}

impl Reconciler {
    /// Approves pending devices, and returns all devices as they are then.
    pub(super) async fn approve(
        &self,
        refs: &Refs,
        fleet: &Fleet,
        mut devices: Vec<DeviceView>,
    ) -> Result<Vec<DeviceView>, ReconcileError> {
        let specs = by_key(fleet);
        let (mut approved, mut described) = (Vec::new(), Vec::new());
        for device in devices.iter_mut().map(|view| &mut view.device) {
            if device.state != DeviceState::Pending {
                continue;
            }
            let Some(spec) = specs.get(&device.public_key) else {
                continue;
            };
            info!(device = %spec.name, id = %device.id, "approved");
            device.state = DeviceState::Active;
            device.conditions.clear();
            approved.push(device.id.clone());
            described.push(Description {
                id: device.id.clone(),
                name: spec.name.clone(),
                labels: spec.labels.clone(),
                conditions: Vec::new(),
            });
        }
        if approved.is_empty() {
            return Ok(devices);
        }
        let id = &self.parts.fleet;
        let mut db = self.parts.lease.write(&self.parts.store).await?;
        let revision = refs.tracked.as_ref().map(|commit| commit.id.to_string());
        let reason = format!("revision {} has its key", revision.unwrap_or_default());
        devices::set_state(&mut db, id, &approved, DeviceState::Active, &reason).await?;
        devices::describe(&mut db, id, &described).await?;
        db.commit().await.map_err(StoreError::from)?;
        self.parts.changes.tell();
        Ok(devices)
    }
}
