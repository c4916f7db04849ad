//! A push as it would be: the repo's objects and those in Git's quarantine, read together.

use std::{io, path::Path};

use git2::{Error, ErrorClass, ErrorCode, Oid, Repository};

use crate::source::{merge, tree::GitTree};

/// What a branch means for the tracked one.
#[derive(Debug)]
pub(super) enum Merged {
    /// The tree after merging it.
    Tree(GitTree),
    /// It cannot be merged as it is.
    Conflict,
}

/// Opens a repo together with a quarantine of its own.
///
/// Nothing is written to either: what a merge makes stays in memory.
pub(super) fn open(repo: &Path, quarantine: Option<&Path>) -> Result<Repository, Error> {
    let opened = Repository::open_bare(repo)?;
    if let Some(quarantine) = quarantine {
        // The hook is ours, but what it was told is Git's: it must be where Git keeps quarantines.
        let own = repo
            .join("objects")
            .canonicalize()
            .map_err(|error| unreadable(&error))?;
        let real = quarantine
            .canonicalize()
            .map_err(|error| unreadable(&error))?;
        let path = real
            .to_str()
            .filter(|_| real.parent() == Some(&own))
            .ok_or_else(|| unreadable(&io::Error::other("it is elsewhere")))?;
        opened.odb()?.add_disk_alternate(path)?;
    }
    opened.odb()?.add_new_mempack_backend(merge::MEMORY_FIRST)?;
    Ok(opened)
}

/// The tree of a pushed branch after a merge into `tracked`.
pub(super) fn merged(repo: Repository, tracked: Oid, pushed: Oid) -> Result<Merged, Error> {
    Ok(match merge::trees(&repo, tracked, pushed)? {
        Some(tree) => Merged::Tree(GitTree::at(repo, tree)),
        None => Merged::Conflict,
    })
}

fn unreadable(error: &io::Error) -> Error {
    Error::new(
        ErrorCode::GenericError,
        ErrorClass::Os,
        format!("the quarantine cannot be read: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use git2::{FileMode, Signature, build::TreeUpdateBuilder};
    use longshore_fleet::{RepoPath, Tree as _};

    use super::*;

    fn commit(repo: &Repository, parent: Option<Oid>, path: &str, content: &str) -> Oid {
        let parent = parent.map(|id| repo.find_commit(id).unwrap());
        let blob = repo.blob(content.as_bytes()).unwrap();
        let empty = repo.treebuilder(None).unwrap().write().unwrap();
        let base = match &parent {
            Some(parent) => parent.tree().unwrap(),
            None => repo.find_tree(empty).unwrap(),
        };
        let tree = TreeUpdateBuilder::new()
            .upsert(path, blob, FileMode::Blob)
            .create_updated(repo, &base)
            .unwrap();
        let tree = repo.find_tree(tree).unwrap();
        let who = Signature::now("a", "a@localhost").unwrap();
        let parents: Vec<_> = parent.iter().collect();
        repo.commit(None, &who, &who, "c", &tree, &parents).unwrap()
    }

    #[test]
    fn what_is_in_quarantine_is_read_and_nothing_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.git");
        let origin = Repository::init_bare(&path).unwrap();
        let first = commit(&origin, None, "a", "1");
        let ours = commit(&origin, Some(first), "b", "1");
        let before = size(&path);

        // What Git does with a push: new objects in a folder of their own.
        let quarantine = path.join("objects/tmp_objdir-incoming-x");
        fs::create_dir(&quarantine).unwrap();
        let elsewhere = Repository::init_bare(directory.path().join("b.git")).unwrap();
        elsewhere
            .odb()
            .unwrap()
            .add_disk_alternate(path.join("objects").to_str().unwrap())
            .unwrap();
        let theirs = commit(&elsewhere, Some(first), "c", "1");
        let conflicting = commit(&elsewhere, Some(first), "b", "2");
        for entry in fs::read_dir(elsewhere.path().join("objects")).unwrap() {
            let entry = entry.unwrap();
            fs::rename(entry.path(), quarantine.join(entry.file_name())).unwrap();
        }

        assert!(open(&path, None).unwrap().find_commit(theirs).is_err());
        let open = || open(&path, Some(&quarantine)).unwrap();
        let Merged::Tree(tree) = merged(open(), ours, theirs).unwrap() else {
            panic!("they do not conflict");
        };
        for file in ["a", "b", "c"] {
            let entry = tree.entry(&RepoPath::new(file).unwrap()).unwrap().unwrap();
            assert_eq!(tree.blob(entry.id).unwrap(), b"1");
        }
        assert!(matches!(
            merged(open(), ours, conflicting).unwrap(),
            Merged::Conflict
        ));
        fs::remove_dir_all(&quarantine).unwrap();
        assert_eq!(size(&path), before);
    }

    #[test]
    fn a_quarantine_is_the_repos_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.git");
        Repository::init_bare(&path).unwrap();
        let other = Repository::init_bare(directory.path().join("b.git")).unwrap();
        for wrong in [
            other.path().join("objects"),
            path.join("objects/../../b.git/objects"),
            path.join("objects"),
            path.join("objects/missing"),
        ] {
            assert!(open(&path, Some(&wrong)).is_err(), "{}", wrong.display());
        }
    }

    fn size(path: &Path) -> u64 {
        crate::hosting::repo::size(path)
    }
}
