//! Several controllers on one database: any serves any device, one works for a fleet, and each stands in for the others.

use std::{
    env,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    Agent, Api, Controller, ControllerOptions, Replicas, api::is_in_sync, eventually,
    postgres::allow_connections, process, wait::within,
};
use longshore_protocol::api::{Approval, Device, DeviceState};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rustix::process::Signal;

use crate::chaos::Witness;

/// Within this time a dead replica's fleets and devices are with another.
const FAILOVER: Duration = Duration::from_secs(10);

fn publish(replicas: &Replicas, text: &str) -> Result<String> {
    let copy = replicas.repo.copy();
    copy.pull()?;
    let page = copy.read("groups/kiosk/page.yaml")?;
    let line = page
        .lines()
        .find(|line| line.contains("<h1>"))
        .context("a heading")?;
    let heading = format!("    <h1>{text} ${{SHOP:=Our shop}}</h1>");
    copy.replace("groups/kiosk/page.yaml", line, &heading)?;
    copy.publish(text)
}

fn generation(device: &Device) -> Option<u64> {
    device.desired.as_ref().map(|it| it.generation.number())
}

async fn in_sync(api: &Api, name: &str) -> Result<Device> {
    eventually("the device is connected and in sync", async || {
        let device = api.device(name).await?;
        ensure!(device.connected && is_in_sync(&device), "{device:#?}");
        Ok(device)
    })
    .await
}

/// Which commits the revisions are of, oldest first; one that is there twice was worked on by two.
async fn commits(api: &Api) -> Result<Vec<String>> {
    let revisions = api.revisions().await?;
    Ok(revisions.into_iter().rev().map(|it| it.commit).collect())
}

