//! An API server that is killed and started again while the agent works, and forgets all versions meanwhile.
//!
//! `LONGSHORE_TEST_RESTART` names the program that does this to the cluster and returns when it is ready again. Without
//! it, these pass over the same sets with nothing in the way.

use tokio::process::Command;

use super::{
    rights::{VERBS, account, confined, rule},
    *,
};

async fn restart() {
    let Some(program) = env::var_os("LONGSHORE_TEST_RESTART") else {
        return;
    };
    let status = Command::new(program).status().await.unwrap();
    assert!(status.success());
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn a_restart_in_the_middle_of_five_hundred_objects_is_made_up_for() {
    let mut site = Real::start();
    let set = |site: &Real, text: &str| {
        let mut set = vec![site.namespace(), site.definition()];
        set.extend((0..100).map(|index| site.till(&format!("till-{index}"))));
        set.extend((0..398).map(|index| site.config_map(&format!("page-{index}"), text)));
        set
    };
    for (round, text) in ["1", "2", "3"].into_iter().enumerate() {
        let set = set(&site, text);
        site.generation += 1;
        let restarting = tokio::spawn(async move {
            time::sleep(Duration::from_millis(300 * (round as u64 + 1))).await;
            restart().await;
        });
        let passed = site.pass(&set).await;
        if let Err(error) = &passed {
            assert_eq!(error.reason(), "RuntimeUnavailable", "{error}");
        }
        let mut told = Vec::new();
        site.pass_until("all of it is there", &set, |_, passed| {
            told.extend(passed.as_ref().err().map(ApplyError::reason));
            restarting.is_finished() && passed.is_ok()
        })
        .await
        .unwrap();
        restarting.await.unwrap();
        told.dedup();
        println!(
            "round {round}: {:?}, then {told:?}",
            passed.err().map(|it| it.reason())
        );
        // Nothing else is ever said of a cluster that starts: it may know some kinds before others.
        let expected = ["RuntimeUnavailable", "UnknownKind"];
        assert!(told.iter().all(|it| expected.contains(it)), "{told:?}");
        let texts = site.inside(&["get", "configmaps", "-o", "jsonpath={.items[*].data.text}"]);
        assert_eq!(
            texts.split_whitespace().filter(|it| *it == text).count(),
            398
        );
        // The watches are back.
        site.inside(&["delete", "configmap", "page-7"]);
        site.inside(&[
            "patch",
            "configmap",
            "page-8",
            "-p",
            r#"{"data":{"text":"x"}}"#,
        ]);
        site.pass_until("it is put right", &set, |site, _| {
            site.text("page-7").as_deref() == Some(text)
                && site.text("page-8").as_deref() == Some(text)
        })
        .await
        .unwrap();
    }
}

/// An API server that has just started knows no roles and no accounts for a moment.
#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn a_restart_is_nothing_to_tell_an_agent_with_few_rights() {
    let site = Real::start();
    let kubeconfig = account(
        &site,
        &json!([
            rule(&[""], &["configmaps"], &VERBS),
            rule(&["apps"], &["deployments"], &VERBS)
        ]),
    );
    let mut agent = confined(&site, &kubeconfig);
    let mut set = vec![
        site.config_map("page", "1"),
        site.workload("Deployment", "web", "web:1"),
    ];
    agent.apply(&set).await.unwrap();
    for round in 0..3 {
        let restarting = tokio::spawn(restart());
        let mut told = Vec::new();
        let since = time::Instant::now();
        // As the agent does: it passes when something stirs, and that is told.
        while !restarting.is_finished() {
            let _quiet = time::timeout(Duration::from_millis(50), agent.kube.disturbed()).await;
            told.extend(
                agent
                    .pass(&set)
                    .await
                    .err()
                    .map(|it| format!("{} {it}", it.reason())),
            );
        }
        restarting.await.unwrap();
        set[0] = site.config_map("page", &format!("{round} again"));
        agent.generation += 1;
        agent
            .pass_until("it goes on", &set, |_, passed| {
                told.extend(
                    passed
                        .as_ref()
                        .err()
                        .map(|it| format!("{} {it}", it.reason())),
                );
                passed.is_ok()
            })
            .await
            .unwrap();
        told.dedup();
        println!("round {round}: after {:?}: {told:#?}", since.elapsed());
        let others: Vec<_> = told
            .iter()
            .filter(|it| !it.starts_with("RuntimeUnavailable"))
            .collect();
        assert!(others.is_empty(), "{others:#?}");
        site.inside(&["delete", "configmap", "page"]);
        agent
            .pass_until("it is put right", &set, |_, _| site.text("page").is_some())
            .await
            .unwrap();
    }
}
