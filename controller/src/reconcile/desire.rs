//! What each active device is to run: overlay, closure, build, variables.
//!
//! Everything is found by content, and what was found is remembered: a device whose file and input key did not
//! change costs two look-ups. Builds without `${` are kept as sets of references; only those with references
//! keep their bodies in memory.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use longshore_fleet::{Closures, DeviceSpec, Fleet, InputKey, OverlayClosures, RepoPath};
use longshore_protocol::{Condition, DeviceId, ManifestSet, Object, condition};

use super::{Reading, ReconcileError, Reconciler, approve::by_key, blocking};
use crate::{
    builds::{
        Standing,
        outcome::{self, has_references, of_device, set_of},
    },
    clock,
    rollout::{Candidate, Current, Wanted, empty_digest},
    store::devices::{Description, DeviceView},
};

/// What this pass found out about the active devices.
#[derive(Debug, Default)]
pub(super) struct Desires {
    pub candidates: Vec<Candidate>,
    pub descriptions: BTreeMap<DeviceId, Description>,
    /// `path:line: message` each.
    pub problems: Vec<String>,
    /// Objects that the variables of some device made, not yet in the store.
    pub fresh_objects: Vec<Object>,
    /// What is to be remembered once those objects are in the store, and not before.
    pub sets: Sets,
}

type Sets = HashMap<DeviceId, (InputKey, Arc<DeviceSpec>, Arc<ManifestSet>)>;

/// What earlier passes found out.
#[derive(Debug, Default)]
pub(super) struct Memory {
    builds: HashMap<InputKey, Arc<Built>>,
    pub(super) sets: Sets,
}

/// A build, as far as devices need it.
#[derive(Debug)]
enum Built {
    /// No object has references.
    Plain(Arc<ManifestSet>),
    /// Some have.
    Template(Vec<Object>),
    Failed(String),
}

/// Why a device's wanted state is not known, with the reason of its `Rendered` condition.
struct Trouble {
    reason: &'static str,
    message: String,
    is_problem: bool,
}

/// The reason of a device whose build is under way.
const BUILDING: &str = "Building";

impl Reconciler {
    pub(super) async fn desire(
        &mut self,
        reading: &Reading,
        fleet: &Fleet,
        active: &[DeviceView],
    ) -> Result<Desires, ReconcileError> {
        let specs = by_key(fleet);
        let overlays: HashSet<_> = active
            .iter()
            .filter_map(|view| specs.get(&view.device.public_key))
            .map(|spec| spec.overlay.clone())
            .collect();
        let closures = self.closures(reading, overlays).await?;
        self.load_builds(&closures).await?;

        let now = clock::now_ms();
        let mut desires = Desires::default();
        let mut remembered = HashMap::new();
        let names: HashSet<_> = active.iter().map(|view| &view.device.name).collect();
        let may_be_elsewhere = fleet.may_hide_a_device(|folder| names.contains(folder));
        for view in active {
            let device = &view.device;
            let spec = specs.get(&device.public_key).copied();
            let wanted = match spec {
                Some(spec) => self
                    .wanted(view, spec, &closures, reading, &mut desires.fresh_objects)
                    .map(Wanted::Set),
                // A file with problems says nothing; only a folder that is not there, or that names another
                // key, takes the device away.
                None if fleet.still_has(&device.name, Some(&device.public_key)) => Err(Trouble {
                    reason: "Invalid",
                    message: problems_of(fleet, view),
                    is_problem: false,
                }),
                None if may_be_elsewhere => Err(Trouble {
                    reason: "Invalid",
                    message: "no readable device.yaml names its key, but one cannot be read; \
                              it is not decommissioned before that is mended"
                        .to_owned(),
                    is_problem: false,
                }),
                None => Ok(Wanted::Gone),
            };
            let mut conditions = device.conditions.clone();
            let wanted = match wanted {
                Ok(Wanted::Set(set)) => {
                    condition::set(&mut conditions, rendered(&set, now));
                    if let Some((key, spec)) = spec.and_then(|spec| {
                        Some((closures.get(&spec.overlay)?.as_ref().ok()?.key, spec))
                    }) {
                        remembered.insert(device.id.clone(), (key, spec.clone(), set.clone()));
                    }
                    Wanted::Set(set)
                }
                Ok(other) => other,
                Err(trouble) => {
                    if trouble.is_problem {
                        desires.problems.push(trouble.message.clone());
                    }
                    // A build that runs is no news; the last statement stays until it is done.
                    let is_building = trouble.reason == BUILDING;
                    if !is_building || conditions.is_empty() {
                        condition::set(
                            &mut conditions,
                            Condition::fails("Rendered", trouble.reason, trouble.message, now),
                        );
                    }
                    if is_building {
                        Wanted::Building
                    } else {
                        Wanted::Unknown
                    }
                }
            };
            let current = view.desired.as_ref().map(|desired| Current {
                target: desired.target,
                empty: desired.target.digest == empty_digest(),
            });
            desires.candidates.push(Candidate {
                id: device.id.clone(),
                name: device.name.clone(),
                current,
                wanted,
            });
            let (name, labels) = match spec {
                Some(spec) => (spec.name.clone(), spec.labels.clone()),
                None => (device.name.clone(), device.labels.clone()),
            };
            let id = device.id.clone();
            desires.descriptions.insert(
                id.clone(),
                Description {
                    id,
                    name,
                    labels,
                    conditions,
                },
            );
        }
        desires.sets = remembered;
        Ok(desires)
    }

