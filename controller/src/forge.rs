//! Git hosts with pull requests ("forges"): what the controller asks of them, and nothing else of what they can do.
//!
//! ```text
//! Connection (stored, encrypted) ─▶ open ─▶ dyn Forge ─┬▶ watch ─▶ PullRequests ─▶ enrollment, preview
//!                                                      ├▶ enrollment: create, edit, close
//!                                                      ├▶ preview: comment, status
//!                                                      └▶ commit_status: status
//! ```
//!
//! Every operation may be repeated: callers are level-triggered and ask again after a failure. So a forge never
//! retries by itself; it says in [`ForgeError`] whether and when another try makes sense.

pub mod client;
pub mod connection;
pub mod gitea;
pub mod github;
pub mod gitlab;
mod refusal;
pub mod repository;
mod rest;
pub mod throttle;
pub mod watch;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use longshore_fleet::RepoPath;
use secrecy::SecretString;

/// How many things of a list are looked at: a host that has more, or says so, is not to fill the memory.
const MAX_LISTED: usize = 5000;
/// How long a word of a host may be that is kept, in characters.
const MAX_WORD: usize = 2000;

/// A host's word, as long as one may be.
fn word(text: String) -> String {
    match text.char_indices().nth(MAX_WORD) {
        Some((end, _)) => text.get(..end).unwrap_or_default().to_owned(),
        None => text,
    }
}

/// The repo of one fleet at its Git host.
#[async_trait]
pub trait Forge: fmt::Debug + Send + Sync {
    /// The host and the repo, for people and logs: `github.com/acme/kiosks`.
    fn name(&self) -> &str;

    /// What the host calls a pull request: `pull request`, `merge request`.
    fn noun(&self) -> &'static str;

    /// The ref in the repo that holds the head of a pull request, those from forks too: `refs/pull/7/head`.
    fn head_ref(&self, number: u64) -> String;

    /// Whether a decided pull request keeps the commit that it proposed. Where not, the host tells of the branch as it
    /// is now, which may be another pull request's.
    fn keeps_heads(&self) -> bool {
        true
    }

    /// How many characters a comment or a pull request's text may have.
    fn text_limit(&self) -> usize;

    /// What Git presents to the repo's https URL. Made anew where it is about to expire.
    async fn git_login(&self) -> Result<GitLogin, ForgeError>;

    /// Makes the next [`Self::git_login`] make anew what Git was refused with: a token may end before its time. By
    /// default there is nothing to make.
    async fn forget_login(&self) {}

    /// Checks that the repo is there and that the credential may do what the controller will do.
    async fn check(&self) -> Result<(), ForgeError>;

    /// The open pull requests into `base`, all of them.
    async fn open_pull_requests(&self, base: &str) -> Result<Vec<PullRequest>, ForgeError>;

    /// One pull request, in whatever state.
    async fn pull_request(&self, number: u64) -> Result<PullRequest, ForgeError>;

    /// The newest pull request from the repo's own branch `head` into `base`, in whatever state.
    async fn find_pull_request(
        &self,
        head: &str,
        base: &str,
    ) -> Result<Option<PullRequest>, ForgeError>;

    /// Opens a pull request from the repo's own branch `head` into `base`.
    ///
    /// # Errors
    /// [`ForgeError::Exists`] where there is an open one already.
    async fn create_pull_request(
        &self,
        head: &str,
        base: &str,
        text: &PullRequestText,
    ) -> Result<PullRequest, ForgeError>;

    /// Replaces the title and the text of a pull request.
    async fn edit_pull_request(
        &self,
        number: u64,
        text: &PullRequestText,
    ) -> Result<(), ForgeError>;

    /// Adds labels, which are made where the repo does not have them.
    async fn add_labels(&self, number: u64, labels: &[String]) -> Result<(), ForgeError>;

    /// Asks people for a review: users by name, teams as `team:<name>` where the host has them.
    async fn request_reviews(&self, number: u64, reviewers: &[String]) -> Result<(), ForgeError>;

    /// Closes a pull request without merging it.
    async fn close_pull_request(&self, number: u64) -> Result<(), ForgeError>;

