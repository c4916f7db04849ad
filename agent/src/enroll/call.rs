//! One call of the enrollment endpoint, and what its answer means.

use std::{sync::Arc, time::Duration};

use http::{Method, Request, Response, header};
use http_body_util::Full;
use hyper::body::Bytes;
use longshore_protocol::api::{
    ENROLL_PATH, EnrollApproved, EnrollPending, EnrollRejected, EnrollRequest, Problem,
};
use rustls::ClientConfig;
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use tokio::time;
use url::Url;

use crate::{
    http_client::{self, Answer, HttpError, retry_after},
    network::Network,
};

/// For a call, beside what the controller may hold it.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What an answer means.
#[derive(Debug)]
pub(super) enum Verdict {
    Approved(Box<EnrollApproved>),
    Pending(EnrollPending),
    Rejected(EnrollRejected),
    TokenNotFound,
    Refused(u16, Problem),
    /// Come back later, perhaps after this long.
    Later(u16, Option<Duration>),
    /// No answer that a controller gives.
    Foreign(String),
}

pub(super) async fn call(
    network: &Network,
    server: &Url,
    tls: Arc<ClientConfig>,
    token: &SecretString,
    request: &EnrollRequest,
) -> Result<Verdict, HttpError> {
    let path = format!("{}{ENROLL_PATH}", server.path().trim_end_matches('/'));
    let body = serde_json::to_vec(request).unwrap_or_default();
    let http = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .header(
            header::AUTHORIZATION,
            format!("Bearer {}", token.expose_secret()),
        )
        .body(Full::new(Bytes::from(body)))
        .map_err(|_invalid| HttpError::Address(server.to_string()))?;
    let exchange = async {
        let stream = http_client::connect(network, server, tls).await?;
        http_client::exchange(stream, server, http).await
    };
    let patience = PATIENCE + Duration::from_secs(request.wait);
    match time::timeout(patience, exchange).await {
        Ok(Ok(Answer::Plain(response))) => Ok(read(&response)),
        Ok(Ok(Answer::Switched(..))) => Ok(Verdict::Foreign("it switched protocols".to_owned())),
        Ok(Err(error)) => Err(error),
        Err(_elapsed) => Err(HttpError::Timeout(server.to_string())),
    }
}

fn read(response: &Response<Bytes>) -> Verdict {
    let status = response.status().as_u16();
    let body = response.body();
    let verdict = match status {
        200 => parse(body).map(|approved| Verdict::Approved(Box::new(approved))),
        202 => parse(body).map(Verdict::Pending),
        403 => parse(body)
            .filter(|it: &EnrollRejected| ["rejected", "decommissioned"].contains(&&*it.status))
            .map(Verdict::Rejected),
        404 if is_token_not_found(body) => Some(Verdict::TokenNotFound),
        429 | 500..=599 => Some(Verdict::Later(status, retry_after(response))),
        400..=499 => parse(body)
            .filter(|problem: &Problem| !problem.title.is_empty())
            .map(|problem| Verdict::Refused(status, problem)),
        _ => None,
    };
    verdict.unwrap_or_else(|| Verdict::Foreign(outline(response)))
}

/// What the body holds, where that is what it should be.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    serde_json::from_slice(body).ok()
}

/// An answer in a few words: it may be a page of somebody else's.
fn outline(response: &Response<Bytes>) -> String {
    let text = |name| {
        let value = response.headers().get(name)?;
        let text: String = value.to_str().ok()?.chars().take(100).collect();
        Some(text)
    };
    let kind = text(header::CONTENT_TYPE).map(|kind| format!(", {kind}"));
    let location = text(header::LOCATION).map(|location| format!(", to {location}"));
    let outline = [Some(response.status().to_string()), kind, location];
    outline.into_iter().flatten().collect()
}

fn is_token_not_found(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|body| {
        body.get("error").and_then(serde_json::Value::as_str) == Some("Token not found")
    })
}
