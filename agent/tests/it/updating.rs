//! From one set to the next: windows, hooks, and the way back.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
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
        ApplyError, Changes, Runtime, Unapplied,
        health::{Health, ObjectHealth},
    },
    update::{HOLD, Policy, Updates, hooks::Hooks},
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

/// A runtime in which an object's text says how it fares: `sick` ones never become healthy, `fading` ones do not stay
/// so, and `hidden` ones keep it from being known; a set with one that `fails` is not applied, and one that is `strange` is refused.
struct Fake {
    log: Log,
    runs: Option<Arc<Holding>>,
    since: Instant,
}

fn says(object: &Object, text: &str) -> bool {
    object.value()["data"]["text"] == text
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
        if holding.objects().any(|object| says(object, "fails")) {
            return Err(ApplyError::Program("exit code 1".into()));
        }
        if self.runs.as_ref().map(|runs| runs.held()) != Some(holding.held()) {
            self.since = Instant::now();
        }
        let strange = holding.objects().filter(|object| says(object, "strange"));
        let refused = strange.map(|object| Unapplied {
            object: object.key().to_string(),
            reason: "Unsupported",
            message: "no such thing here".into(),
        });
        let refused: Vec<_> = refused.collect();
        self.runs = Some(holding);
        if refused.is_empty() {
            Ok(Changes::default())
        } else {
            Err(ApplyError::Objects(refused))
        }
    }

    fn knows_health(&self) -> bool {
        true
    }

    async fn health(&mut self) -> Option<Vec<ObjectHealth>> {
        let mut all = self.runs.iter().flat_map(|runs| runs.objects());
        if all.any(|object| says(object, "hidden")) {
            return None;
        }
        let sick = self.runs.iter().flat_map(|runs| runs.objects());
        let health = |object: &ObjectKey| ObjectHealth {
            object: object.clone(),
            health: Health::InProgress,
            message: "0 of 1 ready".into(),
        };
        let has_faded = self.since.elapsed() > Duration::from_millis(100);
        let sick =
            sick.filter(|object| says(object, "sick") || (has_faded && says(object, "fading")));
        Some(sick.map(|object| health(object.key())).collect())
    }

    async fn clear(&mut self) -> Result<Changes, ApplyError> {
        Ok(Changes::default())
    }

    async fn disturbed(&mut self) {
        std::future::pending::<()>().await;
    }
}

fn object(name: &str, text: &str) -> Object {
    Object::from_value(&json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name}, "data": {"text": text}}))
    .unwrap()
}

fn held(name: &str, text: &str) -> Object {
    let mut value = object(name, text).value();
    value["metadata"]["annotations"] = json!({HOLD: "enabled"});
    Object::from_value(&value).unwrap()
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
            steady: Duration::from_millis(300),
        };
        let runtime = Fake {
            log: log.clone(),
            runs: None,
            since: Instant::now(),
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
        self.wants_all(generation, [object("a", text)], phase).await;
    }

    async fn wants_all<const N: usize>(
        &mut self,
        generation: u64,
        objects: [Object; N],
        phase: Phase,
    ) {
        let holding = Holding::new(generation.into(), "c0ffee".into(), objects).unwrap();
        self.target.send_replace(Some(Arc::new(holding)));
        self.is(generation, phase).await;
    }

    /// The set of this generation is what to fall back to.
    async fn trusts(&self, generation: u64) {
        until_true("a set is good", || {
            let record = Ledger::new(Folder::open(self.dir.path()).unwrap()).record();
            let base = record.base.map(|base| base.generation().number());
            base == Some(generation) && !record.way.unproven
        })
        .await;
    }

    /// Stops, and says which objects ran, with their texts.
    async fn ran(self) -> Vec<(String, String)> {
        self.stop.cancel();
        let runs = self.task.await.unwrap().runs.unwrap();
        let text = |object: &Object| object.value()["data"]["text"].as_str().unwrap().to_owned();
        let named = |object: &Object| (object.key().name.clone(), text(object));
        runs.objects().map(named).collect()
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
    device.trusts(1).await;
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
    device.trusts(3).await;
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
    device.trusts(1).await;
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
    device.trusts(1).await;
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
    device.trusts(1).await;
    device.wants(2, "better", Phase::Failed).await;
    let why = device.says("RolledBack", "NotHealthy").await;
    assert!(why.contains("generation 2 breaks the till"), "{why}");
    assert_eq!(device.log().last().unwrap(), "apply 1");
}

#[tokio::test]
async fn a_set_that_was_well_for_a_moment_is_not_good() {
    let mut device = Device::start(impatient());
    device.wants(1, "well", Phase::Applied).await;
    device.trusts(1).await;
    device.wants(2, "fading", Phase::Failed).await;
    device.says("RolledBack", "NotHealthy").await;
    assert_eq!(device.ran().await, [("a".into(), "well".into())]);
}

