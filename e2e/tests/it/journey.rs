//! From a new device to a commit that reaches it, and out of the fleet again.

use anyhow::{Result, ensure};
use longshore_e2e::{
    ControllerOptions, World, WorldOptions, agent::PAGE, api::condition, eventually, postgres,
};
use longshore_protocol::{
    ConditionStatus,
    api::{Approval, DeviceState},
};

const BRANCH: &str = "longshore/enroll/store-0001";

async fn whole_way(options: WorldOptions, store: &str) -> Result<()> {
    let world = World::with(options).await?;
    let status = world.cli_json(&["status"]).await?;
    ensure!(status["store"] == store, "{status}");

    // A device asks; nothing happens to it until somebody approves.
    let token = world.api.create_token(Approval::Manual).await?;
    let mut agent = world.agent("store-0001", &token)?;
    eventually("an enrollment branch", async || {
        world.repo.has_branch(BRANCH)
    })
    .await?;
    let device = world.api.device("store-0001").await?;
    ensure!(
        device.state == DeviceState::Pending && device.desired.is_none(),
        "{device:#?}"
    );
    ensure!(
        device.enrollment_branch.as_deref() == Some(BRANCH),
        "{device:#?}"
    );
    ensure!(device.token_label == "test", "{device:#?}");
    let copy = world.repo.copy();
    copy.git(["fetch", "--quiet", "origin"])?;
    let asked = copy.git([
        "show",
        &format!("origin/{BRANCH}:devices/store-0001/device.yaml"),
    ])?;
    for part in [
        device.id.as_str(),
        &device.public_key.to_string(),
        "../../groups/kiosk",
        "site: madrid",
    ] {
        ensure!(asked.contains(part), "no {part} in:\n{asked}");
    }
    let changed = copy.git(["diff", "--name-only", &format!("main...origin/{BRANCH}")])?;
    ensure!(changed == "devices/store-0001/device.yaml", "{changed}");
    eventually("the key on the device's console", async || {
        ensure!(
            agent.log().contains(&device.public_key.to_string()),
            "{}",
            agent.log()
        );
        Ok(())
    })
    .await?;
    ensure!(
        agent.manifests()?.is_empty(),
        "nothing is applied before the approval"
    );

    // Merging the branch is the approval.
    copy.merge(BRANCH)?;
    agent.page_shows("Welcome to Our shop").await?;
    agent.page_shows("store-0001, madrid").await?;
    let device = world.api.in_sync("store-0001").await?;
    ensure!(
        device.state == DeviceState::Active && device.connected,
        "{device:#?}"
    );
    ensure!(condition(&device.conditions, "Rendered")?.status == ConditionStatus::True);
    eventually("the branch is cleaned up", async || {
        ensure!(
            world.repo.branches()? == ["main"],
            "{:?}",
            world.repo.branches()?
        );
        Ok(())
    })
    .await?;
    let manifests = agent.manifests()?;
    let listed = &manifests["kustomization.yaml"];
    for name in manifests
        .keys()
        .filter(|name| *name != "kustomization.yaml")
    {
        ensure!(
            listed.contains(&format!("- {name}")),
            "{name} is not listed in\n{listed}"
        );
    }
    ensure!(manifests.len() == 4, "{:?}", manifests.keys());

    // A commit reaches it as a delta, as one generation more.
    let before = world.api.metrics().await?;
    copy.pull()?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Fresh fish at")?;
    let commit = copy.publish("Fresh fish")?;
    agent.page_shows("Fresh fish at Our shop").await?;
    let after = world.api.in_sync("store-0001").await?;
    let desired = after.desired.expect("in sync");
    ensure!(desired.revision == commit, "{desired:?}");
    ensure!(
        desired.generation.number() == device.desired.expect("in sync").generation.number() + 1
    );
    let metrics = world.api.metrics().await?;
    ensure!(metrics.count("deltas_total") == before.count("deltas_total") + 1);
    ensure!(
        metrics.renders() == before.renders() + 1,
        "one overlay changed, one build runs"
    );

    // What the controller says it should run is what the device has.
    let manifests = world.api.manifests("store-0001").await?;
    ensure!(manifests.digest == desired.digest && manifests.objects.len() == 3);
    let revisions = world.api.revisions().await?;
    ensure!(
        revisions[0].commit == commit && revisions[0].devices_changed == 1,
        "{revisions:#?}"
    );
    ensure!(revisions[0].summary == "Fresh fish", "{revisions:#?}");

    // One variable in device.yaml changes what it runs, without a build.
    let builds = metrics.renders();
    copy.pull()?;
    let yaml = copy.read("devices/store-0001/device.yaml")?;
    copy.write(
        "devices/store-0001/device.yaml",
        yaml + "  variables: {SHOP: Flores}\n",
    )?;
    copy.publish("Name the shop")?;
    agent.page_shows("Fresh fish at Flores").await?;
    ensure!(
        world.api.metrics().await?.renders() == builds,
        "variables take no build"
    );

    // The operator's tools see the same.
    let list = world.cli(&["devices", "list"]).await?.success()?;
    ensure!(
        list.stdout.contains("store-0001") && list.stdout.contains("active"),
        "{}",
        list.stdout
    );
    agent.stop().await?;
    eventually("the device is seen leaving", async || {
        ensure!(!world.api.device("store-0001").await?.connected);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_push_reaches_a_device() -> Result<()> {
    whole_way(WorldOptions::default(), "sqlite").await
}

#[tokio::test]
async fn a_push_reaches_a_device_with_postgresql() -> Result<()> {
    let controller = ControllerOptions {
        database_url: Some(postgres::new_database()?),
        ..ControllerOptions::default()
    };
    let options = WorldOptions {
        controller,
        ..WorldOptions::default()
    };
    whole_way(options, "postgres").await
}

#[tokio::test]
async fn an_operator_approves_with_a_command() -> Result<()> {
    let world = World::start().await?;
    let token = world.api.create_token(Approval::Manual).await?;
    let agent = world.agent("store-0001", &token)?;
    world
        .api
        .device_becomes("store-0001", DeviceState::Pending)
        .await?;
    world
        .cli(&["devices", "approve", "store-0001"])
        .await?
        .success()?;
    agent.page_shows("Welcome to Our shop").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    let yaml = copy.read("devices/store-0001/device.yaml")?;
    let key = world.api.device("store-0001").await?.public_key.to_string();
    ensure!(yaml.contains(&key), "the approval is in Git:\n{yaml}");
    // Said twice, done once.
    world
        .cli(&["devices", "approve", "store-0001"])
        .await?
        .success()?;
    Ok(())
}

#[tokio::test]
async fn an_operator_rejects_with_a_command() -> Result<()> {
    let world = World::start().await?;
    let token = world.api.create_token(Approval::Manual).await?;
    let mut agent = world.agent("store-0001", &token)?;
    eventually("an enrollment branch", async || {
        world.repo.has_branch(BRANCH)
    })
    .await?;
    world
        .cli(&["devices", "reject", "store-0001", "--yes"])
        .await?
        .success()?;
    let status = agent.exit().await?;
    ensure!(status.code() == Some(4), "{status}: {}", agent.log());
    world
        .api
        .device_becomes("store-0001", DeviceState::Rejected)
        .await?;
    eventually("the branch is gone", async || {
        ensure!(world.repo.branches()? == ["main"]);
        Ok(())
    })
    .await?;
    // An operator cannot approve it after all.
    let approve = world.cli(&["devices", "approve", "store-0001"]).await?;
    ensure!(approve.code == 3, "{approve:?}");
    Ok(())
}

#[tokio::test]
async fn deleting_the_branch_rejects() -> Result<()> {
    let world = World::start().await?;
    let token = world.api.create_token(Approval::Manual).await?;
    let mut agent = world.agent("store-0001", &token)?;
    eventually("an enrollment branch", async || {
        world.repo.has_branch(BRANCH)
    })
    .await?;
    world
        .repo
        .copy()
        .git(["push", "--quiet", "origin", "--delete", BRANCH])?;
    let status = agent.exit().await?;
    ensure!(status.code() == Some(4), "{status}: {}", agent.log());
    world
        .api
        .device_becomes("store-0001", DeviceState::Rejected)
        .await?;
    Ok(())
}

#[tokio::test]
async fn an_automatic_token_approves_by_a_commit() -> Result<()> {
    let world = World::start().await?;
    let agent = world.enrolled("store-0001").await?;
    agent.page_shows("Welcome to Our shop").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    ensure!(copy.git(["log", "-1", "--format=%s"])? == "Enroll store-0001");
    ensure!(world.repo.branches()? == ["main"]);
    Ok(())
}

#[tokio::test]
async fn deleting_the_folder_decommissions() -> Result<()> {
    let world = World::start().await?;
    let mut agent = world.enrolled("store-0001").await?;
    // What somebody else put there is not ours to remove.
    std::fs::write(agent.directory().join("theirs.yaml"), "a: b\n")?;
    let copy = world.repo.copy();
    copy.pull()?;
    copy.git(["rm", "-r", "--quiet", "devices/store-0001"])?;
    copy.publish("Close the store")?;
    let status = agent.exit().await?;
    ensure!(status.success(), "{status}: {}", agent.log());
    let left: Vec<_> = agent.manifests()?.into_keys().collect();
    ensure!(left == ["theirs.yaml"], "{left:?}");
    world
        .api
        .device_becomes("store-0001", DeviceState::Decommissioned)
        .await?;
    // Starting the agent again brings nothing back.
    agent.start_again()?;
    let status = agent.exit().await?;
    ensure!(status.success(), "{status}: {}", agent.log());
    ensure!(agent.manifest(PAGE).is_err());
    Ok(())
}

#[tokio::test]
async fn an_operator_decommissions_with_a_command() -> Result<()> {
    let world = World::start().await?;
    let mut agent = world.enrolled("store-0001").await?;
    world
        .cli(&["devices", "decommission", "store-0001", "--yes"])
        .await?
        .success()?;
    let status = agent.exit().await?;
    ensure!(
        status.success() && agent.manifests()?.is_empty(),
        "{status}"
    );
    eventually("the folder leaves the repo", async || {
        let copy = world.repo.copy();
        copy.pull()?;
        ensure!(!copy.path().join("devices/store-0001").exists());
        Ok(())
    })
    .await
}

/// Edits on the device are undone, and what others put beside is left alone.
#[tokio::test]
async fn drift_on_the_device_is_repaired() -> Result<()> {
    let world = World::start().await?;
    let agent = world.enrolled("store-0001").await?;
    let file = agent.directory().join(PAGE);
    let good = agent.manifest(PAGE)?;
    std::fs::write(&file, "tampered: true\n")?;
    eventually("the edit is undone", async || {
        ensure!(agent.manifest(PAGE)? == good);
        Ok(())
    })
    .await?;
    std::fs::remove_file(&file)?;
    eventually("the file is back", async || {
        ensure!(agent.manifest(PAGE)? == good);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_operator_sees_what_a_commit_would_change() -> Result<()> {
    let world = World::start().await?;
    let _agent = world.enrolled("store-0001").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    let path = copy.path().display().to_string();
    let diff = ["diff", "store-0001", "--repo", &path];
    let same = world.cli(&diff).await?;
    ensure!(same.code == 0, "{same:?}");
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Perhaps at")?;
    let differs = world.cli(&diff).await?;
    ensure!(differs.code == 1, "{differs:?}");
    let (minus, plus) = (
        "-    <h1>Welcome to Our shop</h1>",
        "+    <h1>Perhaps at Our shop</h1>",
    );
    ensure!(
        differs.stdout.contains(minus) && differs.stdout.contains(plus),
        "{}",
        differs.stdout
    );
    let rendered = world
        .cli(&["render", "store-0001", "--repo", &path])
        .await?
        .success()?;
    ensure!(
        rendered.stdout.contains("Perhaps at Our shop"),
        "{}",
        rendered.stdout
    );
    Ok(())
}
