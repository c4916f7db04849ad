//! What people do at the forge, and what they see there.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use http::StatusCode;
use reqwest::{Certificate, Client};

use super::{
    Forge,
    repo::Bare,
    state::{OWNER, PERSON, Pull, PullState, STRANGER},
    webhook::{Delivery, Post, Target},
};
use crate::{WorkingCopy, wait::eventually};

/// How a pull request is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// With a merge commit; its branch stays.
    Merge,
    /// With a merge commit; its branch is deleted.
    MergeAndDelete,
    /// As one commit of the base; its branch stays.
    Squash,
    /// As one commit of the base; its branch is deleted.
    SquashAndDelete,
}

/// A commit status as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// `pending`, `success` or `failure`.
    pub state: &'static str,
    /// The line beside it.
    pub description: String,
    /// Where it leads.
    pub url: Option<String>,
}

impl Forge {
    /// All pull requests.
    pub fn pull_requests(&self) -> Vec<Pull> {
        self.shared.state().pulls.clone()
    }

    /// The pull request of this number.
    ///
    /// # Errors
    /// Where there is none.
    pub fn pull_request(&self, number: u64) -> Result<Pull> {
        let state = self.shared.state();
        state.pull(number).cloned().context("no such pull request")
    }

    /// Waits for the one open pull request of a branch.
    ///
    /// # Errors
    /// Where there is none in time, or more than one.
    pub async fn pull_request_of(&self, branch: &str) -> Result<Pull> {
        eventually(&format!("a pull request of {branch}"), async || {
            let pulls = self.pull_requests();
            let mut of_branch = pulls
                .iter()
                .filter(|pull| pull.state == PullState::Open && pull.head_branch == branch);
            let found = of_branch.next().with_context(|| format!("{pulls:#?}"))?;
            anyhow::ensure!(of_branch.next().is_none(), "{pulls:#?}");
            Ok(found.clone())
        })
        .await
    }

    /// The texts of the comments on a pull request.
    pub fn comments(&self, number: u64) -> Vec<String> {
        let state = self.shared.state();
        let of_pull = state.comments.iter().filter(|it| it.pull == number);
        of_pull.map(|comment| comment.body.clone()).collect()
    }

    /// The statuses of a commit about `context`, oldest first; GitLab keeps fewer.
    pub fn statuses(&self, commit: &str, context: &str) -> Vec<Status> {
        let state = self.shared.state();
        let about = state
            .statuses
            .iter()
            .filter(|it| it.commit == commit && it.context == context);
        about
            .map(|status| Status {
                state: match &*status.state {
                    "success" => "success",
                    "failure" | "failed" | "error" => "failure",
                    _ => "pending",
                },
                description: status.description.clone(),
                url: status.url.clone(),
            })
            .collect()
    }

    /// Waits until the newest status of a commit about `context` is `state` and mentions `text`.
    ///
    /// # Errors
    /// Where it is not in time.
    pub async fn status_becomes(
        &self,
        commit: &str,
        context: &str,
        state: &str,
        text: &str,
    ) -> Result<Status> {
        eventually(&format!("{context} of {commit}: {state}"), async || {
            let all = self.statuses(commit, context);
            let newest = all.last().context("no status")?;
            let fits = newest.state == state && newest.description.contains(text);
            anyhow::ensure!(fits, "{all:#?}");
            Ok(newest.clone())
        })
        .await
    }

    /// What a branch points to.
    ///
    /// # Errors
    /// Where there is none.
    pub fn branch(&self, name: &str) -> Result<String> {
        let state = self.shared.state();
        let found = state.branch(name).cloned();
        found.with_context(|| format!("there is no branch {name}"))
    }

    /// A file as a branch has it.
    ///
    /// # Errors
    /// Where it has none.
    pub fn file(&self, branch: &str, path: &str) -> Result<String> {
        let repo = self.repo();
        repo.git(["show", &format!("refs/heads/{branch}:{path}")])
    }

