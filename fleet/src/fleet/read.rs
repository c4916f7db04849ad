//! Reading a fleet from a tree, remembering what was read before.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use longshore_protocol::DeviceName;

use super::{
    DeviceSpec, Fleet, FleetSettings,
    device::{self, DeviceFile},
    settings,
};
use crate::{
    closure::KUSTOMIZATION_NAMES,
    problem::Problem,
    tree::{
        Changes, ContentId, EntryKind, InvalidPath, RepoPath, ResolveError, Tree, TreeEntry,
        TreeError, resolve_noting,
    },
    yaml::{self, Limits, YamlError},
};

/// The largest `fleet.yaml`.
const MAX_FLEET_SIZE: u64 = 64 * 1024;

/// Why there is no fleet to speak of.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FleetError {
    /// There is no `fleet.yaml` where the fleet is said to be.
    #[error("there is no `{0}`; a fleet repo needs one")]
    Missing(RepoPath),
    /// `fleet.yaml` is wrong.
    #[error("{0}")]
    Invalid(Problem),
    /// The tree could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Reads fleets, one commit after the other.
#[derive(Debug)]
pub struct Reader {
    /// By the content of `device.yaml`.
    files: HashMap<ContentId, Parsed>,
    /// By the content of a device's folder.
    folders: HashMap<ContentId, Folder>,
    /// The devices of the last reading, with what their folders held. Good for the same root.
    specs: HashMap<DeviceName, (ContentId, Arc<DeviceSpec>)>,
    root: RepoPath,
    /// Where else than in `fleet.yaml` and `devices` the last reading looked.
    looked_at: Vec<RepoPath>,
    reads: usize,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            files: HashMap::new(),
            folders: HashMap::new(),
            specs: HashMap::new(),
            root: RepoPath::root(),
            looked_at: Vec::new(),
            reads: 0,
        }
    }
}

type Parsed = Arc<Result<DeviceFile, YamlError>>;

/// What a device's folder says, wherever it stands.
#[derive(Clone, Debug)]
struct Folder {
    /// Its `device.yaml`, or what is wrong with the folder, with the name of the file that it is wrong with.
    device: Result<(ContentId, Parsed), (Option<&'static str>, String)>,
    /// Whether it has a kustomization file.
    kustomization: bool,
}

/// What is asked of the tree once for a whole reading.
struct Reading<'a> {
    tree: &'a dyn Tree,
    /// Why a directory cannot be an overlay, by its path.
    overlays: HashMap<RepoPath, Option<String>>,
    /// Where it looked for them.
    looked_at: Vec<RepoPath>,
    devices: Vec<(DeviceName, Parsed)>,
    fleet: Fleet,
}

