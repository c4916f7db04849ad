//! A commit's tree, as the pure part of the way sees it.

use std::sync::{Arc, Mutex, PoisonError};

use git2::{Oid, Repository};
use longshore_fleet::{
    ContentId, EntryKind, Listed, Listing, RepoPath, Tree, TreeEntry, TreeError,
};

/// How many entries a directory has that is remembered here. Smaller ones libgit2 remembers, and larger ones it would
/// read and parse anew for each path below them.
const LARGE: usize = 50;
/// How many large directories are remembered: a fleet's devices before and after a commit, and some more.
const REMEMBERED: usize = 4;

/// One commit's tree in a repo on disk. Its content ids are Git object ids.
pub struct GitTree {
    // A `Repository` may move between threads, but only one may use it at a time.
    repo: Mutex<Repository>,
    root: Oid,
    large: Arc<LargeDirectories>,
}

/// The large directories that were looked at last, in whatever tree of a repo; the last of them at the end.
#[derive(Debug, Default)]
pub struct LargeDirectories(Mutex<Vec<(Oid, Arc<Listing>)>>);

impl LargeDirectories {
    fn get(&self, id: Oid) -> Option<Arc<Listing>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = known.iter().position(|(other, _listing)| *other == id)?;
        let found = known.remove(place);
        known.push(found.clone());
        Some(found.1)
    }

    fn put(&self, id: Oid, listing: &Arc<Listing>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() == REMEMBERED {
            known.remove(0);
        }
        known.push((id, listing.clone()));
    }
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
        Ok(Self::at(repo, root))
    }

    /// The tree `root` itself, such as one that a merge made and no commit has.
    pub fn at(repo: Repository, root: Oid) -> Self {
        Self {
            repo: Mutex::new(repo),
            root,
            large: Arc::default(),
        }
    }

    /// The same, with what other trees of the repo remember of large directories.
    #[must_use]
    pub fn sharing(self, large: Arc<LargeDirectories>) -> Self {
        Self { large, ..self }
    }

    fn with<T>(
        &self,
        what: &str,
        read: impl FnOnce(&Repository) -> Result<T, git2::Error>,
    ) -> Result<T, TreeError> {
        let repo = self.repo.lock().unwrap_or_else(PoisonError::into_inner);
        read(&repo).map_err(|error| TreeError::new(what, error))
    }

    /// The entry `name` of the directory `id`.
    fn child(
        &self,
        repo: &Repository,
        id: Oid,
        name: &[u8],
    ) -> Result<Option<TreeEntry>, git2::Error> {
        if let Some(known) = self.large.get(id) {
            return Ok(known.get(name));
        }
        let tree = repo.find_tree(id)?;
        if tree.len() < LARGE {
            let found = tree.iter().find(|entry| entry.name_bytes() == name);
            return Ok(found.and_then(|entry| entry_of(entry.id(), entry.filemode())));
        }
        Ok(self.listing(id, &tree).get(name))
    }

    fn listing(&self, id: Oid, tree: &git2::Tree<'_>) -> Arc<Listing> {
        let listed = |entry: git2::TreeEntry<'_>| {
            Some(Listed {
                name: entry.name_bytes().into(),
                entry: entry_of(entry.id(), entry.filemode())?,
            })
        };
        let listing = Arc::new(tree.iter().filter_map(listed).collect());
        if tree.len() >= LARGE {
            self.large.put(id, &listing);
        }
        listing
    }

    /// What stands at `path`.
    fn find(&self, repo: &Repository, path: &RepoPath) -> Result<Option<TreeEntry>, git2::Error> {
        let mut at = TreeEntry {
            kind: EntryKind::Directory,
            id: content_id(self.root),
        };
        for component in path.components() {
            if at.kind != EntryKind::Directory {
                return Ok(None);
            }
            match self.child(repo, oid(at.id)?, component.as_bytes())? {
                Some(child) => at = child,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }
}

impl Tree for GitTree {
    fn entry(&self, path: &RepoPath) -> Result<Option<TreeEntry>, TreeError> {
        self.with(path.as_str(), |repo| self.find(repo, path))
    }

    fn list(&self, dir: &RepoPath) -> Result<Arc<Listing>, TreeError> {
        self.with(dir.as_str(), |repo| {
            let id = match self.find(repo, dir)? {
                Some(entry) if entry.kind == EntryKind::Directory => oid(entry.id)?,
                _ => return Ok(Arc::default()),
            };
            match self.large.get(id) {
                Some(known) => Ok(known),
                None => Ok(self.listing(id, &repo.find_tree(id)?)),
            }
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

const DIRECTORY: i32 = 0o040_000;

fn content_id(oid: Oid) -> ContentId {
    ContentId::padded(oid.as_bytes())
}

fn oid(id: ContentId) -> Result<Oid, git2::Error> {
    Oid::from_bytes(id.0.get(..20).unwrap_or_default())
}

fn entry_of(id: Oid, mode: i32) -> Option<TreeEntry> {
    // Git knows these modes and some older ones of plain files.
    let kind = match mode {
        0o100_755 => EntryKind::File { executable: true },
        0o120_000 => EntryKind::Symlink,
        DIRECTORY => EntryKind::Directory,
        0o160_000 => EntryKind::Submodule,
        mode if mode & 0o170_000 == 0o100_000 => EntryKind::File { executable: false },
        _ => return None,
    };
    Some(TreeEntry {
        kind,
        id: content_id(id),
    })
}
