//! What a restart keeps.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{World, agent::PAGE, eventually};
use longshore_protocol::api::DeviceState;

#[tokio::test]
async fn a_restarted_controller_renders_nothing_again() -> Result<()> {
    let mut world = World::start().await?;
    let agent = world.enrolled("store-0001").await?;
    let before = world.api.device("store-0001").await?;
    ensure!(world.api.metrics().await?.renders() >= 1);
    world.controller.restart().await?;
    world.api = world.controller.api()?;
    let after = eventually("the device is back", async || {
        let device = world.api.device("store-0001").await?;
        ensure!(device.connected, "{device:#?}");
        Ok(device)
    })
    .await?;
    ensure!(after.id == before.id && after.state == DeviceState::Active);
    let desired = |device: &longshore_protocol::api::Device| {
        device.desired.as_ref().map(|it| (it.generation, it.digest))
    };
    ensure!(desired(&after) == desired(&before), "{after:#?}");
    let metrics = world.api.metrics().await?;
    ensure!(
        metrics.renders() == 0,
        "a restart renders nothing: {metrics:?}"
    );
    ensure!(
        metrics.manifest_bytes() == 0,
        "and sends nothing: {metrics:?}"
    );

    // And it goes on from there.
    let copy = world.repo.copy();
    copy.pull()?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Back at")?;
    copy.publish("After the restart")?;
    agent.page_shows("Back at Our shop").await
}

#[tokio::test]
async fn commits_pushed_while_the_controller_is_down_arrive() -> Result<()> {
    let mut world = World::start().await?;
    let agent = world.enrolled("store-0001").await?;
    world.controller.kill();
    let copy = world.repo.copy();
    copy.pull()?;
    for text in ["First at", "Second at", "Third at"] {
        let page = copy.read("groups/kiosk/page.yaml")?;
        let line = page
            .lines()
            .find(|line| line.contains("<h1>"))
            .context("a heading")?;
        copy.replace(
            "groups/kiosk/page.yaml",
            line,
            &format!("    <h1>{text} ${{SHOP:=Our shop}}</h1>"),
        )?;
        copy.publish(text)?;
    }
    ensure!(
        agent.manifest(PAGE)?.contains("Welcome to Our shop"),
        "the device goes on meanwhile"
    );
    world.controller.start_again().await?;
    agent.page_shows("Third at Our shop").await
}

#[tokio::test]
async fn an_agent_without_a_controller_starts_from_its_ledger() -> Result<()> {
    let mut world = World::start().await?;
    let mut agent = world.enrolled("store-0001").await?;
    let good = agent.manifests()?;
    agent.stop().await?;
    world.controller.stop().await?;
    // A reboot that lost the runtime's files.
    fs::remove_dir_all(agent.directory())?;
    agent.start_again()?;
    eventually("the manifests are back", async || {
        ensure!(agent.manifests()? == good);
        Ok(())
    })
    .await?;
    agent.process()?.check()?;
    world.controller.start_again().await?;
    world.api = world.controller.api()?;
    eventually("the device is back", async || {
        ensure!(world.api.device("store-0001").await?.connected);
        Ok(())
    })
    .await?;
    ensure!(
        world.api.metrics().await?.manifest_bytes() == 0,
        "it had it all"
    );
    Ok(())
}

/// A ledger that the disk damaged is set aside, and what it held comes again.
#[tokio::test]
async fn a_damaged_ledger_is_set_aside_and_resynced() -> Result<()> {
    let world = World::start().await?;
    let mut agent = world.enrolled("store-0001").await?;
    let good = agent.manifests()?;
    agent.kill();
    let mut damaged = 0;
    for entry in fs::read_dir(agent.state())? {
        let path = entry?.path();
        let name = path
            .file_name()
            .context("a name")?
            .to_string_lossy()
            .into_owned();
        if path.is_file() && name.starts_with("ledger") {
            fs::write(&path, b"\0\0\0not a ledger")?;
            damaged += 1;
        }
    }
    ensure!(
        damaged > 0,
        "there is a ledger to damage in {}",
        agent.state().display()
    );
    agent.start_again()?;
    eventually("resynced", async || {
        let device = world.api.device("store-0001").await?;
        ensure!(
            device.connected && longshore_e2e::api::is_in_sync(&device),
            "{device:#?}"
        );
        ensure!(agent.manifests()? == good);
        Ok(())
    })
    .await?;
    let set_aside = fs::read_dir(agent.state())?
        .flatten()
        .any(|entry| fs::read(entry.path()).is_ok_and(|bytes| bytes == b"\0\0\0not a ledger"));
    ensure!(
        set_aside,
        "the damaged ledger is kept for people to look at"
    );
    ensure!(world.api.metrics().await?.count("offers_total") >= 1);
    Ok(())
}

/// Whatever happened meanwhile, only the last state counts, and it comes at once.
#[tokio::test]
async fn a_device_that_was_away_catches_up() -> Result<()> {
    let world = World::start().await?;
    let mut agent = world.enrolled("store-0001").await?;
    agent.stop().await?;
    let before = world.api.metrics().await?;
    let copy = world.repo.copy();
    let mut heading = "Welcome to".to_owned();
    for text in ["First at", "Second at", "Third at"] {
        copy.pull()?;
        copy.replace("groups/kiosk/page.yaml", &heading, text)?;
        let commit = copy.publish(text)?;
        text.clone_into(&mut heading);
        eventually("the new desired state", async || {
            let desired = world.api.device("store-0001").await?.desired;
            ensure!(desired.is_some_and(|it| it.revision == commit));
            Ok(())
        })
        .await?;
    }
    ensure!(agent.manifest(PAGE)?.contains("Welcome to Our shop"));
    agent.start_again()?;
    agent.page_shows("Third at Our shop").await?;
    world.api.in_sync("store-0001").await?;
    let after = world.api.metrics().await?;
    let sent = |metrics: &longshore_e2e::Metrics| {
        metrics.count("deltas_total") + metrics.count("offers_total")
    };
    ensure!(
        sent(&after) == sent(&before) + 1,
        "one message, not three: {after:?}"
    );
    Ok(())
}
