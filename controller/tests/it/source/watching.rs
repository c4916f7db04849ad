//! Following a repo: what makes a source look, and when it looks again by itself.

use std::{path::PathBuf, sync::Arc, time::Duration};

use longshore_controller::source::{Observation, Source};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Mirrored,
    host::{Host, Mood},
};
use crate::repo::Repo;

const DEADLINE: Duration = Duration::from_secs(20);

/// A source that runs.
struct Running {
    _mirrored: Mirrored,
    observation: watch::Receiver<Observation>,
    poke: Arc<Notify>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(mirrored: Mirrored, local: Option<PathBuf>, interval: Duration) -> Self {
        let (found, observation) = watch::channel(Observation::default());
        let (poke, shutdown) = (Arc::<Notify>::default(), CancellationToken::new());
        let source = Source {
            mirror: mirrored.mirror.clone(),
            local,
            interval,
            poke: poke.clone(),
            fetches: watch::Sender::default(),
        };
        let task = tokio::spawn(source.run(found, shutdown.clone()));
        Self {
            _mirrored: mirrored,
            observation,
            poke,
            shutdown,
            task,
        }
    }

    async fn sees(&mut self, what: &str, is_so: impl Fn(&Observation) -> bool) -> Observation {
        let seen = tokio::time::timeout(DEADLINE, self.observation.wait_for(is_so)).await;
        seen.unwrap_or_else(|_| panic!("not in time: {what}"))
            .unwrap()
            .clone()
    }

    async fn sees_tip(&mut self, tip: git2::Oid) {
        self.sees("the tip", |seen| {
            let tracked = seen.refs.as_ref().and_then(|refs| refs.tracked.as_ref());
            seen.problem.is_none() && tracked.is_some_and(|commit| commit.id == tip)
        })
        .await;
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.task)
            .await
            .unwrap()
            .unwrap();
    }
}

const NEVER: Duration = Duration::from_hours(24);

#[tokio::test]
async fn a_local_repo_is_looked_at_as_soon_as_it_changes() {
    let repo = Repo::new();
    let first = repo.commit("main", &[("a", Some("1"))]);
    let mirrored = Mirrored::of(&repo, "main").await;
    let mut running = Running::start(mirrored, Some(repo.path()), NEVER);
    running.sees_tip(first).await;
    let started = Instant::now();
    for n in 2..6 {
        let tip = repo.commit("main", &[("a", Some(n.to_string()))]);
        running.sees_tip(tip).await;
    }
    // Packing the refs moves them to another file.
    repo.git(&["pack-refs", "--all"]);
    let tip = repo.commit("main", &[("a", Some("packed"))]);
    running.sees_tip(tip).await;
    repo.point("longshore/enroll/device-1", tip);
    running
        .sees("the branch", |seen| {
            seen.refs
                .as_ref()
                .is_some_and(|refs| refs.enrollment.len() == 1)
        })
        .await;
    assert!(started.elapsed() < Duration::from_secs(10));
    running.stop().await;
}

#[tokio::test]
async fn it_looks_by_itself_too() {
    let repo = Repo::new();
    let first = repo.commit("main", &[("a", Some("1"))]);
    let mirrored = Mirrored::of(&repo, "main").await;
    let mut running = Running::start(mirrored, None, Duration::from_millis(50));
    running.sees_tip(first).await;
    let tip = repo.commit("main", &[("a", Some("2"))]);
    running.sees_tip(tip).await;
    running.stop().await;
}

#[tokio::test]
async fn nothing_new_is_no_news() {
    let repo = Repo::new();
    let first = repo.commit("main", &[("a", Some("1"))]);
    let mirrored = Mirrored::of(&repo, "main").await;
    let mut running = Running::start(mirrored, None, Duration::from_millis(20));
    running.sees_tip(first).await;
    running.observation.mark_unchanged();
    for _ in 0..5 {
        running.poke.notify_one();
    }
    // The branch that comes after them shows that they were carried out.
    repo.point("longshore/enroll/device-1", first);
    running.observation.changed().await.unwrap();
    let seen = running.observation.borrow().clone();
    assert_eq!(seen.refs.unwrap().enrollment.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn what_was_fetched_before_is_in_force_while_the_repo_is_away() {
    let repo = Repo::new();
    let first = repo.commit("main", &[("a", Some("1"))]);
    let mirrored = Mirrored::of(&repo, "main").await;
    mirrored.mirror.fetch().await.unwrap();
    let away = repo.path().with_extension("away");
    std::fs::rename(repo.path(), &away).unwrap();
    let mut running = Running::start(mirrored, Some(repo.path()), NEVER);
    let seen = running
        .sees("the problem", |seen| seen.problem.is_some())
        .await;
    assert_eq!(seen.refs.unwrap().tracked.unwrap().id, first);
    std::fs::rename(&away, repo.path()).unwrap();
    let tip = repo.commit("main", &[("a", Some("2"))]);
    running.poke.notify_one();
    running.sees_tip(tip).await;
    running.stop().await;
}

#[tokio::test]
async fn a_remote_that_hangs_does_not_hold_up_the_end() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/fleet.git", silent.local_addr().unwrap());
    let mirrored = Mirrored::at(&url, "main", false).await;
    let running = Running::start(mirrored, None, NEVER);
    let _connection = tokio::time::timeout(DEADLINE, silent.accept())
        .await
        .unwrap()
        .unwrap();
    running.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), running.task)
        .await
        .unwrap()
        .unwrap();
}

