//! Where devices renew a certificate that has ended.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::State as Extract,
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};
use longshore_protocol::api::renew::{RenewChallenge, RenewRequest};

use super::{
    Peer, State,
    enroll::{bearer, respond},
};
use crate::enrollment::EnrollError;

pub(super) async fn challenge(Extract(api): State) -> Json<RenewChallenge> {
    Json(api.enrollment.challenge())
}

pub(super) async fn renew(
    Extract(api): State,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request: RenewRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            let detail = format!("the body is not a renewal: {error}");
            return EnrollError::Invalid(detail).into_response();
        }
    };
    drop(body);
    let token = bearer(&headers);
    respond(api.enrollment.renew(token, &request, peer.ip()).await)
}
