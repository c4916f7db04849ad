//! What a commit of a fleet repo looks like to this crate.
//!
//! A [`Tree`] answers by exact path and never follows a symlink; [`resolve`] walks a path component by
//! component, follows the symlinks inside the repo and tells which ones it passed. So whoever uses a path
//! knows everything that its meaning depended on.
//!
//! Content is named by [`ContentId`]: equal ids mean equal content. The reverse need not hold.

mod changes;
mod listing;
mod path;
mod resolve;
mod worktree;

use std::{error::Error, fmt, sync::Arc};

pub use changes::Changes;
pub use listing::{Listed, Listing};
pub use path::{InvalidPath, RepoPath};
pub(crate) use resolve::resolve_noting;
pub use resolve::{MAX_SYMLINKS, ResolveError, Resolved, resolve};
pub use worktree::WorkTree;

/// The name of some content: a Git object id, padded with zeros, or a SHA-256 digest.
///
/// Equal ids mean equal content, whatever tree they come from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId(pub [u8; 32]);

impl ContentId {
    /// The id whose first bytes are `bytes`, padded with zeros; what is past 32 bytes is ignored.
    pub fn padded(bytes: &[u8]) -> Self {
        let mut id = [0; 32];
        for (to, from) in id.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self(id)
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.iter().take(6) {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A symlink; its blob is the target.
    Symlink,
    /// A directory.
    Directory,
    /// A commit of another repo.
    Submodule,
}

/// One entry of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// What it is.
    pub kind: EntryKind,
    /// What it holds.
    pub id: ContentId,
}

/// An immutable tree of files, such as one commit's.
///
/// Every method may block. The root directory is the empty path.
pub trait Tree: Send + Sync {
    /// What stands at exactly `path`, no symlink followed; `None` where nothing does, also where a parent is
    /// missing or no directory.
    fn entry(&self, path: &RepoPath) -> Result<Option<TreeEntry>, TreeError>;

    /// The entries of the directory at exactly `dir`; empty where it is no directory.
    fn list(&self, dir: &RepoPath) -> Result<Arc<Listing>, TreeError>;

    /// The size in bytes of a file's or symlink's content that this tree has named.
    fn size(&self, id: ContentId) -> Result<u64, TreeError>;

    /// A file's or symlink's content that this tree has named.
    fn blob(&self, id: ContentId) -> Result<Vec<u8>, TreeError>;
}

/// The tree could not be read: our trouble (a disk, a damaged object store), not the repo owner's.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot read {what}")]
pub struct TreeError {
    /// What was being read.
    pub what: String,
    /// Why it could not be.
    #[source]
    pub source: Arc<dyn Error + Send + Sync>,
}

impl TreeError {
    /// `what` could not be read because of `source`.
    pub fn new(what: impl fmt::Display, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            what: what.to_string(),
            source: source.into().into(),
        }
    }
}
