//! Decides what one device is to run: pure.
//!
//! ```text
//! file ─────┐
//! closure ──┼─▶ decide ─▶ a set and its objects, gone, or why it is not known
//! builds ───┘
//! ```

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use longshore_fleet::{Closure, DeviceSpec, Fleet, FleetSettings, InputKey, labels_with_facts};
use longshore_protocol::{DeviceName, Digest, ManifestSet, Object};

use crate::{
    builds::{
        Standing,
        outcome::{has_references, of_device, set_of},
    },
    store::devices::Member,
};

/// The reason of a device whose build is under way.
const BUILDING: &str = "Building";

/// What becomes of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is to run the set with this digest.
    Set(Digest),
    Gone,
    Trouble(Trouble),
}

/// What a device is to run.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub set: Arc<ManifestSet>,
    /// The objects that the device's variables made, which may not be in the store yet.
    pub objects: Vec<Object>,
}

/// Why a device's wanted state is not known, with the reason of its `Rendered` condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub reason: &'static str,
    pub message: String,
    pub is_problem: bool,
    /// Whether the same file and the same input key always give it.
    pub lasts: bool,
}

/// A device that is to be decided on.
#[derive(Debug)]
pub(super) struct Open {
    pub member: Arc<Member>,
    pub spec: Option<Arc<DeviceSpec>>,
    /// Its overlay's closure, or why there is none.
    pub closure: Option<Result<Arc<Closure>, String>>,
}

impl Open {
    /// Its input key, where it has a closure.
    pub(super) fn key(&self) -> Option<InputKey> {
        Some(self.closure.as_ref()?.as_ref().ok()?.key)
    }
}

/// A build, as far as devices need it.
#[derive(Debug)]
pub(super) enum Built {
    /// No object has references.
    Plain(Arc<ManifestSet>),
    /// Some have.
    Template(Vec<Object>),
    Failed(String),
}

/// How the builds stand that the open devices need.
#[derive(Debug, Default)]
pub(super) struct Builds {
    pub built: HashMap<InputKey, Arc<Built>>,
    pub standings: HashMap<InputKey, Standing>,
}

/// What there is to say of devices that no readable file is about.
#[derive(Debug, Default)]
pub(super) struct Unsaid {
    /// Whether one of them may be in a folder that cannot be read.
    may_be_elsewhere: bool,
    /// The problems of each device's folder.
    problems: HashMap<DeviceName, Vec<String>>,
}

impl Unsaid {
    /// `names` has those of the fleet's devices; it is asked where it matters.
    pub(super) fn of<'a>(fleet: &Fleet, names: impl FnOnce() -> HashSet<&'a DeviceName>) -> Self {
        let mut problems: HashMap<_, Vec<_>> = HashMap::new();
        for problem in &fleet.problems {
            if let Some(device) = &problem.device {
                let problem = problem.to_string();
                problems.entry(device.clone()).or_default().push(problem);
            }
        }
        let may_be_elsewhere = !fleet.unreadable.is_empty() && {
            let names = names();
            fleet.may_hide_a_device(|folder| names.contains(folder))
        };
        Self {
            may_be_elsewhere,
            problems,
        }
    }
}

/// Decides on one device.
pub(super) fn decide(
    open: &Open,
    fleet: &Fleet,
    unsaid: &Unsaid,
    builds: &Builds,
) -> (Verdict, Option<Target>) {
    let member = &open.member;
    match &open.spec {
        Some(spec) => match wanted(open, spec, builds, &fleet.settings) {
            Ok(target) => (Verdict::Set(target.set.digest()), Some(target)),
            Err(trouble) => (Verdict::Trouble(trouble), None),
        },
        // A file with problems says nothing; only a folder that is not there, or that names another key, takes
        // the device away.
        None if fleet.still_has(&member.name, Some(&member.public_key)) => {
            let message = match unsaid.problems.get(&member.name) {
                Some(problems) => problems.join("; "),
                None => "the file that names its key has problems; `longshore fleets show` lists \
                         them"
                    .to_owned(),
            };
            (Verdict::Trouble(Trouble::invalid(message)), None)
        }
        None if unsaid.may_be_elsewhere => {
            let message = "no readable device.yaml names its key, but one cannot be read; \
                           it is not decommissioned before that is mended";
            let trouble = Trouble::invalid(message.to_owned());
            (Verdict::Trouble(trouble), None)
        }
        None => (Verdict::Gone, None),
    }
}

/// The labels of a device: those of its file, and those that its facts make.
pub(super) fn labels(
    member: &Member,
    spec: &DeviceSpec,
    settings: &FleetSettings,
) -> BTreeMap<String, String> {
    labels_with_facts(&spec.labels, &member.facts, &settings.labels_from_facts)
}

/// The set that one device is to run.
fn wanted(
    open: &Open,
    spec: &Arc<DeviceSpec>,
    builds: &Builds,
    settings: &FleetSettings,
) -> Result<Target, Trouble> {
    let member = &open.member;
    if let Some(id) = &spec.id
        && *id != member.id
    {
        let message = format!(
            "{}: `spec.id` is {id}, but the device with this key is {}",
            spec.file, member.id
        );
        return Err(Trouble {
            is_problem: true,
            ..Trouble::invalid(message)
        });
    }
    let key = match &open.closure {
        Some(Ok(closure)) => closure.key,
        Some(Err(message)) => return Err(Trouble::of_overlay("Refused", message.clone(), false)),
        None => return Err(Trouble::building()),
    };
    let failed = |message: &str, lasts| {
        Trouble::of_overlay("BuildFailed", format!("{}: {message}", spec.overlay), lasts)
    };
    let Some(built) = builds.built.get(&key) else {
        return Err(match builds.standings.get(&key) {
            Some(Standing::Failed { message, .. }) => failed(message, false),
            Some(Standing::UnderWay) | None => Trouble::building(),
        });
    };
    match &**built {
        Built::Plain(set) => Ok(Target {
            set: set.clone(),
            objects: Vec::new(),
        }),
        Built::Failed(message) => Err(failed(message, true)),
        Built::Template(objects) => {
            let mut variables = (**spec).clone();
            // The file may leave the id out; the device has one all the same.
            variables.id = Some(member.id.clone());
            variables.labels = labels(member, spec, settings);
            let (objects, set) = of_device(&variables, objects).map_err(|message| {
                Trouble::of_overlay("Variables", format!("{}: {message}", spec.file), true)
            })?;
            let set = Arc::new(set);
            Ok(Target { set, objects })
        }
    }
}

impl Trouble {
    pub(super) fn is_building(&self) -> bool {
        self.reason == BUILDING
    }

    fn invalid(message: String) -> Self {
        Self {
            reason: "Invalid",
            message,
            is_problem: false,
            lasts: false,
        }
    }

    fn building() -> Self {
        Self {
            reason: BUILDING,
            message: "the overlay is being built".to_owned(),
            is_problem: false,
            lasts: false,
        }
    }

    fn of_overlay(reason: &'static str, message: String, lasts: bool) -> Self {
        Self {
            reason,
            message,
            is_problem: true,
            lasts,
        }
    }
}

impl Built {
    pub(super) fn of(objects: Vec<Object>) -> Self {
        if has_references(&objects) {
            return Self::Template(objects);
        }
        match set_of(&objects) {
            Ok(set) => Self::Plain(Arc::new(set)),
            Err(message) => Self::Failed(message),
        }
    }
}
