//! The per-device counter of desired states.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many times a device's desired digest has changed.
///
/// Starts at 1 with the first desired state, never falls, and one generation has exactly one digest. Stored
/// as a signed 64-bit integer, so it stays below 2^63.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(u64);

impl Generation {
    /// The first generation of a device.
    pub const FIRST: Self = Self(1);

    /// The largest that a peer may name: far from any real one, and far from overflowing when one is added.
    pub const LARGEST_NAMED: Self = Self(1 << 62);

    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The number.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl From<u64> for Generation {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
