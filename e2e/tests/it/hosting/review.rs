//! A push is looked at before it is accepted.

use anyhow::{Result, ensure};
use longshore_e2e::{agent::PAGE, repo};

use super::{git, hosted, is_whole, nothing_stays, push};

const KIOSK: &str = "groups/kiosk/kustomization.yaml";

#[tokio::test]
async fn whoever_pushes_sees_what_changes() -> Result<()> {
    let world = hosted().await?;
    let agent = world.enrolled("store-0001").await?;
    let copy = world.repo.copy();
    copy.pull()?;

    // On a branch of its own, nothing changes yet.
    copy.git(["checkout", "--quiet", "-b", "try"])?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Trying")?;
    copy.commit("Try something")?;
    let said = push(copy, &["try"]).await?.worked()?;
    said.says("remote: 2 devices change: example-0001, store-0001")?;
    said.says("remote:   ConfigMap hello/page changed")?;
    ensure!(agent.manifest(PAGE)?.contains("Welcome to"));

    // The branch is behind now: what the other branch did is not its doing.
    copy.git(["checkout", "--quiet", "main"])?;
    copy.replace("groups/gateway/service.yaml", "30080", "30081")?;
    copy.commit("Another port")?;
    let said = push(copy, &["main"]).await?.worked()?;
    said.says("example-0002")?;
    copy.git(["checkout", "--quiet", "try"])?;
    copy.git(["commit", "--quiet", "--allow-empty", "-m", "Again"])?;
    let said = push(copy, &["try"]).await?.worked()?;
    said.says("remote: 2 devices change: example-0001, store-0001")?;
    ensure!(!said.text.contains("example-0002"), "{said:?}");

    copy.git(["checkout", "--quiet", "main"])?;
    copy.write("NOTES.md", "Nothing for devices.\n")?;
    copy.commit("Notes")?;
    let said = push(copy, &["main"]).await?.worked()?;
    said.says("remote: no device changes")?;

    copy.git(["merge", "--quiet", "--no-edit", "try"])?;
    push(copy, &["main"]).await?.worked()?;
    agent.page_shows("Trying Our shop").await
}

#[tokio::test]
async fn a_push_that_breaks_an_overlay_is_refused() -> Result<()> {
    let world = hosted().await?;
    let agent = world.enrolled("store-0001").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    let before = copy.git(["rev-parse", "HEAD"])?;
    copy.replace(KIOSK, "- ../../base", "- ../../base\n  - missing.yaml")?;
    let broken = copy.commit("Break it")?;
    let said = push(copy, &["main"]).await?.refused()?;
    said.says("remote: problem: groups/kiosk/kustomization.yaml:7")?;
    said.says("remote: The push brings a problem, so it is refused.")?;
    said.says("spec.push.refuseBroken: false")?;

    // As if it had never been.
    let bare = world.repo.bare();
    ensure!(repo::git(bare, ["rev-parse", "main"])? == before);
    ensure!(repo::git(bare, ["cat-file", "-e", &broken]).is_err());
    nothing_stays(&world).await?;

    // Elsewhere it breaks nothing.
    let said = push(copy, &["main:try"]).await?.worked()?;
    said.says("remote: problem: groups/kiosk/kustomization.yaml:7")?;

    // A device.yaml that is wrong is a problem like any other.
    copy.git(["reset", "--quiet", "--hard", &before])?;
    copy.replace(
        "devices/store-0001/device.yaml",
        "kind: Device",
        "kind: Devise",
    )?;
    copy.commit("Mistype")?;
    let said = push(copy, &["main"]).await?.refused()?;
    said.says("devices/store-0001/device.yaml:2")?;

    copy.git(["reset", "--quiet", "--hard", &before])?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Mended at")?;
    copy.commit("Better")?;
    push(copy, &["main"]).await?.worked()?;
    agent.page_shows("Mended at Our shop").await
}

