//! The lines that benchmarks print, and the arithmetic behind them.

use std::{
    fs,
    io::{self, Write as _},
    sync::{Arc, Mutex, PoisonError},
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

/// What a value should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim {
    AtMost(f64),
    AtLeast(f64),
}

impl Aim {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

/// One line of the table.
struct Row {
    settings: String,
    metric: String,
    measured: String,
    aim: Option<(Aim, bool)>,
}

/// Writes the lines, and at the end a table.
#[derive(Clone)]
pub(crate) struct Report {
    context: Value,
    settings: String,
    rows: Arc<Mutex<Vec<Row>>>,
}

impl Report {
    pub(crate) fn new() -> Self {
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
        let context = json!({
            "cores": cores,
            "cpu": model,
            "kernel": kernel.trim(),
            "profile": profile,
        });
        Self {
            context,
            settings: String::new(),
            rows: Arc::default(),
        }
    }

    /// The same report, whose lines from here on were measured with these settings.
    pub(crate) fn with(&self, settings: &[(&str, Value)]) -> Self {
        let mut report = self.clone();
        if let Some(members) = report.context.as_object_mut() {
            let named = |(name, value): &(&str, Value)| ((*name).to_owned(), value.clone());
            members.extend(settings.iter().map(named));
        }
        let shown: Vec<_> = settings
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        report.settings = shown.join(", ");
        report
    }

    pub(crate) fn line(&self, metric: &str, value: f64, unit: &str, n: usize) -> Result<()> {
        self.measured(metric, value, unit, n, None)
    }

    /// A line whose value should be so.
    pub(crate) fn aim(
        &self,
        metric: &str,
        value: f64,
        unit: &str,
        n: usize,
        aim: Aim,
    ) -> Result<()> {
        self.measured(metric, value, unit, n, Some(aim))
    }

    fn measured(
        &self,
        metric: &str,
        value: f64,
        unit: &str,
        n: usize,
        aim: Option<Aim>,
    ) -> Result<()> {
        let value = (value * 1000.0).round() / 1000.0;
        self.rows
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Row {
                settings: self.settings.clone(),
                metric: metric.to_owned(),
                measured: format!("{value} {unit}"),
                aim: aim.map(|aim| (aim, aim.is_met(value))),
            });
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

impl Report {
    /// What was measured, for people: to stderr.
    pub(crate) fn table(&self) {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let width = rows.iter().map(|row| row.metric.len()).max().unwrap_or(0);
        let mut settings = None;
        for row in &*rows {
            if settings != Some(&row.settings) {
                eprintln!("\n{}", row.settings);
                settings = Some(&row.settings);
            }
            let aim = match row.aim {
                None => String::new(),
                Some((aim, met)) => {
                    let wanted = match aim {
                        Aim::AtMost(most) => format!("<= {most}"),
                        Aim::AtLeast(least) => format!(">= {least}"),
                    };
                    let verdict = if met { "met" } else { "MISSED" };
                    format!("aim {wanted:<10} {verdict}")
                }
            };
            let line = format!("  {:<width$}  {:>18}  {aim}", row.metric, row.measured);
            eprintln!("{}", line.trim_end());
        }
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
