//! One pass of a fleet's enrollment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use git2::Oid;
use longshore_fleet::{EnrollmentSettings, Fleet};
use longshore_protocol::{
    DeviceId, DeviceName, Digest, TokenId,
    api::{Approval, DeviceState},
};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    branches::{BranchError, Branches, Memory},
    verdict::{Held, Request, Sight, Verdict, is_ours, verdict},
    waiting::Obstacle,
};
use crate::{
    clock,
    error::chain,
    forge::{PullRequest, PullRequestState},
    source::{
        carried::{Carried, Ground},
        git::GitError,
        mirror::Refs,
    },
    store::{
        StoreError,
        devices::{self, Assignment, Device},
        proposals::{self, Proposal},
        tokens::{self, Token},
    },
};

/// How long a push that worked is believed before the source has seen it.
pub(super) const ARRIVAL: Duration = Duration::from_mins(1);

/// What one pass knows, and what it did.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    pub(super) parts: &'a Branches,
    pub(super) memory: &'a mut Memory,
    pub(super) refs: Refs,
    pub(super) tracked: Oid,
    pub(super) settings: EnrollmentSettings,
    /// What the tracked branch says; nothing where `fleet.yaml` cannot be read.
    fleet: Option<Arc<Fleet>>,
    pub(super) tokens: HashMap<TokenId, Token>,
    /// The devices that wait, and whose key the tracked branch does not have; oldest first.
    pub(super) pending: Vec<Device>,
    /// Those whose key it has, but in a file that cannot be used.
    pub(super) unusable: Vec<Device>,
    /// Where in `pending` the devices of each branch are.
    pub(super) on_branch: HashMap<String, Vec<usize>>,
    /// Where in `decided` they are.
    pub(super) leaving: HashMap<String, Vec<usize>>,
    /// The devices that no longer wait, and that an enrollment branch was made for.
    pub(super) decided: Vec<Device>,
    /// The names of the devices that are out of the fleet, by their keys.
    pub(super) ended: HashMap<Digest, DeviceName>,
    /// The decommissioned devices whose folders are still to be deleted.
    pub(super) to_delete: Vec<Device>,
    pub(super) proposals: BTreeMap<String, Proposal>,
    /// The proposals to write.
    pub(super) changed: BTreeSet<String>,
    /// What the branches carry that the controller did not make as they are.
    pub(super) carried: HashMap<String, Arc<Carried>>,
    /// The pull requests of the branches, as far as the forge says.
    pub(super) requests: HashMap<String, PullRequest>,
    /// The last commits of decided pull requests, with what they carry.
    pub(super) heads: HashMap<String, (Oid, Carried)>,
    /// Devices of automatic tokens that are being committed: the next they hear is that they are approved.
    pub(super) on_their_way: HashSet<DeviceId>,
    /// Devices of automatic tokens that people are to decide on.
    pub(super) fallback: HashSet<DeviceId>,
    /// What keeps a device from being where people can decide.
    pub(super) obstacles: HashMap<DeviceId, Obstacle>,
    /// Whether something was pushed.
    pub(super) pushed: bool,
    /// Whether the forge is to be called more than one pass does.
    pub(super) more: bool,
    pub(super) now: u64,
}

impl<'a> Pass<'a> {
    /// Does what is missing. Returns whether there is more to do at once.
    pub(super) async fn run(
        parts: &'a Branches,
        memory: &'a mut Memory,
    ) -> Result<bool, BranchError> {
        let Some(mut pass) = Self::load(parts, memory).await? else {
            return Ok(false);
        };
        pass.look().await?;
        pass.ask().await;
        pass.judge().await?;
        let automatic = pass.commit_automatic().await;
        pass.assign().await?;
        let branches = pass.write_branches().await;
        let folders = pass.delete_folders().await;
        pass.follow_requests().await?;
        pass.say_what_is_awaited().await?;
        pass.forget().await?;
        if pass.pushed {
            parts.source.notify_one();
        }
        let more = pass.more;
        automatic.and(branches).and(folders).map(|()| more)
    }

