//! The fleets that are followed: each with a source at every replica, and with a [`crew::Crew`] where its lease is.

mod changes;
mod crew;
mod peers;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use longshore_fleet::RepoPath;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, info_span, warn};

pub use self::changes::Changes;
use self::crew::{Crew, WithForge};
use crate::{
    builds::Builds,
    commit_status::CommitStatuses,
    enrollment::branches::Branches,
    error::chain,
    forge::{
        self, Forge,
        client::Http,
        connection::Connection,
        watch::{PullRequests, Watch},
    },
    hosting::{self, repo},
    hub::Hub,
    metrics::Metrics,
    preview::{Engine, Link, branch::BranchPreviews, pull_requests::Previews},
    reconcile::Parts,
    replica::{Lease, Notice, Replica},
    secret::Keyring,
    source::{Observation, Source, access::Credential, git::GitError, mirror::Mirror},
    store::{
        Store,
        fleets::{Fleet, FleetId},
    },
    tasks::Tasks,
};

/// One fleet that is followed.
#[derive(Debug)]
struct Followed {
    fleet: Fleet,
    source: Arc<Notify>,
    pull_requests: Arc<Notify>,
    branches: Branches,
    previews: BranchPreviews,
    reconcile: Arc<Notify>,
    progress: Arc<Notify>,
    changes: Changes,
    stop: CancellationToken,
}

/// The fleets that are followed.
#[derive(Debug)]
pub struct Fleets {
    /// Where the mirrors and the hosted repos are.
    pub data_dir: PathBuf,
    /// How often to look at a repo without being poked.
    pub interval: Duration,
    /// Remembers.
    pub store: Store,
    /// Opens the fleets' connections.
    pub keyring: Arc<Keyring>,
    /// Reaches the fleets' forges.
    pub http: Http,
    /// Builds.
    pub builds: Builds,
    /// Reaches devices.
    pub hub: Arc<Hub>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Runs.
    pub tasks: Tasks,
    /// The public listener, as others reach it.
    pub public_url: String,
    /// Which replica this is.
    pub replica: Replica,
    followed: Mutex<HashMap<FleetId, Followed>>,
    /// One at a time begins to be followed.
    following: tokio::sync::Mutex<()>,
    /// Says that fleets were made, changed or deleted elsewhere.
    patrol: Notify,
}

