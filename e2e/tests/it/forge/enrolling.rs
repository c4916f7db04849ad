//! What people do to an enrollment pull request besides merging it.

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    Candidate, eventually,
    forge::{
        Host, How, PullState,
        world::{ForgeOptions, ForgeWorld},
    },
};
use longshore_protocol::api::{Approval, DeviceState, EnrollRejected};

use super::branch_of;

/// A squash has another commit than the branch, and the branch is gone at once: it is approved all the same.
#[tokio::test]
async fn a_squash_whose_branch_is_deleted_approves() -> Result<()> {
    for host in Host::ALL {
        let world = ForgeWorld::start(ForgeOptions::at(host)).await?;
        let token = world.api.create_token(Approval::Manual).await?;
        let device = Candidate::new("store-0001")?;
        device.ask(&world.api, &token.secret).await?;
        let pull = world
            .forge
            .pull_request_of(&branch_of("store-0001"))
            .await?;
        world.forge.merge(pull.number, How::SquashAndDelete)?;
        device.enroll(&world.api, &token.secret).await?;
        ensure!(world.forge.pull_requests().len() == 1);
        world.forge.is_content()?;
    }
    Ok(())
}

#[tokio::test]
async fn closing_rejects_and_the_device_is_told_why() -> Result<()> {
    for host in Host::ALL {
        let world = ForgeWorld::start(ForgeOptions::at(host)).await?;
        let forge = &world.forge;
        let token = world.api.create_token(Approval::Manual).await?;
        let mut agent = world.agent("store-0001", &token)?;
        let branch = branch_of("store-0001");
        let pull = forge.pull_request_of(&branch).await?;
        forge.close(pull.number)?;
        let status = agent.exit().await?;
        let log = agent.log();
        ensure!(status.code() == Some(4), "{status}: {log}");
        let noun = if host == Host::GitLab {
            "merge request"
        } else {
            "pull request"
        };
        ensure!(log.contains("rejected") && log.contains(noun), "{log}");
        let device = world.api.device("store-0001").await?;
        ensure!(device.state == DeviceState::Rejected, "{device:#?}");
        eventually("the branch is deleted", async || {
            ensure!(forge.branch(&branch).is_err());
            Ok(())
        })
        .await?;
        ensure!(forge.pull_requests().len() == 1);
        forge.is_content()?;
    }
    Ok(())
}

/// Deleting the branch is another way to say no, whether the host closes the pull request then or not.
#[tokio::test]
async fn deleting_the_branch_rejects() -> Result<()> {
    for host in [Host::GitHub, Host::GitLab] {
        let world = ForgeWorld::start(ForgeOptions::at(host)).await?;
        let forge = &world.forge;
        let token = world.api.create_token(Approval::Manual).await?;
        let device = Candidate::new("store-0001")?;
        device.ask(&world.api, &token.secret).await?;
        let branch = branch_of("store-0001");
        let pull = forge.pull_request_of(&branch).await?;
        // Whoever comes next is dealt with after the controller saw the branch.
        Candidate::new("next")?
            .ask(&world.api, &token.secret)
            .await?;
        forge.pull_request_of(&branch_of("next")).await?;
        forge.delete_branch(&branch)?;
        world
            .api
            .device_becomes("store-0001", DeviceState::Rejected)
            .await?;
        let told: EnrollRejected =
            serde_json::from_str(&device.ask(&world.api, &token.secret).await?.text)?;
        ensure!(
            told.reason.contains("branch") || told.reason.contains("closed"),
            "{told:?}"
        );
        eventually("no open pull request", async || {
            let state = forge.pull_request(pull.number)?.state;
            ensure!(state == PullState::Closed, "{state:?}");
            Ok(())
        })
        .await?;
        ensure!(forge.branch(&branch).is_err() && forge.pull_requests().len() == 2);
        forge.is_content()?;
    }
    Ok(())
}

