//! Many devices at once: one pull request, a commit for each, and each can be taken off it.

use anyhow::{Result, ensure};
use longshore_e2e::{
    Candidate, eventually,
    forge::{
        Forge, Host, How, Pull, PullState,
        world::{ForgeOptions, ForgeWorld},
    },
};
use longshore_protocol::api::{Approval, DeviceState, EnrollRejected};

const SETTINGS: &str = "  enrollment:\n    batch: 10m\n";
const DEVICES: usize = 5;

/// The one pull request, once all devices are in it.
async fn batch(forge: &Forge) -> Result<Pull> {
    eventually("one pull request for all", async || {
        let pulls = forge.pull_requests();
        let [pull] = pulls.as_slice() else {
            anyhow::bail!("{pulls:#?}");
        };
        for n in 0..DEVICES {
            forge.file(&pull.head_branch, &format!("devices/store-{n}/device.yaml"))?;
        }
        ensure!(pull.title.contains(&DEVICES.to_string()), "{}", pull.title);
        Ok(pull.clone())
    })
    .await
}

async fn candidates(world: &ForgeWorld, secret: &str) -> Result<Vec<Candidate>> {
    let mut all = Vec::new();
    for n in 0..DEVICES {
        let device = Candidate::new(&format!("store-{n}"))?;
        device.ask(&world.api, secret).await?;
        all.push(device);
    }
    Ok(all)
}

#[tokio::test]
async fn share_a_pull_request_and_one_is_taken_off() -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions {
        settings: SETTINGS,
        ..ForgeOptions::at(Host::GitHub)
    })
    .await?;
    let forge = &world.forge;
    let token = world.api.create_token(Approval::Manual).await?;
    let devices = candidates(&world, &token.secret).await?;
    let pull = batch(forge).await?;
    for device in &devices {
        let fingerprint = device.fingerprint().to_string();
        ensure!(pull.body.contains(&fingerprint), "{}", pull.body);
    }

    // Each device in its own commit.
    let copy = world.repo.copy();
    copy.git(["fetch", "--quiet", "origin"])?;
    let commits = copy.git([
        "log",
        "--format=%s",
        &format!("origin/main..origin/{}", pull.head_branch),
    ])?;
    ensure!(commits.lines().count() == DEVICES, "{commits}");

    // A folder that is removed rejects that device, and that alone.
    forge.edit(&pull.head_branch, |copy| {
        copy.git(["rm", "-r", "--quiet", "devices/store-2"])
            .map(drop)
    })?;
    world
        .api
        .device_becomes("store-2", DeviceState::Rejected)
        .await?;
    let answer = devices[2].ask(&world.api, &token.secret).await?;
    let told: EnrollRejected = serde_json::from_str(&answer.text)?;
    ensure!(
        told.reason.contains("removed") || told.reason.contains("taken off"),
        "{told:?}"
    );
    for n in [0, 1, 3, 4] {
        let device = world.api.device(&format!("store-{n}")).await?;
        ensure!(device.state == DeviceState::Pending, "{device:#?}");
    }
    forge.merge(pull.number, How::SquashAndDelete)?;
    for (n, device) in devices.iter().enumerate().filter(|(n, _)| *n != 2) {
        device.enroll(&world.api, &token.secret).await?;
        forge.file("main", &format!("devices/store-{n}/device.yaml"))?;
    }
    ensure!(world.api.device("store-2").await?.state == DeviceState::Rejected);
    ensure!(forge.file("main", "devices/store-2/device.yaml").is_err());
    ensure!(forge.pull_requests().len() == 1);
    forge.is_content()
}

#[tokio::test]
async fn closing_it_rejects_them_all() -> Result<()> {
    for host in [Host::GitLab, Host::Gitea] {
        let world = ForgeWorld::start(ForgeOptions {
            settings: SETTINGS,
            ..ForgeOptions::at(host)
        })
        .await?;
        let forge = &world.forge;
        let token = world.api.create_token(Approval::Manual).await?;
        candidates(&world, &token.secret).await?;
        let pull = batch(forge).await?;
        forge.close(pull.number)?;
        for n in 0..DEVICES {
            let name = format!("store-{n}");
            world
                .api
                .device_becomes(&name, DeviceState::Rejected)
                .await?;
        }
        // Whoever comes later has a pull request of its own.
        let late = Candidate::new("late")?;
        late.ask(&world.api, &token.secret).await?;
        eventually("another pull request", async || {
            let pulls = forge.pull_requests();
            ensure!(
                pulls.len() == 2 && pulls[1].state == PullState::Open,
                "{pulls:#?}"
            );
            Ok(())
        })
        .await?;
        forge.is_content()?;
    }
    Ok(())
}
