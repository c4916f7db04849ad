//! How many Git processes serve hosted repos at once: in all, and of one tenant.

use std::{sync::Arc, time::Duration};

use longshore_protocol::TenantName;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::shares::Shares;

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
    tenants: Shares,
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
            tenants: Shares::of(MOST_OF_TENANT),
        }
    }
}

impl Places {
    /// Takes a place, if there is one within a few seconds.
    pub(super) async fn take(&self, tenant: &TenantName) -> Result<Place, Busy> {
        let deadline = Instant::now() + WAIT;
        let own = self.tenants.get(tenant);
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
    }
}
