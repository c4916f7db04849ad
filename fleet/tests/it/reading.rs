//! Reading fleets: what is accepted, and what each mistake says.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use longshore_fleet::{
    ContentId, EnrollmentSettings, Fleet, FleetError, Listed, Listing, MaxDecommission, Reader,
    RepoPath, Tree, TreeEntry, TreeError, WorkTree, device_yaml, tree::resolve,
};
use longshore_protocol::{DeviceId, DeviceName, Digest};
use proptest::prelude::*;

use crate::{Repo, device, path};

const SHARED: &str = "spec:\n  overlay: ../../groups/kiosk\n";

fn repo() -> Repo {
    Repo::new().write("groups/kiosk/kustomization.yaml", "resources: []\n")
}

fn read(repo: &Repo) -> Fleet {
    Reader::new().read(&repo.tree(), &RepoPath::root()).unwrap()
}

/// Devices `good` and `bad`: `good` must be there, and the problem of `bad` is returned.
fn problem(repo: Repo) -> String {
    let fleet = read(&repo.device("good", SHARED));
    let names: Vec<&str> = fleet.devices.keys().map(DeviceName::as_str).collect();
    assert_eq!(names, ["good"], "{:?}", fleet.problems);
    assert_eq!(fleet.problems.len(), 1, "{:?}", fleet.problems);
    fleet.problems[0].to_string()
}

#[test]
fn reads_devices_with_and_without_overlays_of_their_own() {
    let repo = repo()
        .device("a", SHARED)
        .device(
            "b",
            "  labels: {site: madrid}\nspec:\n  variables: {X: why}\n",
        )
        .write("devices/b/kustomization.yml", "")
        .write("devices/README.md", "People may write here.");
    let fleet = read(&repo);
    assert_eq!(fleet.problems, []);
    assert_eq!(fleet.settings.name.as_str(), "shops");
    assert_eq!(fleet.settings.max_decommission, MaxDecommission::Default);
    let a = &fleet.devices[&"a".parse::<DeviceName>().unwrap()];
    assert_eq!((a.overlay.as_str(), a.shared), ("groups/kiosk", true));
    let b = &fleet.devices[&"b".parse::<DeviceName>().unwrap()];
    assert_eq!((b.overlay.as_str(), b.shared), ("devices/b", false));
    assert_eq!(b.labels["site"], "madrid");
    assert_eq!(b.file.as_str(), "devices/b/device.yaml");
}

#[test]
fn a_fleet_may_stand_below_the_root() {
    let repo = repo()
        .write(
            "prod/fleet.yaml",
            fs::read(Repo::new().root().join("fleet.yaml")).unwrap(),
        )
        .write(
            "prod/devices/a/device.yaml",
            device("a", "spec:\n  overlay: ../../../groups/kiosk\n"),
        );
    let fleet = Reader::new().read(&repo.tree(), &path("prod")).unwrap();
    assert_eq!(fleet.problems, []);
    assert_eq!(
        fleet.devices[&"a".parse::<DeviceName>().unwrap()]
            .overlay
            .as_str(),
        "groups/kiosk"
    );
}

