//! What a webhook says, in words that all hosts share.

use crate::Host;

/// One delivery of a webhook, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Who sent it.
    pub host: Host,
    /// The host's id of the delivery, the same when it delivers again: printable ASCII, at most 100 characters.
    /// Empty where the host sent none. With most hosts it stands outside of what is signed.
    pub id: String,
    /// What happened.
    pub event: Event,
}

/// What happened on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Branches or tags moved, came or went.
    Push(Push),
    /// A pull request (a merge request) opened or changed.
    PullRequest(PullRequest),
    /// The host tries whether anybody listens.
    Ping,
    /// Something else, by the host's name for it. To be answered with success, so that the host does not
    /// call the webhook broken.
    Ignored(String),
}

/// Branches or tags that moved, came or went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Push {
    /// The repo by its full name, `owner/name`; empty where the host does not say.
    pub repository: String,
    /// Every URL that the host names for the repo, to match a fleet's own against.
    pub clone_urls: Vec<String>,
    /// What moved.
    pub refs: Vec<RefUpdate>,
}

/// A branch or a tag that moved, came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefUpdate {
    /// The full ref: `refs/heads/main`, `refs/tags/v1`.
    pub git_ref: String,
    /// The commit before, 40 or 64 hex digits; none where the ref is new, or the host does not say.
    pub before: Option<String>,
    /// The commit after, 40 or 64 hex digits; none where the ref was deleted, or the host does not say.
    pub after: Option<String>,
    /// Whether the ref was deleted.
    pub deleted: bool,
    /// Whether the host says that commits were taken away from the ref.
    pub forced: bool,
}

impl RefUpdate {
    /// The branch, where the ref is one: `main` of `refs/heads/main`.
    pub fn branch(&self) -> Option<&str> {
        self.git_ref.strip_prefix("refs/heads/")
    }
}

/// A pull request, or a merge request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRequest {
    /// Its number in the repo.
    pub number: u64,
    /// What happened to it.
    pub action: Action,
    /// The branch that it is from.
    pub head_branch: String,
    /// The commit that it proposes, 40 or 64 hex digits; none where the host does not say it whole.
    pub head_commit: Option<String>,
    /// The branch that it is for.
    pub base_branch: String,
    /// Its page; empty where the host does not say.
    pub url: String,
    /// Whether it comes from another repo, or from one that is gone.
    pub is_from_fork: bool,
}

/// What happened to a pull request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is new.
    Opened,
    /// Its commits may be others.
    Updated,
    /// It was accepted.
    Merged,
    /// It was refused, or taken back.
    Closed,
    /// It waits again.
    Reopened,
    /// Its words changed, or the branch that it is for.
    Edited,
    /// Something else: a label, a review, …
    Other,
}
