//! `scripts/bench`: prints one JSON object per measurement, `{"metric", "value", "unit", "n", "context"}`, and at
//! the end a table on stderr.
//!
//! Absolute times drift with the machine, so what a time is to be compared with is measured in between, in the
//! same run. Progress goes to stderr. Benchmarks of many devices simulate them in this process ([`yard`]); the
//! controller is a process of its own.

mod agent;
mod all;
mod enrol;
mod latency;
mod preview;
mod push;
mod quiet;
mod report;
mod restarts;
mod spread;
mod stage;
mod webhooks;
mod wire;
mod yard;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::{
    agent::Agents,
    all::All,
    enrol::Enrol,
    latency::Latency,
    preview::Preview,
    push::Push,
    quiet::{Idle, Noop},
    report::Report,
    restarts::{Restart, Storm},
    spread::{Shared, Unique},
    webhooks::Webhooks,
    wire::Wire,
};

/// Measures the whole system with real processes on this machine.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench")]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// All of them, on shared fleets
    All(All),
    /// From `git push` to applied on the one of many simulated devices that it changes
    Latency(Latency),
    /// A commit that changes all devices of a fleet that shares overlays
    SpreadShared(Shared),
    /// A commit that changes all devices of a fleet in which each has an overlay of its own
    SpreadUnique(Unique),
    /// A commit that changes no device of a large fleet
    Noop(Noop),
    /// What connected devices cost while nothing happens
    Idle(Idle),
    /// A controller that starts again under a large fleet
    Storm(Storm),
    /// How fast new devices get in
    Enrol(Enrol),
    /// How many bytes go over the socket for a small change
    Wire(Wire),
    /// From the start of a controller with a large fleet to serving
    Restart(Restart),
    /// With real agents: from `git push` to applied, and what that costs
    Push(Push),
    /// What it costs to tell what a change of a base does that many devices share
    Preview(Preview),
    /// With real agents: what one costs a device with each runtime, and what it asks of an API server
    Agent(Agents),
    /// How fast webhooks are answered, and how fast what they tell of is applied
    Webhooks(Webhooks),
}

#[tokio::main]
async fn main() -> ExitCode {
    let report = Report::new();
    let done = match Arguments::parse().benchmark {
        Benchmark::All(all) => all.run(&report).await,
        Benchmark::Latency(latency) => latency.run(&report).await,
        Benchmark::SpreadShared(shared) => shared.run(&report).await,
        Benchmark::SpreadUnique(unique) => unique.run(&report).await,
        Benchmark::Noop(noop) => noop.run(&report).await,
        Benchmark::Idle(idle) => idle.run(&report).await,
        Benchmark::Storm(storm) => storm.run(&report).await,
        Benchmark::Enrol(enrol) => enrol.run(&report).await,
        Benchmark::Wire(wire) => wire.run(&report).await,
        Benchmark::Restart(restart) => restart.run(&report).await,
        Benchmark::Push(push) => push.run(&report).await,
        Benchmark::Preview(preview) => preview.run(&report).await,
        Benchmark::Agent(agents) => agents.run(&report).await,
        Benchmark::Webhooks(webhooks) => webhooks.run(&report).await,
    };
    report.table();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripts/bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
