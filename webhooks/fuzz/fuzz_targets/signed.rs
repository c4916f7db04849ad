//! What whoever has the secret can send: the parsers of all hosts and events. Nothing may panic, and the same call
//! signed with another secret must not get in.
#![no_main]

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use longshore_webhooks::receive;
use secrecy::SecretString;
use sha2::Sha256;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER: &str = "whsec_c3RyYW5nZXJzIGhhdmUgbm8gc2VjcmV0IG9m";

/// `hP{…`: who sends, what, and the body. So the files in `seeds/signed` are bodies with two letters before them.
#[derive(Debug)]
struct Call<'a> {
    host: Host,
    event: Event<'a>,
    body: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
enum Host {
    GitHub,
    GitLab,
    GitLabSigning,
    Gitea,
    Forgejo,
    BitbucketCloud,
    BitbucketDataCenter,
    Generic,
}

#[derive(Debug)]
enum Event<'a> {
    Push,
    PullRequest,
    Delete,
    Other(&'a str),
}

impl<'a> Call<'a> {
    fn of(input: &'a [u8]) -> Option<Self> {
        let [host, event, body @ ..] = input else {
            return None;
        };
        let host = match host {
            b'h' => Host::GitHub,
            b'l' => Host::GitLab,
            b's' => Host::GitLabSigning,
            b'g' => Host::Gitea,
            b'f' => Host::Forgejo,
            b'b' => Host::BitbucketCloud,
            b'd' => Host::BitbucketDataCenter,
            b'x' => Host::Generic,
            _ => return None,
        };
        let event = match event {
            b'P' => Event::Push,
            b'R' => Event::PullRequest,
            b'D' => Event::Delete,
            b'N' => Event::Other(str::from_utf8(body.get(..8)?).ok()?),
            _ => return None,
        };
        Some(Self { host, event, body })
    }
}

impl Call<'_> {
    fn event(&self) -> &str {
        match (&self.event, self.host) {
            (Event::Other(name), _) => name,
            (Event::Delete, _) => "delete",
            (Event::Push, Host::GitLab | Host::GitLabSigning) => "Push Hook",
            (Event::PullRequest, Host::GitLab | Host::GitLabSigning) => "Merge Request Hook",
            (Event::Push, Host::BitbucketCloud) => "repo:push",
            (Event::PullRequest, Host::BitbucketCloud) => "pullrequest:created",
            (Event::Push, Host::BitbucketDataCenter) => "repo:refs_changed",
            (Event::PullRequest, Host::BitbucketDataCenter) => "pr:opened",
            (Event::Push, _) => "push",
            (Event::PullRequest, _) => "pull_request",
        }
    }

    fn headers(&self, secret: &str) -> HeaderMap {
        let digits = hex::encode(hmac(secret.as_bytes(), &[self.body]));
        let sha256 = format!("sha256={digits}");
        let (event, proof, value): (&[&str], _, _) = match self.host {
            Host::GitHub => (&["x-github-event"], "x-hub-signature-256", sha256),
            Host::GitLab => (&["x-gitlab-event"], "x-gitlab-token", secret.to_owned()),
            Host::GitLabSigning => {
                let key = BASE64.decode(&secret["whsec_".len()..]).unwrap();
                let mac = hmac(&key, &[b"1.2.", self.body]);
                let signature = format!("v1,{}", BASE64.encode(mac));
                (&["x-gitlab-event"], "webhook-signature", signature)
            }
            Host::Gitea => (
                &["x-gitea-event", "x-github-event"],
                "x-gitea-signature",
                digits,
            ),
            Host::Forgejo => (
                &["x-forgejo-event", "x-gitea-event"],
                "x-forgejo-signature",
                digits,
            ),
            Host::BitbucketCloud => (&["x-event-key", "x-hook-uuid"], "x-hub-signature", sha256),
            Host::BitbucketDataCenter => (&["x-event-key"], "x-hub-signature", sha256),
            Host::Generic => (&[], "x-longshore-signature", sha256),
        };
        let mut headers = HeaderMap::new();
        let mut insert = |name: &str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
            }
        };
        for name in event {
            insert(name, self.event());
        }
        if matches!(self.host, Host::GitLabSigning) {
            insert("webhook-id", "1");
            insert("webhook-timestamp", "2");
        }
        insert(proof, &value);
        headers
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    let mac = parts.iter().fold(mac, Mac::chain_update);
    mac.finalize().into_bytes().to_vec()
}

fuzz_target!(|input: &[u8]| {
    let Some(call) = Call::of(input) else {
        return;
    };
    let secrets = [SecretString::from("old"), SecretString::from(SECRET)];
    let verified = match receive(&call.headers(SECRET), call.body, &secrets) {
        Ok(_) => true,
        Err(error) => !error.is_unverified(),
    };
    // An event's name that no header can hold leaves the headers of nobody.
    let is_sendable = HeaderValue::from_str(call.event()).is_ok();
    assert!(verified || !is_sendable, "{call:?}");
    let error = receive(&call.headers(OTHER), call.body, &secrets).unwrap_err();
    assert!(error.is_unverified(), "{call:?}");
});
