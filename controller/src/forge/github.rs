//! GitHub and GitHub Enterprise Server, through octocrab over our own [`Client`].
//!
//! As an App or with a personal access token ([`identity`]). Each call says where GitHub documents it; a test makes
//! all of them against GitHub's own API descriptions. Listings go through all pages by number.

mod answers;
mod identity;

use async_trait::async_trait;
use octocrab::{FromResponse, Octocrab, Page};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use self::{
    answers::{Comment, Pull, Repo},
    identity::{Identity, Installed},
};
use super::{
    CommitStatus, Forge, ForgeError, GitLogin, MAX_LISTED, PullRequest, PullRequestText,
    StatusState,
    client::{CallError, Client},
    connection::{ForgeSettings, InvalidConnection},
    refusal::{misunderstood, or_exists, refused, unanswered},
    repository::Repository,
};

/// The most that a page holds.
const PER_PAGE: usize = 100;
/// More pages are not read: nobody reviews ten thousand pull requests.
const MAX_PAGES: usize = 100;
/// <https://docs.github.com/en/rest/commits/statuses#create-a-commit-status>.
const MAX_DESCRIPTION: usize = 140;

/// A repo on GitHub.
#[derive(Debug)]
pub struct GitHub {
    name: String,
    repository: Repository,
    identity: Identity,
    login: OnceCell<String>,
}

impl GitHub {
    /// The repo that `settings` name, asked through `client`.
    pub fn new(client: Client, settings: &ForgeSettings) -> Result<Self, InvalidConnection> {
        let host = settings.url.host_str().unwrap_or_default();
        let host = host.strip_prefix("api.").unwrap_or(host);
        Ok(Self {
            name: format!("{host}/{}", settings.repository),
            repository: settings.repository.clone(),
            identity: Identity::new(client, &settings.repository, &settings.credential)?,
            login: OnceCell::new(),
        })
    }

    /// A route below the repo's.
    fn route(&self, rest: &str) -> String {
        format!("/repos/{}{rest}", self.repository)
    }

    async fn crab(&self) -> Result<std::sync::Arc<Octocrab>, ForgeError> {
        let crab = self.identity.crab().await;
        crab.map_err(|error| self.error("act as the App's installation", error))
    }

    async fn get<T: FromResponse>(
        &self,
        operation: &'static str,
        route: &str,
        query: &[(&str, &str)],
    ) -> Result<T, ForgeError> {
        let answer = self.crab().await?.get(route, Some(query)).await;
        answer.map_err(|error| self.error(operation, error))
    }

    async fn post(
        &self,
        operation: &'static str,
        route: &str,
        body: &impl Serialize,
    ) -> Result<Value, ForgeError> {
        let answer = self.crab().await?.post(route, Some(body)).await;
        answer.map_err(|error| self.error(operation, error))
    }

    async fn patch(
        &self,
        operation: &'static str,
        route: &str,
        body: &impl Serialize,
    ) -> Result<(), ForgeError> {
        let answer = self.crab().await?.patch(route, Some(body)).await;
        let answer: Result<Value, _> = answer;
        answer
            .map(drop)
            .map_err(|error| self.error(operation, error))
    }

    /// One page of a list, and whether there is another.
    async fn page<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        route: &str,
        query: &[(&str, &str)],
        number: usize,
    ) -> Result<(Vec<T>, bool), ForgeError> {
        let (size, number) = (PER_PAGE.to_string(), number.to_string());
        let paging = [("per_page", size.as_str()), ("page", number.as_str())];
        let query = [query, &paging].concat();
        // The link to the next page is only looked at: following it could lead elsewhere.
        let page: Page<T> = self.get(operation, route, &query).await?;
        let has_next = page.next.is_some();
        Ok((page.items, has_next))
    }

    fn error(&self, operation: &'static str, error: octocrab::Error) -> ForgeError {
        match error {
            octocrab::Error::GitHub { source, .. } => {
                let details = source.errors.iter().flatten().filter_map(detail);
                let message = [source.message.clone()].into_iter().chain(details);
                let message: Vec<_> = message.collect();
                refused(
                    &self.name,
                    operation,
                    source.status_code,
                    &message.join(": "),
                )
            }
            octocrab::Error::Service { source, .. } => match source.downcast::<CallError>() {
                Ok(error) => unanswered(&self.name, operation, *error),
                Err(source) => ForgeError::Unavailable {
                    forge: self.name.clone(),
                    operation,
                    source,
                },
            },
            other => misunderstood(&self.name, operation, other),
        }
    }

    fn forbidden(&self, operation: &'static str, message: impl Into<String>) -> ForgeError {
        ForgeError::Forbidden {
            forge: self.name.clone(),
            operation,
            message: message.into(),
        }
    }

    /// Checks what an App was granted; what a token was is only seen by trying.
    async fn check_installation(&self, installed: &Installed) -> Result<(), ForgeError> {
        let operation = "find the App's installation on the repo";
        let installation = installed.installation().await;
        let installation = installation.map_err(|error| self.error(operation, error))?;
        if installation.suspended_at.is_some() {
            return Err(self.forbidden(
                "act as the App's installation",
                "the installation is suspended; unsuspend it in the organization's settings",
            ));
        }
        let missing: Vec<_> = ["contents", "pull_requests", "statuses"]
            .into_iter()
            .filter(|name| {
                installation
                    .permissions
                    .get(*name)
                    .is_none_or(|it| it != "write")
            })
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let message = format!(
            "the App lacks write access to {}; give it that in the App's settings, then accept it in the installation",
            missing.join(", ")
        );
        Err(self.forbidden("write what it must", message))
    }
}