#[tokio::test]
async fn a_device_is_served_by_a_replica_that_does_not_work_for_its_fleet() -> Result<()> {
    let mut replicas = Replicas::start(2).await?;
    let holder = eventually("one works for the fleet", async || replicas.holder().await).await?;
    let other = 1 - holder;
    replicas.prefer(other)?;
    // Enrolled, approved and connected at the other, while the holder approves and renders.
    let agent = replicas.enrolled("store-0001", other).await?;
    let metrics = replicas.api(other)?.metrics().await?;
    ensure!(metrics.count("sessions") == 1 && metrics.renders() == 0);

    replicas.prefer(holder)?;
    let local = replicas.enrolled("store-0002", holder).await?;
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for text in ["First", "Second", "Third", "Fourth", "Fifth"] {
        publish(&replicas, text)?;
        let pushed = Instant::now();
        let shown = async |agent: &Agent, times: &mut Vec<Duration>| {
            agent.page_shows(&format!("{text} Our shop")).await?;
            times.push(pushed.elapsed());
            Ok::<_, anyhow::Error>(())
        };
        tokio::try_join!(shown(&local, &mut here), shown(&agent, &mut there))?;
    }
    eprintln!("from push to applied: at the holder {here:?}, at the other {there:?}");
    // What an operator asks one replica for, the other one knows.
    let device = in_sync(&replicas.api(holder)?, "store-0001").await?;
    ensure!(generation(&device) == Some(6), "{device:#?}");
    let answer = replicas
        .api(holder)?
        .decide("store-0001", "decommission")
        .await?;
    ensure!(answer.state == DeviceState::Decommissioned);
    eventually("the session at the other has ended", async || {
        let metrics = replicas.api(other)?.metrics().await?;
        ensure!(metrics.count("sessions") == 0);
        Ok(())
    })
    .await?;

    // Asked to stop, the holder gives the fleet back; nobody waits for a lease to run out.
    let began = Instant::now();
    replicas.controller(holder)?.stop().await?;
    eventually("the other works for the fleet", async || {
        ensure!(replicas.api(other)?.metrics().await?.count("leases") == 1);
        Ok(())
    })
    .await?;
    eprintln!("a stopped replica's fleet moved in {:?}", began.elapsed());
    let log = replicas.controller(other)?.log();
    ensure!(!log.contains("lost the lease"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_killed_holders_fleets_and_devices_move() -> Result<()> {
    let mut replicas = Replicas::start(2).await?;
    let holder = eventually("one works for the fleet", async || replicas.holder().await).await?;
    let other = 1 - holder;
    replicas.prefer(holder)?;
    let agent = replicas.enrolled("store-0001", other).await?;
    let api = replicas.api(other)?;
    let before = api.device("store-0001").await?;

    let killed = Instant::now();
    replicas.controller(holder)?.kill();
    within(FAILOVER, "the fleet moves", async || {
        ensure!(api.metrics().await?.count("leases") == 1);
        Ok(())
    })
    .await?;
    eprintln!("the fleet moved in {:?}", killed.elapsed());
    in_sync(&api, "store-0001").await?;
    eprintln!("the device moved in {:?}", killed.elapsed());
    publish(&replicas, "After the kill")?;
    agent.page_shows("After the kill Our shop").await?;
    let after = in_sync(&api, "store-0001").await?;
    ensure!(generation(&after) == generation(&before).map(|it| it + 1));
    ensure!(api.metrics().await?.renders() == 1, "one build was new");
    let commits = commits(&api).await?;
    ensure!(
        commits
            .iter()
            .collect::<std::collections::BTreeSet<_>>()
            .len()
            == commits.len(),
        "{commits:?}"
    );

    // What comes back gets no fleet by force, and devices may come to it again.
    replicas.controller(holder)?.start_again().await?;
    replicas.prefer(holder)?;
    let second = replicas.enrolled("store-0002", holder).await?;
    publish(&replicas, "With both")?;
    agent.page_shows("With both Our shop").await?;
    second.page_shows("With both Our shop").await?;
    ensure!(replicas.holder().await? == other);
    Ok(())
}

#[tokio::test]
async fn a_holder_that_stood_still_writes_nothing() -> Result<()> {
    let mut replicas = Replicas::start(2).await?;
    let holder = eventually("one works for the fleet", async || replicas.holder().await).await?;
    let other = 1 - holder;
    replicas.prefer(other)?;
    let agent = replicas.enrolled("store-0001", other).await?;
    let api = replicas.api(other)?;
    let before = api.device("store-0001").await?;

    // It has seen the commit, or not; it may be in the middle of anything.
    publish(&replicas, "Overtaken")?;
    replicas
        .controller(holder)?
        .process()?
        .signal(Signal::STOP)?;
    eventually("the fleet moves", async || {
        ensure!(api.metrics().await?.count("leases") == 1);
        Ok(())
    })
    .await?;
    publish(&replicas, "Moved")?;
    agent.page_shows("Moved Our shop").await?;
    let moved = in_sync(&api, "store-0001").await?;
    replicas
        .controller(holder)?
        .process()?
        .signal(Signal::CONT)?;
    eventually("it knows that it was overtaken", async || {
        let log = replicas.controllers[holder].log();
        ensure!(log.contains("lost the lease") || log.contains("the leases run out"));
        ensure!(replicas.holder().await? == other);
        Ok(())
    })
    .await?;
    publish(&replicas, "Both awake")?;
    agent.page_shows("Both awake Our shop").await?;
    let after = in_sync(&api, "store-0001").await?;
    ensure!(generation(&after) == generation(&moved).map(|it| it + 1));
    ensure!(generation(&moved) <= generation(&before).map(|it| it + 2));
    let commits = commits(&api).await?;
    let last: Vec<_> = commits.iter().rev().take(2).collect();
    ensure!(last[0] != last[1] && commits.len() <= 5, "{commits:?}");
    Ok(())
}

#[tokio::test]
async fn a_database_that_was_away_splits_nothing() -> Result<()> {
    let mut replicas = Replicas::start(2).await?;
    let holder = eventually("one works for the fleet", async || replicas.holder().await).await?;
    let agent = replicas.enrolled("store-0001", holder).await?;
    let before = replicas.api(holder)?.device("store-0001").await?;
    allow_connections(&replicas.database_url, false)?;
    publish(&replicas, "Meanwhile")?;
    eventually("the holder stops its work", async || {
        let log = replicas.controllers[holder].log();
        ensure!(log.contains("the leases run out"));
        Ok(())
    })
    .await?;
    allow_connections(&replicas.database_url, true)?;
    agent.page_shows("Meanwhile Our shop").await?;
    eventually("one works for the fleet", async || replicas.holder().await).await?;
    for n in 0..2 {
        let after = in_sync(&replicas.api(n)?, "store-0001").await?;
        ensure!(generation(&after) == generation(&before).map(|it| it + 1));
    }
    for controller in &mut replicas.controllers {
        controller.process()?.check()?;
    }
    Ok(())
}

#[tokio::test]
async fn a_replica_with_another_key_is_refused() -> Result<()> {
    let mut replicas = Replicas::start(1).await?;
    let url = replicas.database_url.clone();
    let options = ControllerOptions {
        database_url: Some(url),
        ..ControllerOptions::default()
    };
    let data = replicas.path().join("stranger");
    let any = || SocketAddr::from(([127, 0, 0, 1], 0));
    let mut stranger = Controller::at(&data, options, (any(), any()));
    stranger.spawn()?;
    let status = stranger.process()?.exit().await?;
    ensure!(status.code() == Some(1), "{status}");
    let log = stranger.log();
    ensure!(log.contains("LONGSHORE_SECRET_KEY"), "{log}");
    replicas.controller(0)?.process()?.check()
}

/// `LONGSHORE_SEED=<printed seed>` repeats the choices (not the machine's scheduling).
#[tokio::test]
async fn killing_replicas_converges() -> Result<()> {
    const DEVICES: usize = 3;
    let seed = env::var("LONGSHORE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random::<u64>);
    eprintln!("LONGSHORE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut replicas = Replicas::start(2).await?;
    let token = replicas.api(0)?.create_token(Approval::Automatic).await?;
    let mut agents = Vec::new();
    let mut witness = Witness::default();
    let (mut version, mut kills) = (0, 0);
    let end = Instant::now() + Duration::from_secs(12);
    while Instant::now() < end {
        let one = random.random_range(0..2);
        match random.random_range(0..10) {
            0..=2 if agents.len() < DEVICES => {
                let name = format!("store-{:04}", agents.len());
                agents.push(replicas.agent(&name, &token)?);
            }
            0..=4 => {
                version += 1;
                publish(&replicas, &format!("Version {version} of"))?;
            }
            5..=6 => replicas.prefer(one)?,
            _ => {
                kills += 1;
                replicas.controller(one)?.kill();
                pause(&mut random, 1000).await;
                replicas.controller(one)?.spawn()?;
            }
        }
        pause(&mut random, 500).await;
        for n in 0..2 {
            witness.look(&replicas.api(n)?).await?;
        }
    }
    for controller in &mut replicas.controllers {
        controller.ready().await?;
    }
    while agents.len() < DEVICES {
        let name = format!("store-{:04}", agents.len());
        agents.push(replicas.agent(&name, &token)?);
    }
    version += 1;
    publish(&replicas, &format!("Version {version} of"))?;
    eprintln!("{version} commits, {kills} kills");
    for agent in &mut agents {
        let page = agent.page_shows(&format!("Version {version} of")).await;
        page.with_context(|| format!("seed {seed}"))?;
    }
    for n in 0..2 {
        let api = replicas.api(n)?;
        for agent in &agents {
            in_sync(&api, agent.name()).await?;
        }
        witness.look(&api).await?;
        let devices = api.devices().await?;
        ensure!(devices.len() == DEVICES, "lost or doubled: {devices:#?}");
        let used = api.tokens().await?;
        let expected = u32::try_from(DEVICES)?;
        ensure!(used.iter().all(|it| it.uses == expected), "{used:?}");
    }
    eventually("one works for the fleet", async || replicas.holder().await).await?;
    for controller in &replicas.controllers {
        let log = controller.log();
        ensure!(!log.contains("panicked"), "{}", process::tail(&log, 4096));
    }
    Ok(())
}

/// Until a random moment: here time itself is what is tested.
async fn pause(random: &mut StdRng, most: u64) {
    tokio::time::sleep(Duration::from_millis(random.random_range(0..most))).await;
}

#[tokio::test]
async fn a_new_holder_does_not_act_on_what_it_saw_long_ago() -> Result<()> {
    let mut replicas = Replicas::start(2).await?;
    let holder = eventually("one works for the fleet", async || replicas.holder().await).await?;
    let other = 1 - holder;
    replicas.prefer(holder)?;
    // The other one was there before the device was, and comes back when nobody can be asked.
    replicas.controller(other)?.kill();
    let agent = replicas.enrolled("store-0001", holder).await?;
    let before = replicas.api(holder)?.device("store-0001").await?;
    replicas.controller(holder)?.kill();
    let away = replicas.path().join("away.git");
    let bare = replicas.repo.bare().to_owned();
    std::fs::rename(&bare, &away)?;
    replicas.controller(other)?.start_again().await?;
    let api = replicas.api(other)?;
    eventually("it works for the fleet, and cannot see it", async || {
        ensure!(api.metrics().await?.count("leases") == 1);
        let conditions = api.fleet().await?.conditions;
        let unseen = conditions
            .iter()
            .any(|it| it.kind == "SourceReady" && it.reason == "Unreachable");
        ensure!(unseen, "{conditions:#?}");
        Ok(())
    })
    .await?;
    let device = api.device("store-0001").await?;
    ensure!(device.state == DeviceState::Active, "{device:#?}");
    ensure!(generation(&device) == generation(&before), "{device:#?}");
    std::fs::rename(&away, &bare)?;
    publish(&replicas, "Seen again")?;
    agent.page_shows("Seen again Our shop").await
}
