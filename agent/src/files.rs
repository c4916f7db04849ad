//! One open directory, and work in it that a crash cannot halve and a symlink cannot redirect.
//!
//! Everything that the agent keeps goes through [`Folder`]: the identity, the ledger and the manifests.
//! A name is always a single component and is resolved against the directory's file descriptor, never
//! through a symlink. Writing is: temporary file in the same directory, `fsync`, `rename`. A reader sees the
//! old content or the new one. [`Folder::sync`] makes the renames and removals so far durable.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rustix::{
    fs::{AtFlags, FileType, FlockOperation, Mode, OFlags},
    io::Errno,
};

/// The name under which a file is written before it is renamed. Writers of one process take turns.
pub const TEMPORARY: &str = ".longshore-new";

/// An operation on a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct FileError {
    /// What was tried, as a verb.
    pub operation: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// What stands under a name.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A regular file: its content and its permission bits.
    File {
        /// The content.
        content: Vec<u8>,
        /// The permission bits.
        mode: u32,
    },
    /// A directory, a symlink, a device, a file beyond the limit or without permissions.
    Other,
}

/// An open directory.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    #[cfg(test)]
    pub(crate) fuse: Option<std::sync::Arc<std::sync::atomic::AtomicUsize>>,
}

impl Folder {
    /// Opens the directory, which may itself be named through a symlink.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed("open", path))?;
        Ok(Self {
            fd,
            path: path.to_owned(),
            #[cfg(test)]
            fuse: None,
        })
    }

    /// Opens the directory, and makes it first where it is missing: mode 0700, parents as the umask says.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        match Self::open(path) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed("create", parent))?;
        }
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Self::open(path),
            Err(errno) => Err(failed("create", path)(errno)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Owner and permission bits of the directory itself.
    pub fn owner_and_mode(&self) -> Result<(u32, u32), FileError> {
        let stat = rustix::fs::fstat(&self.fd).map_err(failed("look at", &self.path))?;
        Ok((stat.st_uid, stat.st_mode & 0o7777))
    }

    /// Takes all permissions from everybody but the owner.
    pub fn close_to_others(&self) -> Result<(), FileError> {
        rustix::fs::fchmod(&self.fd, Mode::RWXU).map_err(failed("protect", &self.path))
    }

    /// Device and inode, which tell whether the path still means this directory.
    pub fn inode(&self) -> Result<(u64, u64), FileError> {
        let stat = rustix::fs::fstat(&self.fd).map_err(failed("look at", &self.path))?;
        #[allow(
            clippy::useless_conversion,
            reason = "the width differs between platforms"
        )]
        Ok((u64::from(stat.st_dev), u64::from(stat.st_ino)))
    }

    /// Opens `name`, and makes it where it is missing, and locks it for this process alone.
    /// `None` where another process holds the lock.
    pub fn lock(&self, name: &str) -> Result<Option<OwnedFd>, FileError> {
        // Reading is enough for a lock, and possible on a disk that has become read-only.
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(self.failed("open", name))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(self.failed("lock", name)(errno)),
        }
    }

    /// What stands under `name`; a file larger than `limit` bytes is [`Found::Other`].
    pub fn read(&self, name: &str, limit: u64) -> Result<Found, FileError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            // A symlink, a socket, or a file that somebody took the permissions from.
            Err(Errno::LOOP | Errno::NXIO | Errno::ACCESS) => return Ok(Found::Other),
            Err(errno) => return Err(self.failed("read", name)(errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(self.failed("read", name))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(Found::Other);
        }
        let mut content = Vec::new();
        File::from(fd)
            .take(limit.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(self.failed("read", name))?;
        if content.len() as u64 > limit {
            return Ok(Found::Other);
        }
        Ok(Found::File {
            content,
            mode: stat.st_mode & 0o7777,
        })
    }

    /// Puts a file of mode 0600 with this content under `name`, in place of any file or symlink there.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), FileError> {
        // One folder may be open several times. A lock on it would be anybody's to take who may read it.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        self.remove(TEMPORARY)?;
        let written = self.write_temporary(name, content).and_then(|()| {
            self.step("rename to", name)?;
            rustix::fs::renameat(&self.fd, TEMPORARY, &self.fd, name)
                .map_err(self.failed("rename to", name))
        });
        if written.is_err() && self.remove(TEMPORARY).is_err() {
            tracing::debug!(folder = %self.path.display(), "a temporary file stays behind");
        }
        written
    }

    fn write_temporary(&self, name: &str, content: &[u8]) -> Result<(), FileError> {
        self.step("create", name)?;
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, TEMPORARY, flags, Mode::RUSR | Mode::WUSR)
            .map_err(self.failed("create", name))?;
        // The umask may have taken a bit from the mode, and readers compare it.
        rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(self.failed("create", name))?;
        let mut file = File::from(fd);
        self.step("write", name)?;
        file.write_all(content)
            .map_err(self.failed("write", name))?;
        self.step("sync", name)?;
        file.sync_all().map_err(self.failed("sync", name))
    }

    /// Renames within the folder, over whatever file stands under `to`.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), FileError> {
        self.step("rename", from)?;
        rustix::fs::renameat(&self.fd, from, &self.fd, to).map_err(self.failed("rename", from))
    }

    /// Removes the file or symlink under `name`; whether there was one.
    pub fn remove(&self, name: &str) -> Result<bool, FileError> {
        self.step("remove", name)?;
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.failed("remove", name)(errno)),
        }
    }

    /// All names, sorted; those that are not UTF-8 are nobody's here and left out.
    pub fn names(&self) -> Result<Vec<String>, FileError> {
        let mut names = Vec::new();
        let entries = rustix::fs::Dir::read_from(&self.fd).map_err(failed("list", &self.path))?;
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.path))?;
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Makes all renames and removals so far durable.
    pub fn sync(&self) -> Result<(), FileError> {
        self.step("sync", "")?;
        rustix::fs::fsync(&self.fd).map_err(failed("sync", &self.path))
    }

    fn failed<E: Into<io::Error>>(
        &self,
        operation: &'static str,
        name: &str,
    ) -> impl FnOnce(E) -> FileError + use<E> {
        failed(operation, &self.path.join(name))
    }

    /// A place where the process could die: tests blow the fuse here.
    #[cfg(test)]
    fn step(&self, operation: &'static str, name: &str) -> Result<(), FileError> {
        use std::sync::atomic::Ordering::SeqCst;
        let Some(fuse) = &self.fuse else {
            return Ok(());
        };
        match fuse.try_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.failed(operation, name)(io::Error::other(
                "the fuse blew",
            ))),
        }
    }

    #[cfg(not(test))]
    #[inline]
    #[allow(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "the shape of the test's variant"
    )]
    fn step(&self, _operation: &'static str, _name: &str) -> Result<(), FileError> {
        Ok(())
    }
}

