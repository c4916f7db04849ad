//! Who calls, and what they may see.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, RawPathParams},
    http::{StatusCode, header::AUTHORIZATION, request::Parts},
};
use longshore_protocol::{DeviceName, TenantName};

use super::{Api, ApiError};
use crate::{
    secret,
    store::{
        devices::{self, Device},
        fleets::{self, Fleet, FleetId},
        tenants::{self, Operator},
    },
};

/// The token that the caller presents, if any.
pub(super) fn bearer(parts: &Parts) -> Option<&str> {
    parts
        .headers
        .get(AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
}

async fn operator(parts: &Parts, api: &Api) -> Result<Operator, ApiError> {
    let unauthorized = || {
        ApiError::refused(
            StatusCode::UNAUTHORIZED,
            "an API token is needed: `Authorization: Bearer …`; the first one is in the file \
             `admin-token` of the controller's data directory",
        )
    };
    let token = bearer(parts).ok_or_else(unauthorized)?;
    let mut db = api.store.read().await?;
    tenants::operator(&mut db, secret::hash(token))
        .await?
        .ok_or_else(unauthorized)
}

/// The caller is an administrator.
#[derive(Debug)]
pub(super) struct Administrator;

impl FromRequestParts<Arc<Api>> for Administrator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        match operator(parts, api).await? {
            Operator::Administrator => Ok(Self),
            Operator::Tenant(_) => Err(ApiError::refused(
                StatusCode::FORBIDDEN,
                "this needs an administrator's token",
            )),
        }
    }
}

/// The tenant of the path, which exists and is the caller's.
#[derive(Debug)]
pub(super) struct InTenant {
    pub tenant: TenantName,
    pub operator: Operator,
}

impl FromRequestParts<Arc<Api>> for InTenant {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let operator = operator(parts, api).await?;
        let name = parameter(parts, api, "tenant").await;
        let missing = || ApiError::not_found("tenant", &name);
        let tenant: TenantName = name.parse().map_err(|_invalid| missing())?;
        if matches!(&operator, Operator::Tenant(own) if *own != tenant) {
            return Err(missing());
        }
        let mut db = api.store.read().await?;
        if !tenants::exists(&mut db, &tenant).await? {
            return Err(missing());
        }
        Ok(Self { tenant, operator })
    }
}

/// The fleet of the path, which exists and is the caller's.
#[derive(Debug)]
pub(super) struct InFleet(pub Fleet);

impl FromRequestParts<Arc<Api>> for InFleet {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let InTenant { tenant, .. } = InTenant::from_request_parts(parts, api).await?;
        let name = parameter(parts, api, "fleet").await;
        let missing = || ApiError::not_found("fleet", &name);
        let id = FleetId {
            tenant,
            name: name.parse().map_err(|_invalid| missing())?,
        };
        let mut db = api.store.read().await?;
        Ok(Self(fleets::find(&mut db, &id).await?.ok_or_else(missing)?))
    }
}

/// The device of the path, which exists and is the caller's.
#[derive(Debug)]
pub(super) struct OfDevice {
    pub fleet: Fleet,
    pub device: Device,
}

impl FromRequestParts<Arc<Api>> for OfDevice {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let InFleet(fleet) = InFleet::from_request_parts(parts, api).await?;
        let name = parameter(parts, api, "device").await;
        let missing = || ApiError::not_found("device", &name);
        let device: DeviceName = name.parse().map_err(|_invalid| missing())?;
        let mut db = api.store.read().await?;
        let device = devices::find(&mut db, &fleet.id, &device)
            .await?
            .ok_or_else(missing)?;
        Ok(Self { fleet, device })
    }
}

async fn parameter(parts: &mut Parts, api: &Arc<Api>, name: &str) -> String {
    let parameters = RawPathParams::from_request_parts(parts, api).await;
    parameters
        .iter()
        .flatten()
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.to_owned())
        .unwrap_or_default()
}
