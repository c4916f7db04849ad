//! Commits that somebody proposes for the tracked branch: fetched for a while, and merged in memory.

use std::{path::Path, sync::Arc};

use git2::{ErrorCode, Oid, Repository};

use super::{GitError, Mirror};
use crate::source::{merge, tree::GitTree};

/// Where proposed commits are. Neither the source nor the enrollment looks there.
pub(in crate::source) const PROPOSALS: &str = "refs/longshore/preview/";

/// The two trees to compare for a proposed commit.
#[derive(Debug)]
pub struct Proposal {
    /// Before; `None` where the tracked branch has no commit.
    pub base: Option<Arc<GitTree>>,
    /// After.
    pub head: Arc<GitTree>,
    /// Whether it cannot be merged. Then `base` is where it branched off, and `head` the proposed commit itself.
    pub conflicts: bool,
}

impl Mirror {
    /// Brings a ref of the repo to the mirror, under `name`, until [`Self::forget_proposal`].
    pub async fn fetch_proposal(&self, name: &str, remote: &str) -> Result<Oid, GitError> {
        let local = format!("{PROPOSALS}{name}");
        self.fetch_refs(&[&format!("+{remote}:{local}")]).await?;
        self.blocking(move |mirror| Ok(mirror.repo()?.refname_to_id(&local)?))
            .await
    }

    /// Deletes a ref that [`Self::fetch_proposal`] made, if there is one.
    pub async fn forget_proposal(&self, name: &str) -> Result<(), GitError> {
        let local = format!("{PROPOSALS}{name}");
        self.blocking(move |mirror| match mirror.repo()?.find_reference(&local) {
            Ok(mut reference) => Ok(reference.delete()?),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        })
        .await
    }

    /// Whether the mirror has a commit.
    pub async fn has_commit(&self, commit: Oid) -> Result<bool, GitError> {
        self.blocking(move |mirror| Ok(mirror.repo()?.find_commit(commit).is_ok()))
            .await
    }

    /// What merging `head` into `tracked` would change.
    pub async fn propose(&self, tracked: Option<Oid>, head: Oid) -> Result<Proposal, GitError> {
        self.blocking(move |mirror| Ok(propose(&mirror.directory, tracked, head)?))
            .await
    }
}

fn propose(mirror: &Path, tracked: Option<Oid>, head: Oid) -> Result<Proposal, git2::Error> {
    let open = || Repository::open_bare(mirror);
    let tree = |commit: Oid| Ok::<_, git2::Error>(Arc::new(GitTree::of(open()?, commit)?));
    let Some(tracked) = tracked else {
        return Ok(Proposal {
            base: None,
            head: tree(head)?,
            conflicts: false,
        });
    };
    let repo = open()?;
    // What the merge makes is in nobody's way afterwards: it stays in memory.
    repo.odb()?.add_new_mempack_backend(merge::MEMORY_FIRST)?;
    if let Some(merged) = merge::trees(&repo, tracked, head)? {
        return Ok(Proposal {
            base: Some(tree(tracked)?),
            head: Arc::new(GitTree::at(repo, merged)),
            conflicts: false,
        });
    }
    let branched_off = match repo.merge_base(tracked, head) {
        Ok(commit) => commit,
        // Histories that have nothing in common.
        Err(error) if error.code() == ErrorCode::NotFound => tracked,
        Err(error) => return Err(error),
    };
    Ok(Proposal {
        base: Some(tree(branched_off)?),
        head: tree(head)?,
        conflicts: true,
    })
}
