//! Gitea and Forgejo, through the API that both have: <https://docs.gitea.com/api/>,
//! <https://codeberg.org/api/swagger>. Each of their servers describes its own at `/api/swagger`.

use async_trait::async_trait;
use http::{Method, header::AUTHORIZATION};
use longshore_protocol::api::connection::ForgeCredential;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    CommitStatus, Forge, ForgeError, GitLogin, PullRequest, PullRequestState, PullRequestText,
    StatusState,
    client::Client,
    connection::{ForgeSettings, InvalidConnection},
    refusal::or_exists,
    repository::Repository,
    rest::Rest,
    word,
};

/// The most that a page holds, unless a server is told otherwise.
const LIMIT: (&str, &str) = ("limit", "50");
const MAX_DESCRIPTION: usize = 255;
/// The color of labels that are made.
const LABEL_COLOR: &str = "#3b82c4";

/// A repo on Gitea or Forgejo.
#[derive(Debug)]
pub struct Gitea {
    rest: Rest,
    repository: Repository,
    token: SecretString,
}

#[derive(Debug, Deserialize)]
struct Pull {
    number: u64,
    html_url: String,
    state: String,
    #[serde(default)]
    merged: bool,
    head: Side,
    base: Side,
}

#[derive(Debug, Deserialize)]
struct Side {
    /// The branch, even where it is deleted; empty where there never was one.
    #[serde(rename = "label")]
    branch: String,
    /// The same, or `refs/pull/7/head` where the repo has no such branch.
    #[serde(rename = "ref")]
    git_ref: String,
    sha: String,
    /// Zero where a fork was deleted.
    repo_id: i64,
}

#[derive(Debug, Deserialize)]
struct Label {
    id: i64,
    name: String,
}

#[derive(Debug, Deserialize)]
struct Comment {
    id: i64,
    body: String,
    user: Option<User>,
}

#[derive(Debug, Deserialize)]
struct User {
    id: i64,
}

#[derive(Debug, Deserialize)]
struct Repo {
    #[serde(default)]
    archived: bool,
    permissions: Option<Permissions>,
}

#[derive(Debug, Deserialize)]
struct Permissions {
    push: bool,
}

impl From<Pull> for PullRequest {
    fn from(pull: Pull) -> Self {
        Self {
            number: pull.number,
            url: word(pull.html_url),
            state: match (pull.merged, pull.state.as_str()) {
                (true, _) => PullRequestState::Merged,
                (false, "open") => PullRequestState::Open,
                (false, _) => PullRequestState::Closed,
            },
            // What a reader pushed to `refs/for/…` shows the repo as its origin, but is from no branch of it. Those
            // whose own branch was deleted look alike, but are not open.
            is_from_fork: pull.head.repo_id != pull.base.repo_id
                || pull.head.branch.is_empty()
                || pull.state == "open" && pull.head.git_ref.starts_with("refs/"),
            head_branch: word(pull.head.branch),
            head_commit: word(pull.head.sha),
            base_branch: word(pull.base.branch),
        }
    }
}

impl Gitea {
    /// The repo that `settings` name, asked through `client`.
    pub fn new(client: Client, settings: &ForgeSettings) -> Result<Self, InvalidConnection> {
        let ForgeCredential::Token(token) = &settings.credential else {
            return Err(InvalidConnection("Gitea wants a token".to_owned()));
        };
        // https://docs.gitea.com/development/api-usage#authentication
        let credential = format!("token {}", token.expose());
        Ok(Self {
            rest: Rest::new(client, settings, AUTHORIZATION, &credential)?,
            repository: settings.repository.clone(),
            token: token.expose().into(),
        })
    }

