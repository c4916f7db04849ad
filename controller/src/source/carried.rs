//! What a fleet's enrollment works with in Git: which keys a branch carries, what a branch was made of, and
//! commits that stack up.
//!
//! A branch carries a device when a `device.yaml` of it says the device's key, in whatever folder, and the tracked
//! branch does not have that same file. Files are searched for keys rather than read, so that an edit that breaks
//! one takes nobody away.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
};

use git2::{ErrorCode, ObjectType, Oid, Repository, Tree, TreeEntry, build::TreeUpdateBuilder};
use longshore_fleet::RepoPath;
use longshore_protocol::Digest;

use super::{
    git::GitError,
    merge,
    mirror::{Edit, Mirror, author},
};

/// The largest `device.yaml` that is searched, in bytes; the fleet's reader refuses larger ones too.
const MAX_DEVICE_FILE: usize = 64 * 1024;
const KEY_PREFIX: &str = "sha256:";
const KEY_LENGTH: usize = KEY_PREFIX.len() + 64;

/// What a branch has that the tracked branch has not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// The folder below `devices/` whose `device.yaml` says the key.
    pub folders: HashMap<Digest, String>,
    /// Whether some `device.yaml` could not be searched, so that nobody knows which keys it says.
    pub unknown: bool,
}

impl Carried {
    /// Whether the branch may say this key.
    pub fn may_have(&self, key: Digest) -> bool {
        self.unknown || self.folders.contains_key(&key)
    }
}

/// What a commit says of the places where enrollments write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ground {
    folders: HashMap<String, (Oid, Option<ObjectType>)>,
    /// Whether there is a base that new overlays take in.
    pub base: bool,
}

impl Ground {
    /// Whether a device's folder would be made of the same as on `other`.
    pub fn is_same_for(&self, folder: &str, other: &Self) -> bool {
        self.base == other.base && self.folders.get(folder) == other.folders.get(folder)
    }

    /// Whether there is something of that name already.
    pub fn has(&self, folder: &str) -> bool {
        self.folders.contains_key(folder)
    }

    /// Whether something of that name is there that is no folder.
    pub fn is_blocked(&self, folder: &str) -> bool {
        self.folders
            .get(folder)
            .is_some_and(|(_, kind)| *kind != Some(ObjectType::Tree))
    }
}

/// One commit of a stack.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it changes.
    pub edits: Vec<Edit>,
    /// What it says.
    pub message: String,
}

impl Mirror {
    /// What `tip` carries that `tracked` does not.
    pub async fn carried(
        &self,
        tip: Oid,
        tracked: Oid,
        root: &RepoPath,
    ) -> Result<Carried, GitError> {
        let devices = root.join("devices");
        self.blocking(move |mirror| {
            let repo = mirror.repo()?;
            let tree = |commit| repo.find_commit(commit)?.tree();
            let folders = |commit| subtree(&repo, &tree(commit)?, devices.as_str());
            let (old, new) = (folders(tracked)?, folders(tip)?);
            let odb = repo.odb()?;
            let mut carried = Carried::default();
            // Two levels and no deeper: what else is in the folders may be anything, in any number.
            for folder in new.iter().flatten() {
                let before = old
                    .as_ref()
                    .and_then(|old| old.get_name_bytes(folder.name_bytes()));
                if before
                    .as_ref()
                    .is_some_and(|before| before.id() == folder.id())
                {
                    continue;
                }
                let before = before.map_or(Ok(None), |before| device_file(&repo, &before))?;
                let file = device_file(&repo, &folder)?.filter(|file| Some(*file) != before);
                let (Some(file), Ok(name)) = (file, folder.name()) else {
                    continue;
                };
                if odb.read_header(file)?.0 > MAX_DEVICE_FILE {
                    carried.unknown = true;
                    continue;
                }
                let keys = keys(repo.find_blob(file)?.content())
                    .map(|key| (key, name.to_owned()))
                    .collect::<Vec<_>>();
                carried.folders.extend(keys);
            }
            Ok(carried)
        })
        .await
    }

    /// The keys that the `device.yaml` of these folders say at `commit`, whatever else they say.
    pub async fn keys_of(
        &self,
        commit: Oid,
        root: &RepoPath,
        folders: Vec<String>,
    ) -> Result<HashSet<Digest>, GitError> {
        let devices = root.join("devices");
        self.blocking(move |mirror| {
            let repo = mirror.repo()?;
            let tree = repo.find_commit(commit)?.tree()?;
            let mut found = HashSet::new();
            for folder in folders {
                let file = devices.join(&folder).join("device.yaml");
                if let Ok(entry) = tree.get_path(Path::new(file.as_str()))
                    && let Ok(blob) = repo.find_blob(entry.id())
                {
                    let start = blob.content().iter().take(MAX_DEVICE_FILE);
                    found.extend(keys(&start.copied().collect::<Vec<_>>()));
                }
            }
            Ok(found)
        })
        .await
    }

    /// What enrollments on top of `commit` depend on.
    pub async fn ground(&self, commit: Oid, root: &RepoPath) -> Result<Ground, GitError> {
        let devices = root.join("devices");
        let base = root.join("base").join("kustomization.yaml");
        self.blocking(move |mirror| {
            let repo = mirror.repo()?;
            let tree = repo.find_commit(commit)?.tree()?;
            let folders = match subtree(&repo, &tree, devices.as_str())? {
                Some(devices) => devices
                    .iter()
                    .filter_map(|entry| {
                        Some((entry.name().ok()?.to_owned(), (entry.id(), entry.kind())))
                    })
                    .collect(),
                None => HashMap::new(),
            };
            let base = tree.get_path(Path::new(base.as_str())).is_ok();
            Ok(Ground { folders, base })
        })
        .await
    }

