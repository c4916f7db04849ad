//! What a simulated device keeps: in memory, and its identity in the roster's file where there is one.

use std::sync::{Arc, Mutex, PoisonError};

use longshore_protocol::session::Holding;

use super::device::Fleet;
use crate::{
    identity::{self, Enrollment, Identity, StateError},
    ledger,
};

/// State directory and ledger of one simulated device.
#[derive(Debug)]
pub(super) struct Memory {
    index: usize,
    fleet: Arc<Fleet>,
    enrollment: Mutex<Option<Enrollment>>,
}

impl Memory {
    pub(super) fn new(index: usize, fleet: Arc<Fleet>, enrollment: Option<Enrollment>) -> Self {
        Self {
            index,
            fleet,
            enrollment: Mutex::new(enrollment),
        }
    }

    fn enrolls_with(&self, enrollment: Option<Enrollment>) {
        *self
            .enrollment
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = enrollment;
    }
}

impl identity::Keep for Memory {
    fn enrollment(&self) -> Result<Option<Enrollment>, StateError> {
        let enrollment = self
            .enrollment
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(enrollment.clone())
    }

    async fn keep_enrollment(&self, enrollment: &Enrollment) -> Result<(), StateError> {
        self.fleet.roster.keep_enrollment(enrollment)?;
        self.enrolls_with(Some(enrollment.clone()));
        Ok(())
    }

    async fn keep_identity(&self, identity: &Identity) -> Result<(), StateError> {
        self.fleet.roster.keep_identity(identity)?;
        self.enrolls_with(None);
        let identity = Arc::new(identity.clone());
        self.fleet.board.enroll(self.index, identity);
        Ok(())
    }
}

impl ledger::Keep for Memory {
    async fn keep(self: Arc<Self>, holding: Arc<Holding>) -> Result<(), String> {
        self.fleet.board.hold(self.index, holding);
        Ok(())
    }
}
