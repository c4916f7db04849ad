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
mod trial;

use std::{convert::Infallible, sync::Arc, time::Duration};

use longshore_protocol::{Generation, api::Facts, session::Holding};
use rand::rngs::StdRng;
use tokio::{sync::watch, task::JoinHandle, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    backoff::Backoff,
    clock::Clock,
    config::{ConfigError, LastGood, Origin, Settings},
    enroll::{self, Application, EnrollError},
    facts::Watcher,
    files::FileError,
    identity::{Identity, StateDir, StateError},
    journal::Journal,
    ledger::Ledger,
    link::{self, Ended, Link, LinkError},
    logs,
    network::Network,
    reconcile,
    reconcile::Reconciler,
    report::{APPLIED, LEDGER_WRITABLE, Reporter},
    runtime::{self, ApplyError, Runtime, logs::Logs},
    update::Updates,
    watchdog::Watchdog,
};

/// How long the link lives on when the reconciler is dead.
const LAST_CHANCE: Duration = Duration::from_mins(1);

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
    /// A loop does not go on.
    #[error("the {0} loop does not go on; the agent ends, to be started again")]
    Stuck(&'static str),
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

/// How a run ends without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// For good: it was stopped, or the device was decommissioned.
    Over,
    /// The settings are to be read anew, and the agent to be run with them.
    ReadAnew,
}

/// Runs until `stop` is cancelled, the device is decommissioned, other settings are to hold, or something fails for
/// good.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<Outcome, RunError> {
    let watchdog = Watchdog::of_the_process();
    tokio::select! {
        ended = live(settings, &watchdog, stop) => ended,
        stuck = watchdog.run() => Err(RunError::Stuck(stuck)),
    }
}

async fn live(
    settings: Settings,
    watchdog: &Watchdog,
    stop: CancellationToken,
) -> Result<Outcome, RunError> {
    let mut state = StateDir::open(&settings.state_dir)?;
    watchdog.ready();
    if let Some(kept) = &settings.identity_secret {
        let stopped = secret::share(&mut state, kept, backoff(), &stop).await?;
        if stopped {
            return Ok(Outcome::Over);
        }
    }
    let state = Arc::new(state);
    let ledger = Arc::new(Ledger::new(state.folder()?));
    let network = network(&settings, &state)?;
    if decommission::was_begun(&state)? {
        let finish = decommission::finish(&state, &ledger, runtime_of(&settings, &state)?);
        watchdog.watch("decommission", finish).await?;
        return Ok(Outcome::Over);
    }
    let identity = if let Some(identity) = state.identity()? {
        identity
    } else {
        watchdog.status("enrolling; the log says what it waits for");
        let join = join(&settings, &state, &ledger, &network, &stop);
        match watchdog.watch("enrollment", join).await? {
            Some(identity) => identity,
            None => return Ok(Outcome::Over),
        }
    };
    state.remove_token();
    let runtime = runtime::of(settings.runtime, (&identity).into());
    let token = identity.token;
    let updates = Updates::new(settings.updates, ledger.record());
    let origin = &settings.origin;
    let facts = Watcher::new(settings.facts_dir, settings.state_dir);
    let worked = work(
        &state, &ledger, network, identity, runtime, updates, origin, facts, watchdog, &stop,
    );
    match worked.await? {
        Worked::Link(Ended::Stopped, _) => Ok(Outcome::Over),
        Worked::ReadAnew => Ok(Outcome::ReadAnew),
        Worked::Link(Ended::Decommissioned { reason }, runtime) => {
            decommission::begin(&state, reason, token).await?;
            let finish = decommission::finish(&state, &ledger, Some(runtime));
            watchdog.watch("decommission", finish).await?;
            Ok(Outcome::Over)
        }
    }
}

