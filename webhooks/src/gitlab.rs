//! GitLab.
//!
//! Rules: <https://docs.gitlab.com/user/project/integrations/webhooks/> and
//! <https://docs.gitlab.com/user/project/integrations/webhook_events/>. GitLab proves itself in two ways: the older
//! one sends the secret itself in `X-Gitlab-Token`, the newer one (the *signing token*) signs by the Standard
//! Webhooks specification. A delivery that carries a signature must pass that check, whatever else it carries.

use http::HeaderMap;
use secrecy::SecretString;
use serde::Deserialize;

use crate::{
    Action, Delivery, Error, Event, Host, PullRequest, Push, RefUpdate,
    read::{Reader, id, ignored, text},
    signature,
};

/// The header with the signature, where the webhook has a signing token.
pub const SIGNATURE: &str = "webhook-signature";
/// The header with the secret itself, where the webhook has a secret token.
pub const TOKEN: &str = "x-gitlab-token";
/// The header with the event's name.
pub const EVENT: &str = "x-gitlab-event";

/// Verifies and parses one delivery, as [`crate::github::receive`] does.
///
/// # Errors
/// Where the delivery does not prove one of the secrets, or is not a delivery of GitLab's.
pub fn receive(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[SecretString],
) -> Result<Delivery, Error> {
    if headers.contains_key(SIGNATURE) {
        signature::check_standard(headers, body, secrets)?;
    } else {
        signature::check_token(headers, TOKEN, secrets)?;
    }
    let event = match text(headers, EVENT)? {
        "Push Hook" | "Tag Push Hook" => Event::Push(push(headers, body)?),
        "Merge Request Hook" => Event::PullRequest(merge_request(headers, body)?),
        other => ignored(other),
    };
    // Which of them is the same for a second try differs between versions; the first is newest, and signed.
    let ids = ["webhook-id", "idempotency-key", "x-gitlab-event-uuid"];
    Ok(Delivery {
        host: Host::GitLab,
        id: id(headers, &ids),
        event,
    })
}

#[derive(Deserialize)]
struct PushBody {
    #[serde(rename = "ref")]
    git_ref: String,
    before: String,
    after: String,
    project: Project,
}

#[derive(Deserialize)]
struct Project {
    path_with_namespace: String,
    git_http_url: Option<String>,
    git_ssh_url: Option<String>,
    web_url: Option<String>,
}

fn push(headers: &HeaderMap, body: &[u8]) -> Result<Push, Error> {
    let reader = Reader::of("push");
    let PushBody {
        git_ref,
        before,
        after,
        project,
    } = reader.json(headers, body)?;
    let after = reader.commit("after", after)?;
    let moved = RefUpdate {
        git_ref: reader.git_ref("ref", git_ref)?,
        before: reader.commit("before", before)?,
        deleted: after.is_none(),
        after,
        forced: false,
    };
    let urls = [project.git_http_url, project.git_ssh_url, project.web_url];
    Ok(Push {
        repository: project.path_with_namespace,
        clone_urls: urls.into_iter().flatten().collect(),
        refs: vec![moved],
    })
}

#[derive(Deserialize)]
struct MergeRequestBody {
    object_attributes: MergeRequest,
}

#[derive(Deserialize)]
struct MergeRequest {
    iid: u64,
    // Missing in what the button "Test" sends.
    action: Option<String>,
    source_branch: String,
    target_branch: String,
    source_project_id: Option<u64>,
    target_project_id: Option<u64>,
    last_commit: Option<Commit>,
    // The head before, only where an update brought commits.
    oldrev: Option<String>,
    url: Option<String>,
}

#[derive(Deserialize)]
struct Commit {
    id: String,
}

fn merge_request(headers: &HeaderMap, body: &[u8]) -> Result<PullRequest, Error> {
    let reader = Reader::of("merge_request");
    let MergeRequestBody {
        object_attributes: request,
    } = reader.json(headers, body)?;
    let action = match request.action.as_deref().unwrap_or_default() {
        "open" => Action::Opened,
        "update" if request.oldrev.is_some() => Action::Updated,
        "update" => Action::Edited,
        "merge" => Action::Merged,
        "close" => Action::Closed,
        "reopen" => Action::Reopened,
        _ => Action::Other,
    };
    let at = "object_attributes.last_commit.id";
    let head_commit = match request.last_commit {
        Some(commit) => reader.commit(at, commit.id)?,
        None => None,
    };
    Ok(PullRequest {
        number: request.iid,
        action,
        head_branch: request.source_branch,
        head_commit,
        base_branch: request.target_branch,
        url: request.url.unwrap_or_default(),
        is_from_fork: request.source_project_id.is_none()
            || request.source_project_id != request.target_project_id,
    })
}
