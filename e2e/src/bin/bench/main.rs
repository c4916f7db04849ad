//! `scripts/bench`: prints one JSON object per measurement, `{"metric", "value", "unit", "n", "context"}`.
//!
//! Absolute times drift with the machine, so what a time is to be compared with is measured in between, in the
//! same run. Progress goes to stderr.

mod latency;
mod preview;
mod report;
mod stage;
mod webhooks;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::{latency::Latency, preview::Preview, webhooks::Webhooks};

/// Measures the whole system with real processes on this machine.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench")]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// From `git push` to applied on the one device that it changes, and what it costs
    Latency(Latency),
    /// What it costs to tell what a change of a base does that many devices share
    Preview(Preview),
    /// How fast webhooks are answered, and how fast what they tell of is applied
    Webhooks(Webhooks),
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse().benchmark {
        Benchmark::Latency(latency) => latency.run().await,
        Benchmark::Preview(preview) => preview.run().await,
        Benchmark::Webhooks(webhooks) => webhooks.run().await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripts/bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
