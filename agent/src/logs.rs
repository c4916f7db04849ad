//! What the agent says while it runs: for people on a terminal, for programs otherwise, and for those who ask for it
//! over the connection.

mod recent;

use std::{
    io::{IsTerminal as _, Write as _},
    sync::LazyLock,
};

use longshore_protocol::{DeviceName, message::LogRequest};
use serde::{Deserialize, Serialize};
use tracing_subscriber::{
    Layer as _, Registry,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use self::recent::Recent;
use crate::{clock, identity::DeviceKey, runtime::logs::LogStream};

/// What was said of late.
static RECENT: LazyLock<Recent> = LazyLock::new(|| Recent::new(clock::system));

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Format {
    fn is_json(self) -> bool {
        match self {
            Self::Auto => !std::io::stderr().is_terminal(),
            Self::Text => false,
            Self::Json => true,
        }
    }
}

/// Starts logging to stderr. A second call changes nothing.
pub fn start(format: Format, filter: Targets) {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = if format.is_json() {
        lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed()
    } else {
        lines
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
            .boxed()
    };
    let recent = tracing_subscriber::fmt::layer()
        .with_writer(|| &*RECENT)
        .with_target(false)
        .with_ansi(false);
    if Registry::default()
        .with(
            layer
                .and_then(recent)
                .with_filter(without_repetition(filter)),
        )
        .try_init()
        .is_err()
    {
        tracing::debug!("logging had been started before");
    }
}

/// What the agent said of late, and says from now on where that is asked for.
pub fn own(request: &LogRequest) -> LogStream {
    RECENT.read(request)
}

/// What fails in the Kubernetes client, our own code tells once, and less often than the client does.
fn without_repetition(filter: Targets) -> Targets {
    const CLIENT: &str = "kube_client";
    if filter.iter().any(|(target, _)| target.starts_with(CLIENT)) {
        return filter;
    }
    filter.with_target(CLIENT, LevelFilter::OFF)
}

/// Shows the key that the approver is to compare: in JSON as a log line, else so that nobody overlooks it.
pub fn announce(format: Format, name: &DeviceName, key: &DeviceKey) {
    let fingerprint = key.fingerprint();
    if format.is_json() {
        tracing::info!(%name, %fingerprint, "this device's key");
        return;
    }
    let line = "=".repeat(79);
    let shown = writeln!(
        std::io::stderr().lock(),
        "\n{line}\n  Device {name} asks to join. Approve it only where this fingerprint is shown:\n\n    \
         {fingerprint}\n{line}\n"
    );
    if shown.is_err() {
        tracing::info!(%name, %fingerprint, "this device's key");
    }
}
