//! `longshore-agent doctor` against a real controller.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{World, kubernetes::ApiServer, programs, world::new_directory};
use longshore_protocol::api::{Approval, CreatedToken, DeviceState};
use serde_json::Value;

/// What it says of `name`: verdict, words and advice.
async fn told(mut command: Command, name: &str) -> Result<[String; 3]> {
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let findings: Value = serde_json::from_slice(&output.stdout)?;
    let checks = findings["checks"].as_array().context("checks")?;
    let check = checks.iter().find(|check| check["name"] == name);
    let check = check.with_context(|| format!("no {name} in {findings:#}"))?;
    let text = |member: &str| check[member].as_str().unwrap_or_default().to_owned();
    Ok(["verdict", "found", "advice"].map(text))
}

/// What it finds of `name`, as verdict and words. It runs beside whatever runs.
async fn found(
    state: &std::path::Path,
    token: &CreatedToken,
    name: &str,
) -> Result<(String, String)> {
    let mut command = Command::new(programs::find("longshore-agent")?);
    command
        .args([
            "doctor",
            "--json",
            "--config",
            "/dev/null",
            "--name",
            "store-0001",
        ])
        .args(["--server", &token.server])
        .args(["--ca-fingerprint", &token.ca_fingerprint.to_string()])
        .args(["--token", &token.secret])
        .arg("--state-dir")
        .arg(state);
    let [verdict, said, _advice] = told(command, name).await?;
    Ok((verdict, said))
}

#[tokio::test]
async fn it_asks_without_taking_anything() -> Result<()> {
    let world = World::start().await?;
    let token = world.api.create_token(Approval::Automatic).await?;
    let nobody = new_directory()?;
    for _ in 0..3 {
        let (verdict, said) = found(nobody.path(), &token, "token").await?;
        ensure!(verdict == "ok", "{said}");
    }
    ensure!(world.api.tokens().await?[0].uses == 0, "the token was used");
    ensure!(
        world.api.devices().await?.is_empty(),
        "a device was registered"
    );
    let (verdict, said) = found(nobody.path(), &token, "clock").await?;
    ensure!(
        verdict == "ok" && said.contains("the controller says"),
        "{said}"
    );

    let mut agent = world.enrolled("store-0001").await?;
    let connected = world.api.device("store-0001").await?;
    for _ in 0..3 {
        let (verdict, said) = found(&agent.state(), &token, "credentials").await?;
        ensure!(verdict == "ok", "{said}");
        let (verdict, said) = found(&agent.state(), &token, "clock").await?;
        ensure!(
            verdict == "ok" && said.contains("the controller says"),
            "{said}"
        );
    }
    ensure!(
        agent.log().matches("connected edge=").count() == 1,
        "the session was replaced: {}",
        agent.log()
    );
    ensure!(connected.state == DeviceState::Active);
    agent.stop().await?;

    world
        .cli(&["tokens", "revoke", token.token.id.as_str()])
        .await?
        .success()?;
    let (verdict, said) = found(nobody.path(), &token, "token").await?;
    ensure!(
        verdict == "fail" && said.contains("does not know"),
        "{said}"
    );
    Ok(())
}

/// What it finds of a cluster, as verdict, words and advice.
async fn of_cluster(server: &ApiServer, more: &[&str], name: &str) -> Result<[String; 3]> {
    let home = new_directory()?;
    let mut command = Command::new(programs::find("longshore-agent")?);
    command
        .args(["doctor", "--json", "--config", "/dev/null"])
        .args(["--runtime", "kube"])
        .arg("--kubeconfig")
        .arg(server.kubeconfig(home.path()))
        .arg("--state-dir")
        .arg(home.path().join("state"))
        .args(more);
    told(command, name).await
}

#[tokio::test]
async fn rights_that_are_missing_in_the_cluster_are_named() -> Result<()> {
    let server = ApiServer::start().await;
    let [verdict, said, _] = of_cluster(&server, &[], "runtime").await?;
    ensure!(
        verdict == "ok" && said == "kube: Kubernetes v1.34.1",
        "{said}"
    );
    let [verdict, said, _] = of_cluster(&server, &[], "rights").await?;
    ensure!(verdict == "ok", "{said}");
    let calls = server.calls();
    ensure!(calls.iter().all(|call| !call.writes()), "{calls:?}");

    for verb in ["list", "watch", "patch", "create", "delete"] {
        server.deny(verb, "configmaps");
        let [verdict, said, advice] = of_cluster(&server, &[], "rights").await?;
        let expected = format!("the agent may not: {verb} configmaps in all namespaces");
        ensure!(verdict == "fail" && said == expected, "{said}");
        ensure!(advice.contains("rolebinding"), "{advice}");
        server.allow_all();
    }
    server.deny("delete", "configmaps");
    let confined = ["--namespace", "shop"];
    let [_, said, _] = of_cluster(&server, &confined, "rights").await?;
    ensure!(
        said.ends_with("delete configmaps in the namespace shop"),
        "{said}"
    );

    let secret = ["--identity-secret", "till"];
    let [verdict, said, _] = of_cluster(&server, &secret, "identity-secret").await?;
    ensure!(verdict == "ok", "{said}");
    server.deny("patch", "secrets");
    let [verdict, said, advice] = of_cluster(&server, &secret, "identity-secret").await?;
    ensure!(
        verdict == "fail" && said.contains("patch secrets/till in the namespace default"),
        "{said}"
    );
    ensure!(advice.contains("get and patch"), "{advice}");
    Ok(())
}
