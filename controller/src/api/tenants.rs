//! Tenants.

use axum::{Json, extract::State as Extract, http::StatusCode};
use longshore_protocol::api::{CreateTenant, CreatedTenant, List, Status, Tenant};
use secrecy::ExposeSecret as _;

use super::{
    ApiError, State,
    access::{Administrator, InTenant},
    fleets,
};
use crate::{
    clock, secret,
    store::tenants::{self, Operator},
};

pub(super) async fn list(
    Extract(api): State,
    _: Administrator,
) -> Result<Json<List<Tenant>>, ApiError> {
    let mut db = api.store.read().await?;
    let items = tenants::list(&mut db)
        .await?
        .into_iter()
        .map(|tenant| Tenant {
            name: tenant.name,
            created_at: tenant.created_at,
        })
        .collect();
    Ok(Json(List { items }))
}

pub(super) async fn create(
    Extract(api): State,
    _: Administrator,
    Json(request): Json<CreateTenant>,
) -> Result<(StatusCode, Json<CreatedTenant>), ApiError> {
    let name = request.name;
    let token = secret::generate("lsa_");
    let hash = secret::hash(token.expose_secret());
    let now = clock::now_ms();
    let mut db = api.store.write().await?;
    tenants::insert(&mut db, &name, now).await?;
    let operator = Operator::Tenant(name.clone());
    tenants::insert_api_token(&mut db, hash, &operator, "made with the tenant", now).await?;
    db.commit().await?;
    let created = CreatedTenant {
        name,
        api_token: token.expose_secret().to_owned(),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

pub(super) async fn status(
    Extract(api): State,
    InTenant { tenant, .. }: InTenant,
) -> Result<Json<Status>, ApiError> {
    let mut db = api.store.read().await?;
    let fleets = fleets::views(&api, &mut db, &tenant).await?;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        renderer: api.renderer.clone(),
        store: api.store.engine().name().to_owned(),
        fleets,
    }))
}
