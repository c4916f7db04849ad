//! What is there, as Podman tells it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use longshore_protocol::DeviceId;
use serde::{Deserialize, Deserializer};

use super::{
    labels,
    pod::Expected,
    program::{PodmanError, Program},
};

pub(super) type Labels = BTreeMap<String, String>;

/// Everything that a pass decides by.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// All pods, whoever made them.
    pub(super) pods: Vec<ObservedPod>,
    /// All volumes, whoever made them.
    pub(super) volumes: Vec<ObservedVolume>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ObservedPod {
    pub(super) id: String,
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    infra_id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: Labels,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) containers: Vec<ObservedContainer>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ObservedContainer {
    pub(super) id: String,
    #[serde(rename = "Names")]
    pub(super) name: String,
    #[serde(skip)]
    pub(super) details: Option<Inspected>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ObservedVolume {
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: Labels,
}

/// A container from near.
#[derive(Debug, Deserialize)]
pub(super) struct Inspected {
    id: String,
    pub(super) restarts: u64,
    pub(super) state: State,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct State {
    pub(super) status: String,
    pub(super) exit_code: i64,
    #[serde(rename = "OOMKilled", default)]
    pub(super) out_of_memory: bool,
    #[serde(default)]
    pub(super) error: String,
    #[serde(default)]
    started_at: Option<Timestamp>,
    #[serde(default)]
    finished_at: Option<Timestamp>,
    /// Podman 5 leaves it out where there is no check.
    #[serde(default)]
    pub(super) health: Option<Check>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Check {
    #[serde(default)]
    pub(super) status: String,
    /// How the last checks went.
    #[serde(default, deserialize_with = "or_default")]
    log: Vec<serde::de::IgnoredAny>,
}

/// How long Podman has to start a container again by itself.
const JUST_ENDED: u64 = 3000;

impl State {
    /// For how long it has been running, in milliseconds.
    pub(super) fn runs_for(&self, now: u64) -> u64 {
        self.started_at
            .map_or(0, |at| milliseconds_between(at, now))
    }

    pub(super) fn has_just_ended(&self, now: u64) -> bool {
        self.finished_at
            .is_some_and(|at| milliseconds_between(at, now) < JUST_ENDED)
    }

    /// `starting`, `healthy`, `unhealthy`, or nothing where there is no check, or nobody who runs it.
    pub(super) fn check(&self) -> &str {
        let runs = |check: &&Check| !check.log.is_empty() || systemd_runs();
        self.health
            .as_ref()
            .filter(runs)
            .map_or("", |check| &check.status)
    }
}

impl Observed {
    /// Looks.
    pub(super) async fn look(podman: &Program, device: &DeviceId) -> Result<Self, PodmanError> {
        let mut pods = podman.pods().await?;
        let ours = pods.iter().filter(|pod| is_of(&pod.labels, device));
        let ids: Vec<_> = ours.flat_map(ObservedPod::members).collect();
        let details = podman.inspect(&ids).await?;
        let mut details: BTreeMap<_, _> =
            details.into_iter().map(|it| (it.id.clone(), it)).collect();
        for container in pods.iter_mut().flat_map(|pod| &mut pod.containers) {
            container.details = details.remove(&container.id);
        }
        Ok(Self {
            pods,
            volumes: podman.volumes().await?,
        })
    }

    pub(super) fn pod(&self, name: &str) -> Option<&ObservedPod> {
        self.pods.iter().find(|pod| pod.name == name)
    }

    /// Whether this very revision of a pod is there.
    pub(super) fn has(&self, expected: &Expected) -> bool {
        let revision = self
            .pod(&expected.name)
            .and_then(|pod| pod.labels.get(labels::REVISION));
        revision.is_some_and(|revision| *revision == expected.revision.to_string())
    }

    /// Whether a container of this device has not been checked to its end.
    pub(super) fn awaits_checks(&self) -> bool {
        let containers = self.pods.iter().flat_map(|pod| &pod.containers);
        containers
            .filter_map(|container| container.details.as_ref())
            .any(|details| details.state.check() == "starting")
    }

    pub(super) fn volume(&self, name: &str) -> Option<&ObservedVolume> {
        self.volumes.iter().find(|volume| volume.name == name)
    }
}

impl ObservedPod {
    /// The ids of its containers, without the one that holds the pod together.
    fn members(&self) -> impl Iterator<Item = &str> {
        self.workers().map(|container| container.id.as_str())
    }

    /// Its containers, without the one that holds the pod together.
    pub(super) fn workers(&self) -> impl Iterator<Item = &ObservedContainer> {
        self.containers.iter().filter(|it| it.id != self.infra_id)
    }

    /// A container, by its name in Podman.
    pub(super) fn container(&self, name: &str) -> Option<&ObservedContainer> {
        self.containers
            .iter()
            .find(|container| container.name == name)
    }

    /// How long its processes get to end, in seconds.
    pub(super) fn grace(&self) -> u64 {
        let grace = self.labels.get(labels::GRACE);
        grace.and_then(|grace| grace.parse().ok()).unwrap_or(30)
    }

    /// The object that it is of.
    pub(super) fn object(&self) -> &str {
        self.labels.get(labels::OBJECT).map_or("", String::as_str)
    }
}

/// Podman's checks are timers of systemd's.
fn systemd_runs() -> bool {
    std::path::Path::new("/run/systemd/system").exists()
}

/// However the clock was set meanwhile.
fn milliseconds_between(then: Timestamp, now: u64) -> u64 {
    i128::from(then.as_millisecond())
        .abs_diff(i128::from(now))
        .try_into()
        .unwrap_or(u64::MAX)
}

/// Whether the agent made it for this device.
pub(super) fn is_of(labels: &Labels, device: &DeviceId) -> bool {
    labels
        .get(labels::DEVICE)
        .is_some_and(|label| *label == device.to_string())
}

/// Whether it stays when its object leaves the set.
pub(super) fn stays(labels: &Labels) -> bool {
    labels
        .get(labels::PRUNE)
        .is_some_and(|prune| prune == "disabled")
}

/// Go prints `null` for what is empty.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
