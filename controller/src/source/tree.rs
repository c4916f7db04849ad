//! A commit's tree, as the pure part of the way sees it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use git2::{Oid, Repository};
use longshore_fleet::{ContentId, EntryKind, Listed, RepoPath, Tree, TreeEntry, TreeError};

/// How many entries a directory has that is remembered here. Smaller ones libgit2 remembers, and larger ones it would
/// read and parse anew for each path below them.
const LARGE: usize = 50;

/// One commit's tree in a repo on disk. Its content ids are Git object ids.
pub struct GitTree {
    // A `Repository` may move between threads, but only one may use it at a time.
    repo: Mutex<Objects>,
    root: Oid,
}

struct Objects {
    repo: Repository,
    large: HashMap<Oid, Directory>,
}

/// The entries of a directory by name: id and mode.
type Directory = HashMap<Vec<u8>, (Oid, i32)>;

impl Objects {
    fn new(repo: Repository) -> Mutex<Self> {
        Mutex::new(Self {
            repo,
            large: HashMap::new(),
        })
    }

    /// The entry `name` of the directory `tree`: its id and mode.
    fn child(&mut self, tree: Oid, name: &[u8]) -> Result<Option<(Oid, i32)>, git2::Error> {
        if let Some(directory) = self.large.get(&tree) {
            return Ok(directory.get(name).copied());
        }
        let found = self.repo.find_tree(tree)?;
        if found.len() < LARGE {
            let found = found.iter().find(|entry| entry.name_bytes() == name);
            return Ok(found.map(|entry| (entry.id(), entry.filemode())));
        }
        let directory: Directory = found
            .iter()
            .map(|entry| (entry.name_bytes().to_vec(), (entry.id(), entry.filemode())))
            .collect();
        let child = directory.get(name).copied();
        self.large.insert(tree, directory);
        Ok(child)
    }

    /// What stands at `path` below `root`: its id and mode.
    fn find(&mut self, root: Oid, path: &RepoPath) -> Result<Option<(Oid, i32)>, git2::Error> {
        let mut at = (root, DIRECTORY);
        for component in path.components() {
            if at.1 != DIRECTORY {
                return Ok(None);
            }
            match self.child(at.0, component.as_bytes())? {
                Some(child) => at = child,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }
}

const DIRECTORY: i32 = 0o040_000;

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
            repo: Objects::new(repo),
            root,
        })
    }

    /// The tree `root` itself, such as one that a merge made and no commit has.
    pub fn at(repo: Repository, root: Oid) -> Self {
        Self {
            repo: Objects::new(repo),
            root,
        }
    }

    fn with<T>(
        &self,
        what: &str,
        read: impl FnOnce(&mut Objects) -> Result<T, git2::Error>,
    ) -> Result<T, TreeError> {
        let mut repo = self.repo.lock().unwrap_or_else(PoisonError::into_inner);
        read(&mut repo).map_err(|error| TreeError::new(what, error))
    }
}

impl Tree for GitTree {
    fn entry(&self, path: &RepoPath) -> Result<Option<TreeEntry>, TreeError> {
        self.with(path.as_str(), |objects| {
            let found = objects.find(self.root, path)?;
            Ok(found.and_then(|(id, mode)| entry_of(id, mode)))
        })
    }

    fn list(&self, dir: &RepoPath) -> Result<Vec<Listed>, TreeError> {
        self.with(dir.as_str(), |objects| {
            let Some((tree, DIRECTORY)) = objects.find(self.root, dir)? else {
                return Ok(Vec::new());
            };
            let listed = |name: &[u8], id, mode| {
                let name = name.to_vec();
                Some(Listed {
                    name,
                    entry: entry_of(id, mode)?,
                })
            };
            let tree = objects.repo.find_tree(tree)?;
            let entries = tree.iter();
            Ok(entries
                .filter_map(|entry| listed(entry.name_bytes(), entry.id(), entry.filemode()))
                .collect())
        })
    }

    fn size(&self, id: ContentId) -> Result<u64, TreeError> {
        self.with("a file's size", |objects| {
            let (size, _kind) = objects.repo.odb()?.read_header(oid(id)?)?;
            Ok(size as u64)
        })
    }

    fn blob(&self, id: ContentId) -> Result<Vec<u8>, TreeError> {
        self.with("a file", |objects| {
            Ok(objects.repo.find_blob(oid(id)?)?.content().to_vec())
        })
    }
}

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
