//! Agents with fewer rights than an administrator.

use super::*;

pub(super) const VERBS: [&str; 6] = ["get", "list", "watch", "create", "patch", "delete"];

/// A service account's kubeconfig, with these rules in its namespace.
pub(super) fn account(site: &Real, rules: &Value) -> PathBuf {
    let kubectl = &site.kubectl;
    let named = |kind: &str, api_version: &str| {
        site.placed(json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "agent"}}))
    };
    let role = "rbac.authorization.k8s.io/v1";
    let mut binding = named("RoleBinding", role);
    binding["roleRef"] =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "agent"});
    binding["subjects"] =
        json!([{"kind": "ServiceAccount", "name": "agent", "namespace": site.name}]);
    for object in [site.namespace(), named("ServiceAccount", "v1"), binding] {
        kubectl.apply_as("helm", &object, false);
    }
    grant(site, rules);
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"expirationSeconds": 3600}});
    let path = format!(
        "/api/v1/namespaces/{}/serviceaccounts/agent/token",
        site.name
    );
    let answer = kubectl.with(&["create", "--raw", &path, "-f", "-"], Some(&request));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let view = kubectl.run(&["config", "view", "--raw", "--minify", "-o", "json"]);
    let mut config: Value = serde_json::from_str(&view).unwrap();
    config["users"][0]["user"] = json!({"token": answer["status"]["token"]});
    let path = site.dir.path().join("kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

fn grant(site: &Real, rules: &Value) {
    let mut role = site.placed(
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "agent"}}),
    );
    role["rules"] = rules.clone();
    site.kubectl.apply_as("helm", &role, true);
}

pub(super) fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

