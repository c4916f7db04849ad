//! How a fleet's Git host is reached: shown without secrets, replaced, taken away.
//!
//! A tenant connects its own fleets. What it gives is for its own repo, and stays with the fleet.

use axum::{Json, extract::State as Extract, http::StatusCode};
use longshore_protocol::api::connection::{self as api, Connect};

use super::{
    Api, ApiError, State,
    access::{InFleet, InTenant},
};
use crate::{
    error::chain,
    forge::{ForgeError, connection::Connection},
    store::{
        fleets::{self, Fleet},
        tenants::Operator,
    },
};

pub(super) async fn show(
    Extract(api): State,
    InFleet(fleet): InFleet,
) -> Result<Json<api::Connection>, ApiError> {
    let connection = Connection::unseal(&api.keyring, &fleet)?
        .ok_or_else(|| ApiError::not_found("connection of fleet", &fleet.id.name))?;
    Ok(Json(connection.view()))
}

pub(super) async fn put(
    Extract(api): State,
    InTenant { operator, .. }: InTenant,
    InFleet(fleet): InFleet,
    Json(request): Json<Connect>,
) -> Result<Json<api::Connection>, ApiError> {
    if fleet.hosted {
        return Err(ApiError::refused(
            StatusCode::UNPROCESSABLE_ENTITY,
            "the controller hosts this fleet's repo itself; there is nothing to connect it to",
        ));
    }
    let is_forced = request.force;
    let is_administrator = operator == Operator::Administrator;
    let connection = Connection::new(request, &fleet.repo, is_administrator)?;
    if let Some(forge) = connection.open(&api.fleets.http)?
        && !is_forced
    {
        forge.check().await.map_err(|error| unchecked(&error))?;
    }
    let sealed = connection.seal(&api.keyring, &fleet.id)?;
    replace(&api, &fleet, Some(sealed)).await?;
    Ok(Json(connection.view()))
}

pub(super) async fn remove(
    Extract(api): State,
    InFleet(fleet): InFleet,
) -> Result<StatusCode, ApiError> {
    replace(&api, &fleet, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Nothing was stored, since the forge would not let the controller do its work.
fn unchecked(error: &ForgeError) -> ApiError {
    let status = match error {
        ForgeError::RateLimited { .. } | ForgeError::Unavailable { .. } => StatusCode::BAD_GATEWAY,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    };
    let detail = format!(
        "{}; nothing was changed: mend that and connect again, or connect with `force`",
        chain(error)
    );
    ApiError::refused(status, detail)
}

/// Stores what the connection is now, and follows the fleet through it from here on.
async fn replace(api: &Api, fleet: &Fleet, connection: Option<Vec<u8>>) -> Result<(), ApiError> {
    let mut db = api.store.write().await?;
    fleets::set_connection(&mut db, &fleet.id, connection.as_deref()).await?;
    // While the forge was asked, the fleet may have been removed, and another one made under its name.
    let now = fleets::find(&mut db, &fleet.id).await?;
    let now = now
        .filter(|now| now.created_at == fleet.created_at)
        .ok_or_else(|| ApiError::not_found("fleet", &fleet.id.name))?;
    db.commit().await?;
    api.fleets.follow(&now).await?;
    api.fleets.announce();
    Ok(())
}
