//! What is applied, in which order, and what it costs.

use longshore_agent::runtime::{Runtime as _, health::Health};
use serde_json::json;
use tokio::time;

use super::{
    A_MOMENT, Site, annotated, config_map, definition, deployment, failure, namespace, till, writes,
};

#[tokio::test]
async fn objects_come_in_the_order_in_which_they_need_each_other() {
    let mut site = Site::start().await;
    let webhook = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "guard"}, "webhooks": []});
    let set = [
        webhook,
        till("one"),
        deployment("web", "web:1"),
        config_map("page", "1"),
        definition(),
        namespace("shop"),
    ];
    let changes = site.apply(&set).await.unwrap();
    assert_eq!(changes.written.len(), 6);
    let order = writes(&site.server.calls());
    assert_eq!(
        order[..3],
        [
            "patch namespaces shop",
            "patch customresourcedefinitions tills.example.com",
            "patch configmaps page",
        ]
    );
    assert_eq!(order[5], "patch validatingwebhookconfigurations guard");
    let object = site.server.object("tills", "shop", "one").unwrap();
    assert_eq!(
        object["metadata"]["labels"]["longshore.dev/device"],
        site.device.as_str()
    );
    assert_eq!(
        object["metadata"]["managedFields"][0]["manager"],
        "longshore"
    );
}

#[tokio::test]
async fn a_definition_is_waited_for_and_stops_nobody_else() {
    let mut site = Site::start().await;
    site.server.hold_definitions();
    let set = [
        definition(),
        till("one"),
        namespace("shop"),
        config_map("page", "1"),
    ];
    let holding = super::holding(1, &set);
    let mut kube = std::mem::replace(
        &mut site.kube,
        longshore_agent::runtime::kube::Kube::new(site.settings.clone(), site.device.clone()),
    );
    let applying = tokio::spawn(async move { kube.apply(holding).await });
    // It has been installed, and now the agent waits for it.
    longshore_e2e::eventually("the definition is applied", async || {
        let there = site
            .server
            .object("customresourcedefinitions", "", "tills.example.com");
        there.map(drop).ok_or_else(|| anyhow::anyhow!("not there"))
    })
    .await
    .unwrap();
    time::sleep(A_MOMENT).await;
    assert!(!applying.is_finished());
    site.server.establish();
    applying.await.unwrap().unwrap();
    assert!(site.server.object("tills", "shop", "one").is_some());
}

#[tokio::test]
async fn a_kind_that_nobody_defines_fails_alone() {
    let mut site = Site::start().await;
    let set = [till("one"), namespace("shop"), config_map("page", "1")];
    let (reason, message) = failure(&site.apply(&set).await);
    assert_eq!(reason, "UnknownKind");
    assert!(
        message.contains("one object is not applied") && message.contains("no kind `Till`"),
        "{message}"
    );
    assert_eq!(site.text("page").unwrap(), "1");
    // Somebody installs it.
    site.server.apply_as("helm", &definition(), false);
    site.pass_until("the kind is found", &set, |_, passed| passed.is_ok())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_hundred_objects_cost_a_request_each_and_the_same_again_none() {
    let mut site = Site::start().await;
    let mut set = vec![namespace("shop")];
    set.extend((1..100).map(|index| config_map(&format!("page-{index}"), "1")));
    site.apply(&set).await.unwrap();
    let calls = site.server.calls();
    let of = |verb: &str| calls.iter().filter(|call| call.verb == verb).count();
    assert_eq!(of("patch"), 100);
    // One version of the API, and two kinds.
    assert_eq!(
        (of("discover"), of("list"), of("get")),
        (1, 2, 0),
        "{calls:?}"
    );

    for _ in 0..3 {
        assert!(site.pass(&set).await.unwrap().is_empty());
    }
    let calls = site.server.calls();
    assert!(calls.iter().all(|call| call.verb == "watch"), "{calls:?}");

    set[50] = config_map("page-50", "2");
    let changes = site.apply(&set).await.unwrap();
    assert_eq!(changes.written, ["ConfigMap shop/page-50"]);
    let calls = site.server.calls();
    assert_eq!(writes(&calls), ["patch configmaps page-50"], "{calls:?}");

    // Neither does another process write.
    site.restart();
    assert!(site.pass(&set).await.unwrap().is_empty());
    let calls = site.server.calls();
    assert!(writes(&calls).is_empty(), "{calls:?}");
}

#[tokio::test]
async fn one_failing_object_stops_no_other() {
    let mut site = Site::start().await;
    let mut broken = deployment("broken", "web:1");
    broken["spec"].as_object_mut().unwrap().remove("selector");
    let elsewhere = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "lost", "namespace": "nowhere"}});
    let set = [
        namespace("shop"),
        broken,
        elsewhere,
        config_map("page", "1"),
    ];
    let (reason, message) = failure(&site.apply(&set).await);
    assert_eq!(reason, "ObjectsFailed");
    assert!(message.contains("2 objects are not applied"), "{message}");
    assert!(
        message.contains("spec.selector: Required value"),
        "{message}"
    );
    assert!(
        message.contains("namespaces \"nowhere\" not found"),
        "{message}"
    );
    assert_eq!(site.text("page").unwrap(), "1");
    // A set that has it right is not held up by what failed before.
    let changes = site
        .apply(&[namespace("shop"), deployment("broken", "web:1")])
        .await
        .unwrap();
    assert_eq!(changes.written, ["Deployment.apps shop/broken"]);
}

