//! What cannot be changed is told, or replaced where the manifest allows it.

use super::*;

const FORCE: &str = "longshore.dev/force";

/// Each kind's own way to refuse a change: the object, and what is changed.
fn immutable(site: &Real) -> Vec<(Value, Value)> {
    let mut frozen = site.config_map("frozen", "1");
    frozen["immutable"] = true.into();
    let mut thawed = site.config_map("frozen", "2");
    thawed["immutable"] = true.into();

    let mut selects = site.workload("Deployment", "web", "web:1");
    let web = selects.clone();
    selects["spec"]["selector"]["matchLabels"]["tier"] = "front".into();
    selects["spec"]["template"]["metadata"]["labels"]["tier"] = "front".into();

    let store = site.workload("StatefulSet", "store", "store:1");
    let mut renamed = store.clone();
    renamed["spec"]["serviceName"] = "other".into();

    let service = |ip: Value| {
        let mut service = site.placed(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP"}]}}),
        );
        if !ip.is_null() {
            service["spec"]["clusterIP"] = ip;
        }
        service
    };
    let binding = |role: &str| {
        site.placed(
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "all"}, "subjects": [],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role}}),
        )
    };
    let secret = |kind: &str| {
        site.placed(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "type": kind}))
    };
    let claim = |mode: &str| {
        site.placed(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "disk"},
            "spec": {"accessModes": [mode], "storageClassName": "",
                "resources": {"requests": {"storage": "1Gi"}}}}))
    };
    let pod = |names: &[&str]| {
        let containers: Vec<_> = names
            .iter()
            .map(|name| json!({"name": name, "image": "till:1"}))
            .collect();
        site.placed(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"},
            "spec": {"nodeSelector": nowhere(), "terminationGracePeriodSeconds": 0, "containers": containers}}))
    };
    let mut port = pod(&["till"]);
    port["metadata"]["name"] = "port".into();
    let mut ported = port.clone();
    ported["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80, "protocol": "TCP"}]);
    let class = |parameter: &str| {
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": site.name},
            "provisioner": "example.com/none", "parameters": {"kind": parameter}})
    };
    let priority = |value: u32| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": site.name},
            "value": value})
    };
    vec![
        (site.job("migrate", "it:1"), site.job("migrate", "it:2")),
        (frozen, thawed),
        (web, selects),
        (store, renamed),
        (service("None".into()), service(Value::Null)),
        (binding("one"), binding("two")),
        (secret("example.com/a"), secret("example.com/b")),
        (claim("ReadWriteOnce"), claim("ReadOnlyMany")),
        (pod(&["till"]), pod(&["till", "log"])),
        (port, ported),
        (class("a"), class("b")),
        (priority(1), priority(2)),
    ]
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn what_is_immutable_is_told_and_replaced_only_where_that_is_allowed() {
    let mut site = Real::start();
    let cases = immutable(&site);
    let set = |objects: Vec<Value>| {
        let namespace = std::iter::once(super::super::namespace(&site.name));
        namespace.chain(objects).collect::<Vec<_>>()
    };
    let first: Vec<_> = cases.iter().map(|(first, _)| first.clone()).collect();
    let second: Vec<_> = cases.iter().map(|(_, second)| second.clone()).collect();
    let forced = second
        .iter()
        .map(|it| super::super::annotated(it.clone(), FORCE, "enabled"))
        .collect();
    let (first, second, forced) = (set(first), set(second), set(forced));
    site.generation += 1;
    // Pods have to wait until the namespace has its service account.
    site.pass_until("all is there", &first, |_, passed| passed.is_ok())
        .await
        .unwrap();
    let ids = |site: &Real| -> Vec<String> {
        let of = |object: &Value| {
            let name = object["metadata"]["name"].as_str().unwrap();
            let object = site.object(object["kind"].as_str().unwrap(), name).unwrap();
            object["metadata"]["uid"].as_str().unwrap().to_owned()
        };
        first.iter().map(of).collect()
    };
    let before = ids(&site);

    let Err(ApplyError::Objects(problems)) = site.apply(&second).await else {
        panic!("all of it is refused");
    };
    for problem in &problems {
        println!("{} {}: {}", problem.reason, problem.object, problem.message);
    }
    let others: Vec<_> = problems
        .iter()
        .filter(|it| it.reason != "Immutable" || !it.message.contains(FORCE))
        .collect();
    assert!(others.is_empty(), "{others:#?}");
    let told: Vec<_> = problems.iter().map(|it| &it.object).collect();
    assert_eq!(problems.len(), cases.len(), "{told:#?}");
    assert_eq!(ids(&site), before);

    site.generation += 1;
    site.pass_until("all are replaced", &forced, |_, passed| {
        passed
            .as_ref()
            .is_ok_and(|it| it.is_empty() && it.waiting.is_empty())
    })
    .await
    .unwrap();
    let after = ids(&site);
    assert_eq!(before[0], after[0], "the namespace stays");
    for (index, object) in first.iter().enumerate().skip(1) {
        assert_ne!(before[index], after[index], "{object}");
    }
    // What belongs to the cluster goes with the set.
    site.apply(&[]).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn a_manifest_with_another_fault_is_not_worth_the_object_that_there_is() {
    let mut site = Real::start();
    let web = |image: &str| {
        let web = site.workload("Deployment", "web", image);
        super::super::annotated(web, FORCE, "enabled")
    };
    let (good, mut faulty) = (web("web:1"), web("web:2"));
    faulty["spec"]["template"]["spec"]["containers"][0]["name"] = "Not A Name".into();
    let namespace = site.namespace();
    site.apply(&[namespace.clone(), good]).await.unwrap();
    let id = site.object("deployment", "web").unwrap()["metadata"]["uid"].clone();
    let (reason, message) = failure(&site.apply(&[namespace.clone(), faulty.clone()]).await);
    assert_eq!(reason, "Invalid", "{message}");
    faulty["spec"]["selector"]["matchLabels"]["tier"] = "front".into();
    faulty["spec"]["template"]["metadata"]["labels"]["tier"] = "front".into();
    let (reason, message) = failure(&site.apply(&[namespace, faulty]).await);
    assert_eq!(reason, "Invalid", "{message}");
    assert_eq!(
        site.object("deployment", "web").unwrap()["metadata"]["uid"],
        id
    );
}
