//! What is removed, and what is not.

use longshore_agent::runtime::Runtime as _;
use serde_json::json;
use tokio::time;

use super::{
    Site, annotated, config_map, definition, deployment, failure, namespace, till, writes,
};

#[tokio::test]
async fn exactly_what_left_the_set_is_removed() {
    let mut site = Site::start().await;
    site.server.apply_as("admin", &namespace("shop"), false);
    site.server
        .apply_as("admin", &config_map("theirs", "1"), false);
    let set = [
        config_map("page", "1"),
        config_map("other", "1"),
        deployment("web", "web:1"),
    ];
    site.apply(&set).await.unwrap();
    // A copy that somebody made, label and all.
    let mut copy = config_map("copy", "1");
    copy["metadata"]["labels"]["longshore.dev/device"] = site.device.as_str().into();
    site.server.apply_as("kubectl", &copy, false);
    site.server.calls();
    let changes = site.apply(&[config_map("page", "1")]).await.unwrap();
    assert_eq!(
        changes.removed,
        ["Deployment.apps shop/web", "ConfigMap shop/other"]
    );
    assert_eq!(
        site.server.names("configmaps"),
        ["shop/copy", "shop/page", "shop/theirs"]
    );
    let calls = site.server.calls();
    assert_eq!(
        writes(&calls),
        ["delete deployments web", "delete configmaps other"]
    );
    assert!(
        site.apply(&[config_map("page", "1")])
            .await
            .unwrap()
            .is_empty()
    );
    assert!(writes(&site.server.calls()).is_empty());
}

#[tokio::test]
async fn a_set_that_is_cleared_leaves_nothing_and_goes_in_the_opposite_order() {
    let mut site = Site::start().await;
    let set = [
        namespace("shop"),
        definition(),
        till("one"),
        config_map("page", "1"),
        deployment("web", "web:1"),
    ];
    site.apply(&set).await.unwrap();
    site.server.calls();
    let changes = time::timeout(longshore_e2e::wait::PATIENCE, site.kube.clear())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(changes.removed.len(), 5, "{changes:?}");
    assert_eq!(
        site.server.names("namespaces"),
        ["/default", "/kube-system"]
    );
    assert!(site.server.names("configmaps").is_empty());
    let order = writes(&site.server.calls());
    assert_eq!(
        order[2..],
        [
            "delete configmaps page",
            "delete customresourcedefinitions tills.example.com",
            "delete namespaces shop",
        ]
    );
}

#[tokio::test]
async fn pruning_can_be_disabled_for_an_object() {
    let mut site = Site::start().await;
    let kept = annotated(config_map("kept", "1"), "longshore.dev/prune", "disabled");
    site.apply(&[namespace("shop"), kept, config_map("page", "1")])
        .await
        .unwrap();
    site.server
        .edit_as("admin", ("configmaps", "shop", "page"), |object| {
            object["metadata"]["annotations"]["longshore.dev/prune"] = "disabled".into();
        });
    site.apply(&[namespace("shop")]).await.unwrap();
    assert_eq!(site.server.names("configmaps"), ["shop/kept", "shop/page"]);
}

#[tokio::test]
async fn what_was_taken_over_by_others_is_theirs() {
    let mut site = Site::start().await;
    let set = [
        namespace("shop"),
        config_map("page", "1"),
        config_map("other", "1"),
    ];
    site.apply(&set).await.unwrap();
    // The agent is down when somebody takes the label off one, and deletes and makes anew another.
    site.server
        .edit_as("admin", ("configmaps", "shop", "page"), |object| {
            object["metadata"]["labels"] = json!({});
        });
    site.server.delete("configmaps", "shop", "other");
    let mut copy = config_map("other", "theirs");
    copy["metadata"]["labels"]["longshore.dev/device"] = site.device.as_str().into();
    site.server.apply_as("admin", &copy, false);
    site.restart();
    assert!(site.apply(&[namespace("shop")]).await.unwrap().is_empty());
    assert_eq!(site.server.names("configmaps"), ["shop/other", "shop/page"]);
}

#[tokio::test]
async fn what_was_there_before_is_given_up_and_not_deleted() {
    let mut site = Site::start().await;
    site.server.apply_as("admin", &namespace("shop"), false);
    let mut theirs = config_map("page", "1");
    theirs["data"]["more"] = "theirs".into();
    site.server.apply_as("admin", &theirs, false);
    let mut ours = config_map("page", "1");
    ours["data"]["added"] = "ours".into();
    site.apply(&[namespace("shop"), ours, config_map("own", "1")])
        .await
        .unwrap();
    // Also where a new process removes it.
    site.restart();
    site.apply(&[]).await.unwrap();
    let left = site.server.object("configmaps", "shop", "page").unwrap();
    assert_eq!(left["data"], json!({"text": "1", "more": "theirs"}));
    assert!(left["metadata"]["labels"].is_null());
    assert_eq!(site.server.names("configmaps"), ["shop/page"]);
    assert!(site.server.object("namespaces", "", "shop").is_some());
}

