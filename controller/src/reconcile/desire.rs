//! What each active device is to run: which decisions do not hold any more, and what it takes to make them again.
//!
//! ```text
//! roster ─┐
//! fleet ──┼─▶ open: whose decision does not hold any more ─▶ closures ─▶ builds ─▶ decide ─▶ decisions
//! memory ─┘         (its file, its input key or its row changed)
//! ```
//!
//! A decision is remembered with what it was made from. A device of which nothing changed costs a few look-ups, and
//! nothing that is heavy: neither its build nor its objects are in memory.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use longshore_fleet::{Closure, Closures, DeviceSpec, Fleet, InputKey, RepoPath};
use longshore_protocol::{Condition, DeviceId, Digest, api::DeviceState, condition};

use super::{
    MAX_PROBLEMS, Reading, ReconcileError, Reconciler, blocking,
    decide::{Builds, Built, Open, Target, Unsaid, Verdict, decide},
};
use crate::{
    builds::{Standing, outcome},
    clock,
    rollout::{Candidate, Current, EMPTY, Wanted},
    store::devices::{Description, Member},
};

/// What this pass decided anew.
#[derive(Debug, Default)]
pub(super) struct Desires {
    /// The sets of the devices that do not have theirs yet.
    pub targets: HashMap<DeviceId, Target>,
    /// What is to be said of devices, where it differs from what the store has.
    pub descriptions: Vec<Description>,
    /// Those that say another name.
    pub renames: Vec<Description>,
    /// `path:line: message` each, the first of them.
    pub problems: Vec<String>,
    /// How many there are.
    pub problem_count: u64,
    /// How many devices wait for a build.
    pub building: usize,
}

/// What earlier passes found out.
#[derive(Debug, Default)]
pub(super) struct Memory {
    decisions: HashMap<DeviceId, Decision>,
    /// The builds that the last pass needed.
    builds: HashMap<InputKey, Arc<Built>>,
}

/// What was decided of a device, and from what.
#[derive(Debug)]
struct Decision {
    spec: Option<Arc<DeviceSpec>>,
    key: Option<InputKey>,
    verdict: Verdict,
    /// The row that says just this.
    described: Option<Arc<Member>>,
}

impl Reconciler {
    /// Decides on the devices of which something changed.
    pub(super) async fn desire(
        &mut self,
        reading: &Arc<Reading>,
        fleet: &Arc<Fleet>,
    ) -> Result<Desires, ReconcileError> {
        let unread = self.closures(reading).await?;
        let open = self.open(reading, &unread);
        let builds = self.builds(reading, &open).await?;
        let mut desires = Desires::default();
        if !open.is_empty() {
            let names = self.roster.active().map(|member| &member.name);
            let unsaid = Unsaid::of(fleet, &names.collect());
            let (fleet, built) = (fleet.clone(), builds.built.clone());
            let decided = blocking(move || {
                let decide = |open: Open| {
                    let decision = decide(&open, &fleet, &unsaid, &builds);
                    (open, decision)
                };
                open.into_iter().map(decide).collect::<Vec<_>>()
            })
            .await?;
            self.memory.builds = built;
            for (open, (verdict, target)) in decided {
                self.memory.take(open, verdict, target, &mut desires);
            }
        }
        self.describe(&mut desires);
        self.memory.tell_problems(fleet, &mut desires);
        Ok(desires)
    }

    /// Walks the overlays whose closures are not known. Returns why some could not be, although the repo is not at
    /// fault.
    async fn closures(
        &mut self,
        reading: &Arc<Reading>,
    ) -> Result<HashMap<RepoPath, String>, ReconcileError> {
        let missing: BTreeSet<_> = self
            .roster
            .active()
            .filter_map(|member| reading.spec(member))
            .map(|spec| &spec.overlay)
            .filter(|overlay| self.closures.closure(overlay).is_none())
            .cloned()
            .collect();
        if missing.is_empty() {
            return Ok(HashMap::new());
        }
        let specs = self.roster.active().filter_map(|it| reading.spec(it));
        let used: HashSet<_> = specs.map(|spec| spec.overlay.clone()).collect();
        let tree = reading.tree.clone();
        let cache = std::mem::take(&mut self.closures);
        let identity = self.parts.builds.identity().to_owned();
        let (unread, cache) = blocking(move || {
            let mut walker = Closures::with_cache(&*tree, &identity, cache);
            let mut unread = HashMap::new();
            for overlay in missing {
                if let Err(error) = walker.closure(&overlay) {
                    unread.insert(overlay, error.to_string());
                }
            }
            let mut cache = walker.into_cache();
            cache.retain(|overlay| used.contains(overlay));
            (unread, cache)
        })
        .await?;
        self.closures = cache;
        Ok(unread)
    }

