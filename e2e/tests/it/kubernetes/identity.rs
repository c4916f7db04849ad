//! An agent in a pod keeps who it is in a Secret, and is the same device wherever the pod stands.

use std::{ffi::OsString, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use longshore_e2e::{
    Agent, World,
    api::is_in_sync,
    eventually,
    kubernetes::{ApiServer, Call},
};
use longshore_protocol::api::{Approval, CreatedToken, DeviceState};
use serde_json::Value;

const SECRET: &str = "till-identity";

/// A pod: what it has on its disk is gone with it.
fn pod(world: &World, server: &ApiServer, node: &str, token: &CreatedToken) -> Result<Agent> {
    let home = world.path().join(node);
    fs::create_dir_all(&home)?;
    let arguments: [OsString; 4] = [
        "--identity-secret".into(),
        SECRET.into(),
        "--kubeconfig".into(),
        server.kubeconfig(&home).into(),
    ];
    Agent::start_with(&home, "till", token, arguments.into())
}

/// A document of the Secret.
fn kept(server: &ApiServer, document: &str) -> Option<Value> {
    let secret = server.object("secrets", "default", SECRET)?;
    let content = BASE64.decode(secret["data"][document].as_str()?).unwrap();
    Some(serde_json::from_slice(&content).unwrap())
}

/// The device `till` is connected, and runs what it should.
pub(super) async fn in_sync(world: &World, agent: &mut Agent) -> Result<()> {
    eventually("the device is there", async || {
        agent.process()?.check()?;
        let device = world.api.device("till").await?;
        ensure!(device.connected && is_in_sync(&device), "{device:#?}");
        Ok(())
    })
    .await
}

fn writes(calls: Vec<Call>) -> usize {
    let secrets = calls.into_iter().filter(|it| it.resource == "secrets");
    secrets.filter(Call::writes).count()
}

#[tokio::test]
async fn a_pod_that_moves_to_another_node_is_the_same_device() -> Result<()> {
    let world = World::start().await?;
    let mut server = ApiServer::start().await;
    let token = world.api.create_token(Approval::Automatic).await?;
    let mut agent = pod(&world, &server, "node-a", &token)?;
    in_sync(&world, &mut agent).await?;
    let first = world.api.device("till").await?;
    let identity = kept(&server, "identity.json").context("the identity")?;
    ensure!(identity["device_id"] == first.id.as_str());
    ensure!(kept(&server, "enrollment.json").is_none(), "it is over");
    agent.kill();

    // On the next node there is nothing but the Secret. The token would make another device of it.
    server.calls();
    server.stop().await;
    let mut agent = pod(&world, &server, "node-b", &token)?;
    eventually("it waits for the API server", async || {
        agent.process()?.check()?;
        ensure!(agent.log().contains("who this device is, is not known yet"));
        Ok(())
    })
    .await?;
    server.start_again().await;
    in_sync(&world, &mut agent).await?;
    let second = world.api.device("till").await?;
    ensure!(second.id == first.id && second.public_key == first.public_key);
    ensure!(world.api.devices().await?.len() == 1);
    ensure!(writes(server.calls()) == 0, "nothing was to be written");
    agent.page_shows("Our shop").await?;

    // A decommission is kept, too: the pod is started again and again, and must not come back by itself.
    world.api.decide("till", "decommission").await?;
    ensure!(agent.exit().await?.success());
    ensure!(kept(&server, "identity.json").is_none());
    let note = kept(&server, "decommissioned.json").context("the note")?;
    ensure!(note["device_id"] == first.id.as_str(), "{note}");
    let mut agent = pod(&world, &server, "node-c", &token)?;
    ensure!(agent.exit().await?.success());
    ensure!(agent.log().contains("this device was decommissioned"));
    world
        .api
        .device_becomes("till", DeviceState::Decommissioned)
        .await?;
    Ok(())
}

/// Whoever had a volume until now gets a Secret; and a pending enrollment goes on elsewhere with its key.
#[tokio::test]
async fn an_identity_moves_into_the_secret_and_an_enrollment_goes_on() -> Result<()> {
    let world = World::start().await?;
    let server = ApiServer::start().await;
    let token = world.api.create_token(Approval::Manual).await?;
    let mut agent = pod(&world, &server, "node-a", &token)?;
    let pending = world
        .api
        .device_becomes("till", DeviceState::Pending)
        .await?;
    eventually("the enrollment is kept", async || {
        agent.process()?.check()?;
        let enrollment = kept(&server, "enrollment.json").context("nothing yet")?;
        ensure!(
            enrollment["device_id"] == pending.id.as_str(),
            "{enrollment}"
        );
        Ok(())
    })
    .await?;
    agent.kill();
    let mut agent = pod(&world, &server, "node-b", &token)?;
    world.api.decide("till", "approve").await?;
    in_sync(&world, &mut agent).await?;
    ensure!(world.api.device("till").await?.id == pending.id);
    agent.kill();

    // The Secret is lost, the files are not.
    server.delete("secrets", "default", SECRET);
    agent.start_again()?;
    eventually("the identity is kept again", async || {
        agent.process()?.check()?;
        let identity = kept(&server, "identity.json").context("nothing yet")?;
        ensure!(identity["device_id"] == pending.id.as_str(), "{identity}");
        Ok(())
    })
    .await?;
    in_sync(&world, &mut agent).await
}

#[tokio::test]
async fn what_the_api_server_refuses_is_told_and_nothing_is_lost() -> Result<()> {
    let world = World::start().await?;
    let server = ApiServer::start().await;
    let token = world.api.create_token(Approval::Automatic).await?;
    server.deny("patch", "secrets");
    let mut agent = pod(&world, &server, "node-a", &token)?;
    let status = agent.exit().await?;
    ensure!(status.code() == Some(7), "{status}");
    let log = agent.log();
    ensure!(
        log.contains("refuses the Secret default/till-identity")
            && log.contains("must allow get and patch"),
        "{log}"
    );
    // Not a key was made that nobody would know the next time.
    ensure!(world.api.devices().await?.is_empty());
    server.allow_all();
    agent.start_again()?;
    in_sync(&world, &mut agent).await?;

    // The answer to a write is lost; what was written is recognized.
    agent.kill();
    server.delete("secrets", "default", SECRET);
    for after_the_deed in [true, false] {
        // The first request reads, the second one writes.
        server.cut_after(1, after_the_deed);
        agent.start_again()?;
        // What the one before it reported says nothing of this one.
        eventually("the identity is kept again", async || {
            ensure!(kept(&server, "identity.json").is_some(), "{}", agent.log());
            Ok(())
        })
        .await?;
        agent.kill();
        server.delete("secrets", "default", SECRET);
    }
    Ok(())
}

/// Two agents with one identity: the one that renews first goes on, and the other one does not write over it.
#[tokio::test]
async fn a_secret_that_somebody_else_changed_is_not_overwritten() -> Result<()> {
    let world = World::start().await?;
    let server = ApiServer::start().await;
    let token = world.api.create_token(Approval::Automatic).await?;
    let mut agent = pod(&world, &server, "node-a", &token)?;
    in_sync(&world, &mut agent).await?;
    server.edit_as("other", ("secrets", "default", SECRET), |secret| {
        secret["data"]["identity.json"] = BASE64.encode("{}").into();
    });
    // It has to write now, and finds that it is not alone.
    world.api.decide("till", "decommission").await?;
    let status = agent.exit().await?;
    ensure!(status.code() == Some(7), "{status}");
    ensure!(agent.log().contains("was changed by somebody else"));
    ensure!(kept(&server, "identity.json") == Some(serde_json::json!({})));
    ensure!(Path::new(&agent.state().join("identity.json")).exists());
    Ok(())
}
