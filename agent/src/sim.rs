//! A simulated fleet: thousands of devices in one process.
//!
//! ```text
//!               ┌ device 0: enroll ─▶ Link ─▶ Reconciler ─▶ simulated runtime ─┐
//! Simulation ───┼ device 1: …                                                  ├──▶ Board
//!               └ device n: …                                                  ┘   (who is how far, and when)
//! ```
//!
//! Enrollment, TLS, WebSocket, session and reconciler are the agent's own code. Only three things differ: what a
//! device keeps is in memory ([`memory`]), what it applies to is a runtime that takes as long and fails as often
//! as it is told ([`runtime`]), and timers that a device alone can afford are rarer. A [`Roster`] keeps keys and
//! identities in a file, so that a fleet can be simulated again without enrolling again.
//!
//! [`repo`] writes fleet repos to go with it, and [`misbehave`] has devices that break the rules.

mod board;
mod device;
mod memory;
pub mod misbehave;
pub mod repo;
mod roster;
mod runtime;

use std::{sync::Arc, time::Duration};

use longshore_protocol::DeviceName;
use secrecy::SecretString;
use tokio::{
    sync::{Semaphore, watch},
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use crate::{network::Network, tls::Trust};

pub use board::{Applied, Board, Totals};
pub use roster::{Roster, RosterError};

use self::device::{Device, Power};

/// Which fleet to simulate.
#[derive(Debug)]
pub struct Options {
    /// The controller's public address.
    pub server: Url,
    /// How to know that it is the controller.
    pub trust: Trust,
    /// The provisioning token of the devices that are not enrolled yet.
    pub token: SecretString,
    /// The devices' names.
    pub names: Vec<DeviceName>,
    /// What is known of them from earlier.
    pub roster: Roster,
    /// How many may be on their way through the enrollment at once.
    pub enrolling: usize,
    /// How they behave.
    pub behavior: Behavior,
    /// Where chance begins: the same seed, the same devices flap.
    pub seed: u64,
}

/// How simulated devices behave. It can be changed while they run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Behavior {
    /// How long applying a set takes.
    pub apply_delay: Duration,
    /// The share of passes that fail; the reconciler tries again.
    pub failures: f64,
    /// The share of devices that lose their connection again and again.
    pub flapping: f64,
    /// How long such a device stays connected, on average, and also how long it stays away.
    pub flap_every: Duration,
}

impl Default for Behavior {
    fn default() -> Self {
        Self {
            apply_delay: Duration::ZERO,
            failures: 0.0,
            flapping: 0.0,
            flap_every: Duration::from_secs(10),
        }
    }
}

/// A simulated fleet that runs.
#[derive(Debug)]
pub struct Simulation {
    board: Arc<Board>,
    behavior: watch::Sender<Behavior>,
    power: Vec<watch::Sender<Power>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Simulation {
    /// Starts all devices. Those that the roster knows connect at once, the others enroll first.
    pub fn start(options: Options) -> Self {
        let Options {
            server,
            trust,
            token,
            names,
            roster,
            enrolling,
            behavior,
            seed,
        } = options;
        let board = Arc::new(Board::of(names));
        let behavior = watch::Sender::new(behavior);
        let application = Arc::new(device::Fleet {
            server,
            trust,
            network: Network::default(),
            token,
            roster: Arc::new(roster),
            board: board.clone(),
            behavior: behavior.clone(),
            places: Semaphore::new(enrolling.max(1)),
            seed,
        });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let power = (0..board.len())
            .map(|index| {
                let power = watch::Sender::new(Power::On);
                let device = Device::new(index, application.clone(), power.subscribe());
                tasks.spawn(device.live(stop.clone()));
                power
            })
            .collect();
        tasks.close();
        Self {
            board,
            behavior,
            power,
            stop,
            tasks,
        }
    }

    /// Who is how far, and since when.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Changes how the devices behave from now on.
    pub fn behave(&self, change: impl FnOnce(&mut Behavior)) {
        self.behavior.send_modify(change);
    }

    /// Cuts a device off as a power cut would: nothing is said or closed properly, and it forgets nothing.
    pub fn unplug(&self, index: usize) {
        self.switch(index, Power::Off);
    }

    /// Lets it come back.
    pub fn plug_in(&self, index: usize) {
        self.switch(index, Power::On);
    }

    fn switch(&self, index: usize, to: Power) {
        if let Some(power) = self.power.get(index) {
            power.send_replace(to);
        }
    }

    /// Waits until `is` holds for the fleet's totals. It looks again and again, and less often the larger the fleet is,
    /// so that looking stays a small part of the work: some 10 ms at 100 devices, 110 ms at 10,000.
    pub async fn until(&self, mut is: impl FnMut(&Totals) -> bool) {
        let devices = u64::try_from(self.board.len()).unwrap_or_default();
        let mut look = time::interval(Duration::from_millis(10 + (devices / 100).min(200)));
        look.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        while !is(&self.board.totals()) {
            look.tick().await;
        }
    }

    /// Says goodbye on all connections and ends.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Names for a fleet: `<prefix>-00000` and so on.
///
/// # Errors
/// Where the prefix makes no device name.
pub fn names(
    prefix: &str,
    count: usize,
) -> Result<Vec<DeviceName>, <DeviceName as std::str::FromStr>::Err> {
    (0..count)
        .map(|index| format!("{prefix}-{index:05}").parse())
        .collect()
}
