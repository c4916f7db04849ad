//! A controller without its listeners: fleets, their sources, reconcilers and enrollment, on a store of its own.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use git2::Oid;
use longshore_controller::{
    builds::Builds,
    fleets::Fleets,
    hub::Hub,
    metrics::Metrics,
    replica::Replica,
    secret::Keyring,
    store::{
        Store, content,
        devices::{self, Device, DeviceView},
        fleets::{self, Fleet, FleetId, FleetStatus},
        tenants, tokens,
    },
    tasks::Tasks,
};
use longshore_protocol::{Digest, api::DeviceState};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::render::Builder;
use crate::{
    repo::Repo,
    store::samples::{device, device_id, token},
};

/// What must happen, happens within this time.
const DEADLINE: Duration = Duration::from_secs(20);

pub const FLEET: &str =
    "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata:\n  name: shops\n";

/// An edit of the repo.
pub type Change = (String, Option<String>);

pub fn write(path: &str, content: impl Into<String>) -> Change {
    (path.to_owned(), Some(content.into()))
}

pub fn delete(path: &str) -> Change {
    (path.to_owned(), None)
}

/// A kustomization of these resources.
pub fn overlay(folder: &str, resources: &[&str]) -> Change {
    let resources = if resources.is_empty() {
        " []".to_owned()
    } else {
        format!("\n  - {}", resources.join("\n  - "))
    };
    write(
        &format!("{folder}/kustomization.yaml"),
        format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:{resources}\n"
        ),
    )
}

/// The file of device `n` in the folder `name`, with the overlay `groups/<group>` or its own.
pub fn file(n: u32, name: &str, group: Option<&str>) -> Change {
    let key = Digest::of(&n.to_be_bytes());
    let overlay = group.map(|group| format!("  overlay: ../../groups/{group}\n"));
    write(
        &format!("devices/{name}/device.yaml"),
        format!(
            "apiVersion: longshore.dev/v1alpha1\nkind: Device\nmetadata:\n  name: {name}\n\
             spec:\n  id: {}\n  publicKey: {key}\n{}",
            device_id(n),
            overlay.unwrap_or_default(),
        ),
    )
}

/// The file of device `n` under its first name, in the group `kiosk`.
pub fn kiosk(n: u32) -> Change {
    file(n, &format!("device-{n}"), Some("kiosk"))
}

/// A fleet of these files, with the groups `kiosk` and `gateway` on one base.
pub fn fleet_of(devices: impl IntoIterator<Item = Change>) -> Vec<Change> {
    [
        write("fleet.yaml", FLEET),
        overlay("base", &["all.yaml"]),
        write("base/all.yaml", "all: 1"),
        overlay("groups/kiosk", &["../../base", "kiosk.yaml"]),
        write("groups/kiosk/kiosk.yaml", "kiosk: 1"),
        overlay("groups/gateway", &["../../base", "gateway.yaml"]),
        write("groups/gateway/gateway.yaml", "gateway: 1"),
    ]
    .into_iter()
    .chain(devices)
    .collect()
}

/// A device that was approved before.
pub fn active(fleet: &FleetId, n: u32) -> Device {
    Device {
        state: DeviceState::Active,
        ..device(fleet, n)
    }
}

/// What lives across restarts.
#[derive(Debug)]
pub struct World {
    pub repo: Arc<Repo>,
    pub builder: Arc<Builder>,
    pub store: Store,
    pub fleets: Arc<Fleets>,
    pub hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    directory: TempDir,
    followed: BTreeMap<FleetId, Fleet>,
}

pub fn shops() -> FleetId {
    FleetId {
        tenant: "default".parse().unwrap(),
        name: "shops".parse().unwrap(),
    }
}

impl World {
    /// With the fleet `default/shops`, whose repo has these files.
    pub async fn new(files: &[Change]) -> Self {
        let repo = Repo::new();
        repo.commit("main", files);
        Self::of(Arc::new(repo)).await
    }

