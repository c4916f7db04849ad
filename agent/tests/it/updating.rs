//! From one set to the next: windows, hooks, and the way back.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use longshore_agent::{
    backoff::Backoff,
    clock,
    files::Folder,
    ledger::Ledger,
    reconcile::{Reconciler, Timing},
    report::Reporter,
    runtime::{
        ApplyError, Changes, Runtime,
        health::{Health, ObjectHealth},
    },
    update::{Policy, Updates, hooks::Hooks},
};
use longshore_protocol::{
    ConditionStatus, Object, ObjectKey,
    message::{Phase, StatusReport},
    session::Holding,
};
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{until, until_true};

/// What happened, in order: `prepare 2`, `apply 2`, …
type Log = Arc<Mutex<Vec<String>>>;

/// A runtime in which objects with the data `sick` never become healthy.
struct Fake {
    log: Log,
    runs: Option<Arc<Holding>>,
}

fn is_sick(object: &Object) -> bool {
    object.value()["data"]["text"] == "sick"
}

#[async_trait]
impl Runtime for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn prepare(&mut self, holding: &Holding) -> Result<(), ApplyError> {
        let line = format!("prepare {}", holding.generation());
        self.log.lock().unwrap().push(line);
        Ok(())
    }

    async fn apply(&mut self, holding: Arc<Holding>) -> Result<Changes, ApplyError> {
        if self.runs.as_ref().map(|runs| runs.held()) != Some(holding.held()) {
            let line = format!("apply {}", holding.generation());
            self.log.lock().unwrap().push(line);
        }
        self.runs = Some(holding);
        Ok(Changes::default())
    }

    async fn health(&mut self) -> Option<Vec<ObjectHealth>> {
        let sick = self.runs.iter().flat_map(|runs| runs.objects());
        let health = |object: &ObjectKey| ObjectHealth {
            object: object.clone(),
            health: Health::InProgress,
            message: "0 of 1 ready".into(),
        };
        let sick = sick.filter(|object| is_sick(object));
        Some(sick.map(|object| health(object.key())).collect())
    }

    async fn clear(&mut self) -> Result<Changes, ApplyError> {
        Ok(Changes::default())
    }

    async fn disturbed(&mut self) {
        std::future::pending::<()>().await;
    }
}

struct Device {
    dir: tempfile::TempDir,
    policy: Policy,
    log: Log,
    target: watch::Sender<Option<Arc<Holding>>>,
    report: watch::Receiver<StatusReport>,
    stop: CancellationToken,
    task: JoinHandle<Box<Fake>>,
}

impl Device {
    fn start(policy: Policy) -> Self {
        let (dir, log) = (tempfile::tempdir().unwrap(), Log::default());
        Self::boot(dir, policy, log, None)
    }

    fn boot(
        dir: tempfile::TempDir,
        policy: Policy,
        log: Log,
        wanted: Option<Arc<Holding>>,
    ) -> Self {
        let ledger = Arc::new(Ledger::new(Folder::open(dir.path()).unwrap()));
        let target = watch::Sender::new(wanted);
        let reporter = Reporter::new(None, clock::system);
        let short = Duration::from_millis(20);
        let timing = Timing {
            check: Duration::from_millis(100),
            progress: short,
            settle: short,
        };
        let runtime = Fake {
            log: log.clone(),
            runs: None,
        };
        let reconciler = Reconciler::new(
            Box::new(runtime),
            target.subscribe(),
            reporter.clone(),
            timing,
            Backoff::new(short, short, StdRng::seed_from_u64(1)),
        )
        .carefully(Updates::new(policy.clone(), ledger.record()), ledger);
        let stop = CancellationToken::new();
        let task = tokio::spawn(reconciler.run(stop.clone()));
        Self {
            dir,
            policy,
            log,
            target,
            report: reporter.follow(),
            stop,
            task,
        }
    }

    /// Stops, and starts with what is on the disk.
    async fn reboot(self) -> Self {
        self.stop.cancel();
        self.task.await.unwrap();
        let wanted = self.target.borrow().clone();
        Self::boot(self.dir, self.policy, self.log, wanted)
    }

