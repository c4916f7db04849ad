//! How many Git processes serve hosted repos at once: in all, and of one tenant.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use longshore_protocol::TenantName;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// In all.
const MOST: usize = 32;
/// Of one tenant.
const MOST_OF_TENANT: usize = 8;
/// How long a request waits for its turn.
const WAIT: Duration = Duration::from_secs(10);

/// Who has to come back later, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// The tenant has too many requests under way.
    Tenant,
    /// All tenants together have.
    Controller,
}

/// The room for requests; a tenant takes up no more than its part.
#[derive(Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    tenants: Mutex<HashMap<TenantName, Weak<Semaphore>>>,
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _of_tenant: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MOST)),
            tenants: Mutex::default(),
        }
    }
}

impl Places {
    /// Takes a place, if there is one within a few seconds.
    pub(super) async fn take(&self, tenant: &TenantName) -> Result<Place, Busy> {
        let deadline = Instant::now() + WAIT;
        let own = self.of(tenant);
        let Ok(Ok(of_tenant)) = timeout_at(deadline, own.acquire_owned()).await else {
            return Err(Busy::Tenant);
        };
        let Ok(Ok(of_all)) = timeout_at(deadline, self.all.clone().acquire_owned()).await else {
            return Err(Busy::Controller);
        };
        Ok(Place {
            _of_tenant: of_tenant,
            _of_all: of_all,
        })
    }

    fn of(&self, tenant: &TenantName) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = tenants.get(tenant).and_then(Weak::upgrade) {
            return own;
        }
        // Permits keep their semaphore; who has none is forgotten.
        tenants.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(MOST_OF_TENANT));
        tenants.insert(tenant.clone(), Arc::downgrade(&own));
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tenant_takes_up_its_own_part_only() {
        let places = Places::default();
        let tenant = |n: usize| format!("tenant-{n}").parse().unwrap();
        let mut taken = Vec::new();
        for _ in 0..MOST_OF_TENANT {
            taken.push(places.take(&tenant(0)).await.unwrap());
        }
        assert_eq!(places.take(&tenant(0)).await.unwrap_err(), Busy::Tenant);
        let one_of_the_first = taken.pop().unwrap();
        for n in 1..=MOST / MOST_OF_TENANT {
            for _ in 0..MOST_OF_TENANT {
                taken.extend(places.take(&tenant(n)).await.ok());
            }
        }
        let late = tenant(100);
        assert_eq!(places.take(&late).await.unwrap_err(), Busy::Controller);
        drop(one_of_the_first);
        places.take(&late).await.unwrap();
        drop(taken);
        places.take(&tenant(0)).await.unwrap();
        places.take(&late).await.unwrap();
        assert_eq!(places.tenants.lock().unwrap().len(), 1);
    }
}
