//! The first thing that newcomers run.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{Process, eventually, programs};
use serde_json::Value;

fn demo(temporary: &Path) -> Result<Command> {
    let mut command = Command::new(programs::find("longshore-demo")?);
    command.env("TMPDIR", temporary);
    Ok(command)
}

#[test]
fn once_shows_it_all_and_ends_with_its_times() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let output = demo(directory.path())?.arg("--once").output()?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        !text.contains('\u{1b}'),
        "no colors where nobody sees them:\n{text}"
    );
    for part in [
        "longshore/enroll/store-0001",
        "+  publicKey: sha256:",
        "Fresh fish today",
    ] {
        ensure!(text.contains(part), "no {part} in:\n{text}");
    }
    let last: Value = serde_json::from_str(text.lines().last().context("a last line")?)?;
    for time in ["registered_ms", "enrolled_ms", "commit_to_applied_ms"] {
        ensure!(
            last[time].as_u64().is_some_and(|time| time < 60_000),
            "{last}"
        );
    }
    ensure!(
        fs::read_dir(directory.path())?.next().is_none(),
        "nothing is left behind"
    );
    Ok(())
}

#[tokio::test]
async fn it_stays_up_until_it_is_stopped() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let temporary = directory.path().join("tmp");
    fs::create_dir(&temporary)?;
    let log = directory.path().join("log");
    let mut process = Process::start("longshore-demo", &mut demo(&temporary)?, &log)?;
    eventually("what to try next", async || {
        process.check()?;
        ensure!(
            process.log().contains("devices approve store-0002"),
            "{}",
            process.log()
        );
        Ok(())
    })
    .await?;
    // What it suggests works: another commit, and a look at it.
    let text = process.log();
    let copy = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("$ cd "))
        .and_then(|rest| rest.split_whitespace().next())
        .context("the path of the working copy")?;
    let copy = Path::new(copy);
    let git = |arguments: &[&str]| longshore_e2e::repo::git(copy, arguments.iter());
    git(&["pull", "--quiet"])?;
    let page = copy.join("groups/kiosk/page.yaml");
    fs::write(
        &page,
        fs::read_to_string(&page)?.replace("Fresh fish", "Fresh bread"),
    )?;
    git(&["commit", "--quiet", "-am", "My change"])?;
    git(&["push", "--quiet"])?;
    let commit = git(&["rev-parse", "HEAD"])?;
    eventually("the change is told", async || {
        let log = process.log();
        ensure!(
            log.contains(&format!(
                "store-0001 applied generation 3 of commit {}",
                &commit[..12]
            )),
            "{log}"
        );
        Ok(())
    })
    .await?;
    let status = process.stop().await?;
    ensure!(status.success(), "{status}");
    ensure!(
        fs::read_dir(&temporary)?.next().is_none(),
        "nothing is left behind"
    );
    Ok(())
}
