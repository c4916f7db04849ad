//! The directory's guarantees, against a real file system, with a fuse for crashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    sync::Arc,
};

use longshore_protocol::{DeviceId, Generation, Object, session::Holding};
use proptest::prelude::*;
use serde_json::json;

use super::{inventory, pass::Pass, removals};
use crate::{
    files::Folder,
    runtime::{ApplyError, Changes},
};

fn device() -> DeviceId {
    DeviceId::from_random([1; 16])
}

fn holding(generation: u64, objects: &BTreeMap<String, u8>) -> Holding {
    let objects = objects.iter().map(|(name, version)| {
        Object::from_value(&json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name}, "data": {"version": version.to_string()}}))
        .unwrap()
    });
    Holding::new(Generation::from(generation), "c0ffee".into(), objects).unwrap()
}

fn of(generation: u64, names: &[&str]) -> Holding {
    holding(
        generation,
        &names.iter().map(|name| ((*name).to_owned(), 0)).collect(),
    )
}

fn apply(path: &Path, holding: &Holding) -> Result<Changes, ApplyError> {
    Pass::new(&Folder::create(path)?, &device()).apply(holding)
}

/// All files but the inventory, which says when something was applied, not what.
fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != inventory::FILE)
        .map(|entry| {
            let content = std::fs::read(entry.path()).unwrap_or_default();
            (entry.file_name().into_string().unwrap(), content)
        })
        .collect()
}

/// What the directory would hold had nothing else ever been there.
fn fresh(holding: &Holding) -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    apply(dir.path(), holding).unwrap();
    files(dir.path())
}

/// What a reader that starts now would find listed.
fn listed(files: &BTreeMap<String, Vec<u8>>) -> BTreeSet<String> {
    let list = files.get("kustomization.yaml").cloned().unwrap_or_default();
    String::from_utf8(list)
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("- ").map(str::to_owned))
        .collect()
}

#[test]
fn applies_and_then_has_nothing_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifests.d");
    let first = apply(&path, &of(1, &["a", "b"])).unwrap();
    assert_eq!(
        first.written,
        [
            "v1.configmap.a.yaml",
            "v1.configmap.b.yaml",
            "kustomization.yaml"
        ]
    );
    assert!(apply(&path, &of(1, &["a", "b"])).unwrap().is_empty());
    let second = apply(&path, &of(2, &["b", "c"])).unwrap();
    assert_eq!(
        second.summary(),
        "wrote v1.configmap.c.yaml, kustomization.yaml; removed v1.configmap.a.yaml"
    );
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("v1.configmap.c.yaml")), 0o600);
    // An empty set leaves no kustomization, which kustomize would refuse.
    apply(&path, &of(3, &[])).unwrap();
    assert!(files(&path).is_empty());
}

#[test]
fn drift_of_every_kind_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let wanted = of(1, &["a", "b", "c", "d", "e"]);
    apply(path, &wanted).unwrap();
    let outside = dir.path().join("outside");
    std::fs::write(&outside, "mine").unwrap();
    std::fs::write(path.join("v1.configmap.a.yaml"), "edited").unwrap();
    std::fs::remove_file(path.join("v1.configmap.b.yaml")).unwrap();
    std::fs::remove_file(path.join("v1.configmap.c.yaml")).unwrap();
    symlink(&outside, path.join("v1.configmap.c.yaml")).unwrap();
    let readable = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(path.join("v1.configmap.d.yaml"), readable).unwrap();
    std::fs::write(path.join("kustomization.yaml"), "resources: [x.yaml]").unwrap();
    assert_eq!(apply(path, &wanted).unwrap().written.len(), 5);
    let mut expected = fresh(&wanted);
    expected.insert("outside".into(), b"mine".to_vec());
    assert_eq!(files(path), expected);
}

#[test]
fn a_lost_or_hostile_inventory_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in");
    apply(&path, &of(1, &["a", "b"])).unwrap();
    let outside = dir.path().join("outside.yaml");
    std::fs::write(&outside, "mine").unwrap();
    std::fs::copy(path.join("v1.configmap.a.yaml"), path.join("copy.yaml")).unwrap();
    for hostile in ["", r#"{"files": ["../outside.yaml", "/outside.yaml"]}"#] {
        std::fs::write(path.join(inventory::FILE), hostile).unwrap();
        apply(&path, &of(2, &["b"])).unwrap();
        assert!(outside.exists());
        // A copy of one of our files under another name is somebody else's.
        assert!(path.join("copy.yaml").exists());
    }
    assert!(!path.join("v1.configmap.a.yaml").exists());
}