/// How to get to the controller.
fn network(settings: &Settings, state: &StateDir) -> Result<Network, RunError> {
    let network = settings.network(Clock::kept_in(state.folder()?));
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
        facts: Watcher::new(settings.facts_dir.clone(), settings.state_dir.clone()).look(),
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

/// How the work of an enrolled device ends.
enum Worked {
    /// The link ended. The runtime may have to be cleared.
    Link(Ended, Box<dyn Runtime>),
    /// Other settings are to hold.
    ReadAnew,
}

/// Runs an enrolled device.
#[expect(clippy::too_many_arguments, reason = "this is where everything meets")]
async fn work(
    state: &Arc<StateDir>,
    ledger: &Arc<Ledger>,
    network: Network,
    identity: Identity,
    runtime: Box<dyn Runtime>,
    updates: Updates,
    origin: &Origin,
    mut facts: Watcher,
    watchdog: &Watchdog,
    stop: &CancellationToken,
) -> Result<Worked, RunError> {
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
    let mut following = target.subscribe();
    let told = watch::Sender::new(facts.look());
    let link = Link {
        network,
        ..link_of(
            state,
            ledger,
            identity,
            holding,
            target,
            reporter.clone(),
            runs,
            told.subscribe(),
        )
    };
    let watching = watchdog.watch("facts", facts.run(told, reconciler.version()));
    let connected = link.connected.clone();
    let telling = tell_status(watchdog, &reporter, connected.subscribe());
    let last_good = LastGood::open(state.path())?;
    let judging = trial::judge(origin, &last_good, connected.subscribe(), &reporter);
    // The link ends first and the reconciler after it, so that either one's ending on its own is noticed.
    let (link_stops, reconciler_stops) = (stop.child_token(), CancellationToken::new());
    let reconciler = watchdog.watch("reconcile", reconciler.run(reconciler_stops.clone()));
    let mut reconciling = tracker.spawn(reconciler);
    let mut linking = tracker.spawn(watchdog.watch("link", link.run(link_stops.clone())));
    tracker.close();
    let ended = tokio::select! {
        ended = first_end(&mut linking, &mut reconciling, &mut following, &reporter) => Some(ended),
        () = judging => None,
        () = watching => Some(Err(RunError::Task("facts"))),
        never = telling => match never {},
    };
    link_stops.cancel();
    reconciler_stops.cancel();
    let ended = ended.transpose()?.transpose()?;
    let runtime = reconciling
        .await
        .map_err(|_panic| RunError::Task("reconcile"))?;
    tracker.wait().await;
    journal.keep(clock.now(), true);
    Ok(match ended {
        Some(ended) => Worked::Link(ended, runtime),
        None => Worked::ReadAnew,
    })
}

/// Waits for the first of the two loops to end. Only the link has a good reason to.
async fn first_end<L, R>(
    linking: &mut JoinHandle<L>,
    reconciling: &mut JoinHandle<R>,
    target: &mut watch::Receiver<Option<Arc<Holding>>>,
    reporter: &Reporter,
) -> Result<L, RunError> {
    tokio::select! {
        ended = &mut *linking => return ended.map_err(|_panic| RunError::Task("link")),
        _ = reconciling => {}
    }
    // What it died of may be the set itself. It would die of it after each restart, so there must be time for
    // another set to come.
    let message = "the agent failed while it applied this, and starts again";
    reporter.fails(APPLIED, "Interrupted", message);
    target.mark_unchanged();
    tokio::select! {
        _ = linking => {}
        Ok(()) = target.changed() => {}
        () = time::sleep(LAST_CHANCE) => {}
    }
    Err(RunError::Task("reconcile"))
}

/// Tells the service manager how it stands with the device, in a line.
async fn tell_status(
    watchdog: &Watchdog,
    reporter: &Reporter,
    mut connected: watch::Receiver<bool>,
) -> Infallible {
    let mut reports = reporter.follow();
    loop {
        let connection = if *connected.borrow_and_update() {
            "connected"
        } else {
            "not connected"
        };
        let told = {
            let report = reports.borrow_and_update();
            match report.held.generation {
                nothing if nothing == Generation::default() => {
                    format!("{connection}; nothing to run yet")
                }
                held => format!("{connection}; generation {held}: {:?}", report.phase),
            }
        };
        watchdog.status(&told);
        tokio::select! {
            Ok(()) = reports.changed() => {}
            Ok(()) = connected.changed() => {}
            else => std::future::pending().await,
        }
    }
}

fn backoff() -> Backoff {
    let timing = link::Timing::default();
    Backoff::new(timing.first_retry, timing.last_retry, rand::make_rng())
}

#[expect(clippy::too_many_arguments, reason = "this is where everything meets")]
fn link_of(
    state: &Arc<StateDir>,
    ledger: &Arc<Ledger>,
    identity: Identity,
    holding: Option<Arc<Holding>>,
    target: watch::Sender<Option<Arc<Holding>>>,
    reporter: Reporter,
    (runtime, logs): (&'static str, Arc<dyn Logs>),
    facts: watch::Receiver<Facts>,
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
        facts,
        timing: link::Timing::default(),
        network: Network::default(),
        random: rand::make_rng::<StdRng>(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::clock;

    async fn dies() {
        tokio::task::yield_now().await;
        panic!("as a bug would");
    }

    #[tokio::test(start_paused = true)]
    async fn no_half_of_the_agent_outlives_the_other() {
        let target = watch::Sender::new(None);
        let reporter = Reporter::new(None, clock::system);
        let mut follow = target.subscribe();
        let (mut link, mut reconcile) = (
            tokio::spawn(dies()),
            tokio::spawn(std::future::pending::<()>()),
        );
        let ended = first_end(&mut link, &mut reconcile, &mut follow, &reporter).await;
        assert!(matches!(ended, Err(RunError::Task("link"))));
        assert_eq!(RunError::Task("link").exit_code(), 1);

        // The link of a dead reconciler has a minute to bring another set, and tells what happened.
        let (mut link, mut reconcile) = (
            tokio::spawn(std::future::pending::<()>()),
            tokio::spawn(dies()),
        );
        let begun = Instant::now();
        let ended = first_end(&mut link, &mut reconcile, &mut follow, &reporter).await;
        assert!(matches!(ended, Err(RunError::Task("reconcile"))));
        assert!(begun.elapsed() >= LAST_CHANCE);
        let report = reporter.follow().borrow().clone();
        assert_eq!(report.conditions.first().unwrap().reason, "Interrupted");

        let begun = Instant::now();
        let mut reconcile = tokio::spawn(dies());
        let another = async {
            time::sleep(Duration::from_secs(1)).await;
            target.send_replace(None);
        };
        let (ended, ()) = tokio::join!(
            first_end(&mut link, &mut reconcile, &mut follow, &reporter),
            another
        );
        assert!(matches!(ended, Err(RunError::Task("reconcile"))));
        assert!(begun.elapsed() < LAST_CHANCE);
        link.abort();
    }
}
