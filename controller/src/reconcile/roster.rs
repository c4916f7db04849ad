//! The reconciler's picture of its fleet's devices, kept up with what changed.

use std::{collections::BTreeMap, sync::Arc};

use longshore_protocol::{DeviceId, api::DeviceState};
use sqlx::AnyConnection;

use crate::store::{
    StoreError,
    devices::{self, Member},
    fleets::Fleet,
};

/// The devices of a fleet that wait or are active.
///
/// A member that did not change stays the same allocation, so whoever remembers one can tell by its address.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// Which fleet of that name it is, and how many of its changes are in here.
    known: Option<(u64, u64)>,
    members: BTreeMap<DeviceId, Arc<Member>>,
}

impl Roster {
    /// Takes in what changed since the last time. `fleet` is the fleet's row, read before on the same database.
    ///
    /// # Errors
    /// Where the store fails; the roster is as it was.
    pub async fn refresh(
        &mut self,
        db: &mut AnyConnection,
        fleet: &Fleet,
    ) -> Result<(), StoreError> {
        let since = self
            .known
            .filter(|(made, changes)| *made == fleet.created_at && *changes <= fleet.changes)
            .map(|(_, changes)| changes);
        if since == Some(fleet.changes) {
            return Ok(());
        }
        let changed = devices::changed_since(db, &fleet.id, since).await?;
        if since.is_none() {
            self.members.clear();
        }
        for member in changed {
            match member.state {
                DeviceState::Rejected | DeviceState::Decommissioned => {
                    self.members.remove(&member.id);
                }
                DeviceState::Pending | DeviceState::Active => {
                    let same = |known: &Arc<Member>| **known == member;
                    if !self.members.get(&member.id).is_some_and(same) {
                        self.members.insert(member.id.clone(), Arc::new(member));
                    }
                }
            }
        }
        self.known = Some((fleet.created_at, fleet.changes));
        Ok(())
    }

    /// The devices, by id.
    pub fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members.values()
    }

    /// One of them.
    pub fn member(&self, id: &DeviceId) -> Option<&Arc<Member>> {
        self.members.get(id)
    }

    /// How many are active.
    pub fn active_count(&self) -> usize {
        self.active().count()
    }

    /// Those that are active, by id.
    pub fn active(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members()
            .filter(|member| member.state == DeviceState::Active)
    }
}
