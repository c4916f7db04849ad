//! Webhooks: a verified call makes the fleet's source look, and says nothing else.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{Path, State as Extract},
    http::{HeaderMap, StatusCode},
};
use longshore_webhooks::{Error, Event, github};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{ApiError, State, body, fleets::webhook_purpose};
use crate::store::fleets::{self, FleetId};

/// The largest body: GitHub's own limit.
const MAX_BODY: usize = 25 * 1024 * 1024;
/// How many bodies are read at once.
pub const MAX_AT_ONCE: usize = 8;
/// How long a call may wait for its turn.
const WAIT: Duration = Duration::from_secs(5);

pub(super) async fn receive(
    Extract(api): State,
    Path((tenant, fleet)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    // A fleet that does not exist and a wrong signature are answered alike.
    let refused = || {
        ApiError::refused(
            StatusCode::UNAUTHORIZED,
            "the signature does not fit; check the secret",
        )
    };
    let (Ok(tenant), Ok(name)) = (tenant.parse(), fleet.parse()) else {
        return Err(refused());
    };
    let id = FleetId { tenant, name };
    let mut db = api.store.read().await?;
    let Some(fleet) = fleets::find(&mut db, &id).await? else {
        return Err(refused());
    };
    drop(db);
    // Who does not even claim a signature gets no byte of memory.
    if !headers.contains_key("x-hub-signature-256") {
        return Err(refused());
    }
    let Ok(Ok(_permit)) = timeout(WAIT, api.webhook_bodies.acquire()).await else {
        return Err(ApiError::refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many webhooks at once; deliver it again",
        ));
    };
    let body = body::read(body, MAX_BODY).await?;
    let secret = api
        .keyring
        .decrypt(&webhook_purpose(&id), &fleet.webhook_secret)?;
    let delivery = match github::receive(&headers, &body, &[secret]) {
        Ok(delivery) => delivery,
        Err(error @ (Error::MissingSignature(_) | Error::BadSignature)) => {
            warn!(tenant = %id.tenant, fleet = %id.name, %error, "a webhook was refused");
            return Err(refused());
        }
        Err(error) => {
            return Err(ApiError::refused(
                StatusCode::BAD_REQUEST,
                error.to_string(),
            ));
        }
    };
    api.metrics.webhooks.inc();
    debug!(tenant = %id.tenant, fleet = %id.name, delivery = delivery.id, "webhook");
    if let Event::Push(_) = delivery.event {
        // Whatever was pushed: what counts is what the fetch finds.
        api.fleets.look(&id);
    }
    Ok(StatusCode::ACCEPTED)
}
