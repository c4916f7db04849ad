//! Following a path through the symlinks of a tree.

use super::{EntryKind, InvalidPath, RepoPath, Tree, TreeEntry, TreeError};

/// How many symlinks one path may pass: fewer than on Linux, so that a hostile repo cannot make every one of
/// its references a long walk.
pub const MAX_SYMLINKS: usize = 8;

/// The longest symlink target that is read.
const MAX_TARGET: u64 = 1024;

/// Where a path led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The path with every symlink replaced by what it stands for.
    pub path: RepoPath,
    /// What stands there: never a symlink. The root directory's id is all zeros.
    pub entry: TreeEntry,
    /// Every symlink passed, in order.
    pub symlinks: Vec<(RepoPath, TreeEntry)>,
}

/// Why a path leads nowhere.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    /// Nothing stands there.
    #[error("`{0}` does not exist")]
    NotFound(RepoPath),
    /// A symlink's target is absolute, leaves the repo, or is no text.
    #[error("the symlink `{link}` is refused: {reason}")]
    Symlink {
        /// Where the symlink stands.
        link: RepoPath,
        /// What is wrong with its target.
        reason: String,
    },
    /// More than [`MAX_SYMLINKS`] symlinks.
    #[error("`{0}` passes more than {MAX_SYMLINKS} symlinks; do they form a loop?")]
    Loop(RepoPath),
    /// The path leads into a submodule.
    #[error("`{0}` is a submodule; submodules are not followed")]
    Submodule(RepoPath),
    /// The tree could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Walks `path` from the root, following symlinks that stay in the repo.
///
/// # Errors
/// See [`ResolveError`]; all but [`ResolveError::Tree`] are the repo's.
pub fn resolve(tree: &dyn Tree, path: &RepoPath) -> Result<Resolved, ResolveError> {
    resolve_noting(tree, path, &mut Vec::new())
}

/// The same. Adds to `noted` where it looked: as long as the same stands at these paths (see
/// [`Changes::concern`](super::Changes::concern)), the outcome is the same.
pub(crate) fn resolve_noting(
    tree: &dyn Tree,
    path: &RepoPath,
    noted: &mut Vec<RepoPath>,
) -> Result<Resolved, ResolveError> {
    let mut at = RepoPath::root();
    let mut entry = TreeEntry {
        kind: EntryKind::Directory,
        id: super::ContentId([0; 32]),
    };
    let mut symlinks = Vec::new();
    // What is still to be walked, the next component last.
    let mut ahead: Vec<String> = reversed(path.as_str());
    while let Some(component) = ahead.pop() {
        if entry.kind != EntryKind::Directory {
            return Err(ResolveError::NotFound(path.clone()));
        }
        if component == ".." {
            // Only from a symlink's target. `at` is free of symlinks, so its parent is the real one.
            at = at.parent().ok_or_else(|| escapes(&symlinks))?;
            entry = directory(tree, &at)?;
            note(noted, &at);
            continue;
        }
        let here = at.join(&component);
        note(noted, &here);
        let Some(found) = tree.entry(&here)? else {
            return Err(ResolveError::NotFound(path.clone()));
        };
        match found.kind {
            EntryKind::Symlink => {
                symlinks.push((here.clone(), found));
                if symlinks.len() > MAX_SYMLINKS {
                    return Err(ResolveError::Loop(path.clone()));
                }
                ahead.extend(reversed(&target(tree, &here, found)?));
            }
            EntryKind::Submodule => return Err(ResolveError::Submodule(here)),
            EntryKind::Directory | EntryKind::File { .. } => {
                at = here;
                entry = found;
            }
        }
    }
    Ok(Resolved {
        path: at,
        entry,
        symlinks,
    })
}

/// Whoever notes a path notes what is above it, too; so a walk downwards leaves its end.
fn note(noted: &mut Vec<RepoPath>, path: &RepoPath) {
    if let Some(last) = noted.last_mut()
        && path.is_below(last)
    {
        *last = path.clone();
    } else {
        noted.push(path.clone());
    }
}

fn reversed(path: &str) -> Vec<String> {
    path.split('/')
        .rev()
        .filter(|part| !matches!(*part, "" | "."))
        .map(str::to_owned)
        .collect()
}

fn directory(tree: &dyn Tree, at: &RepoPath) -> Result<TreeEntry, ResolveError> {
    if at.is_root() {
        return Ok(TreeEntry {
            kind: EntryKind::Directory,
            id: super::ContentId([0; 32]),
        });
    }
    tree.entry(at)?
        .ok_or_else(|| ResolveError::NotFound(at.clone()))
}

fn escapes(symlinks: &[(RepoPath, TreeEntry)]) -> ResolveError {
    let link = symlinks
        .last()
        .map_or_else(RepoPath::root, |(link, _entry)| link.clone());
    ResolveError::Symlink {
        link,
        reason: "it leaves the repo".to_owned(),
    }
}

fn target(tree: &dyn Tree, link: &RepoPath, entry: TreeEntry) -> Result<String, ResolveError> {
    let refused = |reason: String| ResolveError::Symlink {
        link: link.clone(),
        reason,
    };
    if tree.size(entry.id)? > MAX_TARGET {
        return Err(refused("its target is longer than 4096 bytes".to_owned()));
    }
    let target = String::from_utf8(tree.blob(entry.id)?)
        .map_err(|_bytes| refused("its target is not UTF-8".to_owned()))?;
    if target.is_empty() {
        return Err(refused("its target is empty".to_owned()));
    }
    match RepoPath::new(&target) {
        Err(InvalidPath::Absolute(target)) => {
            Err(refused(format!("its target `{target}` is absolute")))
        }
        Err(InvalidPath::Nul(_)) => Err(refused("its target holds a NUL character".to_owned())),
        // A target may start with `..`; whether it leaves the repo shows while walking.
        Ok(_) | Err(InvalidPath::Escapes(_)) => Ok(target),
    }
}
