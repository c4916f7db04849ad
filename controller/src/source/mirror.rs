//! The controller's bare mirror of one fleet repo: read with git2, synchronized with the `git` program.
//!
//! Only the tracked branch and the enrollment branches are mirrored, below `refs/longshore/`. Commits of our own
//! are made in the mirror and pushed; a push that loses a race is tried again after the next fetch. Commits that
//! somebody proposes are brought by name ([`Mirror::fetch_proposal`]), for as long as they are proposed.

mod proposal;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use git2::{Oid, Repository, RepositoryInitOptions, Signature};
use tracing::{debug, warn};

use super::{
    access::{self, Access, Credential, Trust},
    carried::Step,
    git::{self, GitError},
    local, merge,
    tree::{GitTree, LargeDirectories},
};
use crate::{error::chain, store::fleets::Fleet};

pub(super) use proposal::PROPOSALS;
pub use proposal::Proposal;

pub(super) const TRACKED: &str = "refs/longshore/tracked";
/// Where the mirror keeps the enrollment branches: by their names, without `longshore/`.
pub(super) const MIRRORED: &str = "refs/longshore/";
/// Where enrollment branches of one device are, in the fleet repo.
pub const ENROLL_BRANCHES: &str = "longshore/enroll/";
/// Where enrollment branches of several devices are, in the fleet repo.
pub const BATCH_BRANCHES: &str = "longshore/enroll-batch/";

/// How many branches one `git push` carries: its arguments have bounds.
const MAX_PUSHES: usize = 1000;

/// A commit of the tracked branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its id.
    pub id: Oid,
    /// The first line of its message.
    pub summary: String,
    /// Its author's name.
    pub author: String,
}

/// What the repo's branches point to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refs {
    /// The tracked branch's commit; `None` where the branch or the repo is empty.
    pub tracked: Option<Commit>,
    /// The enrollment branches by their full names: those below [`ENROLL_BRANCHES`] and [`BATCH_BRANCHES`].
    pub enrollment: BTreeMap<String, Oid>,
}

/// One file to write or, without content, one file or folder to delete.
#[derive(Clone, Debug)]
pub struct Edit {
    /// From the repo's root.
    pub path: String,
    /// The new content.
    pub content: Option<String>,
}

/// One branch to push, or to delete.
#[derive(Clone, Debug)]
pub struct Push {
    /// Its name.
    pub branch: String,
    /// What it is to point to; `None` deletes it.
    pub commit: Option<Oid>,
    /// What it must point to now, or must not exist.
    pub expected: Option<Oid>,
}

/// The mirror of one fleet's repo.
#[derive(Clone, Debug)]
pub struct Mirror {
    directory: Arc<Path>,
    remote: String,
    branch: String,
    access: Access,
    large: Arc<LargeDirectories>,
}

impl Mirror {
    /// The mirror in `directory`, made if it is not there.
    pub async fn open(
        directory: PathBuf,
        fleet: &Fleet,
        credential: Option<Credential>,
    ) -> Result<Self, GitError> {
        let mirror = Self {
            directory: directory.into(),
            remote: fleet.repo.clone(),
            branch: fleet.branch.clone(),
            access: Access::new(fleet, credential),
            large: Arc::default(),
        };
        mirror
            .blocking(|mirror| {
                if mirror.directory.join("HEAD").exists() {
                    mirror.remove_torn_packs();
                    return access::clean(&mirror.directory).map_err(GitError::Key);
                }
                let options = &mut RepositoryInitOptions::new();
                options.bare(true).mkpath(true).external_template(false);
                Repository::init_opts(&mirror.directory, options)?;
                Ok(())
            })
            .await?;
        Ok(mirror)
    }

    /// Brings the mirror up to date. A tracked branch that was deleted, or an empty repo, is no error.
    pub async fn fetch(&self) -> Result<Refs, GitError> {
        let done = match self.fetch_once().await {
            Err(error) if error.is_locked() && self.break_stale_locks().await? => {
                self.fetch_once().await
            }
            done => done,
        };
        if done.is_err() {
            self.blocking(|mirror| {
                mirror.remove_torn_packs();
                Ok(())
            })
            .await?;
        }
        done
    }

