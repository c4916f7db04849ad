//! How often one may try to enroll, and how many at once.
//!
//! When a fleet starts, thousands of devices call in the same moment. A few calls are worked on, some wait in line,
//! and the rest are asked to come back, each at another time: work that is under way for connected devices waits for
//! a handful of calls at most, and memory does not grow with the crowd.

use std::{net::IpAddr, time::Duration};

use longshore_protocol::TokenId;
use rand::RngExt as _;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::rate::{Buckets, Rate, network};

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
/// Calls that are worked on at once.
const AT_WORK: usize = 8;
/// Calls that wait in line for that; more would wait for seconds.
const IN_LINE: usize = 512;
/// Calls that are held until their device is decided on; the others are answered at once. Each is a connection.
const HELD: usize = 2048;
/// After how long the others come back, in milliseconds.
const COME_BACK: (u64, u64) = (2_000, 10_000);

/// The limits of the enrollment endpoint.
#[derive(Debug)]
pub struct Limits {
    failed: Buckets<IpAddr>,
    by_token: Buckets<TokenId>,
    line: Semaphore,
    work: Semaphore,
    held: Semaphore,
}

/// A place among the calls that are worked on.
#[derive(Debug)]
pub struct Place<'a> {
    _work: SemaphorePermit<'a>,
    _line: SemaphorePermit<'a>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            failed: Buckets::new(FAILED),
            by_token: Buckets::new(BY_TOKEN),
            line: Semaphore::new(AT_WORK + IN_LINE),
            work: Semaphore::new(AT_WORK),
            held: Semaphore::new(HELD),
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

    /// Waits in line for a place, or says when to come back where the line is full.
    pub async fn place(&self) -> Result<Place<'_>, Duration> {
        let line = self.line.try_acquire().map_err(|_full| come_back())?;
        let work = self.work.acquire().await.map_err(|_closed| come_back())?;
        Ok(Place {
            _work: work,
            _line: line,
        })
    }

    /// A place among the calls that are held, if there is one.
    pub fn hold(&self) -> Option<SemaphorePermit<'_>> {
        self.held.try_acquire().ok()
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

    use super::*;

    #[tokio::test]
    async fn a_crowd_is_asked_to_come_back_at_different_times() {
        let limits = Limits::default();
        let mut at_work = Vec::new();
        for _ in 0..AT_WORK {
            at_work.push(limits.place().await.unwrap());
        }
        let mut in_line: Vec<_> = (0..IN_LINE).map(|_| Box::pin(limits.place())).collect();
        for waiting in &mut in_line {
            assert!(futures_util::poll!(waiting).is_pending());
        }
        let mut refused = BTreeSet::new();
        for _ in 0..100 {
            refused.insert(limits.place().await.unwrap_err());
        }
        assert!(refused.len() > 50, "{refused:?}");
        at_work.pop();
        assert!(
            futures_util::poll!(&mut in_line[0]).is_ready(),
            "one after the other"
        );
        drop(in_line);
        limits.place().await.unwrap();
    }

    #[test]
    fn no_more_than_so_many_are_held() {
        let limits = Limits::default();
        let held: Vec<_> = std::iter::from_fn(|| limits.hold()).collect();
        assert_eq!(held.len(), HELD);
        drop(held);
        assert!(limits.hold().is_some());
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
