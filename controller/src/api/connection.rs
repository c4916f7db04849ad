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
    forge::connection::Connection,
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
    let is_forced = request.force;
    let is_administrator = operator == Operator::Administrator;
    let connection = Connection::new(request, &fleet.repo, is_administrator)?;
    if let Some(forge) = connection.open()?
        && !is_forced
    {
        forge.check().await?;
    }
    let sealed = connection.seal(&api.keyring, &fleet.id)?;
    replace(&api, fleet, Some(sealed)).await?;
    Ok(Json(connection.view()))
}

pub(super) async fn remove(
    Extract(api): State,
    InFleet(fleet): InFleet,
) -> Result<StatusCode, ApiError> {
    replace(&api, fleet, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Stores what the connection is now, and follows the fleet through it from here on.
async fn replace(api: &Api, fleet: Fleet, connection: Option<Vec<u8>>) -> Result<(), ApiError> {
    let mut db = api.store.write().await?;
    fleets::set_connection(&mut db, &fleet.id, connection.as_deref()).await?;
    db.commit().await?;
    let fleet = Fleet {
        connection,
        ..fleet
    };
    api.fleets.follow(&fleet).await?;
    Ok(())
}
