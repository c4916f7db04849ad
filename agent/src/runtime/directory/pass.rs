//! One pass over the directory. See the parent module for the order and its guarantees.

use std::collections::BTreeSet;

use longshore_protocol::{DeviceId, ObjectKey, session::Holding};

use super::{
    content,
    inventory::{self, Inventory, MOST_FILE_BYTES},
    names,
    removals::{self, Applied},
};
use crate::{
    files::{Folder, Found, TEMPORARY},
    runtime::{ApplyError, Changes},
};

pub(super) const KUSTOMIZATION: &str = "kustomization.yaml";
/// Kustomize takes any of these and refuses two.
const OTHER_KUSTOMIZATIONS: [&str; 2] = ["kustomization.yml", "Kustomization"];
const ADVICE: &str = "move it away, or give the agent a directory of its own";

pub(super) struct Pass<'a> {
    folder: &'a Folder,
    device: &'a DeviceId,
    /// Where what left the set is named.
    removals: Option<&'a Folder>,
    changes: Changes,
}

impl<'a> Pass<'a> {
    pub(super) fn new(folder: &'a Folder, device: &'a DeviceId) -> Self {
        Self {
            folder,
            device,
            removals: None,
            changes: Changes::default(),
        }
    }

    /// And names in this folder what leaves the set.
    pub(super) fn naming(mut self, removals: Option<&'a Folder>) -> Self {
        self.removals = removals;
        self
    }

    /// Makes the folder match the holding.
    pub(super) fn apply(self, holding: &Holding) -> Result<Changes, ApplyError> {
        let recorded = Inventory::read(self.folder)?;
        let held = holding.held();
        if let Some(before) = recorded.held
            && recorded.device.as_ref() == Some(self.device)
            && before.generation == held.generation
            && before.digest != held.digest
        {
            return Err(ApplyError::Conflict(held.generation));
        }
        self.match_to(holding, &recorded)
    }

    /// Makes the folder match, whatever it was made for before.
    fn match_to(mut self, holding: &Holding, recorded: &Inventory) -> Result<Changes, ApplyError> {
        let names = names::of(holding.set());
        let mut wanted: BTreeSet<_> = names.iter().cloned().collect();
        if wanted.len() < names.len() {
            return Err(ApplyError::Unrepresentable(
                "two objects share a file name".to_owned(),
            ));
        }
        // Kustomize refuses a kustomization without resources, so an empty set has none.
        if !names.is_empty() {
            wanted.insert(KUSTOMIZATION.to_owned());
        }
        self.check_foreign(recorded, &wanted)?;

        let mut claimed = recorded.clone();
        claimed.device = Some(self.device.clone());
        claimed.held = Some(holding.held());
        claimed.files.extend(wanted.iter().cloned());
        let objects = names.iter().zip(holding.objects());
        let objects: Vec<_> = objects
            .map(|(name, object)| Applied::of(name, object))
            .collect();
        if self.removals.is_some() {
            let before = removals::objects_of(self.folder, recorded)?;
            claimed.removed = removals::due(&self.named(recorded)?, &before, &objects);
            claimed.objects = removals::together(before, &objects);
        }
        if claimed != *recorded {
            claimed.write(self.folder)?;
        }
        self.name_removals(&claimed, holding)?;
        for (name, object) in names.iter().zip(holding.objects()) {
            self.put(name, &content::of_object(name, object))?;
        }
        if !names.is_empty() {
            self.put(
                KUSTOMIZATION,
                &content::of_kustomization(KUSTOMIZATION, &names),
            )?;
        }
        self.take_all(claimed.files.difference(&wanted))?;
        let kept = if self.removals.is_some() {
            objects
        } else {
            Vec::new()
        };
        if claimed.files != wanted || claimed.objects != kept {
            claimed.files = wanted;
            claimed.objects = kept;
            claimed.write(self.folder)?;
        }
        self.finish()
    }

