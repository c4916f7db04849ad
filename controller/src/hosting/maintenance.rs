//! Keeps hosted repos tidy: many small pushes become few packs.
//!
//! Git would do it by itself, in the background of a push, where nothing bounds it. Here it runs after a push, for one
//! repo at a time, only where Git finds it worth while, and is ended when it takes too long: then the next push
//! tries again. Objects that nothing refers to stay for two weeks, and what a force push took away for as long as the
//! log of refs has it, so no push under way loses what it builds on.

use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::{process::Command, sync::Semaphore, time::timeout};
use tracing::{debug, warn};

use super::backend;
use crate::{process_group::Group, source::git};

const DEADLINE: Duration = Duration::from_mins(10);

/// When Git finds it worth while, and what it keeps (git-gc(1)).
const CONFIGURATION: [&str; 5] = [
    "gc.auto=1000",
    "gc.autoPackLimit=20",
    "gc.autoDetach=false",
    "gc.pruneExpire=2.weeks.ago",
    "gc.reflogExpireUnreachable=90.days.ago",
];

/// Tidies repos, one at a time.
#[derive(Debug)]
pub(super) struct Maintenance {
    place: Semaphore,
}

impl Default for Maintenance {
    fn default() -> Self {
        Self {
            place: Semaphore::new(1),
        }
    }
}

impl Maintenance {
    /// Tidies a repo, unless another one is being tidied: a later push will do.
    pub(super) async fn run(&self, repo: PathBuf, home: PathBuf) {
        let Ok(_place) = self.place.try_acquire() else {
            return;
        };
        let mut command = Command::new(git::program());
        backend::isolate(&mut command, &home);
        command
            .args(CONFIGURATION.iter().flat_map(|setting| ["-c", setting]))
            .args(["-c", "pack.threads=1", "-c", "pack.windowMemory=64m"])
            .args(["gc", "--auto", "--quiet"])
            .current_dir(&repo)
            .env("GIT_DIR", &repo)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                warn!(%error, "a hosted repo was not tidied");
                return;
            }
        };
        let mut group = Group::of(&child);
        backend::limit(&group);
        match timeout(DEADLINE, child.wait()).await {
            Ok(Ok(status)) => {
                group.release();
                debug!(%status, repo = %repo.display(), "tidied");
            }
            Ok(Err(error)) => warn!(%error, "a hosted repo was not tidied"),
            Err(_elapsed) => warn!(repo = %repo.display(), "tidying took too long"),
        }
    }
}

#[cfg(test)]
mod tests {
    use git2::{FileMode, Repository, Signature, build::TreeUpdateBuilder};

    use super::*;

    #[tokio::test]
    async fn many_pushes_become_few_files_and_nothing_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.git");
        super::super::repo::create(&path, "main").await.unwrap();
        let repo = Repository::open_bare(&path).unwrap();
        let who = Signature::now("a", "a@localhost").unwrap();
        let mut parent: Option<git2::Oid> = None;
        // Three objects a commit; what Git counts is one of 256 folders.
        for number in 0..700 {
            let blob = repo.blob(format!("{number}").as_bytes()).unwrap();
            let tree = repo.treebuilder(None).unwrap().write().unwrap();
            let tree = TreeUpdateBuilder::new()
                .upsert("a", blob, FileMode::Blob)
                .create_updated(&repo, &repo.find_tree(tree).unwrap())
                .unwrap();
            let tree = repo.find_tree(tree).unwrap();
            let before: Vec<_> = parent
                .iter()
                .map(|id| repo.find_commit(*id).unwrap())
                .collect();
            let parents: Vec<_> = before.iter().collect();
            let commit = repo
                .commit(Some("refs/heads/main"), &who, &who, "c", &tree, &parents)
                .unwrap();
            parent = Some(commit);
        }
        let loose = || {
            let mut count = 0;
            for folder in std::fs::read_dir(path.join("objects")).unwrap() {
                let folder = folder.unwrap();
                if folder.file_name().len() == 2 {
                    count += std::fs::read_dir(folder.path()).unwrap().count();
                }
            }
            count
        };
        assert!(loose() > 2000, "{}", loose());
        let home = directory.path().to_owned();
        Maintenance::default().run(path.clone(), home).await;
        assert!(loose() < 100, "{}", loose());
        let repo = Repository::open_bare(&path).unwrap();
        let mut walk = repo.revwalk().unwrap();
        walk.push_ref("refs/heads/main").unwrap();
        assert_eq!(walk.count(), 700);
    }
}
