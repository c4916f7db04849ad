//! GitLab, through its REST API, version 4: <https://docs.gitlab.com/api/rest/>.
//!
//! Pull requests are merge requests here, numbered per project (`iid`), and comments are notes.

use async_trait::async_trait;
use http::{HeaderName, Method};
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

const PER_PAGE: (&str, &str) = ("per_page", "100");
/// `description` of <https://docs.gitlab.com/api/commits/#set-commit-pipeline-status>.
const MAX_DESCRIPTION: usize = 255;
/// The least role that may push and open merge requests: Developer.
/// <https://docs.gitlab.com/api/access_requests/#valid-access-levels>.
const DEVELOPER: u32 = 30;

/// A project on GitLab.
#[derive(Debug)]
pub struct GitLab {
    rest: Rest,
    repository: Repository,
    token: SecretString,
}

#[derive(Debug, Deserialize)]
struct MergeRequest {
    iid: u64,
    web_url: String,
    state: String,
    source_branch: String,
    target_branch: String,
    source_project_id: Option<u64>,
    target_project_id: u64,
    /// Its head commit; absent while there is none.
    sha: Option<String>,
    #[serde(default)]
    reviewers: Vec<User>,
}

#[derive(Debug, Deserialize)]
struct User {
    id: u64,
}

#[derive(Debug, Deserialize)]
struct Note {
    id: u64,
    body: String,
    author: User,
}

#[derive(Debug, Deserialize)]
struct Project {
    #[serde(default)]
    archived: bool,
    permissions: Option<Permissions>,
}

#[derive(Debug, Deserialize)]
struct Permissions {
    project_access: Option<Access>,
    group_access: Option<Access>,
}

#[derive(Debug, Deserialize)]
struct Access {
    access_level: u32,
}

impl MergeRequest {
    /// It, if it proposes a commit.
    fn proposed(self) -> Option<PullRequest> {
        Some(PullRequest {
            number: self.iid,
            url: word(self.web_url),
            state: match self.state.as_str() {
                "merged" => PullRequestState::Merged,
                "closed" => PullRequestState::Closed,
                // `locked` is one that is being merged.
                _ => PullRequestState::Open,
            },
            head_branch: word(self.source_branch),
            head_commit: word(self.sha?),
            base_branch: word(self.target_branch),
            is_from_fork: self.source_project_id != Some(self.target_project_id),
        })
    }
}

impl GitLab {
    /// The project that `settings` name, asked through `client`.
    pub fn new(client: Client, settings: &ForgeSettings) -> Result<Self, InvalidConnection> {
        let ForgeCredential::Token(token) = &settings.credential else {
            return Err(InvalidConnection("GitLab wants a token".to_owned()));
        };
        // https://docs.gitlab.com/api/rest/authentication/#personalprojectgroup-access-tokens
        let header = HeaderName::from_static("private-token");
        Ok(Self {
            rest: Rest::new(client, settings, header, token.expose())?,
            repository: settings.repository.clone(),
            token: token.expose().into(),
        })
    }

    fn path<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        [&["projects", self.repository.as_str()], rest].concat()
    }

    fn refused(&self, operation: &'static str, message: impl Into<String>) -> ForgeError {
        ForgeError::Refused {
            forge: self.rest.name.clone(),
            operation,
            message: message.into(),
        }
    }

    /// <https://docs.gitlab.com/api/merge_requests/#retrieve-a-merge-request>.
    async fn merge_request(&self, number: u64) -> Result<MergeRequest, ForgeError> {
        let number = number.to_string();
        let path = self.path(&["merge_requests", &number]);
        self.rest.get("read a merge request", &path, &[]).await
    }

    /// <https://docs.gitlab.com/api/merge_requests/#update-a-merge-request>.
    async fn update(
        &self,
        operation: &'static str,
        number: u64,
        body: Value,
    ) -> Result<(), ForgeError> {
        let number = number.to_string();
        let path = self.path(&["merge_requests", &number]);
        let _updated: Value = self.rest.send(operation, Method::PUT, &path, &body).await?;
        Ok(())
    }
}

#[async_trait]
impl Forge for GitLab {
    fn name(&self) -> &str {
        &self.rest.name
    }

