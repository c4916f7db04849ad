//! From an address to an open WebSocket: TCP, mutual TLS, upgrade.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Bytes, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use longshore_protocol::{
    api::{EnrollRejected, Problem, SUBPROTOCOL},
    message::MAX_CONTROL_FRAME,
};
use rustls::ClientConfig;
use secrecy::ExposeSecret as _;
use tokio::time;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

use crate::{
    http_client::{self, Answer, HttpError, IN_BETWEEN, retry_after},
    identity::Identity,
    network::Network,
};

/// For all of it.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// The library's defaults are made for servers with gigabytes.
const BUFFER: usize = 8 * 1024;

pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Why there is no WebSocket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// No answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The device is no longer part of its fleet.
    #[error("the device was decommissioned: {0}")]
    Decommissioned(String),
    /// The controller does not take certificate or token.
    #[error("the controller refuses this device's credentials: {0}")]
    CredentialsRefused(String),
    /// The controller is there, and busy or starting.
    #[error("the controller answers {0}")]
    Later(StatusCode, Option<Duration>),
    /// Whoever answers does not speak the protocol.
    #[error("the edge endpoint does not speak {SUBPROTOCOL} ({0}): {IN_BETWEEN}")]
    Protocol(String),
}

pub(crate) async fn dial(
    network: &Network,
    identity: &Identity,
    tls: Arc<ClientConfig>,
) -> Result<Socket, DialError> {
    time::timeout(PATIENCE, open(network, identity, tls))
        .await
        .map_err(|_elapsed| HttpError::Timeout(identity.edge_url.to_string()))?
}

async fn open(
    network: &Network,
    identity: &Identity,
    tls: Arc<ClientConfig>,
) -> Result<Socket, DialError> {
    let url = &identity.edge_url;
    let key = generate_key();
    let token = identity.device_token.expose_secret();
    let request = Request::builder()
        .uri(url.path())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Full::new(Bytes::new()))
        .map_err(|_invalid| HttpError::Address(url.to_string()))?;
    let stream = http_client::connect(network, url, tls).await?;
    match http_client::exchange(stream, url, request).await? {
        Answer::Switched(headers, stream) => {
            check(&headers, &key)?;
            let config = WebSocketConfig::default()
                .read_buffer_size(BUFFER)
                .write_buffer_size(BUFFER)
                .max_write_buffer_size(MAX_CONTROL_FRAME)
                .max_message_size(Some(MAX_CONTROL_FRAME))
                .max_frame_size(Some(MAX_CONTROL_FRAME));
            Ok(WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await)
        }
        Answer::Plain(response) => Err(refusal(&response)),
    }
}

/// RFC 6455, section 4.1: what a client must check.
fn check(headers: &HeaderMap, key: &str) -> Result<(), DialError> {
    let is = |name, value: &str| {
        headers
            .get(name)
            .and_then(|found| found.to_str().ok())
            .is_some_and(|found: &str| found == value)
    };
    if !is(
        header::SEC_WEBSOCKET_ACCEPT,
        &derive_accept_key(key.as_bytes()),
    ) {
        return Err(DialError::Protocol("it accepted another key".to_owned()));
    }
    if !is(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return Err(DialError::Protocol(
            "it chose another subprotocol".to_owned(),
        ));
    }
    Ok(())
}

/// What the answer means. Only one of the controller's own shape is about this device.
fn refusal(response: &Response<Bytes>) -> DialError {
    let status = response.status();
    let body = response.body();
    match status.as_u16() {
        401 | 403 => match serde_json::from_slice::<EnrollRejected>(body) {
            Ok(rejected)
                if status == StatusCode::FORBIDDEN && rejected.status == "decommissioned" =>
            {
                DialError::Decommissioned(rejected.reason)
            }
            Ok(rejected) => DialError::CredentialsRefused(rejected.reason),
            Err(_) => problem(body).map_or_else(
                || DialError::Protocol(status.to_string()),
                DialError::CredentialsRefused,
            ),
        },
        429 | 500..=599 => DialError::Later(status, retry_after(response)),
        _ => DialError::Protocol(problem(body).unwrap_or_else(|| status.to_string())),
    }
}

fn problem(body: &[u8]) -> Option<String> {
    let Problem { title, detail, .. } = serde_json::from_slice(body).ok()?;
    let detail = if detail.is_empty() { title } else { detail };
    (!detail.is_empty()).then_some(detail)
}