impl Reader {
    /// A reader that has read nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The fleet at `root` of `tree`.
    ///
    /// What is remembered is what this reading met; what an earlier one met and this one did not is forgotten.
    ///
    /// # Errors
    /// Where `fleet.yaml` is missing or wrong, or where the tree cannot be read. What is wrong with a device
    /// is in [`Fleet::problems`].
    pub fn read(&mut self, tree: &dyn Tree, root: &RepoPath) -> Result<Fleet, FleetError> {
        let settings = read_settings(tree, root)?;
        let mut reading = Reading {
            tree,
            overlays: HashMap::new(),
            looked_at: Vec::new(),
            devices: Vec::new(),
            fleet: Fleet {
                settings,
                devices: BTreeMap::new(),
                folders: BTreeSet::new(),
                keys: BTreeSet::new(),
                unreadable: BTreeSet::new(),
                problems: Vec::new(),
            },
        };
        let mut met = Self {
            root: root.clone(),
            reads: self.reads,
            ..Self::default()
        };
        if self.root != *root {
            self.specs.clear();
        }
        let devices = root.join("devices");
        for listed in tree.list(&devices)? {
            let Ok(text) = String::from_utf8(listed.name) else {
                reading.fleet.problems.push(Problem::at(
                    &devices,
                    "a folder's name is not UTF-8; device names are lower-case letters, digits and `-`",
                ));
                continue;
            };
            let path = devices.join(&text);
            match listed.entry.kind {
                EntryKind::Directory => {}
                EntryKind::File { .. } => continue,
                EntryKind::Symlink | EntryKind::Submodule => {
                    reading.fleet.problems.push(Problem::at(
                        &path,
                        "a device's folder must be a directory, not a symlink or a submodule",
                    ));
                    continue;
                }
            }
            let name: DeviceName = match text.parse() {
                Ok(name) => name,
                Err(error) => {
                    reading
                        .fleet
                        .problems
                        .push(Problem::at(&path, format!("{error}")));
                    continue;
                }
            };
            let folder = self.folder(tree, &path, listed.entry, &mut met)?;
            reading.fleet.folders.insert(name.clone());
            let known = self.specs.get(&name);
            let known = known.filter(|(id, _spec)| *id == listed.entry.id);
            let known = known.map(|(_id, spec)| spec);
            match reading.device(&name, &path, &folder, known)? {
                Ok(spec) => {
                    met.specs
                        .insert(name.clone(), (listed.entry.id, spec.clone()));
                    reading.fleet.devices.insert(name, spec);
                }
                Err(problem) => reading.fleet.problems.push(problem.for_device(&name)),
            }
        }
        met.looked_at = std::mem::take(&mut reading.looked_at);
        *self = met;
        reading.devices.sort_by(|one, other| one.0.cmp(&other.0));
        reading.refuse_shared("id", |device| {
            let (id, line) = device.id.as_ref()?;
            Some((id, *line))
        });
        reading.refuse_shared("publicKey", |device| {
            let (key, line) = device.public_key.as_ref()?;
            Some((key, *line))
        });
        reading.fleet.problems.sort();
        Ok(reading.fleet)
    }

    /// Whether after these changes a reading may say something else than the last one, which was of the tree before
    /// them.
    pub fn is_concerned(&self, changes: &Changes) -> bool {
        changes.concern(&self.root.join("fleet.yaml"))
            || changes.reach_into(&self.root.join("devices"))
            || self.looked_at.iter().any(|path| changes.concern(path))
    }

    /// How many folders of devices were read so far.
    pub fn reads(&self) -> usize {
        self.reads
    }

    fn folder(
        &self,
        tree: &dyn Tree,
        path: &RepoPath,
        entry: TreeEntry,
        met: &mut Self,
    ) -> Result<Folder, TreeError> {
        let known = self.folders.get(&entry.id);
        let folder = if let Some(folder) = known.or_else(|| met.folders.get(&entry.id)) {
            folder.clone()
        } else {
            met.reads += 1;
            self.read_folder(tree, path)?
        };
        if let Ok((id, parsed)) = &folder.device {
            met.files.insert(*id, parsed.clone());
        }
        met.folders.insert(entry.id, folder.clone());
        Ok(folder)
    }

    fn read_folder(&self, tree: &dyn Tree, path: &RepoPath) -> Result<Folder, TreeError> {
        const FILE: Option<&str> = Some("device.yaml");
        let mut folder = Folder {
            device: Err((None, "there is no `device.yaml` in this folder".to_owned())),
            kustomization: false,
        };
        for listed in tree.list(path)? {
            let Ok(name) = String::from_utf8(listed.name) else {
                folder.device = Err((None, "a file's name in this folder is not UTF-8".to_owned()));
                return Ok(folder);
            };
            if KUSTOMIZATION_NAMES.contains(&name.as_str()) {
                folder.kustomization = true;
            }
            if name != "device.yaml" {
                continue;
            }
            folder.device = match listed.entry.kind {
                EntryKind::File { .. } if tree.size(listed.entry.id)? > device::MAX_SIZE => {
                    Err((FILE, "the file is larger than 64 KiB".to_owned()))
                }
                EntryKind::File { .. } => {
                    let id = listed.entry.id;
                    let parsed = match self.files.get(&id) {
                        Some(parsed) => parsed.clone(),
                        None => Arc::new(device::parse(&tree.blob(id)?)),
                    };
                    Ok((id, parsed))
                }
                EntryKind::Symlink | EntryKind::Directory | EntryKind::Submodule => {
                    Err((FILE, "`device.yaml` must be a plain file".to_owned()))
                }
            };
        }
        Ok(folder)
    }
}

