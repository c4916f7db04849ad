//! `spread-shared` and `spread-unique`: commits that change all devices.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use longshore_agent::sim::repo;
use serde_json::json;

use crate::{
    report::{Aim, Report, milliseconds, quantile, say},
    yard::{Yard, between},
};

#[derive(Args, Clone, Debug)]
pub(crate) struct Shared {
    /// How many devices; several, separated by commas, one fleet after the other
    #[arg(long, default_value = "1000,10000", value_delimiter = ',')]
    devices: Vec<usize>,
    /// How many commits
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

impl Shared {
    pub(crate) async fn run(self, report: &Report) -> Result<()> {
        for devices in self.devices {
            let mut yard = Yard::start(report, devices).await?;
            shared(&mut yard, self.rounds).await?;
            yard.end().await?;
        }
        Ok(())
    }
}

/// Commits, each of which changes all shared overlays.
pub(crate) async fn shared(yard: &mut Yard, rounds: usize) -> Result<()> {
    ensure!(rounds > 0, "too little to measure");
    say("commits that change all shared overlays");
    let changed = yard.len() - yard.singles();
    let (mut lasts, mut middles, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let marker = yard.marker();
        for group in 0..12 {
            yard.change_own(&repo::group_folder(group), &marker)?;
        }
        let before = yard.world.controller.process()?.cpu_time()?;
        let pushed = yard.push(&marker).await?;
        let times = yard.all_apply(&pushed, changed).await?;
        let seconds = |time: &Instant| between(pushed.landed, *time) / 1000.0;
        lasts.push(times.last().map(seconds).context("devices")?);
        middles.push(times.get(times.len() / 2).map(seconds).context("devices")?);
        yard.in_sync().await?;
        let after = yard.world.controller.process()?.cpu_time()?;
        cpu.push((after.own.saturating_sub(before.own)).as_secs_f64());
    }
    for values in [&mut lasts, &mut middles, &mut cpu] {
        values.sort_by(f64::total_cmp);
    }
    let report = &yard.report;
    let last = quantile(&lasts, 0.5)?;
    let metric = "spread_shared_landed_to_last_applied";
    match yard.len() {
        1000 => report.aim(metric, last, "s", rounds, Aim::AtMost(2.0))?,
        10_000 => report.aim(metric, last, "s", rounds, Aim::AtMost(15.0))?,
        _ => report.line(metric, last, "s", rounds)?,
    }
    let middle = quantile(&middles, 0.5)?;
    report.line("spread_shared_landed_to_half_applied", middle, "s", rounds)?;
    let cpu = quantile(&cpu, 0.5)?;
    report.line("spread_shared_controller_cpu", cpu, "s", rounds)
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Unique {
    /// How many devices, each with an overlay of its own
    #[arg(long, default_value_t = 1000)]
    devices: usize,
}

impl Unique {
    pub(crate) async fn run(self, report: &Report) -> Result<()> {
        let mut yard = Yard::enroll(report, self.devices).await?;
        unique(&mut yard, self.devices).await?;
        yard.end().await
    }
}

/// Gives so many devices overlays of their own, and changes all of those with one commit.
pub(crate) async fn unique(yard: &mut Yard, devices: usize) -> Result<()> {
    say(&format!("{devices} overlays of their own"));
    yard.world.repo.copy().pull()?;
    let marker = yard.marker();
    for index in 0..devices {
        yard.own_overlay(index)?;
        yard.change_own(&yard.folder(index)?, &marker)?;
    }
    let pushed = yard.push(&marker).await?;
    yard.all_apply(&pushed, devices).await?;
    yard.in_sync().await?;
    say("a commit that changes all of them");
    let marker = yard.marker();
    for index in 0..devices {
        yard.change_own(&yard.folder(index)?, &marker)?;
    }
    let before = yard.world.controller.process()?.cpu_time()?;
    let pushed = yard.push(&marker).await?;
    let times = yard.all_apply(&pushed, devices).await?;
    let last = times.last().context("devices")?;
    let took = between(pushed.landed, *last);
    yard.in_sync().await?;
    let after = yard.world.controller.process()?.cpu_time()?;
    say("kustomize alone");
    let alone = milliseconds(yard.kustomize(0..devices).await?);
    let report = yard.report.with(&[("overlays", json!(devices))]);
    report.line(
        "spread_unique_landed_to_last_applied",
        took / 1000.0,
        "s",
        1,
    )?;
    report.line("spread_unique_kustomize_alone", alone / 1000.0, "s", 1)?;
    let own = after.own.saturating_sub(before.own).as_secs_f64();
    report.line("spread_unique_controller_cpu", own, "s", 1)?;
    report.aim(
        "spread_unique_per_kustomize_alone",
        took / alone,
        "ratio",
        devices,
        Aim::AtMost(1.15),
    )
}