    /// The closures of all overlays, or why there is none.
    async fn closures(
        &mut self,
        reading: &Reading,
        overlays: HashSet<RepoPath>,
    ) -> Result<OverlayClosures, ReconcileError> {
        let tree = reading.tree.clone();
        let cache = std::mem::take(&mut self.closures);
        let identity = self.parts.builds.identity().to_owned();
        let (closures, cache) = blocking(move || {
            let mut walker = Closures::with_cache(&*tree, &identity, cache);
            (walker.closures(overlays), walker.into_cache())
        })
        .await?;
        self.closures = cache;
        Ok(closures)
    }

    /// Brings the builds of these closures to memory, as far as the store has them, and forgets all others.
    async fn load_builds(&mut self, closures: &OverlayClosures) -> Result<(), ReconcileError> {
        let keys: HashSet<_> = closures
            .values()
            .filter_map(|closure| Some(closure.as_ref().ok()?.key))
            .collect();
        self.asker.keep_only(&keys);
        let known = &mut self.desires.builds;
        known.retain(|key, _| keys.contains(key));
        let missing: Vec<_> = keys
            .into_iter()
            .filter(|key| !known.contains_key(key))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let tenant = &self.parts.fleet.tenant;
        let mut db = self.parts.store.read().await?;
        for (key, outcome) in outcome::load(&mut db, tenant, &missing).await? {
            let built = match outcome {
                Err(message) => Built::Failed(message),
                Ok(objects) => Built::of(objects),
            };
            self.desires.builds.insert(key, Arc::new(built));
        }
        Ok(())
    }

    /// The set that one device is to run.
    fn wanted(
        &self,
        view: &DeviceView,
        spec: &Arc<DeviceSpec>,
        closures: &OverlayClosures,
        reading: &Reading,
        fresh: &mut Vec<Object>,
    ) -> Result<Arc<ManifestSet>, Trouble> {
        if let Some(id) = &spec.id
            && *id != view.device.id
        {
            return Err(Trouble {
                reason: "Invalid",
                message: format!(
                    "{}: `spec.id` is {id}, but the device with this key is {}",
                    spec.file, view.device.id
                ),
                is_problem: true,
            });
        }
        let closure = match closures.get(&spec.overlay) {
            Some(Ok(closure)) => closure,
            Some(Err(error)) => {
                let message = error.to_string();
                return Err(Trouble {
                    reason: "Refused",
                    message,
                    is_problem: true,
                });
            }
            None => {
                let message = "the overlay was not looked at".to_owned();
                return Err(Trouble {
                    reason: BUILDING,
                    message,
                    is_problem: false,
                });
            }
        };
        if let Some((key, known, set)) = self.desires.sets.get(&view.device.id)
            && *key == closure.key
            && known == spec
        {
            return Ok(set.clone());
        }
        let Some(built) = self.desires.builds.get(&closure.key) else {
            return Err(match self.asker.start(closure, &reading.tree) {
                Standing::UnderWay => Trouble {
                    reason: BUILDING,
                    message: "the overlay is being built".to_owned(),
                    is_problem: false,
                },
                Standing::Failed { message, .. } => Trouble {
                    reason: "BuildFailed",
                    message: format!("{}: {message}", spec.overlay),
                    is_problem: true,
                },
            });
        };
        match &**built {
            Built::Plain(set) => Ok(set.clone()),
            Built::Failed(message) => Err(Trouble {
                reason: "BuildFailed",
                message: format!("{}: {message}", spec.overlay),
                is_problem: true,
            }),
            Built::Template(objects) => {
                let mut variables = (**spec).clone();
                // The file may leave the id out; the device has one all the same.
                variables.id = Some(view.device.id.clone());
                let (objects, set) = of_device(&variables, objects).map_err(|message| Trouble {
                    reason: "Variables",
                    message: format!("{}: {message}", spec.file),
                    is_problem: true,
                })?;
                fresh.extend(objects);
                Ok(Arc::new(set))
            }
        }
    }
}

impl Built {
    fn of(objects: Vec<Object>) -> Self {
        if has_references(&objects) {
            return Self::Template(objects);
        }
        match set_of(&objects) {
            Ok(set) => Self::Plain(Arc::new(set)),
            Err(message) => Self::Failed(message),
        }
    }
}

fn rendered(set: &ManifestSet, now: u64) -> Condition {
    if set.is_empty() {
        Condition::holds("Rendered", "Empty", "the overlay has no objects", now)
    } else {
        Condition::holds("Rendered", "Built", "", now)
    }
}

fn problems_of(fleet: &Fleet, view: &DeviceView) -> String {
    let problems: Vec<_> = fleet
        .problems
        .iter()
        .filter(|problem| problem.device.as_ref() == Some(&view.device.name))
        .map(ToString::to_string)
        .collect();
    if problems.is_empty() {
        return "the file that names its key has problems; `longshore fleets show` lists them"
            .to_owned();
    }
    problems.join("; ")
}
