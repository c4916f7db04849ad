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
#[cfg(test)]
mod tests;
mod watch;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use longshore_protocol::{DeviceId, session::Holding};

use self::{pass::Pass, watch::Watch};
use super::{ApplyError, Changes, Runtime};
use crate::files::Folder;

/// The `directory` runtime.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    device: DeviceId,
    watch: Watch,
}

impl Directory {
    /// Applies the sets of `device` to the directory at `path`.
    pub fn new(path: PathBuf, device: DeviceId) -> Self {
        Self {
            path,
            device,
            watch: Watch::default(),
        }
    }

    async fn blocking(
        &self,
        work: impl FnOnce(&Path, &DeviceId) -> Result<Changes, ApplyError> + Send + 'static,
    ) -> Result<Changes, ApplyError> {
        let (path, device) = (self.path.clone(), self.device.clone());
        let span = tracing::Span::current();
        tokio::task::spawn_blocking(move || span.in_scope(|| work(&path, &device)))
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
            .blocking(move |path, device| Pass::new(&Folder::create(path)?, device).apply(&holding))
            .await;
        // Before the first pass there may be no directory to watch; after any, another one of that name.
        self.watch.follow(&self.path);
        changes
    }

    async fn clear(&mut self) -> Result<Changes, ApplyError> {
        self.blocking(|path, device| match Folder::open(path) {
            Ok(folder) => Pass::new(&folder, device).clear(),
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