    /// With the fleet `default/shops` in this repo.
    pub async fn of(repo: Arc<Repo>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::embedded(directory.path()).await.unwrap();
        let builder = Arc::<Builder>::default();
        let hub = Arc::<Hub>::default();
        let metrics = Arc::<Metrics>::default();
        let mirrors = directory.path().join("mirrors");
        let (fleets, tasks) = start(&store, &builder, &hub, &metrics, mirrors);
        let mut world = Self {
            repo,
            builder,
            store,
            fleets,
            hub,
            metrics,
            tasks,
            directory,
            followed: BTreeMap::new(),
        };
        world.add(&shops()).await;
        world
    }

    /// Adds a fleet of the same repo.
    pub async fn add(&mut self, id: &FleetId) {
        let fleet = Fleet {
            repo: self.repo.path().display().to_string(),
            trusted: true,
            ..crate::store::samples::fleet(id.tenant.as_str(), id.name.as_str())
        };
        let mut db = self.store.write().await.unwrap();
        if !tenants::exists(&mut db, &id.tenant).await.unwrap() {
            tenants::insert(&mut db, &id.tenant, 1).await.unwrap();
        }
        fleets::insert(&mut db, &fleet).await.unwrap();
        // The token that the sample devices say they enrolled with.
        let token = tokens::Token {
            id: longshore_protocol::TokenId::from_random([1; 16]),
            overlay: Some("groups/kiosk".to_owned()),
            ..token(id, 1)
        };
        if id == &shops() {
            tokens::insert(&mut db, &token, Digest::of(b"secret"))
                .await
                .unwrap();
        }
        db.commit().await.unwrap();
        self.fleets.follow(&fleet).await.unwrap();
        self.followed.insert(id.clone(), fleet);
    }

    /// Adds devices to the store, and makes their fleets look.
    pub async fn enroll(&self, devices: impl IntoIterator<Item = Device>) {
        let mut db = self.store.write().await.unwrap();
        for device in devices {
            devices::insert(&mut db, &device).await.unwrap();
        }
        db.commit().await.unwrap();
        for id in self.followed.keys() {
            self.fleets.poke(id);
        }
    }

    /// Stops everything and starts it again on what is left. Builds under way are lost.
    pub async fn restart(&mut self) {
        self.stop().await;
        let mirrors = self.directory.path().join("mirrors");
        (self.fleets, self.tasks) = start(
            &self.store,
            &self.builder,
            &self.hub,
            &self.metrics,
            mirrors,
        );
        for fleet in self.followed.values() {
            self.fleets.follow(fleet).await.unwrap();
        }
    }

    /// Stops everything.
    pub async fn stop(&self) {
        self.tasks.shutdown.cancel();
        self.tasks.tracker.close();
        tokio::time::timeout(DEADLINE, self.tasks.tracker.wait())
            .await
            .expect("the tasks end");
    }

    /// Pushes a commit.
    pub fn push(&self, changes: &[Change]) -> Oid {
        let commit = self.repo.commit("main", changes);
        for id in self.followed.keys() {
            self.fleets.look(id);
        }
        commit
    }

    /// Pushes a commit, and waits until it is in force; builds that it needs may still run.
    pub async fn apply(&self, changes: &[Change]) -> String {
        let commit = self.push(changes).to_string();
        self.settled(&commit).await;
        commit
    }

    /// Waits until a commit is in force, and every device was built once or failed to.
    pub async fn settled(&self, commit: &str) {
        self.until("the commit is in force", async || {
            self.status().await.revision.as_deref() == Some(commit)
                && self.views().await.iter().all(is_settled)
        })
        .await;
    }

    /// Waits until a pass that began after this call has ended. For a world of one fleet.
    pub async fn passes(&self) {
        // The pass that is under way may have begun before.
        let enough = self.metrics.reconciliations.get() + 2;
        self.until("passes end", async || {
            self.fleets.poke(&shops());
            self.metrics.reconciliations.get() >= enough
        })
        .await;
    }

