//! A bare Git repo, changed as its owners would change it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use git2::{FileMode, Oid, Repository, Signature, build::TreeUpdateBuilder};
use tempfile::TempDir;

/// A bare repo in a directory of its own.
#[derive(Debug)]
pub struct Repo {
    directory: TempDir,
}

impl Repo {
    /// A repo without branches.
    pub fn new() -> Self {
        let repo = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let path = repo.path();
        git(
            repo.directory.path(),
            &["init", "--quiet", "--bare", path.to_str().unwrap()],
        );
        repo
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("fleet.git")
    }

    /// Runs `git` in it.
    pub fn git(&self, arguments: &[&str]) -> String {
        git(&self.path(), arguments)
    }

    /// The tip of a branch.
    pub fn tip(&self, branch: &str) -> Option<Oid> {
        self.open()
            .refname_to_id(&format!("refs/heads/{branch}"))
            .ok()
    }

    /// What a branch has at `path`.
    pub fn read(&self, branch: &str, path: &str) -> Option<String> {
        let repo = self.open();
        let tree = repo.find_commit(self.tip(branch)?).unwrap().tree().unwrap();
        let entry = tree.get_path(path.as_ref()).ok()?;
        let blob = repo.find_blob(entry.id()).unwrap();
        Some(String::from_utf8(blob.content().to_vec()).unwrap())
    }

    /// Adds a commit to a branch; a file without content is deleted.
    pub fn commit<P: AsRef<str>, C: AsRef<str>>(
        &self,
        branch: &str,
        edits: &[(P, Option<C>)],
    ) -> Oid {
        let parent = self.tip(branch);
        let commit = self.make(parent, edits);
        self.point(branch, commit);
        commit
    }

    /// Makes a commit that no branch has.
    pub fn make<P: AsRef<str>, C: AsRef<str>>(
        &self,
        parent: Option<Oid>,
        edits: &[(P, Option<C>)],
    ) -> Oid {
        let repo = self.open();
        let parent = parent.map(|id| repo.find_commit(id).unwrap());
        let base = if let Some(parent) = &parent {
            parent.tree().unwrap()
        } else {
            let empty = repo.treebuilder(None).unwrap().write().unwrap();
            repo.find_tree(empty).unwrap()
        };
        // Of several edits of a file, the last one counts.
        let edits: BTreeMap<_, _> = edits.iter().map(|(path, it)| (path.as_ref(), it)).collect();
        let mut builder = TreeUpdateBuilder::new();
        for (path, content) in edits {
            if let Some(content) = content {
                let blob = repo.blob(content.as_ref().as_bytes()).unwrap();
                builder.upsert(path, blob, FileMode::Blob);
            } else if base.get_path(path.as_ref()).is_ok() {
                builder.remove(path);
            }
        }
        let tree = builder.create_updated(&repo, &base).unwrap();
        let tree = repo.find_tree(tree).unwrap();
        let author = Signature::now("A Person", "person@example.com").unwrap();
        let parents: Vec<_> = parent.iter().collect();
        repo.commit(
            None,
            &author,
            &author,
            "Change something\n\nReally.",
            &tree,
            &parents,
        )
        .unwrap()
    }

    /// Makes a branch point to a commit, wherever it pointed before.
    pub fn point(&self, branch: &str, commit: Oid) {
        let name = format!("refs/heads/{branch}");
        self.open().reference(&name, commit, true, "test").unwrap();
    }

    /// Deletes a branch.
    pub fn delete(&self, branch: &str) {
        self.git(&["update-ref", "-d", &format!("refs/heads/{branch}")]);
    }

    /// It, for git2.
    pub fn open(&self) -> Repository {
        Repository::open_bare(self.path()).unwrap()
    }
}

/// Runs `git` without this machine's settings.
pub fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
