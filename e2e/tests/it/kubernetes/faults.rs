//! Kills, broken connections, API servers that restart, and versions that are forgotten.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use longshore_agent::runtime::{Runtime as _, kube::Kube};
use longshore_e2e::kubernetes::ApiServer;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time;

use super::{Site, config_map, definition, deployment, failure, holding, namespace, till, writes};

/// What the API server has, without what differs between two ways to the same end.
fn state(site: &Site) -> Vec<Value> {
    let mut state = Vec::new();
    for plural in [
        "namespaces",
        "customresourcedefinitions",
        "configmaps",
        "deployments",
        "tills",
    ] {
        for place in site.server.names(plural) {
            let (namespace, name) = place.split_once('/').unwrap();
            let object = site.server.object(plural, namespace, name).unwrap();
            state.push(json!([
                plural,
                place,
                object["data"],
                object["spec"],
                object["metadata"]["labels"]
            ]));
        }
    }
    state
}

#[tokio::test]
async fn killed_at_any_request_it_ends_as_if_it_had_not_been() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let first = [
        namespace("shop"),
        definition(),
        till("one"),
        deployment("web", "web:1"),
        config_map("a", "1"),
        config_map("b", "1"),
        config_map("c", "1"),
    ];
    let second = [
        namespace("shop"),
        definition(),
        till("two"),
        deployment("web", "web:2"),
        config_map("a", "2"),
        config_map("c", "1"),
        config_map("d", "1"),
    ];
    let sets: [&[Value]; 3] = [&first, &second, &first[..4]];
    let mut reference = Site::start().await;
    for set in sets {
        reference.apply(set).await.unwrap();
    }
    let expected = state(&reference);

    for round in 0..25 {
        let mut site = Site::start().await;
        for set in sets {
            site.generation += 1;
            // Killed up to three times within one set, each time after some more requests.
            for _ in 0..random.random_range(1..4) {
                let until = random.random_range(0..14_u64);
                let mut progress = site.server.progress();
                let start = *progress.borrow();
                let mut kube = Kube::new(site.settings.clone(), site.device.clone());
                tokio::select! {
                    biased;
                    _ = progress.wait_for(|now| *now >= start + until) => {}
                    _ = kube.apply(holding(site.generation, set)) => {}
                }
            }
            // Now and then it is overtaken by the next set, without ever being finished.
            if random.random_bool(0.7) {
                site.restart();
                site.pass(set).await.unwrap();
            }
        }
        site.restart();
        site.pass(sets[2]).await.unwrap();
        assert_eq!(state(&site), expected, "round {round}");
        site.server.calls();
        site.restart();
        assert!(site.pass(sets[2]).await.unwrap().is_empty());
        assert!(writes(&site.server.calls()).is_empty());
    }
}

#[tokio::test]
async fn what_was_made_just_before_a_kill_stays_ours_when_it_changes_and_goes_when_it_leaves() {
    let mut site = Site::start().await;
    site.apply(&[namespace("shop")]).await.unwrap();
    for text in ["1", "2", "3"] {
        site.generation += 1;
        let set = [namespace("shop"), config_map("page", text)];
        let mut progress = site.server.progress();
        let mut kube = Kube::new(site.settings.clone(), site.device.clone());
        tokio::select! {
            biased;
            made = progress.wait_for(|_| site.text("page").as_deref() == Some(text)) => drop(made.unwrap()),
            _ = kube.apply(holding(site.generation, &set)) => panic!("the kill was too late"),
        }
    }
    site.restart();
    site.apply(&[namespace("shop"), config_map("page", "4")])
        .await
        .unwrap();
    site.apply(&[namespace("shop")]).await.unwrap();
    assert_eq!(site.server.names("configmaps"), Vec::<String>::new());
}

#[tokio::test]
async fn answers_that_are_lost_are_made_up_for() {
    for after_the_deed in [false, true] {
        for cut in 0..12 {
            let mut site = Site::start().await;
            let first = [
                namespace("shop"),
                config_map("a", "1"),
                config_map("b", "1"),
            ];
            site.server.cut_after(cut, after_the_deed);
            if let failed @ Err(_) = site.apply(&first).await {
                assert_eq!(failure(&failed).0, "RuntimeUnavailable");
                site.pass_until("it is applied", &first, |_, passed| passed.is_ok())
                    .await
                    .unwrap();
            }
            let second = [namespace("shop"), config_map("b", "2")];
            site.generation += 1;
            site.pass_until("it is removed", &second, |_, passed| passed.is_ok())
                .await
                .unwrap();
            assert_eq!(
                (site.text("a"), site.text("b").unwrap()),
                (None, "2".into())
            );
        }
    }
}

