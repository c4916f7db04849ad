//! Where sessions read and encode what they send.
//!
//! Each tenant has a few places of its own, so one whose ten thousand devices are poked at once neither fills the
//! memory nor stands before the others. A place is never held while a frame is on its way.

use longshore_protocol::TenantName;
use tokio::sync::OwnedSemaphorePermit;

use crate::shares::Shares;

/// How many sessions of one tenant read and encode at a time: enough that what they read is read together.
const PER_TENANT: usize = 128;

/// The places of all tenants.
#[derive(Debug)]
pub struct Places(Shares);

impl Default for Places {
    fn default() -> Self {
        Self(Shares::of(PER_TENANT))
    }
}

impl Places {
    /// Waits for one of the tenant's places; first come, first served.
    pub(super) async fn take(&self, tenant: &TenantName) -> Option<OwnedSemaphorePermit> {
        // Nobody closes it.
        self.0.get(tenant).acquire_owned().await.ok()
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