    /// Makes the one comment of ours that contains `marker` say `text`; writes it where it is not there yet.
    async fn put_comment(&self, number: u64, marker: &str, text: &str) -> Result<(), ForgeError>;

    /// Sets a status of a commit. The newest one of a context counts.
    async fn set_status(&self, commit: &str, status: &CommitStatus) -> Result<(), ForgeError>;
}

/// What Git presents to an https URL.
#[derive(Clone, Debug)]
pub struct GitLogin {
    /// The user's name; for tokens a name that the host prescribes.
    pub username: String,
    /// The password or token.
    pub password: SecretString,
}

/// A pull request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRequest {
    /// Its number in the repo.
    pub number: u64,
    /// Its page.
    pub url: String,
    /// Whether it is decided.
    pub state: PullRequestState,
    /// The branch that it is from.
    pub head_branch: String,
    /// The commit that it proposes, 40 or 64 hex digits.
    pub head_commit: String,
    /// The branch that it is for.
    pub base_branch: String,
    /// Whether it comes from another repo, where others may push.
    pub is_from_fork: bool,
}

/// Whether a pull request is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullRequestState {
    /// It waits.
    Open,
    /// It was accepted.
    Merged,
    /// It was refused.
    Closed,
}

/// What people read of a pull request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRequestText {
    /// One line.
    pub title: String,
    /// Markdown.
    pub body: String,
}

/// What a forge shows beside a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitStatus {
    /// What it is about, as [`context`] names it.
    pub context: String,
    /// How it stands.
    pub state: StatusState,
    /// One line; a forge cuts it where it is too long for it (GitHub: 140 characters).
    pub description: String,
    /// Where to read more.
    pub url: Option<String>,
}

/// The name of a status: `longshore/sync`. Fleets may share a repo, and so its commits; those that are not at its
/// root add their folder: `longshore/sync/shops`.
pub fn context(about: &str, root: &RepoPath) -> String {
    if root.is_root() {
        format!("longshore/{about}")
    } else {
        format!("longshore/{about}/{root}")
    }
}

/// How a commit status stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatusState {
    /// Not known yet.
    Pending,
    /// Good.
    Success,
    /// Not good.
    Failure,
}

/// Why a forge did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ForgeError {
    /// `401`: the credential is wrong, expired or revoked.
    #[error(
        "{forge} does not accept the credential: {message}; give the fleet a new one with `longshore fleets connect`"
    )]
    Unauthorized {
        /// [`Forge::name`].
        forge: String,
        /// What it said.
        message: String,
    },
    /// `403`, or `404` for what the credential may not see.
    #[error("{forge} does not allow the credential to {operation}: {message}")]
    Forbidden {
        /// [`Forge::name`].
        forge: String,
        /// `open a pull request`, …
        operation: &'static str,
        /// What it said.
        message: String,
    },
    /// `429`, or `403` with an exhausted rate limit.
    #[error("{forge} wants no more calls for {} s", retry_after.as_secs())]
    RateLimited {
        /// [`Forge::name`].
        forge: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// `404`: it is not there.
    #[error("{forge} does not have what is needed to {operation}")]
    NotFound {
        /// [`Forge::name`].
        forge: String,
        /// `open a pull request`, …
        operation: &'static str,
    },
    /// There is one already.
    #[error("{forge} has one already: {message}")]
    Exists {
        /// [`Forge::name`].
        forge: String,
        /// What it said.
        message: String,
    },
    /// Another `4xx`: it does not like what it was asked.
    #[error("{forge} refuses to {operation}: {message}")]
    Refused {
        /// [`Forge::name`].
        forge: String,
        /// `open a pull request`, …
        operation: &'static str,
        /// What it said.
        message: String,
    },
    /// `5xx`, a timeout, a broken connection, half an answer.
    #[error("{forge} cannot be reached to {operation}")]
    Unavailable {
        /// [`Forge::name`].
        forge: String,
        /// `open a pull request`, …
        operation: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ForgeError {
    /// When another try makes sense at the earliest, where the forge said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}
