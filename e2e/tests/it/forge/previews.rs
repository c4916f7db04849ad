//! What a pull request says it will do: a status, and one comment that is kept up to date.

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    WorkingCopy, eventually,
    forge::{
        Forge, Host, How,
        world::{ForgeOptions, ForgeWorld},
    },
};
use longshore_protocol::api::Approval;

const PREVIEW: &str = "longshore/preview";

/// Waits until the one comment on a pull request contains all of `texts`.
async fn comment_says(forge: &Forge, number: u64, texts: &[&str]) -> Result<String> {
    eventually(&format!("a comment with {texts:?}"), async || {
        let comments = forge.comments(number);
        let [comment] = comments.as_slice() else {
            anyhow::bail!("{} comments: {comments:#?}", comments.len());
        };
        for text in texts {
            ensure!(comment.contains(text), "no `{text}` in {comment}");
        }
        Ok(comment.clone())
    })
    .await
}

fn greet(text: &str) -> impl FnOnce(&WorkingCopy) -> Result<()> {
    move |copy: &WorkingCopy| copy.replace("groups/kiosk/page.yaml", "Welcome to", text)
}

async fn a_comment_is_kept_up_to_date(host: Host) -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions::at(host)).await?;
    let forge = &world.forge;
    let pull = forge.open_pull_request("greet", greet("Bienvenidos a"))?;
    let head = pull.head_commit.clone();
    forge
        .status_becomes(&head, PREVIEW, "success", "1 device")
        .await?;
    let first = comment_says(
        forge,
        pull.number,
        &["1 device", "page", "Welcome to", "Bienvenidos a"],
    )
    .await?;
    ensure!(first.matches("```diff").count() == 1, "{first}");

    // Another push changes the same comment, and the new commit has a status of its own.
    let next = forge.edit("greet", |copy| {
        copy.replace("groups/kiosk/page.yaml", "Bienvenidos a", "Bem-vindo a")
    })?;
    comment_says(forge, pull.number, &["Bem-vindo a"]).await?;
    forge
        .status_becomes(&next, PREVIEW, "success", "1 device")
        .await?;

    // An overlay that does not build fails with file and line.
    let broken = forge.edit("greet", |copy| {
        copy.write(
            "groups/kiosk/kustomization.yaml",
            "resources:\n  - ../../base\n  - missing.yaml\n",
        )
    })?;
    let status = forge
        .status_becomes(&broken, PREVIEW, "failure", "")
        .await?;
    comment_says(
        forge,
        pull.number,
        &["groups/kiosk/kustomization.yaml:3", "missing.yaml"],
    )
    .await?;
    eprintln!("{host:?}: {status:?}");
    ensure!(
        status
            .description
            .contains("groups/kiosk/kustomization.yaml:3"),
        "{status:?}"
    );
    forge.is_content()
}

#[tokio::test]
async fn at_github_a_comment_is_kept_up_to_date() -> Result<()> {
    a_comment_is_kept_up_to_date(Host::GitHub).await
}

#[tokio::test]
async fn at_gitlab_a_comment_is_kept_up_to_date() -> Result<()> {
    a_comment_is_kept_up_to_date(Host::GitLab).await
}

#[tokio::test]
async fn at_gitea_a_comment_is_kept_up_to_date() -> Result<()> {
    a_comment_is_kept_up_to_date(Host::Gitea).await
}

#[tokio::test]
async fn equal_changes_are_one_secrets_are_redacted_and_mass_removals_stand_out() -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions::at(Host::GitHub)).await?;
    let forge = &world.forge;
    let token = world.api.create_token(Approval::Automatic).await?;
    let names: Vec<_> = (0..7).map(|n| format!("store-{n}")).collect();
    for name in &names {
        longshore_e2e::Candidate::new(name)?
            .enroll(&world.api, &token.secret)
            .await?;
    }
    // With the one of the template that has the same overlay, these are eight devices, and one entry.
    let greeting = forge.open_pull_request("greet", greet("Bienvenidos a"))?;
    let comment = comment_says(forge, greeting.number, &["8 devices", "Bienvenidos a"]).await?;
    ensure!(comment.matches("```diff").count() == 1, "{comment}");

    let secret = forge.open_pull_request("secret", |copy| {
        let object = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: wifi\n  namespace: hello\nstringData:\n  password: correct-horse-battery\n";
        copy.write("groups/kiosk/wifi.yaml", object)?;
        copy.replace("groups/kiosk/kustomization.yaml", "  - ../../base\n", "  - ../../base\n  - wifi.yaml\n")
    })?;
    let comment = comment_says(forge, secret.number, &["wifi", "Secret"]).await?;
    ensure!(!comment.contains("correct-horse-battery"), "{comment}");
    let in_base64 = "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5";
    ensure!(!comment.contains(in_base64), "{comment}");

    let removal = forge.open_pull_request("remove", |copy| {
        for name in &names {
            copy.git(["rm", "-r", "--quiet", &format!("devices/{name}")])?;
        }
        Ok(())
    })?;
    let comment = comment_says(forge, removal.number, &["7 devices"]).await?;
    let is_bold = comment.lines().any(|line| {
        line.contains('7')
            && (line.contains("**") || line.contains("<b>") || line.contains("<strong>"))
    });
    ensure!(is_bold, "{comment}");
    // Nothing of this is done before somebody merges.
    ensure!(world.api.devices().await?.len() == 7);
    forge.is_content()
}

