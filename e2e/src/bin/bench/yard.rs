//! A fleet of simulated devices under one controller, shared by benchmarks.

use std::{
    fs,
    num::NonZero,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use longshore_agent::sim::{
    Roster, Simulation,
    repo::{self, Overlays, Shape},
};
use longshore_e2e::{
    World, WorldOptions,
    process::CpuTime,
    programs,
    repo::git,
    simulated::{self, FleetOptions},
};
use longshore_protocol::DeviceName;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::report::{Report, milliseconds, say};

/// How long anything of a large fleet may take before a benchmark gives up.
pub(crate) const PATIENCE: Duration = Duration::from_mins(15);
/// How many overlays the devices share.
const GROUPS: usize = 12;
/// So many devices have an overlay of their own: those that single changes are for.
const SINGLES: usize = 20;
/// How often to look.
const LOOK: Duration = Duration::from_micros(500);

/// A controller and its simulated fleet.
pub(crate) struct Yard {
    pub(crate) world: World,
    pub(crate) simulation: Simulation,
    pub(crate) names: Vec<DeviceName>,
    pub(crate) report: Report,
    round: usize,
    /// From the start of the fleet to the moment when all devices were connected.
    pub(crate) enrolled_in: Duration,
    /// The processor time that the controller took for it.
    pub(crate) enrolled_for: CpuTime,
}

/// A commit that was pushed.
#[derive(Clone, Debug)]
pub(crate) struct Pushed {
    pub(crate) commit: String,
    /// When `git push` was started.
    pub(crate) begun: Instant,
    /// When the repo had the commit.
    pub(crate) landed: Instant,
}

impl Yard {
    /// So many devices, enrolled with an automatic token. They all run the first group.
    pub(crate) async fn enroll(report: &Report, devices: usize) -> Result<Self> {
        let report = report.with(&[("devices", json!(devices))]);
        raise_descriptor_limit(devices)?;
        say(&format!("enrolling {devices} simulated devices"));
        let mut world = World::with(WorldOptions {
            empty: true,
            ..WorldOptions::default()
        })
        .await?;
        // A ref that is packed meanwhile could not be watched.
        git(world.repo.bare(), ["config", "receive.autogc", "false"])?;
        let options = FleetOptions {
            shape: Shape {
                overlays: Overlays::Shared(GROUPS),
                ..Shape::default()
            },
            ..FleetOptions::of(devices)
        };
        let copy = world.repo.copy();
        options.shape.write_base(copy.path())?;
        let commit = copy.commit("A fleet")?;
        copy.push()?;
        world.api.sees(&commit).await?;
        let token = world.fleet_token(Some(repo::group_folder(0))).await?;
        let before = world.controller.process()?.cpu_time()?;
        let begun = Instant::now();
        let simulation = simulated::start(&options, &token, Roster::default())?;
        simulated::until(&simulation, "all connected", PATIENCE, |now| {
            now.connected == devices
        })
        .await?;
        let enrolled_in = begun.elapsed();
        let after = world.controller.process()?.cpu_time()?;
        let yard = Self {
            names: options.names()?,
            world,
            simulation,
            report,
            round: 0,
            enrolled_in,
            enrolled_for: CpuTime {
                own: after.own.saturating_sub(before.own),
                children: after.children.saturating_sub(before.children),
            },
        };
        yard.in_sync().await?;
        Ok(yard)
    }

    /// The same, spread over the groups with variables of their own, some with overlays of their own.
    pub(crate) async fn start(report: &Report, devices: usize) -> Result<Self> {
        let mut yard = Self::enroll(report, devices).await?;
        yard.spread_out().await?;
        Ok(yard)
    }

    /// How many devices there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Devices that have overlays of their own.
    pub(crate) fn singles(&self) -> usize {
        SINGLES.min(self.len() / 2)
    }

    /// Gives the devices their groups and variables, and some of them overlays of their own.
    pub(crate) async fn spread_out(&mut self) -> Result<()> {
        say("spreading the devices over shared overlays");
        self.world.repo.copy().pull()?;
        for index in 0..self.len() {
            if index < self.singles() {
                self.own_overlay(index)?;
            } else {
                let group = repo::group_folder(index % GROUPS);
                self.edit(index, &format!("  overlay: ../../{group}\n"))?;
            }
        }
        let pushed = self.push("Groups and variables").await?;
        self.all_apply(&pushed, self.len()).await?;
        self.in_sync().await
    }

    /// Gives a device an overlay of its own.
    pub(crate) fn own_overlay(&self, index: usize) -> Result<()> {
        self.edit(index, "")?;
        let folder = self.folder(index)?;
        let copy = self.world.repo.copy();
        copy.write(
            &format!("{folder}/kustomization.yaml"),
            Shape::default().overlay(),
        )?;
        copy.write(&format!("{folder}/own.yaml"), repo::own_object("start"))
    }

    /// Puts this into the device's file instead of its overlay, and variables behind it.
    fn edit(&self, index: usize, overlay: &str) -> Result<()> {
        let file = format!("{}/device.yaml", self.folder(index)?);
        let copy = self.world.repo.copy();
        let mut text = String::new();
        for line in copy.read(&file)?.lines() {
            if !line.starts_with("  overlay:") {
                text.extend([line, "\n"]);
            }
            if line.starts_with("  variables:") {
                // This is not the first time.
                return copy.write(&file, text + &format!("    STORE: \"{index:05}\"\n"));
            }
        }
        let variables = format!("  variables:\n    STORE: \"{index:05}\"\n");
        copy.write(&file, text + overlay + &variables)
    }

    pub(crate) fn folder(&self, index: usize) -> Result<String> {
        let name = self.names.get(index).context("a device")?;
        Ok(format!("devices/{name}"))
    }

    /// A text that no commit had before.
    pub(crate) fn marker(&mut self) -> String {
        self.round += 1;
        format!("round {}.", self.round)
    }

    /// Changes the object `own` of a device or a group.
    pub(crate) fn change_own(&self, folder: &str, marker: &str) -> Result<()> {
        let file = format!("{folder}/own.yaml");
        self.world
            .repo
            .copy()
            .write(&file, repo::own_object(marker))
    }

    /// Commits everything that differs, pushes it, and notes when it arrived.
    pub(crate) async fn push(&self, message: &str) -> Result<Pushed> {
        let copy = self.world.repo.copy();
        let commit = copy.commit(message)?;
        let path = copy.path().to_owned();
        let branch = self.world.repo.bare().join("refs/heads/main");
        let begun = Instant::now();
        let push =
            tokio::task::spawn_blocking(move || git(&path, ["push", "--quiet", "origin", "main"]));
        while fs::read_to_string(&branch).is_ok_and(|id| id.trim() != commit) {
            ensure!(begun.elapsed() < PATIENCE, "{commit} is not pushed");
            if push.is_finished() && fs::read_to_string(&branch).is_err() {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        let landed = Instant::now();
        push.await??;
        Ok(Pushed {
            commit,
            begun,
            landed,
        })
    }

    /// Waits until this many devices have applied the commit, and says when the last of them had.
    pub(crate) async fn all_apply(&self, pushed: &Pushed, devices: usize) -> Result<Vec<Instant>> {
        let board = self.simulation.board();
        let end = Instant::now() + PATIENCE;
        loop {
            let mut times = board.applied_at(&pushed.commit);
            if times.len() >= devices {
                times.sort_unstable();
                return Ok(times);
            }
            ensure!(
                Instant::now() < end,
                "{} of {devices} devices applied {}",
                times.len(),
                pushed.commit
            );
            // The instants are noted by the devices; looking may be rare.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until one device has applied the commit.
    pub(crate) async fn applies(&self, index: usize, pushed: &Pushed) -> Result<Instant> {
        let waiting = self.simulation.board().applies(index, &pushed.commit);
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .context("the device does not apply the commit")?
            .context("the simulation is over")
    }

    /// Waits until the controller knows that all devices are in sync.
    pub(crate) async fn in_sync(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let devices = self.world.api.fleet().await?.devices;
            if devices.in_sync == devices.active && usize::try_from(devices.active)? == self.len() {
                return Ok(());
            }
            ensure!(Instant::now() < end, "not in sync: {devices:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// `kustomize build` of these devices' overlays, with nothing else around it, as many at once as the controller
    /// runs.
    pub(crate) async fn kustomize(&self, devices: std::ops::Range<usize>) -> Result<Duration> {
        let copy = self.world.repo.copy().path();
        let overlays = devices
            .map(|index| Ok(copy.join(self.folder(index)?)))
            .collect::<Result<Vec<_>>>()?;
        let build = move || {
            let next = AtomicUsize::new(0);
            let begun = Instant::now();
            let threads = thread::available_parallelism().map_or(1, NonZero::get);
            let work = || -> Result<()> {
                while let Some(overlay) = overlays.get(next.fetch_add(1, Ordering::Relaxed)) {
                    kustomize_build(overlay)?;
                }
                Ok(())
            };
            thread::scope(|scope| {
                let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                workers.into_iter().try_for_each(|worker| {
                    worker
                        .join()
                        .unwrap_or_else(|_| Err(anyhow::anyhow!("a worker died")))
                })
            })?;
            anyhow::Ok(begun.elapsed())
        };
        tokio::task::spawn_blocking(build).await?
    }

    /// Ends it without a word.
    pub(crate) async fn end(self) -> Result<()> {
        let Self {
            mut world,
            simulation,
            ..
        } = self;
        simulation.stop().await;
        world.controller.stop().await?;
        world.controller.be_quiet();
        Ok(())
    }
}

/// A plain `kustomize build` with the environment that the controller gives it.
fn kustomize_build(overlay: &std::path::Path) -> Result<()> {
    let output = Command::new(programs::installed("kustomize")?)
        .arg("build")
        .arg(overlay)
        .env_clear()
        .envs([
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("HOME", "/nonexistent"),
        ])
        .envs([("GOMAXPROCS", "1"), ("GOGC", "off")])
        .stdin(Stdio::null())
        .output()
        .context("start kustomize")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Milliseconds from one instant to another.
pub(crate) fn between(from: Instant, to: Instant) -> f64 {
    milliseconds(to.saturating_duration_since(from))
}

/// Each simulated device is a descriptor.
fn raise_descriptor_limit(devices: usize) -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let needed = u64::try_from(devices)? + 200;
    ensure!(
        limit.maximum.is_none_or(|most| needed <= most),
        "{devices} devices need {needed} file descriptors: raise the limit (`ulimit -Hn`)"
    );
    Ok(())
}
