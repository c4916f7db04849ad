//! How often one may try to enroll.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use longshore_protocol::TokenId;
use tokio::time::Instant;

/// A token bucket: `burst` tries at once, then `per_second`.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: f64,
    per_second: f64,
}

/// Tries with a wrong token, by address.
const FAILED: Rate = Rate {
    burst: 50.0,
    per_second: 1.0,
};
/// Tries with a right token, by token: many devices may start at once with one.
const BY_TOKEN: Rate = Rate {
    burst: 2000.0,
    per_second: 200.0,
};
/// How many addresses or tokens are remembered; past that, those that are full again are forgotten.
const MAX_BUCKETS: usize = 10_000;
const SWEEP: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Bucket {
    level: f64,
    at: Instant,
}

#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    buckets: HashMap<K, Bucket>,
    /// When full buckets were forgotten last; that looks at all of them, so it is done once a second at most.
    swept: Option<Instant>,
}

impl<K: std::hash::Hash + Eq> Buckets<K> {
    fn new(rate: Rate) -> Self {
        let state = State {
            buckets: HashMap::new(),
            swept: None,
        };
        Self {
            rate,
            state: Mutex::new(state),
        }
    }

    /// Takes one try, or says how long to wait for the next one.
    fn take(&self, key: K) -> Result<(), Duration> {
        let now = Instant::now();
        let Rate { burst, per_second } = self.rate;
        let level = |bucket: &Bucket| {
            let refilled = now.duration_since(bucket.at).as_secs_f64() * per_second;
            (bucket.level + refilled).min(burst)
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { buckets, swept } = &mut *state;
        if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(&key) {
            if swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP) {
                buckets.retain(|_, bucket| level(bucket) < burst);
                *swept = Some(now);
            }
            if buckets.len() >= MAX_BUCKETS {
                return Err(SWEEP);
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket {
            level: burst,
            at: now,
        });
        bucket.level = level(bucket);
        bucket.at = now;
        if bucket.level < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.level) / per_second));
        }
        bucket.level -= 1.0;
        Ok(())
    }
}

/// The limits of the enrollment endpoint.
#[derive(Debug)]
pub struct Limits {
    failed: Buckets<IpAddr>,
    by_token: Buckets<TokenId>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            failed: Buckets::new(FAILED),
            by_token: Buckets::new(BY_TOKEN),
        }
    }
}

impl Limits {
    /// Counts a try with a wrong token.
    pub fn failed_try(&self, source: IpAddr) -> Result<(), Duration> {
        // IPv6 hosts have whole networks to themselves: count the network.
        let source = match source.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
            v4 @ IpAddr::V4(_) => v4,
        };
        self.failed.take(source)
    }

    /// Counts a try with a right token.
    pub fn token_try(&self, token: &TokenId) -> Result<(), Duration> {
        self.by_token.take(token.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_the_rate_does() {
        let limits = Limits::default();
        let source = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..50 {
            limits.failed_try(source).unwrap();
        }
        let wait = limits.failed_try(source).unwrap_err();
        assert!(
            limits.failed_try(IpAddr::from([192, 0, 2, 2])).is_ok(),
            "others are not affected"
        );
        tokio::time::advance(wait).await;
        limits.failed_try(source).unwrap();
        limits.failed_try(source).unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_recovers() {
        let limits = Limits::default();
        for n in 0..20_000_u32 {
            let _over_the_bound = limits.failed_try(IpAddr::V4(n.into()));
        }
        assert!(limits.failed.state.lock().unwrap().buckets.len() <= MAX_BUCKETS);
        tokio::time::advance(Duration::from_mins(1)).await;
        limits.failed_try(IpAddr::V4(50_000.into())).unwrap();
    }
}
