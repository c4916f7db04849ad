//! The bare repos behind the forge: real Git, as the hosts run it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::Host;
use crate::repo::git;

/// Branches and what they point to.
pub type Branches = BTreeMap<String, String>;

/// The list of protected branches, which the hook reads.
const PROTECTED: &str = "protected-branches";

/// A bare repo.
#[derive(Clone, Debug)]
pub struct Bare {
    path: PathBuf,
}

impl Bare {
    /// Makes an existing bare repo one of `host`'s.
    ///
    /// # Errors
    /// Where Git or the file system fails.
    pub fn adopt(path: &Path, host: Host) -> Result<Self> {
        let repo = Self {
            path: path.to_owned(),
        };
        for (key, value) in [
            ("http.receivepack", "true"),
            ("uploadpack.allowFilter", "true"),
            ("uploadpack.allowReachableSHA1InWant", "true"),
            ("receive.advertisePushOptions", "true"),
        ] {
            repo.git(["config", key, value])?;
        }
        let hidden = host.pulls_namespace();
        repo.git(["config", "--add", "receive.hideRefs", hidden])?;
        let hook = path.join("hooks").join("update");
        fs::create_dir_all(path.join("hooks")).context("make the hooks' directory")?;
        fs::write(&hook, update_hook(host)).context("write the hook")?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).context("allow the hook")?;
        Ok(repo)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs git in it.
    ///
    /// # Errors
    /// Where git fails.
    pub fn git<const N: usize>(&self, arguments: [&str; N]) -> Result<String> {
        git(&self.path, arguments)
    }

    /// All branches.
    ///
    /// # Errors
    /// Where git fails.
    pub fn branches(&self) -> Result<Branches> {
        let format = "--format=%(refname:lstrip=2) %(objectname)";
        let text = self.git(["for-each-ref", format, "refs/heads"])?;
        Ok(text
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, id)| (name.to_owned(), id.to_owned()))
            .collect())
    }

    /// Whether it has this commit.
    pub fn has_commit(&self, id: &str) -> bool {
        self.git(["cat-file", "-e", &format!("{id}^{{commit}}")])
            .is_ok()
    }

    /// Whether `ancestor` is `descendant` or before it.
    pub fn is_ancestor(&self, ancestor: &str, descendant: &str) -> bool {
        self.git(["merge-base", "--is-ancestor", ancestor, descendant])
            .is_ok()
    }

    /// The tree that a merge of both makes; none where they conflict.
    pub fn merged_tree(&self, base: &str, head: &str) -> Option<String> {
        let tree = self.git(["merge-tree", "--write-tree", base, head]).ok()?;
        tree.lines().next().map(str::to_owned)
    }

    /// A commit of `tree` on top of `parents`.
    ///
    /// # Errors
    /// Where git fails.
    pub fn commit(&self, tree: &str, parents: &[&str], message: &str) -> Result<String> {
        let mut arguments = vec!["commit-tree", tree, "-m", message];
        for parent in parents {
            arguments.extend(["-p", parent]);
        }
        git(&self.path, arguments)
    }

    /// Moves a ref, or makes it.
    ///
    /// # Errors
    /// Where git fails.
    pub fn set_ref(&self, name: &str, id: &str) -> Result<()> {
        self.git(["update-ref", name, id]).map(drop)
    }

    /// Deletes a ref.
    ///
    /// # Errors
    /// Where git fails.
    pub fn delete_ref(&self, name: &str) -> Result<()> {
        self.git(["update-ref", "-d", name]).map(drop)
    }

    /// Takes over an object of another repo, under a ref.
    ///
    /// # Errors
    /// Where git fails.
    pub fn fetch(&self, from: &Self, id: &str, name: &str) -> Result<()> {
        let from = from.path.to_str().context("a path that is UTF-8")?;
        self.git(["fetch", "--quiet", from, &format!("+{id}:{name}")])
            .map(drop)
    }

    /// Lets nobody push to these branches.
    ///
    /// # Errors
    /// Where the file system fails.
    pub fn protect(&self, branches: &[&str]) -> Result<()> {
        let lines = branches
            .iter()
            .flat_map(|branch| ["refs/heads/", branch, "\n"])
            .collect::<String>();
        fs::write(self.path.join(PROTECTED), lines).context("write the protected branches")
    }

    /// Whether pushes to a branch are refused.
    pub fn is_protected(&self, branch: &str) -> bool {
        fs::read_to_string(self.path.join(PROTECTED)).is_ok_and(|text| {
            text.lines()
                .any(|line| line == format!("refs/heads/{branch}"))
        })
    }
}

/// Refuses pushes to protected branches, in the words of the host. Git asks it once for each ref.
fn update_hook(host: Host) -> String {
    let words = match host {
        Host::GitHub => {
            "error: GH006: Protected branch update failed for $1.\nerror: Changes must be made through a pull request."
        }
        Host::GitLab => {
            "GitLab: You are not allowed to push code to protected branches on this project."
        }
        Host::Gitea => "Gitea: Not allowed to push to protected branch ${1#refs/heads/}",
    };
    format!(
        "#!/bin/sh\nif grep -qxF \"$1\" \"$GIT_DIR/{PROTECTED}\" 2>/dev/null; then\n  echo \"{words}\" >&2\n  exit 1\nfi\n"
    )
}
