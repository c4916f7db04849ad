//! Previews of one fleet's open pull requests, told to their host.
//!
//! ```text
//! open pull requests ─┐                 ┌─ fetch the head, merge it in memory, preview
//! tracked commit ─────┼─▶ not told yet? ┤
//! what was told ──────┘                 └─▶ status `longshore/preview`, one comment, store
//! ```
//!
//! Level-triggered: each pass compares what should be told with what was told, which the store remembers. So a restart
//! repeats nothing, and a lost webhook, a forge that does not answer, a build that timed out only delay.
//!
//! * A newer push ends the preview of the older one.
//! * When the tracked branch moves, previews follow; not more often than every [`REFRESH`], and not those of pull
//!   requests that enroll devices: what they do is the same, and there may be thousands of them.
//! * A pull request from a fork is written by strangers. It is not even fetched, unless the tracked commit's
//!   `fleet.yaml` says `spec.previews.forks: true`.

mod tell;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use git2::Oid;
use longshore_fleet::{FleetSettings, Tree};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::tell::Finding;
use super::{Engine, Link, PreviewError, Report};
use crate::{
    builds::ensure::EnsureError,
    error::chain,
    forge::{Forge, ForgeError, PullRequest, watch::PullRequests},
    replica::Lease,
    source::{
        Observation,
        git::GitError,
        mirror::{BATCH_BRANCHES, ENROLL_BRANCHES, Mirror},
    },
    store::{
        Store, StoreError,
        fleets::FleetId,
        previews::{self, Reported},
    },
};

