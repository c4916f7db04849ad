//! Exponential backoff with full jitter: any wait from nothing to the present ceiling is equally likely, so
//! that a fleet that lost its controller at one moment does not come back at one moment.

use std::time::Duration;

use rand::{RngExt as _, rngs::StdRng};

/// How long to wait before the next try.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
    random: StdRng,
}

impl Backoff {
    /// Waits of up to `first` after one failure, twice that after two, and never more than `most`.
    pub fn new(first: Duration, most: Duration, random: StdRng) -> Self {
        Self {
            first,
            most,
            failures: 0,
            random,
        }
    }

    /// Counts one more failure and says how long to wait.
    pub fn after_failure(&mut self) -> Duration {
        let ceiling = self
            .first
            .saturating_mul(1 << self.failures.min(20))
            .min(self.most);
        self.failures = self.failures.saturating_add(1);
        self.between(Duration::ZERO, ceiling)
    }

    /// Forgets the failures so far.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// `asked`, as somebody asked for it, and up to a quarter more.
    pub fn at_least(&mut self, asked: Duration) -> Duration {
        self.between(asked, asked.saturating_add(asked / 4))
    }

    /// What the peer asked for where it asked, else as after any failure.
    pub fn after_refusal(&mut self, asked: Option<Duration>) -> Duration {
        match asked {
            Some(asked) => self.at_least(asked),
            None => self.after_failure(),
        }
    }

    /// A wait near the longest one, for what will hardly heal soon.
    pub fn slow(&mut self) -> Duration {
        self.between(self.most / 2, self.most)
    }

    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        self.random.random_range(least..=most.max(least))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn waits_grow_to_the_ceiling_and_start_again() {
        let second = Duration::from_secs(1);
        for seed in 0..50 {
            let mut backoff = Backoff::new(second, 60 * second, StdRng::seed_from_u64(seed));
            for ceiling in [1, 2, 4, 8, 16, 32, 60, 60] {
                assert!(backoff.after_failure() <= ceiling * second);
            }
            backoff.reset();
            assert!(backoff.after_failure() <= second);
            assert!((8 * second..=10 * second).contains(&backoff.at_least(8 * second)));
            assert!(backoff.slow() >= 30 * second);
        }
    }
}