#[tokio::test]
async fn what_is_immutable_is_told_or_replaced_where_the_manifest_allows_it() {
    let mut site = Site::start().await;
    let job = |image: &str| {
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "migrate", "namespace": "shop"},
               "spec": {"template": {"spec": {"containers": [{"name": "it", "image": image}]}}}})
    };
    site.apply(&[namespace("shop"), job("it:1")]).await.unwrap();
    let before = site.server.object("jobs", "shop", "migrate").unwrap();
    let (reason, message) = failure(&site.apply(&[namespace("shop"), job("it:2")]).await);
    assert_eq!(reason, "Immutable");
    assert!(
        message.contains("field is immutable") && message.contains("longshore.dev/force"),
        "{message}"
    );

    let forced = annotated(job("it:3"), "longshore.dev/force", "enabled");
    site.server.calls();
    site.apply(&[namespace("shop"), forced.clone()])
        .await
        .unwrap();
    let after = site.server.object("jobs", "shop", "migrate").unwrap();
    assert_ne!(before["metadata"]["uid"], after["metadata"]["uid"]);
    assert_eq!(
        after["spec"]["template"]["spec"]["containers"][0]["image"],
        "it:3"
    );
    let calls = writes(&site.server.calls());
    assert_eq!(
        calls,
        [
            "patch jobs migrate",
            "delete jobs migrate",
            "patch jobs migrate"
        ]
    );

    // A manifest with another fault is not worth the object that there is.
    let mut faulty = annotated(deployment("web", "web:1"), "longshore.dev/force", "enabled");
    site.apply(&[namespace("shop"), forced.clone(), faulty.clone()])
        .await
        .unwrap();
    faulty["spec"].as_object_mut().unwrap().remove("selector");
    faulty["spec"]["replicas"] = 2.into();
    let (reason, _) = failure(&site.apply(&[namespace("shop"), forced, faulty]).await);
    assert_eq!(reason, "Invalid");
    assert!(site.server.object("deployments", "shop", "web").is_some());
}

#[tokio::test]
async fn what_is_replaced_waits_for_its_finalizers() {
    let mut site = Site::start().await;
    let frozen = |text: &str| {
        let mut map = annotated(config_map("page", text), "longshore.dev/force", "enabled");
        map["immutable"] = true.into();
        map
    };
    let set = [namespace("shop"), frozen("1"), config_map("other", "1")];
    site.apply(&set).await.unwrap();
    site.server
        .edit_as("guard", ("configmaps", "shop", "page"), |object| {
            object["metadata"]["finalizers"] = json!(["example.com/hold"]);
        });
    let set = [namespace("shop"), frozen("2"), config_map("other", "2")];
    let changes = site.apply(&set).await.unwrap();
    assert!(changes.waiting[0].contains("being replaced"), "{changes:?}");
    assert_eq!(site.text("other").unwrap(), "2");
    assert_eq!(site.text("page").unwrap(), "1");
    let changes = site.pass(&set).await.unwrap();
    assert!(
        changes.waiting[0].contains("example.com/hold"),
        "{changes:?}"
    );
    let unhealthy = site.unhealthy().await;
    assert_eq!(unhealthy[0].1, Health::InProgress, "{unhealthy:?}");
    site.server
        .edit_as("guard", ("configmaps", "shop", "page"), |object| {
            object["metadata"]["finalizers"] = json!([]);
        });
    site.pass_until("it is made anew", &set, |site, _| {
        site.text("page").as_deref() == Some("2")
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn health_follows_what_controllers_say() {
    let mut site = Site::start().await;
    let set = [
        namespace("shop"),
        deployment("web", "web:1"),
        config_map("page", "1"),
    ];
    site.apply(&set).await.unwrap();
    let unhealthy = site.unhealthy().await;
    assert_eq!(unhealthy.len(), 1, "{unhealthy:?}");
    assert_eq!(unhealthy[0].0, "apps/v1/Deployment/shop/web");
    assert_eq!(unhealthy[0].1, Health::InProgress);
    let web = ("deployments", "shop", "web");
    let stuck = json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
        "message": "ReplicaSet \"web\" has timed out"}]);
    site.server
        .set_status(web, json!({"observedGeneration": 1, "conditions": stuck}));
    site.disturbed().await;
    assert!(site.pass(&set).await.unwrap().is_empty());
    let unhealthy = site.unhealthy().await;
    assert_eq!(unhealthy[0].1, Health::Failed);
    assert!(unhealthy[0].2.contains("has timed out"), "{unhealthy:?}");
    let well = json!({"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1,
        "availableReplicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
    site.server.set_status(web, well);
    site.disturbed().await;
    site.server.calls();
    assert!(site.pass(&set).await.unwrap().is_empty());
    assert!(site.unhealthy().await.is_empty());
    // None of this took a request.
    assert!(site.server.calls().is_empty());
}
