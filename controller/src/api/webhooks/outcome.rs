//! What a webhook call comes to: an answer, and a word for the metrics.

use std::time::Duration;

use axum::http::StatusCode;
use longshore_webhooks::Error;

use super::super::ApiError;

/// What became of a call that was verified.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    /// The fleet's source looks.
    Accepted,
    /// It did so when the delivery came for the first time.
    Repeated,
    /// There is nothing to look for.
    Ignored,
}

/// Why a call is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is no known host's, or carries no signature.
    Unsigned,
    /// The signature is wrong, or there is no such fleet: both are answered alike, whatever the reason.
    Forged,
    /// It is signed, and not what it says it is.
    Invalid(Error),
    /// Too many signed calls for this fleet, or too many wrong ones from this address.
    TooMany(Duration),
    /// Too many large calls at once.
    Busy,
    /// The body is too large or too slow.
    Unread(ApiError),
    /// It is ours.
    Failed(ApiError),
}

/// The word for the metrics.
pub(super) fn label(result: &Result<Outcome, Refusal>) -> &'static str {
    match result {
        Ok(Outcome::Accepted) => "accepted",
        Ok(Outcome::Repeated) => "repeated",
        Ok(Outcome::Ignored) => "ignored",
        Err(Refusal::Unsigned) => "unsigned",
        Err(Refusal::Forged) => "forged",
        Err(Refusal::Invalid(_)) => "invalid",
        Err(Refusal::TooMany(_)) => "limited",
        Err(Refusal::Busy) => "busy",
        Err(Refusal::Unread(_)) => "unread",
        Err(Refusal::Failed(_)) => "failed",
    }
}

impl From<Outcome> for StatusCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Accepted => Self::ACCEPTED,
            Outcome::Repeated | Outcome::Ignored => Self::OK,
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unsigned => Self::refused(
                StatusCode::UNAUTHORIZED,
                "there is no signature of a known Git host; set the webhook's secret there",
            ),
            Refusal::Forged => Self::refused(
                StatusCode::UNAUTHORIZED,
                "the signature does not fit; check the secret",
            ),
            Refusal::Invalid(error) => {
                Self::refused(StatusCode::BAD_REQUEST, crate::error::chain(&error))
            }
            Refusal::TooMany(pause) => Self::too_many(
                "too many webhooks; the next poll finds what they said",
                pause,
            ),
            Refusal::Busy => Self::refused(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many large webhooks at once; deliver it again",
            ),
            Refusal::Unread(error) | Refusal::Failed(error) => error,
        }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}