/// Renamed, relabelled, moved to another overlay: what is merged is what the device gets.
#[tokio::test]
async fn an_edit_before_the_merge_is_what_counts() -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions::at(Host::GitHub)).await?;
    let forge = &world.forge;
    let token = world.api.create_token(Approval::Manual).await?;
    let agent = world.agent("store-0001", &token)?;
    let branch = branch_of("store-0001");
    let pull = forge.pull_request_of(&branch).await?;
    let edited = forge.edit(&branch, |copy| {
        copy.git(["mv", "devices/store-0001", "devices/lisbon-0001"])?;
        let file = "devices/lisbon-0001/device.yaml";
        copy.replace(file, "name: store-0001", "name: lisbon-0001")?;
        copy.replace(file, "madrid", "lisbon")?;
        copy.replace(file, "groups/kiosk", "groups/gateway")
    })?;
    forge.merge(pull.number, How::MergeAndDelete)?;
    let device = eventually("the device under its new name", async || {
        let device = world.api.device("lisbon-0001").await?;
        ensure!(device.state == DeviceState::Active, "{device:#?}");
        Ok(device)
    })
    .await?;
    ensure!(
        device
            .labels
            .get("site")
            .is_some_and(|site| site == "lisbon"),
        "{device:#?}"
    );
    world.api.in_sync("lisbon-0001").await?;
    agent.page_shows("Site: lisbon").await?;
    ensure!(
        agent
            .manifests()?
            .keys()
            .any(|file| file.contains("service")),
        "{:?}",
        agent.manifests()?
    );
    // Their commit was merged as they made it.
    let main = world.repo.copy();
    main.pull()?;
    main.git(["merge-base", "--is-ancestor", &edited, "HEAD"])?;
    ensure!(forge.pull_requests().len() == 1);
    forge.is_content()
}

/// What was pushed to `main` meanwhile must not leave people with a pull request that cannot be merged.
#[tokio::test]
async fn a_conflict_is_rebuilt() -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions::at(Host::GitHub)).await?;
    let forge = &world.forge;
    let token = world
        .api
        .create_token_with(Approval::Manual, |token| token.overlay = None)
        .await?;
    let device = Candidate::new("store-0001")?;
    device.ask(&world.api, &token.secret).await?;
    let branch = branch_of("store-0001");
    let pull = forge.pull_request_of(&branch).await?;
    let before = forge.branch(&branch)?;
    forge.file(&branch, "devices/store-0001/kustomization.yaml")?;

    // Somebody prepares the same device's overlay by hand.
    let copy = world.repo.copy();
    let overlay = "resources:\n  - ../../groups/gateway\n";
    copy.write("devices/store-0001/kustomization.yaml", overlay)?;
    copy.publish("Prepare store-0001")?;
    eventually("a branch that can be merged", async || {
        let now = forge.branch(&branch)?;
        ensure!(now != before, "the branch is as it was");
        Ok(())
    })
    .await?;
    forge
        .merge(pull.number, How::MergeAndDelete)
        .context("it can be merged")?;
    device.enroll(&world.api, &token.secret).await?;
    ensure!(
        forge
            .file("main", "devices/store-0001/kustomization.yaml")?
            .contains("gateway")
    );
    ensure!(
        forge.pull_requests().len() == 1,
        "the same pull request all along"
    );
    forge.is_content()
}

/// Where nobody may push, a person has to merge, and the device's console says so.
#[tokio::test]
async fn an_automatic_token_on_a_protected_branch_becomes_a_pull_request() -> Result<()> {
    for host in Host::ALL {
        let world = ForgeWorld::start(ForgeOptions::at(host)).await?;
        let forge = &world.forge;
        forge.protect_main()?;
        let token = world.api.create_token(Approval::Automatic).await?;
        let agent = world.agent("store-0001", &token)?;
        let pull = forge.pull_request_of(&branch_of("store-0001")).await?;
        ensure!(
            pull.body.contains("the tracked branch does not take that"),
            "the text says why: {}",
            pull.body
        );
        let noun = if host == Host::GitLab {
            "merge request"
        } else {
            "pull request"
        };
        eventually("the console says so", async || {
            ensure!(agent.log().contains(noun), "{}", agent.log());
            Ok(())
        })
        .await?;
        forge.merge(pull.number, How::SquashAndDelete)?;
        world.api.in_sync("store-0001").await?;
        ensure!(forge.pull_requests().len() == 1);
        forge.is_content()?;
    }
    Ok(())
}
