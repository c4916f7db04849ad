//! Repos that the controller hosts, with the real git client.

mod access;
mod hostile;
mod large;
mod review;

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    WorkingCopy, World, WorldOptions,
    agent::PAGE,
    eventually,
    repo::{self, isolate},
};
use longshore_protocol::api::Approval;

/// A world whose fleet repo the controller hosts.
async fn hosted() -> Result<World> {
    World::with(WorldOptions {
        hosted: true,
        ..WorldOptions::default()
    })
    .await
}

/// What git said, and whether it worked.
#[derive(Debug)]
struct Said {
    worked: bool,
    text: String,
}

impl Said {
    fn says(&self, text: &str) -> Result<()> {
        ensure!(self.text.contains(text), "no `{text}` in: {}", self.text);
        Ok(())
    }

    fn worked(self) -> Result<Self> {
        ensure!(self.worked, "{}", self.text);
        Ok(self)
    }

    fn refused(self) -> Result<Self> {
        ensure!(!self.worked, "{}", self.text);
        Ok(self)
    }
}

/// Runs git, which may fail. What it says on both streams counts.
async fn git(directory: &Path, arguments: &[&str]) -> Result<Said> {
    let mut command = Command::new("git");
    command.current_dir(directory).args(arguments);
    isolate(&mut command);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = [output.stdout, output.stderr].concat();
    Ok(Said {
        worked: output.status.success(),
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

/// Pushes, and returns what the person who pushes sees.
async fn push(copy: &WorkingCopy, refs: &[&str]) -> Result<Said> {
    git(copy.path(), &[&["push", "origin"], refs].concat()).await
}

/// Fails where the hosted repo holds the rest of a push that did not come in.
fn nothing_left(world: &World) -> Result<()> {
    for entry in fs::read_dir(world.repo.bare().join("objects"))? {
        let name = entry?.file_name();
        ensure!(
            !name.to_string_lossy().starts_with("tmp_"),
            "{} is left",
            name.display()
        );
    }
    Ok(())
}

/// Waits until nothing is left; the controller's own pushes may be under way.
async fn nothing_stays(world: &World) -> Result<()> {
    eventually("nothing is left of a push", async || nothing_left(world)).await
}

/// Fails unless the hosted repo is whole.
async fn is_whole(world: &World) -> Result<()> {
    let bare = world.repo.bare();
    repo::git(bare, ["fsck", "--strict", "--full"]).map(drop)?;
    nothing_stays(world).await
}

#[tokio::test]
async fn a_push_is_a_running_change() -> Result<()> {
    let world = hosted().await?;
    let agent = world.enrolled("store-0001").await?;
    let copy = world.repo.copy();
    copy.pull()?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Hosted at")?;
    copy.commit("Say where")?;
    push(copy, &["main"]).await?.worked()?;
    agent.page_shows("Hosted at Our shop").await?;

    let fleet = world.api.fleet().await?;
    let url = format!("{}/git/default/example.git", world.api.server());
    ensure!(fleet.hosted && fleet.repo == url, "{fleet:?}");
    is_whole(&world).await
}

#[tokio::test]
async fn a_clone_has_what_was_pushed() -> Result<()> {
    let world = hosted().await?;
    let url = world.api.with_credentials(&world.api.fleet().await?.repo);
    let ca = format!(
        "http.sslCAInfo={}",
        world.controller.data_dir().join("ca.pem").display()
    );
    for protocol in ["protocol.version=2", "protocol.version=0"] {
        let name = protocol.replace('=', "-");
        git(
            world.path(),
            &["-c", &ca, "-c", protocol, "clone", &url, &name],
        )
        .await?
        .worked()?;
        let clone = world.path().join(&name);
        let head = repo::git(&clone, ["rev-parse", "HEAD"])?;
        ensure!(head == world.repo.copy().git(["rev-parse", "main"])?);
        ensure!(clone.join("fleet.yaml").is_file());
    }
    // Where git is not given the token, it does not get in.
    let bare_url = world.api.fleet().await?.repo;
    let said = git(world.path(), &["-c", &ca, "clone", &bare_url, "no"]).await?;
    said.refused()?.says("could not read Username")
}

#[tokio::test]
async fn devices_enroll_into_a_hosted_repo() -> Result<()> {
    let world = hosted().await?;
    let copy = world.repo.copy();
    let token = world.api.create_token(Approval::Manual).await?;
    let agent = world.agent("store-0001", &token)?;
    eventually("the enrollment branch", async || {
        world.repo.has_branch("longshore/enroll/store-0001")
    })
    .await?;
    copy.git(["fetch", "--quiet", "origin"])?;
    copy.git([
        "merge",
        "--quiet",
        "--no-edit",
        "origin/longshore/enroll/store-0001",
    ])?;
    let said = push(copy, &["main"]).await?.worked()?;
    said.says("remote: 1 device enrolls with groups/kiosk: store-0001")?;
    agent.page_shows("Welcome to Our shop").await?;
    world.api.in_sync("store-0001").await?;

    // A branch that somebody deletes is nobody's mistake.
    let waiting = world.agent("store-0002", &token)?;
    eventually("another enrollment branch", async || {
        world.repo.has_branch("longshore/enroll/store-0002")
    })
    .await?;
    push(copy, &["--delete", "longshore/enroll/store-0002"])
        .await?
        .worked()?;
    drop(waiting);

    // And an automatic token's device gets in without anybody.
    let agent = world.enrolled("store-0003").await?;
    ensure!(agent.manifest(PAGE)?.contains("Welcome to"));
    is_whole(&world).await
}

#[tokio::test]
async fn a_restart_keeps_the_repo() -> Result<()> {
    let mut world = hosted().await?;
    let agent = world.enrolled("store-0001").await?;
    world.controller.restart().await?;
    world.api = world.controller.api()?;
    let copy = world.repo.copy();
    copy.pull()?;
    copy.replace("groups/kiosk/page.yaml", "Welcome to", "Still at")?;
    copy.commit("After a restart")?;
    let said = push(copy, &["main"]).await?.worked()?;
    said.says("store-0001")?;
    agent.page_shows("Still at Our shop").await?;

    // Killed, and not stopped.
    world.controller.kill();
    push(copy, &["main:early"]).await?.refused()?;
    world.controller.start_again().await?;
    push(copy, &["main:late"]).await?.worked()?;
    is_whole(&world).await
}

#[tokio::test]
async fn of_two_pushes_at_once_one_wins() -> Result<()> {
    let world = hosted().await?;
    let first = world.repo.copy();
    let path = world.path().join("second");
    let arguments = [
        "clone",
        "--quiet",
        &first.path().display().to_string(),
        "second",
    ];
    repo::git(world.path(), arguments)?;
    let url = first.git(["remote", "get-url", "origin"])?;
    let ca = first.git(["config", "http.sslCAInfo"])?;
    repo::git(&path, ["remote", "set-url", "origin", &url])?;
    repo::git(&path, ["config", "http.sslCAInfo", &ca])?;
    for round in 0..3 {
        first.git(["fetch", "--quiet", "origin"])?;
        first.git(["reset", "--quiet", "--hard", "origin/main"])?;
        repo::git(&path, ["fetch", "--quiet", "origin"])?;
        repo::git(&path, ["reset", "--quiet", "--hard", "origin/main"])?;
        for (directory, name) in [(first.path(), "one"), (&path, "two")] {
            fs::write(directory.join(name), format!("{round}\n"))?;
            repo::git(directory, ["add", "--all"])?;
            repo::git(directory, ["commit", "--quiet", "-m", name])?;
        }
        let (one, two) = tokio::try_join!(
            git(first.path(), &["push", "origin", "main"]),
            git(&path, &["push", "origin", "main"]),
        )?;
        ensure!(one.worked != two.worked, "{one:?} {two:?}");
        let lost = if one.worked { &two } else { &one };
        let told = ["fetch first", "failed to update ref", "cannot lock ref"];
        ensure!(told.iter().any(|it| lost.text.contains(it)), "{lost:?}");
        let winner = if one.worked { first.path() } else { &path };
        let tip = repo::git(winner, ["rev-parse", "main"])?;
        ensure!(repo::git(world.repo.bare(), ["rev-parse", "main"])? == tip);
        is_whole(&world).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_removed_fleet_takes_its_repo_with_it() -> Result<()> {
    let world = hosted().await?;
    let refused = world.cli(&["fleets", "remove", "example"]).await?;
    ensure!(
        refused.code != 0 && refused.stderr.contains("deleted with all its history"),
        "{refused:?}"
    );
    ensure!(world.repo.bare().is_dir());
    world
        .cli(&["fleets", "remove", "example", "--yes"])
        .await?
        .success()?;
    eventually("the repo is gone", async || {
        let parent = world.repo.bare().parent().context("a parent")?;
        ensure!(fs::read_dir(parent)?.next().is_none());
        Ok(())
    })
    .await?;
    push(world.repo.copy(), &["main"]).await?.refused()?;

    // Made again, it is empty; and the command line says how to fill it.
    let made = world.cli(&["fleets", "add", "example", "--hosted"]).await?;
    let made = made.success()?;
    let url = format!("{}/git/default/example.git", world.api.server());
    ensure!(made.stdout.contains(&url), "{made:?}");
    ensure!(
        made.stderr
            .contains(&format!("git remote add origin {url}")),
        "{made:?}"
    );
    push(world.repo.copy(), &["main"]).await?.worked()?;
    world
        .api
        .sees(&world.repo.copy().git(["rev-parse", "main"])?)
        .await?;
    Ok(())
}
