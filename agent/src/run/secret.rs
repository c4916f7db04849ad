//! The identity of an agent in a pod, which a Secret keeps.

use tokio::time;
use tokio_util::sync::CancellationToken;

use super::RunError;
use crate::{
    backoff::Backoff, causes, config::IdentitySecret, identity::StateDir,
    runtime::kube::secret::Secret,
};

/// Takes over what the Secret holds, and lets it keep what comes. Returns whether the agent was told to stop meanwhile.
///
/// It waits for the API server: without an answer the agent does not know who it is, and must not enroll anew.
pub(super) async fn share(
    state: &mut StateDir,
    kept: &IdentitySecret,
    mut backoff: Backoff,
    stop: &CancellationToken,
) -> Result<bool, RunError> {
    loop {
        let secret = Secret::new(&kept.cluster, &kept.name).await;
        let secret = secret.map_err(RunError::NoCluster)?;
        let error = tokio::select! {
            () = stop.cancelled() => return Ok(true),
            shared = state.keep_in(secret) => match shared {
                Ok(()) => return Ok(false),
                Err(error) => error,
            },
        };
        if !error.may_pass() {
            return Err(error.into());
        }
        let wait = backoff.after_failure();
        tracing::warn!(
            error = causes(&error),
            ?wait,
            "who this device is, is not known yet"
        );
        tokio::select! {
            () = stop.cancelled() => return Ok(true),
            () = time::sleep(wait) => {}
        }
    }
}
