//! What GitHub recorded of itself (`@octokit/webhooks-examples`), signed by the reference implementation
//! (`@octokit/webhooks-methods`).

use std::{path::Path, process::Command};

use longshore_webhooks::{Action, Event, Host, github, receive};
use serde::Deserialize;

use crate::sample::{ID, SECRET, headers, secrets};

/// A line of `sign-webhooks.mjs`.
#[derive(Deserialize)]
struct Recorded {
    source: String,
    event: String,
    action: Option<String>,
    body: String,
    signature: String,
}

fn recorded() -> Vec<Recorded> {
    let npm = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/npm");
    let output = Command::new("node")
        .arg(npm.join("sign-webhooks.mjs"))
        .arg(SECRET)
        .output()
        .expect("`scripts/bootstrap test` installs node");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "`scripts/bootstrap test` installs the npm packages: {errors}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn every_recorded_payload_is_understood() {
    let recorded = recorded();
    for name in ["push", "pull_request", "ping"] {
        let of_github = recorded
            .iter()
            .filter(|it| it.source == "api.github.com" && it.event == name);
        let least = match name {
            "push" => 7,
            "pull_request" => 29,
            _ => 4,
        };
        assert!(of_github.count() >= least, "{name}");
    }
    for it in &recorded {
        let what = format!("{} {} {:?}", it.source, it.event, it.action);
        let headers = headers([
            ("content-type", "application/json"),
            (github::EVENT, &*it.event),
            (github::DELIVERY, ID),
            (github::SIGNATURE, &*it.signature),
        ]);
        let body = it.body.as_bytes();
        let delivery = receive(&headers, body, &secrets(&["old", SECRET]))
            .unwrap_or_else(|error| panic!("{what}: {error} {error:?}"));
        assert_eq!(delivery.host, Host::GitHub);
        check(&what, &it.body, it.action.as_deref(), &delivery.event);
        assert!(
            receive(&headers, body, &secrets(&["old"])).is_err(),
            "{what}"
        );
        let changed = it.body.replacen('{', "{ ", 1);
        assert!(
            receive(&headers, changed.as_bytes(), &secrets(&[SECRET])).is_err(),
            "{what}"
        );
    }
}

/// Compares what was understood with what the body says.
fn check(what: &str, body: &str, action: Option<&str>, event: &Event) {
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    match event {
        Event::Push(push) => {
            let [moved] = &push.refs[..] else {
                panic!("{what}: {push:?}");
            };
            assert_eq!(moved.git_ref, body["ref"], "{what}");
            assert_eq!(moved.deleted, body["deleted"], "{what}");
            assert_eq!(moved.before.is_none(), body["created"], "{what}");
            assert_eq!(push.repository, body["repository"]["full_name"], "{what}");
        }
        Event::PullRequest(request) => {
            let described = &body["pull_request"];
            assert_eq!(request.number, described["number"], "{what}");
            assert_eq!(request.url, described["html_url"], "{what}");
            assert_eq!(request.head_branch, described["head"]["ref"], "{what}");
            assert_eq!(
                request.head_commit.as_deref(),
                described["head"]["sha"].as_str(),
                "{what}"
            );
            assert_eq!(request.base_branch, described["base"]["ref"], "{what}");
            let expected = match action {
                Some("opened") => Action::Opened,
                Some("synchronize") => Action::Updated,
                Some("closed") if described["merged"] == true => Action::Merged,
                Some("closed") => Action::Closed,
                Some("reopened") => Action::Reopened,
                Some("edited") => Action::Edited,
                _ => Action::Other,
            };
            assert_eq!(request.action, expected, "{what}");
        }
        Event::Ping => assert!(body["zen"].is_string(), "{what}"),
        Event::Ignored(name) => panic!("{what}: {name}"),
    }
}
