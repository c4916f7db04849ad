//! The contract with the program, with real shells.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use longshore_protocol::{DeviceId, Generation, Object, session::Holding};
use serde_json::{Value, json};

use super::{Command, CommandSettings};
use crate::runtime::{Owner, Runtime as _};

const LONG: Duration = Duration::from_secs(20);

/// A target directory with a program that notes its input and does as a file there says.
struct Target(tempfile::TempDir);

impl Target {
    fn new() -> Self {
        let target = Self(tempfile::tempdir().unwrap());
        target.then("exit 0");
        target
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What the program does once it has read everything.
    fn then(&self, what: &str) {
        let script = format!(
            "#!/bin/sh\ncd {}\ncat > input.new\nmv input.new input\ncp \"$LONGSHORE_REMOVALS\" removals\nenv > variables\n\
             echo \"$@\" >> runs\n{what}\n",
            self.0.path().display()
        );
        // In the place of one that may be running.
        std::fs::write(self.at("program.new"), script).unwrap();
        std::fs::set_permissions(self.at("program.new"), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(self.at("program.new"), self.at("program")).unwrap();
    }

    fn command(&self, interval: Option<Duration>, timeout: Duration) -> Command {
        let program = self.at("program").display().to_string();
        let settings = CommandSettings {
            line: vec![program, "-f".to_owned(), "-".to_owned()],
            timeout,
            interval,
            folder: self.at("state"),
        };
        let owner = Owner {
            id: DeviceId::from_random([1; 16]),
            name: "till".to_owned(),
        };
        Command::new(settings, owner)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(name)).unwrap_or_default()
    }

    fn runs(&self) -> usize {
        self.read("runs").lines().count()
    }
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "\u{85}\u{2028}: #"}})
}

fn set(generation: u64, objects: &[Value]) -> Arc<Holding> {
    let objects = objects
        .iter()
        .map(|value| Object::from_value(value).unwrap());
    Arc::new(Holding::new(Generation::from(generation), "c0ffee".into(), objects).unwrap())
}

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

fn removed(target: &Target) -> Vec<String> {
    let named = documents(&target.read("removals"));
    named
        .iter()
        .map(|it| it["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn the_program_gets_the_set_once() {
    let target = Target::new();
    let mut command = target.command(None, LONG);
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": "n"}});
    let hook = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "a"}});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}});
    let kind = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "a"}});
    let objects = [
        hook.clone(),
        deployment.clone(),
        map("m"),
        kind.clone(),
        namespace.clone(),
    ];
    let wanted = set(7, &objects);
    let changes = command.apply(wanted.clone()).await.unwrap();
    assert_eq!(changes.written.len(), 5);
    assert_eq!(
        documents(&target.read("input")),
        [namespace, kind, map("m"), deployment, hook]
    );
    assert_eq!(target.read("runs"), "-f -\n");
    assert_eq!(target.read("removals"), "");
    let variables = target.read("variables");
    for expected in [
        "LONGSHORE_GENERATION=7".to_owned(),
        "LONGSHORE_REVISION=c0ffee".to_owned(),
        format!("LONGSHORE_DIGEST={}", wanted.set().digest()),
        format!("LONGSHORE_DEVICE_ID={}", DeviceId::from_random([1; 16])),
        "LONGSHORE_DEVICE_NAME=till".to_owned(),
        format!(
            "LONGSHORE_REMOVALS={}",
            target.at("state/removals.yaml").display()
        ),
    ] {
        assert!(
            variables.lines().any(|line| line == expected),
            "{expected}: {variables}"
        );
    }
    // Neither does this life of the agent run it again, nor the next one.
    assert!(command.apply(wanted.clone()).await.unwrap().is_empty());
    assert!(
        target
            .command(None, LONG)
            .apply(wanted.clone())
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(target.runs(), 1);
    // Equal sets are equal bytes, whatever order they come in.
    let input = target.read("input");
    let mut turned = objects;
    turned.reverse();
    command.apply(set(8, &turned)).await.unwrap();
    assert_eq!((target.read("input"), target.runs()), (input, 2));
}

