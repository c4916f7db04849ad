//! Which devices are concerned by a change, and what has to be built to tell how: pure.
//!
//! A device is known by its key, and by its name where its file gives none; so a folder that is renamed is the same
//! device. Devices on the same overlays before and after form one [`Pair`], so that a change of a shared overlay is
//! compared once, however many devices use it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use longshore_fleet::{
    Closure, ClosureError, DeviceSpec, Fleet, FleetError, OverlayClosures, Problem, RepoPath,
    TreeError, Variables,
};
use longshore_protocol::{DeviceName, Digest};

/// One side of a comparison: what the repo says at one commit.
#[derive(Debug)]
pub(super) struct Side {
    /// The fleet; `None` where there is no commit, or its `fleet.yaml` is wrong.
    pub fleet: Option<Fleet>,
    /// The closures of its devices' overlays.
    pub closures: OverlayClosures,
    /// What is wrong with it, as far as can be told without building.
    pub problems: Vec<Problem>,
}

impl Side {
    /// The side of a tree that does not exist.
    pub fn nothing() -> Self {
        Self {
            fleet: None,
            closures: OverlayClosures::new(),
            problems: Vec::new(),
        }
    }

    /// What was read of a tree; `closures` finds those of the overlays that it is given.
    pub fn of(
        fleet: Result<Fleet, FleetError>,
        closures: impl FnOnce(BTreeSet<RepoPath>) -> OverlayClosures,
    ) -> Result<Self, TreeError> {
        let fleet = match fleet {
            Ok(fleet) => fleet,
            Err(FleetError::Tree(error)) => return Err(error),
            Err(FleetError::Invalid(problem)) => return Ok(Self::broken(problem)),
            Err(FleetError::Missing(path)) => {
                let message = "there is no such file; a fleet repo needs one";
                return Ok(Self::broken(Problem::at(&path, message)));
            }
        };
        let overlays = fleet.devices.values().map(|spec| spec.overlay.clone());
        let closures = closures(overlays.collect());
        let mut problems = fleet.problems.clone();
        for closure in closures.values() {
            match closure {
                Ok(_) => {}
                Err(ClosureError::Refused(problem)) => problems.push(problem.clone()),
                Err(ClosureError::Tree(error)) => return Err(error.clone()),
            }
        }
        Ok(Self {
            fleet: Some(fleet),
            closures,
            problems,
        })
    }

    fn broken(problem: Problem) -> Self {
        Self {
            problems: vec![problem],
            ..Self::nothing()
        }
    }

    pub fn devices(&self) -> impl Iterator<Item = &DeviceSpec> {
        self.fleet
            .iter()
            .flat_map(|fleet| fleet.devices.values().map(AsRef::as_ref))
    }

    /// The problem of a device that is to get an overlay that is refused here already. That the overlay is refused is
    /// no news then, but that the device depends on it is.
    fn refused(&self, spec: &DeviceSpec) -> Option<Problem> {
        let error = self.closures.get(&spec.overlay)?.as_ref().err()?;
        let message = format!("its overlay `{}` is refused: {error}", spec.overlay);
        Some(Problem::at(&spec.file, message).for_device(&spec.name))
    }

    fn closure(&self, spec: &DeviceSpec) -> Option<&Arc<Closure>> {
        self.closures.get(&spec.overlay)?.as_ref().ok()
    }
}

/// Devices on the same overlays, before and after.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// What renders them before; `None` where that is refused.
    pub before: Option<Arc<Closure>>,
    /// What renders them after.
    pub after: Arc<Closure>,
    /// Those for which nothing but the overlay changes, after the change.
    pub same: Vec<DeviceSpec>,
    /// Those whose variables change, too, before and after it.
    pub edited: Vec<(DeviceSpec, DeviceSpec)>,
}

/// Devices that a change adds, on one overlay.
#[derive(Clone, Debug)]
pub(super) struct Added {
    pub overlay: Arc<Closure>,
    pub devices: Vec<DeviceSpec>,
}

/// What a change is about.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub pairs: Vec<Pair>,
    pub added: Vec<Added>,
    pub gone: Vec<DeviceName>,
    /// What keeps devices from getting anything that the repo's files alone do not tell.
    pub problems: Vec<Problem>,
}

/// Finds what a change from `base` to `head` is about.
pub(super) fn scope(base: &Side, head: &Side) -> Scope {
    // A fleet.yaml that cannot be read changes nothing on any device.
    let Some(fleet) = &head.fleet else {
        return Scope::default();
    };
    let mut before = Known::of(base);
    let mut pairs = BTreeMap::new();
    let mut added = BTreeMap::new();
    let mut problems = Vec::new();
    for spec in fleet.devices.values().map(AsRef::as_ref) {
        let old = before.take(spec);
        // A device whose overlay is refused keeps what it has.
        let Some(closure) = head.closure(spec) else {
            if old.is_none_or(|old| old.overlay != spec.overlay) {
                problems.extend(base.refused(spec));
            }
            continue;
        };
        let Some(old) = old else {
            let added = added.entry(closure.key).or_insert_with(|| Added {
                overlay: closure.clone(),
                devices: Vec::new(),
            });
            added.devices.push(spec.clone());
            continue;
        };
        let was = base.closure(old);
        let is_same = Variables::of(old) == Variables::of(spec);
        if is_same && was.is_some_and(|was| was.key == closure.key) {
            continue;
        }
        let pair = pairs
            .entry((was.map(|was| was.key), closure.key))
            .or_insert_with(|| Pair {
                before: was.cloned(),
                after: closure.clone(),
                same: Vec::new(),
                edited: Vec::new(),
            });
        if is_same {
            pair.same.push(spec.clone());
        } else {
            pair.edited.push((old.clone(), spec.clone()));
        }
    }
    Scope {
        pairs: pairs.into_values().collect(),
        added: added.into_values().collect(),
        gone: before.gone(base, fleet),
        problems,
    }
}

/// The devices before the change that were not found after it yet.
struct Known<'a> {
    by_key: HashMap<Digest, &'a DeviceSpec>,
    by_name: BTreeMap<&'a DeviceName, &'a DeviceSpec>,
}

impl<'a> Known<'a> {
    fn of(side: &'a Side) -> Self {
        let keyed = side
            .devices()
            .filter_map(|spec| Some((spec.public_key?, spec)));
        let keyless = side.devices().filter(|spec| spec.public_key.is_none());
        Self {
            by_key: keyed.collect(),
            by_name: keyless.map(|spec| (&spec.name, spec)).collect(),
        }
    }

    fn take(&mut self, spec: &DeviceSpec) -> Option<&'a DeviceSpec> {
        match &spec.public_key {
            Some(key) => self.by_key.remove(key),
            None => self.by_name.remove(&spec.name),
        }
    }

    /// Those that the fleet has no longer: by the same rules as the reconciler's.
    fn gone(self, base: &Side, fleet: &Fleet) -> Vec<DeviceName> {
        let before = base.fleet.as_ref();
        let is_known = |name: &DeviceName| before.is_some_and(|fleet| fleet.has_folder(name));
        if fleet.may_hide_a_device(is_known) {
            return Vec::new();
        }
        let left = self.by_key.into_values().chain(self.by_name.into_values());
        let mut gone: Vec<_> = left
            .filter(|spec| !fleet.still_has(&spec.name, spec.public_key.as_ref()))
            .map(|spec| spec.name.clone())
            .collect();
        gone.sort();
        gone
    }
}
