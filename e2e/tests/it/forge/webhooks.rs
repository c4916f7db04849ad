//! Webhooks that are lost, doubled, delayed, out of order, replayed, forged: they only make things sooner.

use std::time::Instant;

use anyhow::{Result, ensure};
use http::StatusCode;
use longshore_e2e::{
    Candidate,
    forge::{
        Host, How, Post, PullState,
        webhook::Delivery,
        world::{ForgeOptions, ForgeWorld},
    },
};
use longshore_protocol::api::{Approval, DeviceState};

use super::branch_of;

/// Without any webhook, the polling interval brings the news.
#[tokio::test]
async fn lost_ones_cost_the_polling_interval() -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions {
        poll_interval: "1s",
        ..ForgeOptions::at(Host::GitHub)
    })
    .await?;
    let forge = &world.forge;
    forge.post(Post::Loses);
    let token = world.api.create_token(Approval::Manual).await?;
    let yes = Candidate::new("yes")?;
    yes.ask(&world.api, &token.secret).await?;
    let no = Candidate::new("no")?;
    no.ask(&world.api, &token.secret).await?;
    let merged = forge.pull_request_of(&branch_of("yes")).await?;
    let closed = forge.pull_request_of(&branch_of("no")).await?;
    forge.merge(merged.number, How::SquashAndDelete)?;
    forge.close(closed.number)?;
    yes.enroll(&world.api, &token.secret).await?;
    world
        .api
        .device_becomes("no", DeviceState::Rejected)
        .await?;
    ensure!(forge.webhook_answers().is_empty());
    forge.is_content()
}

#[tokio::test]
async fn doubled_late_and_reversed_ones_change_nothing() -> Result<()> {
    for host in [Host::GitHub, Host::GitLab] {
        let world = ForgeWorld::start(ForgeOptions::at(host)).await?;
        let forge = &world.forge;
        let token = world.api.create_token(Approval::Manual).await?;

        forge.post(Post::Doubles);
        let first = Candidate::new("first")?;
        first.ask(&world.api, &token.secret).await?;
        let pull = forge.pull_request_of(&branch_of("first")).await?;
        forge.merge(pull.number, How::SquashAndDelete)?;
        first.enroll(&world.api, &token.secret).await?;

        // Held back, nothing is known; then all come at once, the newest first.
        forge.post(Post::Holds);
        let second = Candidate::new("second")?;
        second.ask(&world.api, &token.secret).await?;
        let pull = forge.pull_request_of(&branch_of("second")).await?;
        forge.merge(pull.number, How::SquashAndDelete)?;
        let answers = forge.release_webhooks(true).await?;
        ensure!(answers.iter().all(StatusCode::is_success), "{answers:?}");
        second.enroll(&world.api, &token.secret).await?;

        // All of them again, as they were: answered, and nothing comes of it.
        forge.post(Post::Works);
        let before = (
            forge.pull_requests().len(),
            world.api.devices().await?.len(),
        );
        let answers = forge.send(&forge.webhooks()).await?;
        ensure!(answers.iter().all(StatusCode::is_success), "{answers:?}");
        let third = Candidate::new("third")?;
        third.ask(&world.api, &token.secret).await?;
        forge.pull_request_of(&branch_of("third")).await?;
        let pulls = forge.pull_requests();
        ensure!((pulls.len(), world.api.devices().await?.len()) == (before.0 + 1, before.1 + 1));
        let merged = pulls.iter().filter(|pull| pull.state == PullState::Merged);
        ensure!(merged.count() == 2, "{pulls:#?}");
        forge.is_content()?;
    }
    Ok(())
}

/// What is not signed with the fleet's secret is refused, and does not even make the controller look.
#[tokio::test]
async fn forged_ones_are_refused() -> Result<()> {
    for host in Host::ALL {
        let world = ForgeWorld::start(ForgeOptions::at(host)).await?;
        let forge = &world.forge;
        forge.post(Post::Holds);
        forge.open_pull_request("news", |copy| copy.write("news.txt", "news"))?;
        let calls = forge.calls().len();
        for delivery in forge.webhooks() {
            let payload = serde_json::from_slice(&delivery.body)?;
            let wrong = Delivery::new(host, &delivery.event, &payload, "not the secret");
            let mut unsigned = delivery.clone();
            for name in [
                "x-hub-signature-256",
                "x-gitlab-token",
                "x-gitea-signature",
                "x-gogs-signature",
            ] {
                unsigned.headers.remove(name);
            }
            let mut changed = delivery.clone();
            changed.body.push(b' ');
            let mut forged = vec![wrong, unsigned];
            // GitLab signs nothing: its token goes with every body.
            forged.extend((host != Host::GitLab).then_some(changed));
            let answers = forge.send(&forged).await?;
            ensure!(
                answers.iter().all(|it| *it == StatusCode::UNAUTHORIZED),
                "{answers:?}"
            );
        }
        let begun = Instant::now();
        let answers = forge.release_webhooks(false).await?;
        ensure!(answers.iter().all(StatusCode::is_success), "{answers:?}");
        longshore_e2e::eventually("it looks for the right ones", async || {
            ensure!(forge.calls().len() > calls);
            Ok(())
        })
        .await?;
        eprintln!("{host:?}: looked within {:?}", begun.elapsed());
        forge.is_content()?;
    }
    Ok(())
}
