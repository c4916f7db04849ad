//! The shortcut for a repo on this machine: what is new is copied in-process, without `git fetch`, whose four
//! processes take longer than all the rest of the way of a small commit.
//!
//! Only what differs is read: commits that the mirror's refs do not reach, and of their trees what their first
//! parent does not have. Blobs are written before trees, trees before commits, commits before refs, so a crash
//! leaves a mirror whose refs are whole. Anything unusual (a first fetch, a large change, an error of any kind) is
//! left to `git fetch`, which knows how to tell what is wrong.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use git2::{Error, ErrorCode, ObjectType, Odb, Oid, Repository, Sort, Tree};

use super::mirror::{BATCH_BRANCHES, ENROLL_BRANCHES, PROPOSALS, TRACKED};

/// How many objects are copied; more are for `git fetch`.
const MAX_OBJECTS: usize = 2000;
/// How deep folders are looked into.
const MAX_DEPTH: usize = 64;
/// The largest object that is copied, in bytes.
const MAX_SIZE: usize = 16 * 1024 * 1024;

/// Brings `mirror` up to date with the repo at `path`. Returns whether it did; where not, `git fetch` must.
///
/// # Errors
/// Where either repo cannot be read or written; then, too, `git fetch` must.
pub(super) fn bring(path: &Path, mirror: &Repository, branch: &str) -> Result<bool, Error> {
    let origin = Repository::open(path)?;
    let wanted = wanted(&origin, branch)?;
    let present = present(mirror)?;
    // What a first fetch brings is a whole history.
    if present.is_empty() && !wanted.is_empty() {
        return Ok(false);
    }
    let mut copying = Copying {
        origin: &origin,
        mirror,
        from: origin.odb()?,
        to: mirror.odb()?,
        left: MAX_OBJECTS,
    };
    let mut walk = origin.revwalk()?;
    walk.set_sorting(Sort::TOPOLOGICAL | Sort::REVERSE)?;
    for tip in wanted.values() {
        walk.push(*tip)?;
    }
    for tip in present.values() {
        // A tip that a force push dropped may be gone at the origin; then it hides nothing.
        if copying.from.exists(*tip) {
            walk.hide(*tip)?;
        }
    }
    for commit in walk {
        if !copying.commit(commit?)? {
            return Ok(false);
        }
    }
    for (name, tip) in &wanted {
        if present.get(name) != Some(tip) {
            mirror.reference(name, *tip, true, "fetch")?;
        }
    }
    for name in present.keys().filter(|name| !wanted.contains_key(*name)) {
        mirror.find_reference(name)?.delete()?;
    }
    Ok(true)
}

/// The mirror's refs as they should be.
fn wanted(origin: &Repository, branch: &str) -> Result<BTreeMap<String, Oid>, Error> {
    let mut wanted = BTreeMap::new();
    // The tracked branch comes last: a branch that was merged and deleted in between must not look deleted only.
    for branches in [ENROLL_BRANCHES, BATCH_BRANCHES] {
        for reference in origin.references_glob(&format!("refs/heads/{branches}*"))? {
            let reference = reference?;
            let name = String::from_utf8_lossy(reference.name_bytes()).into_owned();
            if let (Some(name), Some(tip)) = (name.strip_prefix("refs/heads/"), reference.target())
            {
                wanted.insert(format!("refs/{name}"), tip);
            }
        }
    }
    match origin.refname_to_id(&format!("refs/heads/{branch}")) {
        Ok(tip) => {
            wanted.insert(TRACKED.to_owned(), tip);
        }
        Err(error) if error.code() == ErrorCode::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(wanted)
}

/// The mirror's refs as they are.
fn present(mirror: &Repository) -> Result<BTreeMap<String, Oid>, Error> {
    let mut present = BTreeMap::new();
    for reference in mirror.references_glob("refs/longshore/*")? {
        let reference = reference?;
        if let Some(tip) = reference.target() {
            let name = String::from_utf8_lossy(reference.name_bytes()).into_owned();
            if !name.starts_with(PROPOSALS) {
                present.insert(name, tip);
            }
        }
    }
    Ok(present)
}

struct Copying<'a> {
    origin: &'a Repository,
    mirror: &'a Repository,
    from: Odb<'a>,
    to: Odb<'a>,
    left: usize,
}