    pub async fn status(&self) -> FleetStatus {
        self.status_of(&shops()).await
    }

    pub async fn status_of(&self, id: &FleetId) -> FleetStatus {
        let mut db = self.store.read().await.unwrap();
        fleets::find(&mut db, id).await.unwrap().unwrap().status
    }

    /// The devices by name.
    pub async fn views(&self) -> Vec<DeviceView> {
        self.views_of(&shops()).await
    }

    pub async fn views_of(&self, id: &FleetId) -> Vec<DeviceView> {
        let mut db = self.store.read().await.unwrap();
        devices::list(&mut db, id).await.unwrap()
    }

    /// Device `n`.
    pub async fn view(&self, n: u32) -> DeviceView {
        let mut db = self.store.read().await.unwrap();
        let device = devices::by_id(&mut db, &device_id(n))
            .await
            .unwrap()
            .unwrap();
        devices::view(&mut db, device).await.unwrap()
    }

    /// The generation of device `n`, 0 where it has none.
    pub async fn generation(&self, n: u32) -> u64 {
        let desired = self.view(n).await.desired;
        desired.map_or(0, |desired| desired.target.generation.number())
    }

    /// What device `n` is to run: what each `ConfigMap` holds. Everything that it takes is in the store.
    pub async fn content(&self, n: u32) -> Vec<String> {
        let view = self.view(n).await;
        let Some(desired) = view.desired else {
            return Vec::new();
        };
        let tenant = &view.device.fleet.tenant;
        let mut db = self.store.read().await.unwrap();
        let set = content::set(&mut db, tenant, desired.target.digest)
            .await
            .unwrap();
        let set = set.expect("the set is in the store");
        assert_eq!(set.len() as u64, desired.objects);
        let digests = set.entries().iter().map(|entry| entry.digest);
        let objects = content::objects(&mut db, tenant, digests).await.unwrap();
        assert_eq!(objects.len(), set.len(), "every object is in the store");
        let mut content: Vec<_> = objects
            .values()
            .map(|object| {
                object.value()["data"]["content"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        content.sort();
        content
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let waiting = async {
            while !is_so().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, waiting).await.is_err() {
            let (status, views) = (self.status().await, self.views().await);
            panic!("not in time: {what}\n{status:#?}\n{views:#?}");
        }
    }

    /// Waits until device `n` has reached a generation.
    pub async fn reaches(&self, n: u32, generation: u64) {
        self.until("the generation is reached", async || {
            self.generation(n).await >= generation
        })
        .await;
        assert_eq!(self.generation(n).await, generation);
    }
}

/// Whether something is known of an active device. While a later build runs, that stays as it is.
fn is_settled(view: &DeviceView) -> bool {
    let rendered = view
        .device
        .conditions
        .iter()
        .find(|it| it.kind == "Rendered");
    view.device.state != DeviceState::Active
        || rendered.is_some_and(|rendered| rendered.reason != "Building")
}

fn start(
    store: &Store,
    builder: &Arc<Builder>,
    hub: &Arc<Hub>,
    metrics: &Arc<Metrics>,
    mirrors: PathBuf,
) -> (Arc<Fleets>, Tasks) {
    let (tasks, mut ended) = Tasks::new(CancellationToken::new());
    tokio::spawn(async move {
        if let Some(part) = ended.recv().await {
            panic!("{part} ended");
        }
    });
    let builds = Builds::new(
        builder.clone(),
        store.clone(),
        metrics.clone(),
        tasks.tracker.clone(),
    );
    let keyring = Keyring::open(&mirrors, Some(&"07".repeat(32).into())).unwrap();
    let keyring = Arc::new(keyring);
    let fleets = Fleets::new(
        mirrors,
        Duration::from_hours(1),
        store.clone(),
        keyring,
        builds,
        hub.clone(),
        metrics.clone(),
        tasks.clone(),
        "https://longshore.example".to_owned(),
        Replica::alone(),
    );
    (Arc::new(fleets), tasks)
}
