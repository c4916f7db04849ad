//! What a change would do, asked of a real controller without a Git host.

use anyhow::{Result, ensure};
use longshore_e2e::{World, api::FLEET};
use longshore_protocol::{
    DeviceName,
    api::preview::{ChangeKind, CreatePreview, Preview},
};
use reqwest::{Method, StatusCode};

const PAGE: &str = "groups/kiosk/page.yaml";

async fn preview(world: &World, branch: &str) -> Result<Preview> {
    let path = format!("fleets/{FLEET}/previews");
    let branch = branch.to_owned();
    let answer = world
        .api
        .call(Method::POST, &path, Some(&CreatePreview { branch }))
        .await?;
    answer.success()
}

/// Pushes what stands in the working copy as a branch of its own, and goes back to the tracked one.
fn propose(world: &World, branch: &str, commit: impl FnOnce() -> Result<String>) -> Result<String> {
    let copy = world.repo.copy();
    copy.git(["switch", "--quiet", "-c", branch])?;
    let commit = commit()?;
    copy.git(["push", "--quiet", "origin", branch])?;
    copy.git(["switch", "--quiet", "main"])?;
    Ok(commit)
}

#[tokio::test]
async fn a_branch_is_previewed_and_merging_it_does_that() -> Result<()> {
    let world = World::start().await?;
    let agent = world.enrolled("store-0001").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    let commit = propose(&world, "fresh", || {
        copy.replace(PAGE, "Welcome to", "Fresh fish at")?;
        copy.commit("Fresh fish")
    })?;

    let before = world.api.metrics().await?.renders();
    let told = preview(&world, "fresh").await?;
    ensure!(told.head.as_deref() == Some(&*commit), "{told:#?}");
    let [group] = &told.groups[..] else {
        anyhow::bail!("{told:#?}");
    };
    let names: Vec<_> = group.devices.iter().map(DeviceName::as_str).collect();
    ensure!(names.contains(&"store-0001"), "{names:?}");
    let [change] = &group.changes[..] else {
        anyhow::bail!("{group:#?}");
    };
    ensure!(change.kind == ChangeKind::Changed && change.object.name == "page");
    ensure!(
        change.diff.contains("Fresh fish at ${SHOP:=Our shop}"),
        "{}",
        change.diff
    );
    ensure!(
        world.api.metrics().await?.renders() == before + 1,
        "one overlay is built"
    );
    ensure!(
        preview(&world, "fresh").await? == told,
        "asked again, the same"
    );
    ensure!(
        world.api.metrics().await?.renders() == before + 1,
        "and nothing is built again"
    );

    let shown = world.cli(&["preview", "fresh"]).await?.success()?;
    ensure!(
        shown.stdout.contains("ConfigMap hello/page changed"),
        "{shown:?}"
    );
    ensure!(
        shown.stdout.contains("\n+") && shown.stderr.contains("change"),
        "{shown:?}"
    );
    let json = world.cli_json(&["preview", "fresh"]).await?;
    ensure!(json == serde_json::to_value(&told)?, "{json}");

    // Nothing of it has happened yet.
    agent.page_shows("Welcome to Our shop").await?;
    copy.git(["merge", "--quiet", "fresh"])?;
    copy.git(["push", "--quiet", "origin", "main"])?;
    agent.page_shows("Fresh fish at Our shop").await?;
    let told = preview(&world, "fresh").await?;
    ensure!(told.is_nothing(), "{told:#?}");
    Ok(())
}

#[tokio::test]
async fn a_branch_that_breaks_something_says_where() -> Result<()> {
    let world = World::start().await?;
    world.enrolled("store-0001").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    propose(&world, "broken", || {
        copy.replace(
            "groups/kiosk/kustomization.yaml",
            "path: page.yaml",
            "path: pgae.yaml",
        )?;
        copy.commit("Break it")
    })?;
    let shown = world.cli(&["preview", "broken"]).await?;
    ensure!(shown.code == 1, "{shown:?}");
    let problem = "problem: groups/kiosk/kustomization.yaml:13: `pgae.yaml` does not exist";
    ensure!(shown.stdout.contains(problem), "{shown:?}");

    let shown = world.cli(&["preview", "nowhere"]).await?;
    ensure!(
        shown.code == 3 && shown.stderr.contains("no branch `nowhere`"),
        "{shown:?}"
    );
    for branch in ["", "../main", "a..b", "-x:refs/heads/y", "a b"] {
        let path = format!("fleets/{FLEET}/previews");
        let branch = branch.to_owned();
        let answer = world
            .api
            .call(Method::POST, &path, Some(&CreatePreview { branch }))
            .await?;
        ensure!(answer.status == StatusCode::NOT_FOUND, "{answer:?}");
    }
    ensure!(
        world.repo.branches()? == ["broken", "main"],
        "{:?}",
        world.repo.branches()?
    );
    Ok(())
}

#[tokio::test]
async fn previews_are_their_tenants_alone() -> Result<()> {
    let world = World::start().await?;
    let created = world.api.create_tenant("acme").await?;
    let stranger = world.api.as_tenant("default", &created.api_token);
    let path = format!("fleets/{FLEET}/previews");
    let branch = "main".to_owned();
    let asked = CreatePreview { branch };
    let answer = stranger.call(Method::POST, &path, Some(&asked)).await?;
    ensure!(answer.status == StatusCode::NOT_FOUND, "{answer:?}");
    // A link that nobody was shown opens nothing, whatever it is about.
    for path in [
        "/previews/default/example/7?key=",
        "/previews/default/example/7",
        "/previews/nobody/example/7?key=00",
        "/previews/default/example/x?key=00",
    ] {
        let answer = longshore_e2e::Api::send(world.api.request(Method::GET, path)).await?;
        ensure!(answer.status == StatusCode::NOT_FOUND, "{path}: {answer:?}");
    }
    Ok(())
}