#[tokio::test]
async fn a_fleet_may_take_what_is_broken() -> Result<()> {
    let world = hosted().await?;
    let agent = world.enrolled("store-0001").await?;
    let good = agent.manifests()?;
    let copy = world.repo.copy();
    copy.pull()?;
    // The setting of the commit in force counts, so what is broken cannot let itself in.
    let text = copy.read("fleet.yaml")?;
    copy.write(
        "fleet.yaml",
        format!("{text}  push: {{refuseBroken: false}}\n"),
    )?;
    copy.replace(KIOSK, "- ../../base", "- ../../base\n  - missing.yaml")?;
    copy.commit("Both at once")?;
    push(copy, &["main"]).await?.refused()?;
    copy.git(["reset", "--quiet", "--hard", "HEAD^"])?;

    copy.write(
        "fleet.yaml",
        format!("{text}  push: {{refuseBroken: false}}\n"),
    )?;
    copy.commit("Take anything")?;
    push(copy, &["main"]).await?.worked()?;
    copy.replace(KIOSK, "- ../../base", "- ../../base\n  - missing.yaml")?;
    copy.commit("Break it")?;
    let said = push(copy, &["main"]).await?.worked()?;
    said.says("remote: problem: groups/kiosk/kustomization.yaml:7")?;
    said.says("it is accepted")?;

    // From now on nothing broken gets in, but what is broken already is in nobody's way.
    copy.write("fleet.yaml", &text)?;
    copy.commit("Take what is good")?;
    push(copy, &["main"]).await?.worked()?;
    copy.write("NOTES.md", "It is broken.\n")?;
    let commit = copy.commit("Notes")?;
    let said = push(copy, &["main"]).await?.worked()?;
    said.says("remote: old problem: groups/kiosk/kustomization.yaml:7")?;
    world.api.sees(&commit).await?;
    ensure!(agent.manifests()? == good, "the last good state stays");
    Ok(())
}

#[tokio::test]
async fn mass_removals_are_called_out() -> Result<()> {
    let world = hosted().await?;
    let copy = world.repo.copy();
    copy.replace("fleet.yaml", "maxDecommission: 5", "maxDecommission: 1")?;
    copy.commit("Careful")?;
    push(copy, &["main"]).await?.worked()?;
    copy.git(["rm", "--quiet", "-r", "devices"])?;
    copy.commit("Away with them")?;
    let said = push(copy, &["main"]).await?.worked()?;
    said.says("remote: 2 devices are decommissioned: example-0001, example-0002")?;
    said.says("remote: warning: 2 devices are removed or left without objects")?;
    said.says("an operator will have to confirm it")
}

#[tokio::test]
async fn the_tracked_branch_can_be_forced_but_not_deleted() -> Result<()> {
    let world = hosted().await?;
    let agent = world.enrolled("store-0001").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    let base = copy.git(["rev-parse", "HEAD"])?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Mistake at")?;
    let mistake = copy.commit("A mistake")?;
    push(copy, &["main"]).await?.worked()?;
    agent.page_shows("Mistake at Our shop").await?;
    copy.git(["reset", "--quiet", "--hard", &base])?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Better at")?;
    let better = copy.commit("No mistake")?;
    push(copy, &["main"])
        .await?
        .refused()?
        .says("non-fast-forward")?;
    push(copy, &["--force", "main"]).await?.worked()?;
    agent.page_shows("Better at Our shop").await?;

    let said = push(copy, &["--delete", "main"]).await?.refused()?;
    said.says(
        "remote: Refused: main is the branch that the fleet follows, and cannot be deleted.",
    )?;
    // Nothing of such a push gets in.
    let both = ["main:refs/heads/other", ":main"];
    push(copy, &both).await?.refused()?;
    for refs in [
        "main:refs/longshore/tracked",
        "main:refs/notes/x",
        "main:refs/replace/x",
    ] {
        let said = push(copy, &[refs]).await?.refused()?;
        said.says("is neither a branch nor a tag")?;
    }
    ensure!(world.repo.branches()? == ["main"]);
    ensure!(repo::git(world.repo.bare(), ["rev-parse", "main"])? == better);

    push(copy, &["main:other", "main:refs/tags/v1"])
        .await?
        .worked()?;
    push(copy, &["--delete", "other", "v1"]).await?.worked()?;

    // What a force push took away is in the log of the branch.
    let log = git(world.repo.bare(), &["reflog", "main"])
        .await?
        .worked()?;
    log.says(&mistake[..7])?;
    is_whole(&world).await
}
