//! Verifies and parses the webhooks of Git hosts into [`Event`]s. No server, no clock, no network.
//!
//! ```text
//! headers + raw body + secrets ──► verify the signature ──► parse the body ──► Delivery { id, event }
//! ```
//!
//! **Guarantees.** Nothing of a body is parsed before its signature holds. Comparing takes the same time for
//! every wrong signature. An unsigned delivery is always an error: there is no setting that lets it through.
//! No input makes this crate panic.
//!
//! **Assumptions.** The caller bounds the size of the body, and keeps the body's bytes exactly as they came:
//! a signature is over bytes, not over JSON. A delivery may come twice, late, or never, so an event is a
//! reason to look at the repo and never the truth about it.
//!
//! Each host is a module with one function of the same shape; [`github`] is the first.
#![warn(missing_docs)]

pub mod error;
pub mod event;
pub mod github;
mod signature;

pub use error::Error;
pub use event::{Delivery, Event, Push};
