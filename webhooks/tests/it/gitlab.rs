//! GitLab's two proofs, and its bodies.

use http::HeaderMap;
use longshore_webhooks::{Action, Error, Event, Host, gitlab, receive};

use crate::sample::{
    self, ID, SECRET, deliver, headers, push, secrets, sign_standard, signed, with,
};

const PUSH: &[u8] = include_bytes!("../gitlab/push.json");
const TAG_DELETED: &[u8] = include_bytes!("../gitlab/tag-push-deleted.json");
const MERGE_REQUEST: &[u8] = include_bytes!("../gitlab/merge-request.json");
const TIMESTAMP: &str = "1772354400";

/// A delivery of a webhook with a signing token.
fn signing(signature: &str) -> HeaderMap {
    headers([
        ("content-type", "application/json"),
        ("x-gitlab-event", "Push Hook"),
        ("x-gitlab-event-uuid", "another"),
        ("webhook-id", ID),
        ("webhook-timestamp", TIMESTAMP),
        ("webhook-signature", signature),
    ])
}

#[test]
fn a_push() {
    let push = push(Host::GitLab, "Push Hook", PUSH);
    assert_eq!(push.repository, "harbor/retail/shops");
    assert_eq!(
        push.clone_urls[0],
        "https://gitlab.example/harbor/retail/shops.git"
    );
    let moved = &push.refs[0];
    assert_eq!(moved.branch(), Some("main"));
    assert_eq!(
        moved.after.as_deref(),
        Some("decade0decade0decade0decade0decade0decad")
    );
    assert!(moved.before.is_some() && !moved.deleted);
}

#[test]
fn a_deleted_tag() {
    let push = push(Host::GitLab, "Tag Push Hook", TAG_DELETED);
    let moved = &push.refs[0];
    assert_eq!(moved.git_ref, "refs/tags/v1");
    assert!(moved.deleted && moved.after.is_none());
}

#[test]
fn a_merge_request_in_all_its_states() {
    let opened = sample::pull_request(Host::GitLab, "Merge Request Hook", MERGE_REQUEST);
    assert_eq!((opened.number, opened.action), (7, Action::Opened));
    assert_eq!(opened.head_branch, "longshore/enroll/store-0007");
    assert_eq!(opened.base_branch, "main");
    assert_eq!(
        opened.head_commit.as_deref(),
        Some("9c0ffee9c0ffee9c0ffee9c0ffee9c0ffee9c0ff")
    );
    assert!(opened.url.ends_with("/-/merge_requests/7"));
    assert!(!opened.is_from_fork);
    let old = ", \"oldrev\": \"0dd5eed0dd5eed0dd5eed0dd5eed0dd5eed0dd5e\"";
    for (action, more, expected) in [
        ("update", old, Action::Updated),
        ("update", "", Action::Edited),
        ("merge", "", Action::Merged),
        ("close", "", Action::Closed),
        ("reopen", "", Action::Reopened),
        ("approved", "", Action::Other),
    ] {
        let to = format!("\"action\": \"{action}\"{more}");
        let body = with(MERGE_REQUEST, "\"action\": \"open\"", &to);
        let request = sample::pull_request(Host::GitLab, "Merge Request Hook", &body);
        assert_eq!(request.action, expected, "{action}");
    }
    for source in ["16", "null"] {
        let to = format!("\"source_project_id\": {source}");
        let body = with(MERGE_REQUEST, "\"source_project_id\": 15", &to);
        assert!(sample::pull_request(Host::GitLab, "Merge Request Hook", &body).is_from_fork);
    }
}

#[test]
fn what_nobody_asked_for() {
    let event = deliver(Host::GitLab, "Pipeline Hook", b"{}").unwrap().event;
    assert_eq!(event, Event::Ignored("Pipeline Hook".into()));
}

#[test]
fn a_token_is_the_whole_secret_and_nothing_else() {
    for wrong in ["", "whsec_", &SECRET[1..], &format!("{SECRET} "), "other"] {
        let headers = signed(Host::GitLab, "Push Hook", wrong, PUSH);
        let error = receive(&headers, PUSH, &secrets(&[SECRET, ""])).unwrap_err();
        assert!(matches!(error, Error::BadSignature), "`{wrong}`: {error}");
    }
}

/// The vector that the Standard Webhooks specification's libraries are tested with.
#[test]
fn published_signature() {
    let headers = headers([
        ("x-gitlab-event", "Note Hook"),
        ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
        ("webhook-timestamp", "1614265330"),
        (
            "webhook-signature",
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
    ]);
    let body = b"{\"test\": 2432232314}";
    let delivery = receive(&headers, body, &secrets(&[SECRET])).unwrap();
    assert_eq!(delivery.id, "msg_p5jXN8AQM9LWM0D4loKWxJek");
    assert!(receive(&headers, b"{\"test\": 2432232315}", &secrets(&[SECRET])).is_err());
}

#[test]
fn one_of_several_signatures_is_enough() {
    let good = sign_standard(SECRET, ID, TIMESTAMP, PUSH);
    for signature in [
        good.clone(),
        format!("v1,AAAA {good}"),
        format!("v1a,AAAA {good} v2,zz"),
    ] {
        let delivery = receive(&signing(&signature), PUSH, &secrets(&["old", SECRET])).unwrap();
        assert_eq!(delivery.id, ID, "the signed id counts");
    }
}

#[test]
fn a_signature_covers_id_time_and_body() {
    let good = sign_standard(SECRET, ID, TIMESTAMP, PUSH);
    for (name, value) in [
        ("webhook-id", "another"),
        ("webhook-timestamp", "1772354401"),
        ("webhook-signature", "v1,"),
        ("webhook-signature", ""),
        ("webhook-signature", good.trim_start_matches("v1,")),
    ] {
        let mut headers = signing(&good);
        headers.insert(name, value.parse().unwrap());
        let error = receive(&headers, PUSH, &secrets(&[SECRET])).unwrap_err();
        assert!(matches!(error, Error::BadSignature), "{name}: {error}");
    }
    for missing in ["webhook-id", "webhook-timestamp"] {
        let mut headers = signing(&good);
        headers.remove(missing);
        let error = receive(&headers, PUSH, &secrets(&[SECRET])).unwrap_err();
        assert!(matches!(error, Error::MissingSignature(name) if name == missing));
    }
}

/// A bad signature is not rescued by a good token, and a secret that is no signing token signs nothing: not even
/// with the empty key that is left of it.
#[test]
fn nothing_weaker_than_the_signature_counts() {
    let mut headers = signing("v1,AAAA");
    headers.insert(gitlab::TOKEN, SECRET.parse().unwrap());
    let error = receive(&headers, PUSH, &secrets(&[SECRET])).unwrap_err();
    assert!(matches!(error, Error::BadSignature), "{error}");
    let by_empty_key = sign_standard("whsec_", ID, TIMESTAMP, PUSH);
    for secret in ["whsec_", "whsec_!", "plain", ""] {
        assert!(receive(&signing(&by_empty_key), PUSH, &secrets(&[secret])).is_err());
    }
}