fn failed<E: Into<io::Error>>(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> FileError + use<E> {
    let path = path.to_owned();
    move |source| FileError {
        operation,
        path,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    #[test]
    fn writes_in_place_of_a_symlink_and_never_through_it() {
        let (dir, folder) = folder();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "mine").unwrap();
        symlink(&victim, dir.path().join("a")).unwrap();
        symlink(&victim, dir.path().join(TEMPORARY)).unwrap();
        assert_eq!(folder.read("a", 100).unwrap(), Found::Other);
        folder.write("a", b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "mine");
        let expected = Found::File {
            content: b"new".to_vec(),
            mode: 0o600,
        };
        assert_eq!(folder.read("a", 3).unwrap(), expected);
        assert_eq!(folder.read("a", 2).unwrap(), Found::Other);
        assert_eq!(folder.names().unwrap(), ["a", "victim"]);
    }

    #[test]
    fn who_writes_at_the_same_time_gets_what_they_wrote() {
        let (dir, _) = folder();
        std::thread::scope(|scope| {
            for writer in ["a", "b", "c", "d"] {
                let folder = Folder::open(dir.path()).unwrap();
                let content = writer.repeat(10_000).into_bytes();
                scope.spawn(move || {
                    for _ in 0..50 {
                        folder.write(writer, &content).unwrap();
                        let found = folder.read(writer, 20_000).unwrap();
                        assert!(matches!(found, Found::File { content: it, .. } if it == content));
                    }
                });
            }
        });
    }

    #[test]
    fn a_new_folder_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let folder = Folder::create(&path).unwrap();
        assert_eq!(folder.owner_and_mode().unwrap().1, 0o700);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Folder::create(&path).unwrap().close_to_others().unwrap();
        assert_eq!(folder.owner_and_mode().unwrap().1, 0o700);
        assert!(!folder.remove("nothing").unwrap());
    }

    #[test]
    fn a_lock_is_for_one() {
        let (dir, folder) = folder();
        let held = folder.lock("lock").unwrap();
        assert!(held.is_some());
        assert!(
            Folder::open(dir.path())
                .unwrap()
                .lock("lock")
                .unwrap()
                .is_none()
        );
        drop(held);
        assert!(
            Folder::open(dir.path())
                .unwrap()
                .lock("lock")
                .unwrap()
                .is_some()
        );
    }
}
