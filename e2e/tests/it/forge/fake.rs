//! The fake forge itself: what the other tests rely on.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use http::{Method, StatusCode};
use longshore_e2e::{
    FleetRepo, Forge,
    forge::{Fault, Host, How, Kind, PullState, STRANGER},
    world::new_directory,
};
use reqwest::{Certificate, Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A forge and somebody who calls its API.
struct Caller {
    forge: Forge,
    repo: FleetRepo,
    client: Client,
    _directory: TempDir,
}

impl Caller {
    fn new(host: Host) -> Result<Self> {
        let directory = new_directory()?;
        let mut repo = FleetRepo::from_template(directory.path())?;
        let forge = Forge::start(host, &directory.path().join("forge"), &mut repo)?;
        let ca = Certificate::from_pem(&fs::read(forge.ca())?)?;
        let client = Client::builder()
            .tls_certs_only([ca])
            .user_agent("test")
            .no_proxy()
            .timeout(Duration::from_secs(5))
            .build()?;
        Ok(Self {
            forge,
            repo,
            client,
            _directory: directory,
        })
    }

    fn repo_path(&self) -> &'static str {
        match self.forge.host() {
            Host::GitLab => "projects/acme%2Fkiosks",
            Host::GitHub | Host::Gitea => "repos/acme/kiosks",
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Response> {
        let url = format!("{}/{}/{path}", self.forge.api_url(), self.repo_path());
        let mut request = self.client.request(method, url);
        request = match self.forge.host() {
            Host::GitLab => request.header("private-token", self.forge.token()),
            Host::GitHub | Host::Gitea => {
                request.header("authorization", format!("token {}", self.forge.token()))
            }
        };
        if let Some(body) = body {
            request = request.json(&body);
        }
        Ok(request.send().await?)
    }

    async fn is(
        &self,
        status: StatusCode,
        method: Method,
        path: &str,
        body: Value,
    ) -> Result<Value> {
        let response = self.call(method, path, Some(body)).await?;
        let (is, text) = (response.status(), response.text().await?);
        ensure!(is == status, "{is}: {text}");
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }
}

fn add_page(copy: &longshore_e2e::WorkingCopy) -> Result<()> {
    copy.write("page.txt", "news")
}

#[tokio::test]
async fn it_refuses_what_the_hosts_refuse() -> Result<()> {
    for host in Host::ALL {
        let caller = Caller::new(host)?;
        let forge = &caller.forge;
        let opened = forge.open_pull_request("news", add_page)?;
        ensure!(opened.number == 1 && opened.state == PullState::Open);
        let (pulls, comments) = match host {
            Host::GitLab => ("merge_requests", "merge_requests/1/notes"),
            Host::GitHub | Host::Gitea => ("pulls", "issues/1/comments"),
        };
        let create = match host {
            Host::GitLab => {
                json!({"title": "News", "source_branch": "news", "target_branch": "main"})
            }
            Host::GitHub | Host::Gitea => json!({"title": "News", "head": "news", "base": "main"}),
        };
        let twice = match host {
            Host::GitHub => StatusCode::UNPROCESSABLE_ENTITY,
            Host::GitLab | Host::Gitea => StatusCode::CONFLICT,
        };
        caller
            .is(twice, Method::POST, pulls, create.clone())
            .await?;
        forge.is_content()?;

        // What no client should ask is refused and remembered.
        let mut unknown = create;
        unknown["titel"] = json!("News");
        caller
            .is(
                StatusCode::UNPROCESSABLE_ENTITY,
                Method::POST,
                pulls,
                unknown,
            )
            .await?;
        ensure!(forge.complaints().len() == 1, "{:?}", forge.complaints());
        caller
            .is(StatusCode::NOT_FOUND, Method::POST, "nothing", json!({}))
            .await?;
        ensure!(forge.complaints().len() == 2, "{:?}", forge.complaints());
        let nowhere = format!("statuses/{}", "a".repeat(40));
        let status = json!({"state": "success", "context": "longshore/sync"});
        let answer = caller.call(Method::POST, &nowhere, Some(status)).await?;
        ensure!(answer.status().is_client_error() && forge.complaints().len() == 3);

        // Pages are small, and what did not change is not sent again.
        for n in 0..4 {
            let body = json!({"body": format!("comment {n}")});
            caller
                .is(StatusCode::CREATED, Method::POST, comments, body)
                .await?;
        }
        let first = caller.call(Method::GET, comments, None).await?;
        let is_paged = first.headers().contains_key("link");
        ensure!(is_paged == (host != Host::Gitea), "{:?}", first.headers());
        ensure!(first.headers().contains_key("etag"));

        // Nobody without a token, and no token but a right one.
        let url = format!("{}/user", forge.api_url());
        let stranger = caller
            .client
            .get(&url)
            .header("authorization", "Bearer nonsense");
        ensure!(stranger.send().await?.status() == StatusCode::UNAUTHORIZED);
    }
    Ok(())
}

#[tokio::test]
async fn its_repos_are_real() -> Result<()> {
    for host in Host::ALL {
        let caller = Caller::new(host)?;
        let (forge, copy) = (&caller.forge, caller.repo.copy());
        // Over https, with a token.
        copy.write("first.txt", "first")?;
        let pushed = copy.publish("First")?;
        ensure!(forge.branch("main")? == pushed);

        // Whatever is merged is merged by Git, and the head stays under a ref of its own.
        let pull = forge.open_pull_request("news", add_page)?;
        forge.merge(pull.number, How::SquashAndDelete)?;
        ensure!(forge.file("main", "page.txt")? == "news");
        ensure!(forge.branch("news").is_err());
        let namespace = if host == Host::GitLab {
            "merge-requests"
        } else {
            "pull"
        };
        let head = format!("refs/{namespace}/{}/head", pull.number);
        let kept = copy.git(["ls-remote", "origin", &head])?;
        ensure!(kept.starts_with(&pull.head_commit), "{kept}");

        // A fork's head is there, too, and a branch that goes away closes a pull request on two of three.
        let fork =
            forge.open_fork_pull_request("theirs", |copy| copy.write("theirs.txt", "theirs"))?;
        ensure!(fork.head_owner == STRANGER);
        let there = format!("refs/{namespace}/{}/head", fork.number);
        ensure!(
            copy.git(["ls-remote", "origin", &there])?
                .starts_with(&fork.head_commit)
        );
        let short = forge.open_pull_request("short", |copy| copy.write("short.txt", "short"))?;
        forge.delete_branch("short")?;
        let state = forge.pull_request(short.number)?.state;
        ensure!(
            (state == PullState::Open) == (host == Host::GitLab),
            "{state:?}"
        );

        // A protected branch refuses pushes in the host's words.
        forge.protect_main()?;
        copy.pull()?;
        copy.write("second.txt", "second")?;
        copy.commit("Second")?;
        let refused = format!("{:#}", copy.push().expect_err("main is protected"));
        let words = match host {
            Host::GitHub => "GH006: Protected branch update failed for refs/heads/main",
            Host::GitLab => "You are not allowed to push code to protected branches",
            Host::Gitea => "Not allowed to push to protected branch main",
        };
        ensure!(refused.contains(words), "{refused}");
        forge.is_content()?;
    }
    Ok(())
}

#[tokio::test]
async fn it_goes_wrong_on_demand() -> Result<()> {
    let caller = Caller::new(Host::GitHub)?;
    let forge = &caller.forge;
    forge.open_pull_request("news", add_page)?;
    let comment = || {
        caller.call(
            Method::POST,
            "issues/1/comments",
            Some(json!({"body": "hello"})),
        )
    };

    forge.set_fault(
        Fault::every(Kind::LoseAnswer)
            .on(Method::POST, "/comments")
            .times(1),
    );
    ensure!(comment().await.is_err());
    ensure!(forge.comments(1).len() == 1, "the deed was done");

    forge.set_fault(
        Fault::every(Kind::HalfBody)
            .on(Method::POST, "/comments")
            .times(1),
    );
    let half = comment().await?;
    ensure!(half.status() == StatusCode::CREATED && half.bytes().await.is_err());
    ensure!(forge.comments(1).len() == 2, "the deed was done");

    for (kind, status) in [
        (
            Kind::RateLimit(Duration::from_secs(2)),
            StatusCode::FORBIDDEN,
        ),
        (
            Kind::TooMany(Duration::from_secs(2)),
            StatusCode::TOO_MANY_REQUESTS,
        ),
        (
            Kind::Status(StatusCode::BAD_GATEWAY),
            StatusCode::BAD_GATEWAY,
        ),
    ] {
        forge.set_fault(Fault::every(kind).times(1));
        ensure!(comment().await?.status() == status);
    }
    forge.set_fault(Fault::every(Kind::Cut));
    ensure!(comment().await.is_err() && comment().await.is_err());
    forge.heal();
    ensure!(forge.comments(1).len() == 2, "nothing was done");
    ensure!(comment().await?.status() == StatusCode::CREATED);
    forge.is_content()
}