/// An agent of this account, confined to the namespace.
pub(super) fn confined(site: &Real, kubeconfig: &Path) -> Real {
    let mut agent = Real::with(site.kubectl.clone(), kubeconfig, Some(&site.name));
    agent.settings.namespace = Some(site.name.clone());
    agent.restart();
    agent
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn a_confined_agent_has_enough_with_the_rights_of_the_chart() {
    let site = Real::start();
    // As charts/longshore-agent gives them with `rbac.scope: namespace`.
    let core = [
        "configmaps",
        "secrets",
        "services",
        "serviceaccounts",
        "persistentvolumeclaims",
        "pods",
    ];
    let apps = ["deployments", "statefulsets", "daemonsets", "replicasets"];
    let rules = json!([
        rule(&[""], &core, &VERBS),
        rule(&["apps"], &apps, &VERBS),
        rule(&["batch"], &["jobs", "cronjobs"], &VERBS),
        rule(
            &["networking.k8s.io"],
            &["ingresses", "networkpolicies"],
            &VERBS
        ),
        rule(&[""], &["pods", "pods/log"], &["get", "list"]),
    ]);
    let kubeconfig = account(&site, &rules);
    let mut agent = confined(&site, &kubeconfig);
    let plain = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "plain"}});
    let policy = site.placed(
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "none"}, "spec": {"podSelector": {}}}),
    );
    let set = [
        plain,
        site.config_map("page", "1"),
        site.workload("Deployment", "web", "web:1"),
        site.job("migrate", "it:1"),
        policy,
    ];
    let changes = agent.apply(&set).await.unwrap();
    assert_eq!(changes.written.len(), set.len(), "{changes:?}");
    let mut elsewhere = site.config_map("lost", "1");
    elsewhere["metadata"]["namespace"] = "default".into();
    let with_others = [&set[..], &[elsewhere, site.namespace()]].concat();
    let (reason, message) = failure(&agent.apply(&with_others).await);
    assert_eq!(reason, "OutOfScope", "{message}");
    // With its inventory lost it looks into all kinds, of which it may see few.
    std::fs::remove_file(agent.settings.state.join("kube/inventory.json")).unwrap();
    agent.restart();
    let changes = agent.apply(&set[..1]).await.unwrap();
    assert_eq!(changes.removed.len(), 4, "{changes:?}");
    time::timeout(PATIENCE, agent.kube.clear())
        .await
        .unwrap()
        .unwrap();
    assert!(site.names("configmaps").is_empty());
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn a_role_that_lacks_something_is_told_what_and_goes_on_when_it_has_it() {
    let site = Real::start();
    let but = |verb: &str| {
        let verbs: Vec<_> = VERBS.into_iter().filter(|it| *it != verb).collect();
        json!([
            rule(&[""], &["configmaps"], &VERBS),
            rule(&["apps"], &["deployments"], &verbs)
        ])
    };
    let kubeconfig = account(&site, &but("patch"));
    let cases = [
        ("patch", "Forbidden", "lacks `patch` on `deployments.apps`"),
        (
            "create",
            "Forbidden",
            "lacks `create` on `deployments.apps`",
        ),
        ("watch", "NotWatched", "cannot watch deployments.apps"),
        ("list", "NotWatched", "cannot watch deployments.apps"),
    ];
    let mut set = vec![
        site.config_map("page", "1"),
        site.workload("Deployment", "web", "web:1"),
    ];
    // Roles take a moment to be known, and one process for all has seen what it was allowed before.
    let mut agent = confined(&site, &kubeconfig);
    for (verb, expected, words) in cases {
        grant(&site, &but(verb));
        agent.generation += 1;
        agent.restart();
        let told = agent
            .pass_until(verb, &set, |_, passed| {
                passed
                    .as_ref()
                    .is_err_and(|error| error.explanation().contains(words))
            })
            .await;
        assert_eq!(failure(&told).0, expected);
        assert_eq!(site.text("page").unwrap(), "1");
        assert!(site.names("deployments").is_empty());
    }
    // Without a restart: all rights, and then not the one to delete.
    grant(&site, &but("none"));
    agent
        .pass_until("it is allowed", &set, |_, passed| passed.is_ok())
        .await
        .unwrap();
    grant(&site, &but("delete"));
    set.truncate(1);
    agent.generation += 1;
    let told = agent
        .pass_until("the deletion is refused", &set, |_, passed| passed.is_err())
        .await;
    let (reason, message) = failure(&told);
    assert_eq!(reason, "Forbidden");
    assert!(
        message.contains("lacks `delete` on `deployments.apps`"),
        "{message}"
    );
    grant(&site, &but("none"));
    agent
        .pass_until("it is removed", &set, |_, passed| passed.is_ok())
        .await
        .unwrap();
    assert!(site.names("deployments").is_empty());
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn credentials_that_are_not_known_cut_it_off_until_they_are_renewed() {
    let site = Real::start();
    let kubeconfig = account(&site, &json!([rule(&[""], &["configmaps"], &VERBS)]));
    let good = std::fs::read_to_string(&kubeconfig).unwrap();
    let mut bad: Value = serde_json::from_str(&good).unwrap();
    bad["users"][0]["user"]["token"] = "stale".into();
    std::fs::write(&kubeconfig, bad.to_string()).unwrap();
    let mut agent = confined(&site, &kubeconfig);
    let set = [site.config_map("page", "1")];
    let (reason, message) = failure(&agent.apply(&set).await);
    assert_eq!(reason, "RuntimeUnavailable");
    assert!(
        message.contains("does not know the agent's credentials"),
        "{message}"
    );
    std::fs::write(&kubeconfig, &good).unwrap();
    agent
        .pass_until("it is let in", &set, |_, passed| passed.is_ok())
        .await
        .unwrap();
    assert_eq!(site.text("page").unwrap(), "1");
    let about = agent.kube.probe().await.unwrap();
    assert!(about.starts_with("Kubernetes v"), "{about}");
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn rights_cannot_be_handed_on_by_whoever_lacks_them() {
    let site = Real::start();
    let grants = ["roles", "rolebindings"];
    let rules = json!([
        rule(&[""], &["configmaps"], &VERBS),
        rule(&["rbac.authorization.k8s.io"], &grants, &VERBS),
    ]);
    let kubeconfig = account(&site, &rules);
    let mut agent = confined(&site, &kubeconfig);
    let mut role = site.placed(
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "reader"}}),
    );
    role["rules"] = json!([rule(&[""], &["secrets"], &["get"])]);
    let set = [role, site.config_map("page", "1")];
    let (reason, message) = failure(&agent.apply(&set).await);
    assert_eq!(reason, "Forbidden");
    assert!(
        message.contains("attempting to grant RBAC permissions"),
        "{message}"
    );
    assert_eq!(site.text("page").unwrap(), "1");
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn an_agent_knows_which_rights_it_lacks() {
    let site = Real::start();
    let few = json!([rule(&[""], &["configmaps"], &["list", "watch", "patch"])]);
    let kubeconfig = account(&site, &few);
    let mut agent = confined(&site, &kubeconfig);
    let lack = |verbs: &[&str], scope: &str| {
        let right = |verb: &&str| format!("{verb} configmaps in {scope}");
        verbs.iter().map(right).collect::<Vec<_>>()
    };
    let here = format!("the namespace {}", site.name);
    let lacks = async |agent: &mut Real, expected: Vec<String>| {
        // Roles take a moment to be known.
        let end = time::Instant::now() + PATIENCE;
        loop {
            let lacks = agent.kube.lacks().await.unwrap();
            if lacks == expected {
                return;
            }
            assert!(time::Instant::now() < end, "{lacks:?}");
            time::sleep(Duration::from_millis(100)).await;
        }
    };
    lacks(&mut agent, lack(&["create", "delete"], &here)).await;
    grant(&site, &json!([rule(&[""], &["configmaps"], &VERBS)]));
    lacks(&mut agent, Vec::new()).await;
    // What is enough in one namespace is not in all.
    agent.settings.namespace = None;
    agent.restart();
    let all = ["list", "watch", "patch", "create", "delete"];
    lacks(&mut agent, lack(&all, "all namespaces")).await;
    let mut administrator = Real::start();
    lacks(&mut administrator, Vec::new()).await;
}
