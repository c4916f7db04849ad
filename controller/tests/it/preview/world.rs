//! A repo whose changes are previewed, with a store of its own and real builds.

use std::{path::Path, sync::Arc};

use git2::Oid;
use longshore_controller::{
    builds::Builds,
    metrics::Metrics,
    preview::{Engine, Report},
    source::tree::GitTree,
    store::{Store, tenants},
};
use longshore_fleet::{Kustomize, RenderSettings, RepoPath, Tree};
use longshore_protocol::{
    DeviceName,
    api::preview::{Change, ChangeKind, Preview},
};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use crate::{
    reconcile::world::{Change as Edit, FLEET, overlay, shops, write},
    repo::Repo,
};

/// A repo and what previews it.
#[derive(Debug)]
pub struct World {
    pub repo: Repo,
    pub engine: Engine,
    pub store: Store,
    metrics: Arc<Metrics>,
    directory: TempDir,
}

impl World {
    /// With this first commit.
    pub async fn new(files: &[Edit]) -> Self {
        let repo = Repo::new();
        repo.commit("main", files);
        let directory = tempfile::tempdir().unwrap();
        let store = Store::embedded(directory.path()).await.unwrap();
        let mut db = store.write().await.unwrap();
        let tenant = shops().tenant;
        tenants::insert(&mut db, &tenant, 1).await.unwrap();
        db.commit().await.unwrap();
        let render = Kustomize::detect(RenderSettings::default()).await.unwrap();
        let metrics = Arc::<Metrics>::default();
        let tasks = TaskTracker::new();
        let builds = Builds::new(Arc::new(render), store.clone(), metrics.clone(), tasks);
        Self {
            repo,
            engine: Engine::new(store.clone(), builds, RepoPath::root(), shops()),
            store,
            metrics,
            directory,
        }
    }

    /// A directory of its own.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn tree(&self, commit: Oid) -> Arc<dyn Tree> {
        Arc::new(GitTree::of(self.repo.open(), commit).unwrap())
    }

    /// What these edits on top of the branch would do. They stay a proposal.
    pub async fn propose(&self, edits: &[Edit]) -> Preview {
        let base = self.repo.tip("main").unwrap();
        let head = self.repo.make(Some(base), edits);
        self.between(base, head).await
    }

    pub async fn between(&self, base: Oid, head: Oid) -> Preview {
        let trees = (self.tree(base), self.tree(head));
        let Report {
            preview, may_pass, ..
        } = self.engine.preview(Some(trees.0), trees.1).await.unwrap();
        assert!(!may_pass);
        preview
    }

    /// How many overlays were built so far.
    pub fn builds(&self) -> u64 {
        self.metrics.renders.get()
    }
}

/// The file of a device in `groups/<group>`, with variables.
pub fn device(name: &str, group: &str, variables: &str) -> Edit {
    write(
        &format!("devices/{name}/device.yaml"),
        format!(
            "apiVersion: longshore.dev/v1alpha1\nkind: Device\nmetadata:\n  name: {name}\n\
             spec:\n  overlay: ../../groups/{group}\n  variables: {{{variables}}}\n"
        ),
    )
}

/// A manifest of a `ConfigMap` with one value.
pub fn map(path: &str, name: &str, value: &str) -> Edit {
    write(
        path,
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  value: \"{value}\"\n"
        ),
    )
}

/// Groups `a`, `b`, … on one base: the base's map `shared`, and one map of their own each.
pub fn groups(names: &[&str]) -> Vec<Edit> {
    let mut files = vec![
        write("fleet.yaml", FLEET),
        overlay("base", &["shared.yaml"]),
        map("base/shared.yaml", "shared", "1"),
    ];
    for name in names {
        let folder = format!("groups/{name}");
        files.push(overlay(&folder, &["../../base", "own.yaml"]));
        files.push(map(&format!("{folder}/own.yaml"), name, "1"));
    }
    files
}

pub fn names(devices: &[DeviceName]) -> Vec<&str> {
    devices.iter().map(DeviceName::as_str).collect()
}

/// `changed ConfigMap shared` and the like.
pub fn said(changes: &[Change]) -> Vec<String> {
    let kind = |kind| match kind {
        ChangeKind::Added => "added",
        ChangeKind::Removed => "removed",
        ChangeKind::Changed => "changed",
    };
    let said = |change: &Change| {
        let object = &change.object;
        format!("{} {} {}", kind(change.kind), object.kind, object.name)
    };
    changes.iter().map(said).collect()
}
