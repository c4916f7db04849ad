//! What each active device is to run: which decisions do not hold any more, and what it takes to make them again.
//!
//! ```text
//! roster ─┐
//! fleet ──┼─▶ in doubt ─▶ open: whose decision does not hold any more ─▶ closures ─▶ builds ─▶ decide ─▶ decisions
//! memory ─┘               (its file, its input key, its facts or its row changed)
//! ```
//!
//! A decision is remembered with what it was made from. A pass looks at the devices that are in doubt, because something
//! that their decisions were made from may have changed, and at those that are not settled yet. It does not look at the
//! others, however many there are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use longshore_fleet::{Closure, Closures, DeviceSpec, Fleet, InputKey, RepoPath};
use longshore_protocol::{Condition, DeviceId, Digest, api::Facts, condition};

use super::{
    MAX_PROBLEMS, Reading, ReconcileError, Reconciler, blocking,
    decide::{Builds, Built, Open, Target, Unsaid, Verdict, decide, labels},
    roster::Roster,
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
    /// The devices whose decisions were made from an overlay.
    on_overlay: HashMap<RepoPath, BTreeSet<DeviceId>>,
    /// The devices that another pass has to look at, because they do not have yet what is decided, or because it is
    /// to be decided anew.
    unsettled: BTreeSet<DeviceId>,
    /// Those with problems.
    troubled: BTreeSet<DeviceId>,
    /// The devices that something changed for.
    doubted: BTreeSet<DeviceId>,
    /// Whether something may have changed for any of them.
    all_doubted: bool,
    /// The builds that the last pass needed.
    builds: HashMap<InputKey, Arc<Built>>,
}

/// What was decided of a device, and from what.
#[derive(Debug)]
struct Decision {
    spec: Option<Arc<DeviceSpec>>,
    key: Option<InputKey>,
    /// What the device says of itself that makes labels.
    facts: Facts,
    /// Its file's labels, and those.
    labels: BTreeMap<String, String>,
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
        let doubtful = self.memory.doubtful(&self.roster);
        let unread = self.closures(reading, &doubtful).await?;
        let open = self.open(reading, &doubtful, &unread);
        let builds = self.builds(reading, &open).await?;
        let mut desires = Desires::default();
        if !open.is_empty() {
            let unsaid = Unsaid::of(fleet, || {
                let names = self.roster.active().map(|member| &member.name);
                names.collect()
            });
            let (known, built) = (fleet.clone(), builds.built.clone());
            let decided = blocking(move || {
                let decide = |open: Open| {
                    let decision = decide(&open, &known, &unsaid, &builds);
                    (open, decision)
                };
                open.into_iter().map(decide).collect::<Vec<_>>()
            })
            .await?;
            self.memory.builds = built;
            for (open, (verdict, target)) in decided {
                let spec = open.spec.as_ref();
                let labels = spec.map(|spec| labels(&open.member, spec, &fleet.settings));
                let labels = labels.unwrap_or_else(|| open.member.labels.clone());
                self.memory
                    .take(open, labels, verdict, target, &mut desires);
            }
        }
        self.describe(&doubtful, &mut desires);
        self.memory.tell_problems(fleet, &mut desires);
        Ok(desires)
    }

    /// Walks the overlays of these devices whose closures are not known. Returns why some could not be, although the
    /// repo is not at fault.
    async fn closures(
        &mut self,
        reading: &Arc<Reading>,
        devices: &BTreeSet<DeviceId>,
    ) -> Result<HashMap<RepoPath, String>, ReconcileError> {
        let members = devices
            .iter()
            .filter_map(|id| self.roster.active_member(id));
        let overlays = members.filter_map(|member| Some(&reading.spec(member)?.overlay));
        let missing: BTreeSet<_> = overlays
            .filter(|overlay| self.closures.closure(overlay).is_none())
            .cloned()
            .collect();
        if missing.is_empty() {
            return Ok(HashMap::new());
        }
        let tree = reading.tree.clone();
        let cache = std::mem::take(&mut self.closures);
        let identity = self.parts.builds.identity().to_owned();
        let walked = blocking(move || {
            let mut walker = Closures::with_cache(&*tree, &identity, cache);
            let mut unread = HashMap::new();
            for overlay in missing {
                if let Err(error) = walker.closure(&overlay) {
                    unread.insert(overlay, error.to_string());
                }
            }
            (unread, walker.into_cache())
        });
        let (unread, cache) = walked.await?;
        self.closures = cache;
        Ok(unread)
    }

    /// Those of these devices whose decisions do not hold any more.
    fn open(
        &self,
        reading: &Reading,
        devices: &BTreeSet<DeviceId>,
        unread: &HashMap<RepoPath, String>,
    ) -> Vec<Open> {
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
        let members = devices
            .iter()
            .filter_map(|id| self.roster.active_member(id));
        members.filter_map(open).collect()
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

    /// Finds out where what is decided of these devices is not what the store says, and who of them is settled.
    fn describe(&mut self, devices: &BTreeSet<DeviceId>, desires: &mut Desires) {
        let now = clock::now_ms();
        let memory = &mut self.memory;
        memory.forget_doubts();
        for id in devices {
            let Some(member) = self.roster.active_member(id) else {
                memory.forget(id);
                continue;
            };
            let Some(decision) = memory.decisions.get_mut(id) else {
                continue;
            };
            if decision.is_building() {
                desires.building += 1;
            }
            let is_described = |row: &Arc<Member>| Arc::ptr_eq(row, member);
            if !decision.described.as_ref().is_some_and(is_described) {
                match decision.description(member, now) {
                    None => decision.described = Some(member.clone()),
                    Some(description) if description.name == member.name => {
                        desires.descriptions.push(description);
                    }
                    Some(description) => desires.renames.push(description),
                }
            }
            if decision.is_settled(member) {
                memory.unsettled.remove(id);
            } else {
                memory.unsettled.insert(id.clone());
            }
        }
    }

    /// What was decided, for the plan. Who is settled stays where it is.
    pub(super) fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> {
        let decisions = &self.memory.decisions;
        let candidate = |id| {
            let member = self.roster.active_member(id)?;
            Some(Candidate {
                id: &member.id,
                name: &member.name,
                current: member.target.map(Current::of),
                wanted: decisions.get(id).map_or(Wanted::Unknown, Decision::wanted),
            })
        };
        self.memory.unsettled.iter().filter_map(candidate)
    }
}

