use std::collections::BTreeMap;

use longshore_fleet::{
    RepoPath,
    render::RenderFuture,
    tree::{ContentId, Listing, TreeEntry, TreeError},
};
use longshore_protocol::Digest;
use tokio::sync::{Semaphore, watch};

use super::{
    ensure::{Ended, Limits},
    *,
};
use crate::store::tenants;

const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Nothing;

impl Tree for Nothing {
    fn entry(&self, _path: &RepoPath) -> Result<Option<TreeEntry>, TreeError> {
        Ok(None)
    }

    fn list(&self, _dir: &RepoPath) -> Result<Arc<Listing>, TreeError> {
        Ok(Arc::default())
    }

    fn size(&self, _id: ContentId) -> Result<u64, TreeError> {
        Ok(0)
    }

    fn blob(&self, _id: ContentId) -> Result<Vec<u8>, TreeError> {
        Ok(Vec::new())
    }
}

/// Overlays in `hangs` never end, those in `waits` end when the test says so, those in `fails` time out, and all
/// others give nothing at once.
#[derive(Debug)]
struct Fake {
    parallelism: usize,
    may_end: Semaphore,
    /// Which overlays were begun, in order.
    begun: watch::Sender<Vec<String>>,
    running: watch::Sender<usize>,
    most: watch::Sender<usize>,
}

impl Render for Fake {
    fn identity(&self) -> &'static str {
        "fake"
    }

    fn parallelism(&self) -> usize {
        self.parallelism
    }

    fn render<'a>(
        &'a self,
        _owner: &'a str,
        _tree: &'a Arc<dyn Tree>,
        closure: &'a Closure,
    ) -> RenderFuture<'a> {
        Box::pin(async {
            let overlay = closure.overlay.as_str();
            self.begun
                .send_modify(|begun| begun.push(overlay.to_owned()));
            self.running.send_modify(|running| *running += 1);
            self.most
                .send_modify(|most| *most = (*most).max(*self.running.borrow()));
            match overlay.split('/').next() {
                Some("hangs") => std::future::pending::<()>().await,
                Some("waits") => self.may_end.acquire().await.unwrap().forget(),
                Some("panics") => panic!("as the test wants it"),
                _ => {}
            }
            self.running.send_modify(|running| *running -= 1);
            if overlay.starts_with("fails") {
                let limit = Duration::from_secs(1);
                return Err(RenderError::TimedOut { limit });
            }
            Ok(Vec::new())
        })
    }
}

struct World {
    builds: Builds,
    render: Arc<Fake>,
    tree: Arc<dyn Tree>,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new(parallelism: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::embedded(directory.path()).await.unwrap();
        let mut db = store.write().await.unwrap();
        for name in ["one", "other"] {
            tenants::insert(&mut db, &tenant(name), 1).await.unwrap();
        }
        db.commit().await.unwrap();
        let render = Arc::new(Fake {
            parallelism,
            may_end: Semaphore::new(0),
            begun: watch::Sender::default(),
            running: watch::Sender::default(),
            most: watch::Sender::default(),
        });
        let (metrics, tasks) = (Arc::default(), TaskTracker::new());
        Self {
            builds: Builds::new(render.clone(), store, metrics, tasks),
            render,
            tree: Arc::new(Nothing),
            _directory: directory,
        }
    }

    fn asker(&self, of: &str) -> (Asker, Arc<Notify>) {
        let done = Arc::new(Notify::new());
        let asker = self.builds.asker(&tenant(of), Purpose::Devices, &done);
        (asker, done)
    }

    fn start(&self, asker: &Asker, overlay: &str) -> Standing {
        asker.start(&closure(overlay), &self.tree)
    }

    async fn begun(&self, overlays: &[&str]) {
        let mut begun = self.render.begun.subscribe();
        let all = begun.wait_for(|begun| begun.len() >= overlays.len());
        let all = tokio::time::timeout(DEADLINE, all).await;
        let mut begun = all.expect("they begin").unwrap().clone();
        if self.render.parallelism > 1 {
            // What begins at the same moment has no order.
            begun.sort();
        }
        assert_eq!(begun, overlays);
    }

    async fn is_known(&self, of: &str, overlay: &str) -> bool {
        let key = (tenant(of), closure(overlay).key);
        self.builds.is_known(&key).await
    }

    /// Waits as an asker does.
    async fn built(&self, of: &str, done: &Notify, overlay: &str) {
        let wait = async {
            while !self.is_known(of, overlay).await {
                done.notified().await;
            }
        };
        tokio::time::timeout(DEADLINE, wait)
            .await
            .expect("it is built");
    }
}

