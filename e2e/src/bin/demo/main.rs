//! `scripts/demo`: Longshore in one minute, with real parts.
//!
//! What it shows goes to stdout. With `--once` the last line is one JSON object:
//!
//! - `registered_ms`: from the start of the agent to its branch in the repo;
//! - `enrolled_ms`: from the start of `git push` of the merge to manifests on the device;
//! - `commit_to_applied_ms`: from the start of `git push` of a change to the change on the device.

mod stage;

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use longshore_e2e::{Agent, World, agent::PAGE, api::is_in_sync, eventually, programs};
use longshore_protocol::api::CreatedToken;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use self::stage::Stage;

const DEVICE: &str = "store-0001";
const BRANCH: &str = "longshore/enroll/store-0001";

/// Shows a device enroll, a merge approve it, and a commit reach it.
#[derive(Debug, Parser)]
#[command(name = "scripts/demo")]
struct Arguments {
    /// Do it all unattended, stop, and end stdout with one line of JSON
    #[arg(long)]
    once: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match show(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripts/demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn show(arguments: &Arguments) -> Result<()> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut stage = Stage::new();
    let stopped = async {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    };
    tokio::pin!(stopped);
    let (mut world, mut agent, times) = tokio::select! {
        played = play(&mut stage) => played?,
        () = &mut stopped => {
            stage.line("")?;
            return Ok(());
        }
    };
    if !arguments.once {
        next_steps(&stage, &world, &agent).await?;
        tokio::select! {
            ended = follow(&mut stage, &world) => ended?,
            () = &mut stopped => {}
        }
        stage.line("")?;
    }
    agent.stop().await?;
    world.controller.stop().await?;
    world.controller.be_quiet();
    drop((agent, world));
    stage.line(&stage.dim("stopped; everything was in a temporary directory, which is gone"))?;
    if arguments.once {
        let line = json!({
            "registered_ms": times.registered.as_millis(),
            "enrolled_ms": times.enrolled.as_millis(),
            "commit_to_applied_ms": times.applied.as_millis(),
        });
        stage.line(&line.to_string())?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, Default)]
struct Times {
    registered: Duration,
    enrolled: Duration,
    applied: Duration,
}

async fn play(stage: &mut Stage) -> Result<(World, Agent, Times)> {
    let mut times = Times::default();
    stage.title("Longshore: from `git push` to a device")?;

    stage.step("A fleet repo, and a controller that follows it")?;
    let world = World::start().await?;
    let status = world.cli_json(&["status"]).await?;
    let renderer = status.get("renderer").and_then(serde_json::Value::as_str);
    stage.fact("repo", &world.repo.bare().display().to_string())?;
    stage.fact("controller", world.api.server())?;
    let data = world.controller.data_dir().display();
    stage.fact("data", &format!("{data} (embedded store)"))?;
    stage.fact("renders with", renderer.unwrap_or("?"))?;

    let mut agent = ask(stage, &world, &mut times).await?;
    approve(stage, &world, &mut agent, &mut times).await?;
    change(stage, &world, &mut agent, &mut times).await?;

    stage.command("longshore", &["devices", "list"])?;
    let list = world.cli(&["devices", "list"]).await?.success()?;
    for line in list.stdout.lines() {
        stage.quote(line)?;
    }
    stage.line("")?;
    Ok((world, agent, times))
}

async fn ask(stage: &mut Stage, world: &World, times: &mut Times) -> Result<Agent> {
    stage.step("A token lets new devices ask to enroll")?;
    let create = [
        &["tokens", "create", "--label", "demo"][..],
        &["--overlay", "groups/kiosk", "--set-label", "site=madrid"],
    ]
    .concat();
    stage.command("longshore", &create)?;
    let token: CreatedToken = serde_json::from_value(world.cli_json(&create).await?)?;

    stage.step("A device starts its agent, and asks")?;
    let begun = Instant::now();
    let mut agent = world.agent(DEVICE, &token)?;
    eventually("the device's branch", async || {
        agent.process()?.check()?;
        world.repo.has_branch(BRANCH)
    })
    .await?;
    times.registered = begun.elapsed();
    let device = world.api.device(DEVICE).await?;
    stage.fact("its key", &device.public_key.to_string())?;
    stage.fact("new branch", BRANCH)?;
    stage.time("asked", times.registered)?;
    let copy = world.repo.copy();
    copy.git(["fetch", "--quiet", "origin"])?;
    let difference = ["diff", "main...origin/longshore/enroll/store-0001"];
    stage.command("git", &difference)?;
    stage.diff(&copy.git(difference)?)?;
    Ok(agent)
}

async fn approve(
    stage: &mut Stage,
    world: &World,
    agent: &mut Agent,
    times: &mut Times,
) -> Result<()> {
    stage.step("Somebody compares the key and merges the branch: that is the approval")?;
    stage.command("git", &["merge", "origin/longshore/enroll/store-0001"])?;
    stage.command("git", &["push"])?;
    let begun = Instant::now();
    world.repo.copy().merge(BRANCH)?;
    agent.page_shows("Welcome to Our shop").await?;
    times.enrolled = begun.elapsed();
    stage.time(
        "certificate issued, manifests on the device",
        times.enrolled,
    )?;
    stage.command("ls", &[&agent.directory().display().to_string()])?;
    world.api.in_sync(DEVICE).await?;
    for name in agent.manifests()?.into_keys() {
        stage.quote(&name)?;
    }
    Ok(())
}

async fn change(
    stage: &mut Stage,
    world: &World,
    agent: &mut Agent,
    times: &mut Times,
) -> Result<()> {
    stage.step("A commit changes what the device should run")?;
    let copy = world.repo.copy();
    let before = agent.manifest(PAGE)?;
    copy.replace(
        "groups/kiosk/page.yaml",
        "<h1>Welcome to ${SHOP:=Our shop}</h1>",
        "<h1>Fresh fish today at ${SHOP:=Our shop}</h1>",
    )?;
    copy.commit("Fresh fish today")?;
    let commit = ["commit", "--all", "--message", "Fresh fish today"];
    stage.command("git", &commit)?;
    stage.diff(&copy.git(["diff", "--unified=0", "HEAD~1"])?)?;
    stage.command("git", &["push"])?;
    let begun = Instant::now();
    copy.push()?;
    let pushed = begun.elapsed();
    agent.page_shows("Fresh fish today").await?;
    times.applied = begun.elapsed();
    stage.time("from `git push` to applied on the device", times.applied)?;
    let part = format!(
        "      of which {} ms were `git push` itself",
        pushed.as_millis()
    );
    stage.line(&stage.dim(&part))?;
    let file = agent.directory().join(PAGE).display().to_string();
    stage.line(&stage.dim(&format!("      {file}")))?;
    stage.diff(&changed(&before, &agent.manifest(PAGE)?))?;
    world.api.in_sync(DEVICE).await.map(drop)
}

/// Says what arrives on devices, for ever.
async fn follow(stage: &mut Stage, world: &World) -> Result<()> {
    let mut known = BTreeMap::new();
    for device in world.api.devices().await? {
        known.insert(
            device.name.to_string(),
            (device.state, device.observed.map(|it| it.generation)),
        );
    }
    let mut clock = tokio::time::interval(Duration::from_millis(200));
    loop {
        clock.tick().await;
        for device in world.api.devices().await? {
            let name = device.name.to_string();
            let now = (
                device.state,
                device.observed.as_ref().map(|it| it.generation),
            );
            if known.get(&name) == Some(&now) || now.1.is_some() && !is_in_sync(&device) {
                continue;
            }
            let what = match &device.desired {
                Some(desired) if is_in_sync(&device) => format!(
                    "applied generation {} of commit {}",
                    desired.generation.number(),
                    desired.revision.get(..12).unwrap_or(&desired.revision)
                ),
                _ => format!("is {}", format!("{:?}", device.state).to_lowercase()),
            };
            stage.line(&format!("  {} {name} {what}", stage.green("●")))?;
            known.insert(name, now);
        }
    }
}

/// The lines that differ, as a diff has them.
fn changed(before: &str, after: &str) -> String {
    let mut text = String::new();
    for (from, other, mark) in [(before, after, '-'), (after, before, '+')] {
        for line in from
            .lines()
            .filter(|line| !other.lines().any(|it| it == *line))
        {
            // Writing to a `String` cannot fail.
            let _ok = writeln!(text, "{mark}{line}");
        }
    }
    text
}

/// What to try while everything is up.
async fn next_steps(stage: &Stage, world: &World, agent: &Agent) -> Result<()> {
    let longshore = shown_path(&programs::find("longshore")?);
    let agent_program = shown_path(&programs::find("longshore-agent")?);
    let copy = world.repo.copy().path().display();
    let bare = world.repo.bare().display();
    let data = world.controller.data_dir().display();
    let page = agent.directory().join(PAGE);
    let joining = world.path().join("agents/store-0002");
    fs::create_dir_all(&joining).context("make a directory for another device")?;
    let joining = joining.display();
    let create = [
        "tokens",
        "create",
        "--label",
        "try",
        "--overlay",
        "groups/kiosk",
    ];
    let token: CreatedToken = serde_json::from_value(world.cli_json(&create).await?)?;
    let CreatedToken {
        server,
        ca_fingerprint,
        secret,
        ..
    } = token;

    stage.title("Everything stays up until Ctrl-C. Try next:")?;
    stage.line("\n  Change something, and watch it arrive below")?;
    stage.suggest(&format!("cd {copy}        # or: git clone {bare}"))?;
    stage.suggest(
        "git pull && $EDITOR groups/kiosk/page.yaml && git commit -am 'My change' && git push",
    )?;
    stage.suggest(&format!("cat {}", page.display()))?;
    stage.line("\n  Look at it")?;
    stage.suggest(&format!("export LONGSHORE_DATA_DIR={data}"))?;
    stage.suggest(&format!("{longshore} devices show {DEVICE}"))?;
    stage.suggest(&format!("{longshore} status"))?;
    stage.suggest(&format!("{longshore} --help"))?;
    stage.line("\n  Add a device, and let it in")?;
    stage.suggest(&format!(
        "{agent_program} --name store-0002 --token {secret} \\"
    ))?;
    stage.quote(&format!(
        "  --server {server} --ca-fingerprint {ca_fingerprint} \\"
    ))?;
    stage.quote(&format!(
        "  --state-dir {joining}/state --directory {joining}/manifests"
    ))?;
    stage.suggest(&format!("{longshore} devices approve store-0002"))?;
    stage.line("")
}

/// Relative to where we are, where that is shorter.
fn shown_path(path: &Path) -> String {
    let here = env::current_dir().unwrap_or_default();
    path.strip_prefix(here)
        .unwrap_or(path)
        .display()
        .to_string()
}