#[tokio::test]
async fn an_api_server_that_restarts_is_found_again() {
    let mut site = Site::start().await;
    let set = [namespace("shop"), config_map("page", "1")];
    site.apply(&set).await.unwrap();
    site.server.stop().await;
    // What is in place stays in place; what is new cannot come.
    assert!(site.pass(&set).await.unwrap().is_empty());
    let next = [namespace("shop"), config_map("page", "2")];
    let (reason, message) = failure(&site.apply(&next).await);
    assert_eq!(reason, "RuntimeUnavailable");
    assert!(message.contains("cannot reach the API server"), "{message}");
    site.server.start_again().await;
    site.pass(&next).await.unwrap();
    assert_eq!(site.text("page").unwrap(), "2");
    // The watch is back as well, from where it was.
    site.server.calls();
    site.server
        .edit_as("kubectl-edit", ("configmaps", "shop", "page"), |object| {
            object["data"]["text"] = "hacked".into();
        });
    site.pass_until("drift is noticed", &next, |site, _| {
        site.text("page").as_deref() == Some("2")
    })
    .await
    .unwrap();
    let calls = site.server.calls();
    assert!(calls.iter().all(|call| call.verb != "list"), "{calls:?}");
}

#[tokio::test]
async fn an_api_server_that_is_not_there_at_first_is_waited_for() {
    let mut site = Site::start().await;
    site.server.stop().await;
    let set = [namespace("shop"), config_map("page", "1")];
    assert_eq!(failure(&site.apply(&set).await).0, "RuntimeUnavailable");
    site.server.start_again().await;
    site.pass(&set).await.unwrap();
    assert_eq!(site.text("page").unwrap(), "1");
}

#[tokio::test]
async fn forgotten_versions_are_listed_anew() {
    let mut site = Site::start().await;
    let set = [
        namespace("shop"),
        config_map("page", "1"),
        config_map("other", "1"),
    ];
    site.apply(&set).await.unwrap();
    site.pass(&set).await.unwrap();
    // While the watch is away, one object changes and one goes, and both events are forgotten.
    site.server.stop().await;
    site.server
        .edit_as("kubectl-edit", ("configmaps", "shop", "page"), |object| {
            object["data"]["text"] = "hacked".into();
        });
    site.server.delete("configmaps", "shop", "other");
    site.server.compact();
    site.server.start_again().await;
    site.pass_until("both are put right", &set, |site, _| {
        site.text("page").as_deref() == Some("1") && site.text("other").is_some()
    })
    .await
    .unwrap();
    // Watches that end in the ordinary way are opened again without a list.
    site.server.calls();
    site.server.end_watches();
    site.server.delete("configmaps", "shop", "other");
    site.pass_until("it is put right", &set, |site, _| {
        site.text("other").is_some()
    })
    .await
    .unwrap();
    let mut calls = site.server.calls();
    // Those of namespaces were forgotten, too, and their turn may come only now.
    calls.retain(|call| call.resource == "configmaps");
    assert!(calls.iter().all(|call| call.verb != "list"), "{calls:?}");
}

#[tokio::test]
async fn a_renewed_kubeconfig_is_read_again() {
    let mut site = Site::start().await;
    let set = [namespace("shop"), config_map("page", "1")];
    site.apply(&set).await.unwrap();
    site.server.expect_token("second");
    let next = [namespace("shop"), config_map("page", "2")];
    let (reason, message) = failure(&site.apply(&next).await);
    assert_eq!(reason, "RuntimeUnavailable");
    assert!(
        message.contains("does not know the agent's credentials"),
        "{message}"
    );
    site.server.kubeconfig(site.dir.path());
    site.pass(&next).await.unwrap();
    assert_eq!(site.text("page").unwrap(), "2");
}

