//! A real agent's process, killed with SIGKILL between requests of its passes.

use std::{collections::BTreeMap, time::Duration};

use longshore_e2e::{
    Agent, World, api::FLEET, kubernetes::ApiServer, wait::eventually, world::own_object,
};
use longshore_protocol::api::{Approval, DeviceState};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::time;

use super::writes;

const NAME: &str = "store-0001";

/// Gives the device these objects, by name, with these texts.
async fn give(world: &World, objects: &BTreeMap<String, String>) {
    let copy = world.repo.copy();
    let folder = format!("devices/{NAME}");
    let mut kustomization = "resources:\n  - own.yaml\n  - namespace.yaml\n".to_owned();
    copy.write(&format!("{folder}/own.yaml"), own_object("own"))
        .unwrap();
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: own\n";
    copy.write(&format!("{folder}/namespace.yaml"), namespace)
        .unwrap();
    for (name, text) in objects {
        let object = own_object(text).replace(
            "name: own\n  namespace",
            &format!("name: {name}\n  namespace"),
        );
        copy.write(&format!("{folder}/{name}.yaml"), object)
            .unwrap();
        kustomization.extend(["  - ", name, ".yaml\n"]);
    }
    copy.write(&format!("{folder}/kustomization.yaml"), kustomization)
        .unwrap();
    let commit = copy.publish("Another set").unwrap();
    world
        .cli(&["fleets", "sync", FLEET])
        .await
        .unwrap()
        .success()
        .unwrap();
    world.api.sees(&commit).await.unwrap();
}

#[tokio::test]
async fn an_agent_killed_at_random_moments_leaves_nothing_over_and_nothing_twice() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::start().await.unwrap();
    let server = ApiServer::start_with_tls().await;
    let kubeconfig = server.kubeconfig(world.path());
    let arguments = [
        "--runtime",
        "kube",
        "--kubeconfig",
        kubeconfig.to_str().unwrap(),
    ];
    let token = world.api.create_token(Approval::Automatic).await.unwrap();
    let home = world.path().join("agents").join(NAME);
    let mut agent =
        Agent::start_with(&home, NAME, &token, arguments.map(Into::into).into()).unwrap();
    world
        .api
        .device_becomes(NAME, DeviceState::Active)
        .await
        .unwrap();
    world.repo.copy().pull().unwrap();
    world.give_own_overlay(NAME, "own").unwrap();

    let starts = |agent: &Agent| agent.log().matches("the agent runs").count();
    let (mut wanted, mut started) = (BTreeMap::new(), 0);
    for round in 0..10 {
        wanted.clear();
        for n in 0..12 {
            if random.random_bool(0.4) {
                continue;
            }
            let text = round * random.random_range(0..2);
            wanted.insert(format!("o{n}"), text.to_string());
        }
        let mut progress = server.progress();
        let start = *progress.borrow_and_update();
        let until = start + random.random_range(0..25_u64);
        give(&world, &wanted).await;
        let passing = progress.wait_for(|now| *now >= until);
        // A set that takes fewer requests is killed when it has been in place for a moment.
        let reached = time::timeout(Duration::from_secs(2), passing).await.is_ok();
        agent.kill();
        println!(
            "round {round}: killed after {} requests, {reached}",
            *server.progress().borrow() - start
        );
        started = starts(&agent);
        agent.start_again().unwrap();
    }
    // What the one before it has applied says nothing of the last one.
    eventually("the last one runs", async || {
        anyhow::ensure!(starts(&agent) > started, "{}", agent.log());
        Ok(())
    })
    .await
    .unwrap();
    world.api.in_sync(NAME).await.unwrap();

    let mut expected: Vec<_> = wanted.keys().map(|name| format!("own/{name}")).collect();
    expected.push("own/own".into());
    expected.sort();
    // What is deleted may be on its way when the rest is applied.
    eventually("exactly the last set", async || {
        let mut names = server.names("configmaps");
        names.retain(|name| name.starts_with("own/"));
        anyhow::ensure!(names == expected, "{names:?}, not {expected:?}");
        Ok(())
    })
    .await
    .unwrap();
    for (name, text) in &wanted {
        let object = server.object("configmaps", "own", name).unwrap();
        assert_eq!(object["data"]["content"], text.as_str(), "{name}");
    }
    // Nothing is left to do for the next one.
    agent.stop().await.unwrap();
    server.calls();
    let passes = |agent: &Agent| agent.log().matches(" applied generation=").count();
    let before = passes(&agent);
    agent.start_again().unwrap();
    eventually("the next one's first pass", async || {
        anyhow::ensure!(passes(&agent) > before, "{}", agent.log());
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(writes(&server.calls()), Vec::<String>::new());
    agent.stop().await.unwrap();
    world.controller.stop().await.unwrap();
    world.controller.be_quiet();
}
