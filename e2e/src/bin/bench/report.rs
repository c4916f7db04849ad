//! The lines that benchmarks print, and the arithmetic behind them.

use std::{
    fs,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Value, json};

/// One measurement.
#[derive(Serialize)]
struct Line<'a> {
    metric: &'a str,
    value: f64,
    unit: &'a str,
    n: usize,
    context: &'a Value,
}

/// Writes the lines.
pub(crate) struct Report {
    context: Value,
}

impl Report {
    pub(crate) fn new(settings: &[(&str, Value)]) -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let profile = if cfg!(debug_assertions) {
            "dev"
        } else {
            "release"
        };
        let mut context = json!({
            "cores": cores,
            "cpu": model,
            "kernel": kernel.trim(),
            "profile": profile,
        });
        if let Some(members) = context.as_object_mut() {
            let named = |(name, value): &(&str, Value)| ((*name).to_owned(), value.clone());
            members.extend(settings.iter().map(named));
        }
        Self { context }
    }

    pub(crate) fn line(&self, metric: &str, value: f64, unit: &str, n: usize) -> Result<()> {
        let value = (value * 1000.0).round() / 1000.0;
        let line = Line {
            metric,
            value,
            unit,
            n,
            context: &self.context,
        };
        let line = serde_json::to_string(&line).context("a line")?;
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").context("write to stdout")
    }
}

/// The value below which this share of the sorted values lies (nearest rank).
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "there are few values"
)]
pub(crate) fn quantile(sorted: &[f64], share: f64) -> Result<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .context("no values")
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Says how far it is.
pub(crate) fn say(text: &str) {
    eprintln!("bench: {text}");
}
