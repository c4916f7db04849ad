//! Everything that an overlay's build reads, found without building it.
//!
//! The walk reads each kustomization file itself, follows every path that it names through the tree, and
//! collects the files that it meets. From their ids comes the [`InputKey`]: same key, same output.
//!
//! ```text
//! overlay ─▶ kustomization.yaml ─▶ references ─▶ files ──────────┐
//!    ▲                                 │ directories             ├─▶ Closure { key, files }
//!    └─────────── each once ───────────┘ symlinks on the way ────┘
//! ```
//!
//! The same walk is the security check: a path that leaves the repo, a remote base, a Helm chart, a plugin that
//! is a program are refused with file and line before any process runs.
//!
//! **The key is complete by construction.** The renderer gets the files of the closure and nothing else, so
//! what is not hashed cannot be read. Where this walk and kustomize read a file differently, the worst that can
//! come of it is that kustomize does not find a file.

mod kustomization;
mod walk;

use std::{fmt, sync::Arc};

use longshore_protocol::{Digest, digest::Hasher};

pub(crate) use kustomization::KUSTOMIZATION_NAMES;
pub use walk::{ClosureCache, Closures, OverlayClosures};

use crate::{
    problem::Problem,
    tree::{ContentId, EntryKind, RepoPath, TreeError},
};

/// The digest of everything an overlay's build reads, and of the renderer's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InputKey(pub Digest);

impl fmt::Display for InputKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One file or symlink that a build may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosureFile {
    /// Where it stands in the repo.
    pub path: RepoPath,
    /// What it is: a file or a symlink.
    pub kind: EntryKind,
    /// What it holds.
    pub id: ContentId,
}

/// Everything that an overlay's build reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closure {
    /// The name of this input; equal keys give equal output.
    pub key: InputKey,
    /// The directory to build, free of symlinks.
    pub overlay: RepoPath,
    /// What the build reads, sorted by path.
    pub files: Arc<[ClosureFile]>,
}

impl Closure {
    fn new(renderer: &str, overlay: RepoPath, files: Arc<[ClosureFile]>) -> Self {
        let mut hasher = Hasher::new();
        hasher
            .part(b"longshore.dev/input-key/v1")
            .part(renderer.as_bytes())
            .part(overlay.as_str().as_bytes());
        for file in files.iter() {
            let mode: &[u8] = match file.kind {
                EntryKind::File { executable: false } => b"file",
                EntryKind::File { executable: true } => b"executable",
                EntryKind::Symlink => b"symlink",
                EntryKind::Directory => b"directory",
                EntryKind::Submodule => b"submodule",
            };
            hasher
                .part(file.path.as_str().as_bytes())
                .part(mode)
                .part(&file.id.0);
        }
        Self {
            key: InputKey(hasher.finish()),
            overlay,
            files,
        }
    }
}

/// Why an overlay has no closure.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClosureError {
    /// The repo's content is at fault; the same content always gives the same problem.
    #[error("{0}")]
    Refused(Problem),
    /// The tree could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl From<Problem> for ClosureError {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}
