//! The crate against real trees, real kustomize and the real kernel.
#![allow(
    clippy::expect_used,
    clippy::format_push_string,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "a helper of a test fails as loudly as the test, and tables are long"
)]

mod advancing;
mod closures;
mod incremental;
mod reading;
mod rendering;
mod sandbox;
mod truth;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use longshore_fleet::{RepoPath, Tree, WorkTree};
use tempfile::TempDir;

/// A fleet repo in a directory of its own.
#[derive(Debug)]
struct Repo(TempDir);

impl Repo {
    /// With `fleet.yaml` and nothing else.
    fn new() -> Self {
        let repo = Self(tempfile::tempdir().unwrap());
        repo.write(
            "fleet.yaml",
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata: {name: shops}\n",
        )
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn make_way(&self, path: &str) -> PathBuf {
        let file = self.root().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        file
    }

    fn write(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.put(path, content);
        self
    }

    fn put(&self, path: &str, content: impl AsRef<[u8]>) {
        fs::write(self.make_way(path), content).unwrap();
    }

    fn link(self, path: &str, target: &str) -> Self {
        symlink(target, self.make_way(path)).unwrap();
        self
    }

    fn device(self, name: &str, rest: &str) -> Self {
        self.write(&format!("devices/{name}/device.yaml"), device(name, rest))
    }

    fn tree(&self) -> WorkTree {
        WorkTree::open(self.root()).unwrap()
    }

    fn shared(&self) -> Arc<dyn Tree> {
        Arc::new(self.tree())
    }

    /// An executable file outside of any repo that a test may use as a program.
    fn program(&self, name: &str, script: &str) -> PathBuf {
        self.put(name, script);
        let path = self.root().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

fn device(name: &str, rest: &str) -> String {
    format!("apiVersion: longshore.dev/v1alpha1\nkind: Device\nmetadata:\n  name: {name}\n{rest}")
}

fn path(text: &str) -> RepoPath {
    RepoPath::new(text).unwrap()
}

fn config_map(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  key: value\n")
}
