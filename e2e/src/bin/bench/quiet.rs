//! `noop` and `idle`: what it costs when nothing happens to devices.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    report::{Aim, Report, mebibytes, quantile, say},
    yard::{PATIENCE, Yard, between},
};

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Noop {
    /// How many devices
    #[arg(long, default_value_t = 10_000)]
    devices: usize,
    /// How many commits
    #[arg(long, default_value_t = 10)]
    commits: usize,
}

impl Noop {
    pub(crate) async fn run(self, report: &Report) -> Result<()> {
        let mut yard = Yard::start(report, self.devices).await?;
        noop(&mut yard, self.commits).await?;
        yard.end().await
    }
}

/// Commits that no device reads.
pub(crate) async fn noop(yard: &mut Yard, commits: usize) -> Result<()> {
    ensure!(commits > 0, "too little to measure");
    say("commits that no device reads");
    let before = yard.world.api.metrics().await?;
    let cpu_before = yard.world.controller.process()?.cpu_time()?;
    let mut times = Vec::new();
    for _ in 0..commits {
        let marker = yard.marker();
        yard.world.repo.copy().write("README.md", &marker)?;
        let pushed = yard.push(&marker).await?;
        while yard.world.api.fleet().await?.revision.as_deref() != Some(&pushed.commit) {
            ensure!(pushed.landed.elapsed() < PATIENCE, "the commit is not seen");
            sleep(Duration::from_millis(2)).await;
        }
        times.push(between(pushed.landed, Instant::now()));
    }
    // Whatever they may have set off gets the time to happen.
    sleep(Duration::from_secs(2)).await;
    let cpu_after = yard.world.controller.process()?.cpu_time()?;
    let after = yard.world.api.metrics().await?;
    times.sort_by(f64::total_cmp);
    let report = &yard.report;
    let difference = |name| after.value(name) - before.value(name);
    let median = quantile(&times, 0.5)?;
    report.aim(
        "noop_landed_to_in_force_median",
        median,
        "ms",
        commits,
        Aim::AtMost(200.0),
    )?;
    report.line(
        "noop_landed_to_in_force_max",
        quantile(&times, 1.0)?,
        "ms",
        commits,
    )?;
    let cpu = cpu_after.own.saturating_sub(cpu_before.own).as_secs_f64() * 1000.0;
    #[expect(clippy::cast_precision_loss, reason = "there are few commits")]
    let cpu = cpu / commits as f64;
    report.line("noop_controller_cpu_per_commit", cpu, "ms", commits)?;
    let renders = difference("renders_total");
    report.aim("noop_renders", renders, "builds", commits, Aim::AtMost(0.0))?;
    let bytes = difference("manifest_bytes_total");
    report.aim("noop_bytes", bytes, "B", commits, Aim::AtMost(0.0))
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Idle {
    /// How many devices; the limit of file descriptors is the most there can be
    #[arg(long, default_value_t = 10_000)]
    devices: usize,
    /// How long to look, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

impl Idle {
    pub(crate) async fn run(self, report: &Report) -> Result<()> {
        let mut yard = Yard::start(report, self.devices).await?;
        crate::restarts::restart(&mut yard).await?;
        idle(&mut yard, Duration::from_secs(self.seconds)).await?;
        yard.end().await
    }
}

/// A window in which nothing happens. The controller was started anew before, so that what it holds is what it needs.
pub(crate) async fn idle(yard: &mut Yard, window: Duration) -> Result<()> {
    say(&format!("{window:?} in which nothing happens"));
    // What just ended gets the time to settle.
    sleep(Duration::from_secs(5)).await;
    let process = yard.world.controller.process()?;
    let (before, begun) = (process.cpu_time()?, Instant::now());
    sleep(window).await;
    let (after, took) = (process.cpu_time()?, begun.elapsed());
    let resident = process.resident_memory()?;
    let report = yard.report.with(&[
        ("devices", json!(yard.len())),
        ("seconds", json!(window.as_secs())),
    ]);
    let n = yard.len();
    let mib = mebibytes(resident);
    report.line("idle_controller_resident", mib, "MiB", n)?;
    #[expect(clippy::cast_precision_loss, reason = "there are few devices")]
    let each = mib * 1024.0 / n as f64;
    report.aim(
        "idle_controller_resident_per_device",
        each,
        "KiB",
        n,
        Aim::AtMost(25.0),
    )?;
    let share = after.own.saturating_sub(before.own).as_secs_f64() / took.as_secs_f64();
    report.aim(
        "idle_controller_cpu",
        share * 100.0,
        "% of a core",
        n,
        Aim::AtMost(5.0),
    )?;
    let totals = yard.simulation.board().totals();
    ensure!(
        totals.connected == n,
        "only {} devices stayed connected",
        totals.connected
    );
    Ok(())
}
