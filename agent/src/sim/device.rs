//! The life of one simulated device.

use std::{sync::Arc, time::Duration};

use longshore_protocol::{api::Facts, session::Holding};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use secrecy::SecretString;
use tokio::{
    sync::{Semaphore, watch},
    time,
};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{Behavior, Board, Roster, memory::Memory, roster::Known, runtime::Simulated};
use crate::{
    backoff::Backoff,
    causes, clock,
    enroll::{self, Application, EnrollError},
    identity::Identity,
    link::{self, Ended, Link, LinkError},
    network::Network,
    reconcile::{self, Reconciler},
    report::{LEDGER_WRITABLE, Reporter},
    runtime::logs::NoLogs,
    tls::Trust,
};

/// Timers that nothing waits for are this rare, or thousands of them would be most of the work.
const RARELY: Duration = Duration::from_hours(1);
/// Between two looks at the session's and the certificate's clocks.
const TICK: Duration = Duration::from_secs(30);

/// What all devices share.
#[derive(Debug)]
pub(super) struct Fleet {
    pub server: Url,
    pub trust: Trust,
    pub network: Network,
    pub token: SecretString,
    pub roster: Arc<Roster>,
    pub board: Arc<Board>,
    pub behavior: watch::Sender<Behavior>,
    pub places: Semaphore,
    pub seed: u64,
}

/// Whether a device is there at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Power {
    On,
    Off,
}

/// One device.
#[derive(Debug)]
pub(super) struct Device {
    index: usize,
    fleet: Arc<Fleet>,
    power: watch::Receiver<Power>,
    behavior: watch::Receiver<Behavior>,
    random: StdRng,
    /// It flaps while the share of those that do is above this.
    steadiness: f64,
}

/// What a device has while it is enrolled.
struct Enrolled {
    memory: Arc<Memory>,
    identity: Arc<Identity>,
    target: watch::Sender<Option<Arc<Holding>>>,
    reporter: Reporter,
    connected: watch::Sender<bool>,
}

