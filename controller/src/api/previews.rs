//! Previews: of a branch for operators, and whole reports for those who were shown a link.

use axum::{
    Json,
    extract::{Path, Query, State as Extract},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use longshore_protocol::{
    FleetName, TenantName,
    api::preview::{CreatePreview, Preview},
};
use serde::Deserialize;

use super::{ApiError, State, access::InFleet};
use crate::{
    preview::Link,
    store::{fleets::FleetId, previews},
};

pub(super) async fn create(
    Extract(api): State,
    InFleet(fleet): InFleet,
    Json(request): Json<CreatePreview>,
) -> Result<Json<Preview>, ApiError> {
    let previews = api
        .fleets
        .branch_previews(&fleet.id)
        .ok_or_else(|| ApiError::not_found("fleet", &fleet.id.name))?;
    let report = previews.branch(&request.branch).await?;
    Ok(Json(report.preview))
}

#[derive(Deserialize)]
pub(super) struct Shown {
    #[serde(default)]
    key: String,
}

/// The whole report that a comment leads to. What does not exist and what the key does not open are the same.
pub(super) async fn report(
    Extract(api): State,
    Path((tenant, fleet, number)): Path<(String, String, String)>,
    Query(Shown { key }): Query<Shown>,
) -> Result<Response, ApiError> {
    let closed = || {
        ApiError::refused(
            StatusCode::NOT_FOUND,
            "there is no such report, or a newer one took its place; the pull request's comment leads to it",
        )
    };
    let tenant: TenantName = tenant.parse().map_err(|_invalid| closed())?;
    let name: FleetName = fleet.parse().map_err(|_invalid| closed())?;
    let number: u64 = number.parse().map_err(|_invalid| closed())?;
    let fleet = FleetId { tenant, name };
    let mut db = api.store.read().await?;
    let report = previews::report(&mut db, &fleet, number).await?;
    drop(db);
    let link = Link {
        keyring: api.keyring.clone(),
        public_url: api.public_url.clone(),
    };
    let (head, report) = report
        .filter(|(head, _)| link.opens(&fleet, number, head, &key))
        .ok_or_else(closed)?;
    let text = format!(
        "Fleet {fleet}, pull request {number}, commit {head}\n\n{}",
        report.report()
    );
    // The text is a repo's: nothing may take it for more, keep it, or tell others where it was found.
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; sandbox",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "private, no-store"),
    ];
    Ok((headers, text).into_response())
}