    fn path<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        let repository = ["repos", self.repository.owner(), self.repository.name()];
        [&repository, rest].concat()
    }

    /// `repoEditPullRequest`.
    async fn edit(
        &self,
        operation: &'static str,
        number: u64,
        body: Value,
    ) -> Result<(), ForgeError> {
        let number = number.to_string();
        let path = self.path(&["pulls", &number]);
        let _edited: Value = self
            .rest
            .send(operation, Method::PATCH, &path, &body)
            .await?;
        Ok(())
    }

    /// The ids of labels, by `issueListLabels` and, for those that are not there, `issueCreateLabel`.
    async fn label_ids(
        &self,
        operation: &'static str,
        labels: &[String],
    ) -> Result<Vec<i64>, ForgeError> {
        let path = self.path(&["labels"]);
        let there: Vec<Label> = self.rest.list(operation, &path, &[LIMIT]).await?;
        let mut ids = Vec::new();
        for name in labels {
            if let Some(label) = there.iter().find(|label| label.name == *name) {
                ids.push(label.id);
                continue;
            }
            let body = json!({"name": name, "color": LABEL_COLOR});
            let made: Label = self
                .rest
                .send(operation, Method::POST, &path, &body)
                .await?;
            ids.push(made.id);
        }
        Ok(ids)
    }
}

#[async_trait]
impl Forge for Gitea {
    fn name(&self) -> &str {
        &self.rest.name
    }

