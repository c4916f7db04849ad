//! How often one may try to enroll, and how many at once.
//!
//! ```text
//! looked at (in bulk, so cheap) ─▶ the tenant's line ─▶ worked on ─▶ held until decided
//! ```
//!
//! When a fleet starts, thousands of devices call in the same moment. A few calls are worked on, some wait in line,
//! and the rest are asked to come back, each at another time: work that is under way for connected devices waits for
//! a handful of calls at most, and memory does not grow with the crowd. Whose call it is, its token says; from there
//! on each tenant has places of its own, and its crowd delays nobody else.

use std::{net::IpAddr, time::Duration};

use longshore_protocol::{DeviceId, TenantName, TokenId};
use rand::RngExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::held::{Held, Hold};
use crate::{
    rate::{Buckets, Rate, network},
    shares::Shares,
};

/// Tries with a wrong token, by address.
const FAILED: Rate = Rate {
    burst: 50.0,
    per_second: 1.0,
};
/// Tries with a right token, by token: many devices may start at once with one. Each device calls twice, at least.
const BY_TOKEN: Rate = Rate {
    burst: 5000.0,
    per_second: 500.0,
};
/// Renewals by device, which needs one.
const BY_DEVICE: Rate = Rate {
    burst: 20.0,
    per_second: 0.1,
};
/// Of how many devices that is remembered.
const REMEMBERED: usize = 100_000;
/// Calls whose token is being looked up.
const LOOKED_AT: usize = 2048;
/// Calls that are worked on at once, of all tenants.
const AT_WORK: usize = 8;
/// The same of one tenant.
const TENANT_AT_WORK: usize = 4;
/// Calls of one tenant that wait in line for that; more would wait for seconds.
const IN_LINE: usize = 512;
/// Calls that are held until their device is decided on. Each is a connection.
const HELD: usize = 2048;
/// After how long the others come back, in milliseconds.
const COME_BACK: (u64, u64) = (2_000, 10_000);

/// The limits of the enrollment endpoint.
#[derive(Debug)]
pub struct Limits {
    failed: Buckets<IpAddr>,
    by_token: Buckets<TokenId>,
    by_device: Buckets<DeviceId>,
    looked_at: Semaphore,
    lines: Shares,
    works: Shares,
    work: Semaphore,
    held: Held,
}

/// A place among the calls that are worked on.
#[derive(Debug)]
pub struct Place<'a> {
    _work: SemaphorePermit<'a>,
    _tenants_work: OwnedSemaphorePermit,
    _line: OwnedSemaphorePermit,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            failed: Buckets::new(FAILED),
            by_token: Buckets::new(BY_TOKEN),
            by_device: Buckets::of(BY_DEVICE, REMEMBERED),
            looked_at: Semaphore::new(LOOKED_AT),
            lines: Shares::of(TENANT_AT_WORK + IN_LINE),
            works: Shares::of(TENANT_AT_WORK),
            work: Semaphore::new(AT_WORK),
            held: Held::of(HELD),
        }
    }
}

impl Limits {
    /// Counts a try with a wrong token.
    pub fn failed_try(&self, source: IpAddr) -> Result<(), Duration> {
        self.failed.take(network(source))
    }

    /// Counts a try with a right token.
    pub fn token_try(&self, token: &TokenId) -> Result<(), Duration> {
        let allowed = self.by_token.take(token.clone());
        // Those who are refused together do not come back together.
        allowed.map_err(|wait| wait + come_back())
    }

    /// Counts a renewal of a device that showed its token.
    pub fn renewal(&self, device: &DeviceId) -> Result<(), Duration> {
        self.by_device.take(device.clone())
    }

    /// A place among the calls whose token is being looked up, or when to come back.
    pub fn look(&self) -> Result<SemaphorePermit<'_>, Duration> {
        self.looked_at.try_acquire().map_err(|_full| come_back())
    }

    /// Waits in the tenant's line for a place, or says when to come back where the line is full.
    pub async fn place(&self, tenant: &TenantName) -> Result<Place<'_>, Duration> {
        let line = self.lines.get(tenant).try_acquire_owned();
        let line = line.map_err(|_full| come_back())?;
        let own = self.works.get(tenant).acquire_owned().await;
        let work = self.work.acquire().await;
        Ok(Place {
            _work: work.map_err(|_closed| come_back())?,
            _tenants_work: own.map_err(|_closed| come_back())?,
            _line: line,
        })
    }

    /// A place among the calls that are held.
    pub(super) fn hold(&self, tenant: &TenantName, device: &DeviceId) -> Hold<'_> {
        self.held.hold(tenant, device)
    }
}

/// When somebody for whom there is no place is to come back.
pub fn come_back() -> Duration {
    let (least, most) = COME_BACK;
    Duration::from_millis(rand::rng().random_range(least..most))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_crowd_is_asked_to_come_back_at_different_times_and_delays_nobody_else() {
        let limits = Limits::default();
        let [crowd, other]: [TenantName; 2] = ["crowd", "other"].map(|name| name.parse().unwrap());
        let mut at_work: Vec<_> = std::iter::from_fn(|| limits.place(&crowd).now_or_never()?.ok())
            .take(100)
            .collect();
        assert_eq!(at_work.len(), TENANT_AT_WORK);
        // The last look at the line was a place that was given up again.
        let mut in_line: Vec<_> = (0..IN_LINE)
            .map(|_| Box::pin(limits.place(&crowd)))
            .collect();
        for waiting in &mut in_line {
            assert!(futures_util::poll!(waiting).is_pending());
        }
        let mut refused = BTreeSet::new();
        for _ in 0..100 {
            refused.insert(limits.place(&crowd).await.unwrap_err());
        }
        assert!(refused.len() > 50, "{refused:?}");
        let theirs = limits.place(&other).now_or_never();
        assert!(
            matches!(theirs, Some(Ok(_))),
            "another tenant's is worked on at once"
        );
        at_work.pop();
        assert!(
            futures_util::poll!(&mut in_line[0]).is_ready(),
            "one after the other"
        );
        drop(in_line);
        limits.place(&crowd).await.unwrap();
    }

    #[test]
    fn no_more_than_so_many_are_looked_at() {
        let limits = Limits::default();
        let looks: Vec<_> = std::iter::from_fn(|| limits.look().ok()).collect();
        assert_eq!(looks.len(), LOOKED_AT);
        drop(looks);
        drop(limits.look().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_devices_with_one_token_are_let_in_within_a_minute() {
        let (limits, token) = (Limits::default(), TokenId::from_random([1; 16]));
        let mut calls = 2 * 10_000;
        let begun = tokio::time::Instant::now();
        while calls > 0 {
            match limits.token_try(&token) {
                Ok(()) => calls -= 1,
                Err(_) => tokio::time::advance(Duration::from_millis(100)).await,
            }
        }
        assert!(begun.elapsed() < Duration::from_mins(1));
    }
}