fn tenant(name: &str) -> TenantName {
    name.parse().unwrap()
}

fn closure(overlay: &str) -> Arc<Closure> {
    Arc::new(Closure {
        key: InputKey(Digest::of(overlay.as_bytes())),
        overlay: RepoPath::new(overlay).unwrap(),
        files: Arc::new([]),
    })
}

fn keys(overlays: &[&str]) -> HashSet<InputKey> {
    overlays
        .iter()
        .map(|overlay| closure(overlay).key)
        .collect()
}

#[tokio::test]
async fn only_so_many_builds_run_at_once() {
    let world = World::new(2).await;
    let (asker, done) = world.asker("one");
    let overlays: Vec<_> = (0..8).map(|number| format!("waits/{number}")).collect();
    for overlay in &overlays {
        world.start(&asker, overlay);
        world.start(&asker, overlay);
    }
    world.begun(&["waits/0", "waits/1"]).await;
    world.render.may_end.add_permits(8);
    for overlay in &overlays {
        world.built("one", &done, overlay).await;
    }
    assert_eq!(*world.render.most.borrow(), 2);
    assert_eq!(world.render.begun.borrow().len(), 8, "each once");
}

#[tokio::test]
async fn a_tenant_whose_builds_hang_delays_nobody_else() {
    let world = World::new(2).await;
    let (hostile, _) = world.asker("one");
    for number in 0..1000 {
        world.start(&hostile, &format!("hangs/{number}"));
    }
    world.begun(&["hangs/0", "hangs/1"]).await;
    let (asker, done) = world.asker("other");
    for overlay in ["a", "b", "c"] {
        world.start(&asker, overlay);
        world.built("other", &done, overlay).await;
    }
}

