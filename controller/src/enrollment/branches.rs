//! Enrollment in Git: branches and pull requests that wait for a merge, and commits that need none.
//!
//! ```text
//! devices ─────────┐                    ┌─▶ commits on the tracked branch (automatic)
//! repo's branches ─┼─▶ pass ─▶ verdicts ┼─▶ enrollment branches (make, append, delete) ─▶ one push
//! pull requests ───┘                    └─▶ pull requests (adopt, open, edit, close) ─▶ what each device waits for
//! ```
//!
//! Level-triggered like the reconciler: a pass compares the store's devices with the repo's branches and the forge's
//! pull requests, and does what is missing. Before something is pushed or opened, the store remembers that it will
//! be; so whatever is lost, the next pass finds it done or does it, and never twice. Each push carries a lease, so a
//! lost race is only a later pass. A branch is the controller's until people push to it; then it is only added to.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use git2::Oid;
use longshore_fleet::{RepoPath, Tree as _, device_yaml};
use longshore_protocol::DeviceName;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    pass::Pass,
    push_pause::PushPause,
    requests::{self, Pauses},
};
use crate::{
    error::chain,
    fleets::Changes,
    forge::{Forge, watch::PullRequests},
    reconcile::Reading,
    replica::Lease,
    source::{
        Observation,
        carried::{Carried, Ground},
        git::GitError,
        mirror::{BATCH_BRANCHES, ENROLL_BRANCHES, Edit, Mirror},
        tree::GitTree,
    },
    store::{
        Store, StoreError,
        devices::Device,
        fleets::FleetId,
        tokens::{self, Token},
    },
};

const INTERVAL: Duration = Duration::from_secs(30);
/// Between two passes that devices ask for: when many enroll, each pass takes what came in the meantime.
const GATHER: Duration = Duration::from_millis(100);

/// Why something was not done in the repo.
#[derive(Debug, thiserror::Error)]
pub enum BranchError {
    /// The device is not there, or does not wait for approval.
    #[error("device `{0}` does not wait for approval")]
    NotPending(DeviceName),
    /// There is nothing to build on.
    #[error("the repo has no branch to approve the device on; push one first")]
    NoBranch,
    /// Somebody changed the same lines.
    #[error(
        "branch `{0}` conflicts with the tracked branch; merge it with git, or delete it to reject the device"
    )]
    Conflict(String),
    /// Git failed.
    #[error("the repo does not accept it")]
    Git(#[from] GitError),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

/// What the enrollment of one fleet works with.
#[derive(Clone, Debug)]
pub struct Branches {
    /// The fleet.
    pub fleet: FleetId,
    /// Its folder in the repo.
    pub root: RepoPath,
    /// Its repo's mirror.
    pub mirror: Mirror,
    /// The tracked branch.
    pub base: String,
    /// The repo's forge, where the fleet is connected to one.
    pub forge: Option<Arc<dyn Forge>>,
    /// What the source sees.
    pub observation: watch::Receiver<Observation>,
    /// What the tracked branch says.
    pub reading: watch::Receiver<Option<Arc<Reading>>>,
    /// The open pull requests; never anything without a forge.
    pub pull_requests: watch::Receiver<PullRequests>,
    /// Makes the pull requests be listed.
    pub list: Arc<Notify>,
    /// Says "look".
    pub poke: Arc<Notify>,
    /// Counts changes of devices' states, and of what they wait for.
    pub changes: Changes,
    /// Makes the source look.
    pub source: Arc<Notify>,
    /// Makes the reconciler look.
    pub reconcile: Arc<Notify>,
    /// Remembers.
    pub store: Store,
    /// Under what it writes.
    pub lease: Lease,
}

/// What the passes remember. All of it only saves work, but for pauses that the forge asked for.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// By tip.
    pub(super) carried: HashMap<Oid, Arc<Carried>>,
    /// By commit of the tracked branch.
    pub(super) grounds: HashMap<Oid, Arc<Ground>>,
    /// By tip and commit of the tracked branch.
    pub(super) conflicts: HashMap<(Oid, Oid), bool>,
    /// Pushes that worked, and that the source has not seen yet.
    pub(super) arrived: HashMap<String, Arrived>,
    /// The tracked branch's commit when devices were committed on it, and when that was.
    pub(super) committed: Option<(Oid, Instant)>,
    /// The tracked branch's commit when it refused a push, and when that was.
    pub(super) refused: Option<(Oid, Instant)>,
    /// Since when everything on a branch is decided.
    pub(super) settled: HashMap<String, Instant>,
    /// What the forge said of single pull requests since it listed them last.
    pub(super) asked: requests::Asked,
    /// When the forge may be called again.
    pub(super) pauses: Pauses,
    /// When the repo may be pushed to again.
    pub(super) push_pause: PushPause,
}

/// A push that worked.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) commit: Oid,
    /// What the source saw at that time.
    pub(super) before: Option<Oid>,
    pub(super) at: Instant,
}

