//! How often one may try to enroll.

use std::{net::IpAddr, time::Duration};

use longshore_protocol::TokenId;

use crate::rate::{Buckets, Rate, network};

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
        self.failed.take(network(source))
    }

    /// Counts a try with a right token.
    pub fn token_try(&self, token: &TokenId) -> Result<(), Duration> {
        self.by_token.take(token.clone())
    }
}
