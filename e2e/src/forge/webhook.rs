//! The forge's webhooks: signed as each host signs them, and lost, doubled, held back or repeated on demand.

use anyhow::{Context as _, Result};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use reqwest::Client;
use serde_json::Value;
use sha2::Sha256;

use super::Host;

/// What becomes of deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Post {
    /// Each arrives.
    #[default]
    Works,
    /// None arrives.
    Loses,
    /// Each arrives twice.
    Doubles,
    /// None arrives before [`super::Forge::release_webhooks`].
    Holds,
}

/// Where deliveries go, and those so far.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    pub(super) target: Option<Target>,
    pub(super) post: Post,
    /// All that were made, whether they arrived or not.
    pub(super) made: Vec<Delivery>,
    pub(super) held: Vec<Delivery>,
    /// What the receiver answered.
    pub(super) answers: Vec<StatusCode>,
}

/// The receiver.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) client: Client,
    pub(super) url: String,
    pub(super) secret: String,
}

/// One delivery, as it goes out each time.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The event's name, in the host's words.
    pub event: String,
    /// The headers, with the signature.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Delivery {
    /// A delivery of `event`, signed with `secret`.
    pub fn new(host: Host, event: &str, payload: &Value, secret: &str) -> Self {
        let body = payload.to_string().into_bytes();
        let id = uuid();
        let signature = hmac(secret, &body);
        let prefixed = format!("sha256={signature}");
        let headers: &[(&'static str, &str)] = match host {
            Host::GitHub => &[
                ("user-agent", "GitHub-Hookshot/044aadd"),
                ("x-github-event", event),
                ("x-github-delivery", &id),
                ("x-github-hook-id", "292430182"),
                ("x-github-hook-installation-target-type", "repository"),
                ("x-github-hook-installation-target-id", "186853002"),
                ("x-hub-signature-256", &prefixed),
            ],
            Host::GitLab => &[
                ("user-agent", "GitLab/18.5.0"),
                ("x-gitlab-event", event),
                ("x-gitlab-event-uuid", &id),
                (
                    "x-gitlab-webhook-uuid",
                    "02affd2d-2cba-4033-917d-ec22d5dc4b38",
                ),
                ("x-gitlab-instance", "https://gitlab.example"),
                ("idempotency-key", &id),
                ("x-gitlab-token", secret),
            ],
            Host::Gitea => &[
                ("user-agent", "Go-http-client/1.1"),
                ("x-gitea-delivery", &id),
                ("x-gitea-event", event),
                ("x-gitea-event-type", event),
                ("x-gitea-signature", &signature),
                ("x-gogs-delivery", &id),
                ("x-gogs-event", event),
                ("x-gogs-event-type", event),
                ("x-gogs-signature", &signature),
                ("x-github-delivery", &id),
                ("x-github-event", event),
                ("x-github-event-type", event),
                ("x-hub-signature-256", &prefixed),
            ],
        };
        let mut map = HeaderMap::new();
        map.insert("content-type", HeaderValue::from_static("application/json"));
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::from_str(value) {
                map.insert(HeaderName::from_static(name), value);
            }
        }
        Self {
            event: event.to_owned(),
            headers: map,
            body,
        }
    }
}

impl Target {
    /// Delivers once.
    pub(super) async fn send(&self, delivery: &Delivery) -> Result<StatusCode> {
        let response = self
            .client
            .post(&self.url)
            .headers(delivery.headers.clone())
            .body(delivery.body.clone())
            .send()
            .await
            .context("the webhook was not delivered")?;
        Ok(response.status())
    }
}

fn hmac(secret: &str, body: &[u8]) -> String {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else {
        return String::new();
    };
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// A random id in the form of RFC 9562.
fn uuid() -> String {
    let id = hex::encode(rand::random::<[u8; 16]>());
    let cut = |from, to| id.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-4{}-a{}-{}",
        cut(0, 8),
        cut(8, 12),
        cut(13, 16),
        cut(17, 20),
        cut(20, 32)
    )
}
