//! Reading a fleet from a tree, and going on from there at the cost of what a commit changed.

use std::collections::BTreeSet;

use longshore_protocol::DeviceName;

use super::{
    Fleet, FleetSettings,
    folder::{Folder, Overlays},
    register::Register,
    settings,
};
use crate::{
    problem::Problem,
    tree::{Changes, ContentId, EntryKind, Listed, RepoPath, Tree, TreeError},
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
    last: Option<Reading>,
    reads: usize,
}

/// What was read last.
#[derive(Debug)]
struct Reading {
    tree: Option<ContentId>,
    root: RepoPath,
    overlays: Overlays,
    register: Register,
}

impl Reader {
    /// A reader that has read nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The fleet at `root` of `tree`: all of it, but for folders that are as the last reading met them.
    ///
    /// # Errors
    /// Where `fleet.yaml` is missing or wrong, or where the tree cannot be read. What is wrong with a device
    /// is in [`Fleet::problems`].
    pub fn read(&mut self, tree: &dyn Tree, root: &RepoPath) -> Result<Fleet, FleetError> {
        let last = self.last.as_ref().filter(|last| last.root == *root);
        let mut register = Register::new(read_settings(tree, root)?);
        let mut overlays = Overlays::default();
        let devices = root.join("devices");
        for listed in &*tree.list(&devices)? {
            let (name, path) = match device_folder(&devices, listed) {
                Ok(Some(folder)) => folder,
                Ok(None) => continue,
                Err(problem) => {
                    register.complain(problem);
                    continue;
                }
            };
            let content = listed.entry.id;
            let known = last.and_then(|last| last.register.folder(&name, content));
            let known = known.map(|folder| folder.again(tree, &mut overlays));
            let folder = if let Some(folder) = known.transpose()?.flatten() {
                folder
            } else {
                self.reads += 1;
                Folder::read(tree, &name, &path, &mut overlays)?
            };
            register.set(&name, Some((content, folder)));
        }
        let (fleet, _all) = register.settle();
        self.last = Some(Reading {
            tree: tree.entry(&RepoPath::root())?.map(|entry| entry.id),
            root: root.clone(),
            overlays,
            register,
        });
        Ok(fleet)
    }

    /// The fleet of the last reading after these changes, which lead to `tree`, and the names of all devices that may
    /// be others now. `None` where all of it has to be read to tell.
    ///
    /// # Errors
    /// Where the tree cannot be read. The next reading is then one of all.
    pub fn advance(
        &mut self,
        tree: &dyn Tree,
        changes: &Changes,
    ) -> Result<Option<(Fleet, Vec<DeviceName>)>, TreeError> {
        let advanced = self.follow(tree, changes);
        if advanced.is_err() {
            // Of the new tree something may be remembered already.
            self.last = None;
        }
        advanced
    }

    fn follow(
        &mut self,
        tree: &dyn Tree,
        changes: &Changes,
    ) -> Result<Option<(Fleet, Vec<DeviceName>)>, TreeError> {
        let Some(last) = &mut self.last else {
            return Ok(None);
        };
        let devices = last.root.join("devices");
        let is_known = last.tree == Some(changes.before());
        let is_beyond_devices = changes.concern(&last.root.join("fleet.yaml"))
            || changes.concern(&devices)
            || last.overlays.are_concerned(changes);
        // What devices named in the past is forgotten some time.
        let is_crowded = last.overlays.len() > 2 * last.register.len() + 64;
        if !is_known || is_beyond_devices || is_crowded || last.register.has_complaints() {
            return Ok(None);
        }
        let below = changes.below(&devices);
        let names = below.map(|path| path.split('/').next().unwrap_or(path));
        let names: Result<BTreeSet<DeviceName>, _> = names.map(str::parse).collect();
        let Ok(names) = names else {
            return Ok(None);
        };
        let mut folders = Vec::new();
        for name in names {
            let path = devices.join(name.as_str());
            let folder = match tree.entry(&path)? {
                Some(entry) if entry.kind == EntryKind::Directory => {
                    self.reads += 1;
                    let folder = Folder::read(tree, &name, &path, &mut last.overlays)?;
                    Some((entry.id, folder))
                }
                Some(entry) if !matches!(entry.kind, EntryKind::File { .. }) => return Ok(None),
                _ => None,
            };
            folders.push((name, folder));
        }
        for (name, folder) in folders {
            last.register.set(&name, folder);
        }
        last.tree = Some(changes.after());
        Ok(Some(last.register.settle()))
    }

    /// How many folders of devices were read so far.
    pub fn reads(&self) -> usize {
        self.reads
    }
}

/// The device whose folder stands there. A file is none, and something else is a problem.
fn device_folder(
    devices: &RepoPath,
    listed: &Listed,
) -> Result<Option<(DeviceName, RepoPath)>, Problem> {
    let Ok(name) = std::str::from_utf8(&listed.name) else {
        return Err(Problem::at(
            devices,
            "a folder's name is not UTF-8; device names are lower-case letters, digits and `-`",
        ));
    };
    let path = devices.join(name);
    match listed.entry.kind {
        EntryKind::Directory => match name.parse() {
            Ok(name) => Ok(Some((name, path))),
            Err(error) => Err(Problem::at(&path, format!("{error}"))),
        },
        EntryKind::File { .. } => Ok(None),
        EntryKind::Symlink | EntryKind::Submodule => Err(Problem::at(
            &path,
            "a device's folder must be a directory, not a symlink or a submodule",
        )),
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
