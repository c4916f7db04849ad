//! What benchmarks share: devices with overlays of their own, and the moment when a change is applied.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{Agent, World, api::FLEET, programs, wait::PATIENCE, world::OWN};
use longshore_protocol::api::Approval;

use crate::report::milliseconds;

/// How often to look whether something happened.
pub(crate) const LOOK: Duration = Duration::from_micros(500);

/// Devices, each with an overlay of its own that has this many objects.
pub(crate) async fn enroll(world: &World, devices: usize, objects: usize) -> Result<Vec<Agent>> {
    let token = world.api.create_token(Approval::Automatic).await?;
    let mut agents = Vec::new();
    for n in 0..devices {
        agents.push(world.agent(&name(n), &token)?);
    }
    for agent in &agents {
        world.api.in_sync(agent.name()).await?;
    }
    let copy = world.repo.copy();
    copy.pull()?;
    for n in 0..devices {
        world.give_own_overlay(&name(n), "start")?;
        let mut kustomization = "resources:\n  - own.yaml\n".to_owned();
        for object in 1..objects {
            let file = format!("part-{object}.yaml");
            copy.write(&format!("devices/{}/{file}", name(n)), part(object))?;
            kustomization.extend(["  - ", &file, "\n"]);
        }
        copy.write(
            &format!("devices/{}/kustomization.yaml", name(n)),
            kustomization,
        )?;
    }
    copy.publish("Overlays of their own")?;
    world.cli(&["fleets", "sync", FLEET]).await?.success()?;
    for agent in &agents {
        agent.shows(OWN, "start").await?;
        world.api.in_sync(agent.name()).await?;
    }
    Ok(agents)
}

fn name(n: usize) -> String {
    format!("store-{n:04}")
}

/// An object as devices have them, of some 600 bytes.
fn part(n: usize) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: part-{n}\n  namespace: own\n  labels:\n    app: part-{n}\nspec:\n  \
         replicas: 1\n  selector:\n    matchLabels:\n      app: part-{n}\n  template:\n    metadata:\n      labels:\n        app: part-{n}\n    \
         spec:\n      containers:\n        - name: main\n          image: registry.example/part-{n}:1.0.0\n          env:\n            \
         - name: MODE\n              value: production\n          resources:\n            requests:\n              cpu: 10m\n              \
         memory: 16Mi\n            limits:\n              memory: 64Mi\n"
    )
}

/// Waits until the device's own object has the text.
pub(crate) async fn arrives(agent: &Agent, text: &str) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        if agent.manifest(OWN).is_ok_and(|file| file.contains(text)) {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "`{text}` does not arrive at {}",
            agent.name()
        );
        tokio::time::sleep(LOOK).await;
    }
}

/// A plain `kustomize build` with the environment that the controller gives it, in milliseconds.
pub(crate) fn build(world: &World, device: &str) -> Result<f64> {
    let overlay = world.repo.copy().path().join("devices").join(device);
    let mut command = Command::new(programs::installed("kustomize")?);
    command
        .arg("build")
        .arg(overlay)
        .env_clear()
        .envs([
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("HOME", "/nonexistent"),
        ])
        .envs([("GOMAXPROCS", "1"), ("GOGC", "off")])
        .stdout(Stdio::piped());
    let begun = Instant::now();
    let output = command.output().context("start kustomize")?;
    let took = milliseconds(begun.elapsed());
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(took)
}
