//! `longshore/sync`: how the tracked commit spreads, on the commit itself.

use anyhow::{Result, ensure};
use longshore_e2e::{
    Candidate, eventually,
    forge::{
        Fault, Host, Kind,
        world::{ForgeOptions, ForgeWorld},
    },
};
use longshore_protocol::api::Approval;

const SYNC: &str = "longshore/sync";

/// Makes the controller see the page's new text, and returns the commit.
fn publish(world: &ForgeWorld, text: &str) -> Result<String> {
    let copy = world.repo.copy();
    copy.pull()?;
    let page = copy.read("groups/kiosk/page.yaml")?;
    copy.write(
        "groups/kiosk/page.yaml",
        page.replace("</h1>", &format!(" {text}</h1>")),
    )?;
    copy.publish(text)
}

/// A rollout that succeeds, with a device that reports.
async fn succeeds(host: Host) -> Result<ForgeWorld> {
    let world = ForgeWorld::start(ForgeOptions::at(host)).await?;
    let agent = world.enrolled("store-0001").await?;
    let commit = publish(&world, "Good")?;
    agent.page_shows("Good").await?;
    world
        .forge
        .status_becomes(&commit, SYNC, "success", "1 device")
        .await?;
    world.forge.is_content()?;
    Ok(world)
}

#[tokio::test]
async fn a_success_is_told_to_gitlab() -> Result<()> {
    succeeds(Host::GitLab).await.map(drop)
}

#[tokio::test]
async fn a_success_is_told_to_gitea() -> Result<()> {
    succeeds(Host::Gitea).await.map(drop)
}

/// A failure names the device, and a commit that repairs it succeeds.
#[tokio::test]
async fn it_ends_in_the_truth() -> Result<()> {
    let world = succeeds(Host::GitHub).await?;
    let (forge, copy) = (&world.forge, world.repo.copy());
    let good = forge.branch("main")?;
    let page = copy.read("groups/kiosk/page.yaml")?;
    copy.write("groups/kiosk/page.yaml", "kind: [")?;
    let broken = copy.publish("Break it")?;
    forge
        .status_becomes(&broken, SYNC, "failure", "store-0001")
        .await?;
    copy.write("groups/kiosk/page.yaml", page)?;
    let repaired = copy.publish("Repair it")?;
    forge
        .status_becomes(&repaired, SYNC, "success", "1 device")
        .await?;
    for (commit, end) in [(good, "success"), (broken, "failure")] {
        let last = forge.statuses(&commit, SYNC).pop();
        ensure!(last.is_some_and(|it| it.state == end), "{commit}");
    }
    forge.is_content()
}

/// A device that is away keeps a commit pending; a newer commit ends it.
#[tokio::test]
async fn no_commit_waits_for_ever() -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions::at(Host::GitHub)).await?;
    let forge = &world.forge;
    let token = world.api.create_token(Approval::Automatic).await?;
    let mut agent = world.enrolled("store-0001").await?;
    Candidate::new("away")?
        .enroll(&world.api, &token.secret)
        .await?;
    let first = publish(&world, "First")?;
    forge
        .status_becomes(&first, SYNC, "pending", "1 of 2 devices")
        .await?;
    let second = publish(&world, "Second")?;
    forge
        .status_becomes(&first, SYNC, "success", "superseded")
        .await?;
    forge
        .status_becomes(&second, SYNC, "pending", "1 of 2 devices")
        .await?;
    // It says nothing twice.
    let told = forge.statuses(&second, SYNC);
    let mut different = told.clone();
    different.dedup();
    ensure!(told == different, "{told:#?}");
    agent.kill();
    forge.is_content()
}

/// Restarts, and answers that are lost, leave the same end.
#[tokio::test]
async fn it_ends_in_the_truth_whatever_happens_meanwhile() -> Result<()> {
    let mut world = ForgeWorld::start(ForgeOptions::at(Host::GitHub)).await?;
    let agent = world.enrolled("store-0001").await?;
    let lost = Fault::every(Kind::LoseAnswer).on(http::Method::POST, "/statuses/");
    world.forge.set_fault(lost.times(1));
    let commit = publish(&world, "News")?;
    agent.page_shows("News").await?;
    world.controller.kill();
    world.controller.start_again().await?;
    world
        .forge
        .status_becomes(&commit, SYNC, "success", "1 device")
        .await?;
    // What was told is told again where its answer was lost, until the controller has put it down.
    let put_down = format!("told the forge revision=\"{commit}\" status=\"1 device\"");
    eventually("the status is remembered", async || {
        ensure!(world.controller.log().contains(&put_down));
        Ok(())
    })
    .await?;
    let told = world.forge.statuses(&commit, SYNC).len();
    world.controller.restart().await?;
    let next = publish(&world, "More")?;
    world
        .forge
        .status_becomes(&next, SYNC, "success", "1 device")
        .await?;
    ensure!(
        world.forge.statuses(&commit, SYNC).len() == told,
        "a restart repeats nothing"
    );
    world.forge.is_content()
}
