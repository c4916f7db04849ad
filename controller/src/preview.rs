//! What a change of the fleet repo would do to the fleet's devices, told before it is accepted.
//!
//! ```text
//! base tree ─▶ fleet, closures ─┐                 ┌─ equal input keys: nothing to build, nothing to tell
//!                               ├─▶ pairs of keys ┤
//! head tree ─▶ fleet, closures ─┘                 └─ build what the store lacks ─▶ compare ─▶ Preview
//! ```
//!
//! * The same code reads, builds and substitutes as for devices, so a preview is what will happen. Nothing is
//!   written but builds, which are content-addressed: what a preview built, the merge need not build again.
//! * The cost goes by overlays that change, not by devices. A base that a thousand devices share through twelve
//!   overlays costs twelve builds, and as many again where the base was never built.
//! * Trees are all it takes, never a working directory: a push that is not accepted yet is one, too.
//! * A hostile change is bounded in builds, in time, in memory and in the length of what is said about it.

pub mod branch;
mod compare;
mod link;
pub mod markdown;
mod pairs;
mod place;
pub mod pull_requests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use git2::Oid;
use longshore_fleet::{
    Closures, DeviceSpec, FleetSettings, InputKey, Problem, Reader, RepoPath, Tree, TreeError,
    closure::ClosureCache, labels_with_facts,
};
use longshore_protocol::{
    DeviceId, Digest,
    api::{
        DeviceState, Facts,
        preview::{Guard, Preview, Problems},
    },
};

use tokio::sync::Semaphore;

pub use self::link::Link;
use self::{
    compare::Comparison,
    pairs::{Scope, Side, scope},
};
use crate::{
    builds::{
        Builds,
        ensure::{Ended, EnsureError, Limits},
        outcome::{self, Outcome},
    },
    source::{git::GitError, mirror::Mirror},
    store::{Store, StoreError, devices, fleets::FleetId},
};

/// How much one preview may build.
const LIMITS: Limits = Limits {
    builds: 5000,
    time: Duration::from_mins(10),
};
/// How many previews of one fleet are made at once; further ones wait.
const AT_ONCE: usize = 2;
/// What is said of a commit that cannot be merged.
const CONFLICTS: &str =
    "it conflicts with the tracked branch; this is what it changes since it branched off";
/// The value of a label that a fact will make, of a device that is not known.
const UNKNOWN: &str = "unknown";
/// How many problems are listed.
const MAX_PROBLEMS: usize = 100;
/// How long the line of a problem is at most, in characters.
const MAX_PROBLEM: usize = 2000;

