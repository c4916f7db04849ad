//! `all`: every benchmark, with a small and a large fleet that they share.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser as _};

use crate::{
    Arguments, Benchmark, enrol, latency, quiet, report::Report, restarts, spread, wire, yard::Yard,
};

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct All {
    /// Smaller fleets and fewer rounds: less than five minutes on two cores
    #[arg(long)]
    quick: bool,
}

/// How much of everything.
struct Size {
    small: usize,
    large: usize,
    unique: usize,
    pushes: usize,
    rounds: usize,
    window: Duration,
    real: [&'static [&'static str]; 3],
}

const FULL: Size = Size {
    small: 1000,
    large: 10_000,
    unique: 1000,
    pushes: 40,
    rounds: 3,
    window: Duration::from_mins(1),
    real: [&["push"], &["preview"], &["webhooks"]],
};

const QUICK: Size = Size {
    small: 300,
    large: 2000,
    unique: 100,
    pushes: 8,
    rounds: 1,
    window: Duration::from_secs(10),
    real: [
        &["push", "--pushes", "8"],
        &["preview", "--devices", "300", "--rounds", "2"],
        &["webhooks", "--calls", "800", "--pushes", "5"],
    ],
};

impl All {
    pub(crate) async fn run(self, report: &Report) -> Result<()> {
        let size = if self.quick { QUICK } else { FULL };
        for real in size.real {
            let arguments = ["scripts/bench"].into_iter().chain(real.iter().copied());
            match Arguments::try_parse_from(arguments)?.benchmark {
                Benchmark::Push(push) => push.run(report).await?,
                Benchmark::Preview(preview) => preview.run(report).await?,
                Benchmark::Webhooks(webhooks) => webhooks.run(report).await?,
                _ => {}
            }
        }
        let mut medians = Vec::new();
        let mut yard = Yard::enroll(report, size.small).await?;
        enrol::tell(&yard)?;
        yard.spread_out().await?;
        medians.push((size.small, latency::measure(&mut yard, size.pushes).await?));
        spread::shared(&mut yard, size.rounds).await?;
        spread::unique(&mut yard, size.unique).await?;
        yard.end().await?;

        let mut yard = Yard::enroll(report, size.large).await?;
        enrol::tell(&yard)?;
        yard.spread_out().await?;
        medians.push((size.large, latency::measure(&mut yard, size.pushes).await?));
        spread::shared(&mut yard, size.rounds).await?;
        quiet::noop(&mut yard, size.pushes).await?;
        wire::wire(&mut yard).await?;
        restarts::restart(&mut yard).await?;
        quiet::idle(&mut yard, size.window).await?;
        restarts::storm(&mut yard).await?;
        yard.end().await?;
        latency::compare(report, &medians)
    }
}
