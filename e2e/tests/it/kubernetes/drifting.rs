//! Other hands, and other managers.

use std::time::Duration;

use longshore_agent::{
    backoff::Backoff,
    clock,
    reconcile::{Reconciler, Timing},
    report::Reporter,
};
use longshore_protocol::ConditionStatus;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{A_MOMENT, Site, config_map, deployment, failure, namespace, till, writes};

const PAGE: (&str, &str, &str) = ("configmaps", "shop", "page");

#[tokio::test]
async fn what_people_change_is_put_right_at_once() {
    let mut site = Site::start().await;
    let set = [
        namespace("shop"),
        config_map("page", "1"),
        config_map("other", "1"),
    ];
    site.apply(&set).await.unwrap();
    site.server.calls();

    site.server.edit_as("kubectl-edit", PAGE, |object| {
        object["data"]["text"] = "hacked".into();
    });
    site.disturbed().await;
    let changes = site.pass(&set).await.unwrap();
    assert_eq!(changes.written, ["ConfigMap shop/page"]);
    assert_eq!(site.text("page").unwrap(), "1");
    // Once without force, to learn who is in the way, and once with it.
    let calls = site.server.calls();
    let forced: Vec<_> = calls
        .iter()
        .filter(|call| call.verb == "patch")
        .map(|call| call.force)
        .collect();
    assert_eq!(forced, [false, true]);

    site.server.delete("configmaps", "shop", "other");
    site.disturbed().await;
    assert_eq!(
        site.pass(&set).await.unwrap().written,
        ["ConfigMap shop/other"]
    );
    assert_eq!(site.text("other").unwrap(), "1");
}

#[tokio::test]
async fn labels_and_removed_fields_are_drift_and_what_others_add_is_not() {
    let mut site = Site::start().await;
    let set = [namespace("shop"), config_map("page", "1")];
    site.apply(&set).await.unwrap();
    site.server.calls();
    site.server.edit_as("controller", PAGE, |object| {
        object["metadata"]["annotations"]["seen"] = "yes".into();
        object["data"]["added"] = "by others".into();
    });
    let stirred = time::timeout(
        A_MOMENT,
        longshore_agent::runtime::Runtime::disturbed(&mut site.kube),
    )
    .await;
    assert!(stirred.is_err());
    assert!(site.pass(&set).await.unwrap().is_empty());
    assert!(writes(&site.server.calls()).is_empty());

    site.server.edit_as("kubectl-label", PAGE, |object| {
        object["metadata"]["labels"]
            .as_object_mut()
            .unwrap()
            .clear();
    });
    site.disturbed().await;
    site.pass(&set).await.unwrap();
    let object = site.server.object("configmaps", "shop", "page").unwrap();
    assert_eq!(
        object["metadata"]["labels"]["longshore.dev/device"],
        site.device.as_str()
    );
    assert_eq!(object["data"]["added"], "by others");
}

#[tokio::test]
async fn drift_while_the_agent_was_down_is_put_right() {
    let mut site = Site::start().await;
    let set = [
        namespace("shop"),
        config_map("page", "1"),
        config_map("other", "1"),
    ];
    site.apply(&set).await.unwrap();
    site.server.edit_as("kubectl-edit", PAGE, |object| {
        object["data"]["text"] = "hacked".into();
    });
    site.server.delete("configmaps", "shop", "other");
    site.restart();
    let changes = site.pass(&set).await.unwrap();
    assert_eq!(changes.written.len(), 2, "{changes:?}");
    assert_eq!(
        (site.text("page").unwrap(), site.text("other").unwrap()),
        ("1".into(), "1".into())
    );
}

