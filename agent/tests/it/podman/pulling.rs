//! Images that come from a registry: before anything is stopped, and none of them in the way of the others.

use std::{sync::Arc, time::Duration};

use longshore_agent::{
    backoff::Backoff,
    clock,
    files::Folder,
    ledger::Ledger,
    reconcile::{Reconciler, Timing},
    report::Reporter,
    runtime::Runtime as _,
    update::{Policy, Updates},
};
use longshore_protocol::{Object, message::Phase, session::Holding};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;

use super::{Machine, deployment, registry::Registry, set, settle, sleeper, unapplied};
use crate::{DEADLINE, until};

/// A machine that pulls from a registry, which has these images.
pub(super) async fn machine(offered: &[&str]) -> (Machine, Registry) {
    let (machine, registry) = (Machine::new(), Registry::start().await);
    machine.trust_registry(&registry.address);
    for name in offered {
        let layout = machine.packed(&name.replace(':', "-"));
        registry.offer(name, &layout);
    }
    (machine, registry)
}

pub(super) fn with_image(name: &str, image: &str) -> Object {
    let mut spec = sleeper();
    spec["containers"][0]["image"] = image.into();
    deployment(name, &spec)
}

fn app(registry: &Registry, generation: u64) -> Arc<Holding> {
    let image = registry.image(&format!("app:{generation}"));
    set(generation, [with_image("till", &image)])
}

/// Waits until a pull waits for a blob.
pub(super) async fn blob_is_held_back(asked: &mut watch::Receiver<Vec<String>>) {
    until(asked, "a blob is asked for", |asked| {
        asked.iter().any(|path| path.contains("/blobs/"))
    })
    .await;
}

#[tokio::test]
async fn what_runs_goes_on_until_the_new_image_is_there() {
    let (machine, registry) = machine(&["app:1", "app:2", "app:3"]).await;
    let mut podman = machine.runtime();
    settle(&mut podman, &app(&registry, 1)).await;
    let what = || machine.inside("till-pod-c", &["sh", "-c", "echo $WHAT"]);
    assert_eq!(what(), "app-1");
    let first = machine.id("till-pod-c");
    let runs = |id: &str| {
        assert_eq!(machine.id("till-pod-c"), id);
        assert_eq!(machine.status("till-pod-c"), "running");
    };

    // Ahead of the update.
    registry.hold(true);
    let mut asked = registry.asked();
    let second = app(&registry, 2);
    let preparing = second.clone();
    let prepared = tokio::spawn(async move {
        podman.prepare(&preparing).await.unwrap();
        podman
    });
    blob_is_held_back(&mut asked).await;
    runs(&first);
    assert!(!prepared.is_finished());
    registry.hold(false);
    let mut podman = prepared.await.unwrap();
    runs(&first);
    let pulls = || {
        let calls = machine.calls();
        calls.iter().filter(|it| it.starts_with("pull ")).count()
    };
    let before = pulls();
    settle(&mut podman, &second).await;
    assert_eq!(what(), "app-2");
    assert_eq!(pulls(), before, "it was there");

    // Where nobody did that: when the set is applied.
    let second = machine.id("till-pod-c");
    registry.hold(true);
    let mut asked = registry.asked();
    let third = app(&registry, 3);
    let applied = tokio::spawn(async move { podman.apply(third).await.unwrap() });
    blob_is_held_back(&mut asked).await;
    runs(&second);
    registry.hold(false);
    let changes = applied.await.unwrap();
    assert_eq!(changes.written, ["apps/v1/Deployment/till"]);
    assert_eq!(what(), "app-3");
}

