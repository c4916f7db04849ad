//! One fleet with its source, reconciler, enrollment and Git host, on a store of its own.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use git2::Oid;
use longshore_controller::{
    builds::Builds,
    enrollment::branches::Branches,
    fleets::Changes,
    forge::{
        Forge,
        watch::{PullRequests, Watch},
    },
    reconcile::{Parts, Reconciler},
    replica::{Lease, Notices},
    source::{Observation, Source, mirror::Mirror},
    store::{
        Store,
        devices::{self, Device},
        fleets::{self, Fleet, FleetId},
        tenants, tokens,
    },
    tasks::Tasks,
};
use longshore_fleet::RepoPath;
use longshore_protocol::{
    Condition, Digest, TokenId,
    api::{Approval, DeviceState},
};
use tempfile::TempDir;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::host::Host;
use crate::{
    reconcile::{
        render::Builder,
        world::{Change, fleet_of, shops, write},
    },
    repo::Repo,
    store::samples::{self, device_id, token},
};

/// What must happen, happens within this time.
const DEADLINE: Duration = Duration::from_secs(20);

pub fn branch(n: u32) -> String {
    format!("longshore/enroll/device-{n}")
}

pub fn settings(enrollment: &str) -> Change {
    write(
        "fleet.yaml",
        format!(
            "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata:\n  name: shops\n\
             spec:\n  enrollment: {enrollment}\n"
        ),
    )
}

/// A device with the manual token.
pub fn device(n: u32) -> Device {
    samples::device(&shops(), n)
}

/// A device with the automatic token.
pub fn automatic(n: u32) -> Device {
    Device {
        token: TokenId::from_random([2; 16]),
        ..device(n)
    }
}

pub struct World {
    pub repo: Arc<Repo>,
    pub host: Arc<Host>,
    pub store: Store,
    pub branches: Branches,
    fleet: FleetId,
    with_host: bool,
    reconcile: Arc<Notify>,
    tasks: Mutex<Tasks>,
    directory: TempDir,
}

impl World {
    /// A fleet with these files besides the usual ones, connected to a host.
    pub async fn new(files: impl IntoIterator<Item = Change>) -> Self {
        Self::of(files, true).await
    }

    pub async fn of(files: impl IntoIterator<Item = Change>, with_host: bool) -> Self {
        let repo = Repo::new();
        repo.commit("main", &fleet_of(files));
        let repo = Arc::new(repo);
        let directory = tempfile::tempdir().unwrap();
        let store = Store::embedded(directory.path()).await.unwrap();
        Self::on(repo, store, shops(), directory, with_host).await
    }

    /// Another fleet of the same repo.
    pub async fn beside(&self, name: &str) -> Self {
        let fleet = FleetId {
            tenant: shops().tenant,
            name: name.parse().unwrap(),
        };
        let directory = tempfile::tempdir().unwrap();
        let store = Store::embedded(directory.path()).await.unwrap();
        Self::on(self.repo.clone(), store, fleet, directory, false).await
    }

    async fn on(
        repo: Arc<Repo>,
        store: Store,
        id: FleetId,
        directory: TempDir,
        with_host: bool,
    ) -> Self {
        let mut db = store.write().await.unwrap();
        tenants::insert(&mut db, &id.tenant, 1).await.unwrap();
        let fleet = row(&repo, &id);
        fleets::insert(&mut db, &fleet).await.unwrap();
        for (n, approval) in [(1, Approval::Manual), (2, Approval::Automatic)] {
            let token = tokens::Token {
                approval,
                overlay: Some("groups/kiosk".to_owned()),
                ..token(&id, n)
            };
            tokens::insert(&mut db, &token, Digest::of(&[n]))
                .await
                .unwrap();
        }
        db.commit().await.unwrap();
        let host = Arc::new(Host::new(repo.clone()));
        let mirror = directory.path().join("mirror");
        let mirror = Mirror::open(mirror, &fleet, None).await.unwrap();
        let (branches, reconcile, tasks) = start(&store, &mirror, &fleet, &host, with_host);
        Self {
            repo,
            host,
            store,
            branches,
            fleet: id,
            with_host,
            reconcile,
            tasks: Mutex::new(tasks),
            directory,
        }
    }

    /// Ends the controller as a crash would, and starts it again on what is left.
    pub async fn restart(&mut self) {
        let tasks = self.tasks.lock().unwrap().clone();
        tasks.shutdown.cancel();
        tasks.tracker.close();
        tokio::time::timeout(DEADLINE, tasks.tracker.wait())
            .await
            .expect("the tasks end");
        let fleet = row(&self.repo, &self.fleet);
        let mirror = self.directory.path().join("mirror");
        let mirror = Mirror::open(mirror, &fleet, None).await.unwrap();
        let (branches, reconcile, tasks) =
            start(&self.store, &mirror, &fleet, &self.host, self.with_host);
        self.branches = branches;
        self.reconcile = reconcile;
        *self.tasks.lock().unwrap() = tasks;
    }

    /// Connects the fleet to its host.
    pub async fn connect(&mut self) {
        self.with_host = true;
        self.restart().await;
    }

    /// What a webhook does.
    pub fn webhook(&self) {
        self.branches.source.notify_one();
        self.branches.list.notify_one();
    }

    pub fn poke(&self) {
        self.branches.poke.notify_one();
        self.reconcile.notify_one();
    }

