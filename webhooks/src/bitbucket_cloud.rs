//! Bitbucket Cloud.
//!
//! Rules: <https://support.atlassian.com/bitbucket-cloud/docs/manage-webhooks/> for signatures,
//! <https://support.atlassian.com/bitbucket-cloud/docs/event-payloads/> for bodies.

use http::HeaderMap;
use secrecy::SecretString;
use serde::Deserialize;

use crate::{
    Action, Delivery, Error, Event, Host, PullRequest, Push, RefUpdate,
    read::{Link, Reader, id, ignored, text},
    signature,
};

/// The header with the signature: `sha256=` and 64 hex digits.
pub const SIGNATURE: &str = "x-hub-signature";
/// The header with the event's name.
pub const EVENT: &str = "x-event-key";

/// Whether a delivery of Bitbucket's is from its cloud: only that names the webhook.
pub(crate) fn is_its(headers: &HeaderMap) -> bool {
    headers.contains_key("x-hook-uuid") || headers.contains_key("x-request-uuid")
}

/// Verifies and parses one delivery, as [`crate::github::receive`] does.
///
/// # Errors
/// Where the delivery is not signed with one of the secrets, or is not a delivery of Bitbucket Cloud's.
pub fn receive(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[SecretString],
) -> Result<Delivery, Error> {
    signature::check_hmac(headers, SIGNATURE, "sha256=", body, secrets)?;
    let name = text(headers, EVENT)?;
    let event = match (name, name.strip_prefix("pullrequest:")) {
        ("repo:push", _) => Event::Push(push(headers, body)?),
        (_, Some(happened)) => Event::PullRequest(pull_request(happened, headers, body)?),
        (other, None) => ignored(other),
    };
    Ok(Delivery {
        host: Host::BitbucketCloud,
        id: id(headers, &["x-request-uuid"]),
        event,
    })
}

#[derive(Deserialize)]
struct PushBody {
    repository: Repository,
    push: Changes,
}

#[derive(Deserialize)]
struct Repository {
    full_name: String,
    links: Links,
}

#[derive(Deserialize)]
struct Links {
    html: Option<Link>,
}

#[derive(Deserialize)]
struct Changes {
    changes: Vec<Change>,
}

#[derive(Deserialize)]
struct Change {
    // None where the ref was deleted, or is new.
    new: Option<Ref>,
    old: Option<Ref>,
    #[serde(default)]
    forced: bool,
}

#[derive(Deserialize)]
struct Ref {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    target: Target,
}

#[derive(Deserialize)]
struct Target {
    hash: String,
}

fn push(headers: &HeaderMap, body: &[u8]) -> Result<Push, Error> {
    let reader = Reader::of("repo:push");
    let PushBody { repository, push } = reader.json(headers, body)?;
    let mut refs = Vec::new();
    for Change { new, old, forced } in push.changes {
        let Some(subject) = new.as_ref().or(old.as_ref()) else {
            continue;
        };
        let folder = if subject.kind == "tag" {
            "tags"
        } else {
            "heads"
        };
        let git_ref = format!("refs/{folder}/{}", subject.name);
        let deleted = new.is_none();
        let commit = |at, side: Option<Ref>| match side {
            Some(side) => reader.commit(at, side.target.hash),
            None => Ok(None),
        };
        refs.push(RefUpdate {
            git_ref,
            before: commit("push.changes.old.target.hash", old)?,
            after: commit("push.changes.new.target.hash", new)?,
            deleted,
            forced,
        });
    }
    let page = repository.links.html.map(|link| link.href);
    Ok(Push {
        repository: repository.full_name,
        clone_urls: page.into_iter().collect(),
        refs,
    })
}

#[derive(Deserialize)]
struct PullRequestBody {
    pullrequest: PullRequestMember,
}

#[derive(Deserialize)]
struct PullRequestMember {
    id: u64,
    source: Side,
    destination: Side,
    links: Option<Links>,
}

#[derive(Deserialize)]
struct Side {
    branch: Branch,
    // None where the repo is gone.
    repository: Option<SideRepository>,
}

#[derive(Deserialize)]
struct Branch {
    name: String,
}

#[derive(Deserialize, PartialEq, Eq)]
struct SideRepository {
    uuid: String,
}

fn pull_request(happened: &str, headers: &HeaderMap, body: &[u8]) -> Result<PullRequest, Error> {
    let PullRequestBody {
        pullrequest: request,
    } = Reader::of("pullrequest").json(headers, body)?;
    let action = match happened {
        "created" => Action::Opened,
        // Of its words too: Bitbucket Cloud does not tell which.
        "updated" => Action::Updated,
        "fulfilled" => Action::Merged,
        "rejected" => Action::Closed,
        _ => Action::Other,
    };
    let (source, destination) = (request.source, request.destination);
    let page = request.links.and_then(|links| links.html);
    Ok(PullRequest {
        number: request.id,
        action,
        is_from_fork: source.repository.is_none() || source.repository != destination.repository,
        head_branch: source.branch.name,
        // Only its first 12 digits are sent.
        head_commit: None,
        base_branch: destination.branch.name,
        url: page.map(|link| link.href).unwrap_or_default(),
    })
}
