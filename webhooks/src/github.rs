//! GitHub, GitHub Enterprise Server, and hosts that speak its webhooks (Gitea and Forgejo sign the same way).
//!
//! Rules: <https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries> for signatures,
//! <https://docs.github.com/en/webhooks/webhook-events-and-payloads#push> for bodies.

use http::{HeaderMap, header::CONTENT_TYPE};
use secrecy::SecretString;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{Delivery, Error, Event, Push, error::InvalidBody, signature};

/// The header with the signature: `sha256=` and 64 hex digits.
pub const SIGNATURE: &str = "x-hub-signature-256";
/// The header with the event's name.
pub const EVENT: &str = "x-github-event";
/// The header with the delivery's id.
pub const DELIVERY: &str = "x-github-delivery";

const ID_LIMIT: usize = 100;

/// Verifies and parses one delivery.
///
/// `secrets` are all that are in force: while a secret is being replaced, the old and the new one. `body` is
/// the body as it came, byte for byte.
///
/// # Errors
/// Where the delivery is not signed with one of the secrets, or is not a delivery of GitHub's.
pub fn receive(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[SecretString],
) -> Result<Delivery, Error> {
    verify(headers, body, secrets)?;
    let event = match text(headers, EVENT)? {
        "push" => Event::Push(push(headers, body)?),
        "ping" => Event::Ping,
        other => Event::Ignored(other.chars().take(ID_LIMIT).collect()),
    };
    let id = text(headers, DELIVERY).unwrap_or_default();
    Ok(Delivery {
        id: id.chars().take(ID_LIMIT).collect(),
        event,
    })
}

/// Checks the signature, and nothing else.
fn verify(headers: &HeaderMap, body: &[u8], secrets: &[SecretString]) -> Result<(), Error> {
    let header = headers
        .get(SIGNATURE)
        .ok_or(Error::MissingSignature("X-Hub-Signature-256"))?;
    let mut signature = [0; 32];
    let digits = header
        .as_bytes()
        .strip_prefix(b"sha256=")
        .ok_or(Error::BadSignature)?;
    hex::decode_to_slice(digits, &mut signature).map_err(|_detail| Error::BadSignature)?;
    if signature::holds(secrets, body, &signature) {
        Ok(())
    } else {
        Err(Error::BadSignature)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, Error> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .ok_or(Error::BadHeader(name))
}

/// The members of a `push` body that matter here.
#[derive(Deserialize)]
struct PushBody {
    #[serde(rename = "ref")]
    git_ref: String,
    before: String,
    after: String,
    // GitHub always sends both; Gitea and Forgejo send neither.
    #[serde(default)]
    deleted: bool,
    #[serde(default)]
    forced: bool,
    repository: Repository,
}

#[derive(Deserialize)]
struct Repository {
    full_name: String,
    clone_url: Option<String>,
    ssh_url: Option<String>,
    git_url: Option<String>,
    html_url: Option<String>,
}

fn push(headers: &HeaderMap, body: &[u8]) -> Result<Push, Error> {
    let bad = |at: &str, source| Error::BadBody {
        event: "push".into(),
        at: at.into(),
        source,
    };
    if is_form(headers) {
        return Err(bad(".", InvalidBody::Form));
    }
    let PushBody {
        git_ref,
        before,
        after,
        deleted,
        forced,
        repository,
    } = json(body).map_err(|(at, source)| bad(&at, source))?;
    if !git_ref.starts_with("refs/") {
        return Err(bad("ref", InvalidBody::Ref));
    }
    for (at, commit) in [("before", &before), ("after", &after)] {
        if !is_commit(commit) {
            return Err(bad(at, InvalidBody::Commit));
        }
    }
    let Repository {
        full_name,
        clone_url,
        ssh_url,
        git_url,
        html_url,
    } = repository;
    Ok(Push {
        repository: full_name,
        clone_urls: [clone_url, ssh_url, git_url, html_url]
            .into_iter()
            .flatten()
            .collect(),
        deleted: deleted || after.bytes().all(|digit| digit == b'0'),
        git_ref,
        before,
        after,
        forced,
    })
}

fn is_form(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| {
        kind.as_bytes()
            .starts_with(b"application/x-www-form-urlencoded")
    })
}

/// 40 hex digits (SHA-1 repos) or 64 (SHA-256 repos).
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The body as `T`, or the path of what is wrong in it.
fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, (String, InvalidBody)> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut reader)
        .map_err(|error| (error.path().to_string(), error.into_inner().into()))?;
    reader
        .end()
        .map_err(|error| (".".to_owned(), error.into()))?;
    Ok(value)
}
