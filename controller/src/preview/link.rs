//! Links to whole reports: who was shown one may read that report, and nobody can guess another.

use std::sync::Arc;

use crate::{secret::Keyring, store::fleets::FleetId};

/// Makes and checks links.
#[derive(Clone, Debug)]
pub struct Link {
    /// Signs.
    pub keyring: Arc<Keyring>,
    /// The public listener, as others reach it.
    pub public_url: String,
}

impl Link {
    /// Leads to the report of a pull request's head.
    pub fn to(&self, fleet: &FleetId, number: u64, head: &str) -> String {
        let key = self.keyring.link_key(&subject(fleet, number, head));
        let server = self.public_url.trim_end_matches('/');
        format!(
            "{server}/previews/{}/{}/{number}?key={key}",
            fleet.tenant, fleet.name
        )
    }

    /// Whether `key` is that of the link to this report, in constant time.
    pub fn opens(&self, fleet: &FleetId, number: u64, head: &str, key: &str) -> bool {
        self.keyring.is_link_key(&subject(fleet, number, head), key)
    }
}

fn subject(fleet: &FleetId, number: u64, head: &str) -> String {
    format!("preview {fleet} {number} {head}")
}