impl FleetSettings {
    /// What `fleet.yaml` says, without reading the devices.
    ///
    /// # Errors
    /// Where it is missing or wrong, or where the tree cannot be read.
    pub fn read(tree: &dyn Tree, root: &RepoPath) -> Result<Self, FleetError> {
        read_settings(tree, root)
    }
}

fn read_settings(tree: &dyn Tree, root: &RepoPath) -> Result<FleetSettings, FleetError> {
    let path = root.join("fleet.yaml");
    let invalid = |error: &YamlError| FleetError::Invalid(Problem::yaml(&path, error));
    let entry = tree
        .entry(&path)?
        .ok_or_else(|| FleetError::Missing(path.clone()))?;
    if !matches!(entry.kind, EntryKind::File { .. }) {
        return Err(FleetError::Invalid(Problem::at(
            &path,
            "`fleet.yaml` must be a plain file",
        )));
    }
    if tree.size(entry.id)? > MAX_FLEET_SIZE {
        return Err(FleetError::Invalid(Problem::at(
            &path,
            "the file is larger than 64 KiB",
        )));
    }
    let document = yaml::document(&tree.blob(entry.id)?, Limits { nodes: 10_000 })
        .map_err(|error| invalid(&error))?;
    settings::parse(&document).map_err(|error| invalid(&error))
}