    /// The devices whose decisions do not hold any more.
    fn open(&self, reading: &Reading, unread: &HashMap<RepoPath, String>) -> Vec<Open> {
        let open = |member: &Arc<Member>| {
            let spec = reading.spec(member);
            let closure = spec.map(|spec| match self.closures.closure(&spec.overlay) {
                Some(known) => known.as_ref().map_err(ToString::to_string),
                None => Err(unread.get(&spec.overlay).cloned().unwrap_or_default()),
            });
            let key = closure
                .as_ref()
                .and_then(|closure| Some(closure.as_ref().ok()?.key));
            let decision = self.memory.decisions.get(&member.id);
            if decision.is_some_and(|it| it.holds(member, spec, key)) {
                return None;
            }
            Some(Open {
                member: member.clone(),
                spec: spec.cloned(),
                closure: closure.map(Result::<&_, _>::cloned),
            })
        };
        self.roster.active().filter_map(open).collect()
    }

    /// Finds the builds that these devices need, and starts those that there are not.
    async fn builds(&mut self, reading: &Reading, open: &[Open]) -> Result<Builds, ReconcileError> {
        let closures: HashMap<InputKey, &Arc<Closure>> = open
            .iter()
            .filter_map(|open| open.closure.as_ref()?.as_ref().ok())
            .map(|closure| (closure.key, closure))
            .collect();
        self.asker.keep_only(&closures.keys().copied().collect());
        let under_way = self.asker.under_way();
        let mut builds = Builds {
            built: std::mem::take(&mut self.memory.builds),
            standings: HashMap::new(),
        };
        builds.built.retain(|key, _| closures.contains_key(key));
        let unknown: Vec<_> = closures
            .keys()
            .filter(|key| !builds.built.contains_key(key) && !under_way.contains(key))
            .copied()
            .collect();
        if !unknown.is_empty() {
            let tenant = &self.parts.fleet.tenant;
            let mut db = self.parts.store.read().await?;
            for (key, outcome) in outcome::load(&mut db, tenant, &unknown).await? {
                let built = match outcome {
                    Err(message) => Built::Failed(message),
                    Ok(objects) => Built::of(objects),
                };
                builds.built.insert(key, Arc::new(built));
            }
        }
        // In the order of their paths, so that what is looked at first is built first.
        let mut missing: Vec<_> = closures
            .into_iter()
            .filter(|(key, _)| !builds.built.contains_key(key))
            .collect();
        missing.sort_by(|(_, one), (_, other)| one.overlay.cmp(&other.overlay));
        for (key, closure) in missing {
            let standing = if under_way.contains(&key) {
                Standing::UnderWay
            } else {
                self.asker.start(closure, &reading.tree)
            };
            builds.standings.insert(key, standing);
        }
        Ok(builds)
    }

    /// Finds out where what is decided is not what the store says of a device.
    fn describe(&mut self, desires: &mut Desires) {
        let now = clock::now_ms();
        let mut active = 0;
        for member in self.roster.active() {
            active += 1;
            let Some(decision) = self.memory.decisions.get_mut(&member.id) else {
                continue;
            };
            if decision.is_building() {
                desires.building += 1;
            }
            let is_described = |row: &Arc<Member>| Arc::ptr_eq(row, member);
            if decision.described.as_ref().is_some_and(is_described) {
                continue;
            }
            match decision.description(member, now) {
                None => decision.described = Some(member.clone()),
                Some(description) if description.name == member.name => {
                    desires.descriptions.push(description);
                }
                Some(description) => desires.renames.push(description),
            }
        }
        if self.memory.decisions.len() > active {
            let roster = &self.roster;
            self.memory.decisions.retain(|id, _| {
                let member = roster.member(id);
                member.is_some_and(|member| member.state == DeviceState::Active)
            });
        }
    }

    /// What was decided, for the plan.
    pub(super) fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> {
        self.roster.active().map(|member| Candidate {
            id: &member.id,
            name: &member.name,
            current: member.target.map(Current::of),
            wanted: match self.memory.decisions.get(&member.id) {
                None => Wanted::Unknown,
                Some(decision) if decision.is_building() => Wanted::Building,
                Some(decision) => match &decision.verdict {
                    Verdict::Set(digest) => Wanted::Set(*digest),
                    Verdict::Gone => Wanted::Gone,
                    Verdict::Trouble(_) => Wanted::Unknown,
                },
            },
        })
    }
}

