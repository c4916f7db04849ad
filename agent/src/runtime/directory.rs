//! A directory of manifests with a `kustomization.yaml` that lists them, which `MicroShift`'s `manifests.d`,
//! `kubectl apply -k` and people can all read.
//!
//! One pass makes the directory match a holding:
//!
//! ```text
//! read the inventory ─▶ claim the new names in it ─▶ write files that differ ─▶ switch kustomization.yaml
//!                                                                                  │
//!                     record the names that are left ◀─ remove files of old sets ◀─┘
//! ```
//!
//! Guarantees:
//! - A reader of `kustomization.yaml` at any instant finds every file that it lists, each of them whole.
//! - Killed at any point, the next pass ends in the same state as if it had never been killed.
//! - Only files that this agent wrote are changed or removed. A file is ours when the inventory lists it or
//!   when its first line says that the agent wrote it under this very name, so a lost inventory loses nothing.
//! - Nothing is read or written through a symlink inside the directory, and names never leave it.
//! - One generation is never applied with two contents.
//!
//! Files are of mode 0600, for `Secret`s are among them; the directory is made with 0700 where it is missing.

mod content;
mod inventory;
mod names;
mod pass;
mod removals;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use longshore_protocol::{DeviceId, session::Holding};
use rustix::fs::Access;

use self::{pass::Pass, watch::Watch};
use super::{
    ApplyError, Changes, Runtime,
    logs::{Logs, NoLogs},
};
use crate::{
    files::{FileError, Folder},
    watchdog,
};

/// The `directory` runtime.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    device: DeviceId,
    /// Where what left the set is named, for `MicroShift`.
    removals: Option<PathBuf>,
    watch: Watch,
}

impl Directory {
    /// Applies the sets of `device` to the directory at `path`.
    pub fn new(path: PathBuf, device: DeviceId) -> Self {
        Self {
            path,
            device,
            removals: None,
            watch: Watch::default(),
        }
    }

    /// And names what left the set where `MicroShift` looks for what to delete: in a folder of the same name in
    /// `delete`, beside this one.
    #[must_use]
    pub fn for_microshift(mut self) -> Self {
        self.removals = removals::path(&self.path);
        self
    }

    async fn blocking(
        &self,
        work: impl FnOnce(&Path, &DeviceId, Option<&Path>) -> Result<Changes, ApplyError>
        + Send
        + 'static,
    ) -> Result<Changes, ApplyError> {
        let (path, device) = (self.path.clone(), self.device.clone());
        let removals = self.removals.clone();
        let span = tracing::Span::current();
        let work = move || span.in_scope(|| work(&path, &device, removals.as_deref()));
        watchdog::allow(watchdog::FILES);
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or(Err(ApplyError::Interrupted))
    }
}

#[async_trait]
impl Runtime for Directory {
    fn name(&self) -> &'static str {
        "directory"
    }

    async fn apply(&mut self, holding: Arc<Holding>) -> Result<Changes, ApplyError> {
        let changes = self
            .blocking(move |path, device, removals| {
                let removals = removals.map(removals::open).transpose()?;
                Pass::new(&Folder::create(path)?, device)
                    .naming(removals.as_ref())
                    .apply(&holding)
            })
            .await;
        // Before the first pass there may be no directory to watch; after any, another one of that name.
        self.watch.follow(&self.path);
        changes
    }

    fn logs(&self) -> Arc<dyn Logs> {
        Arc::new(NoLogs(
            "the device's runtime is a directory of manifests: whatever reads it runs the workloads, and has their logs",
        ))
    }

    async fn probe(&mut self) -> Result<String, ApplyError> {
        // Where it is to be made, its parents matter.
        let there = self.path.ancestors().find(|path| path.exists());
        let there = there.unwrap_or(&self.path);
        rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
            FileError {
                operation: "write to",
                path: there.to_owned(),
                source: error.into(),
            }
        })?;
        Ok(self.path.display().to_string())
    }

    async fn clear(&mut self) -> Result<Changes, ApplyError> {
        self.blocking(|path, device, removals| match Folder::open(path) {
            Ok(folder) => {
                let removals = removals.map(removals::open).transpose()?;
                Pass::new(&folder, device).naming(removals.as_ref()).clear()
            }
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {
                Ok(Changes::default())
            }
            Err(error) => Err(error.into()),
        })
        .await
    }

    async fn disturbed(&mut self) {
        self.watch.disturbed().await;
    }
}