    /// Reads the store; nothing where the repo has no branch, or has not been read yet.
    async fn load(
        parts: &'a Branches,
        memory: &'a mut Memory,
    ) -> Result<Option<Self>, BranchError> {
        let Some(refs) = parts.observation.borrow().refs.clone() else {
            return Ok(None);
        };
        let reading = parts.reading.borrow().clone();
        let (Some(tracked), Some(reading)) = (&refs.tracked, reading) else {
            return Ok(None);
        };
        // The reader is on its way, and its end wakes the next pass.
        if reading.commit != tracked.id {
            return Ok(None);
        }
        let fleet = reading.fleet.as_ref().ok();
        let mut db = parts.store.read().await?;
        let devices = devices::of_enrollment(&mut db, &parts.fleet).await?;
        let proposals = proposals::list(&mut db, &parts.fleet).await?;
        if devices.is_empty() && proposals.is_empty() {
            return Ok(None);
        }
        let tokens = tokens::list(&mut db, &parts.fleet).await?;
        // People's own branches may carry devices that are out of the fleet; the controller's are made without.
        let ended = if proposals.iter().any(|proposal| proposal.edited) {
            devices::ended(&mut db, &parts.fleet).await?
        } else {
            HashMap::new()
        };
        drop(db);
        let mut pass = Self {
            parts,
            memory,
            tracked: tracked.id,
            refs,
            settings: fleet
                .map(|fleet| fleet.settings.enrollment.clone())
                .unwrap_or_default(),
            fleet: fleet.cloned(),
            tokens: tokens
                .into_iter()
                .map(|token| (token.id.clone(), token))
                .collect(),
            pending: Vec::new(),
            unusable: Vec::new(),
            decided: Vec::new(),
            ended,
            to_delete: Vec::new(),
            proposals: proposals
                .into_iter()
                .map(|proposal| (proposal.branch.clone(), proposal))
                .collect(),
            changed: BTreeSet::new(),
            carried: HashMap::new(),
            requests: HashMap::new(),
            heads: HashMap::new(),
            on_their_way: HashSet::new(),
            on_branch: HashMap::new(),
            leaving: HashMap::new(),
            fallback: HashSet::new(),
            obstacles: HashMap::new(),
            pushed: false,
            more: false,
            now: clock::now_ms(),
        };
        // A file that cannot be read may have a device's key all the same.
        let hidden = match fleet.map(|fleet| &fleet.unreadable) {
            Some(unreadable) if !unreadable.is_empty() => {
                let folders = unreadable.iter().map(ToString::to_string).collect();
                let mirror = &parts.mirror;
                mirror.keys_of(pass.tracked, &parts.root, folders).await?
            }
            _ => HashSet::new(),
        };
        let is_tracked =
            |key: Digest| hidden.contains(&key) || fleet.is_some_and(|fleet| fleet.names_key(&key));
        let is_usable = |key: &Digest| fleet.is_some_and(|fleet| fleet.with_key(key).is_some());
        let mut to_approve = false;
        for device in devices {
            if device.folder_to_delete {
                pass.to_delete.push(device.clone());
            }
            if device.state != DeviceState::Pending {
                if device.enrollment_branch.is_some() {
                    pass.decided.push(device);
                }
            } else if !is_tracked(device.public_key) {
                pass.pending.push(device);
            } else if !is_usable(&device.public_key) {
                pass.unusable.push(device);
            } else {
                to_approve = true;
            }
        }
        if to_approve {
            parts.reconcile.notify_one();
        }
        pass.index();
        Ok(Some(pass))
    }

