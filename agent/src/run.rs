//! The life of the process, from settings to an exit code.
//!
//! ```text
//! lock the state directory ─▶ finish a decommission that was begun ─▶ enroll, unless enrolled
//!     ─▶ load the ledger ─▶ reconcile and link, side by side ─▶ stop, or decommission
//! ```
//!
//! What the ledger holds is applied before and without any connection. A task that ends on its own, other
//! than by a decommission, ends the process with an error.

mod decommission;
mod secret;

use std::sync::Arc;

use longshore_protocol::session::Holding;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    backoff::Backoff,
    clock::Clock,
    config::{ConfigError, Settings},
    enroll::{self, Application, EnrollError},
    facts,
    files::FileError,
    identity::{Identity, StateDir, StateError},
    journal::Journal,
    ledger::Ledger,
    link::{self, Ended, Link, LinkError},
    logs,
    network::Network,
    reconcile,
    reconcile::Reconciler,
    report::{LEDGER_WRITABLE, Reporter},
    runtime::{self, ApplyError, Runtime, logs::Logs},
    tls::Trust,
    update::Updates,
};

/// Why the process ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The settings are not enough.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The device is not enrolled.
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    /// There can be no link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// What was applied cannot be removed. The next start tries again.
    #[error("the device is decommissioned, and what it ran cannot be removed: {}", .0.explanation())]
    Remove(ApplyError),
    /// There is no way to the API server whose Secret keeps the identity.
    #[error("--identity-secret needs an API server: {0}")]
    NoCluster(String),
    /// A task ended that should not have.
    #[error("the {0} task ended unexpectedly")]
    Task(&'static str),
}

impl RunError {
    /// The exit code, as `--help` documents it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::State(_) | Self::Enroll(EnrollError::State(_)) => 7,
            Self::Enroll(EnrollError::TokenNotFound(_)) => 3,
            Self::Enroll(EnrollError::Rejected(..)) => 4,
            Self::Enroll(EnrollError::Refused(..)) => 5,
            Self::Enroll(EnrollError::Untrusted(_)) => 6,
            _ => 1,
        }
    }
}

impl From<FileError> for RunError {
    fn from(error: FileError) -> Self {
        Self::State(error.into())
    }
}

/// Runs until `stop` is cancelled, the device is decommissioned, or something fails for good.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<(), RunError> {
    let mut state = StateDir::open(&settings.state_dir)?;
    if let Some(kept) = &settings.identity_secret {
        let stopped = secret::share(&mut state, kept, backoff(), &stop).await?;
        if stopped {
            return Ok(());
        }
    }
    let state = Arc::new(state);
    let ledger = Arc::new(Ledger::new(state.folder()?));
    let network = network(&settings, &state)?;
    if decommission::was_begun(&state)? {
        return decommission::finish(&state, &ledger, runtime_of(&settings, &state)?).await;
    }
    let identity = match state.identity()? {
        Some(identity) => identity,
        None => match join(&settings, &state, &ledger, &network, &stop).await? {
            Some(identity) => identity,
            None => return Ok(()),
        },
    };
    state.remove_token();
    let runtime = runtime::of(settings.runtime, (&identity).into());
    let token = identity.token;
    let updates = Updates::new(settings.updates, ledger.record());
    match work(&state, &ledger, network, identity, runtime, updates, &stop).await? {
        (Ended::Stopped, _) => Ok(()),
        (Ended::Decommissioned { reason }, runtime) => {
            decommission::begin(&state, reason, token).await?;
            decommission::finish(&state, &ledger, Some(runtime)).await
        }
    }
}

/// How to get to the controller.
fn network(settings: &Settings, state: &StateDir) -> Result<Network, RunError> {
    let network = Network {
        clock: Clock::kept_in(state.folder()?),
        proxies: Arc::new(settings.proxies.clone()),
        roots: match &settings.trust {
            Some(Trust::Bundle(pem)) => Some(pem.as_str().into()),
            _ => None,
        },
    };
    if let Some(complaint) = network.clock.complaint() {
        tracing::warn!("{complaint}");
    }
    if let Some(complaint) = network.proxies.complaint() {
        tracing::warn!("no proxy is used: {complaint}");
    }
    if let Some(proxy) = network.proxies.shown() {
        tracing::info!(proxy, "going through a proxy");
    }
    Ok(network)
}

/// The runtime of an enrolled device.
fn runtime_of(settings: &Settings, state: &StateDir) -> Result<Option<Box<dyn Runtime>>, RunError> {
    Ok(state
        .identity()?
        .map(|identity| runtime::of(settings.runtime.clone(), (&identity).into())))
}

