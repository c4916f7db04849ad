//! Where sessions read and encode what they send.
//!
//! Each tenant has a few places of its own, so one whose ten thousand devices are poked at once neither fills the
//! memory nor stands before the others. A place is never held while a frame is on its way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use longshore_protocol::TenantName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many sessions of one tenant read and encode at a time: enough that what they read is read together.
const PER_TENANT: usize = 128;

/// The places of all tenants.
#[derive(Debug, Default)]
pub struct Places(Mutex<HashMap<TenantName, Arc<Semaphore>>>);

impl Places {
    /// Waits for one of the tenant's places; first come, first served.
    pub(super) async fn take(&self, tenant: &TenantName) -> Option<OwnedSemaphorePermit> {
        let places = {
            let mut tenants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match tenants.get(tenant) {
                Some(places) => places.clone(),
                None => tenants
                    .entry(tenant.clone())
                    .or_insert_with(|| Arc::new(Semaphore::new(PER_TENANT)))
                    .clone(),
            }
        };
        // Nobody closes it.
        places.acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_tenant_that_takes_all_its_places_takes_no_other_ones() {
        let places = Places::default();
        let [one, two]: [TenantName; 2] = ["one", "two"].map(|name| name.parse().unwrap());
        let mut taken: Vec<_> = std::iter::from_fn(|| places.take(&one).now_or_never()).collect();
        assert_eq!(taken.len(), PER_TENANT);
        assert!(places.take(&two).now_or_never().is_some());
        taken.pop();
        assert!(places.take(&one).now_or_never().is_some());
    }
}
