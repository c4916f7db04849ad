//! Simulated fleets in a [`World`]: thousands of devices in this process, the controller in its own.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_agent::{
    sim::{self, Behavior, Options, Roster, Simulation, Totals, repo::Shape},
    tls::Trust,
};
use longshore_protocol::{
    DeviceName,
    api::{Approval, CreatedToken},
};
use tokio::time::timeout;

use crate::World;

/// How many devices may be on their way through the enrollment at once.
const ENROLLING: usize = 256;

/// A fleet to simulate.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// How many devices.
    pub devices: usize,
    /// What the devices' names begin with.
    pub prefix: String,
    /// What the fleet repo looks like.
    pub shape: Shape,
    /// How the devices behave.
    pub behavior: Behavior,
    /// Where chance begins.
    pub seed: u64,
}

impl FleetOptions {
    /// So many well-behaved devices.
    pub fn of(devices: usize) -> Self {
        Self {
            devices,
            prefix: "sim".to_owned(),
            shape: Shape::default(),
            behavior: Behavior::default(),
            seed: 1,
        }
    }

    /// The devices' names.
    ///
    /// # Errors
    /// Where the prefix makes no name.
    pub fn names(&self) -> Result<Vec<DeviceName>> {
        sim::names(&self.prefix, self.devices).context("the devices' names")
    }
}

/// Starts devices that the roster knows, or that enroll with the token.
///
/// # Errors
/// Where the options make no sense.
pub fn start(options: &FleetOptions, token: &CreatedToken, roster: Roster) -> Result<Simulation> {
    Ok(Simulation::start(Options {
        server: token.server.parse().context("the controller's address")?,
        trust: Trust::Fingerprint(token.ca_fingerprint),
        token: token.secret.clone().into(),
        names: options.names()?,
        roster,
        enrolling: ENROLLING,
        behavior: options.behavior,
        seed: options.seed,
    }))
}

/// Waits until `is` holds for the fleet's totals.
///
/// # Errors
/// With the totals, where it does not in time.
pub async fn until(
    simulation: &Simulation,
    what: &str,
    patience: Duration,
    is: impl FnMut(&Totals) -> bool,
) -> Result<Totals> {
    let waited = timeout(patience, simulation.until(is)).await;
    let totals = simulation.board().totals();
    ensure!(
        waited.is_ok(),
        "not within {patience:?}: {what}: {totals:?}{}",
        reason(simulation)
    );
    Ok(totals)
}

/// Why the first of the devices that ended did.
fn reason(simulation: &Simulation) -> String {
    let board = simulation.board();
    let ended = |index| {
        let why = board.ended(index)?;
        Some(format!("; device {index} ended: {why}"))
    };
    (0..board.len()).find_map(ended).unwrap_or_default()
}

impl World {
    /// Fills an empty world's repo with a fleet, whose devices are approved by the keys in it, and starts them.
    ///
    /// # Errors
    /// Where something fails.
    pub async fn simulate(&self, options: &FleetOptions) -> Result<Simulation> {
        let copy = self.repo.copy();
        let roster = Roster::open(&self.path().join(format!("{}.jsonl", options.prefix)))?;
        options.shape.write_base(copy.path())?;
        for (index, name) in options.names()?.iter().enumerate() {
            let key = roster.key_of(name)?;
            options.shape.write_device(copy.path(), index, name, key)?;
        }
        copy.commit("A fleet")?;
        copy.push()?;
        start(options, &self.fleet_token(None).await?, roster)
    }

    /// An automatic token whose devices get this overlay and no labels.
    ///
    /// # Errors
    /// Where the controller refuses.
    pub async fn fleet_token(&self, overlay: Option<String>) -> Result<CreatedToken> {
        self.api
            .create_token_with(Approval::Automatic, |token| {
                token.overlay = overlay;
                token.labels.clear();
            })
            .await
    }
}
