//! Fleet repos: the template, and what a working tree gives a device.

use std::{fs, path::Path, process::Command};

use insta::assert_snapshot;
use longshore_protocol::{
    Digest, Generation, ManifestSet, Object,
    api::{DeviceManifests, DeviceObject, Fleet, List},
};
use serde_json::{Value, json};

use crate::{
    controller::{Controller, answer},
    harness::{Outcome, Place},
};

fn git(directory: &Path, words: &[&str]) -> String {
    let output = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn init_commits_the_template() {
    let place = Place::new();
    let outcome = place
        .run("init fleet")
        .code(0)
        .says("longshore render example-0001");
    let fleet = place.path().canonicalize().unwrap().join("fleet");
    assert_eq!(outcome.stdout, format!("{}\n", fleet.display()));
    assert_eq!(git(&fleet, &["branch", "--show-current"]), "main");
    assert_eq!(git(&fleet, &["status", "--porcelain"]), "");
    assert_eq!(git(&fleet, &["rev-list", "--count", "HEAD"]), "1");
    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fleet-repo-template");
    let files = git(&fleet, &["ls-files"]);
    assert!(files.lines().count() > 10);
    for file in files.lines() {
        assert_eq!(
            fs::read(fleet.join(file)).unwrap(),
            fs::read(template.join(file)).unwrap(),
            "{file}"
        );
    }
}

#[test]
fn init_uses_the_authors_name_and_ignores_a_surrounding_git() {
    let place = Place::new();
    place.write(
        "home/.gitconfig",
        "[user]\nname = Ada\nemail = ada@git.example\n",
    );
    let mut command = place.command(["init", "fleet", "-o", "json"]);
    let outcome = Outcome::of(command.env("GIT_DIR", place.path().join("nowhere"))).code(0);
    let fleet = place.path().join("fleet");
    assert_eq!(git(&fleet, &["log", "-1", "--format=%an"]), "Ada");
    assert_eq!(
        outcome.json()["commit"],
        git(&fleet, &["rev-parse", "HEAD"])
    );
}

#[test]
fn init_refuses_what_is_not_empty() {
    let place = Place::new();
    place.write("full/file", "");
    place
        .run("init full")
        .code(2)
        .says("is not empty")
        .says("hint: ");
    place.run("init full/file").code(2);
    fs::create_dir(place.path().join("empty")).unwrap();
    place.run("init empty").code(0);
    place.run("init empty").code(2);
}

/// The template cannot rot: every device of it renders, with the real renderer, to exactly this.
#[test]
fn every_device_of_the_template_renders() {
    let place = Place::new();
    let fleet = place.fleet();
    let mut devices = Vec::new();
    for entry in fs::read_dir(fleet.join("devices")).unwrap() {
        devices.push(entry.unwrap().file_name().into_string().unwrap());
    }
    devices.sort();
    assert_eq!(devices, ["example-0001", "example-0002"]);
    for device in devices {
        let rendered = place.run(&format!("render {device} --repo fleet")).code(0);
        assert_eq!(rendered.stderr, "", "no warnings");
        assert!(!rendered.stdout.contains("${"), "{}", rendered.stdout);
        assert_snapshot!(format!("render-{device}"), rendered.stdout);
    }
}

/// kustomize itself has nothing to complain about either, overlay by overlay.
#[test]
fn the_template_builds_without_warnings() {
    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fleet-repo-template");
    for overlay in [
        "base",
        "groups/kiosk",
        "groups/gateway",
        "devices/example-0002",
    ] {
        let output = Command::new("kustomize")
            .arg("build")
            .arg(template.join(overlay))
            .output();
        let output = output.or_else(|_absent| {
            Command::new("kubectl")
                .arg("kustomize")
                .arg(template.join(overlay))
                .output()
        });
        let output = output.unwrap();
        assert!(output.status.success(), "{overlay}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{overlay}");
    }
}

#[test]
fn render_finds_the_fleet_from_within() {
    let place = Place::new();
    let fleet = place.fleet();
    let mut command = place.command(["render", "example-0002", "-o", "json"]);
    let outcome = Outcome::of(command.current_dir(fleet.join("devices/example-0002"))).code(0);
    let list = outcome.json();
    assert_eq!(list["kind"], "List");
    assert_eq!(list["items"].as_array().unwrap().len(), 4);
    place
        .run("render example-0002")
        .code(2)
        .says("no fleet repo")
        .says("--repo DIR");
}

#[test]
fn render_says_what_is_wrong() {
    let place = Place::new();
    let fleet = place.fleet();
    let render = |device: &str| place.run(&format!("render {device} --repo fleet"));
    render("store-0404")
        .code(2)
        .says("no device `store-0404`")
        .says("example-0001, example-0002");
    edit(
        &fleet.join("devices/example-0001/device.yaml"),
        "overlay:",
        "overly:",
    );
    render("example-0001")
        .code(2)
        .says("devices/example-0001/device.yaml:12: ")
        .says("overly");
    render("example-0002").code(0);
    edit(
        &fleet.join("base/configmap.yaml"),
        "${DEVICE_NAME}",
        "${NOBODY_SET_IT}",
    );
    render("example-0002")
        .code(2)
        .says("NOBODY_SET_IT")
        .says("example-0002");
    edit(
        &fleet.join("devices/example-0002/kustomization.yaml"),
        "../../groups/gateway",
        "../../../..",
    );
    render("example-0002")
        .code(2)
        .says("devices/example-0002/kustomization.yaml:6: ");
    fs::write(fleet.join("fleet.yaml"), "kind: Fleet\n").unwrap();
    render("example-0002").code(2).says("fleet.yaml:1: ");
    place
        .run("render example-0002 --repo missing")
        .code(2)
        .says("there is no directory missing");
}

/// A device whose overlay holds a Secret.
fn with_secret(fleet: &Path) {
    let kustomization = fleet.join("devices/example-0002/kustomization.yaml");
    let mut text = fs::read_to_string(&kustomization).unwrap();
    text.push_str("secretGenerator:\n  - name: till\n    literals: [password=hunter2]\n");
    fs::write(&kustomization, text).unwrap();
}

/// `hunter2` in base64.
const HIDDEN: &str = "aHVudGVyMg==";

#[test]
fn secrets_show_only_when_asked_for() {
    let place = Place::new();
    with_secret(&place.fleet());
    for format in ["", " -o json", " -o yaml"] {
        let line = format!("render example-0002 --repo fleet{format}");
        place
            .run(&line)
            .code(0)
            .prints("redacted")
            .hides(HIDDEN)
            .hides("hunter2");
        place
            .run(&format!("{line} --show-secrets"))
            .code(0)
            .prints(HIDDEN);
    }
}

/// A controller that gives example-0002 what the working tree at `place` gives it now.
fn controller_of(place: &Place) -> Controller {
    let rendered = place
        .run("render example-0002 --repo fleet -o json --show-secrets")
        .code(0)
        .json();
    let objects: Vec<Object> = rendered["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|value| Object::from_value(value).unwrap())
        .collect();
    let manifests = DeviceManifests {
        generation: Generation::from(7),
        digest: ManifestSet::of(&objects).unwrap().digest(),
        revision: "76ae82c7b1a177c8d03f9e96e0adf2466113728f".into(),
        objects: objects
            .iter()
            .map(|object| DeviceObject {
                key: object.key().clone(),
                digest: object.digest(),
                object: object.redacted(),
            })
            .collect(),
    };
    Controller::start([
        answer(
            "GET fleets/shops/devices/example-0002/manifests",
            200,
            &manifests,
        ),
        answer("GET fleets", 200, &List::<Fleet> { items: Vec::new() }),
    ])
}

#[test]
fn diff_shows_what_a_commit_would_change() {
    let place = Place::new();
    let fleet = place.fleet();
    with_secret(&fleet);
    let controller = controller_of(&place);
    let repo = fleet.display().to_string();
    let line = format!("diff example-0002 --fleet shops --repo {repo}");
    let same = controller
        .run(&line)
        .code(0)
        .says("nothing differs from generation 7");
    assert_eq!(same.stdout, "");

    let kustomization = fleet.join("devices/example-0002/kustomization.yaml");
    edit(&kustomization, "64Mi", "96Mi");
    edit(&kustomization, "hunter2", "hunter3");
    let differs = controller
        .run(&line)
        .code(1)
        .says("3 objects differ from generation 7 of example-0002");
    let differs = differs
        .prints("--- running/apps/v1/Deployment/hello/hello\n+++ working-tree/apps/v1/Deployment/hello/hello\n")
        .prints("\n-            memory: 64Mi\n+            memory: 96Mi\n")
        .prints("+++ /dev/null\n");
    differs.hides(HIDDEN).hides("aHVudGVyMw==").hides("hunter");

    let answer = controller.run(&format!("{line} -o json")).code(1).json();
    assert_eq!(answer["generation"], 7);
    let changes: Vec<_> = answer["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["change"])
        .collect();
    assert_eq!(
        changes,
        [&json!("changed"), &json!("removed"), &json!("added")]
    );
}

#[test]
fn diff_tells_failures_from_differences() {
    let place = Place::new();
    let fleet = place.fleet();
    let controller = controller_of(&place);
    let repo = fleet.display().to_string();
    controller
        .run(&format!("diff example-0001 --fleet shops --repo {repo}"))
        .code(3);
    controller
        .run(&format!("diff example-0002 --repo {repo}"))
        .code(2)
        .says("has no fleet");
    fs::write(
        fleet.join("base/kustomization.yaml"),
        "resources: [gone.yaml]\n",
    )
    .unwrap();
    controller
        .run(&format!("diff example-0002 --fleet shops --repo {repo}"))
        .code(2)
        .says("gone.yaml");
}

/// The contract's digest of what is printed is what the controller would send.
#[test]
fn json_of_render_is_canonical_content() {
    let place = Place::new();
    place.fleet();
    let list = place
        .run("render example-0001 --repo fleet -o json")
        .code(0)
        .json();
    let items: &Vec<Value> = list["items"].as_array().unwrap();
    let keys: Vec<String> = items
        .iter()
        .map(|item| Object::from_value(item).unwrap().key().to_string())
        .collect();
    let mut sorted = keys.clone();
    sorted.sort();
    assert_eq!(keys.len(), 3);
    assert_eq!(
        keys,
        [
            "apps/v1/Deployment/hello/hello",
            "v1/ConfigMap/hello/page",
            "v1/Namespace/hello"
        ]
    );
    assert_ne!(
        Object::from_value(&items[0]).unwrap().digest(),
        Digest::of(b"")
    );
}
