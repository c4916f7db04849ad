//! A Kubernetes API server: Kubernetes, MicroShift, OpenShift, k3s.
//!
//! Objects are applied on the server's side with the field manager `longshore` and the label
//! `longshore.dev/device`. The kinds in use are followed by watches, so that drift is noticed at once and a pass over
//! an unchanged set makes no request.
//!
//! Guarantees:
//! - Killed at any point, the next pass ends as if it had never been killed: see `inventory`.
//! - Only objects of this device are deleted, each by its id and version: see `prune`.
//! - Fields that others apply, or had before, are not taken from them: see `apply`.
//! - Who changes our objects again and again meets ever rarer repairs: see `attempts`.
//! - One object that fails stops no other.

mod api;
mod apply;
mod attempts;
mod connect;
mod follow;
mod inventory;
mod kinds;
mod logs;
mod name;
mod pass;
mod problem;
mod prune;
mod resolve;
pub(crate) mod rights;
pub(crate) mod secret;
mod seen;
mod status;
mod view;

use std::{collections::BTreeSet, future, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use longshore_protocol::{DeviceId, Digest, message::Held, session::Holding};
use tokio::time::{self, Instant};

use self::{
    api::{Api, CallError},
    apply::Desired,
    attempts::Attempts,
    inventory::{Inventory, Store},
    kinds::{Kinds, Resource},
    logs::KubeLogs,
    name::Name,
    resolve::Wanted,
    view::View,
};
use super::{
    ApplyError, Changes, Runtime, Unapplied,
    health::{Health, ObjectHealth},
    logs::Logs,
};
use crate::{clock, config::KubeSettings, watchdog};

/// The folder in the state directory.
const FOLDER: &str = "kube";
/// How long a decommission waits for deletions to end before it is tried again.
const CLEARING: Duration = Duration::from_mins(5);

/// The `kube` runtime.
#[derive(Debug)]
pub struct Kube {
    settings: KubeSettings,
    device: DeviceId,
    cluster: Option<Cluster>,
}

/// A cluster that is reachable, or was.
#[derive(Debug)]
struct Cluster {
    api: Api,
    device: DeviceId,
    /// The one namespace that the agent may use, where it is confined to one.
    confined: Option<String>,
    /// Where objects go that name no namespace, where it is not.
    default_namespace: String,
    kubeconfig: Option<Digest>,
    kinds: Kinds,
    view: View,
    attempts: Attempts,
    store: Store,
    inventory: Inventory,
    /// Whether the inventory differs from what is kept.
    unkept: bool,
    /// What was passed over last, and whether that failed.
    held: Option<Held>,
    failed: bool,
    /// What is to go.
    leaving: BTreeSet<Name>,
    /// Whether something happened since the last pass.
    stirred: bool,
    /// When there is something to try again.
    wake: Option<Instant>,
}

impl Kube {
    /// Applies the sets of `device` to the cluster of the settings. Connects when it is needed.
    pub fn new(settings: KubeSettings, device: DeviceId) -> Self {
        Self {
            settings,
            device,
            cluster: None,
        }
    }

    /// The cluster, anew where the way to it has changed.
    async fn cluster(&mut self) -> Result<&mut Cluster, ApplyError> {
        let stale = self.cluster.as_ref().is_some_and(|cluster| {
            cluster.failed && cluster.kubeconfig != connect::fingerprint(&self.settings)
        });
        let cluster = match self.cluster.take() {
            Some(cluster) if !stale => cluster,
            _ => Cluster::connect(&self.settings, &self.device).await?,
        };
        Ok(self.cluster.insert(cluster))
    }

    async fn clear_within(&mut self, patience: Duration) -> Result<Changes, ApplyError> {
        let over = Instant::now() + patience;
        watchdog::allow(patience);
        let cluster = self.cluster().await?;
        let mut removed = Vec::new();
        loop {
            let changes = cluster.remove_all().await?;
            removed.extend(changes.removed);
            if cluster.inventory.records.is_empty() {
                return Ok(Changes {
                    removed,
                    ..Changes::default()
                });
            }
            if time::timeout_at(over, cluster.disturbed()).await.is_err() {
                let waiting = changes.waiting.into_iter();
                let removing = waiting.map(|message| Unapplied {
                    object: "decommissioning".to_owned(),
                    reason: "Removing",
                    message,
                });
                return Err(ApplyError::Objects(removing.collect()));
            }
        }
    }
}

impl Cluster {
    async fn connect(settings: &KubeSettings, device: &DeviceId) -> Result<Self, ApplyError> {
        let connection = connect::connect(settings)
            .await
            .map_err(ApplyError::Unavailable)?;
        let store = Store::new(settings.state.join(FOLDER), device.clone());
        let loading = store.clone();
        let inventory = tokio::task::spawn_blocking(move || loading.load())
            .await
            .map_err(|_panic| ApplyError::Interrupted)??;
        Ok(Self {
            api: connection.api,
            device: device.clone(),
            confined: settings.namespace.clone(),
            default_namespace: connection.namespace,
            kubeconfig: connection.kubeconfig,
            kinds: Kinds::default(),
            view: View::default(),
            attempts: Attempts::default(),
            store,
            inventory,
            unkept: false,
            held: None,
            failed: false,
            leaving: BTreeSet::new(),
            stirred: false,
            wake: None,
        })
    }

    /// Where objects go that name no namespace.
    fn namespace(&self) -> &str {
        self.confined.as_deref().unwrap_or(&self.default_namespace)
    }

    /// Follows the kinds of these, and waits until their objects are known.
    async fn follow(
        &mut self,
        wanted: &Wanted,
        leaving: &[(Name, Arc<Resource>)],
    ) -> Result<(), ApplyError> {
        let desired = wanted
            .desired
            .iter()
            .map(|desired: &Desired| &desired.resource);
        let resources = desired.chain(leaving.iter().map(|(_, resource)| resource));
        self.view
            .follow(&self.api, resources, self.confined.as_deref());
        self.view.settled(&self.inventory.records).await;
        // What comes from here on is a reason for the next pass, also of one that fails: what is not waited for is not
        // looked for either.
        self.stirred = false;
        self.wake = None;
        if let Some(why) = self.view.cut_off() {
            return Err(ApplyError::Unavailable(why.to_owned()));
        }
        Ok(())
    }

    /// Keeps the inventory, where it changed.
    async fn keep(&mut self) -> Result<(), ApplyError> {
        if !self.unkept {
            return Ok(());
        }
        let (store, inventory) = (self.store.clone(), self.inventory.clone());
        tokio::task::spawn_blocking(move || store.keep(&inventory))
            .await
            .map_err(|_panic| ApplyError::Interrupted)??;
        self.unkept = false;
        Ok(())
    }

    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    async fn disturbed(&mut self) {
        while !self.stirred {
            let wake = self.wake;
            tokio::select! {
                stirred = self.view.event(&self.inventory.records) => self.stirred |= stirred,
                () = time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => return,
            }
        }
    }

    fn health(&self) -> Vec<ObjectHealth> {
        let now = clock::system();
        let records = self.inventory.records.iter();
        records
            .filter(|(name, _)| !self.leaving.contains(name))
            .filter_map(|(name, record)| {
                let Some(seen) = self.view.object(name) else {
                    return Some(ObjectHealth {
                        object: name.key(&record.version),
                        health: Health::InProgress,
                        message: "it is not there".to_owned(),
                    });
                };
                let verdict = &seen.verdict;
                let over = verdict.fails_at.is_some_and(|at| now >= at);
                let (health, message) = match &seen.ending {
                    Some(ending) => (Health::InProgress, ending.clone()),
                    None if over => (Health::Failed, verdict.message.clone()),
                    None => (verdict.health, verdict.message.clone()),
                };
                (health != Health::Current).then(|| ObjectHealth {
                    object: name.key(&record.version),
                    health,
                    message,
                })
            })
            .collect()
    }
}

#[async_trait]
impl Runtime for Kube {
    fn name(&self) -> &'static str {
        "kube"
    }

    async fn apply(&mut self, holding: Arc<Holding>) -> Result<Changes, ApplyError> {
        let cluster = self.cluster().await?;
        let applied = cluster.pass(&holding).await;
        cluster.failed = applied.is_err();
        applied
    }

    fn knows_health(&self) -> bool {
        true
    }

    async fn health(&mut self) -> Option<Vec<ObjectHealth>> {
        let cluster = self.cluster.as_mut()?;
        // What has come since is part of the answer.
        while let Some(stirred) = cluster
            .view
            .event(&cluster.inventory.records)
            .now_or_never()
        {
            cluster.stirred |= stirred;
        }
        cluster.view.sees_all().then(|| cluster.health())
    }

    fn logs(&self) -> Arc<dyn Logs> {
        Arc::new(KubeLogs {
            settings: self.settings.clone(),
        })
    }

    async fn probe(&mut self) -> Result<String, ApplyError> {
        let connection = connect::connect(&self.settings).await;
        let connection = connection.map_err(ApplyError::Unavailable)?;
        connection.api.version().await.map_err(|error| {
            ApplyError::Unavailable(match error {
                CallError::Unreachable(why) => why,
                CallError::Refused(refusal) => refusal.message,
            })
        })
    }

    async fn lacks(&mut self) -> Result<Vec<String>, ApplyError> {
        let lacks = rights::lacks(&self.settings).await;
        lacks.map_err(ApplyError::Unavailable)
    }

    async fn clear(&mut self) -> Result<Changes, ApplyError> {
        self.clear_within(CLEARING).await
    }

    async fn disturbed(&mut self) {
        match &mut self.cluster {
            Some(cluster) => cluster.disturbed().await,
            None => future::pending().await,
        }
    }
}
