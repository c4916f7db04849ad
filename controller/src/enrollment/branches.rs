//! Enrollment in Git: branches that wait for a merge, and commits that need none.
//!
//! Level-triggered like the reconciler: a pass compares the store's devices with the repo's branches and does
//! what is missing. A manual token's device gets a branch; an automatic token's devices are committed to the
//! tracked branch, all in one commit; branches of devices that no longer wait are deleted, and so are folders
//! of devices that an operator decommissioned. Each push is conditional, so a lost race is only a later pass.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use longshore_fleet::{RepoPath, Tree as _, device_yaml};
use longshore_protocol::{
    DeviceName,
    api::{Approval, DeviceState},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    error::chain,
    forge::{Forge, watch::PullRequests},
    source::{
        Observation,
        git::GitError,
        mirror::{ENROLL_BRANCHES, Edit, Mirror, Refs},
        tree::GitTree,
    },
    store::{
        Store, StoreError,
        devices::{self, Device, DeviceView},
        fleets::FleetId,
        tokens::{self, Token},
    },
};

const INTERVAL: Duration = Duration::from_secs(30);
/// The largest `device.yaml` that is looked at, in bytes.
const MAX_DEVICE_FILE: u64 = 64 * 1024;

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
        "branch `{ENROLL_BRANCHES}{0}` conflicts with the tracked branch; merge it with git, or delete the branch to have it made again"
    )]
    Conflict(DeviceName),
    /// The branch is there, and says something else.
    #[error(
        "branch `{ENROLL_BRANCHES}{0}` exists and is not this device's; delete it, or enroll under another name"
    )]
    Taken(DeviceName),
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
    /// The repo's forge, where the fleet is connected to one.
    pub forge: Option<Arc<dyn Forge>>,
    /// What the source sees.
    pub observation: watch::Receiver<Observation>,
    /// The open pull requests; never anything without a forge.
    pub pull_requests: watch::Receiver<PullRequests>,
    /// Says "look".
    pub poke: Arc<Notify>,
    /// Says that devices' states changed, and so which branches are still needed.
    pub changes: watch::Receiver<u64>,
    /// Makes the source look.
    pub source: Arc<Notify>,
    /// Remembers.
    pub store: Store,
}

