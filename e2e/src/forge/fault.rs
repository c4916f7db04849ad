//! What goes wrong between a controller and its forge, on demand.

use std::{collections::BTreeMap, time::Duration};

use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::json;

use super::call::Answer;

/// A way to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An answer with this status instead of the deed.
    Status(StatusCode),
    /// `403` with an exhausted rate limit that is full again after this time.
    RateLimit(Duration),
    /// `429` with `Retry-After`.
    TooMany(Duration),
    /// No answer ever.
    Hang,
    /// The connection is closed, and nothing was done.
    Cut,
    /// The deed is done, but the connection is closed before the answer.
    LoseAnswer,
    /// The deed is done, but the answer ends in its middle.
    HalfBody,
}

/// A plan for calls to go wrong.
#[derive(Clone, Debug)]
pub struct Fault {
    kind: Kind,
    method: Option<Method>,
    path: String,
    times: Option<usize>,
}

impl Fault {
    /// Every call goes wrong, those of Git too, until [`super::Forge::heal`].
    pub fn every(kind: Kind) -> Self {
        Self {
            kind,
            method: None,
            path: String::new(),
            times: None,
        }
    }

    /// Only calls with this method whose path contains `path`.
    #[must_use]
    pub fn on(self, method: Method, path: &str) -> Self {
        Self {
            method: Some(method),
            path: path.to_owned(),
            ..self
        }
    }

    /// Only calls of the REST API, not those of Git.
    #[must_use]
    pub fn of_api(self) -> Self {
        Self {
            path: "/api/".to_owned(),
            ..self
        }
    }

    /// Only the first so many.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self {
            times: Some(times),
            ..self
        }
    }

    /// Takes part in a call, where the plan says so.
    pub(super) fn strike(&mut self, method: &Method, path: &str) -> Option<Kind> {
        let meant = self.method.as_ref().is_none_or(|mine| mine == method)
            && path.contains(&self.path)
            && self.times != Some(0);
        if !meant {
            return None;
        }
        self.times = self.times.map(|times| times.saturating_sub(1));
        Some(self.kind)
    }
}

impl Kind {
    /// The answer in place of the deed, where the fault is one.
    pub(super) fn answer(self) -> Option<Answer> {
        let (status, message, headers) = match self {
            Self::Status(status) => {
                let message = status.canonical_reason().unwrap_or("Error");
                (status, message, BTreeMap::new())
            }
            Self::RateLimit(after) => (
                StatusCode::FORBIDDEN,
                "API rate limit exceeded for installation ID 7.",
                BTreeMap::from([
                    ("x-ratelimit-limit", "5000".to_owned()),
                    ("x-ratelimit-remaining", "0".to_owned()),
                    ("x-ratelimit-reset", in_seconds(after).to_string()),
                ]),
            ),
            Self::TooMany(after) => (
                StatusCode::TOO_MANY_REQUESTS,
                "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
                BTreeMap::from([("retry-after", after.as_secs().to_string())]),
            ),
            Self::Hang | Self::Cut | Self::LoseAnswer | Self::HalfBody => return None,
        };
        let mut answer = Answer::with(status, json!({"message": message}));
        answer.headers = headers;
        Some(answer)
    }
}

/// Seconds since the Unix epoch after `time`, rounded up, for a limit is not lifted early.
fn in_seconds(time: Duration) -> i64 {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::now().as_second() + seconds + 1
}
