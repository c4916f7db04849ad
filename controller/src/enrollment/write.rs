//! The enrollment branches of a pass: which device is on which, what is pushed, what is deleted.

use std::time::Duration;

use git2::Oid;
use longshore_protocol::api::DeviceState;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    branches::{Arrived, BranchError},
    pass::Pass,
    verdict::{Work, is_ours, work},
    waiting::Obstacle,
};
use crate::{
    error::chain,
    forge::PullRequestState,
    source::{
        carried::Step,
        mirror::{BATCH_BRANCHES, Edit, Push},
    },
    store::{
        StoreError,
        devices::{self, Assignment, Device},
        proposals::{self, Proposal},
    },
};

/// How long a forge has to notice that a branch was merged before its pull request counts as overtaken.
const NOTICE: Duration = Duration::from_mins(1);

impl Pass<'_> {
    /// Puts devices that people are to decide on onto branches.
    pub(super) async fn assign(&mut self) -> Result<(), BranchError> {
        for index in 0..self.pending.len() {
            let Some(device) = self.pending.get(index).cloned() else {
                break;
            };
            let waits_for_commit =
                self.is_automatic(&device) && !self.fallback.contains(&device.id);
            if device.enrollment_branch.is_some() || waits_for_commit {
                continue;
            }
            let branch = match self.settings.batch {
                Some(window) => Some(self.batch_of(&device, window)),
                None => self.branch_of(&device).await?,
            };
            if let Some(device) = self.pending.get_mut(index) {
                device.enrollment_branch = branch;
            }
        }
        self.index();
        Ok(())
    }

    /// The branch that devices of a token join for a while, made where there is none.
    fn batch_of(&mut self, device: &Device, window: Duration) -> String {
        let window = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        let joinable = self.proposals.values().find(|proposal| {
            proposal.branch.starts_with(BATCH_BRANCHES)
                && proposal.token == device.token
                && self.now < proposal.opened_at.saturating_add(window)
                && self.is_undecided(proposal)
        });
        if let Some(joinable) = joinable {
            return joinable.branch.clone();
        }
        let mut opened_at = self.now;
        let name = |at| format!("{BATCH_BRANCHES}{}-{at}", device.token);
        while self.proposals.contains_key(&name(opened_at)) {
            opened_at += 1;
        }
        self.propose(Proposal::new(
            name(opened_at),
            device.token.clone(),
            opened_at,
        ))
    }

    /// Whether people still decide on a branch, so that more devices may join it.
    fn is_undecided(&self, proposal: &Proposal) -> bool {
        let branch = proposal.branch.as_str();
        let request = self.requests.get(branch);
        let is_open = request.is_none_or(|request| request.state == PullRequestState::Open);
        let mut members = self.members(branch).peekable();
        let is_new = proposal.pushed.is_none();
        let is_waited_for = members.peek().is_some()
            && (self.tip(branch).is_some() || members.all(|device| !device.branch_pushed));
        is_open && (is_new || is_waited_for)
    }

    /// The branch of one device; nothing as long as another device's is in the way.
    async fn branch_of(&mut self, device: &Device) -> Result<Option<String>, BranchError> {
        for name in self.parts.names(&device.name) {
            if self.proposals.contains_key(&name) {
                // An earlier device of that name had it; it is about to be deleted.
                self.obstacles
                    .insert(device.id.clone(), Obstacle::Earlier(name));
                return Ok(None);
            }
            let mut proposal = Proposal::new(name.clone(), device.token.clone(), self.now);
            if let Some(tip) = self.refs.enrollment.get(&name).copied() {
                let carried = self.carried_by(tip).await?;
                if !carried.folders.contains_key(&device.public_key) {
                    continue;
                }
                // Whoever made it vouches for this very key.
                proposal.edited = true;
                self.carried.insert(name, carried);
            }
            return Ok(Some(self.propose(proposal)));
        }
        let [_, name] = self.parts.names(&device.name);
        self.obstacles
            .insert(device.id.clone(), Obstacle::Taken(name));
        Ok(None)
    }

    fn propose(&mut self, proposal: Proposal) -> String {
        let branch = proposal.branch.clone();
        self.changed.insert(branch.clone());
        self.proposals.insert(branch.clone(), proposal);
        branch
    }

    /// Makes, extends and deletes branches, with one push for all of them.
    pub(super) async fn write_branches(&mut self) -> Result<(), BranchError> {
        let branches: Vec<_> = self.proposals.keys().cloned().collect();
        let (mut pushes, mut assignments) = (Vec::new(), Vec::new());
        for branch in branches {
            if self.members(&branch).next().is_none() {
                pushes.extend(self.finish(&branch).await?);
                continue;
            }
            match self.prepare(&branch, &mut assignments).await {
                Ok(push) => pushes.extend(push),
                Err(error) => {
                    warn!(branch, error = %chain(&error), "the enrollment branch cannot be made");
                    self.obstruct(&branch, &Obstacle::Branch(chain(&error)));
                }
            }
        }
        // Adopted branches are written down without a commit of ours.
        let new = self.pending.iter().filter(|device| {
            let branch = device.enrollment_branch.as_ref();
            branch.is_some_and(|branch| self.changed.contains(branch))
                && device.enrollment_commit.is_none()
        });
        assignments.extend(new.map(|device| Assignment {
            id: device.id.clone(),
            branch: device.enrollment_branch.clone(),
            commit: None,
        }));
        self.record(&assignments).await?;
        if pushes.is_empty() {
            return Ok(());
        }
        if let Some(problem) = self.memory.push_pause.problem() {
            self.obstruct_all(&pushes, problem);
            return Ok(());
        }
        self.pushed = true;
        match self.parts.mirror.push_all(&pushes).await {
            Ok(()) => {
                self.memory.push_pause.worked();
                for push in pushes {
                    info!(
                        branch = push.branch,
                        deleted = push.commit.is_none(),
                        "pushed"
                    );
                    if let Some(commit) = push.commit {
                        let arrived = Arrived {
                            commit,
                            before: self.refs.enrollment.get(&push.branch).copied(),
                            at: Instant::now(),
                        };
                        self.memory.arrived.insert(push.branch, arrived);
                    } else {
                        self.memory.arrived.remove(&push.branch);
                    }
                }
            }
            // The next fetch tells who pushed in between.
            Err(error) if error.is_race() => {}
            Err(error) => {
                warn!(error = %chain(&error), "enrollment branches could not be pushed; this will be tried again");
                let problem = self.memory.push_pause.failed(&error);
                self.obstruct_all(&pushes, problem);
            }
        }
        Ok(())
    }

    /// Says what keeps these pushes from arriving, where nothing of the branch has arrived yet.
    fn obstruct_all(&mut self, pushes: &[Push], problem: String) {
        let obstacle = Obstacle::Branch(problem);
        for push in pushes {
            if self.tip(&push.branch).is_none() {
                self.obstruct(&push.branch, &obstacle);
            }
        }
    }

    /// Says of a branch's devices what keeps them from being there.
    pub(super) fn obstruct(&mut self, branch: &str, obstacle: &Obstacle) {
        let devices: Vec<_> = self.members(branch).map(|it| it.id.clone()).collect();
        for device in devices {
            self.obstacles
                .entry(device)
                .or_insert_with(|| obstacle.clone());
        }
    }

    /// Makes the commits that a branch lacks, and remembers them. Returns what to push.
    async fn prepare(
        &mut self,
        branch: &str,
        assignments: &mut Vec<Assignment>,
    ) -> Result<Option<Push>, BranchError> {
        let request = self.requests.get(branch);
        let is_decided = request.is_some_and(|it| it.state != PullRequestState::Open);
        let Some(mut proposal) = self.proposals.get(branch).cloned() else {
            return Ok(None);
        };
        if is_decided {
            return Ok(None);
        }
        let tip = self.tip(branch);
        let is_ours = tip.is_none_or(|tip| is_ours(&proposal, tip));
        let carried = self.carried.get(branch).cloned();
        let lacks = |device: &Device| match &carried {
            Some(carried) if !is_ours => {
                !device.branch_pushed && !carried.may_have(device.public_key)
            }
            _ => device.enrollment_commit.is_none() && (is_ours || carried.is_none()),
        };
        let seen = self.members(branch).any(|device| device.branch_pushed);
        let missing = self.members(branch).any(lacks);
        let leavers: Vec<_> = self.leavers(branch).cloned().collect();
        let removals = if proposal.edited {
            self.removals(branch)
        } else {
            Vec::new()
        };
        let stale = !proposal.edited
            && (!leavers.is_empty() || self.is_overtaken(&proposal, branch).await?);
        if proposal.edited {
            self.look_for_conflicts(tip).await?;
        }
        let work = work(&proposal, tip, seen, stale, missing || !removals.is_empty());
        let (on, steps, devices) = match work {
            Work::Nothing => return Ok(None),
            Work::PushAgain(commit) if !self.parts.mirror.has_commit(commit).await? => {
                // A mirror that was made anew: what never arrived is made anew, too.
                proposal.pushed = None;
                self.changed.insert(branch.to_owned());
                self.proposals.insert(branch.to_owned(), proposal);
                self.more = true;
                return Ok(None);
            }
            Work::PushAgain(commit) => {
                let is_there = tip == Some(commit);
                return Ok((!is_there).then(|| Push {
                    branch: branch.to_owned(),
                    commit: Some(commit),
                    expected: tip,
                }));
            }
            Work::Make => {
                let (steps, devices) = self.steps(branch, |_| true).await?;
                proposal.base = Some(self.tracked);
                (self.tracked, steps, devices)
            }
            Work::Append(on) => {
                let mut steps = removals;
                let count = steps.len();
                let (more, devices) = self.steps(branch, lacks).await?;
                steps.extend(more);
                let devices = devices
                    .into_iter()
                    .map(|(device, step)| (device, count + step))
                    .collect();
                (on, steps, devices)
            }
        };
        if steps.is_empty() {
            return Ok(None);
        }
        let commits = self.parts.mirror.stack(Some(on), steps).await?;
        proposal.pushed = commits.last().copied();
        proposal.pushed_before = tip;
        for (index, step) in devices {
            let commit = commits.get(step).copied();
            if let Some(device) = self.pending.get_mut(index) {
                device.enrollment_commit = commit;
                assignments.push(Assignment {
                    id: device.id.clone(),
                    branch: Some(branch.to_owned()),
                    commit,
                });
            }
        }
        assignments.extend(leavers.into_iter().map(|it| Assignment::none(it.id)));
        let commit = proposal.pushed;
        self.changed.insert(branch.to_owned());
        self.proposals.insert(branch.to_owned(), proposal);
        Ok(Some(Push {
            branch: branch.to_owned(),
            commit,
            expected: tip,
        }))
    }

    /// The commits that take devices off a branch whose time in the fleet is over.
    fn removals(&self, branch: &str) -> Vec<Step> {
        let carried = self.carried.get(branch).into_iter();
        let folders = carried.flat_map(|carried| &carried.folders);
        let ended = folders.filter_map(|(key, folder)| Some((self.ended.get(key)?, folder)));
        ended
            .map(|(name, folder)| Step {
                edits: vec![Edit {
                    path: self
                        .parts
                        .root
                        .join("devices")
                        .join(folder)
                        .as_str()
                        .to_owned(),
                    content: None,
                }],
                message: format!("Take {name} off\n\nIt was rejected.\n"),
            })
            .collect()
    }

    /// Finds out whether a branch that people edited can be merged.
    async fn look_for_conflicts(&mut self, tip: Option<Oid>) -> Result<(), BranchError> {
        let Some(pair) = tip.map(|tip| (tip, self.tracked)) else {
            return Ok(());
        };
        if !self.memory.conflicts.contains_key(&pair) {
            let conflicts = self.parts.mirror.conflicts(self.tracked, pair.0).await?;
            self.memory.conflicts.insert(pair, conflicts);
        }
        Ok(())
    }

    /// Whether a branch would be made differently on the tracked branch as it is now.
    async fn is_overtaken(
        &mut self,
        proposal: &Proposal,
        branch: &str,
    ) -> Result<bool, BranchError> {
        let Some(base) = proposal.base.filter(|base| *base != self.tracked) else {
            return Ok(false);
        };
        let now = self.ground(self.tracked).await?;
        let Ok(then) = self.ground(base).await else {
            // A mirror that was made anew does not have it.
            return Ok(true);
        };
        Ok(self
            .members(branch)
            .filter(|device| device.enrollment_commit.is_some())
            .any(|device| !now.is_same_for(device.name.as_str(), &then)))
    }

    /// The commits that add devices of a branch: each device's index among the waiting ones, with its step.
    async fn steps(
        &mut self,
        branch: &str,
        wanted: impl Fn(&Device) -> bool,
    ) -> Result<(Vec<Step>, Vec<(usize, usize)>), BranchError> {
        let ground = self.ground(self.tracked).await?;
        let tree = self.parts.mirror.tree(self.tracked).await?;
        let (mut steps, mut devices) = (Vec::new(), Vec::new());
        let members = self.on_branch.get(branch).into_iter().flatten();
        for index in members.copied() {
            let Some(device) = self.pending.get(index).filter(|device| wanted(device)) else {
                continue;
            };
            if ground.is_blocked(device.name.as_str()) {
                let path = self.parts.folder(device).as_str().to_owned();
                self.obstacles
                    .insert(device.id.clone(), Obstacle::Blocked(path));
                continue;
            }
            let Some(token) = self.tokens.get(&device.token) else {
                continue;
            };
            devices.push((index, steps.len()));
            steps.push(Step {
                edits: self.parts.files(&ground, &tree, device, token),
                message: format!(
                    "Enroll {}\n\nMerging this approves the device with the key {}.\n",
                    device.name, device.public_key
                ),
            });
        }
        Ok((steps, devices))
    }

    /// Ends what was about a branch on which nobody waits any more: its pull request, the branch, and the record,
    /// one after the other. Returns what to push.
    async fn finish(&mut self, branch: &str) -> Result<Option<Push>, BranchError> {
        let number = self.proposals.get(branch).and_then(|it| it.number);
        if let Some((number, forge)) = number.zip(self.parts.forge.clone()) {
            let Some(request) = self.requests.get(branch) else {
                return Ok(None);
            };
            if request.state == PullRequestState::Open {
                if self.was_approved(branch) {
                    let settled = self.memory.settled.entry(branch.to_owned());
                    if settled.or_insert_with(Instant::now).elapsed() < NOTICE {
                        self.parts.list.notify_one();
                        return Ok(None);
                    }
                }
                if !self.close_request(&*forge, branch, number).await {
                    return Ok(None);
                }
            }
        }
        if let Some(tip) = self.tip(branch) {
            return Ok(Some(Push {
                branch: branch.to_owned(),
                commit: None,
                expected: Some(tip),
            }));
        }
        let free: Vec<_> = self
            .leavers(branch)
            .map(|it| Assignment::none(it.id.clone()))
            .collect();
        let mut db = self.parts.lease.write(&self.parts.store).await?;
        devices::assign(&mut db, &self.parts.fleet, &free).await?;
        proposals::delete(&mut db, &self.parts.fleet, branch).await?;
        db.commit().await.map_err(StoreError::from)?;
        self.proposals.remove(branch);
        self.changed.remove(branch);
        // Who waits for the name need not wait for the clock.
        self.more |= self.obstacles.values().any(Obstacle::is_earlier);
        Ok(None)
    }

    /// Whether all devices of a branch on which nobody waits were approved.
    fn was_approved(&self, branch: &str) -> bool {
        let mut of_branch = self.leavers(branch).peekable();
        of_branch.peek().is_some() && of_branch.all(|it| it.state == DeviceState::Active)
    }
}
