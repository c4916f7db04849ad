//! From one commit to the next: what is remembered never changes what is found, and a commit costs what it changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use longshore_fleet::{
    Changes, ClosureCache, Closures, ContentId, EntryKind, Fleet, FleetError, Listed, Listing,
    Reader, RepoPath, Tree, TreeEntry, TreeError,
};
use longshore_protocol::{DeviceId, Digest};
use proptest::prelude::*;

use crate::{device, path};

/// A tree in memory. Like Git's, its directories' ids are those of their content.
#[derive(Clone, Debug, Default)]
struct Files {
    all: BTreeMap<String, (EntryKind, String)>,
    entries: BTreeMap<String, TreeEntry>,
    contents: BTreeMap<ContentId, String>,
}

/// The same, counting.
struct Counted<'a> {
    files: &'a Files,
    blobs: AtomicUsize,
}

const FILE: EntryKind = EntryKind::File { executable: false };

fn id(bytes: &[u8]) -> ContentId {
    ContentId(*Digest::of(bytes).as_bytes())
}

impl Files {
    fn of(files: BTreeMap<String, (EntryKind, String)>) -> Self {
        let mut directories: BTreeMap<String, String> =
            BTreeMap::from([(String::new(), String::new())]);
        let mut entries = BTreeMap::new();
        let mut contents = BTreeMap::new();
        for (path, (kind, content)) in &files {
            let entry = TreeEntry {
                kind: *kind,
                id: id(content.as_bytes()),
            };
            contents.insert(entry.id, content.clone());
            entries.insert(path.clone(), entry);
            let mut above = path.as_str();
            while let Some((parent, _)) = above.rsplit_once('/') {
                above = parent;
                let rest = path.strip_prefix(above).unwrap();
                *directories.entry(above.to_owned()).or_default() +=
                    &format!("{rest} {entry:?} {content};");
            }
            *directories.get_mut("").unwrap() += &format!("{path} {entry:?} {content};");
        }
        for (path, content) in directories {
            let kind = EntryKind::Directory;
            entries.insert(
                path,
                TreeEntry {
                    kind,
                    id: id(content.as_bytes()),
                },
            );
        }
        Self {
            all: files,
            entries,
            contents,
        }
    }

    /// Puts a file there, or takes away what is there; what stands in the way goes.
    fn edit(&self, edit: &Edit) -> Self {
        let mut files = self.all.clone();
        let path = &edit.path;
        let below = format!("{path}/");
        files.retain(|other, _| {
            other != path
                && !other.starts_with(&below)
                && (edit.content.is_none() || !path.starts_with(&format!("{other}/")))
        });
        if let Some(content) = &edit.content {
            files.insert(path.clone(), content.clone());
        }
        Self::of(files)
    }
}

impl Tree for Files {
    fn entry(&self, path: &RepoPath) -> Result<Option<TreeEntry>, TreeError> {
        Ok(self.entries.get(path.as_str()).copied())
    }

    fn list(&self, dir: &RepoPath) -> Result<Arc<Listing>, TreeError> {
        let listed = self.entries.iter().filter_map(|(path, entry)| {
            let path = RepoPath::new(path).unwrap();
            (path.parent().as_ref() == Some(dir)).then(|| Listed {
                name: path.name().unwrap().as_bytes().into(),
                entry: *entry,
            })
        });
        Ok(Arc::new(listed.collect()))
    }

    fn size(&self, id: ContentId) -> Result<u64, TreeError> {
        Ok(self.contents[&id].len() as u64)
    }

    fn blob(&self, id: ContentId) -> Result<Vec<u8>, TreeError> {
        Ok(self.contents[&id].clone().into_bytes())
    }
}

impl Tree for Counted<'_> {
    fn entry(&self, path: &RepoPath) -> Result<Option<TreeEntry>, TreeError> {
        self.files.entry(path)
    }

    fn list(&self, dir: &RepoPath) -> Result<Arc<Listing>, TreeError> {
        self.files.list(dir)
    }

    fn size(&self, id: ContentId) -> Result<u64, TreeError> {
        self.files.size(id)
    }

    fn blob(&self, id: ContentId) -> Result<Vec<u8>, TreeError> {
        self.blobs.fetch_add(1, Ordering::Relaxed);
        self.files.blob(id)
    }
}