impl Fleets {
    /// No fleets yet.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part that every fleet works with"
    )]
    pub fn new(
        data_dir: PathBuf,
        interval: Duration,
        store: Store,
        keyring: Arc<Keyring>,
        builds: Builds,
        hub: Arc<Hub>,
        metrics: Arc<Metrics>,
        tasks: Tasks,
        public_url: String,
        replica: Replica,
    ) -> Self {
        Self {
            data_dir,
            interval,
            store,
            keyring,
            http: Http::default(),
            builds,
            hub,
            metrics,
            tasks,
            public_url,
            replica,
            followed: Mutex::default(),
            following: tokio::sync::Mutex::default(),
            patrol: Notify::new(),
        }
    }

    /// Follows a fleet until [`Self::leave`] or the shutdown. One that is followed as it is stays so.
    pub async fn follow(&self, fleet: &Fleet) -> Result<(), GitError> {
        let _alone = self.following.lock().await;
        let is_known = |followed: &Followed| followed.fleet.link() == fleet.link();
        if self.followed().get(&fleet.id).is_some_and(is_known) {
            return Ok(());
        }
        let directory = self.mirror_directory(fleet);
        let located = self.located(fleet);
        let unlocated = fleet;
        let fleet = &located;
        let (forge, credential) = self.connection(fleet);
        let mirror = Mirror::open(directory, fleet, credential).await?;
        let local = fleet.trusted.then(|| local_path(&fleet.repo)).flatten();
        let (found, observation) = watch::channel(Observation::default());
        let (listed, pull_requests) = watch::channel(PullRequests::default());
        let (readings, reading) = watch::channel(None);
        let changes = Changes::new(fleet.id.clone(), self.replica.notices.clone());
        let stop = self.tasks.shutdown.child_token();
        let source = Source {
            mirror: mirror.clone(),
            local,
            interval: self.interval,
            poke: Arc::default(),
            fetches: watch::Sender::default(),
        };
        // What was checked when the fleet was made is checked here again by falling back to the root.
        let root = RepoPath::new(&fleet.path).unwrap_or_else(|_| RepoPath::root());
        let branches = Branches {
            fleet: fleet.id.clone(),
            root: root.clone(),
            mirror: mirror.clone(),
            base: fleet.branch.clone(),
            forge: forge.clone(),
            observation: observation.clone(),
            reading,
            pull_requests,
            list: Arc::default(),
            poke: Arc::default(),
            changes: changes.clone(),
            source: source.poke.clone(),
            reconcile: Arc::default(),
            store: self.store.clone(),
            lease: Lease::always(),
        };
        let previews = BranchPreviews {
            engine: self.engine(fleet, &root),
            mirror: mirror.clone(),
            observation: observation.clone(),
            fetching: Arc::default(),
        };
        let reconciler = Parts {
            fleet: fleet.id.clone(),
            root,
            mirror,
            observation,
            poke: branches.reconcile.clone(),
            readings,
            changes: changes.clone(),
            progress: Arc::default(),
            store: self.store.clone(),
            builds: self.builds.clone(),
            hub: self.hub.clone(),
            metrics: self.metrics.clone(),
            lease: Lease::always(),
        };
        let followed = Followed {
            fleet: unlocated.clone(),
            source: source.poke.clone(),
            pull_requests: branches.list.clone(),
            branches: branches.clone(),
            previews: previews.clone(),
            reconcile: reconciler.poke.clone(),
            progress: reconciler.progress.clone(),
            changes,
            stop: stop.clone(),
        };
        let older = self.followed().insert(fleet.id.clone(), followed);
        if let Some(older) = older {
            older.stop.cancel();
        }
        let span = info_span!("fleet", tenant = %fleet.id.tenant, fleet = %fleet.id.name);
        let fetches = source.fetches.subscribe();
        let source = source.run(found, stop.clone()).instrument(span.clone());
        self.tasks.sound("a fleet's source", source);
        let progress = reconciler.progress.clone();
        let list = branches.list.clone();
        let forge =
            forge.map(|forge| self.with_forge(fleet, &forge, previews, &listed, list, progress));
        let crew = Crew {
            reconciler,
            branches,
            forge,
            listed,
            fetches,
            tasks: self.tasks.clone(),
        };
        span.in_scope(|| self.offer(crew, fleet, stop));
        Ok(())
    }

    /// Lets a fleet's crew work whenever this replica has the fleet's lease.
    fn offer(&self, crew: Crew, fleet: &Fleet, stop: CancellationToken) {
        if self.has_repo(fleet) {
            let wish = self.replica.leases.wish(&fleet.id);
            let crew = crew.serve(wish, stop).in_current_span();
            self.tasks.sound("a fleet's crew", crew);
        } else {
            warn!(
                "the hosted repo is in another replica's data directory, and only that one works for the fleet; \
                 let all replicas share one `hosted` directory, and start this one again"
            );
        }
    }

    fn engine(&self, fleet: &Fleet, root: &RepoPath) -> Engine {
        let (store, builds) = (self.store.clone(), self.builds.clone());
        Engine::new(store, builds, root.clone(), fleet.id.clone())
    }

    /// What follows a fleet's forge, and tells it what is found.
    fn with_forge(
        &self,
        fleet: &Fleet,
        forge: &Arc<dyn Forge>,
        previews: BranchPreviews,
        listed: &watch::Sender<PullRequests>,
        list: Arc<Notify>,
        progress: Arc<Notify>,
    ) -> WithForge {
        let statuses = CommitStatuses {
            fleet: fleet.id.clone(),
            context: forge::context("sync", previews.engine.root()),
            forge: forge.clone(),
            observation: previews.observation.clone(),
            progress,
            store: self.store.clone(),
            lease: Lease::always(),
        };
        let previews = Previews {
            fleet: fleet.id.clone(),
            context: forge::context("preview", previews.engine.root()),
            forge: forge.clone(),
            mirror: previews.mirror,
            observation: previews.observation,
            pull_requests: listed.subscribe(),
            engine: previews.engine,
            store: self.store.clone(),
            link: Link {
                keyring: self.keyring.clone(),
                public_url: self.public_url.clone(),
            },
            lease: Lease::always(),
        };
        let watch = Watch {
            forge: forge.clone(),
            base: fleet.branch.clone(),
            interval: self.interval,
            poke: list,
        };
        WithForge {
            statuses,
            previews,
            watch,
        }
    }

    /// Follows a fleet no longer, since it was deleted. Its mirror is deleted, and so is its repo where the controller
    /// hosts it.
    pub fn leave(&self, fleet: &Fleet) {
        self.forget(fleet);
        self.replica.notices.tell([Notice::Fleets]);
    }

    fn forget(&self, fleet: &Fleet) {
        if let Some(followed) = self.followed().remove(&fleet.id) {
            followed.stop.cancel();
        }
        let directory = self.mirror_directory(fleet);
        let hosted = fleet.hosted.then(|| self.hosted_directory(fleet));
        self.tasks.tracker.spawn(async move {
            if let Some(hosted) = hosted
                && let Err(error) = repo::remove(&hosted).await
                // Where replicas share it, one removes it.
                && error.kind() != io::ErrorKind::NotFound
            {
                warn!(%error, path = %hosted.display(), "the hosted repo stays behind");
            }
            if let Err(error) = tokio::fs::remove_dir_all(&directory).await {
                warn!(%error, path = %directory.display(), "the mirror stays behind");
            }
        });
    }

    /// Tells the other replicas that a fleet was made, or is reached in another way.
    pub fn announce(&self) {
        self.replica.notices.tell([Notice::Fleets]);
    }

    /// Makes a fleet's sources look at the repo, and at its pull requests.
    pub fn look(&self, fleet: &FleetId) {
        self.look_here(fleet);
        self.replica.notices.tell([Notice::Look(fleet.clone())]);
    }

    fn look_here(&self, fleet: &FleetId) {
        if let Some(followed) = self.followed().get(fleet) {
            followed.source.notify_one();
            followed.pull_requests.notify_one();
        }
    }

    /// Makes a fleet's reconciler and enrollment look at the store.
    pub fn poke(&self, fleet: &FleetId) {
        self.poke_here(fleet);
        if !self.replica.leases.holds(fleet) {
            self.replica.notices.tell([Notice::Poke(fleet.clone())]);
        }
    }

    fn poke_here(&self, fleet: &FleetId) {
        if let Some(followed) = self.followed().get(fleet) {
            followed.reconcile.notify_one();
            followed.branches.poke.notify_one();
        }
    }

    /// Tells that a device of a fleet reported something new.
    pub fn progressed(&self, fleet: &FleetId) {
        if self.replica.leases.holds(fleet) {
            self.progressed_here(fleet);
        } else {
            let notice = Notice::Progressed(fleet.clone());
            self.replica.notices.tell([notice]);
        }
    }

    fn progressed_here(&self, fleet: &FleetId) {
        if let Some(followed) = self.followed().get(fleet) {
            followed.progress.notify_one();
        }
    }

    /// Tells when devices of a fleet were approved, rejected or decommissioned.
    pub fn changes(&self, fleet: &FleetId) -> Option<watch::Receiver<u64>> {
        self.followed()
            .get(fleet)
            .map(|followed| followed.changes.subscribe())
    }

    /// Tells that an operator rejected or decommissioned a device of a fleet.
    pub fn changed(&self, fleet: &FleetId) {
        if let Some(followed) = self.followed().get(fleet) {
            followed.changes.tell();
        }
    }

    /// A fleet's enrollment in Git.
    pub fn branches(&self, fleet: &FleetId) -> Option<Branches> {
        self.followed()
            .get(fleet)
            .map(|followed| followed.branches.clone())
    }

    /// What tells what a change of a fleet's repo would do.
    pub fn preview(&self, fleet: &FleetId) -> Option<Engine> {
        self.followed()
            .get(fleet)
            .map(|followed| followed.previews.engine.clone())
    }

    /// What previews a fleet's branches.
    pub fn branch_previews(&self, fleet: &FleetId) -> Option<BranchPreviews> {
        self.followed()
            .get(fleet)
            .map(|followed| followed.previews.clone())
    }

    /// The fleet's forge, and what Git presents to its repo, where it is connected.
    fn connection(&self, fleet: &Fleet) -> (Option<Arc<dyn Forge>>, Option<Credential>) {
        let opened = Connection::unseal(&self.keyring, fleet).map(|connection| {
            let connection = connection?;
            let forge = connection.open(&self.http).unwrap_or_else(|error| {
                error!(fleet = %fleet.id, error = %chain(&error), "followed without its forge; connect it again");
                None
            });
            let credential = connection.credential(&fleet.repo, forge.as_ref());
            Some((forge, credential))
        });
        opened
            .unwrap_or_else(|error| {
                error!(fleet = %fleet.id, error = %chain(&error), "followed without its connection; connect it again");
                None
            })
            .unwrap_or_default()
    }

    fn mirror_directory(&self, fleet: &Fleet) -> PathBuf {
        hosting::place(&self.data_dir.join("repos"), fleet)
    }

    /// Whether the repo of a fleet can be reached from here. Of several replicas, some may lack one that is hosted.
    pub fn has_repo(&self, fleet: &Fleet) -> bool {
        !fleet.hosted || self.replica.peers.is_none() || self.hosted_directory(fleet).is_dir()
    }

    /// Where the repo of a fleet is that the controller hosts itself.
    pub fn hosted_directory(&self, fleet: &Fleet) -> PathBuf {
        hosting::place(&self.data_dir.join("hosted"), fleet)
    }

    /// The fleet with its repo where it is now: the data directory may have moved since a hosted repo was made.
    fn located(&self, fleet: &Fleet) -> Fleet {
        let mut located = fleet.clone();
        if fleet.hosted {
            located.repo = self.hosted_directory(fleet).display().to_string();
            located.trusted = true;
        }
        located
    }

    fn followed(&self) -> std::sync::MutexGuard<'_, HashMap<FleetId, Followed>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a repo lies, if it is given by an absolute path.
fn local_path(repo: &str) -> Option<PathBuf> {
    let path = Path::new(repo);
    (path.is_absolute() && path.is_dir()).then(|| path.to_owned())
}
