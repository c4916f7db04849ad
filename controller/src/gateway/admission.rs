//! How many devices are let in at once, and how many there may be.
//!
//! ```text
//! TLS is done ─▶ has a place (some thousands) ─▶ looked up, asks for a session ─▶ has a seat ─▶ session
//! ```
//!
//! Where all places are taken, somebody goes whose device does not ask for its session: of the tenant that has most
//! of these. Where all seats are taken, or a tenant's, a device is told to come back, each at another time; those
//! that are there stay. A device that comes again and again is hung up on.

use std::{sync::Arc, time::Duration};

use longshore_protocol::{DeviceId, TenantName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    crowd::{Crowd, Member, room},
    metrics::Metrics,
    rate::{Buckets, Rate},
    shares::Shares,
};

/// How often a device may come.
const COMES: Rate = Rate {
    burst: 20.0,
    per_second: 1.0,
};
/// Of how many devices that is remembered.
const REMEMBERED: usize = 100_000;

/// How many there may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Devices on their way to a session.
    pub places: usize,
    /// Sessions.
    pub seats: usize,
    /// Sessions of one tenant.
    pub tenant_seats: usize,
    /// How long a device may keep another one of its tenant waiting by not asking for its session.
    pub grace: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            places: 2048,
            seats: 50_000,
            tenant_seats: 40_000,
            grace: Duration::from_secs(3),
        }
    }
}

/// Lets devices in.
#[derive(Debug)]
pub struct Admission {
    grace: Duration,
    metrics: Arc<Metrics>,
    comes: Buckets<DeviceId>,
    places: Arc<Semaphore>,
    waiting: Crowd<TenantName>,
    seats: Arc<Semaphore>,
    tenant_seats: Shares,
}

/// A session's, until this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    _of_all: OwnedSemaphorePermit,
    _of_tenant: OwnedSemaphorePermit,
}

impl Admission {
    /// Nobody is there yet.
    pub fn new(bounds: Bounds, metrics: Arc<Metrics>) -> Self {
        Self {
            grace: bounds.grace,
            metrics,
            comes: Buckets::of(COMES, REMEMBERED),
            places: Arc::new(Semaphore::new(bounds.places)),
            waiting: Crowd::default(),
            seats: Arc::new(Semaphore::new(bounds.seats)),
            tenant_seats: Shares::of(bounds.tenant_seats),
        }
    }

    /// Whether a device may come now; each time counts.
    pub(super) fn may_come(&self, device: &DeviceId) -> bool {
        let may = self.comes.take(device.clone()).is_ok();
        if !may {
            self.metrics.handshakes_refused.inc();
        }
        may
    }

    /// Waits for a place for a device of this tenant.
    pub(super) async fn place(&self, tenant: &TenantName) -> Option<OwnedSemaphorePermit> {
        room(self.places.clone(), 1, || {
            if self.waiting.send_away(tenant, self.grace, Duration::ZERO) {
                self.metrics.handshakes_refused.inc();
            }
        })
        .await
    }

    /// Counts a device as one whose request is waited for. `go` is cancelled when it has to make room.
    pub(super) fn wait_for(
        &self,
        tenant: &TenantName,
        go: CancellationToken,
    ) -> Member<TenantName> {
        self.waiting.enter(tenant.clone(), Duration::ZERO, go)
    }

    /// A seat, if there is one.
    pub(super) fn seat(&self, tenant: &TenantName) -> Option<Seat> {
        Some(Seat {
            _of_tenant: self.tenant_seats.get(tenant).try_acquire_owned().ok()?,
            _of_all: self.seats.clone().try_acquire_owned().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_device_that_comes_again_and_again_keeps_nobody_else_out() {
        let admission = Admission::new(Bounds::default(), Arc::default());
        let [flaps, other] = [1, 2].map(|n| DeviceId::from_random([n; 16]));
        let comes = (0..1000).filter(|_| admission.may_come(&flaps)).count();
        assert_eq!(comes, 20);
        assert!(admission.may_come(&other));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(admission.may_come(&flaps) && !admission.may_come(&flaps));
    }
}
