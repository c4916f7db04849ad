//! What is read of GitHub's answers.
//!
//! Octocrab has types for them, but they ask for all that github.com says; an older Enterprise Server says less, and
//! a newer one says words that they do not know. Here is what the controller needs, and nothing else is looked at.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::forge::{PullRequest, PullRequestState, word};

/// <https://docs.github.com/en/rest/pulls/pulls#get-a-pull-request>.
#[derive(Debug, Deserialize)]
pub(super) struct Pull {
    number: u64,
    html_url: String,
    state: String,
    /// In lists, too, where `merged` is not.
    merged_at: Option<String>,
    head: Side,
    base: Side,
}

#[derive(Debug, Deserialize)]
struct Side {
    #[serde(rename = "ref")]
    branch: String,
    sha: String,
    /// Absent where a fork was deleted.
    repo: Option<SideRepo>,
}

#[derive(Debug, Deserialize)]
struct SideRepo {
    id: u64,
}

impl From<Pull> for PullRequest {
    fn from(pull: Pull) -> Self {
        let id = |side: &Side| side.repo.as_ref().map(|repo| repo.id);
        Self {
            number: pull.number,
            url: word(pull.html_url),
            state: match (pull.state.as_str(), &pull.merged_at) {
                (_, Some(_)) => PullRequestState::Merged,
                ("open", None) => PullRequestState::Open,
                _ => PullRequestState::Closed,
            },
            is_from_fork: id(&pull.head).is_none() || id(&pull.head) != id(&pull.base),
            head_branch: word(pull.head.branch),
            head_commit: word(pull.head.sha),
            base_branch: word(pull.base.branch),
        }
    }
}

/// <https://docs.github.com/en/rest/issues/comments#list-issue-comments>.
#[derive(Debug, Deserialize)]
pub(super) struct Comment {
    pub(super) id: u64,
    pub(super) body: Option<String>,
    pub(super) user: Option<User>,
}

/// <https://docs.github.com/en/rest/users/users#get-the-authenticated-user>.
#[derive(Debug, Deserialize)]
pub(super) struct User {
    pub(super) login: String,
}

/// <https://docs.github.com/en/rest/repos/repos#get-a-repository>.
#[derive(Debug, Deserialize)]
pub(super) struct Repo {
    #[serde(default)]
    pub(super) archived: bool,
    pub(super) permissions: Option<RepoPermissions>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RepoPermissions {
    pub(super) push: bool,
}

/// <https://docs.github.com/en/rest/apps/apps#get-the-authenticated-app>.
#[derive(Debug, Deserialize)]
pub(super) struct App {
    pub(super) slug: String,
}

/// <https://docs.github.com/en/rest/apps/apps#get-a-repository-installation-for-the-authenticated-app>.
#[derive(Debug, Deserialize)]
pub(super) struct Installation {
    pub(super) id: u64,
    #[serde(default)]
    pub(super) permissions: BTreeMap<String, String>,
    pub(super) suspended_at: Option<String>,
}
