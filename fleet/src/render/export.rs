//! Writing a closure's files into a private directory.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
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
    tree::{EntryKind, Tree},
};

/// The prefix of our directories; the id of the process that owns one follows.
const PREFIX: &str = "longshore-render-";

/// A private directory with the files of one closure, removed when dropped.
#[derive(Debug)]
pub(super) struct Export {
    directory: TempDir,
}

impl Export {
    /// An export with no files yet.
    pub(super) fn new(scratch: &Path) -> io::Result<Self> {
        // `tempfile` makes directories with mode 0700.
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let directory = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(scratch)?;
        DirBuilder::new()
            .mode(0o700)
            .create(directory.path().join("tree"))?;
        Ok(Self { directory })
    }

    /// The directory that stands for the repo's root.
    pub(super) fn tree(&self) -> PathBuf {
        self.directory.path().join("tree")
    }

    /// A directory that is private to the build and not readable by it.
    pub(super) fn home(&self) -> &Path {
        self.directory.path()
    }

    /// Writes `files`, symlinks as symlinks. Blocks.
    pub(super) fn fill(&self, tree: &dyn Tree, files: &[ClosureFile]) -> Result<(), RenderError> {
        let failed = |source| RenderError::Environment {
            operation: "export the overlay's files",
            source,
        };
        let root = self.tree();
        for file in files {
            let content = tree.blob(file.id)?;
            let path = root.join(file.path.as_str());
            if let Some(parent) = path.parent() {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(parent)
                    .map_err(failed)?;
            }
            let written = match file.kind {
                EntryKind::Symlink => match String::from_utf8(content) {
                    Ok(target) => symlink(target, &path),
                    Err(_bytes) => Err(io::Error::other("a symlink's target is not UTF-8")),
                },
                EntryKind::File { executable } => OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(if executable { 0o700 } else { 0o600 })
                    .open(&path)
                    .and_then(|mut to| to.write_all(&content)),
                EntryKind::Directory | EntryKind::Submodule => Ok(()),
            };
            written.map_err(failed)?;
        }
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