#[test]
fn what_others_wrote_is_refused_or_left_alone() {
    for name in [
        "kustomization.yaml",
        "kustomization.yml",
        "Kustomization",
        "v1.configmap.a.yaml",
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), "resources: []").unwrap();
        let before = files(dir.path());
        let error = apply(dir.path(), &of(1, &["a"])).unwrap_err();
        assert_eq!(error.reason(), "ForeignFile");
        assert!(error.to_string().contains("move it away"), "{error}");
        assert_eq!(files(dir.path()), before);
        std::fs::remove_file(dir.path().join(name)).unwrap();
        apply(dir.path(), &of(1, &["a"])).unwrap();
    }
    // After an empty set nothing of ours is there, and a kustomization that comes then is not ours either.
    let dir = tempfile::tempdir().unwrap();
    apply(dir.path(), &of(1, &["a"])).unwrap();
    apply(dir.path(), &of(2, &[])).unwrap();
    std::fs::write(dir.path().join("kustomization.yaml"), "resources: []").unwrap();
    apply(dir.path(), &of(2, &[])).unwrap();
    apply(dir.path(), &of(3, &["a"])).unwrap_err();
    let folder = Folder::open(dir.path()).unwrap();
    Pass::new(&folder, &device()).clear().unwrap();
    assert!(dir.path().join("kustomization.yaml").exists());
}

#[test]
fn one_generation_is_never_applied_with_two_contents() {
    let dir = tempfile::tempdir().unwrap();
    apply(dir.path(), &of(7, &["a"])).unwrap();
    let error = apply(dir.path(), &of(7, &["b"])).unwrap_err();
    assert!(matches!(error, ApplyError::Conflict(_)), "{error}");
    assert_eq!(files(dir.path()), fresh(&of(7, &["a"])));
    // Another device, enrolled anew on the same machine, starts counting again.
    let folder = Folder::open(dir.path()).unwrap();
    Pass::new(&folder, &DeviceId::from_random([2; 16]))
        .apply(&of(7, &["b"]))
        .unwrap();
}

#[test]
fn clearing_leaves_what_is_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    apply(dir.path(), &of(1, &["a", "b"])).unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    Pass::new(&folder, &device()).clear().unwrap();
    assert_eq!(folder.names().unwrap(), ["notes.txt"]);
}

/// A folder for manifests, and the one beside it for what left.
struct MicroShift(tempfile::TempDir);

impl MicroShift {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn folder(&self) -> std::path::PathBuf {
        self.0.path().join("longshore")
    }

    fn removals(&self) -> std::path::PathBuf {
        removals::path(&self.folder()).unwrap()
    }

    fn apply(&self, holding: &Holding) -> Result<Changes, ApplyError> {
        self.apply_with(holding, None)
    }

    fn apply_with(&self, holding: &Holding, fuse: Option<usize>) -> Result<Changes, ApplyError> {
        let fuse = fuse.map(|fuse| Arc::new(fuse.into()));
        let mut folder = Folder::create(&self.folder())?;
        let mut removals = removals::open(&self.removals())?;
        folder.fuse.clone_from(&fuse);
        removals.fuse = fuse;
        Pass::new(&folder, &device())
            .naming(Some(&removals))
            .apply(holding)
    }

