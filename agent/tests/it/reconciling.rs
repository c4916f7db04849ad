//! The loop over a real directory: drift, failures, restarts.

use std::{path::Path, sync::Arc, time::Duration};

use longshore_agent::{
    backoff::Backoff,
    clock,
    reconcile::{Reconciler, Timing},
    report::Reporter,
    runtime::directory::Directory,
};
use longshore_protocol::{
    ConditionStatus, DeviceId,
    message::{Phase, StatusReport},
    session::Holding,
};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{holding, object, until, until_true};

struct Loop {
    target: watch::Sender<Option<Arc<Holding>>>,
    report: watch::Receiver<StatusReport>,
    stop: CancellationToken,
    task: JoinHandle<Box<Directory>>,
}

fn start(path: &Path, timing: Timing) -> Loop {
    let target = watch::Sender::new(None);
    let reporter = Reporter::new(None, clock::system);
    let short = Duration::from_millis(50);
    let reconciler = Reconciler::new(
        Box::new(Directory::new(
            path.to_owned(),
            DeviceId::from_random([1; 16]),
        )),
        target.subscribe(),
        reporter.clone(),
        timing,
        Backoff::new(short, short, StdRng::seed_from_u64(1)),
    );
    let stop = CancellationToken::new();
    let task = tokio::spawn(reconciler.run(stop.clone()));
    Loop {
        target,
        report: reporter.follow(),
        stop,
        task,
    }
}

impl Loop {
    fn want(&self, holding: Holding) {
        self.target.send_replace(Some(Arc::new(holding)));
    }

    async fn phase(&mut self, generation: u64, phase: Phase) {
        let what = format!("generation {generation} {phase:?}");
        until(&mut self.report, &what, |report| {
            report.held.generation.number() == generation && report.phase == phase
        })
        .await;
    }

    async fn condition(&mut self, kind: &str, status: ConditionStatus) -> String {
        let what = format!("{kind} {status:?}");
        until(&mut self.report, &what, |report| {
            report
                .conditions
                .iter()
                .any(|it| it.kind == kind && it.status == status)
        })
        .await;
        let report = self.report.borrow();
        let found = report.conditions.iter().find(|it| it.kind == kind).unwrap();
        format!("{}: {}", found.reason, found.message)
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// A timer that no test waits for.
const NEVER: Duration = Duration::from_hours(1);
const SETTLE: Duration = Duration::from_millis(20);

#[tokio::test]
async fn drift_is_seen_repaired_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let mut looped = start(
        &path,
        Timing {
            check: NEVER,
            settle: SETTLE,
            ..Timing::default()
        },
    );
    looped.want(holding(1, [object("a", "1"), object("b", "1")]));
    looped.phase(1, Phase::Applied).await;
    std::fs::write(path.join("v1.configmap.a.yaml"), "edited").unwrap();
    let message = looped.condition("Drifted", ConditionStatus::True).await;
    assert_eq!(message, "Repaired: wrote v1.configmap.a.yaml");
    assert!(
        std::fs::read_to_string(path.join("v1.configmap.a.yaml"))
            .unwrap()
            .contains("text: ")
    );
    // The whole directory goes, and comes back with a new watch on it; twice, to see that the watch works.
    for _ in 0..2 {
        std::fs::remove_dir_all(&path).unwrap();
        let file = path.join("kustomization.yaml");
        until_true("the directory is back", || file.exists()).await;
    }
    looped.stop().await;
}

#[tokio::test]
async fn the_timer_finds_everything_in_place_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let mut looped = start(
        &path,
        Timing {
            check: Duration::from_millis(300),
            settle: SETTLE,
            ..Timing::default()
        },
    );
    looped.want(holding(1, [object("a", "1")]));
    looped.phase(1, Phase::Applied).await;
    std::fs::remove_file(path.join("v1.configmap.a.yaml")).unwrap();
    looped.condition("Drifted", ConditionStatus::True).await;
    looped.condition("Drifted", ConditionStatus::False).await;
    looped.stop().await;
}

#[tokio::test]
async fn what_fails_is_tried_again_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("kustomization.yaml"), "resources: []\n").unwrap();
    let mut looped = start(
        dir.path(),
        Timing {
            check: NEVER,
            settle: SETTLE,
            ..Timing::default()
        },
    );
    looped.want(holding(1, [object("a", "1")]));
    looped.phase(1, Phase::Failed).await;
    let message = looped.condition("Applied", ConditionStatus::False).await;
    assert!(
        message.starts_with("ForeignFile: ") && message.contains("move it away"),
        "{message}"
    );
    std::fs::remove_file(dir.path().join("kustomization.yaml")).unwrap();
    looped.phase(1, Phase::Applied).await;
    looped.stop().await;
}

#[tokio::test]
async fn a_failing_set_gives_way_to_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("v1.configmap.bad.yaml")).unwrap();
    let mut looped = start(
        dir.path(),
        Timing {
            check: NEVER,
            settle: SETTLE,
            ..Timing::default()
        },
    );
    looped.want(holding(1, [object("bad", "1")]));
    looped.phase(1, Phase::Failed).await;
    looped.want(holding(2, [object("good", "1")]));
    looped.phase(2, Phase::Applied).await;
    assert!(dir.path().join("v1.configmap.good.yaml").exists());
    assert!(dir.path().join("v1.configmap.bad.yaml").is_dir());
    looped.stop().await;
}
