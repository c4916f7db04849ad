//! The repo as a source: pokes, polls, and everything that goes wrong with remotes and branches.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    ControllerOptions, Metrics, World, WorldOptions, agent::PAGE, api::condition, eventually,
};
use longshore_protocol::{
    ConditionStatus,
    api::{Approval, DeviceState},
};

fn polled(interval: &str) -> WorldOptions {
    let controller = ControllerOptions {
        arguments: vec!["--poll-interval".into(), interval.into()],
        ..ControllerOptions::default()
    };
    WorldOptions {
        controller,
        by_url: true,
        ..WorldOptions::default()
    }
}

#[tokio::test]
async fn a_polled_repo_needs_no_webhook() -> Result<()> {
    let world = World::with(polled("300ms")).await?;
    let agent = world.enrolled("store-0001").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Polled at")?;
    copy.publish("Find it yourself")?;
    agent.page_shows("Polled at Our shop").await
}

#[tokio::test]
async fn an_operator_makes_the_controller_look() -> Result<()> {
    let world = World::with(polled("1h")).await?;
    world
        .api
        .sees(&world.repo.copy().git(["rev-parse", "HEAD"])?)
        .await?;
    world.repo.copy().write("NOTES.md", "x\n")?;
    let commit = world.repo.copy().publish("Notes")?;
    world.cli(&["fleets", "sync", "example"]).await?.success()?;
    world.api.sees(&commit).await?;
    Ok(())
}

#[tokio::test]
async fn a_commit_that_no_device_reads_costs_nothing() -> Result<()> {
    let world = World::start().await?;
    let agent = world.enrolled("store-0001").await?;
    let before = world.api.metrics().await?;
    let device = world.api.device("store-0001").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    // A text beside, an overlay that no enrolled device has, and a comment in none of them.
    copy.write("README.md", "# Changed\n")?;
    copy.replace(
        "groups/gateway/service.yaml",
        "nodePort: 30080",
        "nodePort: 30081",
    )?;
    let commit = copy.publish("Nothing for store-0001")?;
    world.api.sees(&commit).await?;
    let after = world.api.metrics().await?;
    ensure!(
        after.renders() == before.renders(),
        "no kustomize: {before:?} {after:?}"
    );
    ensure!(
        after.manifest_bytes() == before.manifest_bytes(),
        "no byte: {before:?} {after:?}"
    );
    ensure!(
        sent(&after) == sent(&before),
        "no message: {before:?} {after:?}"
    );
    let now = world.api.device("store-0001").await?;
    ensure!(now.desired.map(|it| it.generation) == device.desired.map(|it| it.generation));
    ensure!(agent.manifest(PAGE)?.contains("Welcome to Our shop"));

    // Had it set anything off that took longer, it would be counted by now, after the next commit.
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Something for")?;
    copy.publish("Something for store-0001")?;
    agent.page_shows("Something for Our shop").await?;
    world.api.in_sync("store-0001").await?;
    let last = world.api.metrics().await?;
    ensure!(
        last.renders() == before.renders() + 1,
        "{before:?} {last:?}"
    );
    ensure!(sent(&last) == sent(&before) + 1, "{before:?} {last:?}");
    Ok(())
}

/// How often anything was sent to devices.
fn sent(metrics: &Metrics) -> u64 {
    metrics.count("deltas_total") + metrics.count("offers_total")
}

#[tokio::test]
async fn a_force_push_is_followed() -> Result<()> {
    let world = World::start().await?;
    let agent = world.enrolled("store-0001").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    let base = copy.git(["rev-parse", "HEAD"])?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Mistake at")?;
    copy.publish("A mistake")?;
    agent.page_shows("Mistake at Our shop").await?;
    let wrong = world
        .api
        .in_sync("store-0001")
        .await?
        .desired
        .context("desired")?;
    copy.git(["reset", "--quiet", "--hard", &base])?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Better at")?;
    let commit = copy.commit("No mistake")?;
    copy.git(["push", "--quiet", "--force", "origin", "main"])?;
    agent.page_shows("Better at Our shop").await?;
    let right = world
        .api
        .in_sync("store-0001")
        .await?
        .desired
        .context("desired")?;
    ensure!(
        right.revision == commit && right.generation > wrong.generation,
        "{right:?}"
    );

    // Back to the very first state: a new generation with the old digest.
    copy.git(["reset", "--quiet", "--hard", &base])?;
    copy.git(["push", "--quiet", "--force", "origin", "main"])?;
    agent.page_shows("Welcome to Our shop").await?;
    let back = world
        .api
        .in_sync("store-0001")
        .await?
        .desired
        .context("desired")?;
    ensure!(back.generation > right.generation, "{back:?}");
    Ok(())
}