#[tokio::test]
async fn what_was_there_before_and_went_meanwhile_is_not_made_again() {
    let mut site = Site::start().await;
    site.server.apply_as("admin", &namespace("shop"), false);
    site.server
        .apply_as("admin", &config_map("page", "1"), false);
    site.apply(&[config_map("page", "1")]).await.unwrap();
    // Nobody looks at the watch between this and the removal.
    site.server.delete("configmaps", "shop", "page");
    assert!(site.apply(&[]).await.unwrap().is_empty());
    assert_eq!(site.server.names("configmaps"), Vec::<String>::new());
    assert!(site.pass(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_stuck_deletion_is_told_and_blocks_nobody() {
    let mut site = Site::start().await;
    site.apply(&[namespace("shop"), config_map("page", "1")])
        .await
        .unwrap();
    site.server
        .edit_as("guard", ("configmaps", "shop", "page"), |object| {
            object["metadata"]["finalizers"] = json!(["example.com/hold"]);
        });
    let set = [namespace("shop"), config_map("next", "1")];
    site.apply(&set).await.unwrap();
    let changes = site.pass(&set).await.unwrap();
    let waiting = changes.waits();
    assert!(
        waiting.contains("ConfigMap shop/page") && waiting.contains("example.com/hold"),
        "{waiting}"
    );
    assert_eq!(site.text("next").unwrap(), "1");
    // It is not asked to go again, also not by another process, and does not count as unhealthy.
    site.server.calls();
    site.restart();
    site.pass(&set).await.unwrap();
    assert!(writes(&site.server.calls()).is_empty());
    assert!(site.unhealthy().await.is_empty());
    // It comes back into the set, and is made anew once it is gone.
    let set = [namespace("shop"), config_map("page", "2")];
    let changes = site.apply(&set).await.unwrap();
    assert!(changes.waits().contains("made anew"), "{changes:?}");
    site.server
        .edit_as("guard", ("configmaps", "shop", "page"), |object| {
            object["metadata"]["finalizers"] = json!([]);
        });
    site.pass_until("it is there anew", &set, |site, _| {
        site.text("page").as_deref() == Some("2")
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_lost_inventory_is_made_up_from_the_objects() {
    let mut site = Site::start().await;
    let set = [
        namespace("shop"),
        config_map("page", "1"),
        config_map("other", "1"),
        deployment("web", "web:1"),
    ];
    site.apply(&set).await.unwrap();
    let mut copy = config_map("copy", "1");
    copy["metadata"]["labels"]["longshore.dev/device"] = site.device.as_str().into();
    site.server.apply_as("kubectl", &copy, false);
    std::fs::write(site.inventory(), "{\"device\": 7").unwrap();
    site.restart();
    let changes = site
        .apply(&[namespace("shop"), config_map("page", "1")])
        .await
        .unwrap();
    assert_eq!(
        changes.removed,
        ["Deployment.apps shop/web", "ConfigMap shop/other"]
    );
    // What was there as it should be has been applied again, which changed nothing.
    assert!(changes.written.is_empty(), "{changes:?}");
    assert_eq!(site.server.names("configmaps"), ["shop/copy", "shop/page"]);
}

#[tokio::test]
async fn a_lost_inventory_is_made_up_from_kinds_that_only_a_lesser_version_of_their_group_has() {
    let mut site = Site::start().await;
    let mut lesser = definition();
    lesser["metadata"]["name"] = "vaults.example.com".into();
    lesser["spec"]["names"] = json!({"kind": "Vault", "plural": "vaults"});
    lesser["spec"]["versions"][0]["name"] = "v1beta1".into();
    let vault = json!({"apiVersion": "example.com/v1beta1", "kind": "Vault",
        "metadata": {"name": "one", "namespace": "shop"}});
    site.apply(&[namespace("shop"), definition()])
        .await
        .unwrap();
    let set = [namespace("shop"), definition(), lesser.clone(), vault];
    site.apply(&set).await.unwrap();
    std::fs::remove_file(site.inventory()).unwrap();
    site.restart();
    let changes = site
        .apply(&[namespace("shop"), definition(), lesser])
        .await
        .unwrap();
    assert_eq!(changes.removed, ["Vault.example.com shop/one"]);
}

#[tokio::test]
async fn a_definition_takes_its_objects_with_it() {
    let mut site = Site::start().await;
    site.apply(&[namespace("shop"), definition(), till("one")])
        .await
        .unwrap();
    site.server
        .delete("customresourcedefinitions", "", "tills.example.com");
    let set = [namespace("shop")];
    site.apply(&set).await.unwrap();
    assert!(site.pass(&set).await.unwrap().is_empty());
    assert!(site.server.names("tills").is_empty());
}

#[tokio::test]
async fn a_refused_deletion_is_told_and_stops_no_other() {
    let mut site = Site::start().await;
    site.apply(&[
        namespace("shop"),
        config_map("page", "1"),
        deployment("web", "web:1"),
    ])
    .await
    .unwrap();
    site.server.deny("delete", "deployments");
    let set = [namespace("shop")];
    let (reason, message) = failure(&site.apply(&set).await);
    assert_eq!(reason, "Forbidden");
    assert!(
        message.contains("lacks `delete` on `deployments.apps`"),
        "{message}"
    );
    assert!(site.server.names("configmaps").is_empty());
    site.server.allow_all();
    site.pass(&set).await.unwrap();
    assert!(site.server.names("deployments").is_empty());
}
