//! One pass: look, decide, carry out.
//!
//! ```text
//! look ─▶ remove pods that left ─▶ volumes that keep ─▶ start what stands still
//!                                                            │
//!     look again ◀─ sweep volumes and secrets ◀─ make and replace pods, one by one
//! ```
//!
//! A pod is made in this order: images, then its volumes and secrets (under names that carry its revision), then
//! the one before it goes, then `kube play`. Where it is killed in between, the next pass finds a pod with missing
//! containers, or none, and makes it anew. What goes wrong with one object is noted, and the others go on.

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::{DeviceId, ObjectKey};

use super::{
    images::Images,
    labels,
    observed::{self, Observed, ObservedPod},
    pod::{Pod, Pull, Restart},
    program::{PodmanError, Program, Version},
    translate::{Claim, Wanted},
};
use crate::{
    causes,
    runtime::{Changes, Unapplied},
};

pub(super) struct Pass<'a> {
    podman: &'a Program,
    version: Version,
    device: &'a DeviceId,
    /// In milliseconds of the Unix epoch.
    now: u64,
    changes: Changes,
    unapplied: Vec<Unapplied>,
    /// Whether volumes and secrets may be there that nothing needs.
    untidy: bool,
    /// Whether another pass may get further although nothing happens.
    retry: bool,
    /// Whether images that are pulled every time have just been pulled.
    prepared: bool,
    images: Option<&'a Images>,
    /// What could not be pulled a moment ago, and why: pods that share an image do not each wait for its registry.
    missing: BTreeMap<String, String>,
}