    /// Makes commits on top of `base`, each on top of the one before; the first one of an empty repo has none.
    pub async fn stack(&self, base: Option<Oid>, steps: Vec<Step>) -> Result<Vec<Oid>, GitError> {
        self.blocking(move |mirror| {
            let repo = mirror.repo()?;
            let author = author()?;
            let mut parent = base.map(|id| repo.find_commit(id)).transpose()?;
            let mut commits = Vec::with_capacity(steps.len());
            for step in steps {
                let tree = match &parent {
                    Some(parent) => parent.tree()?,
                    None => repo.find_tree(repo.treebuilder(None)?.write()?)?,
                };
                let tree = edited(&repo, &tree, &step.edits)?;
                let parents: Vec<_> = parent.iter().collect();
                let id = repo.commit(None, &author, &author, &step.message, &tree, &parents)?;
                commits.push(id);
                parent = Some(repo.find_commit(id)?);
            }
            Ok(commits)
        })
        .await
    }

    /// Makes a commit on top of `ours` that has the folder `path` as `theirs` has it.
    pub async fn graft(
        &self,
        ours: Oid,
        theirs: Oid,
        path: &RepoPath,
        message: String,
    ) -> Result<Oid, GitError> {
        let path = path.as_str().to_owned();
        self.blocking(move |mirror| {
            let repo = mirror.repo()?;
            let ours = repo.find_commit(ours)?;
            let theirs = repo.find_commit(theirs)?.tree()?;
            let entry = theirs.get_path(Path::new(&path))?;
            let mut builder = TreeUpdateBuilder::new();
            builder.upsert(path.as_str(), entry.id(), git2::FileMode::Tree);
            let tree = repo.find_tree(builder.create_updated(&repo, &ours.tree()?)?)?;
            let author = author()?;
            Ok(repo.commit(None, &author, &author, &message, &tree, &[&ours])?)
        })
        .await
    }

    /// Whether merging `theirs` into `ours` needs a person.
    pub async fn conflicts(&self, ours: Oid, theirs: Oid) -> Result<bool, GitError> {
        self.blocking(move |mirror| {
            let repo = mirror.repo()?;
            repo.odb()?.add_new_mempack_backend(merge::MEMORY_FIRST)?;
            Ok(merge::trees(&repo, ours, theirs)?.is_none())
        })
        .await
    }

    /// Whether the history of `tip` has `commit`.
    pub async fn reaches(&self, tip: Oid, commit: Oid) -> Result<bool, GitError> {
        self.blocking(move |mirror| {
            let repo = mirror.repo()?;
            Ok(tip == commit || repo.graph_descendant_of(tip, commit)?)
        })
        .await
    }

    /// Brings the commit that `reference` of the repo points to into the mirror.
    pub async fn bring(&self, reference: &str) -> Result<(), GitError> {
        self.fetch_refs(&[reference]).await
    }
}

/// A tree with these edits; the last one of a path counts.
fn edited<'repo>(
    repo: &'repo Repository,
    tree: &Tree<'_>,
    edits: &[Edit],
) -> Result<Tree<'repo>, git2::Error> {
    let edits: BTreeMap<_, _> = edits.iter().map(|edit| (&edit.path, edit)).collect();
    let mut builder = TreeUpdateBuilder::new();
    for edit in edits.into_values() {
        match &edit.content {
            Some(content) => {
                let blob = repo.blob(content.as_bytes())?;
                builder.upsert(edit.path.as_str(), blob, git2::FileMode::Blob);
            }
            None => {
                builder.remove(edit.path.as_str());
            }
        }
    }
    repo.find_tree(builder.create_updated(repo, tree)?)
}

fn subtree<'repo>(
    repo: &'repo Repository,
    tree: &Tree<'_>,
    path: &str,
) -> Result<Option<Tree<'repo>>, git2::Error> {
    match tree.get_path(Path::new(path)) {
        Ok(entry) if entry.kind() == Some(ObjectType::Tree) => repo.find_tree(entry.id()).map(Some),
        Ok(_) => Ok(None),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The `device.yaml` of a folder below `devices/`.
fn device_file(repo: &Repository, folder: &TreeEntry<'_>) -> Result<Option<Oid>, git2::Error> {
    if folder.kind() != Some(ObjectType::Tree) {
        return Ok(None);
    }
    let folder = repo.find_tree(folder.id())?;
    let file = folder
        .get_name("device.yaml")
        .filter(|file| file.kind() == Some(ObjectType::Blob));
    Ok(file.map(|file| file.id()))
}

/// All keys that a text says.
fn keys(content: &[u8]) -> impl Iterator<Item = Digest> {
    content.windows(KEY_LENGTH).filter_map(|window| {
        let text = std::str::from_utf8(window).ok()?;
        text.starts_with(KEY_PREFIX)
            .then(|| text.parse().ok())
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_wherever_they_stand() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let text = format!("publicKey: \"{one}\"\n# was {two}, \u{1f6a2} sha256:abc\n");
        assert_eq!(keys(text.as_bytes()).collect::<Vec<_>>(), [one, two]);
        assert_eq!(keys(b"sha256:").count(), 0);
    }
}