#[test]
fn a_fleet_needs_its_file() {
    let error = Reader::new()
        .read(&repo().tree(), &path("nowhere"))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no `nowhere/fleet.yaml`; a fleet repo needs one"
    );
    for (text, expected) in [
        ("a: [", "fleet.yaml:"),
        ("", "fleet.yaml: the file is empty"),
        (
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleeet\n",
            "fleet.yaml:2: `kind` must be `Fleet`",
        ),
        (
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: A}\n",
            "fleet.yaml:3: fleet name `A`",
        ),
        (
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: a}\nspec:\n  safty: {}\n",
            "fleet.yaml:5: unknown field `safty` in `spec`; did you mean `safety`?",
        ),
        (
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: a}\nspec:\n  safety: {maxDecommission: 101%}\n",
            "fleet.yaml:5: `maxDecommission` must be",
        ),
        (
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: a}\nspec:\n  enrollment: {batch: 2d}\n",
            "fleet.yaml:5: `batch` must be a duration of at most a day",
        ),
        (
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: a}\nspec:\n  enrollment: {reviewers: anna}\n",
            "fleet.yaml:5: `reviewers` must be a list",
        ),
        (
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: a}\nspec:\n  labelsFromFacts: arch\n",
            "fleet.yaml:5: `labelsFromFacts` must be a list",
        ),
        (
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: a}\nspec:\n  labelsFromFacts: [cpu model]\n",
            "fleet.yaml:5: `labelsFromFacts`: `cpu model` is no label key",
        ),
        (
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: a}\nspec:\n  labelsFromFacts: [a.b, a-b]\n",
            "fleet.yaml:5: `labelsFromFacts`: the labels `a-b` and `a.b` would both be",
        ),
        (
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: a}\nspec:\n  push: {refuseBroken: maybe}\n",
            "fleet.yaml:5: `refuseBroken` must be true or false",
        ),
    ] {
        let repo = repo().write("fleet.yaml", text);
        let error = Reader::new()
            .read(&repo.tree(), &RepoPath::root())
            .unwrap_err();
        assert!(matches!(error, FleetError::Invalid(_)), "{error}");
        assert!(error.to_string().starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn most_decommissions() {
    for (text, of_200) in [
        ("3", 3),
        ("\"10%\"", 20),
        ("10%", 20),
        ("0", 0),
        ("100%", 200),
    ] {
        let repo = repo().write(
            "fleet.yaml",
            format!(
                "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {{name: a}}\n\
                 spec: {{safety: {{maxDecommission: {text}}}}}\n"
            ),
        );
        assert_eq!(
            read(&repo).settings.max_decommission.of(200),
            of_200,
            "{text}"
        );
    }
    assert_eq!(
        [10, 200].map(|devices| MaxDecommission::Default.of(devices)),
        [5, 20]
    );
}

#[test]
fn how_pull_requests_are_treated() {
    let repo = repo().write(
        "fleet.yaml",
        "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: a}\nspec:\n  \
         enrollment: {batch: 10m, reviewers: [anna, \"team:ops\"], labels: [device]}\n  \
         previews: {forks: true}\n  push: {refuseBroken: false}\n",
    );
    let settings = read(&repo).settings;
    assert_eq!(
        settings.enrollment,
        EnrollmentSettings {
            batch: Some(Duration::from_mins(10)),
            reviewers: vec!["anna".to_owned(), "team:ops".to_owned()],
            labels: vec!["device".to_owned()],
        }
    );
    assert!(settings.preview_forks && !settings.refuse_broken);
    let unsaid = read(&self::repo()).settings;
    assert_eq!(unsaid.enrollment, EnrollmentSettings::default());
    assert!(!unsaid.preview_forks && unsaid.refuse_broken);
}

#[test]
fn each_mistake_holds_back_its_own_device_only() {
    for (rest, expected) in [
        ("spec: {\n", "devices/bad/device.yaml:6: not valid YAML"),
        (
            "spec:\n  overlays: x\n",
            "devices/bad/device.yaml:6: unknown field `overlays` in `spec`; did you mean",
        ),
        ("", "devices/bad/device.yaml: the device has no manifests"),
        (
            "spec: {overlay: ../../groups/none}\n",
            "devices/bad/device.yaml:5: `spec.overlay`: `groups/none` does not exist",
        ),
        (
            "spec: {overlay: ../../groups}\n",
            "devices/bad/device.yaml:5: `spec.overlay`: `groups` has no kustomization.yaml",
        ),
        (
            "spec: {overlay: ../../fleet.yaml}\n",
            "devices/bad/device.yaml:5: `spec.overlay`: `fleet.yaml` is a file",
        ),
        (
            "spec: {overlay: ../../../x}\n",
            "devices/bad/device.yaml:5: `spec.overlay`: the path `../../../x` leaves the repo",
        ),
        (
            "spec: {overlay: /etc}\n",
            "devices/bad/device.yaml:5: `spec.overlay`: the path `/etc` is absolute",
        ),
        (
            "spec: {overlay: ../../out}\n",
            "devices/bad/device.yaml:5: `spec.overlay`: the symlink `out` is refused: it leaves",
        ),
        (
            "spec: {overlay: ../../abs}\n",
            "devices/bad/device.yaml:5: `spec.overlay`: the symlink `abs` is refused: its target `/etc` is absolute",
        ),
        (
            "spec: {overlay: ../../loop}\n",
            "devices/bad/device.yaml:5: `spec.overlay`: `loop` passes more than 8 symlinks",
        ),
    ] {
        let repo = repo()
            .link("out", "../x")
            .link("abs", "/etc")
            .link("loop", "loop");
        let found = problem(repo.device("bad", rest));
        assert!(found.starts_with(expected), "{rest}: {found}");
    }
}

#[test]
fn a_folder_and_its_name() {
    let found = problem(repo().write("devices/bad/device.yaml", device("other", SHARED)));
    assert!(
        found.starts_with("devices/bad/device.yaml:4: `metadata.name` is `other`"),
        "{found}"
    );
    let found = problem(repo().write("devices/Bad_Name/device.yaml", device("bad", SHARED)));
    assert!(
        found.starts_with("devices/Bad_Name: device name `Bad_Name`"),
        "{found}"
    );
    let found = problem(repo().write("devices/bad/notes.txt", ""));
    assert_eq!(
        found,
        "devices/bad: there is no `device.yaml` in this folder"
    );
    let found = problem(repo().link("devices/bad", "good"));
    assert!(found.contains("not a symlink"), "{found}");
    let found = problem(repo().link("devices/bad/device.yaml", "../good/device.yaml"));
    assert!(found.contains("must be a plain file"), "{found}");
    let found = problem(
        repo()
            .device("bad", SHARED)
            .write("devices/bad/Kustomization", ""),
    );
    assert!(
        found.starts_with("devices/bad/device.yaml:6: the device has both"),
        "{found}"
    );
    let large = format!("# {}\n{}", "x".repeat(70_000), device("bad", SHARED));
    let found = problem(repo().write("devices/bad/device.yaml", large));
    assert_eq!(
        found,
        "devices/bad/device.yaml: the file is larger than 64 KiB"
    );
}

#[test]
fn names_that_are_not_utf8() {
    let repo = repo();
    let dir = repo
        .root()
        .join("devices")
        .join(OsStr::from_bytes(b"b\xffd"));
    fs::create_dir_all(dir).unwrap();
    let found = problem(repo);
    assert!(
        found.starts_with("devices: a folder's name is not UTF-8"),
        "{found}"
    );

    let repo = self::repo().device("bad", SHARED);
    fs::write(
        repo.root()
            .join("devices/bad")
            .join(OsStr::from_bytes(b"\xff")),
        "",
    )
    .unwrap();
    assert_eq!(
        problem(repo),
        "devices/bad: a file's name in this folder is not UTF-8"
    );
}

#[test]
fn what_two_devices_share_neither_gets() {
    let key = Digest::of(b"key");
    for (field, value) in [
        ("id", "dev_0123456789abcdefghij"),
        ("publicKey", &key.to_string()),
    ] {
        let own = format!("spec:\n  {field}: {value}\n  overlay: ../../groups/kiosk\n");
        let repo = repo()
            .device("a", &own)
            .device("b", &own)
            .device("good", SHARED);
        let fleet = read(&repo);
        assert_eq!(fleet.devices.len(), 1);
        assert_eq!(fleet.held_back.len(), 2, "held back is not removed");
        let found: Vec<String> = fleet.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                format!(
                    "devices/a/device.yaml:6: `spec.{field}` is also that of b; each device has its own"
                ),
                format!(
                    "devices/b/device.yaml:6: `spec.{field}` is also that of a; each device has its own"
                ),
            ]
        );
    }
}

