//! Podman: the same manifests, run through `podman kube play`.
//!
//! ```text
//! holding ─▶ translate: pods, volumes, what Podman cannot run
//!                │
//!                ▼                     labels on pods, volumes and secrets: device, object, revision
//!  look ──▶ pass: what is due ──▶ podman kube play, one call for each pod, manifests by stdin
//!   ▲                                    │
//!   └──────── podman events ◀────────────┘
//! ```
//!
//! Guarantees:
//! - A pod is replaced when what it is made of changed, ConfigMaps and Secrets among it, and left running otherwise.
//! - Only what carries this device's label is changed or removed. The labels are all the inventory there is.
//! - Killed at any point, the next pass ends in the same state as if it had never been killed.
//! - One object that cannot be applied stops no other; what ran of it goes on.
//! - Where nothing happens, no process is started: see [`events`].
//!
//! Images that the agent pulled go when neither the present set nor the last good one needs them: see [`images`].
//!
//! After a reboot the agent's first pass starts what it finds standing still. It needs no network for that, and no
//! unit of systemd's for each pod, which would be a second owner of the same containers.

mod contents;
mod events;
mod fare;
mod images;
mod labels;
mod logs;
mod observed;
mod pass;
mod pod;
mod program;
#[cfg(test)]
mod tests;
mod translate;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use longshore_protocol::{DeviceId, message::Held, session::Holding};
use tokio::time::{self, Instant};

pub use self::program::LEAST;
use self::{
    events::{Events, Mark},
    images::Images,
    logs::PodmanLogs,
    observed::Observed,
    pass::{Outcome, Pass},
    pod::Expected,
    program::{PodmanError, Program, Version},
    translate::Wanted,
};
use super::{ApplyError, Changes, Runtime, Unapplied, health::ObjectHealth, logs::Logs};
use crate::{causes, clock};

/// How long a look stays good where no event contradicts it.
const LONGEST_TRUST: Duration = Duration::from_mins(10);
/// Containers that crash tell so every few moments; looking costs a process or three.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// What fails makes events itself, which must not set off the next try.
const BETWEEN_FAILURES: Duration = Duration::from_secs(30);

/// The `podman` runtime.
#[derive(Debug)]
pub struct Podman {
    program: Program,
    device: DeviceId,
    version: Option<Version>,
    events: Option<Events>,
    prepared: Option<Held>,
    /// Up to where events were heard when the last pass began.
    heard: Mark,
    /// Before this moment no event is answered.
    patience: Option<Instant>,
    last: Option<Look>,
    images: Option<Images>,
    /// For which set, and which last good one, no image is left that is not needed.
    tidied: Option<(Held, Option<Held>)>,
}

/// What the last pass found and left.
#[derive(Debug)]
struct Look {
    held: Held,
    taken: Instant,
    finished: Instant,
    mark: Option<Mark>,
    /// Whether something is about to change without an event.
    restless: bool,
    expected: Vec<Expected>,
    unapplied: Vec<Unapplied>,
    observed: Observed,
}

impl Podman {
    /// Runs the sets of `device` with this `podman` program.
    pub fn new(program: PathBuf, device: DeviceId) -> Self {
        Self {
            program: Program::new(program, device.clone()),
            device,
            version: None,
            events: None,
            prepared: None,
            heard: Mark::default(),
            patience: None,
            last: None,
            images: None,
            tidied: None,
        }
    }

    /// Keeps a list of the images that it pulls in this directory, where the last good set is recorded, too, and
    /// removes those that are not needed any more.
    #[must_use]
    pub fn tidying(mut self, state: PathBuf) -> Self {
        self.images = Some(Images::new(state));
        self
    }

    /// What came of a pass, after which images are tidied up where no other pass gets further.
    async fn tidied_up(
        &mut self,
        holding: &Arc<Holding>,
        outcome: Result<Changes, ApplyError>,
    ) -> Result<Changes, ApplyError> {
        if outcome
            .as_ref()
            .map_or_else(ApplyError::is_lasting, |_| true)
        {
            self.tidy(holding).await;
        }
        outcome
    }

    /// Removes images that neither this set, which is in place, nor the last good one needs. Where those are two, it
    /// looks again at the next pass.
    async fn tidy(&mut self, wanted: &Arc<Holding>) {
        let held = wanted.held();
        let Some(images) = self.images.clone() else {
            return;
        };
        if self.tidied == Some((held, Some(held))) {
            return;
        }
        let base = match images.base().await {
            Ok(base) => base,
            Err(error) => {
                tracing::warn!(error = causes(&error), "images are not tidied up");
                return;
            }
        };
        let tidied = Some((held, base.as_ref().map(|base| base.held())));
        if self.tidied == tidied {
            return;
        }
        let mut needed = BTreeSet::new();
        for holding in [Some(wanted), base.as_ref()].into_iter().flatten() {
            let Ok(wanted) = self.translate(holding).await else {
                return;
            };
            needed.extend(
                wanted
                    .pods
                    .into_iter()
                    .flat_map(|pod| pod.images.into_keys()),
            );
        }
        match images.tidy(&self.program, &needed).await {
            Ok(()) => self.tidied = tidied,
            Err(error) => tracing::warn!(error = causes(&error), "images are not tidied up"),
        }
    }

    async fn version(&mut self) -> Result<Version, ApplyError> {
        let version = match self.version {
            Some(version) => version,
            None => self.program.version().await?,
        };
        self.version = Some(version);
        Ok(version)
    }