/// What one of an answer's `errors` says.
fn detail(error: &Value) -> Option<String> {
    let text = error.get("message").or(Some(error))?;
    text.as_str().map(str::to_owned)
}

#[async_trait]
impl Forge for GitHub {
    fn name(&self) -> &str {
        &self.name
    }

    fn noun(&self) -> &'static str {
        "pull request"
    }

    /// <https://docs.github.com/en/pull-requests/collaborating-with-pull-requests/reviewing-changes-in-pull-requests/checking-out-pull-requests-locally>.
    fn head_ref(&self, number: u64) -> String {
        format!("refs/pull/{number}/head")
    }

    fn text_limit(&self) -> usize {
        65_536
    }

    async fn git_login(&self) -> Result<GitLogin, ForgeError> {
        let login = self.identity.git_login().await;
        login.map_err(|error| self.error("make a token for Git", error))
    }

    async fn forget_login(&self) {
        self.identity.forget().await;
    }

    async fn check(&self) -> Result<(), ForgeError> {
        if let Identity::App(installed) = &self.identity {
            self.check_installation(installed).await?;
        }
        // https://docs.github.com/en/rest/repos/repos#get-a-repository
        let repo: Repo = self.get("read the repo", &self.route(""), &[]).await?;
        if repo.archived {
            return Err(ForgeError::Refused {
                forge: self.name.clone(),
                operation: "write to the repo",
                message: "it is archived".to_owned(),
            });
        }
        // Of an App, this says nothing; its installation did.
        let is_user = matches!(self.identity, Identity::User { .. });
        if is_user
            && repo
                .permissions
                .is_some_and(|permissions| !permissions.push)
        {
            return Err(self.forbidden(
                "push to the repo",
                "its owner may only read; give it write access to contents, pull requests and commit statuses",
            ));
        }
        let route = self.route("/pulls");
        let operation = "list pull requests";
        let _first: Vec<Pull> = self.get(operation, &route, &[("per_page", "1")]).await?;
        Ok(())
    }

    /// <https://docs.github.com/en/rest/pulls/pulls#list-pull-requests>.
    async fn open_pull_requests(&self, base: &str) -> Result<Vec<PullRequest>, ForgeError> {
        let operation = "list pull requests";
        let query = [("state", "open"), ("base", base)];
        let mut all = Vec::new();
        for number in 1..=MAX_PAGES {
            let (pulls, has_next) = self
                .page::<Pull>(operation, &self.route("/pulls"), &query, number)
                .await?;
            all.extend(pulls.into_iter().map(PullRequest::from));
            if !has_next || all.len() >= MAX_LISTED {
                break;
            }
        }
        all.truncate(MAX_LISTED);
        // What moved between two pages is in both.
        all.sort_by_key(|pull| pull.number);
        all.dedup_by_key(|pull| pull.number);
        Ok(all)
    }

    /// <https://docs.github.com/en/rest/pulls/pulls#get-a-pull-request>.
    async fn pull_request(&self, number: u64) -> Result<PullRequest, ForgeError> {
        let route = self.route(&format!("/pulls/{number}"));
        let pull: Pull = self.get("read a pull request", &route, &[]).await?;
        Ok(pull.into())
    }

    /// <https://docs.github.com/en/rest/pulls/pulls#list-pull-requests>.
    async fn find_pull_request(
        &self,
        head: &str,
        base: &str,
    ) -> Result<Option<PullRequest>, ForgeError> {
        let from = format!("{}:{head}", self.repository.owner());
        let query = [
            ("state", "all"),
            ("head", from.as_str()),
            ("base", base),
            ("sort", "created"),
            ("direction", "desc"),
        ];
        let operation = "look for a pull request";
        let (pulls, _) = self
            .page::<Pull>(operation, &self.route("/pulls"), &query, 1)
            .await?;
        // A fork within the same organization has the same owner.
        Ok(pulls
            .into_iter()
            .map(PullRequest::from)
            .filter(|pull| !pull.is_from_fork && pull.head_branch == head)
            .max_by_key(|pull| pull.number))
    }

    /// <https://docs.github.com/en/rest/pulls/pulls#create-a-pull-request>.
    async fn create_pull_request(
        &self,
        head: &str,
        base: &str,
        text: &PullRequestText,
    ) -> Result<PullRequest, ForgeError> {
        let operation = "open a pull request";
        let body = json!({"title": text.title, "body": text.body, "head": head, "base": base});
        let pull = self
            .post(operation, &self.route("/pulls"), &body)
            .await
            .map_err(or_exists)?;
        let pull: Pull = serde_json::from_value(pull)
            .map_err(|error| misunderstood(&self.name, operation, error))?;
        Ok(pull.into())
    }

    /// <https://docs.github.com/en/rest/pulls/pulls#update-a-pull-request>.
    async fn edit_pull_request(
        &self,
        number: u64,
        text: &PullRequestText,
    ) -> Result<(), ForgeError> {
        let body = json!({"title": text.title, "body": text.body});
        let route = self.route(&format!("/pulls/{number}"));
        self.patch("edit a pull request", &route, &body).await
    }

    /// Labels that the repo does not have are made by this call, where the credential may write issues, too:
    /// <https://docs.github.com/en/rest/issues/labels#add-labels-to-an-issue>.
    async fn add_labels(&self, number: u64, labels: &[String]) -> Result<(), ForgeError> {
        if labels.is_empty() {
            return Ok(());
        }
        let route = self.route(&format!("/issues/{number}/labels"));
        self.post("label a pull request", &route, &json!({"labels": labels}))
            .await?;
        Ok(())
    }

    /// <https://docs.github.com/en/rest/pulls/review-requests#request-reviewers-for-a-pull-request>.
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
        let route = self.route(&format!("/pulls/{number}/requested_reviewers"));
        let body = json!({"reviewers": users, "team_reviewers": teams});
        self.post("ask for a review", &route, &body).await?;
        Ok(())
    }

    /// <https://docs.github.com/en/rest/pulls/pulls#update-a-pull-request>.
    async fn close_pull_request(&self, number: u64) -> Result<(), ForgeError> {
        let route = self.route(&format!("/pulls/{number}"));
        self.patch("close a pull request", &route, &json!({"state": "closed"}))
            .await
    }

    /// <https://docs.github.com/en/rest/issues/comments>.
    async fn put_comment(&self, number: u64, marker: &str, text: &str) -> Result<(), ForgeError> {
        let login = self.identity.login(&self.login).await;
        let login = login.map_err(|error| self.error("learn its own name", error))?;
        let of_pull = self.route(&format!("/issues/{number}/comments"));
        for page in 1..=MAX_PAGES {
            let (comments, has_next) = self
                .page::<Comment>("read comments", &of_pull, &[], page)
                .await?;
            let ours = comments.into_iter().find(|comment| {
                let is_by_us = |user: &answers::User| user.login.eq_ignore_ascii_case(&login);
                comment.user.as_ref().is_some_and(is_by_us)
                    && comment
                        .body
                        .as_ref()
                        .is_some_and(|body| body.contains(marker))
            });
            if let Some(ours) = ours {
                if ours.body.as_deref() == Some(text) {
                    return Ok(());
                }
                let route = self.route(&format!("/issues/comments/{}", ours.id));
                return self
                    .patch("edit a comment", &route, &json!({"body": text}))
                    .await;
            }
            if !has_next {
                break;
            }
        }
        self.post(
            "comment on a pull request",
            &of_pull,
            &json!({"body": text}),
        )
        .await?;
        Ok(())
    }

    /// <https://docs.github.com/en/rest/commits/statuses#create-a-commit-status>.
    async fn set_status(&self, commit: &str, status: &CommitStatus) -> Result<(), ForgeError> {
        let description: String = status.description.chars().take(MAX_DESCRIPTION).collect();
        let state = match status.state {
            StatusState::Pending => "pending",
            StatusState::Success => "success",
            StatusState::Failure => "failure",
        };
        let mut body =
            json!({"state": state, "context": status.context, "description": description});
        if let (Some(url), Some(members)) = (&status.url, body.as_object_mut()) {
            members.insert("target_url".to_owned(), json!(url));
        }
        let route = self.route(&format!("/statuses/{commit}"));
        self.post("set a commit status", &route, &body).await?;
        Ok(())
    }
}
