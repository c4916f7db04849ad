//! Sources and mirrors, against real repos and the real `git`.

mod access;
mod host;
mod mirror;
mod tree;
mod watching;

use std::path::PathBuf;

use longshore_controller::{source::mirror::Mirror, store::fleets::Fleet};
use tempfile::TempDir;

use crate::repo::Repo;

/// A mirror of a repo, in a directory of its own.
#[derive(Debug)]
struct Mirrored {
    mirror: Mirror,
    directory: TempDir,
}

impl Mirrored {
    async fn of(repo: &Repo, branch: &str) -> Self {
        Self::at(&repo.path().display().to_string(), branch, true).await
    }

    async fn at(url: &str, branch: &str, trusted: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fleet = Fleet {
            repo: url.to_owned(),
            branch: branch.to_owned(),
            trusted,
            ..crate::store::samples::fleet("default", "shops")
        };
        let mirror = Mirror::open(directory.path().join("m.git"), &fleet, None)
            .await
            .unwrap();
        Self { mirror, directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("m.git")
    }
}
