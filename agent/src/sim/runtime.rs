//! A runtime that runs nothing, and takes as long and fails as often as it is told.

use std::{future, sync::Arc};

use async_trait::async_trait;
use longshore_protocol::session::Holding;
use rand::{RngExt as _, rngs::StdRng};
use tokio::time;

use super::device::Fleet;
use crate::runtime::{ApplyError, Changes, Runtime};

/// What simulated devices say that they apply to.
pub(super) const NAME: &str = "simulated";

/// The runtime of one simulated device.
#[derive(Debug)]
pub(super) struct Simulated {
    pub index: usize,
    pub fleet: Arc<Fleet>,
    pub random: StdRng,
}

#[async_trait]
impl Runtime for Simulated {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn apply(&mut self, holding: Arc<Holding>) -> Result<Changes, ApplyError> {
        let behavior = *self.fleet.behavior.borrow();
        if !behavior.apply_delay.is_zero() {
            time::sleep(behavior.apply_delay).await;
        }
        if behavior.failures > 0.0 && self.random.random_bool(behavior.failures.min(1.0)) {
            return Err(ApplyError::Interrupted);
        }
        let before = self.fleet.board.applied(self.index);
        if before.is_none_or(|before| before.held != holding.held()) {
            self.fleet.board.apply(self.index, &holding);
        }
        Ok(Changes::default())
    }

    async fn clear(&mut self) -> Result<Changes, ApplyError> {
        Ok(Changes::default())
    }

    async fn disturbed(&mut self) {
        future::pending::<()>().await;
    }
}
