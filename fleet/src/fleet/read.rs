//! Reading a fleet from a tree, remembering what was read before.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
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
        ContentId, EntryKind, InvalidPath, RepoPath, ResolveError, Tree, TreeEntry, TreeError,
        resolve,
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
#[derive(Debug, Default)]
pub struct Reader {
    /// By the content of `device.yaml`.
    files: HashMap<ContentId, Parsed>,
    /// By the content of a device's folder.
    folders: HashMap<ContentId, Folder>,
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
    devices: BTreeMap<DeviceName, Arc<Result<DeviceFile, YamlError>>>,
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
            devices: BTreeMap::new(),
            fleet: Fleet {
                settings,
                devices: BTreeMap::new(),
                folders: BTreeSet::new(),
                keys: BTreeSet::new(),
                unreadable: BTreeSet::new(),
                problems: Vec::new(),
            },
        };
        let mut met = Self::default();
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
            if let Err(problem) = reading.device(&name, &path, &folder)? {
                reading.fleet.problems.push(problem.for_device(&name));
            }
        }
        *self = met;
        reading.refuse_shared("id", |device| device.id.clone());
        reading.refuse_shared("publicKey", |device| device.public_key);
        reading.fleet.problems.sort();
        Ok(reading.fleet)
    }

    fn folder(
        &self,
        tree: &dyn Tree,
        path: &RepoPath,
        entry: TreeEntry,
        met: &mut Self,
    ) -> Result<Folder, TreeError> {
        let folder = match self
            .folders
            .get(&entry.id)
            .or_else(|| met.folders.get(&entry.id))
        {
            Some(folder) => folder.clone(),
            None => self.read_folder(tree, path)?,
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
    /// Adds the device of `folder`, or says what holds it back.
    fn device(
        &mut self,
        name: &DeviceName,
        path: &RepoPath,
        folder: &Folder,
    ) -> Result<Result<(), Problem>, TreeError> {
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
        self.devices.insert(name.clone(), parsed.clone());
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
        self.fleet.devices.insert(name.clone(), spec);
        Ok(Ok(()))
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
            let refused = not_an_overlay(self.tree, &path)?;
            self.overlays.insert(path.clone(), refused.clone());
            refused
        };
        Ok(refused.map_or(Ok(path), Err))
    }

    /// Holds back all devices that share what must be each device's own.
    fn refuse_shared<T: Ord>(
        &mut self,
        field: &str,
        value: impl Fn(&DeviceFile) -> Option<(T, u32)>,
    ) {
        let mut owners: BTreeMap<T, Vec<(&DeviceName, u32)>> = BTreeMap::new();
        for (name, parsed) in &self.devices {
            if let Ok(device) = parsed.as_ref()
                && let Some((value, line)) = value(device)
            {
                owners.entry(value).or_default().push((name, line));
            }
        }
        for sharers in owners.into_values().filter(|sharers| sharers.len() > 1) {
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
fn not_an_overlay(tree: &dyn Tree, path: &RepoPath) -> Result<Option<String>, TreeError> {
    let resolved = match resolve(tree, path) {
        Ok(resolved) => resolved,
        Err(ResolveError::Tree(error)) => return Err(error),
        Err(error) => return Ok(Some(error.to_string())),
    };
    if resolved.entry.kind != EntryKind::Directory {
        return Ok(Some(format!("`{path}` is a file, not a directory")));
    }
    for name in KUSTOMIZATION_NAMES {
        if tree.entry(&resolved.path.join(name))?.is_some() {
            return Ok(None);
        }
    }
    Ok(Some(format!("`{path}` has no kustomization.yaml")))
}
