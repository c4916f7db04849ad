//! Bitbucket Data Center, and Bitbucket Server before it.
//!
//! Rules: <https://confluence.atlassian.com/bitbucketserver/event-payload-938025882.html>. It signs like Bitbucket
//! Cloud, and its bodies are others. Its connection test (`diagnostics:ping`) is unsigned in some versions, and then
//! refused like every unsigned delivery.

use http::HeaderMap;
use secrecy::SecretString;
use serde::Deserialize;

use crate::{
    Action, Delivery, Error, Event, Host, PullRequest, Push, RefUpdate,
    bitbucket_cloud::{EVENT, SIGNATURE},
    read::{Link, Reader, id, ignored, text},
    signature,
};

/// Verifies and parses one delivery, as [`crate::github::receive`] does.
///
/// # Errors
/// Where the delivery is not signed with one of the secrets, or is not a delivery of Bitbucket Data Center's.
pub fn receive(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[SecretString],
) -> Result<Delivery, Error> {
    signature::check_hmac(headers, SIGNATURE, "sha256=", body, secrets)?;
    let name = text(headers, EVENT)?;
    let event = match (name, name.strip_prefix("pr:")) {
        ("repo:refs_changed", _) => Event::Push(push(headers, body)?),
        ("diagnostics:ping", _) => Event::Ping,
        (_, Some(happened)) => Event::PullRequest(pull_request(happened, headers, body)?),
        (other, None) => ignored(other),
    };
    Ok(Delivery {
        host: Host::BitbucketDataCenter,
        id: id(headers, &["x-request-id"]),
        event,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PushBody {
    repository: Repository,
    changes: Vec<Change>,
}

#[derive(Deserialize)]
struct Repository {
    id: u64,
    slug: String,
    project: Project,
    #[serde(default)]
    links: Links,
}

#[derive(Deserialize)]
struct Project {
    key: String,
}

// Documented examples have `null` in these lists.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Links {
    clone: Vec<Option<Link>>,
    #[serde(rename = "self")]
    page: Vec<Option<Link>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Change {
    ref_id: String,
    from_hash: String,
    to_hash: String,
}

fn push(headers: &HeaderMap, body: &[u8]) -> Result<Push, Error> {
    let reader = Reader::of("repo:refs_changed");
    let PushBody {
        repository,
        changes,
    } = reader.json(headers, body)?;
    let mut refs = Vec::new();
    for change in changes {
        let after = reader.commit("changes.toHash", change.to_hash)?;
        refs.push(RefUpdate {
            git_ref: reader.git_ref("changes.refId", change.ref_id)?,
            before: reader.commit("changes.fromHash", change.from_hash)?,
            deleted: after.is_none(),
            after,
            forced: false,
        });
    }
    let Links { clone, page } = repository.links;
    let urls = clone.into_iter().chain(page).flatten();
    Ok(Push {
        repository: format!("{}/{}", repository.project.key, repository.slug),
        clone_urls: urls.map(|link| link.href).collect(),
        refs,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PullRequestBody {
    pull_request: PullRequestMember,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PullRequestMember {
    id: u64,
    from_ref: Side,
    to_ref: Side,
    #[serde(default)]
    links: Links,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Side {
    display_id: String,
    latest_commit: String,
    repository: Repository,
}

fn pull_request(happened: &str, headers: &HeaderMap, body: &[u8]) -> Result<PullRequest, Error> {
    let reader = Reader::of("pr");
    let PullRequestBody {
        pull_request: request,
    } = reader.json(headers, body)?;
    let action = match happened {
        "opened" => Action::Opened,
        "from_ref_updated" | "to_ref_updated" => Action::Updated,
        "merged" => Action::Merged,
        "declined" | "deleted" => Action::Closed,
        "reopened" => Action::Reopened,
        "modified" => Action::Edited,
        _ => Action::Other,
    };
    let (from, to) = (request.from_ref, request.to_ref);
    let at = "pullRequest.fromRef.latestCommit";
    let page = request.links.page.into_iter().flatten().next();
    Ok(PullRequest {
        number: request.id,
        action,
        head_branch: from.display_id,
        head_commit: reader.commit(at, from.latest_commit)?,
        base_branch: to.display_id,
        url: page.map(|link| link.href).unwrap_or_default(),
        is_from_fork: from.repository.id != to.repository.id,
    })
}
