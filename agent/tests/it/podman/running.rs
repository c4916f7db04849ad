//! What runs: all kinds, what they read, replaced where something changed and left alone where nothing did.

use longshore_agent::runtime::Runtime as _;
use serde_json::{Value, json};

use super::{IMAGE, Machine, config_map, deployment, object, pod, set, settle, sleeper, workload};
use crate::until_true;

fn with(mut spec: Value, container: &Value, volumes: &Value) -> Value {
    for (name, value) in container.as_object().unwrap() {
        spec["containers"][0][name] = value.clone();
    }
    spec["volumes"] = volumes.clone();
    spec
}

#[tokio::test]
async fn every_kind_that_podman_can_run() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let reads = with(
        sleeper(),
        &json!({
            "env": [
                {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "page", "key": "greeting"}}},
                {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "door", "key": "password"}}}],
            "envFrom": [{"secretRef": {"name": "door"}, "prefix": "DOOR_"}],
            "volumeMounts": [
                {"name": "page", "mountPath": "/page"}, {"name": "door", "mountPath": "/door"},
                {"name": "both", "mountPath": "/both"}, {"name": "empty", "mountPath": "/empty"},
                {"name": "memory", "mountPath": "/memory"}, {"name": "kept", "mountPath": "/kept"}]}),
        &json!([
            {"name": "page", "configMap": {"name": "page"}},
            {"name": "door", "secret": {"secretName": "door", "defaultMode": 0o440,
                "items": [{"key": "password", "path": "deep/password"}]}},
            {"name": "both", "projected": {"sources": [
                {"configMap": {"name": "page"}}, {"secret": {"name": "door"}}]}},
            {"name": "empty", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "kept", "persistentVolumeClaim": {"claimName": "orders"}}]),
    );
    let objects = [
        object(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})),
        config_map(
            "page",
            &json!({"index.html": "<h1>\n", "greeting": "hello"}),
        ),
        object(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "door"},
            "data": {"password": "aHVudGVyMg=="}, "stringData": {"pin": "1234"}}),
        ),
        object(
            &json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "orders"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}),
        ),
        pod("single", &sleeper()),
        deployment("till", &reads),
        workload("apps/v1", "DaemonSet", "probe", &sleeper()),
        object(
            &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "twin"},
            "spec": {"replicas": 2, "template": {"spec": sleeper()}}}),
        ),
        object(
            &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "none"},
            "spec": {"replicas": 0, "template": {"spec": sleeper()}}}),
        ),
        workload("batch/v1", "Job", "migrate", &super::running("exit 0")),
    ];
    let wanted = set(1, objects);
    settle(&mut podman, &wanted).await;
    let names = [
        "migrate-pod-c",
        "probe-pod-c",
        "single-c",
        "till-pod-c",
        "twin-pod-2-c",
        "twin-pod-c",
    ];
    assert_eq!(machine.names(), names);

    let inside = |words: &[&str]| machine.inside("till-pod-c", words);
    assert_eq!(inside(&["cat", "/page/index.html"]), "<h1>");
    assert_eq!(inside(&["cat", "/door/deep/password"]), "hunter2");
    assert_eq!(inside(&["stat", "-c", "%a", "/door/deep/password"]), "440");
    assert_eq!(inside(&["cat", "/both/greeting", "/both/pin"]), "hello1234");
    assert_eq!(
        inside(&["sh", "-c", "echo $GREETING $PASSWORD $DOOR_pin"]),
        "hello hunter2 1234"
    );
    inside(&["touch", "/empty/a", "/memory/a", "/kept/a"]);
    assert_eq!(inside(&["stat", "-f", "-c", "%T", "/memory"]), "tmpfs");
    let written = machine.try_podman(&["exec", "till-pod-c", "touch", "/page/b"]);
    assert!(!written.0, "what a pod only reads, it cannot write");
    // What is secret stands on no command line.
    for call in machine.calls() {
        assert!(
            !call.contains("hunter2") && !call.contains("aHVudGVyMg"),
            "{call}"
        );
    }

    // Everything is in place: nothing changes, no container is another one, and the job does not run again.
    let before = machine.containers();
    assert!(podman.apply(wanted.clone()).await.unwrap().is_empty());
    assert!(machine.runtime().apply(wanted).await.unwrap().is_empty());
    assert_eq!(machine.containers(), before);

    // It all goes, and what was made for it.
    let cleared = podman.clear().await.unwrap();
    assert!(
        cleared
            .removed
            .contains(&"apps/v1/Deployment/till".to_owned()),
        "{cleared:?}"
    );
    assert_eq!(machine.names(), [""; 0]);
    assert_eq!(machine.podman(&["volume", "ls", "--quiet"]), "");
    assert_eq!(machine.podman(&["secret", "ls", "--quiet"]), "");
}

