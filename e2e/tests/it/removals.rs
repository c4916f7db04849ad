//! The mass-removal guard: a commit that takes too much away waits for an operator.

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{Candidate, World, api::condition, eventually, world::OWN};
use longshore_protocol::{
    ConditionStatus,
    api::{Approval, DeviceState},
};

const BRANCH_GUARD: &str = "    maxDecommission: 5";

/// Devices that run no agent.
async fn devices(world: &World, names: &[&str]) -> Result<()> {
    let token = world.api.create_token(Approval::Automatic).await?;
    for name in names {
        Candidate::new(name)?
            .enroll(&world.api, &token.secret)
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn many_decommissions_wait_for_an_operator() -> Result<()> {
    let world = World::start().await?;
    let agent = world.enrolled("store-0001").await?;
    devices(&world, &["store-0002", "store-0003", "store-0004"]).await?;
    let copy = world.repo.copy();
    copy.pull()?;
    copy.replace("fleet.yaml", BRANCH_GUARD, "    maxDecommission: 2")?;
    copy.git([
        "rm",
        "-r",
        "--quiet",
        "devices/store-0002",
        "devices/store-0003",
        "devices/store-0004",
    ])?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Hello from")?;
    let commit = copy.publish("Delete too much")?;

    // The rest of the commit goes on.
    agent.page_shows("Hello from Our shop").await?;
    let fleet = world.api.sees(&commit).await?;
    let held: Vec<_> = fleet
        .held
        .iter()
        .map(|it| (it.device.as_str(), it.removal.as_str()))
        .collect();
    ensure!(
        held == [
            ("store-0002", "Decommission"),
            ("store-0003", "Decommission"),
            ("store-0004", "Decommission")
        ],
        "{held:?}"
    );
    ensure!(condition(&fleet.conditions, "RemovalsHeld")?.status == ConditionStatus::True);
    let shown = world
        .cli(&["fleets", "show", "example"])
        .await?
        .success()?
        .stdout;
    ensure!(
        shown.contains("store-0003") && shown.contains(&commit[..12]),
        "{shown}"
    );
    for name in ["store-0002", "store-0003", "store-0004"] {
        ensure!(world.api.device(name).await?.state == DeviceState::Active);
    }

    // Confirming another commit than the one in force is refused.
    let wrong = "0".repeat(40);
    let refused = world
        .cli(&[
            "fleets",
            "confirm-removals",
            "example",
            "--revision",
            &wrong,
        ])
        .await?;
    ensure!(
        refused.code == 3 && refused.stderr.contains("409"),
        "{refused:?}"
    );
    ensure!(world.api.device("store-0002").await?.state == DeviceState::Active);

    world
        .cli(&[
            "fleets",
            "confirm-removals",
            "example",
            "--revision",
            &commit,
        ])
        .await?
        .success()?;
    for name in ["store-0002", "store-0003", "store-0004"] {
        world
            .api
            .device_becomes(name, DeviceState::Decommissioned)
            .await?;
    }
    ensure!(world.api.device("store-0001").await?.state == DeviceState::Active);
    eventually("nothing is held any more", async || {
        let fleet = world.api.fleet().await?;
        ensure!(fleet.held.is_empty(), "{:?}", fleet.held);
        Ok(())
    })
    .await
}

/// Undoing the commit is the other way out.
#[tokio::test]
async fn held_removals_are_forgotten_when_the_commit_is_undone() -> Result<()> {
    let world = World::start().await?;
    devices(&world, &["store-0001", "store-0002"]).await?;
    let copy = world.repo.copy();
    copy.pull()?;
    copy.replace("fleet.yaml", BRANCH_GUARD, "    maxDecommission: 1")?;
    copy.publish("Guard better")?;
    copy.git([
        "rm",
        "-r",
        "--quiet",
        "devices/store-0001",
        "devices/store-0002",
    ])?;
    let commit = copy.publish("Delete too much")?;
    let fleet = world.api.sees(&commit).await?;
    ensure!(fleet.held.len() == 2, "{:?}", fleet.held);
    copy.git(["revert", "--no-edit", "HEAD"])?;
    copy.push()?;
    let fleet = world.api.sees(&copy.git(["rev-parse", "HEAD"])?).await?;
    ensure!(fleet.held.is_empty(), "{:?}", fleet.held);
    for name in ["store-0001", "store-0002"] {
        ensure!(world.api.device(name).await?.state == DeviceState::Active);
    }
    Ok(())
}

#[tokio::test]
async fn an_empty_render_is_a_removal_too() -> Result<()> {
    let world = World::start().await?;
    let agent = world.enrolled("store-0001").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    world.give_own_overlay("store-0001", "something")?;
    copy.replace("fleet.yaml", BRANCH_GUARD, "    maxDecommission: 0")?;
    copy.publish("An overlay of its own")?;
    agent.shows(OWN, "something").await?;
    copy.write(
        "devices/store-0001/kustomization.yaml",
        "resources:\n  - own.yaml\npatches:\n  - patch: |\n      $patch: delete\n      apiVersion: v1\n      kind: ConfigMap\n      metadata: {name: own, namespace: own}\n",
    )?;
    let commit = copy.publish("Take everything away")?;
    let fleet = eventually("a held removal", async || {
        let fleet = world.api.fleet().await?;
        ensure!(!fleet.held.is_empty(), "{fleet:#?}");
        Ok(fleet)
    })
    .await?;
    ensure!(fleet.held[0].removal == "Empty", "{:?}", fleet.held);
    ensure!(
        agent.manifest(OWN)?.contains("something"),
        "the device keeps what it runs"
    );
    let device = world.api.device("store-0001").await?;
    ensure!(device.desired.context("desired")?.objects == 1);

    world
        .cli(&[
            "fleets",
            "confirm-removals",
            "example",
            "--revision",
            &commit,
        ])
        .await?
        .success()?;
    eventually("an empty device", async || {
        ensure!(agent.manifest(OWN).is_err());
        Ok(())
    })
    .await?;
    let device = world.api.in_sync("store-0001").await?;
    ensure!(device.desired.context("desired")?.objects == 0);
    ensure!(device.state == DeviceState::Active);
    Ok(())
}