    /// The names of the objects that are named as having left, from what the listed files say.
    fn named(&self) -> BTreeSet<String> {
        let found = files(&self.removals());
        let listed = listed(&found);
        assert_eq!(
            listed.len(),
            found.len().saturating_sub(usize::from(!listed.is_empty()))
        );
        let name = |file: &String| {
            let text = String::from_utf8(found[file].clone()).unwrap();
            let value: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            value["metadata"]["name"].as_str().unwrap().to_owned()
        };
        listed.iter().map(name).collect()
    }
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn microshift_is_told_what_left_and_not_what_came_back() {
    let machine = MicroShift::new();
    machine.apply(&of(1, &["a", "b", "c"])).unwrap();
    assert_eq!(machine.named(), names([]));
    let changes = machine.apply(&of(2, &["b"])).unwrap();
    assert_eq!(machine.named(), names(["a", "c"]));
    assert!(
        changes
            .written
            .contains(&"delete/v1.configmap.a.yaml".to_owned()),
        "{changes:?}"
    );
    assert_eq!(
        machine.removals(),
        machine.0.path().join("delete/longshore")
    );
    assert!(machine.apply(&of(2, &["b"])).unwrap().is_empty());
    machine.apply(&of(3, &["a", "d"])).unwrap();
    assert_eq!(machine.named(), names(["b", "c"]));
    // No more is left of it than what names it.
    let left = std::fs::read_to_string(machine.removals().join("v1.configmap.b.yaml")).unwrap();
    assert!(
        left.contains("name: b") && !left.contains("version"),
        "{left}"
    );
    // What hands did there is undone, too.
    std::fs::remove_file(machine.removals().join("v1.configmap.b.yaml")).unwrap();
    machine.apply(&of(3, &["a", "d"])).unwrap();
    assert_eq!(machine.named(), names(["b", "c"]));

    // A decommissioned device names everything, and leaves that for MicroShift to read.
    let folder = Folder::open(&machine.folder()).unwrap();
    let removals = removals::open(&machine.removals()).unwrap();
    Pass::new(&folder, &device())
        .naming(Some(&removals))
        .clear()
        .unwrap();
    assert_eq!(machine.named(), names(["a", "b", "c", "d"]));
    assert!(files(&machine.folder()).is_empty());
    // And what another life brings back is not deleted again.
    machine.apply(&of(1, &["a"])).unwrap();
    assert_eq!(machine.named(), names(["b", "c", "d"]));
}

#[test]
fn what_left_is_known_without_an_inventory_and_from_before_there_was_this_layout() {
    let machine = MicroShift::new();
    apply(&machine.folder(), &of(1, &["a", "b", "c"])).unwrap();
    machine.apply(&of(1, &["a", "b", "c"])).unwrap();
    machine.apply(&of(2, &["b", "c"])).unwrap();
    std::fs::remove_file(machine.folder().join(inventory::FILE)).unwrap();
    machine.apply(&of(3, &["c"])).unwrap();
    assert_eq!(machine.named(), names(["a", "b"]));
}

#[test]
fn what_is_to_stay_is_not_named() {
    let machine = MicroShift::new();
    let kept = Object::from_value(&json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "kept", "annotations": {"longshore.dev/prune": "disabled"}}}))
    .unwrap();
    let kept = Holding::new(Generation::from(1), "c0ffee".into(), [kept]).unwrap();
    machine.apply(&kept).unwrap();
    machine.apply(&of(2, &["a"])).unwrap();
    assert_eq!(machine.named(), names([]));
    assert!(!machine.folder().join("v1.configmap.kept.yaml").exists());
}

fn set() -> impl Strategy<Value = BTreeMap<String, u8>> {
    proptest::collection::btree_map("[a-f]", 0_u8..3, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn killed_at_any_point_everything_that_left_is_named_and_nothing_else(
        sets in proptest::collection::vec((set(), 0_usize..120), 1..5),
        last in set(),
    ) {
        let machine = MicroShift::new();
        let (mut generation, mut seen, mut applied) = (0, BTreeSet::new(), BTreeSet::new());
        for (set, fuse) in sets {
            generation += 1;
            applied.extend(set.keys().cloned());
            drop(machine.apply_with(&holding(generation, &set), Some(fuse)));
            // What MicroShift would apply now.
            for file in listed(&files(&machine.folder())) {
                let name = file.strip_prefix("v1.configmap.").unwrap();
                seen.insert(name.strip_suffix(".yaml").unwrap().to_owned());
            }
        }
        machine.apply(&holding(generation + 1, &last)).unwrap();
        let target: BTreeSet<_> = last.keys().cloned().collect();
        let named = machine.named();
        prop_assert!(named.is_disjoint(&target), "{named:?} {target:?}");
        prop_assert!(seen.difference(&target).all(|name| named.contains(name)), "{seen:?} {named:?}");
        prop_assert!(named.is_subset(&applied));
        prop_assert_eq!(listed(&files(&machine.folder())).len(), target.len());
        prop_assert!(machine.apply(&holding(generation + 1, &last)).unwrap().is_empty());
    }

    #[test]
    fn from_any_state_killed_at_any_point_it_ends_in_exactly_the_target(
        sets in proptest::collection::vec((set(), 0_usize..60), 1..5),
        last in set(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("foreign.yaml"), "mine").unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let mut generation = 0;
        for (set, fuse) in sets {
            generation += 1;
            let mut folder = Folder::open(dir.path()).unwrap();
            folder.fuse = Some(Arc::new(fuse.into()));
            // Whether it got through or was killed, a reader finds whole files only.
            let outcome = Pass::new(&folder, &device()).apply(&holding(generation, &set));
            let now = files(dir.path());
            for name in listed(&now) {
                prop_assert!(now.contains_key(&name), "{} is listed and missing", name);
            }
            if outcome.is_ok() {
                prop_assert_eq!(listed(&now).len(), set.len());
            }
        }
        let target = holding(generation + 1, &last);
        apply(dir.path(), &target).unwrap();
        let mut expected = fresh(&target);
        expected.insert("foreign.yaml".into(), b"mine".to_vec());
        expected.insert("sub".into(), Vec::new());
        prop_assert_eq!(files(dir.path()), expected);
        prop_assert!(apply(dir.path(), &target).unwrap().is_empty());
    }
}
