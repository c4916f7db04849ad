//! Token buckets: how often somebody may do something.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// `burst` times at once, then `per_second`.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// How many at once.
    pub burst: f64,
    /// How many in the long run.
    pub per_second: f64,
}

/// How many keys are remembered unless somebody says otherwise.
const MAX_BUCKETS: usize = 10_000;
const SWEEP: Duration = Duration::from_secs(1);

/// How much somebody may still do.
#[derive(Debug)]
pub struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    /// One from which nothing was taken.
    pub fn full(rate: Rate) -> Self {
        Self {
            level: rate.burst,
            at: Instant::now(),
        }
    }

    /// Takes what was done already, whether it was there or not.
    pub fn spend(&mut self, rate: Rate, cost: f64) {
        let now = Instant::now();
        self.level = rate.level(self, now) - cost;
        self.at = now;
    }

    /// How long until what was taken too much is there again.
    pub fn debt(&self, rate: Rate) -> Option<Duration> {
        if self.level >= 0.0 {
            return None;
        }
        let level = rate.level(self, Instant::now());
        (level < 0.0).then(|| Duration::from_secs_f64(-level / rate.per_second))
    }
}

/// One bucket for each key, in bounded memory.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    most: usize,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    buckets: HashMap<K, Bucket>,
    /// When full buckets were forgotten last; that looks at all of them, so it is done once a second at most.
    swept: Option<Instant>,
}

impl<K: Hash + Eq> Buckets<K> {
    /// Full buckets for everybody.
    pub fn new(rate: Rate) -> Self {
        Self::of(rate, MAX_BUCKETS)
    }

    /// The same for at most so many keys; past that, those whose bucket is full again are forgotten.
    pub fn of(rate: Rate, most: usize) -> Self {
        let state = State {
            buckets: HashMap::new(),
            swept: None,
        };
        Self {
            rate,
            most,
            state: Mutex::new(state),
        }
    }

    /// Takes one, or says how long to wait for the next one.
    pub fn take(&self, key: K) -> Result<(), Duration> {
        let now = Instant::now();
        let rate = self.rate;
        let mut state = self.state();
        let State { buckets, swept } = &mut *state;
        if buckets.len() >= self.most && !buckets.contains_key(&key) {
            if swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP) {
                buckets.retain(|_, bucket| rate.level(bucket, now) < rate.burst);
                *swept = Some(now);
            }
            if buckets.len() >= self.most {
                return Err(SWEEP);
            }
        }
        let bucket = buckets.entry(key).or_insert_with(|| Bucket::full(rate));
        rate.wait(rate.level(bucket, now))?;
        bucket.spend(rate, 1.0);
        Ok(())
    }

    /// Takes what was done already, and says how long until it is there again, where it was not. Where there are too
    /// many keys, nobody new is counted.
    pub fn spend(&self, key: &K, cost: f64) -> Option<Duration>
    where
        K: Clone,
    {
        let mut state = self.state();
        if !state.buckets.contains_key(key) {
            if state.buckets.len() >= self.most {
                return None;
            }
            state.buckets.insert(key.clone(), Bucket::full(self.rate));
        }
        let bucket = state.buckets.get_mut(key)?;
        bucket.spend(self.rate, cost);
        bucket.debt(self.rate)
    }

    /// Takes nothing; says how long to wait where there is nothing left.
    pub fn look(&self, key: &K) -> Result<(), Duration> {
        let state = self.state();
        let bucket = state.buckets.get(key);
        bucket.map_or(Ok(()), |bucket| {
            self.rate.wait(self.rate.level(bucket, Instant::now()))
        })
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rate {
    fn level(self, bucket: &Bucket, now: Instant) -> f64 {
        let refilled = now.duration_since(bucket.at).as_secs_f64() * self.per_second;
        (bucket.level + refilled).min(self.burst)
    }

    fn wait(self, level: f64) -> Result<(), Duration> {
        if level < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - level) / self.per_second));
        }
        Ok(())
    }
}

/// Somebody's own pace: waits instead of refusing.
#[derive(Debug)]
pub struct Pace(Buckets<()>);

impl Pace {
    /// From a full bucket.
    pub fn new(rate: Rate) -> Self {
        Self(Buckets::new(rate))
    }

    /// Takes one as soon as there is one.
    pub async fn keep(&self) {
        while let Err(wait) = self.0.take(()) {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Who is behind an address: hosts with IPv6 have whole networks to themselves, so there the network counts.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_took_too_much_waits_for_it() {
        let rate = Rate {
            burst: 10.0,
            per_second: 2.0,
        };
        let mut bucket = Bucket::full(rate);
        bucket.spend(rate, 10.0);
        assert_eq!(bucket.debt(rate), None);
        bucket.spend(rate, 3.0);
        assert_eq!(bucket.debt(rate), Some(Duration::from_millis(1500)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(bucket.debt(rate), Some(Duration::from_millis(500)));
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(bucket.debt(rate), None);
        bucket.spend(rate, 10.5);
        assert_eq!(bucket.debt(rate), Some(Duration::from_millis(250)));
    }

    const RATE: Rate = Rate {
        burst: 50.0,
        per_second: 1.0,
    };

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_the_rate_does() {
        let buckets = Buckets::new(RATE);
        for _ in 0..50 {
            buckets.look(&1).unwrap();
            buckets.take(1).unwrap();
        }
        let wait = buckets.take(1).unwrap_err();
        assert_eq!(buckets.look(&1).unwrap_err(), wait);
        assert!(buckets.take(2).is_ok(), "others are not affected");
        tokio::time::advance(wait).await;
        buckets.look(&1).unwrap();
        buckets.take(1).unwrap();
        buckets.take(1).unwrap_err();
    }

    /// Many who share a bucket take turns: together they keep its rate.
    #[tokio::test(start_paused = true)]
    async fn those_who_share_a_bucket_keep_its_rate_together() {
        let buckets = Buckets::new(RATE);
        let waits: Vec<_> = (0..60).map(|_| buckets.spend(&1, 1.0)).collect();
        assert!(waits[..50].iter().all(Option::is_none));
        for (n, wait) in waits[50..].iter().enumerate() {
            let seconds = u64::try_from(n + 1).unwrap();
            assert_eq!(*wait, Some(Duration::from_secs(seconds)));
        }
        assert_eq!(buckets.spend(&2, 1.0), None, "others are not affected");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_recovers() {
        let buckets = Buckets::new(RATE);
        for n in 0..20_000 {
            let _over_the_bound = buckets.take(n);
        }
        assert!(buckets.state().buckets.len() <= MAX_BUCKETS);
        tokio::time::advance(Duration::from_mins(1)).await;
        buckets.take(50_000).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_is_kept() {
        let pace = Pace::new(Rate {
            burst: 3.0,
            per_second: 2.0,
        });
        let begun = Instant::now();
        for _ in 0..13 {
            pace.keep().await;
        }
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(5), "{took:?}");
        assert!(took < Duration::from_millis(5100), "{took:?}");
    }

    #[test]
    fn a_network_counts_as_one() {
        let same = |one: &str, other: &str| {
            network(one.parse().unwrap()) == network(other.parse().unwrap())
        };
        assert!(same("2001:db8::1", "2001:db8::ffff:1"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("192.0.2.1", "::ffff:192.0.2.1"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
    }
}
