//! `longshore-controller`: reads the settings and runs.

use std::{io::Write as _, process::ExitCode, time::Duration};

use clap::Parser as _;
use longshore_controller::{
    config::{Command, CommandLine, Config},
    hosting::hook,
    run, telemetry,
};
use tikv_jemallocator::Jemalloc;

/// With thousands of connections the C library's allocator keeps half as much again as is in use: what storms and
/// large commits leave behind is in pieces. docs/BENCHMARKS.md has the figures.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    if hook::is_called(&mut std::env::args_os()) {
        return hook::run();
    }
    let CommandLine {
        command,
        config,
        settings,
    } = CommandLine::parse();
    let config = match Config::resolve(settings, config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error.into(), 2),
    };
    if let Some(Command::Config) = command {
        return match std::io::stdout().write_all(config.describe().as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.into(), 1),
        };
    }
    if let Err(error) = telemetry::init(&config.log, config.log_format) {
        return fail(&error.into(), 2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into(), 1),
    };
    let result = runtime.block_on(run::run(config));
    // Blocking work that is still under way, such as the reading of a huge tree, must not keep us here.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.into(), 1),
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    // Where stderr is closed, the exit code is all that can be said.
    drop(writeln!(
        std::io::stderr(),
        "longshore-controller: {error:#}"
    ));
    ExitCode::from(code)
}
