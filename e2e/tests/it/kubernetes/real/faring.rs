//! Health while statuses change, with the cluster's own controllers; and logs, as far as they go without a node.

use longshore_agent::runtime::logs::LogStream;
use longshore_protocol::{
    ObjectKey,
    message::{LogEnd, LogRequest},
};

use super::*;

/// Says that all pods with this label are well, or have done their work.
fn settle(site: &Real, app: &str, phase: &str) {
    let selector = format!("--selector={app}");
    let pods = site.inside(&[
        "get",
        "pods",
        &selector,
        "-o",
        "jsonpath={.items[*].metadata.name}",
    ]);
    let ready = phase == "Running";
    let since = "2026-01-01T00:00:00Z";
    for pod in pods.split_whitespace() {
        site.report(
            "pod",
            pod,
            &json!({"phase": phase, "startTime": since, "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": since}]}),
        );
    }
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn health_follows_what_controllers_say() {
    let mut site = Real::start();
    let claim = site.placed(
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "disk"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": site.name,
            "resources": {"requests": {"storage": "1Mi"}}}}),
    );
    let set = [
        site.namespace(),
        site.config_map("page", "1"),
        site.workload("Deployment", "web", "web:1"),
        site.workload("StatefulSet", "store", "store:1"),
        site.job("migrate", "it:1"),
        claim,
    ];
    site.apply(&set).await.unwrap();
    let unwell = site.unhealthy().await;
    let names: Vec<_> = unwell
        .iter()
        .map(|(name, ..)| name.rsplit('/').next().unwrap())
        .collect();
    for name in ["web", "store", "disk"] {
        assert!(names.contains(&name), "{unwell:?}");
    }
    assert!(
        unwell.iter().all(|it| it.1 == Health::InProgress),
        "{unwell:?}"
    );

    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": site.name},
        "spec": {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/nonexistent"},
            "claimRef": {"namespace": site.name, "name": "disk"}}});
    site.kubectl.with(&["create", "-f", "-"], Some(&volume));
    let mut last = Vec::new();
    site.pass_until("all is well", &set, |site, passed| {
        assert!(passed.as_ref().is_ok_and(Changes::is_empty), "{passed:?}");
        settle(site, "app=web", "Running");
        settle(site, "app=store", "Running");
        last = futures_util::FutureExt::now_or_never(site.unhealthy()).unwrap();
        last.is_empty()
    })
    .await
    .unwrap();
    settle(&site, "job-name=migrate", "Succeeded");

    // A rollout that does not come to its end.
    let mut web = site.workload("Deployment", "web", "web:2");
    web["spec"]["progressDeadlineSeconds"] = 3.into();
    web["spec"]["minReadySeconds"] = 1.into();
    let set = [&set[..2], &[web], &set[3..]].concat();
    let changes = site.apply(&set).await.unwrap();
    assert_eq!(changes.written.len(), 1, "{changes:?}");
    assert_eq!(site.unhealthy().await[0].1, Health::InProgress);
    site.pass_until("it is too late", &set, |site, passed| {
        assert!(passed.as_ref().is_ok_and(Changes::is_empty), "{passed:?}");
        last = futures_util::FutureExt::now_or_never(site.unhealthy()).unwrap();
        last.iter().any(|it| it.1 == Health::Failed)
    })
    .await
    .unwrap();
    assert!(last[0].2.contains("ProgressDeadlineExceeded"), "{last:?}");
    let _gone = site.kubectl.try_with(
        &["delete", "persistentvolume", &site.name, "--wait=false"],
        None,
    );
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn a_job_that_fails_is_told() {
    let mut site = Real::start();
    let mut job = site.job("migrate", "it:1");
    job["spec"]["backoffLimit"] = 0.into();
    let set = [site.namespace(), job];
    site.apply(&set).await.unwrap();
    let mut last = Vec::new();
    site.pass_until("it fails", &set, |site, _| {
        settle(site, "job-name=migrate", "Failed");
        last = futures_util::FutureExt::now_or_never(site.unhealthy()).unwrap();
        last.iter().any(|it| it.1 == Health::Failed)
    })
    .await
    .unwrap();
    assert!(last[0].2.contains("BackoffLimitExceeded"), "{last:?}");
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn a_custom_resource_is_as_well_as_it_says() {
    let mut site = Real::start();
    let set = [site.namespace(), site.definition(), site.till("one")];
    site.apply(&set).await.unwrap();
    assert!(site.unhealthy().await.is_empty());
    let tills = site.tills();
    let ready = |status: &str| json!({"conditions": [{"type": "Ready", "status": status, "reason": "Opening", "message": ""}]});
    for (status, unwell) in [("False", 1), ("True", 0)] {
        site.report(&tills, "one", &ready(status));
        site.disturbed().await;
        assert!(site.pass(&set).await.unwrap().is_empty());
        assert_eq!(site.unhealthy().await.len(), unwell, "{status}");
    }
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn logs_that_cannot_be_had_say_why() {
    let mut site = Real::start();
    let set = [
        site.namespace(),
        site.workload("Deployment", "web", "web:1"),
    ];
    site.apply(&set).await.unwrap();
    let open = async |kind: &str, api_version: &str, name: &str| -> Result<LogStream, LogEnd> {
        let object = ObjectKey {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: site.name.clone(),
            name: name.to_owned(),
        };
        let request = LogRequest {
            object: Some(object),
            ..LogRequest::default()
        };
        site.kube.logs().open(&request).await
    };
    let LogEnd::Refused(why) = open("Deployment", "apps/v1", "gone").await.unwrap_err() else {
        panic!("it is not there");
    };
    assert!(why.contains("not found"), "{why}");
    // Its controller makes the pod, which no node takes and which says nothing.
    let mut log = longshore_e2e::eventually("the pod is there", async || {
        let log = open("Deployment", "apps/v1", "web").await;
        log.map_err(|end| anyhow::anyhow!("{end:?}"))
    })
    .await
    .unwrap();
    assert_eq!(log.read(8000).await.unwrap(), None);
}
