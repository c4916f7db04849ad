//! Leaves a host alone for as long as it asks: nobody gains from a call whose answer is known.
//!
//! - GitHub says `retry-after` in seconds, or `x-ratelimit-remaining: 0` and `x-ratelimit-reset`, and wants at least
//!   a minute where it says neither:
//!   <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api>.
//! - GitLab says `Retry-After`, and `RateLimit-Remaining` and `RateLimit-Reset`:
//!   <https://docs.gitlab.com/administration/settings/user_and_ip_rate_limits/>.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use tokio::time::Instant;

/// Where the host does not say for how long.
const UNSAID: Duration = Duration::from_mins(1);
/// Hosts count by the hour at most; what says more is wrong.
const LONGEST: Duration = Duration::from_hours(1);

/// Until when one host is left alone.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Option<Instant>>);

impl Throttle {
    /// How long to wait before the next call, if at all.
    pub fn wait(&self) -> Option<Duration> {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = until?.saturating_duration_since(Instant::now());
        (!wait.is_zero()).then_some(wait)
    }

    /// Looks at an answer; `now` is in milliseconds since the Unix epoch. Returns for how long the host wants no calls.
    pub fn observe(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        now: u64,
    ) -> Option<Duration> {
        let wait = asked_to_wait(status, headers, body, now)?.min(LONGEST);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + wait);
        Some(wait)
    }
}

fn asked_to_wait(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    now: u64,
) -> Option<Duration> {
    if status != StatusCode::TOO_MANY_REQUESTS && status != StatusCode::FORBIDDEN {
        return None;
    }
    let number = |names: &[&str]| {
        let value = names.iter().find_map(|name| headers.get(*name))?;
        value.to_str().ok()?.trim().parse::<u64>().ok()
    };
    if let Some(seconds) = number(&[RETRY_AFTER.as_str()]) {
        return Some(Duration::from_secs(seconds.max(1)));
    }
    if number(&["x-ratelimit-remaining", "ratelimit-remaining"]) == Some(0) {
        let reset = number(&["x-ratelimit-reset", "ratelimit-reset"]);
        return Some(reset.map_or(UNSAID, |reset| {
            // A second more, since both clocks count whole seconds.
            let left = reset.saturating_mul(1000).saturating_sub(now);
            Duration::from_millis(left) + Duration::from_secs(1)
        }));
    }
    let is_secondary = String::from_utf8_lossy(body).contains("secondary rate limit");
    (status == StatusCode::TOO_MANY_REQUESTS || is_secondary).then_some(UNSAID)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn asked(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Option<u64> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let status = StatusCode::from_u16(status).unwrap();
        let wait = Throttle::default().observe(status, &headers, body.as_bytes(), NOW);
        wait.map(|wait| wait.as_secs())
    }

    #[test]
    fn hosts_say_in_several_ways_that_they_want_no_calls() {
        let reset = ("x-ratelimit-reset", "1700000030");
        assert_eq!(asked(429, &[("retry-after", "7")], ""), Some(7));
        assert_eq!(asked(403, &[("retry-after", "0")], ""), Some(1));
        assert_eq!(
            asked(403, &[("x-ratelimit-remaining", "0"), reset], ""),
            Some(31)
        );
        assert_eq!(
            asked(
                429,
                &[
                    ("ratelimit-remaining", "0"),
                    ("ratelimit-reset", "1700000005")
                ],
                ""
            ),
            Some(6)
        );
        assert_eq!(asked(429, &[], ""), Some(60));
        assert_eq!(
            asked(403, &[], "You have exceeded a secondary rate limit"),
            Some(60)
        );
        assert_eq!(asked(429, &[("retry-after", "999999999")], ""), Some(3600));
        assert_eq!(
            asked(403, &[("x-ratelimit-remaining", "12"), reset], "no"),
            None
        );
        assert_eq!(asked(500, &[("retry-after", "7")], ""), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_is_left_alone_until_then_and_no_longer() {
        let throttle = Throttle::default();
        assert_eq!(throttle.wait(), None);
        let headers = HeaderMap::from_iter([(RETRY_AFTER, "5".parse().unwrap())]);
        throttle.observe(StatusCode::TOO_MANY_REQUESTS, &headers, b"", NOW);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(throttle.wait(), Some(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(throttle.wait(), None);
    }
}