/// What came of it.
pub(super) struct Outcome {
    pub(super) changes: Changes,
    /// Objects that are not as they should be, those that were refused among them.
    pub(super) unapplied: Vec<Unapplied>,
    pub(super) observed: Observed,
    /// Whether another pass may get further although nothing happens.
    pub(super) retry: bool,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        podman: &'a Program,
        version: Version,
        device: &'a DeviceId,
        now: u64,
    ) -> Self {
        Self {
            podman,
            version,
            device,
            now,
            changes: Changes::default(),
            unapplied: Vec::new(),
            untidy: false,
            retry: false,
            prepared: false,
            images: None,
            missing: BTreeMap::new(),
        }
    }

    /// Notes what it pulls, where there is a list for that.
    pub(super) fn noting(mut self, images: Option<&'a Images>) -> Self {
        self.images = images;
        self
    }

    /// With the images of this set pulled.
    pub(super) fn prepared(mut self, prepared: bool) -> Self {
        self.prepared = prepared;
        self
    }

    /// Makes Podman match. `sweep` looks for leftovers even where nothing is to be done.
    pub(super) async fn apply(
        mut self,
        wanted: &Wanted,
        sweep: bool,
    ) -> Result<Outcome, PodmanError> {
        self.untidy = sweep;
        let mut observed = Observed::look(self.podman, self.device).await?;
        self.remove_pods(wanted, &observed).await;
        for claim in &wanted.claims {
            self.claim(claim, &observed).await;
        }
        let mut to_make = Vec::new();
        for pod in &wanted.pods {
            match self.due(pod, &observed) {
                Due::Nothing => {}
                Due::Starting { paused, stopped } => self.start(pod, &paused, &stopped).await,
                Due::Making(before) => to_make.push((pod, before)),
                Due::Foreign(why) => self.fails(&pod.expected.object, "ForeignPod", why),
            }
        }
        // A registry that does not answer delays only those that need it.
        let mut waiting = Vec::new();
        for (pod, before) in to_make {
            match self.lacks_images(pod).await {
                Ok(false) => self.make(pod, before, &observed).await,
                Ok(true) => waiting.push((pod, before)),
                Err(error) => self.failed(&pod.expected.object, "Podman", &error),
            }
        }
        for (pod, before) in waiting {
            match self.fetch(pod).await {
                Ok(()) => self.make(pod, before, &observed).await,
                Err(error) => self.failed(&pod.expected.object, "ImagePull", &error),
            }
        }
        if self.untidy || !self.changes.is_empty() {
            self.sweep(wanted).await;
            observed = Observed::look(self.podman, self.device).await?;
        }
        self.unapplied.extend(wanted.refused.iter().cloned());
        Ok(Outcome {
            changes: self.changes,
            unapplied: self.unapplied,
            observed,
            retry: self.retry,
        })
    }

    /// Removes everything of this device, but what is to stay.
    pub(super) async fn clear(self) -> Result<Outcome, PodmanError> {
        self.apply(&Wanted::default(), true).await
    }

    async fn remove_pods(&mut self, wanted: &Wanted, observed: &Observed) {
        let untouched = wanted.untouched();
        let is_wanted = |name: &str| wanted.pods.iter().any(|pod| pod.expected.name == name);
        for pod in &observed.pods {
            if observed::is_of(&pod.labels, self.device)
                && !is_wanted(&pod.name)
                && !observed::stays(&pod.labels)
                && !untouched.contains(pod.object())
            {
                let removed = self.podman.remove_pod(&pod.id, pod.grace()).await;
                self.note_removal(pod.object(), &pod.name, removed);
                self.untidy = true;
            }
        }
    }

    fn note_removal(&mut self, object: &str, name: &str, removed: Result<(), PodmanError>) {
        let object = if object.is_empty() { name } else { object };
        match removed {
            Ok(()) if self.changes.removed.iter().any(|it| it == object) => {}
            Ok(()) => self.changes.removed.push(object.to_owned()),
            Err(error) => {
                let why = format!("it is not removed: {}", causes(&error));
                tracing::warn!(object, error = why, "not removed; trying again");
                self.retry = true;
                self.unapplied.push(Unapplied {
                    object: object.to_owned(),
                    reason: "NotRemoved",
                    message: why,
                });
            }
        }
    }

    async fn claim(&mut self, claim: &Claim, observed: &Observed) {
        let Some(volume) = observed.volume(&claim.name) else {
            match self.podman.play(claim.manifest()).await {
                Ok(()) => self.changes.written.push(claim.object.to_string()),
                Err(error) => self.failed(&claim.object, "Podman", &error),
            }
            return;
        };
        if !observed::is_of(&volume.labels, self.device) {
            let why = format!(
                "the volume {} is there and was not made by this agent: rename the claim, or take it out of the repo \
                 and pods use the volume as it is",
                claim.name
            );
            self.fails(&claim.object, "ForeignVolume", why);
        } else if volume.labels.get(labels::REVISION) != Some(&claim.revision.to_string()) {
            let why = "the options of a volume cannot be changed while it keeps its content: rename the claim, or \
                       remove the volume on the device";
            self.fails(&claim.object, "Immutable", why.to_owned());
        }
    }

    /// What there is to do for a pod.
    fn due<'o>(&mut self, pod: &Pod, observed: &'o Observed) -> Due<'o> {
        let expected = &pod.expected;
        let Some(found) = observed.pod(&expected.name) else {
            return Due::Making(None);
        };
        if !observed::is_of(&found.labels, self.device) {
            let why = format!(
                "a pod {0} is there and was not made by this agent: remove it with `podman pod rm {0}`, or rename the \
                 object",
                found.name
            );
            return Due::Foreign(why);
        }
        if found.labels.get(labels::REVISION) != Some(&expected.revision.to_string()) {
            return Due::Making(Some(found));
        }
        let (mut paused, mut stopped) = (Vec::new(), Vec::new());
        for name in &expected.containers {
            let Some(container) = found.container(name) else {
                return Due::Making(Some(found));
            };
            let Some(details) = &container.details else {
                return Due::Making(Some(found));
            };
            match (details.state.status.as_str(), details.state.exit_code) {
                ("paused", _) => paused.push(container.id.as_str()),
                ("running" | "stopping" | "restarting", _) => {}
                ("removing", _) => return Due::Making(Some(found)),
                ("exited" | "stopped", 0) if expected.restart != Restart::Always => {}
                ("exited" | "stopped", _) if expected.restart == Restart::Never => {}
                // Podman starts it again itself, but not what somebody stopped.
                ("exited" | "stopped", _) if details.state.has_just_ended(self.now) => {
                    self.retry = true;
                }
                _ => stopped.push(container.id.as_str()),
            }
        }
        if paused.is_empty() && stopped.is_empty() {
            Due::Nothing
        } else {
            Due::Starting { paused, stopped }
        }
    }

    async fn start(&mut self, pod: &Pod, paused: &[&str], stopped: &[&str]) {
        let object = &pod.expected.object;
        let mut outcome = Ok(());
        if !paused.is_empty() {
            outcome = self.podman.unpause(paused).await;
        }
        if outcome.is_ok() && !stopped.is_empty() {
            outcome = self.podman.start(stopped).await;
        }
        match outcome {
            Ok(()) => self.wrote(object),
            Err(error) => self.failed(object, "Podman", &error),
        }
    }

    async fn lacks_images(&self, pod: &Pod) -> Result<bool, PodmanError> {
        for (image, pull) in &pod.images {
            if self.every_time(*pull) || !self.podman.has_image(image).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn every_time(&self, pull: Pull) -> bool {
        pull == Pull::Always && !self.prepared
    }

    /// Fetches what a pod needs, and nothing that is there, unless it is asked for every time. A device must come
    /// up without a network, so an image that is there serves where it cannot be pulled again.
    pub(super) async fn fetch(&mut self, pod: &Pod) -> Result<(), PodmanError> {
        for (image, pull) in &pod.images {
            let is_there = self.podman.has_image(image).await?;
            if is_there && !self.every_time(*pull) {
                continue;
            }
            if *pull == Pull::Never {
                return Err(PodmanError::NoImage(image.clone()));
            }
            if let Some(why) = self.missing.get(image) {
                if is_there {
                    continue;
                }
                return Err(PodmanError::NotPulled(why.clone()));
            }
            let pulled = match self.images {
                Some(images) => images.pull(self.podman, image).await,
                None => self.podman.pull(image).await,
            };
            let Err(error) = pulled else {
                tracing::info!(image, "pulled");
                continue;
            };
            let why = causes(&error);
            self.missing.insert(image.clone(), why.clone());
            if !is_there {
                return Err(error);
            }
            tracing::warn!(
                image,
                error = why,
                "cannot be pulled; the image that is there is used"
            );
        }
        Ok(())
    }

    async fn make(&mut self, pod: &Pod, before: Option<&ObservedPod>, observed: &Observed) {
        self.untidy = true;
        match self.try_make(pod, before, observed).await {
            Ok(()) => self.wrote(&pod.expected.object),
            Err(error) => self.failed(&pod.expected.object, "Podman", &error),
        }
    }

    async fn try_make(
        &self,
        pod: &Pod,
        before: Option<&ObservedPod>,
        observed: &Observed,
    ) -> Result<(), PodmanError> {
        let object = pod.expected.object.to_string();
        let revision = pod.expected.revision.to_string();
        // What is half there uses the very volumes that are to be filled.
        let is_half = before.is_some_and(|it| it.labels.get(labels::REVISION) == Some(&revision));
        if let Some(before) = before
            && is_half
        {
            self.podman.remove_pod(&before.id, before.grace()).await?;
        }
        for volume in &pod.volumes {
            let is_there = observed.volume(&volume.name).is_some();
            self.podman.fill_volume(volume, &object, is_there).await?;
        }
        let secrets = self.podman.secrets().await?;
        for (name, content) in &pod.secrets {
            if secrets.iter().any(|(there, _)| there == name) {
                self.podman.remove_secret(name).await?;
            }
            self.podman
                .make_secret(name, &object, content.clone())
                .await?;
        }
        if let Some(before) = before
            && !is_half
        {
            self.podman.remove_pod(&before.id, before.grace()).await?;
        }
        self.podman.play(pod.manifest(self.policy(pod))).await
    }

    /// The policy that Podman gets. Old versions would start containers that prepare a pod again and again by it,
    /// so there the agent starts what has ended by itself.
    fn policy(&self, pod: &Pod) -> Restart {
        match pod.expected.restart {
            Restart::Always if pod.is_prepared && !self.version.prepares_once => Restart::OnFailure,
            other => other,
        }
    }

    /// Removes volumes and secrets of ours that nothing needs.
    async fn sweep(&mut self, wanted: &Wanted) {
        if let Err(error) = self.try_sweep(wanted).await {
            // Nothing runs differently for it; the next pass that changes something tries again.
            tracing::warn!(error = causes(&error), "leftovers are not removed");
        }
    }

    async fn try_sweep(&mut self, wanted: &Wanted) -> Result<(), PodmanError> {
        let mut untouched = wanted.untouched();
        untouched.extend(self.unapplied.iter().map(|it| it.object.clone()));
        let needed: BTreeSet<_> = wanted
            .pods
            .iter()
            .flat_map(|pod| {
                pod.volumes
                    .iter()
                    .map(|it| &it.name)
                    .chain(pod.secrets.keys())
            })
            .chain(wanted.claims.iter().map(|claim| &claim.name))
            .collect();
        for volume in self.podman.volumes().await? {
            let object = volume
                .labels
                .get(labels::OBJECT)
                .cloned()
                .unwrap_or_default();
            if observed::is_of(&volume.labels, self.device)
                && !needed.contains(&volume.name)
                && !observed::stays(&volume.labels)
                && !untouched.contains(&object)
            {
                let removed = self.podman.remove_volume(&volume.name).await;
                // Volumes of pods go with them and are not worth a word; a claim is an object of its own.
                if volume.labels.contains_key(labels::REVISION) || removed.is_err() {
                    self.note_removal(&object, &volume.name, removed);
                }
            }
        }
        for (name, object) in self.podman.secrets().await? {
            if !needed.contains(&name) && !untouched.contains(&object) {
                self.podman.remove_secret(&name).await?;
            }
        }
        Ok(())
    }

    fn wrote(&mut self, object: &ObjectKey) {
        let object = object.to_string();
        if !self.changes.written.contains(&object) {
            self.changes.written.push(object);
        }
    }

    fn failed(&mut self, object: &ObjectKey, reason: &'static str, error: &PodmanError) {
        self.retry = true;
        self.fails(object, reason, causes(error));
    }

    fn fails(&mut self, object: &ObjectKey, reason: &'static str, message: String) {
        self.unapplied.push(Unapplied {
            object: object.to_string(),
            reason,
            message,
        });
    }
}

enum Due<'o> {
    Nothing,
    Starting {
        paused: Vec<&'o str>,
        stopped: Vec<&'o str>,
    },
    /// In the place of the one that is there.
    Making(Option<&'o ObservedPod>),
    Foreign(String),
}
