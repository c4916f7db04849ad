//! Verifies and parses the webhooks of Git hosts into [`Event`]s. No server, no clock, no network.
//!
//! ```text
//! headers ──► Host::of ──► verify by that host's rule ──► parse the body ──► Delivery { host, id, event }
//!                              ▲ raw body, secrets
//! ```
//!
//! **Guarantees.** Nothing of a body is parsed before its signature holds. A delivery is verified by the rule of the
//! one host whose headers it has; headers of several hosts are refused. Comparing takes the same time for every wrong
//! signature. An unsigned delivery is always an error: there is no setting that lets it through, and an empty secret
//! never holds. No input makes this crate panic.
//!
//! **Assumptions.** The caller bounds the size of the body, and keeps the body's bytes exactly as they came:
//! a signature is over bytes, not over JSON. A delivery may come twice, late, or never, and whoever has seen one may
//! send it again, so an event is a reason to look at the repo and never the truth about it.
//!
//! Each host is a module with one function of the same shape, [`github::receive`] being the first.
#![warn(missing_docs)]

pub mod bitbucket_cloud;
pub mod bitbucket_data_center;
pub mod error;
pub mod event;
pub mod generic;
pub mod gitea;
pub mod github;
pub mod gitlab;
pub mod host;
mod read;
mod signature;

use http::HeaderMap;
use secrecy::SecretString;

pub use error::Error;
pub use event::{Action, Delivery, Event, PullRequest, Push, RefUpdate};
pub use host::Host;

/// Verifies and parses one delivery of whichever host its headers say.
///
/// `secrets` are all that are in force: while a secret is being replaced, the old and the new one. `body` is the body
/// as it came, byte for byte.
///
/// # Errors
/// Where the headers are not one host's, where the delivery is not signed with one of the secrets, or where it is not
/// what it says it is.
pub fn receive(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[SecretString],
) -> Result<Delivery, Error> {
    Host::of(headers)?.receive(headers, body, secrets)
}
