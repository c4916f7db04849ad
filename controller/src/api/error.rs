//! Domain errors as problem documents (RFC 9457).

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use longshore_protocol::api::{PROBLEM_MEDIA_TYPE, Problem};

use crate::{
    builds::ensure::EnsureError,
    enrollment::{EnrollError, branches::BranchError},
    error::chain,
    forge::connection::InvalidConnection,
    preview::PreviewError,
    secret::SecretError,
    source::git::GitError,
    store::StoreError,
};

/// Why a call is refused.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    detail: String,
    retry_after: Option<Duration>,
}

impl ApiError {
    /// The caller did something that cannot be.
    pub fn refused(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            retry_after: None,
        }
    }

    /// The caller calls too often.
    pub fn too_many(detail: impl Into<String>, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::refused(StatusCode::TOO_MANY_REQUESTS, detail)
        }
    }

    /// Too many call at once.
    pub fn busy(detail: impl Into<String>, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::refused(StatusCode::SERVICE_UNAVAILABLE, detail)
        }
    }

    /// There is no such thing, or not for this caller.
    pub fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        Self::refused(
            StatusCode::NOT_FOUND,
            format!("there is no {what} `{name}`"),
        )
    }

    /// It is ours. The cause goes to the log, not to the caller.
    fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(error = %chain(error), "a call failed");
        Self::refused(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the controller failed; its log says why",
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: "about:blank".to_owned(),
            title: self
                .status
                .canonical_reason()
                .unwrap_or_default()
                .to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
        };
        let mut response = (self.status, Json(problem)).into_response();
        let media_type = HeaderValue::from_static(PROBLEM_MEDIA_TYPE);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, media_type);
        if let Some(pause) = self.retry_after {
            let seconds = HeaderValue::from(pause.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Duplicate(_) => Self::refused(
                StatusCode::CONFLICT,
                "something of that name exists already",
            ),
            other => Self::internal(&other),
        }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        StoreError::from(error).into()
    }
}

impl From<SecretError> for ApiError {
    fn from(error: SecretError) -> Self {
        Self::internal(&error)
    }
}

impl From<GitError> for ApiError {
    fn from(error: GitError) -> Self {
        match error {
            GitError::Refused { .. } | GitError::Throttled { .. } | GitError::TimedOut { .. } => {
                Self::refused(StatusCode::BAD_GATEWAY, error.to_string())
            }
            other => Self::internal(&other),
        }
    }
}

impl From<InvalidConnection> for ApiError {
    fn from(error: InvalidConnection) -> Self {
        Self::refused(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    }
}

impl From<PreviewError> for ApiError {
    fn from(error: PreviewError) -> Self {
        match error {
            PreviewError::NoBranch(_) => Self::refused(StatusCode::NOT_FOUND, error.to_string()),
            PreviewError::Git(error) => error.into(),
            PreviewError::Store(error) | PreviewError::Builds(EnsureError::Store(error)) => {
                error.into()
            }
            PreviewError::Builds(error @ EnsureError::TooMany { .. }) => {
                Self::refused(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
            }
            PreviewError::Builds(error @ EnsureError::TooLong { .. }) => {
                Self::refused(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            other @ (PreviewError::Tree(_) | PreviewError::Cut) => Self::internal(&other),
        }
    }
}

impl From<BranchError> for ApiError {
    fn from(error: BranchError) -> Self {
        match error {
            BranchError::Git(error) if error.is_race() => Self::refused(
                StatusCode::CONFLICT,
                "somebody else pushed at the same moment; try again",
            ),
            BranchError::Git(error) => error.into(),
            BranchError::Store(error) => error.into(),
            refused @ (BranchError::NotPending(_)
            | BranchError::NoBranch
            | BranchError::Conflict(_)) => Self::refused(StatusCode::CONFLICT, refused.to_string()),
        }
    }
}

impl IntoResponse for EnrollError {
    fn into_response(self) -> Response {
        let detail = self.to_string();
        match self {
            // The one answer whose exact form is promised.
            Self::TokenNotFound => {
                let body = Json(serde_json::json!({ "error": detail }));
                (StatusCode::NOT_FOUND, body).into_response()
            }
            Self::Unproven => ApiError::refused(StatusCode::UNAUTHORIZED, detail).into_response(),
            Self::NameTaken(_) | Self::StaleChallenge => {
                ApiError::refused(StatusCode::CONFLICT, detail).into_response()
            }
            Self::Invalid(_) => {
                ApiError::refused(StatusCode::UNPROCESSABLE_ENTITY, detail).into_response()
            }
            Self::TooMany { retry_after } => {
                ApiError::too_many(detail, retry_after).into_response()
            }
            Self::Busy { retry_after } => ApiError::busy(detail, retry_after).into_response(),
            Self::Store(error) => ApiError::from(error).into_response(),
            Self::Read(error) => ApiError::internal(&error).into_response(),
            Self::Ca(error) => ApiError::internal(&error).into_response(),
        }
    }
}
