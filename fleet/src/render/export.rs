//! Writing a closure's files into a private directory.
//!
//! A commit changes few of the files that an overlay is built from, and overlays share most of them. So a directory that
//! a build was done with is kept for the next one, which writes what is missing and removes what is not its own: before
//! each build there is in it exactly what the closure names. No directory is used for two owners: whatever a build may do
//! to one, it does to its own owner's builds.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};
use tempfile::TempDir;

use super::RenderError;
use crate::{
    closure::ClosureFile,
    tree::{ContentId, EntryKind, RepoPath, Tree},
};

/// The prefix of our directories; the id of the process that owns one follows.
const PREFIX: &str = "longshore-render-";
/// How many bytes a directory may have that is kept: it may stand in memory.
const MAX_KEPT: u64 = 8 * 1024 * 1024;

/// The directories that wait for the next build.
#[derive(Debug)]
pub(super) struct Exports {
    scratch: PathBuf,
    /// How many are kept.
    most: usize,
    idle: Mutex<Vec<Export>>,
}

/// A private directory with the files of one closure, removed when dropped.
#[derive(Debug)]
pub(super) struct Export {
    directory: TempDir,
    owner: String,
    files: BTreeMap<RepoPath, (EntryKind, ContentId)>,
    /// How many bytes were written to it, those included that were removed again.
    written: u64,
}

impl Exports {
    /// Directories below `scratch`. As many as `most` are kept.
    pub(super) fn new(scratch: PathBuf, most: usize) -> Self {
        Self {
            scratch,
            most,
            idle: Mutex::default(),
        }
    }

    /// A directory with just these files, symlinks as symlinks. Blocks.
    pub(super) fn take(
        &self,
        owner: &str,
        tree: &dyn Tree,
        files: &[ClosureFile],
    ) -> Result<Export, RenderError> {
        let failed = |source| RenderError::Environment {
            operation: "export the overlay's files",
            source,
        };
        let mut export = match self.most_alike(owner, files) {
            Some(export) => export,
            None => Export::new(&self.scratch, owner).map_err(failed)?,
        };
        export.remove_all_but(files).map_err(failed)?;
        for file in files {
            if !export.has(file) {
                let content = tree.blob(file.id)?;
                export.write(file, content).map_err(failed)?;
            }
        }
        Ok(export)
    }

    /// Keeps a directory in which nothing but [`Self::take`] wrote.
    pub(super) fn give_back(&self, export: Export) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if export.written <= MAX_KEPT {
            idle.push(export);
        }
        // Who has not built for the longest time has to make room.
        let gone = idle.len().saturating_sub(self.most);
        let gone: Vec<_> = idle.drain(..gone).collect();
        drop(idle);
        drop(gone);
    }

    /// The owner's idle one that has most of these files.
    fn most_alike(&self, owner: &str, files: &[ClosureFile]) -> Option<Export> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let common = |export: &Export| files.iter().filter(|file| export.has(file)).count();
        let (place, _export) = idle
            .iter()
            .enumerate()
            .filter(|(_place, export)| export.owner == owner)
            .max_by_key(|(_place, export)| common(export))?;
        Some(idle.remove(place))
    }
}

impl Export {
    /// An export with no files yet.
    pub(super) fn new(scratch: &Path, owner: &str) -> io::Result<Self> {
        // `tempfile` makes directories with mode 0700.
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let directory = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(scratch)?;
        DirBuilder::new()
            .mode(0o700)
            .create(directory.path().join("tree"))?;
        Ok(Self {
            directory,
            owner: owner.to_owned(),
            files: BTreeMap::new(),
            written: 0,
        })
    }

    /// The directory that stands for the repo's root.
    pub(super) fn tree(&self) -> PathBuf {
        self.directory.path().join("tree")
    }

    /// A directory that is private to the build and not readable by it.
    pub(super) fn home(&self) -> &Path {
        self.directory.path()
    }

    fn has(&self, file: &ClosureFile) -> bool {
        self.files.get(&file.path) == Some(&(file.kind, file.id))
    }

    /// Removes what is not one of these files, and the directories that it leaves empty.
    fn remove_all_but(&mut self, files: &[ClosureFile]) -> io::Result<()> {
        let wanted: BTreeMap<_, _> = files
            .iter()
            .map(|file| (&file.path, (file.kind, file.id)))
            .collect();
        let root = self.tree();
        let others = self
            .files
            .extract_if(.., |path, file| wanted.get(path) != Some(file));
        for (path, _file) in others {
            let path = root.join(path.as_str());
            fs::remove_file(&path)?;
            let above = path.ancestors().skip(1).take_while(|above| *above != root);
            for folder in above {
                match fs::remove_dir(folder) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, file: &ClosureFile, content: Vec<u8>) -> io::Result<()> {
        let path = self.tree().join(file.path.as_str());
        if let Some(parent) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)?;
        }
        self.written += content.len() as u64;
        match file.kind {
            EntryKind::Symlink => match String::from_utf8(content) {
                Ok(target) => symlink(target, &path)?,
                Err(_bytes) => return Err(io::Error::other("a symlink's target is not UTF-8")),
            },
            EntryKind::File { executable } => OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(if executable { 0o700 } else { 0o600 })
                .open(&path)?
                .write_all(&content)?,
            EntryKind::Directory | EntryKind::Submodule => return Ok(()),
        }
        self.files.insert(file.path.clone(), (file.kind, file.id));
        Ok(())
    }
}

