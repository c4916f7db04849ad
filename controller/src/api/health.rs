//! For orchestrators and Prometheus.

use axum::{
    extract::State as Extract,
    http::{StatusCode, Uri, header},
    response::IntoResponse,
};

use super::{ApiError, State, access::Administrator};
use crate::store::tenants;

/// The process runs.
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// The store answers, so that calls can be served.
pub(super) async fn ready(Extract(api): State) -> Result<&'static str, ApiError> {
    let mut db = api.store.read().await?;
    tenants::list(&mut db).await?;
    Ok("ok\n")
}

/// The counts of all tenants together, hence for administrators.
pub(super) async fn metrics(Extract(api): State, _: Administrator) -> impl IntoResponse {
    let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, media_type)], api.metrics.text())
}

pub(super) async fn not_found(uri: Uri) -> ApiError {
    ApiError::refused(
        StatusCode::NOT_FOUND,
        format!("there is no `{}`", uri.path()),
    )
}
