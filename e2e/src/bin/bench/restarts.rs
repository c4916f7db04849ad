//! `restart` and `storm`: the controller starts again, without and under its fleet.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use longshore_e2e::simulated;

use crate::{
    report::{Aim, Report, mebibytes, say},
    yard::{PATIENCE, Yard, between},
};

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Restart {
    /// How many devices
    #[arg(long, default_value_t = 10_000)]
    devices: usize,
}

impl Restart {
    pub(crate) async fn run(self, report: &Report) -> Result<()> {
        let mut yard = Yard::start(report, self.devices).await?;
        restart(&mut yard).await?;
        yard.end().await
    }
}

/// Starts the controller while no device tries to connect; then all do.
pub(crate) async fn restart(yard: &mut Yard) -> Result<()> {
    say("starting the controller while no device is there");
    let n = yard.len();
    let before = yard.world.controller.process()?.resident_memory()?;
    #[expect(clippy::cast_precision_loss, reason = "there are few devices")]
    let each = mebibytes(before) * 1024.0 / n as f64;
    yard.report
        .line("restart_resident_per_device_before", each, "KiB", n)?;
    for index in 0..n {
        yard.simulation.unplug(index);
    }
    simulated::until(&yard.simulation, "none connected", PATIENCE, |now| {
        now.connected == 0
    })
    .await?;
    yard.world.controller.stop().await?;
    let begun = Instant::now();
    yard.world.controller.start_again().await?;
    let ready = begun.elapsed().as_secs_f64();
    yard.simulation.plug_in(0);
    connects(yard, 0).await?;
    let served = begun.elapsed().as_secs_f64();
    let resident = mebibytes(yard.world.controller.process()?.resident_memory()?);
    let report = &yard.report;
    report.aim("restart_to_ready", ready, "s", n, Aim::AtMost(3.0))?;
    report.line("restart_to_first_session", served, "s", n)?;
    report.line("restart_resident_without_devices", resident, "MiB", n)?;
    let begun = Instant::now();
    for index in 1..n {
        yard.simulation.plug_in(index);
    }
    all_back(yard).await?;
    let back = begun.elapsed().as_secs_f64();
    yard.report
        .line("restart_all_connect_at_once", back, "s", n)
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Storm {
    /// How many devices
    #[arg(long, default_value_t = 10_000)]
    devices: usize,
}

impl Storm {
    pub(crate) async fn run(self, report: &Report) -> Result<()> {
        let mut yard = Yard::start(report, self.devices).await?;
        storm(&mut yard).await?;
        yard.end().await
    }
}

/// Kills the controller under its devices and starts it again.
pub(crate) async fn storm(yard: &mut Yard) -> Result<()> {
    say("killing the controller under its devices, and starting it again");
    let n = yard.len();
    yard.world.controller.kill();
    let killed = Instant::now();
    yard.world.controller.start_again().await?;
    let ready = Instant::now();
    // A change in the middle of the storm, for a device that is connected already.
    let single = first_back(yard).await?;
    let marker = yard.marker();
    yard.change_own(&yard.folder(single)?, &marker)?;
    let pushed = yard.push(&marker).await?;
    let applied = yard.applies(single, &pushed).await?;
    let during = between(pushed.landed, applied);
    all_back(yard).await?;
    let back = Instant::now();
    // What the store says of who is in sync is from before; who is connected is counted by the new process.
    counted(yard).await?;
    let in_sync = Instant::now();
    let after = yard.world.api.metrics().await?;
    let report = yard.report.clone();
    let seconds = |from, to| between(from, to) / 1000.0;
    report.line("storm_killed_to_ready", seconds(killed, ready), "s", n)?;
    report.line("storm_ready_to_all_connected", seconds(ready, back), "s", n)?;
    report.aim(
        "storm_ready_to_all_in_sync",
        seconds(ready, in_sync),
        "s",
        n,
        Aim::AtMost(20.0),
    )?;
    report.line("storm_push_to_one_device_meanwhile", during, "ms", 1)?;
    // The one build is that of the push; counters begin with the process.
    let renders = after.value("renders_total") - 1.0;
    report.aim(
        "storm_renders_repeated",
        renders,
        "builds",
        n,
        Aim::AtMost(0.0),
    )?;
    let enrollments = after.value("enrollments_total");
    report.aim(
        "storm_enrollments_repeated",
        enrollments,
        "devices",
        n,
        Aim::AtMost(0.0),
    )?;
    let offers = after.value("offers_total");
    report.line("storm_sets_sent_again", offers, "sets", n)?;
    let marker = yard.marker();
    yard.change_own(&yard.folder(single)?, &marker)?;
    let pushed = yard.push(&marker).await?;
    let applied = yard.applies(single, &pushed).await?;
    let afterwards = between(pushed.landed, applied);
    report.line("storm_push_to_one_device_afterwards", afterwards, "ms", 1)
}

/// Waits until the controller counts all devices as connected and in sync.
async fn counted(yard: &Yard) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let counts = yard.world.api.fleet().await?.devices;
        let n = u64::try_from(yard.len())?;
        if counts.connected == n && counts.in_sync == n {
            return Ok(());
        }
        ensure!(Instant::now() < end, "not all are back: {counts:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The first of the devices with overlays of their own that is connected again.
async fn first_back(yard: &Yard) -> Result<usize> {
    let board = yard.simulation.board();
    let end = Instant::now() + PATIENCE;
    loop {
        let back = (0..yard.singles().max(1)).find(|index| {
            board
                .connection(*index)
                .is_some_and(|connected| *connected.borrow())
        });
        if let Some(index) = back {
            return Ok(index);
        }
        ensure!(Instant::now() < end, "no device comes back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn connects(yard: &Yard, index: usize) -> Result<()> {
    let board = yard.simulation.board();
    let mut connected = board.connection(index).context("a device")?;
    tokio::time::timeout(PATIENCE, connected.wait_for(|connected| *connected))
        .await
        .context("the device does not connect")??;
    Ok(())
}

async fn all_back(yard: &Yard) -> Result<()> {
    let n = yard.len();
    simulated::until(&yard.simulation, "all back", PATIENCE, |now| {
        now.connected == n && now.in_sync == n
    })
    .await
    .map(drop)
}
