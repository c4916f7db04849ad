//! What one device's folder says, whatever other folders say.

use std::{collections::HashMap, sync::Arc};

use longshore_protocol::{DeviceId, DeviceName, Digest};

use super::{
    DeviceSpec,
    device::{self, DeviceFile},
};
use crate::{
    closure::KUSTOMIZATION_NAMES,
    problem::Problem,
    tree::{
        Changes, EntryKind, InvalidPath, RepoPath, ResolveError, Tree, TreeError, resolve_noting,
    },
};

/// A device's folder.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    /// The device, or what holds it back.
    pub(super) device: Result<Arc<DeviceSpec>, Problem>,
    /// The id that its file names, and the line.
    pub(super) id: Option<(DeviceId, u32)>,
    /// The key that its file names, and the line.
    pub(super) key: Option<(Digest, u32)>,
    /// The line with its overlay, where that is named.
    overlay_line: Option<u32>,
    /// Whether there is a file that cannot be read, so that nobody knows which key it names.
    pub(super) is_unreadable: bool,
}

/// The directories that device files name as overlays.
#[derive(Debug, Default)]
pub(super) struct Overlays {
    /// Why each cannot be one.
    refused: HashMap<RepoPath, Option<String>>,
    /// Where it was looked to tell.
    looked_at: Vec<RepoPath>,
}

impl Overlays {
    /// Whether some may be judged otherwise after these changes.
    pub(super) fn are_concerned(&self, changes: &Changes) -> bool {
        self.looked_at.iter().any(|path| changes.concern(path))
    }

    /// How many were judged.
    pub(super) fn len(&self) -> usize {
        self.refused.len()
    }

    /// Why the directory at `path` cannot be built, as far as can be told without reading it.
    fn refusal(&mut self, tree: &dyn Tree, path: &RepoPath) -> Result<Option<String>, TreeError> {
        if let Some(refused) = self.refused.get(path) {
            return Ok(refused.clone());
        }
        let refused = not_an_overlay(tree, path, &mut self.looked_at)?;
        self.refused.insert(path.clone(), refused.clone());
        Ok(refused)
    }
}

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

impl Folder {
    fn held_back(problem: Problem) -> Self {
        Self {
            device: Err(problem),
            id: None,
            key: None,
            overlay_line: None,
            is_unreadable: false,
        }
    }

    fn unreadable(problem: Problem) -> Self {
        Self {
            is_unreadable: true,
            ..Self::held_back(problem)
        }
    }

    /// Reads the folder of the device `name`.
    pub(super) fn read(
        tree: &dyn Tree,
        name: &DeviceName,
        path: &RepoPath,
        overlays: &mut Overlays,
    ) -> Result<Self, TreeError> {
        let listing = tree.list(path)?;
        if listing
            .iter()
            .any(|listed| std::str::from_utf8(&listed.name).is_err())
        {
            let message = "a file's name in this folder is not UTF-8";
            return Ok(Self::held_back(Problem::at(path, message)));
        }
        let Some(entry) = listing.get(b"device.yaml") else {
            let message = "there is no `device.yaml` in this folder";
            return Ok(Self::held_back(Problem::at(path, message)));
        };
        let file = path.join("device.yaml");
        let unreadable = |message| Ok(Self::unreadable(Problem::at(&file, message)));
        if !matches!(entry.kind, EntryKind::File { .. }) {
            return unreadable("`device.yaml` must be a plain file");
        }
        if tree.size(entry.id)? > device::MAX_SIZE {
            return unreadable("the file is larger than 64 KiB");
        }
        let device = match device::parse(&tree.blob(entry.id)?) {
            Ok(device) => device,
            Err(error) => return Ok(Self::unreadable(Problem::yaml(&file, &error))),
        };
        let is_own = KUSTOMIZATION_NAMES
            .iter()
            .any(|name| listing.get(name.as_bytes()).is_some());
        let overlay = match overlay(tree, path, &file, &device, is_own, overlays)? {
            _ if device.name.0 != *name => {
                let (given, line) = &device.name;
                let message = format!(
                    "`metadata.name` is `{given}`, but the folder is `{name}`; they must be equal"
                );
                Err(Problem::at_line(&file, *line, message))
            }
            overlay => overlay,
        };
        Ok(Self {
            id: device.id.clone(),
            key: device.public_key,
            overlay_line: device.overlay.as_ref().map(|(_overlay, line)| *line),
            is_unreadable: false,
            device: overlay.map(|overlay| {
                Arc::new(DeviceSpec {
                    name: name.clone(),
                    file,
                    labels: device.labels,
                    id: device.id.map(|(id, _line)| id),
                    public_key: device.public_key.map(|(key, _line)| key),
                    overlay,
                    shared: !is_own,
                    variables: device.variables,
                })
            }),
        })
    }

    /// The same folder in a tree with other surroundings; `None` where it has to be read to tell.
    pub(super) fn again(
        &self,
        tree: &dyn Tree,
        overlays: &mut Overlays,
    ) -> Result<Option<Self>, TreeError> {
        let Ok(spec) = &self.device else {
            return Ok(None);
        };
        let refusal = if spec.shared {
            overlays.refusal(tree, &spec.overlay)?
        } else {
            None
        };
        Ok(Some(match refusal {
            None => self.clone(),
            Some(refusal) => Self {
                device: Err(refused(
                    &spec.file,
                    self.overlay_line.unwrap_or(1),
                    &refusal,
                )),
                ..self.clone()
            },
        }))
    }
}

/// The overlay of a device: its own folder, or the one that its file names.
fn overlay(
    tree: &dyn Tree,
    path: &RepoPath,
    file: &RepoPath,
    device: &DeviceFile,
    is_own: bool,
    overlays: &mut Overlays,
) -> Result<Result<RepoPath, Problem>, TreeError> {
    let (named, line) = match (&device.overlay, is_own) {
        (None, true) => return Ok(Ok(path.clone())),
        (None, false) => {
            let message = "the device has no manifests: add a kustomization.yaml beside this file, or \
                           name a shared one in `spec.overlay`";
            return Ok(Err(Problem::at(file, message)));
        }
        (Some((_named, line)), true) => {
            let message = "the device has both a kustomization file and `spec.overlay`; remove one";
            return Ok(Err(Problem::at_line(file, *line, message)));
        }
        (Some((named, line)), false) => (named, *line),
    };
    let overlay = match path.resolve(named) {
        Ok(overlay) => overlay,
        Err(error @ (InvalidPath::Absolute(_) | InvalidPath::Escapes(_) | InvalidPath::Nul(_))) => {
            return Ok(Err(refused(file, line, &error.to_string())));
        }
    };
    Ok(match overlays.refusal(tree, &overlay)? {
        None => Ok(overlay),
        Some(refusal) => Err(refused(file, line, &refusal)),
    })
}

fn refused(file: &RepoPath, line: u32, message: &str) -> Problem {
    Problem::at_line(file, line, format!("`spec.overlay`: {message}"))
}
