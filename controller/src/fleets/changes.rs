//! Tells those who wait that devices of a fleet were decided on, here and at other replicas.

use tokio::sync::watch;

use crate::{
    replica::{Notice, Notices},
    store::fleets::FleetId,
};

/// Counts changes of a fleet's devices' states, and of what they wait for; clones count the same.
#[derive(Clone, Debug)]
pub struct Changes {
    count: watch::Sender<u64>,
    fleet: FleetId,
    notices: Notices,
}

impl Changes {
    /// None so far.
    pub fn new(fleet: FleetId, notices: Notices) -> Self {
        Self {
            count: watch::Sender::new(0),
            fleet,
            notices,
        }
    }

    /// Something changed.
    pub fn tell(&self) {
        self.heard();
        self.notices.tell([Notice::Changed(self.fleet.clone())]);
    }

    /// Another replica says that something changed.
    pub fn heard(&self) {
        self.count.send_modify(|count| *count += 1);
    }

    /// Waits for changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }
}
