//! `longshore-sim run`.

use std::{
    io::Write as _,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use longshore_agent::{
    logs::{self, Format},
    sim::{self, Behavior, Options, Roster, Simulation, Totals},
    tls::Trust,
};
use longshore_protocol::Digest;
use rustix::process::{Resource, getrlimit, setrlimit};
use secrecy::SecretString;
use serde::Serialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    time,
};
use url::Url;

use crate::{Failure, duration, say, share};

/// What a process needs beside its connections.
const OTHER_DESCRIPTORS: u64 = 64;
/// How many reasons of devices that ended are shown.
const REASONS: usize = 5;

/// Runs a fleet. Prints one line a second: how many devices are enrolled, connected and in sync, and how many sets were
/// applied in that second. SIGINT and SIGTERM end it cleanly: every device closes its connection.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// The controller's public address
    #[arg(long, value_name = "URL")]
    server: Url,
    /// The SHA-256 digest of the controller's root certificate, as `longshore tokens create` prints it
    #[arg(long, value_name = "DIGEST", required_unless_present = "ca")]
    ca_fingerprint: Option<Digest>,
    /// The controller's root certificates in PEM, instead of a fingerprint
    #[arg(long, value_name = "FILE", conflicts_with = "ca_fingerprint")]
    ca: Option<PathBuf>,
    /// The provisioning token. Devices that `--identities` has enrolled do not need one
    #[arg(
        long,
        env = "LONGSHORE_SIM_TOKEN",
        hide_env_values = true,
        default_value = ""
    )]
    token: SecretString,
    /// The file with the devices' keys and identities: read first, and written while devices enroll, so that a fleet can
    /// run again without enrolling again. Private keys stand in it in the open
    #[arg(long, value_name = "FILE")]
    identities: Option<PathBuf>,
    /// How many devices
    #[arg(long, default_value_t = 100)]
    devices: usize,
    /// What the devices' names begin with
    #[arg(long, default_value = "sim")]
    prefix: String,
    /// How many devices may be on their way through the enrollment at once
    #[arg(long, default_value_t = 256)]
    enrolling: usize,
    /// How long applying a set takes
    #[arg(long, default_value = "0s", value_parser = duration)]
    apply_delay: Duration,
    /// The share of tries to apply a set that fail
    #[arg(long, default_value = "0", value_parser = share)]
    failures: f64,
    /// The share of devices that lose their connection again and again
    #[arg(long, default_value = "0", value_parser = share)]
    flapping: f64,
    /// How long such a device stays connected, and then away, on average
    #[arg(long, default_value = "10s", value_parser = duration)]
    flap_every: Duration,
    /// Where chance begins: which devices flap, above all
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End after this long
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    r#for: Option<Duration>,
    /// End as soon as all devices are in sync
    #[arg(long)]
    until_in_sync: bool,
    /// Print JSON objects
    #[arg(long)]
    json: bool,
    /// What the devices log to stderr: a level, or levels by module
    #[arg(long, default_value = "error", value_name = "FILTER")]
    log: String,
}

/// One line of progress.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    seconds: f64,
    devices: usize,
    enrolled: usize,
    connected: usize,
    in_sync: usize,
    ended: usize,
    applied: u64,
    applied_per_second: f64,
}

impl Run {
    pub(crate) fn start(self) -> Result<ExitCode, Failure> {
        raise_descriptor_limit(self.devices)?;
        logs::start(Format::Text, self.log.parse()?);
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(self.run())
    }

    async fn run(self) -> Result<ExitCode, Failure> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let simulation = Simulation::start(self.options()?);
        let begun = Instant::now();
        let mut second = time::interval(Duration::from_secs(1));
        second.tick().await;
        let end = time::sleep(self.r#for.unwrap_or(Duration::MAX / 4));
        tokio::pin!(end);
        let (mut before, mut told) = (Totals::default(), 0);
        let ended = loop {
            tokio::select! {
                _ = interrupt.recv() => break true,
                _ = terminate.recv() => break true,
                () = &mut end => break !self.until_in_sync,
                () = simulation.until(|now| now.in_sync == now.devices), if self.until_in_sync => break true,
                _ = second.tick() => {}
            }
            let now = simulation.board().totals();
            self.print(begun, &before, &now)?;
            told = reasons(&simulation, &now, told);
            before = now;
        };
        let now = simulation.board().totals();
        self.print(begun, &before, &now)?;
        say("longshore-sim: closing all connections");
        simulation.stop().await;
        Ok(if ended {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn options(&self) -> Result<Options, Failure> {
        let trust = match (&self.ca_fingerprint, &self.ca) {
            (Some(pin), _) => Trust::Fingerprint(*pin),
            (None, Some(path)) => Trust::Bundle(std::fs::read_to_string(path)?),
            (None, None) => return Err("give --ca-fingerprint or --ca".into()),
        };
        let roster = self.identities.as_deref().map(Roster::open);
        Ok(Options {
            server: self.server.clone(),
            trust,
            token: self.token.clone(),
            names: sim::names(&self.prefix, self.devices)?,
            roster: roster.transpose()?.unwrap_or_default(),
            enrolling: self.enrolling,
            behavior: Behavior {
                apply_delay: self.apply_delay,
                failures: self.failures,
                flapping: self.flapping,
                flap_every: self.flap_every,
            },
            seed: self.seed,
        })
    }

    fn print(&self, begun: Instant, before: &Totals, now: &Totals) -> Result<(), Failure> {
        #[expect(clippy::cast_precision_loss, reason = "applications are few")]
        let line = Line {
            seconds: (begun.elapsed().as_secs_f64() * 10.0).round() / 10.0,
            devices: now.devices,
            enrolled: now.enrolled,
            connected: now.connected,
            in_sync: now.in_sync,
            ended: now.ended,
            applied: now.applied,
            applied_per_second: (now.applied - before.applied) as f64,
        };
        let text = if self.json {
            serde_json::to_string(&line)?
        } else {
            format!(
                "{:>7.1} s  enrolled {}/{}  connected {}  in sync {}  applied/s {}{}",
                line.seconds,
                line.enrolled,
                line.devices,
                line.connected,
                line.in_sync,
                line.applied_per_second,
                if line.ended > 0 {
                    format!("  ended {}", line.ended)
                } else {
                    String::new()
                }
            )
        };
        writeln!(std::io::stdout(), "{text}")?;
        Ok(())
    }
}

/// Tells why devices ended, as long as there are not too many. Returns how many were told of.
fn reasons(simulation: &Simulation, now: &Totals, told: usize) -> usize {
    if now.ended <= told || told >= REASONS {
        return told;
    }
    let board = simulation.board();
    let ended = board
        .names()
        .iter()
        .enumerate()
        .filter_map(|(index, name)| Some((name, board.ended(index)?)));
    for (name, why) in ended.skip(told).take(REASONS - told) {
        say(&format!("longshore-sim: {name} ended: {why}"));
    }
    now.ended.min(REASONS)
}

/// Each device is a descriptor; the usual soft limit is far below what the system allows.
fn raise_descriptor_limit(devices: usize) -> Result<(), Failure> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let needed = u64::try_from(devices)? + OTHER_DESCRIPTORS;
    match limit.maximum {
        Some(most) if most < needed => Err(format!(
            "{devices} devices need {needed} file descriptors, and the limit is {most}: raise it (`ulimit -Hn`), or run \
             several simulators with a --prefix each"
        )
        .into()),
        _ => Ok(()),
    }
}