#[tokio::test]
async fn renewed_files_that_a_kubeconfig_names_are_read_again() {
    let mut site = Site::start().await;
    site.server = ApiServer::start_with_tls().await;
    // As kubelets have theirs: the kubeconfig stays, and names files that change.
    let inline = |site: &Site| -> Value {
        let path = site.server.kubeconfig(site.dir.path());
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let files = site.dir.path().to_owned();
    let spread = |config: &Value| {
        let decode = |value: &Value| BASE64.decode(value.as_str().unwrap()).unwrap();
        let (cluster, user) = (
            &config["clusters"][0]["cluster"],
            &config["users"][0]["user"],
        );
        let contents = [
            ("ca.pem", &cluster["certificate-authority-data"]),
            ("agent.pem", &user["client-certificate-data"]),
            ("agent.key", &user["client-key-data"]),
        ];
        for (name, content) in contents {
            std::fs::write(files.join(name), decode(content)).unwrap();
        }
    };
    let good = inline(&site);
    let mut named = good.clone();
    named["clusters"][0]["cluster"] = json!({"server": good["clusters"][0]["cluster"]["server"],
        "certificate-authority": "ca.pem"});
    named["users"][0]["user"] =
        json!({"client-certificate": "agent.pem", "client-key": "agent.key"});
    std::fs::write(site.dir.path().join("kubeconfig"), named.to_string()).unwrap();
    // What is there at first is of another authority.
    let other = ApiServer::start_with_tls().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let stale = std::fs::read_to_string(other.kubeconfig(elsewhere.path())).unwrap();
    spread(&serde_json::from_str(&stale).unwrap());
    let set = [namespace("shop"), config_map("page", "1")];
    assert_eq!(failure(&site.apply(&set).await).0, "RuntimeUnavailable");
    spread(&good);
    site.pass(&set).await.unwrap();
    assert_eq!(site.text("page").unwrap(), "1");
}

#[tokio::test]
async fn api_servers_prove_who_they_are_and_know_the_agent_by_its_certificate() {
    let mut site = Site::start().await;
    site.server = ApiServer::start_with_tls().await;
    site.server.kubeconfig(site.dir.path());
    let set = [namespace("shop"), config_map("page", "1")];
    site.apply(&set).await.unwrap();
    assert_eq!(site.text("page").unwrap(), "1");
    // Another one at its place, which another authority vouches for.
    let other = ApiServer::start_with_tls().await;
    let kubeconfig = std::fs::read_to_string(other.kubeconfig(site.dir.path())).unwrap();
    let other_address = kubeconfig
        .split("https://")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    let kubeconfig = std::fs::read_to_string(site.server.kubeconfig(site.dir.path())).unwrap();
    let own_address = kubeconfig
        .split("https://")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    let mixed = kubeconfig.replace(own_address, other_address);
    std::fs::write(site.dir.path().join("kubeconfig"), mixed).unwrap();
    site.restart();
    let (reason, message) = failure(&site.apply(&set).await);
    assert_eq!(reason, "RuntimeUnavailable");
    assert!(message.contains("certificate"), "{message}");
    assert!(other.names("configmaps").is_empty());
}

#[tokio::test]
async fn without_a_kubeconfig_it_says_what_to_do() {
    let mut site = Site::start().await;
    site.settings.kubeconfig = Some(site.dir.path().join("missing"));
    site.restart();
    let (reason, message) = failure(&site.apply(&[namespace("shop")]).await);
    assert_eq!(reason, "RuntimeUnavailable");
    assert!(message.contains("missing"), "{message}");
}

#[tokio::test]
async fn five_hundred_objects_come_change_and_go() {
    let mut site = Site::start().await;
    let set = |text: &str| {
        let mut set = vec![namespace("shop")];
        set.extend((1..300).map(|index| config_map(&format!("page-{index}"), text)));
        set.extend((0..200).map(|index| deployment(&format!("web-{index}"), text)));
        set
    };
    assert_eq!(site.apply(&set("1")).await.unwrap().written.len(), 500);
    let calls = site.server.calls();
    assert_eq!(writes(&calls).len(), 500);
    assert_eq!(site.apply(&set("2")).await.unwrap().written.len(), 499);
    site.restart();
    assert!(site.pass(&set("2")).await.unwrap().is_empty());
    let calls = site.server.calls();
    // Lists come in pages: two of metadata, four of whole objects, one of namespaces.
    assert_eq!(calls.iter().filter(|call| call.verb == "list").count(), 7);
    assert_eq!(
        site.apply(&[namespace("shop")])
            .await
            .unwrap()
            .removed
            .len(),
        499
    );
    assert!(
        site.server.names("deployments").is_empty() && site.server.names("configmaps").is_empty()
    );
    let cleared = time::timeout(longshore_e2e::wait::PATIENCE, site.kube.clear())
        .await
        .unwrap();
    assert_eq!(cleared.unwrap().removed, ["Namespace shop"]);
}