impl Device {
    pub(super) fn new(index: usize, fleet: Arc<Fleet>, power: watch::Receiver<Power>) -> Self {
        // The index is multiplied so that neighbors and neighboring seeds do not share their chance.
        let place = u64::try_from(index).unwrap_or_default();
        let mut random =
            StdRng::seed_from_u64(fleet.seed ^ place.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Self {
            index,
            power,
            behavior: fleet.behavior.subscribe(),
            fleet,
            steadiness: random.random(),
            random,
        }
    }

    /// Lives until it is stopped, or ends by itself; the board says why.
    pub(super) async fn live(mut self, stop: CancellationToken) {
        let known = self.fleet.board.names().get(self.index);
        let known = known.and_then(|name| self.fleet.roster.take(name));
        let (enrollment, identity) = match known {
            Some(Known::Enrolled(identity)) => (None, Some(Arc::new(*identity))),
            Some(Known::Enrolling(enrollment)) => (Some(enrollment), None),
            None => (None, None),
        };
        let memory = Arc::new(Memory::new(self.index, self.fleet.clone(), enrollment));
        let identity = match identity {
            Some(identity) => {
                self.fleet.board.enroll(self.index, identity.clone());
                identity
            }
            None => match self.enroll(&memory, &stop).await {
                Ok(identity) => Arc::new(identity),
                Err(EnrollError::Stopped) => return,
                Err(error) => return self.fleet.board.end(self.index, causes(&error)),
            },
        };
        let Some(connected) = self.fleet.board.connected(self.index) else {
            return;
        };
        let target = watch::Sender::new(None);
        let reporter = Reporter::new(None, clock::system);
        let runtime = Box::new(Simulated {
            index: self.index,
            fleet: self.fleet.clone(),
            random: self.fork(),
        });
        let timing = reconcile::Timing {
            check: RARELY,
            ..reconcile::Timing::default()
        };
        let backoff = self.backoff();
        let reconciler = Reconciler::new(
            runtime,
            target.subscribe(),
            reporter.clone(),
            timing,
            backoff,
        );
        let enrolled = Enrolled {
            memory,
            identity,
            target,
            reporter,
            connected,
        };
        let ended = tokio::select! {
            // It runs for as long as the connection is kept up.
            _ = reconciler.run(CancellationToken::new()) => return,
            ended = self.connect(&enrolled, &stop) => ended,
        };
        enrolled.connected.send_replace(false);
        match ended {
            Ok(Ended::Stopped) => {}
            Ok(Ended::Decommissioned { reason }) => {
                self.fleet
                    .board
                    .end(self.index, format!("decommissioned: {reason}"));
            }
            Err(error) => self.fleet.board.end(self.index, causes(&error)),
        }
    }

    async fn enroll(
        &mut self,
        memory: &Memory,
        stop: &CancellationToken,
    ) -> Result<Identity, EnrollError> {
        let fleet = self.fleet.clone();
        let place = tokio::select! {
            () = stop.cancelled() => return Err(EnrollError::Stopped),
            place = fleet.places.acquire() => place,
        };
        let (Ok(_place), Some(name)) = (place, fleet.board.names().get(self.index)) else {
            return Err(EnrollError::Stopped);
        };
        let application = Application {
            server: fleet.server.clone(),
            trust: fleet.trust.clone(),
            token: fleet.token.clone(),
            name: name.clone(),
            facts: facts(),
            network: fleet.network.clone(),
        };
        enroll::enroll(memory, &application, |_, _| {}, self.backoff(), stop).await
    }

    /// Keeps the link up while the device has power and does not flap.
    async fn connect(
        &mut self,
        enrolled: &Enrolled,
        stop: &CancellationToken,
    ) -> Result<Ended, LinkError> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(Ended::Stopped),
                powered = self.power.wait_for(|power| *power == Power::On) => if powered.is_err() {
                    return Ok(Ended::Stopped);
                },
            }
            let link = Box::pin(self.link(enrolled).run(stop.clone()));
            tokio::select! {
                ended = link => return ended,
                // Dropped as it stands: the controller hears nothing but the end of the TCP connection.
                Ok(_) = self.power.wait_for(|power| *power == Power::Off) => {}
                () = flaps(&mut self.behavior, &mut self.random, self.steadiness) => {}
            }
            enrolled.connected.send_replace(false);
            // One that no longer flaps comes back at once.
            let behavior = *self.behavior.borrow();
            let away = behavior
                .flap_every
                .mul_f64(self.random.random_range(0.0..2.0));
            tokio::select! {
                () = stop.cancelled() => return Ok(Ended::Stopped),
                () = time::sleep(away) => {}
                Ok(_) = self.behavior.wait_for(|now| self.steadiness >= now.flapping) => {}
            }
        }
    }

    fn link(&mut self, enrolled: &Enrolled) -> Link<Memory, Memory> {
        let board = &self.fleet.board;
        let holding = board.holding(self.index);
        if holding.is_some() {
            enrolled.reporter.holds(LEDGER_WRITABLE, "Loaded", "");
        }
        let identity = board
            .identity(self.index)
            .unwrap_or_else(|| enrolled.identity.clone());
        Link {
            state: enrolled.memory.clone(),
            identity: (*identity).clone(),
            ledger: enrolled.memory.clone(),
            holding,
            target: enrolled.target.clone(),
            reporter: enrolled.reporter.clone(),
            connected: enrolled.connected.clone(),
            runtime: super::runtime::NAME,
            logs: Arc::new(NoLogs("a simulated device runs nothing")),
            facts: watch::Sender::new(facts()).subscribe(),
            timing: link::Timing {
                tick: TICK,
                ..link::Timing::default()
            },
            network: self.fleet.network.clone(),
            random: self.fork(),
        }
    }

    fn fork(&mut self) -> StdRng {
        StdRng::from_rng(&mut self.random)
    }

    fn backoff(&mut self) -> Backoff {
        let timing = link::Timing::default();
        Backoff::new(timing.first_retry, timing.last_retry, self.fork())
    }
}

/// Returns when it is time for a device of this steadiness to go; never for one that does not flap.
async fn flaps(behavior: &mut watch::Receiver<Behavior>, random: &mut StdRng, steadiness: f64) {
    loop {
        let now = *behavior.borrow_and_update();
        let changed = behavior.changed();
        if steadiness >= now.flapping {
            if changed.await.is_err() {
                std::future::pending::<()>().await;
            }
            continue;
        }
        let wait = now.flap_every.mul_f64(random.random_range(0.0..2.0));
        tokio::select! {
            () = time::sleep(wait) => return,
            Ok(()) = changed => {}
        }
    }
}

fn facts() -> Facts {
    Facts::from([
        ("agent".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("simulated".to_owned(), "true".to_owned()),
    ])
}