impl Memory {
    fn take(
        &mut self,
        open: Open,
        verdict: Verdict,
        target: Option<Target>,
        desires: &mut Desires,
    ) {
        let key = open.key();
        let Open { member, spec, .. } = open;
        if let Some(target) = target
            && member.target.map(|held| held.digest) != Some(target.set.digest())
        {
            desires.targets.insert(member.id.clone(), target);
        }
        let described = self
            .decisions
            .remove(&member.id)
            .filter(|before| before.says_the_same(&verdict, spec.as_ref()))
            .and_then(|before| before.described);
        let decision = Decision {
            spec,
            key,
            verdict,
            described,
        };
        self.decisions.insert(member.id.clone(), decision);
    }

    /// The fleet's problems, and those of devices that more than the files tell; each once.
    fn tell_problems(&self, fleet: &Fleet, desires: &mut Desires) {
        let mut problems: Vec<_> = fleet.problems.iter().map(ToString::to_string).collect();
        problems.dedup();
        let found: BTreeSet<_> = self
            .decisions
            .values()
            .filter_map(|decision| match &decision.verdict {
                Verdict::Trouble(trouble) if trouble.is_problem => Some(trouble.message.as_str()),
                _ => None,
            })
            .collect();
        desires.problem_count = (problems.len() + found.len()) as u64;
        problems.extend(found.into_iter().take(MAX_PROBLEMS).map(str::to_owned));
        problems.truncate(MAX_PROBLEMS);
        desires.problems = problems;
    }
}

impl Decision {
    /// Whether it would be decided alike.
    fn holds(
        &self,
        member: &Member,
        spec: Option<&Arc<DeviceSpec>>,
        key: Option<InputKey>,
    ) -> bool {
        let same_spec = match (&self.spec, spec) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            _ => false,
        };
        let lasts = match &self.verdict {
            // Until the device has its set, the set is needed.
            Verdict::Set(digest) => member.target.is_some_and(|held| held.digest == *digest),
            Verdict::Gone => false,
            Verdict::Trouble(trouble) => trouble.lasts,
        };
        same_spec && lasts && key.is_some() && self.key == key
    }

    fn is_building(&self) -> bool {
        matches!(&self.verdict, Verdict::Trouble(trouble) if trouble.is_building())
    }

    /// Whether its description is that of another decision.
    fn says_the_same(&self, verdict: &Verdict, spec: Option<&Arc<DeviceSpec>>) -> bool {
        let statement = |verdict: &Verdict| match verdict {
            Verdict::Set(digest) => Some(*digest == *EMPTY),
            Verdict::Gone | Verdict::Trouble(_) => None,
        };
        let same_spec = match (&self.spec, spec) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (None, None) => true,
            _ => false,
        };
        let (before, now) = (statement(&self.verdict), statement(verdict));
        same_spec && (self.verdict == *verdict || before.is_some() && before == now)
    }

    /// What is to be said of the device, unless its row says it.
    fn description(&self, member: &Member, now: u64) -> Option<Description> {
        let mut conditions = member.conditions.clone();
        match &self.verdict {
            Verdict::Set(digest) => condition::set(&mut conditions, rendered(*digest, now)),
            Verdict::Gone => {}
            // A build that runs is no news; the last statement stays until it is done.
            Verdict::Trouble(it) if it.is_building() && !conditions.is_empty() => {}
            Verdict::Trouble(it) => {
                let message = it.message.clone();
                condition::set(
                    &mut conditions,
                    Condition::fails("Rendered", it.reason, message, now),
                );
            }
        }
        let (name, labels) = match &self.spec {
            Some(spec) => (&spec.name, &spec.labels),
            None => (&member.name, &member.labels),
        };
        let is_said =
            *name == member.name && *labels == member.labels && conditions == member.conditions;
        (!is_said).then(|| Description {
            id: member.id.clone(),
            name: name.clone(),
            labels: labels.clone(),
            conditions,
        })
    }
}

fn rendered(digest: Digest, now: u64) -> Condition {
    if digest == *EMPTY {
        Condition::holds("Rendered", "Empty", "the overlay has no objects", now)
    } else {
        Condition::holds("Rendered", "Built", "", now)
    }
}
