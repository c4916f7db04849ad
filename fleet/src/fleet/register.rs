//! All folders of a fleet, and what becomes of them together: no two devices have one id or one key.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
};

use longshore_protocol::{DeviceId, DeviceName, Digest};

use super::{Fleet, FleetSettings, folder::Folder};
use crate::{problem::Problem, tree::ContentId};

/// The folders of a fleet. What follows from them is kept up with each that changes.
#[derive(Debug)]
pub(super) struct Register {
    folders: HashMap<DeviceName, (ContentId, Folder)>,
    ids: Claims<DeviceId>,
    keys: Claims<Digest>,
    /// Those of which something may have changed since the last time that it was settled.
    unsettled: BTreeSet<DeviceName>,
    /// What is wrong, but with no device.
    general: Vec<Problem>,
    /// What holds back devices.
    problems: BTreeMap<DeviceName, Problem>,
    fleet: Fleet,
}

/// Whose files name what, in the order of the names.
#[derive(Debug)]
struct Claims<T>(HashMap<T, Vec<DeviceName>>);

impl<T: Eq + Hash + Clone> Claims<T> {
    fn of(&self, value: &T) -> &[DeviceName] {
        self.0.get(value).map_or(&[], Vec::as_slice)
    }

    fn add(&mut self, value: &T, name: &DeviceName) {
        match self.0.get_mut(value) {
            Some(names) => {
                if let Err(place) = names.binary_search(name) {
                    names.insert(place, name.clone());
                }
            }
            None => {
                self.0.insert(value.clone(), vec![name.clone()]);
            }
        }
    }

    fn remove(&mut self, value: &T, name: &DeviceName) {
        if let Some(names) = self.0.get_mut(value) {
            names.retain(|other| other != name);
            if names.is_empty() {
                self.0.remove(value);
            }
        }
    }
}

impl Register {
    pub(super) fn new(settings: FleetSettings) -> Self {
        Self {
            folders: HashMap::new(),
            ids: Claims(HashMap::new()),
            keys: Claims(HashMap::new()),
            unsettled: BTreeSet::new(),
            general: Vec::new(),
            problems: BTreeMap::new(),
            fleet: Fleet::of(settings),
        }
    }

    /// Adds what is wrong, but with no device.
    pub(super) fn complain(&mut self, problem: Problem) {
        self.general.push(problem);
    }

    /// Whether something is wrong, but with no device.
    pub(super) fn has_complaints(&self) -> bool {
        !self.general.is_empty()
    }

    /// How many folders there are.
    pub(super) fn len(&self) -> usize {
        self.folders.len()
    }

    /// The folder of this name, if it had this content.
    pub(super) fn folder(&self, name: &DeviceName, content: ContentId) -> Option<&Folder> {
        let (known, folder) = self.folders.get(name)?;
        (*known == content).then_some(folder)
    }

    /// Puts a folder in its place, or takes it away.
    pub(super) fn set(&mut self, name: &DeviceName, folder: Option<(ContentId, Folder)>) {
        if let Some((_content, old)) = self.folders.remove(name) {
            self.touch(&old);
            if let Some((id, _line)) = &old.id {
                self.ids.remove(id, name);
            }
            if let Some((key, _line)) = &old.key {
                self.keys.remove(key, name);
                if self.keys.of(key).is_empty() {
                    self.fleet.keys.remove(key);
                }
            }
        }
        if let Some((content, new)) = folder {
            if let Some((id, _line)) = &new.id {
                self.ids.add(id, name);
            }
            if let Some((key, _line)) = &new.key {
                self.keys.add(key, name);
            }
            self.touch(&new);
            self.folders.insert(name.clone(), (content, new));
        }
        self.unsettled.insert(name.clone());
    }

    /// Notes those that share something with this folder.
    fn touch(&mut self, folder: &Folder) {
        let ids = folder.id.iter().flat_map(|(id, _line)| self.ids.of(id));
        let keys = folder.key.iter().flat_map(|(key, _line)| self.keys.of(key));
        self.unsettled.extend(ids.chain(keys).cloned());
    }

    /// The fleet as all folders together make it, and the names of those of which something may have changed.
    pub(super) fn settle(&mut self) -> (Fleet, Vec<DeviceName>) {
        let names: Vec<_> = std::mem::take(&mut self.unsettled).into_iter().collect();
        for name in &names {
            self.place(name);
        }
        let problems = self.general.iter().chain(self.problems.values());
        self.fleet.problems = problems.cloned().collect();
        self.fleet.problems.sort();
        (self.fleet.clone(), names)
    }

    fn place(&mut self, name: &DeviceName) {
        let fleet = &mut self.fleet;
        let Some((_content, folder)) = self.folders.get(name) else {
            fleet.devices.remove(name);
            fleet.held_back.remove(name);
            fleet.unreadable.remove(name);
            self.problems.remove(name);
            return;
        };
        if folder.is_unreadable {
            fleet.unreadable.insert(name.clone());
        } else {
            fleet.unreadable.remove(name);
        }
        let shared = |field, line, claims: &[DeviceName]| shared(field, name, line, claims);
        let problem = match &folder.device {
            Err(problem) => Some(problem.clone()),
            Ok(spec) => {
                let id = folder.id.as_ref();
                let id = id.and_then(|(id, line)| shared("id", *line, self.ids.of(id)));
                let key = || {
                    let (key, line) = folder.key.as_ref()?;
                    shared("publicKey", *line, self.keys.of(key))
                };
                let problem = id.or_else(key);
                problem.map(|(line, message)| Problem::at_line(&spec.file, line, message))
            }
        };
        let spec = folder.device.as_ref().ok().filter(|_| problem.is_none());
        if let Some((key, _line)) = folder.key {
            // Whoever else has it is held back.
            if spec.is_some() || self.keys.of(&key).first() == Some(name) {
                fleet.keys.insert(key, spec.cloned());
            }
        }
        if let Some(spec) = spec {
            fleet.devices.insert(name.clone(), spec.clone());
            fleet.held_back.remove(name);
            self.problems.remove(name);
        } else {
            fleet.devices.remove(name);
            fleet.held_back.insert(name.clone());
            let problem = problem.map(|problem| problem.for_device(name));
            self.problems
                .extend(problem.map(|problem| (name.clone(), problem)));
        }
    }
}

/// What is wrong where several devices have what must be each device's own.
fn shared(
    field: &str,
    name: &DeviceName,
    line: u32,
    claims: &[DeviceName],
) -> Option<(u32, String)> {
    if claims.len() < 2 {
        return None;
    }
    let others = claims.iter().filter(|other| *other != name);
    let others: Vec<&str> = others.map(DeviceName::as_str).take(5).collect();
    let message = format!(
        "`spec.{field}` is also that of {}; each device has its own",
        others.join(", ")
    );
    Some((line, message))
}