#[derive(Clone, Debug)]
struct Edit {
    path: String,
    content: Option<(EntryKind, String)>,
}

const PLACES: [&str; 8] = [
    "a",
    "b",
    "c",
    "link",
    "devices/d1",
    "devices/d2",
    "devices/d3",
    "devices",
];
const NAMES: [&str; 7] = [
    "",
    "/kustomization.yaml",
    "/kustomization.yml",
    "/device.yaml",
    "/r.yaml",
    "/deep/r.yaml",
    "/link",
];

fn content() -> impl Strategy<Value = (EntryKind, String)> {
    let references = prop_oneof![
        Just("../a"),
        Just("../b"),
        Just("../c"),
        Just("../link"),
        Just("../../a"),
        Just("../../b"),
        Just("r.yaml"),
        Just("deep/r.yaml"),
        Just("link"),
        Just("link/r.yaml"),
        Just("../link/r.yaml"),
        Just("../a/r.yaml"),
        Just("../../link"),
        Just("."),
        Just(".."),
        Just("https://example.com/x"),
    ];
    let kustomization = (
        prop_oneof![4 => Just("resources"), 1 => Just("transformers"), 1 => Just("crds")],
        proptest::collection::vec(references, 0..3),
    )
        .prop_map(|(field, references)| (FILE, format!("{field}: [{}]\n", references.join(", "))));
    let target = prop_oneof![
        Just("a"),
        Just("b"),
        Just("../a"),
        Just("../b"),
        Just("deep"),
        Just("link"),
        Just("../link"),
        Just("a/../b"),
        Just("a/deep/../../c"),
        Just("../../.."),
        Just("devices/d1"),
        Just("nowhere"),
    ];
    let file = (
        0..3_u8,
        proptest::option::of(prop_oneof![
            Just("../../a"),
            Just("../../link"),
            Just("../../b/deep")
        ]),
        0..3_u8,
        proptest::option::of(0..2_u8),
    )
        .prop_map(|(name, overlay, key, id)| {
            let overlay = overlay
                .map(|it| format!("  overlay: {it}\n"))
                .unwrap_or_default();
            let key = Digest::of(&[key]);
            let id = id
                .map(|id| format!("  id: {}\n", DeviceId::from_random([id; 16])))
                .unwrap_or_default();
            (
                FILE,
                device(
                    &format!("d{name}"),
                    &format!("spec:\n{overlay}{id}  publicKey: {key}\n"),
                ),
            )
        });
    prop_oneof![
        4 => kustomization,
        2 => target.prop_map(|target| (EntryKind::Symlink, target.to_owned())),
        2 => file,
        1 => (0..4_u8).prop_map(|n| (FILE, format!("apiVersion: builtin\nkind: PatchTransformer\nmetadata: {{name: p{n}}}\npath: r.yaml\n"))),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    let place = prop::sample::select(PLACES.as_slice());
    let name = prop_oneof![1 => Just(NAMES[0]), 6 => prop::sample::select(&NAMES[1..])];
    (place, name, proptest::option::weighted(0.8, content())).prop_map(|(place, name, content)| {
        Edit {
            path: format!("{place}{name}"),
            content,
        }
    })
}

/// The fleet after these changes, as a reconciler reads it.
fn go_on(reader: &mut Reader, changes: &Changes, tree: &dyn Tree) -> Result<Fleet, FleetError> {
    match reader.advance(tree, changes)? {
        Some((fleet, _devices)) => Ok(fleet),
        None => reader.read(tree, &RepoPath::root()),
    }
}

/// All closures, as text.
fn found(cache: &mut ClosureCache, tree: &dyn Tree) -> Vec<String> {
    let overlays: BTreeSet<RepoPath> = PLACES
        .iter()
        .chain(&["link/deep", "a/deep"])
        .map(|it| path(it))
        .collect();
    let mut walker = Closures::with_cache(tree, "renderer", std::mem::take(cache));
    let closures = overlays
        .iter()
        .map(|overlay| match walker.closure(overlay) {
            Ok(closure) => format!("{overlay}: {closure:?}"),
            Err(error) => format!("{overlay}: {error}"),
        })
        .collect();
    *cache = walker.into_cache();
    cache.retain(|path| overlays.contains(path));
    closures
}

fn start() -> Files {
    let file = |path: &str, content: &str| (path.to_owned(), (FILE, content.to_owned()));
    Files::of(BTreeMap::from([
        file(
            "fleet.yaml",
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: shops}\n",
        ),
        file("a/kustomization.yaml", "resources: [r.yaml, ../b]\n"),
        file("a/r.yaml", "a"),
        file("b/kustomization.yaml", "resources: [r.yaml]\n"),
        file("b/r.yaml", "b"),
        file("devices/d1/device.yaml", &device("d1", "")),
        file("devices/d1/kustomization.yaml", "resources: [../../a]\n"),
        file(
            "devices/d2/device.yaml",
            &device("d2", "spec:\n  overlay: ../../link\n"),
        ),
        ("link".to_owned(), (EntryKind::Symlink, "a".to_owned())),
    ]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn going_on_finds_what_starting_afresh_finds(
        commits in proptest::collection::vec(proptest::collection::vec(edit(), 0..3), 1..10),
    ) {
        let root = RepoPath::root();
        let (mut reader, mut cache) = (Reader::new(), ClosureCache::default());
        let mut tree = start();
        let mut fleet = reader.read(&tree, &root);
        let mut closures = found(&mut cache, &tree);
        for edits in commits {
            let next = edits.iter().fold(tree.clone(), |tree, edit| tree.edit(edit));
            let changes = Changes::between(&tree, &next, 1000).unwrap().unwrap();
            prop_assert_eq!(changes.concern(&root), false);
            let forgotten = cache.advance(&changes).unwrap();
            let known = reader.advance(&next, &changes).unwrap();
            if let (Some((_, others)), Ok(before)) = (&known, &fleet) {
                // Who is not named is the same.
                let (after, _) = known.as_ref().unwrap();
                for name in before.devices.keys().chain(after.devices.keys()) {
                    let same = match (before.devices.get(name), after.devices.get(name)) {
                        (Some(before), Some(after)) => Arc::ptr_eq(before, after),
                        _ => false,
                    };
                    prop_assert!(same || others.contains(name), "{name}: {changes:?}");
                }
            }
            let now = match known {
                Some((fleet, _)) => Ok(fleet),
                None => reader.read(&next, &root),
            };
            let said = |fleet: &Result<Fleet, FleetError>| {
                fleet.clone().map_err(|error| error.to_string())
            };
            prop_assert_eq!(said(&now), said(&Reader::new().read(&next, &root)));
            let incremental = found(&mut cache, &next);
            prop_assert_eq!(&incremental, &found(&mut ClosureCache::default(), &next));
            // What is not forgotten is the same.
            for (before, after) in closures.iter().zip(&incremental) {
                let overlay = RepoPath::new(before.split(':').next().unwrap()).unwrap();
                prop_assert!(before == after || forgotten.contains(&overlay), "{overlay}: {changes:?}");
            }
            (tree, fleet, closures) = (next, now, incremental);
        }
    }
}

/// Devices with overlays of their own, which share a base.
fn fleet_of(devices: usize) -> Files {
    let mut files = start().all;
    for n in 0..devices {
        let dir = format!("devices/own-{n}");
        files.insert(
            format!("{dir}/device.yaml"),
            (FILE, device(&format!("own-{n}"), "")),
        );
        let own = format!("resources: [../../a, own.yaml]\nnamePrefix: p{n}-\n");
        files.insert(format!("{dir}/kustomization.yaml"), (FILE, own));
        files.insert(format!("{dir}/own.yaml"), (FILE, format!("{n}")));
    }
    Files::of(files)
}

/// What a commit costs: blobs read, device folders read, directories walked.
fn cost(edits: &[(&str, &str)]) -> [usize; 3] {
    let (mut reader, mut cache) = (Reader::new(), ClosureCache::default());
    let mut run = |before: Option<&Files>, files: &Files| {
        let tree = Counted {
            files,
            blobs: AtomicUsize::new(0),
        };
        let (reads, walks) = (reader.reads(), cache.walks());
        let fleet = match before {
            Some(before) => {
                let changes = Changes::between(before, &tree, 1000).unwrap().unwrap();
                cache.advance(&changes);
                go_on(&mut reader, &changes, &tree)
            }
            None => reader.read(&tree, &RepoPath::root()),
        };
        let fleet = fleet.unwrap();
        assert_eq!(fleet.problems, []);
        let mut walker = Closures::with_cache(&tree, "renderer", std::mem::take(&mut cache));
        for device in fleet.devices.values() {
            walker.closure(&device.overlay).unwrap();
        }
        cache = walker.into_cache();
        cache.retain(|path| fleet.devices.values().any(|device| device.overlay == *path));
        [
            tree.blobs.load(Ordering::Relaxed),
            reader.reads() - reads,
            cache.walks() - walks,
        ]
    };
    let before = fleet_of(50);
    let first = run(None, &before);
    assert!(first.into_iter().min() > Some(50), "{first:?}");
    let after = edits.iter().fold(before.clone(), |tree, (path, content)| {
        tree.edit(&Edit {
            path: (*path).to_owned(),
            content: Some((FILE, (*content).to_owned())),
        })
    });
    run(Some(&before), &after)
}

#[test]
fn a_commit_costs_what_it_changed() {
    assert_eq!(cost(&[("README.md", "new")]), [0, 0, 0]);
    // The device's file is read again with its folder.
    assert_eq!(cost(&[("devices/own-7/own.yaml", "new")]), [1, 1, 1]);
    let own = "resources: [../../a]\nnameSuffix: -new\n";
    assert_eq!(
        cost(&[("devices/own-7/kustomization.yaml", own)]),
        [2, 1, 1]
    );
    let file = device("own-7", "spec:\n  variables: {A: b}\n");
    assert_eq!(cost(&[("devices/own-7/device.yaml", &file)]), [1, 1, 0]);
    // What all devices build on, all are walked for, and what they say is remembered.
    let [blobs, reads, walks] = cost(&[("b/r.yaml", "new")]);
    assert_eq!((blobs, reads), (1, 0), "the symlink that an overlay passes");
    assert!((50..56).contains(&walks), "{walks}");
}

/// A tree whose contents cannot be read, at first.
struct Failing<'a> {
    files: &'a Files,
    blobs: AtomicUsize,
}

impl Tree for Failing<'_> {
    fn entry(&self, path: &RepoPath) -> Result<Option<TreeEntry>, TreeError> {
        self.files.entry(path)
    }

    fn list(&self, dir: &RepoPath) -> Result<Arc<Listing>, TreeError> {
        self.files.list(dir)
    }

    fn size(&self, id: ContentId) -> Result<u64, TreeError> {
        self.files.size(id)
    }

    fn blob(&self, id: ContentId) -> Result<Vec<u8>, TreeError> {
        if self.blobs.fetch_add(1, Ordering::Relaxed) == 0 {
            return Err(TreeError::new("a file", "the disk is away"));
        }
        self.files.blob(id)
    }
}

#[test]
fn a_read_error_is_gone_with_its_cause() {
    let files = start();
    let tree = Failing {
        files: &files,
        blobs: AtomicUsize::new(0),
    };
    let mut walker = Closures::new(&tree, "renderer");
    walker.closure(&path("devices/d1")).unwrap_err();
    let cache = walker.into_cache();
    assert!(cache.closure(&path("devices/d1")).is_none());
    let mut walker = Closures::with_cache(&tree, "renderer", cache);
    walker.closure(&path("devices/d1")).unwrap();
}

#[test]
fn too_many_changes_are_none() {
    let (before, after) = (fleet_of(3), fleet_of(30));
    assert_eq!(Changes::between(&before, &after, 10).unwrap(), None);
    assert!(Changes::between(&before, &after, 100).unwrap().is_some());
}
