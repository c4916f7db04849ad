//! `longshore-agent`: reads its settings, runs, and says by its exit code how that went.

use std::{error::Error, io::Write as _, process::ExitCode};

use clap::Parser as _;
use longshore_agent::{
    config::{Cli, Settings, Task},
    logs,
    run::{self, RunError},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    match Cli::parse().resolve() {
        Ok(Task::Print(shown)) => match std::io::stdout().write_all(shown.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(1, &error),
        },
        Ok(Task::Run(settings)) => start(*settings),
        Err(error) => {
            let error = RunError::from(error);
            fail(error.exit_code(), &error)
        }
    }
}

fn start(settings: Settings) -> ExitCode {
    logs::start(settings.log_format, settings.log.clone());
    // One thread is plenty for one connection, and small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => match runtime.block_on(until_signalled(settings)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(error.exit_code(), &error),
        },
        Err(error) => fail(1, &error),
    }
}

async fn until_signalled(settings: Settings) -> Result<(), RunError> {
    let stop = CancellationToken::new();
    let _cancelled_with_the_process = tokio::spawn(signals(stop.clone()));
    run::run(settings, stop).await
}

async fn signals(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        tracing::warn!("signals cannot be handled; they end the process at once");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    stop.cancel();
}

/// Says what went wrong, with its causes, on stderr.
fn fail(code: u8, error: &dyn Error) -> ExitCode {
    let mut text = format!("longshore-agent: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    if writeln!(std::io::stderr(), "{text}").is_err() {
        // Nobody listens; the exit code still tells.
    }
    ExitCode::from(code)
}
