//! A push becomes what a real agent's runtime runs: containers of Podman, objects of an API server.

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    Agent, World, eventually,
    kubernetes::ApiServer,
    podman::{IMAGE, Podman},
};
use longshore_protocol::api::{Approval, CreatedToken, Device};
use serde_json::json;

/// A world whose devices run the overlay `groups/shop` with this Deployment `till`.
pub async fn world(script: &str) -> Result<(World, CreatedToken)> {
    let world = World::start().await?;
    let copy = world.repo.copy();
    copy.write(
        "groups/shop/kustomization.yaml",
        "namespace: shop\nresources: [namespace.yaml, till.yaml]\n",
    )?;
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    copy.write("groups/shop/namespace.yaml", namespace)?;
    copy.write("groups/shop/till.yaml", till(script))?;
    copy.publish("A shop")?;
    let token = world.api.create_token_with(Approval::Automatic, |token| {
        token.overlay = Some("groups/shop".to_owned());
    });
    let token = token.await?;
    Ok((world, token))
}

/// A Deployment with one container that runs this.
pub fn till(script: &str) -> String {
    let container = json!({"name": "drawer", "image": IMAGE, "command": ["sh", "-c", script]});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "till"},
        "spec": {"selector": {"matchLabels": {"app": "till"}},
            "template": {"metadata": {"labels": {"app": "till"}},
                "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 1,
                    "containers": [container]}}}})
    .to_string()
}

/// Says this, and then nothing until it is stopped.
pub fn says(text: &str) -> String {
    format!("trap 'exit 0' TERM; echo {text}; sleep 10000 & wait")
}

/// A device with a Podman.
pub fn on_podman(
    world: &World,
    podman: &Podman,
    name: &str,
    token: &CreatedToken,
) -> Result<Agent> {
    let program = podman.program().display().to_string();
    let home = world.path().join("agents").join(name);
    Agent::start_on(&home, name, token, &["podman", "--podman", &program])
}

/// A device with a cluster.
pub fn on_kube(
    world: &World,
    server: &ApiServer,
    name: &str,
    token: &CreatedToken,
) -> Result<Agent> {
    let home = world.path().join("agents").join(name);
    std::fs::create_dir_all(&home)?;
    let kubeconfig = server.kubeconfig(&home).display().to_string();
    Agent::start_on(&home, name, token, &["kube", "--kubeconfig", &kubeconfig])
}

/// Waits until the device reports its desired state as applied.
pub async fn in_sync(world: &World, agent: &mut Agent) -> Result<Device> {
    let name = agent.name().to_owned();
    eventually(&format!("{name} in sync"), async || {
        agent.process()?.check()?;
        let device = world.api.device(&name).await?;
        ensure!(longshore_e2e::api::is_in_sync(&device), "{device:#?}");
        Ok(device)
    })
    .await
}

#[tokio::test]
async fn a_push_becomes_a_container_on_podman() -> Result<()> {
    let podman = Podman::new()?;
    let (world, token) = world(&says("first")).await?;
    let mut agent = on_podman(&world, &podman, "pi-1", &token)?;
    let device = in_sync(&world, &mut agent).await?;
    let first = podman.running()?;
    let [(name, _)] = first.as_slice() else {
        anyhow::bail!("{first:?}")
    };
    ensure!(name == "till-pod-drawer", "{name}");
    let healthy = |device: &Device| {
        let conditions = device.conditions.iter();
        conditions
            .clone()
            .any(|it| it.kind == "Healthy" && it.reason == "Current")
    };
    eventually("a healthy device", async || {
        let device = world.api.device("pi-1").await?;
        ensure!(healthy(&device), "{device:#?}");
        Ok(())
    })
    .await?;

    // One push, one container replaced.
    let copy = world.repo.copy();
    copy.write("groups/shop/till.yaml", till(&says("second")))?;
    copy.publish("Another till")?;
    eventually("another container", async || {
        agent.process()?.check()?;
        let second = podman.running()?;
        ensure!(second.len() == 1 && second != first, "{second:?}");
        let said = podman.call(&["logs", "till-pod-drawer"])?;
        ensure!(said == "second", "{said}");
        Ok(())
    })
    .await?;
    let again = in_sync(&world, &mut agent).await?;
    let generation = |device: &Device| device.desired.as_ref().map(|it| it.generation);
    ensure!(generation(&again) > generation(&device));

    // The device is cut off, and what it ran goes.
    world.api.decide("pi-1", "decommission").await?;
    eventually("nothing runs", async || {
        let left = podman.running()?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_push_becomes_objects_of_a_cluster() -> Result<()> {
    let server = ApiServer::start_with_tls().await;
    let (world, token) = world(&says("first")).await?;
    let mut agent = on_kube(&world, &server, "node-1", &token)?;
    in_sync(&world, &mut agent).await?;
    let script = || {
        let till = server.object("deployments", "shop", "till")?;
        let script = till.pointer("/spec/template/spec/containers/0/command/2");
        Some(script?.as_str()?.to_owned())
    };
    ensure!(script() == Some(says("first")));

    let copy = world.repo.copy();
    copy.write("groups/shop/till.yaml", till(&says("second")))?;
    copy.publish("Another till")?;
    eventually("another Deployment", async || {
        agent.process()?.check()?;
        let script = script().context("the Deployment is gone")?;
        ensure!(script == says("second"), "{script}");
        Ok(())
    })
    .await?;
    let uid = |server: &ApiServer| {
        let till = server.object("deployments", "shop", "till")?;
        Some(till.pointer("/metadata/uid")?.as_str()?.to_owned())
    };
    let kept = uid(&server);
    // How its pods fare is reported.
    let status = json!({"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1,
        "readyReplicas": 1, "availableReplicas": 1,
        "conditions": [{"type": "Available", "status": "True"}]});
    server.set_status(("deployments", "shop", "till"), status);
    eventually("a healthy device", async || {
        let device = world.api.device("node-1").await?;
        let healthy = device.conditions.iter().find(|it| it.kind == "Healthy");
        ensure!(
            healthy.is_some_and(|it| it.reason == "Current"),
            "{device:#?}"
        );
        Ok(())
    })
    .await?;
    ensure!(uid(&server) == kept, "it was changed, not replaced");

    world.api.decide("node-1", "decommission").await?;
    eventually("the Deployment is gone", async || {
        ensure!(server.object("deployments", "shop", "till").is_none());
        Ok(())
    })
    .await
}