#[tokio::test]
async fn removals_are_told_until_the_program_succeeds() {
    let target = Target::new();
    let mut command = target.command(None, LONG);
    command.apply(set(1, &[map("a"), map("b")])).await.unwrap();
    target.then("echo one >&2; echo two >&2; exit 3");
    for _ in 0..2 {
        let error = command
            .apply(set(2, &[map("b"), map("c")]))
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "CommandFailed");
        assert!(
            error
                .explanation()
                .ends_with("program ended with exit code 3: one; two"),
            "{}",
            error.explanation()
        );
        assert_eq!(removed(&target), ["a"]);
    }
    // Nobody knows whether `c` came to be, so it is removed like `a`, by whichever life of the agent.
    let mut command = target.command(None, LONG);
    target.then("kill -9 $$");
    let error = command.apply(set(3, &[map("b")])).await.unwrap_err();
    assert!(
        error.explanation().contains("by a signal"),
        "{}",
        error.explanation()
    );
    assert_eq!(removed(&target), ["c", "a"]);
    target.then("exit 0");
    let changes = command.apply(set(3, &[map("b")])).await.unwrap();
    assert_eq!(changes.removed, ["v1/ConfigMap/a", "v1/ConfigMap/c"]);
    assert!(
        command
            .apply(set(4, &[map("b")]))
            .await
            .unwrap()
            .removed
            .is_empty()
    );
    assert_eq!(target.read("removals"), "");
    // What comes back is not removed, and what is to stay stays.
    let mut kept = map("kept");
    kept["metadata"]["annotations"] = json!({"longshore.dev/prune": "disabled"});
    command.apply(set(5, &[map("a"), kept])).await.unwrap();
    assert_eq!(removed(&target), ["b"]);
    command.apply(set(6, &[map("b")])).await.unwrap();
    assert_eq!(removed(&target), ["a"]);
}

#[tokio::test]
async fn a_program_that_hangs_is_killed() {
    let target = Target::new();
    target.then("sleep 1000");
    let mut command = target.command(None, Duration::from_secs(2));
    let error = command.apply(set(1, &[map("a")])).await.unwrap_err();
    assert!(
        error.explanation().contains("was killed after 2s"),
        "{}",
        error.explanation()
    );
    target.then("exit 0");
    command.apply(set(1, &[map("a")])).await.unwrap();
}

#[tokio::test]
async fn the_interval_runs_it_again_and_is_no_change() {
    let target = Target::new();
    let mut command = target.command(Some(Duration::ZERO), LONG);
    command.apply(set(1, &[map("a")])).await.unwrap();
    assert!(command.apply(set(1, &[map("a")])).await.unwrap().is_empty());
    assert_eq!(target.runs(), 2);
    let mut command = target.command(Some(Duration::from_hours(1)), LONG);
    command.apply(set(1, &[map("a")])).await.unwrap();
    command.apply(set(1, &[map("a")])).await.unwrap();
    assert_eq!(
        target.runs(),
        3,
        "once in each life, and not before the hour is over"
    );
}

#[tokio::test]
async fn a_decommissioned_device_hands_over_nothing_and_removes_all() {
    let target = Target::new();
    let mut command = target.command(None, LONG);
    assert!(command.clear().await.unwrap().is_empty());
    assert_eq!(target.runs(), 0);
    command.apply(set(1, &[map("a"), map("b")])).await.unwrap();
    target.then("exit 1");
    command.clear().await.unwrap_err();
    target.then("exit 0");
    let mut command = target.command(None, LONG);
    assert_eq!(
        command.clear().await.unwrap().removed,
        ["v1/ConfigMap/a", "v1/ConfigMap/b"]
    );
    assert_eq!(
        (target.read("input").as_str(), removed(&target)),
        ("", vec!["b".to_owned(), "a".to_owned()])
    );
    assert_eq!(std::fs::read_dir(target.at("state")).unwrap().count(), 0);
}

#[test]
fn a_damaged_inventory_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(super::inventory::FILE), "{").unwrap();
    let folder = crate::files::Folder::open(dir.path()).unwrap();
    let inventory = super::Inventory::read(&folder).unwrap();
    assert!(inventory.present.is_empty() && inventory.applied.is_none());
    assert!(Path::new(dir.path()).exists());
}