impl Branches {
    /// Passes until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let (mut observation, mut changes) = (self.observation.clone(), self.changes.clone());
        loop {
            observation.mark_unchanged();
            changes.mark_unchanged();
            if let Err(error) = self.pass().await {
                warn!(
                    error = %chain(&error),
                    "enrollments could not be written to the repo; this will be tried again"
                );
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.poke.notified() => {}
                told = observation.changed() => if told.is_err() { return },
                told = changes.changed() => if told.is_err() { return },
            }
        }
    }

    async fn pass(&self) -> Result<(), BranchError> {
        let Some(refs) = self.observation.borrow().refs.clone() else {
            return Ok(());
        };
        let mut db = self.store.read().await?;
        let devices = devices::list(&mut db, &self.fleet).await?;
        let tokens = tokens::list(&mut db, &self.fleet).await?;
        drop(db);
        let tokens: HashMap<_, _> = tokens.iter().map(|token| (&token.id, token)).collect();
        let (mut automatic, mut to_delete) = (Vec::new(), Vec::new());
        let (mut pending, mut active) = (HashMap::new(), HashSet::new());
        for view in &devices {
            let device = &view.device;
            match device.state {
                DeviceState::Pending => {
                    pending.insert(device.name.clone(), device);
                    match tokens.get(&device.token) {
                        Some(token) if token.approval == Approval::Automatic => {
                            automatic.push((device, *token));
                        }
                        Some(token) if !device.branch_pushed => {
                            self.try_branch(&refs, device, token).await;
                        }
                        _ => {}
                    }
                }
                DeviceState::Active => {
                    active.insert(&device.name);
                }
                DeviceState::Decommissioned if device.folder_to_delete => to_delete.push(device),
                DeviceState::Decommissioned | DeviceState::Rejected => {}
            }
        }
        // The name may have a new owner already, whose folder it then is.
        to_delete
            .retain(|device| !pending.contains_key(&device.name) && !active.contains(&device.name));
        let mut pushed = self.commit_automatic(&refs, &automatic).await?;
        pushed |= self.delete_folders(&refs, &to_delete).await?;
        pushed |= self.delete_branches(&refs, &devices).await?;
        if pushed {
            self.source.notify_one();
        }
        Ok(())
    }

    /// Pushes the branch of a device; where that fails, the others go on.
    async fn try_branch(&self, refs: &Refs, device: &Device, token: &Token) {
        if let Err(error) = self.branch(refs, device, token).await {
            warn!(
                device = %device.name,
                error = %chain(&error),
                "the enrollment branch could not be pushed; this will be tried again"
            );
        }
    }

    /// Pushes the branch of a device that has none.
    async fn branch(&self, refs: &Refs, device: &Device, token: &Token) -> Result<(), BranchError> {
        let Some(tracked) = &refs.tracked else {
            return Ok(());
        };
        if let Some(tip) = refs.enrollment.get(&device.name) {
            if !vouches_for(&*self.mirror.tree(*tip).await?, &self.root, device) {
                return Err(BranchError::Taken(device.name.clone()));
            }
            return Ok(());
        }
        let tree = self.mirror.tree(tracked.id).await?;
        let message = format!(
            "Enroll {}\n\nMerging this approves the device with the key {}.\n",
            device.name, device.public_key
        );
        let commit = self
            .mirror
            .commit(Some(tracked.id), self.files(&tree, device, token), message)
            .await?;
        self.mirror
            .push_enrollment(&device.name, Some(commit), None)
            .await
            .or_else(race_is_fine)?;
        info!(device = %device.name, branch = %format!("{ENROLL_BRANCHES}{}", device.name), "pushed");
        self.source.notify_one();
        Ok(())
    }

    /// Commits devices that need nobody's approval.
    async fn commit_automatic(
        &self,
        refs: &Refs,
        devices: &[(&Device, &Token)],
    ) -> Result<bool, BranchError> {
        let Some(tracked) = refs.tracked.as_ref().filter(|_| !devices.is_empty()) else {
            return Ok(false);
        };
        let tree = self.mirror.tree(tracked.id).await?;
        // A folder that people made is theirs: what a device would change in it, they decide.
        let (taken, devices): (Vec<_>, Vec<_>) = devices
            .iter()
            .copied()
            .partition(|(device, _)| !matches!(tree.entry(&self.folder(device)), Ok(None)));
        for (device, token) in taken {
            self.try_branch(refs, device, token).await;
        }
        if devices.is_empty() {
            return Ok(false);
        }
        let edits = devices
            .iter()
            .flat_map(|(device, token)| self.files(&tree, device, token))
            .collect();
        let message = match devices.as_slice() {
            [(device, _)] => format!("Enroll {}\n", device.name),
            several => {
                let names: Vec<_> = several
                    .iter()
                    .map(|(device, _)| format!("- {}", device.name))
                    .collect();
                format!("Enroll {} devices\n\n{}\n", several.len(), names.join("\n"))
            }
        };
        let commit = self.mirror.commit(Some(tracked.id), edits, message).await?;
        match self.mirror.push_tracked(commit, Some(tracked.id)).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_race() => Ok(true),
            Err(error @ GitError::Refused { .. }) => {
                // A protected branch, most likely: then a person has to merge.
                warn!(
                    error = %chain(&error),
                    "the tracked branch refuses enrollments; they wait on branches instead"
                );
                for (device, token) in &devices {
                    self.try_branch(refs, device, token).await;
                }
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes the folders of decommissioned devices from the tracked branch.
    async fn delete_folders(&self, refs: &Refs, devices: &[&Device]) -> Result<bool, BranchError> {
        let Some(tracked) = refs.tracked.as_ref().filter(|_| !devices.is_empty()) else {
            return Ok(false);
        };
        let tree = self.mirror.tree(tracked.id).await?;
        let (there, gone): (Vec<&Device>, Vec<&Device>) = devices
            .iter()
            .copied()
            .partition(|device| matches!(tree.entry(&self.folder(device)), Ok(Some(_))));
        let mut db = self.store.write().await?;
        for device in gone {
            let tenant = &self.fleet.tenant;
            devices::set_folder_to_delete(&mut db, tenant, &device.id, false).await?;
        }
        db.commit().await.map_err(StoreError::from)?;
        if there.is_empty() {
            return Ok(false);
        }
        let edits = there
            .iter()
            .map(|device| Edit {
                path: self.folder(device).as_str().to_owned(),
                content: None,
            })
            .collect();
        let names: Vec<_> = there.iter().map(|device| device.name.to_string()).collect();
        let message = format!("Decommission {}\n", names.join(", "));
        let commit = self.mirror.commit(Some(tracked.id), edits, message).await?;
        self.mirror
            .push_tracked(commit, Some(tracked.id))
            .await
            .or_else(race_is_fine)?;
        Ok(true)
    }

    /// Deletes the branches of devices that no longer wait. A branch that is not ours stays: it is another
    /// fleet's in the same repo, or people's own.
    async fn delete_branches(
        &self,
        refs: &Refs,
        devices: &[DeviceView],
    ) -> Result<bool, BranchError> {
        let mut deleted = false;
        for (name, tip) in &refs.enrollment {
            let mut of_name = devices
                .iter()
                .map(|view| &view.device)
                .filter(|it| it.name == *name);
            if of_name
                .clone()
                .any(|device| device.state == DeviceState::Pending)
            {
                continue;
            }
            let tree = self.mirror.tree(*tip).await?;
            if !of_name.any(|device| vouches_for(&tree, &self.root, device)) {
                continue;
            }
            self.mirror
                .push_enrollment(name, None, Some(*tip))
                .await
                .or_else(race_is_fine)?;
            deleted = true;
        }
        Ok(deleted)
    }

    /// Merges a device's enrollment branch into the tracked branch.
    pub async fn merge(&self, device: &Device) -> Result<(), BranchError> {
        let name = &device.name;
        let refs = self.mirror.fetch().await?;
        let tracked = refs.tracked.as_ref().ok_or(BranchError::NoBranch)?;
        let ours = match refs.enrollment.get(name) {
            Some(tip) => {
                vouches_for(&*self.mirror.tree(*tip).await?, &self.root, device).then_some(*tip)
            }
            None => None,
        };
        let theirs = if let Some(theirs) = ours {
            theirs
        } else {
            let mut db = self.store.read().await?;
            let token = tokens::find(&mut db, &self.fleet.tenant, &device.token).await?;
            drop(db);
            let token = token.ok_or_else(|| BranchError::NotPending(name.clone()))?;
            let tree = self.mirror.tree(tracked.id).await?;
            let files = self.files(&tree, device, &token);
            self.mirror
                .commit(Some(tracked.id), files, format!("Enroll {name}\n"))
                .await?
        };
        let message = format!("Merge branch '{ENROLL_BRANCHES}{name}'\n\nApproves {name}.\n");
        let merged = self
            .mirror
            .merge(tracked.id, theirs, message)
            .await?
            .ok_or_else(|| BranchError::Conflict(name.clone()))?;
        self.mirror.push_tracked(merged, Some(tracked.id)).await?;
        // The branch is deleted by the pass that finds the device active.
        self.source.notify_one();
        Ok(())
    }

    fn folder(&self, device: &Device) -> RepoPath {
        self.root.join("devices").join(device.name.as_str())
    }

    /// The files of a new device's folder. An overlay of its own that is there already stays.
    fn files(&self, tree: &GitTree, device: &Device, token: &Token) -> Vec<Edit> {
        let folder = self.folder(device);
        let exists = |path: &RepoPath| matches!(tree.entry(path), Ok(Some(_)));
        let own = folder.join("kustomization.yaml");
        let overlay = token.overlay.as_ref().filter(|_| !exists(&own));
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
        if overlay.is_none() && !exists(&own) {
            let resources = if exists(&self.root.join("base").join("kustomization.yaml")) {
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
}

/// Whether a commit has the device's file with the device's key.
pub fn vouches_for(tree: &GitTree, root: &RepoPath, device: &Device) -> bool {
    let file = root
        .join("devices")
        .join(device.name.as_str())
        .join("device.yaml");
    let Ok(Some(entry)) = tree.entry(&file) else {
        return false;
    };
    if tree.size(entry.id).is_ok_and(|size| size > MAX_DEVICE_FILE) {
        return false;
    }
    let key = device.public_key.to_string();
    tree.blob(entry.id).is_ok_and(|blob| {
        blob.windows(key.len())
            .any(|window| window == key.as_bytes())
    })
}

/// A push that lost a race is tried again by the pass after the next fetch.
fn race_is_fine(error: GitError) -> Result<(), GitError> {
    if error.is_race() { Ok(()) } else { Err(error) }
}