#[tokio::test]
async fn fights_become_rarer_and_are_told() {
    let mut site = Site::start().await;
    let set = [
        namespace("shop"),
        config_map("page", "1"),
        config_map("other", "1"),
    ];
    site.apply(&set).await.unwrap();
    site.server.calls();
    // When it was put right; each wait is twice as long as the one before, from one second on. A pass takes a while.
    let mut repairs = Vec::new();
    let mut told = String::new();
    while repairs.len() < 4 {
        if site.text("page").as_deref() == Some("1") {
            site.server.edit_as("operator", PAGE, |object| {
                object["data"]["text"] = "mine".into();
            });
        }
        site.disturbed().await;
        let changes = site.pass(&set).await.unwrap();
        if !changes.written.is_empty() {
            repairs.push(Instant::now());
        }
        told.push_str(&changes.waits());
    }
    for (pair, least) in repairs.windows(2).zip([700, 1700, 3700]) {
        assert!(
            pair[1] - pair[0] >= Duration::from_millis(least),
            "{repairs:?}"
        );
    }
    assert!(
        told.contains("ConfigMap shop/page is changed again and again by operator"),
        "{told}"
    );
    // All others are looked after meanwhile.
    site.server.delete("configmaps", "shop", "other");
    site.pass_until("the other one is back", &set, |site, _| {
        site.text("other").is_some()
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn fields_of_other_managers_are_told_and_not_taken() {
    let mut site = Site::start().await;
    site.server.apply_as("admin", &namespace("shop"), false);
    let mut theirs = deployment("web", "web:9");
    theirs["spec"]["replicas"] = 5.into();
    site.server.apply_as("argocd", &theirs, false);
    let set = [deployment("web", "web:1"), config_map("page", "1")];
    let (reason, message) = failure(&site.apply(&set).await);
    assert_eq!(reason, "Conflict");
    for part in [
        "Deployment.apps shop/web",
        "`.spec.replicas` (conflict with \"argocd\")",
        "`.spec.template.spec.containers[name=\"till\"].image`",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(site.text("page").unwrap(), "1");
    let live = site.server.object("deployments", "shop", "web").unwrap();
    assert_eq!(live["spec"]["replicas"], 5);
    let calls = site.server.calls();
    assert!(calls.iter().all(|call| !call.force), "{calls:?}");
    // A pass that comes at once asks nothing again.
    failure(&site.pass(&set).await);
    assert!(writes(&site.server.calls()).is_empty());

    // They give it up.
    let mut less = theirs.clone();
    less["spec"].as_object_mut().unwrap().remove("replicas");
    less["spec"]["template"]["spec"]["containers"][0] = json!({"name": "till"});
    site.server.apply_as("argocd", &less, false);
    site.pass_until("it is applied", &set, |_, passed| passed.is_ok())
        .await
        .unwrap();
    let live = site.server.object("deployments", "shop", "web").unwrap();
    assert_eq!(live["spec"]["replicas"], 1);
}

#[tokio::test]
async fn who_takes_a_field_by_applying_it_keeps_it() {
    let mut site = Site::start().await;
    let set = [namespace("shop"), config_map("page", "1")];
    site.apply(&set).await.unwrap();
    site.server
        .apply_as("argocd", &config_map("page", "theirs"), true);
    site.disturbed().await;
    let (reason, message) = failure(&site.pass(&set).await);
    assert_eq!(reason, "Conflict");
    assert!(
        message.contains("`.data.text` (conflict with \"argocd\")"),
        "{message}"
    );
    assert_eq!(site.text("page").unwrap(), "theirs");
}

#[tokio::test]
async fn what_another_devices_agent_applies_is_left_to_it() {
    let mut site = Site::start().await;
    let set = [namespace("shop"), config_map("page", "1")];
    site.apply(&set).await.unwrap();
    let first = site.device.clone();
    site.device = longshore_protocol::DeviceId::from_random([8; 16]);
    site.settings.state = site.dir.path().join("second");
    site.restart();
    let (reason, message) = failure(
        &site
            .pass(&[config_map("page", "2"), config_map("own", "2")])
            .await,
    );
    assert_eq!(reason, "OtherDevice");
    assert!(message.contains(first.as_str()), "{message}");
    assert_eq!(
        (site.text("page").unwrap(), site.text("own").unwrap()),
        ("1".into(), "2".into())
    );
}

#[tokio::test]
async fn the_agent_repairs_and_reports_on_its_own() {
    let site = Site::start().await;
    let reporter = Reporter::new(None, clock::system);
    let mut report = reporter.follow();
    let target = watch::Sender::new(None);
    let never = Duration::from_hours(1);
    let timing = Timing {
        check: never,
        settle: Duration::from_millis(20),
        ..Timing::default()
    };
    let short = Duration::from_millis(50);
    let backoff = Backoff::new(short, short, rand::make_rng());
    let reconciler = Reconciler::new(
        Box::new(site.kube),
        target.subscribe(),
        reporter,
        timing,
        backoff,
    );
    let stop = CancellationToken::new();
    let reconciling = tokio::spawn(reconciler.run(stop.clone()));
    let set = [namespace("shop"), config_map("page", "1")];
    target.send_replace(Some(super::holding(1, &set)));
    let mut says = async |kind: &str, status: ConditionStatus, words: &str| {
        let said = report.wait_for(|report| {
            let mut conditions = report.conditions.iter();
            conditions
                .any(|it| it.kind == kind && it.status == status && it.message.contains(words))
        });
        let said = time::timeout(longshore_e2e::wait::PATIENCE, said).await;
        said.unwrap_or_else(|_| panic!("never: {kind} {words}"))
            .unwrap();
    };
    says("Applied", ConditionStatus::True, "").await;
    site.server.edit_as("kubectl-edit", PAGE, |object| {
        object["data"]["text"] = "hacked".into();
    });
    says("Drifted", ConditionStatus::True, "ConfigMap shop/page").await;
    site.server.set_status(
        ("namespaces", "", "shop"),
        json!({"phase": "Active", "conditions": [{"type": "Stalled", "status": "True", "message": "no disk"}]}),
    );
    says("Healthy", ConditionStatus::False, "no disk").await;
    target.send_replace(Some(super::holding(
        2,
        &[namespace("shop"), config_map("lost", "1"), till("one")],
    )));
    says("Applied", ConditionStatus::False, "no kind `Till`").await;
    assert_eq!(site.server.names("configmaps"), ["shop/lost"]);
    stop.cancel();
    reconciling.await.unwrap();
}