    /// Merges a pull request.
    ///
    /// # Errors
    /// Where it conflicts, or is decided.
    pub fn merge(&self, number: u64, how: How) -> Result<()> {
        let mut state = self.shared.state();
        let squash = matches!(how, How::Squash | How::SquashAndDelete);
        let merged = state.merge(number, squash, PERSON);
        if merged.is_ok() && matches!(how, How::MergeAndDelete | How::SquashAndDelete) {
            let branch = state.pull(number).map(|pull| pull.head_branch.clone());
            let name = format!("refs/heads/{}", branch.unwrap_or_default());
            state.repo.delete_ref(&name)?;
            state.refresh(PERSON)?;
        }
        drop(state);
        self.shared.send_webhooks();
        merged
    }

    /// Closes a pull request without a merge.
    ///
    /// # Errors
    /// Where it is not open.
    pub fn close(&self, number: u64) -> Result<()> {
        let mut state = self.shared.state();
        let pull = state.pull(number).context("no such pull request")?;
        anyhow::ensure!(pull.state == PullState::Open, "it is {:?}", pull.state);
        state.close(number, PERSON);
        drop(state);
        self.shared.send_webhooks();
        Ok(())
    }

    /// Deletes a branch.
    ///
    /// # Errors
    /// Where there is none.
    pub fn delete_branch(&self, name: &str) -> Result<()> {
        self.branch(name)?;
        let mut state = self.shared.state();
        state.repo.delete_ref(&format!("refs/heads/{name}"))?;
        state.refresh(PERSON)?;
        drop(state);
        self.shared.send_webhooks();
        Ok(())
    }

    /// Commits to a branch what `edit` changes in a working copy of it. Returns the commit.
    ///
    /// # Errors
    /// Where git fails or nothing changes.
    pub fn edit(
        &self,
        branch: &str,
        edit: impl FnOnce(&WorkingCopy) -> Result<()>,
    ) -> Result<String> {
        let repo = self.repo();
        self.commit_in(&repo, branch, branch, edit)
    }

    /// Makes `branch` from `main` with what `edit` changes, and opens a pull request from it.
    ///
    /// # Errors
    /// Where git fails or nothing changes.
    pub fn open_pull_request(
        &self,
        branch: &str,
        edit: impl FnOnce(&WorkingCopy) -> Result<()>,
    ) -> Result<Pull> {
        let repo = self.repo();
        self.commit_in(&repo, "main", branch, edit)?;
        self.open(OWNER, branch, PERSON)
    }

    /// The same from a fork of somebody who may not write to the repo.
    ///
    /// # Errors
    /// Where git fails or nothing changes.
    pub fn open_fork_pull_request(
        &self,
        branch: &str,
        edit: impl FnOnce(&WorkingCopy) -> Result<()>,
    ) -> Result<Pull> {
        let fork = self.fork()?;
        self.commit_in(&fork, "main", branch, edit)?;
        self.open(STRANGER, branch, STRANGER)
    }

    /// The same without a branch anywhere, as whoever may read a repo of Gitea's can do (the `AGit` flow).
    ///
    /// # Errors
    /// Where git fails or nothing changes.
    pub fn open_agit_pull_request(
        &self,
        topic: &str,
        edit: impl FnOnce(&WorkingCopy) -> Result<()>,
    ) -> Result<Pull> {
        let fork = self.fork()?;
        self.commit_in(&fork, "main", topic, edit)?;
        self.open_with(STRANGER, topic, STRANGER, |pull| pull.is_agit = true)
    }

    /// The same on a branch of that fork.
    ///
    /// # Errors
    /// Where git fails or nothing changes.
    pub fn edit_fork(
        &self,
        branch: &str,
        edit: impl FnOnce(&WorkingCopy) -> Result<()>,
    ) -> Result<String> {
        let fork = self.fork()?;
        self.commit_in(&fork, branch, branch, edit)
    }

    fn open(&self, owner: &str, branch: &str, by: &str) -> Result<Pull> {
        self.open_with(owner, branch, by, |_| ())
    }

    fn open_with(
        &self,
        owner: &str,
        branch: &str,
        by: &str,
        change: impl FnOnce(&mut Pull),
    ) -> Result<Pull> {
        let mut state = self.shared.state();
        let title = format!("Change {branch}");
        let body = "Please have a look.".to_owned();
        let number = state
            .open_pull(by, (owner, branch), "main", title, body)
            .map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        if let Some(pull) = state.pulls.last_mut() {
            change(pull);
        }
        drop(state);
        self.shared.send_webhooks();
        self.pull_request(number)
    }