    /// Looks at the branches, and at what they carry.
    async fn look(&mut self) -> Result<(), BranchError> {
        let tips = &self.refs.enrollment;
        self.memory.arrived.retain(|branch, arrived| {
            tips.get(branch).copied() == arrived.before && arrived.at.elapsed() < ARRIVAL
        });
        let mut to_read = Vec::new();
        for (branch, proposal) in &mut self.proposals {
            let Some(tip) = tips.get(branch).copied() else {
                continue;
            };
            if !is_ours(proposal, tip) && !proposal.edited {
                info!(
                    branch,
                    "people edit the enrollment branch; it is theirs now"
                );
                proposal.edited = true;
                self.changed.insert(branch.clone());
                // What this pass read is what the controller's own branches need.
                self.more = true;
            }
            if proposal.edited || proposal.pushed != Some(tip) {
                to_read.push((branch.clone(), tip));
            }
        }
        for (branch, tip) in to_read {
            let carried = self.carried_by(tip).await?;
            self.carried.insert(branch, carried);
        }
        Ok(())
    }

    /// What a branch with this tip carries.
    pub(super) async fn carried_by(&mut self, tip: Oid) -> Result<Arc<Carried>, BranchError> {
        if let Some(carried) = self.memory.carried.get(&tip) {
            return Ok(carried.clone());
        }
        let (mirror, root) = (&self.parts.mirror, &self.parts.root);
        let carried = Arc::new(mirror.carried(tip, self.tracked, root).await?);
        self.memory.carried.insert(tip, carried.clone());
        Ok(carried)
    }

    /// What the repo shows of a device on its branch.
    pub(super) fn sight(&self, device: &Device) -> Sight {
        let branch = device.enrollment_branch.as_deref().unwrap_or_default();
        if !self.refs.enrollment.contains_key(branch) {
            return Sight::Absent;
        }
        let is_there = match self.carried.get(branch) {
            Some(carried) => carried.may_have(device.public_key),
            // The controller made all of it.
            None => device.enrollment_commit.is_some(),
        };
        if is_there {
            Sight::With
        } else {
            Sight::Without
        }
    }

    /// The branch's tip as far as anybody knows.
    pub(super) fn tip(&self, branch: &str) -> Option<Oid> {
        let arrived = self.memory.arrived.get(branch).map(|it| it.commit);
        arrived.or_else(|| self.refs.enrollment.get(branch).copied())
    }

    /// What a commit of the tracked branch says of the places where enrollments write.
    pub(super) async fn ground(&mut self, commit: Oid) -> Result<Arc<Ground>, BranchError> {
        if let Some(ground) = self.memory.grounds.get(&commit) {
            return Ok(ground.clone());
        }
        let ground = self.parts.mirror.ground(commit, &self.parts.root).await?;
        let ground = Arc::new(ground);
        self.memory.grounds.insert(commit, ground.clone());
        Ok(ground)
    }

    /// The waiting devices of a branch, oldest first.
    pub(super) fn members<'b>(&'b self, branch: &'b str) -> impl Iterator<Item = &'b Device> {
        let members = self.on_branch.get(branch).into_iter().flatten();
        members.filter_map(|index| self.pending.get(*index))
    }

    /// The devices that no longer wait on a branch.
    pub(super) fn leavers<'b>(&'b self, branch: &'b str) -> impl Iterator<Item = &'b Device> {
        let leavers = self.leaving.get(branch).into_iter().flatten();
        leavers.filter_map(|index| self.decided.get(*index))
    }

    /// Finds which devices are on which branch.
    pub(super) fn index(&mut self) {
        self.on_branch = by_branch(&self.pending);
        self.leaving = by_branch(&self.decided);
    }

