//! A new certificate for one that has ended, through the controller's public address.
//!
//! ```text
//! GET /v1/renew ─▶ challenge ─▶ signed with the old key, for a fresh key ─▶ POST /v1/renew ─▶ identity
//! ```
//!
//! The old key and certificate stay until the new ones are on disk, which is the caller's to do. Only an answer in
//! the controller's own form, from a server that proved to be it, is a verdict; whatever else comes (a portal's
//! page, a proxy's error) is no answer, and the device asks again.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{Method, Request, Response, header};
use http_body_util::Full;
use hyper::body::Bytes;
use longshore_protocol::api::{
    EnrollApproved, EnrollRejected, Problem,
    renew::{RENEW_PATH, RenewChallenge, RenewRequest, proof},
};
use rustls::ClientConfig;
use secrecy::ExposeSecret as _;
use serde::de::DeserializeOwned;
use tokio::time;
use url::Url;

use crate::{
    http_client::{self, Answer, HttpError, retry_after},
    identity::{CertificateError, Chain, DeviceKey, Identity},
    network::Network,
    tls::{self, TlsError},
};

/// For each of the two calls.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenewError {
    /// No answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A key cannot be made or used, or the certificate that came is of no use.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The controller is there, and busy or starting.
    #[error("the controller answers {0}")]
    Later(u16, Option<Duration>),
    /// The device is no longer part of its fleet.
    #[error("the device was decommissioned: {0}")]
    Decommissioned(String),
    /// The certificate will not be renewed, in the controller's words.
    #[error("{0}")]
    TooLate(String),
    /// The controller refuses the proof or the request.
    #[error("the controller refuses to renew the certificate ({0}): {1}")]
    Refused(u16, String),
    /// It is no answer of a controller.
    #[error("the answer is not a controller's: {0}")]
    Nonsense(String),
}

/// Asks for a certificate for a fresh key, with a proof by the old one.
pub(crate) async fn renew(network: &Network, identity: &Identity) -> Result<Identity, RenewError> {
    let tls = tls::renewal(identity, network)?;
    let get = request(Method::GET, identity, Bytes::new())?;
    let challenge: RenewChallenge = parse(&call(network, identity, tls.clone(), get).await?)?;
    // Whoever is verified tells what time it is.
    network.clock.told(challenge.time);
    let old = DeviceKey::from_pem(&identity.key)?;
    let chain = Chain::verify(&identity.chain, &identity.ca_bundle, None)?;
    let leaf = chain.certificates().first();
    let fresh = DeviceKey::generate()?;
    let csr = fresh.request(&identity.name)?;
    let message = proof(
        &challenge.challenge,
        leaf.map_or(&[], |leaf| leaf),
        &csr.der,
    );
    let body = RenewRequest {
        certificate_chain: chain.pem(),
        csr: csr.pem,
        challenge: challenge.challenge,
        signature: BASE64.encode(old.sign(&message)?),
    };
    let body = serde_json::to_vec(&body).unwrap_or_default();
    let post = request(Method::POST, identity, body.into())?;
    let approved = parse(&call(network, identity, tls, post).await?)?;
    renewed(identity, &fresh, approved, challenge.time)
}

/// What the device is from here on. Roots and address come from the controller, as when it enrolled: they may have
/// changed while it was away.
fn renewed(
    identity: &Identity,
    key: &DeviceKey,
    approved: EnrollApproved,
    now: u64,
) -> Result<Identity, RenewError> {
    let chain = Chain::verify(
        &approved.certificate_chain,
        &approved.ca_bundle,
        // By the controller's clock: the device's own may be wrong.
        Some(now),
    )?;
    chain.belongs_to(key)?;
    chain.names(&identity.device_id)?;
    let edge_url = Url::parse(&approved.edge_url)
        .ok()
        .filter(|url| url.scheme() == "wss" && url.host().is_some())
        .ok_or_else(|| {
            RenewError::Nonsense(format!("`{}` is no wss:// address", approved.edge_url))
        })?;
    Ok(Identity {
        key: key.pem(),
        chain: chain.pem(),
        ca_bundle: approved.ca_bundle,
        device_token: approved.device_token.into(),
        edge_url,
        ..identity.clone()
    })
}

fn request(
    method: Method,
    identity: &Identity,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, HttpError> {
    let server = &identity.server;
    let token = identity.device_token.expose_secret();
    let path = format!("{}{RENEW_PATH}", server.path().trim_end_matches('/'));
    let is_get = method == Method::GET;
    let mut request = Request::builder().method(method).uri(path);
    if !is_get {
        request = request
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    request
        .body(Full::new(body))
        .map_err(|_invalid| HttpError::Address(server.to_string()))
}

/// The body of a success.
async fn call(
    network: &Network,
    identity: &Identity,
    tls: Arc<ClientConfig>,
    request: Request<Full<Bytes>>,
) -> Result<Bytes, RenewError> {
    let server = &identity.server;
    let exchange = async {
        let stream = http_client::connect(network, server, tls).await?;
        http_client::exchange(stream, server, request).await
    };
    match time::timeout(PATIENCE, exchange).await {
        Ok(Ok(Answer::Plain(response))) if response.status() == http::StatusCode::OK => {
            Ok(response.into_body())
        }
        Ok(Ok(Answer::Plain(response))) => Err(refusal(&response)),
        Ok(Ok(Answer::Switched(..))) => {
            Err(RenewError::Nonsense("it switched protocols".to_owned()))
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_elapsed) => Err(HttpError::Timeout(server.to_string()).into()),
    }
}

fn refusal(response: &Response<Bytes>) -> RenewError {
    let status = response.status().as_u16();
    let body = response.body();
    match status {
        403 => match serde_json::from_slice::<EnrollRejected>(body) {
            Ok(rejected) if rejected.status == "decommissioned" => {
                RenewError::Decommissioned(rejected.reason)
            }
            Ok(rejected) if rejected.status == "expired" => RenewError::TooLate(rejected.reason),
            Ok(rejected) => RenewError::Refused(status, rejected.reason),
            Err(_) => RenewError::Nonsense(response.status().to_string()),
        },
        429 | 500..=599 => RenewError::Later(status, retry_after(response)),
        _ => match serde_json::from_slice::<Problem>(body) {
            Ok(problem) if !problem.detail.is_empty() => {
                RenewError::Refused(status, problem.detail)
            }
            _ => RenewError::Nonsense(response.status().to_string()),
        },
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, RenewError> {
    serde_json::from_slice(body).map_err(|error| RenewError::Nonsense(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal_of(status: u16, body: &'static str) -> RenewError {
        let response = Response::builder().status(status);
        refusal(&response.body(Bytes::from_static(body.as_bytes())).unwrap())
    }

    #[test]
    fn only_the_controllers_own_words_are_a_verdict() {
        let gone = r#"{"status":"decommissioned","reason":"gone"}"#;
        let late = r#"{"status":"expired","reason":"too late"}"#;
        assert!(matches!(
            refusal_of(403, gone),
            RenewError::Decommissioned(reason) if reason == "gone"
        ));
        assert!(matches!(refusal_of(403, late), RenewError::TooLate(_)));
        for (status, body) in [
            (403, "<html>Log in to the hotel's network</html>"),
            (403, r#"{"reason":"blocked"}"#),
            (404, gone),
            (401, late),
            (511, gone),
            (302, ""),
        ] {
            let error = refusal_of(status, body);
            assert!(
                matches!(error, RenewError::Nonsense(_) | RenewError::Later(..)),
                "{status} {body}: {error:?}"
            );
        }
        assert!(parse::<EnrollApproved>(b"<html>welcome</html>").is_err());
    }
}