#[tokio::test]
async fn a_deleted_branch_changes_nothing_on_devices() -> Result<()> {
    let world = World::start().await?;
    let mut agent = world.enrolled("store-0001").await?;
    let good = agent.manifests()?;
    let copy = world.repo.copy();
    copy.pull()?;
    longshore_e2e::repo::git(world.repo.bare(), ["update-ref", "-d", "refs/heads/main"])?;
    eventually("the missing branch is reported", async || {
        let fleet = world.api.fleet().await?;
        let ready = condition(&fleet.conditions, "SourceReady")?;
        ensure!(
            ready.status == ConditionStatus::False && ready.reason == "BranchMissing",
            "{ready:?}"
        );
        Ok(())
    })
    .await?;
    agent.process()?.check()?;
    let device = world.api.device("store-0001").await?;
    ensure!(
        device.state == DeviceState::Active && device.connected,
        "{device:#?}"
    );
    ensure!(agent.manifests()? == good);
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Again at")?;
    copy.commit("The branch is back")?;
    copy.push()?;
    agent.page_shows("Again at Our shop").await
}

#[tokio::test]
async fn an_empty_repo_waits_for_its_first_commit() -> Result<()> {
    let options = WorldOptions {
        empty: true,
        ..WorldOptions::default()
    };
    let world = World::with(options).await?;
    eventually("the empty repo is reported", async || {
        let fleet = world.api.fleet().await?;
        let ready = condition(&fleet.conditions, "SourceReady")?;
        ensure!(
            ready.status == ConditionStatus::False && ready.reason == "BranchMissing",
            "{ready:?}"
        );
        Ok(())
    })
    .await?;
    // A device may already ask; it gets in once there is something to get into.
    let token = world
        .api
        .create_token_with(Approval::Automatic, |token| token.overlay = None)
        .await?;
    let agent = world.agent("store-0001", &token)?;
    world
        .api
        .device_becomes("store-0001", DeviceState::Pending)
        .await?;
    let copy = world.repo.copy();
    copy.write(
        "fleet.yaml",
        "apiVersion: longshore.dev/v1alpha1\nkind: Fleet\nmetadata:\n  name: example\n",
    )?;
    copy.write("base/kustomization.yaml", "resources: [own.yaml]\n")?;
    copy.write(
        "base/own.yaml",
        longshore_e2e::world::own_object("first light"),
    )?;
    copy.commit("Start")?;
    copy.push()?;
    agent.shows(longshore_e2e::world::OWN, "first light").await
}

#[tokio::test]
async fn an_unreachable_repo_keeps_the_last_good_revision() -> Result<()> {
    let mut world = World::with(polled("300ms")).await?;
    let mut agent = world.enrolled("store-0001").await?;
    let good = agent.manifests()?;
    let away = world.repo.bare().with_extension("away");
    fs::rename(world.repo.bare(), &away)?;
    let unreachable = async |world: &World| {
        eventually("the repo's absence is reported", async || {
            let fleet = world.api.fleet().await?;
            let ready = condition(&fleet.conditions, "SourceReady")?;
            ensure!(
                ready.status == ConditionStatus::False && ready.reason == "Unreachable",
                "{ready:?}"
            );
            Ok(())
        })
        .await
    };
    unreachable(&world).await?;
    agent.process()?.check()?;
    ensure!(agent.manifests()? == good);
    // Even a restart of the controller, and of the agent, keeps it all in force.
    world.controller.restart().await?;
    world.api = world.controller.api()?;
    unreachable(&world).await?;
    agent.start_again()?;
    eventually("the device is back", async || {
        let device = world.api.device("store-0001").await?;
        ensure!(
            device.connected && device.state == DeviceState::Active,
            "{device:#?}"
        );
        Ok(())
    })
    .await?;
    ensure!(agent.manifests()? == good);
    fs::rename(&away, world.repo.bare())?;
    let copy = world.repo.copy();
    copy.pull()?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Reachable at")?;
    copy.publish("The repo is back")?;
    agent.page_shows("Reachable at Our shop").await
}
