//! A three-way merge of trees, bounded whatever the trees are.
//!
//! What only one side changed is taken over by its id and never looked into; a folder is entered only where both
//! sides changed it. So a merge costs what both changed, and a repo of a few small objects that stands for a
//! billion files, or for folders without end, costs no more than any other. (libgit2's own merge visits every file.)
//!
//! Renames are not followed: where one side moves a file and the other one changes it, they conflict.

use std::collections::BTreeSet;

use git2::{Error, ErrorCode, MergeFileInput, ObjectType, Oid, Repository, Tree, merge_file};

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
    let tree = |commit| Ok::<_, Error>(repo.find_commit(commit)?.tree_id());
    let base = match repo.merge_base(ours, theirs) {
        Ok(base) => Some(tree(base)?),
        // Histories that have nothing in common.
        Err(error) if error.code() == ErrorCode::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut merging = Merging {
        repo,
        left: MAX_ENTRIES,
    };
    match merging.folder(base, Some(tree(ours)?), Some(tree(theirs)?), 0) {
        Ok(tree) => Ok(Some(tree)),
        Err(Stop::Conflict) => Ok(None),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Why there is no merge.
enum Stop {
    /// It needs a person, or more than it may.
    Conflict,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A file, a symlink or a submodule: content and mode.
type File = (Oid, i32);

/// What stands under one name, as merging sees it: a name may go from file to folder without a conflict.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    file: Option<File>,
    folder: Option<Oid>,
}

impl Place {
    fn of(tree: Option<&Tree<'_>>, name: &[u8]) -> Self {
        let Some(entry) = tree.and_then(|tree| tree.get_name_bytes(name)) else {
            return Self::default();
        };
        if entry.kind() == Some(ObjectType::Tree) {
            Self {
                folder: Some(entry.id()),
                file: None,
            }
        } else {
            Self {
                file: Some((entry.id(), entry.filemode())),
                folder: None,
            }
        }
    }
}

struct Merging<'a> {
    repo: &'a Repository,
    left: usize,
}

impl Merging<'_> {
    /// Merges a folder that is not the same on any two sides; where there is none, it is empty.
    fn folder(
        &mut self,
        base: Option<Oid>,
        ours: Option<Oid>,
        theirs: Option<Oid>,
        depth: usize,
    ) -> Result<Oid, Stop> {
        let tree = |id: Option<Oid>| id.map(|id| self.repo.find_tree(id)).transpose();
        let (base, ours, theirs) = (tree(base)?, tree(ours)?, tree(theirs)?);
        let sides = [base.as_ref(), ours.as_ref(), theirs.as_ref()];
        let entries: usize = sides.iter().flatten().map(|tree| tree.len()).sum();
        self.left = self.left.checked_sub(entries).ok_or(Stop::Conflict)?;
        if depth == MAX_DEPTH {
            return Err(Stop::Conflict);
        }
        let mut merged = self.repo.treebuilder(ours.as_ref())?;
        // What neither of them has is as it was with us.
        let names = base.iter().chain(&theirs).flat_map(Tree::iter);
        let names: BTreeSet<_> = names.map(|entry| entry.name_bytes().to_vec()).collect();
        for name in names {
            let [base, ours, theirs] = sides.map(|side| Place::of(side, &name));
            let place = self.place(base, ours, theirs, depth)?;
            if place == ours {
                continue;
            }
            match (place.file, place.folder) {
                (None, None) => merged.remove(&name)?,
                (Some((id, mode)), None) => {
                    merged.insert(&name, id, mode)?;
                }
                (None, Some(id)) => {
                    merged.insert(&name, id, FOLDER)?;
                }
                (Some(_), Some(_)) => return Err(Stop::Conflict),
            }
        }
        Ok(merged.write()?)
    }

    fn place(
        &mut self,
        base: Place,
        ours: Place,
        theirs: Place,
        depth: usize,
    ) -> Result<Place, Stop> {
        let file = match one_sided(base.file, ours.file, theirs.file) {
            Some(file) => file,
            None => match (base.file, ours.file, theirs.file) {
                (Some(base), Some(ours), Some(theirs)) => Some(self.file(base, ours, theirs)?),
                _ => return Err(Stop::Conflict),
            },
        };
        let folder = match one_sided(base.folder, ours.folder, theirs.folder) {
            Some(folder) => folder,
            None => Some(self.folder(base.folder, ours.folder, theirs.folder, depth + 1)?),
        };
        let folder = match folder {
            Some(id) if self.repo.find_tree(id)?.is_empty() => None,
            folder => folder,
        };
        Ok(Place { file, folder })
    }

    /// Merges a file that both sides changed.
    fn file(&self, base: File, ours: File, theirs: File) -> Result<File, Stop> {
        let is_text = |(_, mode): File| matches!(mode, 0o100_644 | 0o100_755);
        if ![base, ours, theirs].into_iter().all(is_text) {
            return Err(Stop::Conflict);
        }
        let mode = one_sided(base.1, ours.1, theirs.1).ok_or(Stop::Conflict)?;
        let id = match one_sided(base.0, ours.0, theirs.0) {
            Some(id) => id,
            None => self.lines([base.0, ours.0, theirs.0])?,
        };
        Ok((id, mode))
    }

    /// Merges lines: of the base, of ours, of theirs.
    fn lines(&self, files: [Oid; 3]) -> Result<Oid, Stop> {
        let odb = self.repo.odb()?;
        for id in files {
            if odb.read_header(id)?.0 > MAX_FILE {
                return Err(Stop::Conflict);
            }
        }
        let [base, ours, theirs] = files.map(|id| self.repo.find_blob(id));
        let blobs = [base?, ours?, theirs?];
        if blobs.iter().any(git2::Blob::is_binary) {
            return Err(Stop::Conflict);
        }
        let inputs = blobs.each_ref().map(|blob| {
            let mut input = MergeFileInput::new();
            // The name is only for the marks of conflicts, which nobody sees.
            input.content(blob.content()).path("file");
            input
        });
        let [base, ours, theirs] = &inputs;
        let merged = merge_file(base, ours, theirs, None)?;
        if !merged.is_automergeable() {
            return Err(Stop::Conflict);
        }
        Ok(self.repo.blob(merged.content())?)
    }
}

/// What comes of a value that at most one side changed, or both alike.
fn one_sided<T: Copy + PartialEq>(base: T, ours: T, theirs: T) -> Option<T> {
    if base == theirs || ours == theirs {
        Some(ours)
    } else if base == ours {
        Some(theirs)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use git2::{FileMode, Signature, build::TreeUpdateBuilder};
    use proptest::prelude::*;

    use super::*;

    fn repo() -> (tempfile::TempDir, Repository) {
        let directory = tempfile::tempdir().unwrap();
        let repo = Repository::init_bare(directory.path()).unwrap();
        let odb = repo.odb().unwrap();
        odb.add_new_mempack_backend(MEMORY_FIRST).unwrap();
        drop(odb);
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
            for _level in 0..200 {
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
