//! Webhooks as Git hosts send them, signed by the hosts' own rules.

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::{Api, api::Answer};

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// GitHub.
    GitHub,
    /// GitLab with a secret token.
    GitLab,
    /// GitLab with a signing token.
    GitLabSigning,
    /// Gitea.
    Gitea,
    /// Forgejo.
    Forgejo,
    /// Bitbucket Cloud.
    BitbucketCloud,
    /// Bitbucket Data Center.
    BitbucketDataCenter,
    /// A script.
    Generic,
}

/// All of them.
pub const SENDERS: [Sender; 8] = [
    Sender::GitHub,
    Sender::GitLab,
    Sender::GitLabSigning,
    Sender::Gitea,
    Sender::Forgejo,
    Sender::BitbucketCloud,
    Sender::BitbucketDataCenter,
    Sender::Generic,
];

/// One delivery.
#[derive(Clone, Debug)]
pub struct Webhook {
    sender: Sender,
    event: &'static str,
    id: String,
    body: Vec<u8>,
    secret: Option<String>,
}

impl Webhook {
    /// A push of `commit` to `main`, signed with `secret`.
    pub fn push(sender: Sender, commit: &str, secret: &str) -> Self {
        let (event, body) = match sender {
            Sender::GitHub | Sender::Gitea | Sender::Forgejo => ("push", of_github(commit)),
            Sender::GitLab | Sender::GitLabSigning => ("Push Hook", of_gitlab(commit)),
            Sender::BitbucketCloud => ("repo:push", of_bitbucket_cloud(commit)),
            Sender::BitbucketDataCenter => ("repo:refs_changed", of_bitbucket_data_center(commit)),
            Sender::Generic => ("", json!({ "ref": "refs/heads/main" })),
        };
        Self::event(sender, event, body.to_string(), secret)
    }

    /// Any event with any body.
    pub fn event(
        sender: Sender,
        event: &'static str,
        body: impl Into<Vec<u8>>,
        secret: &str,
    ) -> Self {
        Self {
            sender,
            event,
            id: format!("{:032x}", rand::random::<u128>()),
            body: body.into(),
            secret: Some(secret.to_owned()),
        }
    }

    /// The same delivery with another proof.
    #[must_use]
    pub fn signed_with(&self, secret: &str) -> Self {
        Self {
            secret: Some(secret.to_owned()),
            ..self.clone()
        }
    }

    /// The same delivery without a proof.
    #[must_use]
    pub fn unsigned(&self) -> Self {
        Self {
            secret: None,
            ..self.clone()
        }
    }

    /// The same content as a delivery of its own.
    #[must_use]
    pub fn again(&self) -> Self {
        Self {
            id: format!("{:032x}", rand::random::<u128>()),
            ..self.clone()
        }
    }

    /// The request that delivers it to a path of the controller.
    ///
    /// # Errors
    /// Where the secret cannot sign what it is to sign.
    pub fn request(&self, api: &Api, path: &str) -> Result<RequestBuilder> {
        let mut request = api
            .request(Method::POST, path)
            .header("content-type", "application/json")
            .body(self.body.clone());
        for (name, value) in self.headers()? {
            request = request.header(name, value);
        }
        Ok(request)
    }

