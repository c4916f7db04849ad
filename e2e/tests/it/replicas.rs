//! Several controllers on one database: any serves any device, one works for a fleet, and each stands in for the others.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{Replicas, api::is_in_sync, eventually};

fn publish(replicas: &Replicas, text: &str) -> Result<()> {
    let copy = replicas.repo.copy();
    copy.pull()?;
    let page = copy.read("groups/kiosk/page.yaml")?;
    let line = page
        .lines()
        .find(|line| line.contains("<h1>"))
        .context("a heading")?;
    let heading = format!("    <h1>{text} ${{SHOP:=Our shop}}</h1>");
    copy.replace("groups/kiosk/page.yaml", line, &heading)?;
    copy.publish(text).map(drop)
}

#[tokio::test]
async fn a_killed_holders_fleets_and_devices_move() -> Result<()> {
    let mut replicas = Replicas::start(2).await?;
    let holder = eventually("one works for the fleet", async || replicas.holder().await).await?;
    let other = 1 - holder;
    replicas.prefer(holder)?;
    let agent = replicas.enrolled("store-0001", other).await?;
    let before = replicas.api(other)?.device("store-0001").await?;

    let killed = Instant::now();
    replicas.controller(holder)?.kill();
    publish(&replicas, "After the kill")?;
    agent.page_shows("After the kill Our shop").await?;
    eprintln!(
        "after {:?} the fleet's commit was applied",
        killed.elapsed()
    );
    let api = replicas.api(other)?;
    let after = eventually("the device is with the other", async || {
        let device = api.device("store-0001").await?;
        ensure!(device.connected && is_in_sync(&device), "{device:#?}");
        Ok(device)
    })
    .await?;
    let generation = |device: &longshore_protocol::api::Device| {
        device.desired.as_ref().map(|it| it.generation.number())
    };
    ensure!(generation(&after) == generation(&before).map(|it| it + 1));
    ensure!(api.metrics().await?.renders() == 1, "one build was new");
    Ok(())
}
