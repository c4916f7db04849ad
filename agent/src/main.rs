//! `longshore-agent`: reads its settings, runs, and says by its exit code how that went.

use std::{error::Error, io::Write as _, process::ExitCode, time::Duration};

use clap::Parser as _;
use longshore_agent::{
    config::{Cli, Settings, Task},
    doctor, logs,
    run::{self, Outcome, RunError},
};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.clone().resolve() {
        Ok(Task::Print(shown)) => print(&shown, ExitCode::SUCCESS),
        Ok(Task::Examine { settings, json }) => match tokio_runtime() {
            Ok(runtime) => {
                let findings = runtime.block_on(doctor::examine((*settings).as_ref()));
                runtime.shutdown_timeout(Duration::from_secs(1));
                let shown = if json {
                    findings.json()
                } else {
                    findings.text()
                };
                print(
                    &shown,
                    if findings.ok {
                        ExitCode::SUCCESS
                    } else {
                        ExitCode::FAILURE
                    },
                )
            }
            Err(error) => fail(1, &error),
        },
        Ok(Task::Run(settings)) => start(&cli, *settings),
        Err(error) => {
            let error = RunError::from(error);
            fail(error.exit_code(), &error)
        }
    }
}

fn print(shown: &str, code: ExitCode) -> ExitCode {
    match std::io::stdout().write_all(shown.as_bytes()) {
        Ok(()) => code,
        Err(error) => fail(1, &error),
    }
}

// One thread is plenty for one connection, and small.
fn tokio_runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn start(cli: &Cli, settings: Settings) -> ExitCode {
    logs::start(settings.log_format, settings.log.clone());
    let runtime = match tokio_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &error),
    };
    let ended = runtime.block_on(until_signalled(cli, settings));
    // Everything that matters has been waited for; a name server that does not answer has not.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error.exit_code(), &error),
    }
}

async fn until_signalled(cli: &Cli, mut settings: Settings) -> Result<(), RunError> {
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
    while run::run(settings, stop.clone()).await? == Outcome::ReadAnew {
        settings = match cli.clone().resolve()? {
            Task::Run(settings) => *settings,
            Task::Print(_) | Task::Examine { .. } => break,
        };
    }
    Ok(())
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
