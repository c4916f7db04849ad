//! Whatever changes: a preview names exactly the devices whose rendered sets differ, and what it says of them is so.

use std::{collections::BTreeMap, sync::Arc};

use git2::Oid;
use longshore_controller::builds::outcome::of_device;
use longshore_fleet::{Closures, Kustomize, Reader, Render as _, RenderSettings, RepoPath};
use longshore_protocol::{
    DeviceId, DeviceName, ManifestSet, Object, ObjectKey,
    api::preview::{ChangeKind, Preview},
    manifest::diff,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::world::{World, device, groups, map};
use crate::reconcile::world::{Change as Edit, delete, overlay, write};

const GROUPS: [&str; 3] = ["a", "b", "c"];
const DEVICES: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preview_is_the_difference_of_what_devices_would_run() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let mut files = groups(&GROUPS);
    for n in 0..DEVICES {
        files.push(random_device(&mut chance, n));
    }
    let world = World::new(&files).await;
    let kustomize = Kustomize::detect(RenderSettings::default()).await.unwrap();
    let mut base = world.repo.tip("main").unwrap();
    for _round in 0..24 {
        let edits: Vec<_> = (0..chance.random_range(1..4))
            .map(|_| edit(&mut chance))
            .collect();
        let head = world.repo.make(Some(base), &edits);
        let preview = world.between(base, head).await;
        let before = rendered(&world, &kustomize, base).await;
        let after = rendered(&world, &kustomize, head).await;
        check(&preview, &before, &after, &format!("{edits:?}"));
        let back = world.between(head, base).await;
        check(&back, &after, &before, &format!("back from {edits:?}"));
        base = head;
    }
}

type Rendered = BTreeMap<DeviceName, Option<(Vec<Object>, ManifestSet)>>;

/// What each device would run; `None` where that is not known.
async fn rendered(world: &World, kustomize: &Kustomize, commit: Oid) -> Rendered {
    let tree = world.tree(commit);
    let fleet = Reader::new().read(&*tree, &RepoPath::root()).unwrap();
    let mut rendered = BTreeMap::new();
    for (name, mut spec) in fleet.devices {
        Arc::make_mut(&mut spec).id = Some(DeviceId::from_random([0; 16]));
        let closure = Closures::new(&*tree, kustomize.identity()).closure(&spec.overlay);
        let objects = match closure {
            Ok(closure) => kustomize.render("tenant", &tree, &closure).await.ok(),
            Err(_) => None,
        };
        let own = objects.and_then(|objects| of_device(&spec, &objects).ok());
        rendered.insert(name, own);
    }
    rendered
}

fn check(preview: &Preview, before: &Rendered, after: &Rendered, edits: &str) {
    let groups: BTreeMap<_, _> = preview
        .groups
        .iter()
        .flat_map(|group| group.devices.iter().map(move |name| (name, group)))
        .collect();
    assert_eq!(groups.len(), preview.changed(), "each is in one group");
    for (name, new) in after {
        let Some(old) = before.get(name) else {
            let added = preview.enrolled.iter().any(|it| it.devices.contains(name));
            assert_eq!(added, new.is_some(), "{name}: {edits}");
            continue;
        };
        let group = groups.get(name);
        // What is not known changes nothing.
        let changes = new
            .as_ref()
            .is_some_and(|(_, new)| old.as_ref().map(|(_, old)| old) != Some(new));
        assert_eq!(group.is_some(), changes, "{name}: {edits}: {preview:#?}");
        // Where nobody knows what it runs, there is nothing to compare with.
        let (Some(group), Some((_, old)), Some((objects, new))) = (group, old, new) else {
            continue;
        };
        assert!(!group.unknown_before, "{name}: {edits}");
        let delta = diff(old, new);
        let told = |wanted: fn(ChangeKind) -> bool| {
            let told = group.changes.iter().filter(move |it| wanted(it.kind));
            told.map(|it| it.object.clone()).collect::<Vec<ObjectKey>>()
        };
        let removed = told(|kind| kind == ChangeKind::Removed);
        assert_eq!(removed, delta.removals, "{name}: {edits}");
        let upserts: Vec<_> = delta.upserts.iter().map(|entry| &entry.key).collect();
        for key in upserts {
            // A template's change may leave some device's object as it was, but never the other way around.
            let change = group.changes.iter().find(|it| it.object == *key);
            let change = change.unwrap_or_else(|| panic!("{key} of {name}: {edits}"));
            let object = objects.iter().find(|object| object.key() == key).unwrap();
            let value = object.value();
            let shown = value["data"]["value"].as_str().unwrap();
            let is_template = change.diff.contains("${");
            assert!(
                is_template || change.diff.contains(&format!("value: {}", quoted(shown))),
                "{}",
                change.diff
            );
        }
    }
    let gone: Vec<_> = before
        .keys()
        .filter(|name| !after.contains_key(*name))
        .collect();
    assert_eq!(
        preview.decommissioned.iter().collect::<Vec<_>>(),
        gone,
        "{edits}"
    );
    let (was, is) = (
        before.values().any(Option::is_none),
        after.values().any(Option::is_none),
    );
    assert!(is || preview.problems.count == 0, "{edits}: {preview:#?}");
    let broke = after
        .iter()
        .any(|(name, new)| new.is_none() && before.get(name).is_some_and(Option::is_some));
    assert!(!broke || preview.problems.count > 0, "{edits}");
    assert!(
        was || preview.old_problems.count == 0,
        "{edits}: {preview:#?}"
    );
}

/// A text as YAML prints it here.
fn quoted(text: &str) -> String {
    let yaml = serde_json::Value::from(text).to_string();
    if text.chars().all(|char| char.is_ascii_digit()) {
        yaml
    } else {
        text.to_owned()
    }
}

fn random_device(chance: &mut StdRng, n: usize) -> Edit {
    let group = GROUPS.choose(chance).unwrap();
    let variables = [
        "",
        "STORE: one",
        "STORE: two",
        "NOTE: x",
        "STORE: one, NOTE: x",
    ];
    device(&format!("d{n}"), group, variables.choose(chance).unwrap())
}

fn edit(chance: &mut StdRng) -> Edit {
    let group = GROUPS.choose(chance).unwrap();
    let folder = format!("groups/{group}");
    let n = chance.random_range(0..DEVICES);
    let value = [
        "1",
        "2",
        "${STORE}",
        "${STORE:=none}",
        "${NOTE:=quiet}",
        "plain",
    ]
    .choose(chance)
    .unwrap();
    match chance.random_range(0..9) {
        0 => map("base/shared.yaml", "shared", value),
        1 | 2 => map(&format!("{folder}/own.yaml"), group, value),
        3 => overlay(&folder, &["../../base"]),
        4 => overlay(&folder, &["../../base", "own.yaml"]),
        5 => overlay(&folder, &["missing.yaml"]),
        6 => delete(&format!("devices/d{n}")),
        7 => random_device(chance, n),
        _ => write("README.md", value.to_string()),
    }
}
