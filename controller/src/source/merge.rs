//! A three-way merge of trees, bounded whatever the trees are.
//!
//! What only one side changed is taken over by its id and never looked into; a folder is entered only where both
//! sides changed it. So a merge costs what both changed, and a repo of a few small objects that stands for a
//! billion files, or for folders without end, costs no more than any other. (libgit2's own merge visits every file.)
//!
//! Renames are not followed: where one side moves a file and the other one changes it, they conflict.

use git2::{
    Error, ErrorCode, MergeFileInput, ObjectType, Oid, Repository, Tree, TreeEntry, merge_file,
};

/// How many entries of folders are looked at.
const MAX_ENTRIES: usize = 500_000;
/// How deep folders are that both sides changed.
const MAX_DEPTH: usize = 64;
/// The largest file whose lines are merged, in bytes.
const MAX_FILE: usize = 1024 * 1024;

/// The priority of a store in memory that takes what a merge makes, where nobody is to keep that: above that of the
/// repo's own files.
pub const MEMORY_FIRST: i32 = 1000;

const FOLDER: i32 = 0o040_000;

/// The tree of merging the commit `theirs` into the commit `ours`; `None` where they conflict, or where it would take
/// more than it may.
///
/// New trees and files are written to the repo's object database.
///
/// # Errors
/// Where an object cannot be read or written.
pub fn trees(repo: &Repository, ours: Oid, theirs: Oid) -> Result<Option<Oid>, Error> {
    let base = match repo.merge_base(ours, theirs) {
        Ok(base) => Some(repo.find_commit(base)?.tree()?),
        // Histories that have nothing in common.
        Err(error) if error.code() == ErrorCode::NotFound => None,
        Err(error) => return Err(error),
    };
    let ours = repo.find_commit(ours)?.tree()?;
    let theirs = repo.find_commit(theirs)?.tree()?;
    let mut merging = Merging {
        repo,
        left: MAX_ENTRIES,
    };
    merging.folder(base.as_ref(), &ours, &theirs, 0)
}

struct Merging<'a> {
    repo: &'a Repository,
    left: usize,
}