impl Memory {
    /// Something changed for these devices.
    pub(super) fn doubt(&mut self, devices: impl IntoIterator<Item = DeviceId>) {
        self.doubted.extend(devices);
    }

    /// Something changed for the devices on these overlays.
    pub(super) fn doubt_overlays(&mut self, overlays: &[RepoPath]) {
        for devices in overlays.iter().filter_map(|it| self.on_overlay.get(it)) {
            self.doubted.extend(devices.iter().cloned());
        }
    }

    /// Something may have changed for any device.
    pub(super) fn doubt_all(&mut self) {
        self.all_doubted = true;
    }

    /// The devices that this pass has to look at.
    fn doubtful(&self, roster: &Roster) -> BTreeSet<DeviceId> {
        let mut devices = &self.doubted | &self.unsettled;
        if self.all_doubted {
            devices.extend(roster.active().map(|member| member.id.clone()));
        }
        devices
    }

    /// They were all looked at.
    fn forget_doubts(&mut self) {
        self.doubted.clear();
        self.all_doubted = false;
    }

    fn forget(&mut self, id: &DeviceId) {
        self.unsettled.remove(id);
        self.troubled.remove(id);
        let overlay = self.decisions.remove(id).and_then(Decision::into_overlay);
        if let Some(overlay) = overlay
            && let Some(devices) = self.on_overlay.get_mut(&overlay)
        {
            devices.remove(id);
            if devices.is_empty() {
                self.on_overlay.remove(&overlay);
            }
        }
    }

    fn take(
        &mut self,
        open: Open,
        labels: BTreeMap<String, String>,
        verdict: Verdict,
        target: Option<Target>,
        desires: &mut Desires,
    ) {
        let key = open.key();
        let Open { member, spec, .. } = open;
        let id = &member.id;
        if let Some(target) = target
            && member.target.map(|held| held.digest) != Some(target.set.digest())
        {
            desires.targets.insert(id.clone(), target);
        }
        let described = self
            .decisions
            .get_mut(id)
            .filter(|before| before.says_the_same(&verdict, spec.as_ref()))
            .and_then(|before| before.described.take());
        self.forget(id);
        if let Some(spec) = &spec {
            let devices = self.on_overlay.entry(spec.overlay.clone()).or_default();
            devices.insert(id.clone());
        }
        if matches!(&verdict, Verdict::Trouble(trouble) if trouble.is_problem) {
            self.troubled.insert(id.clone());
        }
        let decision = Decision {
            spec,
            key,
            facts: member.facts.clone(),
            labels,
            verdict,
            described,
        };
        self.decisions.insert(id.clone(), decision);
    }

    /// The fleet's problems, and those of devices that more than the files tell; each once.
    fn tell_problems(&self, fleet: &Fleet, desires: &mut Desires) {
        let mut problems: Vec<_> = fleet.problems.iter().map(ToString::to_string).collect();
        problems.dedup();
        let decisions = self.troubled.iter().filter_map(|id| self.decisions.get(id));
        let found: BTreeSet<_> = decisions
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
        same_spec && self.key == key && self.facts == member.facts && self.lasts(member)
    }

    /// Whether it would be decided alike as long as the file and the closure stay.
    fn lasts(&self, member: &Member) -> bool {
        let lasts = match &self.verdict {
            // Until the device has its set, the set is needed.
            Verdict::Set(digest) => member.target.is_some_and(|held| held.digest == *digest),
            Verdict::Gone => false,
            Verdict::Trouble(trouble) => trouble.lasts,
        };
        lasts && self.spec.is_some() && self.key.is_some()
    }

    /// Whether it lasts, and the store says so.
    fn is_settled(&self, member: &Member) -> bool {
        self.described.is_some() && self.lasts(member)
    }

    fn wanted(&self) -> Wanted {
        match &self.verdict {
            Verdict::Set(digest) => Wanted::Set(*digest),
            Verdict::Gone => Wanted::Gone,
            Verdict::Trouble(trouble) if trouble.is_building() => Wanted::Building,
            Verdict::Trouble(_) => Wanted::Unknown,
        }
    }

    fn into_overlay(self) -> Option<RepoPath> {
        Some(self.spec?.overlay.clone())
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
            Some(spec) => (&spec.name, &self.labels),
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
