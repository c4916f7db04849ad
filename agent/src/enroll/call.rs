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

use crate::http_client::{self, Answer, HttpError, retry_after};

/// For a call, beside what the controller may hold it.
const PATIENCE: Duration = Duration::from_secs(30);

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
    Nonsense(String),
}

pub(super) async fn call(
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
        let stream = http_client::connect(server, tls).await?;
        http_client::exchange(stream, server, http).await
    };
    let patience = PATIENCE + Duration::from_secs(request.wait);
    match time::timeout(patience, exchange).await {
        Ok(Ok(Answer::Plain(response))) => Ok(read(&response)),
        Ok(Ok(Answer::Switched(..))) => Ok(Verdict::Nonsense("it switched protocols".to_owned())),
        Ok(Err(error)) => Err(error),
        Err(_elapsed) => Err(HttpError::Timeout(server.to_string())),
    }
}

fn read(response: &Response<Bytes>) -> Verdict {
    let status = response.status().as_u16();
    let body = response.body();
    match status {
        200 => parse(body, |approved| Verdict::Approved(Box::new(approved))),
        202 => parse(body, Verdict::Pending),
        403 => parse(body, Verdict::Rejected),
        404 if is_token_not_found(body) => Verdict::TokenNotFound,
        404 => Verdict::Refused(
            status,
            Problem {
                detail: "nothing answers there: is --server the address of a Longshore controller?"
                    .to_owned(),
                ..Problem::default()
            },
        ),
        429 | 500..=599 => Verdict::Later(status, retry_after(response)),
        _ => Verdict::Refused(
            status,
            serde_json::from_slice(body).unwrap_or_else(|_| Problem {
                title: response
                    .status()
                    .canonical_reason()
                    .unwrap_or("for no known reason")
                    .to_owned(),
                ..Problem::default()
            }),
        ),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8], verdict: impl FnOnce(T) -> Verdict) -> Verdict {
    match serde_json::from_slice(body) {
        Ok(value) => verdict(value),
        Err(error) => Verdict::Nonsense(error.to_string()),
    }
}

fn is_token_not_found(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|body| {
        body.get("error").and_then(serde_json::Value::as_str) == Some("Token not found")
    })
}
