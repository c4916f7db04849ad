//! Whoever has a secret and can compute an HMAC: a host that is not known here, a script, a CI job.
//!
//! `X-Longshore-Signature: sha256=<hex>` is the HMAC-SHA-256 of the body, whatever the body is. Every such call says
//! that something was pushed. A body that is a JSON object may name the `ref`; `X-Longshore-Delivery` may carry an id
//! that is the same when the call is repeated.

use http::HeaderMap;
use secrecy::SecretString;
use serde::Deserialize;

use crate::{Delivery, Error, Event, Host, Push, RefUpdate, read::id, signature};

/// The header with the signature: `sha256=` and 64 hex digits.
pub const SIGNATURE: &str = "x-longshore-signature";
/// The header with the delivery's id.
pub const DELIVERY: &str = "x-longshore-delivery";

/// Verifies and parses one call, as [`crate::github::receive`] does.
///
/// # Errors
/// Where the call is not signed with one of the secrets.
pub fn receive(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[SecretString],
) -> Result<Delivery, Error> {
    signature::check_hmac(headers, SIGNATURE, "sha256=", body, secrets)?;
    let named = serde_json::from_slice(body).ok();
    let named = named.filter(|Body { git_ref }| git_ref.starts_with("refs/"));
    let moved = named.map(|Body { git_ref }| RefUpdate {
        git_ref,
        before: None,
        after: None,
        deleted: false,
        forced: false,
    });
    Ok(Delivery {
        host: Host::Generic,
        id: id(headers, &[DELIVERY]),
        event: Event::Push(Push {
            refs: moved.into_iter().collect(),
            ..Push::default()
        }),
    })
}

#[derive(Deserialize)]
struct Body {
    #[serde(rename = "ref")]
    git_ref: String,
}