/// With the clock in the test's hands: it stands still, even where nothing else is to do, but for the test.
#[tokio::test(start_paused = true)]
async fn a_repo_that_does_not_answer_is_asked_less_and_less_often() {
    let (_hold, held) = std::sync::mpsc::channel::<()>();
    tokio::task::spawn_blocking(move || held.recv());
    let repo = Repo::new();
    let mirrored = Mirrored::of(&repo, "main").await;
    let away = repo.path().with_extension("away");
    std::fs::rename(repo.path(), &away).unwrap();
    let path = mirrored.path();
    let mut running = Running::start(mirrored, None, NEVER);
    running
        .sees("the problem", |seen| seen.problem.is_some())
        .await;
    // The problem is the same each time, so what tells of a try is that the mirror is gone for it.
    let mut pauses = Vec::new();
    let mut moved = path.with_extension("moved");
    let mut here = path.clone();
    for _ in 0..4 {
        let known = running.observation.borrow_and_update().problem.clone();
        std::fs::rename(&here, &moved).unwrap();
        std::mem::swap(&mut here, &mut moved);
        let mut waited = Duration::ZERO;
        while running.observation.borrow().problem == known {
            tokio::time::advance(Duration::from_millis(250)).await;
            waited += Duration::from_millis(250);
            // Time enough for a try, if one was begun.
            settle().await;
            assert!(waited < Duration::from_mins(1));
        }
        pauses.push(waited);
    }
    assert!(pauses[0] >= Duration::from_millis(1500), "{pauses:?}");
    assert!(pauses[3] > pauses[0] * 3, "{pauses:?}");
    // A poke does not wait.
    std::fs::rename(&away, repo.path()).unwrap();
    if here != path {
        std::fs::rename(&here, &path).unwrap();
    }
    let tip = repo.commit("main", &[("a", Some("1"))]);
    running.poke.notify_one();
    let observation = &mut running.observation;
    observation
        .wait_for(|seen| {
            let tracked = seen.refs.as_ref().and_then(|refs| refs.tracked.as_ref());
            tracked.is_some_and(|commit| commit.id == tip)
        })
        .await
        .unwrap();
}

/// A host that wants fewer calls gets none until then, whoever pokes; and the poke is not forgotten. The clock is the
/// test's, as above.
#[tokio::test(start_paused = true)]
async fn a_host_that_wants_fewer_calls_gets_none() {
    let (_hold, held) = std::sync::mpsc::channel::<()>();
    tokio::task::spawn_blocking(move || held.recv());
    let repo = Repo::new();
    let tip = repo.commit("main", &[("a", Some("1"))]);
    let host = Host::of(&repo).await;
    // Until when nobody is to call, and when at the latest a poke is heard.
    let moods = [
        (
            Mood::Refusing(429, Some("100")),
            "fewer calls for 100 s",
            99,
            120,
        ),
        (Mood::Refusing(503, Some("7")), "fewer calls for 7 s", 6, 9),
        (Mood::Refusing(429, None), "fewer calls:", 1, 3),
    ];
    for (mood, says, quiet, heard) in moods {
        host.be(mood);
        let mut running = Running::start(host.mirrored().await, None, NEVER);
        let observation = &mut running.observation;
        let problem = |seen: &Observation| seen.problem.clone();
        let seen = observation.wait_for(|seen| problem(seen).is_some()).await;
        let problem = problem(&seen.unwrap()).unwrap();
        assert!(problem.contains(says), "{problem}");
        assert_eq!(host.calls().len(), 1);
        host.be(Mood::Good);
        running.poke.notify_one();
        for _ in 0..quiet {
            tokio::time::advance(Duration::from_secs(1)).await;
            running.poke.notify_one();
            settle().await;
        }
        assert!(host.calls().is_empty(), "{says}");
        // In one step, so that no time passes for the pause that comes after the forced one.
        tokio::time::advance(Duration::from_secs(heard - quiet)).await;
        let has_tip = |seen: &Observation| {
            let tracked = seen.refs.as_ref().and_then(|refs| refs.tracked.as_ref());
            tracked.is_some_and(|commit| commit.id == tip)
        };
        running.observation.wait_for(has_tip).await.unwrap();
        running.shutdown.cancel();
        running.task.await.unwrap();
        host.calls();
    }
}

/// Asking for news costs a host two small calls where there are none.
#[tokio::test]
async fn a_fetch_of_nothing_new_is_two_calls() {
    let repo = Repo::new();
    let tip = repo.commit("main", &[("a", Some("1"))]);
    repo.point("another-branch", tip);
    let host = Host::of(&repo).await;
    let mirrored = host.mirrored().await;
    mirrored.mirror.fetch().await.unwrap();
    host.calls();
    mirrored.mirror.fetch().await.unwrap();
    let calls = host.calls();
    let asked: Vec<_> = calls
        .iter()
        .map(|call| format!("{} {}", call.method, call.path))
        .collect();
    assert_eq!(
        asked,
        [
            "GET /fleet.git/info/refs",
            "POST /fleet.git/git-upload-pack"
        ]
    );
    assert!(
        calls.iter().all(|call| call.protocol == "version=2"),
        "{calls:?}"
    );
}

/// Real time passes, and tasks get on; the paused clock stands.
async fn settle() {
    tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(15)))
        .await
        .unwrap();
}