#[tokio::test]
async fn what_was_replaced_is_not_built() {
    let world = World::new(1).await;
    let (asker, done) = world.asker("one");
    let (second, _) = world.asker("one");
    let old = ["waits/0", "waits/1", "waits/2", "waits/3"];
    for overlay in old {
        world.start(&asker, overlay);
    }
    world.start(&second, "waits/2");
    world.begun(&["waits/0"]).await;
    asker.keep_only(&keys(&["waits/3", "new"]));
    world.start(&asker, "new");
    world.render.may_end.add_permits(9);
    world.built("one", &done, "new").await;
    world.built("one", &done, "waits/3").await;
    world.begun(&["waits/0", "waits/3", "waits/2", "new"]).await;
    let stored = async {
        // Its place is free a moment before its result is in the store.
        while !world.is_known("one", "waits/0").await {
            tokio::task::yield_now().await;
        }
    };
    let stored = tokio::time::timeout(DEADLINE, stored).await;
    stored.expect("it ran already");

    drop((asker, second));
    let forgotten = async {
        // The last build is in the store a moment before it is forgotten here.
        while !world.builds.state().jobs.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let forgotten = tokio::time::timeout(DEADLINE, forgotten).await;
    forgotten.expect("it is forgotten");
    assert!(world.builds.state().askers.is_empty());
}

#[tokio::test]
async fn a_preview_that_is_given_up_begins_no_more_builds() {
    let world = World::new(2).await;
    let wanted: Vec<_> = ["waits/0", "waits/1", "waits/2"]
        .map(|overlay| (closure(overlay), world.tree.clone()))
        .into();
    let limits = Limits {
        builds: 9,
        time: DEADLINE,
    };
    let tenant = tenant("one");
    let ensure = world.builds.ensure(&tenant, wanted.clone(), limits);
    tokio::select! {
        _ = ensure => panic!("it cannot end"),
        () = async {
            let mut begun = world.render.begun.subscribe();
            begun.wait_for(|begun| begun.len() == 1).await.unwrap();
        } => {}
    }
    world.render.may_end.add_permits(9);
    world
        .render
        .running
        .subscribe()
        .wait_for(|running| *running == 0)
        .await
        .unwrap();
    assert_eq!(
        world.render.begun.borrow().len(),
        1,
        "half of the places are for previews"
    );

    let ended = world.builds.ensure(&tenant, wanted, limits).await.unwrap();
    let expected =
        ["waits/0", "waits/1", "waits/2"].map(|overlay| (closure(overlay).key, Ended::Built));
    assert_eq!(ended, BTreeMap::from(expected));
}

#[tokio::test]
async fn a_place_survives_a_panic_and_a_failure_is_told() {
    let world = World::new(1).await;
    let (asker, done) = world.asker("one");
    for (overlay, expected) in [
        (
            "panics",
            "the build broke off; the controller's log says why",
        ),
        ("fails", "the build took longer than 1 s"),
    ] {
        world.start(&asker, overlay);
        let told = async {
            loop {
                done.notified().await;
                if let Standing::Failed { message, again } = world.start(&asker, overlay) {
                    return (message, again);
                }
            }
        };
        let told = tokio::time::timeout(DEADLINE, told).await;
        assert_eq!(told.expect("it is told"), (expected.to_owned(), false));
    }
}

impl World {
    /// Lets builds that were started end while somebody else writes, and returns how many transactions stored them.
    async fn end_together(&self, builds: usize) -> u64 {
        let before = self.builds.metrics.build_flushes.get();
        let other = self.builds.store.write().await.unwrap();
        self.render.may_end.add_permits(builds);
        let all = async {
            // One has its turn, and all others wait for theirs.
            while self.builds.shelf.waiting() < builds - 1 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(DEADLINE, all).await.expect("they end");
        drop(other);
        let none_runs = async {
            let is_running = |job: &Job| job.phase == Phase::Running;
            while self.builds.state().jobs.values().any(is_running) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let stored = tokio::time::timeout(DEADLINE, none_runs).await;
        stored.expect("they are stored");
        self.builds.metrics.build_flushes.get() - before
    }
}

#[tokio::test]
async fn builds_that_end_together_are_stored_together() {
    let world = World::new(40).await;
    let (asker, done) = world.asker("one");
    let overlays: Vec<_> = (0..40).map(|number| format!("waits/{number}")).collect();
    for overlay in &overlays {
        world.start(&asker, overlay);
    }
    assert_eq!(world.end_together(40).await, 2, "the first, and the others");
    for overlay in &overlays {
        world.built("one", &done, overlay).await;
    }
}

#[tokio::test]
async fn a_build_that_cannot_be_stored_keeps_no_other_out() {
    let world = World::new(5).await;
    let (asker, done) = world.asker("one");
    // The store knows no such tenant.
    let (nobody, _) = world.asker("nobody");
    world.start(&asker, "waits/0");
    world.start(&nobody, "waits/1");
    world.start(&asker, "waits/2");
    world.start(&asker, "waits/3");
    world.end_together(4).await;
    for overlay in ["waits/0", "waits/2", "waits/3"] {
        world.built("one", &done, overlay).await;
    }
    let Standing::Failed { message, .. } = world.start(&nobody, "waits/1") else {
        panic!("nobody's build is stored");
    };
    assert!(message.contains("store"), "{message}");
}

/// Places are counted here, and not time.
#[tokio::test]
async fn ten_thousand_builds_of_one_tenant_are_one_turn_to_another() {
    let world = World::new(2).await;
    let (crowd, _) = world.asker("one");
    for number in 0..10_000 {
        world.start(&crowd, &format!("waits/{number}"));
    }
    world.begun(&["waits/0", "waits/1"]).await;
    let (asker, done) = world.asker("other");
    // Each time it comes anew, and behind everybody who waits.
    for round in 0..5 {
        let before = world.render.begun.borrow().len();
        let alone = format!("alone/{round}");
        world.start(&asker, &alone);
        world.render.may_end.add_permits(3);
        world.built("other", &done, &alone).await;
        let begun = world.render.begun.borrow().clone();
        let position = begun.iter().skip(before).position(|it| *it == alone);
        // Behind what had its turn already, and no more.
        assert!(position.expect("it began") <= 4, "{:?}", &begun[before..]);
    }
}

#[tokio::test]
async fn many_builds_are_few_pokes() {
    let world = World::new(1).await;
    let (asker, done) = world.asker("one");
    let overlays: Vec<_> = (0..50).map(|number| number.to_string()).collect();
    for overlay in &overlays {
        world.start(&asker, overlay);
    }
    let all = async {
        let mut pokes = 0;
        while !world
            .builds
            .state()
            .askers
            .values()
            .all(|asking| asking.keys.is_empty())
        {
            done.notified().await;
            pokes += 1;
        }
        pokes
    };
    let started = Instant::now();
    let pokes = tokio::time::timeout(DEADLINE, all)
        .await
        .expect("it is poked");
    let most = 2 + started.elapsed().as_millis() / BETWEEN_POKES.as_millis();
    assert!(pokes <= most, "{pokes} pokes");
}
