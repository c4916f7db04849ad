//! `scripts/bench`: prints one JSON object per measurement, `{"metric", "value", "unit", "n", "context"}`.
//!
//! Absolute times drift with the machine, so what a time is to be compared with is measured in between, in the
//! same run. Progress goes to stderr.

mod latency;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::latency::Latency;

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
}

#[tokio::main]
async fn main() -> ExitCode {
    let Benchmark::Latency(latency) = Arguments::parse().benchmark;
    match latency.run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripts/bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
