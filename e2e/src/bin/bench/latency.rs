//! `latency`: from `git push` to applied on the one of many devices that it changes.

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use crate::{
    report::{Aim, Report, milliseconds, quantile, say},
    yard::{Yard, between},
};

#[derive(Args, Clone, Debug)]
pub(crate) struct Latency {
    /// How many devices; several, separated by commas, one fleet after the other
    #[arg(long, default_value = "1000,10000", value_delimiter = ',')]
    devices: Vec<usize>,
    /// How many pushes
    #[arg(long, default_value_t = 40)]
    pushes: usize,
}

/// The times of one push, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// From the start of `git push` to applied.
    pushed: f64,
    /// From the commit's arrival in the repo to applied.
    landed: f64,
    /// A plain `kustomize build` of the same overlay, right afterwards.
    build: f64,
}

impl Latency {
    pub(crate) async fn run(self, report: &Report) -> Result<()> {
        let mut medians = Vec::new();
        for devices in self.devices {
            let mut yard = Yard::start(report, devices).await?;
            medians.push((devices, measure(&mut yard, self.pushes).await?));
            yard.end().await?;
        }
        compare(report, &medians)
    }
}

/// Pushes, each of which changes one device with an overlay of its own. Returns the median from push to applied, less
/// the build.
pub(crate) async fn measure(yard: &mut Yard, rounds: usize) -> Result<f64> {
    ensure!(rounds > 0 && yard.singles() > 0, "too little to measure");
    say("pushes that change one device each");
    let mut all = Vec::new();
    // The first ones warm the machine up.
    for round in 0..rounds + 3 {
        let index = round % yard.singles();
        let marker = yard.marker();
        yard.change_own(&yard.folder(index)?, &marker)?;
        let pushed = yard.push(&marker).await?;
        let applied = yard.applies(index, &pushed).await?;
        yard.in_sync().await?;
        let build = milliseconds(yard.kustomize(index..index + 1).await?);
        if round >= 3 {
            all.push(Times {
                pushed: between(pushed.begun, applied),
                landed: between(pushed.landed, applied),
                build,
            });
        }
    }
    let report = &yard.report;
    let sorted = |value: fn(&Times) -> f64| {
        let mut values: Vec<_> = all.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let n = all.len();
    for (metric, values) in [
        ("latency_push_to_applied", sorted(|it| it.pushed)),
        ("latency_landed_to_applied", sorted(|it| it.landed)),
        ("latency_kustomize_build", sorted(|it| it.build)),
    ] {
        report.line(
            &format!("{metric}_median"),
            quantile(&values, 0.5)?,
            "ms",
            n,
        )?;
        report.line(&format!("{metric}_p99"), quantile(&values, 0.99)?, "ms", n)?;
    }
    let less = sorted(|it| it.pushed - it.build);
    let metric = "latency_push_to_applied_minus_build";
    let median = quantile(&less, 0.5)?;
    report.aim(
        &format!("{metric}_median"),
        median,
        "ms",
        n,
        Aim::AtMost(50.0),
    )?;
    let p99 = quantile(&less, 0.99)?;
    report.aim(&format!("{metric}_p99"), p99, "ms", n, Aim::AtMost(250.0))?;
    let landed = sorted(|it| it.landed - it.build);
    let metric = "latency_landed_to_applied_minus_build";
    report.line(
        &format!("{metric}_median"),
        quantile(&landed, 0.5)?,
        "ms",
        n,
    )?;
    report.line(&format!("{metric}_p99"), quantile(&landed, 0.99)?, "ms", n)?;
    Ok(median)
}

/// How much slower the largest fleet is than the smallest.
pub(crate) fn compare(report: &Report, medians: &[(usize, f64)]) -> Result<()> {
    let (Some((few, first)), Some((many, last))) = (medians.first(), medians.last()) else {
        return Ok(());
    };
    if few < many {
        let report = report.with(&[("devices", json!(many))]);
        let metric = format!("latency_more_than_with_{few}");
        report.aim(&metric, last - first, "ms", 1, Aim::AtMost(50.0))?;
    }
    Ok(())
}