    fn fork(&self) -> Result<Bare> {
        let mut state = self.shared.state();
        if let Some(fork) = state.forks.get(STRANGER) {
            return Ok(fork.clone());
        }
        let path = self.shared.root.join(STRANGER).join("kiosks.git");
        fs::create_dir_all(&path).context("make the fork's directory")?;
        let original = state.repo.path().display().to_string();
        crate::repo::git(&path, ["clone", "--quiet", "--bare", &original, "."])?;
        let fork = Bare::adopt(&path, self.host)?;
        state.forks.insert(STRANGER.to_owned(), fork.clone());
        Ok(fork)
    }

    fn repo(&self) -> Bare {
        self.shared.state().repo.clone()
    }

    fn commit_in(
        &self,
        repo: &Bare,
        from: &str,
        to: &str,
        edit: impl FnOnce(&WorkingCopy) -> Result<()>,
    ) -> Result<String> {
        let path = self.new_directory();
        let copy = WorkingCopy::of_branch(repo.path(), from, &path)?;
        edit(&copy)?;
        let commit = copy.commit("Change something")?;
        copy.git([
            "push",
            "--quiet",
            "origin",
            &format!("HEAD:refs/heads/{to}"),
        ])?;
        fs::remove_dir_all(&path).context("remove a working copy")?;
        self.shared.state().refresh(PERSON)?;
        self.shared.send_webhooks();
        Ok(commit)
    }

    fn new_directory(&self) -> PathBuf {
        let id = self.shared.state().id();
        self.directory.join(format!("copy-{id}"))
    }

    /// Lets nobody push to `main`; it moves by merges of pull requests only.
    ///
    /// # Errors
    /// Where the file system fails.
    pub fn protect_main(&self) -> Result<()> {
        self.repo().protect(&["main"])
    }

    /// How long tokens of the app live that are made from now on, in seconds.
    pub fn app_tokens_live(&self, seconds: i64) {
        self.shared.state().app_token_life = seconds;
    }

    /// Ends all tokens that the app has.
    pub fn revoke_app_tokens(&self) {
        let mut state = self.shared.state();
        state.tokens.retain(|token, _| !token.starts_with("ghs_"));
    }

    /// Sends webhooks to `url`, whose certificate `ca` vouches for, from now on.
    ///
    /// # Errors
    /// Where `ca` is not in PEM.
    pub fn send_webhooks_to(&self, url: &str, ca: &[u8], secret: &str) -> Result<()> {
        let client = Client::builder()
            .tls_certs_only(Certificate::from_pem_bundle(ca).context("the CA's certificate")?)
            .no_proxy()
            .build()
            .context("an HTTP client")?;
        self.shared.hooks().target = Some(Target {
            client,
            url: url.to_owned(),
            secret: secret.to_owned(),
        });
        Ok(())
    }

    /// What becomes of webhooks from now on.
    pub fn post(&self, post: Post) {
        self.shared.hooks().post = post;
    }

    /// The deliveries so far, whether they arrived or not.
    pub fn webhooks(&self) -> Vec<Delivery> {
        self.shared.hooks().made.clone()
    }

    /// What the receiver answered so far.
    pub fn webhook_answers(&self) -> Vec<StatusCode> {
        self.shared.hooks().answers.clone()
    }

    /// Delivers what was held back, the newest first where `reversed`.
    ///
    /// # Errors
    /// Where the receiver does not answer.
    pub async fn release_webhooks(&self, reversed: bool) -> Result<Vec<StatusCode>> {
        let mut held = std::mem::take(&mut self.shared.hooks().held);
        if reversed {
            held.reverse();
        }
        self.send(&held).await
    }

    /// Sends these deliveries, one after the other.
    ///
    /// # Errors
    /// Where the receiver does not answer.
    pub async fn send(&self, deliveries: &[Delivery]) -> Result<Vec<StatusCode>> {
        let target = self.shared.hooks().target.clone();
        let target = target.context("webhooks go nowhere")?;
        let mut answers = Vec::new();
        for delivery in deliveries {
            answers.push(target.send(delivery).await?);
        }
        Ok(answers)
    }
}