    /// What is named as having left.
    fn named(&self, recorded: &Inventory) -> Result<Vec<ObjectKey>, ApplyError> {
        match self.removals {
            // The inventory was lost; the folder itself still says it.
            Some(folder) if recorded.device.is_none() => Ok(removals::named_in(folder)?),
            _ => Ok(recorded.removed.clone()),
        }
    }

    /// Names what left before its file goes, and names what came back no more before its file comes.
    fn name_removals(&mut self, claimed: &Inventory, holding: &Holding) -> Result<(), ApplyError> {
        let Some(folder) = self.removals else {
            return Ok(());
        };
        let objects = removals::objects(&claimed.removed);
        let revision = holding.revision().to_owned();
        let named = Holding::new(holding.generation(), revision, objects)
            .map_err(|error| ApplyError::Unrepresentable(error.to_string()))?;
        let recorded = Inventory::read(folder)?;
        let changes = Pass::new(folder, self.device).match_to(&named, &recorded)?;
        let below = |name: String| format!("delete/{name}");
        self.changes
            .written
            .extend(changes.written.into_iter().map(below));
        self.changes
            .removed
            .extend(changes.removed.into_iter().map(below));
        Ok(())
    }

    /// Removes everything that is ours.
    pub(super) fn clear(mut self) -> Result<Changes, ApplyError> {
        let mut recorded = Inventory::read(self.folder)?;
        if self.removals.is_some() {
            let before = removals::objects_of(self.folder, &recorded)?;
            recorded.removed = removals::due(&self.named(&recorded)?, &before, &[]);
            let generation = recorded
                .held
                .map(|held| held.generation)
                .unwrap_or_default();
            let nothing = Holding::new(generation, String::new(), [])
                .map_err(|error| ApplyError::Unrepresentable(error.to_string()))?;
            self.name_removals(&recorded, &nothing)?;
        }
        self.take_all(&recorded.files)?;
        self.folder.remove(inventory::FILE)?;
        self.finish()
    }

    fn finish(self) -> Result<Changes, ApplyError> {
        self.folder.remove(TEMPORARY)?;
        if !self.changes.is_empty() {
            self.folder.sync()?;
        }
        Ok(self.changes)
    }

    /// Refuses, before anything is changed, where somebody else's file is in the way.
    fn check_foreign(
        &self,
        recorded: &Inventory,
        wanted: &BTreeSet<String>,
    ) -> Result<(), ApplyError> {
        let foreign = |name: &str, advice| {
            let path = self.folder.path().join(name).display().to_string();
            Err(ApplyError::Foreign { path, advice })
        };
        for name in OTHER_KUSTOMIZATIONS {
            if self.folder.read(name, MOST_FILE_BYTES)? != Found::Nothing {
                return foreign(name, ADVICE);
            }
        }
        for name in wanted.difference(&recorded.files) {
            match self.folder.read(name, MOST_FILE_BYTES)? {
                Found::Nothing => {}
                Found::File { content, .. } if content::is_ours(name, &content) => {}
                Found::File { .. } | Found::Other => return foreign(name, ADVICE),
            }
        }
        Ok(())
    }

    fn put(&mut self, name: &str, content: &[u8]) -> Result<(), ApplyError> {
        let right = match self.folder.read(name, MOST_FILE_BYTES)? {
            Found::File {
                content: found,
                mode,
            } => found == content && mode == 0o600,
            Found::Nothing | Found::Other => false,
        };
        if !right {
            self.folder.write(name, content)?;
            self.changes.written.push(name.to_owned());
        }
        Ok(())
    }

    /// The list goes before what it lists.
    fn take_all<'n>(
        &mut self,
        names: impl IntoIterator<Item = &'n String>,
    ) -> Result<(), ApplyError> {
        let (list, files): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| *name == KUSTOMIZATION);
        for name in list.into_iter().chain(files) {
            if self.folder.remove(name)? {
                self.changes.removed.push(name.clone());
            }
        }
        Ok(())
    }
}
