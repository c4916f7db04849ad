//! The reconciler's picture of its fleet's devices, kept up with what changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use longshore_protocol::{DeviceId, Digest, api::DeviceState};
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
    by_key: HashMap<Digest, DeviceId>,
    pending: BTreeSet<DeviceId>,
    /// The facts that are labels; members have no others.
    facts: BTreeSet<String>,
}

impl Roster {
    /// Wants to know these facts of devices. Returns whether it has to be refreshed for that.
    pub fn want(&mut self, facts: &BTreeSet<String>) -> bool {
        if self.facts == *facts {
            return false;
        }
        self.facts.clone_from(facts);
        self.known = None;
        true
    }

    /// Takes in what changed since the last time. `fleet` is the fleet's row, read before on the same database.
    /// Returns those that came, went or became others.
    ///
    /// # Errors
    /// Where the store fails; the roster is as it was.
    pub async fn refresh(
        &mut self,
        db: &mut AnyConnection,
        fleet: &Fleet,
    ) -> Result<BTreeSet<DeviceId>, StoreError> {
        let since = self
            .known
            .filter(|(made, changes)| *made == fleet.created_at && *changes <= fleet.changes)
            .map(|(_, changes)| changes);
        if since == Some(fleet.changes) {
            return Ok(BTreeSet::new());
        }
        let changed = devices::changed_since(db, &fleet.id, since, !self.facts.is_empty()).await?;
        let mut others = BTreeSet::new();
        if since.is_none() {
            others.extend(self.members.keys().cloned());
            *self = Self {
                facts: std::mem::take(&mut self.facts),
                ..Self::default()
            };
        }
        for mut member in changed {
            member.facts.retain(|name, _| self.facts.contains(name));
            let same = |known: &Arc<Member>| **known == member;
            if !self.members.get(&member.id).is_some_and(same) {
                others.insert(member.id.clone());
                self.take(member);
            }
        }
        self.known = Some((fleet.created_at, fleet.changes));
        Ok(others)
    }

    fn take(&mut self, member: Member) {
        if let Some(before) = self.members.remove(&member.id)
            && self.by_key.get(&before.public_key) == Some(&before.id)
        {
            self.by_key.remove(&before.public_key);
        }
        self.pending.remove(&member.id);
        match member.state {
            DeviceState::Rejected | DeviceState::Decommissioned => return,
            DeviceState::Pending => {
                self.pending.insert(member.id.clone());
            }
            DeviceState::Active => {}
        }
        self.by_key.insert(member.public_key, member.id.clone());
        self.members.insert(member.id.clone(), Arc::new(member));
    }

    /// One of the devices.
    pub fn member(&self, id: &DeviceId) -> Option<&Arc<Member>> {
        self.members.get(id)
    }

    /// One of them, if it is active.
    pub fn active_member(&self, id: &DeviceId) -> Option<&Arc<Member>> {
        let is_active = |member: &&Arc<Member>| member.state == DeviceState::Active;
        self.member(id).filter(is_active)
    }

    /// The one with this key.
    pub fn with_key(&self, key: &Digest) -> Option<&DeviceId> {
        self.by_key.get(key)
    }

    /// How many are active.
    pub fn active_count(&self) -> usize {
        self.members.len() - self.pending.len()
    }

    /// Those that are active, by id.
    pub fn active(&self) -> impl Iterator<Item = &Arc<Member>> {
        let is_active = |member: &&Arc<Member>| member.state == DeviceState::Active;
        self.members.values().filter(is_active)
    }

    /// Those that wait, by id.
    pub fn pending(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.pending.iter().filter_map(|id| self.member(id))
    }
}