impl Branches {
    /// Passes until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let (mut observation, mut reading) = (self.observation.clone(), self.reading.clone());
        let (mut listed, mut changes) = (self.pull_requests.clone(), self.changes.subscribe());
        let mut memory = Memory::default();
        loop {
            observation.mark_unchanged();
            reading.mark_unchanged();
            listed.mark_unchanged();
            changes.mark_unchanged();
            let gathered = Instant::now() + GATHER;
            let more = match Pass::run(&self, &mut memory).await {
                Ok(more) => more,
                Err(error) => {
                    warn!(
                        error = %chain(&error),
                        "enrollments could not be written to the repo; this will be tried again"
                    );
                    false
                }
            };
            if more && !shutdown.is_cancelled() {
                continue;
            }
            let ends = [memory.pauses.next(), memory.push_pause.end()];
            let pause = ends.into_iter().flatten().min().map_or(INTERVAL, |at| {
                at.saturating_duration_since(Instant::now()).min(INTERVAL)
            });
            let mut enrolled = false;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.poke.notified() => enrolled = true,
                told = observation.changed() => if told.is_err() { return },
                told = reading.changed() => if told.is_err() { return },
                // Without a forge, nobody tells.
                Ok(()) = listed.changed() => {}
                told = changes.changed() => if told.is_err() { return },
            }
            // What people do in the repo is looked at while it can be seen: a branch that is deleted right after it came
            // was rejected.
            if enrolled {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep_until(gathered) => {}
                    told = observation.changed() => if told.is_err() { return },
                }
            }
        }
    }

    /// Approves a device on the tracked branch, as its enrollment branch has it.
    pub async fn merge(&self, device: &Device) -> Result<(), BranchError> {
        let name = &device.name;
        let refs = self.mirror.fetch().await?;
        let tracked = refs.tracked.as_ref().ok_or(BranchError::NoBranch)?.id;
        let branch = device.enrollment_branch.as_deref();
        let tip = branch.and_then(|branch| refs.enrollment.get(branch).copied());
        let found = match tip {
            Some(tip) => {
                let carried = self.mirror.carried(tip, tracked, &self.root).await?;
                let folder = carried.folders.get(&device.public_key).cloned();
                folder.map(|folder| (tip, folder))
            }
            None => None,
        };
        let branch = branch.unwrap_or_default();
        let commit = match found {
            // The others on the branch are not approved with it.
            Some((tip, folder)) if branch.starts_with(BATCH_BRANCHES) => {
                let folder = self.root.join("devices").join(&folder);
                let message = format!("Enroll {name}\n\nApproves {name}.\n");
                self.mirror.graft(tracked, tip, &folder, message).await?
            }
            Some((tip, _)) => {
                let message = format!("Merge branch '{branch}'\n\nApproves {name}.\n");
                let merged = self.mirror.merge(tracked, tip, message).await?;
                merged.ok_or_else(|| BranchError::Conflict(branch.to_owned()))?
            }
            None => {
                let mut db = self.store.read().await?;
                let token = tokens::find(&mut db, &self.fleet.tenant, &device.token).await?;
                drop(db);
                let token = token.ok_or_else(|| BranchError::NotPending(name.clone()))?;
                let ground = self.mirror.ground(tracked, &self.root).await?;
                let tree = self.mirror.tree(tracked).await?;
                let files = self.files(&ground, &tree, device, &token);
                let message = format!("Enroll {name}\n\nApproves {name}.\n");
                self.mirror.commit(Some(tracked), files, message).await?
            }
        };
        self.mirror.push_tracked(commit, Some(tracked)).await?;
        // The branch is deleted by the pass that finds the device active.
        self.source.notify_one();
        Ok(())
    }

    pub(super) fn folder(&self, device: &Device) -> RepoPath {
        self.root.join("devices").join(device.name.as_str())
    }

    /// The files of a new device's folder. An overlay of its own that is there already stays.
    pub(super) fn files(
        &self,
        ground: &Ground,
        tree: &GitTree,
        device: &Device,
        token: &Token,
    ) -> Vec<Edit> {
        let folder = self.folder(device);
        let own = folder.join("kustomization.yaml");
        let has_own = ground.has(device.name.as_str()) && matches!(tree.entry(&own), Ok(Some(_)));
        let overlay = token.overlay.as_ref().filter(|_| !has_own);
        let overlay = overlay.map(|overlay| format!("../../{overlay}"));
        let mut edits = vec![Edit {
            path: folder.join("device.yaml").as_str().to_owned(),
            content: Some(device_yaml(
                &device.name,
                &device.id,
                &device.public_key,
                &device.labels,
                overlay.as_deref(),
            )),
        }];
        if overlay.is_none() && !has_own {
            let resources = if ground.base {
                "resources:\n  - ../../base\n"
            } else {
                "resources: []\n"
            };
            edits.push(Edit {
                path: own.as_str().to_owned(),
                content: Some(format!(
                    "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n{resources}"
                )),
            });
        }
        edits
    }

    /// The name of a branch for one device. The second choice is for a repo where another fleet, or somebody, has
    /// taken the first; no device's name has a dot.
    pub(super) fn names(&self, device: &DeviceName) -> [String; 2] {
        let FleetId { tenant, name } = &self.fleet;
        [
            format!("{ENROLL_BRANCHES}{device}"),
            format!("{ENROLL_BRANCHES}{device}.{tenant}.{name}"),
        ]
    }
}

impl Memory {
    /// Forgets what no branch refers to any more.
    pub(super) fn keep(&mut self, tips: &HashSet<Oid>, grounds: &HashSet<Oid>) {
        self.carried.retain(|tip, _| tips.contains(tip));
        self.conflicts
            .retain(|(tip, base), _| tips.contains(tip) && grounds.contains(base));
        self.grounds.retain(|commit, _| grounds.contains(commit));
    }
}
