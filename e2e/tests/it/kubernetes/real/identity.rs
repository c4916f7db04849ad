//! A real agent's process, with its identity in a Secret of the cluster.

use std::ffi::OsString;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use longshore_e2e::{Agent, World};
use longshore_protocol::api::{Approval, CreatedToken, DeviceState};

use super::{super::identity::in_sync, *};

const SECRET: &str = "till-identity";

/// A pod of this node: what it has on its disk is gone with it.
fn pod(world: &World, site: &Real, node: &str, token: &CreatedToken) -> Result<Agent> {
    let home = world.path().join(node);
    std::fs::create_dir_all(&home)?;
    let view = site
        .kubectl
        .run(&["config", "view", "--raw", "--minify", "-o", "json"]);
    let mut config: Value = serde_json::from_str(&view)?;
    config["contexts"][0]["context"]["namespace"] = site.name.clone().into();
    let kubeconfig = home.join("kubeconfig");
    std::fs::write(&kubeconfig, config.to_string())?;
    let arguments: [OsString; 6] = [
        "--runtime".into(),
        "kube".into(),
        "--identity-secret".into(),
        SECRET.into(),
        "--kubeconfig".into(),
        kubeconfig.into(),
    ];
    Agent::start_with(&home, "till", token, arguments.into())
}

fn kept(site: &Real, document: &str) -> Option<Value> {
    let secret = site.object("secret", SECRET)?;
    let content = BASE64.decode(secret["data"][document].as_str()?).unwrap();
    Some(serde_json::from_slice(&content).unwrap())
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn a_pod_that_moves_is_the_same_device_until_it_is_decommissioned() -> Result<()> {
    let site = Real::start();
    // The fleet's own, which a test that failed has left.
    site.kubectl
        .run(&["delete", "namespace", "hello", "--ignore-not-found"]);
    site.kubectl.apply_as("admin", &site.namespace(), false);
    // As the chart makes it.
    let secret = site.placed(
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET},
        "type": "Opaque"}),
    );
    site.kubectl.with(&["create", "-f", "-"], Some(&secret));
    let world = World::start().await?;
    let token = world.api.create_token(Approval::Automatic).await?;
    let mut agent = pod(&world, &site, "node-a", &token)?;
    in_sync(&world, &mut agent).await?;
    let first = world.api.device("till").await?;
    let identity = kept(&site, "identity.json").context("the identity")?;
    ensure!(identity["device_id"] == first.id.as_str());
    let page = || {
        site.kubectl.run(&[
            "get",
            "configmap",
            "page",
            "-n",
            "hello",
            "--ignore-not-found",
        ])
    };
    ensure!(!page().is_empty(), "the fleet's page is applied");
    agent.kill();

    let mut agent = pod(&world, &site, "node-b", &token)?;
    in_sync(&world, &mut agent).await?;
    let second = world.api.device("till").await?;
    ensure!(second.id == first.id && second.public_key == first.public_key);
    // Somebody deletes it while the agent runs: the next document is written all the same.
    site.inside(&["delete", "secret", SECRET]);
    world.api.decide("till", "decommission").await?;
    ensure!(agent.exit().await?.success());
    let note = kept(&site, "decommissioned.json").context("the note")?;
    ensure!(note["device_id"] == first.id.as_str(), "{note}");
    ensure!(kept(&site, "identity.json").is_none());
    ensure!(page().is_empty(), "{}", page());
    world
        .api
        .device_becomes("till", DeviceState::Decommissioned)
        .await?;
    Ok(())
}
