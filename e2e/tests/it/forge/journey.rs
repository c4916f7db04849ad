//! From a new device to a running one, with nothing but a merge, at each host.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    eventually,
    forge::{
        BOT, Host, How, REVIEWER, TEAM,
        world::{ForgeOptions, ForgeWorld},
    },
};
use longshore_protocol::api::{Approval, DeviceState};

use super::branch_of;

const SETTINGS: &str = "  enrollment:\n    labels: [edge, new device]\n    reviewers: [noor]\n";

async fn from_pull_request_to_pages(host: Host) -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions {
        settings: SETTINGS,
        ..ForgeOptions::at(host)
    })
    .await?;
    let forge = &world.forge;
    let token = world.api.create_token(Approval::Manual).await?;
    let agent = world.agent("store-0001", &token)?;
    let branch = branch_of("store-0001");
    let pull = forge.pull_request_of(&branch).await?;

    // What a reviewer can judge by.
    let device = world.api.device("store-0001").await?;
    ensure!(device.state == DeviceState::Pending);
    ensure!(
        pull.author == BOT && pull.base_branch == "main",
        "{pull:#?}"
    );
    ensure!(pull.title.contains("store-0001"), "{}", pull.title);
    let fingerprint = device.public_key.to_string();
    for text in [
        "store-0001",
        &fingerprint,
        "127.0.0.1",
        &token.token.label,
        "groups/kiosk",
        "madrid",
        "arch",
        "approves the device",
    ] {
        ensure!(pull.body.contains(text), "no `{text}` in {}", pull.body);
    }
    ensure!(
        agent.log().contains(&fingerprint),
        "the device prints the same"
    );
    eventually("labels and reviewers", async || {
        let pull = forge.pull_request(pull.number)?;
        ensure!(pull.labels == ["edge", "new device"], "{:?}", pull.labels);
        ensure!(pull.reviewers == [REVIEWER], "{:?}", pull.reviewers);
        Ok(())
    })
    .await?;
    let text = forge.file(&branch, "devices/store-0001/device.yaml")?;
    ensure!(text.contains(&fingerprint), "{text}");

    // The merge is the approval.
    let begun = Instant::now();
    forge.merge(pull.number, How::Merge)?;
    world
        .api
        .device_becomes("store-0001", DeviceState::Active)
        .await?;
    let took = begun.elapsed();
    eprintln!("{host:?}: approved {took:?} after the merge");
    ensure!(took < Duration::from_secs(5), "{took:?}");
    world.api.in_sync("store-0001").await?;
    agent.page_shows("store-0001").await?;

    // Nothing stays behind.
    eventually("the branch is deleted", async || {
        ensure!(forge.branch(&branch).is_err());
        Ok(())
    })
    .await?;
    ensure!(forge.pull_requests().len() == 1);

    // And the way out is a pull request, too.
    let removal = forge.open_pull_request("remove-store-0001", |copy| {
        copy.git(["rm", "-r", "--quiet", "devices/store-0001"])
            .map(drop)
    })?;
    forge.merge(removal.number, How::SquashAndDelete)?;
    world
        .api
        .device_becomes("store-0001", DeviceState::Decommissioned)
        .await?;
    let answers = forge.webhook_answers();
    ensure!(
        answers.iter().all(http::StatusCode::is_success),
        "{answers:?}"
    );
    forge.is_content()
}

#[tokio::test]
async fn at_github() -> Result<()> {
    from_pull_request_to_pages(Host::GitHub).await
}

#[tokio::test]
async fn at_gitlab() -> Result<()> {
    from_pull_request_to_pages(Host::GitLab).await
}

#[tokio::test]
async fn at_gitea() -> Result<()> {
    from_pull_request_to_pages(Host::Gitea).await
}

/// As a GitHub App: with tokens of an hour, with tokens that end while they are used, and with ones that are
/// taken away.
#[tokio::test]
async fn as_an_app_whose_tokens_end() -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions {
        app: true,
        settings: "  enrollment:\n    reviewers: [\"team:field-ops\", noor]\n",
        ..ForgeOptions::at(Host::GitHub)
    })
    .await?;
    let forge = &world.forge;
    let token = world.api.create_token(Approval::Manual).await?;
    for (name, life) in [
        ("store-0001", 3600),
        ("store-0002", 1),
        ("store-0003", 3600),
    ] {
        forge.app_tokens_live(life);
        forge.revoke_app_tokens();
        let device = longshore_e2e::Candidate::new(name)?;
        device.ask(&world.api, &token.secret).await?;
        let pull = forge.pull_request_of(&branch_of(name)).await?;
        ensure!(pull.author == "longshore[bot]", "{}", pull.author);
        forge.merge(pull.number, How::MergeAndDelete)?;
        device
            .enroll(&world.api, &token.secret)
            .await
            .context(name)?;
        let reviewed = forge.pull_request(pull.number)?;
        ensure!(reviewed.teams == [TEAM], "{reviewed:#?}");
    }
    forge.is_content()
}
