//! Fields that others have, had before, or take.

use super::*;

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn what_others_apply_is_not_taken_from_them() {
    let mut site = Real::start();
    let set = [
        site.namespace(),
        site.config_map("page", "ours"),
        site.config_map("other", "1"),
    ];
    site.kubectl.apply_as("admin", &site.namespace(), false);
    let theirs = site.config_map("page", "theirs");
    site.kubectl.apply_as("other", &theirs, false);
    // What is as old as our writing of it counts as ours, where nobody else has any of it.
    time::sleep(Duration::from_millis(2100)).await;
    let (reason, message) = failure(&site.apply(&set).await);
    assert_eq!(reason, "Conflict");
    assert!(
        message.contains("`.data.text` (conflict with \"other\")"),
        "{message}"
    );
    assert_eq!(site.text("page").unwrap(), "theirs");
    assert_eq!(site.text("other").unwrap(), "1");
    // The other one gives the field up.
    let mut empty = theirs.clone();
    empty.as_object_mut().unwrap().remove("data");
    site.kubectl.apply_as("other", &empty, false);
    site.pass_until("it is ours", &set, |_, passed| passed.is_ok())
        .await
        .unwrap();
    assert_eq!(site.text("page").unwrap(), "ours");
    // And takes it, stating that it means to keep it.
    site.kubectl.apply_as("other", &theirs, true);
    let told = site
        .pass_until("the conflict is told", &set, |_, passed| passed.is_err())
        .await;
    let (reason, message) = failure(&told);
    assert_eq!(reason, "Conflict", "{message}");
    assert_eq!(site.text("page").unwrap(), "theirs");
    // An equal value is no conflict: both have it.
    let set = [site.namespace(), site.config_map("page", "theirs")];
    site.apply(&set).await.unwrap();
    // What both have stays when the set is gone, without our label: it was there before.
    site.apply(&[]).await.unwrap();
    let left = site.object("configmap", "page").unwrap();
    assert_eq!(left["data"]["text"], "theirs");
    assert!(left["metadata"]["labels"].is_null(), "{left}");
    assert_eq!(site.names("configmaps"), ["page"]);
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn what_people_change_is_put_right() {
    let mut site = Real::start();
    let set = [
        site.namespace(),
        site.config_map("page", "1"),
        site.workload("Deployment", "web", "web:1"),
    ];
    site.apply(&set).await.unwrap();
    let id = |site: &Real| site.object("configmap", "page").unwrap()["metadata"]["uid"].clone();
    let first = id(&site);
    let patch = ["patch", "configmap", "page", "-p"];
    let changes: [(&str, Vec<&str>); 6] = [
        (
            "a value",
            [&patch[..], &[r#"{"data":{"text":"2"}}"#]].concat(),
        ),
        (
            "a field",
            [&patch[..], &[r#"{"data":{"text":null}}"#]].concat(),
        ),
        (
            "the label",
            vec!["label", "configmap", "page", "longshore.dev/device-"],
        ),
        (
            "another device",
            vec![
                "label",
                "--overwrite",
                "configmap",
                "page",
                "longshore.dev/device=other",
            ],
        ),
        (
            "all labels",
            vec![
                "patch",
                "configmap",
                "page",
                "--type=json",
                "-p",
                r#"[{"op":"remove","path":"/metadata/labels"}]"#,
            ],
        ),
        ("its deletion", vec!["delete", "configmap", "page"]),
    ];
    let device = site.device.clone();
    for (what, arguments) in changes {
        site.inside(&arguments);
        site.pass_until(what, &set, |site, passed| {
            let object = site.object("configmap", "page");
            passed.is_ok()
                && object.is_some_and(|it| {
                    it["data"]["text"] == "1"
                        && it["metadata"]["labels"]["longshore.dev/device"] == device.as_str()
                })
        })
        .await
        .unwrap();
    }
    assert_ne!(id(&site), first);
    let replicas =
        |site: &Real| site.object("deployment", "web").unwrap()["spec"]["replicas"].clone();
    // Before 1.22, API servers do not note who scales.
    if site.kubectl.minor() >= 22 {
        site.inside(&["scale", "deployment", "web", "--replicas=0"]);
    }
    site.pass_until("the replicas", &set, |site, _| replicas(site) == 1)
        .await
        .unwrap();
    site.inside(&["set", "image", "deployment/web", "till=web:2"]);
    site.pass_until("the image", &set, |site, _| {
        let web = site.object("deployment", "web").unwrap();
        web["spec"]["template"]["spec"]["containers"][0]["image"] == "web:1"
    })
    .await
    .unwrap();
    // What the manifest does not have is nobody's business.
    site.inside(&["annotate", "deployment", "web", "note=mine"]);
    site.inside(&[
        "patch",
        "configmap",
        "page",
        "-p",
        r#"{"data":{"more":"mine"}}"#,
    ]);
    site.pass_until("peace", &set, |_, passed| {
        passed
            .as_ref()
            .is_ok_and(|it| it.is_empty() && it.waiting.is_empty())
    })
    .await
    .unwrap();
    assert_eq!(
        site.object("configmap", "page").unwrap()["data"]["more"],
        "mine"
    );
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn what_was_there_before_is_given_up_and_not_deleted() {
    let mut site = Real::start();
    site.kubectl.apply_as("admin", &site.namespace(), false);
    let mut theirs = site.config_map("page", "1");
    theirs["data"]["more"] = "theirs".into();
    // As most people do it: not on the server's side.
    site.kubectl.with(&["create", "-f", "-"], Some(&theirs));
    // What was written in the same second as ours is held for ours only where we made it.
    time::sleep(Duration::from_millis(2100)).await;
    let mut ours = site.config_map("page", "1");
    ours["data"]["added"] = "ours".into();
    let set = [site.namespace(), ours, site.config_map("own", "1")];
    site.apply(&set).await.unwrap();
    // Also where a new process removes it, which knows nothing any more.
    std::fs::remove_file(site.settings.state.join("kube/inventory.json")).unwrap();
    site.restart();
    site.apply(&[]).await.unwrap();
    let left = site.object("configmap", "page").unwrap();
    assert_eq!(left["data"], json!({"text": "1", "more": "theirs"}));
    assert!(left["metadata"]["labels"].is_null(), "{left}");
    assert_eq!(site.names("configmaps"), ["page"]);
    assert_eq!(
        site.object("namespace", &site.name).unwrap()["status"]["phase"],
        "Active"
    );
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn another_devices_objects_are_left_alone() {
    let mut site = Real::start();
    let mut other = Real::start();
    let set = [site.namespace(), site.config_map("page", "1")];
    site.apply(&set).await.unwrap();
    let (reason, message) = failure(&other.apply(&[site.config_map("page", "2")]).await);
    assert_eq!(reason, "OtherDevice", "{message}");
    assert!(message.contains(site.device.as_str()), "{message}");
    assert_eq!(site.text("page").unwrap(), "1");
    other.apply(&[]).await.unwrap();
    assert_eq!(site.text("page").unwrap(), "1");
}