#[tokio::test]
async fn an_image_that_is_nowhere_holds_up_nothing_else() {
    let (machine, registry) = machine(&["app:1", "app:2"]).await;
    let mut podman = machine.runtime();
    let pods = |generation, a: &str, b: &str| {
        let pods = [("a", a), ("b", b)];
        set(
            generation,
            pods.map(|(name, image)| with_image(name, &registry.image(image))),
        )
    };
    settle(&mut podman, &pods(1, "app:1", "app:1")).await;
    let before = ["a-pod-c", "b-pod-c"].map(|name| machine.id(name));
    // The first of the two cannot be pulled, and the second is all the same.
    let wanted = pods(2, "app:nowhere", "app:2");
    podman.prepare(&wanted).await.unwrap();
    assert!(
        machine
            .try_podman(&["image", "exists", &registry.image("app:2")])
            .0
    );
    let refused = unapplied(&mut podman, &wanted).await;
    let said = refused.iter().map(|it| (it.object.as_str(), it.reason));
    assert_eq!(
        said.collect::<Vec<_>>(),
        [("apps/v1/Deployment/a", "ImagePull")]
    );
    assert!(
        refused[0].message.contains("app:nowhere"),
        "{}",
        refused[0].message
    );
    assert_eq!(machine.id("a-pod-c"), before[0], "it runs as it did");
    assert_eq!(machine.status("a-pod-c"), "running");
    assert_ne!(machine.id("b-pod-c"), before[1]);
    let what = machine.inside("b-pod-c", &["sh", "-c", "echo $WHAT"]);
    assert_eq!(what, "app-2");
    // Pods that share it do not each ask for it.
    let pulls = || {
        let calls = machine.calls();
        let of_it = |it: &&String| it.starts_with("pull ") && it.ends_with("app:nowhere");
        calls.iter().filter(of_it).count()
    };
    let before = pulls();
    let third = pods(3, "app:nowhere", "app:nowhere");
    let refused = unapplied(&mut podman, &third).await;
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert_eq!(refused[0].message, refused[1].message);
    assert_eq!(pulls(), before + 1);
    assert_eq!(machine.status("b-pod-c"), "running");
    // It is found when it comes.
    registry.offer("app:nowhere", &machine.packed("late"));
    settle(&mut podman, &wanted).await;
    let what = machine.inside("a-pod-c", &["sh", "-c", "echo $WHAT"]);
    assert_eq!(what, "late");
}

#[tokio::test]
async fn a_set_whose_image_does_not_come_is_taken_back() {
    let (machine, registry) = machine(&["app:1", "app:2"]).await;
    let folder = tempfile::tempdir().unwrap();
    let ledger = Arc::new(Ledger::new(Folder::open(folder.path()).unwrap()));
    let short = Duration::from_millis(50);
    let reporter = Reporter::new(None, clock::system);
    let policy = Policy {
        deadline: Some(Duration::from_secs(2)),
        ..Policy::default()
    };
    let target = watch::Sender::new(None);
    let reconciler = Reconciler::new(
        Box::new(machine.runtime()),
        target.subscribe(),
        reporter.clone(),
        Timing {
            progress: short,
            settle: short,
            steady: short,
            ..Timing::default()
        },
        Backoff::new(short, short, StdRng::seed_from_u64(1)),
    )
    .carefully(Updates::new(policy, ledger.record()), ledger);
    let stop = CancellationToken::new();
    let running = tokio::spawn(reconciler.run(stop.clone()));
    let mut report = reporter.follow();

    let pods = |generation, a: &str, b: &str| {
        let pods = [("a", a), ("b", b)].map(|(name, image)| {
            let image = registry.image(image);
            with_image(name, &image)
        });
        target.send_replace(Some(set(generation, pods)));
    };
    pods(1, "app:1", "app:1");
    let is_good = || {
        let record = Ledger::new(Folder::open(folder.path()).unwrap()).record();
        record.base.is_some() && !record.way.unproven
    };
    let end = time::Instant::now() + DEADLINE * 3;
    while !is_good() {
        assert!(time::Instant::now() < end, "{:?}", *report.borrow());
        time::sleep(short).await;
    }
    let before = machine.id("a-pod-c");
    let second = machine.id("b-pod-c");
    pods(2, "app:nowhere", "app:2");
    let mut why = String::new();
    time::timeout(
        DEADLINE * 3,
        report.wait_for(|report| {
            let rolled_back = report.conditions.iter().find(|it| it.kind == "RolledBack");
            why = rolled_back.map_or_else(String::new, |it| it.message.clone());
            !why.is_empty() && report.phase == Phase::Failed
        }),
    )
    .await
    .expect("it is rolled back")
    .unwrap();
    assert!(why.contains("app:nowhere"), "{why}");
    stop.cancel();
    running.await.unwrap();
    assert_eq!(machine.id("a-pod-c"), before, "it ran through all of it");
    assert_ne!(machine.id("b-pod-c"), second, "it went forth and back");
    let what = machine.inside("b-pod-c", &["sh", "-c", "echo $WHAT"]);
    assert_eq!(what, "app-1");
}
