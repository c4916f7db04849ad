//! What each tenant has of its own: so many permits, whatever others take.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use longshore_protocol::TenantName;
use tokio::sync::Semaphore;

/// A semaphore for each tenant that uses its own.
#[derive(Debug)]
pub struct Shares {
    permits: usize,
    tenants: Mutex<HashMap<TenantName, Weak<Semaphore>>>,
}

impl Shares {
    /// So many permits for each tenant.
    pub fn of(permits: usize) -> Self {
        Self {
            permits,
            tenants: Mutex::default(),
        }
    }

    /// The tenant's own.
    pub fn get(&self, tenant: &TenantName) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = tenants.get(tenant).and_then(Weak::upgrade) {
            return own;
        }
        // Permits keep their semaphore; who has none is forgotten.
        tenants.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(self.permits));
        tenants.insert(tenant.clone(), Arc::downgrade(&own));
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_takes_its_own_and_who_has_none_is_forgotten() {
        let shares = Shares::of(2);
        let [one, two]: [TenantName; 2] = ["one", "two"].map(|name| name.parse().unwrap());
        let take = |tenant| shares.get(tenant).try_acquire_owned();
        let taken = [take(&one).unwrap(), take(&one).unwrap()];
        take(&one).unwrap_err();
        let others = take(&two).unwrap();
        drop(taken);
        drop(take(&one).unwrap());
        drop(others);
        drop(take(&two).unwrap());
        assert_eq!(shares.tenants.lock().unwrap().len(), 1);
    }
}
