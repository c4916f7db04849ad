//! The way back, with real containers.

use std::{sync::Arc, time::Duration};

use longshore_agent::{
    backoff::Backoff,
    clock,
    files::Folder,
    ledger::Ledger,
    reconcile::{Reconciler, Timing},
    report::Reporter,
    update::{Policy, Updates},
};
use longshore_protocol::ConditionStatus;
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Machine, deployment, object, running, set, sleeper};
use crate::{until, until_true};

const CONTAINER: &str = "till-pod-c";

/// It is healthy for two seconds, which is longer than a look at it takes. A part of the set is none that Podman runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_crashes_after_a_while_gives_way_to_the_one_before_it() {
    let machine = Machine::new();
    let dir = tempfile::tempdir().unwrap();
    let ledger = || Ledger::new(Folder::open(dir.path()).unwrap());
    let service = object(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "till"},
        "spec": {"ports": [{"port": 80}]}}),
    );
    let good = set(1, [deployment("till", &sleeper()), service.clone()]);
    let crashing = running("sleep 2; exit 1");
    let bad = set(2, [deployment("till", &crashing), service]);

    let policy = Policy {
        deadline: Some(Duration::from_secs(4)),
        ..Policy::default()
    };
    let timing = Timing {
        progress: Duration::from_millis(200),
        steady: Duration::from_secs(5),
        ..Timing::default()
    };
    let target = watch::Sender::new(Some(good));
    let reporter = Reporter::new(None, clock::system);
    let backoff = Backoff::new(
        Duration::from_millis(50),
        Duration::from_secs(1),
        StdRng::seed_from_u64(1),
    );
    let reconciler = Reconciler::new(
        Box::new(machine.runtime()),
        target.subscribe(),
        reporter.clone(),
        timing,
        backoff,
    )
    .carefully(Updates::new(policy, ledger().record()), Arc::new(ledger()));
    let stop = CancellationToken::new();
    let task = tokio::spawn(reconciler.run(stop.clone()));
    until_true("the first set is good", || {
        let record = ledger().record();
        record.base.is_some() && !record.way.unproven
    })
    .await;
    let before = machine.id(CONTAINER);

    target.send_replace(Some(bad));
    let mut report = reporter.follow();
    until(&mut report, "the way back", |report| {
        let mut conditions = report.conditions.iter();
        conditions.any(|it| it.kind == "RolledBack" && it.message.contains("generation 1"))
    })
    .await;
    until(&mut report, "health", |report| {
        let mut conditions = report.conditions.iter();
        conditions.any(|it| it.kind == "Healthy" && it.status == ConditionStatus::True)
    })
    .await;
    until_true("the first set runs again", || {
        machine.names() == [CONTAINER] && machine.status(CONTAINER) == "running" && {
            let command = ["container", "inspect", "--format", "{{.Path}} {{.Args}}"];
            let (known, command) = machine.try_podman(&[&command[..], &[CONTAINER]].concat());
            known && command.contains("sleep 10000")
        }
    })
    .await;
    assert_ne!(machine.id(CONTAINER), before, "it was replaced in between");
    stop.cancel();
    drop(task.await.unwrap());
}