/// A tree that counts blobs read and gives directories ids by content, as Git does.
struct Counting(WorkTree, AtomicUsize);

impl Tree for Counting {
    fn entry(&self, path: &RepoPath) -> Result<Option<TreeEntry>, TreeError> {
        self.0.entry(path)
    }

    fn list(&self, dir: &RepoPath) -> Result<Arc<Listing>, TreeError> {
        let listing = self.0.list(dir)?;
        if dir.as_str() != "devices" {
            return Ok(listing);
        }
        let with_id = |folder: &Listed| {
            let path = dir.join(std::str::from_utf8(&folder.name).unwrap());
            let listing = self.0.list(&path)?;
            let below: Vec<String> = listing.iter().map(|entry| format!("{entry:?}")).collect();
            let mut folder = folder.clone();
            folder.entry.id = ContentId(*Digest::of(below.join(" ").as_bytes()).as_bytes());
            Ok(folder)
        };
        listing
            .iter()
            .map(with_id)
            .collect::<Result<Listing, _>>()
            .map(Arc::new)
    }

    fn size(&self, id: ContentId) -> Result<u64, TreeError> {
        self.0.size(id)
    }

    fn blob(&self, id: ContentId) -> Result<Vec<u8>, TreeError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.blob(id)
    }
}

#[test]
fn reading_again_costs_what_changed() {
    let mut repo = repo();
    for number in 0..50 {
        repo = repo.device(&format!("d{number}"), SHARED);
    }
    let mut reader = Reader::new();
    let mut read = |repo: &Repo| {
        let tree = Counting(repo.tree(), AtomicUsize::new(0));
        let fleet = reader.read(&tree, &RepoPath::root()).unwrap();
        assert_eq!(
            fleet,
            Reader::new().read(&repo.tree(), &RepoPath::root()).unwrap()
        );
        tree.1.into_inner()
    };
    assert_eq!(read(&repo), 51);
    assert_eq!(read(&repo), 1, "only fleet.yaml");
    let repo = repo.device(
        "d7",
        "spec:\n  overlay: ../../groups/kiosk\n  variables: {A: b}\n",
    );
    assert_eq!(read(&repo), 2);
    // What is remembered of a folder does not outlive its surroundings.
    fs::remove_dir_all(repo.root().join("groups")).unwrap();
    assert_eq!(read(&repo), 1);
}