impl Merging<'_> {
    fn folder(
        &mut self,
        base: Option<&Tree<'_>>,
        ours: &Tree<'_>,
        theirs: &Tree<'_>,
        depth: usize,
    ) -> Result<Option<Oid>, Error> {
        let entries = base.map_or(0, Tree::len) + ours.len() + theirs.len();
        let Some(left) = self.left.checked_sub(entries) else {
            return Ok(None);
        };
        self.left = left;
        if depth == MAX_DEPTH {
            return Ok(None);
        }
        let mut merged = self.repo.treebuilder(Some(ours))?;
        for theirs in theirs {
            let name = theirs.name_bytes();
            let before = base.and_then(|base| base.get_name_bytes(name));
            let ours = ours.get_name_bytes(name);
            if same(before.as_ref(), Some(&theirs)) || same(ours.as_ref(), Some(&theirs)) {
                continue;
            }
            let (id, mode) = if same(before.as_ref(), ours.as_ref()) {
                (theirs.id(), theirs.filemode())
            } else {
                match self.both(before.as_ref(), ours.as_ref(), &theirs, depth)? {
                    Some(both) => both,
                    None => return Ok(None),
                }
            };
            if mode == FOLDER && self.repo.find_tree(id)?.is_empty() {
                merged.remove(name)?;
            } else {
                merged.insert(name, id, mode)?;
            }
        }
        for before in base.into_iter().flatten() {
            let name = before.name_bytes();
            if theirs.get_name_bytes(name).is_some() {
                continue;
            }
            match ours.get_name_bytes(name) {
                None => {}
                Some(ours) if same(Some(&before), Some(&ours)) => merged.remove(name)?,
                Some(_) => return Ok(None),
            }
        }
        Ok(Some(merged.write()?))
    }

    /// What both sides changed: folders and lines can be merged.
    fn both(
        &mut self,
        before: Option<&TreeEntry<'_>>,
        ours: Option<&TreeEntry<'_>>,
        theirs: &TreeEntry<'_>,
        depth: usize,
    ) -> Result<Option<(Oid, i32)>, Error> {
        let Some(ours) = ours else {
            return Ok(None);
        };
        if is_folder(ours) && is_folder(theirs) {
            let before = before.filter(|before| is_folder(before));
            let before = before.map(|it| self.repo.find_tree(it.id())).transpose()?;
            let (ours, theirs) = (
                self.repo.find_tree(ours.id())?,
                self.repo.find_tree(theirs.id())?,
            );
            let merged = self.folder(before.as_ref(), &ours, &theirs, depth + 1)?;
            return Ok(merged.map(|id| (id, FOLDER)));
        }
        let Some(before) = before else {
            return Ok(None);
        };
        if ![before, ours, theirs].into_iter().all(is_file) {
            return Ok(None);
        }
        let mode = if ours.filemode() == before.filemode() {
            theirs.filemode()
        } else {
            ours.filemode()
        };
        let id = self.lines(before.id(), ours.id(), theirs.id())?;
        Ok(id.map(|id| (id, mode)))
    }

    fn lines(&self, before: Oid, ours: Oid, theirs: Oid) -> Result<Option<Oid>, Error> {
        // The contents may be the same where only the mode differs.
        if before == ours || ours == theirs {
            return Ok(Some(theirs));
        }
        if before == theirs {
            return Ok(Some(ours));
        }
        let odb = self.repo.odb()?;
        for id in [before, ours, theirs] {
            if odb.read_header(id)?.0 > MAX_FILE {
                return Ok(None);
            }
        }
        let read = |id| self.repo.find_blob(id);
        let (before, ours, theirs) = (read(before)?, read(ours)?, read(theirs)?);
        if before.is_binary() || ours.is_binary() || theirs.is_binary() {
            return Ok(None);
        }
        let [mut a, mut b, mut c] = [&before, &ours, &theirs].map(|blob| {
            let mut input = MergeFileInput::new();
            input.content(blob.content());
            input
        });
        // Only for the marks of conflicts, which nobody sees.
        let [a, b, c] = [&mut a, &mut b, &mut c].map(|input| &*input.path("file"));
        let merged = merge_file(a, b, c, None)?;
        if !merged.is_automergeable() {
            return Ok(None);
        }
        Ok(Some(self.repo.blob(merged.content())?))
    }
}

fn same(one: Option<&TreeEntry<'_>>, other: Option<&TreeEntry<'_>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.id() == other.id() && one.filemode() == other.filemode(),
        (None, None) => true,
        _ => false,
    }
}

fn is_folder(entry: &TreeEntry<'_>) -> bool {
    entry.kind() == Some(ObjectType::Tree)
}

/// A file whose lines may be merged; a symlink's target may not.
fn is_file(entry: &TreeEntry<'_>) -> bool {
    matches!(entry.filemode(), 0o100_644 | 0o100_755)
}

#[cfg(test)]
mod tests {
    use git2::{FileMode, Signature, build::TreeUpdateBuilder};
    use proptest::prelude::*;

    use super::*;

    fn repo() -> (tempfile::TempDir, Repository) {
        let directory = tempfile::tempdir().unwrap();
        let repo = Repository::init_bare(directory.path()).unwrap();
        (directory, repo)
    }

    fn commit_tree(repo: &Repository, tree: Oid, parents: &[Oid]) -> Oid {
        let tree = repo.find_tree(tree).unwrap();
        let who = Signature::new("a", "a@localhost", &git2::Time::new(0, 0)).unwrap();
        let parents: Vec<_> = parents
            .iter()
            .map(|id| repo.find_commit(*id).unwrap())
            .collect();
        let parents: Vec<_> = parents.iter().collect();
        repo.commit(None, &who, &who, "c", &tree, &parents).unwrap()
    }

