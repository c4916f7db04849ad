//! GitHub and GitHub Enterprise Server.
//!
//! Rules: <https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries> for signatures,
//! <https://docs.github.com/en/webhooks/webhook-events-and-payloads> for bodies. Gitea and Forgejo send bodies of
//! nearly the same shape.

use http::HeaderMap;
use secrecy::SecretString;
use serde::Deserialize;

use crate::{
    Action, Delivery, Error, Event, Host, PullRequest, Push, RefUpdate,
    read::{Reader, id, ignored, text},
    signature,
};

/// The header with the signature: `sha256=` and 64 hex digits.
pub const SIGNATURE: &str = "x-hub-signature-256";
/// The header with the event's name.
pub const EVENT: &str = "x-github-event";
/// The header with the delivery's id.
pub const DELIVERY: &str = "x-github-delivery";

/// Verifies and parses one delivery.
///
/// `secrets` are all that are in force: while a secret is being replaced, the old and the new one. `body` is
/// the body as it came, byte for byte.
///
/// # Errors
/// Where the delivery is not signed with one of the secrets, or is not a delivery of GitHub's.
pub fn receive(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[SecretString],
) -> Result<Delivery, Error> {
    signature::check_hmac(headers, SIGNATURE, "sha256=", body, secrets)?;
    let event = match text(headers, EVENT)? {
        "push" => Event::Push(push(headers, body)?),
        "pull_request" => Event::PullRequest(pull_request(headers, body)?),
        "ping" => Event::Ping,
        other => ignored(other),
    };
    Ok(Delivery {
        host: Host::GitHub,
        id: id(headers, &[DELIVERY]),
        event,
    })
}

/// The members of a `push` body that matter here.
#[derive(Deserialize)]
struct PushBody {
    #[serde(rename = "ref")]
    git_ref: String,
    before: String,
    after: String,
    // GitHub always sends it; Gitea and Forgejo do not.
    #[serde(default)]
    forced: bool,
    repository: Repository,
}

#[derive(Deserialize)]
pub(crate) struct Repository {
    full_name: String,
    clone_url: Option<String>,
    ssh_url: Option<String>,
    git_url: Option<String>,
    html_url: Option<String>,
}

impl Repository {
    pub(crate) fn pushed(self, refs: Vec<RefUpdate>) -> Push {
        let urls = [self.clone_url, self.ssh_url, self.git_url, self.html_url];
        Push {
            repository: self.full_name,
            clone_urls: urls.into_iter().flatten().collect(),
            refs,
        }
    }
}

pub(crate) fn push(headers: &HeaderMap, body: &[u8]) -> Result<Push, Error> {
    let reader = Reader::of("push");
    let push: PushBody = reader.json(headers, body)?;
    let after = reader.commit("after", push.after)?;
    let moved = RefUpdate {
        git_ref: reader.git_ref("ref", push.git_ref)?,
        before: reader.commit("before", push.before)?,
        deleted: after.is_none(),
        after,
        forced: push.forced,
    };
    Ok(push.repository.pushed(vec![moved]))
}

/// The members of a `pull_request` body that matter here.
#[derive(Deserialize)]
struct PullRequestBody {
    action: String,
    number: u64,
    pull_request: PullRequestMember,
}

#[derive(Deserialize)]
struct PullRequestMember {
    #[serde(default)]
    html_url: String,
    merged: Option<bool>,
    head: Side,
    base: Side,
}

#[derive(Deserialize)]
struct Side {
    #[serde(rename = "ref")]
    branch: String,
    sha: String,
    // None where the repo is gone.
    repo: Option<SideRepo>,
}

#[derive(Deserialize)]
struct SideRepo {
    id: u64,
}

pub(crate) fn pull_request(headers: &HeaderMap, body: &[u8]) -> Result<PullRequest, Error> {
    let reader = Reader::of("pull_request");
    let PullRequestBody {
        action,
        number,
        pull_request,
    } = reader.json(headers, body)?;
    let PullRequestMember {
        html_url,
        merged,
        head,
        base,
    } = pull_request;
    let action = match &*action {
        "opened" => Action::Opened,
        // The second is Gitea's and Forgejo's.
        "synchronize" | "synchronized" => Action::Updated,
        "closed" if merged == Some(true) => Action::Merged,
        "closed" => Action::Closed,
        "reopened" => Action::Reopened,
        "edited" => Action::Edited,
        _ => Action::Other,
    };
    let repo = |side: &Side| side.repo.as_ref().map(|repo| repo.id);
    Ok(PullRequest {
        number,
        action,
        is_from_fork: repo(&head).is_none() || repo(&head) != repo(&base),
        head_branch: head.branch,
        head_commit: reader.commit("pull_request.head.sha", head.sha)?,
        base_branch: base.branch,
        url: html_url,
    })
}
