//! Calls that are held until their device is decided on.
//!
//! A device has one at most: its newer call releases the older one. All together have a bound. At the bound, whoever
//! comes takes the place of the call that is held longest of the tenant that has most. So a crowd of one tenant,
//! however large, leaves the others their places.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use longshore_protocol::{DeviceId, TenantName};
use tokio_util::sync::CancellationToken;

use crate::crowd::{Crowd, Member};

/// The calls that are held.
#[derive(Debug)]
pub(super) struct Held {
    most: usize,
    crowd: Crowd<TenantName>,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    next: u64,
    /// The call of each device: its number, and what ends it.
    of: HashMap<DeviceId, (u64, CancellationToken)>,
}

/// One held call; its place is free when this is dropped.
#[derive(Debug)]
pub(super) struct Hold<'a> {
    held: &'a Held,
    device: DeviceId,
    number: u64,
    over: CancellationToken,
    _member: Member<TenantName>,
}

impl Held {
    /// Room for so many.
    pub(super) fn of(most: usize) -> Self {
        Self {
            most,
            crowd: Crowd::default(),
            calls: Mutex::default(),
        }
    }

    /// A place for a call of this device.
    pub(super) fn hold(&self, tenant: &TenantName, device: &DeviceId) -> Hold<'_> {
        let over = CancellationToken::new();
        let mut calls = self.calls();
        let number = calls.next;
        calls.next += 1;
        let older = calls.of.insert(device.clone(), (number, over.clone()));
        if let Some((_, older)) = older {
            older.cancel();
        } else if self.crowd.len() >= self.most {
            self.crowd.send_away(tenant, Duration::ZERO, Duration::ZERO);
        }
        let member = self
            .crowd
            .enter(tenant.clone(), Duration::ZERO, over.clone());
        Hold {
            held: self,
            device: device.clone(),
            number,
            over,
            _member: member,
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold<'_> {
    /// Until somebody else has the place.
    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut calls = self.held.calls();
        let current = calls.of.get(&self.device);
        if current.is_some_and(|(number, _)| *number == self.number) {
            calls.of.remove(&self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantName {
        name.parse().unwrap()
    }

    fn device(n: u8) -> DeviceId {
        DeviceId::from_random([n; 16])
    }

    fn is_over(hold: &Hold<'_>) -> bool {
        hold.over.is_cancelled()
    }

    #[test]
    fn a_devices_newer_call_releases_the_older_one_and_no_other() {
        let held = Held::of(2);
        let other = held.hold(&tenant("one"), &device(2));
        let older = held.hold(&tenant("one"), &device(1));
        let newer = held.hold(&tenant("one"), &device(1));
        drop(older);
        let newest = held.hold(&tenant("one"), &device(1));
        assert!(is_over(&newer) && !is_over(&newest) && !is_over(&other));
        drop((newer, newest));
        assert_eq!(held.calls().of.len(), 1);
    }

    #[test]
    fn a_crowd_of_one_tenant_leaves_others_their_places() {
        let held = Held::of(10);
        let crowd: Vec<_> = (0..100)
            .map(|n| held.hold(&tenant("crowd"), &device(n)))
            .collect();
        assert_eq!(crowd.iter().filter(|hold| is_over(hold)).count(), 90);
        let others: Vec<_> = (100..105)
            .map(|n| held.hold(&tenant("other"), &device(n)))
            .collect();
        assert_eq!(crowd.iter().filter(|hold| is_over(hold)).count(), 95);
        assert_eq!(others.iter().filter(|hold| is_over(hold)).count(), 0);
        drop((crowd, others));
        assert!(held.calls().of.is_empty() && held.crowd.len() == 0);
    }
}