    /// A commit on `parent` with these files written, or deleted where there is no content.
    fn commit(repo: &Repository, parent: Option<Oid>, files: &[(&str, Option<&str>)]) -> Oid {
        let base = match parent {
            Some(parent) => repo.find_commit(parent).unwrap().tree().unwrap(),
            None => repo
                .find_tree(repo.treebuilder(None).unwrap().write().unwrap())
                .unwrap(),
        };
        let mut builder = TreeUpdateBuilder::new();
        for (path, content) in files {
            match content {
                Some(content) => {
                    let blob = repo.blob(content.as_bytes()).unwrap();
                    builder.upsert(*path, blob, FileMode::Blob);
                }
                None => {
                    builder.remove(*path);
                }
            }
        }
        let tree = builder.create_updated(repo, &base).unwrap();
        commit_tree(repo, tree, parent.as_slice())
    }

    fn content(repo: &Repository, tree: Oid, path: &str) -> Option<String> {
        let tree = repo.find_tree(tree).unwrap();
        let entry = tree.get_path(path.as_ref()).ok()?;
        let blob = repo.find_blob(entry.id()).unwrap();
        Some(String::from_utf8(blob.content().to_vec()).unwrap())
    }

    #[test]
    fn what_one_side_did_and_what_the_other_did() {
        let (_directory, repo) = repo();
        let lines = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let base = commit(
            &repo,
            None,
            &[
                ("base/app.yaml", Some(lines)),
                ("devices/a/device.yaml", Some("a")),
                ("devices/b/device.yaml", Some("b")),
                ("gone/x", Some("x")),
            ],
        );
        let ours = commit(
            &repo,
            Some(base),
            &[
                ("base/app.yaml", Some(&lines.replace('1', "one"))),
                ("devices/c/device.yaml", Some("c")),
                ("devices/a/device.yaml", None),
            ],
        );
        let theirs = commit(
            &repo,
            Some(base),
            &[
                ("base/app.yaml", Some(&lines.replace('9', "nine"))),
                ("devices/d/device.yaml", Some("d")),
                ("devices/b/device.yaml", Some("B")),
                ("gone/x", None),
            ],
        );
        let tree = trees(&repo, ours, theirs).unwrap().unwrap();
        let merged = |path| content(&repo, tree, path);
        let app = lines.replace('1', "one").replace('9', "nine");
        assert_eq!(merged("base/app.yaml"), Some(app));
        assert_eq!(merged("devices/a/device.yaml"), None);
        assert_eq!(merged("devices/b/device.yaml").as_deref(), Some("B"));
        assert_eq!(merged("devices/c/device.yaml").as_deref(), Some("c"));
        assert_eq!(merged("devices/d/device.yaml").as_deref(), Some("d"));
        assert!(repo.find_tree(tree).unwrap().get_name("gone").is_none());
    }

    #[test]
    fn conflicts() {
        let (_directory, repo) = repo();
        let base = commit(&repo, None, &[("a", Some("1\n")), ("b/c", Some("1"))]);
        for (ours, theirs) in [
            (("a", Some("2\n")), ("a", Some("3\n"))),
            (("a", Some("2\n")), ("a", None)),
            (("a", None), ("a", Some("2\n"))),
            (("new", Some("1")), ("new", Some("2"))),
            (("new", Some("1")), ("new/x", Some("2"))),
            (("b/c", None), ("b/c", Some("2"))),
        ] {
            let ours = commit(&repo, Some(base), &[ours]);
            let theirs = commit(&repo, Some(base), &[theirs]);
            assert_eq!(trees(&repo, ours, theirs).unwrap(), None);
        }
    }

