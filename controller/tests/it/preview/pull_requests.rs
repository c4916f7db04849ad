//! Pull requests: what their host is told, and what not.

use std::{path::Path, sync::Arc, time::Duration};

use git2::Oid;
use longshore_controller::{
    forge::{PullRequest, StatusState, watch::PullRequests},
    preview::{Link, pull_requests::Previews},
    replica::Lease,
    secret::Keyring,
    source::{Observation, mirror::Mirror},
    store::{
        fleets,
        previews::{self, Reported},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    host::{Host, pull, rate_limited, unavailable},
    world::{World, device, groups, map},
};
use crate::reconcile::world::{Change as Edit, overlay, shops, write};

const DEADLINE: Duration = Duration::from_secs(30);

/// A world whose pull requests are previewed.
struct Hosted {
    world: World,
    host: Host,
    mirror: Mirror,
    pulls: watch::Sender<PullRequests>,
    seen: watch::Sender<Observation>,
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Hosted {
    async fn new() -> Self {
        let mut files = groups(&["kiosk", "till"]);
        files.extend([
            device("k1", "kiosk", ""),
            device("k2", "kiosk", ""),
            device("t1", "till", ""),
        ]);
        let world = World::new(&files).await;
        let fleet = fleets::Fleet {
            repo: world.repo.path().display().to_string(),
            trusted: true,
            ..crate::store::samples::fleet("default", "shops")
        };
        let mut db = world.store.write().await.unwrap();
        fleets::insert(&mut db, &fleet).await.unwrap();
        db.commit().await.unwrap();
        let mirror = Mirror::open(world.directory().join("mirror"), &fleet, None)
            .await
            .unwrap();
        let mut hosted = Self {
            world,
            host: Host::default(),
            mirror,
            pulls: watch::Sender::default(),
            seen: watch::Sender::default(),
            stop: CancellationToken::new(),
            task: None,
        };
        hosted.fetch().await;
        hosted.start();
        hosted
    }

    fn start(&mut self) {
        self.stop = CancellationToken::new();
        let previews = Previews {
            context: "longshore/preview".to_owned(),
            fleet: shops(),
            forge: Arc::new(self.host.clone()),
            mirror: self.mirror.clone(),
            observation: self.seen.subscribe(),
            pull_requests: self.pulls.subscribe(),
            engine: self.world.engine.clone(),
            store: self.world.store.clone(),
            link: link(),
            lease: Lease::always(),
        };
        self.task = Some(tokio::spawn(previews.run(self.stop.clone())));
    }

    async fn restart(&mut self) {
        self.stop.cancel();
        self.task.take().unwrap().await.unwrap();
        self.start();
    }

    /// Sees the tracked branch as it is.
    async fn fetch(&self) {
        let refs = self.mirror.fetch().await.unwrap();
        self.seen.send_modify(|seen| seen.refs = Some(refs));
    }

    /// A commit on top of the tracked one, as the head of a pull request.
    fn propose(&self, number: u64, edits: &[Edit]) -> PullRequest {
        let base = self.world.repo.tip("main").unwrap();
        let head = self.world.repo.make(Some(base), edits);
        self.point(number, head);
        pull(number, head)
    }

    fn point(&self, number: u64, head: Oid) {
        let name = format!("refs/pull/{number}/head");
        let repo = self.world.repo.open();
        repo.reference(&name, head, true, "test").unwrap();
    }

    fn open(&self, pulls: impl Into<Arc<[PullRequest]>>) {
        let open = Some(pulls.into());
        self.pulls.send_modify(|list| list.open = open);
    }

    /// Waits until a pull request's status is not pending, and everything else is told.
    async fn told(&self, pull: &PullRequest) -> (StatusState, String) {
        self.until("the preview is told", async || {
            let known = self.known().await;
            let known = known.iter().find(|known| known.number == pull.number);
            known.is_some_and(|known| known.told.done && known.head == pull.head_commit)
        })
        .await;
        self.host.status(&pull.head_commit).unwrap()
    }

    async fn known(&self) -> Vec<Reported> {
        let mut db = self.world.store.read().await.unwrap();
        previews::list(&mut db, &shops()).await.unwrap()
    }

    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let waiting = async {
            while !is_so().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, waiting).await;
        assert!(waited.is_ok(), "not in time: {what}: {:?}", self.host);
    }
}

fn link() -> Link {
    let keyring = Keyring::open(Path::new("/nonexistent"), Some(&"07".repeat(32).into())).unwrap();
    Link {
        keyring: Arc::new(keyring),
        public_url: "https://longshore.example".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_request_is_told_once_and_again_when_it_changes() {
    let mut hosted = Hosted::new().await;
    let first = hosted.propose(7, &[map("groups/kiosk/own.yaml", "kiosk", "2")]);
    hosted.open([first.clone()]);
    let told = hosted.told(&first).await;
    assert_eq!(told, (StatusState::Success, "2 devices change".to_owned()));
    let comment = hosted.host.comment(7).unwrap();
    assert!(comment.contains("+  value: \"2\""), "{comment}");
    assert!(comment.contains("k1, k2"), "{comment}");
    let calls = hosted.host.known().told;
    assert_eq!(calls, 3, "pending, success, comment");

    hosted.restart().await;
    let other = hosted.propose(8, &[write("README.md", "hello")]);
    hosted.open([first.clone(), other.clone()]);
    let told = hosted.told(&other).await;
    assert_eq!(told, (StatusState::Success, "no device changes".to_owned()));
    assert!(hosted.host.comment(8).is_none(), "there is nothing to say");
    assert_eq!(hosted.host.known().told, calls + 2, "only the new one");

    // A push mends nothing and breaks something.
    let second = hosted.propose(7, &[overlay("groups/kiosk", &["nope.yaml"])]);
    hosted.open([second.clone(), other.clone()]);
    let problem = "groups/kiosk/kustomization.yaml:4: `nope.yaml` does not exist";
    assert_eq!(
        hosted.told(&second).await,
        (StatusState::Failure, problem.to_owned())
    );
    let third = hosted.propose(7, &[write("README.md", "hello")]);
    hosted.open([third.clone(), other]);
    hosted.told(&third).await;
    let comment = hosted.host.comment(7).unwrap();
    assert!(
        comment.contains("no device changes"),
        "kept up to date: {comment}"
    );

    hosted.open([]);
    hosted
        .until("closed ones are forgotten", async || {
            hosted.known().await.is_empty()
        })
        .await;
    let mirror = git2::Repository::open_bare(hosted.world.directory().join("mirror")).unwrap();
    assert_eq!(
        mirror
            .references_glob("refs/longshore/preview/*")
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_is_not_even_fetched_unless_the_tracked_branch_says_so() {
    let hosted = Hosted::new().await;
    let fork = PullRequest {
        is_from_fork: true,
        head_branch: "longshore/enroll/k1".to_owned(),
        ..hosted.propose(
            9,
            &[
                map("base/shared.yaml", "shared", "2"),
                // What the fork itself says does not count.
                write("fleet.yaml", allowing_forks()),
            ],
        )
    };
    hosted.open([fork.clone()]);
    let (state, why) = hosted.told(&fork).await;
    assert_eq!(state, StatusState::Failure);
    assert!(why.contains("from a fork"), "{why}");
    assert!(hosted.host.comment(9).is_none());
    let head = Oid::from_str(&fork.head_commit).unwrap();
    assert!(!hosted.mirror.has_commit(head).await.unwrap());
    assert_eq!(hosted.world.builds(), 0);

    hosted
        .world
        .repo
        .commit("main", &[write("fleet.yaml", allowing_forks())]);
    hosted.fetch().await;
    hosted
        .until("it is rendered now", async || {
            hosted.host.status(&fork.head_commit)
                == Some((StatusState::Success, "3 devices change".to_owned()))
        })
        .await;
}

fn allowing_forks() -> String {
    format!(
        "{}spec: {{previews: {{forks: true}}}}\n",
        crate::reconcile::world::FLEET
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn previews_are_of_the_merge_and_follow_the_tracked_branch() {
    let hosted = Hosted::new().await;
    let behind = hosted.propose(1, &[map("groups/kiosk/own.yaml", "kiosk", "2")]);
    let conflicting = hosted.propose(2, &[map("base/shared.yaml", "shared", "two")]);
    hosted.world.repo.commit(
        "main",
        &[
            map("groups/till/own.yaml", "till", "3"),
            map("base/shared.yaml", "shared", "three"),
        ],
    );
    hosted.fetch().await;
    hosted.open([behind.clone(), conflicting.clone()]);
    assert_eq!(hosted.told(&behind).await.1, "2 devices change");
    let comment = hosted.host.comment(1).unwrap();
    assert!(
        !comment.contains("till"),
        "what main has is no change: {comment}"
    );
    assert_eq!(hosted.told(&conflicting).await.1, "3 devices change");
    let comment = hosted.host.comment(2).unwrap();
    assert!(
        comment.contains("conflicts with the tracked branch"),
        "{comment}"
    );

    hosted
        .world
        .repo
        .commit("main", &[map("groups/kiosk/own.yaml", "kiosk", "2")]);
    hosted.fetch().await;
    hosted
        .until("the preview follows", async || {
            hosted.host.status(&behind.head_commit).unwrap().1 == "no device changes"
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_fails_is_told_later() {
    let hosted = Hosted::new().await;
    hosted.host.fail(unavailable());
    hosted.host.fail(rate_limited(3));
    let pull = hosted.propose(7, &[map("groups/kiosk/own.yaml", "kiosk", "2")]);
    let begun = tokio::time::Instant::now();
    hosted.open([pull.clone()]);
    hosted.told(&pull).await;
    assert!(hosted.host.comment(7).is_some());
    assert!(
        begun.elapsed() >= Duration::from_secs(5),
        "2 s of our own, and 3 that it asked for"
    );
    assert!(hosted.host.known().failures.is_empty());
}

#[test]
fn a_link_opens_one_report() {
    let link = link();
    let url = link.to(&shops(), 7, "abc");
    let (page, key) = url.split_once("?key=").unwrap();
    assert_eq!(page, "https://longshore.example/previews/default/shops/7");
    assert!(link.opens(&shops(), 7, "abc", key));
    assert!(!link.opens(&shops(), 7, "abd", key));
    assert!(!link.opens(&shops(), 8, "abc", key));
}
