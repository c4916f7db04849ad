//! Fleet repos that the controller hosts itself, for those who have no Git host.
//!
//! ```text
//! git client ── HTTPS ──▶ api::git ──▶ Backend ──▶ git http-backend ──▶ git receive-pack
//!                         who may?     bounds         (a child)           │ the new objects, in quarantine
//!                                                                         ▼
//!            remote: lines ◀───────── Reviewer ◀── Unix socket ── pre-receive (this program again)
//!                                     rules, preview
//! ```
//!
//! A hosted repo is a bare repo in the data directory, at a path that is made of checked names only. For the rest
//! of the controller it is a repo on this machine like any other: followed by [`crate::source`], written to by
//! [`crate::enrollment`] by its path. Only what comes over HTTP passes the hook.
//!
//! Guarantees:
//! - What a repo's content says (hooks, configuration, symlinks, submodules, alternates) runs nothing and reads
//!   nothing here: a bare repo has no work tree, its configuration is ours, and the hooks' directory is set by the
//!   command that starts Git.
//! - A push is looked at while its objects are still in Git's quarantine. What is refused leaves nothing behind.
//! - Requests and answers are streamed; no push or clone is held in memory.
//! - Git runs in a process group that ends with its request, within bounds of time, memory, size and number.

mod backend;
mod cgi;
mod exchange;
pub mod hook;
mod maintenance;
mod places;
mod pushes;
mod quarantine;
pub mod repo;
mod review;
mod reviewer;
mod rules;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{body::Body, response::Response};
use tokio::net::UnixListener;

use self::{backend::Backend, places::Places, pushes::Pushes, reviewer::Reviewer};
pub use self::{
    backend::{BackendError, Call, Operation, Service},
    places::Busy,
};
use crate::{
    files::{self, FileError},
    fleets::Fleets,
    tasks::Tasks,
};

/// How large things may get, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One push.
    pub push: u64,
    /// One repo, with all that it ever held.
    pub repo: u64,
}

/// Serves hosted repos.
#[derive(Debug)]
pub struct Hosting {
    backend: Backend,
    fleets: Arc<Fleets>,
}

impl Hosting {
    /// Prepares the hook and listens for it, until the shutdown.
    ///
    /// # Errors
    /// Where the data directory does not let us.
    pub fn start(
        data_dir: &Path,
        limits: Limits,
        fleets: Arc<Fleets>,
        tasks: Tasks,
    ) -> Result<Self, FileError> {
        let directory = data_dir.join("push");
        files::create_private_directory(&directory)?;
        let hooks = hook::install(&directory)?;
        let socket = hook::socket(&directory);
        let listener = listen(&socket)?;
        let pushes = Arc::new(Pushes::default());
        let reviewer = Reviewer {
            pushes: pushes.clone(),
            fleets: fleets.clone(),
        };
        let review = reviewer.run(listener, tasks.clone());
        tasks.vital("the review of pushes", review);
        Ok(Self {
            backend: Backend {
                home: directory,
                hooks,
                limits,
                places: Places::default(),
                pushes,
                maintenance: Arc::default(),
                tasks,
            },
            fleets,
        })
    }

    /// Serves one request of a git client.
    ///
    /// # Errors
    /// Where too many are served already, or Git cannot be run.
    pub async fn serve(&self, call: Call, body: Body) -> Result<Response, BackendError> {
        let repo = self.fleets.hosted_directory(&call.fleet);
        if !self.fleets.has_repo(&call.fleet) {
            return Err(BackendError::Elsewhere);
        }
        let fleets = self.fleets.clone();
        let id = call.fleet.id.clone();
        // The watch on the repo would notice a push as well; this does not depend on it.
        self.backend
            .serve(call, repo, body, move || fleets.look(&id))
            .await
    }
}

/// Listens at `socket`, in a directory that is ours alone.
fn listen(socket: &Path) -> Result<UnixListener, FileError> {
    let at = |source| FileError::new(socket, source);
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(at(error)),
        _ => {}
    }
    let listener = hook::Reachable::new(socket)
        .and_then(|reachable| std::os::unix::net::UnixListener::bind(reachable.path()))
        .map_err(at)?;
    listener.set_nonblocking(true).map_err(at)?;
    UnixListener::from_std(listener).map_err(at)
}

/// Where a hosted repo is, below the directory `root`: a path of checked names only.
///
/// A fleet that is made again under an old name must not find what the old one left.
pub(crate) fn place(root: &Path, fleet: &crate::store::fleets::Fleet) -> PathBuf {
    let name = format!("{}-{}.git", fleet.id.name, fleet.created_at);
    root.join(fleet.id.tenant.as_str()).join(name)
}