    pub async fn enroll(&self, devices: impl IntoIterator<Item = Device>) {
        let mut db = self.store.write().await.unwrap();
        for device in devices {
            let fleet = self.fleet.clone();
            let device = Device { fleet, ..device };
            devices::insert(&mut db, &device).await.unwrap();
        }
        db.commit().await.unwrap();
        self.poke();
    }

    pub async fn device(&self, n: u32) -> Device {
        let mut db = self.store.read().await.unwrap();
        let found = devices::by_id(&mut db, &device_id(n)).await.unwrap();
        found.unwrap()
    }

    pub async fn state(&self, n: u32) -> DeviceState {
        self.device(n).await.state
    }

    /// Whether the device is where people can decide, and why.
    pub async fn proposed(&self, n: u32) -> Option<Condition> {
        let conditions = self.device(n).await.conditions;
        conditions.into_iter().find(|it| it.kind == "Proposed")
    }

    /// Waits until the condition `Proposed` of a device has this reason, and returns its message.
    pub async fn awaits(&self, n: u32, reason: &str) -> String {
        self.until(&format!("device {n} says {reason}"), async || {
            self.proposed(n).await.is_some_and(|it| it.reason == reason)
        })
        .await;
        self.proposed(n).await.unwrap().message
    }

    /// Waits until a device has its pull request, with all that belongs to it.
    pub async fn opened(&self, n: u32) -> u64 {
        self.awaits(n, "PullRequest").await;
        let branch = self.device(n).await.enrollment_branch.unwrap();
        let pages = self.host.pages();
        let page = pages.iter().rev().find(|page| page.head == branch);
        page.unwrap().number
    }

    pub async fn becomes(&self, n: u32, state: DeviceState) {
        self.until(&format!("device {n} becomes {state:?}"), async || {
            self.state(n).await == state
        })
        .await;
    }

    pub async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let waiting = async {
            while !is_so().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, waiting).await.is_err() {
            let mut db = self.store.read().await.unwrap();
            let views = devices::list(&mut db, &self.fleet).await.unwrap();
            let devices: Vec<_> = views.into_iter().map(|view| view.device).collect();
            panic!(
                "not in time: {what}\n{devices:#?}\n{:#?}",
                self.host.pages()
            );
        }
    }

    /// Waits until a branch is gone.
    pub async fn cleared(&self, branch: &str) {
        self.until("the branch is deleted", async || {
            self.repo.tip(branch).is_none()
        })
        .await;
    }

    /// Pushes to the tracked branch.
    pub fn push(&self, changes: &[Change]) -> Oid {
        let commit = self.repo.commit("main", changes);
        self.webhook();
        commit
    }
}

fn row(repo: &Repo, id: &FleetId) -> Fleet {
    Fleet {
        repo: repo.path().display().to_string(),
        trusted: true,
        ..samples::fleet(id.tenant.as_str(), id.name.as_str())
    }
}

fn start(
    store: &Store,
    mirror: &Mirror,
    fleet: &Fleet,
    host: &Arc<Host>,
    with_host: bool,
) -> (Branches, Arc<Notify>, Tasks) {
    let (tasks, mut ended) = Tasks::new(CancellationToken::new());
    tokio::spawn(async move {
        if let Some(part) = ended.recv().await {
            panic!("{part} ended");
        }
    });
    let stop = tasks.shutdown.clone();
    let (found, observation) = watch::channel(Observation::default());
    let (listed, pull_requests) = watch::channel(PullRequests::default());
    let (readings, reading) = watch::channel(None);
    let changes = Changes::new(fleet.id.clone(), Notices::nobody());
    let forge = with_host.then(|| host.clone() as Arc<dyn Forge>);
    let reconcile: Arc<Notify> = Arc::default();
    let branches = Branches {
        fleet: fleet.id.clone(),
        root: RepoPath::root(),
        mirror: mirror.clone(),
        base: fleet.branch.clone(),
        forge: forge.clone(),
        observation: observation.clone(),
        reading,
        pull_requests,
        list: Arc::default(),
        poke: Arc::default(),
        changes: changes.clone(),
        source: Arc::default(),
        reconcile: reconcile.clone(),
        store: store.clone(),
        lease: Lease::always(),
    };
    let source = Source {
        mirror: mirror.clone(),
        local: None,
        interval: Duration::from_hours(1),
        poke: branches.source.clone(),
        fetches: watch::Sender::default(),
    };
    let builder = Arc::<Builder>::default();
    let builds = Builds::new(
        builder,
        store.clone(),
        Arc::default(),
        tasks.tracker.clone(),
    );
    let reconciler = Reconciler::new(Parts {
        fleet: fleet.id.clone(),
        root: RepoPath::root(),
        mirror: mirror.clone(),
        observation,
        poke: reconcile.clone(),
        readings,
        changes,
        progress: Arc::default(),
        store: store.clone(),
        builds,
        hub: Arc::default(),
        metrics: Arc::default(),
        lease: Lease::always(),
    });
    if let Some(forge) = forge {
        let watch = Watch {
            forge,
            base: fleet.branch.clone(),
            poke: branches.list.clone(),
            interval: Duration::from_hours(1),
        };
        tasks.sound("pull requests", watch.run(listed, stop.clone()));
    }
    tasks.sound("source", source.run(found, stop.clone()));
    tasks.sound("enrollment", branches.clone().run(stop.clone()));
    tasks.sound("reconciler", reconciler.run(stop));
    (branches, reconcile, tasks)
}