impl Copying<'_> {
    /// Copies a commit whose parents are there already. Returns false where it is too much.
    fn commit(&mut self, id: Oid) -> Result<bool, Error> {
        let commit = self.origin.find_commit(id)?;
        let Ok(parent) = commit.parent(0) else {
            return Ok(false);
        };
        Ok(self.tree(&commit.tree()?, Some(&parent.tree()?), 0)? && self.object(id)?)
    }

    /// Copies a tree, but for what `known` has in the same place.
    fn tree(
        &mut self,
        tree: &Tree<'_>,
        known: Option<&Tree<'_>>,
        depth: usize,
    ) -> Result<bool, Error> {
        if depth == MAX_DEPTH {
            return Ok(false);
        }
        for entry in tree {
            let before = known.and_then(|known| known.get_name_bytes(entry.name_bytes()));
            if before
                .as_ref()
                .is_some_and(|before| before.id() == entry.id())
            {
                continue;
            }
            let copied = match entry.kind() {
                Some(ObjectType::Tree) => {
                    let before = before
                        .filter(|before| before.kind() == Some(ObjectType::Tree))
                        .map(|before| self.origin.find_tree(before.id()))
                        .transpose()?;
                    self.tree(
                        &self.origin.find_tree(entry.id())?,
                        before.as_ref(),
                        depth + 1,
                    )?
                }
                Some(ObjectType::Blob) => self.object(entry.id())?,
                // A submodule's commit is in another repo.
                _ => true,
            };
            if !copied {
                return Ok(false);
            }
        }
        self.object(tree.id())
    }

    fn object(&mut self, id: Oid) -> Result<bool, Error> {
        let (size, _kind) = self.from.read_header(id)?;
        if self.left == 0 || size > MAX_SIZE {
            return Ok(false);
        }
        self.left -= 1;
        if !matches!(self.loose(id), Ok(true)) {
            let object = self.from.read(id)?;
            self.to.write(object.kind(), object.data())?;
        }
        Ok(true)
    }

    /// Copies an object that has a file of its own, as what was just pushed has. Git has packed it, and who reads it in
    /// the mirror checks its hash; for the list of ten thousand folders, either takes milliseconds.
    fn loose(&self, id: Oid) -> io::Result<bool> {
        let name = id.to_string();
        let (folder, name) = name.split_at(2);
        let folder = Path::new("objects").join(folder);
        let mut from = match File::open(self.origin.commondir().join(&folder).join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            from => from?,
        };
        let folder = self.mirror.path().join(folder);
        fs::create_dir_all(&folder)?;
        let mut to = tempfile::Builder::new()
            .prefix("tmp_obj_")
            .permissions(fs::Permissions::from_mode(0o444))
            .tempfile_in(&folder)?;
        io::copy(&mut from, &mut to)?;
        match to.persist_noclobber(folder.join(name)) {
            Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
            _ => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use git2::{FileMode, Signature, build::TreeUpdateBuilder};

    use super::*;

    struct Pair {
        _directory: tempfile::TempDir,
        origin: Repository,
        mirror: Repository,
    }

    impl Pair {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let origin = Repository::init_bare(directory.path().join("origin")).unwrap();
            let mirror = Repository::init_bare(directory.path().join("mirror")).unwrap();
            Self {
                _directory: directory,
                origin,
                mirror,
            }
        }

        fn bring(&self) -> bool {
            bring(self.origin.path(), &self.mirror, "main").unwrap()
        }

        /// What `git fetch` does the first time.
        fn fetch_all(&self) {
            let mut remote = self
                .mirror
                .remote_anonymous(self.origin.path().to_str().unwrap())
                .unwrap();
            remote
                .fetch(&[format!("+refs/heads/main:{TRACKED}")], None, None)
                .unwrap();
        }

        fn commit(&self, branch: &str, parent: Option<Oid>, files: &[(&str, &str)]) -> Oid {
            let parent = parent.map(|id| self.origin.find_commit(id).unwrap());
            let empty = self.origin.treebuilder(None).unwrap().write().unwrap();
            let base = match &parent {
                Some(parent) => parent.tree().unwrap(),
                None => self.origin.find_tree(empty).unwrap(),
            };
            let mut update = TreeUpdateBuilder::new();
            for (path, content) in files {
                let blob = self.origin.blob(content.as_bytes()).unwrap();
                update.upsert(*path, blob, FileMode::Blob);
            }
            let tree = update.create_updated(&self.origin, &base).unwrap();
            let tree = self.origin.find_tree(tree).unwrap();
            let who = Signature::now("a", "a@localhost").unwrap();
            let parents: Vec<_> = parent.iter().collect();
            let id = self
                .origin
                .commit(None, &who, &who, "c", &tree, &parents)
                .unwrap();
            self.origin
                .reference(&format!("refs/heads/{branch}"), id, true, "")
                .unwrap();
            id
        }

        /// Reads everything that the mirror's refs reach.
        fn check(&self) {
            let mut walk = self.mirror.revwalk().unwrap();
            walk.push_glob("refs/longshore/*").unwrap();
            for commit in walk {
                let tree = self
                    .mirror
                    .find_commit(commit.unwrap())
                    .unwrap()
                    .tree()
                    .unwrap();
                tree.walk(git2::TreeWalkMode::PreOrder, |_, entry| {
                    self.mirror.odb().unwrap().read(entry.id()).unwrap();
                    git2::TreeWalkResult::Ok
                })
                .unwrap();
            }
        }
    }

    #[test]
    fn small_changes_are_copied_and_the_first_fetch_is_not() {
        let pair = Pair::new();
        assert!(pair.bring(), "nothing to bring from an empty repo");
        let first = pair.commit("main", None, &[("a/b/c", "1"), ("a/b/d", "1"), ("e", "1")]);
        assert!(!pair.bring(), "a history is for git fetch");
        pair.fetch_all();
        let second = pair.commit("main", Some(first), &[("a/b/c", "2"), ("f/g", "1")]);
        let third = pair.commit("main", Some(second), &[("e", "3")]);
        pair.commit(
            "longshore/enroll/device-1",
            Some(first),
            &[("devices/device-1/device.yaml", "x")],
        );
        assert!(pair.bring());
        assert_eq!(pair.mirror.refname_to_id(TRACKED).unwrap(), third);
        assert!(
            pair.mirror
                .refname_to_id("refs/longshore/enroll/device-1")
                .is_ok()
        );
        pair.check();

        let forced = pair.commit("main", Some(first), &[("a/b/c", "4")]);
        pair.origin
            .find_reference("refs/heads/longshore/enroll/device-1")
            .unwrap()
            .delete()
            .unwrap();
        assert!(pair.bring());
        assert_eq!(pair.mirror.refname_to_id(TRACKED).unwrap(), forced);
        assert!(
            pair.mirror
                .refname_to_id("refs/longshore/enroll/device-1")
                .is_err()
        );
        pair.check();
    }

    /// What stands in packs is copied object by object.
    #[test]
    fn an_origin_that_was_packed_is_no_different() {
        let pair = Pair::new();
        let first = pair.commit("main", None, &[("a/b", "1"), ("c", "1")]);
        pair.fetch_all();
        let second = pair.commit("main", Some(first), &[("a/b", "2")]);
        let mut pack = pair.origin.packbuilder().unwrap();
        let mut walk = pair.origin.revwalk().unwrap();
        walk.push(second).unwrap();
        pack.insert_walk(&mut walk).unwrap();
        pack.write(pair.origin.path().join("objects/pack").as_path(), 0)
            .unwrap();
        for folder in fs::read_dir(pair.origin.path().join("objects")).unwrap() {
            let folder = folder.unwrap().path();
            if folder.file_name().unwrap().len() == 2 {
                fs::remove_dir_all(folder).unwrap();
            }
        }
        assert!(pair.bring());
        assert_eq!(pair.mirror.refname_to_id(TRACKED).unwrap(), second);
        pair.check();
    }

    #[test]
    fn large_changes_and_new_histories_are_left_alone() {
        let pair = Pair::new();
        let first = pair.commit("main", None, &[("a", "1")]);
        pair.fetch_all();
        let names: Vec<_> = (0..=MAX_OBJECTS)
            .map(|n| (format!("many/{n}"), n.to_string()))
            .collect();
        let files: Vec<_> = names
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
            .collect();
        pair.commit("main", Some(first), &files);
        assert!(!pair.bring());
        pair.commit("main", None, &[("a", "2")]);
        assert!(!pair.bring());
        assert_eq!(
            pair.mirror.refname_to_id(TRACKED).unwrap(),
            first,
            "refs stay as they were"
        );
        pair.check();
    }
}
