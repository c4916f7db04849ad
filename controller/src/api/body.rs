//! Requests' bodies: bounded in size, and in the time that they may take to come.

use std::time::Duration;

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::Request,
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::ApiError;

/// The largest body of a call, in bytes.
const MAX_BODY: usize = 64 * 1024;
const DEADLINE: Duration = Duration::from_secs(10);

/// Reads a body whole.
///
/// # Errors
/// `413` where it is larger than `limit` bytes, `408` where it takes too long.
pub(super) async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(DEADLINE, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(ApiError::refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body could not be read whole, or is larger than {limit} bytes"),
        )),
        Err(_elapsed) => Err(ApiError::refused(
            StatusCode::REQUEST_TIMEOUT,
            "the body took too long to come",
        )),
    }
}

/// Lets a request pass when its body is there.
pub(super) async fn bounded(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match read(body, MAX_BODY).await {
        Ok(bytes) => {
            next.run(Request::from_parts(parts, Body::from(bytes)))
                .await
        }
        Err(error) => error.into_response(),
    }
}
