//! Gitea and Forgejo, which send GitHub's headers too, and bodies that are nearly GitHub's.
//!
//! Rules: <https://docs.gitea.com/usage/repository/webhooks>, <https://forgejo.org/docs/latest/user/webhooks>. The
//! signature in their own headers is the HMAC-SHA-256 of the body in hex, without a prefix. Where the own header is
//! there, no other one counts.

use http::HeaderMap;
use secrecy::SecretString;
use serde::Deserialize;

use crate::{
    Delivery, Error, Event, Host, Push, RefUpdate, github,
    read::{Reader, id, ignored, text},
    signature,
};

/// The headers in which Gitea signs, the one that counts first.
pub const SIGNATURES: &[&str] = &["x-gitea-signature", github::SIGNATURE];
/// The headers in which Forgejo signs, the one that counts first.
pub const FORGEJO_SIGNATURES: &[&str] = &[
    "x-forgejo-signature",
    "x-gitea-signature",
    github::SIGNATURE,
];

/// Verifies and parses one delivery of Gitea, as [`github::receive`] does.
///
/// # Errors
/// Where the delivery is not signed with one of the secrets, or is not a delivery of Gitea's.
pub fn receive(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[SecretString],
) -> Result<Delivery, Error> {
    check(headers, SIGNATURES, body, secrets)?;
    Ok(Delivery {
        host: Host::Gitea,
        id: id(headers, &["x-gitea-delivery"]),
        event: event(text(headers, "x-gitea-event")?, headers, body)?,
    })
}

/// Verifies and parses one delivery of Forgejo, as [`github::receive`] does.
///
/// # Errors
/// Where the delivery is not signed with one of the secrets, or is not a delivery of Forgejo's.
pub fn receive_forgejo(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[SecretString],
) -> Result<Delivery, Error> {
    check(headers, FORGEJO_SIGNATURES, body, secrets)?;
    Ok(Delivery {
        host: Host::Forgejo,
        id: id(headers, &["x-forgejo-delivery"]),
        event: event(text(headers, "x-forgejo-event")?, headers, body)?,
    })
}

fn check(
    headers: &HeaderMap,
    signatures: &[&'static str],
    body: &[u8],
    secrets: &[SecretString],
) -> Result<(), Error> {
    let mut present = signatures
        .iter()
        .filter(|name| headers.contains_key(**name));
    let name = present.next().copied().unwrap_or(github::SIGNATURE);
    let prefix = if name == github::SIGNATURE {
        "sha256="
    } else {
        ""
    };
    signature::check_hmac(headers, name, prefix, body, secrets)
}

fn event(name: &str, headers: &HeaderMap, body: &[u8]) -> Result<Event, Error> {
    Ok(match name {
        "push" => Event::Push(github::push(headers, body)?),
        // They push nothing when a branch is deleted.
        "delete" => Event::Push(delete(headers, body)?),
        "pull_request" => Event::PullRequest(github::pull_request(headers, body)?),
        other => ignored(other),
    })
}

#[derive(Deserialize)]
struct DeleteBody {
    #[serde(rename = "ref")]
    name: String,
    ref_type: String,
    repository: github::Repository,
}

fn delete(headers: &HeaderMap, body: &[u8]) -> Result<Push, Error> {
    let DeleteBody {
        name,
        ref_type,
        repository,
    } = Reader::of("delete").json(headers, body)?;
    let kind = if ref_type == "branch" {
        "heads"
    } else {
        "tags"
    };
    let deleted = RefUpdate {
        git_ref: format!("refs/{kind}/{name}"),
        before: None,
        after: None,
        deleted: true,
        forced: false,
    };
    Ok(repository.pushed(vec![deleted]))
}
