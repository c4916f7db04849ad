//! Repos that the controller hosts, with the real git client.

use anyhow::{Result, ensure};
use longshore_e2e::{World, WorldOptions};

async fn hosted() -> Result<World> {
    World::with(WorldOptions {
        hosted: true,
        ..WorldOptions::default()
    })
    .await
}

#[tokio::test]
async fn a_push_is_a_running_change() -> Result<()> {
    let world = hosted().await?;
    let agent = world.enrolled("store-0001").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Hosted at")?;
    copy.publish("Say where")?;
    agent.page_shows("Hosted at Our shop").await?;

    let fleet = world.api.fleet().await?;
    let url = format!("{}/git/default/example.git", world.api.server());
    ensure!(fleet.hosted && fleet.repo == url, "{fleet:?}");
    Ok(())
}