/// How often to look without being poked.
const INTERVAL: Duration = Duration::from_mins(1);
/// How often previews follow the tracked branch at most.
const REFRESH: Duration = Duration::from_secs(30);
/// How many pull requests are previewed; of more, the newest.
const MAX_OPEN: usize = 1000;
/// The first pause of a pull request, or a forge, that failed; further ones double.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// Why a pull request was not previewed, or its host not told.
#[derive(Debug, thiserror::Error)]
enum UpdateError {
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("its head cannot be fetched")]
    Git(#[from] GitError),
    #[error("it cannot be previewed")]
    Preview(#[from] PreviewError),
    #[error("its host cannot be told")]
    Forge(#[from] ForgeError),
    #[error("it moved to a commit that is not listed yet")]
    Moved,
}

impl UpdateError {
    /// For how long to leave the forge alone, where it is not about this pull request alone.
    fn leave_alone(&self) -> Option<Duration> {
        match self {
            Self::Forge(
                error @ (ForgeError::RateLimited { .. }
                | ForgeError::Unauthorized { .. }
                | ForgeError::Unavailable { .. }),
            ) => Some(error.retry_after().unwrap_or_default()),
            Self::Git(GitError::Throttled { retry_after, .. }) => {
                Some(retry_after.unwrap_or_default())
            }
            Self::Store(_) => Some(Duration::ZERO),
            _ => None,
        }
    }
}

/// Follows one fleet's pull requests.
#[derive(Clone, Debug)]
pub struct Previews {
    /// The fleet.
    pub fleet: FleetId,
    /// What its commit statuses are called.
    pub context: String,
    /// Where its repo is.
    pub forge: Arc<dyn Forge>,
    /// Where the heads are fetched to.
    pub mirror: Mirror,
    /// What the source sees.
    pub observation: watch::Receiver<Observation>,
    /// What is open.
    pub pull_requests: watch::Receiver<PullRequests>,
    /// Previews.
    pub engine: Engine,
    /// Remembers.
    pub store: Store,
    /// Leads to the whole reports.
    pub link: Link,
    /// Under what it writes.
    pub lease: Lease,
}

/// What a run remembers: pauses, which a restart may forget.
#[derive(Debug, Default)]
struct Memory {
    paused: HashMap<u64, Paused>,
    refreshed: Option<Instant>,
    /// How often in a row the forge as a whole did not do what it was asked.
    failures: u32,
}

/// A pull request that is left alone for a while.
#[derive(Debug)]
struct Paused {
    head: String,
    failures: u32,
    until: Instant,
}

/// How long to wait after a pass.
struct Wait {
    /// In any case.
    asked: Duration,
    /// Unless something happens.
    idle: Duration,
}

impl Previews {
    /// Previews and tells until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut memory = Memory::default();
        loop {
            self.observation.mark_unchanged();
            self.pull_requests.mark_unchanged();
            let wait = tokio::select! {
                () = shutdown.cancelled() => return,
                wait = self.pass(&mut memory) => wait,
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait.asked) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait.idle) => {}
                seen = self.observation.changed() => if seen.is_err() { return },
                seen = self.pull_requests.changed() => if seen.is_err() { return },
            }
        }
    }

    async fn pass(&self, memory: &mut Memory) -> Wait {
        match self.look(memory).await {
            Ok(idle) => {
                memory.failures = 0;
                let asked = Duration::ZERO;
                Wait { asked, idle }
            }
            Err(error) => {
                if memory.failures == 0 {
                    warn!(error = %chain(&error), "previews will be tried again");
                }
                memory.failures += 1;
                let asked = error.leave_alone().unwrap_or_default();
                Wait {
                    asked: asked.max(pause(memory.failures)),
                    idle: Duration::ZERO,
                }
            }
        }
    }

    /// Brings what was told of each pull request up to date. Returns when to look again at the latest.
    ///
    /// # Errors
    /// Where going on with the next one makes no sense.
    async fn look(&self, memory: &mut Memory) -> Result<Duration, UpdateError> {
        let Some(open) = self.pull_requests.borrow().open.clone() else {
            return Ok(INTERVAL);
        };
        let Some(base) = self.tracked() else {
            return Ok(INTERVAL);
        };
        let mut known = self.known().await?;
        self.forget_closed(&open, &known, memory).await?;
        let mut open = open.to_vec();
        open.sort_by_key(|pull| std::cmp::Reverse(pull.number));
        open.truncate(MAX_OPEN);
        let mut outdated = Vec::new();
        for pull in open {
            match known.remove(&pull.number) {
                Some(known) if known.is_final_of(&pull.head_commit) => {
                    if known.base != base.to_string() && !enrolls(&pull) {
                        outdated.push((pull, known));
                    }
                }
                // Those with a new head first.
                known => self.attempt(&pull, known, base, memory).await?,
            }
        }
        let mut wait = memory.next_try().unwrap_or(INTERVAL).min(INTERVAL);
        if !outdated.is_empty() {
            let rest = memory
                .refreshed
                .map(|at| REFRESH.saturating_sub(at.elapsed()))
                .filter(|rest| !rest.is_zero());
            if let Some(rest) = rest {
                return Ok(wait.min(rest));
            }
            for (pull, known) in outdated {
                self.attempt(&pull, Some(known), base, memory).await?;
            }
            memory.refreshed = Some(Instant::now());
            wait = memory.next_try().unwrap_or(INTERVAL).min(INTERVAL);
        }
        Ok(wait)
    }

    fn tracked(&self) -> Option<Oid> {
        let observation = self.observation.borrow();
        Some(observation.refs.as_ref()?.tracked.as_ref()?.id)
    }

    /// What is remembered, by number.
    async fn known(&self) -> Result<BTreeMap<u64, Reported>, UpdateError> {
        let mut db = self.store.read().await?;
        let known = previews::list(&mut db, &self.fleet).await?;
        Ok(known.into_iter().map(|it| (it.number, it)).collect())
    }

    async fn forget_closed(
        &self,
        open: &[PullRequest],
        known: &BTreeMap<u64, Reported>,
        memory: &mut Memory,
    ) -> Result<(), UpdateError> {
        let open: BTreeSet<_> = open.iter().map(|pull| pull.number).collect();
        memory.paused.retain(|number, _| open.contains(number));
        let mut closed: Vec<_> = known.keys().copied().collect();
        closed.retain(|number| !open.contains(number));
        for number in closed {
            self.mirror.forget_proposal(&proposal(number)).await?;
            let mut db = self.lease.write(&self.store).await?;
            previews::delete(&mut db, &self.fleet, number).await?;
            db.commit().await.map_err(StoreError::from)?;
        }
        Ok(())
    }

    /// Updates one pull request, if it is not paused. A failure that is about it alone pauses it.
    async fn attempt(
        &self,
        pull: &PullRequest,
        known: Option<Reported>,
        base: Oid,
        memory: &mut Memory,
    ) -> Result<(), UpdateError> {
        if memory.is_paused(pull) {
            return Ok(());
        }
        let done = tokio::select! {
            // A newer push is in the list: the next pass is about that one.
            () = self.superseded(pull) => return Ok(()),
            done = self.update(pull, known, base) => done,
        };
        let may_pass = match done {
            Ok(may_pass) => may_pass,
            Err(error) if error.leave_alone().is_some() => return Err(error),
            Err(error) => {
                let failures = memory.failures_of(pull);
                if failures == 0 {
                    let number = pull.number;
                    warn!(number, error = %chain(&error), "a pull request will be tried again");
                }
                true
            }
        };
        if may_pass {
            memory.pause(pull);
        } else {
            memory.paused.remove(&pull.number);
        }
        Ok(())
    }

    /// Waits until the pull request is not open any more with this head.
    async fn superseded(&self, pull: &PullRequest) {
        let mut listed = self.pull_requests.clone();
        let is_gone = |listed: &PullRequests| {
            listed.open.as_ref().is_some_and(|open| {
                !open
                    .iter()
                    .any(|now| now.number == pull.number && now.head_commit == pull.head_commit)
            })
        };
        if listed.wait_for(is_gone).await.is_err() {
            // Nobody lists any more: the shutdown ends this.
            std::future::pending::<()>().await;
        }
    }

    /// Finds out what a pull request does, and tells it. Returns whether another try may find something else.
    async fn update(
        &self,
        pull: &PullRequest,
        known: Option<Reported>,
        base: Oid,
    ) -> Result<bool, UpdateError> {
        let mut reported = Reported::carried_on(known, pull, base);
        if pull.is_from_fork && !self.renders_forks(base).await? {
            self.tell(pull, &mut reported, Finding::Fork).await?;
            return Ok(false);
        }
        if reported.told.status.is_none() && !enrolls(pull) {
            self.tell(pull, &mut reported, Finding::Pending).await?;
        }
        match self.preview(pull, base).await {
            Ok(Report {
                preview, may_pass, ..
            }) => {
                reported.told.may_pass = may_pass;
                let finding = Finding::Preview(Box::new(preview));
                self.tell(pull, &mut reported, finding).await?;
                info!(number = pull.number, head = pull.head_commit, "previewed");
                Ok(may_pass)
            }
            Err(UpdateError::Preview(PreviewError::Builds(
                error @ EnsureError::TooMany { .. },
            ))) => {
                let finding = Finding::TooLarge(error.to_string());
                self.tell(pull, &mut reported, finding).await?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn preview(&self, pull: &PullRequest, base: Oid) -> Result<Report, UpdateError> {
        let remote = self.forge.head_ref(pull.number);
        let fetched = self
            .mirror
            .fetch_proposal(&proposal(pull.number), &remote)
            .await?;
        let listed = Oid::from_str(&pull.head_commit).map_err(GitError::from)?;
        if fetched != listed && !self.mirror.has_commit(listed).await? {
            return Err(UpdateError::Moved);
        }
        Ok(self
            .engine
            .propose(&self.mirror, Some(base), listed)
            .await?)
    }

    async fn renders_forks(&self, base: Oid) -> Result<bool, UpdateError> {
        let tree: Arc<dyn Tree> = self.mirror.tree(base).await?;
        let root = self.engine.root().clone();
        let settings = super::blocking(move || FleetSettings::read(&*tree, &root)).await?;
        Ok(settings.is_ok_and(|settings| settings.preview_forks))
    }
}

impl Memory {
    fn is_paused(&self, pull: &PullRequest) -> bool {
        self.paused
            .get(&pull.number)
            .is_some_and(|paused| paused.head == pull.head_commit && Instant::now() < paused.until)
    }

    fn failures_of(&self, pull: &PullRequest) -> u32 {
        self.paused
            .get(&pull.number)
            .filter(|paused| paused.head == pull.head_commit)
            .map_or(0, |paused| paused.failures)
    }

    fn pause(&mut self, pull: &PullRequest) {
        let failures = self.failures_of(pull) + 1;
        let paused = Paused {
            head: pull.head_commit.clone(),
            failures,
            until: Instant::now() + pause(failures),
        };
        self.paused.insert(pull.number, paused);
    }

    /// In how long the next pause is over.
    fn next_try(&self) -> Option<Duration> {
        let now = Instant::now();
        let until = self.paused.values().map(|paused| paused.until).min()?;
        Some(until.saturating_duration_since(now).max(FIRST_PAUSE))
    }
}

/// Where a pull request's head is in the mirror.
fn proposal(number: u64) -> String {
    format!("pull/{number}")
}

/// Whether a pull request is the controller's own, of devices that enroll.
fn enrolls(pull: &PullRequest) -> bool {
    let is_ours = |prefix| pull.head_branch.starts_with(prefix);
    !pull.is_from_fork && [ENROLL_BRANCHES, BATCH_BRANCHES].into_iter().any(is_ours)
}

fn pause(failures: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(LONGEST_PAUSE)
}
