//! Hosted repos on disk: made, measured, swept and removed.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use git2::{Repository, RepositoryInitOptions};

use crate::source::git::GitError;

/// What Git keeps of a push that is not accepted yet, in `objects/`.
const QUARANTINE: &str = "tmp_objdir-";

/// What holds for whoever writes to a hosted repo, also for our own enrollments, which know no HTTP.
const CONFIGURATION: [(&str, &str); 7] = [
    // The only copy: what was accepted survives a crash.
    ("core.fsync", "all"),
    ("core.fsyncMethod", "batch"),
    // What a force push took away can be found again.
    ("core.logAllRefUpdates", "true"),
    ("core.hooksPath", "/dev/null"),
    // Git would do it in the background, where nothing bounds it.
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("receive.autogc", "false"),
];

/// Makes an empty repo whose `HEAD` is `branch`.
///
/// # Errors
/// Where the disk does not let us.
pub async fn create(directory: &Path, branch: &str) -> Result<(), GitError> {
    let (directory, branch) = (directory.to_owned(), branch.to_owned());
    tokio::task::spawn_blocking(move || {
        let options = &mut RepositoryInitOptions::new();
        options
            .bare(true)
            .mkpath(true)
            .no_reinit(true)
            .external_template(false)
            .initial_head(&branch);
        let mut config = Repository::init_opts(&directory, options)?.config()?;
        for (name, value) in CONFIGURATION {
            config.set_str(name, value)?;
        }
        Ok(())
    })
    .await
    .map_err(|_cut| GitError::Cut)?
}

/// Removes a repo. At once nobody finds it any more, even where removing its files takes a while.
///
/// # Errors
/// Where the disk does not let us; what is left then has a name that no repo has.
pub async fn remove(directory: &Path) -> io::Result<()> {
    let gone = directory.with_extension("removed");
    tokio::fs::rename(directory, &gone).await?;
    tokio::fs::remove_dir_all(&gone).await
}

/// How many bytes a repo takes. What cannot be read is not counted.
pub(super) fn size(directory: &Path) -> u64 {
    let mut bytes = 0;
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => bytes += metadata.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

/// Removes what pushes left behind whose Git was killed: quarantines older than any push lives.
pub(super) fn sweep(directory: &Path, oldest: Duration) {
    let objects = directory.join("objects");
    for entry in fs::read_dir(objects).into_iter().flatten().flatten() {
        let is_quarantine = entry.file_name().to_string_lossy().starts_with(QUARANTINE);
        let age = || {
            let written = entry.metadata().and_then(|it| it.modified()).ok()?;
            SystemTime::now().duration_since(written).ok()
        };
        if is_quarantine && age().is_some_and(|age| age > oldest) {
            let path = entry.path();
            match fs::remove_dir_all(&path) {
                Ok(()) => tracing::info!(path = %path.display(), "removed a dead push's objects"),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "a dead push's objects stay");
                }
            }
        }
    }
}