    /// Finds who is rejected, who needs another branch, and whose branch is in the repo.
    async fn judge(&mut self) -> Result<(), BranchError> {
        let (mut rejected, mut anew, mut seen) = (Vec::new(), Vec::new(), Vec::new());
        for device in &self.pending {
            let Some(branch) = &device.enrollment_branch else {
                continue;
            };
            let sight = self.sight(device);
            if sight == Sight::With && !device.branch_pushed {
                seen.push(device.id.clone());
            }
            let request = self.request(device, branch).await;
            let of_request = self.requests.get(branch).map(|request| request.url.clone());
            let named = of_request.as_ref().map_or_else(
                || format!("branch `{branch}`"),
                |url| format!("{} {url}", self.noun()),
            );
            match verdict(device.branch_pushed, sight, request) {
                // What the tracked branch has cannot be told now: the device may be on it.
                Verdict::Removed | Verdict::Deleted if self.fleet.is_none() => {}
                Verdict::Waits => {}
                Verdict::Anew => anew.push(device.id.clone()),
                Verdict::Closed => rejected.push((
                    device.id.clone(),
                    format!("{named} was closed without being merged"),
                )),
                Verdict::Removed => rejected.push((
                    device.id.clone(),
                    format!("its folder was removed from {named}"),
                )),
                // Something of that name on the tracked branch may be this device, merged with a mistake.
                Verdict::Deleted => {
                    let fleet = self.fleet.as_ref();
                    if !fleet.is_some_and(|fleet| fleet.has_folder(&device.name)) {
                        let reason = match of_request {
                            None => "its enrollment branch was deleted".to_owned(),
                            Some(url) => {
                                format!("the branch of {} {url} was deleted", self.noun())
                            }
                        };
                        rejected.push((device.id.clone(), reason));
                    }
                }
            }
        }
        if !rejected.is_empty() && !self.is_still_so().await {
            rejected.clear();
        }
        if rejected.is_empty() && anew.is_empty() && seen.is_empty() {
            return Ok(());
        }
        self.record_verdicts(&rejected, &anew, &seen).await
    }

    /// Whether a fresh look at the repo shows what this pass is about: nobody is rejected for what a crash, a
    /// half-written mirror or an old look made of it.
    async fn is_still_so(&self) -> bool {
        match self.parts.mirror.fetch().await {
            Ok(refs) if refs == self.refs => true,
            Ok(_) => {
                self.parts.source.notify_one();
                false
            }
            Err(error) => {
                warn!(error = %chain(&error), "nobody is rejected while the repo does not answer");
                false
            }
        }
    }

    async fn record_verdicts(
        &mut self,
        rejected: &[(DeviceId, String)],
        anew: &[DeviceId],
        seen: &[DeviceId],
    ) -> Result<(), BranchError> {
        let fleet = &self.parts.fleet;
        let mut db = self.parts.lease.write(&self.parts.store).await?;
        devices::reject(&mut db, fleet, rejected).await?;
        devices::set_branch_pushed(&mut db, fleet, seen).await?;
        let unassigned: Vec<_> = anew.iter().map(|id| Assignment::none(id.clone())).collect();
        devices::assign(&mut db, fleet, &unassigned).await?;
        db.commit().await.map_err(StoreError::from)?;
        let seen: HashSet<_> = seen.iter().collect();
        let anew: HashSet<_> = anew.iter().collect();
        let reasons: HashMap<_, _> = rejected.iter().map(|(id, reason)| (id, reason)).collect();
        let mut waiting = Vec::with_capacity(self.pending.len());
        for mut device in std::mem::take(&mut self.pending) {
            if let Some(reason) = reasons.get(&device.id) {
                info!(device = %device.name, id = %device.id, reason, "rejected");
                device.state = DeviceState::Rejected;
                self.ended.insert(device.public_key, device.name.clone());
                self.decided.push(device);
                continue;
            }
            device.branch_pushed |= seen.contains(&device.id);
            if anew.contains(&device.id) {
                device.enrollment_branch = None;
                device.enrollment_commit = None;
                device.branch_pushed = false;
            }
            waiting.push(device);
        }
        self.pending = waiting;
        self.index();
        if !rejected.is_empty() {
            self.parts.changes.tell();
        }
        Ok(())
    }

