//! Who is approved: exactly those whose key the tracked branch holds.
//!
//! A pending device becomes active when a `device.yaml` of the tracked branch names its key, under whatever
//! name and with whatever edits. Who is rejected, [`crate::enrollment::branches`] finds.

use longshore_fleet::Fleet;
use longshore_protocol::api::DeviceState;
use tracing::info;

use super::{Reading, ReconcileError, Reconciler, decide::labels};
use crate::store::{
    StoreError,
    devices::{self, Description},
};

impl Reconciler {
    /// Approves pending devices. Returns whether there were any.
    pub(super) async fn approve(
        &self,
        reading: &Reading,
        fleet: &Fleet,
    ) -> Result<bool, ReconcileError> {
        let (mut approved, mut described) = (Vec::new(), Vec::new());
        for member in self.roster.pending() {
            let Some(spec) = reading.spec(member) else {
                continue;
            };
            info!(device = %spec.name, id = %member.id, "approved");
            approved.push(member.id.clone());
            described.push(Description {
                id: member.id.clone(),
                name: spec.name.clone(),
                labels: labels(member, spec, &fleet.settings),
                conditions: Vec::new(),
            });
        }
        if approved.is_empty() {
            return Ok(false);
        }
        let fleet = &self.parts.fleet;
        let mut db = self.parts.lease.write(&self.parts.store).await?;
        let revision = reading.commit.to_string();
        let reason = format!("revision {revision} has its key");
        devices::set_state(&mut db, fleet, &approved, DeviceState::Active, &reason).await?;
        devices::describe(&mut db, fleet, &described).await?;
        db.commit().await.map_err(StoreError::from)?;
        self.parts.changes.tell();
        Ok(true)
    }
}
