//! A real agent's process, killed in the midst of its passes, from `git push` to a real cluster.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::ensure;
use longshore_e2e::{Agent, World, api::FLEET, eventually};
use longshore_protocol::api::{Approval, DeviceState};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

const NAME: &str = "store-0001";

/// Gives the device its namespace and these objects, by name, with these texts.
async fn give(world: &World, site: &Real, objects: &BTreeMap<String, u32>) {
    let copy = world.repo.copy();
    let folder = format!("devices/{NAME}");
    let mut all = site.namespace().to_string();
    for (name, text) in objects {
        let object = site.placed(json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name}, "data": {"text": text.to_string()}}));
        write!(all, "\n---\n{object}").unwrap();
    }
    copy.write(&format!("{folder}/all.yaml"), all).unwrap();
    let kustomization = "resources:\n  - all.yaml\n";
    copy.write(&format!("{folder}/kustomization.yaml"), kustomization)
        .unwrap();
    let commit = copy.publish("Another set").unwrap();
    let synced = world.cli(&["fleets", "sync", FLEET]).await.unwrap();
    synced.success().unwrap();
    eventually("the device is to run the commit", async || {
        let device = world.api.device(NAME).await?;
        let revision = device.desired.map(|desired| desired.revision);
        ensure!(revision.as_deref() == Some(&*commit), "still {revision:?}");
        Ok(())
    })
    .await
    .unwrap();
}

/// What there is of them.
fn texts(site: &Real) -> BTreeMap<String, u32> {
    let all = site.inside(&[
        "get",
        "configmaps",
        "-l",
        "longshore.dev/device",
        "-o",
        "json",
    ]);
    let all: Value = serde_json::from_str(&all).unwrap();
    let items = all["items"].as_array().unwrap().iter();
    let text = |item: &Value| item["data"]["text"].as_str().unwrap().parse().unwrap();
    items
        .map(|item| {
            (
                item["metadata"]["name"].as_str().unwrap().to_owned(),
                text(item),
            )
        })
        .collect()
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn an_agent_killed_at_random_moments_leaves_nothing_over() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let site = Real::start();
    // The fleet's own, which a test that failed has left.
    site.kubectl
        .run(&["delete", "namespace", "hello", "--ignore-not-found"]);
    let mut world = World::start().await.unwrap();
    let token = world.api.create_token(Approval::Automatic).await.unwrap();
    let home = world.path().join(NAME);
    let kubeconfig = site.settings.kubeconfig.clone().unwrap();
    let arguments = vec![
        "--runtime".into(),
        "kube".into(),
        "--kubeconfig".into(),
        kubeconfig.into(),
    ];
    let mut agent = Agent::start_with(&home, NAME, &token, arguments).unwrap();
    world
        .api
        .device_becomes(NAME, DeviceState::Active)
        .await
        .unwrap();
    world.repo.copy().pull().unwrap();
    world.give_own_overlay(NAME, "").unwrap();

    let mut wanted = BTreeMap::new();
    for round in 0..12 {
        wanted.clear();
        for n in 0..40 {
            if random.random_bool(0.6) {
                wanted.insert(format!("o{n}"), round * random.random_range(0..2));
            }
        }
        give(&world, &site, &wanted).await;
        time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        agent.kill();
        agent.start_again().unwrap();
    }
    eventually("exactly the last set", async || {
        let found = texts(&site);
        ensure!(found == wanted, "{found:?}, not {wanted:?}");
        Ok(())
    })
    .await
    .unwrap();
    world.api.in_sync(NAME).await.unwrap();
    world.api.decide(NAME, "decommission").await.unwrap();
    assert!(agent.exit().await.unwrap().success());
    assert!(texts(&site).is_empty(), "{:?}", texts(&site));
    world.controller.stop().await.unwrap();
    world.controller.be_quiet();
}
