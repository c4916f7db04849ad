//! The images that the agent brought to the device, so that those that nothing needs any more can go.
//!
//! Podman has no place to note who pulled an image, so there is a list in the agent's state directory. An image goes
//! when it is on that list, neither the present set nor the last good one names it (a way back must need no network),
//! no container uses it, and nobody gave it a name of their own. Nothing is forced: what Podman does not want to
//! remove stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use longshore_protocol::session::Holding;
use serde::{Deserialize, Serialize};

use super::program::{PodmanError, Program};
use crate::{
    causes,
    files::{FileError, Folder, Found},
    ledger::Ledger,
    watchdog,
};

const FILE: &str = "podman-images.json";
const MOST_BYTES: u64 = 4 * 1024 * 1024;

/// An image, as Podman lists it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListedImage {
    pub(super) id: String,
    #[serde(default, deserialize_with = "super::observed::or_default")]
    pub(super) names: BTreeSet<String>,
    /// How many containers use it; less than none where that was not counted.
    #[serde(default, deserialize_with = "super::observed::or_default")]
    containers: i64,
}

/// The list, in the agent's state directory.
#[derive(Clone, Debug)]
pub(super) struct Images {
    state: PathBuf,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Brought {
    /// What is being pulled and was not there before: where the agent is killed meanwhile, it may be there now.
    pulling: BTreeSet<String>,
    /// The ids of what was pulled, with the names that it was given by that.
    images: BTreeMap<String, BTreeSet<String>>,
}

impl Images {
    pub(super) fn new(state: PathBuf) -> Self {
        Self { state }
    }

    /// Pulls an image, and notes whether that brought one.
    pub(super) async fn pull(&self, podman: &Program, image: &str) -> Result<(), PodmanError> {
        let before = listed(podman).await?;
        let is_there = podman.image_id(image).await?.is_some();
        let mut brought = self.read().await;
        if !is_there {
            brought.pulling.insert(image.to_owned());
            self.write(&brought).await;
        }
        let pulled = podman.pull(image).await;
        brought.pulling.remove(image);
        if pulled.is_ok()
            && let Some(id) = podman.image_id(image).await?
            && (!before.contains_key(&id) || brought.images.contains_key(&id))
        {
            let mut names = listed(podman).await?.remove(&id).unwrap_or_default().names;
            if let Some(before) = before.get(&id) {
                names.retain(|name| !before.names.contains(name));
            }
            brought.images.entry(id).or_default().extend(names);
        }
        self.write(&brought).await;
        pulled
    }

    /// Removes what the agent brought and what neither these images nor containers need.
    pub(super) async fn tidy(
        &self,
        podman: &Program,
        needed: &BTreeSet<String>,
    ) -> Result<(), PodmanError> {
        let before = self.read().await;
        if before == Brought::default() {
            return Ok(());
        }
        let listed = listed(podman).await?;
        let mut brought = before.clone();
        for image in std::mem::take(&mut brought.pulling) {
            if let Some(id) = podman.image_id(&image).await?
                && let Some(image) = listed.get(&id)
            {
                let names = image.names.iter().cloned();
                brought.images.entry(id).or_default().extend(names);
            }
        }
        brought.images.retain(|id, _| listed.contains_key(id));
        let mut stay = BTreeSet::new();
        for image in needed {
            stay.extend(podman.image_id(image).await?);
        }
        for (id, names) in brought.images.clone() {
            let Some(image) = listed.get(&id).filter(|it| {
                it.containers <= 0 && it.names.is_subset(&names) && !stay.contains(&id)
            }) else {
                continue;
            };
            match podman.remove_image(image).await {
                Ok(()) => {
                    brought.images.remove(&id);
                    tracing::info!(id, ?names, "removed an image that nothing needs any more");
                }
                Err(error) => {
                    tracing::debug!(id, ?names, error = causes(&error), "an image stays");
                }
            }
        }
        if brought != before {
            self.write(&brought).await;
        }
        Ok(())
    }

    /// The set to fall back to; `Err` where nobody can tell.
    pub(super) async fn base(&self) -> Result<Option<Arc<Holding>>, FileError> {
        let state = self.state.clone();
        watchdog::allow(watchdog::FILES);
        tokio::task::spawn_blocking(move || Ok(Ledger::new(Folder::open(&state)?).record().base))
            .await
            .unwrap_or(Ok(None))
    }

    /// What cannot be read is as if there were none: it stays for ever, which is better than to guess.
    async fn read(&self) -> Brought {
        let state = self.state.clone();
        let read = move || {
            match Folder::open(&state)?.read(FILE, MOST_BYTES)? {
            Found::File { content, .. } => {
                Ok(serde_json::from_slice(&content).unwrap_or_else(|error| {
                    tracing::error!(%error, "the list of images is damaged; those on it are not removed any more");
                    Brought::default()
                }))
            }
            Found::Nothing | Found::Other => Ok(Brought::default()),
        }
        };
        let read = tokio::task::spawn_blocking(read).await;
        told(read.unwrap_or_else(|_panic| Ok(Brought::default()))).unwrap_or_default()
    }

    async fn write(&self, brought: &Brought) {
        // A struct of texts always serializes.
        let content = serde_json::to_vec(brought).unwrap_or_default();
        let state = self.state.clone();
        let write = move || Folder::open(&state)?.write(FILE, &content);
        let written = tokio::task::spawn_blocking(write).await;
        told(written.unwrap_or(Ok(())));
    }
}

async fn listed(podman: &Program) -> Result<BTreeMap<String, ListedImage>, PodmanError> {
    let images = podman.images().await?;
    Ok(images
        .into_iter()
        .map(|image| (image.id.clone(), image))
        .collect())
}

/// No set is worse off for it: at worst an image stays.
fn told<T>(result: Result<T, FileError>) -> Option<T> {
    result
        .inspect_err(|error| {
            tracing::warn!(
                error = causes(error),
                "it cannot be noted which images the agent brought"
            );
        })
        .ok()
}