    async fn wants(&mut self, generation: u64, text: &str, phase: Phase) {
        let object = Object::from_value(&json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a"}, "data": {"text": text}}))
        .unwrap();
        let holding = Holding::new(generation.into(), "c0ffee".into(), [object]).unwrap();
        self.target.send_replace(Some(Arc::new(holding)));
        self.is(generation, phase).await;
    }

    async fn is(&mut self, generation: u64, phase: Phase) {
        let what = format!("generation {generation} {phase:?}");
        until(&mut self.report, &what, |report| {
            report.held.generation.number() == generation && report.phase == phase
        })
        .await;
    }

    async fn says(&mut self, kind: &str, reason: &str) -> String {
        let what = format!("{kind} {reason}");
        let matches = |report: &StatusReport| {
            let mut conditions = report.conditions.iter();
            conditions.any(|it| it.kind == kind && it.reason == reason)
        };
        until(&mut self.report, &what, matches).await;
        let report = self.report.borrow();
        let condition = report.conditions.iter().find(|it| it.kind == kind).unwrap();
        assert_eq!(condition.status, ConditionStatus::True);
        condition.message.clone()
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    fn saw(&self, line: &str) -> bool {
        self.log().iter().any(|it| it == line)
    }
}

fn hook(dir: &Path, name: &str, script: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn impatient() -> Policy {
    Policy {
        deadline: Some(Duration::from_millis(300)),
        ..Policy::default()
    }
}

#[tokio::test]
async fn a_set_that_does_not_become_healthy_gives_way_to_the_last_good_one() {
    let mut device = Device::start(impatient());
    device.wants(1, "well", Phase::Applied).await;
    device.wants(2, "sick", Phase::Failed).await;
    let why = device.says("RolledBack", "NotHealthy").await;
    assert!(
        why.contains("generation 1") && why.contains("0 of 1 ready"),
        "{why}"
    );
    let expected = ["apply 1", "prepare 2", "apply 2", "apply 1"];
    assert_eq!(device.log(), expected);
    // Nor is it tried again after a restart, which starts with the good one at once.
    let mut device = device.reboot().await;
    device.is(2, Phase::Failed).await;
    assert_eq!(device.log()[4..], ["apply 1"]);
    device.wants(3, "well again", Phase::Applied).await;
    until_true("the third set is good", || {
        Ledger::new(Folder::open(device.dir.path()).unwrap())
            .record()
            .good
            .is_some_and(|good| good.generation().number() == 3)
    })
    .await;
    let report = device.report.borrow().clone();
    assert!(
        report.conditions.iter().all(|it| it.kind != "RolledBack"),
        "{report:?}"
    );
}

#[tokio::test]
async fn nothing_is_taken_back_where_nothing_was_good_before() {
    let mut device = Device::start(impatient());
    device.wants(1, "sick", Phase::Applied).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(device.log(), ["apply 1"]);
    assert_eq!(device.report.borrow().phase, Phase::Applied);
}

#[tokio::test]
async fn an_update_outside_its_windows_waits() {
    let mut policy = impatient();
    policy.windows = vec!["0 0 29 2 * UTC for 1m".parse().unwrap()];
    let mut device = Device::start(policy);
    device.wants(1, "well", Phase::Applied).await;
    device.wants(2, "better", Phase::Pending).await;
    let why = device.says("UpdateHeld", "OutsideWindow").await;
    assert!(why.contains("-02-29T00:00:00Z"), "{why}");
    assert_eq!(device.log(), ["apply 1"]);
}

#[tokio::test]
async fn an_update_does_not_begin_while_the_hook_before_it_fails() {
    let scripts = tempfile::tempdir().unwrap();
    let go = scripts.path().join("go");
    let script = format!(
        "test -e {} || {{ echo not yet >&2; exit 7; }}",
        go.display()
    );
    let before = hook(scripts.path(), "before", &script);
    let hooks = Hooks {
        before: Some(before),
        after: None,
        timeout: Duration::from_mins(1),
    };
    let mut device = Device::start(Policy {
        hooks,
        ..impatient()
    });
    device.wants(1, "well", Phase::Applied).await;
    device.wants(2, "better", Phase::Pending).await;
    let why = device.says("UpdateHeld", "BeforeUpdateFailed").await;
    assert!(why.contains("not yet") && why.contains('7'), "{why}");
    assert!(!device.saw("apply 2"));
    fs::write(&go, "").unwrap();
    device.is(2, Phase::Applied).await;
}

#[tokio::test]
async fn an_update_is_taken_back_where_the_hook_after_it_fails() {
    let scripts = tempfile::tempdir().unwrap();
    let after = hook(
        scripts.path(),
        "after",
        "echo generation $LONGSHORE_GENERATION breaks the till >&2; test $LONGSHORE_HOOK = before-update",
    );
    let hooks = Hooks {
        before: None,
        after: Some(after),
        timeout: Duration::from_mins(1),
    };
    let mut device = Device::start(Policy {
        hooks,
        ..impatient()
    });
    device.wants(1, "well", Phase::Applied).await;
    device.wants(2, "better", Phase::Failed).await;
    let why = device.says("RolledBack", "NotHealthy").await;
    assert!(why.contains("generation 2 breaks the till"), "{why}");
    assert_eq!(device.log().last().unwrap(), "apply 1");
}
