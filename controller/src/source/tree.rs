//! A commit's tree, as the pure part of the way sees it.

use std::sync::{Mutex, PoisonError};

use git2::{ObjectType, Oid, Repository};
use longshore_fleet::{ContentId, EntryKind, Listed, RepoPath, Tree, TreeEntry, TreeError};

/// One commit's tree in a repo on disk. Its content ids are Git object ids.
pub struct GitTree {
    // A `Repository` may move between threads, but only one may use it at a time.
    repo: Mutex<Repository>,
    root: Oid,
}

impl std::fmt::Debug for GitTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GitTree({})", self.root)
    }
}

impl GitTree {
    /// The tree of `commit`.
    pub fn of(repo: Repository, commit: Oid) -> Result<Self, git2::Error> {
        let root = repo.find_commit(commit)?.tree_id();
        Ok(Self {
            repo: Mutex::new(repo),
            root,
        })
    }

    /// The tree `root` itself, such as one that a merge made and no commit has.
    pub fn at(repo: Repository, root: Oid) -> Self {
        Self {
            repo: Mutex::new(repo),
            root,
        }
    }

    fn with<T>(
        &self,
        what: &str,
        read: impl FnOnce(&Repository) -> Result<T, git2::Error>,
    ) -> Result<T, TreeError> {
        let repo = self.repo.lock().unwrap_or_else(PoisonError::into_inner);
        read(&repo).map_err(|error| TreeError::new(what, error))
    }
}

impl Tree for GitTree {
    fn entry(&self, path: &RepoPath) -> Result<Option<TreeEntry>, TreeError> {
        self.with(path.as_str(), |repo| {
            if path.is_root() {
                let id = content_id(self.root);
                return Ok(Some(TreeEntry {
                    kind: EntryKind::Directory,
                    id,
                }));
            }
            match repo.find_tree(self.root)?.get_path(path.as_str().as_ref()) {
                Ok(entry) => Ok(entry_of(&entry)),
                Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn list(&self, dir: &RepoPath) -> Result<Vec<Listed>, TreeError> {
        self.with(dir.as_str(), |repo| {
            let root = repo.find_tree(self.root)?;
            let tree = if dir.is_root() {
                root
            } else {
                match root.get_path(dir.as_str().as_ref()) {
                    Ok(entry) if entry.kind() == Some(ObjectType::Tree) => {
                        repo.find_tree(entry.id())?
                    }
                    Ok(_) => return Ok(Vec::new()),
                    Err(error) if error.code() == git2::ErrorCode::NotFound => {
                        return Ok(Vec::new());
                    }
                    Err(error) => return Err(error),
                }
            };
            Ok(tree
                .iter()
                .filter_map(|entry| {
                    let name = entry.name_bytes().to_vec();
                    Some(Listed {
                        name,
                        entry: entry_of(&entry)?,
                    })
                })
                .collect())
        })
    }

    fn size(&self, id: ContentId) -> Result<u64, TreeError> {
        self.with("a file's size", |repo| {
            let (size, _kind) = repo.odb()?.read_header(oid(id)?)?;
            Ok(size as u64)
        })
    }

    fn blob(&self, id: ContentId) -> Result<Vec<u8>, TreeError> {
        self.with("a file", |repo| {
            Ok(repo.find_blob(oid(id)?)?.content().to_vec())
        })
    }
}

fn content_id(oid: Oid) -> ContentId {
    ContentId::padded(oid.as_bytes())
}

fn oid(id: ContentId) -> Result<Oid, git2::Error> {
    Oid::from_bytes(id.0.get(..20).unwrap_or_default())
}

fn entry_of(entry: &git2::TreeEntry<'_>) -> Option<TreeEntry> {
    let kind = match entry.filemode() {
        0o100_755 => EntryKind::File { executable: true },
        0o120_000 => EntryKind::Symlink,
        0o040_000 => EntryKind::Directory,
        0o160_000 => EntryKind::Submodule,
        _ if entry.kind() == Some(ObjectType::Blob) => EntryKind::File { executable: false },
        _ => return None,
    };
    Some(TreeEntry {
        kind,
        id: content_id(entry.id()),
    })
}
