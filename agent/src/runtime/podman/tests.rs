//! Translating, without Podman.

use longshore_protocol::{DeviceId, Generation, Object, session::Holding};
use serde_json::{Value, json};

use super::{
    pod::{Pull, Restart},
    translate::{Wanted, translate},
};

fn wanted(objects: &[Value]) -> Wanted {
    let objects = objects
        .iter()
        .map(|value| Object::from_value(value).unwrap());
    let holding = Holding::new(Generation::from(1), "c0ffee".into(), objects).unwrap();
    translate(&holding, &DeviceId::from_random([1; 16]))
}

fn container(more: &Value) -> Value {
    let mut container = json!({"name": "c", "image": "box:1"});
    container
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    container
}

fn pod(container: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [container]}})
}

fn documents(wanted: &Wanted) -> Vec<Value> {
    let text = String::from_utf8(wanted.pods[0].manifest(Restart::Always)).unwrap();
    text.split("\n---\n")
        .map(|it| serde_json::from_str(it).unwrap())
        .collect()
}

#[test]
fn images_are_pulled_as_their_policies_say() {
    let pull = |image: &str, policy: Value| {
        let mut more = json!({"image": image});
        if !policy.is_null() {
            more["imagePullPolicy"] = policy;
        }
        let wanted = wanted(&[pod(&container(&more))]);
        assert_eq!(
            documents(&wanted)[0]["spec"]["containers"][0]["imagePullPolicy"],
            "Never"
        );
        wanted.pods[0].images[image]
    };
    for (image, expected) in [
        ("box:1", Pull::IfNotPresent),
        ("box", Pull::Always),
        ("box:latest", Pull::Always),
        ("registry:5000/box", Pull::Always),
        ("registry:5000/box:1", Pull::IfNotPresent),
        ("box@sha256:0000", Pull::IfNotPresent),
    ] {
        assert_eq!(pull(image, Value::Null), expected, "{image}");
    }
    assert_eq!(pull("box:1", json!("Always")), Pull::Always);
    assert_eq!(pull("box", json!("Never")), Pull::Never);
    let wrong = wanted(&[pod(&container(&json!({"imagePullPolicy": "Sometimes"})))]);
    assert_eq!(
        wrong.refused[0].message,
        "container c: `Sometimes` is no imagePullPolicy"
    );
}

#[test]
fn a_revision_is_of_all_that_a_pod_reads_and_of_nothing_else() {
    let reading = pod(&container(&json!({"env": [
        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]})));
    let map = |data: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"k": data}});
    let secret = |namespace: &str, data: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": namespace},
            "stringData": {"k": data}})
    };
    let mut here = secret("x", "1");
    here["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("namespace");
    let mut changed = here.clone();
    changed["stringData"]["k"] = json!("2");
    let revision = |objects: &[Value]| wanted(objects).pods[0].expected.revision;
    let base = revision(&[reading.clone(), here.clone(), map("1")]);
    assert_eq!(
        base,
        revision(&[reading.clone(), here.clone(), map("2"), secret("x", "3")])
    );
    assert_ne!(base, revision(&[reading.clone(), changed, map("1")]));
    let mut labelled = reading.clone();
    labelled["metadata"]["annotations"] = json!({"longshore.dev/anything": "x"});
    assert_eq!(base, revision(&[labelled.clone(), here.clone()]));
    labelled["metadata"]["annotations"] = json!({"io.podman.annotations.init": "x"});
    assert_ne!(base, revision(&[labelled, here]));
}

#[test]
fn what_is_secret_is_in_no_document() {
    let objects = [
        pod(&container(
            &json!({"envFrom": [{"secretRef": {"name": "s"}}, {"configMapRef": {"name": "m"}}],
            "env": [{"name": "LOCAL", "valueFrom": {"secretKeyRef": {"name": "of-the-device", "key": "k"}}}]}),
        )),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "hunter2"}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"k": "v"}}),
    ];
    let wanted = wanted(&objects);
    let documents = documents(&wanted);
    assert!(!format!("{documents:?}").contains("hunter2"));
    assert_eq!(documents[0]["data"]["k"], "v");
    let container = &documents[1]["spec"]["containers"][0];
    let ours = container["envFrom"][0]["secretRef"]["name"]
        .as_str()
        .unwrap();
    assert!(ours.starts_with("p-s-"), "{ours}");
    assert_eq!(wanted.pods[0].secrets[ours], br#"{"k":"aHVudGVyMg=="}"#);
    // One that is not in the set may be on the device.
    assert_eq!(
        container["env"][0]["valueFrom"]["secretKeyRef"]["name"],
        "of-the-device"
    );
}

#[test]
fn odd_shapes_are_refused_or_passed_on_and_never_fatal() {
    let odd = [
        json!({"spec": null}),
        json!({"spec": {"containers": "none"}}),
        json!({"spec": {"containers": [7]}}),
        json!({"spec": {"containers": [{"name": "c", "image": "i", "env": 7, "volumeMounts": [7]}], "volumes": [7]}}),
        json!({"spec": {"template": 7, "replicas": -1}}),
        json!({"spec": {"replicas": 1_000_000}}),
        json!({"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Sometimes"}}),
    ];
    for spec in odd {
        for (version, kind) in [
            ("v1", "Pod"),
            ("apps/v1", "Deployment"),
            ("batch/v1", "Job"),
            ("v1", "PersistentVolumeClaim"),
            ("v1", "ConfigMap"),
            ("v1", "Secret"),
        ] {
            let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x", "labels": {"a": 7}}});
            object
                .as_object_mut()
                .unwrap()
                .extend(spec.as_object().unwrap().clone());
            wanted(&[object]);
        }
    }
}
