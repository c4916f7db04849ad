//! What a fleet's enrollment works with in Git: which keys a branch carries, what a branch was made of, and
//! commits that stack up.
//!
//! A branch carries a device when a `device.yaml` of it says the device's key, in whatever folder, and the tracked
//! branch does not have that same file. Files are searched for keys rather than read, so that an edit that breaks
//! one takes nobody away.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use git2::{
    Delta, DiffOptions, ErrorCode, ObjectType, Oid, Repository, Tree, build::TreeUpdateBuilder,
};
use longshore_fleet::RepoPath;
use longshore_protocol::Digest;

use super::{
    git::GitError,
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
            let mut options = DiffOptions::new();
            options
                .pathspec(devices.as_str())
                .disable_pathspec_match(true)
                .skip_binary_check(true);
            let (old, new) = (tree(tracked)?, tree(tip)?);
            let diff = repo.diff_tree_to_tree(Some(&old), Some(&new), Some(&mut options))?;
            let mut carried = Carried::default();
            for delta in diff.deltas() {
                let file = delta.new_file();
                let folder = file.path().and_then(|path| device_folder(path, &devices));
                let Some(folder) = folder.filter(|_| delta.status() != Delta::Deleted) else {
                    continue;
                };
                let blob = repo.find_blob(file.id());
                match blob.as_ref().map(git2::Blob::content) {
                    Ok(content) if content.len() <= MAX_DEVICE_FILE => {
                        let keys = keys(content).map(|key| (key, folder.clone()));
                        carried.folders.extend(keys);
                    }
                    _ => carried.unknown = true,
                }
            }
            Ok(carried)
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
            let (ours, theirs) = (repo.find_commit(ours)?, repo.find_commit(theirs)?);
            Ok(repo.merge_commits(&ours, &theirs, None)?.has_conflicts())
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

/// The folder below `devices` whose `device.yaml` this is.
fn device_folder(path: &Path, devices: &RepoPath) -> Option<String> {
    let inside = path.strip_prefix(devices.as_str()).ok()?.to_str()?;
    let folder = inside.strip_suffix("/device.yaml")?;
    (!folder.contains('/')).then(|| folder.to_owned())
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

    #[test]
    fn a_device_file_has_its_place() {
        let devices = RepoPath::new("edge/devices").unwrap();
        let folder = |path: &str| device_folder(Path::new(path), &devices);
        assert_eq!(folder("edge/devices/a/device.yaml").as_deref(), Some("a"));
        for other in [
            "devices/a/device.yaml",
            "edge/devices/device.yaml",
            "edge/devices/a/b/device.yaml",
            "edge/devices/a/other.yaml",
        ] {
            assert_eq!(folder(other), None, "{other}");
        }
    }
}
