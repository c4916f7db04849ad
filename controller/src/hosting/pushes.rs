//! The pushes under way, each known to its hook by a secret that works once.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use longshore_protocol::Digest;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;

use crate::{
    secret,
    store::fleets::{Fleet, FleetId},
};

/// What was known of a push before Git looked at it.
#[derive(Clone, Debug)]
pub(super) struct Push {
    pub(super) fleet: FleetId,
    /// The tracked branch.
    pub(super) branch: String,
    /// The repo.
    pub(super) repo: PathBuf,
    /// Tells that nobody waits for it any more.
    pub(super) gone: CancellationToken,
}

/// The pushes whose hook did not ask yet, by the hash of its secret.
#[derive(Debug, Default)]
pub(super) struct Pushes(Mutex<HashMap<Digest, Push>>);

/// A push whose hook may ask, as long as this lives.
#[derive(Debug)]
pub(super) struct Expected {
    pushes: Arc<Pushes>,
    hash: Digest,
    /// What the hook presents.
    pub(super) secret: SecretString,
    /// To be told when nobody waits for the push any more.
    pub(super) gone: CancellationToken,
}

impl Pushes {
    /// Lets the hook of a push ask.
    pub(super) fn expect(self: &Arc<Self>, fleet: &Fleet, repo: PathBuf) -> Expected {
        let secret = secret::generate("lsp_");
        let hash = secret::hash(secret.expose_secret());
        let gone = CancellationToken::new();
        let push = Push {
            fleet: fleet.id.clone(),
            branch: fleet.branch.clone(),
            repo,
            gone: gone.clone(),
        };
        self.lock().insert(hash, push);
        Expected {
            pushes: self.clone(),
            hash,
            secret,
            gone,
        }
    }

    /// The push with this secret, once.
    pub(super) fn claim(&self, secret: &str) -> Option<Push> {
        self.lock().remove(&secret::hash(secret))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Push>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.pushes.lock().remove(&self.hash);
    }
}
