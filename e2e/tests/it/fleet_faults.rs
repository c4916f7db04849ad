//! Fleets in which some devices misbehave, and whose store stalls: everybody else gets what the repo says, and the
//! controller's memory stays bounded.
//!
//! `LONGSHORE_SEED` repeats a run, `LONGSHORE_FAULT_DEVICES` makes it larger.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use longshore_agent::sim::{
    Simulation,
    misbehave::{Misbehavior, misbehave},
    repo::{self, Overlays, Shape},
};
use longshore_e2e::{
    ControllerOptions, World, WorldOptions, eventually, postgres,
    simulated::{FleetOptions, until},
};
use sqlx::{Connection as _, Executor as _, PgConnection, SqliteConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const DEVICES: usize = 100;
const GROUPS: usize = 3;
/// Of each kind.
const MISBEHAVING: usize = 2;
/// How long the store stands still.
const STALL: Duration = Duration::from_secs(10);
/// For everybody to get there, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// How much more memory the controller may take than it did with a well-behaved fleet, in bytes, beside what each
/// device may cost.
const MARGIN: u64 = 48 * 1024 * 1024;
const MARGIN_PER_DEVICE: u64 = 64 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_suffers_from_those_that_misbehave() -> Result<()> {
    faults(None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_suffers_from_those_that_misbehave_with_postgresql() -> Result<()> {
    faults(Some(postgres::new_database()?)).await
}

async fn faults(database_url: Option<String>) -> Result<()> {
    let seed = number("LONGSHORE_SEED").unwrap_or_else(rand::random);
    eprintln!("LONGSHORE_SEED={seed}");
    let devices = match number("LONGSHORE_FAULT_DEVICES") {
        Some(devices) => usize::try_from(devices)?,
        None => DEVICES,
    };
    let mut world = World::with(WorldOptions {
        empty: true,
        controller: ControllerOptions {
            database_url: database_url.clone(),
            // Devices that are half gone are noticed soon.
            arguments: vec!["--heartbeat".into(), "3s".into()],
            ..ControllerOptions::default()
        },
        ..WorldOptions::default()
    })
    .await?;
    let mut options = FleetOptions {
        shape: Shape {
            overlays: Overlays::Shared(GROUPS),
            objects: 6,
            layers: 1,
            // A device that asks for all of it asks for much.
            ballast: 100 * 1024,
        },
        seed,
        ..FleetOptions::of(devices)
    };
    options.behavior.flap_every = Duration::from_secs(2);
    let simulation = world.simulate(&options).await?;
    until(&simulation, "all in sync", PATIENCE, |now| {
        now.in_sync == devices
    })
    .await?;

    let memory = Memory::watch(&mut world, devices)?;
    // The first ones of the fleet misbehave; the fleet's own clients of their identities are gone.
    let bad = Misbehavior::ALL.len() * MISBEHAVING;
    let stop = CancellationToken::new();
    let mut misbehaving = JoinSet::new();
    for index in 0..bad {
        simulation.unplug(index);
        let identity = simulation.board().identity(index).context("an identity")?;
        let how = *Misbehavior::ALL
            .get(index % Misbehavior::ALL.len())
            .context("a misbehavior")?;
        let (stop, seed) = (stop.clone(), seed.wrapping_add(index as u64));
        misbehaving.spawn(async move { (how, misbehave(&identity, how, seed, &stop).await) });
    }
    simulation.behave(|behavior| behavior.flapping = 0.05);

    for version in 1..=3 {
        spreads(&world, &simulation, bad, version).await?;
    }
    let stall = Stall::begin(&world, database_url.as_deref()).await?;
    let commit = publish(&world, 4)?;
    tokio::time::sleep(STALL).await;
    drop(stall);
    arrives(&simulation, bad, &commit).await?;
    spreads(&world, &simulation, bad, 5).await?;

    stop.cancel();
    while let Some(ended) = misbehaving.join_next().await {
        let (how, tally) = ended?;
        let tally = tally?;
        eprintln!("{how:?}: {tally:?}");
        ensure!(tally.connections > 0, "{how:?} was never let in");
    }
    simulation.behave(|behavior| behavior.flapping = 0.0);
    for index in 0..bad {
        simulation.plug_in(index);
    }
    let commit = publish(&world, 6)?;
    arrives(&simulation, 0, &commit).await?;
    eventually("the controller knows that all are in sync", async || {
        let counts = world.api.fleet().await?.devices;
        ensure!(usize::try_from(counts.in_sync)? == devices, "{counts:?}");
        Ok(())
    })
    .await?;
    memory.check()?;
    simulation.stop().await;
    world.controller.stop().await
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// A commit that changes all devices.
fn publish(world: &World, version: u32) -> Result<String> {
    let copy = world.repo.copy();
    for group in 0..GROUPS {
        let file = format!("{}/own.yaml", repo::group_folder(group));
        copy.write(&file, repo::own_object(&format!("version {version}")))?;
    }
    copy.publish(&format!("Version {version}"))
}

async fn spreads(world: &World, simulation: &Simulation, bad: usize, version: u32) -> Result<()> {
    let commit = publish(world, version)?;
    arrives(simulation, bad, &commit).await
}

/// Waits until all but the first `bad` devices have applied the commit, those that flap included.
async fn arrives(simulation: &Simulation, bad: usize, commit: &str) -> Result<()> {
    let board = simulation.board();
    let begun = Instant::now();
    let good = board.len() - bad;
    let applied = || {
        (bad..board.len())
            .filter_map(|index| board.applied(index))
            .filter(|applied| *applied.revision == *commit)
            .count()
    };
    until(simulation, "a commit everywhere", PATIENCE, |_| {
        applied() == good
    })
    .await
    .with_context(|| format!("{} of {good} devices applied {commit}", applied()))?;
    eprintln!("applied by {good} devices after {:?}", begun.elapsed());
    Ok(())
}

/// The controller's memory, looked at again and again.
struct Memory {
    bound: u64,
    most: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Memory {
    fn watch(world: &mut World, devices: usize) -> Result<Self> {
        let before = world.controller.process()?.resident_memory()?;
        let id = world.controller.process()?.id();
        let memory = Self {
            bound: before + MARGIN + MARGIN_PER_DEVICE * u64::try_from(devices)?,
            most: Arc::default(),
            stop: CancellationToken::new(),
        };
        let (most, stop) = (memory.most.clone(), memory.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let mut look = tokio::time::interval(Duration::from_millis(200));
            loop {
                look.tick().await;
                if let Ok(now) = longshore_e2e::process::resident_memory(id) {
                    most.fetch_max(now, Ordering::Relaxed);
                }
            }
        }));
        Ok(memory)
    }

    fn check(&self) -> Result<()> {
        let most = self.most.load(Ordering::Relaxed);
        eprintln!("at most {most} bytes resident, and {} allowed", self.bound);
        ensure!(most > 0, "nobody looked");
        ensure!(
            most <= self.bound,
            "the controller took {most} bytes, more than {}",
            self.bound
        );
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Somebody else holds the store's locks, until this is dropped.
#[expect(dead_code, reason = "the connections are held, not used")]
enum Stall {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Stall {
    async fn begin(world: &World, database_url: Option<&str>) -> Result<Self> {
        if let Some(url) = database_url {
            let mut connection = PgConnection::connect(url).await?;
            connection.execute("BEGIN").await?;
            connection
                .execute("LOCK TABLE devices, desired, observed IN ACCESS EXCLUSIVE MODE")
                .await?;
            return Ok(Self::Postgres(connection));
        }
        let file = world.controller.data_dir().join("longshore.db");
        let url = format!("sqlite://{}", file.display());
        let mut connection = SqliteConnection::connect(&url).await?;
        connection.execute("PRAGMA busy_timeout = 20000").await?;
        connection.execute("BEGIN IMMEDIATE").await?;
        Ok(Self::Sqlite(connection))
    }
}
