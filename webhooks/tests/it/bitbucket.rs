//! Bitbucket Cloud and Bitbucket Data Center.

use longshore_webhooks::{Action, Error, Event, Host, receive};

use crate::sample::{self, SECRET, deliver, push, secrets, signed, with};

/// A host, the body of a pull request there, and what its events mean.
type States<'a> = (Host, &'a [u8], &'a [(&'a str, Action)]);

const CLOUD_PUSH: &[u8] = include_bytes!("../bitbucket_cloud/push.json");
const CLOUD_PULL_REQUEST: &[u8] = include_bytes!("../bitbucket_cloud/pull-request.json");
const CENTER_PUSH: &[u8] = include_bytes!("../bitbucket_data_center/push.json");
const CENTER_PULL_REQUEST: &[u8] = include_bytes!("../bitbucket_data_center/pull-request.json");

#[test]
fn a_push_to_the_cloud_moves_several_refs() {
    let push = push(Host::BitbucketCloud, "repo:push", CLOUD_PUSH);
    assert_eq!(push.repository, "harbor/shops");
    assert_eq!(push.clone_urls, ["https://bitbucket.org/harbor/shops"]);
    let [main, tag] = &push.refs[..] else {
        panic!("{push:?}");
    };
    assert_eq!(main.branch(), Some("main"));
    assert!(main.forced && !main.deleted);
    assert_eq!(
        main.after.as_deref(),
        Some("ba5eba11ba5eba11ba5eba11ba5eba11ba5eba11")
    );
    assert_eq!(tag.git_ref, "refs/tags/v1");
    assert!(tag.deleted && tag.before.is_some() && tag.after.is_none());
}

#[test]
fn a_push_to_the_data_center_moves_several_refs() {
    let push = push(Host::BitbucketDataCenter, "repo:refs_changed", CENTER_PUSH);
    assert_eq!(push.repository, "HARBOR/shops");
    assert_eq!(push.clone_urls.len(), 3);
    let [main, old] = &push.refs[..] else {
        panic!("{push:?}");
    };
    assert_eq!((main.branch(), main.deleted), (Some("main"), false));
    assert_eq!((old.branch(), old.deleted), (Some("old"), true));
}

#[test]
fn pull_requests_in_all_their_states() {
    let states: [States<'_>; 2] = [
        (
            Host::BitbucketCloud,
            CLOUD_PULL_REQUEST,
            &[
                ("pullrequest:created", Action::Opened),
                ("pullrequest:updated", Action::Updated),
                ("pullrequest:fulfilled", Action::Merged),
                ("pullrequest:rejected", Action::Closed),
                ("pullrequest:comment_created", Action::Other),
            ],
        ),
        (
            Host::BitbucketDataCenter,
            CENTER_PULL_REQUEST,
            &[
                ("pr:opened", Action::Opened),
                ("pr:from_ref_updated", Action::Updated),
                ("pr:merged", Action::Merged),
                ("pr:declined", Action::Closed),
                ("pr:deleted", Action::Closed),
                ("pr:modified", Action::Edited),
                ("pr:reviewer:approved", Action::Other),
            ],
        ),
    ];
    for (host, body, events) in states {
        for (event, action) in events {
            let request = sample::pull_request(host, event, body);
            assert_eq!((request.number, request.action), (7, *action), "{event}");
            assert_eq!(request.head_branch, "longshore/enroll/store-0007");
            assert_eq!(request.base_branch, "main");
            assert!(request.url.ends_with("/pull-requests/7"), "{request:?}");
            assert!(!request.is_from_fork);
        }
    }
}

#[test]
fn a_fork_is_another_repo_or_one_that_is_gone() {
    let text = std::str::from_utf8(CLOUD_PULL_REQUEST).unwrap();
    let other = text.replacen("{c3a1f0aa", "{d4b2", 1);
    assert!(
        sample::pull_request(
            Host::BitbucketCloud,
            "pullrequest:created",
            other.as_bytes()
        )
        .is_from_fork
    );
    let start = text.find("\"repository\": {").unwrap();
    let end = start + text[start..].find('}').unwrap();
    let end = end + text[end + 1..].find('}').unwrap() + 2;
    let gone = format!("{}\"repository\": null{}", &text[..start], &text[end..]);
    assert!(
        sample::pull_request(Host::BitbucketCloud, "pullrequest:created", gone.as_bytes())
            .is_from_fork
    );
    let text = std::str::from_utf8(CENTER_PULL_REQUEST).unwrap();
    let other = text.replacen("\"id\": 84", "\"id\": 85", 1);
    assert!(
        sample::pull_request(Host::BitbucketDataCenter, "pr:opened", other.as_bytes()).is_from_fork
    );
}

#[test]
fn a_ping_and_what_nobody_asked_for() {
    let event = |host, name| deliver(host, name, b"{\"test\": true}").unwrap().event;
    let ping = event(Host::BitbucketDataCenter, "diagnostics:ping");
    assert_eq!(ping, Event::Ping);
    for host in [Host::BitbucketCloud, Host::BitbucketDataCenter] {
        let fork = event(host, "repo:fork");
        assert_eq!(fork, Event::Ignored("repo:fork".into()));
    }
}

/// The header `X-Hub-Signature` once meant SHA-1; here that is no signature.
#[test]
fn sha1_is_no_signature() {
    let mut headers = signed(Host::BitbucketCloud, "repo:push", SECRET, CLOUD_PUSH);
    let sha1 = "sha1=03a1a2b3c4d5e6f708192a3b4c5d6e7f80912233";
    headers.insert("x-hub-signature", sha1.parse().unwrap());
    let error = receive(&headers, CLOUD_PUSH, &secrets(&[SECRET])).unwrap_err();
    assert!(matches!(error, Error::BadSignature), "{error}");
}

#[test]
fn bad_bodies_say_where() {
    let bad = with(CENTER_PUSH, "refs/heads/old", "old");
    match deliver(Host::BitbucketDataCenter, "repo:refs_changed", &bad).unwrap_err() {
        Error::BadBody { at, .. } => assert_eq!(at, "changes.refId"),
        other => panic!("{other}"),
    }
    let bad = with(CLOUD_PUSH, "\"target\"", "\"aim\"");
    match deliver(Host::BitbucketCloud, "repo:push", &bad).unwrap_err() {
        Error::BadBody { at, .. } => assert_eq!(at, "push.changes[0].new"),
        other => panic!("{other}"),
    }
}