#[tokio::test]
async fn what_changed_is_replaced_and_nothing_else() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let reads = |map: &str| {
        with(
            sleeper(),
            &json!({"volumeMounts": [{"name": "page", "mountPath": "/page"}]}),
            &json!([{"name": "page", "configMap": {"name": map}}]),
        )
    };
    let objects = |a: &Value, label: &str| {
        let mut alone = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {
            "name": "alone", "labels": {"of": label}, "annotations": {"longshore.dev/x": label}}});
        alone["spec"] = json!({"template": {"spec": sleeper()}});
        [
            config_map("a", a),
            config_map("b", &json!({"k": "1"})),
            deployment("a", &reads("a")),
            deployment("b", &reads("b")),
            object(&alone),
        ]
    };
    settle(
        &mut podman,
        &set(1, objects(&json!({"k": "1", "old": "x"}), "1")),
    )
    .await;
    let ids = || ["a-pod-c", "b-pod-c", "alone-pod-c"].map(|name| machine.id(name));
    let before = ids();

    // Only the pod that reads the ConfigMap is another one, and sees nothing of the old content.
    let changes = settle(&mut podman, &set(2, objects(&json!({"k": "2"}), "2"))).await;
    assert_eq!(changes.written, ["apps/v1/Deployment/a"]);
    let after = ids();
    assert_ne!(after[0], before[0]);
    assert_eq!(after[1..], before[1..]);
    assert_eq!(machine.inside("a-pod-c", &["ls", "/page"]), "k");
    assert_eq!(machine.inside("a-pod-c", &["cat", "/page/k"]), "2");
    let volumes = machine.podman(&["volume", "ls", "--quiet"]);
    assert_eq!(
        volumes.lines().count(),
        2,
        "one for each revision that runs: {volumes}"
    );

    // What left the set goes; what somebody else runs stays.
    machine.podman(&[
        "run",
        "--detach",
        "--network",
        "host",
        "--name",
        "foreign",
        IMAGE,
        "sleep",
        "10000",
    ]);
    machine.podman(&["volume", "create", "foreign"]);
    let changes = settle(
        &mut podman,
        &set(
            3,
            [
                deployment("b", &reads("b")),
                config_map("b", &json!({"k": "1"})),
            ],
        ),
    )
    .await;
    assert_eq!(
        changes.removed,
        ["apps/v1/Deployment/a", "apps/v1/Deployment/alone"]
    );
    assert_eq!(machine.names(), ["b-pod-c", "foreign"]);
    assert_eq!(machine.id("b-pod-c"), before[1]);
    let volumes = machine.podman(&["volume", "ls", "--quiet"]);
    assert_eq!(volumes.lines().count(), 2, "{volumes}");

    // Another device's agent leaves all of it alone.
    let other = longshore_protocol::DeviceId::from_random([8; 16]);
    let mut other = longshore_agent::runtime::podman::Podman::new(machine.program(), other);
    settle(&mut other, &set(1, [])).await;
    assert_eq!(machine.id("b-pod-c"), before[1]);
}

#[tokio::test]
async fn what_is_to_stay_stays() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let claim = |annotations: Value| {
        object(&json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "orders", "annotations": annotations}}))
    };
    settle(
        &mut podman,
        &set(1, [claim(json!({"longshore.dev/prune": "disabled"}))]),
    )
    .await;
    settle(&mut podman, &set(2, [])).await;
    assert_eq!(machine.podman(&["volume", "ls", "--quiet"]), "orders");
    // It is found again where it comes back, content and all.
    assert!(
        settle(
            &mut podman,
            &set(3, [claim(json!({"longshore.dev/prune": "disabled"}))])
        )
        .await
        .is_empty()
    );
    machine.podman(&["volume", "rm", "orders"]);
    settle(&mut podman, &set(4, [claim(json!({}))])).await;
    let changes = settle(&mut podman, &set(5, [])).await;
    assert_eq!(changes.removed, ["v1/PersistentVolumeClaim/orders"]);
    assert_eq!(machine.podman(&["volume", "ls", "--quiet"]), "");
}

#[tokio::test]
async fn what_prepares_a_pod_runs_once_and_first() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let mut spec = with(
        super::running("cat /work/log; sleep 10000"),
        &json!({"volumeMounts": [{"name": "work", "mountPath": "/work"}]}),
        &json!([{"name": "work", "emptyDir": {}}]),
    );
    spec["initContainers"] = json!([{"name": "first", "image": IMAGE,
        "command": ["sh", "-c", "echo prepared >> /work/log"],
        "volumeMounts": [{"name": "work", "mountPath": "/work"}]}]);
    let wanted = set(1, [pod("two", &spec)]);
    settle(&mut podman, &wanted).await;
    until_true("it says what it found", || {
        !machine.podman(&["logs", "two-c"]).is_empty()
    })
    .await;
    assert_eq!(machine.podman(&["logs", "two-c"]), "prepared");
    assert!(podman.apply(wanted).await.unwrap().is_empty());
}
