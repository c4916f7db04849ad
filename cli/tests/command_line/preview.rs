//! `longshore preview`, as people and programs see it.

use insta::assert_snapshot;
use longshore_protocol::{
    ObjectKey,
    api::preview::{Change, ChangeKind, Group, Preview, Problems},
};
use serde_json::{Value, json};

use crate::{
    controller::{Controller, answer},
    fixtures::{REVISION, fleet, list},
};

fn preview(problems: &[&str]) -> Preview {
    let object = ObjectKey {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        namespace: "kiosk".into(),
        name: "page".into(),
    };
    let diff = "--- base/v1/ConfigMap/kiosk/page\n+++ head/v1/ConfigMap/kiosk/page\n@@ -3,3 +3,3 @@\n data:\n-  greeting: hello\n+  greeting: good day\u{1b}[2J\n kind: ConfigMap\n";
    Preview {
        base: Some(REVISION.into()),
        head: Some("d0a1".repeat(10)),
        devices: 3,
        groups: vec![Group {
            devices: ["store-0001", "store-0002"]
                .map(|name| name.parse().unwrap())
                .into(),
            overlays: vec!["groups/kiosk".into()],
            unknown_before: false,
            changes: vec![Change {
                object,
                kind: ChangeKind::Changed,
                diff: diff.into(),
            }],
        }],
        problems: Problems {
            lines: problems.iter().map(|line| (*line).to_owned()).collect(),
            count: problems.len() as u64,
        },
        ..Preview::default()
    }
}

fn controller(preview: &Preview) -> Controller {
    Controller::start([
        answer("GET fleets", 200, &list([fleet("shops")])),
        answer("POST fleets/shops/previews", 200, preview),
    ])
}

#[test]
fn a_change_that_works() {
    let preview = preview(&[]);
    let controller = controller(&preview);
    let shown = controller.run("preview new-page").code(0);
    assert_snapshot!("preview", shown.stdout);
    shown
        .says("previewing `new-page` of the fleet `shops`")
        .says("d0a1d0a1d0a1: 2 devices change");
    assert_eq!(controller.last_change().body, json!({"branch": "new-page"}));

    let json = controller.run("preview new-page -o json").code(0);
    let value: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(value, serde_json::to_value(&preview).unwrap());
}

#[test]
fn a_change_that_brings_a_problem() {
    let problem = "groups/kiosk/kustomization.yaml:4: `page.yaml` does not exist";
    controller(&preview(&[problem]))
        .run("preview new-page")
        .code(1)
        .prints(&format!("problem: {problem}"))
        .says("d0a1d0a1d0a1 brings problems that were not there before: 1");
}

#[test]
fn a_branch_that_is_not_there() {
    let refused = json!({"status": 404, "detail": "the repo has no branch `nope`; push it first"});
    let controller = Controller::start([
        answer("GET fleets", 200, &list([fleet("shops")])),
        answer("POST fleets/shops/previews", 404, &refused),
    ]);
    controller
        .run("preview nope")
        .code(3)
        .says("the repo has no branch `nope`");
}