    /// Delivers it.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn deliver(&self, api: &Api, path: &str) -> Result<Answer> {
        Api::send(self.request(api, path)?).await
    }

    fn headers(&self) -> Result<Vec<(&'static str, String)>> {
        let event = || self.event.to_owned();
        let id = || self.id.clone();
        let timestamp = "1772354400";
        let mut headers = match self.sender {
            Sender::GitHub => vec![("x-github-event", event()), ("x-github-delivery", id())],
            Sender::GitLab => vec![("x-gitlab-event", event()), ("x-gitlab-event-uuid", id())],
            Sender::GitLabSigning => vec![
                ("x-gitlab-event", event()),
                ("webhook-id", id()),
                ("webhook-timestamp", timestamp.to_owned()),
            ],
            Sender::Gitea => vec![
                ("x-github-event", event()),
                ("x-gogs-event", event()),
                ("x-gitea-event", event()),
                ("x-gitea-delivery", id()),
            ],
            Sender::Forgejo => vec![
                ("x-github-event", event()),
                ("x-gogs-event", event()),
                ("x-gitea-event", event()),
                ("x-forgejo-event", event()),
                ("x-forgejo-delivery", id()),
            ],
            Sender::BitbucketCloud => vec![
                ("x-event-key", event()),
                ("x-hook-uuid", "{5f1e2d3c}".to_owned()),
                ("x-request-uuid", id()),
            ],
            Sender::BitbucketDataCenter => vec![("x-event-key", event()), ("x-request-id", id())],
            Sender::Generic => vec![("x-longshore-delivery", id())],
        };
        let Some(secret) = &self.secret else {
            return Ok(headers);
        };
        let digits = hex::encode(hmac(secret.as_bytes(), &[&self.body])?);
        let sha256 = format!("sha256={digits}");
        headers.push(match self.sender {
            Sender::GitHub => ("x-hub-signature-256", sha256),
            Sender::GitLab => ("x-gitlab-token", secret.clone()),
            Sender::GitLabSigning => {
                let key = secret.strip_prefix("whsec_").context("a signing token")?;
                let key = BASE64.decode(key).context("a signing token")?;
                let id = self.id.as_bytes();
                let signed = [id, b".", timestamp.as_bytes(), b".", &self.body];
                let signature = BASE64.encode(hmac(&key, &signed)?);
                ("webhook-signature", format!("v1,{signature}"))
            }
            Sender::Gitea => ("x-gitea-signature", digits),
            Sender::Forgejo => ("x-forgejo-signature", digits),
            Sender::BitbucketCloud | Sender::BitbucketDataCenter => ("x-hub-signature", sha256),
            Sender::Generic => ("x-longshore-signature", sha256),
        });
        Ok(headers)
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Result<Vec<u8>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)?;
    for part in parts {
        mac.update(part);
    }
    Ok(mac.finalize().into_bytes().to_vec())
}

const BEFORE: &str = "1b53b01b53b01b53b01b53b01b53b01b53b01b53";

fn of_github(commit: &str) -> Value {
    json!({
        "ref": "refs/heads/main",
        "before": BEFORE,
        "after": commit,
        "created": false,
        "deleted": false,
        "forced": false,
        "repository": {
            "id": 1, "name": "fleet", "full_name": "acme/fleet", "default_branch": "main",
            "clone_url": "https://git.example/acme/fleet.git",
            "ssh_url": "git@git.example:acme/fleet.git",
            "html_url": "https://git.example/acme/fleet",
        },
        "pusher": { "name": "olivia" },
        "commits": [],
    })
}

fn of_gitlab(commit: &str) -> Value {
    json!({
        "object_kind": "push",
        "ref": "refs/heads/main",
        "before": BEFORE,
        "after": commit,
        "checkout_sha": commit,
        "project": {
            "id": 15, "name": "fleet", "path_with_namespace": "acme/fleet",
            "git_http_url": "https://gitlab.example/acme/fleet.git",
        },
        "commits": [],
    })
}

fn of_bitbucket_cloud(commit: &str) -> Value {
    let branch = |hash| json!({ "type": "branch", "name": "main", "target": { "hash": hash } });
    json!({
        "repository": {
            "full_name": "acme/fleet",
            "links": { "html": { "href": "https://bitbucket.org/acme/fleet" } },
        },
        "push": { "changes": [{ "new": branch(commit), "old": branch(BEFORE), "forced": false }] },
    })
}

fn of_bitbucket_data_center(commit: &str) -> Value {
    json!({
        "eventKey": "repo:refs_changed",
        "repository": { "id": 84, "slug": "fleet", "project": { "key": "ACME" } },
        "changes": [{
            "refId": "refs/heads/main", "fromHash": BEFORE, "toHash": commit, "type": "UPDATE",
        }],
    })
}
