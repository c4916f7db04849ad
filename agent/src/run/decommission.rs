//! The end of a device's membership.
//!
//! A note comes first, then what the device ran is removed, then what it was is forgotten. The note stays: it
//! lets the next start finish what a crash cut short, and tells why an agent that is started again does
//! nothing. A token that the note does not know brings the device back, as a new one with a new key.

use longshore_protocol::Digest;
use secrecy::SecretString;

use super::RunError;
use crate::{
    clock,
    config::LastGood,
    enroll,
    identity::{Decommissioned, StateDir},
    ledger::Ledger,
    runtime::Runtime,
};

/// Whether a decommission was begun and not finished.
pub(super) fn was_begun(state: &StateDir) -> Result<bool, RunError> {
    Ok(state.decommissioned()?.is_some() && state.identity()?.is_some())
}

/// Notes that the device is out, and which token had brought it in.
pub(super) async fn begin(state: &StateDir, reason: String, token: Digest) -> Result<(), RunError> {
    let device_id = state.identity()?.map(|identity| identity.device_id);
    let note = Decommissioned {
        device_id,
        reason,
        at: clock::system(),
        token,
    };
    Ok(state.note_decommission(&note).await?)
}

/// Removes what the device ran and forgets what it was.
pub(super) async fn finish(
    state: &StateDir,
    ledger: &Ledger,
    runtime: Option<Box<dyn Runtime>>,
) -> Result<(), RunError> {
    let reason = state
        .decommissioned()?
        .map(|note| note.reason)
        .unwrap_or_default();
    if let Some(mut runtime) = runtime {
        let removed = runtime.clear().await.map_err(RunError::Remove)?;
        tracing::info!(
            removed = removed.removed.len(),
            "removed what this device ran"
        );
    }
    ledger.clear()?;
    LastGood::open(state.path())?.forget()?;
    state.forget().await?;
    tell(&reason);
    Ok(())
}

/// Whether an earlier decommission stands: there is no token, or the one that the device had enrolled with.
pub(super) fn stands(state: &StateDir, token: Option<&SecretString>) -> Result<bool, RunError> {
    let Some(note) = state.decommissioned()? else {
        return Ok(false);
    };
    let stands = token.is_none_or(|token| enroll::digest(token) == note.token);
    if stands {
        tell(&note.reason);
    }
    Ok(stands)
}

fn tell(reason: &str) {
    tracing::warn!(
        reason,
        "this device was decommissioned; start the agent with a new token to enroll it anew"
    );
}
