//! What the agent may do, and where.

use serde_json::json;

use super::{Site, config_map, deployment, failure, namespace};

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
