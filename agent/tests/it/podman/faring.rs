//! How containers fare.

use std::sync::Arc;

use longshore_agent::runtime::{
    Runtime as _,
    health::{Health, ObjectHealth},
    podman::Podman,
};
use longshore_protocol::session::Holding;
use serde_json::json;
use tokio::time;

use super::{Machine, deployment, pod, running, set, settle, sleeper, workload};
use crate::DEADLINE;

/// Passes and asks, as the reconciler does, until the object fares so.
async fn until_health(
    podman: &mut Podman,
    wanted: &Arc<Holding>,
    object: &str,
    health: Health,
) -> String {
    let mut seen = Vec::new();
    let asking = async {
        loop {
            drop(podman.apply(wanted.clone()).await);
            seen = podman.health().await.unwrap();
            let is_it = |it: &&ObjectHealth| it.object.to_string() == object;
            let found = seen.iter().find(is_it);
            match found {
                Some(found) if found.health == health => return found.message.clone(),
                None if health == Health::Current => return String::new(),
                _ => time::sleep(time::Duration::from_millis(200)).await,
            }
        }
    };
    let found = time::timeout(DEADLINE * 2, asking).await;
    found.unwrap_or_else(|_| panic!("{object} never {health:?}"))
}

#[tokio::test]
async fn what_crashes_fails_and_what_ends_well_is_well() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let wanted = set(
        1,
        [
            deployment("crashing", &running("exit 3")),
            deployment("fine", &sleeper()),
            workload("batch/v1", "Job", "done", &running("exit 0")),
            workload("batch/v1", "Job", "broken", &running("exit 7")),
        ],
    );
    let crashing = "apps/v1/Deployment/crashing";
    let said = until_health(&mut podman, &wanted, crashing, Health::Failed).await;
    assert!(
        said.starts_with("container c ") && said.contains("started again"),
        "{said}"
    );
    let said = until_health(&mut podman, &wanted, "batch/v1/Job/broken", Health::Failed).await;
    assert_eq!(said, "container c ended with exit code 7");
    until_health(&mut podman, &wanted, "batch/v1/Job/done", Health::Current).await;
    until_health(
        &mut podman,
        &wanted,
        "apps/v1/Deployment/fine",
        Health::Current,
    )
    .await;

    // What crashed is mended by the next set.
    let mended = set(2, [deployment("crashing", &sleeper())]);
    settle(&mut podman, &mended).await;
    assert_eq!(podman.health().await, Some(Vec::new()));
}

#[tokio::test]
async fn what_cannot_be_applied_is_not_well_either() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let mut lacking = sleeper();
    lacking["containers"][0] =
        json!({"name": "c", "image": "localhost/missing:1", "imagePullPolicy": "Never"});
    let wanted = set(1, [pod("lacking", &lacking), pod("fine", &sleeper())]);
    podman.apply(wanted).await.unwrap_err();
    let health = podman.health().await.unwrap();
    assert_eq!(health.len(), 1);
    assert_eq!(
        (health[0].object.name.as_str(), health[0].health),
        ("lacking", Health::InProgress)
    );
}
