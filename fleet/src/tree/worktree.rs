//! A directory on disk, seen as a tree.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    io::Read as _,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use sha2::{Digest as _, Sha256};

use super::{ContentId, EntryKind, Listed, Listing, RepoPath, Tree, TreeEntry, TreeError};

static OPENED: AtomicU64 = AtomicU64::new(0);

/// A directory on disk as a [`Tree`], `.git` left out. For the command line and for tests.
///
/// What was looked at once is remembered, so that one `WorkTree` answers alike however the directory changes
/// under it; open another one to see the changes. The ids of files and symlinks are SHA-256 digests of
/// their content; the ids of directories are made up and differ between any two `WorkTree`s.
#[derive(Debug)]
pub struct WorkTree {
    root: PathBuf,
    /// Tells this value's directory ids from those of others.
    nonce: u64,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    entries: BTreeMap<RepoPath, Option<TreeEntry>>,
    contents: HashMap<ContentId, (PathBuf, u64)>,
}

impl WorkTree {
    /// The directory `root` as a tree.
    ///
    /// # Errors
    /// Where it is not there, or no directory.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, TreeError> {
        let root = root.as_ref();
        let failed = |error| TreeError::new(root.display(), error);
        let absolute = root.canonicalize().map_err(failed)?;
        if !absolute.is_dir() {
            return Err(failed(io::Error::from(io::ErrorKind::NotADirectory)));
        }
        let nonce = OPENED.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            root: absolute,
            nonce,
            seen: Mutex::default(),
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_disk(&self, path: &RepoPath) -> PathBuf {
        if path.is_root() {
            self.root.clone()
        } else {
            self.root.join(path.as_str())
        }
    }

    /// Looks at the disk: the entry at `file`, a directory's id made from `name`.
    fn look(&self, file: &Path, name: &[u8]) -> Result<Option<TreeEntry>, TreeError> {
        let failed = |error| TreeError::new(file.display(), error);
        let metadata = match fs::symlink_metadata(file) {
            Ok(metadata) => metadata,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        let kind = metadata.file_type();
        let mut hasher = Sha256::new();
        let entry = if kind.is_dir() {
            hasher.update(b"directory");
            hasher.update(self.nonce.to_le_bytes());
            hasher.update(name);
            return Ok(Some(TreeEntry {
                kind: EntryKind::Directory,
                id: ContentId(hasher.finalize().into()),
            }));
        } else if kind.is_symlink() {
            hasher.update(fs::read_link(file).map_err(failed)?.as_os_str().as_bytes());
            EntryKind::Symlink
        } else if kind.is_file() {
            let mut reader = fs::File::open(file).map_err(failed)?;
            let mut chunk = vec![0; 64 * 1024];
            loop {
                let read = reader.read(&mut chunk).map_err(failed)?;
                let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
                    break;
                };
                hasher.update(bytes);
            }
            EntryKind::File {
                executable: metadata.permissions().mode() & 0o100 != 0,
            }
        } else {
            // Sockets, pipes and devices cannot stand in a commit.
            return Ok(None);
        };
        let id = ContentId(hasher.finalize().into());
        self.seen()
            .contents
            .insert(id, (file.to_owned(), metadata.size()));
        Ok(Some(TreeEntry { kind: entry, id }))
    }

    fn is_directory(&self, path: &RepoPath) -> Result<bool, TreeError> {
        Ok(matches!(
            self.entry(path)?,
            Some(TreeEntry {
                kind: EntryKind::Directory,
                ..
            })
        ))
    }

    fn content(&self, id: ContentId) -> Result<(PathBuf, u64), TreeError> {
        let found = self.seen().contents.get(&id).cloned();
        found.ok_or_else(|| {
            TreeError::new(format_args!("content {id:?}"), "this tree never named it")
        })
    }
}

impl Tree for WorkTree {
    fn entry(&self, path: &RepoPath) -> Result<Option<TreeEntry>, TreeError> {
        if path.components().any(|component| component == ".git") {
            return Ok(None);
        }
        // `lstat` follows symlinks in all but the last component, and a tree must not.
        if let Some(parent) = path.parent()
            && !parent.is_root()
            && !self.is_directory(&parent)?
        {
            return Ok(None);
        }
        if let Some(entry) = self.seen().entries.get(path) {
            return Ok(*entry);
        }
        let entry = self.look(&self.on_disk(path), path.as_str().as_bytes())?;
        self.seen().entries.insert(path.clone(), entry);
        Ok(entry)
    }

    fn list(&self, dir: &RepoPath) -> Result<Arc<Listing>, TreeError> {
        if !dir.is_root() && !self.is_directory(dir)? {
            return Ok(Arc::default());
        }
        let on_disk = self.on_disk(dir);
        let failed = |error| TreeError::new(on_disk.display(), error);
        let mut listed = Vec::new();
        for found in fs::read_dir(&on_disk).map_err(failed)? {
            let name = found.map_err(failed)?.file_name();
            if name == ".git" {
                continue;
            }
            let entry = match name.to_str() {
                Some(text) => self.entry(&dir.join(text))?,
                None => self.look(&on_disk.join(&name), name.as_bytes())?,
            };
            listed.extend(entry.map(|entry| Listed {
                name: name.as_bytes().into(),
                entry,
            }));
        }
        Ok(Arc::new(listed.into_iter().collect()))
    }

    fn size(&self, id: ContentId) -> Result<u64, TreeError> {
        Ok(self.content(id)?.1)
    }

    fn blob(&self, id: ContentId) -> Result<Vec<u8>, TreeError> {
        let (file, _size) = self.content(id)?;
        let failed = |error: io::Error| TreeError::new(file.display(), error);
        let bytes = if fs::symlink_metadata(&file).map_err(failed)?.is_symlink() {
            fs::read_link(&file)
                .map_err(failed)?
                .into_os_string()
                .as_encoded_bytes()
                .to_vec()
        } else {
            fs::read(&file).map_err(failed)?
        };
        if ContentId(Sha256::digest(&bytes).into()) != id {
            return Err(TreeError::new(
                file.display(),
                "it changed while it was being read",
            ));
        }
        Ok(bytes)
    }
}
