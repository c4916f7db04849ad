//! GitHub's signatures and bodies, beyond those that it recorded itself.

use http::HeaderValue;
use longshore_webhooks::{Action, Error, Event, Host, error::InvalidBody, github};

use crate::sample::{self, SECRET, deliver, secrets, sign, signed, with};

const PUSH: &[u8] = include_bytes!("../github/push.json");
const PUSH_DELETED: &[u8] = include_bytes!("../github/push-deleted.json");
const PULL_REQUEST: &[u8] = include_bytes!("../github/pull-request.json");
const PING: &[u8] = include_bytes!("../github/ping.json");

/// The vector that GitHub publishes for implementers.
#[test]
fn published_signature() {
    let mut headers = signed(Host::GitHub, "star", "any", b"");
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    headers.insert(github::SIGNATURE, HeaderValue::from_static(signature));
    let secret = secrets(&["It's a Secret to Everybody"]);
    let delivery = github::receive(&headers, b"Hello, World!", &secret).unwrap();
    assert_eq!(delivery.event, Event::Ignored("star".into()));
    assert_eq!(delivery.id, sample::ID);
    let error = github::receive(&headers, b"Hello, World?", &secret).unwrap_err();
    assert!(matches!(error, Error::BadSignature));
}

#[test]
fn a_push() {
    let push = sample::push(Host::GitHub, "push", PUSH);
    assert_eq!(push.repository, "harbor/shops");
    assert_eq!(
        push.clone_urls,
        [
            "https://git.example/harbor/shops.git",
            "git@git.example:harbor/shops.git",
            "git://git.example/harbor/shops.git",
            "https://git.example/harbor/shops",
        ]
    );
    let [moved] = &push.refs[..] else {
        panic!("{push:?}");
    };
    assert_eq!(moved.branch(), Some("main"));
    let (before, after) = (moved.before.as_deref(), moved.after.as_deref());
    assert_eq!(before, Some("6113728f27ae82c7b1a177c8d03f9e96e0adf246"));
    assert_eq!(after, Some("76ae82c7b1a177c8d03f9e96e0adf2466113728f"));
    assert!(!moved.deleted && moved.forced);
}

#[test]
fn a_deleted_tag() {
    let push = sample::push(Host::GitHub, "push", PUSH_DELETED);
    let moved = &push.refs[0];
    assert!(moved.deleted);
    assert_eq!(moved.branch(), None);
    assert_eq!(moved.git_ref, "refs/tags/v1");
    assert_eq!(moved.after, None);
}

#[test]
fn a_pull_request_in_all_its_states() {
    let opened = sample::pull_request(Host::GitHub, "pull_request", PULL_REQUEST);
    assert_eq!(opened.number, 7);
    assert_eq!(opened.action, Action::Opened);
    assert_eq!(opened.head_branch, "longshore/enroll/store-0007");
    assert_eq!(
        opened.head_commit.as_deref(),
        Some("9c0ffee9c0ffee9c0ffee9c0ffee9c0ffee9c0ff")
    );
    assert_eq!(opened.base_branch, "main");
    assert_eq!(opened.url, "https://git.example/harbor/shops/pull/7");
    assert!(!opened.is_from_fork);
    for (action, merged, expected) in [
        ("synchronize", "false", Action::Updated),
        ("closed", "true", Action::Merged),
        ("closed", "false", Action::Closed),
        ("reopened", "false", Action::Reopened),
        ("edited", "false", Action::Edited),
        ("labeled", "false", Action::Other),
        // Merged long ago.
        ("labeled", "true", Action::Other),
    ] {
        let body = with(PULL_REQUEST, "\"opened\"", &format!("\"{action}\""));
        let body = with(&body, "\"merged\": false", &format!("\"merged\": {merged}"));
        let request = sample::pull_request(Host::GitHub, "pull_request", &body);
        assert_eq!(request.action, expected, "{action} {merged}");
    }
}

#[test]
fn a_fork_is_another_repo_or_one_that_is_gone() {
    let text = std::str::from_utf8(PULL_REQUEST).unwrap();
    let of_another = text.replacen("\"id\": 501", "\"id\": 502", 1);
    let repo =
        "{ \"id\": 501, \"name\": \"shops\", \"full_name\": \"harbor/shops\", \"fork\": false }";
    let of_none = text.replacen(repo, "null", 1);
    for body in [of_another, of_none] {
        let request = sample::pull_request(Host::GitHub, "pull_request", body.as_bytes());
        assert!(request.is_from_fork, "{body}");
    }
}

#[test]
fn a_ping_and_what_nobody_asked_for() {
    let event = |name, body| deliver(Host::GitHub, name, body).unwrap().event;
    assert_eq!(event("ping", PING), Event::Ping);
    assert_eq!(event("fork", b""), Event::Ignored("fork".into()));
}

#[test]
fn malformed_signatures() {
    let good = sign(SECRET, PUSH);
    let digits = good.strip_prefix("sha256=").unwrap();
    for bad in [
        "",
        "sha256",
        "sha256=",
        "sha256=zz",
        digits,
        &good[..good.len() - 2],
        &format!("{good}00"),
    ] {
        let mut headers = signed(Host::GitHub, "push", SECRET, PUSH);
        headers.insert(github::SIGNATURE, bad.parse().unwrap());
        let error = github::receive(&headers, PUSH, &secrets(&[SECRET])).unwrap_err();
        assert!(matches!(error, Error::BadSignature), "{bad}: {error}");
    }
}

#[test]
fn a_delivery_without_its_event() {
    let mut headers = signed(Host::GitHub, "push", SECRET, PUSH);
    headers.remove("x-github-event");
    let error = github::receive(&headers, PUSH, &secrets(&[SECRET])).unwrap_err();
    assert!(
        matches!(error, Error::BadHeader("x-github-event")),
        "{error}"
    );
}

#[test]
fn bad_bodies_say_where() {
    let text = std::str::from_utf8(PUSH).unwrap();
    let cases = [
        ("{}".to_owned(), "."),
        ("not JSON".to_owned(), "."),
        (format!("{text} and more"), "."),
        (text.replace("\"full_name\"", "\"name_full\""), "repository"),
        (
            text.replace("\"harbor/shops\"", "7"),
            "repository.full_name",
        ),
        (text.replace("refs/heads/main", "main"), "ref"),
        (
            text.replace("6113728f27ae82c7b1a177c8d03f9e96e0adf246", "HEAD"),
            "before",
        ),
        (
            text.replace("76ae82c7b1a177c8d03f9e96e0adf2466113728f", &"g".repeat(40)),
            "after",
        ),
    ];
    for (body, place) in cases {
        match deliver(Host::GitHub, "push", body.as_bytes()).unwrap_err() {
            Error::BadBody { event, at, .. } => {
                assert_eq!((event.as_str(), at.as_str()), ("push", place), "{body}");
            }
            other => panic!("{body}: {other}"),
        }
    }
}

#[test]
fn a_form_is_answered_with_what_to_change() {
    let body = b"payload=%7B%7D";
    let mut headers = signed(Host::GitHub, "push", SECRET, body);
    headers.insert(
        "content-type",
        "application/x-www-form-urlencoded".parse().unwrap(),
    );
    let error = github::receive(&headers, body, &secrets(&[SECRET])).unwrap_err();
    assert!(
        matches!(
            error,
            Error::BadBody {
                source: InvalidBody::Form,
                ..
            }
        ),
        "{error}"
    );
}