/// Removes what processes left that were killed before they could clean up: what is older than any build can be,
/// and belongs to no living process. (A process of another container may look dead without being so.)
pub(super) fn sweep(scratch: &Path, longest: Duration) {
    let Ok(entries) = fs::read_dir(scratch) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse().ok())
            .and_then(Pid::from_raw);
        let dead = owner.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH));
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| modified.elapsed().ok());
        if dead && age.is_some_and(|age| age > longest) {
            // Another process may sweep at the same time.
            let _swept = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::tree::{Listing, TreeEntry, TreeError};

    /// Contents by id, at no path.
    struct Contents(HashMap<ContentId, Vec<u8>>);

    impl Tree for Contents {
        fn entry(&self, _path: &RepoPath) -> Result<Option<TreeEntry>, TreeError> {
            Ok(None)
        }

        fn list(&self, _dir: &RepoPath) -> Result<Arc<Listing>, TreeError> {
            Ok(Arc::default())
        }

        fn size(&self, id: ContentId) -> Result<u64, TreeError> {
            Ok(self.0[&id].len() as u64)
        }

        fn blob(&self, id: ContentId) -> Result<Vec<u8>, TreeError> {
            Ok(self.0[&id].clone())
        }
    }

    /// Everything below `root`: where it stands, and what it is. A directory is nothing by itself, unless it is empty.
    fn on_disk(root: &Path) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut ahead = vec![root.to_owned()];
        while let Some(folder) = ahead.pop() {
            let mut is_empty = folder != root;
            for entry in fs::read_dir(&folder).unwrap() {
                is_empty = false;
                let path = entry.unwrap().path();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                if let Ok(target) = fs::read_link(&path) {
                    found.insert(name.to_owned(), format!("link {}", target.display()));
                } else if path.is_dir() {
                    ahead.push(path);
                } else {
                    let mode = std::os::unix::fs::PermissionsExt::mode(
                        &fs::metadata(&path).unwrap().permissions(),
                    );
                    let content = fs::read_to_string(&path).unwrap();
                    found.insert(name.to_owned(), format!("{:o} {content}", mode & 0o777));
                }
            }
            if is_empty {
                found.insert(
                    folder.display().to_string(),
                    "an empty directory".to_owned(),
                );
            }
        }
        found
    }

    fn closure() -> impl Strategy<Value = Vec<ClosureFile>> {
        const PATHS: [&str; 9] = [
            "a", "a/b", "a/c", "a/b/c", "b", "b/c", "d/e/f", "d/e/g", "d/h",
        ];
        let kinds = prop_oneof![
            4 => Just(EntryKind::File { executable: false }),
            1 => Just(EntryKind::File { executable: true }),
            1 => Just(EntryKind::Symlink),
        ];
        let file = (prop::sample::select(PATHS.as_slice()), kinds, 0..3_u8);
        proptest::collection::vec(file, 0..6).prop_map(|picked| {
            let mut files: Vec<ClosureFile> = Vec::new();
            for (path, kind, content) in picked {
                let path = RepoPath::new(path).unwrap();
                // In a tree, a file has nothing below it.
                let collides = |other: &ClosureFile| {
                    other.path == path || other.path.is_below(&path) || path.is_below(&other.path)
                };
                if !files.iter().any(collides) {
                    let id = ContentId::padded(&[content]);
                    files.push(ClosureFile { path, kind, id });
                }
            }
            files
        })
    }

    proptest! {
        #[test]
        fn a_directory_that_is_used_again_is_like_a_new_one(
            closures in proptest::collection::vec(closure(), 1..8),
        ) {
            let scratch = tempfile::tempdir().unwrap();
            let contents = (0..3_u8).map(|n| (ContentId::padded(&[n]), format!("content-{n}").into()));
            let tree = Contents(contents.collect());
            let exports = Exports::new(scratch.path().to_owned(), 1);
            for files in closures {
                let again = exports.take("a", &tree, &files).unwrap();
                let fresh = Exports::new(scratch.path().to_owned(), 0);
                let fresh = fresh.take("a", &tree, &files).unwrap();
                prop_assert_eq!(on_disk(&again.tree()), on_disk(&fresh.tree()));
                prop_assert_eq!(on_disk(&fresh.tree()).len(), files.len());
                exports.give_back(again);
            }
            let directories = fs::read_dir(scratch.path()).unwrap().count();
            prop_assert_eq!(directories, 1);
        }
    }

    #[test]
    fn a_directory_stays_its_owners() {
        let scratch = tempfile::tempdir().unwrap();
        let tree = Contents(HashMap::new());
        let exports = Exports::new(scratch.path().to_owned(), 2);
        let take = |owner: &str| exports.take(owner, &tree, &[]).unwrap();
        let mine = take("me");
        let place = mine.tree();
        exports.give_back(mine);
        assert_ne!(take("somebody else").tree(), place);
        assert_eq!(take("me").tree(), place);
        for owner in ["a", "b", "c"] {
            exports.give_back(take(owner));
        }
        let kept = exports.idle.lock().unwrap();
        let kept: Vec<_> = kept.iter().map(|export| export.owner.as_str()).collect();
        assert_eq!(kept, ["b", "c"]);
    }
}
