//! A Git host in memory: it lists what the test puts there, and keeps what it is told.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use longshore_controller::forge::{
    CommitStatus, Forge, ForgeError, GitLogin, PullRequest, PullRequestState, PullRequestText,
    StatusState,
};

/// What the host knows.
#[derive(Debug, Default)]
pub struct Known {
    /// By commit: the newest status.
    pub statuses: BTreeMap<String, CommitStatus>,
    /// By pull request: our comment.
    pub comments: BTreeMap<u64, String>,
    /// How often it was told anything.
    pub told: usize,
    /// What the next calls fail with.
    pub failures: VecDeque<ForgeError>,
}

/// The host; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Host(Arc<Mutex<Known>>);

impl Host {
    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap()
    }

    /// The state and the description of a commit's status.
    pub fn status(&self, commit: &str) -> Option<(StatusState, String)> {
        let known = self.known();
        let status = known.statuses.get(commit)?;
        assert_eq!(status.context, "longshore/preview");
        Some((status.state, status.description.clone()))
    }

    pub fn comment(&self, number: u64) -> Option<String> {
        self.known().comments.get(&number).cloned()
    }

    /// The next call fails like this.
    pub fn fail(&self, error: ForgeError) {
        self.known().failures.push_back(error);
    }

    fn told(&self) -> Result<MutexGuard<'_, Known>, ForgeError> {
        let mut known = self.known();
        if let Some(error) = known.failures.pop_front() {
            return Err(error);
        }
        known.told += 1;
        Ok(known)
    }
}

/// A pull request from a branch of the repo.
pub fn pull(number: u64, head: git2::Oid) -> PullRequest {
    PullRequest {
        number,
        url: format!("https://git.example/pulls/{number}"),
        state: PullRequestState::Open,
        head_branch: format!("change-{number}"),
        head_commit: head.to_string(),
        base_branch: "main".to_owned(),
        is_from_fork: false,
    }
}

pub fn unavailable() -> ForgeError {
    ForgeError::Unavailable {
        forge: "git.example".to_owned(),
        operation: "set a status",
        source: "the connection broke".into(),
    }
}

pub fn rate_limited(seconds: u64) -> ForgeError {
    ForgeError::RateLimited {
        forge: "git.example".to_owned(),
        retry_after: Duration::from_secs(seconds),
    }
}

fn unasked<T>() -> Result<T, ForgeError> {
    panic!("a preview asks for no such thing")
}

#[async_trait]
impl Forge for Host {
    fn name(&self) -> &'static str {
        "git.example"
    }

    fn noun(&self) -> &'static str {
        "pull request"
    }

    fn head_ref(&self, number: u64) -> String {
        format!("refs/pull/{number}/head")
    }

    fn text_limit(&self) -> usize {
        65_536
    }

    async fn git_login(&self) -> Result<GitLogin, ForgeError> {
        unasked()
    }

    async fn check(&self) -> Result<(), ForgeError> {
        unasked()
    }

    async fn open_pull_requests(&self, _base: &str) -> Result<Vec<PullRequest>, ForgeError> {
        unasked()
    }

    async fn pull_request(&self, _number: u64) -> Result<PullRequest, ForgeError> {
        unasked()
    }

    async fn find_pull_request(
        &self,
        _head: &str,
        _base: &str,
    ) -> Result<Option<PullRequest>, ForgeError> {
        unasked()
    }

    async fn create_pull_request(
        &self,
        _head: &str,
        _base: &str,
        _text: &PullRequestText,
    ) -> Result<PullRequest, ForgeError> {
        unasked()
    }

    async fn edit_pull_request(
        &self,
        _number: u64,
        _text: &PullRequestText,
    ) -> Result<(), ForgeError> {
        unasked()
    }

    async fn add_labels(&self, _number: u64, _labels: &[String]) -> Result<(), ForgeError> {
        unasked()
    }

    async fn request_reviews(&self, _number: u64, _people: &[String]) -> Result<(), ForgeError> {
        unasked()
    }

    async fn close_pull_request(&self, _number: u64) -> Result<(), ForgeError> {
        unasked()
    }

    async fn put_comment(&self, number: u64, marker: &str, text: &str) -> Result<(), ForgeError> {
        assert!(text.starts_with(marker), "{text}");
        self.told()?.comments.insert(number, text.to_owned());
        Ok(())
    }

    async fn set_status(&self, commit: &str, status: &CommitStatus) -> Result<(), ForgeError> {
        self.told()?
            .statuses
            .insert(commit.to_owned(), status.clone());
        Ok(())
    }
}