    #[test]
    fn a_billion_files_that_one_side_adds_are_not_looked_at() {
        let (_directory, repo) = repo();
        let base = commit(&repo, None, &[("a", Some("1"))]);
        let ours = commit(&repo, Some(base), &[("b", Some("1"))]);
        let file = repo.blob(b"x").unwrap();
        let mut bomb = (file, 0o100_644);
        for _level in 0..10 {
            let mut folder = repo.treebuilder(None).unwrap();
            for n in 0..10 {
                folder.insert(format!("{n}"), bomb.0, bomb.1).unwrap();
            }
            bomb = (folder.write().unwrap(), FOLDER);
        }
        let first = repo.find_commit(base).unwrap().tree().unwrap();
        let mut root = repo.treebuilder(Some(&first)).unwrap();
        root.insert("bomb", bomb.0, FOLDER).unwrap();
        let theirs = commit_tree(&repo, root.write().unwrap(), &[base]);
        let tree = trees(&repo, ours, theirs).unwrap().unwrap();
        let tree = repo.find_tree(tree).unwrap();
        assert_eq!(tree.get_name("bomb").unwrap().id(), bomb.0);
        assert!(tree.get_name("b").is_some());
    }

    #[test]
    fn folders_without_end_that_both_sides_change_are_refused() {
        let (_directory, repo) = repo();
        let deep = |content: &[u8]| {
            let mut entry = (repo.blob(content).unwrap(), 0o100_644);
            for _level in 0..5000 {
                let mut folder = repo.treebuilder(None).unwrap();
                folder.insert("d", entry.0, entry.1).unwrap();
                entry = (folder.write().unwrap(), FOLDER);
            }
            entry.0
        };
        let base = commit_tree(&repo, deep(b"1"), &[]);
        let ours = commit_tree(&repo, deep(b"2"), &[base]);
        let theirs = commit_tree(&repo, deep(b"3"), &[base]);
        assert_eq!(trees(&repo, ours, theirs).unwrap(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// libgit2's own merge, without following renames, is the truth.
        #[test]
        fn it_merges_as_git_does(
            base in files(), ours in files(), theirs in files(),
        ) {
            let (_directory, repo) = repo();
            let whole = |files: &std::collections::BTreeMap<String, String>, parent: Option<Oid>| {
                let files: Vec<_> =
                    files.iter().map(|(path, text)| (path.as_str(), Some(text.as_str()))).collect();
                let alone = commit(&repo, None, &files);
                let tree = repo.find_commit(alone).unwrap().tree_id();
                commit_tree(&repo, tree, parent.as_slice())
            };
            let base = whole(&base, None);
            let (ours, theirs) = (whole(&ours, Some(base)), whole(&theirs, Some(base)));
            let mut options = git2::MergeOptions::new();
            options.find_renames(false);
            let (one, other) = (repo.find_commit(ours).unwrap(), repo.find_commit(theirs).unwrap());
            let mut index = repo.merge_commits(&one, &other, Some(&options)).unwrap();
            let truth = (!index.has_conflicts()).then(|| index.write_tree_to(&repo).unwrap());
            prop_assert_eq!(trees(&repo, ours, theirs).unwrap(), truth);
        }
    }

    fn files() -> impl Strategy<Value = std::collections::BTreeMap<String, String>> {
        let path = prop_oneof![
            Just("a"),
            Just("b/c"),
            Just("b/d"),
            Just("b/e/f"),
            Just("g/h")
        ];
        let text = prop_oneof![
            Just("1\n2\n3\n4\n5\n6\n7\n8\n"),
            Just("one\n2\n3\n4\n5\n6\n7\n8\n"),
            Just("1\n2\n3\n4\n5\n6\n7\neight\n"),
            Just("1\ntwo\n3\n4\n5\n6\n7\n8\n"),
        ];
        proptest::collection::btree_map(
            path.prop_map(str::to_owned),
            text.prop_map(str::to_owned),
            1..5,
        )
    }
}