#[tokio::test]
async fn a_set_whose_program_fails_is_taken_back() {
    let mut device = Device::start(impatient());
    device.wants(1, "well", Phase::Applied).await;
    device.trusts(1).await;
    device.wants(2, "fails", Phase::Failed).await;
    let why = device.says("RolledBack", "NotHealthy").await;
    assert!(why.contains("exit code 1"), "{why}");
}

#[tokio::test]
async fn what_a_runtime_never_runs_keeps_no_set_from_being_good() {
    let mut device = Device::start(impatient());
    let strange = || object("service", "strange");
    let first = [object("a", "well"), strange()];
    device.wants_all(1, first, Phase::Failed).await;
    device.trusts(1).await;
    let second = [object("a", "sick"), strange()];
    device.wants_all(2, second, Phase::Failed).await;
    device.says("RolledBack", "NotHealthy").await;
    let ran = [
        ("a".into(), "well".into()),
        ("service".into(), "strange".into()),
    ];
    assert_eq!(device.ran().await, ran);
}

#[tokio::test]
async fn starts_again_and_again_use_up_the_time_of_an_update() {
    let policy = Policy {
        deadline: Some(Duration::from_hours(1)),
        ..Policy::default()
    };
    let mut device = Device::start(policy);
    device.wants(1, "well", Phase::Applied).await;
    device.trusts(1).await;
    device.wants(2, "sick", Phase::Applied).await;
    for _ in 0..19 {
        device = device.reboot().await;
        device.is(2, Phase::Applied).await;
    }
    device = device.reboot().await;
    device.is(2, Phase::Failed).await;
    let why = device.says("RolledBack", "NotHealthy").await;
    assert!(why.contains("again and again"), "{why}");
}

#[tokio::test]
async fn what_is_held_back_stays_also_where_nothing_was_good_before() {
    let mut device = Device::start(impatient());
    let first = [object("a", "sick"), object("b", "1")];
    device.wants_all(1, first, Phase::Applied).await;
    let second = [object("a", "sick again"), held("b", "2"), held("c", "2")];
    device.wants_all(2, second, Phase::Applied).await;
    let message = device.says("UpdateHeld", "Annotated").await;
    assert_eq!(message, "v1/ConfigMap/b, v1/ConfigMap/c");
    let mut device = device.reboot().await;
    device.is(2, Phase::Applied).await;
    let (dir, policy, wanted) = (
        device.dir.path().join("ledger.good"),
        device.policy.clone(),
        device.target.borrow().clone(),
    );
    device.stop.cancel();
    let runs = device.task.await.unwrap().runs.unwrap();
    let named = |runs: &Holding| {
        let objects = runs.objects();
        let named = |it: &Object| format!("{} {}", it.key().name, it.value()["data"]["text"]);
        objects.map(named).collect::<Vec<_>>()
    };
    assert_eq!(named(&runs), ["a \"sick again\"", "b \"1\""]);
    // What runs is not removed where it is not known what it was.
    fs::write(dir, "torn").unwrap();
    let mut device = Device::boot(device.dir, policy, Log::default(), wanted);
    device.is(2, Phase::Applied).await;
    let ran = device.ran().await;
    assert_eq!(ran.len(), 3, "{ran:?}");
}

#[tokio::test]
async fn an_update_of_a_set_that_never_was_good_has_windows_and_hooks() {
    let scripts = tempfile::tempdir().unwrap();
    let ran = scripts.path().join("ran");
    let script = format!("echo $LONGSHORE_HOOK >> {}", ran.display());
    let hooks = Hooks {
        before: Some(hook(scripts.path(), "before", &script)),
        after: Some(hook(scripts.path(), "after", &script)),
        timeout: Duration::from_mins(1),
    };
    let mut device = Device::start(Policy {
        hooks,
        ..impatient()
    });
    device.wants(1, "sick", Phase::Applied).await;
    assert!(!ran.exists(), "the first set is no update");
    device.wants(2, "well", Phase::Applied).await;
    device.trusts(2).await;
    let lines = fs::read_to_string(&ran).unwrap();
    assert_eq!(lines, "before-update\nafter-update\n");

    let mut policy = impatient();
    policy.windows = vec!["0 0 29 2 * UTC for 1m".parse().unwrap()];
    let mut device = Device::start(policy);
    device.wants(1, "sick", Phase::Applied).await;
    device.wants(2, "well", Phase::Pending).await;
    device.says("UpdateHeld", "OutsideWindow").await;
    assert_eq!(device.log(), ["apply 1"]);
}

#[tokio::test]
async fn a_set_that_nobody_sees_is_neither_good_nor_given_up() {
    let mut device = Device::start(impatient());
    device.wants(1, "well", Phase::Applied).await;
    device.trusts(1).await;
    device.wants(2, "hidden", Phase::Applied).await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    device.trusts(1).await;
    assert_eq!(device.report.borrow().phase, Phase::Applied);
    assert_eq!(device.log().last().unwrap(), "apply 2");
}