    /// Removes what a `git` that was ended left of the packs that it received: a host that sends without end, and
    /// is asked again and again, would fill the disk.
    fn remove_torn_packs(&self) {
        let packs = fs::read_dir(self.directory.join("objects/pack"));
        for entry in packs.into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with("tmp_") && is_stale(&path) {
                debug!(path = %path.display(), "a torn pack is removed");
                if let Err(error) = fs::remove_file(&path) {
                    warn!(%error, path = %path.display(), "a torn pack stays behind");
                }
            }
        }
    }

    async fn fetch_once(&self) -> Result<Refs, GitError> {
        if self.bring_local().await {
            return self.refs().await;
        }
        let tracked = format!("+refs/heads/{}:{TRACKED}", self.branch);
        let [single, batch] = [ENROLL_BRANCHES, BATCH_BRANCHES]
            .map(|branches| format!("+refs/heads/{branches}*:{}*", mirrored(branches)));
        match self.fetch_refs(&[&tracked, &single, &batch]).await {
            Err(error) if error.is_missing_branch() => {
                self.fetch_refs(&[&single, &batch]).await?;
                self.blocking(|mirror| {
                    match mirror.repo()?.find_reference(TRACKED) {
                        Ok(mut reference) => reference.delete()?,
                        Err(error) if error.code() == git2::ErrorCode::NotFound => {}
                        Err(error) => return Err(error.into()),
                    }
                    Ok(())
                })
                .await?;
            }
            other => other?,
        }
        self.refs().await
    }

    /// Takes the shortcut of [`local`] where the repo is on this machine. Returns whether that did it.
    async fn bring_local(&self) -> bool {
        let path = PathBuf::from(&self.remote);
        if self.access.trust != Trust::Administrator || !path.is_absolute() {
            return false;
        }
        let brought = self
            .blocking(move |mirror| Ok(local::bring(&path, &mirror.repo()?, &mirror.branch)?))
            .await;
        brought.unwrap_or_else(|error| {
            debug!(error = %chain(&error), "left to git fetch");
            false
        })
    }

    pub(super) async fn fetch_refs(&self, refs: &[&str]) -> Result<(), GitError> {
        let arguments = [
            "fetch",
            "--quiet",
            "--prune",
            "--no-tags",
            "--force",
            "--no-write-fetch-head",
            "--no-recurse-submodules",
            "--no-auto-maintenance",
            "--",
            &self.remote,
        ];
        git::run(&self.directory, &self.access, arguments.iter().chain(refs)).await?;
        Ok(())
    }

    /// Removes the locks that a killed `git` left behind; tells whether there were any.
    async fn break_stale_locks(&self) -> Result<bool, GitError> {
        self.blocking(|mirror| {
            let mut folders = vec![mirror.directory.join("refs")];
            let mut files: Vec<_> = ["HEAD.lock", "packed-refs.lock", "shallow.lock"]
                .map(|lock| mirror.directory.join(lock))
                .into();
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                    let path = entry.path();
                    if path.is_dir() {
                        folders.push(path);
                    } else if path
                        .extension()
                        .is_some_and(|extension| extension == "lock")
                    {
                        files.push(path);
                    }
                }
            }
            let mut broken = false;
            for lock in files.iter().filter(|lock| is_stale(lock)) {
                warn!(lock = %lock.display(), "a killed git left its lock behind");
                broken |= fs::remove_file(lock).is_ok();
            }
            Ok(broken)
        })
        .await
    }

    /// What the last fetch found.
    pub async fn refs(&self) -> Result<Refs, GitError> {
        self.blocking(|mirror| {
            let repo = mirror.repo()?;
            let tracked = match repo.refname_to_id(TRACKED) {
                Ok(id) => {
                    let commit = repo.find_commit(id)?;
                    let text = |bytes: &[u8]| {
                        String::from_utf8_lossy(bytes)
                            .chars()
                            .take(200)
                            .collect::<String>()
                    };
                    Some(Commit {
                        id,
                        summary: commit
                            .message_bytes()
                            .split(|byte| *byte == b'\n')
                            .find(|line| !line.is_empty())
                            .map(text)
                            .unwrap_or_default(),
                        author: text(commit.author().name_bytes()),
                    })
                }
                Err(error) if error.code() == git2::ErrorCode::NotFound => None,
                Err(error) => return Err(error.into()),
            };
            let mut enrollment = BTreeMap::new();
            for branches in [ENROLL_BRANCHES, BATCH_BRANCHES] {
                for reference in repo.references_glob(&format!("{}*", mirrored(branches)))? {
                    let reference = reference?;
                    let name = std::str::from_utf8(reference.name_bytes()).ok();
                    let name = name.and_then(|name| name.strip_prefix("refs/"));
                    if let (Some(name), Some(id)) = (name, reference.target()) {
                        enrollment.insert(name.to_owned(), id);
                    }
                }
            }
            Ok(Refs {
                tracked,
                enrollment,
            })
        })
        .await
    }

    /// The tree of a commit.
    pub async fn tree(&self, commit: Oid) -> Result<Arc<GitTree>, GitError> {
        self.blocking(move |mirror| {
            let tree = GitTree::of(mirror.repo()?, commit)?;
            Ok(Arc::new(tree.sharing(mirror.large.clone())))
        })
        .await
    }

    /// Makes a commit with these edits on top of `parent`, or the first one of an empty repo.
    pub async fn commit(
        &self,
        parent: Option<Oid>,
        edits: Vec<Edit>,
        message: String,
    ) -> Result<Oid, GitError> {
        let commits = self.stack(parent, vec![Step { edits, message }]).await?;
        commits.last().copied().ok_or(GitError::Cut)
    }

    /// Makes the commit that merges `theirs` into `ours`; `None` where they conflict.
    pub async fn merge(
        &self,
        ours: Oid,
        theirs: Oid,
        message: String,
    ) -> Result<Option<Oid>, GitError> {
        self.blocking(move |mirror| {
            let repo = mirror.repo()?;
            let Some(tree) = merge::trees(&repo, ours, theirs)? else {
                return Ok(None);
            };
            let tree = repo.find_tree(tree)?;
            let (ours, theirs) = (repo.find_commit(ours)?, repo.find_commit(theirs)?);
            let author = author()?;
            let parents = [&ours, &theirs];
            Ok(Some(repo.commit(
                None, &author, &author, &message, &tree, &parents,
            )?))
        })
        .await
    }

    /// Pushes a commit to the tracked branch, if nobody else did since `expected`.
    pub async fn push_tracked(&self, commit: Oid, expected: Option<Oid>) -> Result<(), GitError> {
        self.push_all(&[Push {
            branch: self.branch.clone(),
            commit: Some(commit),
            expected,
        }])
        .await
    }

    /// Pushes each of these, if nobody else did since what it expects. One that is refused does not keep the
    /// others back; what became of each, the next fetch tells.
    pub async fn push_all(&self, pushes: &[Push]) -> Result<(), GitError> {
        let text = |id: Option<Oid>| id.map(|id| id.to_string()).unwrap_or_default();
        let mut result = Ok(());
        for pushes in pushes.chunks(MAX_PUSHES) {
            let leases = pushes.iter().map(|push| {
                let expected = text(push.expected);
                format!("--force-with-lease=refs/heads/{}:{expected}", push.branch)
            });
            let refs = pushes
                .iter()
                .map(|push| format!("{}:refs/heads/{}", text(push.commit), push.branch));
            let arguments = ["push", "--quiet", "--no-verify", "--porcelain"]
                .map(str::to_owned)
                .into_iter()
                .chain(leases)
                .chain(["--".to_owned(), self.remote.clone()])
                .chain(refs);
            let done = git::run(&self.directory, &self.access, arguments).await;
            result = result.and(done.map(drop));
        }
        result
    }

    pub(super) fn repo(&self) -> Result<Repository, git2::Error> {
        Repository::open_bare(&self.directory)
    }

    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, GitError> + Send + 'static,
    ) -> Result<T, GitError> {
        let mirror = self.clone();
        let span = tracing::Span::current();
        tokio::task::spawn_blocking(move || span.in_scope(|| work(&mirror)))
            .await
            .map_err(|_cut| GitError::Cut)?
    }
}

/// Where the mirror keeps the branches below a name.
fn mirrored(branches: &str) -> String {
    let name = branches.strip_prefix("longshore/").unwrap_or(branches);
    format!("{MIRRORED}{name}")
}

/// Whether a file is nobody's any more: no `git` of ours lives that long.
fn is_stale(path: &Path) -> bool {
    let written = fs::metadata(path).and_then(|file| file.modified());
    written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age > git::DEADLINE))
}

pub(super) fn author() -> Result<Signature<'static>, git2::Error> {
    Signature::now("Longshore", "longshore@localhost")
}
