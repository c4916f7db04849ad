//! Webhooks: a verified call makes the fleet's source look, and says nothing else.

use axum::{
    body::Bytes,
    extract::{Path, State as Extract},
    http::{HeaderMap, StatusCode},
};
use longshore_webhooks::{Error, Event, github};
use tracing::{debug, warn};

use super::{ApiError, State, fleets::webhook_purpose};
use crate::store::fleets::{self, FleetId};

pub(super) async fn receive(
    Extract(api): State,
    Path((tenant, fleet)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
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
