//! Which controller this is, among those that share a database.

use std::fmt;

/// A controller process's own id: random, made anew at each start, so that what a dead process left behind is
/// never taken for a living one's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaId(String);

impl ReplicaId {
    /// A new one.
    pub fn random() -> Self {
        Self(format!("rep_{}", hex::encode(rand::random::<[u8; 16]>())))
    }

    /// As it stands in the store.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
