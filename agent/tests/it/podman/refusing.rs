//! What cannot be applied is named with the reason, stops nothing else, and never touches what is somebody else's.

use longshore_agent::runtime::{Runtime as _, podman::Podman};
use serde_json::json;

use super::{
    IMAGE, Machine, config_map, deployment, device, object, pod, running, set, settle, sleeper,
    unapplied,
};

#[tokio::test]
async fn what_podman_cannot_run_is_refused_by_name_and_the_rest_runs() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let thing = |api_version: &str, kind: &str| {
        object(
            &json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x", "namespace": "shop"}}),
        )
    };
    let wanted = set(
        1,
        [
            thing("v1", "Service"),
            thing("apps/v1", "StatefulSet"),
            thing("example.com/v1", "Deployment"),
            object(
                &json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "many"},
                "spec": {"completions": 3, "template": {"spec": sleeper()}}}),
            ),
            pod("empty", &json!({"containers": []})),
            pod(
                "lost",
                &json!({"containers": [{"name": "c", "image": IMAGE,
                "envFrom": [{"configMapRef": {"name": "nowhere"}}]}]}),
            ),
            deployment("good", &sleeper()),
        ],
    );
    let refused = unapplied(&mut podman, &wanted).await;
    let said: Vec<_> = refused
        .iter()
        .map(|it| format!("{} {} {}", it.object, it.reason, it.message))
        .collect();
    assert_eq!(
        said,
        [
            "apps/v1/StatefulSet/shop/x Unsupported Podman cannot run a StatefulSet of apps/v1; make it a Deployment",
            "batch/v1/Job/many Unsupported on Podman, a Job runs once: completions and parallelism must be 1",
            "example.com/v1/Deployment/shop/x Unsupported Podman cannot run a Deployment of example.com/v1",
            "v1/Pod/empty Invalid it has no containers",
            "v1/Pod/lost Invalid container c: the ConfigMap nowhere is not in the set",
            "v1/Service/shop/x Unsupported Podman cannot run a Service of v1; publish a port with `hostPort` in the pod",
        ]
    );
    assert_eq!(machine.names(), ["good-pod-c"]);
    let error = podman.apply(wanted.clone()).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.is_partial()),
        ("ObjectsFailed", true)
    );
    assert!(
        error.explanation().starts_with("6 objects are not applied"),
        "{}",
        error.explanation()
    );
    // Without them the set is applied.
    settle(&mut podman, &set(2, [deployment("good", &sleeper())])).await;
}

#[tokio::test]
async fn a_version_that_cannot_run_leaves_the_one_before_it() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    settle(
        &mut podman,
        &set(
            1,
            [deployment("a", &sleeper()), deployment("b", &sleeper())],
        ),
    )
    .await;
    let before = machine.containers();
    let mut no_image = sleeper();
    no_image["containers"][0]["image"] = json!("localhost/missing:1");
    no_image["containers"][0]["imagePullPolicy"] = json!("Never");
    let mut no_map = sleeper();
    no_map["volumes"] = json!([{"name": "v", "configMap": {"name": "nowhere"}}]);
    let wanted = set(
        2,
        [
            deployment("a", &no_image),
            deployment("b", &no_map),
            deployment("c", &sleeper()),
        ],
    );
    let refused = unapplied(&mut podman, &wanted).await;
    let why =
        "the image localhost/missing:1 is not on this device, and its imagePullPolicy is Never";
    assert_eq!(
        (refused[0].object.as_str(), refused[0].message.as_str()),
        ("apps/v1/Deployment/a", why)
    );
    assert_eq!(
        refused[1].message,
        "volume v: the ConfigMap nowhere is not in the set"
    );
    let now = machine.containers();
    assert_eq!(now[..2], before[..], "both run as they did");
    assert_eq!(now[2].0, "c-pod-c");
}

#[tokio::test]
async fn a_program_that_cannot_start_is_named() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let mut broken = sleeper();
    broken["containers"][0]["command"] = json!(["/no/such/program"]);
    let refused = unapplied(
        &mut podman,
        &set(1, [pod("bad", &broken), pod("good", &sleeper())]),
    )
    .await;
    assert_eq!(refused[0].object, "v1/Pod/bad");
    assert!(
        refused[0].message.contains("/no/such/program"),
        "{}",
        refused[0].message
    );
    assert_eq!(machine.status("good-c"), "running");
    settle(
        &mut podman,
        &set(2, [pod("bad", &sleeper()), pod("good", &sleeper())]),
    )
    .await;
    assert_eq!(machine.status("bad-c"), "running");
}

#[tokio::test]
async fn what_others_made_is_in_the_way_and_left_alone() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    machine.podman(&["pod", "create", "--name", "till", "--network", "host"]);
    machine.podman(&["volume", "create", "orders"]);
    let claim = object(
        &json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "orders"}}),
    );
    let wanted = set(1, [pod("till", &sleeper()), claim]);
    let refused = unapplied(&mut podman, &wanted).await;
    assert_eq!(
        refused.iter().map(|it| it.reason).collect::<Vec<_>>(),
        ["ForeignVolume", "ForeignPod"]
    );
    assert!(
        refused[1].message.contains("`podman pod rm till`"),
        "{}",
        refused[1].message
    );
    // It is found when it makes way.
    machine.podman(&["pod", "rm", "till"]);
    machine.podman(&["volume", "rm", "orders"]);
    settle(&mut podman, &wanted).await;
}

#[tokio::test]
async fn one_name_is_one_objects() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let twin = |namespace: &str| {
        object(&json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "till", "namespace": namespace}, "spec": {"template": {"spec": sleeper()}}}))
    };
    let refused = unapplied(
        &mut podman,
        &set(1, [twin("b"), twin("a"), config_map("x", &json!({}))]),
    )
    .await;
    assert_eq!(refused.len(), 1);
    assert_eq!(
        (refused[0].object.as_str(), refused[0].message.as_str()),
        (
            "apps/v1/Deployment/b/till",
            "Podman has no namespaces, and the pod till-pod is that of apps/v1/Deployment/a/till"
        )
    );
    assert_eq!(machine.names(), ["till-pod-c"]);
}

#[tokio::test]
async fn without_podman_it_says_what_is_missing() {
    let mut podman = Podman::new("/no/such/podman".into(), device());
    let error = podman
        .apply(set(1, [pod("a", &running("true"))]))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "RuntimeUnavailable");
    assert!(
        error
            .explanation()
            .starts_with("cannot start /no/such/podman"),
        "{}",
        error.explanation()
    );
}