/// Why there is no preview. The repo's content is never why: what is wrong with it is in the preview.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// A tree cannot be read.
    #[error("the repo's mirror failed")]
    Tree(#[from] TreeError),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The builds are more than they may be, or take too long.
    #[error(transparent)]
    Builds(#[from] EnsureError),
    /// The repo does not have the branch.
    #[error("the repo has no branch `{0}`; push it first")]
    NoBranch(String),
    /// Git failed.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A task was cut off by the shutdown.
    #[error("the preview was cut off")]
    Cut,
}

/// Makes previews for one fleet. Clones share what was learned, which only saves work.
#[derive(Clone, Debug)]
pub struct Engine {
    store: Store,
    builds: Builds,
    root: RepoPath,
    fleet: FleetId,
    memory: Arc<Mutex<Memory>>,
    places: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Memory {
    reader: Reader,
    closures: ClosureCache,
}

/// A preview, and whether it may turn out otherwise the next time.
#[derive(Clone, Debug)]
pub struct Report {
    /// The preview.
    pub preview: Preview,
    /// Whether a build failed in a way that may pass, such as a timeout.
    pub may_pass: bool,
    /// What `fleet.yaml` says without the change; `None` where there is no good one.
    pub settings: Option<FleetSettings>,
}

impl Engine {
    /// For the fleet at `root` of its repo.
    pub fn new(store: Store, builds: Builds, root: RepoPath, fleet: FleetId) -> Self {
        Self {
            store,
            builds,
            root,
            fleet,
            memory: Arc::default(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Where the fleet is in its repo.
    pub fn root(&self) -> &RepoPath {
        &self.root
    }

    /// What merging a commit into the tracked one would do; where they conflict, what it changes since it branched
    /// off. The mirror has both.
    ///
    /// # Errors
    /// Where it cannot be told; see [`PreviewError`].
    pub async fn propose(
        &self,
        mirror: &Mirror,
        tracked: Option<Oid>,
        head: Oid,
    ) -> Result<Report, PreviewError> {
        let proposal = mirror.propose(tracked, head).await?;
        let base = proposal.base.map(|base| base as Arc<dyn Tree>);
        let mut report = self.preview(base, proposal.head).await?;
        report.preview.base = tracked.map(|commit| commit.to_string());
        report.preview.head = Some(head.to_string());
        report.preview.note = proposal.conflicts.then(|| CONFLICTS.to_owned());
        Ok(report)
    }

    /// What the change from `base` to `head` would do. Whoever asks knows the commits, and notes them.
    ///
    /// Dropping the future ends the work but for the builds that already run.
    ///
    /// # Errors
    /// Where it cannot be told; see [`PreviewError`].
    pub async fn preview(
        &self,
        base: Option<Arc<dyn Tree>>,
        head: Arc<dyn Tree>,
    ) -> Result<Report, PreviewError> {
        // A closed semaphore would only mean that nobody has to wait.
        let _place = self.places.acquire().await;
        let known = self.known().await?;
        let (memory, root) = (self.memory.clone(), self.root.clone());
        let identity = self.builds.identity().to_owned();
        let trees = (base.clone(), head.clone());
        let (before, after, scope) = blocking(move || {
            let mut memory =
                std::mem::take(&mut *memory.lock().unwrap_or_else(PoisonError::into_inner));
            let before = match trees.0 {
                Some(tree) => memory.read(&*tree, &root, &identity, &known)?,
                None => Side::nothing(),
            };
            let after = memory.read(&*trees.1, &root, &identity, &known)?;
            let scope = scope(&before, &after);
            Ok::<_, PreviewError>((memory, before, after, scope))
        })
        .await
        .map(|read| {
            read.map(|(learned, before, after, scope)| {
                *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = learned;
                (before, after, scope)
            })
        })??;
        let ended = self.build(&scope, base.as_ref(), &head).await?;
        let comparison = self.compare(&scope, &ended).await?;
        let may_pass = ended
            .values()
            .any(|ended| matches!(ended, Ended::FailedNow(_)));
        let settings = before.fleet.as_ref().map(|fleet| fleet.settings.clone());
        Ok(Report {
            preview: told(&before, &after, scope, comparison),
            may_pass,
            settings,
        })
    }

    /// The fleet's devices by key: a file may leave its device's id out, and facts may make labels.
    async fn known(&self) -> Result<HashMap<Digest, (DeviceId, Facts)>, StoreError> {
        let mut db = self.store.read().await?;
        let members = devices::changed_since(&mut db, &self.fleet, None, true).await?;
        let lives = |state| matches!(state, DeviceState::Active | DeviceState::Pending);
        Ok(members
            .into_iter()
            .filter(|member| lives(member.state))
            .map(|member| (member.public_key, (member.id, member.facts)))
            .collect())
    }

    /// Builds what the store lacks.
    async fn build(
        &self,
        scope: &Scope,
        base: Option<&Arc<dyn Tree>>,
        head: &Arc<dyn Tree>,
    ) -> Result<BTreeMap<InputKey, Ended>, PreviewError> {
        let before = scope
            .pairs
            .iter()
            .filter_map(|pair| Some((pair.before.clone()?, base?.clone())));
        let after = scope.pairs.iter().map(|pair| &pair.after);
        let added = scope.added.iter().map(|added| &added.overlay);
        let after = after
            .chain(added)
            .map(|closure| (closure.clone(), head.clone()));
        let wanted: Vec<_> = before.chain(after).collect();
        Ok(self
            .builds
            .ensure(&self.fleet.tenant, wanted, LIMITS)
            .await?)
    }

    /// Compares pair by pair, so that no more than two builds are in memory.
    async fn compare(
        &self,
        scope: &Scope,
        ended: &BTreeMap<InputKey, Ended>,
    ) -> Result<Comparison, PreviewError> {
        let mut comparison = Comparison::default();
        for pair in &scope.pairs {
            let before = match &pair.before {
                Some(closure) => Some(self.outcome(closure.key, ended).await?),
                None => None,
            };
            let after = self.outcome(pair.after.key, ended).await?;
            let pair = pair.clone();
            comparison = blocking(move || {
                comparison.pair(&pair, before.as_ref(), &after);
                comparison
            })
            .await?;
        }
        for added in &scope.added {
            let outcome = self.outcome(added.overlay.key, ended).await?;
            let added = added.clone();
            comparison = blocking(move || {
                comparison.added(&added, &outcome);
                comparison
            })
            .await?;
        }
        Ok(comparison)
    }

    async fn outcome(
        &self,
        key: InputKey,
        ended: &BTreeMap<InputKey, Ended>,
    ) -> Result<Outcome, PreviewError> {
        match ended.get(&key) {
            Some(Ended::Fails(message) | Ended::FailedNow(message)) => {
                return Ok(Err(message.clone()));
            }
            Some(Ended::Built) | None => {}
        }
        let mut db = self.store.read().await?;
        let mut outcomes = outcome::load(&mut db, &self.fleet.tenant, &[key]).await?;
        let lost =
            || Err("what was built is gone from the controller's store; try again".to_owned());
        Ok(outcomes.remove(&key).unwrap_or_else(lost))
    }
}

impl Memory {
    fn read(
        &mut self,
        tree: &dyn Tree,
        root: &RepoPath,
        identity: &str,
        known: &HashMap<Digest, (DeviceId, Facts)>,
    ) -> Result<Side, TreeError> {
        let mut fleet = self.reader.read(tree, root);
        if let Ok(fleet) = &mut fleet {
            fleet.fill_in(|settings, spec| complete(settings, spec, known));
        }
        let closures = &mut self.closures;
        Side::of(fleet, |overlays: BTreeSet<RepoPath>| {
            let mut walker = Closures::with_cache(tree, identity, std::mem::take(closures));
            let found = walker.closures(overlays);
            *closures = walker.into_cache();
            // What earlier previews met is not kept for ever.
            closures.retain(|overlay| found.contains_key(overlay));
            found
        })
    }
}

/// The device with its id and the labels that its facts make, where its file leaves them out. A device that never
/// enrolled will have both; they must not look undefined until then.
fn complete(
    settings: &FleetSettings,
    spec: &DeviceSpec,
    known: &HashMap<Digest, (DeviceId, Facts)>,
) -> Option<DeviceSpec> {
    let allowed = &settings.labels_from_facts;
    if spec.id.is_some() && allowed.is_empty() {
        return None;
    }
    let known = spec.public_key.as_ref().and_then(|key| known.get(key));
    let (id, facts) = known.cloned().unwrap_or_else(|| {
        let unknown = allowed
            .iter()
            .map(|name| (name.clone(), UNKNOWN.to_owned()));
        (DeviceId::from_random([0; 16]), unknown.collect())
    });
    let labels = labels_with_facts(&spec.labels, &facts, allowed);
    Some(DeviceSpec {
        id: Some(spec.id.clone().unwrap_or(id)),
        labels,
        ..spec.clone()
    })
}

fn told(before: &Side, after: &Side, scope: Scope, comparison: Comparison) -> Preview {
    let (mut preview, problems, old_problems) = comparison.finish();
    preview.devices = before.devices().count() as u64;
    preview.decommissioned = scope.gone;
    let problems = problems.into_iter().chain(scope.problems);
    let old: Vec<_> = before
        .problems
        .iter()
        .cloned()
        .chain(old_problems)
        .collect();
    let known: BTreeSet<_> = old.iter().map(|it| (&it.path, &it.message)).collect();
    let all = after.problems.iter().cloned().chain(problems);
    // A line that moved does not make a problem new.
    let (same, new) = all.partition::<Vec<_>, _>(|it| known.contains(&(&it.path, &it.message)));
    preview.problems = listed(new);
    preview.old_problems = listed(same);
    preview.guard = guard(before, after, preview.removals());
    preview
}

fn guard(before: &Side, after: &Side, removals: usize) -> Guard {
    let devices = before.devices().count();
    let allowed = |side: &Side| Some(side.fleet.as_ref()?.settings.max_decommission.of(devices));
    let (old, new) = (allowed(before), allowed(after));
    let strictest = old.into_iter().chain(new).min().unwrap_or_default();
    Guard {
        allowed: strictest as u64,
        exceeded: removals > strictest,
        holds: new.is_some_and(|new| removals > new),
    }
}

fn listed(mut problems: Vec<Problem>) -> Problems {
    problems.sort_by(|a, b| (&a.path, a.line, &a.message).cmp(&(&b.path, b.line, &b.message)));
    problems.dedup_by(|a, b| (&a.path, a.line, &a.message) == (&b.path, b.line, &b.message));
    let line = |problem: &Problem| {
        let text = problem.to_string();
        text.chars().take(MAX_PROBLEM).collect()
    };
    Problems {
        lines: problems.iter().take(MAX_PROBLEMS).map(line).collect(),
        count: problems.len() as u64,
    }
}

/// Runs pure but heavy work where it does not hold up other tasks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PreviewError> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .map_err(|_cut| PreviewError::Cut)
}
