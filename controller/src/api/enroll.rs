//! Where devices ask to be let in.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::State as Extract,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use longshore_protocol::api::EnrollRequest;

use super::{Peer, State};
use crate::enrollment::{EnrollError, Outcome};

pub(super) async fn enroll(
    Extract(api): State,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let token = bearer(&headers);
    let request: EnrollRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            let detail = format!("the body is not an enrollment request: {error}");
            return EnrollError::Invalid(detail).into_response();
        }
    };
    // The call may be held for a while.
    drop(body);
    respond(api.enrollment.enroll(token, request, peer.ip()).await)
}

/// The token that was presented, or nothing.
pub(super) fn bearer(headers: &HeaderMap) -> &str {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .unwrap_or_default()
}

/// What a call came to, for the device.
pub(super) fn respond(result: Result<Outcome, EnrollError>) -> Response {
    match result {
        Ok(Outcome::Approved(approved)) => (StatusCode::OK, Json(approved)).into_response(),
        Ok(Outcome::Rejected(rejected)) => (StatusCode::FORBIDDEN, Json(rejected)).into_response(),
        Ok(Outcome::Pending(pending)) => {
            let seconds = HeaderValue::from(pending.retry_after);
            (
                StatusCode::ACCEPTED,
                [(header::RETRY_AFTER, seconds)],
                Json(pending),
            )
                .into_response()
        }
        Err(error) => error.into_response(),
    }
}
