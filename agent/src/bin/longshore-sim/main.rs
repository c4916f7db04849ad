//! `longshore-sim`: a fleet of simulated devices, and fleet repos for it.

mod repo;
mod run;

use std::{error::Error, io::Write as _, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

const EXAMPLE: &str = "\
A fleet of 1,000 devices, from nothing (docs/SIMULATOR.md explains each step):

  longshore-sim repo fleet --identities fleet.jsonl --devices 1000
  git -C fleet init -b main && git -C fleet add -A && git -C fleet commit -qm 'A fleet'
  longshore fleets add sim --repo \"$PWD/fleet\"
  longshore tokens create --fleet sim --auto
  longshore-sim run --identities fleet.jsonl --devices 1000 \\
      --server https://127.0.0.1:8443 --ca-fingerprint sha256:… --token lst_…";

/// Simulates a fleet of devices against a real controller.
///
/// Enrollment, TLS, WebSocket, session and reconciler are those of longshore-agent. What devices keep is in memory, and
/// what they apply to is a runtime that runs nothing. Each device needs one file descriptor here and one at the
/// controller.
#[derive(Debug, Parser)]
#[command(name = "longshore-sim", version, after_help = EXAMPLE)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a fleet repo for a simulated fleet, and the keys of its devices
    Repo(repo::Repo),
    /// Enroll devices, where they are not, and run them until interrupted
    Run(Box<run::Run>),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Repo(repo) => repo.write(),
        Command::Run(run) => run.start(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            let mut text = format!("longshore-sim: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(": ");
                text.push_str(&error.to_string());
                cause = error.source();
            }
            say(&text);
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn Error>;

/// Says something to people.
fn say(text: &str) {
    if writeln!(std::io::stderr(), "{text}").is_err() {
        // Nobody listens.
    }
}

/// `250ms`, `2s`, `1h 30m`.
fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|length| Duration::try_from(length).ok())
        .ok_or_else(|| "give a length of time such as `250ms`, `2s` or `1h 30m`".to_owned())
}

/// `0.05` or `5%`.
fn share(text: &str) -> Result<f64, String> {
    let value = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|value| value / 100.0),
        None => text.parse(),
    };
    value
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "give a share such as `0.05` or `5%`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn lengths_and_shares() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(duration("-1s").is_err() && duration("7").is_err());
        assert_eq!(share("5%"), Ok(0.05));
        assert_eq!(share("0.5"), Ok(0.5));
        assert!(share("101%").is_err() && share("many").is_err());
    }
}
