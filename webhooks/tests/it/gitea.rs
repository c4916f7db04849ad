//! Gitea and Forgejo.

use longshore_webhooks::{Action, Error, Event, Host, gitea, receive};

use crate::sample::{self, SECRET, deliver, push, secrets, signed, with};

const PUSH: &[u8] = include_bytes!("../gitea/push.json");
const DELETE: &[u8] = include_bytes!("../gitea/delete.json");
const PULL_REQUEST: &[u8] = include_bytes!("../gitea/pull-request.json");
const FORGEJO_PUSH: &[u8] = include_bytes!("../forgejo/push.json");

#[test]
fn a_push() {
    for (host, body) in [(Host::Gitea, PUSH), (Host::Forgejo, FORGEJO_PUSH)] {
        let push = push(host, "push", body);
        assert_eq!(push.repository, "harbor/shops");
        assert_eq!(push.clone_urls.len(), 3);
        let moved = &push.refs[0];
        assert_eq!(moved.branch(), Some("main"));
        assert!(moved.before.is_some() && moved.after.is_some());
        assert!(!moved.deleted && !moved.forced);
    }
}

/// They push nothing when a branch is deleted.
#[test]
fn a_deleted_branch_or_tag() {
    let branch = &push(Host::Gitea, "delete", DELETE).refs[0];
    assert_eq!(branch.branch(), Some("longshore/enroll/store-0007"));
    assert!(branch.deleted);
    let body = with(DELETE, "\"branch\"", "\"tag\"");
    let tag = &push(Host::Forgejo, "delete", &body).refs[0];
    assert_eq!(tag.git_ref, "refs/tags/longshore/enroll/store-0007");
}

#[test]
fn a_pull_request_from_a_fork() {
    let request = sample::pull_request(Host::Gitea, "pull_request", PULL_REQUEST);
    assert_eq!((request.number, request.action), (7, Action::Updated));
    assert_eq!(request.head_branch, "opening-hours");
    assert_eq!(request.base_branch, "main");
    assert_eq!(request.url, "https://gitea.example/harbor/shops/pulls/7");
    assert!(request.is_from_fork);
    for (action, merged, expected) in [
        ("opened", "false", Action::Opened),
        ("closed", "true", Action::Merged),
        ("closed", "false", Action::Closed),
        ("reopened", "false", Action::Reopened),
        ("edited", "false", Action::Edited),
        ("label_updated", "false", Action::Other),
    ] {
        let body = with(PULL_REQUEST, "synchronized", action);
        let body = with(&body, "\"merged\": false", &format!("\"merged\": {merged}"));
        let request = sample::pull_request(Host::Forgejo, "pull_request", &body);
        assert_eq!(request.action, expected, "{action}");
    }
}

#[test]
fn what_nobody_asked_for() {
    let event = deliver(Host::Gitea, "issues", b"{}").unwrap().event;
    assert_eq!(event, Event::Ignored("issues".into()));
}

/// The own header is the one that counts, and a bad one is not rescued by a good one of another name.
#[test]
fn the_own_signature_counts() {
    for (host, names) in [
        (Host::Gitea, gitea::SIGNATURES),
        (Host::Forgejo, gitea::FORGEJO_SIGNATURES),
    ] {
        let all = signed(host, "push", SECRET, PUSH);
        for (at, name) in names.iter().enumerate() {
            // With the better ones gone, it is the one that counts.
            let mut headers = all.clone();
            for better in &names[..at] {
                headers.remove(*better);
            }
            assert!(receive(&headers, PUSH, &secrets(&[SECRET])).is_ok());
            for bad in ["", "00", "sha256="] {
                headers.insert(*name, bad.parse().unwrap());
                let error = receive(&headers, PUSH, &secrets(&[SECRET])).unwrap_err();
                assert!(
                    matches!(error, Error::BadSignature),
                    "{host} {name} `{bad}`"
                );
            }
        }
    }
}