    /// How the pull request of a device's branch stands.
    async fn request(&self, device: &Device, branch: &str) -> Request {
        let known = self.proposals.get(branch).and_then(|it| it.number);
        if known.is_none() || self.parts.forge.is_none() {
            return Request::None;
        }
        let Some(request) = self.requests.get(branch) else {
            return Request::Unknown;
        };
        match request.state {
            PullRequestState::Open => Request::Open,
            PullRequestState::Merged => match self.held(device, branch).await {
                Some(held) => Request::Merged(held),
                None => Request::Unknown,
            },
            // Where nobody knows any more what it was about, closing is a word about all of it.
            PullRequestState::Closed => {
                Request::Closed(self.held(device, branch).await.unwrap_or(Held::In))
            }
        }
    }

    /// How a device stands to the last commit of its decided pull request, where the repo has that still.
    async fn held(&self, device: &Device, branch: &str) -> Option<Held> {
        let (head, carried) = self.heads.get(branch)?;
        if carried.may_have(device.public_key) {
            return Some(Held::In);
        }
        let mirror = &self.parts.mirror;
        let was_in = async {
            match device.enrollment_commit {
                Some(made) => {
                    Ok(mirror.has_commit(made).await? && mirror.reaches(*head, made).await?)
                }
                None => Ok::<_, GitError>(true),
            }
        };
        match was_in.await {
            Ok(true) => Some(Held::Removed),
            Ok(false) => Some(Held::Later),
            Err(error) => {
                warn!(error = %chain(&error), "an enrollment commit cannot be read");
                None
            }
        }
    }

    /// Whether the controller is to commit a device to the tracked branch itself.
    pub(super) fn is_automatic(&self, device: &Device) -> bool {
        let token = self.tokens.get(&device.token);
        device.enrollment_branch.is_none()
            && token.is_some_and(|token| token.approval == Approval::Automatic)
    }

    /// What the forge calls a pull request.
    pub(super) fn noun(&self) -> &'static str {
        let forge = self.parts.forge.as_ref();
        forge.map_or("pull request", |forge| forge.noun())
    }

    /// Writes the proposals that changed.
    pub(super) async fn put_changed(&mut self) -> Result<(), BranchError> {
        self.record(&[]).await
    }

    /// Writes the proposals that changed, and which devices are on them.
    pub(super) async fn record(&mut self, assignments: &[Assignment]) -> Result<(), BranchError> {
        if self.changed.is_empty() && assignments.is_empty() {
            return Ok(());
        }
        let changed: Vec<_> = std::mem::take(&mut self.changed)
            .iter()
            .filter_map(|branch| self.proposals.get(branch).cloned())
            .collect();
        let mut db = self.parts.lease.write(&self.parts.store).await?;
        proposals::put(&mut db, &self.parts.fleet, &changed).await?;
        devices::assign(&mut db, &self.parts.fleet, assignments).await?;
        db.commit().await.map_err(StoreError::from)?;
        Ok(())
    }

    /// Writes what is left to write, and forgets what nobody needs any more.
    async fn forget(&mut self) -> Result<(), BranchError> {
        self.put_changed().await?;
        let tips: HashSet<_> = self.refs.enrollment.values().copied().collect();
        let bases = self.proposals.values().filter_map(|it| it.base);
        let grounds: HashSet<_> = bases.chain([self.tracked]).collect();
        self.memory.keep(&tips, &grounds);
        let branches = &self.proposals;
        self.memory
            .settled
            .retain(|branch, _: &mut Instant| branches.contains_key(branch));
        Ok(())
    }
}

fn by_branch(devices: &[Device]) -> HashMap<String, Vec<usize>> {
    let mut found: HashMap<_, Vec<_>> = HashMap::new();
    for (index, device) in devices.iter().enumerate() {
        if let Some(branch) = &device.enrollment_branch {
            found.entry(branch.clone()).or_default().push(index);
        }
    }
    found
}
