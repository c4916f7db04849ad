//! What is removed, what is not, and deletions that do not end.

use super::*;

fn finalizers(list: &Value) -> String {
    json!({"metadata": {"finalizers": list}}).to_string()
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn exactly_what_left_the_set_is_removed() {
    let mut site = Real::start();
    site.kubectl.apply_as("admin", &site.namespace(), false);
    site.kubectl.with(
        &["create", "-f", "-"],
        Some(&site.config_map("theirs", "1")),
    );
    let kept = super::super::annotated(
        site.config_map("kept", "1"),
        "longshore.dev/prune",
        "disabled",
    );
    let set = [
        site.config_map("page", "1"),
        site.config_map("other", "1"),
        kept,
        site.config_map("guarded", "1"),
        site.workload("Deployment", "web", "web:1"),
        site.definition(),
        site.till("one"),
    ];
    site.apply(&set).await.unwrap();
    // Somebody keeps one, copies another, label and all, and makes a third anew.
    site.inside(&[
        "annotate",
        "configmap",
        "guarded",
        "longshore.dev/prune=disabled",
    ]);
    let mut copy = site.config_map("copy", "1");
    copy["metadata"]["labels"]["longshore.dev/device"] = site.device.as_str().into();
    site.kubectl.with(&["create", "-f", "-"], Some(&copy));
    let changes = site.apply(&[site.config_map("page", "1")]).await.unwrap();
    let removed: Vec<_> = [
        format!("Till.{} {}/one", site.group(), site.name),
        format!("Deployment.apps {}/web", site.name),
        format!("ConfigMap {}/other", site.name),
        format!(
            "CustomResourceDefinition.apiextensions.k8s.io {}",
            site.tills()
        ),
    ]
    .into();
    let mut told = changes.removed.clone();
    told.sort_by_key(|name| removed.iter().position(|it| it == name));
    assert_eq!(told, removed);
    assert_eq!(
        site.names("configmaps"),
        ["copy", "guarded", "kept", "page", "theirs"]
    );
    let set = [site.config_map("page", "1")];
    site.pass_until("nothing waits", &set, |_, passed| {
        passed
            .as_ref()
            .is_ok_and(|it| it.is_empty() && it.waiting.is_empty())
    })
    .await
    .unwrap();
    // Background deletion: what the Deployment had made goes, too.
    longshore_e2e::eventually("its ReplicaSets are gone", async || {
        let left = site.names("replicasets");
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn a_stuck_deletion_is_told_and_blocks_nobody() {
    let mut site = Real::start();
    let set = [
        site.namespace(),
        site.config_map("page", "1"),
        site.definition(),
        site.till("one"),
    ];
    site.apply(&set).await.unwrap();
    let hold = finalizers(&json!(["example.com/hold"]));
    let free = finalizers(&json!(null));
    let tills = site.tills();
    let patch = ["patch", "--type=merge", "-p"];
    site.inside(&[&patch[..], &[&hold, "configmap", "page"]].concat());
    site.inside(&[&patch[..], &[&hold, &tills, "one"]].concat());
    let set = [site.namespace(), site.config_map("next", "1")];
    site.apply(&set).await.unwrap();
    let changes = site.pass(&set).await.unwrap();
    let waiting = changes.waits();
    for words in [
        "ConfigMap ",
        "Till",
        "example.com/hold",
        "customresourcecleanup",
    ] {
        assert!(waiting.contains(words), "{words}: {waiting}");
    }
    assert_eq!(site.text("next").unwrap(), "1");
    // Also by another process, and it does not count as unhealthy.
    site.restart();
    let changes = site.pass(&set).await.unwrap();
    assert!(
        changes.is_empty() && changes.waiting.len() == 3,
        "{changes:?}"
    );
    assert!(site.unhealthy().await.is_empty());
    // It comes back into the set, and is made anew once it is gone.
    let set = [site.namespace(), site.config_map("page", "2")];
    let changes = site.apply(&set).await.unwrap();
    assert!(changes.waits().contains("made anew"), "{changes:?}");
    site.inside(&[&patch[..], &[&free, "configmap", "page"]].concat());
    site.inside(&[&patch[..], &[&free, &tills, "one"]].concat());
    site.pass_until("it is there anew", &set, |site, passed| {
        site.text("page").as_deref() == Some("2")
            && passed.as_ref().is_ok_and(|it| it.waiting.is_empty())
    })
    .await
    .unwrap();
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn a_namespace_that_is_deleted_under_the_agent_comes_back_with_all_in_it() {
    let mut site = Real::start();
    let set = [
        site.namespace(),
        site.config_map("page", "1"),
        site.workload("Deployment", "web", "web:1"),
    ];
    site.apply(&set).await.unwrap();
    let patch = finalizers(&json!(["example.com/hold"]));
    site.inside(&["patch", "--type=merge", "-p", &patch, "configmap", "page"]);
    site.inside(&["delete", "namespace", &site.name, "--wait=false"]);
    // What is gone already may fail meanwhile: nothing can be made in a namespace that ends.
    let _told = site
        .pass_until("what is in the way is told", &set, |site, _| {
            let unwell = futures_util::FutureExt::now_or_never(site.unhealthy()).unwrap();
            unwell.iter().any(|it| it.2.contains("example.com/hold"))
        })
        .await;
    site.inside(&[
        "patch",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":null}}"#,
        "configmap",
        "page",
    ]);
    site.pass_until("it is back", &set, |site, passed| {
        passed.as_ref().is_ok_and(|it| it.waiting.is_empty()) && site.text("page").is_some()
    })
    .await
    .unwrap();
    assert_eq!(site.names("deployments"), ["web"]);
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn decommissioned_it_leaves_nothing() {
    let mut site = Real::start();
    let set = [
        site.namespace(),
        site.definition(),
        site.till("one"),
        site.config_map("page", "1"),
        site.workload("Deployment", "web", "web:1"),
        site.workload("StatefulSet", "store", "store:1"),
        site.job("migrate", "it:1"),
    ];
    site.apply(&set).await.unwrap();
    // A process that knows nothing of it.
    std::fs::write(
        site.settings.state.join("kube/inventory.json"),
        "{\"device\": 7",
    )
    .unwrap();
    site.restart();
    let changes = time::timeout(PATIENCE, site.kube.clear())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(changes.removed.len(), set.len(), "{changes:#?}");
    let left = site.kubectl.run(&[
        "get",
        "namespace",
        &site.name,
        "--ignore-not-found",
        "-o",
        "name",
    ]);
    assert_eq!(left, "");
    let left = site.kubectl.run(&[
        "get",
        "customresourcedefinition",
        &site.tills(),
        "--ignore-not-found",
        "-o",
        "name",
    ]);
    assert_eq!(left, "");
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn a_lost_inventory_is_made_up_from_the_objects() {
    let mut site = Real::start();
    let set = [
        site.namespace(),
        site.config_map("page", "1"),
        site.config_map("other", "1"),
        site.definition(),
        site.till("one"),
    ];
    site.apply(&set).await.unwrap();
    let mut copy = site.config_map("copy", "1");
    copy["metadata"]["labels"]["longshore.dev/device"] = site.device.as_str().into();
    site.kubectl.with(&["create", "-f", "-"], Some(&copy));
    std::fs::remove_file(site.settings.state.join("kube/inventory.json")).unwrap();
    site.restart();
    let set = [site.namespace(), site.config_map("page", "1")];
    let changes = site.apply(&set).await.unwrap();
    assert_eq!(changes.removed.len(), 3, "{changes:?}");
    // What was there as it should be has been applied again, which changed nothing.
    assert!(changes.written.is_empty(), "{changes:?}");
    assert_eq!(site.names("configmaps"), ["copy", "page"]);
}
