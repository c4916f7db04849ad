//! Deliveries as hosts send them.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue};
use longshore_webhooks::{Delivery, Error, Event, Host, PullRequest, Push, receive};
use secrecy::SecretString;
use sha2::Sha256;

/// A secret that every scheme can use.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub const ID: &str = "72d3162e-cc78-11e3-81ab-4c9367dc0958";

pub fn secrets(texts: &[&str]) -> Vec<SecretString> {
    texts.iter().map(|text| SecretString::from(*text)).collect()
}

pub fn hmac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    let mac = parts.iter().fold(mac, Mac::chain_update);
    mac.finalize().into_bytes().to_vec()
}

/// The HMAC of the body in hex.
pub fn digits(secret: &str, body: &[u8]) -> String {
    hex::encode(hmac(secret.as_bytes(), &[body]))
}

/// The same with the usual prefix.
pub fn sign(secret: &str, body: &[u8]) -> String {
    format!("sha256={}", digits(secret, body))
}

/// `v1,…` of the Standard Webhooks specification.
pub fn sign_standard(secret: &str, id: &str, timestamp: &str, body: &[u8]) -> String {
    let key = BASE64
        .decode(secret.strip_prefix("whsec_").unwrap())
        .unwrap();
    let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    format!("v1,{}", BASE64.encode(hmac(&key, &parts)))
}

pub fn headers<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> HeaderMap {
    pairs
        .into_iter()
        .map(|(name, value)| {
            (
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            )
        })
        .collect()
}

/// The headers that a host sends with an event, signed with `secret`.
pub fn signed(host: Host, event: &str, secret: &str, body: &[u8]) -> HeaderMap {
    let (digits, sha256) = (digits(secret, body), sign(secret, body));
    let gogs = [("x-gogs-event", event), ("x-gogs-delivery", ID)];
    let github = [
        ("x-github-event", event),
        ("x-github-delivery", ID),
        ("x-hub-signature-256", &sha256),
    ];
    let gitea = [
        ("x-gitea-event", event),
        ("x-gitea-delivery", ID),
        ("x-gitea-signature", &digits),
    ];
    let forgejo = [
        ("x-forgejo-event", event),
        ("x-forgejo-delivery", ID),
        ("x-forgejo-signature", &digits),
    ];
    let own: Vec<(&str, &str)> = match host {
        Host::GitHub => github.into(),
        Host::Gitea => [&gogs[..], &github, &gitea].concat(),
        Host::Forgejo => [&gogs[..], &github, &gitea, &forgejo].concat(),
        Host::GitLab => vec![
            ("x-gitlab-event", event),
            ("x-gitlab-event-uuid", ID),
            ("x-gitlab-instance", "https://gitlab.example"),
            ("x-gitlab-token", secret),
        ],
        Host::BitbucketCloud => vec![
            ("x-event-key", event),
            ("x-hook-uuid", "{5f1e2d3c}"),
            ("x-request-uuid", ID),
            ("x-attempt-number", "1"),
            ("x-hub-signature", &sha256),
        ],
        Host::BitbucketDataCenter => vec![
            ("x-event-key", event),
            ("x-request-id", ID),
            ("x-hub-signature", &sha256),
        ],
        Host::Generic => vec![
            ("x-longshore-signature", &sha256),
            ("x-longshore-delivery", ID),
        ],
    };
    let mut headers = headers(own);
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    headers
}

/// A push of each host.
pub const PUSHES: [(Host, &str, &[u8]); 7] = [
    (Host::GitHub, "push", include_bytes!("../github/push.json")),
    (
        Host::GitLab,
        "Push Hook",
        include_bytes!("../gitlab/push.json"),
    ),
    (Host::Gitea, "push", include_bytes!("../gitea/push.json")),
    (
        Host::Forgejo,
        "push",
        include_bytes!("../forgejo/push.json"),
    ),
    (
        Host::BitbucketCloud,
        "repo:push",
        include_bytes!("../bitbucket_cloud/push.json"),
    ),
    (
        Host::BitbucketDataCenter,
        "repo:refs_changed",
        include_bytes!("../bitbucket_data_center/push.json"),
    ),
    (Host::Generic, "", b"{\"ref\": \"refs/heads/main\"}"),
];

/// Delivers a signed event.
pub fn deliver(host: Host, event: &str, body: &[u8]) -> Result<Delivery, Error> {
    let delivery = receive(
        &signed(host, event, SECRET, body),
        body,
        &secrets(&[SECRET]),
    )?;
    assert_eq!((delivery.host, &*delivery.id), (host, ID));
    Ok(delivery)
}

pub fn push(host: Host, event: &str, body: &[u8]) -> Push {
    match deliver(host, event, body).unwrap().event {
        Event::Push(push) => push,
        other => panic!("{other:?}"),
    }
}

pub fn pull_request(host: Host, event: &str, body: &[u8]) -> PullRequest {
    match deliver(host, event, body).unwrap().event {
        Event::PullRequest(pull_request) => pull_request,
        other => panic!("{other:?}"),
    }
}

/// A body with one text replaced by another.
pub fn with(body: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(body).unwrap();
    assert!(text.contains(from), "{from}");
    text.replace(from, to).into_bytes()
}