#[test]
fn symlinks_are_followed_inside_and_reported() {
    let repo = repo()
        .link("a/link", "../b/deeper")
        .link("b/deeper", "./dir/../dir")
        .write("b/dir/file", "x");
    let tree = repo.tree();
    let found = resolve(&tree, &path("a/link/file")).unwrap();
    assert_eq!(found.path, path("b/dir/file"));
    let passed: Vec<&str> = found
        .symlinks
        .iter()
        .map(|(path, _entry)| path.as_str())
        .collect();
    assert_eq!(passed, ["a/link", "b/deeper"]);
    assert!(resolve(&tree, &path("b/dir/file/x")).is_err());
    assert_eq!(
        tree.entry(&path("a/link/file")).unwrap(),
        None,
        "a tree follows nothing"
    );
}

fn value() -> impl Strategy<Value = String> {
    "[A-Za-z0-9]([-A-Za-z0-9_.]{0,20}[A-Za-z0-9])?|yes|null|0x1F|1e5|true|1_000"
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn written_devices_read_back(
        name in "[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?|null|1e5|on",
        key in any::<[u8; 32]>(),
        id in any::<[u8; 16]>(),
        labels in proptest::collection::btree_map("[a-z]([a-z0-9]{0,8})|yes|n", value(), 0..4),
        shared in any::<bool>(),
    ) {
        let name: DeviceName = name.parse().unwrap();
        let id = DeviceId::from_random(id);
        let key = Digest::from(key);
        let labels: BTreeMap<String, String> = labels;
        let text = device_yaml(&name, &id, &key, &labels, shared.then_some("../../groups/kiosk"));
        let mut repo = repo().write(&format!("devices/{name}/device.yaml"), &text);
        if !shared {
            repo = repo.write(&format!("devices/{name}/kustomization.yaml"), "");
        }
        let fleet = read(&repo);
        prop_assert_eq!(&fleet.problems, &vec![], "{}", text);
        let device = &fleet.devices[&name];
        prop_assert_eq!(device.id.as_ref(), Some(&id));
        prop_assert_eq!(device.public_key, Some(key));
        prop_assert_eq!(&device.labels, &labels);
        prop_assert_eq!(device.shared, shared);
    }
}