    fn noun(&self) -> &'static str {
        "merge request"
    }

    /// <https://docs.gitlab.com/user/project/merge_requests/versions/>.
    fn head_ref(&self, number: u64) -> String {
        format!("refs/merge-requests/{number}/head")
    }

    /// A note's; a merge request's description may have a little more.
    fn text_limit(&self) -> usize {
        1_000_000
    }

    /// Any name but none does: <https://docs.gitlab.com/user/profile/personal_access_tokens/#clone-repository-using-personal-access-token>.
    async fn git_login(&self) -> Result<GitLogin, ForgeError> {
        Ok(GitLogin {
            username: "oauth2".to_owned(),
            password: self.token.clone(),
        })
    }

    /// <https://docs.gitlab.com/api/projects/#retrieve-a-project>.
    async fn check(&self) -> Result<(), ForgeError> {
        let project: Project = self
            .rest
            .get("read the project", &self.path(&[]), &[])
            .await?;
        if project.archived {
            return Err(self.refused("write to the project", "it is archived"));
        }
        if let Some(permissions) = project.permissions {
            let levels = [permissions.project_access, permissions.group_access];
            let level = levels.into_iter().flatten().map(|it| it.access_level).max();
            // An administrator is no member, and may do everything.
            if level.is_some_and(|level| level < DEVELOPER) {
                return Err(ForgeError::Forbidden {
                    forge: self.rest.name.clone(),
                    operation: "push to the project",
                    message: "its role is too small; give it the role Developer, or Maintainer to push to a protected branch"
                        .to_owned(),
                });
            }
        }
        let query = [("state", "opened"), ("per_page", "1")];
        let path = self.path(&["merge_requests"]);
        let _first: Vec<MergeRequest> = self.rest.get("list merge requests", &path, &query).await?;
        Ok(())
    }

    /// <https://docs.gitlab.com/api/merge_requests/#list-project-merge-requests>.
    async fn open_pull_requests(&self, base: &str) -> Result<Vec<PullRequest>, ForgeError> {
        let query = [("state", "opened"), ("target_branch", base), PER_PAGE];
        let path = self.path(&["merge_requests"]);
        let all: Vec<MergeRequest> = self.rest.list("list merge requests", &path, &query).await?;
        let mut all: Vec<_> = all.into_iter().filter_map(MergeRequest::proposed).collect();
        // What moved between two pages is in both.
        all.sort_by_key(|it| it.number);
        all.dedup_by_key(|it| it.number);
        Ok(all)
    }

    async fn pull_request(&self, number: u64) -> Result<PullRequest, ForgeError> {
        let found = self.merge_request(number).await?.proposed();
        found.ok_or_else(|| self.refused("read a merge request", "it has no commit"))
    }

    /// <https://docs.gitlab.com/api/merge_requests/#list-project-merge-requests>.
    async fn find_pull_request(
        &self,
        head: &str,
        base: &str,
    ) -> Result<Option<PullRequest>, ForgeError> {
        let query = [
            ("state", "all"),
            ("source_branch", head),
            ("target_branch", base),
            PER_PAGE,
        ];
        let path = self.path(&["merge_requests"]);
        let all: Vec<MergeRequest> = self
            .rest
            .list("look for a merge request", &path, &query)
            .await?;
        Ok(all
            .into_iter()
            .filter_map(MergeRequest::proposed)
            .filter(|it| !it.is_from_fork)
            .max_by_key(|it| it.number))
    }

    /// <https://docs.gitlab.com/api/merge_requests/#create-a-merge-request>.
    async fn create_pull_request(
        &self,
        head: &str,
        base: &str,
        text: &PullRequestText,
    ) -> Result<PullRequest, ForgeError> {
        let operation = "open a merge request";
        let body = json!({
            "source_branch": head,
            "target_branch": base,
            "title": text.title,
            "description": text.body,
        });
        let path = self.path(&["merge_requests"]);
        let made = self.rest.send(operation, Method::POST, &path, &body).await;
        let made: MergeRequest = made.map_err(or_exists)?;
        // GitLab looks for the commits only after it answered.
        match made.sha {
            Some(_) => made.proposed(),
            None => self.merge_request(made.iid).await?.proposed(),
        }
        .ok_or_else(|| self.refused(operation, "it has no commit yet; it will be found again"))
    }

    async fn edit_pull_request(
        &self,
        number: u64,
        text: &PullRequestText,
    ) -> Result<(), ForgeError> {
        let body = json!({"title": text.title, "description": text.body});
        self.update("edit a merge request", number, body).await
    }

    async fn add_labels(&self, number: u64, labels: &[String]) -> Result<(), ForgeError> {
        if labels.is_empty() {
            return Ok(());
        }
        let body = json!({"add_labels": labels.join(",")});
        self.update("label a merge request", number, body).await
    }

    /// The call replaces the reviewers, so those that are there are named again. GitLab has no teams to ask.
    /// <https://docs.gitlab.com/api/users/#list-users>.
    async fn request_reviews(&self, number: u64, reviewers: &[String]) -> Result<(), ForgeError> {
        let operation = "ask for a review";
        let (teams, users): (Vec<_>, Vec<_>) =
            reviewers.iter().partition(|name| name.starts_with("team:"));
        let mut unknown: Vec<_> = teams.into_iter().map(String::as_str).collect();
        let mut ids = Vec::new();
        for name in users {
            let query = [("username", name.as_str())];
            let found: Vec<User> = self.rest.get(operation, &["users"], &query).await?;
            match found.first() {
                Some(user) => ids.push(user.id),
                None => unknown.push(name),
            }
        }
        if !ids.is_empty() {
            let there = self.merge_request(number).await?.reviewers;
            ids.extend(there.iter().map(|user| user.id));
            ids.sort_unstable();
            ids.dedup();
            self.update(operation, number, json!({"reviewer_ids": ids}))
                .await?;
        }
        if unknown.is_empty() {
            return Ok(());
        }
        Err(self.refused(
            operation,
            format!("there is no user {}", unknown.join(", ")),
        ))
    }

    async fn close_pull_request(&self, number: u64) -> Result<(), ForgeError> {
        let body = json!({"state_event": "close"});
        self.update("close a merge request", number, body).await
    }

    /// <https://docs.gitlab.com/api/notes/#merge-requests>, <https://docs.gitlab.com/api/users/#retrieve-the-current-user>.
    async fn put_comment(&self, number: u64, marker: &str, text: &str) -> Result<(), ForgeError> {
        let me: User = self.rest.get("learn its own name", &["user"], &[]).await?;
        let number = number.to_string();
        let path = self.path(&["merge_requests", &number, "notes"]);
        let notes: Vec<Note> = self.rest.list("read notes", &path, &[PER_PAGE]).await?;
        let body = json!({"body": text});
        let ours = notes
            .into_iter()
            .find(|note| note.author.id == me.id && note.body.contains(marker));
        let _written: Value = match ours {
            Some(ours) if ours.body == text => return Ok(()),
            Some(ours) => {
                let id = ours.id.to_string();
                let path = [path.as_slice(), &[&id]].concat();
                self.rest
                    .send("edit a note", Method::PUT, &path, &body)
                    .await?
            }
            None => {
                self.rest
                    .send("comment on a merge request", Method::POST, &path, &body)
                    .await?
            }
        };
        Ok(())
    }

    /// <https://docs.gitlab.com/api/commits/#set-commit-pipeline-status>.
    async fn set_status(&self, commit: &str, status: &CommitStatus) -> Result<(), ForgeError> {
        let description: String = status.description.chars().take(MAX_DESCRIPTION).collect();
        let state = match status.state {
            StatusState::Pending => "pending",
            StatusState::Success => "success",
            StatusState::Failure => "failed",
        };
        let mut body = json!({"state": state, "name": status.context, "description": description});
        if let (Some(url), Some(members)) = (&status.url, body.as_object_mut()) {
            members.insert("target_url".to_owned(), json!(url));
        }
        let path = self.path(&["statuses", commit]);
        let done: Result<Value, _> = self
            .rest
            .send("set a commit status", Method::POST, &path, &body)
            .await;
        match done {
            // Pending again: GitLab keeps the words that it has, and calls that an error.
            Err(ForgeError::Refused { message, .. })
                if message.contains("Cannot transition status") =>
            {
                Ok(())
            }
            other => other.map(drop),
        }
    }
}