    fn noun(&self) -> &'static str {
        "pull request"
    }

    /// <https://docs.gitea.com/usage/issues-prs/pull-request>.
    fn head_ref(&self, number: u64) -> String {
        format!("refs/pull/{number}/head")
    }

    /// Neither documents a limit; this is what other hosts have.
    /// What it says of a head is computed from the branch of that name, for decided ones too:
    /// <https://github.com/go-gitea/gitea/blob/main/services/convert/pull.go>.
    fn keeps_heads(&self) -> bool {
        false
    }

    fn text_limit(&self) -> usize {
        65_536
    }

    /// A token is taken as the password of whatever user:
    /// <https://docs.gitea.com/development/api-usage#authentication>.
    async fn git_login(&self) -> Result<GitLogin, ForgeError> {
        Ok(GitLogin {
            username: "oauth2".to_owned(),
            password: self.token.clone(),
        })
    }

    /// `repoGet`.
    async fn check(&self) -> Result<(), ForgeError> {
        let repo: Repo = self.rest.get("read the repo", &self.path(&[]), &[]).await?;
        if repo.archived {
            return Err(ForgeError::Refused {
                forge: self.rest.name.clone(),
                operation: "write to the repo",
                message: "it is archived".to_owned(),
            });
        }
        if repo
            .permissions
            .is_some_and(|permissions| !permissions.push)
        {
            return Err(ForgeError::Forbidden {
                forge: self.rest.name.clone(),
                operation: "push to the repo",
                message: "its owner may only read; make them a collaborator who may write"
                    .to_owned(),
            });
        }
        let path = self.path(&["pulls"]);
        let query = [("state", "open"), ("limit", "1")];
        let _first: Vec<Pull> = self.rest.get("list pull requests", &path, &query).await?;
        Ok(())
    }

    /// `repoListPullRequests`. Not all versions can be asked for one base, so that is looked at here.
    async fn open_pull_requests(&self, base: &str) -> Result<Vec<PullRequest>, ForgeError> {
        let path = self.path(&["pulls"]);
        let query = [("state", "open"), LIMIT];
        let all: Vec<Pull> = self.rest.list("list pull requests", &path, &query).await?;
        let mut all: Vec<_> = all
            .into_iter()
            .map(PullRequest::from)
            .filter(|pull| pull.base_branch == base)
            .collect();
        // What moved between two pages is in both.
        all.sort_by_key(|pull| pull.number);
        all.dedup_by_key(|pull| pull.number);
        Ok(all)
    }

    /// `repoGetPullRequest`.
    async fn pull_request(&self, number: u64) -> Result<PullRequest, ForgeError> {
        let number = number.to_string();
        let path = self.path(&["pulls", &number]);
        let pull: Pull = self.rest.get("read a pull request", &path, &[]).await?;
        Ok(pull.into())
    }

    /// `repoListPullRequests`; it cannot be asked for one head.
    async fn find_pull_request(
        &self,
        head: &str,
        base: &str,
    ) -> Result<Option<PullRequest>, ForgeError> {
        let path = self.path(&["pulls"]);
        let query = [("state", "all"), LIMIT];
        let all: Vec<Pull> = self
            .rest
            .list("look for a pull request", &path, &query)
            .await?;
        Ok(all
            .into_iter()
            .map(PullRequest::from)
            .filter(|pull| !pull.is_from_fork && pull.head_branch == head)
            .filter(|pull| pull.base_branch == base)
            .max_by_key(|pull| pull.number))
    }

    /// `repoCreatePullRequest`.
    async fn create_pull_request(
        &self,
        head: &str,
        base: &str,
        text: &PullRequestText,
    ) -> Result<PullRequest, ForgeError> {
        let body = json!({"title": text.title, "body": text.body, "head": head, "base": base});
        let path = self.path(&["pulls"]);
        let operation = "open a pull request";
        let made = self.rest.send(operation, Method::POST, &path, &body).await;
        let made: Pull = made.map_err(or_exists)?;
        Ok(made.into())
    }

    async fn edit_pull_request(
        &self,
        number: u64,
        text: &PullRequestText,
    ) -> Result<(), ForgeError> {
        let body = json!({"title": text.title, "body": text.body});
        self.edit("edit a pull request", number, body).await
    }

    /// `issueAddLabel`.
    async fn add_labels(&self, number: u64, labels: &[String]) -> Result<(), ForgeError> {
        if labels.is_empty() {
            return Ok(());
        }
        let operation = "label a pull request";
        let body = json!({"labels": self.label_ids(operation, labels).await?});
        let number = number.to_string();
        let path = self.path(&["issues", &number, "labels"]);
        let _labels: Value = self
            .rest
            .send(operation, Method::POST, &path, &body)
            .await?;
        Ok(())
    }

    /// `repoCreatePullReviewRequests`.
    async fn request_reviews(&self, number: u64, reviewers: &[String]) -> Result<(), ForgeError> {
        if reviewers.is_empty() {
            return Ok(());
        }
        let teams: Vec<_> = reviewers
            .iter()
            .filter_map(|it| it.strip_prefix("team:"))
            .collect();
        let users: Vec<_> = reviewers
            .iter()
            .filter(|it| !it.starts_with("team:"))
            .collect();
        let body = json!({"reviewers": users, "team_reviewers": teams});
        let number = number.to_string();
        let path = self.path(&["pulls", &number, "requested_reviewers"]);
        let _reviews: Value = self
            .rest
            .send("ask for a review", Method::POST, &path, &body)
            .await?;
        Ok(())
    }

    async fn close_pull_request(&self, number: u64) -> Result<(), ForgeError> {
        let body = json!({"state": "closed"});
        self.edit("close a pull request", number, body).await
    }

    /// `issueGetComments` (which has no pages), `issueEditComment`, `issueCreateComment`, `userGetCurrent`.
    async fn put_comment(&self, number: u64, marker: &str, text: &str) -> Result<(), ForgeError> {
        let me: User = self.rest.get("learn its own name", &["user"], &[]).await?;
        let number = number.to_string();
        let path = self.path(&["issues", &number, "comments"]);
        let comments: Vec<Comment> = self.rest.get("read comments", &path, &[]).await?;
        let body = json!({"body": text});
        let ours = comments.into_iter().find(|comment| {
            comment.user.as_ref().is_some_and(|user| user.id == me.id)
                && comment.body.contains(marker)
        });
        let _written: Value = match ours {
            Some(ours) if ours.body == text => return Ok(()),
            Some(ours) => {
                let id = ours.id.to_string();
                let path = self.path(&["issues", "comments", &id]);
                self.rest
                    .send("edit a comment", Method::PATCH, &path, &body)
                    .await?
            }
            None => {
                self.rest
                    .send("comment on a pull request", Method::POST, &path, &body)
                    .await?
            }
        };
        Ok(())
    }

    /// `repoCreateStatus`.
    async fn set_status(&self, commit: &str, status: &CommitStatus) -> Result<(), ForgeError> {
        let description: String = status.description.chars().take(MAX_DESCRIPTION).collect();
        let state = match status.state {
            StatusState::Pending => "pending",
            StatusState::Success => "success",
            StatusState::Failure => "failure",
        };
        let body = json!({
            "state": state,
            "context": status.context,
            "description": description,
            "target_url": status.url.as_deref().unwrap_or_default(),
        });
        let path = self.path(&["statuses", commit]);
        let operation = "set a commit status";
        let _status: Value = self
            .rest
            .send(operation, Method::POST, &path, &body)
            .await?;
        Ok(())
    }
}