impl Reading<'_> {
    /// The device of `folder`, or what holds it back; `known` is what an equal folder at this place said before.
    fn device(
        &mut self,
        name: &DeviceName,
        path: &RepoPath,
        folder: &Folder,
        known: Option<&Arc<DeviceSpec>>,
    ) -> Result<Result<Arc<DeviceSpec>, Problem>, TreeError> {
        let (_id, parsed) = match &folder.device {
            Ok(device) => device,
            Err((file, message)) => {
                if file.is_some() {
                    self.fleet.unreadable.insert(name.clone());
                }
                let at = file.map_or_else(|| path.clone(), |file| path.join(file));
                return Ok(Err(Problem::at(&at, message.clone())));
            }
        };
        if let (Some(spec), Ok(_)) = (known, parsed.as_ref())
            && !spec.shared
        {
            self.fleet.keys.extend(spec.public_key);
            self.devices.push((name.clone(), parsed.clone()));
            return Ok(Ok(spec.clone()));
        }
        let file = path.join("device.yaml");
        let device = match parsed.as_ref() {
            Ok(device) => device,
            Err(error) => {
                self.fleet.unreadable.insert(name.clone());
                return Ok(Err(Problem::yaml(&file, error)));
            }
        };
        self.fleet
            .keys
            .extend(device.public_key.map(|(key, _line)| key));
        // Named twice is wrong for both, even where one of them is wrong for another reason.
        self.devices.push((name.clone(), parsed.clone()));
        let (given, line) = &device.name;
        if given != name {
            let message = format!(
                "`metadata.name` is `{given}`, but the folder is `{name}`; they must be equal"
            );
            return Ok(Err(Problem::at_line(&file, *line, message)));
        }
        let (overlay, shared) = match (&device.overlay, folder.kustomization) {
            (None, true) => (path.clone(), false),
            (None, false) => {
                let message = "the device has no manifests: add a kustomization.yaml beside this file, \
                               or name a shared one in `spec.overlay`";
                return Ok(Err(Problem::at(&file, message)));
            }
            (Some((_overlay, line)), true) => {
                let message =
                    "the device has both a kustomization file and `spec.overlay`; remove one";
                return Ok(Err(Problem::at_line(&file, *line, message)));
            }
            (Some((overlay, line)), false) => match self.overlay(path, overlay)? {
                Ok(overlay) => (overlay, true),
                Err(message) => {
                    return Ok(Err(Problem::at_line(
                        &file,
                        *line,
                        format!("`spec.overlay`: {message}"),
                    )));
                }
            },
        };
        if let Some(spec) = known {
            return Ok(Ok(spec.clone()));
        }
        let spec = DeviceSpec {
            name: name.clone(),
            file,
            labels: device.labels.clone(),
            id: device.id.as_ref().map(|(id, _line)| id.clone()),
            public_key: device.public_key.map(|(key, _line)| key),
            overlay,
            shared,
            variables: device.variables.clone(),
        };
        Ok(Ok(Arc::new(spec)))
    }

    fn overlay(
        &mut self,
        from: &RepoPath,
        text: &str,
    ) -> Result<Result<RepoPath, String>, TreeError> {
        let path = match from.resolve(text) {
            Ok(path) => path,
            Err(
                error @ (InvalidPath::Absolute(_) | InvalidPath::Escapes(_) | InvalidPath::Nul(_)),
            ) => {
                return Ok(Err(error.to_string()));
            }
        };
        let refused = if let Some(refused) = self.overlays.get(&path) {
            refused.clone()
        } else {
            let refused = not_an_overlay(self.tree, &path, &mut self.looked_at)?;
            self.overlays.insert(path.clone(), refused.clone());
            refused
        };
        Ok(refused.map_or(Ok(path), Err))
    }

    /// Holds back all devices that share what must be each device's own.
    fn refuse_shared<T: Ord + Hash>(
        &mut self,
        field: &str,
        value: impl Fn(&DeviceFile) -> Option<(&T, u32)>,
    ) {
        let values = || {
            self.devices.iter().filter_map(|(name, parsed)| {
                let (value, line) = value(parsed.as_ref().as_ref().ok()?)?;
                Some((value, (name, line)))
            })
        };
        let mut met = HashSet::with_capacity(self.devices.len());
        let shared: BTreeSet<_> = values()
            .filter(|(value, _at)| !met.insert(*value))
            .map(|(value, _at)| value)
            .collect();
        if shared.is_empty() {
            return;
        }
        let mut owners: BTreeMap<&T, Vec<(&DeviceName, u32)>> = BTreeMap::new();
        for (value, at) in values().filter(|(value, _at)| shared.contains(value)) {
            owners.entry(value).or_default().push(at);
        }
        for sharers in owners.into_values() {
            for (name, line) in &sharers {
                let Some(spec) = self.fleet.devices.remove(*name) else {
                    continue;
                };
                let others: Vec<&str> = sharers
                    .iter()
                    .filter(|(other, _line)| other != name)
                    .map(|(other, _line)| other.as_str())
                    .take(5)
                    .collect();
                let message = format!(
                    "`spec.{field}` is also that of {}; each device has its own",
                    others.join(", ")
                );
                self.fleet
                    .problems
                    .push(Problem::at_line(&spec.file, *line, message).for_device(name));
            }
        }
    }
}

/// Why the directory at `path` cannot be built, as far as can be told without reading it.
fn not_an_overlay(
    tree: &dyn Tree,
    path: &RepoPath,
    looked_at: &mut Vec<RepoPath>,
) -> Result<Option<String>, TreeError> {
    let resolved = match resolve_noting(tree, path, looked_at) {
        Ok(resolved) => resolved,
        Err(ResolveError::Tree(error)) => return Err(error),
        Err(error) => return Ok(Some(error.to_string())),
    };
    if resolved.entry.kind != EntryKind::Directory {
        return Ok(Some(format!("`{path}` is a file, not a directory")));
    }
    for name in KUSTOMIZATION_NAMES {
        let file = resolved.path.join(name);
        let is_there = tree.entry(&file)?.is_some();
        looked_at.push(file);
        if is_there {
            return Ok(None);
        }
    }
    Ok(Some(format!("`{path}` has no kustomization.yaml")))
}