#[tokio::test]
async fn a_fork_is_rendered_only_where_the_fleet_allows_it() -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions::at(Host::GitHub)).await?;
    let forge = &world.forge;
    world.enrolled("store-0001").await?;
    let renders = world.api.metrics().await?.renders();
    let fork = forge.open_fork_pull_request("theirs", greet("Pwned by"))?;
    let own = forge.open_pull_request("ours", |copy| copy.write("README.local", "nothing"))?;
    // The later one is done; so the fork was looked at, and left alone.
    forge
        .status_becomes(&own.head_commit, PREVIEW, "success", "")
        .await?;
    let comments = forge.comments(fork.number);
    ensure!(
        comments.iter().all(|comment| !comment.contains("Pwned")),
        "{comments:#?}"
    );
    ensure!(
        world.api.metrics().await?.renders() == renders,
        "nothing of a stranger's was built"
    );

    // The tracked branch decides, not the fork.
    let allow = forge.open_pull_request("allow", |copy| {
        copy.replace(
            "fleet.yaml",
            "spec:\n",
            "spec:\n  previews:\n    forks: true\n",
        )
    })?;
    forge.merge(allow.number, How::SquashAndDelete)?;
    forge.edit_fork("theirs", |copy| copy.write("more.txt", "more"))?;
    comment_says(forge, fork.number, &["Pwned by"])
        .await
        .context("it is rendered now")?;
    forge.is_content()
}

/// On Gitea, whoever may read a repo can push a pull request that looks like one of the repo's own.
#[tokio::test]
async fn what_a_reader_pushed_is_a_strangers() -> Result<()> {
    let world = ForgeWorld::start(ForgeOptions::at(Host::Gitea)).await?;
    let forge = &world.forge;
    world.enrolled("store-0001").await?;
    let renders = world.api.metrics().await?.renders();
    let theirs = forge.open_agit_pull_request("theirs", greet("Pwned by"))?;
    let own = forge.open_pull_request("ours", |copy| copy.write("README.local", "nothing"))?;
    forge
        .status_becomes(&own.head_commit, PREVIEW, "success", "")
        .await?;
    let comments = forge.comments(theirs.number);
    ensure!(
        comments.iter().all(|comment| !comment.contains("Pwned")),
        "{comments:#?}"
    );
    ensure!(world.api.metrics().await?.renders() == renders);
    forge.is_content()
}

/// What is reported needs no forge that answers at the first try, and is not reported twice.
#[tokio::test]
async fn a_comment_whose_answer_was_lost_is_not_written_twice() -> Result<()> {
    use longshore_e2e::forge::{Fault, Kind};
    for kind in [Kind::LoseAnswer, Kind::HalfBody] {
        let mut world = ForgeWorld::start(ForgeOptions::at(Host::GitHub)).await?;
        world.enrolled("store-0001").await?;
        let lost = Fault::every(kind).on(http::Method::POST, "/comments");
        world.forge.set_fault(lost.times(1));
        let pull = world.forge.open_pull_request("greet", greet("Hola"))?;
        world
            .forge
            .status_becomes(&pull.head_commit, PREVIEW, "success", "2 devices")
            .await?;
        // A restart finds the comment, too.
        world.controller.kill();
        world.controller.start_again().await?;
        world.forge.edit("greet", |copy| {
            copy.replace("groups/kiosk/page.yaml", "Hola", "Adios")
        })?;
        comment_says(&world.forge, pull.number, &["Adios"]).await?;
        world.forge.is_content()?;
    }
    Ok(())
}
