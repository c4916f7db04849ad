//! Logs on demand: from a container, a pod or the agent itself, through the device's one connection and the
//! controller, to an operator's terminal.

use std::{convert::Infallible, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use http::StatusCode;
use longshore_e2e::{
    Agent, Process, Replicas, World, cli, eventually, kubernetes::ApiServer, podman::Podman,
};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;

use crate::runtimes::{in_sync, on_kube, on_podman, says, till, world};

/// Follows a log as an operator does; what comes goes to a file.
fn follow(world: &World, name: &str, arguments: &[&str]) -> Result<Process> {
    let arguments = [&["logs"], arguments, &["--follow"]].concat();
    let mut command = cli::command(world.controller.data_dir(), &arguments)?;
    Process::start("longshore logs", &mut command, &world.path().join(name))
}

async fn shows(process: &mut Process, text: &str) -> Result<()> {
    eventually(&format!("`{text}`"), async || {
        process.check()?;
        let log = process.log();
        ensure!(log.contains(text), "{log}");
        Ok(())
    })
    .await
}

/// How many logs are being read.
async fn log_streams(world: &World) -> Result<u64> {
    Ok(world.api.metrics().await?.count("log_streams"))
}

#[tokio::test]
async fn an_agents_own_log_is_read_and_followed() -> Result<()> {
    let world = World::start().await?;
    let mut agent = world.enrolled("store-0001").await?;
    let output = world.cli(&["logs", "store-0001"]).await?.success()?;
    ensure!(output.stdout.contains("the agent runs"), "{output:?}");
    ensure!(output.stderr.is_empty(), "{output:?}");
    let secrets = ["lst_", "lsd_", "PRIVATE KEY"];
    ensure!(
        !secrets.iter().any(|it| output.stdout.contains(it)),
        "{output:?}"
    );
    let tail = world
        .cli(&["logs", "store-0001", "--tail", "2"])
        .await?
        .success()?;
    ensure!(tail.stdout.lines().count() == 2, "{tail:?}");

    let mut follows = follow(&world, "follow", &["store-0001", "--tail", "0"])?;
    eventually("a log that is read", async || {
        follows.check()?;
        ensure!(log_streams(&world).await? == 1);
        Ok(())
    })
    .await?;
    world.repo.copy().pull()?;
    world.give_own_overlay("store-0001", "something")?;
    world.repo.copy().publish("An overlay of its own")?;
    shows(&mut follows, "applied").await?;
    ensure!(
        !follows.log().contains("the agent runs"),
        "only what is new"
    );

    // The device goes while somebody reads, with a program that takes trailers, and with one that does not.
    let path = "/api/v1/tenants/default/fleets/example/devices/store-0001/logs?follow=true";
    let mut plain = world.api.authorized(Method::GET, path).send().await?;
    ensure!(plain.status() == StatusCode::OK, "{plain:?}");
    agent.kill();
    let status = follows.exit().await?;
    let said = follows.log();
    ensure!(status.code() == Some(4), "{status}: {said}");
    ensure!(said.contains("the device disconnected"), "{said}");
    follows.be_quiet(true);
    let broken = loop {
        match plain.chunk().await {
            Ok(Some(_)) => {}
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    ensure!(broken, "half a log looks whole");
    let output = eventually("the device is known to be gone", async || {
        let output = world.cli(&["logs", "store-0001"]).await?;
        ensure!(output.stderr.contains("not connected since"), "{output:?}");
        Ok(output)
    })
    .await?;
    ensure!(output.code == 3, "{output:?}");
    eventually("nothing is read any more", async || {
        ensure!(log_streams(&world).await? == 0);
        Ok(())
    })
    .await?;
    agent.start_again()?;
    eventually("its log again", async || {
        let output = world.cli(&["logs", "store-0001"]).await?.success()?;
        ensure!(output.stdout.contains("the agent runs"), "{output:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_containers_log_is_followed_and_its_reader_ends_with_the_operator() -> Result<()> {
    let podman = Podman::new()?;
    let script = "trap 'exit 0' TERM; echo began; n=0; \
                  while true; do n=$((n+1)); echo line $n; sleep 0.2 & wait $!; done";
    let (world, token) = world(script).await?;
    let mut agent = on_podman(&world, &podman, "pi-1", &token)?;
    in_sync(&world, &mut agent).await?;
    let mut follows = follow(&world, "follow", &["pi-1", "till", "-c", "drawer"])?;
    shows(&mut follows, "began\nline 1\n").await?;
    shows(&mut follows, "line 10\n").await?;
    ensure!(
        podman.log_readers().len() == 1,
        "{:?}",
        podman.log_readers()
    );
    // Ctrl-C.
    follows.signal(Signal::INT)?;
    follows.exit().await?;
    follows.be_quiet(true);
    eventually("nobody reads on the device", async || {
        let readers = podman.log_readers();
        ensure!(readers.is_empty(), "{readers:?}");
        ensure!(log_streams(&world).await? == 0);
        Ok(())
    })
    .await?;

    let tail = world
        .cli(&["logs", "pi-1", "deployment/till", "--tail", "3"])
        .await?
        .success()?;
    ensure!(tail.stdout.lines().count() == 3, "{tail:?}");
    ensure!(tail.stdout.starts_with("line "), "{tail:?}");
    for (name, says) in [
        ("counter", "it has deployment/till"),
        ("job/till", "it has deployment/till"),
    ] {
        let output = world.cli(&["logs", "pi-1", name]).await?;
        ensure!(
            output.code == 3 && output.stderr.contains(says),
            "{output:?}"
        );
    }
    let output = world.cli(&["logs", "pi-1", "till", "-c", "lid"]).await?;
    let says = "there is no container `lid`; the containers are: drawer";
    ensure!(
        output.code == 3 && output.stderr.contains(says),
        "{output:?}"
    );
    agent.stop().await
}

#[tokio::test]
async fn who_does_not_read_holds_up_nobody_and_costs_little() -> Result<()> {
    const LINE: &str = "something that a pod says again and again, until it is a lot\n";
    const LINES: usize = 500_000;
    let server = ApiServer::start().await;
    let (mut world, token) = world(&says("first")).await?;
    let mut agent = on_kube(&world, &server, "node-1", &token)?;
    in_sync(&world, &mut agent).await?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "till-1", "namespace": "shop", "labels": {"app": "till"}},
        "spec": {"containers": [{"name": "drawer", "image": "box"}]}});
    server.apply_as("replicaset", &pod, false);
    server.say(("shop", "till-1", "drawer"), &LINE.repeat(LINES));

    let before = world.controller.process()?.resident_memory()?;
    let path = "/api/v1/tenants/default/fleets/example/devices/node-1/logs?object=till";
    let request = world.api.authorized(Method::GET, path);
    let mut response = request.send().await?;
    ensure!(response.status() == StatusCode::OK, "{response:?}");
    let read =
        async |world: &World| anyhow::Ok(world.api.metrics().await?.count("log_bytes_total"));
    // It comes to a standstill, with what the sockets' buffers take, which is the kernel's.
    let mut last = 0;
    eventually("a standstill", async || {
        let now = read(&world).await?;
        let stands = now == last && now > 0;
        last = now;
        tokio::time::sleep(Duration::from_millis(200)).await;
        ensure!(stands, "{now}");
        Ok(())
    })
    .await?;
    let whole = (LINE.len() * LINES) as u64;
    ensure!(
        last < whole / 2,
        "{last} of {whole} bytes went to somebody who reads none"
    );
    let after = world.controller.process()?.resident_memory()?;
    ensure!(after < before + 8 * 1024 * 1024, "{before} {after}");

    // The device takes its changes all the same, and reports.
    let copy = world.repo.copy();
    copy.write("groups/shop/till.yaml", till(&says("second")))?;
    let commit = copy.publish("Another till")?;
    eventually("the change on the device", async || {
        let device = in_sync(&world, &mut agent).await?;
        let desired = device.desired.context("no desired state")?;
        ensure!(desired.revision == commit, "{desired:?}");
        Ok(())
    })
    .await?;

    // And now it is read, whole.
    let mut text = 0;
    while let Some(chunk) = response.chunk().await? {
        text += chunk.len() as u64;
    }
    ensure!(text == whole, "{text} of {whole}");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_had_says_why() -> Result<()> {
    let world = World::start().await?;
    let agent: Agent = world.enrolled("store-0001").await?;
    let output = world
        .cli(&["logs", "store-0001", "deployment/hello"])
        .await?;
    ensure!(output.code == 3, "{output:?}");
    ensure!(
        output.stderr.contains("directory of manifests"),
        "{output:?}"
    );
    let output = world.cli(&["logs", "store-0009"]).await?;
    ensure!(
        output.code == 3 && output.stderr.contains("404"),
        "{output:?}"
    );
    for query in ["follow=perhaps", "tail=-1", "what=ever"] {
        let path = format!("fleets/example/devices/store-0001/logs?{query}");
        let answer = world.api.call(Method::GET, &path, None::<&()>).await?;
        ensure!(
            answer.status == StatusCode::UNPROCESSABLE_ENTITY,
            "{query}: {answer:?}"
        );
    }
    // As many as one device is asked for at a time.
    let path = "/api/v1/tenants/default/fleets/example/devices/store-0001/logs?follow=true";
    let mut open = Vec::new();
    loop {
        let response = world.api.authorized(Method::GET, path).send().await?;
        match response.status() {
            StatusCode::OK => open.push(response),
            StatusCode::CONFLICT => break,
            other => bail!("{other}"),
        }
        ensure!(open.len() <= 8, "there is no bound");
    }
    ensure!(open.len() == 8);
    drop(open);
    eventually("room again", async || {
        world.cli(&["logs", "store-0001"]).await?.success()?;
        Ok(())
    })
    .await?;
    drop(agent);
    Ok(())
}

/// Lets one replica get the connections, then the other one.
async fn take_turns(replicas: &Replicas) -> Result<Infallible> {
    loop {
        for n in [1, 0] {
            replicas.prefer(n)?;
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }
}

#[tokio::test]
async fn a_log_is_read_at_the_replica_that_has_the_device() -> Result<()> {
    let replicas = Replicas::start(2).await?;
    replicas.prefer(0)?;
    let agent = replicas.enrolled("store-0001", 0).await?;
    let path = "fleets/example/devices/store-0001/logs";
    let answer = replicas
        .api(1)?
        .call(Method::GET, path, None::<&()>)
        .await?;
    ensure!(
        answer.status == StatusCode::MISDIRECTED_REQUEST,
        "{answer:?}"
    );
    let answer = replicas
        .api(0)?
        .call(Method::GET, path, None::<&()>)
        .await?;
    ensure!(answer.text.contains("the agent runs"), "{answer:?}");

    // Behind one address, first the one that has not got it.
    let data = replicas.controllers[0].data_dir().to_owned();
    let output = tokio::select! {
        output = cli::run(&data, &["logs", "store-0001"]) => output?.success()?,
        failed = take_turns(&replicas) => bail!("{failed:?}"),
    };
    ensure!(output.stdout.contains("the agent runs"), "{output:?}");
    // Where all connections lead to the wrong one, it says so.
    replicas.prefer(1)?;
    let output = cli::run(&data, &["logs", "store-0001"]).await?;
    ensure!(output.code == 3, "{output:?}");
    ensure!(output.stderr.contains("another replica"), "{output:?}");
    ensure!(output.stderr.contains("--server"), "{output:?}");
    drop(agent);
    Ok(())
}
