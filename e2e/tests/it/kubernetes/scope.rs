//! What the agent may do, and where.

use longshore_agent::runtime::Runtime as _;
use serde_json::json;
use tokio::time;

use super::{A_MOMENT, Site, config_map, deployment, failure, namespace};

#[tokio::test]
async fn a_confined_agent_stays_in_its_namespace() {
    let mut site = Site::confined_to(Some("shop")).await;
    site.server.apply_as("admin", &namespace("shop"), false);
    let plain = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "plain"}});
    let elsewhere = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "lost", "namespace": "default"}});
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "all"}, "rules": []});
    let set = [plain, elsewhere, role, config_map("page", "1")];
    let (reason, message) = failure(&site.apply(&set).await);
    assert_eq!(reason, "OutOfScope");
    assert!(
        message.contains("2 objects are not applied")
            && message.contains("confined to the namespace `shop`"),
        "{message}"
    );
    assert_eq!(site.server.names("configmaps"), ["shop/page", "shop/plain"]);
    // It never asked about anything else.
    let calls = site.server.calls();
    let inside = |call: &longshore_e2e::kubernetes::Call| {
        call.verb == "discover" || call.namespace == "shop"
    };
    assert!(calls.iter().all(inside), "{calls:?}");
}

#[tokio::test]
async fn objects_without_a_namespace_go_to_the_default_one() {
    let mut site = Site::start().await;
    let plain = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "plain"}});
    site.apply(std::slice::from_ref(&plain)).await.unwrap();
    assert_eq!(site.server.names("configmaps"), ["default/plain"]);
    // Once more under its full name: still one object, and not one to prune.
    let mut full = plain.clone();
    full["metadata"]["namespace"] = "default".into();
    site.apply(&[full.clone()]).await.unwrap();
    assert_eq!(site.server.names("configmaps"), ["default/plain"]);
    let (reason, _) = failure(&site.apply(&[plain, full]).await);
    assert_eq!(reason, "Duplicate");
}

#[tokio::test]
async fn a_role_that_lacks_something_is_told_what() {
    let mut site = Site::start().await;
    site.server.apply_as("admin", &namespace("shop"), false);
    let set = [config_map("page", "1"), deployment("web", "web:1")];
    let cases = [
        ("patch", "lacks `patch` on `deployments.apps`"),
        ("create", "lacks `create` on `deployments.apps`"),
        ("list", "takes the verbs `list` and `watch`"),
    ];
    for (verb, words) in cases {
        site.server.deny(verb, "deployments");
        site.restart();
        let (_, message) = failure(&site.apply(&set).await);
        assert!(
            message.contains(words) && message.contains(&format!("cannot {verb} resource")),
            "{message}"
        );
        assert!(message.contains("in API group \"apps\""), "{message}");
        assert_eq!(site.text("page").unwrap(), "1");
        site.server.allow_all();
    }
    site.restart();
    site.apply(&set).await.unwrap();
}

#[tokio::test]
async fn a_watch_that_is_refused_later_is_told() {
    let mut site = Site::start().await;
    let set = [namespace("shop"), config_map("page", "1")];
    site.apply(&set).await.unwrap();
    site.server.deny("watch", "configmaps");
    site.server.end_watches();
    let refused = site
        .pass_until("it is told", &set, |_, passed| passed.is_err())
        .await;
    let (reason, message) = failure(&refused);
    assert_eq!(reason, "NotWatched");
    assert!(
        message.contains("cannot watch resource \"configmaps\""),
        "{message}"
    );
}

#[tokio::test]
async fn what_cannot_be_watched_is_not_applied() {
    let mut site = Site::start().await;
    site.server.apply_as("admin", &namespace("shop"), false);
    site.server.deny("watch", "deployments");
    let set = [config_map("page", "1"), deployment("web", "web:1")];
    let (reason, _) = failure(&site.apply(&set).await);
    assert_eq!(reason, "NotWatched");
    assert!(site.server.object("deployments", "shop", "web").is_none());
    assert_eq!(site.text("page").unwrap(), "1");
    // It is asked again soon.
    site.server.allow_all();
    site.pass_until("it is allowed", &set, |_, passed| passed.is_ok())
        .await
        .unwrap();
    assert!(site.server.object("deployments", "shop", "web").is_some());
}

#[tokio::test]
async fn an_api_server_that_does_not_know_its_roles_yet_is_nothing_to_tell() {
    let mut site = Site::start().await;
    let set = [namespace("shop"), config_map("page", "1")];
    site.apply(&set).await.unwrap();
    site.server.deny("list", "configmaps");
    site.server.deny("watch", "configmaps");
    site.server.calls();
    site.server.end_watches();
    for _ in 0..5 {
        let _quiet = time::timeout(A_MOMENT, site.kube.disturbed()).await;
        assert!(site.pass(&set).await.unwrap().is_empty());
    }
    let calls = site.server.calls();
    assert!(
        calls.iter().any(|call| call.resource == "configmaps"),
        "{calls:?}"
    );
    site.server.allow_all();
    site.server
        .edit_as("kubectl-edit", ("configmaps", "shop", "page"), |object| {
            object["data"]["text"] = "hacked".into();
        });
    site.pass_until("drift is noticed", &set, |site, _| {
        site.text("page").as_deref() == Some("1")
    })
    .await
    .unwrap();
}