/// Enrolls; `None` where the agent was told to stop meanwhile, or was decommissioned before.
async fn join(
    settings: &Settings,
    state: &StateDir,
    ledger: &Ledger,
    network: &Network,
    stop: &CancellationToken,
) -> Result<Option<Identity>, RunError> {
    let missing = ConfigError::Missing;
    let token = match &settings.token {
        Some(source) => Some(source.read()?),
        None => state.token()?,
    };
    if decommission::stands(state, token.as_ref())? {
        state.remove_token();
        return Ok(None);
    }
    let token = token.ok_or(missing("--token or --token-file"))?;
    // Whatever is in the ledger, it belongs to another life of this device.
    ledger.clear()?;
    let application = Application {
        server: settings.server.clone().ok_or(missing("--server"))?,
        trust: settings.trust.clone().ok_or(missing("--ca-fingerprint"))?,
        token,
        name: settings.name.clone().ok_or(missing("--name"))?,
        facts: facts::gather(),
        network: network.clone(),
    };
    let timing = link::Timing::default();
    let backoff = Backoff::new(timing.first_retry, timing.last_retry, rand::make_rng());
    let announce = |name: &_, key: &_| logs::announce(settings.log_format, name, key);
    let enrolled = enroll::enroll(state, &application, announce, backoff, stop).await;
    match enrolled {
        Ok(identity) => Ok(Some(identity)),
        // Nothing is lost: the next start goes on.
        Err(EnrollError::Stopped) => Ok(None),
        Err(EnrollError::Rejected(status, reason)) if status == "decommissioned" => {
            let token = enroll::digest(&application.token);
            decommission::begin(state, reason.clone(), token).await?;
            state.forget().await?;
            Err(EnrollError::Rejected(status, reason).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Runs an enrolled device. Gives the runtime back, for it may have to be cleared.
async fn work(
    state: &Arc<StateDir>,
    ledger: &Arc<Ledger>,
    network: Network,
    identity: Identity,
    runtime: Box<dyn Runtime>,
    updates: Updates,
    stop: &CancellationToken,
) -> Result<(Ended, Box<dyn Runtime>), RunError> {
    let loaded = ledger.load()?;
    let holding = loaded.current;
    let held = holding.as_ref().map(|holding| holding.held());
    tracing::info!(device = %identity.device_id, name = %identity.name, generation = held.map(|held| held.generation.number()), "the agent runs");
    let reporter =
        Reporter::new(held, network.clock.clone()).writing_to(Journal::kept_in(state.folder()?));
    for (name, wrong) in &loaded.set_aside {
        tracing::error!(name, wrong, "the ledger is damaged; set aside");
        let message = format!("{wrong}; kept as {name}");
        reporter.fails(LEDGER_WRITABLE, "Corrupted", message);
    }
    if held.is_some() && loaded.set_aside.is_empty() {
        reporter.holds(LEDGER_WRITABLE, "Loaded", "");
    }
    let target = watch::Sender::new(holding.clone());
    let runs = (runtime.name(), runtime.logs());
    let tracker = TaskTracker::new();
    let reconciler = Reconciler::new(
        runtime,
        target.subscribe(),
        reporter.clone(),
        reconcile::Timing::default(),
        backoff(),
    )
    .carefully(updates, ledger.clone());
    let (clock, journal) = (network.clock.clone(), reporter.journal().clone());
    let link = Link {
        network,
        ..link_of(state, ledger, identity, holding, target, reporter, runs)
    };
    // The link ends first and the reconciler after it, so that either one's ending on its own is noticed.
    let (link_stops, reconciler_stops) = (stop.child_token(), CancellationToken::new());
    let mut reconciling = tracker.spawn(reconciler.run(reconciler_stops.clone()));
    let mut linking = tracker.spawn(link.run(link_stops.clone()));
    tracker.close();
    let ended = tokio::select! {
        ended = &mut linking => ended.map_err(|_panic| RunError::Task("link")),
        _ = &mut reconciling => Err(RunError::Task("reconcile")),
    };
    link_stops.cancel();
    reconciler_stops.cancel();
    let ended = ended??;
    let runtime = reconciling
        .await
        .map_err(|_panic| RunError::Task("reconcile"))?;
    tracker.wait().await;
    journal.keep(clock.now(), true);
    Ok((ended, runtime))
}

fn backoff() -> Backoff {
    let timing = link::Timing::default();
    Backoff::new(timing.first_retry, timing.last_retry, rand::make_rng())
}

fn link_of(
    state: &Arc<StateDir>,
    ledger: &Arc<Ledger>,
    identity: Identity,
    holding: Option<Arc<Holding>>,
    target: watch::Sender<Option<Arc<Holding>>>,
    reporter: Reporter,
    (runtime, logs): (&'static str, Arc<dyn Logs>),
) -> Link {
    Link {
        state: state.clone(),
        identity,
        ledger: ledger.clone(),
        holding,
        target,
        reporter,
        connected: watch::Sender::new(false),
        runtime,
        logs,
        facts: facts::gather(),
        timing: link::Timing::default(),
        network: Network::default(),
        random: rand::make_rng::<StdRng>(),
    }
}
