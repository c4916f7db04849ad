//! The pull requests of enrollment branches: found, opened, kept up to date, closed.
//!
//! The list of open pull requests says how most of them stand; only those that it lacks are asked for. One is opened
//! only after a search for it found none, so an answer that was lost, or a crash in between, makes no second one.
//! A forge that wants no calls, or does not answer, is left alone for all branches; one that refuses something
//! about one pull request, for that branch.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use longshore_protocol::Digest;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    branches::BranchError, pass::Pass, text::pull_request_text, verdict::Sight, waiting::Obstacle,
};
use crate::{
    error::chain,
    forge::{Forge, ForgeError, PullRequest, PullRequestState, PullRequestText},
    store::{devices::Device, proposals::Proposal},
};

/// How many pull requests a pass opens or changes: then it says how things stand, and the next one goes on.
const PER_PASS: usize = 20;
/// The first pause after a failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// The longest pause where the forge does not answer.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// The longest pause where it refuses something.
const LONGEST_REFUSAL: Duration = Duration::from_hours(1);

/// What the forge said of single pull requests since it listed the open ones last.
#[derive(Debug, Default)]
pub(super) struct Asked {
    listing: Option<Arc<[PullRequest]>>,
    found: HashMap<u64, PullRequest>,
}

/// When the forge may be called again: at all, and about a branch.
#[derive(Debug, Default)]
pub(super) struct Pauses(HashMap<Option<String>, Pause>);

#[derive(Debug)]
struct Pause {
    until: Instant,
    failures: u32,
    problem: String,
}

impl Pauses {
    /// When the next pause ends.
    pub(super) fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        let ends = self.0.values().map(|pause| pause.until);
        ends.filter(|until| *until > now).min()
    }

    /// Why nothing may be asked about a branch now.
    fn problem(&self, branch: &str) -> Option<&str> {
        let now = Instant::now();
        let pauses = [None, Some(branch.to_owned())];
        let pauses = pauses.iter().filter_map(|of| self.0.get(of));
        pauses
            .filter(|pause| pause.until > now)
            .map(|pause| pause.problem.as_str())
            .next()
    }

    fn failed(&mut self, branch: &str, error: &ForgeError) {
        let (of, longest) = match error {
            ForgeError::RateLimited { .. }
            | ForgeError::Unavailable { .. }
            | ForgeError::Unauthorized { .. } => (None, LONGEST_PAUSE),
            ForgeError::Forbidden { .. }
            | ForgeError::NotFound { .. }
            | ForgeError::Exists { .. }
            | ForgeError::Refused { .. } => (Some(branch.to_owned()), LONGEST_REFUSAL),
        };
        let failures = self.0.get(&of).map_or(0, |pause| pause.failures);
        let pause = FIRST_PAUSE
            .saturating_mul(1 << failures.min(16))
            .min(longest);
        let until = Instant::now() + error.retry_after().unwrap_or_default().max(pause);
        let pause = Pause {
            until,
            failures: failures + 1,
            problem: chain(error),
        };
        self.0.insert(of, pause);
    }

    fn worked(&mut self, branch: &str) {
        self.0.remove(&None);
        self.0.remove(&Some(branch.to_owned()));
    }

    fn keep(&mut self, branches: impl Fn(&str) -> bool) {
        self.0.retain(|of, _| of.as_deref().is_none_or(&branches));
    }
}