    /// Follows the events, from the first pass on; `None` while nobody listens.
    fn listen(&mut self) -> Option<Mark> {
        let program = &self.program;
        self.events.take_if(|events| events.is_dead());
        let follow = || Events::follow(program.clone(), clock::system);
        let events = self.events.get_or_insert_with(follow);
        self.heard = events.mark();
        events.follows().then_some(self.heard)
    }

    fn pass(&self, version: Version) -> Pass<'_> {
        Pass::new(&self.program, version, &self.device, clock::system())
            .noting(self.images.as_ref())
    }

    /// Whether the last look still holds.
    fn is_fresh(&self, look: &Look) -> bool {
        let follows = self.events.as_ref().filter(|events| events.follows());
        let silent = follows.is_some_and(|events| look.mark == Some(events.mark()));
        silent && !look.restless && look.taken.elapsed() < LONGEST_TRUST
    }

    async fn translate(&self, holding: &Arc<Holding>) -> Result<Wanted, ApplyError> {
        let (holding, device) = (holding.clone(), self.device.clone());
        tokio::task::spawn_blocking(move || translate::translate(&holding, &device))
            .await
            .map_err(|_panic| ApplyError::Interrupted)
    }
}

#[async_trait]
impl Runtime for Podman {
    fn name(&self) -> &'static str {
        "podman"
    }

    async fn prepare(&mut self, holding: &Holding) -> Result<(), ApplyError> {
        let version = self.version().await?;
        let wanted = self.translate(&Arc::new(holding.clone())).await?;
        let observed = Observed::look(&self.program, &self.device).await?;
        let mut pass = self.pass(version);
        for pod in wanted
            .pods
            .iter()
            .filter(|pod| !observed.has(&pod.expected))
        {
            // It is tried again by `apply`, which leaves what runs of such a pod as it is and moves the others.
            if let Err(error) = pass.fetch(pod).await {
                let object = pod.expected.object.to_string();
                tracing::warn!(
                    object,
                    error = causes(&error),
                    "images cannot be fetched ahead"
                );
            }
        }
        self.prepared = Some(holding.held());
        Ok(())
    }

    async fn apply(&mut self, holding: Arc<Holding>) -> Result<Changes, ApplyError> {
        let held = holding.held();
        let last = self.last.as_ref().filter(|last| last.held == held);
        if let Some(last) = last
            && self.is_fresh(last)
        {
            let outcome = outcome(Changes::default(), last.unapplied.clone());
            return self.tidied_up(&holding, outcome).await;
        }
        let sweep = last.is_none();
        let taken = Instant::now();
        self.patience = Some(taken + BETWEEN_FAILURES);
        let version = self.version().await?;
        let mark = self.listen();
        let wanted = self.translate(&holding).await?;
        // Whatever comes of the pass, the last look is no longer what is there.
        self.last = None;
        let pass = self.pass(version).prepared(self.prepared == Some(held));
        let done = pass.apply(&wanted, sweep).await?;
        self.last = Some(Look {
            held,
            taken,
            mark,
            finished: Instant::now(),
            restless: done.retry || done.observed.awaits_checks(),
            expected: wanted.pods.into_iter().map(|pod| pod.expected).collect(),
            unapplied: done.unapplied.clone(),
            observed: done.observed,
        });
        if !done.retry {
            self.patience = Some(taken + BETWEEN_LOOKS);
        }
        let outcome = outcome(done.changes, done.unapplied);
        self.tidied_up(&holding, outcome).await
    }

    fn knows_health(&self) -> bool {
        true
    }

    async fn health(&mut self) -> Option<Vec<ObjectHealth>> {
        let look = self.last.as_ref()?;
        let now = clock::system();
        if self.is_fresh(look) || look.finished.elapsed() < BETWEEN_LOOKS {
            return Some(fare::of(&look.expected, &look.observed, now));
        }
        match Observed::look(&self.program, &self.device).await {
            Ok(observed) => Some(fare::of(&look.expected, &observed, now)),
            Err(error) => {
                tracing::warn!(
                    error = causes(&error),
                    "podman does not say how containers fare"
                );
                None
            }
        }
    }

    fn logs(&self) -> Arc<dyn Logs> {
        Arc::new(PodmanLogs {
            program: self.program.clone(),
            device: self.device.clone(),
        })
    }

    async fn probe(&mut self) -> Result<String, ApplyError> {
        self.version().await?;
        Ok(self.program.described().await?)
    }

    async fn clear(&mut self) -> Result<Changes, ApplyError> {
        let version = self.version().await?;
        self.last = None;
        let Outcome {
            changes, unapplied, ..
        } = self.pass(version).clear().await?;
        if let Some(images) = &self.images
            && unapplied.is_empty()
        {
            // What is left over runs nowhere.
            if let Err(error) = images.tidy(&self.program, &BTreeSet::new()).await {
                tracing::warn!(error = causes(&error), "images are not removed");
            }
        }
        outcome(changes, unapplied)
    }

    /// What is compared is where the stream was when a pass last looked, so nothing is lost by not waiting here.
    async fn disturbed(&mut self) {
        let Some(events) = &self.events else {
            return std::future::pending().await;
        };
        events.after(self.heard).await;
        if let Some(patience) = self.patience {
            time::sleep_until(patience).await;
        }
    }
}

fn outcome(changes: Changes, unapplied: Vec<Unapplied>) -> Result<Changes, ApplyError> {
    if unapplied.is_empty() {
        Ok(changes)
    } else {
        Err(ApplyError::Objects(unapplied))
    }
}

impl From<PodmanError> for ApplyError {
    fn from(error: PodmanError) -> Self {
        Self::Unavailable(causes(&error))
    }
}
