//! SIGKILL at random moments of enrollment, render, push, ledger write and apply; afterwards all is well.
//!
//! `LONGSHORE_SEED=<printed seed>` repeats the choices (not the machine's scheduling).

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{Agent, Api, World, WorldOptions, api::is_in_sync, postgres, wait::within};
use longshore_protocol::{
    Digest, Generation,
    api::{Approval, DeviceState},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

const DEVICES: usize = 4;

/// What must never change: one generation has one digest, and generations never fall.
#[derive(Default)]
pub struct Witness {
    digests: BTreeMap<(String, Generation), Digest>,
    last: BTreeMap<String, Generation>,
    ids: BTreeMap<String, String>,
}

impl Witness {
    /// Looks at all devices.
    pub async fn look(&mut self, api: &Api) -> Result<()> {
        // A controller that is down tells nothing.
        let Ok(devices) = api.devices().await else {
            return Ok(());
        };
        for device in devices {
            let name = device.name.to_string();
            let id = self
                .ids
                .entry(name.clone())
                .or_insert_with(|| device.id.to_string());
            ensure!(
                *id == device.id.as_str(),
                "{name} was {id}, is {}",
                device.id
            );
            let desired = device.desired.map(|it| (it.generation, it.digest));
            let observed = device.observed.map(|it| (it.generation, it.digest));
            for (generation, digest) in desired.into_iter().chain(observed) {
                let known = *self
                    .digests
                    .entry((name.clone(), generation))
                    .or_insert(digest);
                ensure!(
                    known == digest,
                    "{name}: generation {generation:?} has two digests"
                );
            }
            if let Some((generation, _)) = desired {
                let last = self.last.entry(name.clone()).or_insert(generation);
                ensure!(
                    *last <= generation,
                    "{name}: from {last:?} back to {generation:?}"
                );
                *last = generation;
            }
        }
        Ok(())
    }
}

async fn chaos(options: WorldOptions, fury: Duration) -> Result<()> {
    let seed = env::var("LONGSHORE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random::<u64>);
    eprintln!("LONGSHORE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::with(options).await?;
    let token = world
        .api
        .create_token_with(Approval::Automatic, |token| {
            token.max_uses = u32::try_from(DEVICES).ok();
        })
        .await?;
    let manual = world.api.create_token(Approval::Manual).await?;
    let mut agents: Vec<Agent> = Vec::new();
    let mut witness = Witness::default();
    let mut version = 0;
    let end = Instant::now() + fury;
    let mut kills = (0, 0);
    while Instant::now() < end {
        match random.random_range(0..10) {
            // More devices, as long as there are more.
            0..=2 if agents.len() < DEVICES => {
                let name = format!("store-{:04}", agents.len());
                agents.push(world.agent(&name, &token)?);
            }
            0..=4 => {
                version += 1;
                publish(&world, version)?;
            }
            5..=6 => {
                kills.0 += 1;
                world.controller.kill();
                pause(&mut random, 200).await;
                world.controller.spawn()?;
            }
            _ if !agents.is_empty() => {
                kills.1 += 1;
                let chosen = random.random_range(0..agents.len());
                let agent = agents.get_mut(chosen).context("an agent")?;
                agent.kill();
                pause(&mut random, 200).await;
                agent.start_again()?;
            }
            _ => {}
        }
        pause(&mut random, 500).await;
        witness.look(&world.api).await?;
    }
    // It is over; everything that was asked for must come true.
    world.controller.ready().await?;
    world.api = world.controller.api()?;
    while agents.len() < DEVICES {
        let name = format!("store-{:04}", agents.len());
        agents.push(world.agent(&name, &token)?);
    }
    version += 1;
    publish(&world, version)?;
    eprintln!(
        "{version} commits, {} kills of the controller, {} of agents",
        kills.0, kills.1
    );
    for agent in &mut agents {
        within(Duration::from_mins(1), "convergence", async || {
            agent.process()?.check()?;
            let device = world.api.device(agent.name()).await?;
            ensure!(device.connected && is_in_sync(&device), "{device:#?}");
            ensure!(
                agent
                    .manifest(longshore_e2e::agent::PAGE)?
                    .contains(&text(version))
            );
            Ok(())
        })
        .await
        .with_context(|| format!("seed {seed}"))?;
    }
    witness.look(&world.api).await?;
    let devices = world.api.devices().await?;
    ensure!(devices.len() == DEVICES, "lost or doubled: {devices:#?}");
    ensure!(
        devices
            .iter()
            .all(|device| device.state == DeviceState::Active)
    );
    let tokens = world.api.tokens().await?;
    let used = tokens
        .iter()
        .find(|it| it.id == token.token.id)
        .context("the token is lost")?;
    ensure!(
        used.uses == u32::try_from(DEVICES)?,
        "every device used it once: {used:?}"
    );
    ensure!(
        tokens.iter().any(|it| it.id == manual.token.id) && tokens.len() == 2,
        "{tokens:?}"
    );
    for agent in &agents {
        let logged = agent.log();
        ensure!(!logged.contains("panicked"), "{logged}");
    }
    ensure!(
        !world.controller.log().contains("panicked"),
        "the controller panicked"
    );
    Ok(())
}

fn text(version: u32) -> String {
    format!("Version {version} of")
}

fn publish(world: &World, version: u32) -> Result<()> {
    let copy = world.repo.copy();
    copy.pull()?;
    let page = copy.read("groups/kiosk/page.yaml")?;
    let line = page
        .lines()
        .find(|line| line.contains("<h1>"))
        .context("a heading")?;
    let heading = format!("    <h1>{} ${{SHOP:=Our shop}}</h1>", text(version));
    copy.replace("groups/kiosk/page.yaml", line, &heading)?;
    copy.publish(&text(version)).map(drop)
}

/// Until a random moment: here time itself is what is tested.
async fn pause(random: &mut StdRng, most: u64) {
    tokio::time::sleep(Duration::from_millis(random.random_range(0..most))).await;
}

#[tokio::test]
async fn killing_anything_converges() -> Result<()> {
    chaos(WorldOptions::default(), Duration::from_secs(20)).await
}

#[tokio::test]
async fn killing_anything_converges_with_postgresql() -> Result<()> {
    let mut options = WorldOptions::default();
    options.controller.database_url = Some(postgres::new_database()?);
    chaos(options, Duration::from_secs(10)).await
}
