//! `longshore-agent`: reads its settings, runs, and says by its exit code how that went.

use std::{error::Error, io::Write as _, process::ExitCode, time::Duration};

use clap::Parser as _;
use longshore_agent::{
    config::{Cli, Settings, Task},
    logs,
    run::{self, RunError},
};
use tokio::signal::unix::{Signal, SignalKind, signal};
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
    let built = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &error),
    };
    let ended = runtime.block_on(until_signalled(settings));
    // Everything that matters has been waited for; a name server that does not answer has not.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error.exit_code(), &error),
    }
}

async fn until_signalled(settings: Settings) -> Result<(), RunError> {
    let stop = CancellationToken::new();
    // Before anything else: a signal must never find nobody at home.
    if let (Ok(terminate), Ok(interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        drop(tokio::spawn(stop_at_signal(
            terminate,
            interrupt,
            stop.clone(),
        )));
    } else {
        tracing::warn!("signals cannot be handled; they end the process at once");
    }
    run::run(settings, stop).await
}

async fn stop_at_signal(mut terminate: Signal, mut interrupt: Signal, stop: CancellationToken) {
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
