//! One pass over the directory. See the parent module for the order and its guarantees.

use std::collections::BTreeSet;

use longshore_protocol::{DeviceId, session::Holding};

use super::{
    content,
    inventory::{self, Inventory, MOST_FILE_BYTES},
    names,
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
    changes: Changes,
}

impl<'a> Pass<'a> {
    pub(super) fn new(folder: &'a Folder, device: &'a DeviceId) -> Self {
        Self {
            folder,
            device,
            changes: Changes::default(),
        }
    }

    /// Makes the folder match the holding.
    pub(super) fn apply(mut self, holding: &Holding) -> Result<Changes, ApplyError> {
        let recorded = Inventory::read(self.folder)?;
        let held = holding.held();
        if let Some(before) = recorded.held
            && recorded.device.as_ref() == Some(self.device)
            && before.generation == held.generation
            && before.digest != held.digest
        {
            return Err(ApplyError::Conflict(held.generation));
        }
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
        self.check_foreign(&recorded, &wanted)?;

        let mut claimed = recorded.clone();
        claimed.device = Some(self.device.clone());
        claimed.held = Some(held);
        claimed.files.extend(wanted.iter().cloned());
        if claimed != recorded {
            claimed.write(self.folder)?;
        }
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
        if claimed.files != wanted {
            claimed.files = wanted;
            claimed.write(self.folder)?;
        }
        self.finish()
    }

    /// Removes everything that is ours.
    pub(super) fn clear(mut self) -> Result<Changes, ApplyError> {
        let recorded = Inventory::read(self.folder)?;
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
