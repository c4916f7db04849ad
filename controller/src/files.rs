//! The data directory's files: private, and written whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret as _, SecretString};

/// A file of the data directory failed.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub struct FileError {
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// `path` failed because of `source`.
    pub(crate) fn new(path: &Path, source: io::Error) -> Self {
        Self {
            path: path.to_owned(),
            source,
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FileError + '_ {
    move |source| FileError::new(path, source)
}

/// Makes a directory that only its owner can enter.
pub fn create_private_directory(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(at(path))?;
    // It may have been there before, open to others.
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(at(path))
}

/// Writes a file whole or not at all, and durably. `mode` is the file's permission bits.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = path.with_added_extension("new");
    // A leftover of a crash would keep its own permissions.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(at(&temporary)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(at(&temporary))?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(at(&temporary))?;
    fs::rename(&temporary, path).map_err(at(path))?;
    if let Some(parent) = path.parent() {
        File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(at(parent))?;
    }
    Ok(())
}

/// Reads a file; `None` where there is none.
pub fn read(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

/// Reads a secret from its file, or makes it there, readable to the owner only.
pub fn read_or_create_secret(
    path: &Path,
    make: impl FnOnce() -> SecretString,
) -> Result<SecretString, FileError> {
    if let Some(text) = read(path)? {
        return Ok(text.trim().to_owned().into());
    }
    let secret = make();
    write(
        path,
        format!("{}\n", secret.expose_secret()).as_bytes(),
        0o600,
    )?;
    Ok(secret)
}