impl Pass<'_> {
    /// Finds how the known pull requests stand.
    pub(super) async fn ask(&mut self) {
        let Some(forge) = self.parts.forge.clone() else {
            return;
        };
        let listed = self.parts.pull_requests.borrow().open.clone();
        let Some(open) = listed else {
            return;
        };
        let is_new = |listing: &Arc<[_]>| !Arc::ptr_eq(listing, &open);
        if self.memory.asked.listing.as_ref().is_none_or(is_new) {
            self.memory.asked = Asked {
                listing: Some(open.clone()),
                found: HashMap::new(),
            };
        }
        let by_head: HashMap<_, _> = open
            .iter()
            .filter(|it| !it.is_from_fork && it.base_branch == self.parts.base)
            .map(|it| (it.head_branch.as_str(), it))
            .collect();
        let branches: Vec<_> = self.proposals.keys().cloned().collect();
        for branch in branches {
            let listed = by_head.get(branch.as_str()).copied();
            if let Some(request) = listed {
                self.adopt(&branch, request);
            }
            let Some(number) = self.proposals.get(&branch).and_then(|it| it.number) else {
                continue;
            };
            // A branch that is gone was merged or closed, whatever an older list says.
            let is_gone = self.members(&branch).any(|device| device.branch_pushed)
                && !self.refs.enrollment.contains_key(&branch);
            let asked = self.memory.asked.found.get(&number);
            let known = asked.or(listed).cloned();
            let known = known.filter(|it| it.state != PullRequestState::Open || !is_gone);
            let request = match known {
                Some(known) => known,
                None if self.memory.pauses.problem(&branch).is_some() => continue,
                None => match forge.pull_request(number).await {
                    Ok(request) => {
                        self.memory.pauses.worked(&branch);
                        self.memory.asked.found.insert(number, request.clone());
                        request
                    }
                    Err(error) => {
                        warn!(branch, error = %chain(&error), "the forge does not say how a pull request stands");
                        self.memory.pauses.failed(&branch, &error);
                        continue;
                    }
                },
            };
            if request.state != PullRequestState::Open {
                self.find_head(&*forge, &branch, &request).await;
            }
            if request.state == PullRequestState::Merged {
                // The key is on the tracked branch, or is about to be.
                self.parts.source.notify_one();
            }
            self.requests.insert(branch, request);
        }
    }

    /// Takes a pull request for the branch's.
    fn adopt(&mut self, branch: &str, request: &PullRequest) {
        if let Some(proposal) = self.proposals.get_mut(branch)
            && proposal.number != Some(request.number)
        {
            info!(branch, url = request.url, "the enrollment's pull request");
            proposal.number = Some(request.number);
            proposal.url = Some(request.url.clone());
            self.changed.insert(branch.to_owned());
        }
    }

    /// Reads the last commit of a decided pull request, which the host keeps where the branch is gone.
    async fn find_head(&mut self, forge: &dyn Forge, branch: &str, request: &PullRequest) {
        let Ok(head) = request.head_commit.parse() else {
            return;
        };
        let mirror = &self.parts.mirror;
        let found = async {
            if !mirror.has_commit(head).await? {
                mirror.bring(&forge.head_ref(request.number)).await?;
            }
            mirror.carried(head, self.tracked, &self.parts.root).await
        };
        match found.await {
            Ok(carried) => {
                self.heads.insert(branch.to_owned(), (head, carried));
            }
            Err(error) => {
                warn!(branch, error = %chain(&error), "the pull request's last commit cannot be read");
            }
        }
    }

    /// Opens what is not open yet, and brings what is up to date.
    pub(super) async fn follow_requests(&mut self) -> Result<(), BranchError> {
        let Some(forge) = self.parts.forge.clone() else {
            return Ok(());
        };
        let branches: HashSet<_> = self.proposals.keys().cloned().collect();
        self.memory.pauses.keep(|branch| branches.contains(branch));
        let listed = self.parts.pull_requests.borrow().clone();
        let mut left = PER_PASS;
        let mut branches: Vec<_> = branches.into_iter().collect();
        branches.sort_by_key(|branch| self.proposals.get(branch).map(|it| it.opened_at));
        for branch in branches {
            let request = self.requests.get(&branch);
            let is_open = request.is_none_or(|it| it.state == PullRequestState::Open);
            let is_waited_for = self.members(&branch).next().is_some();
            if !is_open || !is_waited_for || self.on_branch(&branch).next().is_none() {
                continue;
            }
            let Some(proposal) = self.proposals.get(&branch) else {
                continue;
            };
            let text = self.text(&*forge, &branch);
            let digest = Digest::of_parts([text.title.as_bytes(), text.body.as_bytes()]);
            let is_done =
                proposal.number.is_some() && proposal.written == Some(digest) && proposal.dressed;
            if is_done {
                continue;
            }
            let problem = match (&listed.open, self.memory.pauses.problem(&branch)) {
                (_, Some(problem)) => Some(problem.to_owned()),
                (None, None) => listed
                    .problem
                    .clone()
                    .or_else(|| Some("the Git host was not asked yet".to_owned())),
                (Some(_), None) => None,
            };
            if let Some(problem) = problem {
                if proposal.number.is_none() {
                    self.obstruct(&branch, &Obstacle::Forge(problem));
                }
                continue;
            }
            if left == 0 {
                self.more = true;
                break;
            }
            left -= 1;
            match self.follow(&*forge, &branch, &text, digest).await? {
                Ok(()) => self.memory.pauses.worked(&branch),
                Err(error) => {
                    warn!(branch, error = %chain(&error), "the enrollment's pull request is not as it should be; this will be tried again");
                    self.memory.pauses.failed(&branch, &error);
                    if self
                        .proposals
                        .get(&branch)
                        .is_none_or(|it| it.number.is_none())
                    {
                        self.obstruct(&branch, &Obstacle::Forge(chain(&error)));
                    }
                }
            }
        }
        Ok(())
    }

    /// The waiting devices that the branch carries by now.
    fn on_branch<'b>(&'b self, branch: &'b str) -> impl Iterator<Item = &'b Device> {
        let tip = self.tip(branch);
        let proposal = self.proposals.get(branch);
        let is_whole = tip.is_some() && proposal.is_some_and(|it| it.pushed == tip);
        self.members(branch).filter(move |device| {
            tip.is_some()
                && (self.sight(device) == Sight::With
                    || is_whole && device.enrollment_commit.is_some())
        })
    }

    /// What the pull request of a branch is to say.
    fn text(&self, forge: &dyn Forge, branch: &str) -> PullRequestText {
        let devices: Vec<_> = self
            .on_branch(branch)
            .filter_map(|device| Some((device, self.tokens.get(&device.token)?)))
            .collect();
        let fleet = &self.parts.fleet.name;
        pull_request_text(fleet, &devices, forge.noun(), forge.text_limit())
    }

    /// Brings the pull request of one branch up to date. The outer error is the store's, the inner one the forge's.
    async fn follow(
        &mut self,
        forge: &dyn Forge,
        branch: &str,
        text: &PullRequestText,
        digest: Digest,
    ) -> Result<Result<(), ForgeError>, BranchError> {
        let number = match self.proposals.get(branch).and_then(|it| it.number) {
            Some(number) => number,
            None => match self.open(forge, branch, text, digest).await? {
                Ok(Some(number)) => number,
                // It is decided already; the next pass finds out what that means.
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            },
        };
        let written = self.proposals.get(branch).and_then(|it| it.written);
        // People's own text stays until there is something new to tell.
        if written.is_some_and(|written| written != digest)
            && let Err(error) = forge.edit_pull_request(number, text).await
        {
            return Ok(Err(error));
        }
        self.change(branch, |proposal| proposal.written = Some(digest));
        if !self.proposals.get(branch).is_some_and(|it| it.dressed) {
            match self.dress(forge, number).await {
                Ok(warning) => self.change(branch, |proposal| {
                    proposal.dressed = true;
                    proposal.warning = warning;
                }),
                Err(error) => {
                    self.put_changed().await?;
                    return Ok(Err(error));
                }
            }
        }
        self.put_changed().await?;
        Ok(Ok(()))
    }

    fn change(&mut self, branch: &str, change: impl FnOnce(&mut Proposal)) {
        if let Some(proposal) = self.proposals.get_mut(branch) {
            change(proposal);
            self.changed.insert(branch.to_owned());
        }
    }

    /// Finds the pull request of a branch, or opens it. Returns its number, unless it is decided already.
    async fn open(
        &mut self,
        forge: &dyn Forge,
        branch: &str,
        text: &PullRequestText,
        digest: Digest,
    ) -> Result<Result<Option<u64>, ForgeError>, BranchError> {
        let base = self.parts.base.clone();
        let found = match forge.find_pull_request(branch, &base).await {
            Ok(found) => found.filter(|it| self.is_of_branch(forge, branch, it)),
            Err(error) => return Ok(Err(error)),
        };
        let request = if let Some(found) = found {
            found
        } else {
            self.change(branch, |proposal| proposal.written = Some(digest));
            self.put_changed().await?;
            match forge.create_pull_request(branch, &base, text).await {
                Ok(created) => created,
                Err(error @ ForgeError::Exists { .. }) => {
                    match forge.find_pull_request(branch, &base).await {
                        Ok(Some(found)) if found.state == PullRequestState::Open => found,
                        Ok(_) => return Ok(Err(error)),
                        Err(error) => return Ok(Err(error)),
                    }
                }
                Err(error) => return Ok(Err(error)),
            }
        };
        self.adopt(branch, &request);
        self.put_changed().await?;
        let number = (request.state == PullRequestState::Open).then_some(request.number);
        self.more |= number.is_none();
        let found = &mut self.memory.asked.found;
        found.insert(request.number, request.clone());
        self.requests.insert(branch.to_owned(), request);
        self.parts.list.notify_one();
        Ok(Ok(number))
    }

    /// Whether a pull request is about the branch as it is, rather than about an earlier one of that name.
    fn is_of_branch(&self, forge: &dyn Forge, branch: &str, request: &PullRequest) -> bool {
        let head = request.head_commit.parse().ok();
        let proposal = self.proposals.get(branch);
        request.state == PullRequestState::Open
            || forge.keeps_heads()
                && head.is_some()
                && (head == self.tip(branch) || proposal.is_some_and(|it| head == it.pushed))
    }

    /// Adds labels, and asks for reviews. Returns what the forge has against them, which blocks nobody.
    async fn dress(&self, forge: &dyn Forge, number: u64) -> Result<Option<String>, ForgeError> {
        let mut warnings = Vec::new();
        let labels = &self.settings.labels;
        if !labels.is_empty()
            && let Err(error) = forge.add_labels(number, labels).await
        {
            warnings.push(blocks_nobody(error)?);
        }
        let reviewers = &self.settings.reviewers;
        if !reviewers.is_empty()
            && let Err(error) = forge.request_reviews(number, reviewers).await
        {
            let error = blocks_nobody(error)?;
            if let [_] = reviewers.as_slice() {
                warnings.push(error);
            } else {
                // One that is refused is no reason not to ask the others.
                for reviewer in reviewers {
                    let asked = std::slice::from_ref(reviewer);
                    if let Err(error) = forge.request_reviews(number, asked).await {
                        warnings.push(format!("{reviewer}: {}", blocks_nobody(error)?));
                    }
                }
            }
        }
        Ok((!warnings.is_empty()).then(|| warnings.join("; ")))
    }

    /// Closes the pull request of a branch. Returns whether that worked.
    pub(super) async fn close_request(
        &mut self,
        forge: &dyn Forge,
        branch: &str,
        number: u64,
    ) -> bool {
        if self.memory.pauses.problem(branch).is_some() {
            return false;
        }
        match forge.close_pull_request(number).await {
            Ok(()) => {
                self.memory.pauses.worked(branch);
                if let Some(request) = self.requests.get_mut(branch) {
                    request.state = PullRequestState::Closed;
                    let found = &mut self.memory.asked.found;
                    found.insert(number, request.clone());
                }
                self.parts.list.notify_one();
                true
            }
            Err(error) => {
                warn!(branch, error = %chain(&error), "the enrollment's pull request could not be closed; this will be tried again");
                self.memory.pauses.failed(branch, &error);
                false
            }
        }
    }
}

/// A refusal in words; anything else is tried again.
fn blocks_nobody(error: ForgeError) -> Result<String, ForgeError> {
    match error {
        ForgeError::Refused { .. } | ForgeError::Forbidden { .. } | ForgeError::NotFound { .. } => {
            Ok(chain(&error))
        }
        other => Err(other),
    }
}
